"""CleanUpComponent: give this attempt up and delete the component that it made, and nothing else."""

from typing import TYPE_CHECKING, Any

import boto3

from aws import components
from aws.registry import Registry
from aws.runtime import CLIENT_CONFIG, logger, setting
from loradrop.deployment import Deployment, Promotion

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
endpoint = setting("ENDPOINT_NAME")


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment} → the deployment; promoted after all, if the registry says that the promotion took place.

    Raises Throttled, ComponentBusy, RegistryContended. What is not gone yet at the end is ended by ReconcileFleet.
    """
    deployment = Deployment.from_dict(event["deployment"])
    upload = deployment.begun
    given_up = registry.give_up(upload.adapter, upload.order, deployment.attempt)
    if given_up.promoted:
        # The promotion took place and its answer was lost: this deployment did not fail.
        promotion = Promotion(given_up.since or "", given_up.replaced)
        return deployment.having(promotion=promotion, failure=None, superseded=None).to_dict()
    for name in given_up.components:
        is_gone = components.delete(name)
        if is_gone:
            registry.end_delete(upload.adapter, name)
        logger.info("component deleted", adapter=upload.adapter, component=name, is_gone=is_gone)
    if deployment.found_no_room:
        # ReconcileFleet tries it again once fewer stand there.
        deployment = deployment.having(full_at=sum(1 for _ in components.on_endpoint(endpoint)))
    return deployment.to_dict()
