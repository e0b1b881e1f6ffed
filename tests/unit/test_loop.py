"""The training loop: what is trained on, in which order, and that whoever is interrupted loses nothing."""

import dataclasses
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from loradrop_training import loop
from loradrop_training.base_model import load_weights
from loradrop_training.examples import TokenizedExample, answer_losses, padded
from loradrop_training.recipe import Optimisation

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = Optimisation(epochs=2, learning_rate=5e-3, warmup_steps=2, batch_tokens=64, accumulation=2, checkpoint_steps=2, seed=3)  # fmt: skip
PAD = 0


def some_examples(count: int = 24) -> list[TokenizedExample]:
    dice = random.Random(5)
    lengths = [(dice.randint(2, 20), dice.randint(1, 5)) for _ in range(count)]
    return [TokenizedExample(tuple(dice.randrange(1, 4000) for _ in range(p + a)), p) for p, a in lengths]


def tuned(folder: Path, dropout: float = 0.1, rank: int = 4) -> Any:
    """The base in `folder` with an untrained adapter, the same each time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "down_proj"]
    )
    return get_peft_model(model, config)


def train(base: Path, folder: Path, optimisation: Optimisation = QUICK, **options: Any) -> tuple[dict[str, torch.Tensor], list[loop.Logged]]:  # fmt: skip
    folder.mkdir(exist_ok=True)
    model = tuned(base, **options)
    entries = loop.train(model, some_examples(), optimisation, pad_id=PAD, folder=folder, made_from="this")
    return {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}, entries


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_loss_is_the_models_own_for_each_architecture(kind: str) -> None:
    """Against transformers' own forward and cross-entropy, which computes the head for every token."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    examples = [TokenizedExample(tuple(number % 90 + 3 for number in range(size)), size // 2) for size in (4, 9, 6)]
    batch = padded(examples, PAD)
    logits = model(batch.input_ids, attention_mask=(batch.input_ids != PAD).long()).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten())
    assert answer_losses(model, batch).mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_no_example_of_a_batch_reaches_another(random_llama: Path) -> None:
    """Whatever stands beside it, an example's losses are those that it has alone; nor does a gradient reach across."""
    model = tuned(random_llama).get_base_model().eval()
    examples = some_examples(6)
    together = answer_losses(model, padded(examples, PAD))
    alone = [answer_losses(model, padded([one], PAD)) for one in examples]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)

    embedded: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: embedded.append(output.detach().requires_grad_()) or embedded[-1]
    )
    first, *_ = answer_losses(model, padded(examples, PAD)).split([one.answer_tokens for one in examples])
    (gradient,) = torch.autograd.grad(first.sum(), embedded[-1])  # (examples, longest - 1, hidden_size)
    hook.remove()
    assert gradient[0].abs().sum() > 0
    assert gradient[1:].abs().sum() == 0


def test_a_model_that_did_look_at_its_neighbour_would_be_caught(random_llama: Path) -> None:
    """The same examples one behind the other in one row, as careless packing has them, give other losses."""
    model = tuned(random_llama).get_base_model().eval()
    one, other = some_examples(2)
    packed = TokenizedExample((*one.ids, *other.ids), len(one.ids) + other.prompt_tokens)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            answer_losses(model, padded([packed], PAD)), answer_losses(model, padded([other], PAD)), rtol=1e-4, atol=1e-5
        )  # fmt: skip


def test_each_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    examples = some_examples(50)
    schedule = loop.Schedule(examples, QUICK)
    steps, in_epoch = list(schedule), schedule.steps_in_epoch
    assert len(steps) == schedule.steps == 2 * in_epoch
    epochs = [list(chain(*chain(*steps[first : first + in_epoch]))) for first in (0, in_epoch)]
    assert all(sorted(one.ids for one in epoch) == sorted(one.ids for one in examples) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert all(len(groups) <= QUICK.accumulation for groups in steps)


def test_the_fullest_batches_come_first_and_later_epochs_are_in_random_order() -> None:
    long = TokenizedExample(tuple(range(1, 200)), 190)
    talkative = TokenizedExample(tuple(range(1, 61)), 1)
    schedule = loop.Schedule([*some_examples(50), long, talkative], dataclasses.replace(QUICK, accumulation=1))
    batches = [batch for (batch,) in schedule]
    assert batches[:2] == [[long], [talkative]]
    assert batches[schedule.steps_in_epoch : schedule.steps_in_epoch + 2] != batches[:2]


def test_steps_end_the_training_sooner_or_later_than_epochs() -> None:
    for steps in (1, 30):
        assert len(list(loop.Schedule(some_examples(), dataclasses.replace(QUICK, steps=steps)))) == steps


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_the_learning_rate_rises_and_falls(schedule: str, rates: Sequence[float]) -> None:
    optimisation = dataclasses.replace(QUICK, learning_rate=1.0, schedule=schedule)
    assert [loop.learning_rate(step, 6, optimisation) for step in range(6)] == pytest.approx(rates, abs=1e-4)


def test_accumulated_batches_are_one_large_batch(random_llama: Path, tmp_path: Path) -> None:
    """A step's gradient is the mean over its answer tokens, however they are shared out into batches."""
    large = dataclasses.replace(QUICK, batch_tokens=10_000, accumulation=1, steps=1, max_gradient_norm=1e9)
    small = dataclasses.replace(large, batch_tokens=40, accumulation=1000)
    norms = [train(random_llama, tmp_path / name, one, dropout=0.0)[1][0] for name, one in (("l", large), ("s", small))]
    assert norms[0].gradient_norm == pytest.approx(norms[1].gradient_norm, rel=1e-4)
    assert norms[0].loss == pytest.approx(norms[1].loss, rel=1e-4)


def test_training_learns(random_llama: Path, tmp_path: Path) -> None:
    examples = [TokenizedExample((*one.ids[: one.prompt_tokens], 7), one.prompt_tokens) for one in some_examples()]
    optimisation = dataclasses.replace(QUICK, epochs=10)
    entries = loop.train(
        tuned(random_llama, rank=16), examples, optimisation, pad_id=PAD, folder=tmp_path, made_from="this"
    )
    assert entries[-1].loss < 0.7 * entries[0].loss
    assert entries[-1].tokens == 10 * sum(len(one.ids) for one in examples)
    assert [one.step for one in entries] == list(range(1, len(entries) + 1))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_checkpointing_computes_the_same(random_llama: Path, tmp_path: Path, gradient_checkpointing: bool) -> None:
    weights, _ = train(random_llama, tmp_path / "a", dropout=0.0)
    again, _ = train(
        random_llama, tmp_path / "b", dataclasses.replace(QUICK, gradient_checkpointing=gradient_checkpointing), dropout=0.0
    )  # fmt: skip
    for name in weights:
        torch.testing.assert_close(weights[name], again[name], rtol=1e-4, atol=1e-6)


def test_who_is_interrupted_and_resumes_has_the_weights_of_who_was_not(random_llama: Path, tmp_path: Path) -> None:
    """Killed without warning once a checkpoint is there; the optimizer's moments and the dropout go on as if nothing was."""
    whole, entries = train(random_llama, tmp_path / "whole")
    folder = tmp_path / "killed"
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_loop import train;"
        "train(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    path = os.pathsep.join((str(REPOSITORY / "functions"), str(REPOSITORY)))
    process = subprocess.Popen(
        [sys.executable, "-c", program, random_llama, folder],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (folder / loop.CHECKPOINT_FILE).exists():
        assert process.poll() is None, "ended without a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    state = torch.load(folder / loop.CHECKPOINT_FILE, weights_only=True)
    assert state["step"] > 0
    resumed, all_entries = train(random_llama, folder)
    assert equal(resumed, whole)
    assert [one.step for one in all_entries] == list(range(1, len(entries) + 1))
    assert [one.loss for one in all_entries] == [one.loss for one in entries]


def test_half_a_line_that_was_written_behind_the_checkpoint_is_no_matter(random_llama: Path, tmp_path: Path) -> None:
    """A process that is killed leaves of its log what a buffer held."""
    _, entries = train(random_llama, tmp_path)
    state = torch.load(tmp_path / loop.CHECKPOINT_FILE, weights_only=True)
    torch.save(state | {"step": len(entries) - 1}, tmp_path / loop.CHECKPOINT_FILE)
    log = tmp_path / loop.LOG_FILE
    *lines, last = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines) + last[: len(last) // 2])
    _, again = train(random_llama, tmp_path)
    assert [one.step for one in again] == [one.step for one in entries]
    assert again[:-1] == entries[:-1]


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(random_llama: Path, tmp_path: Path) -> None:
    model = tuned(random_llama)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    checkpoint = loop.Checkpoint(tmp_path / loop.CHECKPOINT_FILE, model, optimizer, "this")
    checkpoint.save(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert checkpoint.load() == 1
    assert [one.name for one in tmp_path.iterdir()] == [loop.CHECKPOINT_FILE]


def test_a_signal_ends_it_after_the_step_with_a_checkpoint(random_llama: Path, tmp_path: Path) -> None:
    whole, _ = train(random_llama, tmp_path / "whole")
    folder = tmp_path / "stopped"
    # The signal is there before the first step, and is heard after it.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        stopper = subprocess.Popen(["sh", "-c", f"until [ -s {folder}/{loop.LOG_FILE} ]; do sleep 0.01; done; kill -TERM {os.getpid()}"])  # fmt: skip
        with pytest.raises(loop.InterruptedTraining) as caught:
            train(random_llama, folder, dataclasses.replace(QUICK, epochs=400))
        stopper.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.signal_number == signal.SIGTERM
    assert torch.load(folder / loop.CHECKPOINT_FILE, weights_only=True)["step"] == caught.value.step
    assert len(whole) > 0


def test_a_checkpoint_of_another_training_is_refused(random_llama: Path, tmp_path: Path) -> None:
    train(random_llama, tmp_path)
    model = tuned(random_llama)
    with pytest.raises(loop.TrainingError, match="another base or another number of processes; --force"):
        loop.train(model, some_examples(), QUICK, pad_id=PAD, folder=tmp_path, made_from="other")


def test_a_checkpoint_without_its_log_is_told_in_words(random_llama: Path, tmp_path: Path) -> None:
    train(random_llama, tmp_path)
    (tmp_path / loop.LOG_FILE).unlink()
    with pytest.raises(loop.TrainingError, match=r"training_log\.csv lacks steps .* --force starts over"):
        train(random_llama, tmp_path)


def test_a_damaged_checkpoint_is_told_in_words(random_llama: Path, tmp_path: Path) -> None:
    (tmp_path / loop.CHECKPOINT_FILE).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(loop.TrainingError, match="cannot be read"):
        train(random_llama, tmp_path)


def test_memory_that_does_not_suffice_shows_before_the_first_step(random_llama: Path, tmp_path: Path) -> None:
    """The fullest batch is tried first, wherever it comes in the epoch."""
    examples = [*some_examples(), TokenizedExample(tuple(range(1, 100)), 2)]
    model = tuned(random_llama)
    sizes: list[int] = []

    def full_device(_module: Any, inputs: tuple[torch.Tensor]) -> None:
        sizes.append(inputs[0].shape[1])
        if sizes[-1] > 50:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.get_input_embeddings().register_forward_pre_hook(full_device)
    with pytest.raises(torch.OutOfMemoryError):
        loop.train(model, examples, QUICK, pad_id=PAD, folder=tmp_path, made_from="this")
    assert len(sizes) == 1


def test_a_loss_that_is_not_finite_ends_the_training(random_llama: Path, tmp_path: Path) -> None:
    model = tuned(random_llama)
    with torch.no_grad():
        model.get_base_model().lm_head.weight[7] = torch.inf
    with pytest.raises(loop.TrainingError, match=r"not finite at step 1; lower optimisation\.learning_rate"):
        loop.train(model, some_examples(), QUICK, pad_id=PAD, folder=tmp_path, made_from="this")
    assert not (tmp_path / loop.CHECKPOINT_FILE).exists()


def test_two_processes_make_the_adapter_of_one(random_llama: Path, tmp_path: Path) -> None:
    """The same batches to a step, shared out: 2 times 2 against 1 times 4, to rounding."""
    alone, _ = train(random_llama, tmp_path / "alone", dataclasses.replace(QUICK, accumulation=4), dropout=0.0)
    program = (
        "import sys, torch; from pathlib import Path; from tests.unit.test_loop import QUICK, train;"
        "torch.set_num_threads(1); folder = Path(sys.argv[2]);"
        "weights, _ = train(Path(sys.argv[1]), folder, QUICK, dropout=0.0);"
        "import os; torch.save(weights, folder / f'weights-{os.environ[\"RANK\"]}.pt');"
        "torch.distributed.destroy_process_group()"
    )
    running = two_processes(program, random_llama, tmp_path / "two")
    assert [one.wait(timeout=120) for one in running] == [0, 0]
    first, second = (torch.load(tmp_path / "two" / f"weights-{rank}.pt", weights_only=True) for rank in range(2))
    assert equal(first, second)
    for name in alone:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-3, atol=1e-5)


def test_where_one_of_two_processes_is_asked_to_stop_both_stop_after_the_same_step(
    random_llama: Path, tmp_path: Path
) -> None:
    """The other one would wait for its gradients for ever."""
    program = (
        "import dataclasses, sys, torch; from pathlib import Path; from tests.unit.test_loop import QUICK, loop, train\n"
        "torch.set_num_threads(1)\n"
        "try: train(Path(sys.argv[1]), Path(sys.argv[2]), dataclasses.replace(QUICK, epochs=1000))\n"
        "except loop.InterruptedTraining as stopped: print(stopped.step, stopped.signal_number, flush=True)\n"
        "torch.distributed.destroy_process_group()"
    )
    first, second = two_processes(program, random_llama, tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / loop.CHECKPOINT_FILE).exists():
        assert first.poll() is second.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second.terminate()
    printed = [one.communicate(timeout=60)[0].splitlines()[-1] for one in (first, second)]
    step = torch.load(tmp_path / loop.CHECKPOINT_FILE, weights_only=True)["step"]
    assert printed == [f"{step} {signal.SIGTERM.value}"] * 2


def two_processes(program: str, *arguments: Path) -> "list[subprocess.Popen[str]]":
    path = os.pathsep.join((str(REPOSITORY / "functions"), str(REPOSITORY)))
    shared = {"PYTHONPATH": path, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_weights_are_loaded_frozen_in_the_type_that_is_asked_for(random_llama: Path) -> None:
    from loradrop_training.base_model import find_base
    from loradrop_training.recipe import Base

    base = find_base(Base(model=str(random_llama), profile="tiny-llama"))
    model = load_weights(base, torch.bfloat16, four_bit=False)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert not any(one.requires_grad for one in model.parameters())
