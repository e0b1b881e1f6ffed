"""PromoteAdapter: move the live pointer, only if no newer upload has moved it."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3

from loradrop.names import Upload
from registry import Registry
from runtime import CLIENT_CONFIG, logger, setting

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{upload, release} → {promoted, previous_component: name or null, since: ISO 8601, UTC}."""
    described = dict(event["upload"])
    adapter = described.pop("adapter")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    component, release = event["release"]["component"], event["release"]["sha256"]
    promotion = registry.promote(adapter, component, release, Upload(**described), since)
    logger.info("live pointer decided", adapter=adapter, component=component, promoted=promotion.promoted)
    return {"promoted": promotion.promoted, "previous_component": promotion.previous_component, "since": since}
