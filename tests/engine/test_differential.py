"""The validator against vLLM, over generated adapters: `--adapters 5000 --seed 1` asks for more of them, or for others."""

from pathlib import Path

import pytest

from local.engines.vllm import not_installed

from .differential import Tally, compare


def test_the_validator_says_of_generated_adapters_what_vllm_does(
    base: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = not_installed()
    if problem is not None:
        pytest.fail(problem)
    count, seed = request.config.getoption("--adapters"), request.config.getoption("--seed")
    tally = Tally()
    for _, so_far in compare(count, seed, base):
        tally = so_far
    with capsys.disabled():
        print("\n" + "\n".join(tally.summary().splitlines()[:3]))
    assert tally.outcomes == count
    assert set(tally.engine) >= {"fail", "silent", "served"}
    assert not tally.disagreements, tally.summary()
