"""RepairAdapter: read one adapter again, and do what it needs."""

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from aws import components, fleet
from aws.faults import error_code
from aws.runtime import CLIENT_CONFIG, COPY_CONFIG, logger, setting
from loradrop.deployment import Deployment, Failure, Release, Upload
from loradrop.lifecycle import UploadRecord
from loradrop.names import (
    REASON_METADATA,
    REPEATS_METADATA,
    order_behind,
    order_of,
    release_key,
    release_manifest_key,
    upload_key,
)
from loradrop.reconcile import Adapter, Repair, Wanted, wanted

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

states = boto3.client("stepfunctions", config=CLIENT_CONFIG)
copier = boto3.client("s3", config=COPY_CONFIG)
upload_bucket = setting("UPLOAD_BUCKET")
release_bucket = setting("RELEASE_BUCKET")
machine = setting("DEPLOY_ADAPTER_ARN")
stack = setting("STACK_ID")
grace_seconds = int(setting("GRACE_PERIOD_SECONDS"))

# Of one pass; the next one goes on.
MAX_REPORTS = 10


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{adapter, wanted, removed_by?, attempt: this execution} → {adapter, done: […], reports: [{deployment}, …]}.

    `wanted` is the plan's; what is done is decided anew, but for orphans, for retries on a full endpoint, and for whether a
    healing that failed before is to wait.
    Raises Throttled, ComponentBusy, RegistryContended.
    """
    name = event["adapter"]
    planned = [Wanted.from_dict(one) for one in event["wanted"]]
    if not name:
        orphans = [_delete_orphan(one.component) for one in planned if one.component]
        return {"adapter": name, "done": orphans, "reports": []}
    adapter, now = fleet.look_at(name)
    retries = {one.version_id for one in planned if one.repair is Repair.RETRY}
    is_patient = all(one.repair is not Repair.HEAL for one in planned)
    done: list[str] = []
    reports: list[Deployment] = []
    for one in wanted(adapter, now, is_patient=is_patient):
        if one.repair is Repair.RETRY and one.version_id not in retries:
            continue
        done.append(_do(adapter, one, event, reports))
    logger.info("adapter repaired", adapter=name, done=done)
    return {"adapter": name, "done": done, "reports": [one.to_dict() for one in reports[:MAX_REPORTS]]}


def _do(adapter: Adapter, one: Wanted, event: dict[str, Any], reports: list[Deployment]) -> str:
    match one.repair:
        case Repair.RECOVER | Repair.REPORT if one.order is not None:
            return _recover(adapter, one, reports)
        case Repair.DELETE if one.component is not None:
            return _delete(adapter.name, one.component)
        case Repair.REMOVE:
            return _remove(adapter, event, reports)
        case Repair.HEAL:
            return _heal(adapter)
        case Repair.REPEAT | Repair.RETRY:
            return _repeat(adapter, one)
        case _:
            raise ValueError(f"There is no way to do {one}.")


def _recover(adapter: Adapter, one: Wanted, reports: list[Deployment]) -> str:
    """What an attempt that has ended left: its components go, its upload gets its outcome, and that is reported."""
    order = one.order or ""
    attempt = next(
        (record.attempt for record in adapter.open if record.order == order),
        adapter.state.components[one.component].attempt if one.component else "",
    )
    recovered = fleet.registry.recover(adapter.name, order, attempt)
    for name in recovered.components:
        _delete(adapter.name, name)
    record = fleet.registry.upload(adapter.name, order)
    if record is not None and record.outcome is not None and not record.is_reported:
        reports.append(_ended(adapter.name, record))
    return f"{one.repair}: {order} of {attempt}"


def _ended(name: str, record: UploadRecord) -> Deployment:
    """The deployment of an execution that has ended, as far as the registry knows it."""
    reason = f"The execution {record.attempt} ended before it could report: look at its history."
    failure = Failure("ExecutionEnded", reason)
    return Deployment(attempt=record.attempt, upload=Upload.from_record(name, record), failure=failure)


def _delete(name: str, component: str) -> str:
    if not fleet.registry.begin_delete(name, component, now=int(time.time())):
        return f"delete: {component} is needed again"
    if not components.delete(component):
        return f"delete: {component} is being deleted"
    fleet.registry.end_delete(name, component)
    return f"delete: {component} is gone"


def _remove(adapter: Adapter, event: dict[str, Any], reports: list[Deployment]) -> str:
    """Takes the adapter out of service: nothing is current under its key."""
    newest = max([adapter.state.floor, *(record.order for record in adapter.history)])
    order = order_of(event["removed_by"]) if event.get("removed_by") else order_behind(newest, _milliseconds())
    removal = UploadRecord(
        order=order, attempt=event["attempt"], bucket=upload_bucket, key=upload_key(adapter.name), version_id=""
    )
    record = fleet.registry.remove(adapter.name, removal, now=int(time.time()), grace_seconds=grace_seconds)
    if record is None:
        return "remove: something newer is live"
    reports.append(_ended(adapter.name, record))
    return f"remove: {adapter.name} is out of service"


def _heal(adapter: Adapter) -> str:
    """Starts a deployment of the release that is live: it is made again, proven, and replaces the broken component."""
    live = adapter.state.live
    if live is None:
        return "heal: nothing is live any more"
    upload = Upload(
        adapter=adapter.name,
        bucket=upload_bucket,
        key=upload_key(adapter.name),
        version_id=live.version_id,
        order=order_behind(live.order, _milliseconds()),
        heals=live.component,
    )
    release = Release(
        live.release,
        release_bucket,
        release_key(adapter.name, live.release),
        release_manifest_key(adapter.name, live.release),
    )
    # The name holds the minute: a repair that is retried starts no second one.
    digest = hashlib.sha256(f"{adapter.name}\0{live.component}\0{int(time.time()) // 60}".encode()).hexdigest()[:32]
    try:
        started = states.start_execution(
            stateMachineArn=machine,
            name=f"heal-{digest}",
            input=json.dumps({"heal": {"upload": upload.to_dict(), "release": release.to_dict()}}),
        )
    except ClientError as error:
        if error_code(error) != "ExecutionAlreadyExists":
            raise
        return "heal: it is being healed"
    return f"heal: {started['executionArn']}"


def _repeat(adapter: Adapter, one: Wanted) -> str:
    """Copies the current object onto itself: so it gets an event, and a place in the order."""
    current = adapter.current
    if current is None:
        return "repeat: it was deleted"
    key = upload_key(adapter.name)
    head = fleet.s3.head_object(Bucket=upload_bucket, Key=key, VersionId=current.version_id)
    metadata = {**head["Metadata"], REPEATS_METADATA: current.version_id, REASON_METADATA: one.reason}
    try:
        copied = copier.copy_object(
            Bucket=upload_bucket,
            Key=key,
            CopySource={"Bucket": upload_bucket, "Key": key, "VersionId": current.version_id},
            MetadataDirective="REPLACE",
            Metadata=metadata,
            ContentType=head.get("ContentType", "application/gzip"),
            TaggingDirective="COPY",
            # Whoever uploads in between wins.
            IfMatch=current.etag,
        )
    except ClientError as error:
        if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchVersion", "NoSuchKey"):
            return "repeat: something newer was uploaded"
        raise
    return f"{one.repair}: {current.version_id} again as {copied.get('VersionId')}"


def _delete_orphan(component: str) -> str:
    found = components.describe(component)
    if found is None or components.stack_of(found["InferenceComponentArn"]) != stack:
        return f"orphan: {component} is not there, or not this stack's"
    components.delete(component)
    return f"orphan: {component} is being deleted"


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
