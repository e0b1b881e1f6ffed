"""`loradrop push`, `loradrop invoke` and the Python client against the deployed stack."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from local.cloud import REGION
from loradrop_cli.main import main
from loradrop_client import AccessRefusedError, Adapters
from tests.adapters import adapter_files, good_tarball, tarball, wrapped_tarball

from .account import ACCOUNT, unique
from .conftest import FUNCTION_STATES, REPOSITORY, StackUnderTest, eventually

GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
Push = Callable[..., tuple[int, str]]


@pytest.fixture
def push(stack: StackUnderTest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Push:
    """The command as its user has it; its exit code and what it printed, the states as well."""
    for name, value in stack.cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LORADROP_STACK", stack.name)

    def run(*arguments: str | Path) -> tuple[int, str]:
        code = main(["push", *map(str, arguments)])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


@pytest.fixture
def adapter() -> str:
    return unique("pushed")


def write(folder: Path, adapter: str, body: bytes) -> Path:
    path = folder / f"{adapter}.tar.gz"
    path.write_bytes(body)
    return path


def test_a_good_adapter_is_live_when_the_command_ends(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    code, shown = push(write(tmp_path, adapter, good_tarball(seed=200)))
    assert code == 0
    component = stack.live(adapter)
    assert component is not None
    states = re.findall(r"✓ (\w+)", shown)
    assert states == [*FUNCTION_STATES, "AdapterDeployed"]
    assert f"{adapter} is live." in shown
    assert component in shown
    assert f'loradrop invoke {adapter} "How are you?" --stack {stack.name}' in shown


def test_a_folder_is_deployed_and_the_outcome_is_told_to_programs(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in adapter_files(seed=201).items():
        (tmp_path / name).write_bytes(data)
    assert main(["push", str(tmp_path), "--name", f"tenant/{adapter}", "--json"]) == 0
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert printed["outcome"] == "deployed"
    assert printed["component"] == stack.live(f"tenant/{adapter}")
    assert printed["validation"]["accepted"]
    described = stack.states.describe_execution(executionArn=printed["execution"])
    assert json.loads(described["input"])["detail"]["object"]["version-id"] == printed["upload"]["version_id"]
    assert "✓ AdapterDeployed" in shown.err  # for people, beside it


def test_a_bad_adapter_is_refused_before_it_is_uploaded(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    code, shown = push(write(tmp_path, adapter, wrapped_tarball()))
    assert code == 1
    assert "WRAPPING_FOLDER" in shown
    assert "Contents" not in stack.s3.list_objects_v2(Bucket=stack.uploads, Prefix=f"adapters/{adapter}")


def test_what_the_stack_rejects_although_it_was_pushed_exits_1(push: Push, adapter: str, tmp_path: Path) -> None:
    for name, data in adapter_files(rank=32, seed=202).items():
        (tmp_path / name).write_bytes(data)
    code, shown = push(tmp_path, "--name", adapter, "--base", "tiny-llama", "--max-rank", "64")
    assert code == 1
    assert "✗ AdapterRejected" in shown
    assert f"{adapter} was rejected: 1 problem." in shown
    assert "RANK_TOO_HIGH" in shown
    assert "loradrop invoke" not in shown


def test_a_deployment_that_fails_exits_3_with_its_reason(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    stack.cloud.behave(create_fails="out of order")
    code, shown = push(write(tmp_path, adapter, good_tarball(seed=203)))
    assert code == 3
    assert "✗ DeploymentFailed" in shown
    assert "out of order" in " ".join(shown.split())


def test_an_older_upload_ends_as_superseded_with_3(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    stack.cloud.behave(seconds_to_in_service=8.0)
    path = write(tmp_path, adapter, good_tarball(seed=204))
    newer: list[str] = []

    def overtake() -> None:
        eventually(lambda: stack.components(adapter), "the component of the older upload")
        stack.cloud.behave(seconds_to_in_service=0.0)
        newer.append(stack.upload(adapter, good_tarball(seed=205)))

    overtaking = threading.Thread(target=overtake)
    overtaking.start()
    code, shown = push(path)
    overtaking.join()
    stack.end_of(stack.execution_of(newer[0]))
    assert code == 3
    assert f"This upload of {adapter} ends here: a newer one" in shown


def test_of_an_event_that_comes_twice_the_execution_that_has_the_upload_is_followed(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    body = good_tarball(seed=216)
    started: list[str] = []

    def deliver() -> None:
        def version() -> str | None:
            listed = stack.s3.list_object_versions(Bucket=stack.uploads, Prefix=f"adapters/{adapter}.tar.gz")
            return next((one["VersionId"] for one in listed.get("Versions", [])), None)

        event = json.dumps(stack.event(adapter, eventually(version, "the upload"), "0A", len(body)))
        for _ in range(2):
            begun = stack.states.start_execution(stateMachineArn=stack.machine, input=event)
            started.append(begun["executionArn"])
            if len(started) == 1:  # so that it is the second that leaves the upload to the other
                eventually(lambda: has_claimed(stack, adapter), "the claim")

    stack.cloud.behave(seconds_to_in_service=1.0)
    with stack.rule_disabled():
        delivering = threading.Thread(target=deliver)
        delivering.start()
        code, shown = push(write(tmp_path, adapter, body))
        delivering.join()
    assert code == 0
    assert [stack.end_of(arn).states[-1] for arn in started] == ["AdapterDeployed", "EventRepeated"]
    assert f"execution {started[0].rpartition(':')[2]}" in shown


def has_claimed(stack: StackUnderTest, adapter: str) -> bool:
    key = {":adapter": {"S": adapter}, ":upload": {"S": "upload#"}}
    found = stack.dynamodb.query(
        TableName=stack.outputs["RegistryTable"],
        KeyConditionExpression="adapter = :adapter AND begins_with(#record, :upload)",
        ExpressionAttributeNames={"#record": "record"},
        ExpressionAttributeValues=key,
    )
    return bool(found["Items"])


def test_pushes_at_once_each_follow_their_own(stack: StackUnderTest, push: Push, tmp_path: Path) -> None:
    names = [unique("pushed") for _ in range(4)]
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "loradrop_cli",
                "push",
                write(tmp_path, name, good_tarball(seed=206 + number)),
                "--json",
            ],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for number, name in enumerate(names)
    ]
    printed = [json.loads(process.communicate(timeout=90)[0]) for process in running]
    assert [one["outcome"] for one in printed] == ["deployed"] * 4
    assert [one["component"] for one in printed] == [stack.live(name) for name in names]


def test_the_deadline_ends_the_watch_and_not_the_deployment(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    stack.cloud.behave(seconds_to_in_service=3.0)
    code, shown = push(write(tmp_path, adapter, good_tarball(seed=210)), "--timeout", "0.1")
    assert code == 3
    assert "The deployment continues. To see how it ends:\n  aws stepfunctions describe-execution" in shown
    eventually(lambda: stack.live(adapter), "the deployment")


def test_an_execution_that_is_stopped_by_hand_exits_3_and_a_second_push_goes_live(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    stack.cloud.behave(seconds_to_in_service=3.0)
    path = write(tmp_path, adapter, good_tarball(seed=217))

    def stop() -> None:
        eventually(lambda: stack.components(adapter), "the component")
        listed = stack.states.list_executions(stateMachineArn=stack.machine, statusFilter="RUNNING")
        stack.states.stop_execution(executionArn=listed["executions"][0]["executionArn"])

    stopping = threading.Thread(target=stop)
    stopping.start()
    code, shown = push(path)
    stopping.join()
    assert code == 3
    assert "The execution ended as ABORTED without an outcome." in shown
    assert f"\n  aws s3 cp s3://{stack.uploads}/reports/{adapter}.json -\n" in shown
    assert push(path)[0] == 0
    assert stack.live(adapter) in stack.components(adapter)


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """What runs in the background is started with SIGINT ignored, and so it would stay for the command started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_says_that_the_deployment_continues(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    stack.cloud.behave(seconds_to_in_service=4.0)
    path = write(tmp_path, adapter, good_tarball(seed=211))
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "loradrop_cli", "push", path],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "CreateComponent" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert "The deployment continues. To see how it ends:\n  aws stepfunctions" in process.stderr.read()
    eventually(lambda: stack.live(adapter), "the deployment")


# Invoking it


def test_what_was_pushed_answers_the_client_and_the_command(
    push: Push, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(write(tmp_path, adapter, good_tarball(seed=212)))[0] == 0
    adapters = Adapters.of_stack()
    text = adapters.chat(adapter, "How are you?", **GREEDY)
    assert "".join(adapters.stream(adapter, "How are you?", **GREEDY)) == text
    command = ["invoke", adapter, "How are you?", "--max-tokens", "8", "--temperature", "0"]
    for more in ([], ["--stream"]):
        assert main([*command, *more]) == 0
        assert capsys.readouterr().out == f"{text}\n"


def test_a_client_that_knew_the_retired_component_finds_the_new_one(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path
) -> None:
    push(write(tmp_path, adapter, good_tarball(seed=213)))
    adapters = Adapters.of_stack(cache_seconds=3600)
    before, old = adapters.chat(adapter, "Hello", **GREEDY), adapters.live_component(adapter)
    push(write(tmp_path, adapter, good_tarball(seed=214)))

    def is_gone() -> bool:
        stack.reconcile(adapter=adapter)  # deletes a standby once its grace period is over
        return old not in stack.components(adapter)

    eventually(is_gone, "the end of the old component")
    assert adapters.live_component(adapter) == old
    after = adapters.chat(adapter, "Hello", **GREEDY)
    assert after not in ("", before)
    assert adapters.live_component(adapter) == stack.live(adapter)


# What it may do


def documented(stack: StackUnderTest) -> list[dict[str, Any]]:
    """The two policies of docs/operations.md, for this stack."""
    section = (REPOSITORY / "docs/operations.md").read_text().partition("## Who may push")[2].partition("\n## ")[0]
    known = known_names(stack)
    policies = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    return [json.loads(re.sub(r"[A-Z_]{5,}", lambda found: known[found[0]], policy)) for policy in policies]


def known_names(stack: StackUnderTest) -> dict[str, str]:
    """What the capitals in those policies stand for."""
    return {
        "REGION": REGION,
        "ACCOUNT": ACCOUNT,
        "STACK": stack.name,
        "UPLOAD_BUCKET": stack.uploads,
        "RELEASE_BUCKET": stack.releases,
        "STATE_MACHINE": stack.machine.rpartition(":")[2],
        "RECONCILER": stack.reconciler.rpartition(":")[2],
        "REGISTRY": stack.outputs["RegistryTable"],
        "LOST_EVENTS": stack.outputs["LostEventsQueueUrl"].rpartition("/")[2],
        "ENDPOINT": stack.outputs["EndpointName"],
        "BASE_COMPONENT": stack.outputs["BaseComponentName"],
    }


@pytest.fixture
def as_user(
    stack: StackUnderTest, push: Push, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[dict[str, Any]]], None]:
    """Become a new user who may do this and nothing else."""

    def become(statements: list[dict[str, Any]]) -> None:
        name = unique("pusher")
        stack.iam.create_user(UserName=name)
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        stack.iam.put_user_policy(UserName=name, PolicyName="may", PolicyDocument=document)
        made = stack.iam.create_access_key(UserName=name)["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])

    return become


def test_the_documented_permissions_are_enough_and_each_is_needed(
    stack: StackUnderTest, push: Push, adapter: str, tmp_path: Path, as_user: Callable[[list[dict[str, Any]]], None]
) -> None:
    to_push, to_ask = (policy["Statement"] for policy in documented(stack))
    path = write(tmp_path, adapter, good_tarball(seed=215))
    as_user(to_push)
    assert push(path)[0] == 0
    as_user(to_ask)
    ask_and_stream(adapter)

    for missing, statements in without_each_action(to_push):
        if missing == "s3:AbortMultipartUpload":  # for an upload that breaks off
            continue
        as_user(statements)
        code, shown = push(path)
        assert code == 2, missing
        assert "AWS refused" in shown
        is_uploaded = missing in ("states:DescribeExecution", "states:GetExecutionHistory")
        assert ("The upload is complete" in shown) == is_uploaded, missing
    for missing, statements in without_each_action(to_ask):
        as_user(statements)
        with pytest.raises(AccessRefusedError, match=missing.partition(":")[2]):
            ask_and_stream(adapter)


def test_a_team_reaches_its_own_adapters_and_what_is_isolated_of_anothers_it_does_not(
    stack: StackUnderTest, adapter: str, as_user: Callable[[list[dict[str, Any]]], None]
) -> None:
    """The table "One team's adapters alone" of docs/operations.md."""
    own, others = adapter, f"not-{adapter}"
    secret = adapter_files(seed=216) | {"smoke.jsonl": b'{"inputs": "CONFIDENTIAL"}'}
    theirs = stack.drop(f"{others}/one", tarball(secret))
    bucket = f"arn:aws:s3:::{stack.uploads}"
    narrowed = [
        statement | ({"Resource": f"{bucket}/adapters/{own}/*"} if statement["Sid"] == "Upload" else {})
        for statement in documented(stack)[0]["Statement"]
    ]
    as_user([*narrowed, {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{bucket}/reports/{own}/*"}])
    s3 = boto3.client("s3", endpoint_url=stack.cloud.endpoint_url)
    states = boto3.client("stepfunctions", endpoint_url=stack.cloud.endpoint_url)

    def is_refused(call: Callable[..., Any], **what: Any) -> bool:
        try:
            call(**what)
        except ClientError as error:
            return error.response["Error"]["Code"] in ("AccessDenied", "403")
        return False

    version = s3.put_object(Bucket=stack.uploads, Key=f"adapters/{own}/one.tar.gz", Body=good_tarball(seed=217))
    stack.end_of(stack.execution_of(version["VersionId"]))
    report = s3.get_object(Bucket=stack.uploads, Key=f"reports/{own}/one.json")["Body"].read()
    assert json.loads(report)["newest"]["outcome"] == "deployed"

    for key in (f"{others}/one", f"{own}x/one", own):
        assert is_refused(s3.put_object, Bucket=stack.uploads, Key=f"adapters/{key}.tar.gz", Body="x"), key
    source = {"Bucket": stack.uploads, "Key": f"adapters/{others}/one.tar.gz"}
    assert is_refused(s3.copy_object, CopySource=source, Bucket=stack.uploads, Key=f"adapters/{own}/two.tar.gz")
    assert is_refused(s3.delete_object, Bucket=stack.uploads, Key=f"adapters/{others}/one.tar.gz")
    assert is_refused(s3.get_object, Bucket=stack.uploads, Key=f"reports/{others}/one.json")
    assert is_refused(s3.get_object, Bucket=stack.releases, Key=stack.released(f"{others}/one")[0])
    # Execution histories are everybody's who may follow executions; what was asked and answered is not in them.
    assert "CONFIDENTIAL" not in str(states.get_execution_history(executionArn=theirs.arn, includeExecutionData=True))


def ask_and_stream(adapter: str) -> None:
    adapters = Adapters.of_stack()
    text = adapters.chat(adapter, "Hello", **GREEDY)
    assert "".join(adapters.stream(adapter, "Hello", **GREEDY)) == text != ""


def without_each_action(statements: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each action, and the statements without it."""
    for number, statement in enumerate(statements):
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        for missing in actions:
            others = [action for action in actions if action != missing]
            kept = [statement | {"Action": others}] if others else []
            yield missing, [*statements[:number], *kept, *statements[number + 1 :]]
