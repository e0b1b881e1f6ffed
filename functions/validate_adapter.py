"""ValidateAdapter: one streamed read of one object version; accepted bytes go to the release store."""

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from loradrop.names import component_name, release_key, release_manifest_key
from loradrop.problems import ProblemCode
from loradrop.profile import load_profile
from loradrop.validator import validate
from runtime import CLIENT_CONFIG, DownloadInterrupted, error_code, logger, setting

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext
    from mypy_boto3_s3.type_defs import CopySourceTypeDef

s3 = boto3.client("s3", config=CLIENT_CONFIG)
release_bucket = setting("RELEASE_BUCKET")
endpoint = setting("ENDPOINT_NAME")
base = setting("BASE_COMPONENT_NAME")
profile = dataclasses.replace(
    load_profile(setting("BASE_PROFILE")),
    max_lora_rank=int(setting("MAX_LORA_RANK")),
    engine_version=setting("ENGINE_VERSION"),
)

_VANISHED = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchBucket", "404", "MethodNotAllowed"})


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{upload} → {validation: {accepted, summary, problems, warnings, manifest}, release?: of accepted bytes}."""
    upload = event["upload"]
    pinned: CopySourceTypeDef = {"Bucket": upload["bucket"], "Key": upload["key"], "VersionId": upload["version_id"]}
    try:
        with contextlib.closing(s3.get_object(**pinned)["Body"]) as body:
            report = validate(body, profile)
    except ClientError as error:
        if error_code(error) not in _VANISHED:
            raise
        return _vanished(upload)
    except BotoCoreError as error:
        raise DownloadInterrupted(f"Reading s3://{upload['bucket']}/{upload['key']} broke off: {error}") from error
    logger.info("adapter judged", adapter=upload["adapter"], accepted=report.accepted, sha256=report.sha256)

    validation = report.to_dict() | {"summary": report.summary()}
    if not report.accepted or report.sha256 is None:
        return {"validation": validation}
    release = {
        "sha256": report.sha256,
        "bucket": release_bucket,
        "key": release_key(upload["adapter"], report.sha256),
        "manifest_key": release_manifest_key(upload["adapter"], report.sha256),
        "component": component_name(upload["adapter"], report.sha256, endpoint=endpoint, base=base),
    }
    try:
        # Server-side, from the version that was judged, without the uploader's metadata and tags.
        s3.copy_object(
            CopySource=pinned,
            Bucket=release_bucket,
            Key=release["key"],
            MetadataDirective="REPLACE",
            TaggingDirective="REPLACE",
            ContentType="application/gzip",
        )
    except ClientError as error:
        if error_code(error) not in _VANISHED:
            raise
        return _vanished(upload)
    manifest = {"upload": upload, **validation, "smoke_prompts": [prompt.to_dict() for prompt in report.smoke_prompts]}
    s3.put_object(
        Bucket=release_bucket,
        Key=release["manifest_key"],
        Body=json.dumps(manifest, indent=2).encode(),
        ContentType="application/json",
    )
    return {"validation": validation, "release": release}


def _vanished(upload: dict[str, Any]) -> dict[str, Any]:
    message = (
        f"Version {upload['version_id']} of s3://{upload['bucket']}/{upload['key']} was deleted before it was read. "
        "Nothing was changed; upload the tarball again to deploy it."
    )
    problem = {"code": ProblemCode.UPLOAD_VANISHED.value, "message": message, "place": upload["key"], "count": 1}
    return {"validation": {"accepted": False, "summary": message, "problems": [problem], "warnings": []}}
