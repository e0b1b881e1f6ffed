"""Adapters over everything that a file can hold, each with what its author meant: for the differential test.

A draft begins as a good adapter for the tiny base, of random modules, ranks, scales and dtypes; then none, one or two changes are made
to it. A change that only alters how the same thing is written leaves `meant` as it is; one that alters what is meant alters both.
"""

import functools
import io
import json
import math
import operator
import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.adapters import HIDDEN, LAYERS, QUERY_OUT, SHAPES

VOCABULARY = 4096
MAX_RANK = 16
PREFIX = "base_model.model."
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
DTYPES: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
TRAINED_DTYPES = ("F32", "F32", "F16", "BF16")
# Of an update's entries: seen in the answers at once, and not so much that they drown in it.
UPDATE_SIZE = 0.06


@dataclass(slots=True)
class Update:
    """W += scale · B · A, of a module's weights (out_features, in_features); of embed_tokens transposed."""

    a: torch.Tensor  # (r, in_features)
    b: torch.Tensor  # (out_features, r)
    scale: float


@dataclass(slots=True)
class Draft:
    config: dict[str, Any]
    updates: dict[str, Update]  # by the module's path in the base
    dtype: str
    chance: random.Random
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    # None: what was trained cannot be had from the file, or not on this base
    is_served_as_meant: bool = True
    config_text: Callable[[str], bytes] = str.encode
    header: Callable[[dict[str, Any]], Any] = lambda entries: entries
    header_bytes: Callable[[bytes], bytes] = lambda data: data
    weights: Callable[[bytes], bytes] = lambda data: data
    files: dict[str, bytes] = field(default_factory=dict)
    layout: Callable[[dict[str, bytes]], dict[str, bytes]] = lambda files: files
    dtype_names: dict[str, str] = field(default_factory=dict)  # of a tensor whose header says another dtype
    changes: list[str] = field(default_factory=list)

    def rename(self, change: Callable[[str], str]) -> None:
        self.tensors = {change(name): tensor for name, tensor in self.tensors.items()}

    def some(self, half: str = "") -> str:
        """The name of some tensor."""
        return self.chance.choice([name for name in self.tensors if half in name] or list(self.tensors))

    def packed(self) -> dict[str, bytes]:
        """The adapter's files."""
        config = self.config_text(json.dumps(self.config))
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        data = bytearray()
        names = {dtype: name for name, dtype in DTYPES.items()}
        for name, tensor in self.tensors.items():
            raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            begin = len(data)
            data += raw
            dtype = self.dtype_names.get(name, names[tensor.dtype])
            entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, len(data)]}
        head = self.header(entries)
        text = self.header_bytes(head if isinstance(head, bytes) else json.dumps(head).encode())
        weights = self.weights(struct.pack("<Q", len(text)) + text + bytes(data))
        return self.layout({CONFIG_FILE: config, WEIGHTS_FILE: weights} | self.files)


def dimensions(module: str) -> tuple[int, int]:
    """(in_features, out_features)"""
    if module == "embed_tokens":
        return VOCABULARY, HIDDEN
    if module == "lm_head":
        return HIDDEN, VOCABULARY
    return SHAPES[module]


def path_of(module: str, layer: int) -> str:
    if module == "lm_head":
        return module
    return f"model.{module}" if module == "embed_tokens" else f"model.layers.{layer}.{module}"


def good(chance: random.Random) -> Draft:
    rank = chance.choice([1, 2, 3, 4, 4, 8, 16])
    alpha = chance.choice([rank, 2 * rank, 16, 1, 32, 3.5])
    uses_rslora = chance.random() < 0.15
    modules = list(SHAPES) if chance.random() < 0.5 else chance.sample(list(SHAPES), chance.randint(1, 6))
    layers = (
        list(range(LAYERS)) if chance.random() < 0.7 else sorted(chance.sample(range(LAYERS), chance.randint(1, 3)))
    )
    places = [(module, layer) for layer in layers for module in modules]
    if chance.random() < 0.1:
        places += [(module, 0) for module in chance.sample(["embed_tokens", "lm_head"], chance.randint(1, 2))]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-llama",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.rpartition(".")[2] for module, _ in places}),
    }
    if uses_rslora:
        config["use_rslora"] = True
    draft = Draft(config, {}, chance.choice(TRAINED_DTYPES), chance)
    for module, layer in places:
        add(draft, module, layer, rank, alpha / math.sqrt(rank) if uses_rslora else alpha / rank)
    return draft


def halves(path: str) -> tuple[str, str]:
    is_embedding = path.endswith("embed_tokens")
    return ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")


def add(draft: Draft, module: str, layer: int, rank: int, scale: float) -> None:
    """One adapted module, in the file as it is meant."""
    in_features, out_features = dimensions(module)
    generator = torch.Generator().manual_seed(draft.chance.getrandbits(32))
    dtype = DTYPES[draft.dtype]
    size = math.sqrt(UPDATE_SIZE / (abs(scale) * math.sqrt(rank)))
    a = (torch.randn(rank, in_features, generator=generator) * size).to(dtype)
    b = (torch.randn(out_features, rank, generator=generator) * size).to(dtype)
    path = path_of(module, layer)
    draft.updates[path] = Update(a.float(), b.float(), scale)
    for name, tensor in zip(halves(path), (a, b), strict=True):
        draft.tensors[f"{PREFIX}{path}.{name}"] = tensor


# Changes. Each returns nothing, and names itself in `changes` by what `changed` puts there.

Change = Callable[[Draft], None]
CHANGES: list[tuple[str, Change, int]] = []


def change(weight: int = 1) -> Callable[[Change], Change]:
    def register(function: Change) -> Change:
        CHANGES.append((function.__name__, function, weight))
        return function

    return register


def pick(draft: Draft, key: str, values: list[Any], what: str = "") -> Any:
    value = draft.chance.choice(values)
    draft.changes.append(f"{what or key}={value!r}")
    return value


@change()
def required_key_missing(draft: Draft) -> None:
    key = pick(draft, "missing", ["r", "lora_alpha", "target_modules"])
    draft.config.pop(key, None)


@change(2)
def other_r(draft: Draft) -> None:
    if "r" not in draft.config:  # another change took it out: then nothing says what is meant
        return
    r = draft.config["r"]
    values = [
        0,
        -4,
        "4",
        float(r),
        None,
        True,
        r + 1,
        max(1, r - 1),
        2 * r,
        32,
        1000,
        r + 0.5,
        math.nan,
        math.inf,
        [r],
        {},
        -r,
        10**30,
    ]
    value = pick(draft, "r", values)
    draft.config["r"] = value
    if value != r or isinstance(value, bool):
        draft.is_served_as_meant = False


@change(2)
def other_alpha(draft: Draft) -> None:
    if "lora_alpha" not in draft.config:
        return
    values: list[Any] = [
        "8",
        None,
        0,
        -8,
        True,
        False,
        math.nan,
        math.inf,
        -math.inf,
        3.5,
        [8],
        {},
        1e-30,
        1e30,
        10**40,
        0.0,
        -0.0,
        1e308,
    ]
    value = pick(draft, "lora_alpha", values)
    old = draft.config["lora_alpha"]
    draft.config["lora_alpha"] = value
    if value == 3.5 and isinstance(old, int | float) and not isinstance(old, bool):
        for update in draft.updates.values():
            update.scale *= value / old
    else:
        draft.is_served_as_meant = False


@change()
def bias(draft: Draft) -> None:
    draft.config["bias"] = pick(
        draft, "bias", ["all", "lora_only", None, "None", "", "NONE", "none", False, 0, ["none"]]
    )


@change(2)
def switch(draft: Draft) -> None:
    keys = [
        "use_dora",
        "lora_bias",
        "use_qalora",
        "use_bdlora",
        "fan_in_fan_out",
        "inference_mode",
        "ensure_weight_tying",
        "use_unknown",
    ]
    key = draft.chance.choice(keys)
    draft.config[key] = pick(draft, key, [True, False, None, 1, 0, "true", "false", "", [], {}, {"a": 1}])


@change()
def rslora(draft: Draft) -> None:
    value = pick(draft, "use_rslora", [True, False, None, 1, 0, "true", "false", "", [], {"a": 1}])
    if "rank_pattern" in draft.config:
        return  # of several ranks
    was, r = bool(draft.config.get("use_rslora")), draft.config.get("r")
    draft.config["use_rslora"] = value
    if isinstance(r, int) and r > 0 and bool(value) != was:
        for update in draft.updates.values():
            update.scale *= math.sqrt(r) if value else 1 / math.sqrt(r)


@change()
def modules_to_save(draft: Draft) -> None:
    values: list[Any] = [
        [],
        None,
        ["lm_head"],
        ["classifier"],
        ["score"],
        ["classifier", "score"],
        "lm_head",
        "classifier",
        "",
        {},
        ["embed_tokens"],
        [""],
        1,
        0,
        False,
        True,
        {"score": 1},
        ["q_proj"],
    ]
    value = pick(draft, "modules_to_save", values)
    draft.config["modules_to_save"] = value
    if value:
        draft.is_served_as_meant = False  # it was not saved


@change(2)
def init(draft: Draft) -> None:
    plain = [True, False, None, "gaussian", "Gaussian", "eva", "EVA", "orthogonal", "mica"]
    altering = ["pissa", "pissa_niter_16", "PiSSA", "olora", "OLoRA", "loftq", "corda", "lora_ga", "LORA_GA"]
    other: list[Any] = ["unknown", "", "true", "gaussian ", 0, 1, 3.5, [], ["gaussian"], {"a": 1}]
    value = pick(draft, "init_lora_weights", [*plain, *plain, *altering, *other])
    draft.config["init_lora_weights"] = value
    if isinstance(value, str) and value.lower().startswith(("pissa", "olora", "loftq", "corda", "lora_ga")):
        draft.is_served_as_meant = False


@change(2)
def feature(draft: Draft) -> None:
    keys: dict[str, list[Any]] = {
        "alora_invocation_tokens": [[1, 2], [], None, 0, "x"],
        "layer_replication": [[[0, 4]], [], None, 1],
        "invocation_string": ["x", "", None],
        "alora_invocation_string": ["x", None],
        "use_alora": [True, False],
        "trainable_token_indices": [[1], None, []],
        "target_parameters": [["a"], None, []],
        "arrow_config": [{"a": 1}, None],
        "kasa_config": [{"a": 1}, {}, None],
        "monteclora_config": [{"a": 1}, None],
    }
    key = draft.chance.choice(list(keys))
    value = pick(draft, key, keys[key])
    draft.config[key] = value
    if value:
        draft.is_served_as_meant = False


@change()
def harmless_key(draft: Draft) -> None:
    keys: dict[str, list[Any]] = {
        "peft_version": ["0.21.2", "0.5.0", None, 3],
        "revision": ["main", None],
        "layers_pattern": [None, "layers", ["layers"]],
        "layers_to_transform": [None, [0], 0],
        "exclude_modules": [None, ["lm_head"]],
        "megatron_config": [None, {}, {"a": 1}],
        "megatron_core": ["megatron.core"],
        "loftq_config": [{}, {"loftq_bits": 4}, None],
        "eva_config": [None, {"rho": 2.0}],
        "corda_config": [None, {"a": 1}],
        "lora_ga_config": [None, {"a": 1}],
        "runtime_config": [{"ephemeral_gpu_offload": False}],
        "auto_mapping": [None, {"base_model_class": "X", "parent_library": "y"}],
        "qalora_group_size": [16],
        "task_type": ["CAUSAL_LM", None, "SEQ_CLS", 3],
        "lora_dropout": [0.1, None, "x"],
        "base_model_name_or_path": ["other/base", None, "", 3, "/home/me/tiny-llama"],
        "vllm_lora_scaling_factor": [2.0, 1.0, None, "x"],
        "vllm_max_position_embeddings": [1, None, "x", False],
        "new_feature": [True, {"a": 1}, None, [1]],
        "new_config": [{"a": 1}, {}, None],
        "": [1],
        "_private": [True],
        "self": [1],
        "cls": [1],
    }
    key = draft.chance.choice(list(keys))
    draft.config[key] = pick(draft, key, keys[key])


@change()
def peft_type(draft: Draft) -> None:
    value = pick(draft, "peft_type", ["lora", "LORA", None, "ADALORA", "IA3", "LOHA", "LoRA", "", 3, "VERA"])
    draft.config["peft_type"] = value
    if not (isinstance(value, str) and value.upper() == "LORA"):
        draft.is_served_as_meant = False


@change()
def target_modules(draft: Draft) -> None:
    draft.config["target_modules"] = pick(
        draft, "target_modules", ["all-linear", [], None, ["nothing"], 3, {}, "q_proj", ".*"]
    )


@change(6)
def patterns(draft: Draft) -> None:
    """Other ranks or alphas for some modules, in one of the ways in which patterns are written."""
    r: Any = draft.config.get("r")
    alpha: Any = draft.config.get("lora_alpha")
    if draft.changes:
        return  # it makes modules anew, as they are meant
    numbers = all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) and one > 0
        for one in (r, alpha)
    )
    if not numbers or not draft.updates or not all(one.is_floating_point() for one in draft.tensors.values()):
        return
    path = draft.chance.choice(list(draft.updates))
    module = path.rpartition(".")[2]
    parent = ".".join(path.split(".")[-2:])
    keys = [
        module,
        path,
        parent,
        path.replace(".", r"\."),
        f".*{module}",
        f"^{path}",
        f"^{path}$",
        f"{module}$",
        f".*\\.{module}",
        parent.replace(".", r"\."),
        path.replace("model.", "", 1),
        f"{PREFIX}{path}",
        module[1:],
        module.upper(),
        "nothing",
        "",
        ".*",
        "(",
        f"({module})",
        f"{module}|nothing",
        r"layers\.[01]\..*",
        r".*layers\.\d+\.self_attn\.(q|v)_proj",
        "model",
        "layers",
        "x" * 200,
        "é",
        f"{module} ",
        f"\\{module}",
        "[",
        f"{module}+",
        "*",
    ]
    key = draft.chance.choice(keys)
    name = draft.chance.choice(["rank_pattern", "alpha_pattern"])
    matched = [one for one in draft.updates if is_matched(key, one)]
    odd: list[Any] = [r if name == "rank_pattern" else alpha, float(r), "8", None, 0, -1, 32, True, 3.5, [4], math.nan]
    # An alpha that leaves enough of the update to be seen.
    usual = draft.chance.choice(
        [1, 2, 4, 8, 16] if name == "rank_pattern" else [alpha / 2, alpha, 2 * alpha, 4 * alpha]
    )
    value: Any = draft.chance.choice(odd) if draft.chance.random() < 0.3 else usual
    draft.config[name] = {key: value}
    if draft.chance.random() < 0.2:
        draft.config[name] = draft.config[name] | {draft.chance.choice(["nothing", "zzz"]): usual}
    draft.changes.append(f"{name}={{{key!r}: {value!r}}} of {len(matched)}")
    is_usual = isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)
    root = bool(draft.config.get("use_rslora"))
    for one in matched:
        update = draft.updates[one]
        if not is_usual:
            draft.is_served_as_meant = False
        elif name == "alpha_pattern":
            update.scale = value / (math.sqrt(r) if root else r)
        elif isinstance(value, int):
            kind, layer = module_and_layer(one)
            add(draft, kind, layer, value, alpha / (math.sqrt(value) if root else value))


def is_matched(key: str, path: str) -> bool:
    """By PEFT's rule."""
    try:
        return bool(re.match(rf"(.*\.)?({key})$", path))
    except re.error:
        return False


def module_and_layer(path: str) -> tuple[str, int]:
    parts = path.split(".")
    return (".".join(parts[3:]), int(parts[2])) if len(parts) > 3 else (parts[-1], 0)


@change()
def odd_pattern(draft: Draft) -> None:
    name = draft.chance.choice(["rank_pattern", "alpha_pattern"])
    draft.config[name] = pick(draft, name, [{}, None, [], "", 0, False, ["q_proj"], "q_proj", 3, True, [["q_proj", 4]]])


@change(2)
def config_text(draft: Draft) -> None:
    ways: dict[str, Callable[[str], bytes]] = {
        "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
        "utf-16": lambda text: text.encode("utf-16"),
        "latin-1": lambda text: text[:-1].encode() + b', "a": "\xe9"}',
        "accents": lambda text: text[:-1].encode() + ', "a": "é日"}'.encode(),
        "trailing comma": lambda text: text[:-1].encode() + b",}",
        "empty": lambda text: b"",
        "list": lambda text: b"[" + text.encode() + b"]",
        "garbage after": lambda text: text.encode() + b"x",
        "newlines": lambda text: b"\n\n " + text.encode() + b"\n",
        "twice": lambda text: text[:-1].encode() + b', "bias": "none"}',
        "twice, another": lambda text: b'{"bias": "all", ' + text[1:].encode(),
        "comment": lambda text: b"// x\n" + text.encode(),
        "lone surrogate": lambda text: text[:-1].encode() + b', "a": "\\ud800"}',
        "surrogate pair": lambda text: text[:-1].encode() + b', "a": "\\ud83d\\ude00"}',
        "NaN unread": lambda text: text[:-1].encode() + b', "a": NaN}',
        "deep": lambda text: text[:-1].encode() + b', "a": ' + b"[" * 40 + b"]" * 40 + b"}",
        "very deep": lambda text: text[:-1].encode() + b', "a": ' + b"[" * 100000 + b"]" * 100000 + b"}",
        "long number": lambda text: text[:-1].encode() + b', "a": ' + b"9" * 60 + b"}",
        "control character": lambda text: text[:-1].encode() + b', "a": "\x01"}',
        "large": lambda text: text[:-1].encode() + b', "a": "' + b"x" * 300_000 + b'"}',
        "carriage returns": lambda text: text.replace(",", ",\r\n").encode(),
        "null": lambda text: b"null",
    }
    way = pick(draft, "config", list(ways))
    draft.config_text = ways[way]


@change(4)
def renamed(draft: Draft) -> None:
    ways: dict[str, Callable[[str], str]] = {
        "no prefix": lambda name: name.removeprefix(PREFIX),
        "prefix twice": lambda name: PREFIX + name,
        "prefix inside": lambda name: name.replace("self_attn", f"{PREFIX}self_attn"),
        "base_model.": lambda name: name.replace(PREFIX, "base_model."),
        "model.": lambda name: name.replace(PREFIX, "model."),
        "module.": lambda name: "module." + name,
        "_orig_mod.": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
        "default": lambda name: name.replace(".weight", ".default.weight"),
        "no model.": lambda name: name.replace(f"{PREFIX}model.", PREFIX),
        "transformer.": lambda name: name.replace("model.layers", "transformer.layers"),
        "language_model.": lambda name: name.replace("model.layers", "language_model.model.layers"),
        "model.language_model.": lambda name: name.replace("model.layers", "model.language_model.layers"),
        "lower case": lambda name: name.replace("lora_A", "lora_a").replace("lora_B", "lora_b"),
        "down and up": lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        "no .weight": lambda name: name.removesuffix(".weight"),
        "torchtune": lambda name: (
            name.replace(f"{PREFIX}model.", "")
            .replace("self_attn", "attn")
            .replace("lora_A", "lora_a")
            .replace("lora_B", "lora_b")
        ),
        "mistral": lambda name: name.replace(f"{PREFIX}model.", "").replace("self_attn.q_proj", "attention.wq"),
        "kohya": lambda name: "lora_te_" + name.replace(".", "_").replace("_lora_A_weight", ".lora_down.weight"),
        "upper case": str.upper,
        "base_layer": lambda name: name.replace(".lora_", ".base_layer.lora_"),
        "double dot": lambda name: name.replace("layers.", "layers.."),
        "space": lambda name: name + " ",
        "bias": lambda name: name.replace("lora_B.weight", "lora_B.bias"),
        "embedding": lambda name: name.replace("lora_A.weight", "lora_embedding_A").replace(
            "lora_B.weight", "lora_embedding_B"
        ),
        "no embedding": lambda name: name.replace("lora_embedding_A", "lora_A.weight").replace(
            "lora_embedding_B", "lora_B.weight"
        ),
        "q as k": lambda name: name.replace("q_proj", "\0").replace("k_proj", "q_proj").replace("\0", "k_proj"),
        "self_attention": lambda name: name.replace("self_attn", "self_attention"),
        "attention in mlp": lambda name: name.replace("self_attn", "mlp"),
    }
    way = pick(draft, "names", list(ways))
    before = set(draft.tensors)
    draft.rename(ways[way])
    if way == "q as k" and before != set(draft.tensors):
        draft.is_served_as_meant = False


@change(2)
def some_renamed(draft: Draft) -> None:
    """Of one module, or of one tensor."""
    ways: dict[str, Callable[[str], str]] = {
        "no prefix": lambda name: name.removeprefix(PREFIX),
        "default": lambda name: name.replace(".weight", ".default.weight"),
        "other path": lambda name: name.replace("model.layers", "transformer.layers"),
        "layer 4": lambda name: ".".join("4" if part.isdigit() else part for part in name.split(".")),
        "layer 99": lambda name: ".".join("99" if part.isdigit() else part for part in name.split(".")),
        "layer 00": lambda name: ".".join("0" + part if part.isdigit() else part for part in name.split(".")),
        "layer -1": lambda name: ".".join("-1" if part.isdigit() else part for part in name.split(".")),
        "layer ²": lambda name: ".".join("²" if part.isdigit() else part for part in name.split(".")),
        "fused": lambda name: name.replace("q_proj", "qkv_proj").replace("gate_proj", "gate_up_proj"),
        "experts": lambda name: name.replace("mlp.", "mlp.experts.0."),
        "norm": lambda name: name.replace("q_proj", "norm").replace("mlp.gate_proj", "input_layernorm"),
        "rotary": lambda name: name.replace("q_proj", "rotary_emb"),
        "score": lambda name: "base_model.model.score.weight",
    }
    way = pick(draft, "some names", list(ways))
    name = draft.some()
    module = name.rpartition(".lora_")[0]
    names = (
        {name} if draft.chance.random() < 0.3 else {one for one in draft.tensors if one.startswith(f"{module}.lora_")}
    )
    draft.tensors = {ways[way](one) if one in names else one: tensor for one, tensor in draft.tensors.items()}


@change(2)
def missing(draft: Draft) -> None:
    way = pick(draft, "missing", ["one A", "one B", "all A", "all B", "a pair", "all"])
    half = "lora_A" if way.endswith("A") else "lora_B" if way.endswith("B") else "lora_"
    names = [name for name in draft.tensors if half in name]
    if not names:
        return
    if way == "a pair":
        module = draft.some().rpartition(".lora_")[0]
        path = module.removeprefix(PREFIX)
        gone = {name for name in draft.tensors if name.removeprefix(PREFIX).startswith(f"{path}.lora_")}
        draft.updates.pop(path, None)
        if not draft.updates:
            draft.is_served_as_meant = False
    else:
        gone = {draft.chance.choice(names)} if way.startswith("one") else set(names)
    draft.tensors = {name: tensor for name, tensor in draft.tensors.items() if name not in gone}


@change(3)
def extra_tensor(draft: Draft) -> None:
    layer = f"{PREFIX}model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        f"{layer}.self_attn.q_proj.lora_magnitude_vector": (QUERY_OUT,),
        f"{layer}.self_attn.q_proj.lora_magnitude_vector.weight": (QUERY_OUT,),
        f"{layer}.self_attn.q_proj.base_layer.weight": (QUERY_OUT, HIDDEN),
        f"{layer}.self_attn.q_proj.base_layer.bias": (QUERY_OUT,),
        f"{layer}.self_attn.q_proj.lora_B.bias": (QUERY_OUT,),
        f"{layer}.self_attn.q_proj.weight": (QUERY_OUT, HIDDEN),
        f"{layer}.input_layernorm.weight": (HIDDEN,),
        f"{layer}.self_attn.q_proj.lora_A.trainable_tokens_delta": (4, HIDDEN),
        f"{PREFIX}model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        f"{PREFIX}lm_head.weight": (VOCABULARY, HIDDEN),
        f"{PREFIX}model.embed_tokens.base_layer.weight": (VOCABULARY, HIDDEN),
        f"{PREFIX}lm_head.base_layer.weight": (VOCABULARY, HIDDEN),
        "model.embed_tokens.base_layer.weight": (VOCABULARY, HIDDEN),
        "x.embed_tokens.base_layer.weight": (8, 8),
        "lm_head.base_layer.weight": (VOCABULARY, HIDDEN),
        ".lm_head.base_layer.weight": (3,),
        f"{PREFIX}score.weight": (2, HIDDEN),
        f"{PREFIX}classifier.weight": (2, HIDDEN),
        "lora_A.weight": (4, HIDDEN),
        "": (4,),
        "weight": (4,),
        f"{layer}.mlp.experts.0.gate_proj.lora_A.weight": (4, HIDDEN),
        f"{layer}.self_attn.rotary_emb.inv_freq": (16,),
        f"{PREFIX}prompt_embeddings": (4, HIDDEN),
        f"{layer}.self_attn.q_proj.lora_E": (4, 1),
        f"{layer}.mlp.act_fn.lora_A.weight": (4, HIDDEN),
        f"{layer}.self_attn.lora_A.weight": (4, HIDDEN),
        f"{layer}.self_attn.q_proj.lora_A.weight.extra": (4,),
    }
    name = pick(draft, "extra", list(shapes))
    draft.tensors[name] = torch.full(shapes[name], 0.01)


@change(2)
def twice(draft: Draft) -> None:
    """A module under two names."""
    name = draft.some()
    module = name.rpartition(".lora_")[0]
    is_other = pick(draft, "twice, with other values", [True, False])
    for one in [one for one in draft.tensors if one.startswith(f"{module}.lora_")]:
        tensor = draft.tensors[one]
        other = one.removeprefix(PREFIX) if one.startswith(PREFIX) else PREFIX + one
        draft.tensors[other] = (tensor.float() * 3).to(tensor.dtype) if is_other else tensor
    if is_other:
        draft.is_served_as_meant = False


@change(5)
def shape(draft: Draft) -> None:
    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "a row less": lambda one: one[:-1],
        "a row more": lambda one: torch.cat([one, one[:1]]),
        "a column less": lambda one: one[:, :-1],
        "a column more": lambda one: torch.cat([one, one[:, :1]], 1),
        "transposed": lambda one: one.T,
        "flat": lambda one: one.flatten(),
        "three-dimensional": lambda one: one[None],
        "trailing one": lambda one: one[..., None],
        "no rows": lambda one: one[:0],
        "no columns": lambda one: one[:, :0],
        "a number": lambda one: one.flatten()[0],
        "half the rows": lambda one: one[: max(1, len(one) // 2)],
        "twice the rows": lambda one: torch.cat([one, one]),
        "one row": lambda one: one[:1],
        "one column": lambda one: one[:, :1],
    }
    way = pick(draft, "shape", list(ways))
    half = draft.chance.choice(["lora_A", "lora_B", "both"])
    name = draft.some("lora_A" if half == "both" else half)
    module = name.rpartition(".lora_")[0]
    scope = draft.chance.choice(["one", "module", "all"])
    draft.changes.append(f"{half} of {scope} {module.rpartition('.')[2]}")
    for one, tensor in list(draft.tensors.items()):
        if tensor.dim() != 2 or (half != "both" and half not in one and half.replace("_", "_embedding_") not in one):
            continue
        if scope == "all" or (scope == "module" and one.startswith(f"{module}.lora_")) or one == name:
            changed = ways[way](tensor).clone()
            if changed.shape != tensor.shape:
                draft.is_served_as_meant = False
            draft.tensors[one] = changed


@change(4)
def dtype(draft: Draft) -> None:
    """Cast as a careless program would cast it."""
    wanted = pick(draft, "dtype", list(DTYPES))
    scope = draft.chance.choice(["one", "all", "A"])
    name = draft.some()
    for one, tensor in list(draft.tensors.items()):
        if scope == "all" or one == name or (scope == "A" and "_A" in one.rpartition(".lora_")[2]):
            if not tensor.is_floating_point():
                continue
            cast = tensor.float().abs().to(DTYPES[wanted]) if wanted == "F8_E8M0" else tensor.float().to(DTYPES[wanted])
            draft.tensors[one] = cast
            module, _, half = one.rpartition(".lora_")
            update = draft.updates.get(module.removeprefix(PREFIX))
            if update is None:
                continue
            if cast.is_floating_point():
                exact = cast.float()
                if half.startswith(("A", "embedding_A")):
                    update.a = exact
                else:
                    update.b = exact
            else:
                draft.is_served_as_meant = False


@change()
def dtype_name(draft: Draft) -> None:
    """A dtype that torch has no tensors of, or none at all, for the same bytes."""
    name = draft.some()
    bits = {1: ["F4", "F6_E2M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 2: ["U16", "I16"], 4: ["U32", "F4", "C64"], 8: ["U64"]}
    size = draft.tensors[name].element_size()
    draft.dtype_names[name] = pick(draft, "dtype in the header", [*bits[size], "F128", "bfloat16", "f32", ""])
    draft.is_served_as_meant = False


@change(3)
def values(draft: Draft) -> None:
    way = pick(
        draft,
        "values",
        [
            "nan",
            "inf",
            "-inf",
            "1e20",
            "1e30",
            "1e38",
            "600",
            "zero B",
            "zero A",
            "zero one",
            "zero rows",
            "tiny",
            "-0",
            "constant",
        ],
    )
    name = draft.some()
    for one, tensor in list(draft.tensors.items()):
        if not tensor.is_floating_point() or not tensor.numel() or tensor.dim() != 2 or tensor.element_size() == 1:
            continue
        half = one.rpartition(".lora_")[2].removeprefix("embedding_")[:1]
        if way in ("zero B", "zero A"):
            if half == way[-1]:
                draft.tensors[one] = torch.zeros_like(tensor)
            draft.is_served_as_meant = False
        elif way == "tiny":
            draft.tensors[one] = (tensor.float() * 1e-4).to(tensor.dtype)  # so faint that the smoke test decides
            update = draft.updates.get(one.rpartition(".lora_")[0].removeprefix(PREFIX))
            if update is not None and half == "A":
                update.a = draft.tensors[one].float()
            elif update is not None:
                update.b = draft.tensors[one].float()
        elif way == "-0" and half == "B":
            draft.tensors[one] = torch.full_like(tensor, -0.0)
            draft.is_served_as_meant = False
        elif one == name:
            changed = tensor.clone()
            if way == "zero one":
                changed.zero_()
            elif way == "zero rows":
                changed[: max(1, len(changed) // 2)] = 0
            elif way == "constant":
                changed.fill_(0.01)
            elif way in ("nan", "inf", "-inf", "1e38", "600"):
                changed[0, -1] = float(way)
            elif way in ("1e20", "1e30"):
                changed = torch.full_like(tensor.float(), float(way)).to(tensor.dtype)
            if way.startswith("1e"):  # no training gives that, whatever comes of it
                draft.is_served_as_meant = False
            draft.tensors[one] = changed
            update = draft.updates.get(one.rpartition(".lora_")[0].removeprefix(PREFIX))
            if update is not None:
                if half == "A":
                    update.a = changed.float()
                else:
                    update.b = changed.float()


@change(4)
def header(draft: Draft) -> None:
    def entries(edit: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], Any]:
        def edited(found: dict[str, Any]) -> Any:
            edit(found)
            return found

        return edited

    def first(found: dict[str, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = next((entry for name, entry in found.items() if name != "__metadata__"), {})
        return entry

    def twice(found: dict[str, Any]) -> bytes:
        text = json.dumps(found)
        name = next((name for name in found if name != "__metadata__"), "x")
        return f"{text[:-1]}, {json.dumps(name)}: {json.dumps(found.get(name))}}}".encode()

    ways: dict[str, Change] = {}

    def parsed(name: str, edit: Callable[[dict[str, Any]], Any]) -> None:
        ways[name] = lambda draft: setattr(draft, "header", entries(edit))

    parsed("no metadata", lambda found: found.pop("__metadata__"))
    parsed("metadata null", lambda found: found.update(__metadata__=None))
    parsed("metadata empty", lambda found: found.update(__metadata__={}))
    parsed("metadata number", lambda found: found.update(__metadata__={"a": 1}))
    parsed("metadata nested", lambda found: found.update(__metadata__={"a": {"b": "c"}}))
    parsed("metadata mlx", lambda found: found.update(__metadata__={"format": "mlx"}))
    parsed("metadata tf", lambda found: found.update(__metadata__={"format": "tf"}))
    parsed("metadata list", lambda found: found.update(__metadata__=["a"]))
    parsed("extra field", lambda found: first(found).update(extra=1))
    parsed("no dtype", lambda found: first(found).pop("dtype", None))
    parsed(
        "shape of floats",
        lambda found: first(found).update(shape=[float(one) for one in first(found).get("shape", [])]),
    )
    parsed("negative shape", lambda found: first(found).update(shape=[-one for one in first(found).get("shape", [])]))
    parsed("other shape", lambda found: first(found).update(shape=[*first(found).get("shape", []), 2]))
    parsed(
        "offsets moved",
        lambda found: first(found).update(data_offsets=[one + 4 for one in first(found).get("data_offsets", [])]),
    )
    parsed(
        "offsets reversed", lambda found: first(found).update(data_offsets=first(found).get("data_offsets", [])[::-1])
    )
    parsed(
        "offsets overlap",
        lambda found: [
            entry.update(data_offsets=first(found)["data_offsets"])
            for name, entry in found.items()
            if name != "__metadata__" and entry["shape"] == first(found)["shape"]
        ],
    )
    parsed("entry null", lambda found: found.update(x=None))
    parsed("entry list", lambda found: found.update(x=[]))
    parsed("name of accents", lambda found: found.update({"é": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}))
    parsed(
        "empty tensor",
        lambda found: found.update(
            {f"{PREFIX}x.lora_A.weight": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}}
        ),
    )
    ways["twice"] = lambda draft: setattr(draft, "header", twice)
    ways["other order"] = lambda draft: setattr(
        draft, "header", lambda found: dict(draft.chance.sample(list(found.items()), len(found)))
    )
    for name, edit in {
        "space before": lambda data: b" " + data,
        "spaces after": lambda data: data + b" " * 13,
        "newline after": lambda data: data + b"\n",
        "zeros after": lambda data: data + b"\0" * 8,
        "indented": lambda data: json.dumps(json.loads(data), indent=1).encode() if data.startswith(b"{") else data,
        "not UTF-8": lambda data: data.replace(b"base_model", b"base_m\xffdel", 1),
        "list": lambda data: b"[" + data + b"]",
        "empty object": lambda data: b"{}",
        "nothing": lambda data: b"",
    }.items():
        ways[name] = lambda draft, edit=edit: setattr(draft, "header_bytes", edit)  # type: ignore[misc]
    for name, edit in {
        "a byte after": lambda data: data + b"\0",
        "a byte less": lambda data: data[:-1],
        "half": lambda data: data[: len(data) // 2],
        "nothing at all": lambda data: b"",
        "seven bytes": lambda data: data[:7],
        "a huge header": lambda data: b"\xff" * 8 + data[8:],
        "a pointer": lambda data: (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
        ),
        "a zip": lambda data: b"PK\x03\x04" + data,
    }.items():
        ways[name] = lambda draft, edit=edit: setattr(draft, "weights", edit)  # type: ignore[misc]
    way = pick(draft, "header", list(ways))
    ways[way](draft)
    if way in ("offsets overlap", "empty object"):
        draft.is_served_as_meant = False


@change(2)
def files(draft: Draft) -> None:
    def only_pickle(found: dict[str, bytes]) -> dict[str, bytes]:
        buffer = io.BytesIO()
        torch.save(draft.tensors, buffer)
        return {name: data for name, data in found.items() if name != WEIGHTS_FILE} | {
            "adapter_model.bin": buffer.getvalue()
        }

    ways: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
        "a folder": lambda found: {f"acme/{name}": data for name, data in found.items()},
        "dot": lambda found: {f"./{name}": data for name, data in found.items()},
        "upper case": lambda found: {name.upper(): data for name, data in found.items()},
        "no config": lambda found: {name: data for name, data in found.items() if name != CONFIG_FILE},
        "no weights": lambda found: {name: data for name, data in found.items() if name != WEIGHTS_FILE},
        "only a pickle": only_pickle,
        "a pickle too": lambda found: found | {"adapter_model.bin": b"\x80\x04N."},
        "other name": lambda found: {name.replace("adapter_model", "model"): data for name, data in found.items()},
        **{
            f"with {name}": functools.partial(operator.or_, {name: b"x"})
            for name in (
                *(
                    "README.md",
                    "training_args.bin",
                    "model.py",
                    "optimizer.pt",
                    "new_embeddings.safetensors",
                    "tokenizer.json",
                ),
                *(
                    "checkpoint-1/trainer_state.json",
                    ".git/HEAD",
                    "requirements.txt",
                    ".DS_Store",
                    "._adapter_config.json",
                    "LICENSE",
                ),
                *(
                    "notes.docx",
                    "chat_template.jinja",
                    "serving.properties",
                    "trainer_state.json",
                    "vocab.bpe",
                    "merges.txt",
                    "rng_state.pth",
                ),
            )
        },
    }
    draft.layout = ways[pick(draft, "files", list(ways))]


@change()
def none_at_all(draft: Draft) -> None:
    """Twice as often as without it, nothing is changed."""


def adapters(seed: int) -> Iterator[Draft]:
    """Without end; the same ones for the same seed."""
    number = 0
    while True:
        chance = random.Random(f"{seed}:{number}")
        draft = good(chance)
        wanted = chance.choices(
            CHANGES, [weight for *_, weight in CHANGES], k=chance.choice([0, 1, 1, 1, 1, 1, 1, 1, 2, 2])
        )
        for function in dict.fromkeys(function for _, function, _ in wanted):
            if draft.tensors:
                function(draft)
        number += 1
        yield draft
