"""`loradrop cost`: the endpoint's hours divided by hand, and the figures as they come from AWS (moto)."""

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from loradrop.registry_reader import RegistryReader
from loradrop_cli.cost import Usage, costs, month
from loradrop_cli.main import main
from loradrop_cli.terminal import CommandError
from tests.adapters import good_tarball
from tests.unit.conftest import TABLE, Resources, client
from tests.unit.test_life import Shop

HOUR = 3600.0


def test_busy_time_is_the_askers_and_idle_time_everybodys_who_is_live() -> None:
    usages = [
        Usage("acme/a", is_live=True, requests=30, busy_seconds=0.3 * HOUR, deployments=1, stored_bytes=0),
        Usage("globex", is_live=True, requests=10, busy_seconds=0.1 * HOUR, deployments=0, stored_bytes=10**9),
        Usage("gone", is_live=False, requests=0, busy_seconds=0, deployments=0, stored_bytes=0),
    ]
    found = {one.adapter: one for one in costs(usages, hourly_price=2.0, instances=1, seconds=HOUR)}
    assert found["acme/a"].busy == pytest.approx(0.6)
    assert found["globex"].busy == pytest.approx(0.2)
    assert found["acme/a"].idle == found["globex"].idle == pytest.approx(0.6)
    assert found["gone"].total == found["gone"].alone == 0
    assert found["globex"].storage == pytest.approx(0.023 / 730)
    assert found["acme/a"].tenant == "acme"
    assert sum(one.busy + one.idle for one in found.values()) == pytest.approx(2.0)
    assert list(found) == ["acme/a", "globex", "gone"], "the dearest first"


def test_requests_at_once_never_cost_more_than_the_endpoint() -> None:
    usages = [
        Usage(name, is_live=True, requests=1, busy_seconds=seconds, deployments=0, stored_bytes=0)
        for name, seconds in (("a", 9 * HOUR), ("b", HOUR))
    ]
    a, b = costs(usages, hourly_price=2.0, instances=1, seconds=HOUR)
    assert (a.busy, b.busy, a.idle) == (pytest.approx(1.8), pytest.approx(0.2), 0)


def test_more_instances_cost_more_and_neither_storage_nor_an_endpoint_of_ones_own_does() -> None:
    [one] = costs(
        [Usage("a", is_live=True, requests=1, busy_seconds=HOUR, deployments=0, stored_bytes=10**9)],
        hourly_price=2.0,
        instances=3,
        seconds=HOUR,
    )
    assert (one.busy, one.idle) == (pytest.approx(2.0), pytest.approx(4.0))
    assert one.storage == pytest.approx(0.023 / 730)
    assert one.alone == pytest.approx(2.0)


def test_a_month_is_a_whole_one_or_up_to_now() -> None:
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert month(None, now) == (datetime(2026, 11, 1, tzinfo=UTC), now)
    assert month("2026-02", now) == (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))
    assert month("2026-11", now)[1] == now
    for wrong in ("2026-13", "11/2026", "2026-12"):
        with pytest.raises(CommandError, match=wrong):
            month(wrong, now)


@pytest.fixture
def shop(stack: Resources, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("LORADROP_STACK", "shop")
    return Shop(stack)


def live_component(adapter: str) -> str:
    live = RegistryReader(client("dynamodb"), TABLE).state(adapter).live
    assert live is not None
    return live.component


def test_the_figures_are_those_of_the_adapters_components(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.push(good_tarball(seed=1), "team/busy")
    first = live_component("team/busy")
    shop.push(good_tarball(seed=2), "team/busy")
    second = live_component("team/busy")
    assert first != second
    shop.push(good_tarball(seed=3), "quiet")
    at = datetime.now(UTC)
    for component, requests in ((first, 3), (second, 4), ("a-strangers", 100)):
        dimensions = [{"Name": "InferenceComponentName", "Value": component}]
        data: list[Any] = [
            {"MetricName": "Invocations", "Dimensions": dimensions, "Timestamp": at, "Value": requests},
            {"MetricName": "ModelLatency", "Dimensions": dimensions, "Timestamp": at, "Value": requests * 2e3},
        ]
        client("cloudwatch").put_metric_data(Namespace="AWS/SageMaker", MetricData=data)

    assert main(["cost"]) == 2
    assert "Add --hourly-price." in capsys.readouterr().err
    assert main(["cost", "--hourly-price", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {one["adapter"]: one for one in found["adapters"]}
    assert by_name["team/busy"]["requests"] == 7
    assert by_name["quiet"]["requests"] == 0
    hours = (datetime.fromisoformat(found["to"]) - datetime.fromisoformat(found["from"])).total_seconds() / 3600
    assert by_name["team/busy"]["busy"] == pytest.approx(0.014 / 3600 * 2)
    assert by_name["quiet"]["idle"] == pytest.approx((2 * hours - 0.014 / 3600 * 2) / 2)
    assert by_name["team/busy"]["deployments"] == pytest.approx(2 * 0.0023)
    assert by_name["team/busy"]["storage"] > by_name["quiet"]["storage"] > 0
    assert found["alone"] == pytest.approx(2 * 2 * hours)
    assert [(one["tenant"], one["adapters"], one["requests"]) for one in found["tenants"]] == [
        ("team", 1, 7),
        ("quiet", 1, 0),
    ]

    assert main(["cost", "--hourly-price", "2", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["adapter"] for row in rows] == ["team/busy", "quiet"]
    assert main(["cost", "--hourly-price", "2"]) == 0
    shown = capsys.readouterr().out
    assert "An endpoint for each would have been $" in shown
    assert max(map(len, shown.splitlines())) <= 80
