"""DeployAdapter from end to end: what is dropped, the states it goes through, and what is there afterwards."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.adapters import (
    Tensors,
    adapter_files,
    good_tarball,
    tarball,
    tensors_of,
    weights_file,
    wrapped_tarball,
)

from .conftest import Execution, StackUnderTest, build_and_deploy, eventually

QUESTION = "How are you?"

CLAIMED = ["Begin", "ClaimUpload", "IsUploadClaimed"]
VALIDATED = [*CLAIMED, "ValidateAdapter", "IsAdapterAccepted"]
IN_SERVICE = [*VALIDATED, "CreateComponent", "IsComponentWanted", "WaitForInService", "IsComponentInService"]
PROMOTED = [*IN_SERVICE, "SmokeTestAdapter", "IsAdapterProven", "PromoteAdapter", "IsAdapterPromoted"]
REPORTED = ["ReportOutcome", "HowDidItEnd"]
DEPLOYED = [*PROMOTED, *REPORTED, "AdapterDeployed"]
REJECTED = [*REPORTED, "AdapterRejected"]
FAILED = ["CleanUpComponent", *REPORTED, "DeploymentFailed"]


def test_a_good_tarball_goes_live(stack: StackUnderTest) -> None:
    execution = stack.drop("good", good_tarball(seed=1))
    assert execution.status == "SUCCEEDED"
    assert execution.states == DEPLOYED
    assert list(stack.components("good").values()) == ["InService"]
    component = next(iter(stack.components("good")))
    assert stack.live("good") == component
    # The execution's output is what a person wants to read, no more.
    assert execution.output["outcome"] == "deployed"
    assert execution.output["component"] == component
    assert len(json.dumps(execution.output)) < 2_000
    assert stack.ask(component, QUESTION) != stack.ask(stack.outputs["BaseComponentName"], QUESTION)

    report = stack.report("good")["newest"]
    assert report["outcome"] == "deployed"
    assert report["validation"]["manifest"]["ranks"] == [4]
    assert stack.report("good")["live"]["component"] == component
    assert execution.output["report"] == f"s3://{stack.uploads}/reports/good.json"
    assert stack.tags("good", report["upload"]["version_id"]) == {"loradrop:outcome": "deployed"}
    assert len(stack.released("good")) == 2, "the tarball and its manifest"


def test_the_component_is_made_as_adapters_are(stack: StackUnderTest) -> None:
    stack.drop("tenant/shape", good_tarball(seed=2))
    [component] = stack.components("tenant/shape")
    described = stack.sagemaker.describe_inference_component(InferenceComponentName=component)
    assert described["EndpointName"] == stack.outputs["EndpointName"]
    specification = described["Specification"]
    assert specification["BaseInferenceComponentName"] == stack.outputs["BaseComponentName"]
    assert specification["Container"]["ArtifactUrl"].startswith(f"s3://{stack.releases}/releases/tenant/shape/")
    tags = {
        tag["Key"]: tag["Value"]
        for tag in stack.sagemaker.list_tags(ResourceArn=described["InferenceComponentArn"])["Tags"]
    }
    assert tags["loradrop:adapter"] == "tenant/shape"
    assert tags["loradrop:stack"].split("/")[1:2] == [stack.name], "the stack's id, which a stack made anew has not"
    assert tags["loradrop:release"] in specification["Container"]["ArtifactUrl"]


def test_its_own_smoke_prompts_are_asked(stack: StackUnderTest) -> None:
    smoke = '{"inputs": "Who are you?", "expect": "/[a-z]+/"}\n{"inputs": "And where?"}\n'
    stack.drop("asked", good_tarball(seed=3, smoke=smoke))
    prompts = stack.smoke_answers("asked")
    assert [prompt["inputs"] for prompt in prompts] == ["Who are you?", "And where?"]
    assert all(prompt["differs"] for prompt in prompts)


def test_an_answer_that_its_smoke_prompts_do_not_expect_fails(stack: StackUnderTest) -> None:
    smoke = '{"inputs": "Who are you?", "expect": "I am the walrus"}\n'
    execution = stack.drop("unexpected", good_tarball(seed=4, smoke=smoke))
    assert execution.states == [*IN_SERVICE, "SmokeTestAdapter", "IsAdapterProven", *FAILED]
    assert "I am the walrus" in execution.cause
    assert_nothing_is_left(stack, "unexpected")


def test_a_wrong_structure_is_rejected(stack: StackUnderTest) -> None:
    execution = stack.drop("wrapped", wrapped_tarball())
    assert execution.states == [*VALIDATED, *REJECTED]
    assert (execution.status, execution.error) == ("FAILED", "AdapterRejected")
    report = stack.report("wrapped")["newest"]
    assert report["outcome"] == "rejected"
    assert report["message"] == execution.cause
    assert report["validation"]["problems"]
    assert "loradrop package" in execution.cause, "the command that makes a good tarball"
    assert_nothing_is_left(stack, "wrapped")
    assert stack.released("wrapped") == []


@pytest.mark.parametrize("fault", ["create_fails", "load_fails"])
def test_a_component_that_fails_is_removed_and_its_reason_reported(stack: StackUnderTest, fault: str) -> None:
    stack.cloud.behave(**{fault: "LoRA rank 32 is greater than max_lora_rank 16."})
    execution = stack.drop("failing", good_tarball(seed=5))
    assert execution.states == [*IN_SERVICE[:-1], *FAILED]
    assert (execution.status, execution.error) == ("FAILED", "DeploymentFailed")
    assert "LoRA rank 32 is greater than max_lora_rank 16." in execution.cause
    assert "Traceback" not in execution.cause
    assert stack.report("failing")["newest"]["outcome"] == "failed"
    assert_nothing_is_left(stack, "failing")


def test_an_adapter_that_answers_like_the_base_is_not_promoted(stack: StackUnderTest) -> None:
    stack.cloud.behave(adapters_ignored=True)
    execution = stack.drop("ignored", good_tarball(seed=7))
    assert execution.states == [*IN_SERVICE, "SmokeTestAdapter", "IsAdapterProven", *FAILED]
    assert "exactly as the base does" in execution.cause
    assert_nothing_is_left(stack, "ignored")


def test_a_failed_update_leaves_what_was_live(stack: StackUnderTest) -> None:
    stack.drop("kept", good_tarball(seed=8))
    live = stack.live("kept")
    stack.cloud.behave(adapters_ignored=True)
    execution = stack.drop("kept", good_tarball(seed=9))
    stack.cloud.behave(adapters_ignored=False)
    assert execution.error == "DeploymentFailed"
    assert live is not None
    assert f"What was live stays live: component {live}" in execution.cause
    assert stack.live("kept") == live
    eventually(lambda: stack.components("kept") == {live: "InService"}, "the removal of the second component")
    assert stack.ask(live, QUESTION) != stack.ask(stack.outputs["BaseComponentName"], QUESTION)
    report = stack.report("kept")
    assert [report["newest"]["outcome"], report["earlier"][0]["outcome"]] == ["failed", "deployed"]


def test_the_same_event_twice_does_its_work_once(stack: StackUnderTest) -> None:
    first = stack.drop("twice", good_tarball(seed=10))
    components, item = stack.components("twice"), stack.registry("twice")
    second = stack.start(stack.event_of(first))
    assert second.status == "SUCCEEDED"
    assert second.states == [*CLAIMED, *REPORTED, "EventRepeated"]
    assert second.output["outcome"] == "repeated"
    assert first.arn in second.output["message"]
    assert (stack.components("twice"), stack.registry("twice")) == (components, item)
    assert stack.report("twice")["earlier"] == []


def test_an_older_event_after_a_newer_one_is_superseded(stack: StackUnderTest) -> None:
    with stack.rule_disabled():
        older, newer = stack.upload("late", good_tarball(seed=11)), stack.upload("late", good_tarball(seed=12))
    first = stack.start(stack.event("late", newer, "0066A2"))
    live = stack.live("late")
    assert first.states == DEPLOYED
    second = stack.start(stack.event("late", older, "0066A1"))
    assert second.status == "SUCCEEDED"
    assert second.states == [*CLAIMED, *REPORTED, "UploadSuperseded"]
    assert newer in second.output["message"]
    assert stack.live("late") == live
    assert list(stack.components("late")) == [live]
    report = stack.report("late")
    assert report["newest"]["upload"]["version_id"] == newer
    assert [one["outcome"] for one in report["earlier"]] == ["superseded"]


def test_an_upload_that_is_overtaken_while_it_is_created_gives_way(stack: StackUnderTest) -> None:
    stack.cloud.behave(seconds_to_in_service=8.0)
    slow = stack.execution_of(stack.upload("raced", good_tarball(seed=13)))
    eventually(lambda: stack.components("raced"), "the first component")
    stack.cloud.behave(seconds_to_in_service=0.0)
    fast = stack.drop("raced", good_tarball(seed=14))
    assert fast.states == DEPLOYED
    overtaken = stack.end_of(slow)
    assert overtaken.status == "SUCCEEDED"
    assert overtaken.states == [*PROMOTED, "CleanUpComponent", *REPORTED, "UploadSuperseded"]
    assert stack.live("raced") == fast.output["component"]
    eventually(lambda: list(stack.components("raced")) == [stack.live("raced")], "the removal of the slow component")


def test_an_update_leaves_no_instant_without_an_answer(stack: StackUnderTest) -> None:
    stack.cloud.behave(seconds_to_in_service=1.0)
    first = stack.drop("updated", good_tarball(seed=15)).output["component"]
    answers: Counter[str] = Counter()
    failures: list[str] = []
    done = threading.Event()

    def client() -> None:
        """Resolves the live component and calls it, as an application does, again and again."""
        while not done.is_set():
            component = stack.live("updated")
            try:
                answers[f"{component}: {stack.ask(str(component), QUESTION)}"] += 1
            except Exception as error:  # noqa: BLE001 - whatever a client sees counts
                failures.append(f"{component}: {error}")

    calling = threading.Thread(target=client)
    calling.start()
    try:
        update = stack.drop("updated", good_tarball(seed=16))
    finally:
        done.set()
        calling.join()
    assert update.states == DEPLOYED
    second = update.output["component"]
    assert first in update.output["message"], "what was replaced, and that it stays for a while"
    assert failures == []
    assert {key.partition(":")[0] for key in answers} == {first, second}
    assert len(answers) == 2, "each component gives one answer, always"
    assert stack.live("updated") == second

    def retired() -> bool:
        stack.reconcile(adapter="updated")
        return list(stack.components("updated")) == [second]

    eventually(retired, "the removal of the first component, after its grace period")


def test_going_back_takes_over_the_standby(stack: StackUnderTest) -> None:
    first = stack.drop("back", good_tarball(seed=17))
    stack.drop("back", good_tarball(seed=18))
    back = stack.drop("back", good_tarball(seed=17))
    assert back.states == DEPLOYED
    assert back.output["component"] == first.output["component"] == stack.live("back")
    assert len(stack.components("back")) == 2, "and what was live stands by"
    newest = stack.report("back")["newest"]
    assert newest["component"]["taken_over"] is True
    assert stack.registry("back")["live"]["M"]["version_id"]["S"] == newest["upload"]["version_id"]


def test_what_an_attempt_left_failed_does_not_bar_the_same_bytes(stack: StackUnderTest) -> None:
    # An execution that is stopped from outside cleans nothing up; ReconcileFleet hears of it, and does.
    stack.cloud.behave(load_fails="The instance was replaced.", seconds_to_in_service=3.0)
    stopped = stack.execution_of(stack.upload("replaced", good_tarball(seed=19)))
    eventually(lambda: stack.components("replaced"), "the component")
    stack.states.stop_execution(executionArn=stopped)
    stack.cloud.behave(load_fails=None, seconds_to_in_service=0.0)
    execution = stack.drop("replaced", good_tarball(seed=19))
    assert execution.states == DEPLOYED
    stack.settle()
    eventually(lambda: list(stack.components("replaced")) == [stack.live("replaced")], "the removal of what was left")


def test_throttled_creates_take_turns_until_all_are_live(stack: StackUnderTest) -> None:
    stack.cloud.behave(creates_per_second=0.5)
    names = [f"burst-{number}" for number in range(4)]
    versions = [stack.upload(name, good_tarball(seed=20 + number)) for number, name in enumerate(names)]
    executions = [stack.end_of(stack.execution_of(version)) for version in versions]
    assert [execution.status for execution in executions] == ["SUCCEEDED"] * 4
    assert [execution.task_errors("CreateComponent") for execution in executions] == [[]] * 4, "waiting is no fault"
    waited = [entered_with(execution, "WaitForTurn") for execution in executions]
    assert any(waited)
    assert all(one["seconds"] >= 1 and one["creates_before_this_one"] >= 0 for inputs in waited for one in inputs)
    assert all(stack.live(name) in stack.components(name) for name in names)


def entered_with(execution: Execution, state: str) -> list[Any]:
    """What a state was given, each time: what the console shows of it."""
    entered = [one["stateEnteredEventDetails"] for one in execution.events if "stateEnteredEventDetails" in one]
    return [json.loads(one["input"]) for one in entered if one["name"] == state]


def test_a_cold_start_is_retried(stack: StackUnderTest) -> None:
    stack.cloud.behave(invoke_errors={"times": 1, "status": 424, "component": "cold"})
    execution = stack.drop("cold", good_tarball(seed=30))
    assert execution.states == DEPLOYED
    assert execution.task_errors("SmokeTestAdapter") == ["ModelNotReady"]


def test_a_base_that_wakes_is_waited_for(stack: StackUnderTest) -> None:
    """A base that was scaled to zero answers 400 for want of capacity until a copy of it stands."""
    stack.cloud.behave(no_capacity=True)
    attempt = stack.execution_of(stack.upload("waking", good_tarball(seed=45)))

    def is_refused() -> bool:
        return "no capacity" in str(stack.history(attempt))

    eventually(is_refused, "a smoke test that finds no capacity")
    stack.cloud.behave(no_capacity=False)
    execution = stack.end_of(attempt)
    assert execution.states == DEPLOYED
    assert set(execution.task_errors("SmokeTestAdapter")) == {"ModelNotReady"}


def test_bare_tensor_names_are_served_as_vllm_serves_them(stack: StackUnderTest) -> None:
    files = adapter_files(seed=46)
    named = tensors_of(files["adapter_model.safetensors"])
    bare = {name.removeprefix("base_model.model."): tensor for name, tensor in named.items()}
    assert not bare.keys() & named.keys()
    files["adapter_model.safetensors"] = weights_file(bare)
    assert stack.drop("bare", tarball(files)).states == DEPLOYED


def test_a_full_endpoint_says_so(stack: StackUnderTest) -> None:
    # The state machine waits minutes for a slot; the first refusal shows how it is named.
    stack.cloud.behave(components_per_endpoint=0)
    arn = stack.execution_of(stack.upload("full", good_tarball(seed=31)))

    def refused() -> list[dict[str, Any]]:
        events = stack.states.get_execution_history(executionArn=arn, maxResults=100)["events"]
        return [
            event["taskFailedEventDetails"]
            if "taskFailedEventDetails" in event
            else event["lambdaFunctionFailedEventDetails"]
            for event in events
            if {"taskFailedEventDetails", "lambdaFunctionFailedEventDetails"} & event.keys()
        ]

    first = eventually(refused, "a refused create")[0]
    stack.states.stop_execution(executionArn=arn)
    assert first["error"] == "EndpointFull"
    assert "ask AWS for a higher quota" in first["cause"]


def test_everybody_hears_of_it(stack: StackUnderTest) -> None:
    events = stack.client("events")
    events.put_rule(Name="outcomes", EventPattern='{"source": ["loradrop"]}')
    # Any target would do: the stack's topic is one that is listened to already.
    target = {"Id": "listener", "Arn": stack.outputs["NotificationTopicArn"]}
    events.put_targets(Rule="outcomes", Targets=[target])
    try:
        with stack.listening() as all_heard:
            execution = stack.drop("heard", wrapped_tarball())

            def heard() -> list[dict[str, Any]] | None:
                found = [one for one in all_heard() if "heard" in json.dumps(one)]
                return found if len(found) == 2 else None

            bodies = eventually(heard, "the message and the event")
    finally:
        events.remove_targets(Rule="outcomes", Ids=["listener"])
        events.delete_rule(Name="outcomes")
    [event] = [json.loads(body["Message"]) for body in bodies if body["Message"].startswith("{")]
    [message] = [body for body in bodies if not body["Message"].startswith("{")]
    assert message["Subject"] == "loradrop: rejected: heard"
    assert message["Message"] == execution.cause
    assert event["detail-type"] == "Adapter Rejected"
    assert event["detail"]["message"] == execution.cause


# Bad input


@pytest.mark.parametrize(
    ("adapter", "body", "words"),
    [
        ("text", b"Dear Sir or Madam, please find attached", "gzip"),
        ("empty", b"", "0 bytes"),
        ("large", bytes(64_000_001), "at most 64,000,000"),
        ("bad name!", good_tarball(seed=40), "letters, digits"),
        ("tenant//x", good_tarball(seed=40), "letters, digits"),
    ],
)
def test_a_bad_upload_is_refused_in_words(stack: StackUnderTest, adapter: str, body: bytes, words: str) -> None:
    execution = stack.drop(adapter, body)
    assert (execution.status, execution.error) == ("FAILED", "AdapterRejected")
    assert execution.states[-3:] == REJECTED
    assert words in execution.cause
    assert "Traceback" not in execution.cause
    assert stack.report(adapter)["newest"]["message"] == execution.cause
    assert_nothing_is_left(stack, adapter)
    assert stack.released(adapter) == []


def _with_weights(change: Callable[[Tensors], Any]) -> bytes:
    """A good adapter, but for what `change` does to its tensors."""
    files = adapter_files(seed=45)
    tensors = tensors_of(files["adapter_model.safetensors"])
    change(tensors)
    return tarball(files | {"adapter_model.safetensors": weights_file(tensors)})


def _renamed(tensors: Tensors) -> None:
    for name in [*tensors]:
        tensors[name.replace("model.layers", "transformer.h")] = tensors.pop(name)


def _zeroed(tensors: Tensors) -> None:
    for name, (dtype, shape, data) in tensors.items():
        if "lora_B" in name:
            tensors[name] = (dtype, shape, bytes(len(data)))


# One of each class: what is said of the archive, its structure, the config, the names, the shapes, the values, the prompts.
@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("GZIP_TRUNCATED", lambda: good_tarball(seed=45)[:-2000]),
        ("PICKLE_FILE", lambda: tarball(adapter_files(seed=45) | {"optimizer.pt": b"\x80\x04."})),
        ("WEIGHTS_FILE_MISSING", lambda: tarball({"adapter_config.json": b"{}"})),
        ("RANK_TOO_HIGH", lambda: tarball(adapter_files(seed=45, rank=32))),
        ("DORA_UNSUPPORTED", lambda: tarball(adapter_files(seed=45, use_dora=True))),
        ("MODULE_PATH_UNKNOWN", lambda: _with_weights(_renamed)),
        ("LORA_PAIR_INCOMPLETE", lambda: _with_weights(lambda tensors: tensors.pop(next(iter(tensors))))),
        ("SHAPE_MISMATCH", lambda: tarball(adapter_files(seed=45, r=8))),
        ("NO_EFFECT", lambda: _with_weights(_zeroed)),
        ("SMOKE_PROMPTS_INVALID", lambda: good_tarball(seed=45, smoke="{}\n")),
    ],
)
def test_each_class_of_problem_is_reported_by_its_code(
    stack: StackUnderTest, code: str, body: Callable[[], bytes]
) -> None:
    adapter = f"wrong.{code}"
    execution = stack.drop(adapter, body())
    assert execution.states == [*VALIDATED, *REJECTED]
    assert code in execution.cause
    validation = stack.report(adapter)["newest"]["validation"]
    assert code in {problem["code"] for problem in validation["problems"]}
    assert all(problem["message"] for problem in validation["problems"])
    assert_nothing_is_left(stack, adapter)
    assert stack.released(adapter) == []


def test_an_upload_that_vanishes_is_refused_in_words(stack: StackUnderTest) -> None:
    stack.drop("vanished", good_tarball(seed=41))
    live = stack.live("vanished")
    with stack.rules_disabled("AdapterUploaded", "AdapterDeleted"):
        version = stack.upload("vanished", good_tarball(seed=42))
        stack.s3.delete_object(Bucket=stack.uploads, Key="adapters/vanished.tar.gz", VersionId=version)
    execution = stack.start(stack.event("vanished", version, "FF" * 8))
    assert execution.states == [*VALIDATED, *REJECTED]
    assert "was deleted before it was read" in execution.cause
    assert stack.live("vanished") == live
    assert list(stack.components("vanished")) == [live]


def deployed_beside(stack: StackUnderTest, endpoint: str, base: str) -> StackUnderTest:
    """A second stack that is told of this endpoint and base, with the role of the first one's."""
    config = stack.sagemaker.describe_endpoint(EndpointName=stack.outputs["EndpointName"])["EndpointConfigName"]
    role = stack.sagemaker.describe_endpoint_config(EndpointConfigName=config)["ExecutionRoleArn"]
    parameters = "BaseProfile=tiny-llama MaxLoraRank=16 GracePeriodSeconds=1 InServiceDeadlineSeconds=60"
    existing = f"ExistingEndpointName={endpoint} ExistingBaseComponentName={base} ExistingExecutionRoleArn={role}"
    chosen = f"{parameters} {existing}"
    build_and_deploy(stack.cloud, "--stack-name", "loradrop-other", "--parameter-overrides", chosen)
    return StackUnderTest(stack.cloud, "loradrop-other")


def test_an_existing_base_is_used(stack: StackUnderTest) -> None:
    other = deployed_beside(stack, stack.outputs["EndpointName"], stack.outputs["BaseComponentName"])
    assert other.drop("guest", good_tarball(seed=43)).states == DEPLOYED
    assert other.components("guest")
    assert not [name for name in other.resources() if name == "Endpoint"], "it made no endpoint of its own"


@pytest.mark.long
@pytest.mark.parametrize("missing", ["endpoint", "base"])
def test_a_missing_base_is_named(stack: StackUnderTest, missing: str) -> None:
    names = {"endpoint": stack.outputs["EndpointName"], "base": stack.outputs["BaseComponentName"]}
    wrong = deployed_beside(stack, **(names | {missing: "nowhere"}))
    execution = wrong.drop("lost", good_tarball(seed=44))
    assert execution.states == [*VALIDATED, "CreateComponent", *FAILED]
    assert execution.task_errors("CreateComponent") == ["ComponentRefused"], "no retry"
    assert "nowhere" in execution.cause
    assert "Check that both exist and are InService." in execution.cause
    assert_nothing_is_left(wrong, "lost")


def assert_nothing_is_left(stack: StackUnderTest, adapter: str) -> None:
    """No component on the endpoint, no live pointer."""
    eventually(lambda: stack.components(adapter) == {}, f"the removal of {adapter}'s component")
    assert stack.live(adapter) is None
