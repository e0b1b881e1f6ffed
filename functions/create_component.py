"""CreateComponent: create, or adopt, the adapter component of this release on the base."""

import time
from typing import TYPE_CHECKING, Any

import boto3

import components
from registry import Registry
from runtime import CLIENT_CONFIG, ComponentBusy, ComponentRefused, logger, setting

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext
    from mypy_boto3_sagemaker.type_defs import DescribeInferenceComponentOutputTypeDef

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
endpoint = setting("ENDPOINT_NAME")
base = setting("BASE_COMPONENT_NAME")
stack = setting("STACK_NAME")


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{upload, release} → {action: created | adopted, since: Unix seconds}. Raises faults that are worth a retry."""
    upload, release = event["upload"], event["release"]
    name = release["component"]
    registry.use_component(upload["adapter"], name, release["sha256"], upload["sequencer"])
    artifact_url = f"s3://{release['bucket']}/{release['key']}"

    found = components.describe(name)
    if found is None:
        tags = {
            "loradrop:adapter": upload["adapter"],
            "loradrop:release": release["sha256"],
            "loradrop:upload": upload["version_id"],
            "loradrop:stack": stack,
        }
        components.create(name, endpoint, base, artifact_url, tags)
    else:
        _adopt(name, artifact_url, found)
    action = "created" if found is None else "adopted"
    logger.info("component ready to be waited for", adapter=upload["adapter"], component=name, action=action)
    return {"action": action, "since": int(time.time())}


def _adopt(name: str, artifact_url: str, found: "DescribeInferenceComponentOutputTypeDef") -> None:
    status = found.get("InferenceComponentStatus", "Creating")
    if status == "Deleting":
        raise ComponentBusy(f"{name} is being deleted.")
    specification = found.get("Specification", {})
    theirs = specification.get("Container", {}).get("ArtifactUrl")
    if (found["EndpointName"], specification.get("BaseInferenceComponentName"), theirs) != (
        endpoint,
        base,
        artifact_url,
    ):
        raise ComponentRefused(f"A component {name} that serves {theirs} exists already and is not this stack's.")
    if status == "Failed":
        components.delete(name)
        raise ComponentBusy(f"{name} was left Failed by an earlier try and is being replaced.")
