"""How fast and how small the validator is, beside gzip, bare inflate, and extract-and-load; what that means for the Lambda.

    python -m benchmarks.validator              about ten minutes the first time: it makes adapters of 84 and 671 MB
    python -m benchmarks.validator --repeat 20 --patience 30    on a machine that others use too

Every figure is the least of its tries, each in a process of its own, the contenders taking turns. Needs Linux, numpy
and torch. The table goes to standard output, progress to standard error.
"""

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "bench"

from loradrop import rendering  # noqa: E402
from loradrop.profile import load_profile  # noqa: E402
from loradrop.stream import fastest_zlib  # noqa: E402

PROFILE = load_profile("llama-3.1-8b-instruct")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHUNK_BYTES = 256 * 1024
MIB = 1024 * 1024

# What AWS publishes: the memory that comes with one vCPU, and the price of arm64 in us-east-1, without the free tier.
MEGABYTES_PER_VCPU = 1769
DOLLARS_PER_GB_SECOND = 0.0000133334
LAMBDA_SIZES_MB = (256, 512, 1024, 1769, 2048, 2560, 3008, 3538)

# What the template gives the function, so that its module can be imported.
HANDLER_SETTINGS = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "POWERTOOLS_SERVICE_NAME": "loradrop",
    "POWERTOOLS_METRICS_NAMESPACE": "loradrop",
    "RELEASE_BUCKET": "releases",
    "ENDPOINT_NAME": "endpoint",
    "BASE_COMPONENT_NAME": "base",
    "BASE_PROFILE": PROFILE.name,
    "MAX_LORA_RANK": str(PROFILE.max_lora_rank),
    "ENGINE_VERSION": PROFILE.engine_version,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A synthetic adapter: LoRA of `rank` on all seven modules of all layers."""

    rank: int
    dtype: str  # of safetensors: BF16 or F32

    @property
    def path(self) -> Path:
        return CACHE / f"llama-3.1-8b-r{self.rank}-{self.dtype.lower()}.tar.gz"


CASES = (Case(16, "BF16"), Case(64, "F32"))


@dataclass(frozen=True, slots=True)
class Measured:
    seconds: float
    cpu_seconds: float
    peak_bytes: int  # resident, of the whole process


# The adapters


def make_adapter(case: Case) -> None:
    """Gaussian weights, as the layers of a trained adapter have; packed by `tar -czf`."""
    import numpy as np

    chance = np.random.default_rng(case.rank)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    shapes: list[tuple[int, int]] = []
    end = 0
    for layer in range(PROFILE.num_hidden_layers):
        for module in MODULES:
            in_features, out_features = PROFILE.dimensions(module)
            path = PROFILE.module_path(module, layer)
            for half, shape in (("A", (case.rank, in_features)), ("B", (out_features, case.rank))):
                size = shape[0] * shape[1] * (2 if case.dtype == "BF16" else 4)
                offsets = [end, end := end + size]
                name = f"base_model.model.{path}.lora_{half}.weight"
                header[name] = {"dtype": case.dtype, "shape": shape, "data_offsets": offsets}
                shapes.append(shape)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": PROFILE.base_model_names[0],
        "r": case.rank,
        "lora_alpha": 2 * case.rank,
        "bias": "none",
        "target_modules": list(MODULES),
    }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        (Path(folder) / "adapter_config.json").write_text(json.dumps(config, indent=2))
        with (Path(folder) / "adapter_model.safetensors").open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for number, shape in enumerate(shapes):
                values = chance.normal(0, 0.01 if number % 2 else 0.02, shape).astype(np.float32)
                if case.dtype == "BF16":
                    file.write((values.view(np.uint32) >> 16).astype(np.uint16).data)
                else:
                    file.write(values.data)
        made = case.path.with_suffix(".part")
        subprocess.run(["tar", "-czf", made, "-C", folder, "."], check=True)
        made.rename(case.path)


# The contenders: each reads a tar.gz, and leaves the imports that its measuring shall not count to its first line


def validate_it(path: Path) -> Iterator[None]:
    from loradrop.validator import validate

    yield
    with path.open("rb", buffering=0) as file:
        report = validate(file, PROFILE)
    if not report.accepted:
        raise SystemExit(rendering.plain(report.problems, report.warnings))


def _take_one_core() -> None:
    """As a Lambda of 1,769 MB has it; threads that begin later have no other either."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def validate_on_one_core(path: Path) -> Iterator[None]:
    _take_one_core()
    yield from validate_it(path)


def inflate_on_one_core(path: Path) -> Iterator[None]:
    _take_one_core()
    yield from inflate_fastest(path)


def extract_on_one_core(path: Path) -> Iterator[None]:
    _take_one_core()
    yield from extract_and_load(path)


def validate_in_the_handlers_process(path: Path) -> Iterator[None]:
    os.environ |= HANDLER_SETTINGS
    importlib.import_module("validate_adapter")
    yield from validate_it(path)


def inflate_with(library: Any, path: Path) -> Iterator[None]:
    yield
    decompressor = library.decompressobj(wbits=31)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            decompressor.decompress(chunk)


def inflate_fastest(path: Path) -> Iterator[None]:
    yield from inflate_with(fastest_zlib, path)


def inflate_zlib(path: Path) -> Iterator[None]:
    import zlib

    yield from inflate_with(zlib, path)


def extract_and_load(path: Path) -> Iterator[None]:
    import tarfile

    import torch
    from safetensors.torch import load_file

    yield
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        with tarfile.open(path, "r:gz") as archive:
            archive.extractall(folder, filter="data")
        with (Path(folder) / "adapter_config.json").open() as file:
            json.load(file)
        for tensor in load_file(Path(folder) / "adapter_model.safetensors").values():
            if not bool(torch.isfinite(tensor).all()):
                raise SystemExit("not finite")


def nothing(_path: Path) -> Iterator[None]:
    yield


CONTENDERS: dict[str, Callable[[Path], Iterator[None]]] = {
    function.__name__: function
    for function in (
        validate_it,
        validate_on_one_core,
        inflate_on_one_core,
        extract_on_one_core,
        validate_in_the_handlers_process,
        inflate_fastest,
        inflate_zlib,
        extract_and_load,
        nothing,
    )
}


def measure_here(name: str, path: Path) -> None:
    """Runs one contender in this process and prints what it took."""
    contender = CONTENDERS[name](path)
    next(contender)
    started, cpu_started = time.perf_counter(), time.process_time()
    for _ in contender:
        pass
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    # Not getrusage: its figure starts with that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    print(json.dumps([seconds, cpu_seconds, int(peak[1]) * 1024 if peak else 0]))


def measure(name: str, path: Path) -> Measured:
    if name == "gzip -dc":
        before, started = os.times(), time.perf_counter()
        subprocess.run(["gzip", "-dc", path], check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - started, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return Measured(seconds, cpu, 0)
    command = [sys.executable, "-m", "benchmarks.validator", "--measure", name, str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT, env=interpreter_environment())
    return Measured(*json.loads(done.stdout))


def wait_for_idle(patience_seconds: float) -> None:
    """Until the processors have nothing else to do, or for as long as patience lasts."""

    def jiffies() -> tuple[int, int]:
        numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return numbers[3] + numbers[4], sum(numbers)

    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        (idle, total) = jiffies()
        time.sleep(0.3)
        (idle_later, total_later) = jiffies()
        if idle_later - idle > 0.9 * (total_later - total):
            return


def best_of(names: list[str], path: Path, repeat: int, patience_seconds: float) -> dict[str, Measured]:
    """The least time, least processor time and least peak of each; they take turns, so that a busy minute hits all."""
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for turn in range(repeat):
        for name in names:
            wait_for_idle(patience_seconds)
            found[name].append(measure(name, path))
            say(f"{path.name} {turn + 1}/{repeat} {name}: {found[name][-1].seconds:.2f} s")
    return {
        name: Measured(
            min(one.seconds for one in tries),
            min(one.cpu_seconds for one in tries),
            min(one.peak_bytes for one in tries),
        )
        for name, tries in found.items()
    }


# Imports


def interpreter_environment(*, compiled: bool = True) -> dict[str, str]:
    environment = os.environ | HANDLER_SETTINGS | {"PYTHONPATH": str(ROOT / "functions")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if compiled:
        environment["PYTHONPYCACHEPREFIX"] = str(CACHE / "bytecode")
    else:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return environment


def import_milliseconds(module: str, *, compiled: bool) -> tuple[float, float]:
    """(cumulative, without the module's own lines) by -X importtime."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        check=True,
        capture_output=True,
        text=True,
        env=interpreter_environment(compiled=compiled),
    )
    own, cumulative = map(int, re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|", done.stderr)[-1])
    return cumulative / 1000, (cumulative - own) / 1000


# The tables


def size_unpacked(path: Path) -> int:
    """In bytes, by inflating it: the length in the trailer has 32 bits only."""
    decompressor = fastest_zlib.decompressobj(wbits=31)
    with path.open("rb", buffering=0) as file:
        return sum(len(decompressor.decompress(chunk)) for chunk in iter(lambda: file.read(CHUNK_BYTES), b""))


LABELS = {
    "validate_it": "**the validator**, every check of content",
    "inflate_fastest": f"bare inflate, {fastest_zlib.__name__.rpartition('.')[2]}: the limit",
    "inflate_zlib": "bare inflate, zlib",
    "gzip -dc": "`gzip -dc FILE >/dev/null`",
    "extract_and_load": "extract to disk, json.load, load_file, isfinite",
}


ON_ONE_CORE = {
    "validate_it": "validate_on_one_core",
    "inflate_fastest": "inflate_on_one_core",
    "extract_and_load": "extract_on_one_core",
}


def throughput_table(case: Case, repeat: int, patience_seconds: float) -> tuple[list[str], dict[str, Measured]]:
    path = case.path
    unpacked, packed = size_unpacked(path), path.stat().st_size
    names = [*LABELS, *ON_ONE_CORE.values(), "validate_in_the_handlers_process", "nothing"]
    best = best_of(names, path, repeat, patience_seconds)
    limit, gzip, bare = best["inflate_fastest"].seconds, best["gzip -dc"].seconds, best["nothing"].peak_bytes
    limit_alone = best["inflate_on_one_core"].seconds
    lines = [
        f"### r={case.rank}, {case.dtype}: {unpacked / 1e6:.0f} MB, {packed / 1e6:.0f} MB as tar.gz",
        "",
        "| | seconds | CPU seconds | MB/s unpacked | MB/s packed | times gzip | of the limit | seconds on one core | of the limit there | MiB above the interpreter |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, label in LABELS.items():
        one = best[name]
        memory = f"{(one.peak_bytes - bare) / MIB:.0f}" if one.peak_bytes else "-"
        alone = best[ON_ONE_CORE.get(name, name)].seconds  # the others have one thread, but for what torch does
        lines.append(
            f"| {label} | {one.seconds:.2f} | {one.cpu_seconds:.2f} | {unpacked / 1e6 / one.seconds:.0f} "
            f"| {packed / 1e6 / one.seconds:.0f} | {gzip / one.seconds:.2f} | {limit / one.seconds:.2f} "
            f"| {alone:.2f} | {limit_alone / alone:.2f} | {memory} |"
        )
    validated, alone = best["validate_it"], best["validate_on_one_core"].seconds
    goals = (
        ("2 times `gzip -dc`", gzip / validated.seconds, gzip / validated.seconds >= 2, ".2f"),
        ("0.8 of the bare inflate", limit / validated.seconds, limit / validated.seconds >= 0.8, ".2f"),
        ("0.55 of it on one core", limit_alone / alone, limit_alone / alone >= 0.55, ".2f"),
        ("at most 48 MiB", (validated.peak_bytes - bare) / MIB, validated.peak_bytes - bare <= 48 * MIB, ".1f"),
    )
    lines += [
        "",
        "Goals: "
        + "; ".join(f"{goal}: {value:{form}}, {'met' if met else 'MISSED'}" for goal, value, met, form in goals)
        + ".",
    ]
    return lines, best


def lambda_table(case: Case, best: dict[str, Measured]) -> list[str]:
    """Computed, not measured: the time by the share of processors that a memory size brings, the cost by time."""
    one_core, two_cores = best["validate_on_one_core"].seconds, best["validate_it"].seconds
    held = best["validate_in_the_handlers_process"].peak_bytes / MIB
    packed = case.path.stat().st_size / 1e6
    lines = [
        f"r={case.rank}, {case.dtype}: {one_core:.2f} s on one core, {two_cores:.2f} s on two, "
        f"{held:.0f} MiB held by the handler's process.",
        "",
        "| memory, MB | vCPU | seconds | MB/s that S3 must bring | dollars per 1,000 |",
        "|--:|--:|--:|--:|--:|",
    ]
    for size in LAMBDA_SIZES_MB:
        share = size / MEGABYTES_PER_VCPU
        seconds = max(one_core / share, two_cores)
        dollars = 1000 * seconds * size / 1024 * DOLLARS_PER_GB_SECOND
        lines.append(f"| {size} | {share:.2f} | {seconds:.1f} | {packed / seconds:.0f} | {dollars:.3f} |")
    return lines


def import_table(repeat: int) -> list[str]:
    tried = (("boto3", True), ("validate_adapter", True), ("validate_adapter", False))
    turns = [[import_milliseconds(module, compiled=compiled) for module, compiled in tried] for _ in range(repeat + 1)]
    # The first turn writes the bytecode.
    (alone, _), (handler, imports), (_, raw_imports) = (
        tuple(map(min, zip(*tries, strict=True))) for tries in zip(*turns[1:], strict=True)
    )
    rows = (
        ("`import boto3`", alone),
        ("`import validate_adapter`, its imports", imports),
        ("`import validate_adapter`, with the S3 client that it makes", handler),
        ("its imports where no bytecode of functions/ is kept", raw_imports),
    )
    lines = ["| | ms | times boto3 |", "|---|--:|--:|"]
    lines += [f"| {label} | {milliseconds:.0f} | {milliseconds / alone:.2f} |" for label, milliseconds in rows]
    ratio = imports / alone
    return [*lines, "", f"Goal: at most 1.3 times: {ratio:.2f}, {'met' if ratio <= 1.3 else 'MISSED'}."]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the validator.", epilog=__doc__)
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="tries of each (%(default)s)")
    parser.add_argument(
        "--patience", type=float, default=0, metavar="SECONDS", help="wait so long for idle processors before each try"
    )
    parser.add_argument("--measure", nargs=2, metavar=("CONTENDER", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure_here(arguments.measure[0], Path(arguments.measure[1]))
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if not case.path.exists():
            say(f"making {case.path}")
            # In a process of its own: numpy's memory would count for every process that starts from here.
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"from benchmarks.validator import *; make_adapter(Case({case.rank}, {case.dtype!r}))",
                ],
                check=True,
                cwd=ROOT,
            )
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; best of {arguments.repeat}.\n"
    )
    results = []
    for case in CASES:
        lines, best = throughput_table(case, arguments.repeat, arguments.patience)
        print("\n".join(lines), end="\n\n")
        results.append((case, best))
    print("### Memory size of the Lambda\n")
    for case, best in results:
        print("\n".join(lambda_table(case, best)), end="\n\n")
    print("### Imports\n")
    print("\n".join(import_table(max(20, arguments.repeat))))


if __name__ == "__main__":
    main()
