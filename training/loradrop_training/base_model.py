"""The base that an adapter is trained on: found on the hub, in a folder, on S3, or made here; its config, tokenizer and weights."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_flash_attn_2_available

from . import cache
from .recipe import Base, RecipeError

TINY = "tiny"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
S3_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>.+)")
# What a model's folder needs; a bucket may hold the original checkpoints beside it, which are as large again.
S3_SUFFIXES = (".json", ".safetensors", ".model", ".jinja", ".txt")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
        from .tiny_base import tiny_base  # trains it, where that has not been done yet

        return str(tiny_base())
    if Path(model).is_dir():
        return str(Path(model).resolve())
    if match := S3_URI.fullmatch(model):
        return str(_from_s3(match["bucket"], match["prefix"].rstrip("/") + "/"))
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


def _from_s3(bucket: str, prefix: str) -> Path:
    """The model's files, downloaded once; again only where the bucket holds others."""
    import boto3  # only who names s3:// needs it
    from botocore.exceptions import BotoCoreError, ClientError

    uri = f"s3://{bucket}/{prefix}"
    try:
        s3 = boto3.client("s3")
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [one for page in pages for one in page.get("Contents", [])]
        wanted = {one["Key"].removeprefix(prefix): one for one in objects}
        wanted = {name: one for name, one in wanted.items() if "/" not in name and name.endswith(S3_SUFFIXES)}
        if "config.json" not in wanted:
            raise RecipeError(
                f"base.model: {uri} holds no config.json; name the prefix that holds a model as save_pretrained writes it."
            )
        digest = cache.digest_of((), (), *sorted(f"{name} {one['ETag']} {one['Size']}" for name, one in wanted.items()))

        def download(folder: Path) -> None:
            needed = sum(one["Size"] for one in wanted.values())
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise RecipeError(
                    f"base.model: {uri} has {needed / 1e9:.1f} GB; {folder.parent} has room for {free / 1e9:.1f} GB."
                )
            print(f"downloading {uri}, {needed / 1e9:.2f} GB, once", flush=True)
            for name, one in sorted(wanted.items()):
                s3.download_file(bucket, one["Key"], str(folder / name))

        cached = cache.user_cache() / "models"
        return cache.made_once(cached / re.sub(r"[^\w.-]", "-", f"{bucket}-{prefix.rstrip('/')}"), digest, download)
    except (BotoCoreError, ClientError) as error:
        raise RecipeError(f"base.model: {uri} cannot be read: {error}") from error


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def dtype(precision: str) -> torch.dtype:
    """Of the base's weights. Only a GPU multiplies bf16 faster than fp32 everywhere."""
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    return DTYPES[precision]


def attention(config: Any, weights: torch.dtype) -> str:
    """torch's own, which picks a flash kernel where there is one, and heeds the mask of rows (packed.py).

    It cannot bend the scores, as Gemma 2 does: that takes flash-attn where it is installed, and else the plain way.
    """
    if getattr(config, "attn_logit_softcapping", None) is None:
        return "sdpa"
    has_flash = torch.cuda.is_available() and weights == torch.bfloat16 and is_flash_attn_2_available()
    return "flash_attention_2" if has_flash else "eager"


def load_weights(base: BaseModel, weights: torch.dtype, *, four_bit: bool) -> Any:
    """The model on the device, frozen. Raises RecipeError where four bits, or the weights, cannot be had."""
    options: dict[str, Any] = {"dtype": weights, "attn_implementation": attention(base.config, weights)}
    if four_bit:
        options["quantization_config"] = _four_bit(weights)
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


def _four_bit(weights: torch.dtype) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise RecipeError("base.four_bit needs bitsandbytes: pip install bitsandbytes, or set it to false.")
    if not torch.cuda.is_available():
        raise RecipeError("base.four_bit needs a CUDA device; set it to false.")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=weights
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """A second one saves a third of the time on an idle machine, and costs ten times as much beside any other program:
    matrices this small are waited for longer than they are multiplied. Sums come out the same on every machine, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
