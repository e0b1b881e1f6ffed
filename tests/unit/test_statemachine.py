"""What `sam validate` does not read: the state machine behind DefinitionUri."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonata import Jsonata

import runtime

SOURCE = Path("statemachine/deploy_adapter.asl.yaml").read_text()
MACHINE: dict[str, Any] = yaml.safe_load(SOURCE)
STATES: dict[str, dict[str, Any]] = MACHINE["States"]
TASKS = {name: state for name, state in STATES.items() if state["Type"] == "Task"}
LAMBDA_ERRORS = {
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException",
}
FAULTS = {name for name, value in vars(runtime).items() if inspect.isclass(value) and value.__module__ == "runtime"}


def strings(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []


EXPRESSIONS = sorted({text[2:-2] for text in strings(MACHINE) if text.startswith("{%")})


def successors(state: dict[str, Any]) -> set[str]:
    branches = [*state.get("Choices", []), *state.get("Catch", [])]
    named = {state.get("Next"), state.get("Default")} - {None}
    return {branch["Next"] for branch in branches} | {name for name in named if isinstance(name, str)}


def test_every_state_is_reached_and_leads_somewhere() -> None:
    reached, todo = set(), [MACHINE["StartAt"]]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += successors(STATES[name])
    assert reached == STATES.keys()
    assert all(successors(state) or state["Type"] in ("Succeed", "Fail") for state in STATES.values())


@pytest.mark.parametrize("name", STATES)
def test_every_state_says_what_it_is_for(name: str) -> None:
    assert STATES[name]["Comment"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_ends_in_time_and_catches_all(name: str) -> None:
    task = TASKS[name]
    assert task["TimeoutSeconds"] <= MACHINE["TimeoutSeconds"]
    assert task["Catch"][-1]["ErrorEquals"] == ["States.ALL"]


@pytest.mark.parametrize("name", TASKS)
def test_retries_name_errors_that_exist_and_jitter(name: str) -> None:
    named = set()
    for retrier in TASKS[name]["Retry"]:
        assert retrier["JitterStrategy"] == "FULL"
        assert retrier["MaxAttempts"] > 0
        named |= set(retrier["ErrorEquals"])
    assert named >= LAMBDA_ERRORS
    assert named - LAMBDA_ERRORS <= FAULTS


def test_a_caught_error_always_ends_in_fail() -> None:
    def ends(name: str, seen: frozenset[str]) -> set[str]:
        state = STATES[name]
        if not successors(state):
            return {name}
        if state["Type"] == "Choice" and name == "WasUploadSuperseded":
            # A superseded upload is no failure; its way here is by PromoteAdapter's answer, not by an error.
            return ends(state["Default"], seen)
        following = {state["Next"]} if "Next" in state else successors(state)
        return {end for one in following - seen for end in ends(one, seen | {name})}

    for task in TASKS.values():
        for catcher in task["Catch"]:
            assert {STATES[end]["Type"] for end in ends(catcher["Next"], frozenset())} == {"Fail"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_jsonata_that_aws_takes(expression: str) -> None:
    Jsonata(expression)
    # Newer than the JSONata 2.0.6 of Step Functions, or switched off there.
    assert not re.search(r"\?\?|\?:|\$eval\b", expression)


def test_the_file_is_yaml_of_the_plainest_kind() -> None:
    # Whether AWS resolves anchors in a state machine's YAML is not known.
    events = {type(event).__name__ for event in yaml.parse(SOURCE)}
    assert "AliasEvent" not in events


def test_every_function_of_the_machine_is_substituted_and_every_substitution_used() -> None:
    template = Path("template.yaml").read_text()
    section = template[template.index("DefinitionSubstitutions:") : template.index("Tracing: {Enabled: true}")]
    given = set(re.findall(r"^ {8}(\w+): !", section, re.MULTILINE))
    assert given == set(re.findall(r"\$\{(\w+)\}", SOURCE))


def test_state_resource_and_file_share_one_name() -> None:
    shared = {"RetirePrevious": "DeleteComponent", "CleanUpComponent": "DeleteComponent"}
    for name, task in TASKS.items():
        resource = "ReportOutcome" if name.startswith("Report") else shared.get(name, name)
        assert task["Resource"] == f"${{{resource}FunctionArn}}"
        snake = re.sub(r"(?<!^)([A-Z])", r"_\1", resource).lower()
        assert Path(f"functions/{snake}.py").exists()
