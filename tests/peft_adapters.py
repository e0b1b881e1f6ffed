"""Adapters made by PEFT itself, on small bases of random weights."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig, get_peft_model

from loradrop.profile import BaseProfile, profile_from_config

# The dimensions of training/tiny_base.py, and small ones of other architectures, each with its own twist.
_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # name → (config class, model class, settings)
    "tiny-llama": ("LlamaConfig", "LlamaForCausalLM", _TINY_LLAMA),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _SMALL),
    "mistral": ("MistralConfig", "MistralForCausalLM", _SMALL),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _SMALL | {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _SMALL | {"head_dim": 16}),  # heads * head_dim = 64, hidden 32
    "qwen3-tied": ("Qwen3Config", "Qwen3ForCausalLM", _SMALL | {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", _SMALL | {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _SMALL | {"head_dim": 16}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _SMALL | {"pad_token_id": 0}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _SMALL | {"num_local_experts": 2}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        _SMALL | {"head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    ),
    "classifier": ("LlamaConfig", "LlamaForSequenceClassification", _SMALL | {"pad_token_id": 0}),
}


def base(name: str) -> Any:
    config_class, model_class, settings = BASES[name]
    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))


@functools.cache
def config_json(name: str) -> dict[str, Any]:
    """The base's config.json, as `save_pretrained` writes it."""
    config_class, model_class, settings = BASES[name]
    config = getattr(transformers, config_class)(**settings, architectures=[model_class])
    return dict(json.loads(config.to_json_string()))


def profile_of(name: str, *, engine: str = "0.26.0", max_lora_rank: int = 16) -> BaseProfile:
    return profile_from_config(config_json(name), name=name, max_lora_rank=max_lora_rank, engine_version=engine)


def adapter_of(model: Any, config: PeftConfig, *, is_trained: bool = True) -> dict[str, bytes]:
    """The files that PEFT saves; `is_trained` fills what starts as zero, as the first step of a training would."""
    torch.manual_seed(1)
    peft_model = get_peft_model(model, config)
    if is_trained:
        with torch.no_grad():
            for parameter in peft_model.parameters():
                if parameter.requires_grad and not parameter.any():
                    parameter.normal_(std=0.1)
    return saved(peft_model)


def saved(peft_model: Any, **options: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        peft_model.save_pretrained(folder, **options)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }


@functools.cache
def _good_adapter() -> dict[str, bytes]:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    files = adapter_of(base("tiny-llama"), config)
    settings = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": "tiny-llama"}
    return files | {"adapter_config.json": json.dumps(settings, indent=2).encode()}


def good_adapter() -> dict[str, bytes]:
    """A plain LoRA of all linear modules of the profile tiny-llama, rank 4: accepted without a warning."""
    return dict(_good_adapter())
