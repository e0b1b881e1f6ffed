"""The real handlers with every call to AWS in our hands: run as far as the answers go that there are, then resumed.

A Lambda in flight is (handler, event, answers so far). It is resumed by running it again on its answers, which is
remembered: the same Lambda with the same answers wants the same next call. All values are interned: a number stands for
each, so that states are tuples of small numbers.
"""

import copy
import importlib
import inspect
import json
import os
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from typing import Any

import boto3
from botocore.exceptions import ClientError

from loradrop import lifecycle
from tests.protocol.table import Table

ENDPOINT, BASE, STACK = "endpoint", "base", "stack"
UPLOADS, RELEASES = "uploads", "releases"
GRACE_SECONDS = 600
SETTINGS = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "POWERTOOLS_SERVICE_NAME": "loradrop",
    "POWERTOOLS_METRICS_NAMESPACE": "loradrop",
    "POWERTOOLS_METRICS_DISABLED": "true",
    "POWERTOOLS_TRACE_DISABLED": "true",
    "POWERTOOLS_LOG_LEVEL": "CRITICAL",
    "REGISTRY_TABLE": "registry",
    "UPLOAD_BUCKET": UPLOADS,
    "RELEASE_BUCKET": RELEASES,
    "ENDPOINT_NAME": ENDPOINT,
    "BASE_COMPONENT_NAME": BASE,
    "STACK_ID": STACK,
    "DEPLOY_ADAPTER_ARN": "deploy-adapter",
    "MAX_UPLOAD_MEGABYTES": "1",
    "IN_SERVICE_DEADLINE_SECONDS": "60",
    "GRACE_PERIOD_SECONDS": str(GRACE_SECONDS),
    "CREATES_PER_SECOND": "2",
    "WATCHED_SECONDS": "0",
    "TOPIC_ARN": "topic",
    "TENANTS": "",
}
# ValidateAdapter and SmokeTestAdapter are modelled: they write nothing that others' decisions read.
HANDLERS = {
    "ClaimUpload": "claim_upload",
    "CreateComponent": "create_component",
    "WaitForInService": "wait_for_in_service",
    "PromoteAdapter": "promote_adapter",
    "CleanUpComponent": "clean_up_component",
    "ReportOutcome": "report_outcome",
    "PlanRepairs": "plan_repairs",
    "RepairAdapter": "repair_adapter",
}

_numbers: dict[str, int] = {}
VALUES: list[Any] = []


def put(value: Any) -> int:
    """The number of a value; equal values (by their repr) have the same."""
    key = repr(value)
    if (number := _numbers.get(key)) is None:
        number = _numbers[key] = len(VALUES)
        VALUES.append(value)
    return number


class Pause(BaseException):
    """The handler wants to make a call that there is no answer to."""


class Refusal:
    """An answer that is an error of AWS's."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message

    def __repr__(self) -> str:
        return f"{self.code}: {self.message}"


class _Replay:
    log: tuple[int, ...] = ()
    position = 0
    now = 0


def _external(service: str, operation: str, *arguments: Any, **named: Any) -> Any:
    if _Replay.position == len(_Replay.log):
        raise Pause(put((service, operation, arguments, named)))
    answer = VALUES[_Replay.log[_Replay.position]]
    _Replay.position += 1
    if isinstance(answer, Refusal):
        error: Any = {"Error": {"Code": answer.code, "Message": answer.message}}
        raise ClientError(error | {"ResponseMetadata": {"HTTPStatusCode": 400}}, operation)
    return answer if service == "registry" else copy.deepcopy(answer)


class _Client:
    """Any client of boto3's."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __getattr__(self, operation: str) -> Any:
        if operation.startswith("_"):
            raise AttributeError(operation)
        return lambda **request: _external(self._service, operation, **request)

    def get_paginator(self, operation: str) -> Any:
        return types.SimpleNamespace(paginate=lambda **request: _external(self._service, operation, **request))


class _NobodyWaits:
    """A turn only delays a create, and reads and writes nothing that a decision reads: a Lambda that is slow, or that dies
    before its first call and is run again, is the same to the protocol. So every turn here is now.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def wait(self, turn: Any) -> Any:
        return turn


class _Datetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "datetime":  # type: ignore[override]
        return datetime.fromtimestamp(_Replay.now, tz or UTC)


_TIME = types.SimpleNamespace(
    time=lambda: _Replay.now, time_ns=lambda: _Replay.now * 10**9, sleep=lambda seconds: None, monotonic=time.monotonic
)
REGISTRY_METHODS = frozenset(
    {
        "claim",
        "use_component",
        "promote",
        "give_up",
        "begin_delete",
        "end_delete",
        "finish",
        "mark_reported",
        "remove",
        "recover",
        "state",
        "live",
        "upload",
        "uploads",
        "open_uploads",
        "watched_states",
        "watched_uploads",
    }
)


@contextmanager
def _with_modules_of_our_own() -> Iterator[None]:
    """Other tests import the same modules with moto behind them: these copies are only ours."""
    names = [*HANDLERS.values(), *(name for name in sys.modules if name == "aws" or name.startswith("aws."))]
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    environment, client = dict(os.environ), boto3.client
    os.environ.update(SETTINGS)
    boto3.client = lambda service, **_: _Client(service)
    try:
        yield
    finally:
        boto3.client = client
        os.environ.clear()
        os.environ.update(environment)
        for name in [*HANDLERS.values(), *(name for name in sys.modules if name == "aws" or name.startswith("aws."))]:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def _load() -> tuple[dict[str, Any], Any]:
    with _with_modules_of_our_own():
        registry = importlib.import_module("aws.registry")

        class Stepped(registry.Registry):  # type: ignore[name-defined, misc]
            """A whole step of the registry is one call: it reads, decides and writes under one revision."""

        for method in REGISTRY_METHODS:
            setattr(Stepped, method, _stepped(method))
        real, registry.Registry = registry.Registry, Stepped
        importlib.import_module("aws.turns").Turns = _NobodyWaits
        runtime = importlib.import_module("aws.runtime")
        runtime.metrics = types.SimpleNamespace(log_metrics=lambda function: function, add_metric=lambda **_: None)
        runtime.count_by = lambda *_: None
        handlers = {}
        for state, name in HANDLERS.items():
            module = importlib.import_module(name)
            handlers[state] = inspect.unwrap(module.handler)
        for module in [sys.modules[name] for name in (*HANDLERS.values(), "aws.fleet")]:
            for name, ours in (("time", _TIME), ("datetime", _Datetime)):
                if hasattr(module, name):
                    setattr(module, name, ours)
        return handlers, real


def _stepped(method: str) -> Any:
    return lambda self, *arguments, **named: _external("registry", method, *arguments, **named)


_HANDLERS, Registry = _load()
CONTEXT = types.SimpleNamespace(get_remaining_time_in_millis=lambda: 900_000)
_actions: dict[tuple[str, int, tuple[int, ...], int], tuple[Any, ...]] = {}


def next_action(handler: str, event: int, log: tuple[int, ...], now: int) -> tuple[Any, ...]:
    """("call", request), ("return", result) or ("error", name, message): what the Lambda does after these answers."""
    key = (handler, event, log, now)
    if key not in _actions:
        _Replay.log, _Replay.position, _Replay.now = log, 0, now
        try:
            result = _HANDLERS[handler](json.loads(json.dumps(VALUES[event])), CONTEXT)
        except Pause as pause:
            _actions[key] = ("call", pause.args[0])
        except Exception as error:
            if isinstance(error, AssertionError | AttributeError | TypeError | NameError):
                raise
            _actions[key] = ("error", type(error).__name__, str(error))
        else:
            _actions[key] = ("return", put(result))
    return _actions[key]


_steps: dict[tuple[int, int], tuple[int, int]] = {}
_ALIKE: dict[str, Any] = {"revision": {"N": "1"}, "summary": {"S": "s"}, "entry": {"S": "{}"}, "figures": {"M": {}}}
# Of a state, for lists alone: no rule reads it.
_SHOWN = "newest"


def registry_step(items: int, request: int) -> tuple[int, int]:
    """(the table's items, a method of Registry with its arguments) → (the items after it, its answer), all numbers.

    By the real Registry. The revision is left out, since a step is atomic here (tests/unit/test_registry.py has what it is
    for); and so is what was found out for the reader of the history.
    """
    if (items, request) not in _steps:
        _, method, arguments, named = VALUES[request]
        table = Table(dict(VALUES[items]))
        answer = getattr(Registry(table, "registry"), method)(*arguments, **named)
        if isinstance(answer, Iterator):
            answer = list(answer)
        for key, item in table.items.items():
            kept = {name: value for name, value in item.items() if name != _SHOWN}
            table.items[key] = kept | {name: value for name, value in _ALIKE.items() if name in item}
        _steps[items, request] = put(dict(sorted(table.items.items()))), put(answer)
    return _steps[items, request]


@contextmanager
def mutated(rule: str, text: str, instead: str) -> Iterator[None]:
    """The rules with one of them changed in its source: what a mistake in it would be."""
    function = getattr(lifecycle, rule)
    source = inspect.getsource(function)
    assert source.count(text) == 1, f"{rule} does not hold {text!r} once"
    scope = vars(lifecycle)
    exec(source.replace(text, instead), scope)
    _steps.clear()
    try:
        yield
    finally:
        setattr(lifecycle, rule, function)
        _steps.clear()
