"""The door on the deployed stack: unmodified clients of OpenAI's API, and updates under their requests."""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import operator
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from starlette.testclient import TestClient

from local.cloud import REGION
from local.door import LocalDoor
from local.engines.stand_in import StandInEngine
from loradrop_cli.connection import Connection
from loradrop_client.adapters import CACHE_SECONDS
from loradrop_serve.server import application_of
from tests.adapters import good_tarball

from .account import ACCOUNT, Account, allow, policy, unique
from .conftest import REPOSITORY, StackUnderTest, eventually
from .test_life import to_operate
from .test_push import as_user, documented, known_names, push, without_each_action

__all__ = ["as_user", "push"]  # fixtures

MESSAGES: Any = [{"role": "user", "content": "Say in one sentence what you are for."}]
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
# In CI a few; `make test-door` makes 50 of them.
UPDATES = int(os.environ.get("LORADROP_UPDATES", "3"))
ASKERS = 4


@contextlib.contextmanager
def served(stack: StackUnderTest, *options: str | Path) -> Iterator[str]:
    """`loradrop serve` as its user starts it; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "loradrop_cli", "serve", "--stack", stack.name, "--port", "0", *map(str, options)],
        cwd=REPOSITORY,
        env=os.environ | stack.cloud.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.fullmatch(rf"The stack {stack.name}: (http://\S+)/\n", said)
        assert found, said
        yield found[1]
    finally:
        process.terminate()
        with process:
            assert process.wait(30) == 143


@pytest.fixture(scope="module")
def door(deployed: StackUnderTest) -> Iterator[str]:
    with served(deployed) as url:
        yield url


@pytest.fixture
def client(door: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{door}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def adapter(deployed: StackUnderTest) -> str:
    name = f"tenant/{unique('served')}"
    assert deployed.drop(name, good_tarball(seed=700)).status == "SUCCEEDED"
    return name


def test_the_openai_sdk_asks_and_streams(client: openai.OpenAI, adapter: str) -> None:
    assert adapter in [one.id for one in client.models.list()]
    assert client.models.retrieve(adapter).id == adapter
    whole = client.chat.completions.create(model=adapter, messages=MESSAGES, logprobs=True, **GREEDY)
    choice = whole.choices[0]
    assert whole.model == adapter
    assert whole.usage is not None
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == whole.usage.completion_tokens > 0
    chunks = list(
        client.chat.completions.create(
            model=adapter, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert chunks[-1].usage == whole.usage
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == choice.message.content != ""
    base = client.chat.completions.create(model="base", messages=MESSAGES, **GREEDY)
    assert base.choices[0].message.content != text
    completed = client.completions.create(model=adapter, prompt="Once", **GREEDY)
    streamed = client.completions.create(model=adapter, prompt="Once", stream=True, **GREEDY)
    assert "".join(one.choices[0].text for one in streamed) == completed.choices[0].text != ""


def test_the_openai_sdk_reads_what_is_refused(client: openai.OpenAI, adapter: str) -> None:
    with pytest.raises(openai.NotFoundError, match=f"Did you mean {adapter}") as unknown:
        client.chat.completions.create(model=adapter[:-1], messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature must be"):
        client.chat.completions.create(model=adapter, messages=MESSAGES, temperature=-1)


def test_the_openai_sdk_asks_asynchronously(door: str, adapter: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{door}/v1", api_key="-", max_retries=0) as client:

            async def streamed() -> str:
                stream = await client.chat.completions.create(model=adapter, messages=MESSAGES, stream=True, **GREEDY)
                return "".join([one.choices[0].delta.content or "" async for one in stream])

            whole = await client.chat.completions.create(model=adapter, messages=MESSAGES, **GREEDY)
            return [whole.choices[0].message.content or "", *await asyncio.gather(*(streamed() for _ in range(16)))]

    answers = asyncio.run(ask())
    assert len(set(answers)) == 1
    assert answers[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_asks_and_streams(door: str, adapter: str) -> None:
    def curl(**more: Any) -> str:
        body = json.dumps({"model": adapter, "messages": MESSAGES, **GREEDY, **more})
        words = ["curl", "-sSN", f"{door}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout

    text = json.loads(curl())["choices"][0]["message"]["content"]
    lines = [line.removeprefix("data: ") for line in curl(stream=True).splitlines() if line]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["delta"]["content"] for line in lines[:-1]) == text


CLIENTS = Path(os.environ.get("LORADROP_DOOR_PYTHON", REPOSITORY / ".door/bin/python"))


@pytest.mark.skipif(
    not CLIENTS.exists(), reason="LiteLLM and LangChain are in an environment of their own: make test-door"
)
def test_litellm_and_langchain_ask_and_stream(door: str, client: openai.OpenAI, adapter: str) -> None:
    words = [str(CLIENTS), str(Path(__file__).with_name("door_clients.py")), door, adapter]
    tried = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert tried.returncode == 0, tried.stderr[-3000:]
    text = client.chat.completions.create(model=adapter, messages=MESSAGES, **GREEDY).choices[0].message.content
    assert tried.stdout.strip().endswith(f": {text}")
    print(tried.stdout)


def test_a_token_is_the_clients_api_key(stack: StackUnderTest, adapter: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-that-nobody-guesses\n")
    with served(stack, "--token-file", token) as url:
        stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="other", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=token.read_text().strip(), max_retries=0)
        assert client.chat.completions.create(model=adapter, messages=MESSAGES, **GREEDY).choices[0].message.content


def expected(body: bytes) -> str:
    """What the release of this tarball answers: the engine that stands behind the cloud says the same in every process."""
    engine = StandInEngine()
    engine.load_adapter("one", body)
    prompt = engine.apply_chat_template(MESSAGES)
    return engine.generate(prompt, adapter="one", max_new_tokens=8, temperature=0).text


def test_updates_under_requests_fail_none_and_no_wrong_release_answers(
    stack: StackUnderTest, door: str, adapter: str
) -> None:
    bodies = [good_tarball(seed=710 + number) for number in range(UPDATES + 1)]
    texts = {hashlib.sha256(body).hexdigest(): expected(body) for body in bodies}
    assert len(set(texts.values())) == len(texts)
    order = list(texts)
    ended: list[float] = []
    name = f"{adapter}-updated"
    assert stack.drop(name, bodies[0]).status == "SUCCEEDED"
    ended.append(time.monotonic())
    failures: list[str] = []
    asked = [0] * ASKERS
    is_over = threading.Event()

    def ask(number: int) -> None:
        client = openai.OpenAI(base_url=f"{door}/v1", api_key="-", max_retries=0)
        create = client.chat.completions.with_raw_response.create
        while not is_over.is_set():
            since = time.monotonic()
            try:
                if number % 2:
                    answered = create(model=name, messages=MESSAGES, stream=True, **GREEDY)
                    text = "".join(one.choices[0].delta.content or "" for one in answered.parse())
                else:
                    answered = create(model=name, messages=MESSAGES, **GREEDY)
                    text = answered.parse().choices[0].message.content or ""
            except openai.OpenAIError as error:
                failures.append(str(error))
                continue
            asked[number] += 1
            release = answered.headers["x-loradrop-release"]
            place = order.index(release)
            if text != texts[release]:
                failures.append(f"{text!r} in the name of update {place}")
            # The pointer is kept for seconds, so the one before may still answer then.
            if place + 1 < len(ended) and since > ended[place + 1] + CACHE_SECONDS + 1:
                failures.append(f"update {place} answered long after update {place + 1}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(ASKERS)]
    for thread in threads:
        thread.start()
    try:
        for body in bodies[1:]:
            before = list(asked)
            assert stack.drop(name, body).status == "SUCCEEDED"
            ended.append(time.monotonic())
            eventually(lambda before=before: all(map(operator.gt, asked, before)), "an answer to each")  # type: ignore[misc]
    finally:
        is_over.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    print(f"{sum(asked)} requests under {UPDATES} updates")


def test_the_local_cloud_serves_the_stack_once_it_is_deployed(
    stack: StackUnderTest, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stack.cloud.environment().items():
        monkeypatch.setenv(name, value)
    address = "http://127.0.0.1:8080"
    waiting = TestClient(LocalDoor("not-deployed"), base_url=address).get("/")
    assert (waiting.status_code, waiting.headers["refresh"]) == (503, "3")
    assert "sam deploy --config-env local" in waiting.text
    door = TestClient(LocalDoor(stack.name), base_url=address)
    assert "page.js" in door.get("/").text
    assert adapter in [one["id"] for one in door.get("/v1/models").json()["data"]]


def test_the_documented_permissions_are_enough_and_each_is_needed(
    stack: StackUnderTest, adapter: str, as_user: Callable[[list[dict[str, Any]]], None]
) -> None:
    section = (REPOSITORY / "docs/serving.md").read_text().partition("## Permissions")[2]
    [policy] = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    names = known_names(stack)
    to_look = json.loads(re.sub(r"[A-Z_]{5,}", lambda found: names[found[0]], policy))["Statement"]
    record = stack.newest_record(adapter).removeprefix("upload#")
    execution = stack.states.list_executions(stateMachineArn=stack.machine)["executions"][0]["executionArn"]
    views: list[tuple[str, dict[str, str]]] = [
        ("adapter", {"name": adapter}),
        ("document", {"name": adapter, "order": record, "kind": "smoke"}),
        ("document", {"name": adapter, "order": record, "kind": "manifest"}),
        ("execution", {"arn": execution}),
        ("executions", {}),
    ]

    def refused(statements: list[dict[str, Any]]) -> list[str]:
        as_user([*to_operate(stack), *statements])
        app = application_of(Connection.of(argparse.Namespace(stack=stack.name)))
        client = TestClient(app, base_url="http://127.0.0.1:8080")
        answers = [(view, client.get(f"/api/{view}", params=query)) for view, query in views]
        assert {one.status_code for _, one in answers} <= {200, 502}
        return [view for view, one in answers if one.status_code != 200]

    assert refused(to_look) == []
    # The door alone needs less.
    to_list = {"Sid": "List", "Effect": "Allow", "Action": "dynamodb:Query"}
    to_list["Resource"] = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{names['REGISTRY']}/index/watched"
    as_user([*documented(stack)[1]["Statement"], to_list])
    app = application_of(Connection.of(argparse.Namespace(stack=stack.name)))
    client = TestClient(app, base_url="http://127.0.0.1:8080")
    assert adapter in [one["id"] for one in client.get("/v1/models").json()["data"]]
    for streamed in (False, True):
        asked = {"model": adapter, "messages": MESSAGES, "stream": streamed, **GREEDY}
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
    for missing, statements in without_each_action(to_look):
        assert refused(statements), f"{missing} is not needed"


# SageMaker's own path


def bearer(key: str, secret: str, *, seconds: int = 3600) -> str:
    """A token as its generator makes it: a presigned URL of CallWithBearerToken."""
    request = AWSRequest("POST", "https://sagemaker.amazonaws.com/", params={"Action": "CallWithBearerToken"})
    SigV4QueryAuth(Credentials(key, secret), "sagemaker", REGION, expires=seconds).add_auth(request)
    url = str(request.url).removeprefix("https://")
    return f"sagemaker-api-key-{base64.b64encode(f'{url}&Version=1'.encode()).decode()}"


def test_sagemakers_own_openai_path_answers_who_may_call_with_a_bearer_token(
    stack: StackUnderTest, client: openai.OpenAI, adapter: str
) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "loradrop_cli", "url", adapter, "--stack", stack.name],
        env=os.environ | stack.cloud.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    url = printed.stdout.strip()
    component = stack.live(adapter)
    assert url.endswith(f"/inference-components/{component}/openai/v1")
    assert f"It names the component that is live now, {component}" in printed.stderr
    direct = openai.OpenAI(base_url=url, api_key=bearer("test", "test"), max_retries=0)
    asked: Any = {"messages": MESSAGES, **GREEDY}
    text = client.chat.completions.create(model=adapter, **asked).choices[0].message.content
    assert direct.chat.completions.create(model="", **asked).choices[0].message.content == text
    streamed = direct.chat.completions.create(model="", stream=True, **asked)
    assert "".join(one.choices[0].delta.content or "" for one in streamed) == text
    with pytest.raises(openai.BadRequestError, match="temperature must be"):
        direct.chat.completions.create(model="", messages=MESSAGES, temperature=-1)

    account = Account(stack.cloud)
    may_invoke, may_call = allow("sagemaker:InvokeEndpoint"), allow("sagemaker:CallWithBearerToken")
    for number, statements in enumerate(([may_invoke], [may_call], [may_invoke, may_call])):
        user = f"{unique('bearer')}"
        account.iam.create_user(UserName=user)
        account.iam.put_user_policy(UserName=user, PolicyName="may", PolicyDocument=policy(*statements))
        made = account.iam.create_access_key(UserName=user)["AccessKey"]
        token = bearer(made["AccessKeyId"], made["SecretAccessKey"])
        other = openai.OpenAI(base_url=url, api_key=token, max_retries=0)
        if number == 2:
            assert other.chat.completions.create(model="", **asked).choices[0].message.content == text
        else:
            with pytest.raises(openai.PermissionDeniedError, match="is not authorized"):
                other.chat.completions.create(model="", **asked)
    for token in ("nonsense", bearer("test", "test", seconds=13 * 3600)):
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key=token, max_retries=0).chat.completions.create(model="", **asked)
