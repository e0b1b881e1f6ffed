"""The model server's schemas: what a client may send, and what comes back, from either of LMI's handlers."""

import json
from typing import Any

import pytest

from local.engines.stand_in import StandInEngine
from local.hosting import lmi
from local.hosting.errors import ContainerError
from local.hosting.lmi import Handler
from tests.adapters import good_tarball

BOTH = pytest.mark.parametrize("handler", [Handler.ROLLING_BATCH, Handler.ASYNC_VLLM])
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 5}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Where is the sea?"}], "temperature": 0}


@pytest.fixture(scope="module")
def engine() -> StandInEngine:
    engine = StandInEngine()
    engine.load_adapter("acme", good_tarball())
    return engine


def lines(
    engine: StandInEngine, request: Any, handler: Handler = Handler.ASYNC_VLLM, adapter: str | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """The content type and the JSON values of an answer."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    answer = lmi.answer(engine, adapter, body, handler, model="model")
    return answer.content_type, [json.loads(chunk) for chunk in answer.chunks]


def ask(
    engine: StandInEngine, request: Any, handler: Handler = Handler.ASYNC_VLLM, adapter: str | None = None
) -> dict[str, Any]:
    content_type, [content] = lines(engine, request, handler, adapter)
    assert content_type == "application/json"
    return content


def stream(
    engine: StandInEngine, request: dict[str, Any], handler: Handler = Handler.ASYNC_VLLM
) -> list[dict[str, Any]]:
    content_type, contents = lines(engine, request | {"stream": True}, handler)
    assert content_type == "application/jsonlines"
    return contents


@pytest.mark.parametrize(
    ("environment", "handler"),
    [
        ({"OPTION_ASYNC_MODE": "true", "OPTION_ROLLING_BATCH": "disable"}, Handler.ASYNC_VLLM),
        ({"OPTION_ENTRYPOINT": "djl_python.lmi_vllm.vllm_async_service"}, Handler.ASYNC_VLLM),
        ({"OPTION_ROLLING_BATCH": "vllm"}, Handler.ROLLING_BATCH),
        ({"OPTION_ASYNC_MODE": "false"}, Handler.ROLLING_BATCH),
        ({}, Handler.ROLLING_BATCH),
    ],
)
def test_the_environment_of_the_base_picks_the_handler(environment: dict[str, str], handler: Handler) -> None:
    assert Handler.of(environment) is handler


# inputs and parameters


@BOTH
def test_inputs_get_generated_text(engine: StandInEngine, handler: Handler) -> None:
    answered = ask(engine, {"inputs": "Hello", "parameters": GREEDY}, handler)
    assert list(answered) == ["generated_text"]
    assert len(answered["generated_text"].split()) == 5
    adapted = ask(engine, {"inputs": "Hello", "parameters": GREEDY}, handler, adapter="acme")
    assert adapted["generated_text"] != answered["generated_text"]


@BOTH
def test_inputs_alone_get_thirty_tokens(engine: StandInEngine, handler: Handler) -> None:
    details = ask(engine, {"inputs": "Hello", "parameters": {"details": True}}, handler)["details"]
    assert details["generated_tokens"] == len(details["tokens"]) == 30


@BOTH
def test_the_full_text_begins_with_the_inputs(engine: StandInEngine, handler: Handler) -> None:
    answered = ask(engine, {"inputs": "Hello", "parameters": GREEDY}, handler)["generated_text"]
    full = ask(engine, {"inputs": "Hello", "parameters": GREEDY | {"return_full_text": True}}, handler)
    assert full["generated_text"] == "Hello" + answered


@pytest.mark.parametrize(("handler", "logprob"), [(Handler.ASYNC_VLLM, "logprob"), (Handler.ROLLING_BATCH, "log_prob")])
def test_details_give_each_token_and_its_log_probability(engine: StandInEngine, handler: Handler, logprob: str) -> None:
    answered = ask(engine, {"inputs": "Hello", "parameters": GREEDY | {"details": True}}, handler)
    details = answered["details"]
    assert details["generated_tokens"] == 5
    assert "".join(token["text"] for token in details["tokens"]) == answered["generated_text"]
    assert all(set(token) == {"id", "text", logprob} and token[logprob] < 0 for token in details["tokens"])


def test_the_reason_of_the_end_is_named_as_the_handler_names_it(engine: StandInEngine) -> None:
    def reason(handler: Handler, **parameters: Any) -> str | None:
        asked = {"inputs": "Hello", "parameters": GREEDY | parameters | {"details": True}}
        reason: str | None = ask(engine, asked, handler)["details"]["finish_reason"]
        return reason

    word = ask(engine, {"inputs": "Hello", "parameters": GREEDY})["generated_text"].split()[1]
    assert reason(Handler.ROLLING_BATCH) == "length"
    assert reason(Handler.ROLLING_BATCH, max_new_tokens=4000) == "eos_token"
    assert reason(Handler.ROLLING_BATCH, stop=[word]) == "stop_sequence"
    assert reason(Handler.ROLLING_BATCH, stop_sequences=[word]) == "stop_sequence"
    assert reason(Handler.ASYNC_VLLM) is None


@BOTH
def test_a_streamed_answer_is_a_line_for_each_token(engine: StandInEngine, handler: Handler) -> None:
    asked = {"inputs": "Hello", "parameters": GREEDY}
    sent = stream(engine, asked, handler)
    assert len(sent) == 5
    assert ["generated_text" in line for line in sent] == [False, False, False, False, True]
    whole = ask(engine, asked, handler)["generated_text"]
    assert "".join(line["token"]["text"] for line in sent) == sent[-1]["generated_text"] == whole
    name = "logprob" if handler is Handler.ASYNC_VLLM else "log_prob"
    assert all(line["token"][name] < 0 for line in sent)
    # The rolling-batch handlers always end with the details, the asynchronous one where they are asked for.
    assert ("details" in sent[-1]) == (handler is Handler.ROLLING_BATCH)
    detailed = stream(engine, {"inputs": "Hello", "parameters": GREEDY | {"details": True}}, handler)
    assert detailed[-1]["details"] == {"finish_reason": "length", "generated_tokens": 5, "inputs": "Hello"}


class WarmthEngine(StandInEngine):
    """Remembers how warm each answer was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def stream(self, *args: Any, temperature: float, **settings: Any) -> Any:
        self.asked.append(temperature)
        return super().stream(*args, temperature=temperature, **settings)


@pytest.mark.parametrize(
    ("parameters", "rolling_batch", "async_vllm"),
    [
        ({}, 0.0, 1.0),
        ({"temperature": 0.5}, 0.5, 0.5),
        ({"do_sample": True}, 1.0, 1.0),
        ({"do_sample": True, "temperature": 0.5}, 0.5, 0.5),
        ({"do_sample": False, "temperature": 0.5}, 0.0, 0.0),
    ],
)
def test_what_samples_and_what_is_greedy(parameters: dict[str, Any], rolling_batch: float, async_vllm: float) -> None:
    engine = WarmthEngine()
    for handler in (Handler.ROLLING_BATCH, Handler.ASYNC_VLLM):
        ask(engine, {"inputs": "Hello", "parameters": parameters}, handler)
    assert engine.asked == [rolling_batch, async_vllm]


# messages


def test_messages_get_a_chat_completion(engine: StandInEngine) -> None:
    answered = ask(engine, CHAT | {"max_tokens": 5})
    assert answered["object"] == "chat.completion"
    assert answered["id"].startswith("chatcmpl-")
    assert answered["model"] == "model"
    [choice] = answered["choices"]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"].split()) == 5
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert answered["usage"]["completion_tokens"] == 5
    assert answered["usage"]["total_tokens"] == answered["usage"]["prompt_tokens"] + 5
    assert ask(engine, CHAT | {"max_completion_tokens": 3, "max_tokens": 5})["usage"]["completion_tokens"] == 3
    assert ask(engine, CHAT)["choices"][0]["finish_reason"] == "stop", "nothing but the model ends it"


def test_a_chat_completion_has_log_probabilities(engine: StandInEngine) -> None:
    [choice] = ask(engine, CHAT | {"max_tokens": 5, "logprobs": True})["choices"]
    content = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == choice["message"]["content"]
    assert all(token["logprob"] < 0 and bytes(token["bytes"]).decode() == token["token"] for token in content)
    assert ask(engine, CHAT | {"max_tokens": 5, "logprobs": False})["choices"][0]["logprobs"] is None


def test_a_chat_is_streamed_in_deltas(engine: StandInEngine) -> None:
    sent = stream(engine, CHAT | {"max_tokens": 5, "logprobs": True})
    assert {chunk["object"] for chunk in sent} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in sent}) == 1
    choices = [chunk["choices"][0] for chunk in sent]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    whole = ask(engine, CHAT | {"max_tokens": 5})["choices"][0]["message"]["content"]
    assert "".join(choice["delta"]["content"] for choice in choices) == whole
    assert all(choice["logprobs"]["content"][0]["logprob"] < 0 for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["length"]


# prompt


def test_a_prompt_gets_a_completion(engine: StandInEngine) -> None:
    answered = ask(engine, {"prompt": "Once", "temperature": 0})
    assert answered["object"] == "text_completion"
    assert answered["id"].startswith("cmpl-")
    assert answered["usage"]["completion_tokens"] == 16
    assert answered["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("alternatives", [0, 1, 5])
def test_a_completion_has_log_probabilities(engine: StandInEngine, alternatives: int) -> None:
    asked = {"prompt": "Once", "temperature": 0, "max_tokens": 4, "logprobs": alternatives}
    [choice] = ask(engine, asked)["choices"]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert [
        choice["text"][offset:].startswith(token)
        for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    ] == [True] * 4
    assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 4


def test_a_completion_is_streamed(engine: StandInEngine) -> None:
    asked = {"prompt": "Once", "temperature": 0, "max_tokens": 4, "logprobs": 1}
    choices = [chunk["choices"][0] for chunk in stream(engine, asked)]
    assert "".join(choice["text"] for choice in choices) == ask(engine, asked)["choices"][0]["text"]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]
    assert all(choice["logprobs"]["tokens"] == [choice["text"]] for choice in choices)


# What is refused


def test_the_vllm_container_has_the_schemas_of_openai_alone(engine: StandInEngine) -> None:
    handler = Handler.of({"SM_VLLM_MODEL": "base", "OPTION_ASYNC_MODE": "true"})
    assert handler is Handler.VLLM_CONTAINER
    assert ask(engine, {"prompt": "Once", "logprobs": 1}, handler)["choices"][0]["logprobs"]["token_logprobs"]
    assert ask(engine, CHAT, handler)["choices"][0]["message"]["content"]
    with pytest.raises(ContainerError) as refused:
        ask(engine, {"inputs": "Hello"}, handler)
    assert refused.value.status == 400


@BOTH
def test_the_schema_is_recognised_by_the_first_key_in_its_order(engine: StandInEngine, handler: Handler) -> None:
    everything = CHAT | {"prompt": "Once", "inputs": "Hello"}
    assert ask(engine, everything, handler)["object"] == "text_completion"
    del everything["prompt"]
    assert list(ask(engine, everything, handler)) == ["generated_text"]


@BOTH
@pytest.mark.parametrize(
    ("request_body", "status", "reason"),
    [
        (b"Hello", 424, "Input parsing failed: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff\xfe", 424, "Input parsing failed: "),
        ([], 424, "Input parsing failed: invalid payload. must contain prompt, inputs, or messages"),
        ({"text": "Hello"}, 424, "Input parsing failed: invalid payload. must contain prompt, inputs, or messages"),
        ({"inputs": ["Hello"]}, 400, "inputs must be a text, not a list"),
        ({"prompt": {"text": "Once"}}, 400, "prompt must be a text, not an object"),
        ({"inputs": "Hello", "parameters": "warm"}, 400, "parameters must be an object, not a text"),
        (
            {"inputs": "Hello", "parameters": {"max_new_tokens": 0}},
            400,
            "max_new_tokens must be a whole number of at least 1, got 0.",
        ),
        (
            {"inputs": "Hello", "parameters": {"max_new_tokens": "many"}},
            400,
            "max_new_tokens must be a number, not a text",
        ),
        (
            {"inputs": "Hello", "parameters": {"temperature": -1}},
            400,
            "temperature must be a number of at least 0, got -1.0.",
        ),
        ({"prompt": "Once", "max_tokens": 1.5}, 400, "max_tokens must be a whole number of at least 1, got 1.5."),
        ({"prompt": "Once", "logprobs": "all"}, 400, "logprobs must be a number, not a text"),
        ({"messages": "Hello"}, 400, "messages must be a list of at least one message"),
        ({"messages": []}, 400, "messages must be a list of at least one message"),
        ({"messages": ["Hello"]}, 400, "messages[0] must be an object whose role and content are texts"),
        (
            {"messages": [{"role": "user", "content": "Hello"}, {"role": "user"}]},
            400,
            "messages[1] must be an object whose role and content are texts",
        ),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_makes_no_sense_is_refused_in_words(
    engine: StandInEngine, handler: Handler, request_body: Any, status: int, reason: str, streamed: bool
) -> None:
    asked = request_body | {"stream": streamed} if isinstance(request_body, dict) else request_body
    with pytest.raises(ContainerError) as refused:
        lines(engine, asked, handler)
    assert refused.value.status == status
    error = json.loads(refused.value.body)
    assert error.pop("error").startswith(reason)
    assert error == {"code": status}


class ShortEngine(StandInEngine):
    """Refuses a prompt as the real engine does: when the first token is asked for."""

    def stream(self, prompt: str, **settings: Any) -> Any:
        if len(prompt) > 10:
            raise ValueError(f"the prompt has {len(prompt)} tokens and the model's context holds 10")
        yield from super().stream(prompt, **settings)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_that_the_engine_refuses_is_an_error_before_the_stream_begins(streamed: bool) -> None:
    with pytest.raises(ContainerError) as refused:
        lmi.answer(
            ShortEngine(), None, json.dumps({"inputs": "x" * 11, "stream": streamed}).encode(), Handler.ASYNC_VLLM
        )
    assert refused.value.status == 400
    assert "context holds 10" in json.loads(refused.value.body)["error"]
