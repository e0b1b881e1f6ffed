"""Adapters: the live component of each, and its answers."""

import contextlib
import json
import random
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.eventstream import EventStream, ParserError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    EventStreamError,
    HTTPClientError,
)
from urllib3.exceptions import HTTPError

from loradrop.wire import is_not_ready

from .errors import (
    AWS_ERRORS,
    AccessRefusedError,
    AwsUnavailableError,
    ComponentBrokenError,
    LoradropError,
    ModelError,
    ModelNotReadyError,
    NoLiveComponentError,
    RequestRefusedError,
    StreamBrokenError,
    explained,
)
from .stack_outputs import AWS_CONFIG, default_stack, read_stack
from .wire import answer_of, events_of, pieces_of, text_of

Message = Mapping[str, Any]  # {"role": "user", "content": "…"}
Answer = TypeVar("Answer")

BASE = "base"
CACHE_SECONDS = 5.0
DEADLINE_SECONDS = 60.0
FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 8.0
# SageMaker ends an invocation after 60 s. Retries are our own: the SDK does not retry 424, and not with a new component.
INVOKE_CONFIG = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=65, max_pool_connections=50)
# To ask twice does no harm. But after a read timeout the model may still be at work on the first.
NOT_SENT = (ConnectionClosedError, ConnectTimeoutError, EndpointConnectionError)
# Of the model server: what it was asked is at fault. 424 too, where it is not that the model is loading.
BAD_REQUEST_STATUSES = (400, 413, 422, 424)
# Of endpoints and components, as SageMaker has them. They go into a path and a header.
RESOURCE_NAME = re.compile(r"[A-Za-z0-9-]{1,63}")


# What stands in the registry: `state` of a component that may be asked. The others are being made or deleted.
_STANDING = ("live", "standby")
MIN_RELEASE_CHARACTERS = 4


@dataclass(frozen=True, slots=True)
class Served:
    """A component that answers. `release` is empty for the base, and where the registry does not say it."""

    component: str
    endpoint: str
    release: str = ""


class AnswerStream:
    """The events of a streamed answer, as the model server's JSON has them. To be read by one thread."""

    def __init__(self, served: Served, body: "EventStream[Any]") -> None:
        self.served, self._body = served, body

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises StreamBrokenError."""
        return events_of(_parts(self._body))

    def end(self) -> None:
        """Another thread may call it: whoever reads has StreamBrokenError at once, and the model server hears of it."""
        raw: Any = self._body._raw_stream  # type: ignore[attr-defined]  # botocore has no other way to it
        if getattr(raw, "_connection", self) is None:
            return  # read to its end: the connection is back in the pool, and may be another request's
        shut_down = getattr(
            raw, "_sock_shutdown", None
        )  # urllib3 has it from 2.3 on; its shutdown() is of reading alone
        with contextlib.suppress(OSError, ValueError):  # it has ended by itself
            if shut_down is None:
                raw.close()
            else:
                shut_down(socket.SHUT_RDWR)


class _ComponentRefusedError(ModelError):
    """SageMaker refused the call itself, as it does when the component is gone."""


class Adapters:
    """The adapters of one stack. It may be shared by threads, and is best kept for the life of a program.

    Wherever an adapter is named, `acme@RELEASE` names one of its releases, by its first characters (4 at least), as long as a
    component of it stands.

    The live component of an adapter, and its endpoint, are read from the registry and kept for `cache_seconds`, which must be
    well below the stack's GracePeriodSeconds. What may succeed a moment later (throttling; a model that is loading or full) is
    retried with growing random delays until `deadline_seconds` have passed. If the component was replaced in between, the new
    one is read. A stream that has begun is not retried.

    Requires dynamodb:GetItem on the table, and sagemaker:InvokeEndpoint on the endpoint and its components; for streams also
    sagemaker:InvokeEndpointWithResponseStream; for `of_stack` also cloudformation:DescribeStacks.
    """

    def __init__(
        self,
        *,
        registry_table: str,
        session: boto3.Session | None = None,
        base: Served | None = None,
        max_connections: int = 50,
        cache_seconds: float = CACHE_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """With `base`, the name `base` is asked of it. `clock`, `sleep` and `chance` (0 to 1) are for tests.

        Raises AwsUnavailableError where no region is set.
        """
        try:
            session = session or boto3.Session()
            self._dynamodb = session.client("dynamodb", config=AWS_CONFIG)
            config = INVOKE_CONFIG.merge(Config(max_pool_connections=max_connections))
            self._runtime = session.client("sagemaker-runtime", config=config)
        except (BotoCoreError, ValueError) as error:
            raise explained(error, "reach AWS") from error
        self._table, self._base = registry_table, base
        self._cache_seconds, self._deadline_seconds = cache_seconds, deadline_seconds
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Served, float]] = {}  # model → live component, until when

    @classmethod
    def of_stack(cls, name: str | None = None, *, session: boto3.Session | None = None, **settings: Any) -> "Adapters":
        """Of a deployed stack; without a name the one in LORADROP_STACK, or else loradrop-dev."""
        stack = read_stack(name or default_stack(), session)
        return cls(registry_table=stack.output("RegistryTable"), session=session, **settings)

    def live_component(self, adapter: str) -> str:
        """The inference component that serves this adapter now. Raises NoLiveComponentError."""
        return self._live(adapter).component

    def served(self, adapter: str) -> Served:
        """The component and endpoint that serve this adapter now. Raises NoLiveComponentError."""
        return self._live(adapter)

    def _live(self, adapter: str) -> Served:
        now = self._clock()
        with self._lock:
            known = self._known.get(adapter)
        if known is not None and now < known[1]:
            return known[0]
        live = self._read_live(adapter)
        with self._lock:
            # Names are anybody's, and releases have many: what is not asked any more goes.
            for name in [name for name, (_, until) in self._known.items() if until <= now]:
                del self._known[name]
            # From before the read, which may have taken long.
            self._known[adapter] = live, now + self._cache_seconds
        return live

    def chat(
        self,
        adapter: str,
        message: str | Sequence[Message] | Mapping[str, Any],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **parameters: Any,
    ) -> str:
        """The answer's text to a message, or to a conversation of {"role": …, "content": …}.

        `parameters` go to the model as they are. A mapping as `message` is a whole request, as `invoke` takes it.
        """
        request = _chat_request(message, system, max_tokens=max_tokens, temperature=temperature, **parameters)
        return text_of(self.invoke(adapter, request))

    def stream(
        self,
        adapter: str,
        message: str | Sequence[Message] | Mapping[str, Any],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **parameters: Any,
    ) -> Iterator[str]:
        """The pieces of an answer's text as they come; it takes what `chat` takes.

        The call is made at once and retried like any other. From the first piece on nothing is retried: StreamBrokenError. A
        stream that is silent for 65 seconds ends so; SageMaker itself ends one that takes too long (ModelInvocationTimeExceeded).
        """
        asked = _chat_request(message, system, max_tokens=max_tokens, temperature=temperature, **parameters)
        return pieces_of(self.begin(adapter, asked))

    def begin(self, adapter: str, request: Mapping[str, Any]) -> AnswerStream:
        """Calls at once, as `stream` does; the answer's events are still to be read."""
        asked = {**request, "stream": True}

        def begin(served: Served) -> AnswerStream:
            answer = self._runtime.invoke_endpoint_with_response_stream(**_call(served, asked))
            return AnswerStream(served, answer["Body"])

        return self._answered(adapter, begin)

    def invoke(self, adapter: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer to a request in one of LMI's schemas: {"messages": …}, {"inputs": …} or {"prompt": …}."""
        return self.ask(adapter, request)[1]

    def ask(self, adapter: str, request: Mapping[str, Any]) -> tuple[Served, dict[str, Any]]:
        """What answered, and its whole answer, as `invoke` has it."""

        def ask(served: Served) -> tuple[Served, dict[str, Any]]:
            answer = self._runtime.invoke_endpoint(**_call(served, request))
            try:
                return served, answer_of(answer["Body"].read())
            except ModelError as error:
                raise _classified(f"{served.component}: {error}", error.status, error.said) from error

        return self._answered(adapter, ask)

    def _read_live(self, model: str) -> Served:
        adapter, at, release = model.partition("@")
        if model == BASE and self._base is not None:
            if "live" in self._item(BASE, "live"):
                raise NoLiveComponentError(
                    "The name 'base' is the base component's, and an adapter is called so too. Name the adapter's release: base@RELEASE."
                )
            return self._base
        if at:
            return self._standing(adapter, release)
        pointer: Any = self._item(adapter, "live").get("live")
        match pointer:
            case None:
                raise NoLiveComponentError(
                    f"The adapter {adapter!r} is not live: it was not deployed yet, or it was removed. Deploy it:\n"
                    f"  loradrop push {shlex.quote(adapter.rpartition('/')[2])}.tar.gz --name {shlex.quote(adapter)}"
                )
            case {"M": {"component": {"S": str(component)}, "endpoint": {"S": str(endpoint)}}} if all(
                map(RESOURCE_NAME.fullmatch, (component, endpoint))
            ):
                return Served(component, endpoint, pointer["M"].get("release", {}).get("S", ""))
            case _:
                raise AwsUnavailableError(
                    f"The live pointer of {adapter!r} names no component and endpoint. Is {self._table} the registry of a loradrop "
                    "stack?"
                )

    def _standing(self, adapter: str, release: str) -> Served:
        """The component of this release: the live one, or else the standby that is kept longest."""
        found = self._item(adapter, "components").get("components", {}).get("M", {})
        entries = [
            (name, entry["M"])
            for name, entry in found.items()
            if entry["M"]["state"]["S"] in _STANDING
            and all(map(RESOURCE_NAME.fullmatch, (name, entry["M"]["endpoint"]["S"])))
        ]
        matching = [one for one in entries if one[1]["release"]["S"].startswith(release.lower())]
        if len(release) >= MIN_RELEASE_CHARACTERS and len({entry["release"]["S"] for _, entry in matching}) == 1:
            name, entry = max(
                matching, key=lambda one: (one[1]["state"]["S"] == "live", int(one[1].get("until", {}).get("N", "0")))
            )
            return Served(name, entry["endpoint"]["S"], entry["release"]["S"])
        known = ", ".join(sorted({entry["release"]["S"][:8] for _, entry in entries})) or "none"
        why = (
            f"is less than {MIN_RELEASE_CHARACTERS} characters"
            if len(release) < MIN_RELEASE_CHARACTERS
            else "names more than one"
            if matching
            else "does not stand"
        )
        raise NoLiveComponentError(f"The release {release!r} of {adapter!r} {why}. Releases that stand: {known}.")

    def _item(self, adapter: str, attribute: str) -> Mapping[str, Any]:
        """This attribute of the adapter's state, if it has it."""
        if not adapter:  # of a key DynamoDB says so in other words
            raise NoLiveComponentError("The name of the adapter is empty.")
        try:
            # Consistent: just after a deployment an old answer would be wrong.
            found = self._dynamodb.get_item(
                TableName=self._table,
                Key={"adapter": {"S": adapter}, "record": {"S": "state"}},
                ConsistentRead=True,
                ProjectionExpression="#attribute",
                ExpressionAttributeNames={"#attribute": attribute},
            )
        except AWS_ERRORS as error:
            raise explained(error, f"read the live component of {adapter} from the registry {self._table}") from error
        return found.get("Item", {})

    def _forget(self, adapter: str, live: Served) -> None:
        with self._lock:
            known = self._known.get(adapter)
            if known is not None and known[0] == live:  # else another thread knows better already
                del self._known[adapter]

    def _answered(self, adapter: str, call: Callable[[Served], Answer]) -> Answer:
        """What `call` makes of the live component, retried as long as that makes sense."""
        began = self._clock()
        tries = 0
        is_renewed = False
        while True:
            live = self._live(adapter)
            tries += 1
            try:
                return _explaining(call, live)
            except _ComponentRefusedError as error:
                self._forget(adapter, live)
                if is_renewed or self._live(adapter) == live:
                    raise ComponentBrokenError(
                        f"{error} The live pointer names this component. If it is missing or Failed, ReconcileFleet heals it "
                        f"within minutes. To see its state:\n  loradrop status {shlex.quote(adapter)}",
                        error.status,
                        error.said,
                    ) from error.__cause__
                is_renewed = True
            except ModelNotReadyError as error:
                self._forget(adapter, live)
                delay = self._chance() * min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(tries, 10))
                passed = self._clock() - began
                if passed + delay > self._deadline_seconds:
                    raise ModelNotReadyError(
                        f"No answer from {adapter} after {tries} tries in {passed:.0f} s. The last one: {error}",
                        error.status,
                        error.said,
                    ) from error.__cause__
                self._sleep(delay)


def _chat_request(message: str | Sequence[Message] | Mapping[str, Any], system: str | None, **parameters: Any) -> Any:
    given = {name: value for name, value in parameters.items() if value is not None}
    if isinstance(message, Mapping):
        if system is not None:
            raise TypeError("a whole request holds its own system message")
        return {**message, **given}
    messages = [{"role": "user", "content": message}] if isinstance(message, str) else [dict(one) for one in message]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, **given}


def _call(live: Served, request: Mapping[str, Any]) -> Any:
    try:
        # Escaped, a text in another script than Latin would be up to twice as long, and SageMaker bounds bytes.
        body = json.dumps(dict(request), ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        said = "The request holds half of a character (a lone surrogate), which UTF-8 has no bytes for."
        raise RequestRefusedError(said, 400, said) from error
    return {
        "EndpointName": live.endpoint,
        "InferenceComponentName": live.component,
        "ContentType": "application/json",
        "Body": body,
    }


def _explaining(call: Callable[[Served], Answer], live: Served) -> Answer:
    component = live.component
    try:
        return call(live)
    except ClientError as error:
        raise _refusal(component, error) from error
    except NOT_SENT as error:
        raise ModelNotReadyError(str(explained(error, f"invoke {component}"))) from error
    except (BotoCoreError, HTTPError) as error:
        if isinstance(error, BotoCoreError) and not isinstance(error, HTTPClientError):
            raise explained(error, f"invoke {component}") from error
        raise ModelError(f"{component} did not answer in time, or the connection broke: {error}") from error


def _refusal(component: str, error: ClientError) -> LoradropError:
    """What SageMaker's answer means."""
    known = explained(error, f"invoke {component}")
    if isinstance(known, AccessRefusedError):
        return known
    # OriginalStatusCode and OriginalMessage are the container's own, in a ModelError.
    response: Any = error.response
    code, message = response["Error"].get("Code", ""), response["Error"].get("Message", "")
    status = response.get("OriginalStatusCode", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    reason = response.get("OriginalMessage", message)
    said = f"{component} answered {status} ({code}): {reason}"
    if is_not_ready(status, code, said):
        return ModelNotReadyError(said, status, reason)
    if code in ("ValidationError", "ValidationException"):
        return _ComponentRefusedError(said, status, reason)
    return _failed(said, status, reason)


def _classified(said: str, status: int | None, reason: str) -> ModelError:
    if is_not_ready(status, "", said):
        return ModelNotReadyError(said, status, reason)
    return _failed(said, status, reason)


def _failed(said: str, status: int | None, reason: str) -> ModelError:
    if status in BAD_REQUEST_STATUSES:
        return RequestRefusedError(
            f"{said} Change the request: the model server would refuse it again.", status, reason
        )
    return ModelError(said, status, reason)


def _parts(body: "EventStream[Any]") -> Iterator[bytes]:
    try:
        for event in body:
            if "PayloadPart" in event:
                yield event["PayloadPart"]["Bytes"]
    except EventStreamError as error:
        said = error.response["Error"]
        raise StreamBrokenError(
            f"The model broke off its answer ({said.get('Code')}): {said.get('Message')}"
        ) from error
    except (BotoCoreError, HTTPError, ParserError, OSError) as error:
        raise StreamBrokenError(f"The connection broke in the middle of an answer: {error}") from error
    finally:
        body.close()
