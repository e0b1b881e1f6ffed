"""How fast and how small our training loop is beside transformers' Trainer and trl's SFTTrainer, and that the losses are the same.

    pip install -r benchmarks/requirements.txt  trl, which nothing else here needs; without it, it is left out
    python -m benchmarks.training               about twelve minutes; the tiny base takes two more, once
    python -m benchmarks.training --quick       a minute: does it run? Its figures say nothing
    python -m benchmarks.training --threads 2   as many as the machine has to spare

Speed: one epoch of LoRA on a Llama with random weights, made on the fly; on a CUDA device also on one of Llama-3.1-8B's
shape. Each try is a process of its own, the contenders taking turns; of each figure the least of its tries. On one thread of a CPU, seconds are the
processor's. Learning: the
tiny base, several seeds, the loss on held-out answers at the same number of examples seen. The tables go to standard
output, progress to standard error, the picture to docs/pictures/training-loss.png. Memory on a CPU needs Linux.
"""

import argparse
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from loradrop_training import base_model, loop
from loradrop_training.chats import Chat
from loradrop_training.device import DTYPES
from loradrop_training.device import device as training_device
from loradrop_training.examples import (
    TokenizedExample,
    answer_losses,
    chat_example,
    chat_examples,
    grouped,
    padded,
    tokenize,
)
from loradrop_training.recipe import MODULES, Optimisation
from loradrop_training.tiny import TINY_LLAMA_DIR, tiny_base

ROOT = Path(__file__).parents[1]
DATA_DIR = ROOT / "training" / "loradrop_training" / "data"
PICTURE = ROOT / "docs" / "pictures" / "training-loss.png"
MIB = 1024 * 1024
EXAMPLES_PER_STEP = 8  # TrainingArguments' default
CHECKS_PER_EPOCH = 4
LEAST_TIMES = 1.4

# peft sets what transformers is about to rename; nobody here can fix it.
warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing.*` is deprecated")


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama with random weights."""

    about: str
    layers: int
    width: int
    inner_width: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    is_tied: bool  # the head is the embedding
    precision: str
    gradient_checkpointing: bool

    def at_width(self, width: int) -> "Shape":
        """The same in narrow: the width of a head stays, the vocabulary shrinks along, down to the tokenizer's."""
        share = width / self.width
        return Shape(
            about=f"{self.about}, narrowed from {self.width} to {width}",
            layers=self.layers,
            width=width,
            inner_width=int(self.inner_width * share),
            heads=width // self.head_width,
            key_value_heads=max(1, int(self.key_value_heads * share)),
            head_width=self.head_width,
            vocabulary=max(4096, int(self.vocabulary * share)),
            is_tied=self.is_tied,
            precision=self.precision,
            gradient_checkpointing=self.gradient_checkpointing,
        )


SMALL = Shape(
    "Llama-3.2-1B at a quarter of its width and of its vocabulary", 16, 512, 2048, 8, 2, 64, 32_064, True, "fp32", False
)
LARGE = Shape("the shape of Llama-3.1-8B", 32, 4096, 14_336, 32, 8, 128, 128_256, False, "bf16", True)


@dataclass(frozen=True, slots=True)
class Job:
    """What one process trains: the contender, the model, the data, for how long."""

    contender: str
    model: str  # "small", "large" or "tiny", the pretrained one
    large_width: int
    data: str
    examples: int
    epochs: int
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    learning_rate: float
    seed: int
    threads: int
    evaluates_held_out: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """Positions are what goes through the layers, padding included; `tokens` are those of the examples, padding left out."""

    seconds: float
    peak_bytes: int  # above what was held once the model was loaded
    parameters: int
    steps: int
    tokens: int
    positions: int
    padding: int
    head_rows: int
    curve: list[tuple[int, float]]  # (examples seen, held-out loss in nats per answer token)


# The data


def labelled_sentences(split: str) -> list[tuple[str, str]]:
    """(text, label) of the "train" split or of the "test" split."""
    entries = map(json.loads, (DATA_DIR / f"sentiment-{split}.jsonl").read_text().splitlines())
    return [(entry["text"], entry["label"]) for entry in entries]


def sentence_examples(tokenizer: Any, split: str = "train") -> list[TokenizedExample]:
    """Labelled sentences, as the sentiment adapter learns them: much the same length each."""
    return tokenize(
        tokenizer,
        [
            chat_example(tokenizer, f"Is this review positive or negative?\n\n{text}", label)
            for text, label in labelled_sentences(split)
        ],
    )


def review_examples(tokenizer: Any) -> list[TokenizedExample]:
    """Such sentences joined to reviews of log-normal length: the median 32 tokens, sigma 0.9, at most 192. The answer is
    each one's label. The question comes last: but for the chat's header, no two begin alike."""
    dice = random.Random(1)
    pool = labelled_sentences("train")
    examples = []
    for _ in pool:
        wanted = min(192, math.exp(dice.gauss(math.log(32), 0.9)))
        chosen = [dice.choice(pool)]
        while len(tokenizer(" ".join(text for text, _ in chosen))["input_ids"]) < wanted:
            chosen.append(dice.choice(pool))
        text = " ".join(text for text, _ in chosen) + "\n\nIs each sentence positive or negative?"
        examples.append(chat_example(tokenizer, text, " ".join(label for _, label in chosen)))
    return tokenize(tokenizer, examples)


def chat_data(tokenizer: Any) -> list[TokenizedExample]:
    """Chats of one to six questions, under one system message: reviews are written and labelled in turn. All answers are
    trained on, and most tokens are theirs."""
    dice = random.Random(1)
    pool = labelled_sentences("train")
    examples = []
    for _ in pool:
        messages: list[dict[str, Any]] = [{"role": "system", "content": "You write reviews, and say what they are."}]
        for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4, 6))):
            written = [dice.choice(pool) for _ in range(dice.choice((1, 1, 2, 3)))]
            labels = " ".join(label for _, label in written)
            for question, answer in (
                ("Write a review.", " ".join(text for text, _ in written)),
                ("Is each sentence positive or negative?", labels),
            ):
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        answers = (number for number, one in enumerate(messages) if one["role"] == "assistant")
        examples += chat_examples(tokenizer, Chat(tuple(messages), frozenset(answers)))
    return tokenize(tokenizer, examples)


DATA: dict[str, Callable[[Any], list[TokenizedExample]]] = {
    "sentences": sentence_examples,
    "reviews": review_examples,
    "chats": chat_data,
}


# The contenders: each gets ready, and trains when it is called


def batch_tokens(examples: Sequence[TokenizedExample]) -> int:
    """The smallest batch that learns the examples in no more steps than the plain one takes."""
    steps = math.ceil(len(examples) / EXAMPLES_PER_STEP)
    tokens = math.ceil(sum(len(one.ids) for one in examples) / steps)
    while len(grouped(examples, max_tokens=tokens, dice=random.Random(0))) > steps:
        tokens += 1
    return tokens


def ours(model: Any, tokenizer: Any, examples: Sequence[TokenizedExample], job: Job, folder: Path) -> Callable[[], Any]:
    optimisation = our_optimisation(examples, job)
    return lambda: loop.train(
        model, examples, optimisation, pad_id=tokenizer.pad_token_id, folder=folder, made_from="the benchmark"
    )


def our_optimisation(examples: Sequence[TokenizedExample], job: Job) -> Optimisation:
    """What Trainer does by default, where ours has a default of its own."""
    return Optimisation(
        epochs=job.epochs,
        learning_rate=job.learning_rate,
        schedule="linear",
        warmup_steps=0,
        batch_tokens=batch_tokens(examples),
        gradient_checkpointing=job.model == "large",
        seed=job.seed,
    )


def plain_rows(examples: Sequence[TokenizedExample]) -> list[dict[str, list[int]]]:
    """What the plain example's `map` makes of a data set."""
    return [
        {
            "input_ids": list(one.ids),
            "attention_mask": [1] * len(one.ids),
            "labels": one.labels().tolist(),
        }
        for one in examples
    ]


def plain(
    model: Any, tokenizer: Any, examples: Sequence[TokenizedExample], job: Job, folder: Path
) -> Callable[[], Any]:
    train: Callable[[], Any] = plain_trainer(model, tokenizer, examples, job, folder).train
    return train


def plain_trainer(model: Any, tokenizer: Any, examples: Sequence[TokenizedExample], job: Job, folder: Path) -> Trainer:
    is_large = job.model == "large"
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=job.epochs,
        learning_rate=job.learning_rate,
        bf16=is_large,
        use_cpu=device_of(job).type == "cpu",
        gradient_checkpointing=is_large,
        gradient_checkpointing_kwargs={"use_reentrant": False} if is_large else None,
        seed=job.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer)  # pads to the batch's longest, labels with -100
    return Trainer(model=model, args=arguments, train_dataset=plain_rows(examples), data_collator=collator)


def trl_padded(
    model: Any, tokenizer: Any, examples: Sequence[TokenizedExample], job: Job, folder: Path
) -> Callable[[], Any]:
    return trl_trainer(model, tokenizer, examples, job, folder, packing=False)


def trl_packed(
    model: Any, tokenizer: Any, examples: Sequence[TokenizedExample], job: Job, folder: Path
) -> Callable[[], Any]:
    """Each batch is one row of as many tokens as our batches have, filled by trl's best-fit packing."""
    return trl_trainer(model, tokenizer, examples, job, folder, packing=True)


def trl_trainer(
    model: Any, tokenizer: Any, examples: Sequence[TokenizedExample], job: Job, folder: Path, *, packing: bool
) -> Callable[[], Any]:
    from datasets import Dataset  # of the benchmark's own requirements
    from trl import SFTConfig, SFTTrainer

    is_large = job.model == "large"
    rows = [
        {"input_ids": list(one.ids), "completion_mask": [int(label != -100) for label in one.labels().tolist()]}
        for one in examples
    ]
    settings = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=job.epochs,
        per_device_train_batch_size=1 if packing else EXAMPLES_PER_STEP,
        learning_rate=job.learning_rate,
        bf16=is_large,
        use_cpu=device_of(job).type == "cpu",
        gradient_checkpointing=is_large,
        gradient_checkpointing_kwargs={"use_reentrant": False} if is_large else None,
        completion_only_loss=True,
        packing=packing,
        max_length=max(batch_tokens(examples), *(len(one.ids) for one in examples)),
        seed=job.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataset_num_proc=None,
    )
    trainer = SFTTrainer(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    train: Callable[[], Any] = trainer.train
    return train


CONTENDERS: dict[str, Callable[..., Callable[[], Any]]] = {"plain": plain, "ours": ours}
if find_spec("trl"):
    CONTENDERS = {"plain": plain, "trl": trl_padded, "trl_packed": trl_packed, "ours": ours}
LABELS = {
    "plain": "plain `Trainer`",
    "trl": "trl's `SFTTrainer`",
    "trl_packed": "trl's `SFTTrainer`, packing",
    "ours": "**ours**",
}
COMPARED = ("plain", "ours")  # their losses


# Measuring, in a process of its own


def shape_of(job: Job) -> Shape:
    return (
        SMALL if job.model == "small" else LARGE if job.large_width == LARGE.width else LARGE.at_width(job.large_width)
    )


def device_of(job: Job) -> torch.device:
    return training_device() if job.model == "large" else torch.device("cpu")


def make_model(job: Job, device: torch.device) -> Any:
    """Frozen, with a fresh adapter on all seven modules of every layer: the same from the same seed."""
    torch.manual_seed(job.seed)
    if job.model == "tiny":
        base = AutoModelForCausalLM.from_pretrained(TINY_LLAMA_DIR, dtype=torch.float32, local_files_only=True)
    else:
        shape = shape_of(job)
        weights = DTYPES[shape.precision]
        config = LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.inner_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            head_dim=shape.head_width,
            max_position_embeddings=8192,
            rope_theta=500_000.0,
            rms_norm_eps=1e-5,
            tie_word_embeddings=shape.is_tied,
        )
        with device:  # made where it is used
            base = AutoModelForCausalLM.from_config(
                config, dtype=weights, attn_implementation=base_model.attention(config, weights)
            )
    base.config.use_cache = False
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=job.lora_rank,
        lora_alpha=job.lora_alpha,
        lora_dropout=job.lora_dropout,
        target_modules=list(MODULES),
    )
    return get_peft_model(base.requires_grad_(False), lora).to(device)


class Counts:
    """What goes into a model's embedding and head while it trains."""

    def __init__(self, model: Any, pad_id: int) -> None:
        self._pad_id = pad_id
        self.clear()
        base = model.get_base_model()
        base.get_input_embeddings().register_forward_hook(self._embedded)
        base.get_output_embeddings().register_forward_hook(self._headed)

    def clear(self) -> None:
        self.positions = self.head_rows = 0
        self._padding: list[torch.Tensor] = []  # on the device: reading one would wait for it

    def _embedded(self, module: Any, inputs: tuple[torch.Tensor], _output: Any) -> None:
        if module.training:
            (ids,) = inputs  # (rows, longest)
            self.positions += ids.numel()
            self._padding.append((ids == self._pad_id).sum())

    def _headed(self, module: Any, inputs: tuple[torch.Tensor], _output: Any) -> None:
        if module.training:
            self.head_rows += inputs[0].shape[:-1].numel()

    @property
    def padding(self) -> int:
        return sum(int(one) for one in self._padding)


def examples_seen(examples: Sequence[TokenizedExample], job: Job) -> list[int]:
    """After each step."""
    if job.contender == "ours":
        steps = loop.Schedule(examples, our_optimisation(examples, job))
        return list(accumulate(sum(map(len, groups)) for groups in steps))
    whole, rest = divmod(len(examples), EXAMPLES_PER_STEP)
    epoch = [EXAMPLES_PER_STEP] * whole + [rest] * (rest > 0)
    return list(accumulate(epoch * job.epochs))


class Curve:
    """The loss on the held-out answers, at the start and after each step that completes another part of an epoch: of
    either contender in the same way."""

    def __init__(self, model: Any, tokenizer: Any, examples: Sequence[TokenizedExample], job: Job) -> None:
        self._model = model
        self._seen = [0, *examples_seen(examples, job)]
        self._step = 0
        self._every = len(examples) / CHECKS_PER_EPOCH
        held_out = grouped(sentence_examples(tokenizer, "test"), max_tokens=4096, dice=random.Random(0))
        self._batches = [padded(group, tokenizer.pad_token_id) for group in held_out]
        self.points: list[tuple[int, float]] = []
        self._evaluate()

    def step(self) -> None:
        self._step += 1
        if self._seen[self._step] >= len(self.points) * self._every:
            self._evaluate()

    def _evaluate(self) -> None:
        self._model.eval()
        with torch.no_grad():
            losses = torch.cat([answer_losses(self._model.get_base_model(), batch) for batch in self._batches])
        self._model.train()
        self.points.append((self._seen[self._step], losses.mean().item()))


def resident_bytes(field: str) -> int:
    """VmRSS: held now. VmHWM: the most since `forget_peak`. Not getrusage: that starts with the parent's."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def measure_here(job: Job) -> Measured:
    torch.set_num_threads(job.threads)
    device = device_of(job)
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMA_DIR, local_files_only=True)
    examples = DATA[job.data](tokenizer)[: job.examples]
    model = make_model(job, device)
    counts = Counts(model, tokenizer.pad_token_id)
    contender = CONTENDERS[job.contender]
    if device.type == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        held = resident_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        if not job.evaluates_held_out:  # the first steps find memory and kernels
            (Path(folder) / "warm-up").mkdir()
            few = examples[: 2 * EXAMPLES_PER_STEP if device.type == "cuda" else 2]
            contender(model, tokenizer, few, job, Path(folder) / "warm-up")()
        counts.clear()
        run = contender(model, tokenizer, examples, job, Path(folder))
        curve = Curve(model, tokenizer, examples, job) if job.evaluates_held_out else None
        steps: list[int] = []

        def after_step(*_: Any) -> None:
            steps.append(1)
            if curve:
                curve.step()

        watching = register_optimizer_step_post_hook(after_step)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        # Of one thread, the processor's own time: other programs on the machine do not count.
        clock = time.process_time if device.type == "cpu" and job.threads == 1 else time.perf_counter
        started = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = clock() - started
        watching.remove()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_bytes("VmHWM")
    return Measured(
        seconds=seconds,
        peak_bytes=peak - held,
        parameters=model.get_base_model().num_parameters() - sum(one.numel() for one in trainable(model)),
        steps=len(steps),
        tokens=job.epochs * sum(len(one.ids) for one in examples),
        positions=counts.positions,
        padding=counts.padding,
        head_rows=counts.head_rows,
        curve=curve.points if curve else [],
    )


def trainable(model: Any) -> Iterator[torch.nn.Parameter]:
    return (one for one in model.parameters() if one.requires_grad)


def measure(job: Job) -> Measured:
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(job.threads)
    environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[
        0
    ]  # else Trainer takes all
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", "--measure", json.dumps(asdict(job))],
        check=True,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
    )
    return Measured(**json.loads(done.stdout))


# Speed


def least(tries: Sequence[Measured]) -> Measured:
    """The quickest try, with the least peak of all."""
    quickest = min(tries, key=lambda one: one.seconds)
    return Measured(**asdict(quickest) | {"peak_bytes": min(one.peak_bytes for one in tries)})


def take_turns(job: Callable[[str], Job], repeat: int) -> dict[str, Measured]:
    tries: dict[str, list[Measured]] = {name: [] for name in CONTENDERS}
    for turn in range(repeat):
        for name, found in tries.items():
            found.append(measure(job(name)))
            say(
                f"{job(name).model} {job(name).data} {turn + 1}/{repeat} {name}: {found[-1].seconds:.1f} s, "
                f"{found[-1].peak_bytes / MIB:.0f} MiB"
            )
    return {name: least(found) for name, found in tries.items()}


def speed_table(best: dict[str, Measured]) -> list[str]:
    lines = [
        "| | seconds | steps | tokens/s | times plain | positions computed for a token | padding among them | head rows for a token | peak, MiB above the loaded model |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in best.items():
        lines.append(
            f"| {LABELS[name]} | {one.seconds:.1f} | {one.steps} | {one.tokens / one.seconds:,.0f} "
            f"| {best['plain'].seconds / one.seconds:.2f} | {one.positions / one.tokens:.2f} "
            f"| {one.padding / one.positions:.1%} | {one.head_rows / one.tokens:.2f} | {one.peak_bytes / MIB:,.0f} |"
        )
    others = [one for name, one in best.items() if name != "ours"]
    times = min(one.seconds for one in others) / best["ours"].seconds
    memory = best["ours"].peak_bytes / min(one.peak_bytes for one in others)
    return [
        *lines,
        "",
        f"Goals: {LEAST_TIMES} times the tokens/s of the fastest other: {times:.2f}, {met(times >= LEAST_TIMES)}; "
        f"no more memory than the leanest other: {memory:.2f} times, {met(memory <= 1)}.",
    ]


def met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def lengths(examples: Sequence[TokenizedExample]) -> str:
    tokens = sorted(len(one.ids) for one in examples)
    answers = statistics.mean(one.answer_tokens for one in examples)
    return (
        f"{len(tokens)} examples of {tokens[0]} to {tokens[-1]} tokens (median {statistics.median(tokens):.0f}, "
        f"standard deviation {statistics.pstdev(tokens):.0f}), {answers:.1f} of them the answer's"
    )


def print_speed(model: str, arguments: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMA_DIR, local_files_only=True)
    on_cuda = model == "large" and torch.cuda.is_available()
    for data, count in (("sentences", arguments.sentences), ("reviews", arguments.reviews), ("chats", arguments.chats)):

        def job(contender: str, data: str = data, count: int = count) -> Job:
            return Job(
                contender=contender,
                model=model,
                large_width=arguments.large_width or LARGE.width,
                data=data,
                examples=409 if on_cuda else count,
                epochs=1,
                lora_rank=16,
                lora_alpha=32,
                lora_dropout=0.05,
                learning_rate=2e-4,
                seed=1,
                threads=arguments.threads,
                evaluates_held_out=False,
            )

        best = take_turns(job, arguments.repeat)
        shape, examples = shape_of(job("ours")), DATA[data](tokenizer)[: job("ours").examples]
        print(f"### {model.capitalize()} Llama, {data}\n")
        print(
            f"{shape.about}: {best['ours'].parameters / 1e6:,.0f} M parameters, {shape.layers} layers, width {shape.width}, "
            f"vocabulary {shape.vocabulary:,}, {shape.precision}, gradient checkpointing "
            f"{'on' if shape.gradient_checkpointing else 'off'}; on {torch.cuda.get_device_name() if on_cuda else 'the CPU'}.\n"
            f"{lengths(examples)}; ours in batches of at most {batch_tokens(examples)} tokens.\n"
        )
        print("\n".join(speed_table(best)), end="\n\n", flush=True)


# Learning


def curves(arguments: argparse.Namespace) -> dict[str, list[list[tuple[int, float]]]]:
    """For each contender the curve of each seed. They are not timed: as many at once as there are cores."""
    jobs = [
        Job(
            contender=name,
            model="tiny",
            large_width=LARGE.width,
            data="sentences",
            examples=409,
            epochs=arguments.epochs,
            lora_rank=16,
            lora_alpha=32,
            lora_dropout=0.1,
            learning_rate=1e-3,
            seed=seed,
            threads=1,
            evaluates_held_out=True,
        )
        for seed in range(1, arguments.seeds + 1)
        for name in COMPARED
    ]

    def run(job: Job) -> list[tuple[int, float]]:
        found = measure(job)
        say(f"seed {job.seed} {job.contender}: {found.curve[-1][1]:.3f} nats after {found.steps} steps")
        return found.curve

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(run, jobs))
    return {name: [curve for job, curve in zip(jobs, found, strict=True) if job.contender == name] for name in COMPARED}


def curve_table(found: dict[str, list[list[tuple[int, float]]]]) -> list[str]:
    """Means over the seeds, and how far seeds lie apart."""
    seeds = len(found["ours"])
    lines = [
        f"| examples seen | plain, mean of {seeds} seeds | ours | ours - plain | standard deviation between seeds: plain | ours |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    gaps: list[tuple[float, int, float]] = []
    for plain_points, our_points in zip(
        zip(*found["plain"], strict=True), zip(*found["ours"], strict=True), strict=True
    ):
        theirs, our = [loss for _, loss in plain_points], [loss for _, loss in our_points]
        seen = round(statistics.mean(number for number, _ in plain_points))
        gap = statistics.mean(our) - statistics.mean(theirs)
        spread = (deviation(theirs), deviation(our))
        # Of the difference of two means of so many seeds: what chance alone makes of it.
        by_chance = math.sqrt((spread[0] ** 2 + spread[1] ** 2) / seeds)
        gaps.append((abs(gap), seen, by_chance))
        lines.append(
            f"| {seen:,} | {statistics.mean(theirs):.3f} | {statistics.mean(our):.3f} | {gap:+.3f} "
            f"| {spread[0]:.3f} | {spread[1]:.3f} |"
        )
    largest, seen, by_chance = max(gaps[1:])
    within = sum(gap <= 2 * chance for gap, _, chance in gaps[1:])
    return [
        *lines,
        "",
        f"Losses are nats per held-out answer token. The largest gap between the means is {largest:.3f}, at {seen:,} examples, where its "
        f"standard error is {by_chance:.3f}; {within} of {len(gaps) - 1} gaps are within two standard errors. "
        f"At the end: {gaps[-1][0]:.3f}, standard error {gaps[-1][2]:.3f}.",
    ]


def deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw(found: dict[str, list[list[tuple[int, float]]]], file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    colors = {"plain": "#d1681d", "ours": "#1f5fa8"}
    names = {"plain": "plain Trainer", "ours": "ours"}
    seen = [statistics.mean(points) for points in zip(*([n for n, _ in one] for one in found["plain"]), strict=True)]
    losses = {name: [[loss for _, loss in one] for one in of_seeds] for name, of_seeds in found.items()}
    for name, of_seeds in losses.items():
        at = list(zip(*of_seeds, strict=True))
        upper.fill_between(seen, list(map(min, at)), list(map(max, at)), color=colors[name], alpha=0.18, linewidth=0)
        style = "-" if name == "ours" else "--"
        upper.plot(seen, list(map(statistics.mean, at)), style, color=colors[name], label=names[name], linewidth=1.8)
    upper.set_ylabel("held-out loss,\nnats per answer token")
    upper.set_yscale("log")
    upper.set_yticks([0.25, 0.3, 0.4, 0.5, 0.7, 1, 2, 3], labels=["0.25", "0.3", "0.4", "0.5", "0.7", "1", "2", "3"])
    upper.minorticks_off()
    upper.legend(frameon=False, title=f"mean of {len(losses['ours'])} seeds, lowest to highest shaded")
    gaps = [
        [our - theirs for our, theirs in zip(*pair, strict=True)]
        for pair in zip(losses["ours"], losses["plain"], strict=True)
    ]
    at = list(zip(*gaps, strict=True))
    lower.axhline(0, color="#888888", linewidth=0.8)
    lower.fill_between(seen, list(map(min, at)), list(map(max, at)), color="#555555", alpha=0.18, linewidth=0)
    lower.plot(seen, list(map(statistics.mean, at)), color="#333333", linewidth=1.5)
    lower.set_ylabel("ours - plain,\nnats")
    lower.set_xlabel("examples seen")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        axes.set_xlim(0, seen[-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the training loop.", epilog=__doc__)
    parser.add_argument("--repeat", type=int, default=2, metavar="N", help="tries of each for speed (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch, for speed (%(default)s)")
    parser.add_argument("--sentences", type=int, default=64, metavar="N", help="examples on a CPU (%(default)s)")
    parser.add_argument("--reviews", type=int, default=24, metavar="N", help="examples on a CPU (%(default)s)")
    parser.add_argument("--chats", type=int, default=24, metavar="N", help="examples on a CPU (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of the loss curves (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="of the loss curves (%(default)s)")
    parser.add_argument("--large-width", type=int, metavar="N", help="measure the 8B shape on any device, so wide")
    parser.add_argument("--only", choices=("small", "large", "learning"), help="one part")
    parser.add_argument("--quick", action="store_true", help="as little as can be: does it run?")
    parser.add_argument("--measure", metavar="JOB", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    if arguments.measure:
        with redirect_stdout(sys.stderr):
            measured = measure_here(Job(**json.loads(arguments.measure)))
        print(json.dumps(asdict(measured)))
        return
    if arguments.quick:
        arguments.repeat, arguments.seeds, arguments.epochs = 1, 2, 1
        arguments.sentences = arguments.reviews = arguments.chats = 16
    with redirect_stdout(sys.stderr):
        tiny_base()
    parts = [arguments.only] if arguments.only else ["small", "large", "learning"]
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{arguments.threads} of its threads; least of {arguments.repeat}.\n"
    )
    if "small" in parts:
        print_speed("small", arguments)
    if "large" in parts:
        if torch.cuda.is_available() or arguments.large_width:
            print_speed("large", arguments)
        else:
            print("The shape of Llama-3.1-8B was not measured: there is no CUDA device.\n")
    if "learning" in parts:
        found = curves(arguments)
        print("### Learning\n")
        print("\n".join(curve_table(found)))
        if not arguments.quick:
            draw(found, PICTURE)


if __name__ == "__main__":
    main()
