"""ClaimUpload: has another execution this upload, and does something newer supersede it?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from aws.faults import is_object_gone
from aws.registry import Registry
from aws.runtime import CLIENT_CONFIG, logger, setting
from loradrop import upload_problems
from loradrop.deployment import Deployment, Release, Supersession, Upload
from loradrop.lifecycle import Decision
from loradrop.names import is_adapter_name, is_upload_key
from loradrop.problems import Problem
from loradrop.validation_report import ValidationReport

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
s3 = boto3.client("s3", config=CLIENT_CONFIG)
max_upload_bytes = int(setting("MAX_UPLOAD_MEGABYTES")) * 1_000_000


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment: with its event} → the deployment with its upload, and what the claim decided.

    Raises RegistryContended.
    """
    deployment = Deployment.from_dict(event["deployment"])
    upload, release = _read(deployment.event or {})
    deployment = deployment.having(event=None, upload=upload, release=release)

    claim = registry.claim(upload.adapter, upload.record(deployment.attempt), deleted=_is_deleted(upload))
    logger.info("claim decided", adapter=upload.adapter, decision=claim.decision, version_id=upload.version_id)
    if claim.decision is Decision.REPEATED:
        deployment = deployment.having(repeated_by=claim.by_attempt)
    elif claim.decision is Decision.SUPERSEDED:
        deployment = deployment.having(superseded=Supersession.by(claim))
    elif release is None and (problem := _problem(upload)):
        deployment = deployment.having(validation=ValidationReport.rejected(problem).to_dict())
    return deployment.to_dict()


def _read(event: Mapping[str, Any]) -> tuple[Upload, Release | None]:
    if "heal" in event:  # written by ReconcileFleet
        return Upload.from_dict(event["heal"]["upload"]), Release.from_dict(event["heal"]["release"])
    return Upload.from_event(event), None


def _is_deleted(upload: Upload) -> bool:
    """Whether nothing is current under the key: an event that comes late brings nothing back."""
    try:
        s3.head_object(Bucket=upload.bucket, Key=upload.key)
    except ClientError as error:
        if is_object_gone(error):
            return True
        raise
    return False


def _problem(upload: Upload) -> Problem | None:
    """What can be said of an upload without reading it."""
    if not is_upload_key(upload.key):
        return upload_problems.starts_nothing(upload.bucket, upload.key)
    if not is_adapter_name(upload.adapter):
        return upload_problems.name_invalid(upload.bucket, upload.key)
    if not upload.version_id:
        return upload_problems.not_versioned(upload.bucket, upload.key)
    if upload.size_bytes == 0:
        return upload_problems.empty(upload.bucket, upload.key)
    if upload.size_bytes > max_upload_bytes:
        return upload_problems.too_large(upload.key, upload.size_bytes, max_upload_bytes)
    return None
