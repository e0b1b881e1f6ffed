"""The registry against DynamoDB as moto emulates it: what is stored, who wins, and what the index shows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from aws.faults import RegistryContended
from aws.registry import TRIES, Registry
from loradrop.lifecycle import AdapterState, ComponentState, Decision, Live, Outcome, UploadRecord
from loradrop.registry_items import WATCHED_INDEX

TABLE = "lifecycle"
FIRST, SECOND = "1".zfill(40), "2".zfill(40)


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[Any]:
    with mock_aws():
        yield boto3.client("dynamodb", region_name="us-east-1")


@pytest.fixture
def table(dynamodb: Any) -> Iterator[str]:
    keys = [("adapter", "HASH"), ("record", "RANGE")]
    watched = [("watch", "HASH"), ("adapter", "RANGE")]
    dynamodb.create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": name, "KeyType": kind} for name, kind in keys],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("adapter", "record", "watch")],
        GlobalSecondaryIndexes=[
            {
                "IndexName": WATCHED_INDEX,
                "KeySchema": [{"AttributeName": name, "KeyType": kind} for name, kind in watched],
                "Projection": {"ProjectionType": "ALL"},
            }
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    yield TABLE
    dynamodb.delete_table(TableName=TABLE)


@pytest.fixture
def registry(dynamodb: Any, table: str) -> Registry:
    return Registry(dynamodb, table)


class Interrupted:
    """A client of DynamoDB's before each of whose writes something else happens, `times` times."""

    def __init__(self, client: Any, happens: Any, times: int) -> None:
        self._client, self._happens, self.left = client, happens, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def transact_write_items(self, **request: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            self._happens()
        return self._client.transact_write_items(**request)


def upload(order: str = FIRST, attempt: str = "x1", **more: Any) -> UploadRecord:
    return UploadRecord(order, attempt, "uploads", "adapters/acme.tar.gz", f"v{order[-1]}", **more)


def use(registry: Registry, order: str = FIRST, attempt: str = "x1", adapter: str = "acme", **more: str) -> Any:
    return registry.use_component(
        adapter, order, attempt, release="A", endpoint="endpoint", base="base", new_name=f"A-{attempt}", **more
    )


def deploy(registry: Registry, order: str, attempt: str, adapter: str = "acme") -> Any:
    registry.claim(adapter, upload(order, attempt), deleted=False)
    name = use(registry, order, attempt, adapter).name
    promotion = registry.promote(
        adapter, order, attempt, name, since="2026-01-01T00:00:00+00:00", now=1_000, grace_seconds=600
    )
    assert promotion.decision is Decision.PROMOTED
    assert registry.finish(adapter, upload(order, attempt), Outcome.DEPLOYED) is Outcome.DEPLOYED
    return promotion


def test_an_adapter_that_nobody_uploaded_has_an_empty_state(registry: Registry) -> None:
    assert registry.state("acme") == AdapterState()
    assert registry.live("acme") is None
    assert registry.upload("acme", FIRST) is None
    assert list(registry.uploads("acme")) == []


def test_what_is_written_is_read_back(registry: Registry) -> None:
    claimed = upload(
        size_bytes=7, etag='"e"', requester="r", source_ip="127.0.0.1", uploaded_at="2026-01-01T00:00:00Z", repeats="v0"
    )
    registry.claim("acme", claimed, deleted=False)
    assert registry.upload("acme", FIRST) == claimed
    figures: dict[str, str | int | float] = {
        "adapter_ms": 12,
        "seconds_to_in_service": 1.5,
        "verdict": "differs",
        "small": 1e-7,
    }
    registry.finish("acme", claimed, Outcome.WAITING, release="A", summary="s", figures=figures, full_at=64)
    assert registry.upload("acme", FIRST) == replace(
        claimed, outcome=Outcome.WAITING, given_up=True, release="A", summary="s", figures=figures, full_at=64
    )


def test_live_is_a_map_of_strings_on_the_state_item(registry: Registry, dynamodb: Any) -> None:
    deploy(registry, FIRST, "x1")
    item = dynamodb.get_item(TableName=TABLE, Key={"adapter": {"S": "acme"}, "record": {"S": "state"}})["Item"]
    assert item["live"]["M"] == {
        "component": {"S": "A-x1"},
        "endpoint": {"S": "endpoint"},
        "base": {"S": "base"},
        "release": {"S": "A"},
        "order": {"S": FIRST},
        "version_id": {"S": "v1"},
        "since": {"S": "2026-01-01T00:00:00+00:00"},
    }
    assert item["floor"] == {"S": FIRST}
    assert item["components"]["M"]["A-x1"]["M"]["state"] == {"S": "live"}
    assert registry.live("acme") == Live("A-x1", "endpoint", "base", "A", FIRST, "v1", "2026-01-01T00:00:00+00:00")


def test_a_whole_life(registry: Registry) -> None:
    deploy(registry, FIRST, "x1")
    assert deploy(registry, SECOND, "x2").replaced == "A-x1"
    assert registry.give_up("acme", SECOND, "x2").promoted
    assert not registry.begin_delete("acme", "A-x1", now=1_599)
    assert registry.begin_delete("acme", "A-x1", now=1_001, needed_room_since=1_000)
    registry.end_delete("acme", "A-x1")
    removal = upload("3".zfill(40), "r1")
    removed = registry.remove("acme", removal, now=2_000, grace_seconds=600)
    assert removed is not None
    assert removed == registry.upload("acme", removal.order)
    state = registry.state("acme")
    assert state.live is None
    assert state.floor == removal.order
    entry = state.components["A-x2"]
    assert (entry.state, entry.replaced_at, entry.until) == (ComponentState.STANDBY, 2_000, 2_600)


def test_another_stands_in_for_a_standby_that_is_gone(registry: Registry) -> None:
    deploy(registry, FIRST, "x1")
    deploy(registry, SECOND, "x2")
    third = "3".zfill(40)
    registry.claim("acme", upload(third, "x3"), deleted=False)
    assert use(registry, third, "x3").taken_over
    assert use(registry, third, "x3", instead_of="A-x1").name == "A-x3"


def test_what_a_dead_attempt_left_is_recovered(registry: Registry) -> None:
    registry.claim("acme", upload(), deleted=False)
    use(registry)
    recovered = registry.recover("acme", FIRST, "x1")
    assert (recovered.outcome, recovered.components) == (Outcome.FAILED, ("A-x1",))
    record = registry.upload("acme", FIRST)
    assert record is not None
    assert (record.outcome, record.given_up) == (Outcome.FAILED, True)


def test_every_change_raises_the_revision_and_what_changes_nothing_writes_nothing(registry: Registry) -> None:
    registry.claim("acme", upload(), deleted=False)
    assert registry.state("acme").revision == 1
    registry.claim("acme", upload(attempt="x2"), deleted=False)
    assert registry.state("acme").revision == 1
    registry.finish("acme", upload(), Outcome.REJECTED)
    registry.mark_reported("acme", FIRST, ["tag"], is_complete=True)  # of an upload alone, too
    registry.mark_reported("acme", FIRST, ["tag"], is_complete=True)
    assert registry.state("acme").revision == 3


def test_history_is_newest_first_and_takes_a_limit(registry: Registry) -> None:
    orders = [FIRST, f"{FIRST}.0000000000001", SECOND]
    for order in orders:
        registry.claim("acme", upload(order, f"x{order}"), deleted=False)
    registry.claim("acme2", upload(), deleted=False)
    assert [record.order for record in registry.uploads("acme")] == orders[::-1]
    assert [record.order for record in registry.uploads("acme", limit=2)] == orders[:0:-1]


def test_an_upload_is_watched_until_its_outcome_is_reported(registry: Registry) -> None:
    for name in ("acme", "globex"):
        registry.claim(name, upload(), deleted=False)
        registry.finish(name, upload(), Outcome.REJECTED)
    assert [name for name, _ in registry.watched_uploads()] == ["acme", "globex"]
    registry.mark_reported("acme", FIRST, ["tag"], is_complete=True)
    assert [(name, record.order) for name, record in registry.watched_uploads()] == [("globex", FIRST)]
    assert list(registry.open_uploads("acme")) == []
    assert [record.order for record in registry.open_uploads("globex")] == [FIRST]
    assert [name for name, _ in registry.watched_states()] == ["acme", "globex"]
    assert [name for name, _ in registry.watched_states(after="acme")] == ["globex"]
    assert list(registry.watched_uploads(after="globex")) == []


def test_a_key_that_names_no_adapter_has_a_history_of_its_own(registry: Registry) -> None:
    registry.finish("!adapters/.tar.gz", upload(), Outcome.REJECTED, summary="no name")
    (record,) = registry.uploads("!adapters/.tar.gz")
    assert (record.outcome, record.summary) == (Outcome.REJECTED, "no name")


def test_a_step_decides_anew_when_another_came_between(dynamodb: Any, registry: Registry) -> None:
    """x1 read an empty state; before it writes, x2, which is newer, goes live."""
    registry.claim("acme", upload(), deleted=False)
    use(registry)
    interrupted = Interrupted(dynamodb, lambda: deploy(registry, SECOND, "x2"), times=1)
    promotion = Registry(interrupted, TABLE).promote("acme", FIRST, "x1", "A-x1", since="now", now=0, grace_seconds=0)
    assert (promotion.decision, promotion.by_version_id) == (Decision.SUPERSEDED, "v2")
    live = registry.live("acme")
    assert live is not None
    assert live.version_id == "v2"


def test_two_first_claims_of_one_upload_have_one_winner(dynamodb: Any, registry: Registry) -> None:
    interrupted = Interrupted(dynamodb, lambda: registry.claim("acme", upload(attempt="x2"), deleted=False), times=1)
    claim = Registry(interrupted, TABLE).claim("acme", upload(attempt="x1"), deleted=False)
    assert (claim.decision, claim.by_attempt) == (Decision.REPEATED, "x2")


def test_a_change_of_the_upload_alone_is_noticed_too(dynamodb: Any, registry: Registry) -> None:
    """The state that the step read is the same afterwards, but for its revision."""
    registry.claim("acme", upload(), deleted=False)
    interrupted = Interrupted(dynamodb, lambda: registry.finish("acme", upload(), Outcome.REJECTED), times=1)
    assert Registry(interrupted, TABLE).finish("acme", upload(), Outcome.FAILED) is Outcome.REJECTED


def test_who_is_overtaken_every_time_raises_and_has_changed_nothing(dynamodb: Any, registry: Registry) -> None:
    orders = iter(str(number).zfill(40) for number in range(10, 20))
    interrupted = Interrupted(
        dynamodb, lambda: registry.claim("acme", upload(next(orders), "other"), deleted=False), times=TRIES
    )
    with pytest.raises(RegistryContended, match="acme"):
        Registry(interrupted, TABLE).claim("acme", upload(), deleted=False)
    assert registry.upload("acme", FIRST) is None
    assert registry.state("acme").revision == TRIES


def test_a_refusal_that_is_no_conflict_is_raised(dynamodb: Any) -> None:
    with pytest.raises(dynamodb.exceptions.ResourceNotFoundException):
        Registry(dynamodb, "no-such-table").claim("acme", upload(), deleted=False)


def test_attributes_of_a_newer_version_do_not_disturb_this_one(registry: Registry, dynamodb: Any) -> None:
    deploy(registry, FIRST, "x1")
    for record in ("state", f"upload#{FIRST}"):
        dynamodb.update_item(
            TableName=TABLE,
            Key={"adapter": {"S": "acme"}, "record": {"S": record}},
            UpdateExpression="SET later = :later",
            ExpressionAttributeValues={":later": {"M": {"x": {"NULL": True}}}},
        )
    assert registry.live("acme") is not None
    assert registry.upload("acme", FIRST) is not None
