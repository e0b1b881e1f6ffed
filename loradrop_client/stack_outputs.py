"""The outputs and parameters of a deployed loradrop stack."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from .errors import AWS_ERRORS, StackNotFoundError, explained

STACK_VARIABLE = "LORADROP_STACK"
DEFAULT_STACK = "loradrop-dev"
# Of AWS's own API; the model is called with other limits.
AWS_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 4}, connect_timeout=5, read_timeout=20)


@dataclass(frozen=True, slots=True)
class StackOutputs:
    """Outputs and parameters as CloudFormation has them."""

    name: str
    outputs: Mapping[str, str]
    parameters: Mapping[str, str]

    def output(self, key: str) -> str:
        """Raises StackNotFoundError where the stack has no such output."""
        if key not in self.outputs:
            raise StackNotFoundError(
                f"The stack {self.name} has no output {key}: it is not a loradrop stack, or its deployment is not complete. "
                "`sam deploy` creates or repairs it."
            )
        return self.outputs[key]


def default_stack() -> str:
    """What LORADROP_STACK names, or else the stack of `sam deploy --config-env dev`."""
    return os.environ.get(STACK_VARIABLE) or DEFAULT_STACK


def read_stack(name: str, session: boto3.Session | None = None) -> StackOutputs:
    """Requires cloudformation:DescribeStacks. Raises StackNotFoundError, AccessRefusedError or AwsUnavailableError."""
    region = None
    try:
        cloudformation = (session or boto3.Session()).client("cloudformation", config=AWS_CONFIG)
        region = cloudformation.meta.region_name
        described = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    except (*AWS_ERRORS, ValueError) as error:
        if isinstance(error, ClientError) and error.response["Error"].get("Code") == "ValidationError":
            raise StackNotFoundError(
                f"There is no stack {name!r} in {region}, in the account of these credentials. Check the name, the region and "
                f"the account, or set {STACK_VARIABLE}; `sam deploy` creates a stack."
            ) from error
        raise explained(error, f"read the stack {name}") from error
    except (KeyError, IndexError) as error:  # XML, but not AWS's; boto3's parser fails like this itself
        raise explained(ResponseParserError(), f"read the stack {name}") from error
    return StackOutputs(
        name,
        {one["OutputKey"]: one["OutputValue"] for one in described.get("Outputs", [])},
        {one["ParameterKey"]: one["ParameterValue"] for one in described.get("Parameters", [])},
    )
