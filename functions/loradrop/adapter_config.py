"""adapter_config.json: which of its settings the engine honours, ignores, or breaks on."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from loradrop.policy import Policy
from loradrop.problems import Consequence, ProblemCode, Problems, shown, shown_name
from loradrop.profile import MODULE_PATH_PARTS, BaseProfile
from loradrop.strict_json import JsonError, parse_object

CONFIG_FILE = "adapter_config.json"
REQUIRED_KEYS = ("r", "lora_alpha", "target_modules")
# Initialisations that take the adapter's start out of the base's own weights.
_ALTERING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")
# vLLM refuses from this version what older ones leave unread, and so serve wrongly: the altering initialisations, and
# the features below.
_REFUSES_FEATURES = (0, 32)
_REFUSES_NEGATIVE_RANKS = (0, 31)
# Features of PEFT that the engine does not have; a true value switches them on.
_UNSUPPORTED_FEATURES = (
    "alora_invocation_tokens",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "trainable_token_indices",
    "target_parameters",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
_KNOWN_FLAGS = frozenset({"use_rslora", "use_dora", "use_qalora", "use_bdlora"})
# A regular expression of a stranger may run for ever: only plain names are taken, of parts that a base has, so that it
# makes no difference that the dot between them stands for any character.
_PART = rf"(?:[0-9]+|{'|'.join(MODULE_PATH_PARTS)})"
_PLAIN_PATTERN = re.compile(rf"\^?{_PART}(?:\.{_PART})*")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of the configuration has a meaning to the engine. None: absent or wrong, and reported."""

    r: int | None = None
    lora_alpha: float | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model: str | None = None
    peft_version: str | None = None

    def rank_of(self, module_path: str) -> int | None:
        return _by_pattern(self.rank_pattern, module_path, self.r)

    def scaling_of(self, module_path: str) -> float | None:
        r = self.rank_of(module_path)
        alpha = _by_pattern(self.alpha_pattern, module_path, self.lora_alpha)
        if r is None or alpha is None:
            return None
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r


Value = TypeVar("Value")


def _by_pattern(pattern: Mapping[str, Value], module_path: str, default: Value) -> Value:
    """PEFT's rule for plain names: the first entry that is the path, or its end after a dot."""
    if not pattern:
        return default
    parts = module_path.split(".")
    ends = {".".join(parts[start:]) for start in range(len(parts))} | {f"^{module_path}"}
    found = ends & pattern.keys()
    return pattern[next(key for key in pattern if key in found)] if found else default


def read_config(data: bytes, profile: BaseProfile, policy: Policy, problems: Problems) -> AdapterConfig | None:
    """The configuration, and every problem in it; None where it cannot be read at all."""
    duplicates: list[str] = []
    try:
        entries = parse_object(data, max_depth=policy.max_json_depth, constants=True, duplicates=duplicates)
    except JsonError as error:
        problems.add(ProblemCode.CONFIG_NOT_JSON, f"{CONFIG_FILE} cannot be read: {error}.", place=CONFIG_FILE)
        return None
    for key in duplicates:
        problems.add_grouped(
            ProblemCode.CONFIG_DUPLICATE_KEY,
            f"In {CONFIG_FILE} the key {shown(key)} stands twice; leave the right one.",
            place=key,
        )
    for key in REQUIRED_KEYS:
        if key not in entries:
            problems.add(
                ProblemCode.CONFIG_KEY_MISSING, f"{CONFIG_FILE} has no {key!r}, which the engine requires.", place=key
            )
    _check_features(entries, profile, problems)
    r = _rank(entries["r"], "r", profile, problems) if "r" in entries else None
    alpha = _alpha(entries["lora_alpha"], "lora_alpha", problems) if "lora_alpha" in entries else None
    rank_pattern = {
        key: rank
        for key, value in _pattern(entries, "rank_pattern", profile, problems).items()
        if (rank := _rank(value, f"rank_pattern.{key}", profile, problems)) is not None
    }
    alpha_pattern = {
        key: pattern_alpha
        for key, value in _pattern(entries, "alpha_pattern", profile, problems).items()
        if (pattern_alpha := _alpha(value, f"alpha_pattern.{key}", problems)) is not None
    }
    base_model = entries.get("base_model_name_or_path")
    if isinstance(base_model, str) and profile.base_model_names and base_model not in profile.base_model_names:
        problems.add(
            ProblemCode.BASE_MODEL_DIFFERS,
            f"The adapter says that its base is {shown(base_model)}; here it is {profile.base_model_names[0]}. "
            "Fine if that is a copy of it.",
            place="base_model_name_or_path",
        )
    version = entries.get("peft_version")
    return AdapterConfig(
        r=r,
        lora_alpha=alpha,
        use_rslora=bool(entries.get("use_rslora")),
        rank_pattern=rank_pattern if profile.honours_patterns else {},
        alpha_pattern=alpha_pattern if profile.honours_patterns else {},
        base_model=shown_name(base_model) if isinstance(base_model, str) else None,
        peft_version=shown_name(version) if isinstance(version, str) else None,
    )


def _check_features(entries: Mapping[str, object], profile: BaseProfile, problems: Problems) -> None:
    """Settings that are refused when they are switched on, in the way in which Python and so the engine see it."""
    otherwise = Consequence.FAIL if profile.engine >= _REFUSES_FEATURES else Consequence.SILENT
    kind = entries.get("peft_type", "LORA")
    if kind != "LORA":
        problems.add(
            ProblemCode.PEFT_TYPE_UNSUPPORTED, f"peft_type is {shown(kind)}; only LORA is served.", place="peft_type"
        )
    if entries.get("bias", "none") != "none":
        problems.add(
            ProblemCode.BIAS_UNSUPPORTED,
            f'bias is {shown(entries["bias"])}; only "none" is served: train without biases.',
            place="bias",
        )
    if entries.get("use_dora"):
        problems.add(ProblemCode.DORA_UNSUPPORTED, "use_dora is true; the engine does not know DoRA.", place="use_dora")
    if entries.get("lora_bias"):
        problems.add(
            ProblemCode.LORA_BIAS_UNSUPPORTED, "lora_bias is true; the engine cannot add it.", place="lora_bias"
        )
    if entries.get("modules_to_save"):
        problems.add(
            ProblemCode.MODULES_TO_SAVE_UNSUPPORTED,
            f"modules_to_save is {shown(entries['modules_to_save'])}; whole modules cannot be served, only LoRA.",
            place="modules_to_save",
        )
    init = entries.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_ALTERING_INITS):
        problems.add(
            ProblemCode.INIT_ALTERS_BASE,
            f"init_lora_weights is {shown(init)}, which alters the base's weights; on the served base the adapter is "
            "wrong. Convert it when saving, with path_initial_model_for_weight_conversion.",
            place="init_lora_weights",
            consequence=otherwise,
        )
    for key, value in entries.items():
        if (key in _UNSUPPORTED_FEATURES or key.startswith("vllm_")) and value:
            problems.add(
                ProblemCode.FEATURE_UNSUPPORTED,
                f"{shown(key)} is {shown(value)}; the engine has no such feature, or it is not an uploader's to set.",
                place=key,
                consequence=otherwise,
            )
        elif key.startswith("use_") and key not in _KNOWN_FLAGS and value is True:
            problems.add(
                ProblemCode.UNKNOWN_FLAG,
                f"{shown(key)} is true; this validator does not know what it means, and the engine ignores it.",
                place=key,
            )


def _rank(value: object, place: str, profile: BaseProfile, problems: Problems) -> int | None:
    rank = int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
    if isinstance(value, bool) or rank < 1 or rank != value:
        problems.add(
            ProblemCode.RANK_INVALID,
            f"{shown_name(place)} is {shown(value)}; it must be a whole number of at least 1.",
            place=place,
            consequence=Consequence.SILENT
            if rank < 0 and profile.engine < _REFUSES_NEGATIVE_RANKS
            else Consequence.FAIL,
        )
        return None
    if rank > profile.max_lora_rank:
        problems.add(
            ProblemCode.RANK_TOO_HIGH,
            f"{shown_name(place)} is {shown(rank)}; the base {profile.name} takes at most {profile.max_lora_rank} "
            "(LoRA rank is greater than max_lora_rank). Train with a lower rank, or raise the stack's MaxLoraRank.",
            place=place,
        )
    return rank


def _alpha(value: object, place: str, problems: Problems) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        problems.add(
            ProblemCode.LORA_ALPHA_INVALID,
            f"{shown_name(place)} is {shown(value)}; it must be a number above 0.",
            place=place,
            consequence=Consequence.SILENT if isinstance(value, int | float) else Consequence.FAIL,
        )
        return None
    return float(value)


def _pattern(entries: Mapping[str, object], key: str, profile: BaseProfile, problems: Problems) -> Mapping[str, object]:
    """The entries of rank_pattern or alpha_pattern, to be looked at whether or not the engine honours them."""
    pattern = entries.get(key)
    if not pattern:
        return {}
    if not isinstance(pattern, dict):
        reason = f"{key} is {shown(pattern)}; it must be an object of module names."
    elif not profile.honours_patterns:
        reason = (
            f"{key} has {len(pattern)} entries; the engine (vLLM {profile.engine_version}) ignores them and would "
            "apply a wrong scale. They are honoured from 0.32."
        )
    elif odd := [name for name in pattern if not _PLAIN_PATTERN.fullmatch(name)]:
        reason = f"{key} has {shown(odd[0])}; only plain module names such as q_proj are taken here."
    else:
        return pattern
    problems.add(
        ProblemCode.PATTERN_UNSUPPORTED,
        reason,
        place=key,
        consequence=Consequence.UNSAFE if profile.honours_patterns else Consequence.SILENT,
    )
    return pattern if isinstance(pattern, dict) else {}
