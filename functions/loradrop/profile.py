"""What a base accepts: the model's dimensions, the modules that take LoRA, the rank limit, the engine's version."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# The only ranks that vLLM's kernels are built for.
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_ENGINE_VERSION = "0.26.0"  # of the default container, LMI 28

EMBEDDING_MODULE = "embed_tokens"
HEAD_MODULE = "lm_head"

_SEPARATE_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FUSED_PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
_WITH_EMBEDDINGS = (EMBEDDING_MODULE, HEAD_MODULE)

# Dense decoders whose modules lie at model.layers.N.{self_attn,mlp}.*, and what takes LoRA in vLLM's implementation.
LORA_MODULES_BY_ARCHITECTURE: Mapping[str, tuple[str, ...]] = {
    "LlamaForCausalLM": _SEPARATE_PROJECTIONS + _WITH_EMBEDDINGS,
    "Qwen3ForCausalLM": _SEPARATE_PROJECTIONS + _WITH_EMBEDDINGS,
    "Phi3ForCausalLM": _FUSED_PROJECTIONS + _WITH_EMBEDDINGS,
    "MistralForCausalLM": _SEPARATE_PROJECTIONS,
    "Qwen2ForCausalLM": _SEPARATE_PROJECTIONS,
    "Gemma2ForCausalLM": _SEPARATE_PROJECTIONS,
    "Gemma3ForCausalLM": _SEPARATE_PROJECTIONS,
}

_BLOCK_OF_MODULE: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "down_proj"), "mlp"),
}
# What the path of a module that takes LoRA can be made of, beside layer numbers.
MODULE_PATH_PARTS = ("model", "layers", "self_attn", "mlp", *_BLOCK_OF_MODULE, *_WITH_EMBEDDINGS)
_MIXTURE_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
# What the model's class in transformers assumes where a config.json leaves it out. The other classes divide the hidden
# size by the heads; and have a number of key-value heads of their own, so that it has to be there.
_DEFAULT_HEAD_DIMS: Mapping[str, int] = {"Gemma2ForCausalLM": 256, "Gemma3ForCausalLM": 256, "Qwen3ForCausalLM": 128}
_KEY_VALUE_HEADS_AS_HEADS = ("LlamaForCausalLM", "Phi3ForCausalLM")
_PROFILES = Path(__file__).parent / "profiles"
# The hub's cache keeps a model as models--ORG--NAME/snapshots/REVISION.
_CACHED = re.compile(r"models--[^/\\]*--([^/\\]+)[/\\]snapshots[/\\][^/\\]+")
# What the copies of a model have after its name: of other bits, by the methods and in the words of the hub.
_COPY_SUFFIXES = re.compile(
    r"(-unsloth)?(-bnb)?-(4bit|8bit|nf4|int4|int8)|-awq(-int4)?|-gptq(-int[48])?|-fp8(-dynamic)?|-(bf16|fp16)"
    r"|-quantized\.w\d+a\d+|-hf"
)


class ProfileError(ValueError):
    """A profile, or the config.json that one is made from, that cannot be used. The message is a full sentence."""


@dataclass(frozen=True, slots=True)
class BaseProfile:
    name: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    lora_modules: tuple[str, ...]
    max_lora_rank: int
    engine_version: str = DEFAULT_ENGINE_VERSION
    base_model_names: tuple[str, ...] = ()  # what adapters for this base carry as base_model_name_or_path

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise ProfileError(f"{field.name} is {value!r}; it must be a whole number of at least 1.")
            if field.type is str and not isinstance(value, str):
                raise ProfileError(f"{field.name} is {value!r}; it must be a string.")
            if field.type == tuple[str, ...] and not (
                isinstance(value, tuple) and all(isinstance(item, str) for item in value)
            ):
                raise ProfileError(f"{field.name} is {value!r}; it must be a list of strings.")
        if self.max_lora_rank not in MAX_LORA_RANKS:
            raise ProfileError(
                f"max_lora_rank is {self.max_lora_rank}; the engine knows only {', '.join(map(str, MAX_LORA_RANKS))}."
            )
        unknown = set(self.lora_modules) - set(_BLOCK_OF_MODULE) - set(_WITH_EMBEDDINGS)
        if unknown or not self.lora_modules:
            raise ProfileError(f"lora_modules has unknown modules: {', '.join(sorted(unknown)) or 'it is empty'}.")
        _ = self.engine  # refuses a version that is none

    @property
    def engine(self) -> tuple[int, ...]:
        """The engine's version, to compare: (0, 26, 0)."""
        try:
            return tuple(int(part) for part in self.engine_version.split("."))
        except ValueError:
            raise ProfileError(f"engine_version is {self.engine_version!r}; it must be like 0.26.0.") from None

    @property
    def honours_patterns(self) -> bool:
        """Whether rank_pattern and alpha_pattern mean anything to the engine."""
        return self.engine >= (0, 32)

    def is_named(self, base_model: str) -> bool:
        """Whether an adapter that names this as its base was trained on it: by its name, a path to it, or a known copy.

        Copies have the model's name under another owner, and may say how they are quantised: unsloth's, for example.
        """
        return _model_name(base_model) in {_model_name(name) for name in self.base_model_names}

    def dimensions(self, module: str) -> tuple[int, int]:
        """(in_features, out_features) of a module that takes LoRA; of embed_tokens (vocab_size, hidden_size)."""
        attention = self.num_attention_heads * self.head_dim  # not hidden_size: Qwen3-0.6B has 2048 against 1024
        key_value = self.num_key_value_heads * self.head_dim
        hidden, inner, vocabulary = self.hidden_size, self.intermediate_size, self.vocab_size
        return {
            "q_proj": (hidden, attention),
            "k_proj": (hidden, key_value),
            "v_proj": (hidden, key_value),
            "qkv_proj": (hidden, attention + 2 * key_value),
            "o_proj": (attention, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "gate_up_proj": (hidden, 2 * inner),
            "down_proj": (inner, hidden),
            HEAD_MODULE: (hidden, vocabulary),
            EMBEDDING_MODULE: (vocabulary, hidden),
        }[module]

    def module_path(self, module: str, layer: int) -> str:
        """The full name in the base; `layer` means nothing for embed_tokens and lm_head."""
        if module == HEAD_MODULE:
            return HEAD_MODULE
        if module == EMBEDDING_MODULE:
            return f"model.{EMBEDDING_MODULE}"
        return f"model.layers.{layer}.{_BLOCK_OF_MODULE[module]}.{module}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def shipped_profiles() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _PROFILES.glob("*.json")))


def _model_name(base_model: str) -> str:
    """The name of a model without its owner or folder, quantisation and case."""
    path = base_model.rstrip("/\\")
    cached = _CACHED.search(path)
    name = cached[1] if cached else re.split(r"[/\\]", path)[-1]
    name = name.lower().removeprefix("meta-")
    while (end := next((m.start() for m in _COPY_SUFFIXES.finditer(name) if m.end() == len(name)), 0)) > 0:
        name = name[:end]
    return name


def profile_of(base_model: str | None) -> BaseProfile | None:
    """The shipped profile of the base that an adapter names; None where none is known."""
    if base_model is None:
        return None
    profiles = (load_profile(name) for name in shipped_profiles())
    return next((profile for profile in profiles if profile.is_named(base_model)), None)


def load_profile(name_or_path: str | Path) -> BaseProfile:
    """A shipped profile by its name, or one that `loradrop profile` wrote by its path."""
    if isinstance(name_or_path, str) and name_or_path in shipped_profiles():
        path = _PROFILES / f"{name_or_path}.json"
    else:
        path = Path(name_or_path)
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        known = ", ".join(shipped_profiles())
        raise ProfileError(
            f"There is no profile {str(name_or_path)!r}: shipped are {known}; and no such file can be read "
            f"({error.strerror})."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"The profile {path} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ProfileError(f"The profile {path} is not a JSON object.")
    for name in ("lora_modules", "base_model_names"):
        if isinstance(fields.get(name), list):
            fields[name] = tuple(fields[name])
    try:
        return BaseProfile(**fields)
    except TypeError as error:
        raise ProfileError(f"The profile {path} does not have the right fields: {error}.") from error


def profile_from_config(
    config: object, *, name: str, max_lora_rank: int, engine_version: str = DEFAULT_ENGINE_VERSION
) -> BaseProfile:
    """The profile of a base, from the content of its Hugging Face config.json."""
    if not isinstance(config, dict):
        raise ProfileError("The config.json is not a JSON object.")
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    mixture = [key for key in _MIXTURE_KEYS if isinstance(config.get(key), int) and config[key] > 1]
    if mixture or "Moe" in str(architecture) or "Mixtral" in str(architecture):
        raise ProfileError(
            f"{architecture} is a mixture of experts ({', '.join(mixture) or 'by its name'}): "
            "loradrop serves adapters of dense models only."
        )
    if not isinstance(architecture, str) or architecture not in LORA_MODULES_BY_ARCHITECTURE:
        reason = "it is multimodal; loradrop serves text models" if "text_config" in config else "it is not known here"
        raise ProfileError(
            f"The architecture {architecture!r} is not supported: {reason}. "
            f"Supported are {', '.join(sorted(LORA_MODULES_BY_ARCHITECTURE))}."
        )

    def dimension(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ProfileError(f"The config.json has {key} {value!r}; it must be a whole number of at least 1.")
        return value

    heads = dimension("num_attention_heads")
    default_head_dim = _DEFAULT_HEAD_DIMS.get(architecture, dimension("hidden_size") // heads)
    default_key_value_heads = heads if architecture in _KEY_VALUE_HEADS_AS_HEADS else None
    modules = LORA_MODULES_BY_ARCHITECTURE[architecture]
    if config.get("tie_word_embeddings"):
        # A tied head is the embedding itself: there is no module of its own to adapt.
        modules = tuple(module for module in modules if module not in _WITH_EMBEDDINGS)
    path = config.get("_name_or_path")
    return BaseProfile(
        name=name,
        architecture=architecture,
        hidden_size=dimension("hidden_size"),
        intermediate_size=dimension("intermediate_size"),
        num_hidden_layers=dimension("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=dimension("num_key_value_heads", default_key_value_heads),
        head_dim=dimension("head_dim", default_head_dim),
        vocab_size=dimension("vocab_size"),
        lora_modules=modules,
        max_lora_rank=max_lora_rank,
        engine_version=engine_version,
        base_model_names=(path,) if isinstance(path, str) and path else (),
    )
