"""adapter_config.json: which of its settings the engine honours, ignores, or breaks on."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

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
_REFUSES_NEGATIVE_RANKS = (0, 26)
# From this version on the heads of classifiers may be among modules_to_save, on any base.
_TAKES_HEADS = (0, 31)
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
# Looked at by rules of their own.
_JUDGED = frozenset(
    {
        *(
            *REQUIRED_KEYS,
            "peft_type",
            "bias",
            "use_dora",
            "use_rslora",
            "lora_bias",
            "modules_to_save",
            "init_lora_weights",
        ),
        *("rank_pattern", "alpha_pattern", "base_model_name_or_path"),
    }
)
# With a value these say how the training began or ran, or what wrote the file, and nothing about what was saved: of PEFT 0.3 to 0.21,
# and of ms-swift.
_HARMLESS = frozenset(
    {
        *(
            "megatron_config",
            "megatron_core",
            "loftq_config",
            "eva_config",
            "corda_config",
            "lora_ga_config",
            "velora_config",
        ),
        *(
            "runtime_config",
            "peft_config",
            "quantization_config",
            "auto_mapping",
            "task_type",
            "inference_mode",
            "revision",
        ),
        *(
            "fan_in_fan_out",
            "lora_dropout",
            "layers_to_transform",
            "layers_pattern",
            "exclude_modules",
            "qalora_group_size",
        ),
        *("ensure_weight_tying", "peft_version", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr", "merge_weights"),
    }
)
# A regular expression of a stranger may run for ever. Taken are plain names, of parts that a base has, so that it makes no
# difference whether the dot between them is escaped or stands for any character;
_PART = rf"(?:[0-9]+|{'|'.join(MODULE_PATH_PARTS)})"
_PLAIN_PATTERN = re.compile(rf"\^?{_PART}(?:\\?\.{_PART})*|[A-Za-z0-9_-]+")
# and expressions that are matched in a time that grows no faster than the cube of a name's length: with two repetitions of one
# character, and one group of plain alternatives.
_LITERAL = r"(?:[^\\.^$*+?{}\[\]()|]|\\[^A-Za-z0-9])"
_SINGLE = rf"(?:{_LITERAL}|\.|\\d|\[[A-Za-z0-9_-]++\])"
_SIMPLE_PATTERN = re.compile(rf"\^?(?:{_SINGLE}[*+]?|\((?:{_LITERAL}*+\|)*+{_LITERAL}*+\)|\|)*+\$?")
_MAX_EXPRESSIONS = 8
_MAX_MATCHED_CHARACTERS = 128
_MAX_EXPRESSION_CHARACTERS = 256
# Of what is only compiled, to see whether the engine can.
_MAX_COMPILED_CHARACTERS = 64
# Above it an integer is no float any more.
_LARGEST = 1.7e308
_HEADS = ("classifier", "score")


# What Python's re refuses, and the engine's regex understands in its own way.
_TAKEN_ESCAPES = frozenset(f"bad escape \\{letter}" for letter in "ghmpzGKMNPRX")


class _InvalidPatternError(ValueError):
    """A key that is no regular expression: the engine raises as it comes to it.

    `is_taken`: the engine's own library takes it, unlike PEFT's.
    """

    def __init__(self, message: str, *, is_taken: bool) -> None:
        super().__init__(message)
        self.is_taken = is_taken


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of rank_pattern or alpha_pattern. The one that is a path, or its end after a dot, applies."""

    key: str
    value: object
    expression: re.Pattern[str] | None  # None: a plain name

    def matches(self, module_path: str, ends: frozenset[str]) -> bool:
        if self.expression is None:
            return self.key.replace("\\", "") in ends
        return len(module_path) <= _MAX_MATCHED_CHARACTERS and self.expression.match(module_path) is not None


Entries = tuple[_Entry, ...]


def _entry(key: str, value: object) -> _Entry | None:
    """None where matching it might take long. Raises re.error."""
    if _PLAIN_PATTERN.fullmatch(key):
        return _Entry(key, value, None)
    is_simple = (
        len(key) <= _MAX_EXPRESSION_CHARACTERS
        and sum(map(key.count, "*+")) <= 2
        and key.count("(") <= 1
        and _SIMPLE_PATTERN.fullmatch(key) is not None
    )
    if not is_simple and (len(key) > _MAX_COMPILED_CHARACTERS or "{" in key):
        return None
    expression = re.compile(rf"(.*\.)?({key})$")  # as PEFT has it, and the engine
    return _Entry(key, value, expression) if is_simple else None


def _first(entries: Entries, module_path: str) -> _Entry | None:
    """The first entry that applies: PEFT's rule."""
    if not entries:
        return None
    parts = module_path.split(".")
    ends = frozenset({".".join(parts[start:]) for start in range(len(parts))} | {f"^{module_path}"})
    return next((entry for entry in entries if entry.matches(module_path, ends)), None)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of the configuration has a meaning to the engine. None: absent or wrong, and reported."""

    r: int | None = None
    lora_alpha: float | None = None
    use_rslora: bool = False
    rank_pattern: Entries = ()
    alpha_pattern: Entries = ()  # of any values: the engine looks at one only where it applies
    is_pattern_read: bool = True
    base_model: str | None = None
    peft_version: str | None = None

    def rank_of(self, module_path: str) -> int | None:
        entry = _first(self.rank_pattern, module_path) if self.is_pattern_read else None
        return entry.value if entry is not None and isinstance(entry.value, int) else self.r

    def alpha_of(self, module_path: str) -> float | None:
        if not self.is_pattern_read or (entry := _first(self.alpha_pattern, module_path)) is None:
            return self.lora_alpha
        return _number_above_zero(entry.value)

    def scaling_of(self, module_path: str) -> float | None:
        r, alpha = self.rank_of(module_path), self.alpha_of(module_path)
        if r is None or r < 1 or alpha is None:
            return None
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    def check_patterns_of(self, module_path: str, problems: Problems) -> None:
        """Adds what is wrong with the entries that apply to this module. Where none applies, the engine looks at no value."""
        if not self.is_pattern_read:
            return
        rank, alpha = _first(self.rank_pattern, module_path), _first(self.alpha_pattern, module_path)
        if rank is not None and isinstance(rank.value, bool):
            problems.add(
                ProblemCode.RANK_INVALID,
                f"rank_pattern.{shown_name(rank.key)} is true, which the engine reads as 1.",
                place=f"rank_pattern.{rank.key}",
                consequence=Consequence.SILENT,
            )
        if alpha is not None and alpha.value is None:
            problems.add(
                ProblemCode.LORA_ALPHA_INVALID,
                f"alpha_pattern.{shown_name(alpha.key)} is null, which the engine reads as lora_alpha.",
                place=f"alpha_pattern.{alpha.key}",
                consequence=Consequence.SILENT,
            )
        elif alpha is not None:
            _alpha(alpha.value, f"alpha_pattern.{alpha.key}", problems)

    def unread_pattern_of(self, module_path: str) -> str | None:
        """The pattern that would change this module, if the engine read it."""
        if self.is_pattern_read:
            return None
        for name, entries, default in (
            ("rank_pattern", self.rank_pattern, self.r),
            ("alpha_pattern", self.alpha_pattern, self.lora_alpha),
        ):
            entry = _first(entries, module_path)
            if entry is not None and default is not None and not _is_same(entry.value, default):
                return name
        return None


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
            consequence=Consequence.POLICY if error.is_policy else None,
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
    uses_rslora = bool(entries.get("use_rslora"))
    r = _rank(entries["r"], "r", profile, problems, uses_rslora=uses_rslora) if "r" in entries else None
    alpha = _alpha(entries["lora_alpha"], "lora_alpha", problems) if "lora_alpha" in entries else None
    is_read = profile.honours_patterns
    ranks = _pattern(entries, "rank_pattern", r, profile, problems)
    alphas = _pattern(entries, "alpha_pattern", alpha, profile, problems)
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
        r=r if ranks is not None else None,
        lora_alpha=alpha if alphas is not None else None,
        use_rslora=uses_rslora,
        rank_pattern=ranks or (),
        alpha_pattern=alphas or (),
        is_pattern_read=is_read,
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
            ProblemCode.LORA_BIAS_UNSUPPORTED,
            "lora_bias is true; the engine cannot add biases.",
            place="lora_bias",
            consequence=otherwise,
        )
    if entries.get("modules_to_save"):
        problems.add(
            ProblemCode.MODULES_TO_SAVE_UNSUPPORTED,
            f"modules_to_save is {shown(entries['modules_to_save'])}; whole modules cannot be served, only LoRA.",
            place="modules_to_save",
            consequence=_consequence_of_modules_to_save(entries["modules_to_save"], profile),
        )
    _check_init(entries.get("init_lora_weights"), profile, problems)
    for key, value in entries.items():
        if not value or key in _JUDGED or key in _HARMLESS:
            continue
        if key in _REFUSED_FEATURES or key in _UNREAD_FEATURES:
            problems.add(
                ProblemCode.FEATURE_UNSUPPORTED,
                f"{shown(key)} is {shown(value)}; the engine does not implement that feature.",
                place=key,
                consequence=otherwise if key in _REFUSED_FEATURES else Consequence.SILENT,
            )
        elif not _is_detail(key, value):
            problems.add(
                ProblemCode.UNKNOWN_FLAG,
                f"{shown(key)} is {shown(value)}; this validator does not know that setting, and the engine ignores it.",
                place=key,
            )


def _is_detail(key: str, value: object) -> bool:
    """Of an unknown setting: whether it switches nothing on. The next PEFT's numbers have defaults, and would be in every file."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number or key.startswith("_") or key.endswith("_version")


def _consequence_of_modules_to_save(value: object, profile: BaseProfile) -> Consequence:
    is_heads = (
        profile.engine >= _TAKES_HEADS and isinstance(value, list | dict) and all(item in _HEADS for item in value)
    )
    return Consequence.SILENT if is_heads else Consequence.FAIL


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


def _rank(
    value: object, place: str, profile: BaseProfile, problems: Problems, *, uses_rslora: bool = False
) -> int | None:
    rank = int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
    is_pattern = place != "r"  # where 8.0 is refused
    if isinstance(value, bool) or rank < 1 or rank != value or (is_pattern and not isinstance(value, int)):
        problems.add(
            ProblemCode.RANK_INVALID,
            f"{shown_name(place)} is {shown(value)}; it must be a whole number of at least 1.",
            place=place,
            consequence=_consequence_of_rank(value, profile, is_pattern=is_pattern, uses_rslora=uses_rslora),
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


def _consequence_of_rank(value: object, profile: BaseProfile, *, is_pattern: bool, uses_rslora: bool) -> Consequence:
    """Python compares true, fractions and NaN without a complaint, and so does the engine; of a negative number it takes no root."""
    if not isinstance(value, int | float) or (is_pattern and not isinstance(value, int)):
        return Consequence.FAIL
    if value < 0 and not uses_rslora and profile.engine < _REFUSES_NEGATIVE_RANKS:
        return Consequence.SILENT
    return Consequence.FAIL if value <= 0 or value > profile.max_lora_rank else Consequence.SILENT


def _alpha(value: object, place: str, problems: Problems) -> float | None:
    alpha = _number_above_zero(value)
    if alpha is None:
        problems.add(
            ProblemCode.LORA_ALPHA_INVALID,
            f"{shown_name(place)} is {shown(value)}; it must be a number above 0.",
            place=place,
            consequence=Consequence.SILENT if isinstance(value, int | float) else Consequence.FAIL,
        )
    return alpha


def _number_above_zero(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
        return None
    return float(value)


def _pattern(
    entries: Mapping[str, object], key: str, default: float | None, profile: BaseProfile, problems: Problems
) -> Entries | None:
    """The entries of rank_pattern or alpha_pattern that say something else than r or lora_alpha; None where they cannot be told."""
    pattern = entries.get(key)
    if not pattern:
        return ()
    is_read = profile.honours_patterns
    if not isinstance(pattern, dict):
        reason = f"{key} is {shown(pattern)}; it must be an object of module names."
        consequence = Consequence.FAIL if is_read else Consequence.POLICY
        problems.add(ProblemCode.PATTERN_UNSUPPORTED, reason, place=key, consequence=consequence)
        return None
    if key == "rank_pattern" and is_read:
        for name, value in pattern.items():
            if value is not True:
                _rank(value, f"{key}.{name}", profile, problems)
    try:
        read, refused = _read_entries(pattern, is_read=is_read)
    except _InvalidPatternError as error:
        reason = f"{key} has {error}."
        consequence = Consequence.SILENT if error.is_taken else Consequence.FAIL
        problems.add(ProblemCode.PATTERN_UNSUPPORTED, reason, place=key, consequence=consequence)
        return None
    if all(_is_same(value, default) for value in pattern.values()):
        return ()  # whatever its names match
    if refused is not None:
        reason = f"{key} has {shown(refused)}; only plain module names such as q_proj, and simple expressions, are accepted here."
        problems.add(ProblemCode.PATTERN_UNSUPPORTED, reason, place=key, consequence=Consequence.POLICY)
        return None
    return read


def _read_entries(pattern: Mapping[str, object], *, is_read: bool) -> tuple[Entries, str | None]:
    """The entries, and the first name that may take long to match. Raises _InvalidPatternError where the engine would look at it."""
    read, refused = [], None
    for name, value in pattern.items():
        try:
            entry = _entry(name, value)
        except re.error as error:
            if is_read:
                raise _InvalidPatternError(
                    f"{shown(name)}, which is no regular expression: {error}",
                    is_taken=error.msg in _TAKEN_ESCAPES,
                ) from error
            entry = None
        if entry is None:
            refused = refused or name
        else:
            read.append(entry)
    expressions = [entry.key for entry in read if entry.expression is not None]
    if len(expressions) > _MAX_EXPRESSIONS:
        refused = refused or expressions[0]
    return tuple(read), refused


def _is_same(value: object, default: float | None) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == default
