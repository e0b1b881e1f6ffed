"""`/v1`: OpenAI's API in front of the adapters of one stack.

`model` is an adapter's name, which follows the live pointer at each request; `acme@RELEASE`, a release that stands; or `base`.
The request goes to the model server as it came, without `model`, and so does the answer come back, with `model` as it was asked for.
"""

import asyncio
import difflib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from loradrop.registry_reader import RegistryReader
from loradrop_client import BASE, Adapters, LoradropError, ModelError, NoLiveComponentError, Served, explaining

from .metrics import CONTENT_TYPE, UNKNOWN, Metrics
from .refusals import BUSY_RETRY_SECONDS, RefusalError, refusal_of
from .relay import Relay

# Each has a thread, and holds at most a request, an answer or MAX_HELD_BYTES of a stream.
MAX_REQUESTS = 128
MAX_BODY_BYTES = 6 * 1024 * 1024  # SageMaker's own limit was this for years
MAX_BODY_SECONDS = 60.0
LISTED_SECONDS = 5.0
MAX_NEAR_NAMES = 3
NEAR = 0.5  # of difflib's ratio
MAX_MODEL_CHARACTERS = 300
GONE = 499
# The field that the model server knows each schema by, and those by which it would take one for another.
_CHAT, _COMPLETION = "messages", "prompt"
_SCHEMA_FIELDS = (_CHAT, _COMPLETION, "inputs")
# LMI's own way to name an adapter, which would let another answer than `model` says.
ADAPTERS_FIELD = "adapters"


class Models:
    """The adapters that are live, by name, with the release and the time; read again after some seconds."""

    def __init__(self, registry: RegistryReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._live: dict[str, tuple[str, str]] = {}

    def live(self) -> dict[str, tuple[str, str]]:
        with self._lock:  # one reads for all
            if self._read_at is None or self._clock() - self._read_at >= LISTED_SECONDS:
                with explaining("list the adapters of the registry"):
                    found = self._registry.adapters()
                    self._live = {name: (one.live.release, one.live.since) for name, one in found if one.live}
                self._read_at = self._clock()
            return self._live

    def near(self, model: str) -> list[str]:
        return difflib.get_close_matches(_adapter_in(model), list(self.live()), MAX_NEAR_NAMES, NEAR)


class Door:
    def __init__(
        self, adapters: Adapters, models: Models, metrics: Metrics, *, max_requests: int = MAX_REQUESTS
    ) -> None:
        self._adapters, self._models, self._metrics = adapters, models, metrics
        self._max_requests = max_requests
        self._threads = ThreadPoolExecutor(max_requests, "door")
        self._others = ThreadPoolExecutor(4, "door-models")  # lists are read even while all the others wait
        self._began = int(time.time())

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self._list_models, methods=["GET"]),
            Route("/v1/models/{model:path}", self._one_model, methods=["GET"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
            Route("/metrics", self._text, methods=["GET"]),
        ]

    def close(self) -> None:
        for pool in (self._threads, self._others):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _text(self, _request: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _list_models(self, _request: Request) -> Response:
        live = await self._live()
        # Of an adapter that is called base the name alone is refused.
        base = [] if BASE in live else [self._base()]
        adapters = [_model(f"{BASE}@{live[BASE][0]}" if name == BASE else name, *live[name]) for name in sorted(live)]
        return JSONResponse({"object": "list", "data": [*base, *adapters]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        live = await self._live()
        if "@" in name or (name == BASE and BASE in live):
            return JSONResponse(await self._release(name, live))
        if name == BASE:
            return JSONResponse(self._base())
        if name not in live:
            error = NoLiveComponentError(f"The adapter {name!r} is not live.")
            raise refusal_of(error, await self._near(name))
        return JSONResponse(_model(name, *live[name]))

    async def _release(self, name: str, live: dict[str, tuple[str, str]]) -> dict[str, Any]:
        """A release that stands, by the name that it was asked for by."""
        try:
            served = await asyncio.get_running_loop().run_in_executor(self._others, self._adapters.served, name)
        except LoradropError as error:
            raise refusal_of(error) from error
        release, since = live.get(_adapter_in(name), ("", ""))
        return _model(name, served.release, since if served.release == release else "")

    async def _live(self) -> dict[str, tuple[str, str]]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._others, self._models.live)
        except LoradropError as error:
            raise refusal_of(error) from error

    async def _near(self, model: str) -> list[str]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._others, self._models.near, model)
        except LoradropError:  # who may invoke need not be allowed to list
            return []

    def _base(self) -> dict[str, Any]:
        return {"id": BASE, "object": "model", "created": self._began, "owned_by": "loradrop", "parent": None}

    # What is asked

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, _CHAT)

    async def _completion(self, request: Request) -> Response:
        return await self._answer(request, _COMPLETION)

    async def _answer(self, request: Request, schema: str) -> Response:
        if self._metrics.in_flight >= self._max_requests:
            raise RefusalError(
                503,
                f"This server answers {self._max_requests} requests at a time, and has as many. Ask again in a moment.",
                "server_error",
                "server_busy",
                headers={"Retry-After": str(BUSY_RETRY_SECONDS)},
            )
        call = _Call(self._metrics, request.url.path)
        try:
            call.model, asked = _asked(await _body_of(request), schema)
            self._check_place_of(call)
            if asked.get("stream"):
                return await self._streamed(request, call, asked)
            return await self._whole(call, asked)
        except LoradropError as error:
            is_unknown = isinstance(error, NoLiveComponentError)
            refusal = refusal_of(error, await self._near(call.model) if is_unknown else None)
            if isinstance(error, ModelError):  # raised once the component is known
                call.found()
            call.end(refusal.status)
            raise refusal from error
        except RefusalError as refusal:
            call.end(refusal.status)
            raise
        except ClientDisconnect:
            call.end(GONE)
            return Response(status_code=GONE)
        except BaseException:
            call.end(500)
            raise

    def _check_place_of(self, call: "_Call") -> None:
        """One that is loading holds its requests for a minute: the others must get through meanwhile."""
        adapter = _adapter_in(call.model)
        most = max(1, self._max_requests // 2)
        if self._metrics.in_flight_of[adapter] >= most:
            raise RefusalError(
                503,
                f"This server answers {most} requests to one adapter at a time, and has as many. Ask again in a moment.",
                "server_error",
                "server_busy",
                headers={"Retry-After": str(BUSY_RETRY_SECONDS)},
            )
        call.take_place_of(adapter)

    async def _whole(self, call: "_Call", asked: dict[str, Any]) -> Response:
        loop = asyncio.get_running_loop()
        served, answer = await loop.run_in_executor(self._threads, self._adapters.ask, call.model, asked)
        call.found()
        response = JSONResponse(answer | {"model": call.model}, headers=_served_by(served))
        call.note_usage(answer)
        call.end(200)
        return response

    async def _streamed(self, request: Request, call: "_Call", asked: dict[str, Any]) -> Response:
        loop = asyncio.get_running_loop()
        relay, opened = Relay(), loop.create_future()
        gone = asyncio.create_task(_gone(request.receive, relay))
        pumped = loop.run_in_executor(self._threads, self._pump, relay, opened, call, asked)
        try:
            await asyncio.wait({opened, gone}, return_when=asyncio.FIRST_COMPLETED)
            served = opened.result() if opened.done() else None
        except BaseException:
            served = None
            raise
        finally:
            if served is None:
                gone.cancel()
                relay.leave()
                opened.cancel()
                pumped.cancel()  # if it has not begun
        if served is None:
            raise ClientDisconnect
        return _Stream(relay, gone, call, _served_by(served))

    def _pump(self, relay: Relay, opened: "asyncio.Future[Any]", call: "_Call", asked: dict[str, Any]) -> None:
        """In a thread: the events from the model server to the relay. The first one is read before the answer begins."""
        loop = opened.get_loop()

        def resolve(set_: Callable[[Any], None], value: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: None if opened.done() else set_(value))

        is_open = False
        try:
            if relay.is_left:
                return
            stream = self._adapters.begin(call.model, asked)
            call.found()
            if not relay.opened(stream):
                stream.end()
            for event in stream:
                if not relay.put(call.line(event)):
                    stream.end()
                    return
                if not is_open:
                    is_open = True
                    resolve(opened.set_result, stream.served)
            relay.put(b"data: [DONE]\n\n")
        except LoradropError as error:
            if not is_open:
                resolve(opened.set_exception, error)
                return
            refusal = refusal_of(error)
            call.status = refusal.status
            relay.put(b"data: " + json.dumps(refusal.error()).encode() + b"\n\n")
        except BaseException as error:
            resolve(opened.set_exception, RuntimeError(str(error)))
            if is_open:  # to end as if it were whole would be worse than to say little
                refusal = RefusalError(502, "The answer broke off in this server.", "server_error", "stream_broken")
                call.status = refusal.status
                relay.put(b"data: " + json.dumps(refusal.error()).encode() + b"\n\n")
            raise
        finally:
            relay.finish()


class _Call:
    """One request, for the metrics: counted once, whoever ends it."""

    def __init__(self, metrics: Metrics, path: str) -> None:
        self.model, self.status = "", 200
        self._label = UNKNOWN
        self._place: str | None = None
        self._metrics, self._path = metrics, path
        self._began = time.monotonic()
        self._pieces = 0
        self._usage: tuple[int, int] | None = None
        self._is_ended = False
        metrics.in_flight += 1

    def take_place_of(self, adapter: str) -> None:
        self._place = adapter
        self._metrics.in_flight_of[adapter] += 1

    def found(self) -> None:
        """The registry knows the model: it is counted by its adapter's name."""
        self._label = _adapter_in(self.model)

    def note_usage(self, answer: dict[str, Any]) -> None:
        usage = answer.get("usage")
        if isinstance(usage, dict):
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            prompt, completion = (one if isinstance(one, int) else 0 for one in counts)
            self._usage = prompt, completion

    def line(self, event: dict[str, Any]) -> bytes:
        """The server-sent event of this piece of a streamed answer."""
        if event.get("usage"):
            self.note_usage(event)
        if event.get("choices"):
            self._pieces += 1
        if "model" in event:
            event["model"] = self.model
        return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    def end(self, status: int | None = None) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        self._metrics.in_flight -= 1
        if self._place is not None:
            self._metrics.in_flight_of[self._place] -= 1
            self._metrics.in_flight_of += Counter()  # keeps what is above 0
        status = self.status if status is None else status
        self._metrics.answered(self._label, self._path, status, time.monotonic() - self._began)
        usage = self._usage or ((0, self._pieces) if self._pieces else None)
        if usage is not None:
            self._metrics.used(self._label, *usage)


class _Stream(Response):
    """Server-sent events as they come; a client that goes away ends the stream of the model server too."""

    media_type = "text/event-stream"

    def __init__(self, relay: Relay, gone: "asyncio.Task[None]", call: _Call, headers: dict[str, str]) -> None:
        super().__init__(headers={**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._relay, self._gone, self._call = relay, gone, call

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        status: int | None = GONE
        try:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (piece := await self._relay.take()) is not None:
                await self._send(send, {"type": "http.response.body", "body": piece, "more_body": True})
            if not self._relay.is_left:
                await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
                status = None
        finally:
            self._gone.cancel()
            self._relay.leave()
            self._call.end(status)

    async def _send(self, send: Send, message: Message) -> None:
        """Raises TimeoutError where the client takes nothing: the server then cuts the connection, and ends no answer as if it were whole."""
        async with asyncio.timeout(self._relay.stalled_seconds):
            await send(message)


async def _gone(receive: Receive, relay: Relay) -> None:
    """Until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    relay.leave()


async def _body_of(request: Request, seconds: float = MAX_BODY_SECONDS) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site may send other types without asking
        raise RefusalError(415, f"The request must be application/json, not {kind or 'of no type'}.")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    raise RefusalError(413, f"The request has more than {MAX_BODY_BYTES:,} bytes.")
    except TimeoutError as error:
        raise RefusalError(408, f"The request did not come whole within {seconds:g} s.") from error
    return bytes(body)


def _asked(body: bytes, schema: str) -> tuple[str, dict[str, Any]]:
    """The model, and the request without it."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, f"The request is not JSON: {str(error)[:200]}.") from error
    if not isinstance(asked, dict):
        raise RefusalError(400, "The request must be a JSON object.")
    model = asked.pop("model", None)
    if not isinstance(model, str) or not model or len(model) > MAX_MODEL_CHARACTERS or not _is_utf8(model):
        raise RefusalError(
            400,
            f"`model` must name an adapter, such as acme, or a release of one, such as acme@1f3a9c2e, or {BASE}.",
            param="model",
        )
    if schema not in asked:
        raise RefusalError(400, f"`{schema}` is missing.", code="missing_required_parameter", param=schema)
    for other in _SCHEMA_FIELDS:
        if other != schema and other in asked:
            raise RefusalError(400, f"`{other}` does not go with `{schema}`.", code="unknown_parameter", param=other)
    if ADAPTERS_FIELD in asked:
        message = f"`{ADAPTERS_FIELD}` is not taken: `model` names the adapter."
        raise RefusalError(400, message, code="unknown_parameter", param=ADAPTERS_FIELD)
    if not isinstance(asked.get("stream"), bool | None):
        raise RefusalError(400, "`stream` must be true or false.", param="stream")
    return model, asked


def _is_utf8(text: str) -> bool:
    """False of half a surrogate pair, which JSON can name and no answer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _adapter_in(model: str) -> str:
    return model.partition("@")[0]


def _served_by(served: Served) -> dict[str, str]:
    """What answered, for whoever wants to know: a name in OpenAI's form has no place for it."""
    return {"x-loradrop-component": served.component, "x-loradrop-release": served.release}


def _model(name: str, release: str, since: str) -> dict[str, Any]:
    created = int(datetime.fromisoformat(since).timestamp()) if since else 0
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "loradrop",
        "parent": BASE,
        "release": release,
    }
