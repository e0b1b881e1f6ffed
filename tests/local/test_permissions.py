"""Least privilege, seen from both sides: with any one statement of a role taken away, something fails."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.adapters import good_tarball
from tests.template import TEMPLATE, statements_of

from .conftest import Execution, StackUnderTest, eventually

# Where the local cloud has nothing that could refuse. What each is for stands beside it in the template.
NOT_ENFORCED_LOCALLY = {
    "DeployAdapterRole/DeliverLogs": "no log delivery of Step Functions; tests/unit/test_template.py names its actions",
    "ReconcileFleetRole/DeliverLogs": "as above",
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
def without(stack: StackUnderTest, role: str, sid: str) -> Iterator[None]:
    """The running stack, with one statement of one role taken away."""
    role_name = stack.resource(role)
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


def deploy(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    return lambda: stack.drop(adapter, good_tarball(seed=100))


def deploy_what_fails(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    stack.cloud.behave(adapters_ignored=True)
    return lambda: stack.drop(adapter, good_tarball(seed=101))


def deploy_onto_a_full_endpoint(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    stack.cloud.behave(components_per_endpoint=0)
    return lambda: stack.drop(adapter, good_tarball(seed=102))


def deploy_where_a_standby_makes_room(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    standby = stack.drop(f"{adapter}.old", good_tarball(seed=112)).output["component"]
    stack.drop(f"{adapter}.old", good_tarball(seed=113))
    stack.dynamodb.update_item(
        TableName=stack.outputs["RegistryTable"],
        Key={"adapter": {"S": f"{adapter}.old"}, "record": {"S": "state"}},
        UpdateExpression="SET components.#name.replaced_at = :at",
        ExpressionAttributeNames={"#name": standby},
        ExpressionAttributeValues={":at": {"N": "1"}},
    )
    return deploy_onto_a_full_endpoint(stack, adapter)


def read_what_vanished(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    with stack.rules_disabled("AdapterUploaded", "AdapterDeleted"):
        version = stack.upload(adapter, good_tarball(seed=103))
        current = stack.upload(adapter, good_tarball(seed=104))
        stack.s3.delete_object(Bucket=stack.uploads, Key=f"adapters/{adapter}.tar.gz", VersionId=version)
    assert current
    return lambda: stack.start(stack.event(adapter, version, "0A"))


def claim_what_was_deleted(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    with stack.rules_disabled("AdapterUploaded", "AdapterDeleted"):
        version = stack.upload(adapter, good_tarball(seed=103))
        stack.remove(adapter)
    return lambda: stack.start(stack.event(adapter, version, "0A"))


def reconcile(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    stack.drop(adapter, good_tarball(seed=105))
    stack.settle()
    return stack.reconcile


def reconcile_one(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    stack.drop(adapter, good_tarball(seed=105))
    stack.settle()
    return lambda: stack.reconcile(adapter=adapter)


def remove(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    stack.drop(adapter, good_tarball(seed=106))
    stack.settle()
    with stack.rules_disabled("AdapterDeleted"):
        stack.remove(adapter)
    return lambda: stack.reconcile(adapter=adapter)


def retire(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    stack.drop(adapter, good_tarball(seed=107))
    stack.drop(adapter, good_tarball(seed=108))
    stack.settle()

    def is_over() -> bool:
        entries = stack.registry(adapter)["components"]["M"].values()
        [until] = [int(entry["M"]["until"]["N"]) for entry in entries if entry["M"]["state"]["S"] == "standby"]
        return time.time() > until

    eventually(is_over, "the end of the grace period")
    return lambda: stack.reconcile(adapter=adapter)


def heal(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    component = stack.drop(adapter, good_tarball(seed=109)).output["component"]
    stack.settle()
    stack.sagemaker.delete_inference_component(InferenceComponentName=component)
    eventually(lambda: stack.components(adapter) == {}, "its deletion")
    return lambda: stack.reconcile(adapter=adapter)


def retry(stack: StackUnderTest, adapter: str) -> Callable[[], Execution]:
    stack.cloud.behave(components_per_endpoint=0)
    stack.drop(adapter, good_tarball(seed=110))
    stack.cloud.behave(components_per_endpoint=None)
    stack.settle()
    # There is room when fewer stand than did: another one goes.
    extra = stack.drop(f"{adapter}.leaves", good_tarball(seed=111)).output["component"]
    count = len(stack.sagemaker.list_inference_components(MaxResults=100)["InferenceComponents"])
    assert count > 1
    key = {"adapter": {"S": adapter}, "record": {"S": stack.newest_record(adapter)}}
    stack.dynamodb.update_item(
        TableName=stack.outputs["RegistryTable"],
        Key=key,
        UpdateExpression="SET full_at = :count",
        ExpressionAttributeValues={":count": {"N": str(count + 1)}},
    )
    assert extra
    return lambda: stack.reconcile(adapter=adapter)


SCENARIOS: dict[str, Callable[[StackUnderTest, str], Callable[[], Execution]]] = {
    "ClaimUploadFunctionRole/TellMissingFromForbidden": claim_what_was_deleted,
    "ValidateAdapterFunctionRole/TellMissingFromForbidden": read_what_vanished,
    "CreateComponentFunctionRole/FindOldStandbys": deploy_onto_a_full_endpoint,
    "CreateComponentFunctionRole/ListComponents": deploy_onto_a_full_endpoint,
    "CreateComponentFunctionRole/DeleteOldStandbys": deploy_where_a_standby_makes_room,
    "CleanUpComponentFunctionRole/GiveUpInRegistry": deploy_what_fails,
    "CleanUpComponentFunctionRole/SeeWhetherItIsGone": deploy_what_fails,
    "CleanUpComponentFunctionRole/DeleteOwnComponents": deploy_what_fails,
    "CleanUpComponentFunctionRole/CountComponents": deploy_onto_a_full_endpoint,
    "PlanRepairsFunctionRole/ReadRegistry": reconcile,
    "PlanRepairsFunctionRole/SeeWhatIsCurrent": reconcile_one,
    "PlanRepairsFunctionRole/ListUploads": reconcile,
    "PlanRepairsFunctionRole/ListComponents": reconcile,
    "PlanRepairsFunctionRole/LookAtComponents": reconcile,
    "PlanRepairsFunctionRole/ListExecutions": reconcile,
    "PlanRepairsFunctionRole/LookAtExecutions": reconcile_one,
    "RepairAdapterFunctionRole/RepairRegistry": remove,
    "RepairAdapterFunctionRole/CopyUploadsOntoThemselves": retry,
    "RepairAdapterFunctionRole/TellMissingFromForbidden": remove,
    "RepairAdapterFunctionRole/LookAtComponents": remove,
    "RepairAdapterFunctionRole/DeleteOwnComponents": retire,
    "RepairAdapterFunctionRole/LookAtExecutions": remove,
    "RepairAdapterFunctionRole/StartHealing": heal,
    "ReconcileFleetRole/InvokeStates": reconcile,
}


@pytest.mark.parametrize("statement", [one for one in statements() if one not in NOT_ENFORCED_LOCALLY])
def test_every_statement_is_needed(stack: StackUnderTest, statement: str) -> None:
    role, sid = statement.split("/")
    act = SCENARIOS.get(statement, deploy)(stack, f"{role}.{sid}")
    with without(stack, role, sid):
        execution = act()
    assert (execution.status, execution.error) in [
        ("FAILED", "DeploymentFailed"),
        ("FAILED", "UploadWaiting"),
        ("FAILED", "OutcomeNotReported"),
        ("FAILED", "FleetNotPlanned"),
        ("FAILED", "RepairsFailed"),
    ]
    refusals = [json.dumps(event, default=str) for event in execution.events if "Failed" in event["type"]]
    # HeadObject has no body, so its refusal is a bare 403.
    words = ("AccessDenied", "not authorized", "Forbidden")
    assert any(word in refusal for refusal in refusals for word in words)
    assert "Traceback" not in execution.cause
    assert "stackTrace" not in execution.cause


def test_an_upload_that_may_not_start_an_execution_waits_in_the_queue(stack: StackUnderTest) -> None:
    role = stack.resource("DeployAdapterAdapterUploadedRole")
    [policy] = stack.iam.list_role_policies(RoleName=role)["PolicyNames"]
    document = stack.iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"]
    stack.iam.delete_role_policy(RoleName=role, PolicyName=policy)
    try:
        version = stack.upload("never-started", good_tarball(seed=105))
        queue, sqs = stack.outputs["LostEventsQueueUrl"], stack.client("sqs")

        def lost() -> dict[str, Any] | None:
            found = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1, MaxNumberOfMessages=10).get("Messages", [])
            # Other tests lose events too.
            return next((message for message in found if version in message["Body"]), None)

        message = eventually(lost, "the lost event")
    finally:
        stack.iam.put_role_policy(RoleName=role, PolicyName=policy, PolicyDocument=json.dumps(document))
    sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    assert json.loads(message["Body"])["detail"]["object"]["version-id"] == version
