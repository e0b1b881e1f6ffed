"""What `sam validate` does not read: the state machines behind DefinitionUri."""

import inspect
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonata import Jsonata

from aws import faults
from aws.runtime import CLIENT_CONFIG, COPY_CONFIG, INVOKE_CONFIG, SAGEMAKER_CONFIG
from tests.template import TEMPLATE

SOURCES = {name: Path(f"statemachine/{name}.asl.yaml").read_text() for name in ("deploy_adapter", "reconcile_fleet")}
MACHINES: dict[str, dict[str, Any]] = {name: yaml.safe_load(source) for name, source in SOURCES.items()}
DEPLOY: dict[str, dict[str, Any]] = MACHINES["deploy_adapter"]["States"]
LAMBDA_ERRORS = {
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.Unknown",
    "Sandbox.Timedout",
    "Runtime.ExitError",
    "States.Timeout",
}
FAULTS = {name for name, value in vars(faults).items() if inspect.isclass(value) and issubclass(value, faults.Fault)}


def levels(machine: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The machine, and those within its Map states: each has StartAt and States."""
    yield machine
    for state in machine["States"].values():
        if state["Type"] == "Map":
            yield from levels(state["ItemProcessor"])


ALL_STATES = {
    f"{name}/{state}": body
    for name, machine in MACHINES.items()
    for level in levels(machine)
    for state, body in level["States"].items()
}
TASKS = {name: state for name, state in ALL_STATES.items() if state["Type"] == "Task"}


def strings(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []


EXPRESSIONS = sorted({text[2:-2] for text in strings(MACHINES) if text.startswith("{%")})


def successors(state: dict[str, Any]) -> set[str]:
    branches = [*state.get("Choices", []), *state.get("Catch", [])]
    named = {state.get("Next"), state.get("Default")} - {None}
    return {branch["Next"] for branch in branches} | {name for name in named if isinstance(name, str)}


@pytest.mark.parametrize("name", MACHINES)
def test_every_state_is_reached_and_leads_somewhere(name: str) -> None:
    for level in levels(MACHINES[name]):
        states, reached, todo = level["States"], set(), [level["StartAt"]]
        while todo:
            state = todo.pop()
            if state not in reached:
                reached.add(state)
                todo += successors(states[state])
        assert reached == states.keys()
        assert all(successors(one) or one.get("End") or one["Type"] in ("Succeed", "Fail") for one in states.values())


@pytest.mark.parametrize("name", ALL_STATES)
def test_every_state_says_what_it_is_for(name: str) -> None:
    assert ALL_STATES[name]["Comment"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_ends_in_time_and_its_errors_are_caught(name: str) -> None:
    assert TASKS[name]["TimeoutSeconds"] <= MACHINES[name.partition("/")[0]]["TimeoutSeconds"]
    if name.startswith("reconcile_fleet/ReportOutcome"):  # caught by the Map around it
        assert ALL_STATES["reconcile_fleet/ReportOutcomes"]["Catch"][-1]["ErrorEquals"] == ["States.ALL"]
    else:
        assert TASKS[name]["Catch"][-1]["ErrorEquals"] == ["States.ALL"]


@pytest.mark.parametrize("name", TASKS)
def test_retries_name_errors_that_exist_and_jitter(name: str) -> None:
    named = set()
    for retrier in TASKS[name]["Retry"]:
        assert retrier["JitterStrategy"] == "FULL"
        assert retrier["MaxAttempts"] > 0
        named |= set(retrier["ErrorEquals"])
    # Every state is idempotent, so a Lambda that died or whose answer was lost is tried again as well.
    assert named >= LAMBDA_ERRORS
    assert named - LAMBDA_ERRORS <= FAULTS


def test_every_fault_that_waiting_can_fix_is_retried_somewhere() -> None:
    retried = {error for task in TASKS.values() for retrier in task["Retry"] for error in retrier["ErrorEquals"]}
    # What these say is final. ReportContended is retried within the function.
    final = {
        "Fault",
        "EndpointFull",
        "ComponentRefused",
        "ComponentFailed",
        "ComponentLost",
        "ComponentNotInServiceInTime",
    }
    assert final | {"InvocationRefused"} == FAULTS - retried


def test_a_failure_cleans_up_and_then_reports_and_no_report_stands_before_a_clean_up() -> None:
    for name in ("ValidateAdapter", "CreateComponent", "WaitForInService", "SmokeTestAdapter", "PromoteAdapter"):
        assert {catcher["Next"] for catcher in DEPLOY[name]["Catch"]} == {"CleanUpComponent"}
    assert successors(DEPLOY["CleanUpComponent"]) == {"ReportOutcome"}
    after, todo = set(), ["ReportOutcome"]
    while todo:
        todo += successors(DEPLOY[todo.pop()]) - after
        after |= set(todo)
    assert "CleanUpComponent" not in after


def test_each_outcome_has_an_end_of_its_own() -> None:
    ends = {choice["Condition"]: choice["Next"] for choice in DEPLOY["HowDidItEnd"]["Choices"]}
    assert ends == {
        "{% $report.outcome = 'deployed' %}": "AdapterDeployed",
        "{% $report.outcome = 'rejected' %}": "AdapterRejected",
        "{% $report.outcome = 'waiting' %}": "UploadWaiting",
        "{% $report.outcome = 'superseded' %}": "UploadSuperseded",
        "{% $report.outcome = 'repeated' %}": "EventRepeated",
    }
    assert DEPLOY["HowDidItEnd"]["Default"] == "DeploymentFailed"
    kinds = {name: DEPLOY[name]["Type"] for name in (*ends.values(), "DeploymentFailed", "OutcomeNotReported")}
    assert {name for name, kind in kinds.items() if kind == "Fail"} == {
        "AdapterRejected",
        "UploadWaiting",
        "DeploymentFailed",
        "OutcomeNotReported",
    }


# Time limits


def function_of(task: dict[str, Any]) -> dict[str, Any]:
    resource = re.fullmatch(r"\$\{(\w+)Arn\}", task["Resource"])
    assert resource
    properties: dict[str, Any] = TEMPLATE["Resources"][resource[1]]["Properties"]
    return properties


@pytest.mark.parametrize("name", TASKS)
def test_a_function_ends_before_its_state_so_that_the_error_is_always_the_same(name: str) -> None:
    timeout = function_of(TASKS[name]).get("Timeout", TEMPLATE["Globals"]["Function"]["Timeout"])
    assert timeout < TASKS[name]["TimeoutSeconds"]


def test_a_call_ends_before_its_function() -> None:
    shortest = min(function_of(task).get("Timeout", 60) for task in TASKS.values())
    for config in (CLIENT_CONFIG, SAGEMAKER_CONFIG):
        assert config.connect_timeout + config.read_timeout < shortest  # type: ignore[attr-defined]
    assert INVOKE_CONFIG.read_timeout < function_of(TASKS["deploy_adapter/SmokeTestAdapter"])["Timeout"]  # type: ignore[attr-defined]
    for name in ("deploy_adapter/ValidateAdapter", "reconcile_fleet/RepairAdapter"):
        assert COPY_CONFIG.read_timeout < function_of(TASKS[name])["Timeout"]  # type: ignore[attr-defined]


def longest_seconds(task: dict[str, Any]) -> float:
    """A task's time limit, for each try, and the waits between them, if each retrier is used up."""
    tries, waits = 1, 0.0
    for retrier in task["Retry"]:
        tries += retrier["MaxAttempts"]
        waits += sum(
            min(retrier["IntervalSeconds"] * retrier["BackoffRate"] ** number, retrier.get("MaxDelaySeconds", math.inf))
            for number in range(retrier["MaxAttempts"])
        )
    return tries * task["TimeoutSeconds"] + waits


def test_an_execution_may_last_as_long_as_all_its_states_may() -> None:
    deadline = TEMPLATE["Parameters"]["InServiceDeadlineSeconds"]["MaxValue"]
    once = [
        task for name, task in TASKS.items() if name.startswith("deploy_adapter/") and "WaitForInService" not in name
    ]
    longest = sum(longest_seconds(task) for task in once) + deadline
    longest += longest_seconds(TASKS["deploy_adapter/WaitForInService"])
    assert longest < MACHINES["deploy_adapter"]["TimeoutSeconds"]


# The text


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_jsonata_that_aws_takes(expression: str) -> None:
    Jsonata(expression)
    # Newer than the JSONata 2.0.6 of Step Functions, or switched off there.
    assert not re.search(r"\?\?|\?:|\$eval\b", expression)


@pytest.mark.parametrize("name", SOURCES)
def test_the_file_is_yaml_of_the_plainest_kind(name: str) -> None:
    # AWS refuses aliases in a state machine's YAML: that is why the lines of Retry are repeated.
    events = {type(event).__name__ for event in yaml.parse(SOURCES[name])}
    assert "AliasEvent" not in events


@pytest.mark.parametrize(
    ("name", "resource"), [("deploy_adapter", "DeployAdapter"), ("reconcile_fleet", "ReconcileFleet")]
)
def test_every_function_of_a_machine_is_substituted_and_every_substitution_used(name: str, resource: str) -> None:
    properties = TEMPLATE["Resources"][resource]["Properties"]
    assert properties["DefinitionSubstitutions"].keys() == set(re.findall(r"\$\{(\w+)\}", SOURCES[name]))


@pytest.mark.parametrize("name", TASKS)
def test_state_resource_and_file_share_one_name(name: str) -> None:
    state = name.rpartition("/")[2]
    assert TASKS[name]["Resource"] == f"${{{state}FunctionArn}}"
    snake = re.sub(r"(?<!^)([A-Z])", r"_\1", state).lower()
    assert Path(f"functions/{snake}.py").exists()
