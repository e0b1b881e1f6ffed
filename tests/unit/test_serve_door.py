"""The door: OpenAI's API in front of the hosting emulator, its rules at the lowest layer."""

import asyncio
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from local.engines import Token, UnknownAdapterError
from local.engines.stand_in import StandInEngine
from local.hosting import SERVING, behaving
from local.hosting.serving import stand_in_engine
from loradrop.lifecycle import AdapterState, ComponentEntry, ComponentState, Live
from loradrop.registry_items import state_item
from loradrop.registry_reader import RegistryReader
from loradrop_cli.main import main
from loradrop_client import AccessRefusedError, Adapters, AwsUnavailableError, LoradropError, Served
from loradrop_serve.app import application
from loradrop_serve.door import MAX_BODY_BYTES, Door, Models, _body_of, _Call, _Stream
from loradrop_serve.metrics import Metrics
from loradrop_serve.refusals import RefusalError
from loradrop_serve.relay import MAX_HELD_BYTES, Relay, StalledError
from loradrop_serve.server import hosts_of
from tests.adapters import good_tarball

from .conftest import BASE, ENDPOINT, TABLE

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "How are you?"}], "max_tokens": 12, "temperature": 0}
RELEASES = {"acme-1": "1111aaaa" * 8, "acme-2": "2222bbbb" * 8, "globex-1": "3333cccc" * 8}


@functools.cache
def runtime_of(_aws: Any) -> tuple[boto3.Session, list[dict[str, Any]]]:
    """A session for all tests, which keeps the services' descriptions, and the bodies of the invocations through it."""
    session, bodies = boto3.Session(), []
    session.events.register(
        "before-call.sagemaker-runtime", lambda params, **_: bodies.append(json.loads(params["body"]))
    )
    return session, bodies


class Shop:
    """A stack with adapters that are live, and a door to it; no wait is slept."""

    def __init__(
        self, stack: Any, aws: Any, *, cache_seconds: float = 0, adapters: Any = None, **settings: Any
    ) -> None:
        self.stack = stack
        self.slept: list[float] = []
        self.session, self.bodies = runtime_of(aws)
        self.bodies.clear()
        self.adapters = adapters or Adapters(
            registry_table=TABLE,
            session=self.session,
            base=Served(BASE, ENDPOINT),
            cache_seconds=cache_seconds,
            sleep=self.slept.append,
            chance=lambda: 1.0,
            clock=lambda: sum(self.slept),
        )
        self.metrics = Metrics()
        registry = RegistryReader(self.session.client("dynamodb"), TABLE)
        self.door = Door(self.adapters, Models(registry, clock=self._later), self.metrics, **settings)
        self.app = application(self.door)
        self._seconds = 0.0

    def _later(self) -> float:
        self._seconds += 100
        return self._seconds

    def client(self) -> TestClient:
        return TestClient(self.app, base_url="http://127.0.0.1:8080")

    def deploy(self, component: str, *, seed: int) -> None:
        self.stack.s3.put_object(Bucket="releases", Key=f"{component}.tar.gz", Body=good_tarball(seed=seed))
        artifact = {"ArtifactUrl": f"s3://releases/{component}.tar.gz"}
        self.stack.sagemaker.create_inference_component(
            InferenceComponentName=component,
            EndpointName=ENDPOINT,
            Specification={"BaseInferenceComponentName": BASE, "Container": artifact},
        )

    def put(self, adapter: str, live: str | None, standby: tuple[str, ...] = ()) -> None:
        states = dict.fromkeys(standby, ComponentState.STANDBY) | ({live: ComponentState.LIVE} if live else {})
        entries = {
            name: ComponentEntry("attempt", "1", RELEASES[name], ENDPOINT, BASE, state)
            for name, state in states.items()
        }
        pointer = Live(live, ENDPOINT, BASE, RELEASES[live], "1", "v", "2026-01-02T03:04:05Z") if live else None
        item = state_item(adapter, AdapterState(1, "1", pointer, entries))
        self.stack.dynamodb.put_item(TableName=TABLE, Item=item)

    def ask(self, client: TestClient, model: str, **more: Any) -> str:
        answered = client.post("/v1/chat/completions", json={"model": model, **ASK, **more})
        assert answered.status_code == 200, answered.text
        text: str = answered.json()["choices"][0]["message"]["content"]
        return text


@pytest.fixture
def shop(stack: Any, aws: Any) -> Shop:
    shop = Shop(stack, aws)
    shop.deploy("acme-1", seed=1)
    shop.deploy("acme-2", seed=2)
    shop.put("acme", "acme-2", standby=("acme-1",))
    return shop


@pytest.fixture
def client(shop: Shop) -> Iterator[TestClient]:
    with shop.client() as client:
        yield client


def events_in(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) if line.startswith("{") else line for line in lines]


# Models


def test_live_adapters_and_the_base_are_models(shop: Shop, client: TestClient) -> None:
    shop.put("tenant/globex", "globex-1")
    shop.put("removed", None)
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [one["id"] for one in listed["data"]] == ["base", "acme", "tenant/globex"]
    globex = client.get("/v1/models/tenant/globex").json()
    assert globex == listed["data"][2]
    assert (globex["created"], globex["release"]) == (1767323045, RELEASES["globex-1"])
    assert client.get("/v1/models/base").json()["id"] == "base"
    assert client.get("/v1/models/removed").status_code == 404


def test_a_model_is_an_adapter_or_a_release_that_stands_or_the_base(shop: Shop, client: TestClient) -> None:
    live, base = shop.ask(client, "acme"), shop.ask(client, "base")
    before = shop.ask(client, "acme@1111aaaa")
    assert len({live, base, before}) == 3
    assert shop.ask(client, f"acme@{RELEASES['acme-2']}") == live
    shop.put("acme", "acme-1", standby=("acme-2",))
    assert shop.ask(client, "acme") == before
    answered = client.post("/v1/chat/completions", json={"model": "acme", **ASK})
    assert answered.headers["x-loradrop-component"] == "acme-1"
    assert answered.headers["x-loradrop-release"] == RELEASES["acme-1"]
    assert answered.json()["model"] == "acme"


def test_an_unknown_model_is_not_found_and_nothing_else_answers_for_it(shop: Shop, client: TestClient) -> None:
    for model, said in (
        ("acne", "The adapter 'acne' is not live: it was not deployed yet, or it was removed. Did you mean acme?"),
        ("acme@3333", "The release '3333' of 'acme' does not stand. Releases that stand: 1111aaaa, 2222bbbb."),
        ("acme@11", "The release '11' of 'acme' is less than 4 characters."),
        ("acme@", "The release '' of 'acme' is less than 4 characters."),
        ("@1111aaaa", "The name of the adapter is empty."),
        ("gpt-4o", "The adapter 'gpt-4o' is not live"),
        ("<img src=x onerror=alert(1)>", "is not live"),
    ):
        for streamed in (False, True):
            answered = client.post("/v1/chat/completions", json={"model": model, **ASK, "stream": streamed})
            assert answered.status_code == 404
            error = answered.json()["error"]
            assert said in error["message"]
            assert [error[name] for name in ("type", "code", "param")] == [
                "invalid_request_error",
                "model_not_found",
                "model",
            ]
    assert shop.bodies == []


def test_an_adapter_that_is_called_base_is_not_answered_by_the_base(shop: Shop, client: TestClient) -> None:
    shop.put("base", "acme-1")
    refused = client.post("/v1/chat/completions", json={"model": "base", **ASK})
    assert refused.status_code == 404
    assert "an adapter is called so too" in refused.json()["error"]["message"]
    assert shop.ask(client, "base@1111aaaa") == shop.ask(client, "acme@1111aaaa")

    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["acme", f"base@{RELEASES['acme-1']}"]
    assert client.get("/v1/models/base").status_code == 404


def test_a_release_that_stands_is_a_model(client: TestClient) -> None:
    found = client.get("/v1/models/acme@2222").json()
    assert (found["id"], found["release"], found["created"]) == ("acme@2222", RELEASES["acme-2"], 1767323045)
    assert client.get("/v1/models/acme@1111").json()["release"] == RELEASES["acme-1"]
    missing = client.get("/v1/models/acme@3333")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


# Requests and answers


def test_a_request_goes_on_as_it_came_but_for_its_model(shop: Shop, client: TestClient) -> None:
    more = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto", "seed": 7, "stop": ["."]}
    shop.ask(client, "acme", **more)
    assert shop.bodies == [ASK | more]


def test_a_completion_too(shop: Shop, client: TestClient) -> None:
    asked = {"model": "acme", "prompt": "Once", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    whole = client.post("/v1/completions", json=asked).json()
    assert whole["object"] == "text_completion"
    assert len(whole["choices"][0]["logprobs"]["tokens"]) == whole["usage"]["completion_tokens"] == 8
    streamed = events_in(client.post("/v1/completions", json=asked | {"stream": True}).text)
    assert "".join(one["choices"][0]["text"] for one in streamed[:-1]) == whole["choices"][0]["text"]


def test_a_stream_is_server_sent_events_and_says_what_the_whole_answer_says(shop: Shop, client: TestClient) -> None:
    text = shop.ask(client, "acme")
    asked = {"model": "acme", **ASK, "stream": True, "logprobs": True, "stream_options": {"include_usage": True}}
    answered = client.post("/v1/chat/completions", json=asked)
    assert answered.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answered.headers["x-loradrop-release"] == RELEASES["acme-2"]
    *events, usage, end = events_in(answered.text)
    assert end == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert {one["model"] for one in events} == {"acme"}
    assert "".join(one["choices"][0]["delta"]["content"] for one in events) == text
    assert events[1]["choices"][0]["logprobs"]["content"][0]["logprob"] < 0


def test_what_is_no_request_goes_nowhere(shop: Shop, client: TestClient) -> None:
    for body, status, said in (
        (b"{", 400, "The request is not JSON"),
        (b"[" * 100_000, 400, "The request is not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"messages": []}', 400, "`model` must name an adapter"),
        (b'{"model": 1, "messages": []}', 400, "`model` must name an adapter"),
        (rb'{"model": "\ud800", "messages": []}', 400, "`model` must name an adapter"),
        (b'{"model": "base", "messages": [], "adapters": ["acme"]}', 400, "`adapters` is not taken"),
        (b'{"model": "acme"}', 400, "`messages` is missing"),
        (b'{"model": "acme", "messages": [], "prompt": "Once"}', 400, "`prompt` does not go with `messages`"),
        (b'{"model": "acme", "messages": [], "stream": 1}', 400, "`stream` must be true or false"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "more than"),
    ):
        refused = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert refused.status_code == status, body[:50]
        assert said in refused.json()["error"]["message"]
    assert shop.bodies == []


def test_the_engines_refusal_is_passed_on_as_it_is(client: TestClient) -> None:
    refused = client.post("/v1/chat/completions", json={"model": "acme", **ASK, "max_tokens": 0})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "max_tokens must be a whole number of at least 1, got 0."
    streamed = client.post("/v1/chat/completions", json={"model": "acme", **ASK, "max_tokens": 0, "stream": True})
    assert (streamed.status_code, streamed.json()) == (400, refused.json())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_component_that_is_being_healed_is_503_with_a_time_to_ask_again(
    shop: Shop, client: TestClient, streamed: bool
) -> None:
    shop.stack.sagemaker.delete_inference_component(InferenceComponentName="acme-2")
    refused = client.post("/v1/chat/completions", json={"model": "acme", **ASK, "stream": streamed})
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "30"
    assert refused.json()["error"]["code"] == "component_broken"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_model_that_is_not_ready_is_asked_until_the_deadline(shop: Shop, client: TestClient, streamed: bool) -> None:
    with behaving(invoke_errors={"times": 3, "status": 503}):
        assert client.post("/v1/chat/completions", json={"model": "acme", **ASK, "stream": streamed}).status_code == 200
    for status, answered in ((424, 503), (429, 429)):
        with behaving(invoke_errors={"times": 1000, "status": status}):
            refused = client.post("/v1/chat/completions", json={"model": "acme", **ASK, "stream": streamed})
        assert (refused.status_code, refused.headers["retry-after"]) == (answered, "2")


def test_a_component_that_was_replaced_in_between_is_looked_up_anew(stack: Any, aws: Any) -> None:
    shop = Shop(stack, aws, cache_seconds=1e9)
    shop.deploy("acme-1", seed=1)
    shop.deploy("acme-2", seed=2)
    shop.put("acme", "acme-2")
    with shop.client() as client:
        before = shop.ask(client, "acme")
        shop.put("acme", "acme-1")
        shop.stack.sagemaker.delete_inference_component(InferenceComponentName="acme-2")
        assert shop.ask(client, "acme") not in ("", before)


class BreaksOff(StandInEngine):
    def stream(self, *arguments: Any, **more: Any) -> Iterator[Token]:
        for number, token in enumerate(super().stream(*arguments, **more)):
            if number == 4:
                raise UnknownAdapterError("acme-2")
            yield token


def test_a_stream_that_breaks_off_ends_with_an_error_and_not_as_if_it_were_done(stack: Any, aws: Any) -> None:
    SERVING.serve_with(lambda _: BreaksOff())
    try:
        shop = Shop(stack, aws)
        shop.deploy("acme-2", seed=2)
        shop.put("acme", "acme-2")
        with shop.client() as client:
            answered = client.post("/v1/chat/completions", json={"model": "acme", **ASK, "stream": True})
    finally:
        SERVING.serve_with(stand_in_engine)
    events = events_in(answered.text)
    assert "choices" in events[0]
    assert events[-1]["error"]["code"] == "stream_broken"
    assert 'loradrop_door_errors_total{model="acme",status="502"} 1' in shop.metrics.text()


# Who may ask


def test_another_sites_page_gets_no_answer(client: TestClient) -> None:
    for headers, status in (
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:8080"}, 421),
        ({"host": "localhost:1234"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ({"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}, 200),
        ({"authorization": "Bearer whatever"}, 200),
    ):
        assert client.get("/v1/models", headers=headers).status_code == status, headers


def test_a_form_of_another_site_cannot_ask(shop: Shop, client: TestClient) -> None:
    asked = json.dumps({"model": "acme", **ASK})
    refused = client.post("/v1/chat/completions", content=asked, headers={"content-type": "text/plain"})
    assert refused.status_code == 415
    assert shop.bodies == []


def test_where_there_is_a_token_it_is_wanted(shop: Shop) -> None:
    token = "a-token-of-some-length"
    app = application(shop.door, token=token, hosts=None)
    with TestClient(app, base_url="http://10.1.2.3:8080") as client:
        for given in ({}, {"authorization": "Bearer other"}, {"authorization": "Basic %%%"}, {"authorization": token}):
            refused = client.get("/v1/models", headers=given)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/v1/models", headers={"authorization": f"Bearer {token}"}).status_code == 200
        assert client.get("/v1/models", auth=("anybody", token)).status_code == 200


def test_every_answer_has_a_policy_and_an_unknown_path_openais_form(client: TestClient) -> None:
    answered = client.get("/v1/nothing")
    assert answered.status_code == 404
    assert answered.json()["error"]["code"] == "unknown_url"
    assert "default-src 'none'" in answered.headers["content-security-policy"]
    assert "unsafe" not in answered.headers["content-security-policy"]
    assert client.get("/v1/chat/completions").status_code == 405


def test_a_server_may_be_called_as_it_was_told_to_listen(shop: Shop) -> None:
    for host, called in (("127.0.0.2", "127.0.0.2:8080"), ("::1", "[::1]:8080"), ("127.0.0.2", "localhost")):
        with TestClient(application(shop.door, hosts=hosts_of(host)), base_url="http://127.0.0.1") as client:
            assert client.get("/metrics", headers={"host": called}).status_code == 200
            assert client.get("/metrics", headers={"host": "127.0.0.3"}).status_code == 421


# What is counted


def test_requests_tokens_and_errors_are_counted_by_adapter(shop: Shop, client: TestClient) -> None:
    shop.ask(client, "acme")
    client.post("/v1/chat/completions", json={"model": "acme", **ASK, "stream": True})
    shop.ask(client, "acme@2222bb")
    half = client.post(
        "/v1/completions",
        content=rb'{"model": "acme@2222", "prompt": "\ud800"}',
        headers={"content-type": "application/json"},
    )
    assert (half.status_code, "lone surrogate" in half.text) == (400, True)
    for name in ("nobody", 'evil"} 1\nmetric 2', "acme@evil"):
        client.post("/v1/chat/completions", json={"model": name, **ASK})
    counted = client.get("/metrics").text.splitlines()
    path = 'path="/v1/chat/completions"'
    assert f'loradrop_door_requests_total{{model="acme",{path},status="200"}} 3' in counted
    assert f'loradrop_door_requests_total{{model="",{path},status="404"}} 3' in counted
    assert 'loradrop_door_errors_total{model="",status="404"} 3' in counted
    # Of a stream without usage, its pieces: the first names the role.
    assert 'loradrop_door_tokens_total{model="acme",kind="completion"} 37' in counted
    assert 'loradrop_door_seconds_count{model="acme"} 4' in counted
    assert "loradrop_door_in_flight 0" in counted
    assert not any("evil" in line or "@" in line for line in counted)
    assert not shop.metrics.in_flight_of


@pytest.mark.parametrize("error", [AccessRefusedError, AwsUnavailableError, RuntimeError])
def test_a_name_that_nobody_looked_up_is_no_label(stack: Any, aws: Any, error: type[Exception]) -> None:
    class Refusing:
        def ask(self, _model: str, _asked: Any) -> Any:
            raise error("no")

    shop = Shop(stack, aws, adapters=Refusing())
    with TestClient(shop.app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        assert client.post("/v1/chat/completions", json={"model": "invented", **ASK}).status_code in (500, 502)
    assert "invented" not in shop.metrics.text()


# Clients that go away, and many at once


class Source:
    def __init__(self) -> None:
        self.ended = threading.Event()

    def end(self) -> None:
        self.ended.set()


def test_a_relay_holds_no_more_than_its_bound_and_each_side_hears_when_the_other_leaves() -> None:
    async def scenario() -> tuple[int, bool]:
        relay, source, threads = Relay(), Source(), ThreadPoolExecutor(1)
        held = 0

        def write() -> bool:
            nonlocal held
            relay.opened(source)
            while relay.put(b"x" * 1024):
                held += 1024
            return True

        writing = asyncio.get_running_loop().run_in_executor(threads, write)
        assert await relay.take() is not None
        while relay._held_bytes <= MAX_HELD_BYTES:  # until the writer waits
            await asyncio.sleep(0)
        most = relay._held_bytes
        relay.leave()
        assert await relay.take() is None
        return most, await asyncio.wait_for(writing, 5) and source.ended.is_set()

    most, is_ended = asyncio.run(scenario())
    assert most <= MAX_HELD_BYTES + 1024
    assert is_ended


def test_a_client_that_takes_nothing_is_cut_off_and_not_ended_as_if_it_had_all(shop: Shop) -> None:
    async def scenario(fill: int, send_: Callable[[Any], Awaitable[None]]) -> tuple[list[Any], bool, Any]:
        relay, source, sent = Relay(stalled_seconds=0.01), Source(), []

        async def send(message: Any) -> None:
            sent.append(message)
            await send_(message)

        def write() -> None:
            relay.opened(source)
            for _ in range(fill):
                relay.put(b"x" * 1024)
            relay.finish()

        await asyncio.get_running_loop().run_in_executor(None, write)
        stream = _Stream(relay, asyncio.create_task(asyncio.sleep(10)), _Call(shop.metrics, "/"), {})
        answering = asyncio.create_task(stream({}, send, send))  # type: ignore[arg-type]
        await asyncio.wait([answering], timeout=5)
        assert answering.done()
        return sent, shop.metrics.in_flight == 0, answering.exception()

    async def takes_all(_message: Any) -> None:
        return

    async def takes_nothing(_message: Any) -> None:
        await asyncio.Event().wait()

    for fill, send, error in ((1000, takes_all, StalledError), (1, takes_nothing, TimeoutError)):
        sent, is_free, raised = asyncio.run(scenario(fill, send))
        assert isinstance(raised, error)
        assert is_free
        assert not any(one.get("more_body") is False for one in sent)
    assert 'status="499"} 2' in shop.metrics.text()


def test_a_request_that_never_comes_whole_keeps_no_place() -> None:
    async def receive() -> Any:
        return await asyncio.get_running_loop().create_future()

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(RefusalError) as refused:
        asyncio.run(_body_of(Request(scope, receive), 0.01))
    assert refused.value.status == 408


class Failing:
    """Adapters with a fault that nobody foresaw."""

    def __init__(self, events: list[Any]) -> None:
        self.events, self.served = events, Served("acme-2", ENDPOINT, "2222")

    def begin(self, _model: str, _asked: Any) -> "Failing":
        return self

    def ask(self, _model: str, _asked: Any) -> Any:
        return self.served, self.events[0]

    def end(self) -> None:
        pass

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.events
        raise RuntimeError("nobody foresaw it")


def test_a_fault_of_the_server_is_never_an_answer_that_is_done(stack: Any, aws: Any) -> None:
    one = {"choices": [{"index": 0, "delta": {"content": "one"}}]}
    for events, streamed, status in (([one], True, 200), ([], True, 500), ([{"choices": [{1, 2}]}], False, 500)):
        shop = Shop(stack, aws, adapters=Failing(events))
        with TestClient(shop.app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            answered = client.post("/v1/chat/completions", json={"model": "acme", **ASK, "stream": streamed})
        assert answered.status_code == status
        last = events_in(answered.text)[-1] if status == 200 else answered.json()
        assert last["error"]["type"] == "server_error"
        assert "foresaw" not in answered.text
        assert f'status="{502 if status == 200 else 500}"}} 1' in shop.metrics.text()
        assert shop.metrics.in_flight == 0


class Upstream:
    """Adapters whose stream never ends by itself."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()
        self.served = Served("acme-2", ENDPOINT, "2222")

    def begin(self, _model: str, _asked: Any) -> "Upstream":
        return self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"choices": [{"index": 0, "delta": {"content": "one"}}]}
        self.began.set()
        if not self.ended.wait(10):
            raise AssertionError("nobody ended the stream")
        raise LoradropError("the connection was shut down")

    def end(self) -> None:
        self.ended.set()


def test_a_client_that_goes_away_ends_its_stream_upstream(stack: Any, aws: Any) -> None:
    upstream = Upstream()
    shop = Shop(stack, aws, adapters=upstream)
    body = json.dumps({"model": "acme", **ASK, "stream": True}).encode()

    async def scenario() -> list[Any]:
        sent: list[Any] = []
        first = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            if (message := next(messages, None)) is not None:
                return message
            await first.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if message.get("body"):
                first.set()

        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        scope |= {"query_string": b"", "server": ("127.0.0.1", 80), "scheme": "http", "root_path": ""}
        await asyncio.wait_for(shop.app(scope, receive, send), 10)
        return sent

    sent = asyncio.run(scenario())
    assert b'"one"' in sent[1]["body"]
    assert not any(b"[DONE]" in one.get("body", b"") for one in sent)
    assert upstream.ended.wait(5)
    counted = shop.metrics.text()
    assert 'status="499"} 1' in counted
    assert "loradrop_door_in_flight 0" in counted


def test_more_requests_than_are_answered_at_a_time_are_told_to_come_again(stack: Any, aws: Any) -> None:
    shop = Shop(stack, aws, max_requests=1)
    shop.metrics.in_flight = 1
    with shop.client() as client:
        refused = client.post("/v1/chat/completions", json={"model": "acme", **ASK})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert client.get("/v1/models").status_code == 200


def test_one_model_takes_no_more_than_half_of_the_places(stack: Any, aws: Any) -> None:
    class Loading:
        def ask(self, model: str, _asked: Any) -> Any:
            return Served(model, ENDPOINT), {}

    shop = Shop(stack, aws, adapters=Loading(), max_requests=4)
    shop.metrics.in_flight, shop.metrics.in_flight_of["acme"] = 2, 2
    with shop.client() as client:
        for model, status in (("acme", 503), ("acme@1111", 503), ("globex", 200), ("acme", 503)):
            answered = client.post("/v1/chat/completions", json={"model": model, **ASK})
            assert answered.status_code == status
        assert answered.json()["error"]["code"] == "server_busy"
        assert answered.headers["retry-after"] == "2"
    assert shop.metrics.in_flight_of == {"acme": 2}


@pytest.mark.parametrize("models", [("acme",), ("acme", "globex", "base")])
def test_64_streams_at_once_are_each_answered_in_full(shop: Shop, client: TestClient, models: tuple[str, ...]) -> None:
    shop.deploy("globex-1", seed=3)
    shop.put("globex", "globex-1")
    texts = {model: shop.ask(client, model) for model in models}

    def ask(number: int) -> bool:
        model = models[number % len(models)]
        answered = client.post("/v1/chat/completions", json={"model": model, **ASK, "stream": True})
        *events, end = events_in(answered.text)
        return end == "[DONE]" and texts[model] == "".join(one["choices"][0]["delta"]["content"] for one in events)

    with ThreadPoolExecutor(64) as threads:
        assert all(threads.map(ask, range(64)))


# The command


def test_what_is_not_installed_is_named_with_its_command() -> None:
    script = "import sys; sys.modules['uvicorn'] = None; from loradrop_cli.main import main; sys.exit(main(['serve']))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.endswith("not installed: uvicorn. Install it:\n  pip install 'loradrop[serve]'\n")


def test_others_reach_the_server_only_with_a_token_worth_the_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "loradrop serve --host 0.0.0.0 --token-file token" in capsys.readouterr().err
    for token in ("", "short", "two words that are long enough", "line\nline-line-line-line", "grüße-grüße-grüße"):
        (tmp_path / "token").write_text(token)
        assert main(["serve", "--token-file", str(tmp_path / "token")]) == 2
        assert "at least 16 ASCII characters without spaces" in capsys.readouterr().err
