"""What is: the bucket, the registry, the endpoint and the executions, as the rules of reconciliation want to know it.

The registry is read before the bucket: what is current afterwards was not overtaken by anything that the registry knows.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from aws import components
from aws.faults import error_code, is_object_gone
from aws.registry import Registry
from aws.runtime import CLIENT_CONFIG, setting
from loradrop.lifecycle import AdapterState, UploadRecord
from loradrop.names import UPLOAD_PREFIX, AdapterNameInvalidError, adapter_name, upload_key
from loradrop.reconcile import Adapter, CurrentObject, Fleet

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectVersionTypeDef

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
s3 = boto3.client("s3", config=CLIENT_CONFIG)
states = boto3.client("stepfunctions", config=CLIENT_CONFIG)
upload_bucket = setting("UPLOAD_BUCKET")
endpoint = setting("ENDPOINT_NAME")
base = setting("BASE_COMPONENT_NAME")
machine = setting("DEPLOY_ADAPTER_ARN")


def fleet(statuses: Mapping[str, str], running: Iterable[str]) -> Fleet:
    return Fleet(
        endpoint=endpoint,
        base=base,
        is_base_in_service=components.is_in_service(base),
        components=statuses,
        running=frozenset(running),
        now=int(time.time()),
    )


def look_at(name: str) -> tuple[Adapter, Fleet]:
    """One adapter as it is now, and what of the fleet concerns it."""
    state = registry.state(name)
    history = tuple(registry.uploads(name))
    unreported = tuple(registry.open_uploads(name))
    attempts = {record.attempt for record in unreported} | {entry.attempt for entry in state.components.values()}
    running = {attempt for attempt in attempts if is_running(attempt)}
    statuses = {}
    for component in {*state.components, *([state.live.component] if state.live else [])}:
        if (found := components.describe(component)) is not None:
            statuses[component] = found.get("InferenceComponentStatus", "Creating")
    adapter = Adapter(name, state, current_object(name), history, unreported)
    return adapter, fleet(statuses, running)


def all_states() -> dict[str, AdapterState]:
    return dict(registry.watched_states())


def all_open() -> dict[str, list[UploadRecord]]:
    found: dict[str, list[UploadRecord]] = {}
    for name, record in registry.watched_uploads():
        found.setdefault(name, []).append(record)
    return found


def all_current() -> dict[str, CurrentObject]:
    """What is current under every key that names an adapter."""
    found = {}
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=upload_bucket, Prefix=UPLOAD_PREFIX)
    for version in (version for page in pages for version in page.get("Versions", [])):
        if not version["IsLatest"]:
            continue
        try:
            found[adapter_name(version["Key"])] = _current(version)
        except AdapterNameInvalidError:
            continue  # its rejection was reported; nothing else comes of it
    return found


def _current(version: "ObjectVersionTypeDef") -> CurrentObject:
    age_seconds = (datetime.now(UTC) - version["LastModified"]).total_seconds()
    return CurrentObject(version["VersionId"], age_seconds, version.get("ETag", ""))


def current_object(name: str) -> CurrentObject | None:
    try:
        head = s3.head_object(Bucket=upload_bucket, Key=upload_key(name))
    except ClientError as error:
        if is_object_gone(error):
            return None
        raise
    age_seconds = (datetime.now(UTC) - head["LastModified"]).total_seconds()
    return CurrentObject(head.get("VersionId", "null"), age_seconds, head["ETag"])


def all_running() -> Iterator[str]:
    pages = states.get_paginator("list_executions").paginate(stateMachineArn=machine, statusFilter="RUNNING")
    return (one["executionArn"] for page in pages for one in page["executions"])


def is_running(attempt: str) -> bool:
    """Whether an execution runs. One that is not known any more (after 90 days) does not."""
    try:
        return states.describe_execution(executionArn=attempt)["status"] in ("RUNNING", "PENDING_REDRIVE")
    except ClientError as error:
        if error_code(error) in ("ExecutionDoesNotExist", "InvalidArn"):
            return False
        raise


def input_of(attempt: str) -> dict[str, Any]:
    """The input of an execution of DeployAdapter."""
    described: dict[str, Any] = json.loads(states.describe_execution(executionArn=attempt)["input"])
    return described
