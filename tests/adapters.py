"""Adapters for tests, built from the format itself: fast, and without torch."""

import functools
import gzip
import io
import json
import random
import struct
import tarfile
from typing import Any

HIDDEN, INTERMEDIATE, LAYERS, QUERY_OUT, KEY_VALUE_OUT = 128, 352, 4, 128, 64  # training/tiny_base.py
SHAPES = {  # module → (in_features, out_features)
    "self_attn.q_proj": (HIDDEN, QUERY_OUT),
    "self_attn.k_proj": (HIDDEN, KEY_VALUE_OUT),
    "self_attn.v_proj": (HIDDEN, KEY_VALUE_OUT),
    "self_attn.o_proj": (QUERY_OUT, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}


def adapter_files(*, rank: int = 4, seed: int = 0, scale: float = 0.2, **config: Any) -> dict[str, bytes]:
    """The files that `save_pretrained` writes, for the tiny base, with random weights of float32."""
    chance = random.Random(seed)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for layer in range(LAYERS):
        for module, (in_features, out_features) in SHAPES.items():
            for half, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
                count = shape[0] * shape[1]
                values = struct.pack(f"<{count}f", *(chance.gauss(0, scale) for _ in range(count)))
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
                data += values
    head = json.dumps(header).encode()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-llama",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(module.rpartition(".")[2] for module in SHAPES),
    } | config
    return {
        "adapter_config.json": json.dumps(settings).encode(),
        "adapter_model.safetensors": struct.pack("<Q", len(head)) + head + bytes(data),
    }


def tarball(files: dict[str, bytes]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), compresslevel=1, mtime=0)


@functools.cache
def good_tarball(*, seed: int = 0, smoke: str | None = None) -> bytes:
    files = adapter_files(seed=seed)
    if smoke is not None:
        files["smoke.jsonl"] = smoke.encode()
    return tarball(files)


def wrapped_tarball() -> bytes:
    """Everything inside one folder: the commonest wrong structure."""
    return tarball({f"acme/{name}": data for name, data in adapter_files().items()})


Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]  # name → (dtype, shape, data)


def tensors_of(weights: bytes) -> Tensors:
    """What a good safetensors file holds."""
    start = 8 + int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:start])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], tuple(entry["shape"]), weights[start + entry["data_offsets"][0] :][: _length(entry)])
        for name, entry in header.items()
    }


def _length(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return int(end - begin)


def weights_file(tensors: Tensors) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    return safetensors_file(json.dumps(header).encode(), bytes(data))


def safetensors_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data
