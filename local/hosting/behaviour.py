"""How the emulated hosting behaves: the knobs that tests and demos turn, at start or while it runs."""

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

INVOKE_ERROR_STATUSES = (400, 424, 429, 500, 503, 530)


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
    # The faults. A text is the reason that the component, or the caller, is told; None: no fault.
    create_fails: str | None = None
    load_fails: str | None = None
    # The adapter is registered and never used: it answers as the base does, as a wrong adapter can in a real container.
    adapters_ignored: bool = False
    invoke_errors: InvokeErrors | None = None

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
        for name in ("dynamic_loading", "adapters_ignored"):
            _check(name, getattr(self, name), "true or false", lambda value: isinstance(value, bool))
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
        values = dict(changes)
        errors = values.get("invoke_errors")
        if isinstance(errors, Mapping):
            values["invoke_errors"] = _invoke_errors(errors)
        elif errors is not None and not isinstance(errors, InvokeErrors):
            raise ValueError("invoke_errors must be null or an object with times, status and, if wanted, component")
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


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


class Control:
    """The behaviour now, and how many of its counted faults have happened."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self._lock = threading.Lock()
        self._reset(behaviour or Behaviour())

    def _reset(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
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


# One hosting service per process, as there is one moto: this is where tests and the local cloud turn its knobs.
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
