"""`loradrop push` and `loradrop invoke`, as far as no state machine need run (that: tests/local/test_push.py)."""

import base64
import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from loradrop.outcome import Outcome
from loradrop_cli.executions import RUNNING, Execution, StateView, Step, UploadExecutions, follow
from loradrop_cli.main import main
from loradrop_cli.push import PART_BYTES, _meaning
from tests.adapters import adapter_files, good_tarball, tarball, wrapped_tarball

from .conftest import BASE, ENDPOINT
from .test_client import KEYS as REGISTRY_KEYS
from .test_client import TABLE

ROOT = Path(__file__).parents[2]
PARAMETERS = {
    "BaseProfile": "tiny-llama",
    "MaxLoraRank": "16",
    "EngineVersion": "0.26.0",
    "MaxUploadMegabytes": "64",
}
ESCAPE = "\x1b"


def make_stack(states: Any, **parameters: str) -> str:
    """A CloudFormation stack that says of itself what the real one does; its state machine."""
    machine: str = states.create_state_machine(
        name="DeployAdapter",
        definition='{"StartAt": "End", "States": {"End": {"Type": "Succeed"}}}',
        roleArn="arn:aws:iam::123456789012:role/states",
    )["stateMachineArn"]
    outputs = {
        "UploadUri": "s3://uploads/adapters/",
        "StateMachineArn": machine,
        "EndpointName": ENDPOINT,
        "RegistryTable": TABLE,
    }
    given = PARAMETERS | parameters
    template = {
        "Parameters": {key: {"Type": "String"} for key in given},
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {key: {"Value": value} for key, value in outputs.items()},
    }
    boto3.client("cloudformation").create_stack(
        StackName="shop",
        TemplateBody=json.dumps(template),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
    )
    return machine


@pytest.fixture
def states() -> Any:
    return boto3.client("stepfunctions")


@pytest.fixture
def shop(stack: Any, states: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    make_stack(states)
    stack.dynamodb.create_table(TableName=TABLE, BillingMode="PAY_PER_REQUEST", **REGISTRY_KEYS)
    monkeypatch.setenv("LORADROP_STACK", "shop")
    return stack


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "acme.tar.gz"
    path.write_bytes(good_tarball())
    return path


def uploaded(stack: Any) -> list[str]:
    return [one["Key"] for one in stack.s3.list_objects_v2(Bucket="uploads").get("Contents", [])]


def push(*arguments: str | Path) -> int:
    try:
        return main(["push", *map(str, arguments)])
    except SystemExit as end:  # argparse's way
        return int(end.code or 0)


# What is uploaded


def test_a_tarball_is_uploaded_as_it_is(shop: Any, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(file, "--no-wait") == 0
    stored = shop.s3.get_object(Bucket="uploads", Key="adapters/acme.tar.gz", ChecksumMode="ENABLED")
    assert stored["Body"].read() == file.read_bytes()
    assert stored["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()
    shown = capsys.readouterr()
    assert "ACCEPTED" in shown.out
    assert f"to s3://uploads/adapters/acme.tar.gz, version {stored['VersionId']}." in shown.out
    assert "aws s3 cp s3://uploads/reports/acme.json -" in shown.out
    assert shown.err == ""


def test_a_large_tarball_goes_in_parts_each_with_its_checksum(
    shop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = tarball(adapter_files() | {"README.md": random.Random(0).randbytes(2 * PART_BYTES + 1000)})
    path = tmp_path / "large.tar.gz"
    path.write_bytes(body)
    assert push(path, "--no-wait", "--json") == 0
    upload = json.loads(capsys.readouterr().out)["upload"]
    stored = shop.s3.get_object(Bucket="uploads", Key="adapters/large.tar.gz", VersionId=upload["version_id"])
    assert stored["Body"].read() == body
    head = shop.s3.head_object(Bucket="uploads", Key="adapters/large.tar.gz", ChecksumMode="ENABLED")
    digests = [hashlib.sha256(body[at : at + PART_BYTES]).digest() for at in range(0, len(body), PART_BYTES)]
    assert len(digests) == 3
    expected = base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()
    assert head["ChecksumSHA256"].partition("-")[0] == expected  # moto leaves out the number of parts


def test_a_folder_is_packaged_as_package_does(shop: Any, tmp_path: Path) -> None:
    folder = tmp_path / "globex"
    folder.mkdir()
    for name, data in (adapter_files() | {"training_args.bin": b"pickle"}).items():
        (folder / name).write_bytes(data)
    assert push(folder, "--no-wait") == 0
    assert main(["package", str(folder), "-o", str(tmp_path / "x.tar.gz"), "--base", "tiny-llama"]) == 0
    stored = shop.s3.get_object(Bucket="uploads", Key="adapters/globex.tar.gz")["Body"].read()
    assert stored == (tmp_path / "x.tar.gz").read_bytes()


@pytest.mark.parametrize(
    ("path", "arguments", "key"),
    [
        ("acme.tar.gz", [], "acme"),
        ("acme.v2.tgz", [], "acme.v2"),
        ("acme", [], "acme"),
        ("acme.tar.gz", ["--name", "tenant/other"], "tenant/other"),
    ],
)
def test_the_name_is_the_files_unless_it_is_given(
    shop: Any, tmp_path: Path, path: str, arguments: list[str], key: str
) -> None:
    (tmp_path / path).write_bytes(good_tarball())
    assert push(tmp_path / path, *arguments, "--no-wait") == 0
    assert uploaded(shop) == [f"adapters/{key}.tar.gz"]


def test_a_link_has_the_name_that_it_shows(shop: Any, file: Path, tmp_path: Path) -> None:
    link = tmp_path / "globex.tar.gz"
    link.symlink_to(file)
    assert push(link, "--no-wait") == 0
    assert uploaded(shop) == ["adapters/globex.tar.gz"]


# What is not


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_what_is_rejected_is_not_uploaded(
    shop: Any, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "acme.tar.gz"
    path.write_bytes(wrapped_tarball())
    assert push(path, *more) == 1
    assert uploaded(shop) == []
    shown = capsys.readouterr().out
    if more:
        printed = json.loads(shown)
        assert (printed["adapter"], printed["outcome"], printed["upload"]) == ("acme", "rejected", None)
        assert [problem["code"] for problem in printed["validation"]["problems"]] == ["WRAPPING_FOLDER"]
    else:
        assert shown.startswith("REJECTED")
        assert shown.endswith("Nothing was uploaded.\n")


def test_a_folder_without_an_adapter_points_at_the_one_below(
    shop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path / "run" / "checkpoint-500"
    inner.mkdir(parents=True)
    for name, data in adapter_files().items():
        (inner / name).write_bytes(data)
    assert push(tmp_path / "run") == 1
    assert f"There is an adapter in {inner}" in capsys.readouterr().out


def test_the_stacks_own_rules_are_applied(
    stack: Any, states: Any, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_stack(states, MaxLoraRank="1")
    assert push(file, "--stack", "shop") == 1
    assert "r is 4; the base tiny-llama takes at most 1" in capsys.readouterr().out
    assert push(file, "--stack", "shop", "--max-rank", "8", "--no-wait") == 0
    assert push(file, "--stack", "shop", "--base", "tiny-llama", "--no-wait") == 0


def test_a_profile_that_only_the_stack_has_is_asked_for(
    stack: Any, states: Any, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_stack(states, BaseProfile="mine")
    assert push(file, "--stack", "shop") == 2
    said = capsys.readouterr().err
    assert "The stack shop validates for the profile 'mine'" in said
    assert "with --base" in said


def test_a_tarball_above_the_stacks_limit_is_not_uploaded(
    stack: Any, states: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_stack(states, MaxUploadMegabytes="1")
    path = tmp_path / "acme.tar.gz"
    path.write_bytes(tarball(adapter_files() | {"README.md": random.Random(0).randbytes(1_000_000)}))
    assert push(path, "--stack", "shop") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "the stack shop allows at most 1,000,000 (its parameter MaxUploadMegabytes)" in said
    assert uploaded(stack) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.tar.gz"], "missing.tar.gz: No such file"),
        (
            ["out/sentiment/adapter.tar.gz"],
            "is what every trained tarball is called. Choose",
        ),
        (["/dev/null"], "/dev/null is neither a file nor a folder"),
        (["README.md", "--name", "two words"], "'two words' is no adapter name. Allowed: letters"),
        (["README.md", "--name", "a" * 129], "Choose a name with --name NAME."),
        (["README.md", "--stack", "none"], "There is no stack 'none' in us-east-1"),
        (["README.md", "--base", "llama-9"], "There is no profile"),
        (["README.md", f"{ESCAPE}[31m"], "unrecognized arguments"),
        (["README.md", "--timeout", "nan"], "'nan' is not a number of at least 0"),
        (["README.md", "--timeout", "soon"], "'soon' is not a number of at least 0"),
        (["README.md", "--na", "acme"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_exits_2_with_a_sentence(
    shop: Any, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert push(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert ESCAPE not in shown.err


NOWHERE = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
KEYS = {"AWS_ACCESS_KEY_ID": "AKIASECRET", "AWS_SECRET_ACCESS_KEY": "hushhush"}
REGION = {"AWS_DEFAULT_REGION": "us-east-1"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (REGION, "there are no AWS credentials here"),
        (KEYS, "no AWS region is set"),
        (REGION | KEYS | {"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found"),
        (REGION | {"AWS_ACCESS_KEY_ID": "AKIASECRET"}, "Partial credentials found in env"),
        (
            REGION | KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "Check the network, the region and AWS_ENDPOINT_URL",
        ),
        (REGION | KEYS | {"AWS_ENDPOINT_URL": "localhost:9"}, "Invalid endpoint: localhost:9. Check"),
    ],
    ids=["no credentials", "no region", "no profile", "half a key", "no network", "no url"],
)
@pytest.mark.parametrize("command", [["push", "ACME"], ["invoke", "acme", "Hello"]], ids=["push", "invoke"])
def test_without_aws_a_sentence_says_what_to_do(
    command: list[str], environment: dict[str, str], said: str, file: Path
) -> None:
    words = [str(file) if word == "ACME" else word for word in command]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LORADROP"))}
    done = subprocess.run(
        [sys.executable, "-m", "loradrop_cli", *words],
        cwd=ROOT,
        env=kept | NOWHERE | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())
    assert done.stderr.count("\n") == 1
    for secret in KEYS.values():
        assert secret not in done.stderr


# Which execution it is


def event(version: str) -> str:
    return json.dumps({"detail": {"object": {"key": "adapters/acme.tar.gz", "version-id": version}}})


def test_the_execution_is_found_by_the_version_that_started_it(stack: Any, states: Any) -> None:
    machine = make_stack(states)

    def start(given: str) -> str:
        arn: str = states.start_execution(stateMachineArn=machine, input=given)["executionArn"]
        return arn

    executions = UploadExecutions(states, machine)
    assert executions.of_version("mine") is None
    start(event("another's"))
    start("[]")
    start('{"by": "hand"}')
    assert executions.of_version("mine") is None
    mine = start(event("mine"))
    start(event("a later one"))
    assert executions.of_version("mine") == mine
    assert executions.of_version("mine", besides=mine) is None
    again = start(event("mine"))
    assert executions.of_version("mine", besides=mine) == again


# How it is followed


def step(state: str, entered: float, left: float | None = None, polls: int = 1) -> Step:
    return Step(state, entered, left, polls)


WAITING = Execution(
    arn="arn:x",
    status=RUNNING,
    error="",
    cause="",
    output={},
    steps=(step("ClaimUpload", 0, 1), step("WaitForInService", 1, None, 2)),
    seconds=3,
)
ENDED = replace(
    WAITING,
    status="SUCCEEDED",
    output={"outcome": "deployed"},
    steps=(step("ClaimUpload", 0, 1), step("WaitForInService", 1, 4, 3), step("AdapterDeployed", 4, 4)),
    seconds=4,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(stream: io.StringIO, *seen: Execution, deadline: float = 100) -> Execution:
    """What `follow` gives, of an execution that is seen like this, a second apart."""
    read: Callable[[], Execution] = iter(seen).__next__
    clock = iter(range(1000)).__next__
    return follow(read, StateView(stream), deadline=deadline, poll_seconds=1, clock=clock, sleep=lambda _: None)


def test_where_there_is_no_terminal_each_state_is_a_line_once_it_is_left() -> None:
    stream = io.StringIO()
    assert watched(stream, WAITING, WAITING, ENDED) is ENDED
    assert stream.getvalue().splitlines() == [
        "    0.0 s  ✓ ClaimUpload              1.0 s",
        "    1.0 s  ✓ WaitForInService         3.0 s, 3 polls",
        "    4.0 s  ✓ AdapterDeployed          0.0 s",
        "SUCCEEDED after 4.0 s",
    ]


def test_on_a_terminal_the_state_that_it_is_in_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    watched(stream, WAITING, WAITING, ENDED)
    shown = [line.rpartition("\r\x1b[K")[2] for line in stream.getvalue().split("\n")]
    assert shown[1].startswith("    1.0 s  ✓ WaitForInService")
    assert stream.getvalue().count("▸ WaitForInService         2.0 s, 2 polls") == 2


def test_what_failed_is_marked_and_the_deadline_ends_the_watch() -> None:
    stream = io.StringIO()
    steps = (step("ValidateAdapter", 0, 1), step("AdapterRejected", 1, 1))
    watched(stream, replace(WAITING, status="FAILED", error="AdapterRejected", steps=steps))
    assert "✓ ValidateAdapter" in stream.getvalue()
    assert "✗ AdapterRejected" in stream.getvalue()
    assert watched(stream, *[WAITING] * 10, deadline=3) is WAITING


@pytest.mark.parametrize(
    ("execution", "code", "outcome"),
    [
        (ENDED, 0, Outcome.DEPLOYED),
        (replace(ENDED, output={"outcome": "superseded"}), 3, Outcome.SUPERSEDED),
        (replace(ENDED, status="FAILED", error="AdapterRejected"), 1, Outcome.REJECTED),
        (replace(ENDED, status="FAILED", error="DeploymentFailed"), 3, Outcome.FAILED),
        (replace(ENDED, status="FAILED", error="OutcomeNotReported"), 3, None),
        (replace(ENDED, status="TIMED_OUT"), 3, None),
        (replace(ENDED, status="ABORTED"), 3, None),
        (WAITING, 3, None),
    ],
    ids=lambda value: f"{value.status} {value.error}" if isinstance(value, Execution) else str(value),
)
def test_every_end_has_an_exit_code(execution: Execution, code: int, outcome: Outcome | None) -> None:
    assert _meaning(execution) == (code, outcome)


# invoke


@pytest.fixture
def live(shop: Any) -> None:
    """acme is live."""
    shop.s3.put_object(Bucket="releases", Key="acme.tar.gz", Body=good_tarball())
    shop.sagemaker.create_inference_component(
        InferenceComponentName="acme-1",
        EndpointName=ENDPOINT,
        Specification={"BaseInferenceComponentName": BASE, "Container": {"ArtifactUrl": "s3://releases/acme.tar.gz"}},
    )
    live = {"M": {"component": {"S": "acme-1"}, "endpoint": {"S": ENDPOINT}}}
    item = {"adapter": {"S": "acme"}, "record": {"S": "state"}, "live": live}
    shop.dynamodb.put_item(TableName=TABLE, Item=item)


@pytest.mark.usefixtures("live")
def test_an_adapter_is_asked_in_words_by_stdin_and_as_a_whole_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*words: str) -> str:
        assert main(["invoke", "acme", *words, "--temperature", "0", "--max-tokens", "8"]) == 0
        return capsys.readouterr().out

    answer = ask("How", "are", "you?")
    assert len(answer.split()) > 3
    assert answer.endswith("\n")
    assert ask("How are you?", "--stream") == answer
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"How are you?")))
    assert ask("-") == answer
    raw = ask("How are you?", "--raw")
    assert raw not in ("\n", answer)
    assert ask("How are you?", "--raw", "--stream") == raw
    assert ask("How are you?", "--system", "Be brief.") not in (answer, raw)


@pytest.mark.parametrize("words", [[b"\xff\xfe"], [b"Hello", b"--system", b"\xff\xfe"]])
def test_words_that_are_no_text_are_told_so(words: list[bytes]) -> None:
    command = [sys.executable, "-m", "loradrop_cli", "invoke", "acme", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"loradrop: The text is not UTF-8.\n")


def test_a_prompt_that_is_no_text_is_told_so() -> None:
    command = [sys.executable, "-m", "loradrop_cli", "invoke", "acme", "-"]
    done = subprocess.run(command, input=b"\xff\xfe", cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"loradrop: Standard input is not UTF-8: invalid start byte at byte 0")


@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["acme", " "], 2, "The text is empty"),
        (["acme", "Hello", "--raw", "--system", "x"], 2, "--system does not go with --raw"),
        (["nobody", "Hello"], 2, "The adapter 'nobody' is not live"),
        (["acme", "Hello", "--stack", "none"], 2, "There is no stack 'none'"),
        (["acme", "Hello", "--max-tokens", "0"], 3, "max_tokens must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_sentence(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["invoke", *words]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
