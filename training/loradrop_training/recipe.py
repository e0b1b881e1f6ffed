"""Recipes: one YAML file says what an adapter is made of, from which base and text, and how."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_RECIPE_BYTES = 1 << 20
FORMATS = ("auto", "chat", "conversations", "prompt_completion", "instruction", "labels", "columns")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class RecipeError(Exception):
    """A recipe that cannot be followed. The message holds a line for each problem: where, what was found, what is allowed."""


def key(
    about: str,
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    one_of: tuple[str, ...] = (),
) -> Any:
    """A recipe's key: what it is, for people; what is allowed, for the reader."""
    metadata = {"about": about, "low": low, "high": high, "one_of": one_of}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Base:
    model: str = key(
        "a model's id on the hub, a folder, `s3://bucket/prefix/`, or `tiny`: the project's own small Llama"
    )
    profile: str = key(
        "what the base on the endpoint accepts: a shipped profile's name, or a file that `loradrop profile` wrote"
    )
    name: str | None = key("`base_model_name_or_path` in the adapter; else the profile's first name for the base", None)
    revision: str | None = key("of the hub's repository: a commit, tag or branch", None)
    four_bit: bool = key("hold the base in 4 bits (NF4) while training; needs bitsandbytes and CUDA", False)


@dataclass(frozen=True, slots=True)
class Data:
    train: tuple[str, ...] = key(
        "files (JSON lines, JSON, CSV, TSV, Parquet), folders or `s3://` prefixes; one or a list; relative to the recipe",
        low=1,
    )
    format: str = key(
        "`chat` (OpenAI's messages), `conversations` (ShareGPT), `prompt_completion`, `instruction` (Alpaca), `labels` or "
        "`columns` (what `prompt` and `answer` name); `auto`: found out",
        "auto",
        one_of=FORMATS,
    )
    prompt: str | None = key("the user message; `{column}` is a column's text, `{{` a brace; not for chats", None)
    answer: str | None = key("the column that holds the answer; not for chats", None)
    held_out: tuple[str, ...] = key(
        "what is never trained on; without any, files of a folder that are named test or validation, else "
        "`held_out_share` of `train`",
        (),
    )
    split: str | None = key(
        "the column that says which split a row is of: `train` is trained on; `test`, `validation` and the like are held out",
        None,
    )
    held_out_share: float = key("share of `train` that is held out where nothing else is", 0.1, low=0.01, high=0.5)
    labels: tuple[str, ...] | None = key(
        "the answers there are, where the answer is a label; without it the answer is free text", None, low=2
    )
    system: str | None = key("the system message; in chats, for those that have none", None)
    chat: bool = key("write the prompt with the tokenizer's chat template; false: as it stands", True)
    loss: str = key("which of a chat's assistant turns are trained on", "all", one_of=("all", "last"))
    previous: str | None = key(
        "the column that holds what the model to be replaced answered; the report then says whether the adapter may "
        "replace it",
        None,
    )
    max_tokens: int = key("the longest example, prompt and answer together", 2048, low=8)
    too_long: str = key(
        "what happens to longer ones: `refuse` the data, `drop` them, or `cut` the last turns of a chat",
        "refuse",
        one_of=("refuse", "drop", "cut"),
    )


@dataclass(frozen=True, slots=True)
class Lora:
    rank: int = key("at most the profile's `max_lora_rank`", 16, low=1, high=512)
    alpha: float = key("the update is scaled by alpha / rank", 32, low=1e-6)
    dropout: float = key("of what goes into an adapted module", 0.05, low=0, high=0.9)
    modules: tuple[str, ...] = key("the adapted modules", MODULES, low=1)
    rslora: bool = key("scale by alpha / √rank", False)
    dora: bool = key("the validator rejects it: vLLM does not serve DoRA", False)
    init: str = key("peft's `init_lora_weights`; the validator rejects those that alter the base", "default")
    modules_to_save: tuple[str, ...] = key("whole modules to train; the validator rejects any", ())


@dataclass(frozen=True, slots=True)
class Optimisation:
    epochs: int = key("passes over the data", 3, low=1, high=1000)
    steps: int | None = key("optimizer steps, in place of `epochs`", None, low=1)
    learning_rate: float = key("at the top of the schedule", 2e-4, low=0, high=1)
    schedule: str = key("from the top to the end", "cosine", one_of=("cosine", "linear", "constant"))
    warmup_steps: int = key("steps from nothing to the top", 10, low=0)
    weight_decay: float = key("of AdamW", 0.0, low=0, high=1)
    max_gradient_norm: float = key("gradients are clipped to this norm", 1.0, low=1e-6)
    batch_tokens: int = key(
        "tokens that go through the model at once on each device, padding included; memory grows with it", 8192, low=8
    )
    accumulation: int = key("such batches to an optimizer step", 1, low=1)
    dtype: str = key(
        "of the base's weights; `auto`: bf16 where the device computes in it, else fp32",
        "auto",
        one_of=("auto", "bf16", "fp32"),
    )
    gradient_checkpointing: bool = key("compute activations twice instead of keeping them: slower, less memory", False)
    checkpoint_steps: int = key("steps between two checkpoints, from which `--resume` goes on", 200, low=1)
    seed: int = key("the same on the same machine makes the same adapter", 1, low=0, high=2**32 - 1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    examples: int | None = key("evaluate on at most so many held-out examples", None, low=1)
    max_new_tokens: int = key("of a generated answer", 128, low=1, high=256)
    smoke_prompts: int = key(
        "questions for the stack's smoke test, that the adapter gets right and the base wrong", 4, low=0, high=16
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str = key("of the adapter")
    base: Base = key("the model that it adapts")
    data: Data = key("what it is trained and evaluated on")
    output: str = key("the folder to write, relative to where the command runs")
    lora: Lora = field(default_factory=Lora, metadata={"about": "the adapter"})
    optimisation: Optimisation = field(default_factory=Optimisation, metadata={"about": "the training"})
    evaluation: Evaluation = field(default_factory=Evaluation, metadata={"about": "the evaluation"})

    def to_yaml(self) -> str:
        """The recipe with every default spelled out; reading it again gives an equal recipe."""
        return yaml.safe_dump(_plain(self), sort_keys=False, allow_unicode=True, width=120)


def shipped_recipes() -> dict[str, Path]:
    """By name: `sentiment-tiny`."""
    return {file.stem: file for file in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def find_recipe(name: Path) -> Path:
    """The file of that name, or the recipe that ships under it. Raises RecipeError where there is neither."""
    if name.exists():
        return name
    shipped = shipped_recipes()
    if str(name) in shipped:
        return shipped[str(name)]
    raise RecipeError(f"There is no file {name}, and no recipe of that name. These ship: {', '.join(shipped)}.")


def read_recipe(path: Path) -> Recipe:
    """Raises RecipeError with every problem at once, each with its line. Files are named relative to the recipe's folder."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}.") from error
    if len(data) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{path} has {len(data):,} bytes; a recipe has at most {MAX_RECIPE_BYTES:,}.")
    try:
        # Not the loader in C, which a recipe of brackets alone crashes.
        root = yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}).") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}.") from error
    problems: list[str] = []
    recipe = _Reader(path, problems).section(Recipe, root, "")
    if problems:
        raise RecipeError("\n".join(problems))
    assert isinstance(recipe, Recipe)
    return dataclasses.replace(
        recipe, data=_beside(recipe.data, path.parent), base=_base_beside(recipe.base, path.parent)
    )


def _beside(data: Data, folder: Path) -> Data:
    def absolute(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name if name.startswith("s3://") else str((folder / name).resolve()) for name in names)

    return dataclasses.replace(data, train=absolute(data.train), held_out=absolute(data.held_out))


def _base_beside(base: Base, folder: Path) -> Base:
    """A model or a profile that lies beside the recipe is named by its whole path; other names stay names."""
    model = str((folder / base.model).resolve()) if (folder / base.model / "config.json").is_file() else base.model
    profile = str((folder / base.profile).resolve()) if (folder / base.profile).is_file() else base.profile
    return dataclasses.replace(base, model=model, profile=profile)


class _Reader:
    """Turns YAML's nodes, which know their lines, into the dataclasses; collects every problem."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self._path = path
        self._problems = problems

    def _problem(self, node: yaml.Node | None, what: str) -> None:
        where = f", line {node.start_mark.line + 1}" if node else ""
        self._problems.append(f"{self._path}{where}: {what}.")

    def section(self, section: type, node: yaml.Node | None, prefix: str) -> Any:
        """An object of the dataclass `section`; None where it has a problem."""
        if not isinstance(node, yaml.MappingNode):
            self._problem(
                node, f"{prefix.rstrip('.') or 'a recipe'} is a mapping of keys to values; found {_found(node)}"
            )
            return None
        fields = {one.name: one for one in dataclasses.fields(section)}
        hints = typing.get_type_hints(section)
        values: dict[str, Any] = {}
        before = len(self._problems)
        seen: set[str] = set()
        for name_node, value_node in node.value:
            name = str(name_node.value)
            if name in seen:
                self._problem(name_node, f"{prefix}{name} is there twice")
            elif name not in fields:
                close = difflib.get_close_matches(name, fields, n=1)
                meant = f"did you mean {prefix}{close[0]}" if close else f"there are {', '.join(fields)}"
                self._problem(name_node, f"there is no key {prefix}{name}; {meant}")
            elif dataclasses.is_dataclass(hints[name]):
                values[name] = self.section(typing.cast(type, hints[name]), value_node, f"{prefix}{name}.")
            else:
                values[name] = self._value(hints[name], value_node, f"{prefix}{name}", fields[name].metadata)
            seen.add(name)
        for name, one in fields.items():
            if name not in seen and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
                self._problem(node, f"{prefix}{name} is missing: {one.metadata['about']}")
        return section(**values) if len(self._problems) == before else None

    def _value(self, wanted: Any, node: yaml.Node, name: str, allowed: Mapping[str, Any]) -> Any:
        options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
        if type(None) in options:
            if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
                return None
            wanted = next(one for one in options if one is not type(None))
        if typing.get_origin(wanted) is tuple:
            items = node.value if isinstance(node, yaml.SequenceNode) else [node]
            texts = tuple(self._value(str, item, name, allowed) for item in items)
            if len(texts) < allowed["low"]:
                self._problem(node, f"{name} has {len(texts)} texts; it must have at least {allowed['low']:g}")
            seen: set[str] = set()
            for text, item in zip(texts, items, strict=True):
                if text in seen and text is not None:
                    self._problem(item, f"{name} has {text!r} twice")
                seen.add(text)
            return texts
        value = _scalar(node, wanted)
        if value is None:
            self._problem(node, f"{name} is {_NAMES[wanted]}; found {_found(node)}")
        elif wanted in (int, float) and not allowed["low"] <= value <= allowed["high"]:
            self._problem(node, f"{name} is {value:g}; it must be {_range(allowed['low'], allowed['high'])}")
        elif allowed["one_of"] and value not in allowed["one_of"]:
            self._problem(node, f"{name} is {value!r}; it must be one of {', '.join(allowed['one_of'])}")
        return value


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _scalar(node: yaml.Node, wanted: type) -> Any:
    """The value as the type that is wanted, None where it is none. `1e-3` is a text to YAML 1.1, and a number to people."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    if wanted is str:
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    if wanted is bool:
        return {"true": True, "false": False}.get(node.value.lower()) if node.tag.endswith(":bool") else None
    try:
        number = float(node.value.replace("_", ""))
    except ValueError:
        return None
    if not math.isfinite(number) or node.tag.endswith(":bool"):
        return None
    if wanted is int:
        return int(number) if number.is_integer() else None
    return number


def _found(node: yaml.Node | None) -> str:
    if node is None:
        return "nothing"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    text = str(node.value)
    return repr(text if len(text) <= 60 else text[:60] + "…") if text else "nothing"


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"at least {low:g}"
    return f"from {low:g} to {high:g}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return list(value)
    return value


def keys(section: type = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key with its default and what it is; "required" where there is no default."""
    hints = typing.get_type_hints(section)
    for one in dataclasses.fields(section):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            yield from keys(typing.cast(type, hint), f"{prefix}{one.name}.")
            continue
        default = "required" if one.default is dataclasses.MISSING else _shown(one.default)
        yield f"{prefix}{one.name}", default, one.metadata["about"]


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ", ".join(default) or "none"
    return (
        {None: "none", True: "true", False: "false"}.get(default, str(default))
        if not isinstance(default, int | float) or isinstance(default, bool)
        else f"{default:g}"
    )


def recipe_document() -> str:
    """docs/recipe.md."""
    lines = [
        "# Recipes",
        "",
        "A recipe is one YAML file; `training/loradrop_training/recipes/` holds three. Unknown keys, wrong types and values out of range are reported with their line, all at once.",
        "Files are named relative to the recipe. `make docs` generates this page from training/loradrop_training/recipe.py.",
        "",
        "| key | default | what it is |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| `{name}` | {default} | {about} |" for name, default, about in keys())]) + "\n"


if __name__ == "__main__":
    print(recipe_document(), end="")
