"""What the validator says of an adapter that is not trained yet: one of the same names, shapes and settings."""

import json
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from transformers import PretrainedConfig

from loradrop.adapter_config import CONFIG_FILE
from loradrop.archive import BLOCK
from loradrop.packing import Pieces, without_tarball
from loradrop.policy import MIB
from loradrop.profile import BaseProfile
from loradrop.safetensors import WEIGHTS_FILE
from loradrop.validation_report import ValidationReport
from loradrop.validator import validate

from .estimate import bytes_of, model_without_data


def validate_untrained(
    config: PretrainedConfig, lora: LoraConfig, profile: BaseProfile, base_name: str, dtype: torch.dtype
) -> ValidationReport:
    """The validator's report on what this training would save: names, shapes and settings as peft writes them.

    `lora` as it will be saved: where PiSSA is converted when saving, the converted one. Raises peft's ValueError where
    the LoRA fits no module of the base.
    """
    model = model_without_data(config, lora, dtype, "sdpa")
    saved = model.peft_config["default"]  # its target modules are written out
    saved.init_lora_weights = lora.init_lora_weights
    saved.base_model_name_or_path = base_name
    saved.inference_mode = True
    with tempfile.TemporaryDirectory() as folder:
        saved.save_pretrained(folder)
        settings = (Path(folder) / CONFIG_FILE).read_bytes()
    # "auto" would look for the base's vocabulary on the hub.
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return without_tarball(validate(Pieces(_tarball(settings, tensors)), profile))


def _tarball(settings: bytes, tensors: dict[str, torch.Tensor]) -> Iterator[bytes]:
    """A gzip that stores: a repeated value would compress as only a bomb does."""
    store = zlib.compressobj(0, wbits=16 + zlib.MAX_WBITS)

    def member(name: str, size: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        header = tarfile.TarInfo(name)
        header.size = size
        yield store.compress(header.tobuf(tarfile.USTAR_FORMAT))
        for piece in pieces:
            yield store.compress(piece)
        yield store.compress(bytes(-size % BLOCK))

    def packed() -> Iterator[bytes]:
        yield from member(CONFIG_FILE, len(settings), iter([settings]))
        head, data_bytes = _safetensors_head(tensors)
        yield from member(WEIGHTS_FILE, len(head) + data_bytes, _safetensors(head, tensors))
        yield store.compress(bytes(2 * BLOCK)) + store.flush()

    return filter(None, packed())  # an empty piece would be the end


def _safetensors_head(tensors: dict[str, torch.Tensor]) -> tuple[bytes, int]:
    """The file up to its data, and how many bytes of data follow."""
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + bytes_of(tensor)
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text, end


def _safetensors(head: bytes, tensors: dict[str, torch.Tensor]) -> Iterator[bytes]:
    yield head
    for tensor in tensors.values():
        # Small, and not zero: an adapter of zeros is refused.
        piece = bytes(torch.full((MIB // tensor.itemsize,), 0.01, dtype=tensor.dtype).view(torch.uint8).numpy())
        whole, rest = divmod(bytes_of(tensor), MIB)
        for _ in range(whole):
            yield piece
        yield piece[:rest]
