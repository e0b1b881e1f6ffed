"""CreateComponent: create the component of this attempt when its turn has come, or take over a standby of its release."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import boto3

from aws import components
from aws.faults import ComponentFailed, ComponentLost, ComponentRefused, EndpointFull, Throttled
from aws.registry import Registry
from aws.room import make_room
from aws.runtime import CLIENT_CONFIG, logger, setting
from aws.turns import Turns
from loradrop.deployment import Deployment, Placement, Release, Supersession, Turn
from loradrop.lifecycle import Decision, Use
from loradrop.names import component_name
from loradrop.wire import STACK_TAG

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext
    from mypy_boto3_sagemaker.type_defs import DescribeInferenceComponentOutputTypeDef

dynamodb = boto3.client("dynamodb", config=CLIENT_CONFIG)
registry = Registry(dynamodb, setting("REGISTRY_TABLE"))
endpoint = setting("ENDPOINT_NAME")
turns = Turns(dynamodb, setting("REGISTRY_TABLE"), endpoint, float(setting("CREATES_PER_SECOND")))
base = setting("BASE_COMPONENT_NAME")
stack = setting("STACK_ID")

# Of one create. Each moves the line back and slows it down, so that after a few the rate is what AWS allows.
MAX_THROTTLES = 30


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment} → the deployment with its component, or superseded, or with a turn that has yet to come.

    Raises Throttled, EndpointFull, RoomBeingMade, BaseUpdating, ComponentLost, ComponentFailed, ComponentRefused, RegistryContended.
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

    if not use.taken_over:
        # Before SageMaker is asked anything: who waits costs it no call.
        deployment = deployment.having(turn=turns.wait(deployment.turn))
        if _is_waiting(deployment):
            return deployment.to_dict()
    found = components.describe(use.name)
    if found is None:
        tags = {
            "loradrop:adapter": upload.adapter,
            "loradrop:release": release.sha256,
            "loradrop:upload": upload.version_id or "",
            STACK_TAG: stack,
        }
        try:
            components.create(use.name, endpoint, base, release.uri, tags)
        except Throttled:
            if deployment.turn is None or deployment.turn.throttles >= MAX_THROTTLES:
                raise
            return _after_a_throttle(deployment, deployment.turn)
        except EndpointFull as full:
            make_room(registry, endpoint, full)
    else:
        _check_own(use.name, release, found)
    logger.info("component made", adapter=upload.adapter, component=use.name, taken_over=use.taken_over)
    placement = Placement(use.name, endpoint, base, since=int(time.time()), taken_over=use.taken_over)
    return deployment.having(component=placement).to_dict()


def _is_waiting(deployment: Deployment) -> bool:
    turn = deployment.turn
    if turn is None or turn.wait_seconds is None:
        return False
    logger.info("turn taken", adapter=deployment.begun.adapter, **turn.to_dict())
    return True


def _after_a_throttle(deployment: Deployment, turn: Turn) -> dict[str, Any]:
    """Not a fault: the line is longer than it looked. The next turn is waited for in the state machine."""
    moved = turns.move_back(turn)
    return deployment.having(turn=replace(moved, wait_seconds=moved.wait_seconds or 1, is_queued=True)).to_dict()


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
