"""CreateComponent: create the component of this attempt, or take over a standby of the same release."""

import time
from typing import TYPE_CHECKING, Any

import boto3

from aws import components
from aws.faults import ComponentFailed, ComponentLost, ComponentRefused
from aws.registry import Registry
from aws.runtime import CLIENT_CONFIG, logger, setting
from loradrop.deployment import Deployment, Placement, Release, Supersession
from loradrop.lifecycle import Decision, Use
from loradrop.names import component_name

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext
    from mypy_boto3_sagemaker.type_defs import DescribeInferenceComponentOutputTypeDef

registry = Registry(boto3.client("dynamodb", config=CLIENT_CONFIG), setting("REGISTRY_TABLE"))
endpoint = setting("ENDPOINT_NAME")
base = setting("BASE_COMPONENT_NAME")
stack = setting("STACK_ID")


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment} → the deployment with its component, or superseded.

    Raises Throttled, EndpointFull, BaseUpdating, ComponentLost, ComponentFailed, ComponentRefused, RegistryContended.
    """
    deployment = Deployment.from_dict(event["deployment"])
    upload, release = deployment.begun, deployment.release
    if release is None:
        raise ValueError("There is no release to make a component of.")
    use = _use(deployment, release)
    if use.decision is Decision.SUPERSEDED:
        return deployment.having(superseded=Supersession.by(use)).to_dict()
    if use.decision is Decision.LOST or use.name is None:
        raise ComponentLost("This attempt was given up meanwhile; the upload's outcome says what became of it.")

    found = components.describe(use.name)
    if found is None:
        tags = {
            "loradrop:adapter": upload.adapter,
            "loradrop:release": release.sha256,
            "loradrop:upload": upload.version_id or "",
            components.STACK_TAG: stack,
        }
        components.create(use.name, endpoint, base, release.uri, tags)
    else:
        _check_own(use.name, release, found)
    logger.info("component made", adapter=upload.adapter, component=use.name, taken_over=use.taken_over)
    placement = Placement(use.name, endpoint, base, since=int(time.time()), taken_over=use.taken_over)
    return deployment.having(component=placement).to_dict()


def _use(deployment: Deployment, release: Release) -> Use:
    upload = deployment.begun
    new_name = component_name(upload.adapter, release.sha256, endpoint=endpoint, base=base, attempt=deployment.attempt)

    def use(instead_of: str | None = None) -> Use:
        return registry.use_component(
            upload.adapter,
            upload.order,
            deployment.attempt,
            release=release.sha256,
            endpoint=endpoint,
            base=base,
            new_name=new_name,
            instead_of=instead_of,
        )

    chosen = use()
    if not chosen.taken_over or chosen.name is None:
        return chosen
    standby = components.describe(chosen.name)
    if standby is not None and standby.get("InferenceComponentStatus") == "InService":
        return chosen
    # The standby was deleted by hand, or broke: names are not used twice, so this attempt makes one of its own.
    return use(instead_of=chosen.name)


def _check_own(name: str, release: Release, found: "DescribeInferenceComponentOutputTypeDef") -> None:
    status = found.get("InferenceComponentStatus", "Creating")
    specification = found.get("Specification", {})
    serves = specification.get("Container", {}).get("ArtifactUrl")
    is_own = (found["EndpointName"], specification.get("BaseInferenceComponentName"), serves) == (
        endpoint,
        base,
        release.uri,
    )
    if not is_own:
        raise ComponentRefused(f"A component {name} that serves {serves} exists already and is not this stack's.")
    if status == "Failed":
        raise ComponentFailed(f"The component {name} is Failed: {found.get('FailureReason', 'no reason given')}")
    if status == "Deleting":
        raise ComponentLost(f"The component {name} is being deleted by somebody.")
