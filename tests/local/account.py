"""An account on the local cloud, for tests that need little of it: users, roles, functions, queues, state machines."""

import io
import itertools
import json
import zipfile
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config

from local.cloud import REGION, LocalCloud

from .conftest import eventually

Statement = dict[str, Any]
ACCOUNT = "000000000000"
# These tests want the refusal itself, so the SDK must not retry.
ONCE = Config(retries={"total_max_attempts": 1})

_numbers = itertools.count(1)


def unique(prefix: str) -> str:
    return f"{prefix}-{next(_numbers)}"


def allow(action: str | list[str], resource: str | list[str] = "*", **conditions: Any) -> Statement:
    statement = {"Effect": "Allow", "Action": action, "Resource": resource}
    return statement | ({"Condition": conditions} if conditions else {})


def policy(*statements: Statement) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


class Account:
    def __init__(self, cloud: LocalCloud) -> None:
        self.cloud = cloud
        self.iam, self.s3, self.sqs = self.client("iam"), self.client("s3"), self.client("sqs")
        self.states, self.events = self.client("stepfunctions"), self.client("events")
        self.cloudformation, self.sagemaker = self.client("cloudformation"), self.client("sagemaker")

    def client(self, service: str, key: str = "test", secret: str = "test", token: str | None = None) -> Any:
        connect: Any = boto3.client
        return connect(
            service,
            endpoint_url=self.cloud.endpoint_url,
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=ONCE,
        )

    def user(self, *statements: Statement) -> Callable[[str], Any]:
        """A way to clients of a new user, who may do this and nothing else."""
        name = unique("user")
        self.iam.create_user(UserName=name)
        if statements:
            self.iam.put_user_policy(UserName=name, PolicyName="may", PolicyDocument=policy(*statements))
        made = self.iam.create_access_key(UserName=name)["AccessKey"]
        return lambda service: self.client(service, made["AccessKeyId"], made["SecretAccessKey"])

    def role(self, service: str, *statements: Statement) -> str:
        name = unique("role")
        principal = {"Service": f"{service}.amazonaws.com"} if service else {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
        trust = policy({"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"})
        arn: str = self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        if statements:
            self.iam.put_role_policy(RoleName=name, PolicyName="may", PolicyDocument=policy(*statements))
        return arn

    def assumed(self, role: str) -> Callable[[str], Any]:
        """A way to clients of a session of this role, which the account's own users may take."""
        keys = self.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
        return lambda service: self.client(service, keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])

    def bucket(self, *, versioned: bool = False) -> str:
        name = unique("bucket")
        self.s3.create_bucket(Bucket=name)
        if versioned:
            self.s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def function(self, code: str, *may: Statement) -> str:
        """A Lambda function with this code as its only module, and a role that may do this; its ARN."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("handlers.py", code)
        made = self.client("lambda").create_function(
            FunctionName=unique("function"),
            Runtime="python3.13",
            Handler="handlers.handler",
            Role=self.role("lambda", *may),
            Code={"ZipFile": packed.getvalue()},
            Timeout=60,
        )
        arn: str = made["FunctionArn"]
        return arn

    def queue(self) -> tuple[str, str]:
        """URL and ARN."""
        url = self.sqs.create_queue(QueueName=unique("queue"))["QueueUrl"]
        attributes = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
        return url, attributes["QueueArn"]

    def receive(self, queue_url: str, count: int) -> list[Any]:
        """The bodies of so many messages, and of any others that came with them."""
        bodies: list[Any] = []

        def poll() -> bool:
            got = self.sqs.receive_message(QueueUrl=queue_url, WaitTimeSeconds=1, MaxNumberOfMessages=10)
            bodies.extend(json.loads(message["Body"]) for message in got.get("Messages", []))
            return len(bodies) >= count

        eventually(poll, f"{count} messages in {queue_url}", seconds=10)
        return bodies

    def machine(self, definition: dict[str, Any], *may: Statement) -> str:
        made = self.states.create_state_machine(
            name=unique("machine"), definition=json.dumps(definition), roleArn=self.role("states", *may)
        )
        arn: str = made["stateMachineArn"]
        return arn

    def rule(self, pattern: dict[str, Any], target: dict[str, Any]) -> None:
        name = unique("rule")
        self.events.put_rule(Name=name, EventPattern=json.dumps(pattern))
        put = self.events.put_targets(Rule=name, Targets=[{"Id": "target"} | target])
        assert put["FailedEntryCount"] == 0


def ended(account: Account, arn: str) -> dict[str, Any]:
    def poll() -> dict[str, Any] | None:
        described: dict[str, Any] = account.states.describe_execution(executionArn=arn)
        return described if described["status"] != "RUNNING" else None

    return eventually(poll, f"the end of {arn}", seconds=20)


def run(account: Account, machine: str, given: Any = None) -> dict[str, Any]:
    started = account.states.start_execution(stateMachineArn=machine, input=json.dumps(given or {}))
    return ended(account, started["executionArn"])
