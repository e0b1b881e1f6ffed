"""Lambdas that die mid-way, and AWS calls that are refused or lose their answer: each upload gets one outcome, and nothing is left over."""

from typing import Any

import pytest

from tests.adapters import good_tarball

from .conftest import StackUnderTest
from .test_deploy_adapter import DEPLOYED, FAILED, VALIDATED

ON_THE_WAY = (
    "ClaimUpload",
    "ValidateAdapter",
    "CreateComponent",
    "WaitForInService",
    "SmokeTestAdapter",
    "PromoteAdapter",
    "ReportOutcome",
)
# Every call that the functions of DeployAdapter make, as IAM writes it.
CALLS = (
    ("ClaimUpload", "s3:GetObject"),
    ("ClaimUpload", "dynamodb:GetItem"),
    ("ClaimUpload", "dynamodb:TransactWriteItems"),
    ("ValidateAdapter", "s3:GetObject*"),
    ("ValidateAdapter", "s3:PutObject"),
    ("CreateComponent", "dynamodb:GetItem"),
    ("CreateComponent", "dynamodb:TransactWriteItems"),
    ("CreateComponent", "sagemaker:DescribeInferenceComponent"),
    ("CreateComponent", "sagemaker:CreateInferenceComponent"),
    ("WaitForInService", "sagemaker:DescribeInferenceComponent"),
    ("SmokeTestAdapter", "s3:GetObject"),
    ("SmokeTestAdapter", "s3:PutObject"),
    ("SmokeTestAdapter", "sagemaker:InvokeEndpoint"),
    ("PromoteAdapter", "dynamodb:GetItem"),
    ("PromoteAdapter", "dynamodb:TransactWriteItems"),
    ("CleanUpComponent", "dynamodb:GetItem"),
    ("CleanUpComponent", "dynamodb:TransactWriteItems"),
    ("CleanUpComponent", "sagemaker:DescribeInferenceComponent"),
    ("CleanUpComponent", "sagemaker:DeleteInferenceComponent"),
    ("ReportOutcome", "dynamodb:GetItem"),
    ("ReportOutcome", "dynamodb:TransactWriteItems"),
    ("ReportOutcome", "dynamodb:Query"),
    ("ReportOutcome", "s3:*Tagging"),
    ("ReportOutcome", "s3:PutObject"),
    ("ReportOutcome", "events:PutEvents"),
    ("ReportOutcome", "sns:Publish"),
)


def outcomes(stack: StackUnderTest, name: str) -> list[str]:
    report = stack.report(name)
    return [one["outcome"] for one in (report["newest"], *report["earlier"])]


@pytest.mark.parametrize("kill", [{"after_calls": 0}, {"after_calls": 1}, {"error": "Sandbox.Timedout"}])
def test_each_lambda_dies_once_and_the_adapter_goes_live_all_the_same(
    stack: StackUnderTest, kill: dict[str, Any]
) -> None:
    name = f"dying-{kill.get('after_calls', 'late')}"
    stack.cloud.behave(kills=[{"function": function} | kill for function in ON_THE_WAY])
    execution = stack.drop(name, good_tarball(seed=501))
    assert execution.states == DEPLOYED
    died = [state for state in ON_THE_WAY if execution.task_errors(state) == [kill.get("error", "Runtime.ExitError")]]
    assert died == list(ON_THE_WAY)
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
    assert stack.components(name) == {}
    assert outcomes(stack, name) == ["failed"]


@pytest.mark.parametrize("carried_out", [False, True])
def test_each_call_is_refused_once_and_every_upload_has_one_outcome_and_leaves_nothing(
    stack: StackUnderTest, carried_out: bool
) -> None:
    """An upload for each call; which of them meets which refusal does not matter."""
    names = [f"refused-{carried_out:d}-{i}" for i in range(len(CALLS))]
    refusals = [{"action": action, "function": function, "carried_out": carried_out} for function, action in CALLS]
    stack.cloud.behave(refusals=refusals)
    versions = [stack.upload(name, good_tarball(seed=503 + i)) for i, name in enumerate(names)]
    executions = [stack.end_of(stack.execution_of(version)) for version in versions]
    errors = {execution.error for execution in executions}
    assert errors <= {None, "DeploymentFailed", "OutcomeNotReported"}
    assert len(errors) > 1, "refusals were met"

    stack.cloud.behave(refusals=[])
    assert stack.reconcile().status == "SUCCEEDED"
    for name in names:
        live = stack.live(name)
        assert outcomes(stack, name) == ["deployed" if live else "failed"], name
        assert stack.components(name) == ({live: "InService"} if live else {}), name
    assert stack.reconcile().output["repaired"] == 0
