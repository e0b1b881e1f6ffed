"""WaitForInService: one look at the component, and when to look again."""

import time
from typing import TYPE_CHECKING, Any

import components
from loradrop.polling import next_poll_seconds
from runtime import ComponentFailed, ComponentNotInServiceInTime, logger, setting

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

deadline_seconds = int(setting("IN_SERVICE_DEADLINE_SECONDS"))


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{component: name, since: Unix seconds} → {status, waited_seconds, next_look_seconds}.

    Raises ComponentFailed with SageMaker's reason, and ComponentNotInServiceInTime past the deadline.
    """
    name = event["component"]
    waited_seconds = time.time() - event["since"]
    found = components.describe(name)
    if found is None:
        raise ComponentFailed(f"The component {name} was deleted by somebody while it was being created.")
    status = found.get("InferenceComponentStatus", "Creating")
    if status in ("Failed", "Deleting"):
        raise ComponentFailed(f"The component {name} is {status}: {found.get('FailureReason', 'no reason given')}")
    if status != "InService" and waited_seconds >= deadline_seconds:
        raise ComponentNotInServiceInTime(
            f"The component {name} is still {status} after {waited_seconds:.0f} s; the deadline is "
            f"{deadline_seconds} s (parameter InServiceDeadlineSeconds). Look at the endpoint's CloudWatch log."
        )
    logger.info("component looked at", component=name, status=status, waited_seconds=round(waited_seconds, 1))
    return {
        "status": status,
        "waited_seconds": round(waited_seconds, 1),
        "next_look_seconds": next_poll_seconds(waited_seconds, deadline_seconds),
    }
