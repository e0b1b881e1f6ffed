"""RetirePrevious and CleanUpComponent: delete a component that is not live and that no newer upload wants."""

from typing import TYPE_CHECKING, Any

import boto3

import components
from registry import Registry
from runtime import CLIENT_CONFIG, logger, setting

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{upload, component: name} → {deleted}. A component that is gone already counts as deleted."""
    adapter, component = event["upload"]["adapter"], event["component"]
    deleted = registry.begin_delete(adapter, component, event["upload"]["sequencer"])
    if deleted:
        components.delete(component)
        registry.end_delete(adapter, component)
    logger.info("component deletion decided", adapter=adapter, component=component, deleted=deleted)
    return {"deleted": deleted}
