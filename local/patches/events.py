"""S3's events, and what EventBridge does with events."""

import contextvars
import functools
import json
import logging
from typing import Any

from ministack.services import eventbridge, s3, sns

from .permissions import denial_of_role, enforces_iam

logger = logging.getLogger("local")

_event_version: contextvars.ContextVar[str | None] = contextvars.ContextVar("event_version", default=None)


def complete_s3_events() -> None:
    """S3 says detail.object.version-id for a versioned bucket, and a deletion has no size; MiniStack leaves the one out and sends the other."""
    fire, dispatch = s3._fire_s3_event, eventbridge._dispatch_event

    @functools.wraps(fire)
    def fire_with_version(*args: Any, **kwargs: Any) -> Any:
        token = _event_version.set(kwargs.get("version_id"))
        try:
            return fire(*args, **kwargs)
        finally:
            _event_version.reset(token)

    @functools.wraps(dispatch)
    def dispatch_complete(event: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if event.get("Source") == "aws.s3":
            detail, version = json.loads(event["Detail"]), _event_version.get()
            if version is not None:
                detail["object"].setdefault("version-id", version)
            if event["DetailType"] == "Object Deleted":
                detail["object"].pop("size", None)
            event = event | {"Detail": json.dumps(detail)}
        return dispatch(event, *args, **kwargs)

    s3._fire_s3_event = fire_with_version
    eventbridge._dispatch_event = dispatch_complete


def ask_who_may_be_a_target() -> None:
    """EventBridge starts an execution as the target's role, and publishes where the topic's policy lets it; what it has no right
    to goes to the dead-letter queue. MiniStack asks neither."""
    invoke_target = eventbridge._invoke_target

    @functools.wraps(invoke_target)
    def invoke_if_allowed(target: dict[str, Any], event: dict[str, Any], rule: Any, view: Any = None) -> None:
        denial = _denial_of_target(target, rule) if enforces_iam() else None
        if denial is None:
            invoke_target(target, event, rule, view)
            return
        logger.warning("EventBridge: %s", denial)
        queue = target.get("DeadLetterConfig", {}).get("Arn")
        if queue:
            view = view or eventbridge._pattern_event_view(event)
            eventbridge._dispatch_to_sqs(eventbridge.parse_arn(queue), json.dumps(view.event_with_detail()))

    eventbridge._invoke_target = invoke_if_allowed


def _denial_of_target(target: dict[str, Any], rule: dict[str, Any]) -> str | None:
    arn, role = str(target.get("Arn", "")), target.get("RoleArn")
    if ":states:" in arn and role:
        return denial_of_role(role, "events", "states:StartExecution", arn)
    # EventBridge names no source account to a topic, so the policy that each topic is born with does not let it in.
    if ":sns:" in arn and not sns.topic_policy_allows(arn, "events.amazonaws.com", rule.get("Arn", ""), ""):
        return f"the policy of {arn} does not allow events.amazonaws.com to publish"
    return None
