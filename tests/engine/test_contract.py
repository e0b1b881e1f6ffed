"""One contract, three engines: what the container says over each of them, and that vLLM and transformers compute the same."""

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from local.engines import AdapterLoadError, Engine, EngineState, Generation, UnknownAdapterError
from local.engines.llama import Engine as TinyEngine
from local.engines.vllm import VllmEngine
from local.hosting import lmi
from local.hosting.errors import ContainerError
from loradrop_training.sentiment import held_out
from tests.adapters import adapter_files, good_tarball, tarball, wrapped_tarball

PROMPTS = (
    "The soup was cold, and nobody apologized.",
    "Is this good?",
    "<|begin_of_text|>A prompt that begins the text itself",
    "Zwölf Boxkämpfer, ñandú, 日本",
)
HANDLER = lmi.Handler.ASYNC_VLLM


def ask(engine: Engine, adapter: str | None = None, prompt: str = PROMPTS[0], **options: Any) -> Generation:
    return engine.generate(prompt, adapter=adapter, **({"max_new_tokens": 8, "temperature": 0.0} | options))


def said(engine: Engine, adapter: str | None, request: dict[str, Any]) -> list[Any]:
    """The container's answer: one object, or one a line."""
    answer = lmi.answer(engine, adapter, json.dumps(request).encode(), HANDLER)
    return [json.loads(line) for line in b"".join(answer.chunks).splitlines()]


def form(value: Any) -> Any:
    """The names and types in an answer, whatever it says. Of a list, what its items have in common."""
    if isinstance(value, dict):
        return {name: form(one) for name, one in value.items()}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return type(value).__name__


REQUESTS: dict[str, dict[str, Any]] = {
    "inputs": {"inputs": PROMPTS[0], "parameters": {"max_new_tokens": 4, "temperature": 0, "details": True}},
    "prompt": {"prompt": PROMPTS[0], "max_tokens": 4, "temperature": 0},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0, "logprobs": True},
}
TOKEN = {"id": "int", "text": "str", "logprob": "float"}
CHAT_TOKEN = {"token": "str", "logprob": "float", "bytes": ["int"], "top_logprobs": []}


def test_an_answer_to_inputs_has_the_handlers_form(any_engine: Engine) -> None:
    (answer,) = said(any_engine, None, REQUESTS["inputs"])
    assert form(answer) == {
        "generated_text": "str",
        "details": {
            "finish_reason": "NoneType",
            "generated_tokens": "int",
            "seed": "NoneType",
            "prefill": [],
            "tokens": [TOKEN],
        },
    }
    tokens = answer["details"]["tokens"]
    assert answer["details"]["generated_tokens"] == len(tokens) > 0
    assert "".join(token["text"] for token in tokens) == answer["generated_text"]
    assert all(token["logprob"] <= 0 for token in tokens)


def test_an_openai_completion_has_its_form(any_engine: Engine) -> None:
    (answer,) = said(any_engine, None, REQUESTS["prompt"] | {"logprobs": 0})
    (choice,) = answer["choices"]
    assert set(choice["logprobs"]) == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
    assert answer["usage"]["completion_tokens"] == len(choice["logprobs"]["token_logprobs"]) > 0
    assert answer["usage"]["prompt_tokens"] > 0
    assert choice["finish_reason"] in ("length", "stop")


def test_an_openai_chat_has_its_form(any_engine: Engine) -> None:
    (answer,) = said(any_engine, None, REQUESTS["messages"])
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    tokens = choice["logprobs"]["content"]
    assert all(set(token) == set(CHAT_TOKEN) for token in tokens)
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]


@pytest.mark.parametrize("schema", REQUESTS)
def test_a_streamed_answer_is_the_whole_answer(any_engine: Engine, schema: str, sentiment: bytes) -> None:
    any_engine.load_adapter("a", sentiment)
    (whole,) = said(any_engine, "a", REQUESTS[schema])
    lines = said(any_engine, "a", REQUESTS[schema] | {"stream": True})
    if schema == "inputs":
        pieces = [line["token"]["text"] for line in lines]
        assert lines[-1]["generated_text"] == whole["generated_text"]
        assert "".join(pieces) == whole["generated_text"]
    elif schema == "prompt":
        assert "".join(line["choices"][0]["text"] for line in lines) == whole["choices"][0]["text"]
        assert lines[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    else:
        pieces = [line["choices"][0]["delta"]["content"] for line in lines]
        assert "".join(pieces) == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": "a", "max_tokens": 0}, 400),
        ({"prompt": "a", "temperature": -1}, 400),
        ({"prompt": 7}, 400),
        ({"messages": []}, 400),
        ({"nothing": "known"}, 424),
    ],
)
def test_what_the_container_refuses_has_one_status(any_engine: Engine, body: dict[str, Any], status: int) -> None:
    with pytest.raises(ContainerError) as refused:
        said(any_engine, None, body)
    assert refused.value.status == status


@pytest.mark.parametrize("name", ["tiny", "vllm"])
def test_a_prompt_that_fills_the_context_is_refused(request: pytest.FixtureRequest, name: str) -> None:
    engine = request.getfixturevalue(name)
    with pytest.raises(ContainerError) as refused:
        said(engine, None, {"prompt": "soup " * 600})
    assert refused.value.status == 400
    assert ask(engine, prompt="soup " * 250, max_new_tokens=5000, temperature=1.0).tokens, "the context ends it"


def test_an_adapter_that_nobody_knows_is_an_error(any_engine: Engine) -> None:
    with pytest.raises(UnknownAdapterError):
        ask(any_engine, "nobody")
    with pytest.raises(UnknownAdapterError):
        any_engine.unload_adapter("nobody")


def test_an_adapter_that_was_removed_answers_no_more_and_may_return(any_engine: Engine) -> None:
    any_engine.load_adapter("a", good_tarball(seed=1))
    first = ask(any_engine, "a")
    any_engine.unload_adapter("a")
    with pytest.raises(UnknownAdapterError):
        ask(any_engine, "a")
    any_engine.load_adapter("a", good_tarball(seed=2))
    assert ask(any_engine, "a").tokens != first.tokens, "another adapter under its name"


def test_a_name_is_given_once(any_engine: Engine) -> None:
    any_engine.load_adapter("a", good_tarball(seed=1))
    before = ask(any_engine, "a")
    with pytest.raises(AdapterLoadError):
        any_engine.load_adapter("a", good_tarball(seed=2))
    assert ask(any_engine, "a") == before


def test_a_name_of_awkward_characters_is_a_name(any_engine: Engine) -> None:
    name = "acme-1#7 é?"
    any_engine.load_adapter(name, good_tarball(seed=1))
    assert ask(any_engine, name).tokens != ask(any_engine).tokens
    any_engine.unload_adapter(name)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no archive", None),
        (wrapped_tarball(), None),
        (tarball(adapter_files(rank=32)), r"LoRA rank 32 is greater than max_lora_rank 16\."),
    ],
    ids=["garbage", "a folder", "rank"],
)
def test_what_does_not_load_changes_nothing(any_engine: Engine, body: bytes, reason: str | None) -> None:
    with pytest.raises(AdapterLoadError, match=reason):
        any_engine.load_adapter("a", body, max_rank=16)
    with pytest.raises(UnknownAdapterError):
        ask(any_engine, "a")
    assert any_engine.state is EngineState.READY


def test_an_adapter_of_zeros_answers_as_its_base_does(any_engine: Engine) -> None:
    any_engine.load_adapter("zero", tarball(adapter_files(scale=0.0)))
    assert ask(any_engine, "zero") == ask(any_engine)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(any_engine: Engine) -> None:
    if any_engine.__class__.__name__ == "StandInEngine":
        pytest.skip("the stand-in keeps the stop string")
    whole = ask(any_engine).text
    stop = whole[3:6]
    stopped = ask(any_engine, stop=[stop])
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")


def assert_same(one: Generation, other: Generation) -> None:
    assert [token.id for token in one.tokens] == [token.id for token in other.tokens]
    assert [token.logprob for token in one.tokens] == pytest.approx([t.logprob for t in other.tokens], abs=1e-3)
    assert (one.text, one.finish_reason, one.prompt_tokens) == (other.text, other.finish_reason, other.prompt_tokens)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_vllm_and_transformers_compute_the_same(
    tiny: TinyEngine, vllm: VllmEngine, sentiment: bytes, prompt: str
) -> None:
    for engine in (tiny, vllm):
        engine.load_adapter("a", sentiment)
    for adapter in (None, "a"):
        assert_same(
            ask(vllm, adapter, prompt, max_new_tokens=16),
            ask(tiny, adapter, prompt, max_new_tokens=16),
        )


def test_vllm_and_transformers_say_the_same_of_the_held_out_sentences(
    tiny: TinyEngine, vllm: VllmEngine, sentiment: bytes
) -> None:
    for engine in (tiny, vllm):
        engine.load_adapter("a", sentiment)
    for example in held_out()[:40]:
        assert_same(ask(vllm, "a", example.prompt), ask(tiny, "a", example.prompt))


@pytest.mark.parametrize("rank", [1, 3, 8, 16])
def test_every_rank_up_to_the_bases_is_served(tiny: TinyEngine, vllm: VllmEngine, rank: int) -> None:
    body = tarball(adapter_files(rank=rank, seed=rank, scale=0.1))
    for engine in (tiny, vllm):
        engine.load_adapter("a", body)
    assert_same(ask(vllm, "a"), ask(tiny, "a"))
    assert ask(vllm, "a") != ask(vllm)


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"lora_alpha": 1}, {"lora_alpha": 3.5}])
def test_the_scale_is_the_same(tiny: TinyEngine, vllm: VllmEngine, settings: dict[str, Any]) -> None:
    body = tarball(adapter_files(scale=0.1, **settings))
    for engine in (tiny, vllm):
        engine.load_adapter("a", body)
    assert_same(ask(vllm, "a"), ask(tiny, "a"))


def test_more_adapters_than_the_engine_holds_at_once_are_served_as_they_are_asked(
    tiny: TinyEngine, vllm: VllmEngine
) -> None:
    """max_loras is 2 and max_cpu_loras 4: the evicted ones are read again from disk."""
    names = [f"a{seed}" for seed in range(7)]
    for seed, name in enumerate(names):
        for engine in (tiny, vllm):
            engine.load_adapter(name, tarball(adapter_files(seed=seed, scale=0.1)))
    alone = {name: ask(tiny, name) for name in names}
    for _ in range(2):
        for name in names:
            assert_same(ask(vllm, name), alone[name])
    assert_same(ask(vllm), ask(tiny))


def test_adapters_that_answer_at_once_do_not_mix(tiny: TinyEngine, vllm: VllmEngine) -> None:
    names = [f"a{seed}" for seed in range(5)]
    for seed, name in enumerate(names):
        for engine in (tiny, vllm):
            engine.load_adapter(name, tarball(adapter_files(seed=seed, scale=0.1)))
    answers: dict[str, Generation] = {}
    threads = [threading.Thread(target=lambda name=name: answers.update({name: ask(vllm, name)})) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(answers) == set(names)
    for name in names:
        assert_same(answers[name], ask(tiny, name))


def first(tokens: Iterator[Any], count: int) -> Sequence[Any]:
    return [next(tokens) for _ in range(count)]


@pytest.mark.parametrize("name", ["tiny", "vllm"])
def test_a_reader_who_leaves_holds_up_nobody(request: pytest.FixtureRequest, name: str) -> None:
    engine: Engine = request.getfixturevalue(name)
    # One whose answer goes on behind what is read of it, whatever base this processor trained.
    prompt = next(one for one in PROMPTS if len(ask(engine, prompt=one).tokens) > 2)
    tokens = engine.stream(prompt, adapter=None, max_new_tokens=200, temperature=0.0)
    assert len(first(tokens, 2)) == 2
    assert ask(engine).tokens
    tokens.close()  # type: ignore[attr-defined]
    assert ask(engine).tokens
