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

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """`input_ids` and `labels`, both (examples, longest); `labels` is IGNORED where nothing is to be learnt."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    tokens: int  # padding left out
    answer_tokens: int


class ChatTemplateError(ValueError):
    """A chat template that writes another prompt once it is answered: what it would train is not what is served."""


def chat_example(tokenizer: Any, text: str, answer: str, system: str | None = None) -> Example:
    """The prompt as the server's chat template writes it, and the answer up to the end of the assistant's turn.

    Both come from the template itself: where it trims a text, or ends a turn in its own way, training does the same.
    Raises ChatTemplateError.
    """
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    messages.append({"role": "assistant", "content": answer})
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    if not whole.startswith(prompt):
        raise ChatTemplateError(
            "The chat template writes another prompt once it is answered; set data.chat to false and write the prompt out."
        )
    return Example(prompt, ended(whole[len(prompt) :], tokenizer.eos_token))


def plain_example(tokenizer: Any, text: str, answer: str) -> Example:
    """Prompt and answer as they stand, between the tokens that the tokenizer begins and ends a text with."""
    begins = begins_with(tokenizer)
    return Example(begins + text.removeprefix(begins), ended(answer, tokenizer.eos_token))


def begins_with(tokenizer: Any) -> str:
    """The token that the tokenizer puts before a text, as text; empty where it puts none."""
    ids: list[int] = tokenizer("")["input_ids"]
    return str(tokenizer.bos_token) if ids[:1] == [tokenizer.bos_token_id] else ""


def ended(answer: str, eos_token: str) -> str:
    """The answer with the end of the turn once, and nothing behind it: a server stops there."""
    return answer.partition(eos_token)[0] + eos_token


def tokenize(tokenizer: Any, examples: Sequence[Example]) -> list[TokenizedExample]:
    """Prompt and answer apart, as they meet when an answer is generated: no token may reach across."""

    def ids(texts: list[str]) -> list[list[int]]:
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
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
    return Batch(input_ids, labels, sum(len(one.ids) for one in examples), sum(one.answer_tokens for one in examples))


def batches(
    examples: Sequence[TokenizedExample], *, max_tokens: int, pad_id: int, dice: random.Random
) -> Iterator[Batch]:
    """Every example once. Those of a batch are about equally long, padding included at most `max_tokens` together."""
    for group in grouped(examples, max_tokens=max_tokens, dice=dice):
        yield padded(group, pad_id)


def grouped(
    examples: Sequence[TokenizedExample], *, max_tokens: int, dice: random.Random
) -> list[list[TokenizedExample]]:
    """What `batches` makes tensors of. An example longer than `max_tokens` has a batch of its own."""
    shuffled = dice.sample(examples, len(examples))
    groups: list[list[TokenizedExample]] = [[]]
    for one in sorted(shuffled, key=lambda one: len(one.ids)):
        if groups[-1] and len(one.ids) * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
        groups[-1].append(one)
    return dice.sample(groups, len(groups))


def answer_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy of each answer token, in nats: (answer tokens,), row after row.

    The head is computed for these tokens alone: beside a large vocabulary it is the dearest part of a small model.
    """
    hidden = model.model(
        batch.input_ids[:, :-1], use_cache=False
    ).last_hidden_state  # (examples, longest - 1, hidden_size)
    labels = batch.labels[:, 1:]
    learnt = labels != IGNORED
    logits = head(model, hidden[learnt])  # (answer tokens, vocab_size)
    return F.cross_entropy(logits.float(), labels[learnt], reduction="none")


def head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits, as the model's own forward makes them: Gemma 2 bends them."""
    logits: torch.Tensor = model.lm_head(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The mean over examples of the mean over their answers' tokens: a short answer weighs as much as a long one."""
    learnt = batch.labels[:, 1:] != IGNORED
    weights = (1 / learnt.sum(dim=1, keepdim=True)).expand_as(learnt)[learnt]
    return (answer_losses(model, batch) * weights).sum() / len(learnt)
