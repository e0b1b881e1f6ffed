"""Profiles of bases: what is made of a config.json, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradrop.profile import (
    DEFAULT_ENGINE_VERSION,
    MAX_LORA_RANKS,
    BaseProfile,
    ProfileError,
    load_profile,
    profile_from_config,
    shipped_profiles,
)

LLAMA = {  # meta-llama/Llama-3.1-8B-Instruct, without what does not matter here
    "_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def profile(max_lora_rank: int = 64, engine_version: str = DEFAULT_ENGINE_VERSION, **changes: Any) -> BaseProfile:
    config = {key: value for key, value in (LLAMA | changes).items() if value is not ...}
    return profile_from_config(config, name="x", max_lora_rank=max_lora_rank, engine_version=engine_version)


def test_the_shipped_profile_is_what_the_models_config_makes() -> None:
    shipped = load_profile("llama-3.1-8b-instruct")
    assert dataclasses.replace(profile(), name=shipped.name, base_model_names=shipped.base_model_names) == shipped


@pytest.mark.parametrize(
    ("module", "dimensions"),
    {
        "q_proj": (4096, 4096),
        "k_proj": (4096, 1024),
        "v_proj": (4096, 1024),
        "o_proj": (4096, 4096),
        "gate_proj": (4096, 14336),
        "up_proj": (4096, 14336),
        "down_proj": (14336, 4096),
        "lm_head": (4096, 128256),
        "embed_tokens": (128256, 4096),
    }.items(),
)
def test_dimensions_of_llama(module: str, dimensions: tuple[int, int]) -> None:
    assert profile().dimensions(module) == dimensions


def test_heads_need_not_make_up_the_hidden_size() -> None:
    qwen = profile(architectures=["Qwen3ForCausalLM"], hidden_size=1024, num_attention_heads=16, head_dim=128)
    assert qwen.dimensions("q_proj") == (1024, 2048)
    assert qwen.dimensions("o_proj") == (2048, 1024)


def test_phi3_fuses_its_projections() -> None:
    phi = profile(architectures=["Phi3ForCausalLM"])
    assert phi.dimensions("qkv_proj") == (4096, 4096 + 2 * 1024)
    assert phi.dimensions("gate_up_proj") == (4096, 2 * 14336)


@pytest.mark.parametrize(
    ("architecture", "head_dim"), [("LlamaForCausalLM", 128), ("Gemma2ForCausalLM", 256), ("Qwen3ForCausalLM", 128)]
)
def test_a_head_dim_that_is_left_out(architecture: str, head_dim: int) -> None:
    assert profile(architectures=[architecture]).head_dim == head_dim


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ...}, "architecture None is not supported"),
        ({"architectures": ["GPT2LMHeadModel"]}, "not known here"),
        ({"architectures": ["LlavaForConditionalGeneration"], "text_config": {}}, "multimodal"),
        ({"architectures": ["MixtralForCausalLM"]}, "mixture of experts"),
        ({"num_local_experts": 8}, "mixture of experts (num_local_experts)"),
        ({"hidden_size": "4096"}, "hidden_size '4096'"),
        ({"vocab_size": 0}, "vocab_size 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers True"),
        ({"num_attention_heads": None}, "num_attention_heads None"),
        ({"architectures": ["MistralForCausalLM"], "num_key_value_heads": ...}, "num_key_value_heads None"),
        ({"max_lora_rank": 48}, "max_lora_rank is 48"),
        ({"engine_version": "latest"}, "engine_version is 'latest'"),
    ],
)
def test_a_config_that_cannot_be_used(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile(**changes)
    assert words in str(caught.value)


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(sorted(LLAMA)), inner)),
        max_leaves=6,
    )
)
def test_any_config_makes_a_profile_or_a_reason(config: Any) -> None:
    for one in (config, LLAMA | config if isinstance(config, dict) else LLAMA | {"hidden_size": config}):
        try:
            profile_from_config(one, name="x", max_lora_rank=8)
        except ProfileError as error:
            assert str(error)  # noqa: PT017


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(profile(engine_version="0.32.1").to_json())
    assert load_profile(path) == load_profile(str(path)) == profile(engine_version="0.32.1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "does not have the right fields"),
        (json.dumps(json.loads(profile().to_json()) | {"lora_modules": ["c_attn"]}), "unknown modules: c_attn"),
        (json.dumps(json.loads(profile().to_json()) | {"lora_modules": []}), "it is empty"),
        (json.dumps(json.loads(profile().to_json()) | {"hidden_size": 1.5}), "hidden_size is 1.5"),
        (json.dumps(json.loads(profile().to_json()) | {"new": 1}), "does not have the right fields"),
    ],
)
def test_a_file_that_is_no_profile(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(tmp_path / "x.json")
    assert words in str(caught.value)


def test_a_profile_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ProfileError, match="shipped are"):
        load_profile("llama-4")
    assert shipped_profiles() == ("llama-3.1-8b-instruct", "tiny-llama")


@pytest.mark.parametrize(("version", "honours"), [("0.26.0", False), ("0.31.9", False), ("0.32", True), ("1.0", True)])
def test_versions_are_compared_as_numbers(version: str, honours: bool) -> None:
    assert profile(engine_version=version).honours_patterns is honours


def test_the_ranks_that_exist() -> None:
    for rank in MAX_LORA_RANKS:
        assert profile(max_lora_rank=rank).max_lora_rank == rank
