"""An execution: found by the upload that started it, and followed to its end as a person watches it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

from loradrop_client import explaining

from .terminal import painted, safe

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

# Kinds of states that take part in how an execution goes on, but do nothing that a person would wait for.
_QUIET = ("ChoiceStateEntered", "WaitStateEntered", "PassStateEntered")
# This one is waited for: others are first in the line of creates.
_IN_LINE = "WaitForTurn"
RUNNING = "RUNNING"
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """A state that the execution entered; times are seconds since its start. `polls` counts a loop's rounds."""

    state: str
    entered: float
    left: float | None
    polls: int = 1


@dataclass(frozen=True, slots=True)
class Execution:
    """An execution as it now is. `output` is that of one that succeeded, `error` and `cause` of one that did not.

    `in_line` says how long it still waits for its turn, and behind how many.
    """

    arn: str
    status: str
    error: str
    cause: str
    output: dict[str, Any]
    steps: tuple[Step, ...]
    seconds: float
    in_line: str = ""


class UploadExecutions:
    """The executions that the uploads after this object's making start.

    An upload is known by its version, which its event carries into the execution's input. Others may be uploaded at the same
    time, so "the newest execution" would be anybody's.
    """

    def __init__(self, states: "SFNClient", machine: str) -> None:
        self._states, self._machine = states, machine
        newest = states.list_executions(stateMachineArn=machine, maxResults=1)["executions"]
        # By AWS's clock: older ones need not be read, however many there are.
        self._since: datetime | None = newest[0]["startDate"] if newest else None
        self._versions: dict[str, str | None] = {}

    def of_version(self, version_id: str, *, besides: str | None = None) -> str | None:
        """The execution's ARN, once it has started. An event can come twice: `besides` is one that is known already."""
        pages = self._states.get_paginator("list_executions").paginate(
            stateMachineArn=self._machine, PaginationConfig={"PageSize": 1000}
        )
        for one in (one for page in pages for one in page["executions"]):  # the newest first
            if self._since is not None and one["startDate"] < self._since:
                return None
            arn = one["executionArn"]
            if arn not in self._versions:
                self._versions[arn] = self._version_in(arn)
            if self._versions[arn] == version_id and arn != besides:
                return arn
        return None

    def _version_in(self, arn: str) -> str | None:
        try:
            event = json.loads(self._states.describe_execution(executionArn=arn).get("input", ""))
            version: str | None = event["detail"]["object"].get("version-id")
        except (ValueError, KeyError, TypeError):  # somebody started it by hand
            return None
        return version


def read_execution(states: "SFNClient", arn: str) -> Execution:
    """The execution now, with its states in the order in which they were entered: those that work, and the last."""
    described = states.describe_execution(executionArn=arn)
    started = described["startDate"].timestamp()
    is_running = described["status"] == RUNNING
    ended = max(time.time(), started) if is_running else described["stopDate"].timestamp()
    steps: list[Step] = []
    pages = states.get_paginator("get_execution_history").paginate(
        executionArn=arn, includeExecutionData=False, PaginationConfig={"PageSize": 1000}
    )
    for event in (event for page in pages for event in page["events"]):
        name = event.get("stateEnteredEventDetails", {}).get("name")
        if name is None or (event["type"] in _QUIET and name != _IN_LINE):
            continue
        if steps and steps[-1].state == name:
            steps[-1] = replace(steps[-1], polls=steps[-1].polls + 1)
            continue
        at = event["timestamp"].timestamp() - started
        if steps:
            steps[-1] = replace(steps[-1], left=at)
        steps.append(Step(name, at, None))
    if steps and not is_running:
        steps[-1] = replace(steps[-1], left=ended - started)
    return Execution(
        arn=arn,
        status=described["status"],
        error=described.get("error", ""),
        cause=described.get("cause", ""),
        output=json.loads(described.get("output") or "{}"),
        steps=tuple(steps),
        seconds=ended - started,
        in_line=_in_line(states, arn) if is_running and steps and steps[-1].state == _IN_LINE else "",
    )


def _in_line(states: "SFNClient", arn: str) -> str:
    """What WaitForTurn was given, if the execution is still in it."""
    newest = states.get_execution_history(executionArn=arn, reverseOrder=True, maxResults=1)["events"]
    entered = newest[0].get("stateEnteredEventDetails") if newest else None
    if entered is None or entered["name"] != _IN_LINE:
        return ""
    given = json.loads(entered.get("input") or "{}")
    return f"for {given.get('seconds')} s, {given.get('creates_before_this_one')} creates before it"


class StateView:
    """Shows a line for each state that is left; on a terminal also the one that the execution is in, rewritten in place."""

    def __init__(self, stream: TextIO, indent: str = "") -> None:
        self._stream, self._indent = stream, indent
        self._is_terminal = stream.isatty()
        self._shown = 0

    def show(self, execution: Execution) -> None:
        self.clear()
        left = [step for step in execution.steps if step.left is not None]
        for step in left[self._shown :]:
            self._stream.write(self._line(step, execution) + "\n")
        self._shown = len(left)
        if self._is_terminal and len(execution.steps) > len(left):
            self._stream.write(self._line(execution.steps[-1], execution))
        self._stream.flush()

    def clear(self) -> None:
        """Take away the line that is rewritten."""
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def conclude(self, execution: Execution) -> None:
        colour = "green" if execution.status == "SUCCEEDED" else "red"
        self._stream.write(
            f"{self._indent}{painted(execution.status, colour, self._stream)} after {execution.seconds:.1f} s\n"
        )

    def _line(self, step: Step, execution: Execution) -> str:
        seconds = (execution.seconds if step.left is None else step.left) - step.entered
        is_bad_end = step is execution.steps[-1] and execution.status not in (RUNNING, "SUCCEEDED")
        mark, colour = ("▸", "bold") if step.left is None else ("✗", "red") if is_bad_end else ("✓", "green")
        polls = f", {step.polls} polls" if step.polls > 1 else ""
        if step.left is None and execution.in_line:
            polls = f", {execution.in_line}"
        state = painted(f"{mark} {safe(step.state):<22}", colour, self._stream)
        return (
            f"{self._indent}  {step.entered:5.1f} s  {state} {painted(f'{seconds:5.1f} s{polls}', 'dim', self._stream)}"
        )


def follow_execution(states: "SFNClient", machine: str, arn: str, stream: TextIO, deadline: float) -> Execution:
    """Names the execution and shows it, as `follow` does."""
    print(f"{machine}, execution {arn.rpartition(':')[2]}", file=stream)
    with explaining("follow the execution"):
        return follow(
            lambda: read_execution(states, arn), StateView(stream), deadline=deadline, poll_seconds=POLL_SECONDS
        )


def follow(
    read: Callable[[], Execution],
    view: StateView,
    *,
    deadline: float,
    poll_seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Execution:
    """Shows the execution until it ends, or until `deadline` on the clock: then it comes back still running."""
    try:
        while True:
            now = read()
            view.show(now)
            if now.status != RUNNING:
                view.conclude(now)
                return now
            if clock() >= deadline:
                return now
            sleep(poll_seconds)
    finally:
        view.clear()
