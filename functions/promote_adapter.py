"""PromoteAdapter: move the live pointer, unless something newer is live or the adapter was removed."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3

from aws.faults import ComponentLost
from aws.registry import Registry
from aws.runtime import CLIENT_CONFIG, logger, setting
from loradrop.deployment import Deployment, Promotion, Supersession
from loradrop.lifecycle import Decision

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
grace_seconds = int(setting("GRACE_PERIOD_SECONDS"))


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment} → the deployment with its promotion, or superseded. Raises ComponentLost, RegistryContended."""
    deployment = Deployment.from_dict(event["deployment"])
    upload, component = deployment.begun, deployment.component
    if component is None:
        raise ValueError("There is no component to promote.")
    now = time.time()
    since = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    promotion = registry.promote(
        upload.adapter,
        upload.order,
        deployment.attempt,
        component.name,
        since=since,
        now=int(now),
        grace_seconds=grace_seconds,
    )
    logger.info("promotion decided", adapter=upload.adapter, component=component.name, decision=promotion.decision)
    if promotion.decision is Decision.LOST:
        raise ComponentLost(f"The component {component.name} was given up before it could go live.")
    if promotion.decision is Decision.SUPERSEDED:
        return deployment.having(superseded=Supersession.by(promotion)).to_dict()
    return deployment.having(promotion=Promotion(promotion.since or since, promotion.replaced)).to_dict()
