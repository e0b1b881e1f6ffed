"""A stack deployed on the local cloud, as a person has it: its outputs, and AWS's API."""

import json
from typing import Any

import boto3

from .cloud import REGION, LocalCloud

STACK_NAME = "loradrop-local"  # samconfig.toml


class DeployedStack:
    def __init__(self, cloud: LocalCloud, name: str = STACK_NAME) -> None:
        self.cloud, self.name = cloud, name
        self._session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)
        self.states, self._invoker = self.client("stepfunctions"), self.client("sagemaker-runtime")
        described = self.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
        self.outputs: dict[str, str] = {one["OutputKey"]: one["OutputValue"] for one in described["Outputs"]}

    def client(self, service: str) -> Any:
        connect: Any = self._session.client
        return connect(service, endpoint_url=self.cloud.endpoint_url)

    def history(self, execution: str) -> list[dict[str, Any]]:
        """All events of an execution, in order."""
        pages = self.states.get_paginator("get_execution_history").paginate(executionArn=execution)
        return [event for page in pages for event in page["events"]]

    def ask(self, component: str, prompt: str, max_new_tokens: int = 16) -> str:
        """A component's greedy answer."""
        response = self._invoker.invoke_endpoint(
            EndpointName=self.outputs["EndpointName"],
            InferenceComponentName=component,
            ContentType="application/json",
            Body=json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": max_new_tokens, "temperature": 0}}),
        )
        return str(json.load(response["Body"])["generated_text"])
