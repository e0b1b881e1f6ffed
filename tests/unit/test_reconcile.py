"""What reconciliation finds wrong with an adapter, rule by rule."""

from dataclasses import replace
from typing import Any

import pytest

from loradrop.lifecycle import AdapterState, ComponentEntry, ComponentState, Live, Outcome, UploadRecord
from loradrop.names import order_behind, order_of
from loradrop.reconcile import (
    LOST_EVENT_SECONDS,
    ORPHAN_SECONDS,
    Adapter,
    CurrentObject,
    Fleet,
    Plan,
    Repair,
    Wanted,
    is_history_needed,
    wanted,
)
from loradrop.reconcile import is_orphan as orphan

NOW = 1_000_000
ONE, TWO = order_of("1"), order_of("2")
LIVE = Live("c1", "endpoint", "base", "release", ONE, "v1", "2026-01-01")
ENTRY = ComponentEntry("done", ONE, "release", "endpoint", "base", ComponentState.LIVE)
FLEET = Fleet("endpoint", "base", True, {"c1": "InService", "base": "InService"}, frozenset({"running"}), NOW)
RECORD = UploadRecord(
    order=ONE,
    attempt="done",
    bucket="uploads",
    key="adapters/acme.tar.gz",
    version_id="v1",
    promoted=True,
    outcome=Outcome.DEPLOYED,
    is_reported=True,
)
HEALTHY = Adapter("acme", AdapterState(3, ONE, LIVE, {"c1": ENTRY}), CurrentObject("v1", 10_000), (RECORD,), ())


def with_component(adapter: Adapter, name: str, **changes: Any) -> Adapter:
    entry = replace(ENTRY, **changes)
    return replace(adapter, state=replace(adapter.state, components={**adapter.state.components, name: entry}))


def repairs(adapter: Adapter, fleet: Fleet = FLEET) -> list[Repair]:
    return [one.repair for one in wanted(adapter, fleet)]


def test_a_healthy_adapter_needs_nothing() -> None:
    assert repairs(HEALTHY) == []


def test_one_that_was_never_deployed_and_is_not_there_needs_nothing() -> None:
    assert repairs(Adapter("acme", AdapterState(), None, (), ())) == []


# Uploads


@pytest.mark.parametrize(
    ("attempt", "outcome", "expected"),
    [
        ("ended", None, [Repair.RECOVER]),
        ("ended", Outcome.FAILED, [Repair.REPORT]),
        ("running", None, []),
        ("running", Outcome.FAILED, []),
    ],
)
def test_an_attempt_that_has_ended_is_recovered_or_reported(
    attempt: str, outcome: Outcome | None, expected: list[Repair]
) -> None:
    record = replace(RECORD, order=TWO, version_id="v2", attempt=attempt, outcome=outcome, promoted=False)
    adapter = replace(HEALTHY, current=CurrentObject("v2", 10_000), history=(record,), open=(record,))
    assert repairs(adapter) == expected


# Components


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": ComponentState.STANDBY, "until": NOW}, [Repair.DELETE]),
        ({"state": ComponentState.STANDBY, "until": NOW + 1}, []),
        ({"state": ComponentState.DELETING, "attempt": "ended"}, [Repair.DELETE]),
        ({"state": ComponentState.DELETING, "attempt": "running"}, []),
        ({"state": ComponentState.MAKING, "attempt": "ended"}, [Repair.RECOVER]),
        ({"state": ComponentState.MAKING, "attempt": "running"}, []),
    ],
)
def test_a_component_goes_when_its_time_or_its_attempt_is_over(changes: dict[str, Any], expected: list[Repair]) -> None:
    fleet = replace(FLEET, components={**FLEET.components, "c2": "InService"})
    assert repairs(with_component(HEALTHY, "c2", **changes), fleet) == expected


def test_a_component_that_is_gone_already_is_forgotten_though_its_attempt_still_runs() -> None:
    adapter = with_component(HEALTHY, "c2", state=ComponentState.DELETING, attempt="running")
    assert repairs(adapter) == [Repair.DELETE]


@pytest.mark.parametrize("status", [None, "Failed", "Deleting"])
def test_a_live_component_that_serves_nobody_is_healed(status: str | None) -> None:
    fleet = replace(FLEET, components={"base": "InService"} | ({"c1": status} if status else {}))
    assert repairs(HEALTHY, fleet) == [Repair.HEAL]


@pytest.mark.parametrize("change", [{"endpoint": "new"}, {"base": "new"}])
def test_a_live_component_elsewhere_than_the_stack_serves_is_healed(change: dict[str, str]) -> None:
    [one] = wanted(HEALTHY, replace(FLEET, **change))
    assert one.repair is Repair.HEAL
    assert "new" in one.reason


def test_nothing_is_healed_while_the_base_is_not_in_service_nor_twice_at_once() -> None:
    broken = replace(FLEET, components={})
    assert repairs(HEALTHY, replace(broken, is_base_in_service=False)) == []
    healing = replace(RECORD, order=f"{ONE}.1", attempt="running", heals="c1", outcome=None, promoted=False)
    assert repairs(replace(HEALTHY, open=(healing,)), broken) == []


# The object


@pytest.mark.parametrize(("times", "minutes"), [(1, 10), (2, 20), (3, 40), (6, 320), (7, 360), (40, 360)])
def test_a_healing_that_failed_is_tried_again_later_each_time(times: int, minutes: int) -> None:
    broken = replace(FLEET, components={"base": "InService"})
    failed = [
        replace(
            RECORD, order=order_behind(ONE, (NOW - 60 * ago) * 1000), heals="c1", outcome=Outcome.FAILED, promoted=False
        )
        for ago in range(times)
    ]
    adapter = replace(HEALTHY, history=(*failed, RECORD))
    assert is_history_needed(adapter, broken)
    assert repairs(adapter, replace(broken, now=NOW + minutes * 60 - 1)) == []
    assert repairs(adapter, replace(broken, now=NOW + minutes * 60)) == [Repair.HEAL]
    assert [one.repair for one in wanted(adapter, broken, is_patient=False)] == [Repair.HEAL]


def test_what_failed_for_another_component_does_not_delay_a_healing() -> None:
    broken = replace(FLEET, components={"base": "InService"})
    other = replace(RECORD, order=order_behind(ONE, NOW * 1000), heals="c0", outcome=Outcome.FAILED, promoted=False)
    assert repairs(replace(HEALTHY, history=(other, RECORD)), broken) == [Repair.HEAL]
    assert not is_history_needed(HEALTHY, FLEET)


def test_an_adapter_whose_tarball_was_deleted_is_removed_and_not_healed() -> None:
    assert repairs(replace(HEALTHY, current=None), replace(FLEET, components={})) == [Repair.REMOVE]


def test_so_is_one_that_is_only_being_made() -> None:
    making = replace(ENTRY, state=ComponentState.MAKING, attempt="running")
    assert repairs(Adapter("acme", AdapterState(1, "", None, {"c2": making}), None, (), ())) == [Repair.REMOVE]


@pytest.mark.parametrize(("age", "expected"), [(LOST_EVENT_SECONDS - 1, []), (LOST_EVENT_SECONDS, [Repair.REPEAT])])
def test_an_object_that_nobody_claimed_lost_its_event(age: int, expected: list[Repair]) -> None:
    assert repairs(replace(HEALTHY, current=CurrentObject("v2", age))) == expected


def test_an_older_version_that_is_current_again_is_deployed_again() -> None:
    live = replace(LIVE, order=TWO, version_id="v2")
    adapter = replace(HEALTHY, state=replace(HEALTHY.state, floor=TWO, live=live))
    assert repairs(adapter) == [Repair.REPEAT]


def test_one_that_a_deletion_superseded_is_deployed_again_once_the_delete_marker_is_gone() -> None:
    superseded = replace(RECORD, promoted=False, outcome=Outcome.SUPERSEDED)
    adapter = Adapter("acme", AdapterState(1), CurrentObject("v1", LOST_EVENT_SECONDS), (superseded,), ())
    assert repairs(adapter) == [Repair.REPEAT]
    assert repairs(replace(adapter, current=CurrentObject("v1", LOST_EVENT_SECONDS - 1))) == []


def test_a_rejected_upload_that_is_current_is_left_alone() -> None:
    rejected = replace(RECORD, order=TWO, version_id="v2", outcome=Outcome.REJECTED, promoted=False)
    adapter = replace(HEALTHY, current=CurrentObject("v2", 10_000), history=(rejected, RECORD))
    assert repairs(adapter) == []


def test_an_upload_that_found_the_endpoint_full_waits_for_room() -> None:
    full = replace(RECORD, order=TWO, version_id="v2", outcome=Outcome.WAITING, promoted=False, full_at=5)
    adapter = replace(HEALTHY, current=CurrentObject("v2", 10_000), history=(full,))
    assert repairs(adapter) == [Repair.RETRY]


@pytest.mark.parametrize(("full_at", "planned"), [(8, 0), (9, 1), (None, 2)])
def test_one_that_could_not_count_is_tried_again_and_no_plan_is_longer_than_its_limit(
    full_at: int | None, planned: int
) -> None:
    plan = Plan(limit=2)
    for adapter in "abc":
        plan.add(adapter, (Wanted(Repair.RETRY, "full", version_id="v", uploaded_at="2026", full_at=full_at),))
    plan.keep_retries(standing=8)
    assert len(plan.repairs) == planned


# Orphans and plans


def test_only_a_component_that_nobody_knows_and_nobody_can_still_be_making_is_an_orphan() -> None:
    assert orphan("c9", {"c1"}, age_seconds=ORPHAN_SECONDS + 1)
    assert not orphan("c1", {"c1"}, age_seconds=ORPHAN_SECONDS + 1)
    assert not orphan("c9", {"c1"}, age_seconds=ORPHAN_SECONDS)


def test_retries_are_done_oldest_first_and_only_as_many_as_there_is_room_for() -> None:
    plan = Plan(limit=100)
    for adapter, uploaded_at in [("b", "2026-01-02"), ("a", "2026-01-03"), ("c", "2026-01-01")]:
        plan.add(adapter, (Wanted(Repair.RETRY, "full", version_id="v", uploaded_at=uploaded_at, full_at=10),))
    assert plan.repairs == []
    plan.keep_retries(standing=8)
    assert [one["adapter"] for one in plan.repairs] == ["c", "b"]
    assert plan.counts == {"retry": 2}


def test_a_plan_is_bounded_whatever_is_wrong() -> None:
    plan = Plan(limit=1)
    plan.add("acme", tuple(Wanted(Repair.DELETE, "over", component=f"c{number}") for number in range(1000)))
    assert plan.is_full
    assert len(plan.repairs[0]["wanted"]) == 10
    assert plan.counts == {"delete": 1000}


@pytest.mark.parametrize("one", [Wanted(Repair.HEAL, "gone", component="c1"), Wanted(Repair.RETRY, "full", full_at=3)])
def test_a_wanted_repair_travels_as_json(one: Wanted) -> None:
    assert Wanted.from_dict(one.to_dict()) == one
