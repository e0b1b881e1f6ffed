"""`loradrop plan`: sizes by hand, hit rates against a cache that is really run."""

import json
import random
from collections import OrderedDict

import pytest

from loradrop_cli.capacity import hits
from loradrop_cli.main import main


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, object]]:
    code = main(["plan", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def test_llama_3_1_8b_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = planned(capsys, "--adapters", "200")
    assert code == 0
    of_a_layer = (4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3
    assert found["adapter_bytes"] == 16 * of_a_layer * 32 * 2 == 83_886_080
    assert found["gpu_slot_bytes"] == 64 * (of_a_layer * 32 + 2 * (128256 + 4096)) * 2
    assert found["base_bytes"] == pytest.approx(8.03e9 * 2, rel=0.001)
    assert found["monthly_price_each"] == pytest.approx(1.861 * 730 / 200)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-cpu-loras", "4"], "MaxCpuLoras (4) is below MaxLoras (8)"),
        (["--rank", "64", "--max-rank", "16"], "rank 64 do not fit MaxLoraRank 16"),
        (["--max-loras", "90", "--max-cpu-loras", "90"], "The GPU has room for 0 tokens"),
        (["--rank", "64", "--max-cpu-loras", "90"], "Host memory has 32 GiB"),
        (["--adapters", "5000"], "The disk has 250 GB, and 5000 adapters take about 495 GB"),
    ],
)
def test_what_does_not_fit_is_named_with_the_setting(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["plan", "--adapters", "200", *options]) == 1
    shown = capsys.readouterr().out
    assert words in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_another_instance_wants_its_price(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--adapters", "10", "--instance", "ml.g5.2xlarge"]) == 2
    assert "Add --hourly-price." in capsys.readouterr().err
    assert planned(capsys, "--adapters", "10", "--instance", "ml.g6e.2xlarge", "--hourly-price", "2")[0] == 0


@pytest.mark.parametrize(("adapters", "skew", "slots"), [(200, 1.0, 8), (200, 1.0, 32), (50, 0.0, 10), (500, 0.7, 100)])
def test_hits_are_those_of_a_cache_that_forgets_the_least_recently_used(adapters: int, skew: float, slots: int) -> None:
    chance, cache, found = random.Random(1), OrderedDict[int, None](), 0
    asked = chance.choices(range(adapters), [1 / k**skew for k in range(1, adapters + 1)], k=40_000)
    for adapter in asked:
        found += adapter in cache
        cache[adapter] = None
        cache.move_to_end(adapter)
        if len(cache) > slots:
            cache.popitem(last=False)
    assert hits(adapters, skew, slots) == pytest.approx(found / len(asked), abs=0.015)


def test_all_are_found_where_all_fit() -> None:
    assert hits(8, 1.0, 8) == 1.0
