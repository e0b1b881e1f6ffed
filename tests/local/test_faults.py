"""Lambdas that die mid-way: each upload gets one outcome, and nothing is left over."""

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
