"""The training loop: one adapter's parameters, on one device or several, from the first step or from a checkpoint.

A loop of our own, not transformers' Trainer: batches by length, the examples' common beginning computed once, and the head
for the answers' tokens alone save more than half of the time on sentences (docs/benchmarks.md), and Trainer has no settings
for them.
"""

import csv
import math
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from tqdm import tqdm

from . import packed
from .examples import TokenizedExample, grouped, padded_tokens
from .recipe import Optimisation

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "training_log.csv"
_SECONDS_BETWEEN_LINES = 10.0

Group = list[TokenizedExample]


class TrainingError(Exception):
    """Training that cannot go on; the message says what to change."""


class InterruptedTraining(Exception):  # noqa: N818 - nothing went wrong
    """Somebody asked to stop. The trained weights are in the checkpoint."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
        self.signal_number = signal_number


@dataclass(frozen=True, slots=True)
class Logged:
    """One optimizer step, as the log has it. `tokens` and `seconds` are since the beginning, padding left out."""

    step: int
    epoch: float
    loss: float  # nats per answer token
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


def processes() -> tuple[int, int]:
    """(this one's number, how many); `accelerate launch` starts several, each with a device of its own."""
    if "RANK" not in os.environ:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes


def batches_of(examples: Sequence[TokenizedExample], optimisation: Optimisation, epoch: int = 0) -> list[Group]:
    """An epoch's batches. Each epoch has as many of the same sizes: what differs is which examples of a length share one."""
    dice = random.Random(f"{optimisation.seed} {epoch}")
    return grouped(examples, max_tokens=optimisation.batch_tokens, dice=dice)


def steps_of(batches: int, optimisation: Optimisation, count: int = 1) -> tuple[int, int]:
    """(optimizer steps in all, steps in an epoch), where an epoch has so many batches, for `count` processes."""
    in_epoch = math.ceil(batches / (optimisation.accumulation * count))
    return optimisation.steps or in_epoch * optimisation.epochs, in_epoch


class Schedule:
    """The batches of each optimizer step, of all processes together; a function of the recipe alone.

    The fullest batches come first of all: memory that does not suffice shows in the first steps, not in an hour.
    """

    def __init__(self, examples: Sequence[TokenizedExample], optimisation: Optimisation, count: int = 1) -> None:
        self._examples = examples
        self._optimisation = optimisation
        self._each = optimisation.accumulation * count
        self._first = _fullest_first(batches_of(examples, optimisation))
        self.steps, self.steps_in_epoch = steps_of(len(self._first), optimisation, count)

    def __iter__(self) -> Iterator[list[Group]]:
        batches, step = self._first, 0
        for epoch in count_from(1):
            for first in range(0, len(batches), self._each):
                if step == self.steps:
                    return
                yield batches[first : first + self._each]
                step += 1
            batches = batches_of(self._examples, self._optimisation, epoch)


def _fullest_first(batches: list[Group]) -> list[Group]:
    """The batch with the most columns, and that with the most answer tokens, before the others in their order."""
    largest = max(batches, key=padded_tokens)
    most_answers = max(batches, key=lambda group: sum(one.answer_tokens for one in group))
    return sorted(batches, key=lambda group: 0 if group is largest else 1 if group is most_answers else 2)


def learning_rate(step: int, total: int, optimisation: Optimisation) -> float:
    """Of step 0 … total - 1."""
    warmup = min(optimisation.warmup_steps, total // 2)
    if step < warmup:
        return optimisation.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    shares = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return optimisation.learning_rate * shares[optimisation.schedule]


def train(
    model: Any,
    examples: Sequence[TokenizedExample],
    optimisation: Optimisation,
    *,
    pad_id: int,
    folder: Path,
    made_from: str,
) -> list[Logged]:
    """Trains the adapter of a peft model in place; every step's figures, those before a resumed checkpoint too.

    Goes on from the checkpoint in `folder` where there is one, which must be `made_from` the same; leaves one there.
    Raises InterruptedTraining, TrainingError, and torch's out-of-memory errors as they come.
    """
    rank, count = processes()
    schedule = Schedule(examples, optimisation, count)
    total = schedule.steps
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trainable[0].device
    optimizer = torch.optim.AdamW(trainable, lr=0.0, weight_decay=optimisation.weight_decay, fused=True)
    checkpoint = Checkpoint(folder / CHECKPOINT_FILE, model, optimizer, made_from)
    done = checkpoint.load()
    log = _Log(folder / LOG_FILE, done, is_written=rank == 0)
    base = model.get_base_model()
    computes = next(one.dtype for one in base.parameters() if one.is_floating_point() and not one.requires_grad)
    autocast = torch.autocast(device.type, torch.bfloat16) if computes == torch.bfloat16 else nullcontext()
    if optimisation.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # The optimizer's moments come with its first step; their room is taken before, so that the first step takes all it will.
    moments = [] if done else [torch.ones_like(one) for one in trainable for _ in range(2)]
    with _stoppable() as stop, Bar(total, done, is_shown=rank == 0) as bar, log:
        for step, groups in enumerate(schedule):
            if step < done:
                continue
            # Dropout depends on the step alone: nothing of it needs to be kept for whoever resumes.
            torch.manual_seed(hash((optimisation.seed, step, rank)) & 0x7FFF_FFFF)
            rate = learning_rate(step, total, optimisation)
            for group in optimizer.param_groups:
                group["lr"] = rate
            answer_tokens = sum(one.answer_tokens for batch in groups for one in batch)
            loss = torch.zeros((), device=device)
            for batch in groups[rank::count]:
                with autocast:
                    share = packed.losses(base, batch, pad_id, device).sum() / answer_tokens
                share.backward()  # type: ignore[no-untyped-call]
                loss += share.detach()
            moments.clear()
            asked = stop.signal_number
            if count > 1 and _add_up(trainable, loss, asked):  # whichever process was asked: all stop after one step
                asked = asked or signal.SIGTERM
            norm = torch.nn.utils.clip_grad_norm_(trainable, optimisation.max_gradient_norm)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"The loss or its gradient is not finite at step {step + 1}; lower optimisation.learning_rate (now {optimisation.learning_rate:g})."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            entry = log.add(
                step + 1, (step + 1) / schedule.steps_in_epoch, loss.item(), rate, norm.item(), _tokens(groups), device
            )
            bar.show(entry.step, entry.loss, _tokens(groups))
            is_due = (step + 1) % optimisation.checkpoint_steps == 0 or step + 1 == total
            if (is_due or asked) and rank == 0:
                log.flush()
                checkpoint.save(step + 1)
            if asked:
                raise InterruptedTraining(step + 1, asked)
    if optimisation.gradient_checkpointing:
        base.gradient_checkpointing_disable()
    model.eval()
    return log.entries


def _tokens(groups: Sequence[Group]) -> int:
    return sum(len(one.ids) for group in groups for one in group)


def _add_up(trainable: Sequence[torch.Tensor], loss: torch.Tensor, asked: int) -> bool:
    """The gradients of all processes together. They are few: an adapter's; so no wrapper need overlap them with the work.

    True where any process was `asked` to stop: one that stopped alone would leave the others waiting for its gradients.
    """
    for parameter in trainable:
        if parameter.grad is None:  # nothing was left for this process
            parameter.grad = torch.zeros_like(parameter)
    others = torch.stack((loss, torch.full_like(loss, asked)))
    flat = torch.cat([*(parameter.grad.flatten() for parameter in trainable if parameter.grad is not None), others])
    distributed.all_reduce(flat)
    at = 0
    for parameter in trainable:
        assert parameter.grad is not None
        parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
        at += parameter.numel()
    loss.copy_(flat[-2])
    return bool(flat[-1] > 0)


class Checkpoint:
    """The adapter, the optimizer and the step, in one file that is there whole or not at all."""

    def __init__(self, file: Path, model: Any, optimizer: torch.optim.Optimizer, made_from: str) -> None:
        self._file = file
        self._parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._optimizer = optimizer
        self._made_from = made_from

    def save(self, step: int) -> None:
        state = {
            "step": step,
            "made_from": self._made_from,
            "adapter": {name: one.detach() for name, one in self._parameters.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        part = self._file.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._file)
        finally:
            part.unlink(missing_ok=True)  # half of one would take the room that a full disk lacks

    def load(self) -> int:
        """The step after which it was made; 0 where there is none. Raises TrainingError where it is of another training."""
        if not self._file.exists():
            return 0
        try:
            state = torch.load(self._file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises what it meets: pickle's, zip's, its own
            raise TrainingError(f"{self._file} cannot be read ({error}); --force starts over.") from error
        if state["made_from"] != self._made_from:
            raise TrainingError(
                f"{self._file} was made by another recipe, other data, another base or another number of processes; "
                "--force starts over."
            )
        with torch.no_grad():
            for name, value in state["adapter"].items():
                self._parameters[name].copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


class _Log:
    """The CSV log: a line for each step, also when somebody resumes."""

    def __init__(self, file: Path, done: int, *, is_written: bool) -> None:
        self.entries: list[Logged] = []
        self._file = file
        self._is_written = is_written
        if done and is_written and file.exists():
            with file.open(newline="") as lines:
                # What is behind the checkpoint may end in half a line.
                self.entries = [_read_entry(row) for row in islice(csv.DictReader(lines), done)]
        if is_written and len(self.entries) < done:
            raise TrainingError(f"{file} lacks steps that the checkpoint beside it holds; --force starts over.")
        self._seconds_before = self.entries[-1].seconds if self.entries else 0.0
        self._started = self._last = time.perf_counter()

    def __enter__(self) -> "_Log":
        if self._is_written:
            self._lines = self._file.open("w", newline="")
            self._writer = csv.DictWriter(self._lines, list(Logged.__slots__))
            self._writer.writeheader()
            self._writer.writerows(map(asdict, self.entries))
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_written:
            self._lines.close()

    def add(
        self, step: int, epoch: float, loss: float, rate: float, norm: float, tokens: int, device: torch.device
    ) -> Logged:
        now = time.perf_counter()
        before = self.entries[-1].tokens if self.entries else 0
        entry = Logged(
            step=step,
            epoch=round(epoch, 4),
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=before + tokens,
            seconds=round(self._seconds_before + now - self._started, 3),
            tokens_per_second=round(tokens / (now - self._last), 1),
            peak_memory_bytes=peak_memory_bytes(device),
        )
        self._last = now
        self.entries.append(entry)
        if self._is_written:
            self._writer.writerow(asdict(entry))
        return entry

    def flush(self) -> None:
        """Onto the disk: a checkpoint counts on the lines of its steps."""
        self._lines.flush()
        os.fsync(self._lines.fileno())


def _read_entry(row: dict[str, str]) -> Logged:
    whole = {"step", "tokens", "peak_memory_bytes"}
    return Logged(**{name: int(text) if name in whole else float(text) for name, text in row.items()})  # type: ignore[arg-type]


def peak_memory_bytes(device: torch.device) -> int:
    """The device's since the training began; on a CPU the process's since it began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Bar:
    """Loss, tokens per second and the time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, done: int = 0, *, is_shown: bool = True) -> None:
        self._total = total
        self._done = done
        is_terminal = is_shown and sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit="step", desc="training", dynamic_ncols=True, disable=not is_terminal
        )
        self._has_lines = is_shown and not is_terminal
        self._started = self._last = self._next_line = time.perf_counter()
        self._smooth_loss = math.nan
        self._speed = math.nan

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, step: int, loss: float, tokens: int) -> None:
        """`loss` is in nats, `tokens` those of this step."""
        now = time.perf_counter()
        self._smooth_loss = _smooth(self._smooth_loss, loss)
        self._speed = _smooth(self._speed, tokens / (now - self._last))
        self._last = now
        self._bar.set_postfix_str(f"loss {self._smooth_loss:.3f} nats, {self._speed:,.0f} tokens/s", refresh=False)
        self._bar.update()
        if self._has_lines and (now >= self._next_line or step == self._total):
            self._next_line = now + _SECONDS_BETWEEN_LINES
            seconds = now - self._started
            left = seconds / (step - self._done) * (self._total - step)
            print(
                f"  step {step:>5}/{self._total}  loss {self._smooth_loss:.3f} nats  {self._speed:>9,.0f} tokens/s"
                f"  {seconds:4.0f} s elapsed, {left:3.0f} s left",
                flush=True,
            )


def _smooth(before: float, now: float) -> float:
    return now if math.isnan(before) else 0.9 * before + 0.1 * now


class _Stop:
    signal_number = 0


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    """Ctrl-C, or the SIGTERM of a machine that is taken back, ends the training after the step that runs. A second one ends it at once."""
    stop = _Stop()

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.signal_number = number
        signal.signal(number, before[signal.Signals(number)])
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone may ask for signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
