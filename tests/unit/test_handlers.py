"""Each handler of DeployAdapter against AWS, as moto and the hosting emulator play it."""

import importlib
import json
import time
from typing import Any

import boto3
import pytest

from local.hosting import behaving
from loradrop.deployment import MAX_RECORD_BYTES, record_bytes
from loradrop.lifecycle import CLIENT_SECONDS
from loradrop.registry_reader import RegistryReader
from tests.adapters import adapter_files, good_tarball, tarball, wrapped_tarball
from tests.unit.conftest import BASE, CONTEXT, ENDPOINT, STACK_ID, TABLE, Resources, s3_event


class Attempt:
    """One execution of DeployAdapter, a state at a time; `record` is the deployment that travels."""

    def __init__(self, event: dict[str, Any], arn: str = "arn:one") -> None:
        self.record: dict[str, Any] = {"version": 1, "attempt": arn, "event": event}

    def run(self, *states: str) -> dict[str, Any]:
        for state in states:
            result: dict[str, Any] = importlib.import_module(state).handler({"deployment": self.record}, CONTEXT)
            json.dumps(result, allow_nan=False)  # Step Functions takes plain JSON alone
            assert record_bytes(result) <= MAX_RECORD_BYTES
            if state == "report_outcome":
                return result
            self.record = result
        return self.record

    def deploy(self) -> dict[str, Any]:
        return self.run("claim_upload", "validate_adapter", "create_component", "smoke_test_adapter", "promote_adapter")

    @property
    def component(self) -> str:
        return str(self.record["component"]["name"])


def released(stack: Resources, body: bytes, arn: str = "arn:one", adapter: str = "acme") -> Attempt:
    """An attempt as far as its release."""
    attempt = Attempt(stack.upload(body, adapter=adapter), arn)
    attempt.run("claim_upload", "validate_adapter")
    assert attempt.record["validation"]["accepted"], attempt.record["validation"]
    return attempt


def deployed(stack: Resources, body: bytes, arn: str = "arn:one", adapter: str = "acme") -> Attempt:
    attempt = Attempt(stack.upload(body, adapter=adapter), arn)
    attempt.deploy()
    assert "promotion" in attempt.record, attempt.record
    return attempt


def codes(record: dict[str, Any]) -> list[str]:
    return [problem["code"] for problem in record["validation"]["problems"]]


class TestClaimUpload:
    def test_each_upload_is_claimed_by_its_attempt(self, stack: Resources) -> None:
        for body in (b"one", b"two"):
            record = Attempt(stack.upload(body), f"arn:{body!r}").run("claim_upload")
            assert not {"repeated_by", "superseded", "validation", "event"} & record.keys()

    def test_the_event_is_kept_with_who_uploaded(self, stack: Resources) -> None:
        event = stack.upload(b"x")
        upload = Attempt(event).run("claim_upload")["upload"]
        assert upload["adapter"] == "acme"
        assert upload["version_id"] == event["detail"]["object"]["version-id"]
        assert (upload["requester"], upload["source_ip"]) == ("123456789012", "192.0.2.1")
        assert upload["uploaded_at"] == "2026-01-02T03:04:05Z"

    def test_the_same_execution_may_try_again(self, stack: Resources) -> None:
        event = stack.upload(b"x")
        assert Attempt(event).run("claim_upload") == Attempt(event).run("claim_upload")

    def test_an_event_that_is_delivered_twice_is_repeated(self, stack: Resources) -> None:
        event = stack.upload(b"x")
        Attempt(event, "arn:one").run("claim_upload")
        assert Attempt(event, "arn:two").run("claim_upload")["repeated_by"] == "arn:one"

    def test_an_older_event_after_a_newer_that_is_live_is_superseded(self, stack: Resources) -> None:
        older = stack.upload(good_tarball(seed=1))
        newer = deployed(stack, good_tarball(seed=2), "arn:newer")
        superseded = Attempt(older, "arn:older").run("claim_upload")["superseded"]
        assert superseded["version_id"] == newer.record["upload"]["version_id"]

    def test_a_newer_upload_that_is_not_live_swallows_nothing(self, stack: Resources) -> None:
        older, newer = stack.upload(good_tarball()), stack.upload(wrapped_tarball())
        bad = Attempt(newer, "arn:newer")
        bad.run("claim_upload", "validate_adapter")
        assert not bad.record["validation"]["accepted"]
        assert "superseded" not in Attempt(older, "arn:older").run("claim_upload")

    def test_an_upload_that_was_deleted_since_is_superseded_by_its_removal(self, stack: Resources) -> None:
        event = stack.upload(b"x")
        stack.s3.delete_object(Bucket="uploads", Key="adapters/acme.tar.gz")
        assert Attempt(event).run("claim_upload")["superseded"]["removed"] is True

    def test_sequencers_of_unequal_length_are_compared_as_numbers(self, stack: Resources) -> None:
        event = stack.upload(good_tarball())
        first = Attempt(event | {"detail": _changed(event, sequencer="FF")})
        first.deploy()
        later = Attempt(event | {"detail": _changed(event, sequencer="100")}, "arn:two").run("claim_upload")
        assert "superseded" not in later

    @pytest.mark.parametrize(
        ("change", "code", "words"),
        [
            ({"key": "adapters/no name!.tar.gz"}, "ADAPTER_NAME_INVALID", "letters, digits"),
            ({"key": "adapters/.tar.gz"}, "ADAPTER_NAME_INVALID", "letters, digits"),
            ({"key": "adapters/acme.tgz"}, "KEY_STARTS_NOTHING", "adapters/acme.tar.gz"),
            ({"key": "Adapters/acme.tar.gz"}, "KEY_STARTS_NOTHING", "adapters/acme.tar.gz"),
            ({"key": "acme.TAR.GZ"}, "KEY_STARTS_NOTHING", "adapters/acme.tar.gz"),
            ({"key": "adapters/acme"}, "KEY_STARTS_NOTHING", "adapters/acme.tar.gz"),
            ({"size": 0}, "UPLOAD_EMPTY", "0 bytes"),
            ({"size": 1_000_001}, "UPLOAD_TOO_LARGE", "at most 1,000,000"),
            ({"version-id": None}, "UPLOAD_NOT_VERSIONED", "ersioning"),
        ],
    )
    def test_what_need_not_be_read_is_rejected(
        self, stack: Resources, change: dict[str, Any], code: str, words: str
    ) -> None:
        key = change.get("key", "adapters/acme.tar.gz")
        event = stack.upload(b"x", key=key)
        event["detail"]["object"] |= change
        attempt = Attempt(event)
        assert codes(attempt.run("claim_upload")) == [code]
        assert words in attempt.run("report_outcome")["message"]


def _changed(event: dict[str, Any], **change: Any) -> dict[str, Any]:
    return event["detail"] | {"object": event["detail"]["object"] | change}


class TestValidateAdapter:
    def test_accepted_bytes_go_to_the_release_bucket(self, stack: Resources) -> None:
        body = good_tarball(smoke='{"inputs": "a", "expect": "b"}')
        release = released(stack, body).record["release"]
        assert stack.released() == [release["manifest_key"], release["key"]]
        assert stack.s3.get_object(Bucket="releases", Key=release["key"])["Body"].read() == body
        manifest = json.loads(stack.s3.get_object(Bucket="releases", Key=release["manifest_key"])["Body"].read())
        assert manifest["smoke_prompts"] == [{"inputs": "a", "parameters": {}, "expect": "b"}]
        assert manifest["manifest"]["ranks"] == [4]

    def test_the_version_of_the_event_is_read_and_copied_not_the_newest(self, stack: Resources) -> None:
        body = good_tarball()
        attempt = Attempt(stack.upload(body))
        attempt.run("claim_upload")
        stack.upload(b"something else by now")
        release = attempt.run("validate_adapter")["release"]
        assert stack.s3.get_object(Bucket="releases", Key=release["key"])["Body"].read() == body

    def test_the_uploaders_metadata_and_tags_stay_behind(self, stack: Resources) -> None:
        attempt = Attempt(stack.upload(good_tarball(), Metadata={"a": "b"}, Tagging="c=d"))
        release = attempt.run("claim_upload", "validate_adapter")["release"]
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
    def test_a_bad_upload_leaves_nothing_in_the_release_bucket(self, stack: Resources, body: bytes, code: str) -> None:
        record = Attempt(stack.upload(body)).run("claim_upload", "validate_adapter")
        assert code in codes(record)
        assert record["validation"]["accepted"] is False
        assert "release" not in record
        assert stack.released() == []

    def test_an_upload_that_vanished_is_a_rejection(self, stack: Resources) -> None:
        event = stack.upload(good_tarball())
        attempt = Attempt(event)
        attempt.run("claim_upload")
        version = event["detail"]["object"]["version-id"]
        stack.s3.delete_object(Bucket="uploads", Key="adapters/acme.tar.gz", VersionId=version)
        assert codes(attempt.run("validate_adapter")) == ["UPLOAD_VANISHED"]

    def test_an_archived_upload_is_a_rejection(self, stack: Resources) -> None:
        attempt = Attempt(stack.upload(good_tarball(), StorageClass="GLACIER"))
        assert codes(attempt.run("claim_upload", "validate_adapter")) == ["UPLOAD_ARCHIVED"]

    def test_a_report_that_is_too_long_to_travel_lies_in_the_release_bucket(self, stack: Resources) -> None:
        names = {f"{'x' * 200}{number}.pkl": b"\x80\x04." for number in range(200)}
        attempt = Attempt(stack.upload(tarball(adapter_files() | names)))
        record = attempt.run("claim_upload", "validate_adapter")
        if "validation_report" in record:
            bucket, _, key = record["validation_report"].removeprefix("s3://").partition("/")
            whole = json.loads(stack.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
            assert len(whole["problems"]) >= len(record["validation"]["problems"])
        assert record_bytes(record) <= MAX_RECORD_BYTES


class TestCreateComponent:
    def test_it_is_made_as_sagemaker_wants_an_adapter(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        attempt.run("create_component")
        assert attempt.record["component"]["taken_over"] is False
        found = stack.sagemaker.describe_inference_component(InferenceComponentName=attempt.component)
        release, upload = attempt.record["release"], attempt.record["upload"]
        assert found["Specification"]["BaseInferenceComponentName"] == BASE
        assert found["Specification"]["Container"]["ArtifactUrl"] == f"s3://releases/{release['key']}"
        tags = stack.sagemaker.list_tags(ResourceArn=found["InferenceComponentArn"])["Tags"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {
            "loradrop:adapter": "acme",
            "loradrop:release": release["sha256"],
            "loradrop:upload": upload["version_id"],
            "loradrop:stack": STACK_ID,
        }

    def test_a_retried_create_finds_what_it_made(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        attempt.run("create_component")
        first = attempt.component
        attempt.run("create_component")
        assert attempt.component == first
        assert len(stack.adapter_components()) == 1

    def test_two_attempts_of_the_same_bytes_make_two_components(self, stack: Resources) -> None:
        one, two = released(stack, good_tarball(), "arn:one"), released(stack, good_tarball(), "arn:two")
        one.run("create_component")
        two.run("create_component")
        assert one.component != two.component

    def test_a_standby_of_the_same_release_is_taken_over(self, stack: Resources) -> None:
        first = deployed(stack, good_tarball(seed=1), "arn:one")
        deployed(stack, good_tarball(seed=2), "arn:two")
        back = deployed(stack, good_tarball(seed=1), "arn:three")
        assert back.record["component"]["taken_over"] is True
        assert back.component == first.component == stack.live()

    def test_a_standby_that_is_gone_is_not_taken_over(self, stack: Resources) -> None:
        first = deployed(stack, good_tarball(seed=1), "arn:one")
        deployed(stack, good_tarball(seed=2), "arn:two")
        stack.sagemaker.delete_inference_component(InferenceComponentName=first.component)
        back = deployed(stack, good_tarball(seed=1), "arn:three")
        assert back.record["component"]["taken_over"] is False
        assert back.component == stack.live() != first.component

    def test_a_full_endpoint_has_its_own_name(self, stack: Resources) -> None:
        deployed(stack, good_tarball(seed=1), adapter="first")
        attempt = released(stack, good_tarball())
        with behaving(components_per_endpoint=1), pytest.raises(Exception, match="quota") as caught:
            attempt.run("create_component")
        assert type(caught.value).__name__ == "EndpointFull"

    def test_on_a_full_endpoint_the_oldest_standby_makes_room_once_no_client_can_hold_it(
        self, stack: Resources
    ) -> None:
        young = [deployed(stack, good_tarball(seed=seed), f"arn:{seed}", adapter="young") for seed in (1, 2)]
        old = [deployed(stack, good_tarball(seed=seed), f"arn:{seed}", adapter="old") for seed in (3, 4)]
        attempt = released(stack, good_tarball())
        with behaving(components_per_endpoint=1):
            fault = self.fault_of(attempt)
            assert fault == "EndpointFull", "clients may hold both standbys"
            self.replaced_seconds_ago(stack, "young", young[0].component, CLIENT_SECONDS + 5)
            self.replaced_seconds_ago(stack, "old", old[0].component, CLIENT_SECONDS + 15)
            assert self.fault_of(attempt) == "RoomBeingMade"
            assert old[0].component not in stack.adapter_components()
            assert young[0].component in stack.adapter_components()
        attempt.run("create_component")
        assert {attempt.component, young[1].component, old[1].component} <= set(stack.adapter_components())

    def fault_of(self, attempt: Attempt) -> str:
        with pytest.raises(Exception, match="quota") as caught:
            attempt.run("create_component")
        return type(caught.value).__name__

    def replaced_seconds_ago(self, stack: Resources, adapter: str, component: str, seconds: int) -> None:
        stack.dynamodb.update_item(
            TableName=TABLE,
            Key={"adapter": {"S": adapter}, "record": {"S": "state"}},
            UpdateExpression="SET components.#name.replaced_at = :at",
            ExpressionAttributeNames={"#name": component},
            ExpressionAttributeValues={":at": {"N": str(int(time.time()) - seconds)}},
        )

    def test_a_throttled_create_waits_for_another_turn_and_others_behind_it(self, stack: Resources) -> None:
        attempt, other = released(stack, good_tarball()), released(stack, good_tarball(), adapter="other")
        with behaving(creates_per_second=0.001):  # the first create after a change of rate is still allowed
            deployed(stack, good_tarball(seed=2), adapter="second")
            before = RegistryReader(stack.dynamodb, TABLE).line(ENDPOINT)
            turn = attempt.run("create_component")["turn"]
            assert (turn["wait_seconds"], turn["throttles"]) == (1, 1)
            assert "component" not in attempt.record
            after = RegistryReader(stack.dynamodb, TABLE).line(ENDPOINT)
            assert after.rate < before.rate
            other.run("create_component")
            assert other.record["turn"]["ticket"] > turn["ticket"]
        attempt.run("create_component")
        assert attempt.component in stack.adapter_components()
        assert "wait_seconds" not in attempt.record["turn"]

    def test_a_create_that_is_throttled_for_ever_is_a_fault(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        with behaving(creates_per_second=0.001):
            deployed(stack, good_tarball(seed=2), adapter="second")
            attempt.run("create_component")
            attempt.record["turn"] = {"ticket": 0, "throttles": 30}
            with pytest.raises(Exception, match="Rate exceeded") as caught:
                attempt.run("create_component")
        assert type(caught.value).__name__ == "Throttled"

    def test_a_base_that_is_gone_is_refused_in_words(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        stack.sagemaker.delete_inference_component(InferenceComponentName=BASE)
        with pytest.raises(Exception, match=r"Check that both exist") as caught:
            attempt.run("create_component")
        assert type(caught.value).__name__ == "ComponentRefused"


class TestWaitForInService:
    def polled(self, attempt: Attempt, seconds_ago: float) -> dict[str, Any]:
        attempt.record["component"]["since"] -= seconds_ago
        component: dict[str, Any] = attempt.run("wait_for_in_service")["component"]
        return component

    def test_it_says_when_to_poll_again(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        with behaving(seconds_to_in_service=3600):
            attempt.run("create_component")
            polled = self.polled(attempt, 50)
            assert (polled["status"], polled["next_poll_seconds"]) == ("Creating", 5)
            with pytest.raises(Exception, match=r"still Creating after 6[0-2] s; the deadline is 60 s") as caught:
                self.polled(attempt, 10)
            assert type(caught.value).__name__ == "ComponentNotInServiceInTime"

    def test_what_is_quick_is_watched_and_a_queue_is_not(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        with behaving(seconds_to_in_service=0.3):
            attempt.run("create_component")
            attempt.record["turn"]["is_queued"] = True
            assert self.polled(attempt, 0)["status"] == "Creating"
            attempt.record["turn"]["is_queued"] = False
            attempt.record["component"]["since"] = int(time.time()) + 1
            assert self.polled(attempt, 0)["status"] == "InService"

    def test_failed_ends_at_once_with_the_reason(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        with behaving(create_fails="out of memory on the accelerator"):
            attempt.run("create_component")
            with pytest.raises(Exception, match="out of memory on the accelerator") as caught:
                self.polled(attempt, 0)
        assert type(caught.value).__name__ == "ComponentFailed"

    def test_one_that_somebody_deleted_has_failed(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        attempt.run("create_component")
        stack.sagemaker.delete_inference_component(InferenceComponentName=attempt.component)
        with pytest.raises(Exception, match="was deleted by somebody"):
            self.polled(attempt, 0)


class TestSmokeTestAdapter:
    def smoke(self, stack: Resources, smoke: str | None = None, **behaviour: Any) -> dict[str, Any]:
        attempt = released(stack, good_tarball(smoke=smoke))
        attempt.run("create_component")
        with behaving(**behaviour):
            result: dict[str, Any] = attempt.run("smoke_test_adapter")["smoke"]
            return result

    def test_the_vllm_container_is_asked_in_the_schema_that_it_has(
        self, stack: Resources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        handler = importlib.import_module("smoke_test_adapter")
        monkeypatch.setenv("CONTAINER_KIND", "vllm")
        importlib.reload(handler)
        try:
            result = self.smoke(stack)
            kept = json.loads(
                stack.s3.get_object(Bucket="releases", Key=result["answers"].partition("releases/")[2])["Body"].read()
            )
        finally:
            monkeypatch.undo()
            importlib.reload(handler)
        assert result["passed"]
        assert all(
            "log-probabilities" in one["compared_by"] or one["compared_by"] == "tokens" for one in kept["prompts"]
        )

    def answers(self, stack: Resources, result: dict[str, Any]) -> list[dict[str, Any]]:
        bucket, _, key = result["answers"].removeprefix("s3://").partition("/")
        prompts: list[dict[str, Any]] = json.loads(stack.s3.get_object(Bucket=bucket, Key=key)["Body"].read())[
            "prompts"
        ]
        return prompts

    def test_an_adapter_that_answers_differently_passes(self, stack: Resources) -> None:
        result = self.smoke(stack)
        assert result["passed"], result["summary"]
        [answer] = self.answers(stack, result)
        assert answer["inputs"] == "Hello"
        assert answer["differs"]

    def test_the_adapters_own_prompts_are_asked_instead_of_the_stacks(self, stack: Resources) -> None:
        result = self.smoke(stack, smoke='{"inputs": "mine"}')
        assert [one["inputs"] for one in self.answers(stack, result)] == ["mine"]

    def test_an_answer_that_is_not_as_expected_fails_with_both(self, stack: Resources) -> None:
        result = self.smoke(stack, smoke='{"inputs": "mine", "expect": "no model says this"}')
        assert not result["passed"]
        assert '"mine"' in result["summary"]
        assert '"no model says this"' in result["summary"]

    def test_an_adapter_that_answers_like_the_base_fails(self, stack: Resources) -> None:
        result = self.smoke(stack, adapters_ignored=True)
        assert not result["passed"]
        assert "exactly as the base does" in result["summary"]

    def test_prompts_and_answers_of_any_length_leave_the_record_small(self, stack: Resources) -> None:
        tag = "\U000e0001"
        lines = [json.dumps({"inputs": tag * 200 + str(n), "expect": tag * 499}, ensure_ascii=False) for n in range(16)]
        result = self.smoke(stack, smoke="\n".join(lines))
        assert not result["passed"]
        assert record_bytes(result) < 16_000
        assert len(self.answers(stack, result)) == 16

    @pytest.mark.parametrize("status", [424, 429, 500, 503, 530])
    def test_a_server_that_is_not_ready_is_worth_a_retry(self, stack: Resources, status: int) -> None:
        with pytest.raises(Exception, match=r"acme-\w+ answered") as caught:
            self.smoke(stack, invoke_errors={"times": 9, "status": status})
        assert type(caught.value).__name__ == "ModelNotReady"

    def test_a_request_that_is_refused_is_not(self, stack: Resources) -> None:
        with pytest.raises(Exception, match="400") as caught:
            self.smoke(stack, invoke_errors={"times": 9, "status": 400})
        assert type(caught.value).__name__ == "InvocationRefused"


class TestPromoteAdapter:
    def test_the_first_promotion_replaces_nothing(self, stack: Resources) -> None:
        attempt = deployed(stack, good_tarball())
        assert "replaced" not in attempt.record["promotion"]
        live = stack.state()["live"]["M"]
        assert live["component"]["S"] == attempt.component
        assert live["version_id"]["S"] == attempt.record["upload"]["version_id"]
        assert (live["endpoint"]["S"], live["base"]["S"]) == (ENDPOINT, BASE)

    def test_an_update_moves_the_pointer_and_keeps_the_previous_as_a_standby(self, stack: Resources) -> None:
        one = deployed(stack, good_tarball(seed=1), "arn:one")
        two = deployed(stack, good_tarball(seed=2), "arn:two")
        assert two.record["promotion"]["replaced"] == one.component
        before = two.record["promotion"]
        assert two.run("promote_adapter")["promotion"] == before
        assert stack.live() == two.component
        assert set(stack.adapter_components()) == {one.component, two.component}

    def test_an_older_upload_does_not_take_the_pointer_back(self, stack: Resources) -> None:
        older = released(stack, good_tarball(seed=1), "arn:older")
        older.run("create_component")
        newer = deployed(stack, good_tarball(seed=2), "arn:newer")
        assert "superseded" in older.run("promote_adapter")
        older.run("clean_up_component")
        assert stack.adapter_components() == {newer.component: "InService"}


class TestCleanUpComponent:
    def test_what_is_live_is_never_deleted(self, stack: Resources) -> None:
        attempt = deployed(stack, good_tarball())
        del attempt.record["promotion"]  # its answer was lost
        attempt.record["failure"] = {"Error": "Lambda.Unknown", "Cause": ""}
        record = attempt.run("clean_up_component")
        assert "failure" not in record
        assert "promotion" in record
        assert stack.adapter_components() == {attempt.component: "InService"}
        assert attempt.run("report_outcome")["outcome"] == "deployed"

    def test_only_the_attempts_own_component_is_deleted(self, stack: Resources) -> None:
        one, two = released(stack, good_tarball(), "arn:one"), released(stack, good_tarball(), "arn:two")
        one.run("create_component")
        two.run("create_component")
        one.run("clean_up_component")
        assert list(stack.adapter_components()) == [two.component]

    def test_what_is_gone_counts_as_deleted(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        attempt.run("create_component")
        stack.sagemaker.delete_inference_component(InferenceComponentName=attempt.component)
        attempt.run("clean_up_component", "clean_up_component")
        assert stack.state()["components"]["M"] == {}

    def test_an_attempt_that_made_nothing_has_nothing_to_clean_up(self, stack: Resources) -> None:
        with behaving(components_per_endpoint=0):
            attempt = released(stack, good_tarball())
            with pytest.raises(Exception, match="quota"):
                attempt.run("create_component")
        attempt.run("clean_up_component")
        assert stack.state()["components"]["M"] == {}
        assert deployed(stack, good_tarball(), "arn:again").component == stack.live()

    def test_a_given_up_attempt_makes_nothing_more(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        attempt.run("clean_up_component")
        with pytest.raises(Exception, match="given up") as caught:
            attempt.run("create_component")
        assert type(caught.value).__name__ == "ComponentLost"
        assert stack.adapter_components() == {}

    def test_a_component_that_is_being_created_is_worth_waiting_for(self, stack: Resources) -> None:
        attempt = released(stack, good_tarball())
        with behaving(seconds_to_in_service=3600):
            attempt.run("create_component")
            with pytest.raises(Exception, match="Creating") as caught:
                attempt.run("clean_up_component")
        assert type(caught.value).__name__ == "ComponentBusy"


class TestReportOutcome:
    @pytest.fixture(autouse=True)
    def heard(self, stack: Resources) -> None:
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

    def report(self, stack: Resources, adapter: str = "acme") -> dict[str, Any]:
        body = stack.s3.get_object(Bucket="uploads", Key=f"reports/{adapter}.json")["Body"].read()
        report: dict[str, Any] = json.loads(body)
        return report

    def rejected(self, stack: Resources, arn: str = "arn:one", **options: Any) -> Attempt:
        attempt = Attempt(stack.upload(wrapped_tarball(), **options), arn)
        attempt.run("claim_upload", "validate_adapter")
        return attempt

    def tags(self, stack: Resources, attempt: Attempt) -> dict[str, str]:
        upload = attempt.record["upload"]
        got = stack.s3.get_object_tagging(Bucket="uploads", Key=upload["key"], VersionId=upload["version_id"])
        return {tag["Key"]: tag["Value"] for tag in got["TagSet"]}

    def metrics(self, capsys: pytest.CaptureFixture[str]) -> set[tuple[str, str]]:
        """What was written in embedded metric format: (metric, its dimension beside the service)."""
        found = set()
        for line in capsys.readouterr().out.splitlines():
            document = json.loads(line)
            for directive in document.get("_aws", {}).get("CloudWatchMetrics", []):
                assert directive["Namespace"] == "loradrop"
                assert document["service"] == "loradrop"
                [dimensions] = directive["Dimensions"]
                [other] = {document[name] for name in dimensions if name != "service"} or {""}
                found |= {(one["Name"], other) for one in directive["Metrics"]}
        return found

    def test_outcomes_are_counted_by_code_and_by_the_tenants_that_are_named(
        self, stack: Resources, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rejected = self.rejected(stack)
        capsys.readouterr()
        rejected.run("report_outcome")
        assert self.metrics(capsys) == {
            ("AdapterRejected", ""),
            ("AdapterRejected", "acme"),
            ("Problem", "WRAPPING_FOLDER"),
        }
        live = deployed(stack, good_tarball(), adapter="nobody/x")
        capsys.readouterr()
        live.run("report_outcome")
        assert self.metrics(capsys) == {("AdapterDeployed", ""), ("AdapterDeployed", "other"), ("SecondsToLive", "")}

    def test_everybody_hears_of_a_rejection(self, stack: Resources) -> None:
        attempt = self.rejected(stack)
        summary = attempt.run("report_outcome")
        assert summary["outcome"] == "rejected"
        assert "WRAPPING_FOLDER" in summary["message"]
        newest = self.report(stack)["newest"]
        assert newest["message"] == summary["message"]
        assert newest["upload"] == attempt.record["upload"]
        assert self.tags(stack, attempt) == {"loradrop:outcome": "rejected"}
        assert [message["Message"] for message in self.messages("topic")] == [summary["message"]]
        assert [event["detail-type"] for event in self.messages("bus")] == ["Adapter Rejected"]

    def test_an_outcome_is_reported_once_and_stays_the_same(self, stack: Resources) -> None:
        attempt = self.rejected(stack)
        first = attempt.run("report_outcome")
        attempt.record["failure"] = {"Error": "Lambda.Unknown", "Cause": ""}
        assert attempt.run("report_outcome") == first
        assert len(self.messages("topic")) == 1
        assert self.report(stack)["earlier"] == []

    def test_a_repeated_event_says_nothing(self, stack: Resources) -> None:
        event = stack.upload(wrapped_tarball())
        Attempt(event, "arn:one").run("claim_upload")
        other = Attempt(event, "arn:two")
        other.run("claim_upload")
        summary = other.run("report_outcome")
        assert summary["outcome"] == "repeated"
        assert "arn:one" in summary["message"]
        assert self.messages("topic") == []

    def test_an_older_uploads_report_does_not_hide_the_newest(self, stack: Resources) -> None:
        older = stack.upload(good_tarball(seed=1))
        newer = deployed(stack, good_tarball(seed=2), "arn:newer")
        newer.run("report_outcome")
        late = Attempt(older, "arn:older")
        late.run("claim_upload")
        assert late.run("report_outcome")["outcome"] == "superseded"
        report = self.report(stack)
        assert report["newest"]["upload"] == newer.record["upload"]
        assert [entry["outcome"] for entry in report["earlier"]] == ["superseded"]

    def test_what_is_live_is_never_pushed_out_of_the_report(self, stack: Resources) -> None:
        deployed(stack, good_tarball()).run("report_outcome")
        for number in range(24):
            self.rejected(stack, f"arn:{number}").run("report_outcome")
        report = self.report(stack)
        assert [entry["outcome"] for entry in report["earlier"]] == ["rejected"] * 20 + ["deployed"]
        assert len(json.dumps(report)) < 1_000_000

    def test_the_uploaders_tags_stay(self, stack: Resources) -> None:
        attempt = self.rejected(stack, Tagging="CostCenter=42&team=nlp")
        attempt.run("report_outcome")
        assert self.tags(stack, attempt) == {"CostCenter": "42", "team": "nlp", "loradrop:outcome": "rejected"}

    def test_ten_tags_of_the_uploaders_leave_no_room_and_the_report_says_so(self, stack: Resources) -> None:
        own = {f"k{number}": "v" for number in range(10)}
        attempt = self.rejected(stack, Tagging="&".join(f"{key}={value}" for key, value in own.items()))
        attempt.run("report_outcome")
        assert self.tags(stack, attempt) == own
        assert "10 tags" in " ".join(self.report(stack)["newest"]["notes"])

    def test_a_key_of_any_characters_is_reported_in_printable_words(self, stack: Resources) -> None:
        attempt = Attempt(stack.upload(b"x", adapter="naïve\n\x1b[2Jname"))
        attempt.run("claim_upload")
        stack.s3.delete_object(Bucket="uploads", Key=attempt.record["upload"]["key"])
        summary = attempt.run("report_outcome")
        assert "\x1b" not in summary["message"]
        assert "\\u001b" in summary["message"]
        assert [message["Subject"] for message in self.messages("topic")] == [
            "loradrop: rejected: adapters/na?ve\\n\\u001b[2Jname.tar.gz"
        ]

    @pytest.mark.parametrize("garbage", [b"no json", b"[" * 100_000, b'{"newest": 1}'])
    def test_what_an_uploader_put_in_the_reports_place_is_replaced(self, stack: Resources, garbage: bytes) -> None:
        stack.s3.put_object(Bucket="uploads", Key="reports/acme.json", Body=garbage)
        self.rejected(stack).run("report_outcome")
        assert self.report(stack)["earlier"] == []

    def test_one_channel_that_refuses_does_not_keep_the_others_and_is_retried_alone(self, stack: Resources) -> None:
        attempt = self.rejected(stack)
        sns = boto3.client("sns")
        sns.delete_topic(TopicArn=sns.list_topics()["Topics"][0]["TopicArn"])
        with pytest.raises(Exception, match="message: ") as caught:
            attempt.run("report_outcome")
        assert type(caught.value).__name__ == "OutcomeNotReported"
        assert self.report(stack)["newest"]["outcome"] == "rejected"
        assert self.tags(stack, attempt) == {"loradrop:outcome": "rejected"}
        assert len(self.messages("bus")) == 1
        sns.create_topic(Name="topic")
        assert attempt.run("report_outcome")["outcome"] == "rejected"
        assert self.messages("bus") == []

    def test_a_deployment_names_what_is_live(self, stack: Resources) -> None:
        attempt = deployed(stack, good_tarball())
        summary = attempt.run("report_outcome")
        assert summary["component"] == attempt.component
        assert summary["message"].startswith("acme is live.")
        assert attempt.component in summary["message"]

    def test_what_failed_before_the_claim_is_reported_too(self, stack: Resources) -> None:
        attempt = Attempt(s3_event("adapters/acme.tar.gz", "v1", "FF"))
        attempt.record["failure"] = {"Error": "States.Timeout"}
        summary = attempt.run("report_outcome")
        assert summary["outcome"] == "failed"
        assert "States.Timeout" in summary["message"]
