"""ReportOutcome: write the outcome into the registry, then report what stands there, to everybody."""

import contextlib
import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from aws.faults import OutcomeNotReported, RegistryContended, ReportContended, error_code, is_object_gone
from aws.registry import Registry
from aws.runtime import CLIENT_CONFIG, count_by, logger, metrics, setting
from loradrop.deployment import Deployment, Upload
from loradrop.lifecycle import Outcome, UploadRecord
from loradrop.names import report_key
from loradrop.outcome import entry, figures, intended, message
from loradrop.outcome_report import MAX_ENTRIES, outcome_report

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

s3 = boto3.client("s3", config=CLIENT_CONFIG)
events = boto3.client("events", config=CLIENT_CONFIG)
sns = boto3.client("sns", config=CLIENT_CONFIG)
registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
topic_arn = setting("TOPIC_ARN")
tenants = frozenset(one.strip() for one in setting("TENANTS").split(",") if one.strip())

MAX_SUBJECT_CHARACTERS = 99
# S3 allows ten tags; they are the uploader's first.
MAX_TAGS = 10
MAX_REPORT_TRIES = 6
MAX_REPORT_DELAY_SECONDS = 0.5
OUTCOME_TAG = "loradrop:outcome"


@metrics.log_metrics
@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment} → {outcome, adapter, message, component?, replaced?, report: URI}; outcome is repeated for another's upload.

    Tag, report, event and message are independent: one that is refused does not keep the others. Raises
    OutcomeNotReported, which names what is missing; a retry does that alone. Raises RegistryContended.
    """
    deployment = Deployment.from_dict(event["deployment"])
    if deployment.upload is None:
        deployment = deployment.having(upload=Upload.from_event(deployment.event or {}), event=None)
    upload = deployment.begun
    record = None if deployment.repeated_by else _finish(deployment)
    if record is None:
        return {
            "outcome": "repeated",
            "adapter": upload.shown_adapter,
            "message": f"This event was delivered before; see execution {deployment.repeated_by or 'of this upload'}.",
        }
    live = registry.live(upload.adapter)
    summary = {
        "outcome": str(record.outcome),
        "adapter": upload.shown_adapter,
        "message": record.summary,
        "component": live.component if live else None,
        "replaced": record.replaced,
        "report": f"s3://{upload.bucket}/{report_key(upload.key)}",
    }
    _report_all(upload, record, summary)
    _count(upload, record, deployment)
    logger.info("outcome reported", adapter=upload.adapter, outcome=record.outcome, version_id=upload.version_id)
    return summary


def _count(upload: Upload, record: UploadRecord, deployment: Deployment) -> None:
    """The metrics of the dashboard. Each value of a dimension is a metric that is paid for: there are few of them."""
    name = f"Adapter{str(record.outcome).capitalize()}"
    metrics.add_metric(name=name, unit="Count", value=1)
    if record.promoted and record.since and upload.uploaded_at:
        with contextlib.suppress(ValueError, TypeError):  # an event that somebody wrote by hand has any time
            began, since = (datetime.fromisoformat(one) for one in (upload.uploaded_at, record.since))
            metrics.add_metric(name="SecondsToLive", unit="Seconds", value=max(0.0, (since - began).total_seconds()))
    for code in sorted({problem["code"] for problem in (deployment.validation or {}).get("problems", ())}):
        count_by("Problem", "code", code)
    if tenants:
        tenant = upload.adapter.partition("/")[0]
        count_by(name, "tenant", tenant if tenant in tenants else "other")


def _finish(deployment: Deployment) -> UploadRecord | None:
    """The upload's record with its one outcome; None if another attempt has the upload.

    The registry has the last word: a promotion whose answer was lost is a deployment, whatever the attempt believes.
    """
    upload = deployment.begun
    found = registry.upload(upload.adapter, upload.order)
    if found is not None and found.outcome is not None and found.summary is not None:
        return found if found.attempt == deployment.attempt else None
    outcome = intended(deployment)
    if found is not None:
        outcome = found.outcome or (Outcome.DEPLOYED if found.promoted else outcome)
    text = message(outcome, deployment, registry.live(upload.adapter))
    at = datetime.now(UTC).isoformat(timespec="seconds")
    counts = registry.finish(
        upload.adapter,
        upload.record(deployment.attempt),
        outcome,
        release=deployment.release.sha256 if deployment.release else None,
        summary=text,
        entry=json.dumps(entry(outcome, deployment, text, at, _notes(upload)), ensure_ascii=False),
        figures=figures(deployment, at),
        full_at=deployment.full_at,
    )
    if counts is None:
        return None
    if counts is not outcome:
        raise RegistryContended(f"The upload turned out to be {counts}, not {outcome}.")
    return registry.upload(upload.adapter, upload.order)


def _notes(upload: Upload) -> tuple[str, ...]:
    """What the owner of an upload is to know beside its outcome."""
    try:
        has_room = _has_room_for_tag(_tags(upload))
    except ClientError:
        return ()  # whether it can be tagged is seen when it is
    return () if has_room else (f"It has {MAX_TAGS} tags of its own, so there is no room for the tag {OUTCOME_TAG}.",)


def _report_all(upload: Upload, record: UploadRecord, summary: dict[str, Any]) -> None:
    outcome = str(record.outcome)
    channels: dict[str, Callable[[], None]] = {
        "tag": lambda: _tag_upload(upload, outcome),
        "report": lambda: _write_report(upload),
        "event": lambda: _put_event(outcome, summary, upload, record.attempt),
        "message": lambda: _publish(upload.shown_adapter, outcome, record.summary or ""),
    }
    reached, missing = [], {}
    for channel, reach in channels.items():
        if channel in record.reported.split():
            continue
        try:
            reach()
        except (ClientError, BotoCoreError, ReportContended) as error:
            missing[channel] = str(error)
        else:
            reached.append(channel)
    if reached or not missing:
        registry.mark_reported(upload.adapter, upload.order, reached, is_complete=not missing)
    if missing:
        what = "; ".join(f"{channel}: {reason}" for channel, reason in missing.items())
        raise OutcomeNotReported(f"The upload's outcome is {outcome}, but could not be reported to all. {what}")


def _tag_upload(upload: Upload, outcome: str) -> None:
    """The uploader's own tags stay. Where there is no room for ours, it is left out."""
    if not upload.version_id:
        return
    try:
        tags = _tags(upload)
        if _has_room_for_tag(tags):
            tags[OUTCOME_TAG] = outcome
            tag_set: Any = [{"Key": key, "Value": value} for key, value in tags.items()]
            s3.put_object_tagging(**_pinned(upload), Tagging={"TagSet": tag_set})
    except ClientError as error:
        if not is_object_gone(error):
            raise


def _tags(upload: Upload) -> dict[str, str]:
    if not upload.version_id:
        return {}
    return {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(**_pinned(upload))["TagSet"]}


def _has_room_for_tag(tags: dict[str, str]) -> bool:
    return len(tags.keys() - {OUTCOME_TAG}) < MAX_TAGS


def _pinned(upload: Upload) -> Any:
    return {"Bucket": upload.bucket, "Key": upload.key, "VersionId": upload.version_id}


def _write_report(upload: Upload) -> None:
    """Two executions of one adapter may report at once; the second reads again. Raises ReportContended."""
    for _ in range(MAX_REPORT_TRIES):
        try:
            return _write_report_once(upload)
        except ReportContended:
            time.sleep(random.uniform(0, MAX_REPORT_DELAY_SECONDS))  # noqa: S311
    return _write_report_once(upload)


def _write_report_once(upload: Upload) -> None:
    """From the registry's history, so that nothing an uploader leaves in its place is believed, and nothing is lost."""
    key = report_key(upload.key)
    etag = _etag(upload.bucket, key)
    live = registry.live(upload.adapter)
    records = list(registry.uploads(upload.adapter, MAX_ENTRIES + 1))
    if live is not None and all(record.order != live.order for record in records):
        last_deployed = registry.upload(upload.adapter, live.order)
        records += [last_deployed] if last_deployed else []
    body = json.dumps(outcome_report(upload.adapter, records, live), indent=2).encode()
    condition: Any = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    try:
        s3.put_object(Bucket=upload.bucket, Key=key, Body=body, ContentType="application/json", **condition)
    except ClientError as error:
        if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise ReportContended(f"s3://{upload.bucket}/{key} was written by another execution.") from error
        raise


def _etag(bucket: str, key: str) -> str | None:
    try:
        return s3.head_object(Bucket=bucket, Key=key)["ETag"]
    except ClientError as error:
        if is_object_gone(error):
            return None
        raise


def _put_event(outcome: str, summary: dict[str, Any], upload: Upload, attempt: str) -> None:
    detail = json.dumps(summary | {"upload": upload.to_dict(), "execution": attempt})
    response = events.put_events(
        Entries=[{"Source": "loradrop", "DetailType": f"Adapter {outcome.capitalize()}", "Detail": detail}]
    )
    if response["FailedEntryCount"]:
        refused = response["Entries"][0]
        raise ClientError(
            {"Error": {"Code": refused.get("ErrorCode", "Unknown"), "Message": refused.get("ErrorMessage", "")}},
            "PutEvents",
        )


def _publish(adapter: str, outcome: str, text: str) -> None:
    # SNS takes a subject of ASCII without control characters, fewer than 100 of them; a key may hold anything.
    readable = "".join(c if c.isascii() and c.isprintable() else "?" for c in adapter)
    subject = f"loradrop: {outcome}: {readable}"[:MAX_SUBJECT_CHARACTERS]
    sns.publish(TopicArn=topic_arn, Subject=subject, Message=text)
