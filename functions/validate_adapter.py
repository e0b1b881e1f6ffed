"""ValidateAdapter: one streamed read of one object version; accepted bytes go to the release bucket."""

import contextlib
import dataclasses
import json
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from aws.faults import DownloadInterrupted, error_code, error_message, is_object_gone
from aws.runtime import CLIENT_CONFIG, COPY_CONFIG, logger, setting
from loradrop import upload_problems
from loradrop.deployment import Deployment, Release, Upload
from loradrop.names import release_key, release_manifest_key, validation_key
from loradrop.problems import Problem
from loradrop.profile import load_profile
from loradrop.validation_report import ValidationReport
from loradrop.validator import validate

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext
    from mypy_boto3_s3.type_defs import CopySourceTypeDef

s3 = boto3.client("s3", config=CLIENT_CONFIG)
copier = boto3.client("s3", config=COPY_CONFIG)
release_bucket = setting("RELEASE_BUCKET")
profile = dataclasses.replace(
    load_profile(setting("BASE_PROFILE")),
    max_lora_rank=int(setting("MAX_LORA_RANK")),
    engine_version=setting("ENGINE_VERSION"),
)

# Of the report that travels with the deployment; the whole of a longer one lies in the release bucket.
MAX_TRAVELLING_BYTES = 12 * 1024


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment} → the deployment with its validation, and with the release of accepted bytes.

    Raises DownloadInterrupted.
    """
    deployment = Deployment.from_dict(event["deployment"])
    upload = deployment.begun
    pinned: CopySourceTypeDef = {
        "Bucket": upload.bucket,
        "Key": upload.key,
        "VersionId": upload.version_id or "null",
    }
    try:
        report = _validated(upload, pinned)
        if not report.accepted or report.sha256 is None:
            return _rejected(deployment, report).to_dict()
        release = _released(upload, pinned, report, report.sha256)
    except ClientError as error:
        problem = _unreadable(upload, error)
        if problem is None:
            raise
        return _rejected(deployment, ValidationReport.rejected(problem)).to_dict()
    travelling = report.to_dict(max_bytes=MAX_TRAVELLING_BYTES)
    return deployment.having(validation=travelling, release=release).to_dict()


def _validated(upload: Upload, pinned: "CopySourceTypeDef") -> ValidationReport:
    try:
        with contextlib.closing(s3.get_object(**pinned)["Body"]) as body:
            report = validate(body, profile)
    except BotoCoreError as error:
        raise DownloadInterrupted(f"Reading {upload.shown} broke off: {error}") from error
    logger.info("adapter validated", adapter=upload.adapter, accepted=report.accepted, sha256=report.sha256)
    return report


def _released(upload: Upload, pinned: "CopySourceTypeDef", report: ValidationReport, sha256: str) -> Release:
    release = Release(
        sha256=sha256,
        bucket=release_bucket,
        key=release_key(upload.adapter, sha256),
        manifest_key=release_manifest_key(upload.adapter, sha256),
    )
    # Server-side, from the version that was validated, without the uploader's metadata and tags.
    copier.copy_object(
        CopySource=pinned,
        Bucket=release.bucket,
        Key=release.key,
        MetadataDirective="REPLACE",
        TaggingDirective="REPLACE",
        ContentType="application/gzip",
    )
    prompts = [prompt.to_dict() for prompt in report.smoke_prompts]
    _put(release.manifest_key, {"upload": upload.to_dict(), **report.to_dict(), "smoke_prompts": prompts})
    return release


def _rejected(deployment: Deployment, report: ValidationReport) -> Deployment:
    upload = deployment.begun
    whole, travelling = report.to_dict(), report.to_dict(max_bytes=MAX_TRAVELLING_BYTES)
    if travelling == whole:
        return deployment.having(validation=travelling)
    key = validation_key(upload.adapter, upload.order)
    _put(key, {"upload": upload.to_dict(), **whole})
    return deployment.having(validation=travelling, validation_report=f"s3://{release_bucket}/{key}")


def _put(key: str, value: dict[str, Any]) -> None:
    s3.put_object(
        Bucket=release_bucket, Key=key, Body=json.dumps(value, indent=2).encode(), ContentType="application/json"
    )


def _unreadable(upload: Upload, error: ClientError) -> Problem | None:
    """Why S3 will not give this version, if that is for the uploader to change."""
    version_id = upload.version_id or ""
    if is_object_gone(error):
        return upload_problems.vanished(upload.bucket, upload.key, version_id)
    if error_code(error) == "InvalidObjectState":
        storage_class = error.response.get("StorageClass", "GLACIER")
        return upload_problems.archived(upload.bucket, upload.key, version_id, str(storage_class))
    if error_code(error) == "AccessDenied" and "kms" in error_message(error).lower():
        return upload_problems.unreadable(upload.bucket, upload.key, error_message(error))
    return None
