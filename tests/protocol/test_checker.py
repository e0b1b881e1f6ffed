"""The rules and handlers in a bounded part of what can happen; and that the checker finds what it is to find."""

from typing import Any

import boto3
import pytest
from moto import mock_aws

from aws.registry import Registry
from loradrop.lifecycle import Outcome, UploadRecord
from tests.protocol.__main__ import ONE_FAULT, WALKS, WHOLE, Scenario
from tests.protocol.handlers import mutated
from tests.protocol.model import DEPLOY, FAULTS, Model
from tests.protocol.search import search, walk
from tests.protocol.table import Table
from tests.unit.conftest import registry_table

BOUNDED = (
    Scenario("A,B"),
    Scenario("A,-"),
    Scenario("A,x", repeats=1),
    Scenario("A,B", repeats=1),
    Scenario("A,-,!"),
    Scenario("acme:A,globex:A"),
    Scenario("A", faults=1, repeats=1),
    Scenario("A,x", faults=1),
    Scenario("A,-", faults=1, max_states=30_000),
    Scenario("A,B", faults=1, max_states=60_000),
    Scenario("A,B", looks=1, ticks=1, max_states=30_000),
)


@pytest.mark.parametrize("scenario", BOUNDED, ids=lambda scenario: scenario.name)
def test_no_invariant_is_violated(scenario: Scenario) -> None:
    found = scenario.run()
    assert found.violations == {}, "\n".join(f"{kind}: {trace}" for kind, trace in found.violations.items())
    assert found.is_whole or found.states == scenario.max_states
    assert found.at_rest > 0 or not found.is_whole


def test_random_walks_with_everything_violate_nothing() -> None:
    for seed, script in enumerate(WALKS, 1):
        model = Model(script, faults=2, repeats=1, looks=2, ticks=1)
        found = walk(model, max_seconds=2, seed=seed)
        assert found.violations == {}
        assert found.states > 100


# A mistake in a rule: (rule, what its source holds, what it would be, a scenario, what the checker says).
MISTAKES = {
    "an older upload goes live over a newer one": (
        "_may_go_live",
        "record.order > state.floor and ",
        "",
        Scenario("A,B"),
        "I5",
    ),
    "a component is given up without being marked": (
        "_abandon",
        "state=ComponentState.DELETING",
        "state=ComponentState.MAKING",
        Scenario("A,d"),
        "I3",
    ),
    "a component goes live that is being deleted": (
        "_is_making",
        "entry.state is ComponentState.MAKING and ",
        "",
        Scenario("A", faults=1, kinds=("zombie",)),
        "I1",
    ),
    "an execution that died is recovered as failed, whatever it did": (
        "recover",
        "Outcome.DEPLOYED if record.promoted else Outcome.FAILED",
        "Outcome.FAILED",
        Scenario("A", faults=1, kinds=("abort",)),
        "I6",
    ),
    "what is replaced stays marked as live": (
        "promote",
        "_put_on_standby(components, replaced, now, grace_seconds)",
        "pass",
        Scenario("A,B"),
        "I1",
    ),
    "a newer upload that was only claimed supersedes": (
        "claim",
        "deleted or not _may_go_live(state, current)",
        "deleted or not _may_go_live(state, current) or upload.version_id == 'v1' and state.revision > 0",
        Scenario("A,x"),
        "I2",
    ),
    "a standby is kept when its time is over": (
        "begin_delete",
        "entry.until <= now",
        "False",
        Scenario("A,B", looks=1),
        "I3",
    ),
    "a standby that was taken over in vain is deleted at once": (
        "_abandon",
        "entry.until is None",
        "True",
        Scenario("A,B,A", faults=1, kinds=("smoke flake",)),
        "I7",
    ),
    "a removal does not keep what came before it from going live": (
        "remove",
        "floor=removal.order, ",
        "",
        Scenario("A,-"),
        "I5",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_rule_is_found(mistake: str) -> None:
    rule, text, instead, scenario, kind = MISTAKES[mistake]
    with mutated(rule, text, instead):
        found = search(scenario.model(), max_states=150_000, stop_at_first=True)
    assert any(violation.startswith(kind) for violation in found.violations), found
    (trace,) = list(found.violations.values())[:1]
    assert trace, "there is a way to it"


def test_a_mistake_in_the_state_machine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEPLOY, "IsAdapterProven", DEPLOY["IsAdapterProven"] | {"Default": "PromoteAdapter"})
    found = search(Model("A,d"), stop_at_first=True)
    assert "I1 live names a component that is not proven or not in service (I)" in found.violations


def test_a_condition_that_the_checker_does_not_know_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"Condition": "{% $deployment.smoke.passed or true %}", "Next": "PromoteAdapter"}
    monkeypatch.setitem(DEPLOY, "IsAdapterProven", DEPLOY["IsAdapterProven"] | {"Choices": [changed]})
    with pytest.raises(KeyError, match="or true"):
        search(Model("A"))


@pytest.mark.parametrize("scenario", [Scenario("A,B"), Scenario("A,d", repeats=1), Scenario("A", faults=1)])
def test_the_reduction_leaves_out_no_world_at_rest(scenario: Scenario) -> None:
    whole, reduced = search(scenario.model(is_reduced=False)), search(scenario.model())
    assert reduced.worlds_at_rest == whole.worlds_at_rest
    assert reduced.states < whole.states


def test_every_scenario_of_the_long_run_can_be_read() -> None:
    for scenario in (*WHOLE, *ONE_FAULT):
        assert scenario.model().initial().script in (0, len(scenario.script.split(",")))


def test_every_kind_of_fault_takes_place() -> None:
    """A fault that is never tried proves nothing."""
    taken = set()
    model = Model("A", faults=1)
    queue, seen = [model.initial()], set()
    while queue and taken != set(FAULTS):
        world = queue.pop()
        for move in model.moves(world)[0]:
            if move.fault:
                taken.add(move.fault)
            elif hash(move.after) not in seen:
                seen.add(hash(move.after))
                queue.append(move.after)
    assert taken >= set(FAULTS) - {"exhausted"}  # that needs another fault before it


def upload(order: str, attempt: str) -> UploadRecord:
    return UploadRecord(order, attempt, "uploads", "adapters/acme.tar.gz", f"v{order}")


def life(registry: Registry) -> list[Any]:
    """Steps of two uploads, a removal and a second adapter; and all that can be read of them."""
    place = {"release": "A", "endpoint": "endpoint", "base": "base"}
    said: list[Any] = []
    for order in ("1", "2", "1"):
        said.append(registry.claim("acme", upload(order, f"x{order}"), deleted=False))
        said.append(registry.use_component("acme", order, f"x{order}", **place, new_name=f"c{order}"))
        said.append(
            registry.promote("acme", order, f"x{order}", f"c{order}", since="now", now=int(order), grace_seconds=9)
        )
        said.append(registry.finish("acme", upload(order, f"x{order}"), Outcome.FAILED))
    registry.mark_reported("acme", "1", ["tag"], is_complete=True)
    said.append(registry.claim("globex", upload("1", "x9"), deleted=True))
    said.append(registry.remove("acme", upload("3", "r"), now=5, grace_seconds=9))
    said += [registry.state("acme"), registry.state("none"), registry.live("acme"), registry.upload("acme", "2")]
    said += [list(registry.uploads("acme")), list(registry.uploads("acme", 2)), list(registry.open_uploads("acme"))]
    said += [list(registry.watched_states()), list(registry.watched_states("acme")), list(registry.watched_uploads())]
    return said


def test_the_table_in_memory_answers_as_dynamodb_does() -> None:
    with mock_aws():
        client: Any = boto3.client("dynamodb", region_name="us-east-1")
        client.create_table(TableName="registry", BillingMode="PAY_PER_REQUEST", **registry_table())
        theirs = life(Registry(client, "registry"))
    ours: Any = Table({})
    assert life(Registry(ours, "registry")) == theirs
