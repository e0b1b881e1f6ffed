"""What a model says and how likely it finds an answer, against the same model asked plainly, one prompt at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loradrop_training.answers import answer_log_likelihoods, greedy_answers, log_likelihoods
from loradrop_training.examples import Example, tokenize

PROMPTS = [
    "<|begin_of_text|>A",
    "<|begin_of_text|>The soup was cold, the waiter was rude, and we waited for an hour. Then it rained on the way home.",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nGreat.<|eot_id|>",
    "<|begin_of_text|>The plot was gripping",
    "<|begin_of_text|>Never again",
    "<|begin_of_text|>A",
]
ANSWERS = ["positive<|eot_id|>", "not at all what I had hoped for<|eot_id|>", "x", " negative<|eot_id|>", "<|eot_id|>"]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def tokenizer(random_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(random_llama)


@pytest.fixture(scope="module")
def model(random_llama: Path) -> Any:
    """With an adapter that changes what is said, and a lively head: a random model repeats one token otherwise."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(random_llama, dtype=torch.float32)
    with torch.no_grad():
        base.lm_head.weight.mul_(8)
    tuned = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    return tuned.eval()


def plain_answer(model: Any, tokenizer: Any, prompt: str, stops: set[int]) -> str:
    """Token by token, without cache, mask or padding."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    said: list[int] = []
    with torch.inference_mode():
        while len(said) < NEW_TOKENS:
            said.append(int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
            if said[-1] in stops:
                break
    return str(tokenizer.decode(said, skip_special_tokens=True))


def plain_log_likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    given, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([given + said])).logits[0, len(given) - 1 : -1]
    return sum(row.log_softmax(-1)[token].item() for row, token in zip(logits, said, strict=True))


@pytest.mark.parametrize("batch_tokens", [1, 70, 8192])
def test_answers_are_those_of_one_prompt_at_a_time(model: Any, tokenizer: Any, batch_tokens: int) -> None:
    stops = set(model.generation_config.eos_token_id)
    expected = [plain_answer(model, tokenizer, prompt, stops) for prompt in PROMPTS]
    assert len(set(expected)) == 5  # the two equal prompts have one answer
    answers = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS, batch_tokens=batch_tokens)
    assert answers == expected


def test_an_answer_ends_with_the_turn_whoever_else_goes_on(model: Any, tokenizer: Any) -> None:
    """A token of one answer is made the end of turn: that answer ends before it, the others keep their whole length."""
    whole = [plain_answer(model, tokenizer, prompt, set()) for prompt in PROMPTS]
    ids = tokenizer(PROMPTS[1], add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        for _ in range(3):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [ids[-1]]
    try:
        answers = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS)
        expected = [plain_answer(model, tokenizer, prompt, {ids[-1], tokenizer.eos_token_id}) for prompt in PROMPTS]
    finally:
        model.generation_config.eos_token_id = before
    assert answers == expected
    assert len(answers[1]) < len(whole[1])
    assert any(answer == one for answer, one in zip(answers, whole, strict=True))


def test_the_base_answers_where_the_adapter_is_disabled(model: Any, tokenizer: Any, random_llama: Path) -> None:
    alone = AutoModelForCausalLM.from_pretrained(random_llama, dtype=torch.float32)
    with torch.no_grad():
        alone.lm_head.weight.mul_(8)
    with model.disable_adapter():
        answers = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS)
        scores = log_likelihoods(model, tokenizer, PROMPTS, ANSWERS)
    assert answers == greedy_answers(alone, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS)
    assert answers != greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS)
    np.testing.assert_allclose(scores, log_likelihoods(alone, tokenizer, PROMPTS, ANSWERS), atol=1e-4)


def test_sampling_settings_and_a_missing_padding_token_are_no_matter(model: Any, random_llama: Path) -> None:
    """As Llama-3.1-8B-Instruct comes: it samples by default, and its tokenizer cannot pad."""
    tokenizer = AutoTokenizer.from_pretrained(random_llama)
    expected = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS)
    tokenizer.pad_token = None
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.top_p = True, 0.6, 0.9
    try:
        assert greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS) == expected
    finally:
        settings.do_sample, settings.temperature, settings.top_p = False, None, None


@pytest.mark.parametrize("batch_tokens", [1, 70, 8192])
def test_log_likelihoods_are_those_of_a_plain_forward_pass(model: Any, tokenizer: Any, batch_tokens: int) -> None:
    expected = [[plain_log_likelihood(model, tokenizer, prompt, answer) for answer in ANSWERS] for prompt in PROMPTS]
    scores = log_likelihoods(model, tokenizer, PROMPTS, ANSWERS, batch_tokens=batch_tokens)
    assert scores.shape == (len(PROMPTS), len(ANSWERS))
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_long_list_of_labels_is_scored_as_its_parts_are(model: Any, tokenizer: Any) -> None:
    labels = [f"label {number} of many{' words' * (number % 4)}<|eot_id|>" for number in range(40)]
    together = log_likelihoods(model, tokenizer, PROMPTS, labels)
    apart = [log_likelihoods(model, tokenizer, PROMPTS, labels[start : start + 8]) for start in range(0, 40, 8)]
    np.testing.assert_allclose(together, np.hstack(apart), atol=1e-4)
    assert together[3, 37] == pytest.approx(plain_log_likelihood(model, tokenizer, PROMPTS[3], labels[37]), abs=1e-4)


def test_a_model_that_was_learning_answers_without_dropout_and_goes_on_learning(random_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(random_llama)
    base = AutoModelForCausalLM.from_pretrained(random_llama, dtype=torch.float32)
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_dropout=0.9, target_modules=["v_proj"], init_lora_weights=False
    )
    model = get_peft_model(base, settings)
    model.train()
    first, second = (log_likelihoods(model, tokenizer, PROMPTS, ANSWERS) for _ in range(2))
    assert (first == second).all()
    assert model.training


def test_nothing_asked_is_nothing_said_and_an_empty_answer_is_refused(model: Any, tokenizer: Any) -> None:
    assert greedy_answers(model, tokenizer, [], max_new_tokens=3) == []
    assert log_likelihoods(model, tokenizer, [], ANSWERS).shape == (0, len(ANSWERS))
    with pytest.raises(ValueError, match="without a token"):
        log_likelihoods(model, tokenizer, PROMPTS, ["positive", ""])


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text"])
def test_what_a_sliding_window_forgets_is_not_asked_for_again(tokenizer: Any, kind: str) -> None:
    """Prompts longer than the window: several labels are scored after one reading of them."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=6, pad_token_id=4084, bos_token_id=4080, eos_token_id=4089,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    expected = [[plain_log_likelihood(model, tokenizer, prompt, answer) for answer in ANSWERS] for prompt in PROMPTS]
    np.testing.assert_allclose(log_likelihoods(model, tokenizer, PROMPTS, ANSWERS), expected, atol=1e-3)
    said = [plain_answer(model, tokenizer, prompt, {tokenizer.eos_token_id}) for prompt in PROMPTS]
    assert greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=NEW_TOKENS) == said


@pytest.mark.parametrize("batch_tokens", [1, 70, 8192])
def test_the_likelihood_of_a_chats_answers_is_the_sum_over_their_tokens_alone(
    model: Any, tokenizer: Any, batch_tokens: int
) -> None:
    texts = [
        Example(PROMPTS[2], "Yes.<|eot_id|>", (("And the soup?", "Cold.<|eot_id|>"), ("Well.", "No.<|eot_id|>"))),
        Example(PROMPTS[1], "negative<|eot_id|>"),
    ]
    expected = [
        sum(
            plain_log_likelihood(model, tokenizer, given, answer)
            for given, answer in (
                (PROMPTS[2], "Yes.<|eot_id|>"),
                (f"{PROMPTS[2]}Yes.<|eot_id|>And the soup?", "Cold.<|eot_id|>"),
                (f"{PROMPTS[2]}Yes.<|eot_id|>And the soup?Cold.<|eot_id|>Well.", "No.<|eot_id|>"),
            )
        ),
        plain_log_likelihood(model, tokenizer, PROMPTS[1], "negative<|eot_id|>"),
    ]
    examples = tokenize(tokenizer, texts)
    found = answer_log_likelihoods(model, examples, pad_id=tokenizer.pad_token_id, batch_tokens=batch_tokens)
    assert found == pytest.approx(expected, rel=1e-4)
