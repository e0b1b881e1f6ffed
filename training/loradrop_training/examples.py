"""Prompts and answers as the tensors that a causal language model is trained on: the loss is on the answer, not on the prompt."""

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.nn import functional as F

from .chats import Chat

IGNORED = -100  # cross_entropy's own


@dataclass(frozen=True, slots=True)
class Example:
    """The whole prompt and the answer, both as text with special tokens included.

    `later` are the (context, answer) pairs of a chat that goes on: its other turns that are trained on.
    """

    prompt: str
    answer: str
    later: tuple[tuple[str, str], ...] = ()

    def question(self) -> tuple[str, str]:
        """(all before the last answer, the last answer)."""
        texts = [self.prompt, self.answer, *chain.from_iterable(self.later)]
        return "".join(texts[:-1]), texts[-1]

    def marked(self) -> str:
        """The whole text, with what is trained on in ⟦ ⟧."""
        pairs = ((self.prompt, self.answer), *self.later)
        return "".join(f"{context}⟦{answer}⟧" for context, answer in pairs)


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """`ids` from `prompt_tokens` on are trained on, but for the `contexts` between a chat's answers: (begin, end) each."""

    ids: tuple[int, ...]
    prompt_tokens: int
    contexts: tuple[tuple[int, int], ...] = ()

    @property
    def answer_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens - sum(end - begin for begin, end in self.contexts)

    def labels(self) -> torch.Tensor:
        """(tokens,): the ids, IGNORED where they are not trained on."""
        labels = torch.tensor(self.ids)
        labels[: self.prompt_tokens] = IGNORED
        for begin, end in self.contexts:
            labels[begin:end] = IGNORED
        return labels


@dataclass(frozen=True, slots=True)
class Batch:
    """`input_ids` and `labels`, both (examples, longest); `labels` is IGNORED where nothing is trained on."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    tokens: int  # padding left out
    answer_tokens: int

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.input_ids.to(device), self.labels.to(device), self.tokens, self.answer_tokens)


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


def chat_examples(tokenizer: Any, chat: Chat) -> list[Example]:
    """What the chat template writes of a chat, up to the end of each turn that is trained on.

    One example with several answers, where each answer stands in the whole as it would be generated; where the template
    writes earlier turns otherwise once the chat goes on (Qwen3 leaves out their thoughts), an example for each answer.
    Raises ChatTemplateError where the template leaves out what the chat holds, and the template's own TemplateError.
    """
    parts = []  # (all before an answer, the answer) as it would be generated
    for number in sorted(chat.trained_on):
        prompt = _written(tokenizer, chat, number, add_generation_prompt=True)
        through = _written(tokenizer, chat, number + 1)
        if not through.startswith(prompt):
            raise ChatTemplateError("it writes another prompt once it is answered")
        parts.append((prompt, through[len(prompt) :]))
    last_prompt, last_answer = parts[-1]
    whole = last_prompt + last_answer
    _check_complete(tokenizer, chat, whole)
    eos = tokenizer.eos_token
    turns = [answer[: answer.index(eos) + len(eos)] if eos in answer else answer for _, answer in parts]
    if not all(whole.startswith(prompt + turn) for (prompt, _), turn in zip(parts, turns, strict=True)):
        return [Example(prompt, ended(answer, eos)) for prompt, answer in parts]
    turns[-1] = ended(last_answer, eos)
    later = [
        (prompt[len(before) + len(said) :], turn)
        for (before, _), said, (prompt, _), turn in zip(parts, turns, parts[1:], turns[1:], strict=False)
    ]
    return [Example(parts[0][0], turns[0], tuple(later))]


def _written(tokenizer: Any, chat: Chat, count: int, *, add_generation_prompt: bool = False) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(chat.messages[:count]),
            tools=list(chat.tools) or None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    )


def _check_complete(tokenizer: Any, chat: Chat, whole: str) -> None:
    """A template that knows nothing of tools, or of a system message, passes over them in silence."""
    if chat.tools and whole == _written(tokenizer, dataclasses.replace(chat, tools=()), len(chat.messages)):
        raise ChatTemplateError("it leaves out the tools; take them out of the line, or choose a base that has them")
    for number, message in enumerate(chat.messages, start=1):
        if any(call["function"]["name"] not in whole for call in message.get("tool_calls", ())):
            raise ChatTemplateError(
                f"it leaves out the tool call of message {number}; take the line out, or choose a base that has tool calls"
            )
        if message["role"] in ("system", "tool") and message["content"].strip() not in whole:
            what = "the system message" if message["role"] == "system" else "the tool's result"
            if not _is_written_as_json(message["content"], whole):
                raise ChatTemplateError(f"it leaves out {what} (message {number})")


def _is_written_as_json(content: str, whole: str) -> bool:
    """Llama-3.1's template writes a tool's result as a JSON string."""
    return any(json.dumps(content, ensure_ascii=ascii_only)[1:-1] in whole for ascii_only in (False, True))


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

    parts = iter(ids([part for one in examples for part in (one.prompt, one.answer, *chain(*one.later))]))
    rows = []
    for one in examples:
        prompt, answer = next(parts), next(parts)
        row, contexts = [*prompt, *answer], []
        for _ in one.later:
            context, answer = next(parts), next(parts)
            contexts.append((len(row), len(row) + len(context)))
            row += context + answer
        rows.append(TokenizedExample(tuple(row), len(prompt), tuple(contexts)))
    return rows


def padded(examples: Sequence[TokenizedExample], pad_id: int) -> Batch:
    """One batch, padded on the right: under causal attention no token sees what comes after it."""
    longest = max(len(one.ids) for one in examples)
    input_ids = torch.full((len(examples), longest), pad_id)
    labels = torch.full_like(input_ids, IGNORED)
    for row, one in enumerate(examples):
        input_ids[row, : len(one.ids)] = torch.tensor(one.ids)
        labels[row, : len(one.ids)] = one.labels()
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
    """The examples of each batch, in random order. An example longer than `max_tokens` has a batch of its own."""
    shuffled = dice.sample(examples, len(examples))
    groups: list[list[TokenizedExample]] = [[]]
    for one in sorted(shuffled, key=lambda one: len(one.ids)):
        if groups[-1] and len(one.ids) * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
        groups[-1].append(one)
    return dice.sample(groups, len(groups))


def padded_tokens(group: Sequence[TokenizedExample]) -> int:
    return len(group) * max(len(one.ids) for one in group)


def answer_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy of each answer token, in nats: (answer tokens,), row after row.

    The head is computed for these tokens alone: beside a large vocabulary it is the most expensive part of a small model.
    """
    hidden = model.model(
        batch.input_ids[:, :-1], use_cache=False
    ).last_hidden_state  # (examples, longest - 1, hidden_size)
    labels = batch.labels[:, 1:]
    trained_on = labels != IGNORED
    logits = head(model, hidden[trained_on])  # (answer tokens, vocab_size)
    return F.cross_entropy(logits.float(), labels[trained_on], reduction="none")


def head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits, as the model's own forward makes them: Gemma 2 caps them."""
    logits: torch.Tensor = model.lm_head(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The mean over examples of the mean over their answers' tokens: a short answer counts as much as a long one."""
    trained_on = batch.labels[:, 1:] != IGNORED
    weights = (1 / trained_on.sum(dim=1, keepdim=True)).expand_as(trained_on)[trained_on]
    return (answer_losses(model, batch) * weights).sum() / len(trained_on)
