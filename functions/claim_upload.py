"""ClaimUpload: is this the newest upload of its adapter? An older or a repeated event ends here."""

from typing import TYPE_CHECKING, Any

import boto3

from loradrop.names import AdapterNameInvalidError, Upload, adapter_name
from loradrop.problems import ProblemCode
from registry import Registry
from runtime import CLIENT_CONFIG, logger, setting

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
max_upload_bytes = int(setting("MAX_UPLOAD_MEGABYTES")) * 1_000_000


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{upload, execution: arn} → {claim: {decision, superseded_by?}, validation?: of an upload that need not be read}.

    The decision is claimed, rejected, superseded or repeated.
    """
    described = dict(event["upload"])
    described.pop("adapter")
    upload = Upload(**described)
    try:
        adapter = adapter_name(upload.key)
    except AdapterNameInvalidError as error:
        return _rejected(upload, ProblemCode.ADAPTER_NAME_INVALID, str(error))

    # Claimed before its size is looked at: a bad upload is still the newest word of its owner.
    claim = registry.claim(adapter, upload, event["execution"])
    logger.info("claim decided", adapter=adapter, outcome=claim.outcome, version_id=upload.version_id)
    if claim.outcome != "claimed":
        superseded_by = {"version_id": claim.by_version_id, "execution": claim.by_execution}
        return {"claim": {"decision": claim.outcome, "superseded_by": superseded_by}}
    if upload.size_bytes == 0:
        return _rejected(upload, ProblemCode.UPLOAD_EMPTY, "The upload is empty (0 bytes). Upload the tarball again.")
    if upload.size_bytes > max_upload_bytes:
        return _rejected(
            upload,
            ProblemCode.UPLOAD_TOO_LARGE,
            f"The upload has {upload.size_bytes:,} bytes; at most {max_upload_bytes:,} are allowed. "
            "Send the adapter alone, without optimizer states or merged weights, or raise the stack's parameter "
            "MaxUploadMegabytes.",
        )
    return {"claim": {"decision": "claimed"}}


def _rejected(upload: Upload, code: ProblemCode, message: str) -> dict[str, Any]:
    problem = {"code": code.value, "message": message, "place": upload.key, "count": 1}
    validation = {"accepted": False, "summary": message, "problems": [problem], "warnings": []}
    return {"claim": {"decision": "rejected"}, "validation": validation}
