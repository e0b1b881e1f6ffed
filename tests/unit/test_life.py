"""The commands for an adapter's life, as far as no state machine need run (that: tests/local/test_life.py)."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aws.registry import Registry
from aws.turns import Turns
from loradrop.lifecycle import Outcome, UploadRecord
from loradrop_cli.main import main
from tests.adapters import good_tarball, wrapped_tarball
from tests.unit.conftest import BASE, ENDPOINT, TABLE, Resources, client, s3_event
from tests.unit.test_handlers import Attempt

STATES_ROLE = "arn:aws:iam::123456789012:role/machine"
ONLY_END = '{"StartAt": "End", "States": {"End": {"Type": "Succeed"}}}'
KEY = "adapters/acme.tar.gz"


class Shop:
    """A stack whose state machine is played by the handlers, one upload at a time."""

    def __init__(self, resources: Resources) -> None:
        self.resources, self.s3 = resources, resources.s3
        self.queue = client("sqs").create_queue(QueueName="lost")["QueueUrl"]
        self.machines = {
            name: client("stepfunctions").create_state_machine(name=name, definition=ONLY_END, roleArn=STATES_ROLE)[
                "stateMachineArn"
            ]
            for name in ("Deploy", "ReconcileFleet")
        }
        outputs = {
            "UploadUri": "s3://uploads/adapters/",
            "UploadBucketName": "uploads",
            "ReleaseBucketName": "releases",
            "RegistryTable": TABLE,
            "StateMachineArn": self.machines["Deploy"],
            "ReconcileFleetArn": self.machines["ReconcileFleet"],
            "EndpointName": ENDPOINT,
            "BaseComponentName": BASE,
            "LostEventsQueueUrl": self.queue,
        }
        template = {
            "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
            "Outputs": {key: {"Value": value} for key, value in outputs.items()},
        }
        client("cloudformation").create_stack(StackName="shop", TemplateBody=json.dumps(template))
        self._attempts = 0
        self._seen: set[str] = set()

    def push(self, body: bytes, adapter: str = "acme") -> str:
        put = self.s3.put_object(Bucket="uploads", Key=f"adapters/{adapter}.tar.gz", Body=body)
        self.deliver()
        version: str = put["VersionId"]
        return version

    def deliver(self) -> int:
        """Runs DeployAdapter for each version that has had no event yet; how many."""
        versions = self.s3.list_object_versions(Bucket="uploads", Prefix="adapters/").get("Versions", [])
        new = [one for one in reversed(versions) if one["VersionId"] not in self._seen]
        for one in new:
            self._seen.add(one["VersionId"])
            self._attempts += 1
            event = s3_event(one["Key"], one["VersionId"], f"{self._attempts:018X}", one["Size"])
            attempt = Attempt(event, f"arn:{self._attempts}")
            attempt.run("claim_upload", "validate_adapter")
            if attempt.record["validation"]["accepted"]:
                attempt.run("create_component", "smoke_test_adapter")
                attempt.run("promote_adapter" if attempt.record["smoke"]["passed"] else "clean_up_component")
            attempt.run("report_outcome")
        return len(new)

    @contextmanager
    def delivering(self) -> Iterator[None]:
        """Delivers what is uploaded meanwhile, as EventBridge does."""
        ended = threading.Event()

        def deliver() -> None:
            while not ended.wait(0.05):
                self.deliver()

        thread = threading.Thread(target=deliver)
        thread.start()
        yield
        ended.set()
        thread.join()

    def versions(self, adapter: str = "acme") -> int:
        found = self.s3.list_object_versions(Bucket="uploads", Prefix=f"adapters/{adapter}.tar.gz")
        return len(found.get("Versions", []))

    def release(self, adapter: str = "acme") -> str | None:
        live = self.resources.state(adapter).get("live")
        return live["M"]["release"]["S"] if live else None


@pytest.fixture
def shop(stack: Resources, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("LORADROP_STACK", "shop")
    monkeypatch.setattr("sys.stdin", None)
    return Shop(stack)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """The exit code of a command and what it printed; with --json its object. Every line fits 80 columns."""

    def command(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        try:
            code = main(list(words))
        except SystemExit as end:  # argparse's way
            code = int(end.code or 0)
        shown = capsys.readouterr()
        lines = [line for line in shown.out.splitlines(keepends=True) if not line.startswith('{"_aws"')]  # metrics
        if "--json" in words and lines:
            return code, json.loads("".join(lines))
        assert [line for line in lines if len(line) > 81 and not line.startswith("  ")] == []
        return code, "".join(lines) + shown.err

    return command


V1, V2 = good_tarball(seed=1), good_tarball(seed=2)


def failing(adapter: str = "acme", seed: int = 3) -> bytes:
    return good_tarball(seed=seed, smoke='{"inputs": "Hello", "expect": "what no model ever says"}')


# list


def test_each_adapter_is_listed_by_what_became_of_its_newest_upload(shop: Shop, run: Any) -> None:
    shop.push(V1, "good")
    shop.push(V1, "spoilt")
    shop.push(failing(), "spoilt")
    shop.push(wrapped_tarball(), "wrapped")
    code, listed = run("list", "--json")
    assert (code, listed["stack"], listed["next"]) == (0, "shop", None)
    found = {one["adapter"]: one for one in listed["adapters"]}
    assert {name: one["state"] for name, one in found.items()} == {
        "good": "live",
        "spoilt": "failed",
        "wrapped": "rejected",
    }
    assert found["spoilt"]["live_release"] == found["good"]["live_release"] is not None, "what was live stays live"
    assert "The smoke test failed." in found["spoilt"]["reason"]
    assert "WRAPPING_FOLDER" in found["wrapped"]["reason"]
    assert found["good"]["requester"] == "123456789012"
    code, shown = run("list")
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [
        ["good", "live"],
        ["spoilt", "failed"],
        ["wrapped", "rejected"],
    ]
    code, failed = run("list", "--failed", "--json")
    assert [one["adapter"] for one in failed["adapters"]] == ["spoilt", "wrapped"]


def test_an_upload_that_is_claimed_is_deploying_and_one_that_found_no_room_is_waiting(shop: Shop, run: Any) -> None:
    registry = Registry(client("dynamodb"), TABLE)
    upload = UploadRecord("1", "arn:x", "uploads", "adapters/busy.tar.gz", "v1", uploaded_at="2026-01-02T03:04:05Z")
    registry.claim("busy", upload, deleted=False)
    full = UploadRecord("1", "arn:y", "uploads", "adapters/full.tar.gz", "v1")
    registry.claim("full", full, deleted=False)
    registry.finish("full", full, Outcome.WAITING, summary="full could not be deployed.\nEndpointFull: no.", full_at=24)
    _, listed = run("list", "--json")
    assert [(one["adapter"], one["state"]) for one in listed["adapters"]] == [
        ("busy", "deploying"),
        ("full", "waiting"),
    ]
    assert listed["adapters"][1]["reason"] == "full at 24 components"
    assert (
        run("status", "full")[1].count("It is retried automatically when there is room, the oldest upload first.") == 1
    )


def test_a_fleet_is_listed_in_pages(shop: Shop, run: Any) -> None:
    registry = Registry(client("dynamodb"), TABLE)
    for number in range(7):
        upload = UploadRecord("1", f"arn:{number}", "uploads", "k", "v1")
        registry.claim(f"a{number}", upload, deleted=False)
    _, first = run("list", "--limit", "3", "--json")
    assert [one["adapter"] for one in first["adapters"]] == ["a0", "a1", "a2"]
    assert first["next"] == "a2"
    _, shown = run("list", "--limit", "3", "--after", "a2")
    assert "There are more:\n  loradrop list --limit 3 --after a5 --stack shop" in shown
    _, last = run("list", "--limit", "3", "--after", "a5", "--json")
    assert ([one["adapter"] for one in last["adapters"]], last["next"]) == (["a6"], None)


def test_an_empty_stack_says_so(shop: Shop, run: Any) -> None:
    assert run("list") == (0, "The stack shop has no adapters.\n")
    assert run("list", "--failed") == (0, "The stack shop has no failed adapters.\n")


# status and history


def test_the_status_of_an_adapter_says_what_is_live_and_how_it_was_proven(shop: Shop, run: Any) -> None:
    shop.push(V1)
    shop.push(V2)
    code, said = run("status", "acme", "--json")
    assert code == 0
    assert said["live"]["component"] == shop.resources.live()
    assert said["live"]["component_status"] == "InService"
    assert said["live"]["figures"]["smoke_prompts"] == 1
    assert sorted(one["state"] for one in said["components"]) == ["live", "standby"]
    assert said["running"] is None
    _, shown = run("status", "acme")
    assert shop.release() in shown
    assert "standby" in shown


def test_a_live_component_that_is_gone_is_said_to_be_healed(shop: Shop, run: Any) -> None:
    shop.push(V1)
    shop.resources.sagemaker.delete_inference_component(InferenceComponentName=shop.resources.live())
    _, shown = run("status", "acme")
    assert "The live component is broken." in shown
    assert "\n  loradrop reconcile acme --stack shop\n" in shown


def test_the_status_of_the_stack_counts_adapters_and_components(shop: Shop, run: Any) -> None:
    shop.push(V1)
    shop.push(wrapped_tarball(), "wrapped")
    code, said = run("status", "--json")
    assert code == 0
    assert said["endpoint"] == {"name": ENDPOINT, "status": "InService"}
    assert said["base"]["status"] == "InService"
    assert said["components"] == {"InService": 1}
    assert (said["adapters"]["live"], said["adapters"]["rejected"], said["adapters"]["failed"]) == (1, 1, 0)
    assert said["creates"]["waiting"] == 0
    _, shown = run("status")
    assert "1 live, 1 rejected" in shown
    assert "none waits for its turn" in shown


def test_the_status_of_the_stack_says_how_many_creates_wait_and_how_long(shop: Shop, run: Any) -> None:
    line = Turns(client("dynamodb"), TABLE, ENDPOINT, 0.01)
    for _ in range(3):
        line.wait(None)
    _, said = run("status", "--json")
    assert said["creates"]["waiting"] == 2
    assert 100 < said["creates"]["last_turn_in_seconds"] <= 200
    assert "2 wait for their turn" in run("status")[1]


def test_the_history_has_every_upload_and_where_copies_come_from(shop: Shop, run: Any) -> None:
    first = shop.push(V1)
    shop.push(failing())
    assert run("retry", "acme", "--timeout", "0")[0] == 3
    shop.deliver()
    code, said = run("history", "acme", "--json")
    assert code == 0
    assert [one["outcome"] for one in said["uploads"]] == ["failed", "failed", "deployed"]
    copy, failed, deployed = said["uploads"]
    assert (copy["repeats"], copy["repeats_because"]) == (failed["version_id"], "tried again, since it was failed")
    assert (deployed["version_id"], deployed["live"], deployed["requester"]) == (first, True, "123456789012")
    assert deployed["figures"]["smoke_prompts"] == 1
    _, shown = run("history", "acme")
    assert shown.count("failed") >= 2
    assert "deployed *" in shown
    assert len(run("history", "acme", "--limit", "1", "--json")[1]["uploads"]) == 1


# rollback


def test_a_rollback_copies_the_release_that_was_live_before(shop: Shop, run: Any) -> None:
    first = shop.push(V1)
    release = shop.release()
    shop.push(V2)
    code, said = run("rollback", "acme", "--timeout", "0", "--json")
    assert code == 3, "its deployment was not awaited"
    assert "loradrop status acme --watch" in said["message"]
    current = shop.s3.get_object(Bucket="uploads", Key=KEY)
    assert current["Body"].read() == V1
    assert current["Metadata"]["loradrop-repeats"] == first
    assert said["version_id"] == current["VersionId"]
    shop.deliver()
    assert shop.release() == release
    assert run("rollback", "acme", "--to", release[:8])[1].startswith(f"Release {release} of acme\nis live already")
    assert shop.versions() == 3


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_rollback_goes_to_the_release_that_is_named(shop: Shop, run: Any, is_kept: bool) -> None:
    shop.push(V1)
    release = str(shop.release())
    shop.push(V2)
    shop.push(good_tarball(seed=4))
    if not is_kept:  # then the upload's own version serves
        shop.s3.delete_object(Bucket="releases", Key=f"releases/acme/{release}.tar.gz")
    run("rollback", "acme", "--to", release[:10], "--timeout", "0")
    shop.deliver()
    assert shop.release() == release


def test_a_removed_adapter_is_brought_back(shop: Shop, run: Any) -> None:
    shop.push(V1)
    shop.s3.delete_object(Bucket="uploads", Key=KEY)
    run("rollback", "acme", "--to", str(shop.release()))
    remove(shop)
    assert shop.release() is None
    run("rollback", "acme", "--timeout", "0")
    assert shop.s3.get_object(Bucket="uploads", Key=KEY)["Body"].read() == V1


def remove(shop: Shop) -> None:
    """As ReconcileFleet does it."""
    registry = Registry(client("dynamodb"), TABLE)
    removal = UploadRecord("F" * 40, "arn:removal", "uploads", KEY, "")
    registry.remove("acme", removal, now=0, grace_seconds=100)


@pytest.mark.parametrize(
    ("release", "said"),
    [
        (None, "No other release of acme was ever live"),
        ("abc", "is less than 4 characters"),
        ("abcd", "Release 'abcd' of acme was never live. Releases that were live: "),
    ],
)
def test_a_release_that_there_is_not_is_explained(shop: Shop, run: Any, release: str | None, said: str) -> None:
    shop.push(V1)
    code, shown = run("rollback", "acme", *(["--to", release] if release else []))
    assert code == 2
    assert said in shown
    assert shop.versions() == 1


# remove


def test_a_removal_is_a_delete_marker_and_is_followed_to_its_end(shop: Shop, run: Any) -> None:
    shop.push(V1)
    component = shop.resources.live()

    def remove_once_deleted() -> None:
        deadline = time.monotonic() + 20
        while "DeleteMarkers" not in shop.s3.list_object_versions(Bucket="uploads", Prefix=KEY):
            assert time.monotonic() < deadline
        remove(shop)

    removing = threading.Thread(target=remove_once_deleted)
    removing.start()
    code, said = run("remove", "acme", "--yes", "--json")
    removing.join()
    assert (code, said["outcome"], said["replaced"]) == (0, "removed", component)
    assert "loradrop rollback acme" in said["message"]
    assert "DeleteMarkers" in shop.s3.list_object_versions(Bucket="uploads", Prefix=KEY)
    assert run("remove", "acme", "--yes") == (0, "acme is removed already.\n")


def test_a_removal_that_does_not_come_in_time_exits_3(shop: Shop, run: Any) -> None:
    shop.push(V1)
    code, shown = run("remove", "acme", "--yes", "--timeout", "0")
    assert code == 3
    assert "\n  loradrop reconcile acme --stack shop" in shown


def test_nothing_is_removed_without_a_yes(shop: Shop, run: Any) -> None:
    shop.push(V1)
    assert run("remove", "acme") == (2, "loradrop: To remove acme without a question, add --yes.\n")
    assert shop.s3.head_object(Bucket="uploads", Key=KEY)


def test_a_rejected_upload_of_an_adapter_that_is_not_live_is_deleted_at_once(shop: Shop, run: Any) -> None:
    shop.push(wrapped_tarball())
    code, shown = run("remove", "acme", "--yes")
    assert (code, shown) == (0, "The tarball of acme is deleted; nothing of it was live.\n")


# retry and redeploy


def test_what_failed_is_tried_again_and_the_rest_left_alone(shop: Shop, run: Any) -> None:
    shop.push(V1, "good")
    for name in ("one", "two"):
        shop.push(failing(), name)
    shop.push(wrapped_tarball(), "wrapped")
    with shop.delivering():
        code, said = run("retry", "--failed", "--json")
    assert code == 3
    assert [(one["adapter"], one["outcome"]) for one in sorted(said["adapters"], key=lambda one: one["adapter"])] == [
        ("one", "failed"),
        ("two", "failed"),
    ]
    assert {name: shop.versions(name) for name in ("good", "one", "wrapped")} == {"good": 1, "one": 2, "wrapped": 1}
    assert run("retry", "good")[1].endswith("good is live; there is nothing to retry.\n")
    assert shop.versions("good") == 1


def test_lost_events_are_started_and_what_is_none_is_left(shop: Shop, run: Any) -> None:
    event = json.dumps(s3_event(KEY, "v1", "0A"))
    deleted = json.dumps({"detail-type": "Object Deleted", "detail": {"object": {"key": KEY}}})
    for body in (event, deleted, "An execution of loradrop ended"):
        client("sqs").send_message(QueueUrl=shop.queue, MessageBody=body)
    code, said = run("retry", "--failed", "--json")
    assert code == 0
    assert said["lost_events"] == {"started": 2, "left": ["An execution of loradrop ended"]}
    for machine, given in (("Deploy", event), ("ReconcileFleet", deleted)):
        [one] = client("stepfunctions").list_executions(stateMachineArn=shop.machines[machine])["executions"]
        assert client("stepfunctions").describe_execution(executionArn=one["executionArn"])["input"] == given


def test_every_live_adapter_is_deployed_again_and_its_answers_compared(shop: Shop, run: Any) -> None:
    shop.push(V1, "one")
    shop.push(V2, "two")
    shop.push(V1, "spoilt")
    shop.push(failing(), "spoilt")
    before = {name: shop.resources.live(name) for name in ("one", "two", "spoilt")}
    with shop.delivering():
        code, said = run("redeploy", "--all", "--json")
    assert code == 3
    found = {one["adapter"]: one for one in said["adapters"]}
    for name in ("one", "two"):
        assert found[name]["outcome"] == "deployed"
        assert found[name]["replaced"] == before[name] != shop.resources.live(name)
        assert found[name]["answers"] == "the same answers"
    assert found["spoilt"]["outcome"] is None
    assert "Its newest upload is not the one that is live." in found["spoilt"]["message"]
    assert shop.resources.live("spoilt") == before["spoilt"]
    with shop.delivering():
        _, shown = run("redeploy", "one", "two")
    assert "2 of 2 done, 0 with other answers." in shown


# reconcile


def test_reconcile_starts_the_machine_for_what_it_is_asked(shop: Shop, run: Any) -> None:
    shop.push(V1)
    for words in (["--dry-run"], ["acme"]):
        run("reconcile", *words, "--timeout", "0", "--json")
    found = client("stepfunctions").list_executions(stateMachineArn=shop.machines["ReconcileFleet"])["executions"]
    inputs = [client("stepfunctions").describe_execution(executionArn=one["executionArn"])["input"] for one in found]
    assert sorted(map(json.loads, inputs), key=len) in (
        [{"dry_run": True}, {"adapter": "acme"}],
        [{"adapter": "acme"}, {"dry_run": True}],
    )


# Wrong usage


@pytest.mark.parametrize(
    "words",
    [["status"], ["remove", "--yes"], ["retry"]],
    ids=lambda words: words[0],
)
def test_a_name_that_there_is_not_is_answered_with_near_ones(shop: Shop, run: Any, words: list[str]) -> None:
    shop.push(V1, "acme-support")
    code, shown = run(*words, "acme-suport")
    assert (code, shown) == (2, "loradrop: The stack shop has no adapter 'acme-suport'. Did you mean acme-support?\n")
    code, shown = run(*words, "zzz")
    assert code == 2
    assert "\n  loradrop list --stack shop\n" in shown
    assert shop.versions("acme-support") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["retry"], "Name the adapters to retry, or give --failed for all that failed."),
        (["retry", "acme", "--failed"], "Name the adapters"),
        (["redeploy"], "Name the adapters to redeploy, or give --all for every live one."),
        (["redeploy", "acme", "--all"], "Name the adapters"),
        (["list", "--limit", "0"], "'0' is not a number of at least 1"),
        (["list", "--stack", "none"], "There is no stack 'none'"),
        (["status", "two words"], "'two words' is no adapter name"),
    ],
)
def test_wrong_usage_exits_2_with_a_sentence(shop: Shop, run: Any, words: list[str], said: str) -> None:
    code, shown = run(*words)
    assert code == 2
    assert said in shown


@pytest.mark.parametrize("command", ["list", "redeploy --all", "reconcile"])
def test_what_aws_refuses_is_a_sentence(shop: Shop, run: Any, command: str) -> None:
    client("dynamodb").delete_table(TableName=TABLE)
    client("stepfunctions").delete_state_machine(stateMachineArn=shop.machines["ReconcileFleet"])
    code, shown = run(*command.split())
    assert code == 2
    assert shown.startswith("loradrop: Could not ")
