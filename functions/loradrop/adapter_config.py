"""adapter_config.json: which of its settings the engine honours, ignores, or breaks on."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from loradrop.policy import Policy
from loradrop.problems import Consequence, Fix, FixKind, ProblemCode, Problems, shown, shown_name
from loradrop.profile import MODULE_PATH_PARTS, BaseProfile
from loradrop.stream import GIT_LFS_POINTER, what_is_it
from loradrop.strict_json import JsonError, parse_object

CONFIG_FILE = "adapter_config.json"
REQUIRED_KEYS = ("r", "lora_alpha", "target_modules")
# Initialisations that take the adapter's start out of the base's own weights.
_ALTERING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")
# Those that take it out of random numbers or of the data; vLLM knows these, and "lora_ga", which alters the base too.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
# vLLM refuses from this version what older ones leave unread, and so serve wrongly: initialisations that it does not know,
# and the features below.
_REFUSES_FEATURES = (0, 32)
_REFUSES_NEGATIVE_RANKS = (0, 31)
# Features of PEFT that the engine does not have; a true value switches them on.
_REFUSED_FEATURES = ("alora_invocation_tokens", "layer_replication", "use_qalora", "use_bdlora")
# And those that no version of the engine has a name for. The first three are activated LoRA as it was before PEFT had it.
_UNREAD_FEATURES = (
    "invocation_string",
    "alora_invocation_string",
    "use_alora",
    "trainable_token_indices",
    "target_parameters",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# With a value these say how the training began or ran, and nothing about what was saved.
_HARMLESS = frozenset(
    {
        *("use_rslora", "use_dora", "megatron_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("runtime_config", "peft_config", "quantization_config"),
    }
)
# A regular expression of a stranger may run for ever: only plain names are taken, of parts that a base has, so that it
# makes no difference whether the dot between them is escaped or stands for any character.
_PART = rf"(?:[0-9]+|{'|'.join(MODULE_PATH_PARTS)})"
_PLAIN_PATTERN = re.compile(rf"\^?{_PART}(?:\\?\.{_PART})*")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of the configuration has a meaning to the engine. None: absent or wrong, and reported."""

    r: int | None = None
    lora_alpha: float | None = None
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    # Of an engine that does not read them, and so of plain names alone.
    unread_ranks: Mapping[str, object] = field(default_factory=dict)
    unread_alphas: Mapping[str, object] = field(default_factory=dict)
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

    def unread_pattern_of(self, module_path: str) -> str | None:
        """The pattern that would change this module, if the engine read it."""
        if self.r is not None and _by_pattern(self.unread_ranks, module_path, self.r) != self.r:
            return "rank_pattern"
        if self.lora_alpha is not None:
            alpha = _by_pattern(self.unread_alphas, module_path, self.lora_alpha)
            return "alpha_pattern" if alpha != self.lora_alpha else None
        return None


Value = TypeVar("Value")


def _by_pattern(pattern: Mapping[str, Value], module_path: str, default: Value) -> Value:
    """PEFT's rule for plain names: the first entry that is the path, or its end after a dot."""
    if not pattern:
        return default
    parts = module_path.split(".")
    ends = {".".join(parts[start:]) for start in range(len(parts))} | {f"^{module_path}"}
    return next((value for key, value in pattern.items() if key.replace("\\", "") in ends), default)


def base_model_in(data: bytes, policy: Policy) -> str | None:
    """The base that a configuration names; None where it names none, or cannot be read."""
    try:
        entries = parse_object(data, max_depth=policy.max_json_depth, constants=True, duplicates=[])
    except JsonError:
        return None
    base_model = entries.get("base_model_name_or_path")
    return base_model if isinstance(base_model, str) else None


def read_config(data: bytes, profile: BaseProfile, policy: Policy, problems: Problems) -> AdapterConfig | None:
    """The configuration, and every problem in it; None where it cannot be read at all."""
    duplicates: list[str] = []
    try:
        entries = parse_object(data, max_depth=policy.max_json_depth, constants=True, duplicates=duplicates)
    except JsonError as error:
        found = what_is_it(data)
        is_other = found is not None and not data.startswith(b"{")
        problems.add(
            ProblemCode.CONFIG_NOT_JSON,
            f"{CONFIG_FILE} is {found}." if is_other else f"{CONFIG_FILE} cannot be read: {error}.",
            place=CONFIG_FILE,
            fix=Fix(FixKind.PULL_LFS) if data.startswith(GIT_LFS_POINTER) else None,
        )
        return None
    for key in duplicates:
        problems.add_grouped(
            ProblemCode.CONFIG_DUPLICATE_KEY,
            f"In {CONFIG_FILE} the key {shown(key)} occurs twice; keep the right one.",
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
    ranks = _pattern(entries, "rank_pattern", r, problems)
    alphas = _pattern(entries, "alpha_pattern", alpha, problems)
    is_read = profile.honours_patterns
    rank_pattern = {
        key: rank
        for key, value in (ranks if is_read else {}).items()
        if (rank := _rank(value, f"rank_pattern.{key}", profile, problems)) is not None
    }
    alpha_pattern = {
        key: pattern_alpha
        for key, value in (alphas if is_read else {}).items()
        if (pattern_alpha := _alpha(value, f"alpha_pattern.{key}", problems)) is not None
    }
    base_model = entries.get("base_model_name_or_path")
    if isinstance(base_model, str) and profile.base_model_names and not profile.is_named(base_model):
        problems.add(
            ProblemCode.BASE_MODEL_DIFFERS,
            f"The adapter names {shown(base_model)} as its base; the base here is {profile.base_model_names[0]}. "
            "That is fine if the one is a copy of the other.",
            place="base_model_name_or_path",
        )
    version = entries.get("peft_version")
    return AdapterConfig(
        r=r,
        lora_alpha=alpha,
        use_rslora=bool(entries.get("use_rslora")),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        unread_ranks={} if is_read else ranks,
        unread_alphas={} if is_read else alphas,
        base_model=shown_name(base_model) if isinstance(base_model, str) else None,
        peft_version=shown_name(version) if isinstance(version, str) else None,
    )


def _check_features(entries: Mapping[str, object], profile: BaseProfile, problems: Problems) -> None:
    """Settings that are refused when they are switched on, in the way in which Python and so the engine see it."""
    otherwise = Consequence.FAIL if profile.engine >= _REFUSES_FEATURES else Consequence.SILENT
    kind = entries.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        problems.add(
            ProblemCode.PEFT_TYPE_UNSUPPORTED, f"peft_type is {shown(kind)}; only LORA is served.", place="peft_type"
        )
    if entries.get("bias", "none") != "none":
        problems.add(
            ProblemCode.BIAS_UNSUPPORTED,
            f'bias is {shown(entries["bias"])}; only "none" can be served.',
            place="bias",
        )
    if entries.get("use_dora"):
        problems.add(
            ProblemCode.DORA_UNSUPPORTED, "use_dora is true; the engine does not implement DoRA.", place="use_dora"
        )
    if entries.get("lora_bias"):
        problems.add(
            ProblemCode.LORA_BIAS_UNSUPPORTED, "lora_bias is true; the engine cannot add biases.", place="lora_bias"
        )
    if entries.get("modules_to_save"):
        problems.add(
            ProblemCode.MODULES_TO_SAVE_UNSUPPORTED,
            f"modules_to_save is {shown(entries['modules_to_save'])}; whole modules cannot be served, only LoRA.",
            place="modules_to_save",
        )
    _check_init(entries.get("init_lora_weights"), profile, problems)
    for key, value in entries.items():
        if not value or key in _HARMLESS:
            continue
        if key in _REFUSED_FEATURES or key in _UNREAD_FEATURES or key.startswith("vllm_"):
            problems.add(
                ProblemCode.FEATURE_UNSUPPORTED,
                f"{shown(key)} is {shown(value)}; the engine does not implement that feature.",
                place=key,
                consequence=otherwise if key in _REFUSED_FEATURES else Consequence.SILENT,
            )
        elif (key.startswith("use_") and value is True) or (key.endswith("_config") and isinstance(value, dict)):
            problems.add(
                ProblemCode.UNKNOWN_FLAG,
                f"{shown(key)} is {shown(value)}; this validator does not know that setting, and the engine ignores it.",
                place=key,
            )


def _check_init(init: object, profile: BaseProfile, problems: Problems) -> None:
    if not isinstance(init, str) or init.lower() in _PLAIN_INITS:
        return
    is_refusing = profile.engine >= _REFUSES_FEATURES
    if init.lower().startswith(_ALTERING_INITS):
        # The engine loads lora_ga, although its start came out of the base's weights too.
        is_loaded = not is_refusing or init.lower() == "lora_ga"
        problems.add(
            ProblemCode.INIT_ALTERS_BASE,
            f"init_lora_weights is {shown(init)}, which alters the base's weights: on the served base the adapter is "
            "wrong.",
            place="init_lora_weights",
            consequence=Consequence.SILENT if is_loaded else Consequence.FAIL,
        )
    elif is_refusing:
        problems.add(
            ProblemCode.INIT_ALTERS_BASE,
            f"init_lora_weights is {shown(init)}, which the engine (vLLM {profile.engine_version}) does not know and "
            f"refuses. It takes {', '.join(_PLAIN_INITS)}, true and false.",
            place="init_lora_weights",
            consequence=Consequence.FAIL,
        )
    else:
        problems.add(
            ProblemCode.UNKNOWN_FLAG,
            f"init_lora_weights is {shown(init)}; this validator does not know whether that alters the base's weights, "
            "and the engine ignores it.",
            place="init_lora_weights",
        )


def _rank(value: object, place: str, profile: BaseProfile, problems: Problems) -> int | None:
    rank = int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
    is_pattern = place != "r"  # where 8.0 is refused
    if isinstance(value, bool) or rank < 1 or rank != value or (is_pattern and not isinstance(value, int)):
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
            "(max_lora_rank).",
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


def _pattern(
    entries: Mapping[str, object], key: str, default: float | None, problems: Problems
) -> Mapping[str, object]:
    """The entries of rank_pattern or alpha_pattern that say something else than r or lora_alpha, all of plain names."""
    pattern = entries.get(key)
    if not pattern:
        return {}
    if not isinstance(pattern, dict):
        reason = f"{key} is {shown(pattern)}; it must be an object of module names."
    elif all(_is_same(value, default) for value in pattern.values()):
        # Whatever its names match. The engine that reads ranks refuses 8.0, also where r is 8.
        return {} if key == "alpha_pattern" or all(isinstance(value, int) for value in pattern.values()) else pattern
    elif odd := [name for name in pattern if not _PLAIN_PATTERN.fullmatch(name) and not _is_plain_text(name)]:
        reason = f"{key} has {shown(odd[0])}; only plain module names such as q_proj are accepted here."
    else:
        return pattern
    problems.add(ProblemCode.PATTERN_UNSUPPORTED, reason, place=key, consequence=Consequence.POLICY)
    return {}


def _is_same(value: object, default: float | None) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == default


def _is_plain_text(name: str) -> bool:
    """Letters, digits, _ and - alone match nothing but themselves; what no module is called matches nothing."""
    return bool(re.fullmatch(r"[A-Za-z0-9_-]+", name))
