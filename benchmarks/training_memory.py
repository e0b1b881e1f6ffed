"""What estimate.py says before a training, beside what the training takes: memory and seconds of a step, on a CPU.

    python -m benchmarks.training_memory          a few minutes -> a table in Markdown

Llamas of Llama-3.1's proportions with random weights, LoRA on all linear layers, AdamW. Each measurement is in a process of
its own: the peak of the resident set (VmHWM) over three steps, less the resident set before the model is made.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from loradrop_training.device import flops_per_second, return_freed_memory  # noqa: E402
from loradrop_training.estimate import Step, estimate_memory, estimate_seconds  # noqa: E402
from loradrop_training.examples import IGNORED, Batch, answer_loss  # noqa: E402

STEPS = 3
EXAMPLES, LONGEST, ANSWER_TOKENS = 8, 128, 8  # of each example
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Case:
    hidden_size: int
    layers: int
    gradient_checkpointing: bool
    dtype: str = "float32"
    attention: str = "sdpa"
    returns_freed_memory: bool = True

    def step(self) -> Step:
        config = LlamaConfig(
            vocab_size=16384,
            hidden_size=self.hidden_size,
            intermediate_size=self.hidden_size * 7 // 2,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden_size // 64,
            num_key_value_heads=self.hidden_size // 256,
            tie_word_embeddings=False,
        )
        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
        return Step(
            config=config,
            lora=lora,
            dtype=getattr(torch, self.dtype),
            examples=EXAMPLES,
            longest=LONGEST,
            answer_tokens=EXAMPLES * ANSWER_TOKENS,
            gradient_checkpointing=self.gradient_checkpointing,
            attention=self.attention,
        )


SIZES = ((512, 6), (768, 13))  # 37 and 125 million parameters
CASES = tuple(Case(*size, checkpointing) for size in SIZES for checkpointing in (False, True))
MORE_CASES = (Case(512, 6, False, attention="eager"), Case(512, 6, False, dtype="bfloat16"))
# What malloc keeps where nobody tells it not to: no estimate knows it.
KEEPING_CASES = tuple(dataclasses.replace(case, returns_freed_memory=False) for case in CASES)


@dataclass(frozen=True, slots=True)
class Measured:
    peak_bytes: int  # above what the process held before the model was made
    step_seconds: float
    flops_per_second: float  # of a bare matrix product, in the same process


def measure(case: Case, steps: int = STEPS) -> Measured:
    """In a process of its own. The peak is in the second step: from then on the optimizer has its moments."""
    text = json.dumps(dataclasses.asdict(case))
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training_memory", "--measure", text]
    command += ["--steps", str(steps)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _measured_here(case: Case, steps: int) -> Measured:
    if case.returns_freed_memory:
        return_freed_memory()
    step = case.step()
    speed = flops_per_second(torch.device("cpu"), step.dtype)
    torch.manual_seed(0)
    before = _memory_bytes("VmRSS")
    model = AutoModelForCausalLM.from_config(step.config, dtype=step.dtype, attn_implementation=step.attention)
    model = get_peft_model(model, step.lora).train()
    base = model.get_base_model()
    if step.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning)
    # Of `longest` tokens the last is not read: answer_loss predicts it.
    input_ids = torch.randint(step.config.vocab_size, (EXAMPLES, LONGEST + 1))
    labels = input_ids.clone()
    labels[:, :-ANSWER_TOKENS] = IGNORED
    batch = Batch(input_ids, labels, input_ids.numel(), EXAMPLES * ANSWER_TOKENS)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        answer_loss(base, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    peak_bytes = _memory_bytes("VmHWM") - before
    # At both ends: other programs slow down now the one, now the other.
    return Measured(peak_bytes, min(seconds), max(speed, flops_per_second(torch.device("cpu"), step.dtype)))


def _memory_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def table(cases: tuple[Case, ...]) -> Iterator[str]:
    yield "| parameters | dtype | attention | checkpointing | freed memory | estimated MiB | measured MiB | ratio | estimated s | measured s | ratio |"
    yield "|--:|---|---|---|---|--:|--:|--:|--:|--:|--:|"
    for case in cases:
        step, measured = case.step(), measure(case)
        estimate = estimate_memory(step)
        seconds = estimate_seconds(
            estimate, step, total_tokens=step.batch_tokens, device_flops_per_second=measured.flops_per_second
        )
        yield (
            f"| {estimate.base_parameters / 1e6:.0f} M | {case.dtype} | {case.attention} "
            f"| {'on' if case.gradient_checkpointing else 'off'} | {'returned' if case.returns_freed_memory else 'kept'} "
            f"| {estimate.total_bytes / MIB:,.0f} | {measured.peak_bytes / MIB:,.0f} "
            f"| {estimate.total_bytes / measured.peak_bytes:.2f} "
            f"| {seconds:.2f} | {measured.step_seconds:.2f} | {seconds / measured.step_seconds:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the dry run's estimates with measurements.")
    parser.add_argument("--measure", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asked = arguments.measure
    if asked is not None:
        print(json.dumps(dataclasses.asdict(_measured_here(Case(**json.loads(asked)), arguments.steps))))
        return
    print(
        f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}; a step of {EXAMPLES} examples "
        f"of {LONGEST} tokens, {ANSWER_TOKENS} of each trained on; the fastest of {STEPS} steps.\n"
    )
    for line in table(CASES + MORE_CASES + KEEPING_CASES):
        print(line, flush=True)


if __name__ == "__main__":
    main()
