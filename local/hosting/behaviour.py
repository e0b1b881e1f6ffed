"""How the emulated hosting behaves: the settings that tests and demos change, at start or while it runs."""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

INVOKE_ERROR_STATUSES = (400, 424, 429, 500, 503, 530)
KILL_ERRORS = ("Runtime.ExitError", "Sandbox.Timedout", "Lambda.Unknown")


@dataclass(frozen=True, slots=True)
class InvokeErrors:
    """The next `times` invocations of a component whose name contains `component` are answered with `status`.

    424 is the container's own failure (ModelError), 429 ModelNotReadyException, 503 ServiceUnavailable, 500 InternalFailure,
    530 InternalDependencyException, 400 ValidationError.
    """

    times: int
    status: int
    component: str = ""

    def __post_init__(self) -> None:
        _check("invoke_errors.times", self.times, "a whole number, 0 or more", _is_whole, lambda value: value >= 0)
        statuses = ", ".join(map(str, INVOKE_ERROR_STATUSES))
        _check(
            "invoke_errors.status", self.status, f"one of {statuses}", _is_whole, lambda v: v in INVOKE_ERROR_STATUSES
        )
        _check("invoke_errors.component", self.component, "a part of a component's name", _is_text)


@dataclass(frozen=True, slots=True)
class Kill:
    """The `nth` invocation, counted from now, of the functions whose name contains `function` dies: its state machine gets `error`.

    It dies with the answer of its AWS call number `after_calls` (that call is carried out); before it begins with 0; at its end,
    all of its work done and nothing answered, with null.
    """

    function: str
    nth: int = 1
    after_calls: int | None = None
    error: str = "Runtime.ExitError"

    def __post_init__(self) -> None:
        _check("kills.function", self.function, "a part of a function's name", _is_text)
        _check("kills.nth", self.nth, "a whole number, 1 or more", _is_whole, lambda value: value >= 1)
        _check(
            "kills.after_calls",
            self.after_calls,
            "a whole number, 0 or more, or null",
            _is_whole,
            lambda value: value >= 0,
            optional=True,
        )
        _check(
            "kills.error", self.error, f"one of {', '.join(KILL_ERRORS)}", _is_text, lambda value: value in KILL_ERRORS
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """From the `nth` on, counted from now, `times` calls of `action` are refused with `code`.

    `action` is written as IAM writes it (dynamodb:TransactWriteItems, s3:PutObject, sagemaker:*); `function` is a part of the name of
    the Lambda that calls, and empty for anybody; `about` is a text that stands in the call's path, query, body, or as its component.
    A call that is `carried_out` has its effect, and its answer is lost.
    """

    action: str
    nth: int = 1
    times: int = 1
    function: str = ""
    about: str = ""
    code: str = "AccessDeniedException"
    status: int = 400
    carried_out: bool = False

    def __post_init__(self) -> None:
        _check("refusals.action", self.action, "service:Operation", _is_text, lambda value: ":" in value)
        for name in ("nth", "times"):
            _check(
                f"refusals.{name}",
                getattr(self, name),
                "a whole number, 1 or more",
                _is_whole,
                lambda value: value >= 1,
            )
        for name in ("function", "about", "code"):
            _check(f"refusals.{name}", getattr(self, name), "a text", _is_text)
        _check("refusals.status", self.status, "an HTTP status from 400", _is_whole, lambda v: 400 <= v <= 599)
        _check("refusals.carried_out", self.carried_out, "true or false", lambda value: isinstance(value, bool))


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One frozen value: it is replaced as a whole, so nobody ever sees half a change."""

    seconds_to_in_service: float = 0.0
    seconds_to_delete: float = 0.0
    # Rates that throttle; None: never. AWS publishes none for components, so there is no true default.
    creates_per_second: float | None = None
    describes_per_second: float | None = None
    components_per_endpoint: int | None = None
    # InService at once, weights read by the first invocation: a base with SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY.
    dynamic_loading: bool = False
    # The faults. A text is the reason that the component, or the caller, gets; None: no fault.
    create_fails: str | None = None
    load_fails: str | None = None
    # The adapter is registered and never used: it answers as the base does, as a wrong adapter can in a real container.
    adapters_ignored: bool = False
    invoke_errors: InvokeErrors | None = None
    # The base has no copies (scaled to zero): it and its adapters answer 400 for want of capacity.
    no_capacity: bool = False
    # Names of components that are Failed from now on, as by an accident of their instance.
    failed_components: tuple[str, ...] = ()
    # Whether an update of a base forgets its adapters, which stay InService all the same, or registers them anew.
    # LMI keeps its adapters in the memory of its process, and no source says that SageMaker registers them again.
    base_update_forgets_adapters: bool = True
    # Faults of the account's Lambdas and of their calls. Each counts from when the behaviour was last changed.
    kills: tuple[Kill, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def __post_init__(self) -> None:
        for name in ("seconds_to_in_service", "seconds_to_delete"):
            _check(name, getattr(self, name), "a number of seconds, 0 or more", _is_number, lambda value: value >= 0)
        for name in ("creates_per_second", "describes_per_second"):
            _check(
                name, getattr(self, name), "a rate above 0, or null", _is_number, lambda value: value > 0, optional=True
            )
        _check(
            "components_per_endpoint",
            self.components_per_endpoint,
            "a whole number, 0 or more, or null",
            _is_whole,
            lambda value: value >= 0,
            optional=True,
        )
        for name in ("dynamic_loading", "adapters_ignored", "no_capacity", "base_update_forgets_adapters"):
            _check(name, getattr(self, name), "true or false", lambda value: isinstance(value, bool))
        _check("failed_components", self.failed_components, "a list of names", _is_tuple_of_texts)
        for name in ("create_fails", "load_fails"):
            _check(
                name,
                getattr(self, name),
                "the reason as a text, or null",
                _is_text,
                optional=True,
            )

    def changed(self, changes: Mapping[str, Any]) -> "Behaviour":
        """With these fields replaced. Raises ValueError, with a sentence, for a field or a value that makes no sense."""
        known = {field.name for field in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(known))}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
        }
        errors = values.get("invoke_errors")
        if isinstance(errors, Mapping):
            values["invoke_errors"] = _invoke_errors(errors)
        elif errors is not None and not isinstance(errors, InvokeErrors):
            raise ValueError("invoke_errors must be null or an object with times, status and, if wanted, component")
        for name, kind in (("kills", Kill), ("refusals", Refusal)):
            if name in values:
                values[name] = _faults(name, kind, values[name])
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def changes_in(text: str | bytes) -> dict[str, Any]:
    """Settings as JSON, for `Behaviour.changed`. Raises ValueError, with a sentence."""
    try:
        changes = json.loads(text)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if isinstance(changes, dict):
        return changes
    raise ValueError('no object of settings, such as {"seconds_to_in_service": 2}')


def _invoke_errors(errors: Mapping[str, Any]) -> InvokeErrors:
    if not {"times", "status"} <= set(errors) <= {"times", "status", "component"}:
        raise ValueError("invoke_errors takes times, status and, if wanted, component")
    return InvokeErrors(**errors)


def _faults(name: str, kind: type[Any], given: Any) -> tuple[Any, ...]:
    known = [field.name for field in fields(kind)]
    if not isinstance(given, tuple) or not all(isinstance(one, Mapping | kind) for one in given):
        raise ValueError(f"{name} must be a list of objects with {', '.join(known)}")
    try:
        return tuple(one if isinstance(one, kind) else kind(**one) for one in given)
    except TypeError as error:
        raise ValueError(f"{name} takes objects with {', '.join(known)}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_tuple_of_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, str) for one in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(name: str, value: Any, wanted: str, kind: Any, rule: Any = None, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not kind(value) or (rule is not None and not rule(value)):
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


class RateLimit:
    """A token bucket that holds one second's worth of requests, and at least one."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._updated: float | None = None
        self._lock = threading.Lock()

    def allows(self, per_second: float | None) -> bool:
        if per_second is None:
            return True
        with self._lock:
            now = time.monotonic()
            size = max(1.0, per_second)
            refilled = size if self._updated is None else self._tokens + (now - self._updated) * per_second
            self._tokens, self._updated = min(size, refilled), now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


Fault = TypeVar("Fault", Kill, Refusal)


class Control:
    """The behaviour now, and how many of its counted faults have happened."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self._lock = threading.Lock()
        self._reset(behaviour or Behaviour())

    def _reset(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._seen: Counter[int] = Counter()
        self.creates, self.describes = RateLimit(), RateLimit()

    @property
    def behaviour(self) -> Behaviour:
        return self._behaviour

    def change(self, **changes: Any) -> Behaviour:
        with self._lock:
            self._reset(self._behaviour.changed(changes))
            return self._behaviour

    def replace(self, behaviour: Behaviour) -> None:
        with self._lock:
            self._reset(behaviour)

    def take_invoke_error(self, component: str) -> int | None:
        """The status that this invocation must fail with, if it must; counts it."""
        with self._lock:
            errors = self._behaviour.invoke_errors
            if errors is None or errors.component not in component:
                return None
            left = replace(errors, times=errors.times - 1) if errors.times > 1 else None
            self._behaviour = replace(self._behaviour, invoke_errors=left)
            return errors.status if errors.times > 0 else None

    def take_kill(self, function: str) -> Kill | None:
        """The end that this invocation must come to, if it must; counts it."""
        with self._lock:
            return self._due([one for one in self._behaviour.kills if one.function in function])

    def take_refusal(self, action: str, function: str, text: str) -> Refusal | None:
        """How this call must be refused, if it must; counts it. `text` is all that the call says."""
        with self._lock:
            meant = [
                one
                for one in self._behaviour.refusals
                if fnmatchcase(action, one.action) and one.function in function and one.about in text
            ]
            return self._due(meant)

    def _due(self, meant: Sequence[Fault]) -> Fault | None:
        """Of the faults that mean this call the first whose turn it is."""
        due: Fault | None = None
        for fault in meant:
            seen = self._seen[id(fault)] = self._seen[id(fault)] + 1
            if due is None and fault.nth <= seen < fault.nth + getattr(fault, "times", 1):
                due = fault
        return due


# One hosting service per process, as there is one moto: this is where tests and the local cloud change its behaviour.
CONTROL = Control()


@contextmanager
def behaving(**changes: Any) -> Iterator[Control]:
    """With this behaviour for the length of a block."""
    before = CONTROL.behaviour
    CONTROL.change(**changes)
    try:
        yield CONTROL
    finally:
        CONTROL.replace(before)
