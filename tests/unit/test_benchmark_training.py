"""That the benchmark of training compares like with like: the same tokens, the same steps, the same learning rates."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import training as benchmark
from benchmarks.training import CONTENDERS, DATA, Job
from loradrop_training import loop
from loradrop_training.device import one_thread
from loradrop_training.examples import IGNORED, padded

EXAMPLES = 21
JOB = Job(
    contender="",
    model="tiny",
    large_width=4096,
    data="sentences",
    examples=EXAMPLES,
    epochs=2,
    lora_rank=2,
    lora_alpha=4,
    lora_dropout=0.0,
    learning_rate=1e-3,
    seed=1,
    threads=1,
    evaluates_held_out=False,
)


@pytest.fixture(scope="module")
def tokenizer(random_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(random_llama, local_files_only=True)


def model_of(folder: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))


def trained_on(
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]], pad_id: int
) -> Counter[tuple[tuple[int, ...], ...]]:
    """Each row's ids and labels without its padding, and how often it comes."""
    found: Counter[tuple[tuple[int, ...], ...]] = Counter()
    for input_ids, labels in batches:
        for ids, row in zip(input_ids.tolist(), labels.tolist(), strict=True):
            length = len(ids) - ids.count(pad_id)
            assert ids[length:] == [pad_id] * (len(ids) - length)
            assert row[length:] == [IGNORED] * (len(ids) - length)
            found[tuple(ids[:length]), tuple(row[:length])] += 1
    return found


@pytest.mark.parametrize("data", DATA)
def test_both_learn_the_same_tokens(data: str, random_llama: Path, tokenizer: Any, tmp_path: Path) -> None:
    examples = DATA[data](tokenizer)[:EXAMPLES]
    pad_id = tokenizer.pad_token_id
    trainer = benchmark.plain_trainer(model_of(random_llama), tokenizer, examples, JOB, tmp_path)
    theirs = trained_on(((one["input_ids"], one["labels"]) for one in trainer.get_train_dataloader()), pad_id)
    groups = [group for step in loop.Schedule(examples, benchmark.our_optimisation(examples, JOB)) for group in step]
    batches = [padded(group, pad_id) for group in groups]
    ours = trained_on(((batch.input_ids, batch.labels) for batch in batches), pad_id)
    assert ours == Counter({row: JOB.epochs * times for row, times in theirs.items()})
    assert ours.total() == JOB.epochs * EXAMPLES


@pytest.mark.parametrize("data", DATA)
def test_both_take_the_same_steps_at_the_same_rates(
    data: str, random_llama: Path, tokenizer: Any, tmp_path: Path
) -> None:
    examples = DATA[data](tokenizer)[:EXAMPLES]
    rates: dict[str, list[float]] = {}
    for name in benchmark.COMPARED:
        contender = CONTENDERS[name]
        model = model_of(random_llama)
        taken = rates[name] = []
        folder = tmp_path / name
        folder.mkdir()
        run = contender(model, tokenizer, examples, JOB, folder)
        watching = register_optimizer_step_post_hook(
            lambda optimizer, *_, taken=taken: taken.append(optimizer.param_groups[0]["lr"])
        )
        with one_thread():
            run()
        watching.remove()
    assert rates["ours"] == pytest.approx(rates["plain"])
    for name, taken in rates.items():
        seen = benchmark.examples_seen(examples, dataclasses.replace(JOB, contender=name))
        assert len(taken) == len(seen) == JOB.epochs * 3
        assert seen[-1] == JOB.epochs * EXAMPLES


def test_the_large_shape_narrows_to_one_that_can_be_made() -> None:
    narrow = benchmark.LARGE.at_width(256)
    assert (narrow.layers, narrow.heads, narrow.key_value_heads, narrow.inner_width) == (32, 2, 1, 896)
    assert benchmark.LARGE.at_width(4096).heads == benchmark.LARGE.heads
