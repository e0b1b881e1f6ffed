"""The local cloud as a program, and the SageMaker that it serves to whoever may ask, in the words and pieces of AWS."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.cloud import READY, LocalCloud
from local.patches.functions import KEPT_FOR_EACH_AT_WORK
from tests.adapters import good_tarball

from .account import ACCOUNT, Account, allow, unique
from .conftest import REPOSITORY, command, eventually

COMPONENT_ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:inference-component"
ENDPOINT_ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint"


class Endpoint:
    """An endpoint with a base, whose role may read one bucket, and adapters in that bucket."""

    def __init__(self, account: Account) -> None:
        self.account, self.sagemaker = account, account.sagemaker
        self.name, self.base, self.bucket = unique("endpoint"), unique("base"), account.bucket()
        role = account.role("sagemaker", allow("s3:GetObject", f"arn:aws:s3:::{self.bucket}/releases/*"))
        variant = {"VariantName": "AllTraffic", "InstanceType": "ml.g6e.xlarge", "InitialInstanceCount": 1}
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=self.name, ExecutionRoleArn=role, ProductionVariants=[variant]
        )
        self.sagemaker.create_endpoint(EndpointName=self.name, EndpointConfigName=self.name)
        self.sagemaker.create_inference_component(
            InferenceComponentName=self.base,
            EndpointName=self.name,
            Specification={
                "Container": {"Image": "djl-inference:lmi"},
                "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 4096},
            },
        )
        self.artifact("releases/acme.tar.gz")

    def artifact(self, key: str) -> str:
        self.account.s3.put_object(Bucket=self.bucket, Key=key, Body=good_tarball())
        return f"s3://{self.bucket}/{key}"

    def request(self, name: str, key: str = "releases/acme.tar.gz", **members: Any) -> dict[str, Any]:
        container = {"ArtifactUrl": f"s3://{self.bucket}/{key}"}
        specification = {"BaseInferenceComponentName": self.base, "Container": container}
        return {"InferenceComponentName": name, "EndpointName": self.name, "Specification": specification} | members

    def adapter(self, **members: Any) -> str:
        name = unique("adapter")
        self.sagemaker.create_inference_component(**self.request(name, **members))
        assert self.describe(name)["InferenceComponentStatus"] == "InService"
        return name

    def delete(self) -> None:
        """Other tests count what there is on the cloud that they share."""
        hosted = self.sagemaker.list_inference_components(EndpointNameEquals=self.name, MaxResults=100)
        names = [one["InferenceComponentName"] for one in hosted["InferenceComponents"]]
        for name in (*(name for name in names if name != self.base), self.base):
            self.sagemaker.delete_inference_component(InferenceComponentName=name)
        self.sagemaker.delete_endpoint(EndpointName=self.name)
        self.sagemaker.delete_endpoint_config(EndpointConfigName=self.name)

    def describe(self, name: str) -> dict[str, Any]:
        described: dict[str, Any] = self.sagemaker.describe_inference_component(InferenceComponentName=name)
        return described


@pytest.fixture(scope="module")
def account(cloud: LocalCloud) -> Account:
    return Account(cloud)


@pytest.fixture(scope="module")
def endpoint(account: Account) -> Iterator[Endpoint]:
    made = Endpoint(account)
    yield made
    before = account.cloud.behaviour()
    account.cloud.behave(seconds_to_delete=0)
    made.delete()
    account.cloud.behave(**before)


@pytest.fixture
def behaving(cloud: LocalCloud) -> Iterator[LocalCloud]:
    before = cloud.behaviour()
    yield cloud
    cloud.behave(**before)


def refusal(call: Callable[..., Any], **request: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        call(**request)
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


# What people use


def test_the_command_line_needs_nothing_but_the_environment(
    cloud: LocalCloud, endpoint: Endpoint, tmp_path: Path
) -> None:
    name, answer = unique("adapter"), tmp_path / "answer.json"
    specification = json.dumps(endpoint.request(name)["Specification"])
    sagemaker = ("aws", "sagemaker", "--output", "json")
    created = command(
        cloud,
        *(*sagemaker, "create-inference-component", "--inference-component-name", name),
        *("--endpoint-name", endpoint.name, "--specification", specification),
    )
    assert json.loads(created)["InferenceComponentArn"] == f"{COMPONENT_ARN}/{name}"
    described = command(cloud, *sagemaker, "describe-inference-component", "--inference-component-name", name)
    assert json.loads(described)["InferenceComponentStatus"] == "InService"
    command(
        cloud,
        *("aws", "sagemaker-runtime", "invoke-endpoint", "--endpoint-name", endpoint.name),
        *("--inference-component-name", name, "--body", '{"inputs": "Hello"}', str(answer)),
    )
    assert json.loads(answer.read_text())["generated_text"]


def test_boto3_needs_nothing_but_the_environment(cloud: LocalCloud, endpoint: Endpoint) -> None:
    script = f"""
import boto3
s3, sagemaker = boto3.client("s3"), boto3.client("sagemaker")
s3.head_object(Bucket="{endpoint.bucket}", Key="releases/acme.tar.gz")
runtime = boto3.client("sagemaker-runtime")
asked = {{"EndpointName": "{endpoint.name}", "InferenceComponentName": "{endpoint.base}"}}
print(runtime.invoke_endpoint(**asked, Body=b'{{"inputs": "Hello"}}')["Body"].read().decode())
"""
    environment = {"PATH": os.environ["PATH"]} | cloud.environment()
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True, text=True)
    assert json.loads(done.stdout)["generated_text"]


def test_a_stream_arrives_in_pieces(account: Account, endpoint: Endpoint) -> None:
    body = {"inputs": "Hello", "parameters": {"max_new_tokens": 12, "temperature": 0}, "stream": True}
    request = {"EndpointName": endpoint.name, "InferenceComponentName": endpoint.adapter()}

    def ask() -> Any:
        runtime = account.client("sagemaker-runtime")
        return runtime.invoke_endpoint_with_response_stream(**request, Body=json.dumps(body))

    answer = ask()
    assert answer["ContentType"] == "application/jsonlines"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    lines = [json.loads(event["PayloadPart"]["Bytes"]) for event in answer["Body"]]
    assert len(lines) > 2
    assert lines[-1]["generated_text"] == "".join(line["token"]["text"] for line in lines)
    # On the wire each part is a chunk of its own: none waits for the next.
    chunks = list(ask()["Body"]._raw_stream.read_chunked(decode_content=False))
    assert len(chunks) == len(lines)


def test_the_wire_carries_what_a_client_names(account: Account, endpoint: Endpoint) -> None:
    answer = account.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=endpoint.name,
        InferenceComponentName=endpoint.base,
        InferenceId="request-7",
        Body=b'{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}',
    )
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amzn-sagemaker-inference-id"] == "request-7"
    assert answer["ContentType"] == "application/json"
    assert json.load(answer["Body"])["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("status", "code"),
    [(424, "ModelError"), (429, "ModelNotReadyException"), (503, "ServiceUnavailable"), (500, "InternalFailure")],
)
@pytest.mark.parametrize("operation", ["invoke_endpoint", "invoke_endpoint_with_response_stream"])
def test_invocations_fail_as_they_do_on_aws(
    behaving: LocalCloud, account: Account, endpoint: Endpoint, operation: str, status: int, code: str
) -> None:
    behaving.behave(invoke_errors={"times": 1, "status": status, "component": endpoint.base})
    runtime = account.client("sagemaker-runtime")
    request = {"EndpointName": endpoint.name, "InferenceComponentName": endpoint.base, "Body": b'{"inputs": "Hello"}'}
    with pytest.raises(getattr(runtime.exceptions, code, ClientError)) as refused:
        getattr(runtime, operation)(**request)
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert getattr(runtime, operation)(**request)["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_an_operation_that_is_not_emulated_is_an_error_and_no_crash(account: Account) -> None:
    code, _ = refusal(account.sagemaker.list_hub_contents, HubName="hub", HubContentType="Model")
    assert code in ("UnknownOperationException", "NotImplemented", "501")


# Who may what


def test_sagemaker_is_refused_to_those_who_have_no_right_to_it(account: Account, endpoint: Endpoint) -> None:
    nobody = account.user()("sagemaker")
    arn = f"{COMPONENT_ARN}/{endpoint.base}"
    code, message = refusal(nobody.describe_inference_component, InferenceComponentName=endpoint.base)
    assert code == "AccessDeniedException"
    assert f"is not authorized to perform: sagemaker:DescribeInferenceComponent on resource: {arn}" in message
    assert refusal(nobody.list_inference_components)[0] == "AccessDeniedException"
    somebody = account.user(allow("sagemaker:DescribeInferenceComponent", arn))("sagemaker")
    assert somebody.describe_inference_component(InferenceComponentName=endpoint.base)["InferenceComponentName"]
    assert refusal(somebody.delete_inference_component, InferenceComponentName=endpoint.base)[0] == (
        "AccessDeniedException"
    )


def test_a_key_that_nobody_has_is_refused(account: Account) -> None:
    unknown = account.client("sagemaker", key="AKIAUNKNOWN000000000", secret="x" * 40)
    code, message = refusal(unknown.list_inference_components)
    assert code == "UnrecognizedClientException"
    assert "security token" in message


def test_creating_needs_the_component_the_endpoint_and_its_tags(account: Account, endpoint: Endpoint) -> None:
    create, tag = "sagemaker:CreateInferenceComponent", "sagemaker:AddTags"
    components, on_endpoint = f"{COMPONENT_ARN}/*", f"{ENDPOINT_ARN}/{endpoint.name}"
    request = endpoint.request(unique("adapter"), Tags=[{"Key": "adapter", "Value": "acme"}])
    for may, missing in (
        ([allow(create, on_endpoint)], (create, "inference-component/")),
        ([allow(create, components)], (create, f"endpoint/{endpoint.name}")),
        ([allow(create, [components, on_endpoint])], (tag, "inference-component/")),
    ):
        client = account.user(*may)("sagemaker")
        code, message = refusal(client.create_inference_component, **request)
        assert code == "AccessDeniedException"
        assert missing[0] in message
        assert missing[1] in message
    client = account.user(allow(create, [components, on_endpoint]), allow(tag, components))("sagemaker")
    client.create_inference_component(**request)


def test_a_right_may_hang_on_a_tag_of_the_component(account: Account, endpoint: Endpoint) -> None:
    own, other = (endpoint.adapter(Tags=[{"Key": "loradrop:stack", "Value": stack}]) for stack in ("own", "other"))
    tagged = {"aws:ResourceTag/loradrop:stack": "own"}
    may = allow("sagemaker:DeleteInferenceComponent", f"{COMPONENT_ARN}/*", StringEquals=tagged)
    client = account.user(may)("sagemaker")
    for name in (other, endpoint.base):
        assert refusal(client.delete_inference_component, InferenceComponentName=name)[0] == "AccessDeniedException"
    client.delete_inference_component(InferenceComponentName=own)


@pytest.mark.parametrize(
    ("operation", "actions"),
    [
        ("invoke_endpoint", ["sagemaker:InvokeEndpoint"]),
        (
            "invoke_endpoint_with_response_stream",
            ["sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointWithResponseStream"],
        ),
    ],
)
def test_invoking_needs_the_endpoint_and_the_component(
    account: Account, endpoint: Endpoint, operation: str, actions: list[str]
) -> None:
    resources = [f"{ENDPOINT_ARN}/{endpoint.name}", f"{COMPONENT_ARN}/{endpoint.base}"]
    request = {"EndpointName": endpoint.name, "InferenceComponentName": endpoint.base, "Body": b'{"inputs": "Hello"}'}
    needed = [(action, resource) for action in actions for resource in resources]
    for missing in needed:
        granted = [allow(action, resource) for action, resource in needed if (action, resource) != missing]
        runtime = account.user(*granted)("sagemaker-runtime")
        with pytest.raises(ClientError) as refused:
            getattr(runtime, operation)(**request)
        error = refused.value.response["Error"]
        assert error["Code"] == "AccessDeniedException"
        assert f"{missing[0]} on resource: {missing[1]}" in error["Message"]
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    runtime = account.user(allow(actions, resources))("sagemaker-runtime")
    assert getattr(runtime, operation)(**request)["Body"]


def test_an_artifact_that_the_endpoints_role_may_not_read_fails_the_component(
    account: Account, endpoint: Endpoint
) -> None:
    endpoint.artifact("elsewhere/acme.tar.gz")
    name = unique("adapter")
    endpoint.sagemaker.create_inference_component(**endpoint.request(name, "elsewhere/acme.tar.gz"))
    described = endpoint.describe(name)
    assert described["InferenceComponentStatus"] == "Failed"
    assert (
        f"Failed to download model data from s3://{endpoint.bucket}/elsewhere/acme.tar.gz" in described["FailureReason"]
    )
    assert "AccessDenied" in described["FailureReason"]


# The behaviour


def test_behaviour_changes_while_it_runs(behaving: LocalCloud, endpoint: Endpoint) -> None:
    changed = behaving.behave(seconds_to_in_service=2, invoke_errors={"times": 2, "status": 503})
    assert changed == behaving.behaviour()
    assert changed["seconds_to_in_service"] == 2
    assert changed["invoke_errors"] == {"times": 2, "status": 503, "component": ""}
    name = unique("adapter")
    endpoint.sagemaker.create_inference_component(**endpoint.request(name))
    assert endpoint.describe(name)["InferenceComponentStatus"] == "Creating"
    eventually(lambda: endpoint.describe(name)["InferenceComponentStatus"] == "InService", "its coming up", seconds=10)


def test_a_bad_setting_is_answered_in_words_and_changes_nothing(behaving: LocalCloud) -> None:
    before = behaving.behaviour()
    with pytest.raises(ValueError, match=r"^seconds_to_delete is -1; it must be a number of seconds, 0 or more$"):
        behaving.behave(seconds_to_in_service=30, seconds_to_delete=-1)
    with pytest.raises(ValueError, match=r"^speed: no such setting; there are adapters_ignored"):
        behaving.behave(speed=1)
    assert behaving.behaviour() == before


@pytest.mark.parametrize(
    ("method", "body", "status", "message"),
    [
        ("PATCH", b"fast", 400, "no JSON: Expecting value"),
        ("PATCH", b"[1]", 400, "no object of settings"),
        ("PUT", b"{}", 405, "/_loradrop/behaviour takes GET and PATCH"),
    ],
)
def test_what_is_no_setting_at_all_is_answered_in_words(
    cloud: LocalCloud, method: str, body: bytes, status: int, message: str
) -> None:
    request = urllib.request.Request(f"{cloud.endpoint_url}/_loradrop/behaviour", body, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == status
    assert json.load(refused.value)["message"].startswith(message)


# The program


def run_local(*arguments: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "local", *arguments]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30)


def test_a_port_that_is_taken_is_said_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_local("--engine", "stand-in", "--port", str(port))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"loradrop: cannot listen on 127.0.0.1:{port}: Address already in use.\n"
        "Another local cloud, or another program, uses this port: end it, or take any free one:\n"
        "  python -m local --port 0\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--port", "70000"], 2, "argument --port: '70000' is no port; it must be a whole number from 0 to 65535"),
        (["--behaviour", "fast"], 2, "argument --behaviour: no JSON: Expecting value"),
        (["--behaviour", '{"speed": 1}'], 2, "argument --behaviour: speed: no such setting; there are"),
        (
            ["--port", "0", "--base", "/nonexistent"],
            1,
            "there is no model in /nonexistent. Make it:\n  python -m loradrop_training.tiny\n",
        ),
    ],
)
def test_a_bad_option_is_said_so(arguments: list[str], status: int, message: str) -> None:
    done = run_local(*arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


SLOW = """
import time

def handler(event, context):
    time.sleep(60)
"""


def processes_with(mark: str) -> dict[int, str]:
    """The processes that were started with this in their environment, and their command lines."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


class Program:
    """The local cloud as a shell starts it, with a Lambda at work; known by a mark in its processes' environment."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark, self.folder = uuid.uuid4().hex, folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local", "--port", "0", "--engine", "stand-in", *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"LORADROP_TEST_MARK": self.mark, "TMPDIR": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.endpoint_url = self.process.stdout.readline().removeprefix(READY).strip()

    def processes(self) -> dict[int, str]:
        return processes_with(self.mark)

    def work(self) -> None:
        """Have a Lambda at work, and return when its process is there."""
        cloud = LocalCloud()
        cloud.endpoint_url = self.endpoint_url
        account = Account(cloud)
        function = account.function(SLOW)
        definition = {"StartAt": "Work", "States": {"Work": {"Type": "Task", "Resource": function, "End": True}}}
        machine = account.machine(definition, allow("lambda:InvokeFunction"))
        account.states.start_execution(stateMachineArn=machine)
        eventually(lambda: len(self.processes()) > 1, "the Lambda's process", seconds=10)


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    started = Program(tmp_path, *getattr(request, "param", ()))
    try:
        yield started
    finally:
        for number in started.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        started.process.wait()
        for pipe in (started.process.stdin, started.process.stdout):
            if pipe is not None:
                pipe.close()


def close_stdin(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.close()


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="processes are found in /proc")
@pytest.mark.parametrize(
    ("program", "end"),
    [
        pytest.param((), lambda process: process.send_signal(signal.SIGTERM), id="terminated"),
        pytest.param((), lambda process: process.send_signal(signal.SIGINT), id="interrupted"),
        pytest.param(("--until-stdin-closes",), close_stdin, id="parent gone"),
    ],
    indirect=["program"],
)
def test_nothing_is_left_when_it_ends(program: Program, end: Callable[[Any], None]) -> None:
    program.work()
    assert list(program.folder.glob("loradrop-local-*")), "what it keeps while it runs"
    end(program.process)
    assert program.process.wait(timeout=10) == 0
    eventually(lambda: not program.processes(), "the end of the Lambda's process", seconds=5)
    assert list(program.folder.iterdir()) == []


QUICK = """
def handler(event, context):
    return "done"
"""


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="processes are found in /proc")
def test_all_functions_together_keep_three_processes_for_each_that_may_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMBDA_ACCOUNT_CONCURRENCY", "2")
    program = Program(tmp_path)
    try:
        cloud = LocalCloud()
        cloud.endpoint_url = program.endpoint_url
        account = Account(cloud)
        most = 2 * KEPT_FOR_EACH_AT_WORK
        for function in [account.function(QUICK) for _ in range(most + 2)]:
            answer = account.client("lambda").invoke(FunctionName=function)
            assert json.load(answer["Payload"]) == "done"
            workers = [line for line in program.processes().values() if "-m local" not in line]
            assert 1 <= len(workers) <= most
        assert len(workers) == most
    finally:
        program.process.terminate()
        program.process.communicate(timeout=20)


def test_it_says_what_to_do_next_on_its_own_port(program: Program) -> None:
    port = program.endpoint_url.rpartition(":")[2]
    assert program.process.stdout is not None
    printed = list(iter(program.process.stdout.readline, "  sam build\n"))
    assert f'  eval "$(make -s local-env PORT={port})"\n' in printed


def test_one_after_another_may_have_the_same_port_and_not_two_at_once(cloud: LocalCloud) -> None:
    port = int(cloud.endpoint_url.rpartition(":")[2])
    with pytest.raises(RuntimeError, match="the local cloud ended with status 1"), LocalCloud(port=port):
        pytest.fail("two of them on one port")
    with LocalCloud(behaviour={"seconds_to_delete": 3}) as first:
        assert first.behaviour()["seconds_to_delete"] == 3
    port = int(first.endpoint_url.rpartition(":")[2])
    with LocalCloud(port=port) as second:
        assert second.endpoint_url == first.endpoint_url
        assert second.behaviour()["seconds_to_delete"] == 2, "deletions take their time by default"
