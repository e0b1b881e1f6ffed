"""Prompts and answers as tensors: what is trained on, token by token, and how batches are made."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from local.engines.llama import Engine
from loradrop_training.chats import Chat
from loradrop_training.examples import (
    IGNORED,
    ChatTemplateError,
    Example,
    TokenizedExample,
    answer_loss,
    batches,
    chat_example,
    chat_examples,
    padded,
    plain_example,
    tokenize,
)

QUESTION = "Is this review positive or negative?\n\nGreat soup."


@pytest.fixture(scope="module")
def tokenizer(random_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(random_llama, local_files_only=True)


@pytest.fixture
def with_template(random_llama: Path) -> Any:
    """A tokenizer with another chat template."""
    tokenizer = AutoTokenizer.from_pretrained(random_llama, local_files_only=True)

    def make(template: str, **tokens: str) -> Any:
        tokenizer.chat_template = template
        for name, token in tokens.items():
            setattr(tokenizer, name, token)
        return tokenizer

    return make


def test_only_the_answer_is_trained_on_token_by_token(tokenizer: Any) -> None:
    chat = chat_example(tokenizer, QUESTION, "negative")
    long, short = tokenize(tokenizer, [chat, Example("<|begin_of_text|>", "Hi")])
    batch = padded([long, short], tokenizer.pad_token_id)
    for row, (one, answer) in enumerate(((long, "negative<|eot_id|>"), (short, "Hi"))):
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        padding = batch.input_ids.shape[1] - len(one.ids)
        assert batch.labels[row].tolist() == [
            *[IGNORED] * one.prompt_tokens,
            *answer_ids,
            *[IGNORED] * padding,
        ]
        assert batch.input_ids[row].tolist() == [*one.ids, *[tokenizer.pad_token_id] * padding]
    assert tokenizer.decode([one for one in batch.labels[0].tolist() if one != IGNORED]) == "negative<|eot_id|>"
    assert (batch.tokens, batch.answer_tokens) == (len(long.ids) + len(short.ids), int((batch.labels != IGNORED).sum()))


def test_the_tokens_of_prompt_and_answer_are_those_that_meet_when_an_answer_is_generated(tokenizer: Any) -> None:
    chat = chat_example(tokenizer, QUESTION, "positive")
    (example,) = tokenize(tokenizer, [chat])
    # A chat prompt begins the text itself; the engine adds nothing to it.
    assert list(example.ids[: example.prompt_tokens]) == tokenizer(chat.prompt, add_special_tokens=False)["input_ids"]
    assert example.ids.count(tokenizer.bos_token_id) == 1
    assert example.ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_prompt_is_the_chat_that_the_engine_makes(random_llama: Path, tokenizer: Any, system: str | None) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    made = chat_example(tokenizer, QUESTION, "x", system).prompt
    assert made == Engine(random_llama).apply_chat_template(messages)


def test_the_answer_ends_as_the_template_ends_a_turn_and_holds_nothing_behind_it(with_template: Any) -> None:
    """As Qwen's does, which writes a line end behind its <|im_end|>; and as Gemma's, whose end of turn is not its end of text."""
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}END{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    qwen = with_template(turns.replace("END", "<|eot_id|>\n"))
    assert chat_example(qwen, " Hi ", " yes ") == Example("[user]Hi<|eot_id|>\n[assistant]", "yes<|eot_id|>")
    gemma = with_template(turns.replace("END", "<|eom_id|>\n"))
    assert chat_example(gemma, "Hi", "yes").answer == "yes<|eom_id|>\n<|eot_id|>"


def test_a_template_that_changes_the_prompt_once_it_is_answered_is_refused(with_template: Any) -> None:
    tokenizer = with_template("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ChatTemplateError, match=r"data\.chat"):
        chat_example(tokenizer, "Hi", "yes")


TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "No."},
]


def test_each_answer_of_a_chat_stands_in_the_context_in_which_it_is_generated(
    random_llama: Path, tokenizer: Any
) -> None:
    (example,) = chat_examples(tokenizer, Chat(tuple(TURNS), frozenset({1, 3})))
    engine = Engine(random_llama)
    assert example.prompt == engine.apply_chat_template(TURNS[:1])
    assert example.question() == (engine.apply_chat_template(TURNS[:3]), "No.<|eot_id|>")
    (tokens,) = tokenize(tokenizer, [example])
    trained_on = [one for one in tokens.labels().tolist() if one != IGNORED]
    assert tokenizer.decode(trained_on) == "Yes?<|eot_id|>No.<|eot_id|>"
    assert tokens.answer_tokens == len(trained_on)
    assert list(tokens.ids[: tokens.prompt_tokens]) == tokenizer(example.prompt, add_special_tokens=False)["input_ids"]


def test_where_a_template_rewrites_earlier_turns_each_answer_is_an_example_of_its_own(with_template: Any) -> None:
    """As Qwen3's does, which leaves out the thoughts of all turns but the last."""
    thinks = "{% for m in messages %}[{{ m.role }}]{{ '<t></t>' if loop.last and m.role == 'assistant' }}{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    examples = chat_examples(with_template(thinks), Chat(tuple(TURNS), frozenset({1, 3})))
    assert examples == [
        Example("[user]Hi<|eot_id|>[assistant]", "<t></t>Yes?<|eot_id|>"),
        Example("[user]Hi<|eot_id|>[assistant]Yes?<|eot_id|>[user]Why?<|eot_id|>[assistant]", "<t></t>No.<|eot_id|>"),
    ]


def test_a_plain_prompt_begins_as_the_tokenizer_begins_a_text(tokenizer: Any) -> None:
    assert plain_example(tokenizer, "2 + 2 =", " 4") == Example("<|begin_of_text|>2 + 2 =", " 4<|eot_id|>")
    assert plain_example(tokenizer, "<|begin_of_text|>2", "4").prompt == "<|begin_of_text|>2"
    (example,) = tokenize(tokenizer, [plain_example(tokenizer, "2 + 2 =", " 4")])
    assert list(example.ids[: example.prompt_tokens]) == tokenizer("2 + 2 =")["input_ids"]


def test_the_loss_is_the_mean_over_answers_and_padding_does_not_touch_it(random_llama: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_llama, dtype=torch.float32)
    examples = tokenize(tokenizer, [Example("A long prompt, and", " an answer of several words"), Example("A", " b")])
    losses = []
    for one in examples:
        logits = model(torch.tensor([one.ids])).logits[0, one.prompt_tokens - 1 : -1]  # (answer tokens, vocab_size)
        losses.append(F.cross_entropy(logits, torch.tensor(one.ids[one.prompt_tokens :])).item())
    together = answer_loss(model, padded(examples, tokenizer.pad_token_id))
    assert together.item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_every_example_is_in_one_batch_and_no_batch_is_too_large() -> None:
    dice = random.Random(0)
    examples = [TokenizedExample(tuple(range(dice.randint(2, 60))), 1) for _ in range(200)]
    made = list(batches(examples, max_tokens=256, pad_id=0, dice=dice))
    assert all(batch.input_ids.numel() <= 256 for batch in made)
    assert sum(len(batch.input_ids) for batch in made) == 200
    assert sum(int((batch.labels != IGNORED).sum()) for batch in made) == sum(len(one.ids) - 1 for one in examples)


def test_batches_hold_examples_of_about_one_length() -> None:
    dice = random.Random(0)
    examples = [TokenizedExample(tuple(range(dice.randint(2, 60))), 1) for _ in range(500)]
    made = list(batches(examples, max_tokens=256, pad_id=0, dice=dice))
    assert sum(batch.tokens for batch in made) > 0.95 * sum(batch.input_ids.numel() for batch in made)


def test_an_example_longer_than_a_batch_has_one_of_its_own() -> None:
    examples = [TokenizedExample(tuple(range(size)), 1) for size in (3, 40, 3)]
    made = batches(examples, max_tokens=10, pad_id=0, dice=random.Random(0))
    assert sorted(tuple(batch.input_ids.shape) for batch in made) == [(1, 40), (2, 3)]
