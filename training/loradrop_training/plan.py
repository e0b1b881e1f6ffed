"""What is known before the weights are loaded: the base's config and tokenizer, the data as tokens, the steps."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from peft import LoraConfig

from loradrop.names import check_adapter_name
from loradrop.profile import BaseProfile, load_profile

from . import loop
from .base_model import BaseModel, attention, find_base
from .dataset import DataError, Row, read_dataset
from .device import device, dtype_of
from .estimate import Step
from .evaluation import Question
from .examples import (
    ChatTemplateError,
    Example,
    TokenizedExample,
    chat_example,
    chat_examples,
    padded_tokens,
    plain_example,
    tokenize,
)
from .findings import Code, Finding, finding_lines
from .recipe import Lora, Recipe, RecipeError


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known before the weights are loaded."""

    recipe: Recipe
    base: BaseModel
    base_name: str
    profile: BaseProfile
    lora: LoraConfig
    train: tuple[TokenizedExample, ...]
    shown_example: Example  # the first that is trained on
    questions: tuple[Question, ...]
    held_out: tuple[TokenizedExample, ...]  # of chats, one for each question: all its answers; else none
    turn: tuple[str, str]  # what the chat template writes before an answer and behind it
    dtype: torch.dtype  # of the base's weights
    steps: int
    padded_tokens: int  # of all steps together
    fullest_step: Step
    made_from: str


def make_plan(recipe: Recipe) -> Plan:
    """Reads everything but the weights, and prints what is wrong with the data.

    Raises RecipeError, ProfileError, AdapterNameInvalidError, DataError, ChatTemplateError.
    """
    check_adapter_name(recipe.name)
    profile = load_profile(recipe.base.profile)
    base = find_base(recipe.base)
    tokenizer = base.tokenizer
    if recipe.data.chat and not tokenizer.chat_template:
        raise RecipeError(
            "data.chat: the base's tokenizer has no chat template; name an instruct model, or set data.chat to false."
        )
    dataset = read_dataset(recipe.data, _special_tokens(tokenizer))
    if not recipe.data.chat and any(row.chat for row in dataset.train):
        raise RecipeError("data.chat is false, and the data are chats, which the chat template writes; set it to true.")
    findings = list(dataset.findings)
    train = _fitting(recipe, base, dataset.train, findings)
    held_out = _fitting(recipe, base, dataset.held_out, findings)[: recipe.evaluation.examples]
    if not train or not held_out:
        detail = f"{len(train)} examples to train on and {len(held_out)} held-out ones are left"
        findings.append(Finding(Code.NO_EXAMPLES, None, detail))
    for line in finding_lines(findings):
        print(line)
    if any(one.is_fatal for one in findings):
        raise DataError("The data must not be trained on as it is: fix the lines above marked as errors.")
    turn = _turn(recipe, tokenizer, train[0].row)
    tokens = tuple(one.tokens for one in train)
    dtype = dtype_of(recipe.optimisation.dtype)
    lora = lora_config(recipe.lora)
    _, processes = loop.processes()
    batches = loop.batches_of(tokens, recipe.optimisation)
    steps, steps_in_epoch = loop.steps_of(len(batches), recipe.optimisation, processes)
    return Plan(
        recipe=recipe,
        base=base,
        base_name=recipe.base.name or (profile.base_model_names or (_last_part(recipe.base.model),))[0],
        profile=profile,
        lora=lora,
        train=tokens,
        shown_example=train[0].text,
        questions=tuple(_question(one, turn) for one in held_out),
        held_out=tuple(one.tokens for one in held_out) if all(one.row.chat for one in held_out) else (),
        turn=turn,
        dtype=dtype,
        steps=steps,
        padded_tokens=round(sum(map(padded_tokens, batches)) * steps / steps_in_epoch),
        fullest_step=_fullest_step(recipe, base, lora, dtype, batches),
        made_from=_digest(recipe, base, tokens, processes),
    )


def _special_tokens(tokenizer: Any) -> list[str]:
    """Llama-3.1's tokenizer names its ends alone as such; the headers of a turn are special among the added ones."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _last_part(model: str) -> str:
    """Where a folder or a bucket lies concerns nobody who reads the adapter's configuration; an id on the hub does."""
    is_place = Path(model).is_dir() or model.startswith("s3://")
    return model.rstrip("/").rpartition("/")[2] if is_place else model


def lora_config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.modules),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True if lora.init == "default" else lora.init,
        modules_to_save=list(lora.modules_to_save) or None,
    )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A row in its three forms: as it was read, as the chat template writes it, as tokens."""

    row: Row
    text: Example
    tokens: TokenizedExample


def _fitting(recipe: Recipe, base: BaseModel, rows: Sequence[Row], findings: list[Finding]) -> list[_Prepared]:
    """The rows that the template takes and that are not too long; what becomes of the others is a finding each."""
    most = min(recipe.data.max_tokens, getattr(base.config, "max_position_embeddings", recipe.data.max_tokens))
    texts: list[tuple[Row, Example]] = []
    for row in rows:
        try:
            texts += [(row, text) for text in _examples(recipe, base.tokenizer, row)]
        except (ChatTemplateError, TemplateError) as error:
            if row.chat is None:  # then it is the template that no row suits
                raise
            findings.append(Finding(Code.TEMPLATE, row.place, str(error)))
    kept = []
    for (row, text), tokens in zip(texts, tokenize(base.tokenizer, [text for _, text in texts]), strict=True):
        if len(tokens.ids) <= most:
            kept.append(_Prepared(row, text, tokens))
            continue
        shorter = _cut(text, tokens, most) if recipe.data.too_long == "cut" else None
        detail = f"{len(tokens.ids):,} tokens; at most {most:,}"
        if shorter is not None:
            kept.append(_Prepared(row, *shorter))
            findings.append(Finding(Code.CUT_LONG, row.place, f"{detail}; {len(shorter[1].ids):,} are left"))
        else:
            code = Code.TOO_LONG if recipe.data.too_long == "refuse" else Code.DROPPED_LONG
            findings.append(Finding(code, row.place, detail))
    return kept


def _cut(text: Example, tokens: TokenizedExample, most: int) -> tuple[Example, TokenizedExample] | None:
    """As many of the chat's first answers as fit: each in the context in which it would be asked for. None if none fits."""
    ends = [begin for begin, _ in tokens.contexts]
    answers = sum(end <= most for end in ends)
    if not answers:
        return None
    shorter = TokenizedExample(tokens.ids[: ends[answers - 1]], tokens.prompt_tokens, tokens.contexts[: answers - 1])
    return dataclasses.replace(text, later=text.later[: answers - 1]), shorter


def _examples(recipe: Recipe, tokenizer: Any, row: Row) -> list[Example]:
    return [_example(recipe, tokenizer, row)] if row.chat is None else chat_examples(tokenizer, row.chat)


def _example(recipe: Recipe, tokenizer: Any, row: Row) -> Example:
    if not recipe.data.chat:
        return plain_example(tokenizer, row.prompt, row.answer)
    try:
        return chat_example(tokenizer, row.prompt, row.answer, recipe.data.system)
    except TemplateError as error:
        raise ChatTemplateError(
            f"The base's chat template refuses the prompt: {error}. Leave data.system out, or set data.chat to false."
        ) from error


def _question(one: _Prepared, turn: tuple[str, str]) -> Question:
    """Of a chat, its last answer, as the template writes it: a tool call is text, too."""
    if one.row.chat is None:
        return Question(one.text.prompt, one.row.answer, one.row.previous)
    prompt, answer = one.text.question()
    before, behind = turn
    return Question(prompt, answer.removeprefix(before).removesuffix(behind).strip(), one.row.previous)


def _turn(recipe: Recipe, tokenizer: Any, row: Row) -> tuple[str, str]:
    """What the chat template writes before an answer and behind it."""
    probe = "answer"
    written = _example(recipe, tokenizer, dataclasses.replace(row, prompt="x", answer=probe, chat=None)).answer
    before, _, behind = written.partition(probe)
    return before, behind


def _fullest_step(
    recipe: Recipe, base: BaseModel, lora: LoraConfig, dtype: torch.dtype, batches: Sequence[loop.Group]
) -> Step:
    """The largest batch that the data makes, in all that decides its memory."""
    largest = max(batches, key=padded_tokens)
    return Step(
        config=base.config,
        lora=lora,
        dtype=dtype,
        examples=len(largest),
        longest=max(len(one.ids) for one in largest),
        answer_tokens=max(sum(one.answer_tokens for one in batch) for batch in batches),
        four_bit=recipe.base.four_bit,
        gradient_checkpointing=recipe.optimisation.gradient_checkpointing,
        attention=attention(base.config, dtype),
        device_type=device().type,
    )


def _digest(recipe: Recipe, base: BaseModel, train: Sequence[TokenizedExample], processes: int) -> str:
    """Of all that decides what the weights become; the data is here as it is trained on, wherever its files lie.

    The processes share out a step's batches, so their number counts too.
    """
    optimisation = dataclasses.replace(recipe.optimisation, checkpoint_steps=1)
    digest = hashlib.sha256(f"{recipe.base} {recipe.lora} {optimisation} {processes}".encode())
    digest.update(json.dumps(base.config.to_dict(), sort_keys=True, default=str).encode())
    for one in train:
        digest.update(f"{one.prompt_tokens}:{one.contexts}:{one.ids}".encode())
    return digest.hexdigest()
