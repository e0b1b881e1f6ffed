"""Fuzzes the validator: mutates archives, gzip streams, configurations, headers and weights, and watches what it says.

    python -m tests.fuzz_validator --cpu-minutes 30 [--seed 1] [--corpus FILE]

An input is kept, to be mutated further, when it makes the validator say something that it has not said before. Checked on
every input: no exception, no thread left, a bounded and printable report, an answer within SLOW_SECONDS. On every
accepted one: Python's tarfile, Python's json and the safetensors library read the same out of it as the validator does. On
every safetensors header: the library accepts what the validator's reader accepts, and means the same by it. `--corpus`
writes the smallest input for each list of codes that was given, for tests/unit/test_validator_properties.py.
"""

import argparse
import base64
import gzip
import hashlib
import io
import json
import lzma
import math
import random
import re
import sys
import tarfile
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import safetensors

from loradrop.archive import Body
from loradrop.policy import DEFAULT_POLICY
from loradrop.problems import Problems
from loradrop.profile import BaseProfile
from loradrop.rendering import plain
from loradrop.safetensors import Weights, read_weights
from loradrop.stream import ByteSource
from loradrop.validation_report import MAX_REPORT_BYTES, ValidationReport
from loradrop.validator import validate
from tests.adapters import Tensors, safetensors_file, tarball, weights_file
from tests.hostile import BLOCK, corpus, gzipped

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SLOW_SECONDS = 1.0
MAX_INPUT_BYTES = 64 * 1024
PROFILE = BaseProfile(
    name="fuzz",
    architecture="LlamaForCausalLM",
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=16,
    lora_modules=("q_proj", "v_proj", "down_proj", "embed_tokens"),
    max_lora_rank=8,
    engine_version="0.32.0",
)
INTERESTING_NUMBERS = (
    *(
        b"0",
        b"-0",
        b"-1",
        b"1",
        b"2",
        b"7",
        b"8",
        b"9",
        b"1.0",
        b"1e0",
        b"1e308",
        b"1e999",
        b"0.5",
        b"NaN",
        b"Infinity",
    ),
    *(str(2**bits + more).encode() for bits in (7, 8, 31, 32, 53, 63, 64, 65) for more in (-1, 0, 1)),
    b"9" * 41,
)
INTERESTING_TEXTS = (
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"true",
        b"\\ud800",
        b"\\u0000",
        b"\xff",
        b"\0",
        b"\x1b[",
    ),
    *(b"../", b"/", b"./", b"a" * 300, b"[" * 40, b'{"a":' * 40, b'\\"' * 200, b" ", b"\xef\xbb\xbf", "é".encode()),
    *(b"F16", b"BF16", b"F64", b"F4", b"F8_E4M3", b"F8_E8M0", b"BOOL", b".bin", b"lora_A", b"lora_B", b"__metadata__"),
)


def good_files() -> dict[str, bytes]:
    chance = random.Random(0)
    usual = bytes(byte & 0xBF if byte & 0x7F >= 0x44 else byte for byte in range(256))  # no number above 512
    tensors: Tensors = {}
    for layer in range(2):
        for module in ("self_attn.q_proj", "mlp.down_proj"):
            in_features, out_features = PROFILE.dimensions(module.rpartition(".")[2])
            for half, shape in (("A", (2, in_features)), ("B", (out_features, 2))):
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"
                tensors[name] = ("BF16", shape, chance.randbytes(2 * math.prod(shape)).translate(usual))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {}}
    return {
        CONFIG: json.dumps(config).encode(),
        WEIGHTS: weights_file(tensors),
        "smoke.jsonl": b'{"inputs": "Hello"}\n',
    }


def mutated(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """One to four small changes."""
    for _ in range(1 << chance.randrange(3)):
        at = chance.randrange(len(data) + 1)
        length = min(len(data) - at, 1 << chance.randrange(10))
        match chance.randrange(8):
            case 0 if at < len(data):  # another bit
                data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
            case 1:  # other bytes
                data = data[:at] + chance.randbytes(min(length, 16)) + data[at + min(length, 16) :]
            case 2:  # gone
                data = data[:at] + data[at + length :]
            case 3:  # twice
                data = data[: at + length] + data[at : at + length] + data[at + length :]
            case 4:
                data = data[:at] + chance.choice(INTERESTING_TEXTS) + data[at:]
            case 5:  # another number
                numbers = list(re.finditer(rb"-?[0-9.]+", data))
                if numbers:
                    number = chance.choice(numbers)
                    data = data[: number.start()] + chance.choice(INTERESTING_NUMBERS) + data[number.end() :]
            case 6:  # a piece of another input
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                data = data[:at] + other[start : start + length] + data[at + length :]
            case 7:  # a text instead of another
                strings = list(re.finditer(rb'"[^"\\]*"', data))
                if strings:
                    one, other_string = chance.choice(strings), chance.choice(strings)
                    data = data[: one.start()] + other_string[0] + data[one.end() :]
    return data[:MAX_INPUT_BYTES]


def with_checksums(tar: bytes) -> bytes:
    """The same blocks, and the right checksum in each that has a header's mark."""
    blocks = [tar[at : at + BLOCK] for at in range(0, len(tar), BLOCK)]
    for number, block in enumerate(blocks):
        if len(block) == BLOCK and block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * 32
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def _weights_of(text: bytes) -> bytes:
    good = good_files()[WEIGHTS]
    return safetensors_file(text, good[8 + int.from_bytes(good[:8], "little") :])


def _header_text(weights: bytes) -> bytes:
    return weights[8 : 8 + int.from_bytes(weights[:8], "little")]


# What is mutated, and how a tarball is made of it.
TARGETS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": bytes,
    "tar": gzipped,
    "tar with checksums": lambda data: gzipped(with_checksums(data)),
    "config": lambda data: tarball(good_files() | {CONFIG: data}),
    "smoke": lambda data: tarball(good_files() | {"smoke.jsonl": data}),
    "header": lambda data: tarball(good_files() | {WEIGHTS: _weights_of(data)}),
    "weights": lambda data: tarball(good_files() | {WEIGHTS: data}),
}


def seeds(target: str) -> list[bytes]:
    good = good_files()
    hostile = [case.body for case in corpus(good) if len(case.body) < MAX_INPUT_BYTES]
    return {
        "gzip": [tarball(good), *hostile],
        "tar": (plain := [gzip.decompress(tarball(good)), *filter(None, map(_unpacked, hostile))]),
        "tar with checksums": plain,
        "config": [good[CONFIG]],
        "smoke": [good["smoke.jsonl"], b'{"inputs": "a", "parameters": {"stop": ["b"]}, "expect": "/c+/"}'],
        "header": [_header_text(good[WEIGHTS])],
        "weights": [good[WEIGHTS]],
    }[target]


def _unpacked(body: bytes) -> bytes | None:
    try:
        plain = gzip.decompress(body)
    except (OSError, EOFError, zlib.error):
        return None
    return plain if len(plain) <= MAX_INPUT_BYTES else None


class FindingError(AssertionError):
    """Something that the validator must never do."""


def check(body: bytes) -> ValidationReport:
    """Validates a tarball and checks the report. Raises FindingError, or what the validator raised."""
    before = threading.active_count()
    started = time.perf_counter()
    report = validate(io.BytesIO(body), PROFILE)
    took = time.perf_counter() - started
    if took > SLOW_SECONDS and len(body) < 4 * MAX_INPUT_BYTES:
        raise FindingError(f"{took:.1f} s for {len(body)} bytes")
    if threading.active_count() > before:
        raise FindingError("a thread is left")
    text = json.dumps(report.to_dict(), allow_nan=False, ensure_ascii=False)
    if len(text) > MAX_REPORT_BYTES or not all(
        line.isprintable() for line in plain(report.problems, report.warnings).split("\n")
    ):
        raise FindingError("the report is too long or not printable")
    if report.accepted == bool(report.problems):
        raise FindingError("neither accepted nor a problem, or both")
    if report.accepted:
        check_accepted(body, report)
    return report


def check_accepted(body: bytes, report: ValidationReport) -> None:
    """Others read the same out of an accepted tarball."""
    assert report.manifest is not None
    if report.sha256 != hashlib.sha256(body).hexdigest():
        raise FindingError("the digest is not the tarball's")
    plain = gzip.decompress(body)
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        for member in archive:
            name = re.sub(r"^(\./)+", "", member.name)
            if member.isfile():
                extracted = archive.extractfile(member)
                assert extracted is not None
                found[name] = extracted.read()
            elif not member.isdir():
                raise FindingError(f"tarfile sees {member.name} of the type {member.type!r}")
    seen = {entry.name: entry.sha256 for entry in report.manifest.files}
    if seen != {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}:
        raise FindingError(f"tarfile sees {sorted(found)}, the validator {sorted(seen)}")
    settings = json.loads(found[CONFIG])
    if (
        float(settings["lora_alpha"]) != report.manifest.lora_alpha
        or settings.get("peft_type", "LORA").upper() != "LORA"
    ):
        raise FindingError("json reads another configuration")
    tensors = dict(safetensors.deserialize(found[WEIGHTS]))  # type: ignore[no-untyped-call]
    if report.manifest.dtypes != tuple(sorted({entry["dtype"] for entry in tensors.values()})):
        raise FindingError("the safetensors library sees other dtypes")


def check_weights(data: bytes) -> None:
    """What this reader accepts, the safetensors library accepts too, and means the same by it."""
    problems = Problems()
    weights = read_weights(Body(ByteSource(iter([data])), len(data), WEIGHTS), DEFAULT_POLICY, problems)
    if weights is None or problems.errors():
        return
    try:
        theirs = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise FindingError(f"the safetensors library refuses what was accepted: {error}") from error
    if {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in theirs.items()} != _mine(weights):
        raise FindingError("the safetensors library reads other tensors")


def _mine(weights: Weights) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in weights.tensors.items()}


def said(report: ValidationReport) -> str:
    """The sentences of a report, without what they quote of the input."""
    sentences = [f"{one.code} {one.message[:80]}" for one in (*report.problems, *report.warnings)]
    return re.sub(r"[^A-Za-z \n]+", "", re.sub(r'"[^"]*"|\S*[^A-Za-z ,.;:()\n]\S*', "", "\n".join(sentences)))[:2000]


@dataclass(slots=True)
class Fuzzer:
    chance: random.Random
    queues: dict[str, list[bytes]] = field(default_factory=dict)
    said: set[tuple[str, str]] = field(default_factory=set)
    smallest: dict[tuple[str, str], bytes] = field(default_factory=dict)  # target, codes → data
    runs: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    accepted: int = 0

    def run(self, cpu_seconds: float) -> None:
        for target in TARGETS:
            self.queues[target] = seeds(target)
            for data in self.queues[target]:
                self.try_one(target, data)
        while time.process_time() < cpu_seconds:
            target = self.chance.choice(list(TARGETS))
            queue = self.queues[target]
            # half of the time something that was found lately
            pool = queue if self.chance.random() < 0.5 else queue[-50:]
            self.try_one(target, mutated(self.chance.choice(pool), self.chance, queue))

    def try_one(self, target: str, data: bytes) -> None:
        self.runs[target] += 1
        body = TARGETS[target](data)
        try:
            if target in ("header", "weights"):
                check_weights(_weights_of(data) if target == "header" else data)
            report = check(body)
        except Exception:  # noqa: BLE001 - whatever it is, it is what this looks for
            trace = traceback.format_exc(limit=-4)
            if trace not in self.findings:
                self.findings.append(trace)
                packed = base64.b64encode(zlib.compress(data)).decode()
                print(f"FINDING in {target}: {packed}\n{trace}", flush=True)
            return
        self.accepted += report.accepted
        kept = (target, said(report))
        if kept not in self.said:
            self.said.add(kept)
            self.queues[target].append(data)
        answer = (target, " ".join(codes_of(report)))
        if answer not in self.smallest or len(data) < len(self.smallest[answer]):
            self.smallest[answer] = data

    def corpus(self) -> str:
        """The smallest input for each list of codes that was ever given, one JSON object a line."""
        return "".join(
            json.dumps({"target": target, "data": base64.b64encode(data).decode(), "codes": codes.split()}) + "\n"
            for (target, codes), data in sorted(self.smallest.items())
        )


def codes_of(report: ValidationReport) -> list[str]:
    return [problem.code.name for problem in (*report.problems, *report.warnings)]


def read_corpus(path: Path) -> list[tuple[str, bytes, list[str]]]:
    """(target, data, codes) of each line."""
    lines = [json.loads(line) for line in lzma.decompress(path.read_bytes()).splitlines()]
    return [(line["target"], base64.b64decode(line["data"]), line["codes"]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path)
    options = parser.parse_args()
    fuzzer = Fuzzer(random.Random(options.seed))
    fuzzer.run(60 * options.cpu_minutes)
    print(f"{time.process_time() / 60:.1f} CPU minutes, {fuzzer.runs.total()} inputs {dict(fuzzer.runs)}")
    print(f"{len(fuzzer.said)} different answers, {len(fuzzer.smallest)} lists of codes, {fuzzer.accepted} accepted")
    print(f"{len(fuzzer.findings)} findings")
    if options.corpus is not None:
        options.corpus.write_bytes(lzma.compress(fuzzer.corpus().encode()))
    sys.exit(bool(fuzzer.findings))


if __name__ == "__main__":
    main()
