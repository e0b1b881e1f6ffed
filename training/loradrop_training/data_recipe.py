"""A recipe for a data file: what the file holds, and what to train on it, each choice with the reason as a comment."""

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradrop.names import AdapterNameInvalidError, check_adapter_name
from loradrop.problems import printable
from loradrop.profile import ProfileError, load_profile, shipped_profiles
from loradrop_cli.exit_codes import ExitCode

from .dataset import HELD_OUT_NAME, format_of, is_held_out
from .findings import Finding
from .recipe import RecipeError, read_recipe
from .records import READERS, data_files, read_records

DEFAULT_BASE = "meta-llama/Llama-3.1-8B-Instruct"
TINY, TINY_TOKENS = "tiny", 512
CHARACTERS_PER_TOKEN = 3  # fewer than in English text, so that estimates err on the long side
MAX_LABELS, LABEL_WORDS = 20, 3
EVALUATED = 200
# Of tables without a format's own columns: what people call a question and an answer.
QUESTIONS = ("prompt", "question", "query", "input", "text", "review", "sentence", "message", "content")
ANSWERS = ("completion", "answer", "response", "output", "target", "label", "category", "class", "sentiment", "intent")
SPLITS = ("split", "subset", "partition", "fold", "set")
NAMES = {
    "chat": "chats (OpenAI's messages)",
    "conversations": "chats (ShareGPT's conversations)",
    "prompt_completion": "prompts and completions",
    "instruction": "instructions with outputs (Alpaca's)",
    "labels": "texts with labels",
    "columns": "questions and answers",
}


@dataclass(frozen=True, slots=True)
class DataRecipe:
    """`text` is the recipe's YAML; `about` says in a line what the file is."""

    text: str
    about: str


def is_data(name: str) -> bool:
    """Whether this names data, and not a recipe."""
    path = Path(name)
    return name.startswith("s3://") or path.suffix.lower() in READERS or path.is_dir()


def output_of(name: str) -> Path:
    return Path("out") / name.rpartition("/")[2]


def recipe_for(
    data: str, *, folder: Path, base: str | None = None, profile: str | None = None, name: str | None = None
) -> DataRecipe:
    """The recipe to lie in `folder`. Raises RecipeError where the data cannot be had, or nothing in it says what it is."""
    files = data_files(data)
    held_out = [file for file in files if len(files) > 1 and HELD_OUT_NAME.search(file.stem.lower())]
    findings: list[Finding] = []
    records = [record for file in files if file not in held_out for _, record in read_records(file, findings)]
    if not records:
        details = "; ".join(f"{one.place or data}: {one.detail}" for one in findings[:3]) or "it is empty"
        raise RecipeError(f"{data} holds no record to choose a recipe by: {details}.")
    base = base or DEFAULT_BASE
    form = Counter(map(format_of, records)).most_common(1)[0][0]
    columns = _columns(records) if form == "columns" else None
    if form == "columns" and columns is None:
        there = ", ".join(sorted({name for one in records[:50] for name in one})[:12])
        raise RecipeError(
            f"{data}: which columns are question and answer? It has {there}. Write a recipe with data.prompt, such as "
            "'{question}', and data.answer, such as answer; or rename the columns to prompt and completion."
        )
    labels = _labels(records, columns[1]) if columns else ()
    form = "labels" if labels else form
    tiny = base == TINY
    name = recipe_name(data, name)
    longest = max(len(json.dumps(one, ensure_ascii=False)) for one in records)
    tokens = sum(len(json.dumps(one, ensure_ascii=False)) for one in records) // CHARACTERS_PER_TOKEN
    max_tokens = min(TINY_TOKENS if tiny else 8192, max(256, 2 ** math.ceil(math.log2(longest / CHARACTERS_PER_TOKEN))))
    batch_tokens = min(8192, max(max_tokens, 1024, 2 ** round(math.log2(max(tokens / 20, 1)))))
    source = data if data.startswith("s3://") else os.path.relpath(data, folder)
    is_chat = form in ("chat", "conversations")
    answer_tokens = 8 if labels else 200
    lines = [
        f"# Chosen by loradrop for {data}: {len(records):,} {NAMES[form]}. Change what you know better.",
        f"name: {json.dumps(name)}",
        "base:",
        f"  model: {json.dumps(base)}" + (" # --base takes another" if base == DEFAULT_BASE else ""),
        f"  profile: {json.dumps(profile or _profile(base))} # what the endpoint's base accepts",
        "data:",
        f"  train: {json.dumps(source, ensure_ascii=False)}",
        f"  format: {form} # by the columns of the file",
    ]
    if columns:
        question, answer = columns
        ask = f"Answer with one of: {', '.join(labels)}.\n\n{{{question}}}" if labels else f"{{{question}}}"
        lines += [f"  prompt: {json.dumps(ask, ensure_ascii=False)}", f"  answer: {json.dumps(answer)}"]
        if labels:
            lines.append(f"  labels: {json.dumps(labels, ensure_ascii=False)} # all that the column holds")
    if held_out:
        lines.append(f"  # held out, by their names: {', '.join(one.name for one in held_out)}")
    elif split := _split_column(records):
        lines.append(f"  split: {json.dumps(split)} # the column that says what is held out")
    else:
        lines.append("  held_out_share: 0.1 # never trained on; by a hash of the text, so copies fall on one side")
    if is_chat:
        lines.append("  loss: all # every assistant turn of weight 1; last: the last one of each chat")
    lines += [
        f"  max_tokens: {max_tokens} # the longest record has {longest:,} characters",
        f"  too_long: {'cut' if is_chat else 'drop'} # what is longer is reported",
        "lora:",
        "  rank: 16",
        "  alpha: 32",
        "optimisation:",
        f"  epochs: {_epochs(len(records), tiny=tiny)} # fewer records take more passes",
        f"  learning_rate: {'1e-3' if tiny else '2e-4'}",
        f"  batch_tokens: {batch_tokens} # about {max(1, tokens // batch_tokens):,} steps an epoch",
        *([] if tiny else ["  gradient_checkpointing: true # slower, and fits longer examples"]),
        "evaluation:",
        f"  examples: {EVALUATED} # both models answer each",
        f"  max_new_tokens: {answer_tokens}",
        f"output: {json.dumps(str(output_of(name)))}",
    ]
    return DataRecipe("\n".join(lines) + "\n", f"{data}: {len(records):,} {NAMES[form]}")


def write_recipe(data: str, file: Path, *, base: str | None, profile: str | None, name: str | None, force: bool) -> str:
    """Writes the recipe for the data and reads it again; returns what the data is. Never replaces one that somebody changed.

    Raises RecipeError.
    """
    chosen = recipe_for(data, folder=file.parent, base=base, profile=profile, name=name)
    if file.exists() and file.read_text(encoding="utf-8") != chosen.text and not force:
        raise RecipeError(
            f"{file} is there already, and is not the recipe that would be chosen. To train by it:\n"
            f"  loradrop train {file}\nTo replace it, add --force."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(chosen.text, encoding="utf-8")
    read_recipe(file)
    return chosen.about


def run(arguments: argparse.Namespace) -> ExitCode:
    """The command `loradrop recipe`."""
    output = arguments.output
    choices = {"base": arguments.base, "profile": arguments.profile, "name": arguments.name}
    try:
        about = write_recipe(arguments.data, output, **choices, force=arguments.force)
    except (RecipeError, ProfileError) as error:
        for line in str(error).splitlines():
            print(f"loradrop: {printable(line)}", file=sys.stderr)
        return ExitCode.UNUSABLE
    print(f"{printable(about)}\nWrote {output}, with the reason for each choice. To see what it will take:")
    print(f"  loradrop train {output} --dry-run")
    return ExitCode.DONE


def recipe_name(data: str, name: str | None) -> str:
    """The one that is asked for, which is checked later; else one made of the file's."""
    if name is not None:
        return name
    last = data.rstrip("/").rpartition("/")[2]
    made = re.sub(r"[^a-z0-9]+", "-", Path(last).stem.lower()).strip("-") or "adapter"
    try:
        check_adapter_name(made)
    except AdapterNameInvalidError:
        return "adapter"
    return made


def _profile(base: str) -> str:
    if base == TINY:
        return "tiny-llama"
    for name in shipped_profiles():
        if base in load_profile(name).base_model_names:
            return name
    raise RecipeError(
        f"No profile ships for the base {base}. Make one from its config.json, and name it with --profile:\n"
        "  loradrop profile CONFIG_JSON_OR_DIR --max-rank 64 -o base.json"
    )


def _columns(records: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """(question, answer) by what people call them; of a table with two columns, the first and the second."""
    names = list(records[0])
    plain = {name.strip().lower(): name for name in names}
    answer = next((plain[one] for one in ANSWERS if one in plain), None)
    question = next((plain[one] for one in QUESTIONS if one in plain and plain[one] != answer), None)
    if question and answer:
        return question, answer
    return (names[0], names[1]) if len(names) == 2 and all(isinstance(records[0][one], str) for one in names) else None


def _split_column(records: Sequence[dict[str, Any]]) -> str | None:
    """The column, called split or the like, in which every row names one; with rows of both kinds."""
    for name in (one for one in records[0] if one.strip().lower() in SPLITS):
        if {is_held_out(record.get(name)) for record in records} == {True, False}:
            return name
    return None


def _labels(records: Sequence[dict[str, Any]], column: str) -> tuple[str, ...]:
    """The few short answers that come again and again; none where the answers are free text."""
    counts = Counter(str(one.get(column, "")).strip() for one in records)
    counts.pop("", None)
    few = 2 <= len(counts) <= min(MAX_LABELS, len(records) // 4)
    return tuple(sorted(counts)) if few and all(len(one.split()) <= LABEL_WORDS for one in counts) else ()


def _epochs(records: int, *, tiny: bool) -> int:
    epochs = 3 if records >= 500 else 5 if records >= 100 else 10
    return 2 * epochs if tiny else epochs
