"""The stack, deployed by `sam deploy` on the local cloud with IAM enforced: one for the whole run of these tests."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from botocore.exceptions import ClientError

from local.cloud import LocalCloud
from local.stack import STACK_NAME, DeployedStack

REPOSITORY = Path(__file__).resolve().parents[2]
TOOL_FOLDERS = [str(REPOSITORY / folder) for folder in (".venv/bin", ".tools/sam/bin", ".tools/aws/bin")]
DEADLINE_SECONDS = 90.0
Found = TypeVar("Found")
# The states of DeployAdapter that call a function, where all goes well.
FUNCTION_STATES = (
    "ClaimUpload",
    "ValidateAdapter",
    "CreateComponent",
    "WaitForInService",
    "SmokeTestAdapter",
    "PromoteAdapter",
    "ReportOutcome",
)


def eventually(look: Callable[[], Found | None], what: str, seconds: float = DEADLINE_SECONDS) -> Found:
    """The first value of `look` that counts as true; fails when the deadline has passed."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Execution:
    """An execution that has ended."""

    arn: str
    status: str
    error: str | None
    cause: str
    output: Any
    events: list[dict[str, Any]]

    @property
    def states(self) -> list[str]:
        """The states in the order they were entered; the loop around WaitForInService once."""
        entered = [
            event["stateEnteredEventDetails"]["name"] for event in self.events if "stateEnteredEventDetails" in event
        ]
        looped = "WaitForNextPoll", "WaitForInService", "IsComponentInService"
        waits = {i for i, name in enumerate(entered) if name == looped[0]}
        return [name for i, name in enumerate(entered) if not {i, i - 1, i - 2} & waits]

    def task_errors(self, state: str) -> list[str]:
        """The errors of a Task's attempts."""
        errors, current = [], ""
        for event in self.events:
            current = event.get("stateEnteredEventDetails", {}).get("name", current)
            for kind in ("taskFailedEventDetails", "lambdaFunctionFailedEventDetails"):
                if kind in event and current == state:
                    errors.append(event[kind]["error"])
        return errors


class StackUnderTest(DeployedStack):
    """And what tests ask of it."""

    def __init__(self, cloud: LocalCloud, name: str = STACK_NAME) -> None:
        super().__init__(cloud, name)
        self.s3, self.sagemaker = self.client("s3"), self.client("sagemaker")
        self.dynamodb, self.iam = self.client("dynamodb"), self.client("iam")
        self.machine, self.reconciler = self.outputs["StateMachineArn"], self.outputs["ReconcileFleetArn"]
        self.uploads, self.releases = self.outputs["UploadBucketName"], self.outputs["ReleaseBucketName"]
        self._inputs: dict[str, dict[str, Any]] = {}

    def upload(self, adapter: str, body: bytes, *, key: str | None = None, **options: Any) -> str:
        """Put a tarball where it is dropped; its version."""
        key = key or f"adapters/{adapter}.tar.gz"
        put = self.s3.put_object(Bucket=self.uploads, Key=key, Body=body, **options)
        version: str = put["VersionId"]
        return version

    def remove(self, adapter: str) -> None:
        """Delete the tarball, which leaves a delete marker."""
        self.s3.delete_object(Bucket=self.uploads, Key=f"adapters/{adapter}.tar.gz")

    def drop(self, adapter: str, body: bytes, *, key: str | None = None, **options: Any) -> Execution:
        """Upload a tarball and wait for the end of the execution that its event starts."""
        return self.end_of(self.execution_of(self.upload(adapter, body, key=key, **options)))

    def reconcile(self, **scope: Any) -> Execution:
        """Run ReconcileFleet by hand, and wait for its end."""
        started = self.states.start_execution(stateMachineArn=self.reconciler, input=json.dumps(scope))
        return self.end_of(started["executionArn"])

    def settle(self) -> None:
        """Wait until no execution of either machine runs."""

        def is_quiet() -> bool:
            return not any(
                self.states.list_executions(stateMachineArn=machine, statusFilter="RUNNING")["executions"]
                for machine in (self.machine, self.reconciler)
            )

        eventually(is_quiet, "the end of every execution")

    def execution_of(self, version: str, besides: frozenset[str] = frozenset()) -> str:
        def look() -> str | None:
            for page in self.states.get_paginator("list_executions").paginate(stateMachineArn=self.machine):
                for one in page["executions"]:
                    arn = one["executionArn"]
                    if arn not in self._inputs:
                        self._inputs[arn] = json.loads(self.states.describe_execution(executionArn=arn)["input"])
                    given = self._inputs[arn].get("detail", {}).get("object", {})
                    if given.get("version-id") == version and arn not in besides:
                        return str(arn)
            return None

        return eventually(look, f"an execution for the upload {version}")

    def start(self, event: dict[str, Any]) -> Execution:
        """Run an event by hand: how one that comes twice, late or for nothing looks to the state machine."""
        started = self.states.start_execution(stateMachineArn=self.machine, input=json.dumps(event))
        return self.end_of(started["executionArn"])

    def event_of(self, execution: Execution) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.states.describe_execution(executionArn=execution.arn)["input"])
        return event

    def event(self, adapter: str, version: str, sequencer: str, size_bytes: int = 1) -> dict[str, Any]:
        return {
            "source": "aws.s3",
            "detail-type": "Object Created",
            "detail": {
                "bucket": {"name": self.uploads},
                "object": {
                    "key": f"adapters/{adapter}.tar.gz",
                    "version-id": version,
                    "sequencer": sequencer,
                    "size": size_bytes,
                },
            },
        }

    def end_of(self, arn: str) -> Execution:
        def look() -> dict[str, Any] | None:
            described: dict[str, Any] = self.states.describe_execution(executionArn=arn)
            return described if described["status"] != "RUNNING" else None

        ended = eventually(look, f"the end of {arn}")
        return Execution(
            arn=arn,
            status=ended["status"],
            error=ended.get("error"),
            cause=ended.get("cause") or "",
            output=json.loads(ended["output"]) if ended.get("output") else None,
            events=self.history(arn),
        )

    @contextmanager
    def rule_disabled(self) -> Iterator[None]:
        """Uploads start nothing."""
        with self.rules_disabled("AdapterUploaded"):
            yield

    @contextmanager
    def rules_disabled(self, *logical_ids: str) -> Iterator[None]:
        events = self.client("events")
        names = [self.resource(one) for one in self.resources() if one.endswith(logical_ids)]
        assert len(names) == len(logical_ids)
        for name in names:
            events.disable_rule(Name=name)
        try:
            yield
        finally:
            for name in names:
                events.enable_rule(Name=name)

    @contextmanager
    def listening(self) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        """What the topic publishes meanwhile: each call returns all of it so far, as SNS wraps it."""
        queues, topics = self.client("sqs"), self.client("sns")
        queue = queues.create_queue(QueueName=f"listener-{time.monotonic_ns()}")["QueueUrl"]
        arn = queues.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        # Everybody may send; who else may not is not what its tests are about.
        allowed = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
        policy = {"Version": "2012-10-17", "Statement": [allowed]}
        queues.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": json.dumps(policy)})
        topic = self.outputs["NotificationTopicArn"]
        subscribed = topics.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, ReturnSubscriptionArn=True)
        found: list[dict[str, Any]] = []

        def heard() -> list[dict[str, Any]]:
            while messages := queues.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages"):
                found.extend(json.loads(message["Body"]) for message in messages)
            return found

        try:
            yield heard
        finally:
            topics.unsubscribe(SubscriptionArn=subscribed["SubscriptionArn"])
            queues.delete_queue(QueueUrl=queue)

    def resources(self) -> dict[str, str]:
        """Logical → physical ids."""
        pages = self.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=self.name)
        found = [one for page in pages for one in page["StackResourceSummaries"]]
        return {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in found}

    @property
    def stack_id(self) -> str:
        described = self.client("cloudformation").describe_stacks(StackName=self.name)["Stacks"][0]
        return str(described["StackId"])

    def resource(self, logical_id: str) -> str:
        return self.resources()[logical_id]

    def report(self, adapter: str) -> dict[str, Any]:
        body = self.s3.get_object(Bucket=self.uploads, Key=f"reports/{adapter}.json")["Body"].read()
        report: dict[str, Any] = json.loads(body)
        return report

    def smoke_answers(self, adapter: str) -> list[dict[str, Any]]:
        """What the newest upload's smoke test asked and heard: the report only names where that lies."""
        key = self.report(adapter)["newest"]["smoke"]["answers"].removeprefix(f"s3://{self.releases}/")
        answers: list[dict[str, Any]] = json.loads(self.s3.get_object(Bucket=self.releases, Key=key)["Body"].read())[
            "prompts"
        ]
        return answers

    def tags(self, adapter: str, version: str) -> dict[str, str]:
        got = self.s3.get_object_tagging(Bucket=self.uploads, Key=f"adapters/{adapter}.tar.gz", VersionId=version)
        return {tag["Key"]: tag["Value"] for tag in got["TagSet"]}

    def tags_of_current(self, adapter: str) -> dict[str, str]:
        got = self.s3.get_object_tagging(Bucket=self.uploads, Key=f"adapters/{adapter}.tar.gz")
        return {tag["Key"]: tag["Value"] for tag in got["TagSet"]}

    def registry(self, adapter: str) -> dict[str, Any]:
        """The adapter's state."""
        key = {"adapter": {"S": adapter}, "record": {"S": "state"}}
        item = self.dynamodb.get_item(TableName=self.outputs["RegistryTable"], Key=key)
        found: dict[str, Any] = item.get("Item", {})
        return found

    def newest_record(self, adapter: str) -> str:
        """The sort key of the adapter's newest upload in the registry."""
        found = self.dynamodb.query(
            TableName=self.outputs["RegistryTable"],
            KeyConditionExpression="adapter = :adapter AND begins_with(#record, :upload)",
            ExpressionAttributeNames={"#record": "record"},
            ExpressionAttributeValues={":adapter": {"S": adapter}, ":upload": {"S": "upload#"}},
            ScanIndexForward=False,
            Limit=1,
        )
        return str(found["Items"][0]["record"]["S"])

    def live(self, adapter: str) -> str | None:
        """The component that the registry's live pointer names."""
        pointer = self.registry(adapter).get("live")
        return pointer["M"]["component"]["S"] if pointer else None

    def components(self, adapter: str) -> dict[str, str]:
        """Name → status of the components that carry this adapter's tag."""
        pages = self.sagemaker.get_paginator("list_inference_components").paginate()
        found = {}
        for one in (one for page in pages for one in page["InferenceComponents"]):
            try:
                tags = self.sagemaker.list_tags(ResourceArn=one["InferenceComponentArn"])["Tags"]
            except ClientError:
                continue  # it went between the two calls
            if {"Key": "loradrop:adapter", "Value": adapter} in tags:
                found[one["InferenceComponentName"]] = one["InferenceComponentStatus"]
        return found

    def released(self, adapter: str) -> list[str]:
        listed = self.s3.list_objects_v2(Bucket=self.releases, Prefix=f"releases/{adapter}/")
        return [one["Key"] for one in listed.get("Contents", [])]


def command(cloud: LocalCloud, *words: str) -> str:
    """Run a command of the README's as its reader does; what it printed."""
    environment = os.environ | cloud.environment()
    environment["PATH"] = os.pathsep.join([*TOOL_FOLDERS, environment["PATH"]])
    assert shutil.which(words[0], path=environment["PATH"]), f"there is no {words[0]}; `make setup` installs it"
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_and_deploy(cloud: LocalCloud, *words: str) -> None:
    """As README says, with more words for the deployment. One at a time: every process of the tests builds in one folder."""
    with (REPOSITORY / "template.yaml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command(cloud, "sam", "build")
        command(cloud, "sam", "deploy", "--config-env", "local", *words)


@pytest.fixture(scope="session")
def cloud() -> Iterator[LocalCloud]:
    # What a state machine waits, between retries and polls, is a fifth of what it says.
    with LocalCloud(engine="stand-in", wait_scale=0.2) as running:
        yield running


@pytest.fixture(scope="session")
def deployed(cloud: LocalCloud) -> StackUnderTest:
    build_and_deploy(cloud)
    return StackUnderTest(cloud)


@pytest.fixture
def stack(deployed: StackUnderTest) -> Iterator[StackUnderTest]:
    """The stack, on an endpoint that behaves well again after the test."""
    before = deployed.cloud.behaviour()
    yield deployed
    deployed.cloud.behave(**before)
