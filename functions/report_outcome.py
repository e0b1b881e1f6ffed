"""ReportDeployment, ReportRejection, ReportFailure, ReportSuperseded: tell everybody how an upload ended."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from loradrop.names import report_key
from loradrop.outcome import Outcome, describe, merge_report
from registry import Registry
from runtime import CLIENT_CONFIG, ReportContended, error_code, logger, metrics, setting

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

s3 = boto3.client("s3", config=CLIENT_CONFIG)
events = boto3.client("events", config=CLIENT_CONFIG)
sns = boto3.client("sns", config=CLIENT_CONFIG)
registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
topic_arn = setting("TOPIC_ARN")

MAX_REPORT_BYTES = 1_000_000
MAX_SUBJECT_CHARACTERS = 100
_GONE = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchBucket", "MethodNotAllowed"})


@metrics.log_metrics
@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{outcome, known, execution: arn} → {outcome, adapter, message, component?, report: URI}."""
    outcome, known = Outcome(event["outcome"]), event["known"]
    upload = known["upload"]
    live = registry.live(upload["adapter"])
    message = describe(outcome, known, live)
    entry = {
        "outcome": outcome,
        "message": message,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "execution": event["execution"],
        "live": live,
        **known,
    }
    report = {"bucket": upload["bucket"], "key": report_key(upload["key"])}
    _write_report(report["bucket"], report["key"], entry)
    _tag_upload(upload, outcome)
    summary = {
        "outcome": outcome.value,
        "adapter": upload["adapter"],
        "message": message,
        "component": live["component"] if live else None,
        "report": f"s3://{report['bucket']}/{report['key']}",
    }
    _put_event(outcome, summary | {"upload": upload, "execution": event["execution"]})
    sns.publish(TopicArn=topic_arn, Subject=_subject(upload["adapter"], outcome), Message=message)
    metrics.add_metric(name=f"Adapter{outcome.capitalize()}", unit="Count", value=1)
    logger.info("outcome reported", adapter=upload["adapter"], outcome=outcome, version_id=upload["version_id"])
    return summary


def _write_report(bucket: str, key: str, entry: dict[str, Any]) -> None:
    current, etag = _read_report(bucket, key)
    body = json.dumps(merge_report(current, entry, entry["upload"]["adapter"]), indent=2).encode()
    # Two executions of one adapter may report at once; the second reads again.
    condition: Any = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json", **condition)
    except ClientError as error:
        if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise ReportContended(f"s3://{bucket}/{key} was written by another execution.") from error
        raise


def _read_report(bucket: str, key: str) -> tuple[dict[str, Any] | None, str | None]:
    try:
        response = s3.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error_code(error) in _GONE:
            return None, None
        raise
    with response["Body"] as body:
        # Uploaders can write this bucket: what is too long or no JSON is not a report of ours.
        data = body.read(MAX_REPORT_BYTES + 1)
    try:
        return (json.loads(data) if len(data) <= MAX_REPORT_BYTES else None), response["ETag"]
    except (ValueError, RecursionError):
        return None, response["ETag"]


def _tag_upload(upload: dict[str, Any], outcome: Outcome) -> None:
    try:
        s3.put_object_tagging(
            Bucket=upload["bucket"],
            Key=upload["key"],
            VersionId=upload["version_id"],
            Tagging={"TagSet": [{"Key": "loradrop:outcome", "Value": outcome.value}]},
        )
    except ClientError as error:
        if error_code(error) not in _GONE:
            raise


def _put_event(outcome: Outcome, detail: dict[str, Any]) -> None:
    response = events.put_events(
        Entries=[{"Source": "loradrop", "DetailType": f"Adapter {outcome.capitalize()}", "Detail": json.dumps(detail)}]
    )
    if response["FailedEntryCount"]:
        raise RuntimeError(f"EventBridge did not take the event: {response['Entries'][0].get('ErrorMessage')}")


def _subject(adapter: str, outcome: Outcome) -> str:
    # SNS takes ASCII without control characters, at most 100 of them; a key may hold anything.
    readable = "".join(c if c.isascii() and c.isprintable() else "?" for c in adapter)
    return f"loradrop: {outcome.value}: {readable}"[:MAX_SUBJECT_CHARACTERS]
