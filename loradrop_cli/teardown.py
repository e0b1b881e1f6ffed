"""`loradrop teardown`: everything that a stack made goes, in the order in which AWS lets it go.

Nothing deploys or heals any more, then the components, then the stack. A base with adapters on it cannot be deleted, and
bucket and registry are retained by the stack: they go only where the data may go too. Each step may be repeated.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from botocore.exceptions import ClientError

from loradrop.wire import COMPONENT_BUSY_TEXTS, COMPONENT_LEAVING_TEXT, STACK_TAG, is_component_missing
from loradrop_client import LoradropError, explaining

from .connection import THREADS, Connection
from .exit_codes import ExitCode
from .terminal import CommandError, Progress, print_message

_POLL_SECONDS = 2.0
_GONE_CODES = ("ResourceNotFoundException", "StateMachineDoesNotExist")
# DeleteStack answers before the status changes.
_BEGIN_SECONDS = 30
_MAX_DELETED_AT_ONCE = 1000  # of S3's DeleteObjects


@dataclass(slots=True)
class _Made:
    """What the stack has made. `others` are components on its own endpoint that it did not make; `leaving` those of
    others there that are being deleted, which are waited for.
    """

    stack_id: str
    is_protected: bool = False
    is_going: bool = False  # its deletion has begun
    rules: list[str] = field(default_factory=list)
    components: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)
    has_own_endpoint: bool = False


def teardown(arguments: argparse.Namespace) -> int:
    connection = Connection.of(arguments)
    stack = connection.stack
    buckets = [stack.output("UploadBucketName"), stack.output("ReleaseBucketName")]
    table = stack.output("RegistryTable")
    made = _made(connection)
    if made.is_protected:
        raise CommandError(
            f"The stack {stack.name} has termination protection. To take it away:\n  aws cloudformation "
            f"update-termination-protection --no-enable-termination-protection --stack-name {stack.name}"
        )
    if made.others:
        named = "\n".join(
            f"  aws sagemaker delete-inference-component --inference-component-name {one}" for one in made.others[:8]
        )
        raise CommandError(
            f"The endpoint {stack.output('EndpointName')} is the stack's own, and has {len(made.others)} components that the stack "
            f"did not make. It cannot be deleted with them. Delete them first, if they may go:\n{named}"
        )
    if not arguments.yes and not _is_sure(connection, made, [*buckets, table], with_data=arguments.data):
        print("Nothing was deleted.", file=sys.stderr)
        return ExitCode.UNUSABLE
    deadline = time.monotonic() + arguments.timeout
    left: list[str] = []
    if not made.is_going:
        _stop(connection, made)
        left = _delete_components(connection, deadline)
    if left:
        said = f"{len(left)} components are not gone yet, {left[0]} among them. To go on:"
        return _end(arguments, ExitCode.FAILED, f"{said}\n  {connection.command('teardown')}")
    status, reasons = _delete_stack(connection, deadline)
    if status != "DELETE_COMPLETE":
        said = "\n".join([f"The stack {stack.name} is {status}.", *reasons, "To go on, once the cause is gone:"])
        return _end(arguments, ExitCode.FAILED, f"{said}\n  {connection.command('teardown')}")
    if not arguments.data:
        said = f"The stack {stack.name} is gone. What is yours stays: the buckets {' and '.join(buckets)}, and the table {table}."
        return _end(arguments, ExitCode.DONE, said)
    try:
        for bucket in buckets:
            _delete_bucket(connection, bucket)
        _delete_table(connection, table)
    except (CommandError, LoradropError) as error:
        # The stack is gone, and with it the names of what is left: this command cannot be run again.
        lines = [
            str(error),
            "The stack is gone; of its data this may be left. To delete it once the cause is gone, every version first:",
            *(f"  aws s3api list-object-versions --bucket {bucket}" for bucket in buckets),
            *(f"  aws s3 rb s3://{bucket}" for bucket in buckets),
            f"  aws dynamodb delete-table --table-name {table}",
        ]
        return _end(arguments, ExitCode.FAILED, "\n".join(lines))
    return _end(
        arguments, ExitCode.DONE, f"The stack {stack.name} is gone, and its adapters, releases and history with it."
    )


def _end(arguments: argparse.Namespace, code: ExitCode, message: str) -> int:
    if arguments.json:
        print(json.dumps({"done": code is ExitCode.DONE, "message": message}, indent=2))
    else:
        print_message(message, sys.stdout if code is ExitCode.DONE else sys.stderr)
    return code


def _made(connection: Connection) -> _Made:
    cloudformation, sagemaker = connection.client("cloudformation"), connection.client("sagemaker")
    with explaining("list what the stack has made"):
        described = cloudformation.describe_stacks(StackName=connection.stack.name)["Stacks"][0]
        stack_id = described["StackId"]
        made = _Made(
            stack_id,
            is_protected=described.get("EnableTerminationProtection", False),
            is_going=described["StackStatus"] == "DELETE_IN_PROGRESS",
        )
        for page in cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack_id):
            for one in page["StackResourceSummaries"]:
                if one["ResourceStatus"] == "DELETE_COMPLETE":
                    continue
                if one["ResourceType"] == "AWS::Events::Rule" and one.get("PhysicalResourceId"):
                    made.rules.append(one["PhysicalResourceId"])
                made.has_own_endpoint |= one["ResourceType"] == "AWS::SageMaker::Endpoint"
        endpoint, base = connection.stack.output("EndpointName"), connection.stack.output("BaseComponentName")
        found = [
            one
            for page in sagemaker.get_paginator("list_inference_components").paginate(
                EndpointNameEquals=endpoint, PaginationConfig={"PageSize": 100}
            )
            for one in page["InferenceComponents"]
            if one["InferenceComponentName"] != base
        ]
        with ThreadPoolExecutor(THREADS) as threads:
            owners = list(threads.map(lambda one: _owner(sagemaker, one["InferenceComponentArn"]), found))
    for one, owner in zip(found, owners, strict=True):
        if owner == stack_id:
            made.components.append(one["InferenceComponentName"])
        elif made.has_own_endpoint:  # somebody else's endpoint stays, with all that is there
            is_leaving = one.get("InferenceComponentStatus") == "Deleting"
            (made.leaving if is_leaving else made.others).append(one["InferenceComponentName"])
    return made


def _owner(sagemaker: Any, arn: str) -> str | None:
    try:
        tags = sagemaker.list_tags(ResourceArn=arn)["Tags"]
    except ClientError as error:
        if _is_missing(error):
            return None
        raise
    return next((tag["Value"] for tag in tags if tag["Key"] == STACK_TAG), None)


def _is_sure(connection: Connection, made: _Made, data: list[str], *, with_data: bool) -> bool:
    name = connection.stack.name
    if not sys.stdin or not sys.stdin.isatty():
        raise CommandError(f"To delete the stack {name} without a question, add --yes.")
    adapters = sum(1 for _, state in connection.registry.adapters() if state.live is not None)
    fate = "Also deleted, for good" if with_data else "Kept"
    said = [
        f"The stack {name} goes: {adapters} live adapters, {len(made.components)} components"
        + (", its endpoint and base." if made.has_own_endpoint else "; the endpoint is not its own, and stays."),
        f"{fate}: {', '.join(data)}.",
    ]
    print_message("\n".join(said), sys.stderr)
    print("Type the stack's name to delete it: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == name


def _stop(connection: Connection, made: _Made) -> None:
    """Nothing starts any more, and what runs ends: else a healing would make anew what is deleted here."""
    events = connection.client("events")
    with explaining("disable the stack's rules"):
        for rule in made.rules:
            with _already_gone():
                events.disable_rule(Name=rule.rpartition("|")[2])
    _stop_executions(connection)


def _stop_executions(connection: Connection) -> None:
    states = connection.executions
    with explaining("stop what runs"):
        for machine in [connection.stack.output(name) for name in ("StateMachineArn", "ReconcileFleetArn")]:
            with _already_gone():
                pages = states.get_paginator("list_executions").paginate(
                    stateMachineArn=machine, statusFilter="RUNNING"
                )
                for one in (one for page in pages for one in page["executions"]):
                    states.stop_execution(executionArn=one["executionArn"], cause="loradrop teardown")


@contextlib.contextmanager
def _already_gone() -> Iterator[None]:
    """What an earlier teardown deleted needs nothing more."""
    try:
        yield
    except ClientError as error:
        if error.response["Error"].get("Code") not in _GONE_CODES:
            raise


def _delete_components(connection: Connection, deadline: float) -> list[str]:
    """Waits until they are gone; those that are not before the deadline. A component that is being made goes later."""
    sagemaker = connection.client("sagemaker")
    left = [""]
    with Progress("deleting the stack's components"), explaining("delete the stack's components"):
        while left and time.monotonic() < deadline:
            made = _made(connection)
            left = [*made.components, *made.leaving]
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(lambda name: _delete(sagemaker, name), made.components))
            if left:
                # Rules take a moment to be disabled: what started in it ends too.
                _stop_executions(connection)
                time.sleep(_POLL_SECONDS)
    return left


def _delete(sagemaker: Any, name: str) -> None:
    try:
        if (
            sagemaker.describe_inference_component(InferenceComponentName=name).get("InferenceComponentStatus")
            != "Deleting"
        ):
            sagemaker.delete_inference_component(InferenceComponentName=name)
    except ClientError as error:
        if not _is_missing(error) and not any(
            text in str(error) for text in (*COMPONENT_BUSY_TEXTS, COMPONENT_LEAVING_TEXT)
        ):
            raise


def _is_missing(error: ClientError) -> bool:
    found = error.response["Error"]
    return is_component_missing(found.get("Code", ""), found.get("Message", ""))


def _delete_stack(connection: Connection, deadline: float) -> tuple[str, list[str]]:
    """(its last status, for each resource that could not be deleted why)."""
    cloudformation = connection.client("cloudformation")
    with explaining(f"delete the stack {connection.stack.name}"):
        described = cloudformation.describe_stacks(StackName=connection.stack.name)["Stacks"][0]
        stack_id, before = described["StackId"], described["StackStatus"]
        began = datetime.now(UTC)
        if before != "DELETE_IN_PROGRESS":
            cloudformation.delete_stack(StackName=stack_id)
        begins_before = time.monotonic() + _BEGIN_SECONDS
        with Progress(f"deleting the stack {connection.stack.name}"):
            while time.monotonic() < deadline:
                status = _status(cloudformation, stack_id)
                has_not_begun = status == before and time.monotonic() < begins_before
                if not (status.endswith("IN_PROGRESS") or has_not_begun):
                    break
                time.sleep(_POLL_SECONDS)
        status = _status(cloudformation, stack_id)
        if status == "DELETE_COMPLETE":
            return status, []
        failed = [
            f"{one['LogicalResourceId']}: {one.get('ResourceStatusReason', 'no reason given')}"
            for page in cloudformation.get_paginator("describe_stack_events").paginate(StackName=stack_id)
            for one in page["StackEvents"]
            if one.get("ResourceStatus") == "DELETE_FAILED" and one["Timestamp"] >= began - timedelta(minutes=1)
        ]
    return status, failed[:8]


def _status(cloudformation: Any, stack_id: str) -> str:
    try:
        status: str = cloudformation.describe_stacks(StackName=stack_id)["Stacks"][0]["StackStatus"]
    except ClientError as error:
        if "does not exist" in str(error):
            return "DELETE_COMPLETE"
        raise
    return status


def _delete_bucket(connection: Connection, bucket: str) -> None:
    with Progress(f"emptying {bucket}"), explaining(f"delete the bucket {bucket}"):
        for objects in _batches(connection, bucket):
            answer = connection.s3.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            if errors := answer.get("Errors"):
                raise CommandError(f"{bucket}: {errors[0].get('Key')} could not be deleted: {errors[0].get('Message')}")
        connection.s3.delete_bucket(Bucket=bucket)


def _batches(connection: Connection, bucket: str) -> Iterator[Any]:
    pages = connection.s3.get_paginator("list_object_versions").paginate(
        Bucket=bucket, PaginationConfig={"PageSize": _MAX_DELETED_AT_ONCE}
    )
    for page in pages:
        found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        if found:
            yield [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in found]


def _delete_table(connection: Connection, table: str) -> None:
    dynamodb = connection.client("dynamodb")
    with explaining(f"delete the table {table}"):
        dynamodb.delete_table(TableName=table)
