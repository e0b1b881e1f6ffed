"""Least privilege, seen from both sides: with any one statement of a role taken away, something fails."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.adapters import good_tarball
from tests.template import TEMPLATE, statements_of

from .conftest import Execution, Stack, eventually

# Where the local cloud has nothing that could refuse. What each is for stands beside it in the template.
NOT_ENFORCED_LOCALLY = {
    "DeployAdapterRole/DeliverLogs": "no log delivery of Step Functions; tests/unit/test_template.py names its actions",
    "EndpointExecutionRole/PullContainer": "no container is pulled",
    "EndpointExecutionRole/WriteLogs": "no CloudWatch logs of containers",
    "EndpointExecutionRole/WriteMetrics": "no CloudWatch metrics of containers",
    "EndpointExecutionRole/ListReleases": "the engine gets its object; SageMaker's own download lists as well",
}


def statements() -> list[str]:
    """Role/Sid of each statement of each role that the template makes when it makes the base."""
    return [
        f"{name}{'Role' if resource['Type'].startswith('AWS::Serverless::') else ''}/{one['Sid']}"
        for name, resource in TEMPLATE["Resources"].items()
        for one in statements_of(name)
        if resource["Type"].startswith(("AWS::Serverless::", "AWS::IAM::"))
    ]


@contextmanager
def without(stack: Stack, role: str, sid: str) -> Iterator[None]:
    """The running stack, with one statement of one role taken away."""
    resources = stack.client("cloudformation").list_stack_resources(StackName=stack.name)["StackResourceSummaries"]
    [role_name] = [one["PhysicalResourceId"] for one in resources if one["LogicalResourceId"] == role]
    for policy_name in stack.iam.list_role_policies(RoleName=role_name)["PolicyNames"]:
        document = stack.iam.get_role_policy(RoleName=role_name, PolicyName=policy_name)["PolicyDocument"]
        kept = [one for one in document["Statement"] if one.get("Sid") != sid]
        if len(kept) < len(document["Statement"]):
            break
    else:
        raise AssertionError(f"{role_name} has no statement {sid}")

    def put(statements: list[dict[str, Any]]) -> None:
        changed = json.dumps(document | {"Statement": statements})
        stack.iam.put_role_policy(RoleName=role_name, PolicyName=policy_name, PolicyDocument=changed)

    # A policy without statements is none.
    put(kept or [{"Sid": "Nothing", "Effect": "Deny", "Action": "none:None", "Resource": "*"}])
    try:
        yield
    finally:
        put(document["Statement"])


# What is done while the statement is missing. Each of these succeeds on the whole stack (test_deploy_adapter.py).


def deploy(stack: Stack, adapter: str) -> Callable[[], Execution]:
    return lambda: stack.drop(adapter, good_tarball(seed=100))


def update(stack: Stack, adapter: str) -> Callable[[], Execution]:
    stack.drop(adapter, good_tarball(seed=101))
    return lambda: stack.drop(adapter, good_tarball(seed=102))


def read_what_vanished(stack: Stack, adapter: str) -> Callable[[], Execution]:
    with stack.rule_disabled():
        version = stack.upload(adapter, good_tarball(seed=103))
    stack.s3.delete_object(Bucket=stack.uploads, Key=f"adapters/{adapter}.tar.gz", VersionId=version)
    return lambda: stack.start(stack.event(adapter, version, "0A"))


def replace_failed(stack: Stack, adapter: str) -> Callable[[], Execution]:
    stack.cloud.behave(create_fails="out of order", seconds_to_in_service=2.0)
    stopped = stack.execution_of(stack.upload(adapter, good_tarball(seed=104)))
    eventually(lambda: stack.components(adapter), "the component")
    stack.states.stop_execution(executionArn=stopped)
    eventually(lambda: list(stack.components(adapter).values()) == ["Failed"], "its failure")
    stack.cloud.behave(create_fails=None, seconds_to_in_service=0.0)
    return lambda: stack.drop(adapter, good_tarball(seed=104))


SCENARIOS: dict[str, Callable[[Stack, str], Callable[[], Execution]]] = {
    "ValidateAdapterFunctionRole/TellMissingFromForbidden": read_what_vanished,
    "CreateComponentFunctionRole/ReplaceFailedComponents": replace_failed,
    "DeleteComponentFunctionRole/MarkInRegistry": update,
    "DeleteComponentFunctionRole/DeleteOwnComponents": update,
}


@pytest.mark.parametrize("statement", [one for one in statements() if one not in NOT_ENFORCED_LOCALLY])
def test_every_statement_is_needed(stack: Stack, statement: str) -> None:
    role, sid = statement.split("/")
    act = SCENARIOS.get(statement, deploy)(stack, f"{role}.{sid}")
    with without(stack, role, sid):
        execution = act()
    assert (execution.status, execution.error) in [
        ("FAILED", "DeploymentFailed"),
        ("FAILED", "OutcomeNotReported"),
        ("FAILED", "PreviousNotRetired"),
    ]
    refusals = [json.dumps(event, default=str) for event in execution.events if "Failed" in event["type"]]
    assert any("AccessDenied" in refusal or "not authorized" in refusal for refusal in refusals)
    assert "Traceback" not in execution.cause
    assert "stackTrace" not in execution.cause


def test_an_upload_that_may_not_start_an_execution_waits_in_the_queue(stack: Stack) -> None:
    resources = stack.client("cloudformation").list_stack_resources(StackName=stack.name)["StackResourceSummaries"]
    [role] = [
        one["PhysicalResourceId"] for one in resources if one["LogicalResourceId"].endswith("AdapterUploadedRole")
    ]
    [policy] = stack.iam.list_role_policies(RoleName=role)["PolicyNames"]
    document = stack.iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
    stack.iam.delete_role_policy(RoleName=role, PolicyName=policy)
    try:
        version = stack.upload("never-started", good_tarball(seed=105))
        queue, sqs = stack.outputs["LostEventsQueueUrl"], stack.client("sqs")
        [lost] = eventually(
            lambda: sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1).get("Messages"), "the lost event"
        )
    finally:
        stack.iam.put_role_policy(RoleName=role, PolicyName=policy, PolicyDocument=json.dumps(document))
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=lost["ReceiptHandle"])
    assert json.loads(lost["Body"])["detail"]["object"]["version-id"] == version
