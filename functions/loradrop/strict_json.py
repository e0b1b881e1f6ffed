"""JSON from strangers: bounded in depth, no key twice, no number that takes long to read, no half characters.

What is taken here, Python's reader and the one of safetensors (serde_json) take as well, and understand alike.
"""

import functools
import json
import math
import re
from typing import NoReturn

_MAX_DIGITS = 40
# Where Python reads it, which itself stops at 4300: what has no more is a float too.
_MAX_PYTHON_DIGITS = 300
_PYTHONS_DIGITS = 4300
# Below it every reader of Python goes on.
_SURE_DEPTH = 500
# Strings as a whole, so that brackets inside them do not count. One that never ends matches to the end of the text,
# and nothing is given back (*+): else every quote of it would be tried as a beginning, in quadratic time.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The message continues a sentence: "adapter_config.json is not JSON: …".

    `is_policy`: Python's own reader would take it.
    """

    def __init__(self, message: str, *, is_policy: bool = False) -> None:
        super().__init__(message)
        self.is_policy = is_policy


class DuplicateKeyError(JsonError):
    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} occurs twice")
        self.key = key


def parse_object(
    data: bytes, *, max_depth: int, constants: bool = False, duplicates: list[str] | None = None
) -> dict[str, object]:
    """The JSON object that `data` is.

    `constants` allows NaN and Infinity, and numbers that become it, as Python's own reader does. Keys that occur twice go to `duplicates`, where
    the last value wins; without it they raise DuplicateKeyError. Raises JsonError for all else.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        raise JsonError("it starts with a byte order mark, which the engine's JSON reader refuses")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 (byte {error.start})") from error
    _refuse_depth(text, max_depth)
    try:
        value = json.loads(
            text,
            object_pairs_hook=functools.partial(_object, duplicates=duplicates),
            parse_int=functools.partial(_bounded_int, max_digits=_MAX_PYTHON_DIGITS if constants else _MAX_DIGITS),
            parse_float=functools.partial(_bounded_float, is_python=constants),
            parse_constant=float if constants else _refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} (line {error.lineno}, column {error.colno})") from error
    if _SURROGATE.search(text):
        _refuse_half_characters(value)
    if not isinstance(value, dict):
        raise JsonError(f"it is {_KINDS.get(type(value), 'a value')}, and an object is needed")
    return value


_KINDS: dict[type, str] = {list: "a list", str: "a string", int: "a number", float: "a number", type(None): "null"}


def _refuse_depth(text: str, max_depth: int) -> None:
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        first = text[match.start()]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
    if deepest > max_depth:
        raise JsonError(f"it is nested more than {max_depth} deep", is_policy=deepest <= _SURE_DEPTH)


def _object(pairs: list[tuple[str, object]], duplicates: list[str] | None) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                if duplicates is None:
                    raise DuplicateKeyError(key)
                duplicates.append(key)
            seen.add(key)
    return found


def _refuse_half_characters(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise JsonError("it has half of a surrogate pair, which is no character", is_policy=True) from error


def _bounded_int(digits: str, max_digits: int) -> int | float:
    if len(digits) > max_digits:
        raise JsonError(f"it has a number of {len(digits)} digits", is_policy=len(digits) <= _PYTHONS_DIGITS)
    return -0.0 if digits == "-0" else int(digits)  # serde_json's -0 is no integer either


def _bounded_float(digits: str, *, is_python: bool) -> float:
    if len(digits) > (_MAX_PYTHON_DIGITS if is_python else _MAX_DIGITS):
        raise JsonError(f"it has a number of {len(digits)} characters")
    value = float(digits)
    if math.isinf(value) and not is_python:
        raise JsonError("it has a number that is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"it has {name}, which is no JSON")
