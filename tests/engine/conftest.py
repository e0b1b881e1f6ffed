"""The three engines, each started once for the whole run. vLLM comes by `make engine`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from local.engines import Engine
from local.engines.llama import Engine as TinyEngine
from local.engines.stand_in import StandInEngine
from local.engines.vllm import LoraLimits, VllmEngine, not_installed
from loradrop_training.sentiment import sentiment_adapter
from loradrop_training.tiny import tiny_base

# Less than the tests load at once: what does not fit is evicted and comes back.
LIMITS = LoraLimits(max_loras=2, max_cpu_loras=4, max_lora_rank=16)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--adapters", type=int, default=300, help="of the differential test (default: %(default)s)")
    parser.addoption("--seed", type=int, default=1, help="of the differential test (default: %(default)s)")


@pytest.fixture(scope="session")
def base() -> Path:
    return tiny_base()


@pytest.fixture(scope="session")
def sentiment() -> bytes:
    """The tarball of the trained adapter."""
    return sentiment_adapter().read_bytes()


@pytest.fixture(scope="session")
def tiny(base: Path) -> TinyEngine:
    torch.set_num_threads(1)  # vLLM has the other core
    return TinyEngine(base)


@pytest.fixture(scope="session")
def vllm(base: Path) -> Iterator[VllmEngine]:
    problem = not_installed()
    if problem is not None:
        pytest.fail(problem)
    engine = VllmEngine(base, LIMITS)
    try:
        engine.await_ready()
        yield engine
    finally:
        engine.close()


@pytest.fixture(params=["stand-in", "tiny", "vllm"])
def any_engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "stand-in":
        return StandInEngine()
    engine: Any = request.getfixturevalue(request.param)
    return engine  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a test's adapters nothing is there in the next test."""
    yield
    for name in ("tiny", "vllm"):
        if name in request.fixturenames or ("any_engine" in request.fixturenames and name in request.node.name):
            engine = request.getfixturevalue(name)
            for adapter in engine.adapters:
                engine.unload_adapter(adapter)
