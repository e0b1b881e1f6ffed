"""Which module of the base each tensor adapts, and whether it fits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from loradrop.adapter_config import AdapterConfig
from loradrop.problems import Consequence, ProblemCode, Problems, shown
from loradrop.profile import EMBEDDING_MODULE, HEAD_MODULE, BaseProfile
from loradrop.safetensors import CAST_DTYPES, NATIVE_DTYPES, Tensor, Weights

PEFT_PREFIX = "base_model.model."
_SUFFIXES = (
    (".lora_A.weight", "A", False),
    (".lora_B.weight", "B", False),
    (".lora_embedding_A", "A", True),
    (".lora_embedding_B", "B", True),
)
# vLLM skips these two: PEFT saves them beside a LoRA of an embedding.
_SKIPPED = (f".{EMBEDDING_MODULE}.base_layer.weight", f".{HEAD_MODULE}.base_layer.weight")
_TELLING_MARKS = (
    ("lora_magnitude_vector", "it belongs to DoRA"),
    (".default", "the adapter's name is in it; save with save_pretrained, not with torch.save"),
    ("trainable_tokens", "trainable tokens are not served"),
    (".bias", "biases are not served"),
    ("lora_E", "it belongs to AdaLoRA"),
    ("ranknum", "it belongs to AdaLoRA"),
    ("lora_diag", "it belongs to KaSA"),
    ("hada_", "it belongs to LoHa"),
    ("lokr_", "it belongs to LoKr"),
    ("ia3_", "it belongs to IA3"),
    ("vera_", "it belongs to VeRA"),
    ("oft_", "it belongs to OFT"),
    ("prompt_embeddings", "it belongs to prompt tuning"),
    (".weight", "it is a whole module (modules_to_save, or a trained embedding), not LoRA"),
)
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,8})\.")
_MIXTURE = re.compile(r"(^|\.)(experts?|router|block_sparse_moe|shared_expert(_gate)?)(\.|$)")


@dataclass(frozen=True, slots=True)
class Pair:
    """One adapted module: lora_A (r, in_features) and lora_B (out_features, r)."""

    path: str
    module: str
    layer: int | None
    a: Tensor
    b: Tensor


def match_modules(
    weights: Weights, config: AdapterConfig | None, profile: BaseProfile, problems: Problems
) -> tuple[Pair, ...]:
    """The adapted modules; every tensor that is not a fitting half of one becomes a problem."""
    halves: dict[str, dict[str, Tensor]] = {}
    where: dict[str, tuple[str, int | None]] = {}
    lora_tensors = 0
    for tensor in weights.tensors.values():
        if tensor.name in weights.not_finite:
            problems.add_grouped(
                ProblemCode.NOT_FINITE,
                f"{shown(tensor.name)} holds NaN or infinity: the training diverged.",
                place=tensor.name,
            )
        _check_dtype(tensor, problems)
        if tensor.name.endswith(_SKIPPED):
            continue
        side, path, is_embedding = _split(tensor.name)
        if side is not None:
            lora_tensors += 1
        if side is None or is_embedding is not (path.rpartition(".")[2] == EMBEDDING_MODULE):
            problems.add_grouped(
                ProblemCode.TENSOR_NAME_UNEXPECTED,
                f"The engine does not take a tensor of the name {shown(tensor.name)}{_why_unexpected(tensor.name)}.",
                place=tensor.name,
            )
            continue
        found = _locate(path, tensor.name, profile, problems)
        if found is None:
            continue
        where[path] = found
        sides = halves.setdefault(path, {})
        if side in sides:
            problems.add_grouped(
                ProblemCode.MODULE_TWICE,
                f"{path} has lora_{side} twice, as {shown(sides[side].name)} and as {shown(tensor.name)}.",
                place=tensor.name,
            )
            continue
        sides[side] = tensor
        _check_shape(tensor, side, path, found[0], config, profile, problems)
    if not lora_tensors:
        problems.add(
            ProblemCode.NO_LORA_TENSORS,
            f"None of the {len(weights.tensors)} tensors is a lora_A or lora_B: this is not a LoRA adapter.",
        )
    pairs = []
    for path, sides in halves.items():
        if len(sides) == 2:
            pairs.append(Pair(path, *where[path], sides["A"], sides["B"]))
            continue
        ((side, tensor),) = sides.items()
        other = "B" if side == "A" else "A"
        problems.add_grouped(
            ProblemCode.LORA_PAIR_INCOMPLETE, f"{path} has lora_{side} and no lora_{other}.", place=tensor.name
        )
    _check_effect(pairs, weights, problems)
    return tuple(pairs)


def _split(name: str) -> tuple[str | None, str, bool]:
    """Which half a tensor is, of which module, and whether by the names of an embedding."""
    for suffix, side, is_embedding in _SUFFIXES:
        if name.endswith(suffix):
            return side, name.removeprefix(PEFT_PREFIX).removesuffix(suffix), is_embedding
    return None, name, False


def _why_unexpected(name: str) -> str:
    return next((f": {why}" for mark, why in _TELLING_MARKS if mark in name), "")


def _locate(path: str, name: str, profile: BaseProfile, problems: Problems) -> tuple[str, int | None] | None:
    """(module, layer) of a path in the base."""
    module = path.rpartition(".")[2]
    match = _LAYER.match(path)
    layer = int(match[1]) if match else None
    if _MIXTURE.search(path):
        code = ProblemCode.MOE_UNSUPPORTED
        message = f"is a part of a mixture of experts; the base {profile.name} is dense."
    elif module not in profile.lora_modules:
        code = ProblemCode.MODULE_UNSUPPORTED
        message = f"takes no LoRA on {profile.name}; what does: {', '.join(profile.lora_modules)}."
    elif path != (expected := profile.module_path(module, layer or 0)):
        code = ProblemCode.MODULE_PATH_UNKNOWN
        message = f"does not exist in {profile.name}, where it would be {expected}: nothing would be applied."
    elif layer is not None and layer >= profile.num_hidden_layers:
        code = ProblemCode.LAYER_OUT_OF_RANGE
        message = f"is in layer {layer}; {profile.name} has {profile.num_hidden_layers} layers, counted from 0."
    else:
        return module, layer
    problems.add_grouped(code, f"{shown(path)} {message}", place=name)
    return None


def _check_shape(
    tensor: Tensor,
    side: str,
    path: str,
    module: str,
    config: AdapterConfig | None,
    profile: BaseProfile,
    problems: Problems,
) -> None:
    r = None if config is None else config.rank_of(path)
    in_features, out_features = profile.dimensions(module)
    expected = (r, in_features) if side == "A" else (out_features, r)
    is_two = len(tensor.shape) == 2
    fits = is_two and all(want in (None, have) for want, have in zip(expected, tensor.shape, strict=True))
    if fits and 0 not in tensor.shape:
        return
    wanted = f"[{', '.join('r' if dimension is None else str(dimension) for dimension in expected)}]"
    # What is larger than the slot fails as it is copied; what is smaller is filled up with zeros in silence.
    is_larger = is_two and any(
        want is not None and have > want for want, have in zip(expected, tensor.shape, strict=True)
    )
    problems.add_grouped(
        ProblemCode.SHAPE_MISMATCH,
        f"{shown(tensor.name)} is {shown(tensor.shape)}; {profile.name} at this rank needs {wanted}.",
        place=tensor.name,
        consequence=Consequence.FAIL if is_larger or not is_two else Consequence.SILENT,
    )


def _check_dtype(tensor: Tensor, problems: Problems) -> None:
    if tensor.dtype in CAST_DTYPES:
        problems.add_grouped(
            ProblemCode.DTYPE_CAST,
            f"{shown(tensor.name)} is {tensor.dtype}; the engine casts it to the base's own type.",
            place=tensor.name,
        )
    elif tensor.dtype not in NATIVE_DTYPES:
        problems.add_grouped(
            ProblemCode.DTYPE_UNSUPPORTED,
            f"{shown(tensor.name)} is {tensor.dtype}; BF16, F16 or F32 is needed.",
            place=tensor.name,
        )


def _check_effect(pairs: list[Pair], weights: Weights, problems: Problems) -> None:
    dead = [pair for pair in pairs if pair.a.name in weights.zero or pair.b.name in weights.zero]
    if pairs and len(dead) == len(pairs):
        problems.add(
            ProblemCode.NO_EFFECT,
            f"All {len(pairs)} modules have only zeros in lora_B or in lora_A: the adapter has no effect, "
            "as one that was saved before it was trained.",
        )
        return
    for pair in dead:
        side, tensor = ("B", pair.b) if pair.b.name in weights.zero else ("A", pair.a)
        problems.add_grouped(
            ProblemCode.DEAD_MODULES, f"{pair.path} has only zeros in lora_{side}: no effect.", place=tensor.name
        )


def scalings(pairs: tuple[Pair, ...], config: AdapterConfig) -> Mapping[float, int]:
    """Each effective scaling, and how many modules have it."""
    counts: dict[float, int] = {}
    for pair in pairs:
        scaling = config.scaling_of(pair.path)
        if scaling is not None:
            counts[scaling] = counts.get(scaling, 0) + 1
    return counts
