"""Rows: the losses and gradients of a padded batch, whatever the examples share; no example sees another."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig

from loradrop_training import packed
from loradrop_training.examples import TokenizedExample, answer_losses, padded

PAD = 63
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Any:
    """A Llama with an adapter that already does something, and no dropout: what is equal shows."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    return get_peft_model(LlamaForCausalLM(config), lora).train()


def examples_that_share(
    shared: int, own: Sequence[int], answers: Sequence[int], seed: int = 1
) -> list[TokenizedExample]:
    dice = random.Random(seed)
    beginning = [dice.randrange(50) for _ in range(shared)]
    return [
        TokenizedExample(
            (*beginning, 50 + number % 10, *(dice.randrange(50) for _ in range(length - 1 + answer))), shared + length
        )
        for number, (length, answer) in enumerate(zip(own, answers, strict=True))
    ]


def gradients(model: Any, losses: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    losses.sum().backward()
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


CASES = {
    "a long beginning": examples_that_share(20, [5, 1, 3, 9], [2, 2, 1, 4]),
    "nothing shared": examples_that_share(0, [5, 1, 30, 9], [2, 2, 1, 4]),
    "several rows": examples_that_share(30, [200 + number for number in range(12)], [3] * 12),
    "one example": examples_that_share(0, [7], [3]),
    "the same twice": examples_that_share(6, [4], [2]) * 2,
    "one prompt begins another": [TokenizedExample((1, 2, 3, 4), 3), TokenizedExample((1, 2, 3, 5, 6, 7, 8), 5)],
    "chats of many lengths": [
        TokenizedExample(tuple(range(1, 31)), 4, ((8, 12), (15, 25))),
        TokenizedExample((1, 2, 3, 9, 5), 4),
        TokenizedExample((1, 2, *range(20, 50), 3), 6, ((9, 30),)),
    ],
    "no prompt": [TokenizedExample((1, 2, 3), 0), TokenizedExample((1, 2, 3, 4), 0)],
}


@pytest.mark.parametrize("name", CASES)
def test_rows_give_the_losses_and_gradients_of_a_padded_batch(name: str, model: Any) -> None:
    examples = CASES[name]
    base = model.get_base_model()
    ours = packed.row_losses(base, packed.packed(packed.Layout.of(examples), PAD), CPU)
    expected = answer_losses(base, padded(examples, PAD))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(model, ours), gradients(model, expected), rtol=1e-4, atol=1e-5)


def test_no_example_sees_another(model: Any) -> None:
    base = model.get_base_model()
    examples = examples_that_share(8, [5, 6, 7], [3, 3, 3])
    others = [examples[0], *examples_that_share(8, [5, 6, 7], [3, 3, 3], seed=2)[1:]]
    others = [
        others[0],
        *(TokenizedExample((*examples[0].ids[:8], *one.ids[8:]), one.prompt_tokens) for one in others[1:]),
    ]
    with torch.no_grad():
        before, after = (
            packed.row_losses(base, packed.packed(packed.Layout.of(some), PAD), CPU) for some in (examples, others)
        )
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3:], after[3:])


def test_gradient_checkpointing_changes_nothing(model: Any) -> None:
    base = model.get_base_model()
    rows = packed.packed(packed.Layout.of(CASES["a long beginning"]), PAD)
    expected = gradients(model, packed.row_losses(base, rows, CPU))
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(gradients(model, packed.row_losses(base, rows, CPU)), expected)
    base.gradient_checkpointing_disable()


def test_a_beginning_is_computed_once_and_nothing_is_padding() -> None:
    examples = examples_that_share(20, [5, 1, 3, 9], [2, 2, 1, 4])
    rows = packed.packed(packed.Layout.of(examples), PAD)
    assert rows.input_ids.shape == (1, 20 + sum(len(one.ids) - 1 - 20 for one in examples))
    assert PAD not in rows.input_ids
    assert (rows.labels != -100).sum() == sum(one.answer_tokens for one in examples)


def test_rows_are_not_longer_than_they_may_be() -> None:
    rows = packed.packed(packed.Layout.of(CASES["several rows"]), PAD)
    assert rows.input_ids.shape[0] > 1
    assert rows.input_ids.shape[1] <= packed.ROW_TOKENS


def test_rows_are_taken_where_they_save_and_every_layer_heeds_their_mask() -> None:
    assert packed.Layout.of(CASES["a long beginning"]).saves
    assert not packed.Layout.of(examples_that_share(0, [30] * 4, [2] * 4)).saves
    assert not packed.Layout.of(CASES["one example"]).saves

    def takes(config: Any, attention: str = "sdpa") -> bool:
        config._attn_implementation = attention
        return packed.takes_rows(config)

    assert takes(LlamaConfig())
    assert not takes(LlamaConfig(), "flash_attention_2")
    assert not takes(MistralConfig(sliding_window=16))
    mixed = LlamaConfig()
    mixed.layer_types = ["full_attention", "sliding_attention"]
    assert not takes(mixed)
