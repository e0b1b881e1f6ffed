"""Adapters: the live component of each, and its answers."""

import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from .errors import (
    AWS_ERRORS,
    AccessRefusedError,
    AwsUnavailableError,
    LoradropError,
    ModelError,
    ModelNotReadyError,
    NoLiveComponentError,
    StreamBrokenError,
    explained,
)
from .stack import AWS_CONFIG, default_stack, read_stack
from .wire import answer_of, pieces_of, text_of

Message = Mapping[str, Any]  # {"role": "user", "content": "…"}
Answer = TypeVar("Answer")

CACHE_SECONDS = 5.0
DEADLINE_SECONDS = 60.0
FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 8.0
# SageMaker ends an invocation after 60 s. Retries are our own: the SDK does not retry 424, and not with a new component.
INVOKE_CONFIG = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=65, max_pool_connections=50)
# 424 is what LMI says while it loads an adapter, and also when it can't.
NOT_READY_STATUSES = frozenset({424, 429, 500, 503, 530})
NOT_READY_CODES = frozenset({"ModelNotReadyException", "Throttling", "ThrottlingException", "TooManyRequestsException"})
# To ask twice does no harm. But after a read timeout the model may still be at work on the first.
NOT_SENT = (ConnectionClosedError, ConnectTimeoutError, EndpointConnectionError)
# As SageMaker has them. The name goes into a header.
COMPONENT_NAME = re.compile(r"[A-Za-z0-9-]{1,63}")
# 424 too, but it will be so for ever.
UNREADABLE_REQUEST = "input parsing failed"


class _ComponentRefusedError(ModelError):
    """SageMaker refused the call itself, as it does when the component is gone."""


class Adapters:
    """The adapters on one endpoint. It may be shared by threads, and is best kept for the life of a program.

    The live component of an adapter is looked up in the registry and kept for `cache_seconds`, which must stay well below the
    stack's GracePeriodSeconds. What may succeed a moment later (throttling; a model that is loading or full) is tried again, with
    growing random delays, as long as `deadline_seconds` have not passed; when the component was retired in between, the new one is
    looked up. A stream that has begun is not tried again.

    It needs dynamodb:GetItem on the table, and sagemaker:InvokeEndpoint on the endpoint and its components, to stream
    sagemaker:InvokeEndpointWithResponseStream too; `of_stack` needs cloudformation:DescribeStacks as well.
    """

    def __init__(
        self,
        *,
        endpoint: str,
        registry_table: str,
        session: boto3.Session | None = None,
        cache_seconds: float = CACHE_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`clock`, `sleep` and `chance` (0 to 1) are for tests. Raises AwsUnavailableError where no region is set."""
        try:
            session = session or boto3.Session()
            self._dynamodb = session.client("dynamodb", config=AWS_CONFIG)
            self._runtime = session.client("sagemaker-runtime", config=INVOKE_CONFIG)
        except (BotoCoreError, ValueError) as error:
            raise explained(error, "reach the endpoint") from error
        self._endpoint, self._table = endpoint, registry_table
        self._cache_seconds, self._deadline_seconds = cache_seconds, deadline_seconds
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, float]] = {}  # adapter → component, until when

    @classmethod
    def of_stack(cls, name: str | None = None, *, session: boto3.Session | None = None, **settings: Any) -> "Adapters":
        """By the outputs of a stack: the one that LORADROP_STACK names, or loradrop-dev, if `name` is left out."""
        stack = read_stack(name or default_stack(), session)
        return cls(
            endpoint=stack.output("EndpointName"),
            registry_table=stack.output("RegistryTable"),
            session=session,
            **settings,
        )

    def live_component(self, adapter: str) -> str:
        """The inference component that serves this adapter now. Raises NoLiveComponentError."""
        now = self._clock()
        with self._lock:
            component, until = self._known.get(adapter, ("", now))
        if now < until:
            return component
        component = self._look_up(adapter)
        with self._lock:
            # From before the look: it may have taken long.
            self._known[adapter] = component, now + self._cache_seconds
        return component

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
        """The pieces of an answer's text as they come; it is asked as `chat` is.

        The call is made at once, and tried again like any other; from the first piece on, it is not: StreamBrokenError. So ends
        a stream that is silent for 65 seconds; SageMaker itself breaks off one that takes too long (ModelInvocationTimeExceeded).
        """
        asked = _chat_request(message, system, max_tokens=max_tokens, temperature=temperature, **parameters)
        body = json.dumps(asked | {"stream": True}).encode()

        def begin(component: str) -> "EventStream[Any]":
            answer = self._runtime.invoke_endpoint_with_response_stream(**self._call(component, body))
            return answer["Body"]

        return pieces_of(_parts(self._answered(adapter, begin)))

    def invoke(self, adapter: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer to a request in one of LMI's schemas: {"messages": …}, {"inputs": …} or {"prompt": …}."""
        body = json.dumps(dict(request)).encode()

        def ask(component: str) -> dict[str, Any]:
            answer = self._runtime.invoke_endpoint(**self._call(component, body))
            try:
                return answer_of(answer["Body"].read())
            except ModelError as error:
                raise _classified(f"{component}: {error}", error.status) from error

        return self._answered(adapter, ask)

    def _call(self, component: str, body: bytes) -> Any:
        return {
            "EndpointName": self._endpoint,
            "InferenceComponentName": component,
            "ContentType": "application/json",
            "Body": body,
        }

    def _look_up(self, adapter: str) -> str:
        try:
            # Consistent: after a component is retired, or just after a deployment, an old answer would be wrong.
            found = self._dynamodb.get_item(
                TableName=self._table,
                Key={"adapter": {"S": adapter}},
                ConsistentRead=True,
                ProjectionExpression="#live",
                ExpressionAttributeNames={"#live": "live"},
            )
        except AWS_ERRORS as error:
            raise explained(error, f"look up the live component of {adapter} in the registry {self._table}") from error
        match found.get("Item", {}).get("live"):
            case None:
                raise NoLiveComponentError(
                    f"No component of the adapter {adapter!r} is live: it was not deployed yet, or was removed. "
                    f"Deploy it: `loradrop push FILE --name {adapter}`."
                )
            case {"M": {"component": {"S": str(component)}}} if COMPONENT_NAME.fullmatch(component):
                return component
            case _:
                raise AwsUnavailableError(
                    f"The live pointer of {adapter!r} names no component: is {self._table} the registry of a loradrop stack?"
                )

    def _forget(self, adapter: str, component: str) -> None:
        with self._lock:
            if self._known.get(adapter, ("",))[0] == component:  # else another thread knows better already
                del self._known[adapter]

    def _answered(self, adapter: str, call: Callable[[str], Answer]) -> Answer:
        """`call` with the live component, as often as makes sense."""
        began = self._clock()
        tries = 0
        is_renewed = False
        while True:
            component = self.live_component(adapter)
            tries += 1
            try:
                return _explaining(call, component)
            except _ComponentRefusedError as error:
                self._forget(adapter, component)
                if is_renewed or self.live_component(adapter) == component:
                    raise ModelError(str(error), error.status) from error.__cause__
                is_renewed = True
            except ModelNotReadyError as error:
                self._forget(adapter, component)
                delay = self._chance() * min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(tries, 10))
                passed = self._clock() - began
                if passed + delay > self._deadline_seconds:
                    raise ModelNotReadyError(
                        f"No answer from {adapter} after {tries} tries in {passed:.0f} s; the last: {error}",
                        error.status,
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


def _explaining(call: Callable[[str], Answer], component: str) -> Answer:
    try:
        return call(component)
    except ClientError as error:
        raise _refusal(component, error) from error
    except NOT_SENT as error:
        raise ModelNotReadyError(str(explained(error, f"ask {component}"))) from error
    except (BotoCoreError, HTTPError) as error:
        if isinstance(error, BotoCoreError) and not isinstance(error, HTTPClientError):
            raise explained(error, f"ask {component}") from error
        raise ModelError(f"{component} did not answer in time, or the connection broke: {error}") from error


def _refusal(component: str, error: ClientError) -> LoradropError:
    """What SageMaker's answer means."""
    known = explained(error, f"ask {component}")
    if isinstance(known, AccessRefusedError):
        return known
    # OriginalStatusCode and OriginalMessage are the container's own, in a ModelError.
    response: Any = error.response
    code, message = response["Error"].get("Code", ""), response["Error"].get("Message", "")
    status = response.get("OriginalStatusCode", response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    said = f"{component} answered {status} ({code}): {response.get('OriginalMessage', message)}"
    if code in ("ValidationError", "ValidationException"):
        return _ComponentRefusedError(said, status)
    return ModelNotReadyError(said, status) if code in NOT_READY_CODES else _classified(said, status)


def _classified(said: str, status: int | None) -> ModelError:
    if status in NOT_READY_STATUSES and UNREADABLE_REQUEST not in said.lower():
        return ModelNotReadyError(said, status)
    return ModelError(said, status)


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
