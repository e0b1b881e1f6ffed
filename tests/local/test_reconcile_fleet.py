"""ReconcileFleet, and what must not end in silence: what operators, the network and hostile uploaders do to a stack."""

import json
from typing import Any

import pytest

from tests.adapters import good_tarball, wrapped_tarball
from tests.template import statements_of

from .conftest import StackUnderTest, eventually
from .test_deploy_adapter import CLAIMED, DEPLOYED, REJECTED
from .test_permissions import without


def outcomes(stack: StackUnderTest, adapter: str) -> list[str]:
    report = stack.report(adapter)
    return [entry["outcome"] for entry in (report["newest"], *report["earlier"])]


def is_removed(stack: StackUnderTest, adapter: str) -> bool:
    return stack.live(adapter) is None and outcomes(stack, adapter)[0] == "removed"


def test_a_healthy_fleet_is_left_alone_and_a_dry_run_only_plans(stack: StackUnderTest) -> None:
    live = stack.drop("healthy", good_tarball(seed=200)).output["component"]
    planned = stack.reconcile(dry_run=True)
    assert planned.states == ["Begin", "PlanRepairs", "IsRepairWanted", "RepairsPlanned"]
    assert not [one for one in planned.output["repairs"] if one["adapter"] == "healthy"]
    assert stack.reconcile(adapter="healthy").output == {"examined": 1, "repaired": 0}
    assert list(stack.components("healthy")) == [live]


# Removal


def test_a_tarball_that_is_deleted_takes_its_adapter_out_of_service(stack: StackUnderTest) -> None:
    first = stack.drop("deleted", good_tarball(seed=201))
    stack.remove("deleted")
    eventually(lambda: is_removed(stack, "deleted"), "the removal")
    assert stack.components("deleted"), "clients that hold its name still reach it for the grace period"
    late = stack.start(stack.event_of(first))
    assert late.output["outcome"] == "repeated"
    assert stack.live("deleted") is None

    def is_gone() -> bool:
        stack.reconcile(adapter="deleted")
        return stack.components("deleted") == {}

    eventually(is_gone, "the removal of its component")
    again = stack.drop("deleted", good_tarball(seed=201))
    assert again.states == DEPLOYED
    assert stack.live("deleted") == again.output["component"]


def test_an_event_that_comes_after_the_deletion_brings_nothing_back(stack: StackUnderTest) -> None:
    with stack.rule_disabled():
        version = stack.upload("late", good_tarball(seed=202))
    stack.remove("late")
    execution = stack.start(stack.event("late", version, "01"))
    assert execution.states == [*CLAIMED, "ReportOutcome", "HowDidItEnd", "UploadSuperseded"]
    assert "was removed after it" in execution.output["message"]
    assert stack.live("late") is None


def test_an_adapter_that_is_removed_while_it_is_deployed_does_not_go_live(stack: StackUnderTest) -> None:
    stack.cloud.behave(seconds_to_in_service=3.0)
    slow = stack.execution_of(stack.upload("withdrawn", good_tarball(seed=203)))
    eventually(lambda: stack.components("withdrawn"), "its component")
    stack.remove("withdrawn")
    assert stack.end_of(slow).states[-1] == "UploadSuperseded"
    assert stack.live("withdrawn") is None
    eventually(lambda: stack.components("withdrawn") == {}, "the removal of its component")


# Healing


def test_a_live_component_that_was_deleted_by_hand_is_healed(stack: StackUnderTest) -> None:
    broken = stack.drop("handgone", good_tarball(seed=204)).output["component"]
    stack.sagemaker.delete_inference_component(InferenceComponentName=broken)
    eventually(lambda: broken not in stack.components("handgone"), "its deletion")
    stack.reconcile(adapter="handgone")
    healed = eventually(lambda: (live := stack.live("handgone")) != broken and live, "its healing")
    assert stack.components("handgone")[str(healed)] == "InService"
    stack.settle()
    assert outcomes(stack, "handgone") == ["deployed", "deployed"]


def test_an_update_after_the_live_component_was_deleted_by_hand_is_green(stack: StackUnderTest) -> None:
    broken = stack.drop("previous", good_tarball(seed=205)).output["component"]
    stack.sagemaker.delete_inference_component(InferenceComponentName=broken)
    update = stack.drop("previous", good_tarball(seed=206))
    assert update.states == DEPLOYED
    back = stack.drop("previous", good_tarball(seed=205))
    assert back.states == DEPLOYED, "the old bytes are not barred"
    assert back.output["component"] != broken


# The registry loses an adapter


def forget(stack: StackUnderTest, adapter: str) -> None:
    """As an operator with the console would who wants to begin anew."""
    key = {"adapter": {"S": adapter}, "record": {"S": "state"}}
    stack.dynamodb.delete_item(TableName=stack.outputs["RegistryTable"], Key=key)


def test_an_update_goes_live_although_the_registry_lost_what_was_live(stack: StackUnderTest) -> None:
    stack.drop("forgotten", good_tarball(seed=230))
    forget(stack, "forgotten")
    update = stack.drop("forgotten", good_tarball(seed=231))
    assert update.states == DEPLOYED
    assert stack.live("forgotten") == update.output["component"]
    assert outcomes(stack, "forgotten") == ["deployed", "deployed"]


def test_a_deployment_whose_state_is_lost_while_it_waits_fails_and_bars_nothing(stack: StackUnderTest) -> None:
    stack.cloud.behave(seconds_to_in_service=3.0)
    attempt = stack.execution_of(stack.upload("mislaid", good_tarball(seed=232)))
    eventually(lambda: stack.components("mislaid"), "its component")
    forget(stack, "mislaid")
    lost = stack.end_of(attempt)
    assert (lost.status, lost.error) == ("FAILED", "DeploymentFailed")
    assert outcomes(stack, "mislaid") == ["failed"]
    stack.cloud.behave()
    again = stack.drop("mislaid", good_tarball(seed=232))
    assert again.states == DEPLOYED
    assert stack.components("mislaid")[again.output["component"]] == "InService"


# A full endpoint


def test_a_full_endpoint_bars_nothing_and_the_upload_is_tried_again_when_there_is_room(stack: StackUnderTest) -> None:
    other = stack.drop("leaving", good_tarball(seed=207)).output["component"]
    stack.settle()
    stack.cloud.behave(components_per_endpoint=0)
    refused = stack.drop("waiting", good_tarball(seed=208))
    assert (refused.status, refused.error) == ("FAILED", "UploadWaiting")
    assert "waits for room on the endpoint" in refused.cause
    assert outcomes(stack, "waiting") == ["waiting"]
    assert "retried automatically" in refused.cause
    assert stack.registry("waiting")["components"]["M"] == {}
    stack.cloud.behave(components_per_endpoint=None)
    stack.sagemaker.delete_inference_component(InferenceComponentName=other)
    stack.remove("leaving")
    eventually(lambda: is_removed(stack, "leaving"), "the removal of another adapter")

    def is_retried() -> bool:
        stack.reconcile()
        return stack.live("waiting") is not None

    eventually(is_retried, "the retried upload, once fewer components stand than when the endpoint was full")


# Nothing in silence


def test_an_execution_that_is_stopped_is_reported_and_leaves_nothing(stack: StackUnderTest) -> None:
    stack.cloud.behave(seconds_to_in_service=3.0)
    stopped = stack.execution_of(stack.upload("stopped", good_tarball(seed=209)))
    eventually(lambda: stack.components("stopped"), "its component")
    with stack.listening() as heard:
        stack.states.stop_execution(executionArn=stopped)

        def messages() -> list[str]:
            """From the rule on executions that end so, and from the reconciliation that it starts as well."""
            about = [
                one["Message"] for one in heard() if stopped in one["Message"] or "stopped" in one.get("Subject", "")
            ]
            return about if len(about) == 2 else []

        by_rule, by_us = sorted(eventually(messages, "both messages"), key=lambda one: "ended before" in one)
    assert f"ended as ABORTED and may not have reported: {stopped}" in by_rule
    assert "ended before it could report" in by_us
    assert stack.tags_of_current("stopped")["loradrop:outcome"] == "failed"
    assert stack.report("stopped")["newest"]["message"] == by_us

    def is_clean() -> bool:
        stack.reconcile(adapter="stopped")
        return stack.components("stopped") == {}

    eventually(is_clean, "the removal of its component")


def test_a_topic_that_refuses_leaks_nothing_and_is_reached_later(stack: StackUnderTest) -> None:
    stack.drop("silent", good_tarball(seed=210))
    with without(stack, "ReportOutcomeFunctionRole", "PublishOutcomes"):
        for seed in (211, 212):
            execution = stack.drop("silent", good_tarball(seed=seed))
            assert (execution.status, execution.error) == ("FAILED", "OutcomeNotReported")
            assert "message: " in execution.cause
        assert outcomes(stack, "silent") == ["deployed"] * 3, "the other channels have it"
        stack.settle()
    stack.reconcile(adapter="silent")
    open_uploads = stack.dynamodb.query(
        TableName=stack.outputs["RegistryTable"],
        IndexName="watched",
        KeyConditionExpression="watch = :open AND adapter = :adapter",
        ExpressionAttributeValues={":open": {"S": "open"}, ":adapter": {"S": "silent"}},
    )["Items"]
    assert open_uploads == [], "everybody has heard of everything"
    stack.settle()
    assert stack.live("silent") in stack.components("silent")


@pytest.mark.parametrize(
    "key", ["adapters/other.tgz", "adapters/other.TAR.GZ", "Adapters/other.tar.gz", "other.tar.gz", "adapters/other"]
)
def test_a_key_that_starts_nothing_says_which_would(stack: StackUnderTest, key: str) -> None:
    execution = stack.drop("", good_tarball(seed=213), key=key)
    assert execution.states == [*CLAIMED, *REJECTED]
    assert "KEY_STARTS_NOTHING" in execution.cause
    assert "adapters/other.tar.gz" in execution.cause


def test_the_stacks_own_reports_start_nothing(stack: StackUnderTest) -> None:
    stack.drop("quiet", wrapped_tarball())
    stack.settle()
    started = stack.states.list_executions(stateMachineArn=stack.machine, maxResults=1000)["executions"]
    inputs = [json.loads(stack.states.describe_execution(executionArn=one["executionArn"])["input"]) for one in started]
    keys = [one["detail"]["object"]["key"] for one in inputs if "detail" in one]
    assert keys
    assert not [key for key in keys if key.startswith("reports/")]


def test_a_key_without_a_name_and_one_with_control_characters_are_rejected_in_printable_words(
    stack: StackUnderTest,
) -> None:
    nameless = stack.drop("", good_tarball(seed=214))
    assert nameless.states == [*CLAIMED, *REJECTED]
    assert "ADAPTER_NAME_INVALID" in nameless.cause
    lying = "x\n\nacme is live: component acme-b2a5656b791a1abbf27a.\n\x1b]0;owned\x07\x1b[2J"
    execution = stack.drop(lying, b"x")
    assert execution.states == [*CLAIMED, *REJECTED]
    assert not [line for line in execution.cause.splitlines() if line.startswith("acme is live")]
    assert "\x1b" not in execution.cause


def test_an_upload_without_a_version_is_rejected_in_words(stack: StackUnderTest) -> None:
    event = stack.event("unversioned", "x", "FF" * 8)
    del event["detail"]["object"]["version-id"]
    stack.upload("unversioned", good_tarball(seed=215))
    stack.settle()
    execution = stack.start(event)
    assert execution.states == [*CLAIMED, *REJECTED]
    assert "put-bucket-versioning" in execution.cause


def test_what_fills_a_smoke_test_leaves_the_record_small(stack: StackUnderTest) -> None:
    tag = "\U000e0001"
    lines = [json.dumps({"inputs": tag * 200 + str(n), "expect": tag * 499}, ensure_ascii=False) for n in range(16)]
    execution = stack.drop("large-answers", good_tarball(seed=216, smoke="\n".join(lines)))
    assert (execution.status, execution.error) == ("FAILED", "DeploymentFailed")
    assert max(len(json.dumps(event, default=str)) for event in execution.events) < 65_536
    eventually(lambda: stack.components("large-answers") == {}, "the removal of its component")


def test_a_burst_of_worthless_uploads_does_not_hide_what_is_live(stack: StackUnderTest) -> None:
    live = stack.drop("buried", good_tarball(seed=217)).output["component"]
    versions = [stack.upload("buried", b"x%d" % number) for number in range(24)]
    for version in versions:
        stack.end_of(stack.execution_of(version))
    assert stack.live("buried") == live

    stack.settle()
    stack.reconcile(adapter="buried")
    found = outcomes(stack, "buried")
    assert (found.count("rejected"), found.count("deployed")) == (21, 1), found


# What is an uploader's, and what is another stack's


def test_an_uploaders_tags_stay(stack: StackUnderTest) -> None:
    execution = stack.drop("tagged", wrapped_tarball(), Tagging="CostCenter=42&team=nlp")
    version = stack.event_of(execution)["detail"]["object"]["version-id"]
    assert stack.tags("tagged", version) == {"CostCenter": "42", "team": "nlp", "loradrop:outcome": "rejected"}


def test_who_uploaded_is_kept(stack: StackUnderTest) -> None:
    stack.drop("whose", wrapped_tarball())
    upload = stack.report("whose")["newest"]["upload"]
    assert upload["requester"]
    assert upload["source_ip"]


def user_with(stack: StackUnderTest, role: str) -> Any:
    """SageMaker's API under exactly the policies of a function's role."""
    name = f"as-{role}"
    stack.iam.create_user(UserName=name)
    role_name = stack.resource(role)
    for policy in stack.iam.list_role_policies(RoleName=role_name)["PolicyNames"]:
        document = stack.iam.get_role_policy(RoleName=role_name, PolicyName=policy)["PolicyDocument"]
        stack.iam.put_user_policy(UserName=name, PolicyName=policy, PolicyDocument=json.dumps(document))
    key = stack.iam.create_access_key(UserName=name)["AccessKey"]
    import boto3

    session = boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name="us-east-1")
    return session.client("sagemaker", endpoint_url=stack.cloud.endpoint_url)


def test_a_component_that_exists_can_be_neither_tagged_nor_deleted_by_who_creates(stack: StackUnderTest) -> None:
    stack.drop("foreign", good_tarball(seed=218))
    [release] = [key for key in stack.released("foreign") if key.endswith(".tar.gz")]
    stack.sagemaker.create_inference_component(
        InferenceComponentName="another-stacks",
        EndpointName=stack.outputs["EndpointName"],
        Specification={
            "BaseInferenceComponentName": stack.outputs["BaseComponentName"],
            "Container": {"ArtifactUrl": f"s3://{stack.releases}/{release}"},
        },
        Tags=[{"Key": "loradrop:stack", "Value": "another-stack"}],
    )
    arn = stack.sagemaker.describe_inference_component(InferenceComponentName="another-stacks")["InferenceComponentArn"]
    creator, deleter = user_with(stack, "CreateComponentFunctionRole"), user_with(stack, "CleanUpComponentFunctionRole")
    try:
        own = next(
            statement["Condition"]
            for statement in statements_of("CleanUpComponentFunction")
            if statement["Sid"] == "DeleteOwnComponents"
        )
        assert "aws:ResourceTag/loradrop:stack" in str(own)
        with pytest.raises(Exception, match="not authorized"):
            creator.add_tags(ResourceArn=arn, Tags=[{"Key": "loradrop:stack", "Value": stack.stack_id}])
        with pytest.raises(Exception, match="not authorized"):
            deleter.delete_inference_component(InferenceComponentName="another-stacks")
        stack.reconcile()
        found = stack.sagemaker.describe_inference_component(InferenceComponentName="another-stacks")
        assert found["InferenceComponentStatus"] == "InService", "no reconciliation touches it"
    finally:
        stack.sagemaker.delete_inference_component(InferenceComponentName="another-stacks")


def test_not_even_an_administrator_writes_into_the_release_bucket(stack: StackUnderTest) -> None:
    stack.iam.create_user(UserName="administrator")
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    stack.iam.put_user_policy(UserName="administrator", PolicyName="all", PolicyDocument=json.dumps(everything))
    key = stack.iam.create_access_key(UserName="administrator")["AccessKey"]
    import boto3

    session = boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name="us-east-1")
    s3 = session.client("s3", endpoint_url=stack.cloud.endpoint_url)
    for where in ("releases/acme/x.tar.gz", "validations/x.json", "smoke/x.json", "elsewhere"):
        with pytest.raises(Exception, match="AccessDenied"):
            s3.put_object(Bucket=stack.releases, Key=where, Body=b"other bytes")
