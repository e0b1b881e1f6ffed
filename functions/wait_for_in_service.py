"""WaitForInService: poll the component, for a while if it may be quick, and say when to poll again."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aws import components
from aws.faults import ComponentFailed, ComponentNotInServiceInTime
from aws.runtime import logger, setting
from loradrop.deployment import Deployment, Placement
from loradrop.polling import next_poll_seconds, watch

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

deadline_seconds = int(setting("IN_SERVICE_DEADLINE_SECONDS"))
watched_seconds = float(setting("WATCHED_SECONDS"))


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment} → the deployment with its component's status and the seconds until the next poll.

    Raises ComponentFailed with SageMaker's reason, ComponentNotInServiceInTime past the deadline, and Throttled.
    """
    deployment = Deployment.from_dict(event["deployment"])
    component = deployment.component
    if component is None:
        raise ValueError("There is no component to wait for.")
    # Many that come at once have waited in the line, and are not watched: they would keep as many Lambdas busy.
    until_seconds = 0.0 if deployment.turn is not None and deployment.turn.is_queued else watched_seconds
    status = _status(component.name)
    for seconds in watch(_waited(component), min(until_seconds, deadline_seconds)):
        if status == "InService":
            break
        time.sleep(seconds)
        status = _status(component.name)
    waited_seconds = _waited(component)
    if status != "InService" and waited_seconds >= deadline_seconds:
        raise ComponentNotInServiceInTime(
            f"The component {component.name} is still {status} after {waited_seconds:.0f} s; the deadline is "
            f"{deadline_seconds} s (parameter InServiceDeadlineSeconds). Read the endpoint's log in CloudWatch."
        )
    logger.info("component polled", component=component.name, status=status, waited_seconds=round(waited_seconds, 1))
    polled = replace(
        component,
        status=status,
        waited_seconds=round(waited_seconds, 1),
        next_poll_seconds=next_poll_seconds(waited_seconds, deadline_seconds),
    )
    return deployment.having(component=polled).to_dict()


def _waited(component: Placement) -> float:
    return max(0.0, time.time() - component.since)


def _status(name: str) -> str:
    found = components.describe(name)
    if found is None:
        raise ComponentFailed(f"The component {name} was deleted by somebody while it was being created.")
    status = found.get("InferenceComponentStatus", "Creating")
    if status in ("Failed", "Deleting"):
        reason = found.get("FailureReason", "no reason given")
        raise ComponentFailed(f"The component {name} is {status}: {reason}")
    return status
