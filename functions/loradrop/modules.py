"""Which module of the base each tensor adapts, and whether it fits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from loradrop.adapter_config import AdapterConfig
from loradrop.problems import Consequence, Fix, FixKind, ProblemCode, Problems, shown
from loradrop.profile import EMBEDDING_MODULE, HEAD_MODULE, BaseProfile
from loradrop.safetensors import CAST_DTYPES, NATIVE_DTYPES, Tensor, Weights

PEFT_PREFIX = "base_model.model."
_EMBEDDING_A = ".lora_embedding_A"
_SUFFIXES = ((".lora_A.weight", "A"), (".lora_B.weight", "B"), (_EMBEDDING_A, "A"), (".lora_embedding_B", "B"))
# PEFT saves the base's own embeddings beside a LoRA of them. vLLM reads them into memory, and then skips them.
_BASE_LAYER_PART = "base_layer"
_BASE_LAYER = f".{_BASE_LAYER_PART}.weight"
_SKIPPED = (f".{EMBEDDING_MODULE}{_BASE_LAYER}", f".{HEAD_MODULE}{_BASE_LAYER}")
# What wrappers leave in the names of a model's parts; it stands anywhere in them.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
# What stands before the path in the base: of DDP and DeepSpeed, of PEFT, and of the base as a part of a larger model.
_OUTER_PARTS = frozenset({"module", "base_model", "model", "language_model"})
_HALVES = frozenset(suffix.split(".")[1] for suffix, _ in _SUFFIXES)
# Of the name of a module in a base, with all that stands around it.
_MAX_NAME_CHARACTERS = 1000
_MEND = Fix(FixKind.MEND)
_FOREIGN_MARKS = (
    *((wrapper, f"the wrapper of {of} is in it") for wrapper, of in _WRAPPERS.items()),
    ("lora_unet", "it is in kohya's form, and adapts a model of images"),
    ("lora_down", "it is in kohya's form, and not in PEFT's"),
    ("lora_up", "it is in kohya's form, and not in PEFT's"),
    (".attention.w", "it is in Mistral's own form, which keeps the rows of q and k in another order"),
    (".feed_forward.w", "it is in Mistral's own form"),
    (".lora_a", "it is in the form of mlx-lm, or torchtune's own"),
    (".lora_b", "it is in the form of mlx-lm, or torchtune's own"),
    ("v_head.", "it is the value head of a reward model"),
)
_TELLING_MARKS = (
    *_FOREIGN_MARKS,
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
    (".base_layer.", "it is the base's own weight"),
    (".weight", "it is a whole module (modules_to_save, or a trained embedding), not LoRA"),
)
# Trained, every row of their lora_B has changed. A fused projection may be made of its parts, of which one was not trained;
# embeddings may have rows of tokens that never came.
_WHOLE_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
# The engine computes these together: q, k and v, and gate and up.
_PACKED_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
# Whose entries of patterns are looked at: beyond these there are enough problems.
_MAX_UNKNOWN_PATHS = 64
_MIN_LOST_PART = 1 / 8
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
    elsewhere: dict[str, dict[str, Tensor]] = {}  # of modules that the base does not have
    for tensor in weights.tensors.values():
        if tensor.name.endswith(_SKIPPED):
            _check_base_layer(tensor, profile, problems)
            continue
        _check_values(tensor, weights, problems)
        side, path = _split(tensor.name)
        # The engine compares an embedding's A, by its name, with the vocabulary; for the rest either name does.
        is_misnamed = (
            tensor.name.endswith(_EMBEDDING_A)
            and path.rpartition(".")[2] != EMBEDDING_MODULE
            and tensor.shape[1:2] != (profile.vocab_size,)
        )
        if side is None or is_misnamed:
            problems.add_grouped(
                ProblemCode.TENSOR_NAME_UNEXPECTED,
                f"The engine does not accept the tensor name {shown(tensor.name)}{_why_unexpected(tensor.name)}.",
                place=tensor.name,
                fix=_fix_of_name(tensor.name, profile),
            )
            if side is not None:
                elsewhere.setdefault(path, {})[side] = tensor
            continue
        found = _locate(path, tensor.name, profile, problems)
        if found is None:
            elsewhere.setdefault(path, {})[side] = tensor
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
    if not halves and not elsewhere:
        problems.add(
            ProblemCode.NO_LORA_TENSORS,
            f"None of the {len(weights.tensors)} tensors is a lora_A or lora_B: this is not a LoRA adapter.",
        )
    pairs = []
    for path, sides in (*halves.items(), *elsewhere.items()):
        if len(sides) == 1:
            module = where[path][0] if path in where else None
            _check_half(path, module, sides, problems)
        elif path in where:
            pairs.append(Pair(path, *where[path], sides["A"], sides["B"]))
    _check_effect(pairs, weights, problems)
    if config is not None:
        for path in (*halves, *islice(elsewhere, _MAX_UNKNOWN_PATHS)):
            config.check_patterns_of(path, problems)
        _check_unread_patterns(pairs, config, profile, problems)
    return tuple(pairs)


def _check_values(tensor: Tensor, weights: Weights, problems: Problems) -> None:
    if tensor.name in weights.not_finite:
        problems.add_grouped(
            ProblemCode.NOT_FINITE,
            f"{shown(tensor.name)} holds NaN or infinity: the training diverged.",
            place=tensor.name,
        )
    if tensor.name in weights.absurd:
        problems.add_grouped(
            ProblemCode.NOT_FINITE,
            f"{shown(tensor.name)} holds numbers above 1e19: what is computed with them is not finite.",
            place=tensor.name,
        )
    if tensor.name in weights.huge:
        problems.add_grouped(
            ProblemCode.MAGNITUDE_UNUSUAL,
            f"{shown(tensor.name)} holds numbers above 512; trained LoRA weights are far below 1 as a rule.",
            place=tensor.name,
        )
    _check_dtype(tensor, problems)


def _check_half(path: str, module: str | None, sides: Mapping[str, Tensor], problems: Problems) -> None:
    """Of a module that has one half alone; `module` is None where the base has none of that name."""
    ((side, tensor),) = sides.items()
    other = "B" if side == "A" else "A"
    # The engine scales every lora_B and pins every matrix in the host's memory, and fails where one is missing; but it leaves out
    # a missing part of what it packs into one.
    is_silent = other == "A" and module in _PACKED_PROJECTIONS
    problems.add_grouped(
        ProblemCode.LORA_PAIR_INCOMPLETE,
        f"{shown(path)} has lora_{side} and no lora_{other}.",
        place=tensor.name,
        consequence=Consequence.SILENT if is_silent else Consequence.FAIL,
    )


def _split(name: str) -> tuple[str | None, str]:
    """Which half a tensor is, and of which module."""
    path = _module_path(name)
    for suffix, side in _SUFFIXES:
        if path.endswith(suffix):
            return side, path.removesuffix(suffix)
    return None, name


def _module_path(name: str) -> str:
    # As the engine has it: where the prefix stands at the beginning, each occurrence of it goes.
    return name.replace(PEFT_PREFIX, "") if name.startswith(PEFT_PREFIX) else name


@dataclass(frozen=True, slots=True)
class MendedName:
    """The name by which the engine finds a tensor, and the adapter's name that stood in the old one."""

    name: str
    adapter: str | None


def mended_name(name: str, profile: BaseProfile) -> MendedName | None:
    """Without wrappers, prefixes and an adapter's name; None where no module of this base is meant, whatever stands before it."""
    side, path = _split(name)
    if side is not None and _is_in_base(path, profile):
        return MendedName(name, None)
    parts = [part for part in name[: _MAX_NAME_CHARACTERS + 1].split(".") if part not in _WRAPPERS]
    has_weight = parts[-1] == "weight"
    parts = parts[:-1] if has_weight else parts
    end = next((end for end in (len(parts) - 1, len(parts) - 2) if end > 0 and parts[end] in _HALVES), 0)
    if end == 0 or len(name) > _MAX_NAME_CHARACTERS:
        return None
    half, adapter, parts = parts[end], ".".join(parts[end + 1 :]) or None, parts[:end]
    is_embedding = half.startswith("lora_embedding")
    if not is_embedding and not has_weight:
        return None
    while len(parts) > 1 and parts[0] in _OUTER_PARTS:
        del parts[0]
    path = ".".join(parts)
    found = next((full for full in (path, f"model.{path}") if _is_in_base(full, profile)), None)
    return (
        None
        if found is None
        else MendedName(f"{PEFT_PREFIX}{found}.{half}{'' if is_embedding else '.weight'}", adapter)
    )


def peft_path(name: str) -> str:
    """The path of a tensor's module as PEFT had it in training, and matched patterns against: before any wrapper came."""
    path = _module_path(".".join(part for part in name.split(".") if part not in _WRAPPERS))
    return path.partition(".lora_")[0]


def is_base_layer(name: str) -> bool:
    """Whether it is a weight of the base itself, which PEFT keeps under that name beside a LoRA of it, and never trains."""
    return ".".join(name.split(".")[-2:]) in (f"{_BASE_LAYER_PART}.weight", f"{_BASE_LAYER_PART}.bias")


def _is_in_base(path: str, profile: BaseProfile) -> bool:
    module, layer = path.rpartition(".")[2], _LAYER.match(path)
    return module in profile.lora_modules and path == profile.module_path(module, int(layer[1]) if layer else 0)


def _fix_of_name(name: str, profile: BaseProfile) -> Fix | None:
    mended = mended_name(name, profile)
    return _MEND if is_base_layer(name) or (mended is not None and mended.name != name) else None


def _check_base_layer(tensor: Tensor, profile: BaseProfile, problems: Problems) -> None:
    """Of the base's own embeddings, in their shape. Anything else is ballast that fills the host's memory."""
    path = _module_path(tensor.name).removesuffix(_BASE_LAYER)
    embeddings = {profile.module_path(module, 0) for module in (EMBEDDING_MODULE, HEAD_MODULE)}
    expected = (profile.vocab_size, profile.hidden_size)
    if path in embeddings and tensor.shape == expected:
        return
    problems.add_grouped(
        ProblemCode.BASE_LAYER_UNEXPECTED,
        f"{shown(tensor.name)} is {shown(tensor.shape)}; of the base's own weights only those of "
        f"{' and '.join(sorted(embeddings))} may be there, as {shown(expected)}.",
        place=tensor.name,
        fix=_MEND,
    )


def _why_unexpected(name: str) -> str:
    return next((f": {why}" for mark, why in _TELLING_MARKS if mark in name), "")


def _locate(path: str, name: str, profile: BaseProfile, problems: Problems) -> tuple[str, int | None] | None:
    """(module, layer) of a path in the base."""
    module = path.rpartition(".")[2]
    match = _LAYER.match(path)
    layer = int(match[1]) if match else None
    if _MIXTURE.search(path):
        code = ProblemCode.MOE_UNSUPPORTED
        message = f"belongs to a mixture of experts; the base {profile.name} is dense."
    elif module not in profile.lora_modules:
        code = ProblemCode.MODULE_UNSUPPORTED
        message = f"takes no LoRA on {profile.name}. These do: {', '.join(profile.lora_modules)}."
    elif path != (expected := profile.module_path(module, layer or 0)):
        code = ProblemCode.MODULE_PATH_UNKNOWN
        message = f"does not exist in {profile.name}, where it would be {expected}: nothing would be applied."
    elif layer is not None and layer >= profile.num_hidden_layers:
        code = ProblemCode.LAYER_OUT_OF_RANGE
        message = f"is in layer {layer}; {profile.name} has {profile.num_hidden_layers} layers, counted from 0."
    else:
        return module, layer
    # The engine does not look at the module's name then, and finds none of it in the base.
    consequence = Consequence.SILENT if _BASE_LAYER_PART in name else None
    if (why := next((why for mark, why in _FOREIGN_MARKS if mark in name), None)) is not None:
        message = f"{message.removesuffix('.')} ({why})."
    fix = _fix_of_name(name, profile)
    problems.add_grouped(code, f"{shown(path)} {message}", place=name, consequence=consequence, fix=fix)
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
    largest = (profile.max_lora_rank, in_features) if side == "A" else (out_features, profile.max_lora_rank)
    is_larger = not is_two or any(have > most for most, have in zip(largest, tensor.shape, strict=True))
    if module == EMBEDDING_MODULE and side == "A" and len(tensor.shape) > 1 and tensor.shape[1] != in_features:
        is_larger = True  # checked by the engine
    problems.add_grouped(
        ProblemCode.SHAPE_MISMATCH,
        f"{shown(tensor.name)} is {shown(tensor.shape)}; {profile.name} at this rank needs {wanted}.",
        place=tensor.name,
        consequence=Consequence.FAIL if is_larger else Consequence.SILENT,
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
    for pair in pairs:
        zeros = weights.zero_run_bytes.get(pair.b.name, 0)
        size = pair.b.end - pair.b.begin
        if pair.module in _WHOLE_PROJECTIONS and zeros >= size * _MIN_LOST_PART:
            problems.add_grouped(
                ProblemCode.PARTLY_UNTRAINED,
                f"{shown(pair.b.name)} has {zeros} of its {size} bytes in runs of zeros: a part of it was not saved.",
                place=pair.b.name,
            )
    for pair in dead:
        side, tensor = ("B", pair.b) if pair.b.name in weights.zero else ("A", pair.a)
        problems.add_grouped(
            ProblemCode.DEAD_MODULES, f"{pair.path} has only zeros in lora_{side}: no effect.", place=tensor.name
        )


def _check_unread_patterns(pairs: list[Pair], config: AdapterConfig, profile: BaseProfile, problems: Problems) -> None:
    for pair in pairs:
        if (key := config.unread_pattern_of(pair.path)) is not None:
            problems.add_grouped(
                ProblemCode.PATTERN_UNSUPPORTED,
                f"{key} changes {pair.path}; the engine (vLLM {profile.engine_version}) ignores patterns, and would apply "
                "a wrong scale. They are honoured from 0.32 on.",
                place=pair.path,
                consequence=Consequence.SILENT,
            )


def scalings(pairs: tuple[Pair, ...], config: AdapterConfig) -> Mapping[float, int]:
    """Each effective scaling, and how many modules have it."""
    counts: dict[float, int] = {}
    for pair in pairs:
        scaling = config.scaling_of(pair.path)
        if scaling is not None:
            counts[scaling] = counts.get(scaling, 0) + 1
    return counts
