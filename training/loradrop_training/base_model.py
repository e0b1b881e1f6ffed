"""The base that an adapter is trained on: found on the hub, in a folder, on S3, or made here; its config, tokenizer and weights."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_flash_attn_2_available

from .recipe import Base, RecipeError
from .records import S3_URI, from_s3
from .tiny import tiny_base

TINY = "tiny"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What a model's folder needs; a bucket may hold the original checkpoints beside it, which are as large again.
S3_SUFFIXES = (".json", ".safetensors", ".model", ".jinja", ".txt")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What is known of the base without its weights."""

    source: str  # a folder, or an id on the hub
    revision: str | None
    config: Any
    tokenizer: Any


def find_base(base: Base) -> BaseModel:
    """Raises RecipeError with what to do, where the model cannot be had."""
    source = _source(base.model)
    where = {"revision": base.revision, "local_files_only": Path(source).is_dir()}
    try:
        config = AutoConfig.from_pretrained(source, **where)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
    except (OSError, ValueError) as error:
        raise RecipeError(f"base.model: {_why_missing(base.model, error)}") from error
    if tokenizer.eos_token is None:
        raise RecipeError(f"base.model: the tokenizer of {base.model} names no eos_token, so no answer would end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _padding(tokenizer)
    return BaseModel(source, base.revision, config, tokenizer)


def _source(model: str) -> str:
    if model == TINY:
        return str(tiny_base())
    if Path(model).is_dir():
        return str(Path(model).resolve())
    if match := S3_URI.fullmatch(model):
        prefix = match["prefix"].rstrip("/") + "/"
        return str(from_s3(match["bucket"], prefix, S3_SUFFIXES, "base.model", needs="config.json"))
    if model.startswith((".", "/", "~", "s3:")) or not HUB_ID.fullmatch(model):
        raise RecipeError(
            f"base.model: {model!r} is no folder that is there, no s3://bucket/prefix, and no model id on the hub."
        )
    return model


def _padding(tokenizer: Any) -> str:
    """Llama-3.1 has a token for it, which its tokenizer does not name. Padding is never attended to, so any token serves."""
    reserved = "<|finetune_right_pad_id|>"
    return reserved if reserved in tokenizer.get_vocab() else str(tokenizer.eos_token)


def _why_missing(model: str, error: Exception) -> str:
    text = str(error)
    if "gated" in text or "401" in text or "403" in text:
        return f"the hub does not give {model} to you: accept its licence on its page there, and set HF_TOKEN to a token that may read it."
    if "not a valid model identifier" in text or "404" in text:
        return f"there is no model {model} on the hub, and no folder of that name."
    if "couldn't connect" in text or "offline" in text.lower():
        return f"{model} is not in the hub's cache, and the hub cannot be reached; name a folder or an s3:// prefix that holds the model."
    return f"{model} cannot be loaded: {text.splitlines()[0] if text else type(error).__name__}"


def attention(config: Any, dtype: torch.dtype) -> str:
    """torch's own, which picks a flash kernel where there is one and takes the mask of packed rows (packed.py).

    It cannot cap the scores, as Gemma 2 does: for that, flash-attn where it is installed, and eager attention elsewhere.
    """
    if getattr(config, "attn_logit_softcapping", None) is None:
        return "sdpa"
    has_flash = torch.cuda.is_available() and dtype == torch.bfloat16 and is_flash_attn_2_available()
    return "flash_attention_2" if has_flash else "eager"


def load_weights(base: BaseModel, dtype: torch.dtype, *, four_bit: bool) -> Any:
    """The model on the device, frozen. Raises RecipeError where four bits, or the weights, cannot be had."""
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention(base.config, dtype)}
    if four_bit:
        options["quantization_config"] = _four_bit(dtype)
    if torch.cuda.is_available():
        options["device_map"] = {"": torch.cuda.current_device()}  # straight to the GPU: never twice in memory
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            base.source,
            revision=base.revision,
            local_files_only=Path(base.source).is_dir(),
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"base.model: {_why_missing(base.source, error)}") from error
    if loaded["missing_keys"]:  # transformers would have made them up
        first, count = min(loaded["missing_keys"]), len(loaded["missing_keys"])
        raise RecipeError(f"base.model: {base.source} lacks {count} of the model's weights, {first} among them.")
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def _four_bit(dtype: torch.dtype) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise RecipeError("base.four_bit needs bitsandbytes: pip install bitsandbytes, or set it to false.")
    if not torch.cuda.is_available():
        raise RecipeError("base.four_bit needs a CUDA device; set it to false.")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
