"""Each handler against AWS as moto and the hosting emulator tell it."""

import importlib
import json
from typing import Any

import boto3
import pytest

from local.hosting import behaving
from tests.adapters import adapter_files, good_tarball, tarball, wrapped_tarball
from tests.unit.conftest import BASE, CONTEXT, ENDPOINT, Stack


def call(state: str, event: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = importlib.import_module(state).handler(event, CONTEXT)
    json.dumps(result, allow_nan=False)  # Step Functions takes plain JSON alone
    return result


def claim(upload: dict[str, Any], execution: str = "arn:one") -> dict[str, Any]:
    return call("claim_upload", {"upload": upload, "execution": execution})


def release_of(upload: dict[str, Any]) -> dict[str, Any]:
    result = call("validate_adapter", {"upload": upload})
    assert result["validation"]["accepted"], result["validation"]["summary"]
    release: dict[str, Any] = result["release"]
    return release


def deploy(stack: Stack, body: bytes, adapter: str = "acme") -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """An upload as far as its promotion: (upload, release, promotion)."""
    upload = stack.upload(body, adapter=adapter)
    claim(upload, execution=upload["version_id"])
    release = release_of(upload)
    call("create_component", {"upload": upload, "release": release})
    return upload, release, call("promote_adapter", {"upload": upload, "release": release})


class TestClaimUpload:
    def test_the_newest_upload_is_claimed(self, stack: Stack) -> None:
        for body in (b"one", b"two"):
            assert claim(stack.upload(body), body.decode()) == {"claim": {"decision": "claimed"}}

    def test_the_same_execution_may_try_again(self, stack: Stack) -> None:
        upload = stack.upload(b"x")
        assert claim(upload) == claim(upload)

    def test_an_event_that_is_delivered_twice_is_repeated(self, stack: Stack) -> None:
        upload = stack.upload(b"x")
        claim(upload, "arn:one")
        decision = claim(upload, "arn:two")["claim"]
        assert decision["decision"] == "repeated"
        assert decision["superseded_by"]["execution"] == "arn:one"

    def test_an_older_event_after_a_newer_is_superseded(self, stack: Stack) -> None:
        older, newer = stack.upload(b"1"), stack.upload(b"2")
        claim(newer, "arn:newer")
        decision = claim(older, "arn:older")["claim"]
        assert decision["decision"] == "superseded"
        assert decision["superseded_by"]["version_id"] == newer["version_id"]

    def test_sequencers_of_unequal_length_are_compared_as_numbers(self, stack: Stack) -> None:
        upload = stack.upload(b"1")
        claim(upload | {"sequencer": "FF"}, "arn:one")
        assert claim(upload | {"sequencer": "100"}, "arn:two")["claim"]["decision"] == "claimed"

    @pytest.mark.parametrize(
        ("change", "code", "words"),
        [
            ({"key": "adapters/no name!.tar.gz"}, "ADAPTER_NAME_INVALID", "letters, digits"),
            ({"size_bytes": 0}, "UPLOAD_EMPTY", "0 bytes"),
            ({"size_bytes": 1_000_001}, "UPLOAD_TOO_LARGE", "at most 1,000,000"),
        ],
    )
    def test_what_need_not_be_read_is_rejected(
        self, stack: Stack, change: dict[str, Any], code: str, words: str
    ) -> None:
        result = claim(stack.upload(b"x") | change)
        assert result["claim"]["decision"] == "rejected"
        assert [problem["code"] for problem in result["validation"]["problems"]] == [code]
        assert words in result["validation"]["summary"]


class TestValidateAdapter:
    def test_accepted_bytes_go_to_the_release_bucket(self, stack: Stack) -> None:
        body = good_tarball(smoke='{"inputs": "a", "expect": "b"}')
        release = release_of(stack.upload(body))
        assert stack.released() == [release["manifest_key"], release["key"]]
        assert stack.s3.get_object(Bucket="releases", Key=release["key"])["Body"].read() == body
        manifest = json.loads(stack.s3.get_object(Bucket="releases", Key=release["manifest_key"])["Body"].read())
        assert manifest["smoke_prompts"] == [{"inputs": "a", "parameters": {}, "expect": "b"}]
        assert manifest["manifest"]["ranks"] == [4]

    def test_the_version_of_the_event_is_read_and_copied_not_the_newest(self, stack: Stack) -> None:
        body = good_tarball()
        upload = stack.upload(body)
        stack.upload(b"something else by now")
        release = release_of(upload)
        assert stack.s3.get_object(Bucket="releases", Key=release["key"])["Body"].read() == body

    def test_the_uploaders_metadata_and_tags_stay_behind(self, stack: Stack) -> None:
        put = stack.s3.put_object(
            Bucket="uploads", Key="adapters/acme.tar.gz", Body=good_tarball(), Metadata={"a": "b"}, Tagging="c=d"
        )
        release = release_of(stack.upload(b"") | {"version_id": put["VersionId"]})
        assert stack.s3.head_object(Bucket="releases", Key=release["key"])["Metadata"] == {}
        assert stack.s3.get_object_tagging(Bucket="releases", Key=release["key"])["TagSet"] == []

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (wrapped_tarball(), "WRAPPING_FOLDER"),
            (b"no tarball", "NOT_GZIP"),
            (tarball(adapter_files(rank=32)), "RANK_TOO_HIGH"),
        ],
    )
    def test_a_bad_upload_leaves_nothing_in_the_release_bucket(self, stack: Stack, body: bytes, code: str) -> None:
        result = call("validate_adapter", {"upload": stack.upload(body)})
        assert code in [problem["code"] for problem in result["validation"]["problems"]]
        assert result["validation"]["accepted"] is False
        assert "release" not in result
        assert stack.released() == []

    def test_an_upload_that_vanished_is_a_rejection(self, stack: Stack) -> None:
        upload = stack.upload(good_tarball())
        stack.s3.delete_object(Bucket="uploads", Key=upload["key"], VersionId=upload["version_id"])
        result = call("validate_adapter", {"upload": upload})
        assert [problem["code"] for problem in result["validation"]["problems"]] == ["UPLOAD_VANISHED"]


class TestCreateComponent:
    def test_it_is_made_as_sagemaker_wants_an_adapter(self, stack: Stack) -> None:
        upload = stack.upload(good_tarball())
        claim(upload)
        release = release_of(upload)
        assert call("create_component", {"upload": upload, "release": release})["action"] == "created"
        found = stack.sagemaker.describe_inference_component(InferenceComponentName=release["component"])
        assert found["Specification"]["BaseInferenceComponentName"] == BASE
        assert found["Specification"]["Container"]["ArtifactUrl"] == f"s3://releases/{release['key']}"
        tags = stack.sagemaker.list_tags(ResourceArn=found["InferenceComponentArn"])["Tags"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {
            "loradrop:adapter": "acme",
            "loradrop:release": release["sha256"],
            "loradrop:upload": upload["version_id"],
            "loradrop:stack": "stack",
        }

    def test_a_retried_create_adopts_what_it_made(self, stack: Stack) -> None:
        upload = stack.upload(good_tarball())
        claim(upload)
        event = {"upload": upload, "release": release_of(upload)}
        call("create_component", event)
        assert call("create_component", event)["action"] == "adopted"
        assert len(stack.adapter_components()) == 1

    def test_one_left_failed_is_replaced(self, stack: Stack) -> None:
        upload = stack.upload(good_tarball())
        claim(upload)
        event = {"upload": upload, "release": release_of(upload)}
        with behaving(create_fails="no room"):
            call("create_component", event)
            assert set(stack.adapter_components().values()) == {"Failed"}
        with pytest.raises(Exception, match="left Failed") as caught:
            call("create_component", event)
        assert type(caught.value).__name__ == "ComponentBusy"
        assert call("create_component", event)["action"] == "created"
        assert set(stack.adapter_components().values()) == {"InService"}

    def test_a_foreign_component_of_that_name_is_not_adopted(self, stack: Stack) -> None:
        upload = stack.upload(good_tarball())
        claim(upload)
        release = release_of(upload)
        stack.s3.put_object(Bucket="uploads", Key="other.tar.gz", Body=good_tarball(seed=9))
        stack.sagemaker.create_inference_component(
            InferenceComponentName=release["component"],
            EndpointName=ENDPOINT,
            Specification={
                "BaseInferenceComponentName": BASE,
                "Container": {"ArtifactUrl": "s3://uploads/other.tar.gz"},
            },
        )
        with pytest.raises(Exception, match="not this stack's") as caught:
            call("create_component", {"upload": upload, "release": release})
        assert type(caught.value).__name__ == "ComponentRefused"

    @pytest.mark.parametrize(
        ("behaviour", "fault"),
        [({"creates_per_second": 0.001}, "Throttled"), ({"components_per_endpoint": 1}, "ResourceLimitExceeded")],
    )
    def test_what_a_retry_can_mend_has_its_own_name(self, stack: Stack, behaviour: Any, fault: str) -> None:
        deploy(stack, good_tarball(seed=1), adapter="first")
        upload = stack.upload(good_tarball())
        claim(upload)
        event = {"upload": upload, "release": release_of(upload)}
        with behaving(**behaviour):
            if "creates_per_second" in behaviour:  # the first create after a change of rate is still allowed
                deploy(stack, good_tarball(seed=2), adapter="second")
            with pytest.raises(Exception, match=r"Rate exceeded|quota") as caught:
                call("create_component", event)
        assert type(caught.value).__name__ == fault

    def test_an_endpoint_that_does_not_exist_is_refused_in_words(self, stack: Stack, monkeypatch: Any) -> None:
        upload = stack.upload(good_tarball())
        claim(upload)
        release = release_of(upload)
        monkeypatch.setattr(importlib.import_module("create_component"), "endpoint", "nowhere")
        with pytest.raises(Exception, match=r"'nowhere'.*Check that both exist") as caught:
            call("create_component", {"upload": upload, "release": release})
        assert type(caught.value).__name__ == "ComponentRefused"


class TestWaitForInService:
    def look(self, release: dict[str, Any], since: float) -> dict[str, Any]:
        return call("wait_for_in_service", {"component": release["component"], "since": since})

    def test_it_says_when_to_look_again(self, stack: Stack) -> None:
        upload = stack.upload(good_tarball())
        claim(upload)
        release = release_of(upload)
        with behaving(seconds_to_in_service=3600):
            created = call("create_component", {"upload": upload, "release": release})
            look = self.look(release, created["since"] - 50)
            assert (look["status"], look["next_look_seconds"]) == ("Creating", 5)
            with pytest.raises(Exception, match=r"still Creating after 6[01] s; the deadline is 60 s") as caught:
                self.look(release, created["since"] - 60)
            assert type(caught.value).__name__ == "ComponentNotInServiceInTime"

    def test_failed_ends_at_once_with_the_reason(self, stack: Stack) -> None:
        upload = stack.upload(good_tarball())
        claim(upload)
        release = release_of(upload)
        with behaving(create_fails="out of memory on the accelerator"):
            created = call("create_component", {"upload": upload, "release": release})
            with pytest.raises(Exception, match="out of memory on the accelerator") as caught:
                self.look(release, created["since"])
        assert type(caught.value).__name__ == "ComponentFailed"

    def test_one_that_somebody_deleted_has_failed(self, stack: Stack) -> None:
        with pytest.raises(Exception, match="was deleted by somebody"):
            self.look({"component": "gone"}, 0)


class TestSmokeTestAdapter:
    def smoke(self, stack: Stack, smoke: str | None = None, **behaviour: Any) -> dict[str, Any]:
        _, release, _ = deploy(stack, good_tarball(smoke=smoke))
        with behaving(**behaviour):
            return call("smoke_test_adapter", {"release": release})

    def test_an_adapter_that_answers_differently_passes(self, stack: Stack) -> None:
        result = self.smoke(stack)
        assert result["passed"], result["summary"]
        assert [one["inputs"] for one in result["prompts"]] == ["Hello"]
        assert "log-probabilities" in result["prompts"][0]["compared_by"] or result["prompts"][0]["differs"]

    def test_the_adapters_own_prompts_go_before_the_stacks(self, stack: Stack) -> None:
        result = self.smoke(stack, smoke='{"inputs": "mine"}')
        assert [one["inputs"] for one in result["prompts"]] == ["mine"]

    def test_an_answer_that_is_not_as_expected_fails_with_both(self, stack: Stack) -> None:
        result = self.smoke(stack, smoke='{"inputs": "mine", "expect": "no model says this"}')
        assert not result["passed"]
        assert "'mine'" in result["summary"]
        assert "'no model says this'" in result["summary"]

    def test_an_adapter_that_answers_like_the_base_fails(self, stack: Stack) -> None:
        result = self.smoke(stack, adapters_ignored=True)
        assert not result["passed"]
        assert "exactly as the base does" in result["summary"]

    @pytest.mark.parametrize("status", [424, 429, 500, 503, 530])
    def test_a_server_that_is_not_ready_is_worth_a_retry(self, stack: Stack, status: int) -> None:
        with pytest.raises(Exception, match=r"acme-\w+ answered") as caught:
            self.smoke(stack, invoke_errors={"times": 9, "status": status})
        assert type(caught.value).__name__ == "ModelNotReady"

    def test_a_request_that_is_refused_is_not(self, stack: Stack) -> None:
        with pytest.raises(Exception, match="400") as caught:
            self.smoke(stack, invoke_errors={"times": 9, "status": 400})
        assert type(caught.value).__name__ == "InvocationRefused"


class TestPromoteAndDelete:
    def delete(self, upload: dict[str, Any], component: str) -> bool:
        return bool(call("delete_component", {"upload": upload, "component": component})["deleted"])

    def test_the_first_promotion_replaces_nothing(self, stack: Stack) -> None:
        upload, release, promotion = deploy(stack, good_tarball())
        assert (promotion["promoted"], promotion["previous_component"]) == (True, None)
        live = stack.registry_item()["live"]["M"]
        assert live["component"]["S"] == release["component"]
        assert live["version_id"]["S"] == upload["version_id"]

    def test_an_update_moves_the_pointer_and_retires_the_previous(self, stack: Stack) -> None:
        _, one, _ = deploy(stack, good_tarball(seed=1))
        upload, two, promotion = deploy(stack, good_tarball(seed=2))
        assert promotion["previous_component"] == one["component"]
        again = call("promote_adapter", {"upload": upload, "release": two})
        assert (again["promoted"], again["previous_component"]) == (True, one["component"])
        assert self.delete(upload, one["component"])
        assert stack.adapter_components() == {two["component"]: "InService"}
        assert list(stack.registry_item()["components"]["M"]) == [two["component"]]

    def test_an_older_upload_does_not_take_the_pointer_back(self, stack: Stack) -> None:
        older = stack.upload(good_tarball(seed=1))
        claim(older, "older")
        release = release_of(older)
        call("create_component", {"upload": older, "release": release})
        _, newer, _ = deploy(stack, good_tarball(seed=2))
        assert call("promote_adapter", {"upload": older, "release": release})["promoted"] is False
        assert self.delete(older, release["component"])
        assert stack.adapter_components() == {newer["component"]: "InService"}

    def test_what_is_live_is_never_deleted(self, stack: Stack) -> None:
        upload, release, _ = deploy(stack, good_tarball())
        assert not self.delete(upload, release["component"])
        assert stack.adapter_components() == {release["component"]: "InService"}

    def test_what_a_newer_upload_of_the_same_content_wants_is_kept(self, stack: Stack) -> None:
        older = stack.upload(good_tarball())
        claim(older, "older")
        release = release_of(older)
        call("create_component", {"upload": older, "release": release})
        newer = stack.upload(good_tarball())
        claim(newer, "newer")
        assert release_of(newer)["component"] == release["component"]
        call("create_component", {"upload": newer, "release": release})
        assert not self.delete(older, release["component"])
        assert self.delete(newer, release["component"])

    def test_a_component_is_not_adopted_while_it_is_deleted(self, stack: Stack) -> None:
        upload, release, _ = deploy(stack, good_tarball(seed=1))
        deploy(stack, good_tarball(seed=2))
        registry = importlib.import_module("delete_component").registry
        assert registry.begin_delete("acme", release["component"], upload["sequencer"])
        newest = stack.upload(good_tarball(seed=1))
        claim(newest, "newest")
        with pytest.raises(Exception, match="is being deleted") as caught:
            call("create_component", {"upload": newest, "release": release})
        assert type(caught.value).__name__ == "ComponentBusy"
        assert self.delete(upload, release["component"])  # the interrupted deletion, retried
        assert call("create_component", {"upload": newest, "release": release})["action"] == "created"

    def test_what_is_gone_counts_as_deleted(self, stack: Stack) -> None:
        upload = stack.upload(good_tarball())
        claim(upload)
        release = release_of(upload)
        call("create_component", {"upload": upload, "release": release})
        stack.sagemaker.delete_inference_component(InferenceComponentName=release["component"])
        assert self.delete(upload, release["component"])
        assert not self.delete(upload, release["component"])


class TestReportOutcome:
    @pytest.fixture(autouse=True)
    def heard(self, stack: Stack) -> None:
        """A queue that hears what the topic publishes, and one for the bus."""
        self.sqs = boto3.client("sqs")
        arns = {}
        for name in ("topic", "bus"):
            url = self.sqs.create_queue(QueueName=name)["QueueUrl"]
            arns[name] = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"][
                "QueueArn"
            ]
        topic = boto3.client("sns").create_topic(Name="topic")["TopicArn"]
        boto3.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arns["topic"])
        events = boto3.client("events")
        events.put_rule(Name="all", EventPattern=json.dumps({"source": ["loradrop"]}))
        events.put_targets(Rule="all", Targets=[{"Id": "bus", "Arn": arns["bus"]}])

    def messages(self, queue: str) -> list[dict[str, Any]]:
        got = self.sqs.receive_message(
            QueueUrl=self.sqs.get_queue_url(QueueName=queue)["QueueUrl"], MaxNumberOfMessages=10
        )
        return [json.loads(message["Body"]) for message in got.get("Messages", [])]

    def report(self, outcome: str, known: dict[str, Any]) -> dict[str, Any]:
        return call("report_outcome", {"outcome": outcome, "known": known, "execution": "arn:one"})

    def rejected(self, upload: dict[str, Any]) -> dict[str, Any]:
        return {"upload": upload, "validation": {"accepted": False, "summary": "It is wrong.", "problems": []}}

    def test_everybody_hears_of_a_rejection(self, stack: Stack) -> None:
        upload = stack.upload(b"x")
        summary = self.report("rejected", self.rejected(upload))
        assert summary["outcome"] == "rejected"
        assert "It is wrong." in summary["message"]
        report = json.loads(stack.s3.get_object(Bucket="uploads", Key="reports/acme.json")["Body"].read())
        assert report["newest"]["message"] == summary["message"]
        assert report["newest"]["upload"] == upload
        tags = stack.s3.get_object_tagging(Bucket="uploads", Key=upload["key"], VersionId=upload["version_id"])
        assert tags["TagSet"] == [{"Key": "loradrop:outcome", "Value": "rejected"}]
        assert [message["Message"] for message in self.messages("topic")] == [summary["message"]]
        assert [event["detail-type"] for event in self.messages("bus")] == ["Adapter Rejected"]

    def test_an_older_uploads_report_does_not_hide_the_newest(self, stack: Stack) -> None:
        older, newer = stack.upload(b"1"), stack.upload(b"2")
        self.report("rejected", self.rejected(newer))
        self.report("superseded", {"upload": older, "claim": {"superseded_by": {"version_id": newer["version_id"]}}})
        report = json.loads(stack.s3.get_object(Bucket="uploads", Key="reports/acme.json")["Body"].read())
        assert report["newest"]["upload"] == newer
        assert [entry["outcome"] for entry in report["earlier"]] == ["superseded"]

    def test_an_upload_that_vanished_and_a_name_that_is_none_are_reported_too(self, stack: Stack) -> None:
        upload = stack.upload(b"x", adapter="naïve\nname")
        stack.s3.delete_object(Bucket="uploads", Key=upload["key"], VersionId=upload["version_id"])
        summary = self.report("rejected", self.rejected(upload))
        assert summary["report"] == "s3://uploads/reports/naïve\nname.json"
        assert [message["Subject"] for message in self.messages("topic")] == ["loradrop: rejected: na?ve?name"]

    @pytest.mark.parametrize("garbage", [b"no json", b"[" * 100_000, b'{"newest": 1}', b" " * 1_000_001])
    def test_what_an_uploader_put_in_the_reports_place_is_replaced(self, stack: Stack, garbage: bytes) -> None:
        stack.s3.put_object(Bucket="uploads", Key="reports/acme.json", Body=garbage)
        self.report("rejected", self.rejected(stack.upload(b"x")))
        report = json.loads(stack.s3.get_object(Bucket="uploads", Key="reports/acme.json")["Body"].read())
        assert report["earlier"] == []

    def test_a_deployment_names_what_is_live(self, stack: Stack) -> None:
        upload, release, promotion = deploy(stack, good_tarball())
        known = {
            "upload": upload,
            "release": release,
            "promotion": promotion,
            "validation": call("validate_adapter", {"upload": upload})["validation"],
            "smoke": call("smoke_test_adapter", {"release": release}),
        }
        summary = self.report("deployed", known)
        assert summary["component"] == release["component"]
        assert f"acme is live: component {release['component']}" in summary["message"]
