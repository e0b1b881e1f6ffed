"""The validator against the engine: generated adapters, loaded and asked by vLLM itself, and the verdict on each.

    .venv/bin/python -m tests.engine.differential --adapters 5000 --seed 1

What the engine does is one of three: it FAILs, it is SILENT (loads, and answers otherwise than what was meant, or as the base does),
or it serves. What was meant is computed by transformers, on a base whose weights have the updates added. The validator has to say the
same; or, of what is served, that a policy of its own keeps it out.
"""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM

from local.engines.vllm import PYTHON, not_installed
from loradrop.problems import POLICIES, Consequence, ProblemCode
from loradrop.profile import load_profile
from loradrop.validation_report import ValidationReport
from loradrop.validator import validate
from loradrop_training.tiny import tiny_base
from tests.adapters import tarball
from tests.engine.generated import MAX_RANK, Draft, adapters

ORACLE = Path(__file__).with_name("vllm_oracle.py")
ENGINE_VERSION = "0.32.0"
PROMPT_TOKENS = 12
PROMPTS = torch.randint(256, 4000, (4, PROMPT_TOKENS), generator=torch.Generator().manual_seed(7)).tolist()
# What two programs may differ by; and what has to be seen to call it an effect. In nats.
TOLERANCE = 2e-3
EFFECT = 2e-2
PROFILE = dataclasses.replace(load_profile("tiny-llama"), engine_version=ENGINE_VERSION, max_lora_rank=MAX_RANK)

Likeliest = list[list[tuple[int, float | None]]]


class Verdict(StrEnum):
    FAIL = "fail"
    SILENT = "silent"
    SERVED = "served"
    FAINT = "faint"  # served as it is meant, with so little effect that the smoke test decides


class Oracle:
    """vLLM, asked by way of a pipe; started anew when an adapter has ended it."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._process: subprocess.Popen[str] | None = None
        self.starts = 0
        self.base_answer: Likeliest = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None and process.stdout is not None:
            process.stdin.close()
            process.kill()
            process.wait()
            process.stdout.close()

    def ask(self, folder: Path | None) -> dict[str, Any]:
        if self._process is None:
            self.starts += 1
            self._process = subprocess.Popen(
                [PYTHON, "-P", ORACLE, self._base],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.base_answer = self._answer(None)["likeliest"]
            assert self.base_answer, "vLLM does not start"
        answer = self._answer(folder)
        if answer["failed"] == "answer":
            self._end()
        return answer

    def _answer(self, folder: Path | None) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        question = {"folder": None if folder is None else str(folder), "prompts": PROMPTS}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        return {"failed": "answer", "error": f"the process ended with {self._process.wait()}", "likeliest": []}


class Reference:
    """What was meant: the base with the updates added to its weights."""

    def __init__(self, base: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True).eval()
        self._weights = {
            name: module.weight for name, module in self._model.named_modules() if hasattr(module, "weight")
        }
        self._prompts = torch.tensor(PROMPTS)

    def logprobs(self, draft: Draft) -> torch.Tensor:
        """(prompts, vocab_size), of the token that follows each prompt."""
        kept = {path: self._weights[path].detach().clone() for path in draft.updates}
        with torch.inference_mode():
            try:
                for path, update in draft.updates.items():
                    delta = update.scale * (update.b @ update.a)
                    self._weights[path].data += delta.T if path.endswith("embed_tokens") else delta
                logits = self._model(self._prompts).logits[:, -1]
                return torch.log_softmax(logits, dim=-1)
            finally:
                for path, weights in kept.items():
                    self._weights[path].data.copy_(weights)


def difference(said: Likeliest, logprobs: torch.Tensor) -> float:
    """The most that an answer's tokens differ by from these log-probabilities; infinite where one is not finite."""
    most = 0.0
    for prompt, tokens in enumerate(said):
        for token, nats in tokens:
            apart = float("inf") if nats is None else abs(nats - float(logprobs[prompt, token]))
            most = max(most, apart if apart == apart else float("inf"))
    return most


@dataclass(frozen=True, slots=True)
class Outcome:
    number: int
    changes: tuple[str, ...]
    engine: Verdict
    error: str
    report: ValidationReport
    is_death: bool = False

    @property
    def consequences(self) -> set[Consequence]:
        return {problem.consequence for problem in self.report.problems}

    @property
    def disagreement(self) -> str | None:
        """Its kind; None where the two say the same, or a policy speaks."""
        said = self.consequences
        if not self.report.accepted and _is_unread(self.report):
            return None
        if self.engine is Verdict.SERVED:
            is_policy = said <= {Consequence.POLICY, Consequence.UNSAFE}
            is_listed = all(problem.code in POLICIES for problem in self.report.problems)
            return None if self.report.accepted or (is_policy and is_listed) else "false rejection"
        if self.report.accepted:
            return None if self.engine is Verdict.FAINT else "false acceptance"
        if self.engine is Verdict.FAIL and not said & {Consequence.FAIL, Consequence.UNSAFE}:
            return "fails, and is said to load"
        if self.engine is Verdict.SILENT and Consequence.SILENT not in said:
            is_excused = Consequence.UNSAFE in said or _fails_on_a_gpu(self.report)
            return None if is_excused else "loads, and is said to fail"
        if self.engine is Verdict.SILENT and Consequence.FAIL in said and not _fails_on_a_gpu(self.report):
            return "loads, and is said to fail"
        return None

    def line(self) -> str:
        codes = ", ".join(
            sorted(f"{problem.code.name}:{problem.consequence.value}" for problem in self.report.problems)
        )
        return f"#{self.number} {'; '.join(self.changes) or 'unchanged'}\n    engine: {self.engine.value} {self.error[:160]!r}\n    validator: {codes or 'accepted'}"


def _is_unread(report: ValidationReport) -> bool:
    """A policy of the configuration's form: what the settings are is not looked at then."""
    return any(
        problem.code in (ProblemCode.CONFIG_NOT_JSON, ProblemCode.CONFIG_TOO_LARGE)
        and problem.consequence in (Consequence.POLICY, Consequence.UNSAFE)
        for problem in report.problems
    )


def _fails_on_a_gpu(report: ValidationReport) -> bool:
    """Of a missing half alone: the engine pins every matrix in memory where there is a GPU, and raises; on a CPU it goes on."""
    failing = {problem.code for problem in report.problems if problem.consequence is Consequence.FAIL}
    return failing == {ProblemCode.LORA_PAIR_INCOMPLETE}


@dataclass(slots=True)
class Tally:
    outcomes: int = 0
    starts: int = 0
    deaths: int = 0
    seconds: float = 0.0
    engine: Counter[str] = field(default_factory=Counter)
    policies: Counter[str] = field(default_factory=Counter)
    disagreements: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.outcomes += 1
        self.engine[outcome.engine.value] += 1
        self.deaths += outcome.is_death
        if outcome.disagreement is not None:
            self.disagreements.append(outcome)
        elif outcome.engine is Verdict.SERVED and not outcome.report.accepted:
            self.policies.update({problem.code.name for problem in outcome.report.problems})

    def summary(self) -> str:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(self.engine.items()))
        kinds = Counter(one.disagreement for one in self.disagreements)
        lines = [
            f"{self.outcomes} adapters in {self.seconds:.0f} s: the engine {verdicts}; {self.deaths} ended it, {self.starts} starts.",
            f"Served and kept out by policy: {dict(self.policies)}",
            f"Disagreements: {dict(kinds) or 'none'}",
        ]
        return "\n".join([*lines, *(f"{one.disagreement}: {one.line()}" for one in self.disagreements)])


def outcome_of(number: int, draft: Draft, oracle: Oracle, reference: Reference) -> Outcome:
    body = tarball(draft.packed())
    report = validate(io.BytesIO(body), PROFILE)
    with tempfile.TemporaryDirectory(prefix="loradrop-differential-") as folder:
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            archive.extractall(folder, filter="data")
        answer = oracle.ask(Path(folder))
    verdict = _verdict(answer, draft, oracle, reference)
    is_death = answer["failed"] == "answer"
    return Outcome(number, tuple(draft.changes), verdict, answer["error"], report, is_death)


def _verdict(answer: Mapping[str, Any], draft: Draft, oracle: Oracle, reference: Reference) -> Verdict:
    if answer["failed"]:
        return Verdict.FAIL
    said: Likeliest = answer["likeliest"]
    if not draft.is_served_as_meant:
        return Verdict.SILENT
    meant = reference.logprobs(draft)
    if not difference(said, meant) < TOLERANCE * max(1.0, float(meant.max(dim=-1).values.abs().max())):
        return Verdict.SILENT
    return Verdict.SERVED if difference(oracle.base_answer, meant) > EFFECT else Verdict.FAINT


def compare(count: int, seed: int, base: Path, *, only: int | None = None) -> Iterator[tuple[Outcome, Tally]]:
    """Each outcome, and the tally so far."""
    tally, started = Tally(), time.monotonic()
    torch.set_num_threads(1)
    reference = Reference(base)
    with Oracle(base) as oracle:
        for number, draft in enumerate(islice(adapters(seed), count)):
            if only is not None and number != only:
                continue
            outcome = outcome_of(number, draft, oracle, reference)
            tally.starts, tally.seconds = oracle.starts, time.monotonic() - started
            tally.add(outcome)
            yield outcome, tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=5000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the generator (default: %(default)s)")
    parser.add_argument("--only", type=int, help="the number of one adapter")
    options = parser.parse_args()
    problem = not_installed()
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    tally = Tally()
    for outcome, so_far in compare(options.adapters, options.seed, tiny_base(), only=options.only):
        tally = so_far
        if outcome.disagreement is not None or options.only is not None:
            print(f"{outcome.disagreement}: {outcome.line()}", flush=True)
    print(tally.summary().splitlines()[0], *tally.summary().splitlines()[1:3], sep="\n")
    sys.stdout.flush()
    return 1 if tally.disagreements else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
