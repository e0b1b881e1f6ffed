"""What holds for any bytes at all; and the inputs that fuzzing found to be of interest, again."""

import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loradrop.policy import DEFAULT_POLICY, Policy
from loradrop.stream import fastest_zlib
from loradrop.validator import validate
from tests.adapters import tarball
from tests.fuzz_validator import (
    PROFILE,
    TARGETS,
    check,
    check_weights,
    codes_of,
    good_files,
    mutated,
    read_corpus,
    seeds,
    with_checksums,
)
from tests.hostile import corpus, gzipped, tar_end, tar_member

ROOT = Path(__file__).parents[2]
FUZZ_CORPUS = Path(__file__).parent / "data" / "fuzz_corpus.jsonl.xz"
GOOD = good_files()
BODY = tarball(GOOD)
FOUND = read_corpus(FUZZ_CORPUS)


def test_the_adapter_that_is_mutated_is_good() -> None:
    assert check(BODY).accepted


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_give_a_report(data: bytes) -> None:
    check(data)
    check(gzipped(data))
    check(gzipped(with_checksums(data)))
    check(gzipped(tar_member("adapter_config.json", data) + tar_member("adapter_model.safetensors", data) + tar_end()))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=500), st.binary(max_size=500))
def test_any_files_give_a_report(config: bytes, weights: bytes) -> None:
    check(tarball(GOOD | {"adapter_config.json": config, "smoke.jsonl": weights}))
    check(tarball(GOOD | {"adapter_model.safetensors": weights}))


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
_keys = st.sampled_from(
    [
        *("r", "lora_alpha", "target_modules", "bias", "use_dora", "use_rslora", "modules_to_save", "rank_pattern"),
        *("alpha_pattern", "init_lora_weights", "peft_type", "layer_replication", "base_model_name_or_path", "use_x"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_keys, _json, max_size=5))
def test_any_settings_give_a_report(entries: dict[str, object]) -> None:
    config = json.loads(GOOD["adapter_config.json"]) | entries
    check(tarball(GOOD | {"adapter_config.json": json.dumps(config).encode()}))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_a_mutated_tarball_is_accepted_only_with_the_same_content(seed: int) -> None:
    body = mutated(BODY, random.Random(seed), [BODY])
    report = check(body)
    if report.accepted:
        assert gzip.decompress(body) == gzip.decompress(BODY)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_mutated_beneath_the_compression_makes_no_one_stumble(target: str) -> None:
    chance = random.Random(target)
    pool = seeds(target)
    for _ in range(300):
        check(TARGETS[target](mutated(chance.choice(pool), chance, pool)))


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.integers(0, 2**32))
def test_what_is_accepted_as_weights_the_library_reads_alike(noise: bytes, seed: int) -> None:
    check_weights(mutated(GOOD["adapter_model.safetensors"], random.Random(seed), [noise]))


class Pieces:
    """A stream that cuts its bytes where it likes."""

    def __init__(self, body: bytes, chance: random.Random) -> None:
        self._file = io.BytesIO(body)
        self._chance = chance

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, 1 << self._chance.randrange(12)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(TARGETS)))
def test_how_the_stream_cuts_its_bytes_changes_nothing(seed: int, target: str) -> None:
    chance = random.Random(seed)
    _, data, _ = chance.choice([one for one in FOUND if one[0] == target])
    body = TARGETS[target](data)
    assert validate(Pieces(body, chance), PROFILE) == validate(io.BytesIO(body), PROFILE)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_how_much_is_read_at_once_changes_no_verdict(read_bytes: int, inflate_bytes: int) -> None:
    policy = Policy(read_bytes=read_bytes, inflate_bytes=inflate_bytes)
    assert validate(io.BytesIO(BODY), PROFILE, policy) == validate(io.BytesIO(BODY), PROFILE, DEFAULT_POLICY)


def test_what_fuzzing_found_is_answered_as_before() -> None:
    for target, data, codes in FOUND:
        assert codes_of(check(TARGETS[target](data))) == codes


def answer_as_before_by_zlib() -> None:
    """The same, but for damaged streams, whose damage one finds later than the other: some of the content is seen."""
    assert fastest_zlib.__name__ == "zlib"
    for target, data, codes in FOUND:
        assert codes_of(check(TARGETS[target](data))) in (codes, ["GZIP_CORRUPT"])
    for case in corpus(GOOD):
        assert [problem.code.name for problem in check(case.body).problems] == [case.code]


def test_without_isal_the_answers_are_the_same() -> None:
    script = (
        "import sys; sys.modules['isal'] = None; sys.path[:0] = ['functions', '.']; "
        "from tests.unit.test_validator_properties import *; answer_as_before_by_zlib()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
