"""Lambdas that die mid-way, calls that are refused: each upload gets one outcome, and nothing is left over."""

from typing import Any

import pytest

from tests.adapters import good_tarball

from .conftest import FUNCTION_STATES, StackUnderTest
from .test_deploy_adapter import DEPLOYED, FAILED, VALIDATED, assert_nothing_is_left


def outcomes(stack: StackUnderTest, name: str) -> list[str]:
    report = stack.report(name)
    return [one["outcome"] for one in (report["newest"], *report["earlier"])]


@pytest.mark.parametrize("kill", [{"after_calls": 0}, {"after_calls": 1}, {"error": "Sandbox.Timedout"}])
def test_each_lambda_dies_once_and_the_adapter_goes_live_all_the_same(
    stack: StackUnderTest, kill: dict[str, Any]
) -> None:
    name = f"dying-{kill.get('after_calls', 'late')}"
    stack.cloud.behave(kills=[{"function": function} | kill for function in FUNCTION_STATES])
    execution = stack.drop(name, good_tarball(seed=501))
    assert execution.states == DEPLOYED
    died = [
        state for state in FUNCTION_STATES if execution.task_errors(state) == [kill.get("error", "Runtime.ExitError")]
    ]
    assert died == list(FUNCTION_STATES)
    assert stack.components(name) == {stack.live(name): "InService"}
    assert outcomes(stack, name) == ["deployed"]


@pytest.mark.parametrize("kill", [{"after_calls": 0}, {"after_calls": 2}, {}])
def test_a_clean_up_that_dies_is_done_again(stack: StackUnderTest, kill: dict[str, Any]) -> None:
    name = f"dying-clean-up-{kill.get('after_calls', 'late')}"
    stack.cloud.behave(create_fails="no memory", kills=[{"function": "CleanUpComponent"} | kill])
    execution = stack.drop(name, good_tarball(seed=502))
    assert execution.states[-len(FAILED) :] == FAILED
    assert execution.states[: len(VALIDATED)] == VALIDATED
    assert execution.task_errors("CleanUpComponent") == ["Runtime.ExitError"]
    assert_nothing_is_left(stack, name)
    assert outcomes(stack, name) == ["failed"]


# One more than each function makes calls to AWS for one adapter: the last one meets no fault.
CALLS = {
    "ClaimUpload": 5,
    "ValidateAdapter": 4,
    "CreateComponent": 9,
    "WaitForInService": 2,
    "SmokeTestAdapter": 5,
    "PromoteAdapter": 4,
    "CleanUpComponent": 7,
    "ReportOutcome": 14,
}


@pytest.mark.long
@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("function", CALLS)
def test_each_call_is_refused_once_or_loses_its_answer(
    stack: StackUnderTest, function: str, *, carried_out: bool
) -> None:
    """An adapter for each call: it meets that one fault. It goes live or fails in words, and nothing is left over."""
    names = [f"{function.lower()}-{'lost' if carried_out else 'refused'}-{n}x" for n in range(1, CALLS[function] + 1)]
    refusals = [
        {"action": "*:*", "function": function, "about": name, "nth": nth, "code": "AccessDenied", "status": 403}
        | {"carried_out": carried_out}
        for nth, name in enumerate(names, 1)
    ]
    stack.cloud.behave(refusals=refusals, adapters_ignored=function == "CleanUpComponent")
    versions = [stack.upload(name, good_tarball(seed=503)) for name in names]
    ended = [stack.end_of(stack.execution_of(version)) for version in versions]
    allowed = {None, "DeploymentFailed"} | ({"OutcomeNotReported"} if function == "ReportOutcome" else set())
    assert {execution.error for execution in ended} <= allowed
    assert any("AccessDenied" in str(execution.events) for execution in ended)
    assert "AccessDenied" not in str(ended[-1].events), f"{function} makes more calls than this test knows"
    assert ended[-1].error == ("DeploymentFailed" if function == "CleanUpComponent" else None)

    # What one pass begins to delete, the next one sees gone.
    stack.reconcile()
    stack.reconcile()
    stack.settle()
    for name, execution in zip(names, ended, strict=True):
        if (component := stack.live(name)) is not None:
            assert stack.components(name) == {component: "InService"}
            assert outcomes(stack, name) == ["deployed"]
        else:
            assert execution.error == "DeploymentFailed"
            assert_nothing_is_left(stack, name)
            assert outcomes(stack, name) == ["failed"]
