"""The model server in the container: LMI's request and response schemas over an engine.

The key that is present decides the schema, in LMI's order: `prompt` (OpenAI completion), `inputs` (LMI's own), `messages`
(OpenAI chat). LMI has two handlers with different answers to `inputs`: the rolling-batch ones name a token's field `log_prob`;
the asynchronous vLLM handler names it `logprob`, and its finish_reason is vLLM's stop_reason, which is null unless a stop string was met.
"""

import itertools
import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..engines import Engine, Run, Token
from .errors import ContainerError

JSON = "application/json"
JSON_LINES = "application/jsonlines"
# The most an answer may have where the request names no limit: the engine's context ends it earlier.
NO_LIMIT_TOKENS = 4096


DEFAULT_MAX_LORA_RANK = 16
DEFAULT_MAX_LORAS = 4
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class Handler(StrEnum):
    ROLLING_BATCH = "rolling batch"
    ASYNC_VLLM = "async vLLM"
    VLLM_CONTAINER = "AWS's vLLM container"  # OpenAI's schemas alone

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Handler":
        if _is_vllm_container(environment):
            return cls.VLLM_CONTAINER
        asynchronous = environment.get("OPTION_ASYNC_MODE", "").lower() == "true"
        return (
            cls.ASYNC_VLLM
            if asynchronous or "vllm_async" in environment.get("OPTION_ENTRYPOINT", "")
            else cls.ROLLING_BATCH
        )


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """What the base's container was started with, as far as adapters meet it."""

    max_rank: int | None
    problem: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "LoraOptions":
        """A container that sets no option of LMI's or vLLM's is another make, and has no limits that are known here."""
        options = _options(environment)
        if not options:
            return cls(max_rank=None)
        may_update = environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() in ("1", "true")
        if options.get("ENABLE_LORA", "").lower() != "true" or (_is_vllm_container(environment) and not may_update):
            return cls(max_rank=None, problem="LoRA is not enabled. Use `--enable-lora` to enable LoRA.")
        return cls(max_rank=int(options.get("MAX_LORA_RANK", DEFAULT_MAX_LORA_RANK)))


def _is_vllm_container(environment: Mapping[str, str]) -> bool:
    return any(name.startswith("SM_VLLM_") for name in environment)


def _options(environment: Mapping[str, str]) -> dict[str, str]:
    """Of the container's engine, under their own names: OPTION_X of LMI, SM_VLLM_X of AWS's vLLM container."""
    prefix = "SM_VLLM_" if _is_vllm_container(environment) else "OPTION_"
    return {
        name.upper().removeprefix(prefix): value
        for name, value in environment.items()
        if name.upper().startswith(prefix)
    }


def start_problem(environment: Mapping[str, str]) -> str | None:
    """Why the engine does not start with this environment, in vLLM's words; None where it does."""
    if LoraOptions.of(environment).max_rank is None:
        return None
    numbers, options = {}, _options(environment)
    for name, default in (("MAX_LORA_RANK", DEFAULT_MAX_LORA_RANK), ("MAX_LORAS", DEFAULT_MAX_LORAS)):
        numbers[name] = int(options.get(name, default))
    loras, cpu_loras = numbers["MAX_LORAS"], int(options.get("MAX_CPU_LORAS", numbers["MAX_LORAS"]))
    if numbers["MAX_LORA_RANK"] not in LORA_RANKS:
        return f"max_lora_rank ({numbers['MAX_LORA_RANK']}) must be one of {LORA_RANKS}."
    if loras < 1:
        return f"max_loras ({loras}) must be greater than or equal to 1."
    if cpu_loras < loras:
        return f"max_cpu_loras ({cpu_loras}) must be greater than or equal to max_loras ({loras})."
    return None


@dataclass(frozen=True, slots=True)
class Answer:
    """The content type, and the body in the pieces in which the container sends it."""

    content_type: str
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class _Call:
    prompt: str
    max_new_tokens: int
    temperature: float
    stop: tuple[str, ...]
    streamed: bool
    details: bool = False
    return_full_text: bool = False
    logprobs: bool = False
    stream_usage: bool = False


def answer(engine: Engine, adapter: str | None, body: bytes, handler: Handler, model: str = "lmi") -> Answer:
    """What the container says to this request. Raises ContainerError for what it refuses."""
    request = _parsed(body)
    try:
        if "prompt" in request:
            call = _openai_call(request, _text(request, "prompt"), default_max_tokens=16)
            return _answer(engine, adapter, call, _completion(model), _completion_chunks(model))
        if "inputs" in request and handler is not Handler.VLLM_CONTAINER:
            call = _lmi_call(request, handler)
            return _answer(engine, adapter, call, _generated_text(handler), _generated_lines(handler))
        if "messages" in request:
            prompt = engine.apply_chat_template(_messages(request))
            call = _openai_call(request, prompt, default_max_tokens=NO_LIMIT_TOKENS)
            return _answer(engine, adapter, call, _chat_completion(model), _chat_chunks(model))
    except (ValueError, TypeError) as error:
        raise failure(str(error), 400) from error
    if handler is Handler.VLLM_CONTAINER:
        raise failure("Cannot find suitable handler for request. Expected one of: chat, completion", 400)
    raise _refusal("invalid payload. must contain prompt, inputs, or messages")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except ValueError as error:
        raise _refusal(str(error)) from error
    if not isinstance(request, dict):
        raise _refusal("invalid payload. must contain prompt, inputs, or messages")
    return request


def _refusal(reason: str) -> ContainerError:
    return failure(f"Input parsing failed: {reason}", 424)


def failure(reason: str, status: int) -> ContainerError:
    """What the container answers where it has no result."""
    return ContainerError(status, json.dumps({"error": reason, "code": status}))


def _text(request: Mapping[str, Any], name: str) -> str:
    value = request[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {_kind(value)}")
    return value


def _messages(request: Mapping[str, Any]) -> list[dict[str, str]]:
    messages = request["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(f"messages[{number}] must be an object whose role and content are texts")
    return messages


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
    value = default if values.get(name) is None else values[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {_kind(value)}")
    return float(value)


def _max_tokens(values: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    name = next((name for name in names if values.get(name) is not None), names[0])
    count = _number(values, name, default)
    if count < 1 or not count.is_integer():
        raise ValueError(f"{name} must be a whole number of at least 1, got {values[name]}.")
    return int(count)


def _temperature(values: Mapping[str, Any], default: float) -> float:
    temperature = _number(values, "temperature", default)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a number of at least 0, got {temperature}.")
    return temperature


def _logprobs(request: Mapping[str, Any]) -> bool:
    """Chat says true or false, a completion how many alternatives it wants beside the chosen token: it gets none, but 0 is yes."""
    wanted = request.get("logprobs")
    return wanted if isinstance(wanted, bool) else wanted is not None and _number(request, "logprobs", 0) >= 0


def _stream_usage(request: Mapping[str, Any]) -> bool:
    options = request.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", bool: "a boolean", str: "a text", type(None): "null"}.get(
        type(value), "a number"
    )


def _lmi_call(request: Mapping[str, Any], handler: Handler) -> _Call:
    parameters = request.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise TypeError(f"parameters must be an object, not {_kind(parameters)}")
    # vLLM samples by default; the rolling-batch handlers are greedy by default.
    sampled = handler is Handler.ASYNC_VLLM or bool(parameters.get("do_sample"))
    temperature = _temperature(parameters, 1.0 if sampled else 0.0)
    stop = parameters.get("stop") or (parameters.get("stop_sequences") if handler is Handler.ROLLING_BATCH else None)
    return _Call(
        prompt=_text(request, "inputs"),
        max_new_tokens=_max_tokens(parameters, ("max_new_tokens",), 30),
        temperature=0.0 if parameters.get("do_sample") is False else temperature,
        stop=_stops(stop),
        streamed=bool(request.get("stream", False)),
        details=bool(parameters.get("details", False)),
        return_full_text=bool(parameters.get("return_full_text", False)),
    )


def _openai_call(request: Mapping[str, Any], prompt: str, *, default_max_tokens: int) -> _Call:
    return _Call(
        prompt=prompt,
        max_new_tokens=_max_tokens(request, ("max_completion_tokens", "max_tokens"), default_max_tokens),
        temperature=_temperature(request, 1.0),
        stop=_stops(request.get("stop")),
        streamed=bool(request.get("stream", False)),
        logprobs=_logprobs(request),
        stream_usage=_stream_usage(request),
    )


def _stops(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(str(text) for text in stop)


@dataclass(frozen=True, slots=True)
class _Result:
    text: str
    tokens: Sequence[Token]
    finish_reason: str  # "length" | "eos_token" | "stop"
    prompt_tokens: int

    @property
    def openai_finish_reason(self) -> str:
        return "length" if self.finish_reason == "length" else "stop"

    def usage(self) -> dict[str, int]:
        answered = len(self.tokens)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answered,
            "total_tokens": self.prompt_tokens + answered,
        }


def _answer(engine: Engine, adapter: str | None, call: _Call, whole: Any, lines: Any) -> Answer:
    if call.streamed:
        run = Run()
        tokens = engine.stream(
            call.prompt,
            adapter=adapter,
            max_new_tokens=call.max_new_tokens,
            temperature=call.temperature,
            stop=call.stop,
            run=run,
        )
        made = lines(call, tokens)
        pieces = (_line(piece) for piece in (_with_usage(made, run) if call.stream_usage else made))
        # The first piece is made before the answer begins: what the engine refuses is an error, not a broken stream.
        first = next(pieces, None)
        return Answer(JSON_LINES, itertools.chain(() if first is None else (first,), pieces))
    made = engine.generate(
        call.prompt, adapter=adapter, max_new_tokens=call.max_new_tokens, temperature=call.temperature, stop=call.stop
    )
    result = _Result(made.text, made.tokens, made.finish_reason, made.prompt_tokens)
    return Answer(JSON, iter((_line(whole(call, result)),)))


def _with_usage(lines: Iterator[dict[str, Any]], run: Run) -> Iterator[dict[str, Any]]:
    """And a last event that has no choice: what vLLM sends where `stream_options` has `include_usage`."""
    line: dict[str, Any] = {}
    answered = 0
    for line in lines:
        answered += (line["choices"][0].get("delta") or {}).get("role") is None
        yield line
    counts = {"prompt_tokens": run.prompt_tokens, "completion_tokens": answered}
    yield line | {"choices": [], "usage": counts | {"total_tokens": run.prompt_tokens + answered}}


def _line(piece: dict[str, Any]) -> bytes:
    return json.dumps(piece, ensure_ascii=False).encode() + b"\n"


def _lmi_token(token: Token, handler: Handler) -> dict[str, Any]:
    name = "logprob" if handler is Handler.ASYNC_VLLM else "log_prob"
    return {"id": token.id, "text": token.text, name: token.logprob}


def _generated_text(handler: Handler) -> Any:
    def whole(call: _Call, result: _Result) -> dict[str, Any]:
        text = call.prompt + result.text if call.return_full_text else result.text
        if not call.details:
            return {"generated_text": text}
        tokens = [_lmi_token(token, handler) for token in result.tokens]
        if handler is Handler.ASYNC_VLLM:
            details: dict[str, Any] = {
                "finish_reason": None,
                "generated_tokens": len(tokens),
                "seed": None,
                "prefill": [],
                "tokens": tokens,
            }
        else:
            details = {
                "finish_reason": "stop_sequence" if result.finish_reason == "stop" else result.finish_reason,
                "generated_tokens": len(tokens),
                "inputs": call.prompt,
                "tokens": tokens,
            }
        return {"generated_text": text, "details": details}

    return whole


def _generated_lines(handler: Handler) -> Any:
    def lines(call: _Call, tokens: Iterator[Token]) -> Iterator[dict[str, Any]]:
        sent: list[Token] = []
        for token, is_last in _with_last(tokens):
            sent.append(token)
            line: dict[str, Any] = {"token": _lmi_token(token, handler)}
            if is_last:
                text = "".join(piece.text for piece in sent)
                line["generated_text"] = call.prompt + text if call.return_full_text else text
                if call.details or handler is Handler.ROLLING_BATCH:
                    reason = "length" if len(sent) >= call.max_new_tokens else "eos_token"
                    line["details"] = {"finish_reason": reason, "generated_tokens": len(sent), "inputs": call.prompt}
            yield line

    return lines


def _completion(model: str) -> Any:
    def whole(call: _Call, result: _Result) -> dict[str, Any]:
        logprobs = None
        if call.logprobs:
            offsets, place = [], 0
            for token in result.tokens:
                offsets.append(place)
                place += len(token.text)
            logprobs = {
                "text_offset": offsets,
                "token_logprobs": [token.logprob for token in result.tokens],
                "tokens": [token.text for token in result.tokens],
                "top_logprobs": [{token.text: token.logprob} for token in result.tokens],
            }
        choice = {
            "index": 0,
            "text": result.text,
            "logprobs": logprobs,
            "finish_reason": result.openai_finish_reason,
            "stop_reason": None,
        }
        return _openai("cmpl", "text_completion", model, [choice]) | {"usage": result.usage()}

    return whole


def _completion_chunks(model: str) -> Any:
    def chunks(call: _Call, tokens: Iterator[Token]) -> Iterator[dict[str, Any]]:
        envelope = _openai("cmpl", "text_completion", model, [])
        for count, (token, is_last) in enumerate(_with_last(tokens), start=1):
            reason = _stream_reason(count, call) if is_last else None
            logprobs = {"tokens": [token.text], "token_logprobs": [token.logprob]} if call.logprobs else None
            choice = {"index": 0, "text": token.text, "logprobs": logprobs, "finish_reason": reason}
            yield envelope | {"choices": [choice]}

    return chunks


def _chat_completion(model: str) -> Any:
    def whole(call: _Call, result: _Result) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": result.text},
            "logprobs": {"content": [_chat_token(token) for token in result.tokens]} if call.logprobs else None,
            "finish_reason": result.openai_finish_reason,
            "stop_reason": None,
        }
        return _openai("chatcmpl", "chat.completion", model, [choice]) | {"usage": result.usage()}

    return whole


def _chat_chunks(model: str) -> Any:
    def chunks(call: _Call, tokens: Iterator[Token]) -> Iterator[dict[str, Any]]:
        envelope = _openai("chatcmpl", "chat.completion.chunk", model, [])
        first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        yield envelope | {"choices": [first]}
        for count, (token, is_last) in enumerate(_with_last(tokens), start=1):
            choice = {
                "index": 0,
                "delta": {"content": token.text},
                "logprobs": {"content": [_chat_token(token)]} if call.logprobs else None,
                "finish_reason": _stream_reason(count, call) if is_last else None,
            }
            yield envelope | {"choices": [choice]}

    return chunks


def _chat_token(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode()), "top_logprobs": []}


def _openai(prefix: str, kind: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
    }


def _stream_reason(count: int, call: _Call) -> str:
    return "length" if count >= call.max_new_tokens else "stop"


def _with_last(tokens: Iterator[Token]) -> Iterator[tuple[Token, bool]]:
    """Each token, and whether it is the last: one is held back to know."""
    held: Token | None = None
    for token in tokens:
        if held is not None:
            yield held, False
        held = token
    if held is not None:
        yield held, True
