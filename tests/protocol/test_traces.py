"""Sixteen ways in which the first version of the protocol went wrong, each the shortest that a model checker found.

Here they are with the real handlers, on moto and the hosting emulator; each test says what is right. T1 to T16 are the
names that docs/protocol.md uses.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from moto.core.utils import utcnow

from local.hosting import behaving, hosting_backend
from local.hosting.models import ComponentStatus
from tests.adapters import good_tarball, wrapped_tarball
from tests.unit.conftest import BASE, ENDPOINT, REGION, TABLE, Resources
from tests.unit.test_handlers import Attempt, deployed, released
from tests.unit.test_repairs import ACCOUNT, reconcile, started

FAILURE = {"Error": "States.Timeout", "Cause": ""}


def proven(stack: Resources, body: bytes, arn: str) -> Attempt:
    """An attempt that is about to be promoted."""
    attempt = released(stack, body, arn)
    attempt.run("create_component", "wait_for_in_service", "smoke_test_adapter")
    assert attempt.record["smoke"]["passed"]
    return attempt


def failed(attempt: Attempt) -> dict[str, Any]:
    """What the state machine does where a state fails: it cleans up, and reports."""
    attempt.record["failure"] = FAILURE
    attempt.run("clean_up_component")
    return attempt.run("report_outcome")


def lost_answer(attempt: Attempt, state: str) -> None:
    """The Lambda does its work, and the state machine never hears of it."""
    before = attempt.record
    attempt.run(state)
    attempt.record = before


def states_of(stack: Resources) -> dict[str, str]:
    """Component → its state in the registry."""
    components = stack.state()["components"]["M"]
    return {name: entry["M"]["state"]["S"] for name, entry in components.items()}


def outcome_of(stack: Resources, attempt: Attempt) -> Any:
    order = attempt.record["upload"]["order"]
    key = {"adapter": {"S": "acme"}, "record": {"S": f"upload#{order}"}}
    return stack.dynamodb.get_item(TableName=TABLE, Key=key)["Item"].get("outcome", {}).get("S")


def let_the_grace_period_pass(stack: Resources, *components: str) -> None:
    for name in components:
        stack.dynamodb.update_item(
            TableName=TABLE,
            Key={"adapter": {"S": "acme"}, "record": {"S": "state"}},
            UpdateExpression="SET components.#name.#until = :now",
            ExpressionAttributeNames={"#name": name, "#until": "until"},
            ExpressionAttributeValues={":now": {"N": str(int(time.time()))}},
        )


@contextmanager
def before(operation: str, happens: Callable[[], None]) -> Iterator[None]:
    """A Lambda hangs before its first call of this operation of SageMaker's, and goes on after something else happened."""
    from aws import components

    left = [happens]

    def hang(**_: Any) -> None:
        if left:
            left.pop()()

    events = components.sagemaker.meta.events
    events.register_first(f"provide-client-params.sagemaker.{operation}", hang)
    try:
        yield
    finally:
        events.unregister(f"provide-client-params.sagemaker.{operation}", hang)
    assert not left, f"{operation} was never called"


def test_t1_the_clean_up_of_a_newer_upload_of_the_same_bytes_leaves_the_olders_component(stack: Resources) -> None:
    one = proven(stack, good_tarball(), started(stack))
    two = released(stack, good_tarball(), started(stack))
    two.run("create_component", "wait_for_in_service")
    with behaving(adapters_ignored=True):
        two.run("smoke_test_adapter")
    assert not two.record["smoke"]["passed"]
    two.run("clean_up_component")
    one.run("promote_adapter")
    assert stack.live() == one.component
    assert stack.adapter_components() == {one.component: "InService"}


def test_t2_a_promotion_that_is_retried_after_a_newer_one_has_the_same_answer_and_nothing_leaks(
    stack: Resources,
) -> None:
    one = deployed(stack, good_tarball(seed=1), started(stack))
    two = proven(stack, good_tarball(seed=2), started(stack))
    lost_answer(two, "promote_adapter")
    three = deployed(stack, good_tarball(seed=3), started(stack))
    two.run("promote_adapter")
    assert two.record["promotion"]["replaced"] == one.component
    for attempt in (one, two, three):
        assert attempt.run("report_outcome")["outcome"] == "deployed"
    assert states_of(stack) == {one.component: "standby", two.component: "standby", three.component: "live"}
    let_the_grace_period_pass(stack, one.component, two.component)
    reconcile()
    assert stack.adapter_components() == {three.component: "InService"}


def test_t3_a_promotion_whose_answer_is_lost_for_good_is_reported_as_deployed(stack: Resources) -> None:
    attempt = proven(stack, good_tarball(), started(stack))
    lost_answer(attempt, "promote_adapter")
    assert failed(attempt)["outcome"] == "deployed"
    assert stack.live() == attempt.component
    assert stack.adapter_components() == {attempt.component: "InService"}


def test_t4_a_newest_upload_that_is_rejected_does_not_swallow_a_good_one_whose_event_comes_late(
    stack: Resources,
) -> None:
    good, bad = stack.upload(good_tarball()), stack.upload(wrapped_tarball())
    rejected = Attempt(bad, started(stack))
    rejected.run("claim_upload", "validate_adapter")
    assert rejected.run("report_outcome")["outcome"] == "rejected"
    late = Attempt(good, started(stack))
    late.deploy()
    assert stack.live() == late.component


def test_t5_the_claim_of_an_execution_that_died_is_ended_with_an_outcome(stack: Resources) -> None:
    event, arn = stack.upload(good_tarball()), started(stack)
    died = Attempt(event, arn)
    died.run("claim_upload")
    stack.states.stop_execution(executionArn=arn)
    again = Attempt(event, started(stack))
    assert again.run("claim_upload")["repeated_by"] == arn
    reconcile()
    assert outcome_of(stack, died) == "failed"
    assert deployed(stack, good_tarball(), started(stack)).component == stack.live()  # an upload again: it is deployed


def test_t6_a_deletion_that_gave_up_costs_the_next_upload_of_the_same_bytes_nothing(stack: Resources) -> None:
    one = proven(stack, good_tarball(), started(stack))
    one.record["failure"] = FAILURE
    with behaving(seconds_to_delete=60):
        one.run("clean_up_component")
        assert stack.adapter_components() == {one.component: "Deleting"}
        two = deployed(stack, good_tarball(), started(stack))
    assert stack.live() == two.component
    assert states_of(stack)[one.component] == "deleting"


def test_t7_a_component_that_somebody_else_made_of_the_same_bytes_is_left_alone(stack: Resources) -> None:
    attempt = released(stack, good_tarball(), started(stack))
    release = attempt.record["release"]
    stack.sagemaker.create_inference_component(
        InferenceComponentName="acme-of-somebody",
        EndpointName=ENDPOINT,
        Specification={
            "BaseInferenceComponentName": BASE,
            "Container": {"ArtifactUrl": f"s3://{release['bucket']}/{release['key']}"},
        },
    )
    attempt.run("create_component")
    failed(attempt)
    assert stack.adapter_components() == {"acme-of-somebody": "InService"}


def test_t8_an_upload_of_the_same_bytes_while_the_live_component_is_failed_makes_another_first(
    stack: Resources,
) -> None:
    one = deployed(stack, good_tarball(), started(stack))
    one.run("report_outcome")
    broken = hosting_backend(ACCOUNT, REGION).inference_components[one.component]
    broken.move_to(ComponentStatus.FAILED, "lost its host")
    two = released(stack, good_tarball(), started(stack))
    with behaving(components_per_endpoint=2), pytest.raises(Exception, match="quota"):
        two.run("create_component")
    failed(two)
    assert stack.adapter_components() == {one.component: "Failed"}  # nothing was deleted to make room for what failed
    three = deployed(stack, good_tarball(), started(stack))
    assert stack.adapter_components()[three.component] == "InService"
    assert stack.live() == three.component


def test_t9_a_create_that_comes_after_its_clean_up_is_found_and_deleted(stack: Resources) -> None:
    attempt = released(stack, good_tarball(), started(stack))
    with before("CreateInferenceComponent", lambda: failed(attempt) and None):
        late = Attempt({}, attempt.record["attempt"])
        late.record = attempt.record
        late.run("create_component")
    assert list(stack.adapter_components()) == [late.component]
    assert states_of(stack) == {}
    component = hosting_backend(ACCOUNT, REGION).inference_components[late.component]
    component.creation_time = utcnow() - timedelta(hours=1)
    reconcile()
    assert stack.adapter_components() == {}


def test_t10_an_attempt_that_was_cleaned_up_is_not_promoted_afterwards(stack: Resources) -> None:
    attempt = proven(stack, good_tarball(), started(stack))
    late = Attempt({}, attempt.record["attempt"])
    late.record = attempt.record
    assert failed(attempt)["outcome"] == "failed"
    with pytest.raises(Exception, match="given up"):
        late.run("promote_adapter")
    assert stack.live() is None
    assert stack.adapter_components() == {}


def test_t11_a_deletion_that_hangs_does_not_reach_the_component_that_serves_the_same_bytes_again(
    stack: Resources,
) -> None:
    one = deployed(stack, good_tarball(seed=1), started(stack))
    two = deployed(stack, good_tarball(seed=2), started(stack))
    for attempt in (one, two):
        attempt.run("report_outcome")
    let_the_grace_period_pass(stack, one.component)
    back: list[Attempt] = []
    with before(
        "DeleteInferenceComponent",
        lambda: back.append(deployed(stack, good_tarball(seed=1), started(stack))),
    ):
        reconcile()
    assert stack.live() == back[0].component
    assert stack.adapter_components() == {two.component: "InService", back[0].component: "InService"}


def test_t12_an_event_that_is_repeated_after_a_newer_claim_does_not_change_the_outcome(stack: Resources) -> None:
    event = stack.upload(good_tarball(seed=1))
    one = Attempt(event, started(stack))
    one.deploy()
    assert one.run("report_outcome")["outcome"] == "deployed"
    Attempt(stack.upload(good_tarball(seed=2)), started(stack)).run("claim_upload")
    again = Attempt(event, started(stack))
    again.run("claim_upload")
    assert again.run("report_outcome")["outcome"] == "repeated"
    report = json.loads(stack.s3.get_object(Bucket="uploads", Key="reports/acme.json")["Body"].read())
    assert [entry["outcome"] for entry in (report["newest"], *report["earlier"])] == ["deployed"]
    upload = one.record["upload"]
    tags = stack.s3.get_object_tagging(Bucket="uploads", Key=upload["key"], VersionId=upload["version_id"])["TagSet"]
    assert tags == [{"Key": "loradrop:outcome", "Value": "deployed"}]


def test_t13_a_repeated_event_whose_claim_fails_reports_nothing_of_the_upload_that_is_live(stack: Resources) -> None:
    event = stack.upload(good_tarball())
    one = Attempt(event, started(stack))
    one.deploy()
    one.run("report_outcome")
    again = Attempt(event, started(stack))
    again.record["failure"] = {"Error": "ProvisionedThroughputExceededException", "Cause": ""}
    assert again.run("report_outcome")["outcome"] == "repeated"
    assert outcome_of(stack, one) == "deployed"


def test_t14_the_clean_up_of_an_attempt_that_never_got_a_component_deletes_nobodys(stack: Resources) -> None:
    one = proven(stack, good_tarball(), started(stack))
    two = released(stack, good_tarball(), started(stack))
    assert failed(two)["outcome"] == "failed"
    assert stack.adapter_components() == {one.component: "InService"}
    one.run("promote_adapter")
    assert stack.live() == one.component


def test_t15_a_slower_upload_of_the_same_bytes_does_not_end_the_grace_period(stack: Resources) -> None:
    one = deployed(stack, good_tarball(seed=1), started(stack))
    slow = proven(stack, good_tarball(seed=1), started(stack))
    three = deployed(stack, good_tarball(seed=2), started(stack))
    slow.run("promote_adapter")
    assert "superseded" in slow.record
    slow.run("clean_up_component")
    assert slow.run("report_outcome")["outcome"] == "superseded"
    for attempt in (one, three):
        attempt.run("report_outcome")
    reconcile()
    assert stack.adapter_components() == {one.component: "InService", three.component: "InService"}


def test_t16_what_an_execution_replaced_is_retired_whether_it_lives_or_not(stack: Resources) -> None:
    one = deployed(stack, good_tarball(seed=1), started(stack))
    one.run("report_outcome")
    arn = started(stack)
    two = deployed(stack, good_tarball(seed=2), arn)
    stack.states.stop_execution(executionArn=arn)
    let_the_grace_period_pass(stack, one.component)
    reconcile()
    assert stack.adapter_components() == {two.component: "InService"}
    assert states_of(stack) == {two.component: "live"}
    assert outcome_of(stack, two) == "deployed"
