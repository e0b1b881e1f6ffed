"""The Python client: whom it asks, what it tries again, and what it says when there is no answer."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any, ClassVar

import boto3
import pytest
from botocore.eventstream import EventStream
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ProfileNotFound,
    ReadTimeoutError,
)
from urllib3 import PoolManager

from local.engines import Token, UnknownAdapterError
from local.engines.stand_in import StandInEngine
from local.hosting import SERVING, behaving
from local.hosting.event_stream import payload_part
from local.hosting.serving import stand_in_engine
from loradrop_client import (
    AccessRefusedError,
    Adapters,
    AwsUnavailableError,
    ComponentBrokenError,
    LoradropError,
    ModelError,
    ModelNotReadyError,
    NoLiveComponentError,
    RequestRefusedError,
    Served,
    StackNotFoundError,
    StreamBrokenError,
    explained,
)
from loradrop_client.adapters import AnswerStream
from loradrop_client.wire import MAX_LINE_BYTES, answer_of, events_of, pieces_of, text_of
from tests.adapters import good_tarball

from .conftest import BASE, ENDPOINT

TABLE = "clients-registry"

GREEDY = {"max_tokens": 12, "temperature": 0}


KEYS: Any = {
    "KeySchema": [{"AttributeName": "adapter", "KeyType": "HASH"}, {"AttributeName": "record", "KeyType": "RANGE"}],
    "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in ("adapter", "record")],
}


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Shop:
    """A stack with adapters that are live, and a client of it whose every call is noted."""

    def __init__(self, stack: Any) -> None:
        self.stack = stack
        stack.dynamodb.create_table(TableName=TABLE, BillingMode="PAY_PER_REQUEST", **KEYS)
        self.time = Time()
        self.calls: list[str] = []
        self.session = boto3.Session()
        self.session.events.register("before-call", self._note)
        self.adapters = self.client()

    def client(self, **settings: Any) -> Adapters:
        return Adapters(
            registry_table=TABLE,
            session=self.session,
            clock=self.time.clock,
            sleep=self.time.sleep,
            chance=lambda: 1.0,
            **settings,
        )

    def _note(self, model: Any, **_: Any) -> None:
        self.calls.append(model.name)

    def deploy(self, component: str, *, adapter: str = "acme", seed: int = 0) -> None:
        """Make a component, and make it live."""
        self.stack.s3.put_object(Bucket="releases", Key=f"{component}.tar.gz", Body=good_tarball(seed=seed))
        artifact = {"ArtifactUrl": f"s3://releases/{component}.tar.gz"}
        self.stack.sagemaker.create_inference_component(
            InferenceComponentName=component,
            EndpointName=ENDPOINT,
            Specification={"BaseInferenceComponentName": BASE, "Container": artifact},
        )
        self.point(component, adapter=adapter)

    def point(self, component: str, *, adapter: str = "acme") -> None:
        self.put(adapter, {"M": {"component": {"S": component}, "endpoint": {"S": ENDPOINT}}})

    def put(self, adapter: str, live: dict[str, Any] | None = None) -> None:
        item = {"adapter": {"S": adapter}, "record": {"S": "state"}} | ({} if live is None else {"live": live})
        self.stack.dynamodb.put_item(TableName=TABLE, Item=item)

    def retire(self, component: str) -> None:
        self.stack.sagemaker.delete_inference_component(InferenceComponentName=component)


@pytest.fixture
def shop(stack: Any) -> Shop:
    shop = Shop(stack)
    shop.deploy("acme-1", seed=1)
    return shop


# Asking


def test_one_question_in_every_way_gets_one_answer(shop: Shop) -> None:
    text = shop.adapters.chat("acme", "How are you?", **GREEDY)
    assert len(text.split()) > 3
    messages = [{"role": "user", "content": "How are you?"}]
    assert shop.adapters.chat("acme", messages, **GREEDY) == text
    pieces = list(shop.adapters.stream("acme", "How are you?", **GREEDY))
    assert len(pieces) > 3
    assert "".join(pieces) == text
    answer = shop.adapters.invoke("acme", {"messages": messages, **GREEDY})
    assert answer["choices"][0]["message"]["content"] == text


def test_a_whole_prompt_is_asked_and_streamed_too(shop: Shop) -> None:
    request = {"inputs": "Once", "parameters": {"max_new_tokens": 12, "temperature": 0}}
    text = shop.adapters.invoke("acme", request)["generated_text"]
    assert text
    assert shop.adapters.chat("acme", request) == text
    assert "".join(shop.adapters.stream("acme", request)) == text
    completion = {"prompt": "Once", "max_tokens": 12, "temperature": 0}
    assert "".join(shop.adapters.stream("acme", completion)) == shop.adapters.chat("acme", completion) != ""


def test_a_system_message_goes_first_and_not_into_a_whole_request(shop: Shop) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert shop.adapters.chat("acme", "Hello", system="Be brief.", **GREEDY) == shop.adapters.chat(
        "acme", asked, **GREEDY
    )
    with pytest.raises(TypeError, match="holds its own system message"):
        shop.adapters.chat("acme", {"inputs": "Hello"}, system="Be brief.")


def test_adapters_are_told_apart(shop: Shop) -> None:
    shop.deploy("globex-1", adapter="tenant/globex", seed=2)
    assert shop.adapters.live_component("tenant/globex") == "globex-1"
    assert shop.adapters.chat("acme", "Hello", **GREEDY) != shop.adapters.chat("tenant/globex", "Hello", **GREEDY)


# The live component


def test_the_pointer_is_kept_for_seconds_and_then_read_again(shop: Shop) -> None:
    assert shop.adapters.live_component("acme") == "acme-1"
    shop.point("acme-2")
    shop.time.now = 4.9
    assert shop.adapters.live_component("acme") == "acme-1"
    shop.time.now = 5.0
    assert shop.adapters.live_component("acme") == "acme-2"
    assert shop.calls.count("GetItem") == 2


def test_threads_share_what_is_known(shop: Shop) -> None:
    shop.adapters.live_component("acme")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: shop.adapters.chat("acme", "Hello", **GREEDY), range(32)))
    assert len(set(answers)) == 1
    assert shop.calls.count("GetItem") == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_component_that_was_retired_in_between_is_looked_up_anew(shop: Shop, streamed: bool) -> None:
    def ask() -> str:
        if streamed:
            return "".join(shop.adapters.stream("acme", "Hello", **GREEDY))
        return shop.adapters.chat("acme", "Hello", **GREEDY)

    before = ask()
    shop.deploy("acme-2", seed=2)
    assert ask() == before  # the pointer is known still
    shop.retire("acme-1")
    assert ask() not in ("", before)
    assert shop.time.slept == []
    assert shop.calls.count("GetItem") == 2


def test_a_component_that_is_gone_and_still_named_is_reported_after_one_more_read(shop: Shop) -> None:
    shop.adapters.chat("acme", "Hello", **GREEDY)
    shop.retire("acme-1")
    with pytest.raises(ComponentBrokenError, match=r"acme-1 answered 400 \(ValidationError\)") as refused:
        shop.adapters.chat("acme", "Hello", **GREEDY)
    assert refused.value.status == 400
    assert str(refused.value).endswith("To see its state:\n  loradrop status acme")
    assert (shop.calls.count("GetItem"), shop.time.slept) == (2, [])


def test_an_adapter_without_a_component_is_reported(shop: Shop) -> None:
    shop.put("claimed")
    for adapter in ("nobody", "claimed"):
        with pytest.raises(NoLiveComponentError, match=f"The adapter '{adapter}' is not live"):
            shop.adapters.chat(adapter, "Hello")


@pytest.mark.parametrize(
    "pointer",
    [
        {"NULL": True},
        {"M": {}},
        {"M": {"component": {"S": "a"}}},
        {"M": {"component": {"S": "a\r\nX-Evil: 1"}, "endpoint": {"S": ENDPOINT}}},
        {"M": {"component": {"S": "a"}, "endpoint": {"S": "../other"}}},
    ],
)
def test_a_pointer_that_names_no_component_is_reported(shop: Shop, pointer: dict[str, Any]) -> None:
    shop.put("odd", pointer)
    with pytest.raises(AwsUnavailableError, match="The live pointer of 'odd' names no component and endpoint"):
        shop.adapters.chat("odd", "Hello")


def test_pointers_that_are_not_asked_for_any_more_are_let_go(shop: Shop) -> None:
    shop.deploy("globex-1", adapter="globex", seed=2)
    shop.adapters.live_component("acme")
    shop.time.now = 5.0
    shop.adapters.live_component("globex")
    assert set(shop.adapters._known) == {"globex"}


def test_a_request_is_sent_in_as_few_bytes_as_it_has(shop: Shop) -> None:
    bodies: list[bytes] = []
    shop.session.events.register(
        "before-call.sagemaker-runtime", lambda params, **_: bodies.append(bytes(params["body"]))
    )
    request = {"messages": [{"role": "user", "content": "世界"}], "max_tokens": 2}
    shop.client().invoke("acme", request)
    assert bodies == ['{"messages":[{"role":"user","content":"世界"}],"max_tokens":2}'.encode()]


@pytest.mark.parametrize("ask", [Adapters.invoke, Adapters.begin])
def test_half_a_character_is_refused_and_not_sent(shop: Shop, ask: Callable[..., Any]) -> None:
    with pytest.raises(RequestRefusedError, match="lone surrogate") as refused:
        ask(shop.adapters, "acme", {"prompt": "\ud800"})
    assert refused.value.status == 400
    assert not {"InvokeEndpoint", "InvokeEndpointWithResponseStream"} & set(shop.calls)


# Trying again


@pytest.mark.parametrize("status", [424, 429, 500, 503, 530])
def test_what_may_succeed_a_moment_later_is_tried_again(shop: Shop, status: int) -> None:
    expected = shop.adapters.chat("acme", "Hello", **GREEDY)
    with behaving(invoke_errors={"times": 3, "status": status}):
        assert shop.adapters.chat("acme", "Hello", **GREEDY) == expected
    with behaving(invoke_errors={"times": 1, "status": status}):
        assert "".join(shop.adapters.stream("acme", "Hello", **GREEDY)) == expected
    assert shop.time.slept == [0.5, 1.0, 2.0, 0.5]


def test_the_delay_is_random_and_bounded_and_the_deadline_kept(shop: Shop) -> None:
    with (
        behaving(invoke_errors={"times": 1000, "status": 503}),
        pytest.raises(
            ModelNotReadyError, match=r"No answer from acme after 11 tries in 56 s\. The last one: acme-1 answered 503"
        ),
    ):
        shop.adapters.chat("acme", "Hello")
    assert shop.time.slept == [0.5, 1.0, 2.0, 4.0, *[8.0] * 6]
    impatient = shop.client(deadline_seconds=0)
    with behaving(invoke_errors={"times": 1, "status": 503}), pytest.raises(ModelNotReadyError, match="after 1 tries"):
        impatient.chat("acme", "Hello")


def test_a_new_component_is_taken_while_the_old_is_not_ready(shop: Shop) -> None:
    shop.adapters.chat("acme", "Hello", **GREEDY)
    shop.deploy("acme-2", seed=2)
    with behaving(invoke_errors={"times": 1000, "status": 424, "component": "acme-1"}):
        assert shop.adapters.chat("acme", "Hello", **GREEDY)
    assert shop.adapters.live_component("acme") == "acme-2"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "must contain prompt, inputs, or messages"),
        ({"inputs": "Hello", "parameters": {"max_new_tokens": 0}}, "max_new_tokens"),
        ({"messages": []}, "at least one"),
    ],
)
def test_what_will_never_succeed_is_not_tried_again(shop: Shop, request_: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestRefusedError, match=said):
        shop.adapters.invoke("acme", request_)
    assert shop.time.slept == []
    assert shop.calls.count("InvokeEndpoint") == 1


class BreaksOff(StandInEngine):
    """Loses the adapter in the middle of a streamed answer."""

    def stream(self, *arguments: Any, **more: Any) -> Iterator[Token]:
        for number, token in enumerate(super().stream(*arguments, **more)):
            if number == 2:
                raise UnknownAdapterError("acme-1")  # it was unloaded
            yield token


@contextmanager
def serving(engine: Callable[[], Any]) -> Iterator[None]:
    SERVING.serve_with(lambda _: engine())
    try:
        yield
    finally:
        SERVING.serve_with(stand_in_engine)


def test_a_stream_that_has_begun_is_not_tried_again(stack: Any) -> None:
    with serving(BreaksOff):
        shop = Shop(stack)
        shop.deploy("acme-1")
        pieces: list[str] = []
        with pytest.raises(StreamBrokenError, match=r"broke off its answer.*no adapter named 'acme-1'"):
            pieces.extend(shop.adapters.stream("acme", "Hello", **GREEDY))
    assert pieces
    assert shop.calls.count("InvokeEndpointWithResponseStream") == 1


# The wire


CHAT = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "Grüße, "}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "世界 🌍"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "\u2028\n"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"completion_tokens": 3}},
]
TOKENS = [
    {"token": {"id": 1, "text": "Grüße, ", "logprob": -0.1}},
    {"token": {"id": 2, "text": "世界 🌍", "logprob": -0.1}},
    {
        "token": {"id": 3, "text": "\u2028\n", "logprob": -0.1},
        "generated_text": "Grüße, 世界 🌍\u2028\n",
        "details": {"finish_reason": "length"},
    },
]
TEXT = "Grüße, 世界 🌍\u2028\n"


def lines(events: list[dict[str, Any]], before: str = "", after: str = "\n") -> bytes:
    return "".join(before + json.dumps(event, ensure_ascii=False) + after for event in events).encode()


STREAMS = {
    "chat, bare lines": lines(CHAT),
    "chat, server-sent events": b": hello\n\nevent: message\n" + lines(CHAT, "data: ", "\n\n") + b"data: [DONE]\n\n",
    "chat, server-sent events with CRLF": lines(CHAT, "data:", "\r\n\r\n") + b"data: [DONE]\r\n\r\n",
    "tokens": lines(TOKENS),
    "tokens without the last newline": lines(TOKENS).rstrip(),
    "tokens, and then the whole text": lines([*TOKENS[:2], {"token": {"text": "\u2028\n"}}, {"generated_text": TEXT}]),
    "not streamed at all": lines([{"generated_text": TEXT}]),
    "chat, not streamed at all": lines([{"choices": [{"message": {"content": TEXT}, "finish_reason": "stop"}]}]),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_may_be_cut_anywhere(stream: bytes) -> None:
    for size in (1, 2, 3, 7, 64, len(stream)):
        parts = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert "".join(pieces_of(events_of(parts))) == TEXT
    for cut in range(len(stream)):
        assert "".join(pieces_of(events_of([stream[:cut], b"", stream[cut:]]))) == TEXT


@pytest.mark.parametrize(
    ("stream", "said", "status"),
    [
        (lines([*TOKENS[:2], {"error": "out of memory", "code": 500}]), "out of memory", 500),
        (lines([CHAT[1], {"error": {"message": "too long", "code": 400}}], "data: "), "too long", 400),
        (lines([CHAT[1], {"object": "error", "message": "engine died", "code": 500}], "data: "), "engine died", 500),
        (lines([TOKENS[0], {"token": {"text": ""}, "details": {"finish_reason": "error"}}]), "the engine failed", None),
        (lines(CHAT[:2]), "ended in the middle", None),
        (lines([CHAT[1], {"choices": [{"delta": {}, "finish_reason": "abort"}]}], "data: "), "the engine failed", None),
        (lines([CHAT[1], {"choices": "?"}]), "ended in the middle", None),
        (lines(TOKENS[:1]) + b'{"a":' * 100_000, "not JSON", None),
        (lines(TOKENS[:1]) + b"x" * (MAX_LINE_BYTES + 1), "a line of more than 16,777,216 bytes", None),
        (lines(TOKENS[:1]) + b'{"token": {"te', "not JSON", None),
        (lines(TOKENS[:1]) + b"Internal Server Error\n", "not JSON: 'Internal Server Error'", None),
    ],
)
def test_a_stream_that_breaks_off_says_so_after_what_came(stream: bytes, said: str, status: int | None) -> None:
    pieces: list[str] = []
    with pytest.raises(StreamBrokenError, match=said) as broken:
        pieces.extend(pieces_of(events_of([stream])))
    assert "".join(pieces).startswith("Grüße, ")
    assert broken.value.status == status


@pytest.mark.parametrize("stream", [b"", b": hello\n\ndata: [DONE]\n"])
def test_a_stream_that_holds_nothing_is_no_empty_answer(stream: bytes) -> None:
    with pytest.raises(StreamBrokenError, match="ended before it had begun"):
        list(pieces_of(events_of([stream])))


def test_whole_answers_of_all_schemas_have_a_text() -> None:
    assert text_of(answer_of(b'{"generated_text": "yes"}')) == "yes"
    assert text_of(answer_of(b'[{"generated_text": "yes"}]')) == "yes"
    assert text_of(answer_of(b'{"choices": [{"text": "yes"}]}')) == "yes"
    assert text_of(answer_of(b'{"choices": [{"message": {"content": "yes"}}]}')) == "yes"
    assert text_of(answer_of(b'{"choices": [{"message": {"content": null, "tool_calls": []}}]}')) == ""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no",
        b"[]",
        b'"text"',
        b'{"error": "no", "code": 424}',
        b'{"outputs": []}',
        b'{"choices": true}',
        b'{"choices": {"a": 1}}',
        b'{"choices": [null, 5]}',
        b'{"choices": [{"message": {"content": ["yes"]}}]}',
        b'{"choices": [{"message": {"content": "ye"}, "finish_reason": "error"}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer_is_an_error(body: bytes) -> None:
    with pytest.raises(ModelError):
        text_of(answer_of(body))


def test_a_line_that_comes_in_many_parts_costs_no_more_than_its_bytes() -> None:
    """Joined anew with every part, this would take half a minute."""
    parts = [b'{"token": {"text": "', *[b"x" * 1000] * 8000, b'"}}\n']
    began = time.monotonic()
    assert len("".join(pieces_of(events_of(parts)))) == 8_000_000
    assert time.monotonic() - began < 5


# Stacks


OUTPUTS = {"RegistryTable": TABLE}


def make_stack(stack: Any, name: str, outputs: dict[str, str]) -> None:
    template = {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {key: {"Value": value} for key, value in outputs.items()},
    }
    boto3.client("cloudformation").create_stack(StackName=name, TemplateBody=json.dumps(template))


def test_a_stack_is_known_by_its_name_or_by_the_environment(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    make_stack(shop.stack, "shop", OUTPUTS)
    assert Adapters.of_stack("shop").live_component("acme") == "acme-1"
    monkeypatch.setenv("LORADROP_STACK", "shop")
    assert Adapters.of_stack(cache_seconds=1).live_component("acme") == "acme-1"
    monkeypatch.delenv("LORADROP_STACK")
    with pytest.raises(StackNotFoundError, match="no stack 'loradrop-dev' in us-east-1"):
        Adapters.of_stack()


def test_a_stack_of_something_else_is_reported(shop: Shop) -> None:
    make_stack(shop.stack, "other", {"Url": "https://example.com"})
    with pytest.raises(StackNotFoundError, match="other has no output RegistryTable"):
        Adapters.of_stack("other")


def test_without_a_region_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AwsUnavailableError, match="no AWS region is set"):
        Adapters(registry_table=TABLE)
    with pytest.raises(AwsUnavailableError, match="no AWS region is set"):
        Adapters.of_stack("shop")


def test_an_endpoint_that_is_no_url_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:4566")
    for ask in (lambda: Adapters(registry_table=TABLE), lambda: Adapters.of_stack("shop")):
        with pytest.raises(AwsUnavailableError, match=r"Invalid endpoint: localhost:4566\. Check .*AWS_ENDPOINT_URL"):
            ask()


@pytest.fixture(params=[b"<!DOCTYPE html><html>Sign in<br></html>", b"<html><body>Sign in</body></html>", b""])
def web_page(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that answers everything with a page, as a hotel's network does."""

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(request.param)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def test_a_server_that_is_not_aws_is_reported(web_page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", web_page)
    with pytest.raises(AwsUnavailableError, match="Could not read the stack shop: the answer is not from AWS"):
        Adapters.of_stack("shop")


def test_a_stream_that_is_ended_by_another_thread_ends_at_the_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    is_gone = threading.Event()

    class Model(BaseHTTPRequestHandler):
        """Says one word, and then nothing until its caller is gone."""

        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            if "X-Amz-Target" in self.headers:  # the registry
                live = {"component": {"S": "acme-1"}, "endpoint": {"S": ENDPOINT}}
                body = json.dumps({"Item": {"live": {"M": live}}}).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            event = payload_part(json.dumps(CHAT[1]).encode() + b"\n")
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
            self.connection.settimeout(10)
            if self.connection.recv(1) == b"":
                is_gone.set()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        stream = Adapters(registry_table=TABLE).begin("acme", {"messages": []})
        events = iter(stream)
        assert next(events) == CHAT[1]
        threading.Timer(0.05, stream.end).start()
        began = time.monotonic()
        with pytest.raises(StreamBrokenError):
            next(events)
        assert time.monotonic() - began < 5
        assert is_gone.wait(5)
        stream.end()  # once more does no harm
    finally:
        server.shutdown()


def test_the_end_of_a_stream_that_was_read_whole_leaves_its_connection_to_the_next() -> None:
    """Another thread may end it late: the connection is in the pool by then, or another request's."""

    class Reply(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        ports: ClassVar[list[int]] = []

        def do_GET(self) -> None:
            self.ports.append(self.client_address[1])
            self.send_response(200)
            self.send_header("Content-Length", "0" if self.path == "/next" else "4")
            self.end_headers()
            self.wfile.write(b"" if self.path == "/next" else b"done")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Reply) as server, PoolManager() as pool:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        raw = pool.request("GET", url, preload_content=False)
        body: Any = EventStream(raw, None, None, "InvokeEndpointWithResponseStream")
        assert raw.read() == b"done"
        AnswerStream(Served("acme-1", ENDPOINT), body).end()
        assert pool.request("GET", f"{url}/next", retries=False).status == 200
        server.shutdown()
    assert len(set(Reply.ports)) == 1


# Errors of AWS


def answered(code: str, message: str = "It quotes AKIASECRET") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "GetItem")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (answered("ExpiredToken"), AccessRefusedError, "have expired; sign in again"),
        (answered("ExpiredTokenException"), AccessRefusedError, "have expired"),
        (answered("InvalidAccessKeyId"), AccessRefusedError, "does not know these credentials"),
        (answered("SignatureDoesNotMatch"), AccessRefusedError, "does not know these credentials"),
        (
            answered("InvalidSignatureException", "Signature expired: 20261124T100000Z is now earlier than …"),
            AccessRefusedError,
            "this machine's clock is wrong; set it (InvalidSignatureException: Signature expired",
        ),
        (answered("RequestTimeTooSkewed", "The difference is too large."), AccessRefusedError, "clock is wrong"),
        (
            answered("AccessDenied", "Access Denied"),
            AccessRefusedError,
            "refused GetItem: Access Denied. docs/operations.md",
        ),
        (
            answered("ResourceNotFoundException", "no table"),
            AwsUnavailableError,
            "answered ResourceNotFoundException: no table.",
        ),
        (NoCredentialsError(), AccessRefusedError, "no AWS credentials here; name a profile in AWS_PROFILE"),
        (ProfileNotFound(profile="x"), AccessRefusedError, "profile (x) could not be found. To sign in"),
        (NoRegionError(), AwsUnavailableError, "set AWS_DEFAULT_REGION"),
        (EndpointConnectionError(endpoint_url="https://x"), AwsUnavailableError, "Check the network"),
        (ReadTimeoutError(endpoint_url="https://x"), AwsUnavailableError, "Check the network"),
    ],
)
def test_an_error_of_aws_is_a_sentence_that_says_what_to_do(
    error: ClientError | BotoCoreError, kind: type[LoradropError], said: str
) -> None:
    mine = explained(error, "read it")
    assert type(mine) is kind
    assert str(mine).startswith("Could not read it: ")
    assert said in str(mine)
    assert "AKIASECRET" not in str(mine)
