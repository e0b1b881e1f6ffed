"""Prompts and answers as the tensors that a causal language model learns from: the answer's tokens count, the prompt's do not."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

IGNORED = -100  # cross_entropy's own


@dataclass(frozen=True, slots=True)
class Example:
    """What the model is given and what it is to say; both are text as it stands, special tokens included."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    ids: tuple[int, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """`input_ids` and `labels`, both (examples, longest); `labels` is IGNORED where nothing is to be learnt."""

    input_ids: torch.Tensor
    labels: torch.Tensor


def tokenize(tokenizer: Any, examples: Sequence[Example]) -> list[TokenizedExample]:
    """Prompt and answer apart, as they meet when an answer is generated: no token may reach across."""

    def ids(texts: list[str]) -> list[list[int]]:
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return rows

    prompts, answers = ids([one.prompt for one in examples]), ids([one.answer for one in examples])
    return [TokenizedExample((*prompt, *answer), len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)]


def padded(examples: Sequence[TokenizedExample], pad_id: int) -> Batch:
    """One batch, padded on the right: under causal attention no token sees what comes after it."""
    longest = max(len(one.ids) for one in examples)
    input_ids = torch.full((len(examples), longest), pad_id)
    labels = torch.full_like(input_ids, IGNORED)
    for row, one in enumerate(examples):
        ids = torch.tensor(one.ids)
        input_ids[row, : len(ids)] = ids
        labels[row, one.prompt_tokens : len(ids)] = ids[one.prompt_tokens :]
    return Batch(input_ids, labels)


def batches(
    examples: Sequence[TokenizedExample], *, max_tokens: int, pad_id: int, dice: random.Random
) -> Iterator[Batch]:
    """Every example once. Those of a batch are about equally long, padding included at most `max_tokens` together."""
    shuffled = dice.sample(examples, len(examples))
    groups: list[list[TokenizedExample]] = [[]]
    for one in sorted(shuffled, key=lambda one: len(one.ids)):
        if groups[-1] and len(one.ids) * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
        groups[-1].append(one)
    for group in dice.sample(groups, len(groups)):
        yield padded(group, pad_id)


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the answers' tokens, in nats; a short answer weighs as much as a long one.

    The head is computed for these tokens alone: it is the dearest part of a small model.
    """
    hidden = model.model(batch.input_ids[:, :-1]).last_hidden_state  # (examples, longest - 1, hidden_size)
    labels = batch.labels[:, 1:]
    learnt = labels != IGNORED
    losses = F.cross_entropy(model.lm_head(hidden[learnt]), labels[learnt], reduction="none")  # (learnt tokens,)
    weights = (1 / learnt.sum(dim=1, keepdim=True)).expand_as(learnt)[learnt]
    return (losses * weights).sum() / len(labels)
