"""Step Functions: definitions, the machine's role, retries, ends and limits."""

import contextvars
import functools
import json
import random
import threading
from typing import Any

import yaml
from ministack.core.responses import now_iso
from ministack.services import stepfunctions
from ministack.services.cloudformation import provisioners

from .permissions import denial_of_role, enforces_iam

MAX_PAYLOAD_BYTES = 262_144
DATA_LIMIT = "States.DataLimitExceeded"
# What States.ALL and States.TaskFailed do not match. AWS says so of States.ALL; whether the name itself is matched, no source says.
TERMINAL_ERRORS = (DATA_LIMIT, "States.Runtime")


class _PlainLoader(yaml.SafeLoader):
    """YAML as JSON has it: a date is a text."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def take_state_machines_in_yaml() -> None:
    """CloudFormation takes a definition in YAML as well; MiniStack deploys it and then fails every execution."""
    read_definition = provisioners._sfn_definition

    @functools.wraps(read_definition)
    def read_definition_as_json(props: dict[str, Any]) -> str:
        definition: str = read_definition(props)
        try:
            json.loads(definition)
        except ValueError:
            # No timestamps are made of plain texts, so the content is JSON's; the loader is a SafeLoader.
            return json.dumps(yaml.load(definition, Loader=_PlainLoader))
        return definition

    provisioners._sfn_definition = read_definition_as_json


def put_out_what_a_succeed_state_says() -> None:
    """A JSONata Succeed state has an Output, as every other; MiniStack looks for the JSONPath fields alone."""
    apply = stepfunctions._apply_output_path

    @functools.wraps(apply)
    def apply_output(state: dict[str, Any], data: Any, context: Any = None) -> Any:
        if state.get("Type") == "Succeed" and stepfunctions._state_query_language(state, context) == "JSONata":
            return stepfunctions._apply_jsonata_output(state, data, context, default=data)
        return apply(state, data, context)

    stepfunctions._apply_output_path = apply_output


_execution_role: contextvars.ContextVar[str | None] = contextvars.ContextVar("execution_role", default=None)


def ask_the_role_of_a_state_machine() -> None:
    """Step Functions invokes a Lambda as the machine's role; MiniStack invokes it whoever asks, whether AUTH is on or off."""
    run, call = stepfunctions._run_execution, stepfunctions._call_lambda

    @functools.wraps(run)
    def run_as_role(execution_arn: str) -> None:
        execution = stepfunctions._executions.get(execution_arn) or {}
        machine = stepfunctions._state_machines.get(execution.get("stateMachineArn")) or {}
        token = _execution_role.set(machine.get("roleArn"))
        try:
            run(execution_arn)
        finally:
            _execution_role.reset(token)

    @functools.wraps(call)
    def call_as_role(function: Any, event: Any) -> Any:
        role = _execution_role.get()
        denial = (
            denial_of_role(role, "states", "lambda:InvokeFunction", str(function)) if role and enforces_iam() else None
        )
        if denial is not None:
            raise stepfunctions._ExecutionError("Lambda.AWSLambdaException", denial)
        try:
            return call(function, event)
        except stepfunctions._ExecutionError as error:
            if error.error == "Lambda.TooManyRequestsException":  # Lambda's own word, not the function's: plain text
                error.cause = f"{json.loads(error.cause)['message']} (Service: Lambda, Status Code: 429)"
            raise

    stepfunctions._run_execution = run_as_role
    stepfunctions._call_lambda = call_as_role


def retry_as_the_retrier_says() -> None:
    """MiniStack knows neither MaxDelaySeconds nor JitterStrategy."""
    find = stepfunctions._find_matching_retrier

    @functools.wraps(find)
    def find_with_delay(retriers: Any, error: str, retry_counts: dict[int, int]) -> Any:
        retrier, index = find(retriers, error, retry_counts)
        if retrier is None:
            return retrier, index
        delay = retrier.get("IntervalSeconds", 1) * retrier.get("BackoffRate", 2.0) ** retry_counts.get(index, 0)
        delay = min(delay, retrier.get("MaxDelaySeconds", delay))
        if retrier.get("JitterStrategy") == "FULL":
            delay = random.uniform(0, delay)
        return retrier | {"IntervalSeconds": delay, "BackoffRate": 1.0}, index

    stepfunctions._find_matching_retrier = find_with_delay


def keep_how_an_execution_ended() -> None:
    """An execution that was stopped stays so; in MiniStack a Lambda that fails after that makes it FAILED, with a second event."""
    fail = stepfunctions._fail_execution

    @functools.wraps(fail)
    def fail_if_running(execution: dict[str, Any], error: str, cause: str) -> None:
        if execution["status"] == "RUNNING":
            fail(execution, error, cause)

    stepfunctions._fail_execution = fail_if_running


def time_out_executions() -> None:
    """A machine's own TimeoutSeconds ends its executions as TIMED_OUT; MiniStack does not read it."""
    run = stepfunctions._run_execution

    @functools.wraps(run)
    def run_within_time(execution_arn: str) -> None:
        execution = stepfunctions._executions.get(execution_arn) or {}
        machine = stepfunctions._state_machines.get(execution.get("stateMachineArn")) or {}
        timer = None
        seconds = _time_limit(machine.get("definition", ""))
        if seconds is not None:
            # A timer's thread has none of the context that says whose account this is.
            timer = threading.Timer(seconds, contextvars.copy_context().run, (_time_out, execution))
            timer.daemon = True
            timer.start()
        try:
            run(execution_arn)
        finally:
            if timer is not None:
                timer.cancel()

    stepfunctions._run_execution = run_within_time


def _time_limit(definition: str) -> float | None:
    try:
        seconds: float | None = json.loads(definition).get("TimeoutSeconds")
    except ValueError:  # the execution says so itself
        return None
    return seconds


def _time_out(execution: dict[str, Any]) -> None:
    if execution["status"] != "RUNNING":
        return
    execution |= {"status": "TIMED_OUT", "error": "States.Timeout", "stopDate": now_iso()}
    stepfunctions._add_event(
        execution, "ExecutionTimedOut", {"executionTimedOutEventDetails": {"error": "States.Timeout"}}
    )
    stepfunctions._emit_execution_status_event(execution)


def limit_payloads() -> None:
    """A payload over 262,144 bytes of UTF-8 ends an execution, whatever its state catches; MiniStack carries any."""
    invoke, assign, matches = (
        stepfunctions._invoke_resource,
        stepfunctions._apply_state_assign,
        stepfunctions._error_matches,
    )

    @functools.wraps(invoke)
    def invoke_within_limit(resource: str, given: Any) -> Any:
        _check_size(f"The state/task '{resource}' was given an input", given)
        result = invoke(resource, given)
        _check_size(f"The state/task '{resource}' returned a result", result)
        return result

    @functools.wraps(assign)
    def assign_within_limit(state: dict[str, Any], raw_input: Any, context: Any, **kwargs: Any) -> Any:
        assigned = assign(state, raw_input, context, **kwargs)
        variables = {name: context["variables"].get(name) for name in state.get("Assign", {})}
        _check_size("The Assign field made variables", variables)
        return assigned

    @functools.wraps(matches)
    def matches_what_can_be_caught(names: list[str], error: str) -> bool:
        return error not in TERMINAL_ERRORS and bool(matches(names, error))

    stepfunctions._invoke_resource = invoke_within_limit
    stepfunctions._apply_state_assign = assign_within_limit
    stepfunctions._error_matches = matches_what_can_be_caught
    for kind in ("pass", "task", "choice", "wait", "parallel", "map"):
        _limit_output(f"_execute_{kind}")


def _limit_output(name: str) -> None:
    execute = getattr(stepfunctions, name)

    @functools.wraps(execute)
    def execute_within_limit(state: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        output, following = execute(state, *args, **kwargs)
        _check_size(f"The {state['Type']} state before '{following}' returned a result", output)
        return output, following

    setattr(stepfunctions, name, execute_within_limit)


def _check_size(what: str, data: Any) -> None:
    if len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()) > MAX_PAYLOAD_BYTES:
        raise stepfunctions._ExecutionError(
            DATA_LIMIT, f"{what} with a size exceeding the maximum number of bytes service limit."
        )
