"""What vLLM does, and the other engines do not: facts that the project builds on. docs/engine.md lists them."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from local.engines import AdapterLoadError, EngineDiedError, EngineState
from local.engines.vllm import ADAPTER_HEADER, LoraLimits, VllmEngine
from tests.adapters import Tensors, adapter_files, tarball, tensors_of, weights_file

WEIGHTS = "adapter_model.safetensors"
PROMPT = "The soup was cold"


def with_tensors(change: Any) -> bytes:
    files = adapter_files(seed=1)
    return tarball(files | {WEIGHTS: weights_file(change(tensors_of(files[WEIGHTS])))})


def of_dtype_i8(tensors: Tensors) -> Tensors:
    return {name: ("I8", shape, data[: len(data) // 4]) for name, (_, shape, data) in tensors.items()}


def with_nan(tensors: Tensors) -> Tensors:
    return {name: (dtype, shape, b"\0\0\xc0\x7f" * (len(data) // 4)) for name, (dtype, shape, data) in tensors.items()}


def of_another_base(tensors: Tensors) -> Tensors:
    return {name.replace("model.layers", "transformer.h"): entry for name, entry in tensors.items()}


@pytest.mark.parametrize("change", [of_dtype_i8, with_nan, of_another_base])
def test_what_cannot_be_served_is_registered_all_the_same(vllm: VllmEngine, change: Any) -> None:
    """InService proves nothing."""
    vllm.load_adapter("a", with_tensors(change))
    base = vllm.generate(PROMPT, adapter=None, max_new_tokens=4, temperature=0)
    if change is of_another_base:
        answer = vllm.generate(PROMPT, adapter="a", max_new_tokens=4, temperature=0)
        assert answer == base
    elif change is of_dtype_i8:
        assert vllm.generate(PROMPT, adapter="a", max_new_tokens=4, temperature=0) != base
    assert vllm.state is EngineState.READY


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"inputs": "a"}, 400, "prompt"),  # LMI's own schema
        ({"prompt": "a", "max_tokens": 600}, 400, "max_tokens=600 cannot be greater than max_model_len=512"),
        ({"prompt": "soup " * 600, "max_tokens": 1}, 400, "512"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature"),
    ],
)
def test_errors_are_openais(vllm: VllmEngine, request_: dict[str, Any], status: int, words: str) -> None:
    answered, body = vllm.post("/invocations", request_)
    assert answered == status
    assert words in json.loads(body)["error"]["message"]


def test_a_model_that_the_body_names_is_ignored(vllm: VllmEngine) -> None:
    """The header alone counts; by vLLM's own route the name would have to be right."""
    request = {"prompt": "a", "model": "nobody", "max_tokens": 1}
    assert vllm.post("/invocations", request)[0] == 200
    assert vllm.post("/v1/completions", request)[0] == 404


def test_an_adapter_that_nobody_registered_is_404(vllm: VllmEngine) -> None:
    status, body = vllm.post("/invocations", {"prompt": "a"}, {ADAPTER_HEADER: "nobody"})
    assert (status, json.loads(body)["error"]["type"]) == (404, "NotFoundError")


def test_a_prompt_that_begins_the_text_itself_gets_a_second_beginning(vllm: VllmEngine) -> None:
    """Of a completion. The hosting emulator takes one away, as a chat's template brings its own."""
    _, body = vllm.post("/invocations", {"prompt": "<|begin_of_text|>a", "max_tokens": 1, "return_token_ids": True})
    tokens = json.loads(body)["choices"][0]["prompt_token_ids"]
    assert tokens[0] == tokens[1]


def test_the_token_that_ends_an_answer_has_a_text_in_the_log_probabilities(vllm: VllmEngine, sentiment: bytes) -> None:
    vllm.load_adapter("a", sentiment)
    request = {"prompt": "Is this good?", "max_tokens": 4, "temperature": 0, "logprobs": 0}
    _, body = vllm.post("/invocations", request, {ADAPTER_HEADER: "a"})
    (choice,) = json.loads(body)["choices"]
    assert choice["logprobs"]["tokens"][-1] == "<|eot_id|>"
    assert "<|eot_id|>" not in choice["text"]


def test_an_evicted_adapter_whose_files_are_gone_ends_the_engine_and_all_its_siblings(base: Path) -> None:
    engine = VllmEngine(base, LoraLimits(max_loras=1, max_cpu_loras=1))
    try:
        engine.await_ready()
        engine.load_adapter("a", tarball(adapter_files(seed=1)))
        engine.load_adapter("b", tarball(adapter_files(seed=2)))  # evicts a
        shutil.rmtree(engine.folder_of("a"))
        with pytest.raises(EngineDiedError, match="EngineDeadError"):
            engine.generate(PROMPT, adapter="a", max_new_tokens=2, temperature=0)
        assert engine.state is EngineState.DEAD
        with pytest.raises(EngineDiedError):
            engine.generate(PROMPT, adapter="b", max_new_tokens=2, temperature=0)
        with pytest.raises(EngineDiedError):
            engine.load_adapter("c", tarball(adapter_files(seed=3)))
    finally:
        engine.close()


def test_limits_that_contradict_each_other_end_it_with_the_engines_words(base: Path) -> None:
    engine = VllmEngine(base, dataclasses.replace(LoraLimits(), max_lora_rank=7))
    try:
        with pytest.raises(EngineDiedError, match="max-lora-rank: invalid choice: 7"):
            engine.await_ready()
        with pytest.raises(EngineDiedError):
            engine.load_adapter("a", tarball(adapter_files()))
    finally:
        engine.close()


def test_an_unpacked_archive_is_what_the_engine_sees(vllm: VllmEngine) -> None:
    with pytest.raises(AdapterLoadError, match="unpacked"):
        vllm.load_adapter("a", tarball(adapter_files())[:200])
