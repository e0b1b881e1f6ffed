"""PlanRepairs and RepairAdapter against AWS, as moto and the hosting emulator play it."""

import importlib
import json
import os
import time
from datetime import timedelta
from typing import Any

import pytest
from moto.core.utils import utcnow

from local.hosting import behaving, hosting_backend
from tests.adapters import good_tarball, wrapped_tarball
from tests.unit.conftest import BASE, CONTEXT, ENDPOINT, REGION, STACK_ID, TABLE, Resources
from tests.unit.test_handlers import Attempt, deployed, released

MACHINE = os.environ["DEPLOY_ADAPTER_ARN"]
ACCOUNT = "123456789012"


class PlanContext:
    """A Lambda's context with time left."""

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds

    def __getattr__(self, name: str) -> Any:
        return getattr(CONTEXT, name)


def started(stack: Resources) -> str:
    """A running execution of DeployAdapter."""
    return str(stack.states.start_execution(stateMachineArn=MACHINE, input="{}")["executionArn"])


def plan(scope: dict[str, Any] | None = None, after: str = "", milliseconds: int = 900_000) -> dict[str, Any]:
    event = {"scope": scope or {}, "after": after}
    result: dict[str, Any] = importlib.import_module("plan_repairs").handler(event, PlanContext(milliseconds))
    json.dumps(result, allow_nan=False)
    return result


def reconcile(scope: dict[str, Any] | None = None) -> list[str]:
    """What the machine does with a plan, one adapter after the other; all that was done."""
    done = []
    for repair in plan(scope)["repairs"]:
        event = {"removed_by": "", **repair, "attempt": "arn:reconcile"}
        result = importlib.import_module("repair_adapter").handler(event, CONTEXT)
        json.dumps(result, allow_nan=False)
        done += result["done"]
        for deployment in result["reports"]:
            importlib.import_module("report_outcome").handler({"deployment": deployment}, CONTEXT)
    return done


def wanted_of(adapter: str) -> list[str]:
    return [one["repair"] for entry in plan()["repairs"] if entry["adapter"] == adapter for one in entry["wanted"]]


def versions(stack: Resources, adapter: str = "acme") -> list[dict[str, Any]]:
    listed = stack.s3.list_object_versions(Bucket="uploads", Prefix=f"adapters/{adapter}.tar.gz")
    found: list[dict[str, Any]] = listed.get("Versions", [])
    return found


def age(stack: Resources, seconds: float) -> None:
    """Lets every upload be older."""
    from moto.s3.models import s3_backends

    for bucket in s3_backends[ACCOUNT]["aws"].buckets.values():
        for key in bucket.keys.getlist("adapters/acme.tar.gz") or []:
            key.last_modified = key.last_modified - timedelta(seconds=seconds)


def test_a_healthy_fleet_needs_nothing(stack: Resources) -> None:
    for name in ("acme", "tenant/acme"):
        deployed(stack, good_tarball(), started(stack), adapter=name).run("report_outcome")
    assert plan() == {"repairs": [], "examined": 2, "counts": {}, "dry_run": False, "base_in_service": True}


def test_a_standby_goes_when_its_time_is_over(stack: Resources) -> None:
    one = deployed(stack, good_tarball(seed=1), started(stack))
    two = deployed(stack, good_tarball(seed=2), started(stack))
    two.run("report_outcome")
    one.run("report_outcome")
    stack.dynamodb.update_item(
        TableName=TABLE,
        Key={"adapter": {"S": "acme"}, "record": {"S": "state"}},
        UpdateExpression="SET components.#name.#until = :now",
        ExpressionAttributeNames={"#name": one.component, "#until": "until"},
        ExpressionAttributeValues={":now": {"N": str(int(time.time()))}},
    )
    assert reconcile() == [f"delete: {one.component} is gone"]
    assert stack.adapter_components() == {two.component: "InService"}
    assert list(stack.state()["components"]["M"]) == [two.component]


def test_a_standby_stays_within_its_grace_period(stack: Resources) -> None:
    for seed in (1, 2):
        deployed(stack, good_tarball(seed=seed), started(stack)).run("report_outcome")
    assert plan()["repairs"] == []


def test_an_execution_that_died_is_recovered_and_reported(stack: Resources) -> None:
    arn = started(stack)
    attempt = released(stack, good_tarball(), arn)
    attempt.run("create_component")
    assert plan()["repairs"] == []
    stack.states.stop_execution(executionArn=arn)
    reconcile()
    assert stack.adapter_components() == {}
    assert stack.state()["components"]["M"] == {}
    report = json.loads(stack.s3.get_object(Bucket="uploads", Key="reports/acme.json")["Body"].read())
    assert report["newest"]["outcome"] == "failed"
    assert "ended before it could report" in report["newest"]["message"]
    assert plan()["repairs"] == []


def test_one_that_died_after_its_promotion_is_reported_as_deployed(stack: Resources) -> None:
    arn = started(stack)
    attempt = deployed(stack, good_tarball(), arn)
    stack.states.stop_execution(executionArn=arn)
    reconcile()
    report = json.loads(stack.s3.get_object(Bucket="uploads", Key="reports/acme.json")["Body"].read())
    assert report["newest"]["outcome"] == "deployed"
    assert stack.live() == attempt.component


def test_a_deleted_tarball_takes_the_adapter_out_of_service(stack: Resources) -> None:
    attempt = deployed(stack, good_tarball(), started(stack))
    attempt.run("report_outcome")
    stack.s3.delete_object(Bucket="uploads", Key="adapters/acme.tar.gz")
    event = {
        "detail-type": "Object Deleted",
        "detail": {"object": {"key": "adapters/acme.tar.gz", "sequencer": "FF"}},
    }
    assert reconcile(event) == ["remove: acme is out of service"]
    assert stack.live() is None
    assert stack.adapter_components() == {attempt.component: "InService"}  # a standby for the grace period
    report = json.loads(stack.s3.get_object(Bucket="uploads", Key="reports/acme.json")["Body"].read())
    assert [report["newest"]["outcome"], report["earlier"][0]["outcome"]] == ["removed", "deployed"]
    # An event of the upload that comes late, or again, brings nothing back.
    late = stack.upload(b"x")
    stack.s3.delete_object(Bucket="uploads", Key="adapters/acme.tar.gz")
    late["detail"]["object"]["sequencer"] = "FE"
    assert "superseded" in Attempt(late, "arn:late").run("claim_upload")


def test_a_deletion_whose_event_was_lost_is_found(stack: Resources) -> None:
    deployed(stack, good_tarball(), started(stack)).run("report_outcome")
    stack.s3.delete_object(Bucket="uploads", Key="adapters/acme.tar.gz")
    assert reconcile() == ["remove: acme is out of service"]
    assert deployed(stack, good_tarball(), started(stack)).component == stack.live()


def test_a_live_component_that_was_deleted_by_hand_is_made_again(stack: Resources) -> None:
    broken = deployed(stack, good_tarball(), started(stack))
    broken.run("report_outcome")
    stack.sagemaker.delete_inference_component(InferenceComponentName=broken.component)
    [done] = reconcile()
    arn = done.removeprefix("heal: ")
    assert reconcile() == ["heal: it is being healed"]
    event = json.loads(stack.states.describe_execution(executionArn=arn)["input"])
    healing = Attempt(event, arn)
    healing.run("claim_upload", "create_component", "smoke_test_adapter", "promote_adapter")
    assert healing.run("report_outcome")["outcome"] == "deployed"
    assert stack.live() == healing.component != broken.component
    assert stack.state()["live"]["M"]["version_id"]["S"] == broken.record["upload"]["version_id"]


def test_a_healing_gives_way_to_whatever_went_live_meanwhile(stack: Resources) -> None:
    broken = deployed(stack, good_tarball(seed=1), started(stack))
    stack.sagemaker.delete_inference_component(InferenceComponentName=broken.component)
    [arn] = [one.removeprefix("heal: ") for one in reconcile() if one.startswith("heal")]
    healing = Attempt(json.loads(stack.states.describe_execution(executionArn=arn)["input"]), arn)
    healing.run("claim_upload", "create_component")
    newer = deployed(stack, good_tarball(seed=2), started(stack))
    assert "superseded" in healing.run("promote_adapter")
    assert stack.live() == newer.component


def test_an_upload_whose_event_was_lost_gets_another_with_its_tags(stack: Resources) -> None:
    stack.upload(good_tarball(), Tagging="team=nlp", Metadata={"own": "value"})
    assert plan()["repairs"] == []  # it may still come
    age(stack, 700)
    [done] = reconcile()
    assert done.startswith("repeat: ")
    newest, lost = versions(stack)
    assert newest["IsLatest"]
    pinned = {"Bucket": "uploads", "Key": "adapters/acme.tar.gz", "VersionId": newest["VersionId"]}
    assert stack.s3.get_object_tagging(**pinned)["TagSet"] == [{"Key": "team", "Value": "nlp"}]
    metadata = stack.s3.head_object(**pinned)["Metadata"]
    assert metadata["own"] == "value"
    assert metadata["loradrop-repeats"] == lost["VersionId"]


def test_a_rejected_upload_is_not_tried_again_and_again(stack: Resources) -> None:
    attempt = Attempt(stack.upload(wrapped_tarball()), started(stack))
    attempt.run("claim_upload", "validate_adapter", "report_outcome")
    age(stack, 700)
    assert plan()["repairs"] == []


def test_an_older_version_that_is_current_again_is_deployed_again(stack: Resources) -> None:
    deployed(stack, good_tarball(seed=1), started(stack)).run("report_outcome")
    newer = deployed(stack, good_tarball(seed=2), started(stack))
    newer.run("report_outcome")
    version = newer.record["upload"]["version_id"]
    stack.s3.delete_object(Bucket="uploads", Key="adapters/acme.tar.gz", VersionId=version)
    age(stack, 700)
    assert wanted_of("acme") == ["repeat"]


def test_an_upload_that_found_the_endpoint_full_is_tried_again_when_there_is_room(stack: Resources) -> None:
    other = deployed(stack, good_tarball(seed=1), started(stack), adapter="other")
    other.run("report_outcome")
    attempt = released(stack, good_tarball(seed=2), started(stack))
    with behaving(components_per_endpoint=2), pytest.raises(Exception, match="quota"):
        attempt.run("create_component")
    attempt.record["failure"] = {"Error": "EndpointFull", "Cause": "full"}
    attempt.run("clean_up_component")
    assert "retried automatically" in attempt.run("report_outcome")["message"]
    assert plan()["repairs"] == []
    stack.s3.delete_object(Bucket="uploads", Key="adapters/other.tar.gz")
    stack.sagemaker.delete_inference_component(InferenceComponentName=other.component)
    assert any(one.startswith("retry: ") for one in reconcile())
    assert len(versions(stack)) == 2


@pytest.mark.parametrize(("tag", "left"), [(STACK_ID, []), ("another-stack", ["orphan"]), (None, ["orphan"])])
def test_only_an_orphan_of_this_stacks_is_deleted(stack: Resources, tag: str | None, left: list[str]) -> None:
    stack.s3.put_object(Bucket="releases", Key="x.tar.gz", Body=good_tarball())
    stack.sagemaker.create_inference_component(
        InferenceComponentName="orphan",
        EndpointName=ENDPOINT,
        Specification={"BaseInferenceComponentName": BASE, "Container": {"ArtifactUrl": "s3://releases/x.tar.gz"}},
        Tags=[{"Key": "loradrop:stack", "Value": tag}] if tag else [],
    )
    assert plan()["repairs"] == []  # somebody may just be making it
    component = hosting_backend(ACCOUNT, REGION).inference_components["orphan"]
    component.creation_time = utcnow() - timedelta(hours=1)
    reconcile()
    assert list(stack.adapter_components()) == left


def test_an_execution_that_failed_is_looked_up_by_its_event(stack: Resources) -> None:
    event = stack.upload(good_tarball())
    arn = stack.states.start_execution(stateMachineArn=MACHINE, input=json.dumps(event))["executionArn"]
    Attempt(event, arn).run("claim_upload")
    stack.states.stop_execution(executionArn=arn)
    change = {"detail-type": "Step Functions Execution Status Change", "detail": {"executionArn": arn}}
    [done] = reconcile(change)
    assert done.startswith("recover: ")


def test_a_plan_that_does_not_fit_its_time_goes_on_behind_its_last_adapter(stack: Resources) -> None:
    for name in ("a", "b", "c"):
        deployed(stack, good_tarball(), started(stack), adapter=name).run("report_outcome")
        stack.s3.delete_object(Bucket="uploads", Key=f"adapters/{name}.tar.gz")
    planned, after = [], ""
    for _ in range(3):
        found = plan(after=after, milliseconds=1)
        planned += [one["adapter"] for one in found["repairs"]]
        after = found.get("next", "")
    assert planned == ["a", "b", "c"]
    assert after == ""


def test_a_dry_run_says_so_and_an_unknown_event_is_an_error() -> None:
    assert importlib.import_module("plan_repairs")._scope({"dry_run": True}).dry_run
    with pytest.raises(ValueError, match="Nonsense"):
        importlib.import_module("plan_repairs")._scope({"detail-type": "Nonsense"})
