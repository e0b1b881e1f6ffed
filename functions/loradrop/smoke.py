"""Smoke prompts: what an adapter is asked before it goes live, and how its answers are compared with the base's."""

import json
import math
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import FrameType
from typing import Any

MAX_SMOKE_BYTES = 64 * 1024
MAX_SMOKE_PROMPTS = 16
MAX_INPUT_CHARACTERS = 8_000
MAX_EXPECT_CHARACTERS = 500
MAX_NEW_TOKENS = 256
DEFAULT_NEW_TOKENS = 32
# A pattern that backtracks without end, or that takes long to compile, is not worth the controller's time. Each match has
# this long, its compilation included, and so has the compilation of all patterns of a file.
MAX_MATCH_SECONDS = 1.0
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Parameters that an uploader may set; the stack itself sets temperature, details and the seed.
ALLOWED_PARAMETERS = frozenset({"max_new_tokens", "stop"})
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 64
# Greedy answers of one model differ by this much, in nats per token, when the server's batches differ (bf16).
LOGPROB_NOISE = 1e-4
# Shorter repetitions may be meant.
MIN_GARBAGE_TOKENS = 16
# How many times the base's own difference, measured by asking it twice, counts as a difference.
NOISE_FACTOR = 3.0


class SmokePromptsInvalidError(ValueError):
    """`smoke.jsonl` can't be used; the message says which line, what was found and what is allowed."""


class ContainerKind(StrEnum):
    """The base's container: AWS's LMI, or AWS's vLLM container for SageMaker, which has OpenAI's schemas alone."""

    LMI = "lmi"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class SmokePrompt:
    """One question. `expect` is a substring of the right answer, or a regular expression between slashes."""

    inputs: str
    parameters: dict[str, Any] = field(default_factory=dict)
    expect: str | None = None

    def payload(self, kind: ContainerKind = ContainerKind.LMI) -> dict[str, Any]:
        """The body for `invoke_endpoint`, greedy, with a log-probability for each token: LMI's own schema, or a completion of OpenAI's."""
        parameters = {"max_new_tokens": DEFAULT_NEW_TOKENS, **self.parameters, "temperature": 0}
        if kind is ContainerKind.LMI:
            return {"inputs": self.inputs, "parameters": parameters | {"details": True}}
        max_tokens = parameters.pop("max_new_tokens")
        return {"prompt": self.inputs, "max_tokens": max_tokens, **parameters, "logprobs": 1}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a component said. `logprobs` are nats per generated token, empty where the container gives none."""

    text: str
    tokens: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt's outcome; `compared_by` says in words what was compared and by how much it differs."""

    differs: bool
    compared_by: str


def parse_smoke_prompts(data: bytes) -> tuple[SmokePrompt, ...]:
    """The prompts of a `smoke.jsonl`, one JSON object a line: `inputs`, optional `parameters`, optional `expect`.

    Raises SmokePromptsInvalidError, whose message is a full sentence.
    """
    if len(data) > MAX_SMOKE_BYTES:
        raise SmokePromptsInvalidError(f"smoke.jsonl has {len(data)} bytes; at most {MAX_SMOKE_BYTES} are read.")
    try:
        lines = data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise SmokePromptsInvalidError(f"smoke.jsonl is not UTF-8 (byte {error.start}).") from error
    try:
        with _time_limit(MAX_MATCH_SECONDS):
            prompts = tuple(_parse_line(number, line) for number, line in enumerate(lines, 1) if line.strip())
    except TimeoutError as error:
        raise SmokePromptsInvalidError(
            f"smoke.jsonl: the regular expressions in 'expect' take more than {MAX_MATCH_SECONDS:g} s to compile; "
            "simplify them."
        ) from error
    if not 1 <= len(prompts) <= MAX_SMOKE_PROMPTS:
        raise SmokePromptsInvalidError(
            f"smoke.jsonl holds {len(prompts)} prompts; 1 to {MAX_SMOKE_PROMPTS} are allowed. "
            "Without the file the stack's default prompts are used."
        )
    return prompts


def _parse_line(number: int, line: str) -> SmokePrompt:
    def invalid(what: str) -> SmokePromptsInvalidError:
        return SmokePromptsInvalidError(f"smoke.jsonl, line {number}: {what}.")

    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise invalid("not JSON; each line must be one JSON object") from error
    if not isinstance(entry, dict):
        raise invalid(f"a JSON {type(entry).__name__}; an object with 'inputs' is needed")
    inputs, parameters, expect = entry.get("inputs"), entry.get("parameters", {}), entry.get("expect")
    if not isinstance(inputs, str) or not 1 <= len(inputs) <= MAX_INPUT_CHARACTERS:
        raise invalid(f"'inputs' must be a string of 1 to {MAX_INPUT_CHARACTERS} characters")
    try:
        inputs.encode()
    except UnicodeEncodeError as error:
        raise invalid("'inputs' holds half of a surrogate pair, which is no character") from error
    if not isinstance(parameters, dict) or not parameters.keys() <= ALLOWED_PARAMETERS:
        raise invalid(f"'parameters' must be an object with only {', '.join(sorted(ALLOWED_PARAMETERS))}")
    new_tokens = parameters.get("max_new_tokens", DEFAULT_NEW_TOKENS)
    if not isinstance(new_tokens, int) or isinstance(new_tokens, bool) or not 1 <= new_tokens <= MAX_NEW_TOKENS:
        raise invalid(f"'max_new_tokens' must be a whole number from 1 to {MAX_NEW_TOKENS}")
    stops = parameters.get("stop", [])
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(_is_stop(stop) for stop in stops):
        raise invalid(f"'stop' must be a list of at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters")
    if expect is not None:
        if not isinstance(expect, str) or not 1 <= len(expect) <= MAX_EXPECT_CHARACTERS:
            raise invalid(f"'expect' must be a string of 1 to {MAX_EXPECT_CHARACTERS} characters, or /pattern/")
        try:
            _pattern(expect)
        except (re.error, OverflowError, RecursionError) as error:
            raise invalid(f"'expect' is not a regular expression: {error}") from error
    return SmokePrompt(inputs, parameters, expect)


def _is_stop(stop: object) -> bool:
    return isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_CHARACTERS


def _pattern(expect: str) -> re.Pattern[str] | None:
    if len(expect) > 2 and expect.startswith("/") and expect.endswith("/"):
        return re.compile(expect[1:-1])
    return None


def meets_expectation(text: str, expect: str | None) -> bool:
    """Whether an answer is as expected. A pattern that is not matched within MAX_MATCH_SECONDS is not met."""
    if expect is None:
        return True
    try:
        with _time_limit(MAX_MATCH_SECONDS):
            pattern = _pattern(expect)
            return expect in text if pattern is None else pattern.search(text) is not None
    except TimeoutError:
        return False


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    # Python's regular expressions look for signals while they compile and search, so an alarm ends them. Signals are for the
    # main thread, in which a Lambda runs, and for other systems than Windows: elsewhere it is the user's own time.
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def parse_answer(body: bytes) -> Answer:
    """The answer in a response of LMI's `inputs` schema, or to a completion of OpenAI's.

    Raises ValueError if it holds none: an error object, say, which LMI can send with status 200.
    """
    response = json.loads(body)
    if isinstance(response, list) and len(response) == 1:
        response = response[0]
    choices = response.get("choices") if isinstance(response, dict) else None
    if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict) and "text" in choices[0]:
        return _completion(choices[0])
    if not isinstance(response, dict) or not isinstance(response.get("generated_text"), str):
        raise ValueError(  # noqa: TRY004
            f"The container's answer holds no generated_text: {body[:300].decode(errors='replace')}"
        )
    details = response.get("details")
    tokens = details.get("tokens") if isinstance(details, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        tokens = []
    # The asynchronous handler says `logprob`, the rolling-batch one `log_prob`. A null is a NaN that JSON cannot hold.
    logprobs = [token.get("logprob", token.get("log_prob", math.nan)) for token in tokens]
    logprobs = [math.nan if logprob is None else logprob for logprob in logprobs]
    if not any("logprob" in token or "log_prob" in token for token in tokens):
        tokens, logprobs = [], []
    return Answer(
        text=response["generated_text"],
        tokens=tuple(str(token.get("text")) for token in tokens),
        logprobs=tuple(float(logprob) for logprob in logprobs),  # "NaN" is how some say it
    )


def _completion(choice: dict[str, Any]) -> Answer:
    found = choice.get("logprobs")
    tokens, logprobs = (found.get("tokens"), found.get("token_logprobs")) if isinstance(found, dict) else (None, None)
    if not isinstance(tokens, list) or not isinstance(logprobs, list) or len(tokens) != len(logprobs):
        tokens, logprobs = [], []
    return Answer(
        text=str(choice["text"]),
        tokens=tuple(str(token) for token in tokens),
        logprobs=tuple(math.nan if logprob is None else float(logprob) for logprob in logprobs),
    )


def health_problem(answer: Answer) -> str | None:
    """Why an answer proves no health, in words: it was not computed in numbers, or is one token again and again."""
    if not _is_finite(answer):
        return "Its log-probabilities are not finite: the adapter's weights overflow when they are applied."
    if len(answer.tokens) >= MIN_GARBAGE_TOKENS and len(set(answer.tokens)) == 1:
        return f"It is the token {answer.tokens[0]!r} {len(answer.tokens)} times: the adapter's weights are broken."
    return None


def _is_finite(answer: Answer) -> bool:
    return all(math.isfinite(logprob) for logprob in answer.logprobs)


def logprob_difference(one: Answer, other: Answer) -> float | None:
    """The largest difference in nats over the tokens that both chose; infinite from where they chose differently.

    None where one of them came without log-probabilities.
    """
    if not one.logprobs or not other.logprobs:
        return None
    if one.tokens != other.tokens:
        return math.inf
    return max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))


def compare(adapter: Answer, base: Answer, base_again: Answer) -> Comparison:
    """Whether the adapter answers differently from its base, by more than the base differs from itself.

    What was not computed in numbers differs from nothing: it is no proof of an effect.
    """
    if not _is_finite(adapter):
        return Comparison(False, "log-probabilities that are not finite")
    if not (_is_finite(base) and _is_finite(base_again)):
        return Comparison(False, "log-probabilities of the base that are not finite")
    difference = logprob_difference(adapter, base)
    noise = logprob_difference(base, base_again)
    if difference is None or noise is None:
        return Comparison(adapter.text not in (base.text, base_again.text), "text")
    if math.isinf(noise):  # the base itself wavers here: only an answer that neither try gave is a difference
        return Comparison(adapter.tokens not in (base.tokens, base_again.tokens), "tokens; the base wavers")
    if math.isinf(difference):
        return Comparison(True, "tokens")
    threshold = max(LOGPROB_NOISE, NOISE_FACTOR * noise)
    return Comparison(difference > threshold, f"log-probabilities: {difference:.2g} nats, noise {threshold:.2g}")
