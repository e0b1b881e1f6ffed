"""An execution as the page draws it: its machine's own definition, and what became of each state."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loradrop.deployment import Failure
from loradrop_cli.executions import RUNNING

# A history has 25,000 events at most; what a page draws is told long before.
MAX_EVENTS = 5_000
_CALLED = ("LambdaFunctionScheduled", "TaskScheduled")
_FAILED = ("Failed", "TimedOut", "SubmitFailed", "ScheduleFailed", "StartFailed")
_DETAILS = (
    "taskFailedEventDetails",
    "taskTimedOutEventDetails",
    "lambdaFunctionFailedEventDetails",
    "lambdaFunctionTimedOutEventDetails",
    "evaluationFailedEventDetails",
)


@dataclass(slots=True)
class _State:
    """Times are seconds since the execution's start. `entries` counts a loop's rounds, `calls` the tries of the last one."""

    entered: float
    left: float | None = None
    entries: int = 0
    calls: int = 0
    has_failed: bool = False
    failure: str = ""

    def to_dict(self) -> dict[str, Any]:
        status = "running" if self.left is None else "failed" if self.has_failed else "done"
        return {
            "status": status,
            "entered": round(self.entered, 2),
            "left": None if self.left is None else round(self.left, 2),
            "entries": self.entries,
            "tries": self.calls,
            "failure": self.failure or None,
        }


def execution_document(states: Any, arn: str) -> dict[str, Any]:
    """Raises botocore's errors. Requires states:DescribeExecution, GetExecutionHistory and DescribeStateMachineForExecution."""
    described = states.describe_execution(executionArn=arn)
    started = described["startDate"].timestamp()
    machine = states.describe_state_machine_for_execution(executionArn=arn)
    pages = states.get_paginator("get_execution_history").paginate(
        executionArn=arn, includeExecutionData=False, PaginationConfig={"PageSize": 1000, "MaxItems": MAX_EVENTS}
    )
    found = _states(event for page in pages for event in page["events"])
    is_running = described["status"] == RUNNING
    stopped = None if is_running else described["stopDate"].timestamp()
    for one in found.values():
        if one.left is None and stopped is not None:
            one.left, one.has_failed = stopped, described["status"] not in ("SUCCEEDED", RUNNING)
        one.entered -= started
        one.left = None if one.left is None else one.left - started
    output = _json(described.get("output"))
    return {
        "arn": arn,
        "machine": machine["stateMachineArn"],
        "name": described.get("name", arn.rpartition(":")[2]),
        "status": described["status"],
        "started_at": described["startDate"].isoformat(),
        "seconds": None if stopped is None else round(stopped - started, 2),
        "error": described.get("error") or None,
        "cause": described.get("cause") or output.get("message") or None,
        "definition": graph_of(_json(machine["definition"])),
        "states": {name: one.to_dict() for name, one in found.items()},
    }


def _states(events: Iterable[Mapping[str, Any]]) -> dict[str, _State]:
    """By name. An event belongs to the state of the event before it: that holds for the iterations of a Map, too.

    Emulators leave out which event that was; then it is the one that came before.
    """
    found: dict[str, _State] = {}
    of_event: dict[int, str] = {}
    last: int = 0
    for event in events:
        kind, at = event["type"], event["timestamp"].timestamp()
        of_itself = event.get("stateEnteredEventDetails") or event.get("stateExitedEventDetails") or {}
        name = of_itself.get("name") or of_event.get(event.get("previousEventId", last))
        last = event["id"]
        if name is None:
            continue
        of_event[event["id"]] = name
        if kind.endswith("StateEntered"):
            one = found.setdefault(name, _State(at))
            one.entries, one.calls, one.left, one.has_failed = one.entries + 1, 0, None, False
        elif name in found:
            one = found[name]
            if kind in _CALLED:
                one.calls, one.has_failed = one.calls + 1, False
            elif kind.endswith(_FAILED) and not kind.startswith("Execution"):
                details: Mapping[str, Any] = next((event[key] for key in _DETAILS if key in event), {})
                one.has_failed = True
                one.failure = Failure(details.get("error", kind), details.get("cause", "")).reason
            elif kind.endswith("StateExited"):
                one.left = at
    return found


def graph_of(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Start, and of each state its kind, its comment and where it leads: [name, why] for each way."""
    states = definition.get("States", {})
    return {"start": definition.get("StartAt"), "states": {name: _node(state) for name, state in states.items()}}


def _node(state: Mapping[str, Any]) -> dict[str, Any]:
    ways = [[choice["Next"], "choice"] for choice in state.get("Choices", []) if "Next" in choice]
    if "Default" in state:
        ways.append([state["Default"], "default"])
    if "Next" in state:
        ways.append([state["Next"], "next"])
    ways += [[catch["Next"], "catch"] for catch in state.get("Catch", []) if "Next" in catch]
    unique = list({way[0]: way for way in reversed(ways)}.values())[::-1]
    return {"type": state.get("Type"), "comment": state.get("Comment", ""), "ways": unique}


def _json(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
