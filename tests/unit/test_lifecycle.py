"""The protocol's rules, one by one. tests/protocol explores what they do together."""

from dataclasses import replace
from typing import Any

import pytest

from loradrop import lifecycle
from loradrop.lifecycle import (
    CLIENT_SECONDS,
    AdapterState,
    ComponentEntry,
    ComponentState,
    Decision,
    Outcome,
    Step,
    UploadRecord,
    early_standbys,
)
from loradrop_client.adapters import CACHE_SECONDS

NOW, GRACE_SECONDS = 1_000, 600
FIRST, SECOND, THIRD = ("1".zfill(40), "2".zfill(40), "3".zfill(40))


def upload(order: str = FIRST, attempt: str = "x1", **more: Any) -> UploadRecord:
    return UploadRecord(order, attempt, "uploads", "adapters/acme.tar.gz", f"v{order[-1]}", **more)


class Adapter:
    """An adapter's state and uploads, moved on by the rules."""

    def __init__(self) -> None:
        self.state = AdapterState()
        self.records: dict[str, UploadRecord] = {}

    def applied(self, step: Step[Any], order: str | None = None) -> Any:
        self.state = step.state or self.state
        if step.record is not None:
            assert order in (None, step.record.order)
            self.records[step.record.order] = step.record
        return step.answer

    def claim(self, of: UploadRecord, *, deleted: bool = False) -> Any:
        return self.applied(lifecycle.claim(self.state, self.records.get(of.order), of, deleted=deleted))

    def use(self, order: str, attempt: str, *, release: str = "A", instead_of: str | None = None, **place: str) -> Any:
        place = {"endpoint": "endpoint", "base": "base"} | place
        step = lifecycle.use_component(
            self.state,
            self.records.get(order),
            attempt,
            release=release,
            new_name=f"{release}-{attempt}",
            instead_of=instead_of,
            **place,
        )
        return self.applied(step)

    def promote(self, order: str, attempt: str, name: str, *, now: int = NOW) -> Any:
        step = lifecycle.promote(
            self.state, self.records.get(order), attempt, name, since=f"at {now}", now=now, grace_seconds=GRACE_SECONDS
        )
        return self.applied(step, order)

    def give_up(self, order: str, attempt: str) -> Any:
        return self.applied(lifecycle.give_up(self.state, self.records.get(order), attempt), order)

    def begin_delete(self, name: str, *, now: int, needed_room_since: int | None = None) -> Any:
        return self.applied(lifecycle.begin_delete(self.state, name, now=now, needed_room_since=needed_room_since))

    def end_delete(self, name: str) -> None:
        self.applied(lifecycle.end_delete(self.state, name))

    def finish(self, of: UploadRecord, outcome: Outcome, **more: Any) -> Any:
        return self.applied(lifecycle.finish(self.state, self.records.get(of.order), of, outcome, **more), of.order)

    def remove(self, order: str, attempt: str = "r1", *, now: int = NOW) -> Any:
        removal = upload(order, attempt)
        step = lifecycle.remove(self.state, self.records.get(order), removal, now=now, grace_seconds=GRACE_SECONDS)
        return self.applied(step, order)

    def recover(self, order: str, attempt: str) -> Any:
        return self.applied(lifecycle.recover(self.state, self.records.get(order), attempt), order)

    def deployed(self, order: str, attempt: str, *, release: str = "A", now: int = NOW) -> str:
        """An upload from its claim to its outcome; the component that is live then."""
        one = upload(order, attempt)
        assert self.claim(one).decision is Decision.CLAIMED
        name: str = self.use(order, attempt, release=release).name
        assert self.promote(order, attempt, name, now=now).decision is Decision.PROMOTED
        assert self.finish(one, Outcome.DEPLOYED) is Outcome.DEPLOYED
        return name

    def state_of(self, name: str) -> ComponentState:
        return self.state.components[name].state


@pytest.fixture
def adapter() -> Adapter:
    return Adapter()


class TestClaim:
    def test_an_upload_is_claimed_once_and_the_same_attempt_may_ask_again(self, adapter: Adapter) -> None:
        assert adapter.claim(upload()).decision is Decision.CLAIMED
        assert adapter.claim(upload()).decision is Decision.CLAIMED
        assert adapter.records == {FIRST: upload()}

    def test_another_attempt_is_told_which_one_has_it(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        claim = adapter.claim(upload(attempt="x2"))
        assert (claim.decision, claim.by_version_id, claim.by_attempt) == (Decision.REPEATED, "v1", "x1")

    def test_a_newer_upload_that_was_only_claimed_supersedes_nothing(self, adapter: Adapter) -> None:
        adapter.claim(upload(SECOND, "x2"))
        assert adapter.claim(upload()).decision is Decision.CLAIMED

    def test_a_newer_upload_that_is_live_supersedes_it(self, adapter: Adapter) -> None:
        adapter.deployed(SECOND, "x2")
        claim = adapter.claim(upload())
        assert (claim.decision, claim.by_version_id, claim.by_attempt) == (Decision.SUPERSEDED, "v2", "x2")
        assert not claim.removed
        assert FIRST in adapter.records  # it gets its outcome as any other

    def test_a_removal_supersedes_what_came_before_it(self, adapter: Adapter) -> None:
        adapter.deployed(FIRST, "x1")
        adapter.remove(THIRD)
        claim = adapter.claim(upload(SECOND, "x2"))
        assert (claim.decision, claim.removed) == (Decision.SUPERSEDED, True)

    def test_an_upload_whose_object_is_deleted_meanwhile_brings_nothing_back(self, adapter: Adapter) -> None:
        claim = adapter.claim(upload(), deleted=True)
        assert (claim.decision, claim.removed) == (Decision.SUPERSEDED, True)

    def test_an_upload_that_is_live_is_not_superseded_by_itself(self, adapter: Adapter) -> None:
        adapter.deployed(FIRST, "x1")
        assert adapter.claim(upload()).decision is Decision.CLAIMED

    def test_a_healing_is_superseded_once_something_else_is_live(self, adapter: Adapter) -> None:
        broken = adapter.deployed(FIRST, "x1")
        healing = upload(f"{FIRST}.0000000000001", "h1", heals=broken)
        assert lifecycle.claim(adapter.state, None, healing, deleted=False).answer.decision is Decision.CLAIMED
        adapter.deployed(SECOND, "x2")
        assert lifecycle.claim(adapter.state, None, healing, deleted=False).answer.decision is Decision.SUPERSEDED


class TestUseComponent:
    def test_a_new_component_is_entered_before_it_is_made(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        use = adapter.use(FIRST, "x1")
        assert (use.decision, use.name, use.taken_over) == (Decision.USE, "A-x1", False)
        assert adapter.state_of("A-x1") is ComponentState.MAKING
        assert adapter.use(FIRST, "x1") == use

    def test_a_standby_of_the_release_is_taken_over(self, adapter: Adapter) -> None:
        standby = adapter.deployed(FIRST, "x1", release="A")
        adapter.deployed(SECOND, "x2", release="B")
        adapter.claim(upload(THIRD, "x3"))
        use = adapter.use(THIRD, "x3", release="A")
        assert (use.name, use.taken_over) == (standby, True)
        assert adapter.use(THIRD, "x3", release="A") == use
        assert adapter.state.components[standby].attempt == "x3"
        adapter.promote(THIRD, "x3", standby)
        assert adapter.state_of(standby) is ComponentState.LIVE
        assert adapter.state.components[standby].until is None

    @pytest.mark.parametrize("elsewhere", [{"endpoint": "other"}, {"base": "other"}, {"release": "C"}])
    def test_a_standby_of_another_place_or_release_is_not(self, adapter: Adapter, elsewhere: dict[str, str]) -> None:
        adapter.deployed(FIRST, "x1", release="A")
        adapter.deployed(SECOND, "x2", release="B")
        adapter.claim(upload(THIRD, "x3"))
        assert not adapter.use(THIRD, "x3", **elsewhere).taken_over

    def test_another_is_made_instead_of_a_standby_that_is_gone(self, adapter: Adapter) -> None:
        standby = adapter.deployed(FIRST, "x1", release="A")
        adapter.deployed(SECOND, "x2", release="B")
        adapter.claim(upload(THIRD, "x3"))
        adapter.use(THIRD, "x3", release="A")
        use = adapter.use(THIRD, "x3", release="A", instead_of=standby)
        assert (use.name, use.taken_over) == ("A-x3", False)
        assert adapter.use(THIRD, "x3", release="A") == use
        assert adapter.state_of(standby) is ComponentState.STANDBY
        assert adapter.state.components[standby].until == NOW + GRACE_SECONDS

    def test_one_that_something_newer_overtook_need_not_be_made(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.deployed(SECOND, "x2")
        use = adapter.use(FIRST, "x1")
        assert (use.decision, use.by_version_id) == (Decision.SUPERSEDED, "v2")
        assert "A-x1" not in adapter.state.components

    def test_an_attempt_that_was_given_up_makes_nothing_more(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.give_up(FIRST, "x1")
        assert adapter.use(FIRST, "x1").decision is Decision.LOST

    def test_an_attempt_that_never_had_the_upload_makes_nothing(self, adapter: Adapter) -> None:
        assert adapter.use(FIRST, "x1").decision is Decision.LOST
        adapter.claim(upload())
        assert adapter.use(FIRST, "x2").decision is Decision.LOST


class TestPromote:
    def test_what_it_replaces_stays_as_a_standby_for_the_grace_period(self, adapter: Adapter) -> None:
        first = adapter.deployed(FIRST, "x1")
        second = adapter.deployed(SECOND, "x2", now=NOW + 5)
        assert adapter.state.live is not None
        assert (adapter.state.live.component, adapter.state.live.version_id) == (second, "v2")
        assert adapter.state.floor == SECOND
        standby = adapter.state.components[first]
        assert (standby.state, standby.replaced_at) == (ComponentState.STANDBY, NOW + 5)
        assert standby.until == NOW + 5 + GRACE_SECONDS
        assert adapter.records[SECOND].replaced == first

    def test_a_promotion_whose_answer_was_lost_has_the_same_answer_after_newer_ones(self, adapter: Adapter) -> None:
        first = adapter.deployed(FIRST, "x1")
        second = adapter.deployed(SECOND, "x2")
        adapter.deployed(THIRD, "x3")
        again = adapter.promote(SECOND, "x2", second, now=NOW + 99)
        assert (again.decision, again.replaced, again.since) == (Decision.PROMOTED, first, f"at {NOW}")
        assert adapter.state.live is not None
        assert adapter.state.live.version_id == "v3"

    def test_an_older_upload_does_not_replace_a_newer_one(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        adapter.deployed(SECOND, "x2")
        promotion = adapter.promote(FIRST, "x1", "A-x1")
        assert (promotion.decision, promotion.by_version_id) == (Decision.SUPERSEDED, "v2")

    def test_nothing_goes_live_again_below_a_removal(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        adapter.remove(SECOND)
        promotion = adapter.promote(FIRST, "x1", "A-x1")
        assert (promotion.decision, promotion.removed) == (Decision.SUPERSEDED, True)

    def test_a_component_that_is_being_deleted_does_not_go_live(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        adapter.give_up(FIRST, "x1")
        assert adapter.promote(FIRST, "x1", "A-x1").decision is Decision.LOST

    def test_a_component_of_another_attempt_does_not_go_live(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        adapter.claim(upload(SECOND, "x2"))
        assert adapter.promote(SECOND, "x2", "A-x1").decision is Decision.LOST

    def test_a_healing_replaces_the_broken_component_and_nothing_else(self, adapter: Adapter) -> None:
        broken = adapter.deployed(FIRST, "x1")
        for number in (1, 2):
            order = f"{FIRST}.{number:013}"
            adapter.claim(replace(upload(order, f"h{number}", heals=broken), version_id="v1"))
            assert adapter.use(order, f"h{number}").decision is Decision.USE
        healed = adapter.promote(f"{FIRST}.{1:013}", "h1", "A-h1")
        assert (healed.decision, healed.replaced) == (Decision.PROMOTED, broken)
        assert adapter.state.live is not None
        assert adapter.state.live.version_id == "v1"
        assert adapter.promote(f"{FIRST}.{2:013}", "h2", "A-h2").decision is Decision.SUPERSEDED
        assert adapter.claim(upload(SECOND, "x2")).decision is Decision.CLAIMED  # an event of its own comes after it


class TestGiveUp:
    def test_what_the_attempt_made_is_to_be_deleted_however_often_it_asks(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        assert adapter.give_up(FIRST, "x1").components == ("A-x1",)
        assert adapter.give_up(FIRST, "x1").components == ("A-x1",)
        assert adapter.state_of("A-x1") is ComponentState.DELETING

    def test_nothing_of_another_attempt_is_touched(self, adapter: Adapter) -> None:
        live = adapter.deployed(FIRST, "x1")
        adapter.claim(upload(SECOND, "x2"))
        adapter.use(SECOND, "x2")
        adapter.claim(upload(THIRD, "x3"))
        assert adapter.give_up(THIRD, "x3").components == ()
        assert (adapter.state_of(live), adapter.state_of("A-x2")) == (ComponentState.LIVE, ComponentState.MAKING)

    def test_a_promotion_that_took_place_is_not_given_up(self, adapter: Adapter) -> None:
        first = adapter.deployed(FIRST, "x1")
        adapter.deployed(SECOND, "x2")
        given_up = adapter.give_up(SECOND, "x2")
        assert (given_up.promoted, given_up.replaced, given_up.components) == (True, first, ())
        assert given_up.since == f"at {NOW}"

    def test_a_standby_that_was_taken_over_in_vain_is_kept_to_its_time_and_not_taken_over_again(
        self, adapter: Adapter
    ) -> None:
        standby = adapter.deployed(FIRST, "x1", release="A")
        adapter.deployed(SECOND, "x2", release="B")
        adapter.claim(upload(THIRD, "x3"))
        assert adapter.use(THIRD, "x3", release="A").name == standby
        assert adapter.give_up(THIRD, "x3").components == ()
        assert not adapter.begin_delete(standby, now=NOW + GRACE_SECONDS - 1)
        fourth = "4".zfill(40)
        adapter.claim(upload(fourth, "x4"))
        assert adapter.use(fourth, "x4", release="A").name == "A-x4"
        assert adapter.begin_delete(standby, now=NOW + GRACE_SECONDS)


class TestDelete:
    def test_a_standby_is_deleted_once_its_time_is_over(self, adapter: Adapter) -> None:
        standby = adapter.deployed(FIRST, "x1")
        adapter.deployed(SECOND, "x2")
        assert not adapter.begin_delete(standby, now=NOW + GRACE_SECONDS - 1)
        assert adapter.begin_delete(standby, now=NOW + GRACE_SECONDS)
        assert adapter.begin_delete(standby, now=0)  # there is no way back
        adapter.end_delete(standby)
        assert standby not in adapter.state.components
        adapter.end_delete(standby)

    def test_where_room_is_needed_one_that_no_client_can_hold_goes_early(self, adapter: Adapter) -> None:
        standby = adapter.deployed(FIRST, "x1")
        adapter.deployed(SECOND, "x2")
        assert not adapter.begin_delete(standby, now=NOW + 1, needed_room_since=NOW - 1)
        assert adapter.begin_delete(standby, now=NOW + 1, needed_room_since=NOW)

    def test_what_is_live_or_being_made_is_not_deleted(self, adapter: Adapter) -> None:
        live = adapter.deployed(FIRST, "x1")
        adapter.claim(upload(SECOND, "x2"))
        making = adapter.use(SECOND, "x2").name
        for name in (live, making, "unknown"):
            assert not adapter.begin_delete(name, now=10**10, needed_room_since=10**10)
            adapter.end_delete(name)
        assert set(adapter.state.components) == {live, making}


class TestFinish:
    @pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.FAILED, Outcome.WAITING, Outcome.SUPERSEDED])
    def test_the_first_outcome_counts(self, adapter: Adapter, outcome: Outcome) -> None:
        adapter.claim(upload())
        assert adapter.finish(upload(), outcome, summary="s", figures={"seconds": 1.5}, full_at=7) is outcome
        assert adapter.finish(upload(), Outcome.FAILED) is outcome
        record = adapter.records[FIRST]
        assert (record.outcome, record.summary, record.figures) == (outcome, "s", {"seconds": 1.5})
        assert record.full_at == (7 if outcome is Outcome.WAITING else None)

    @pytest.mark.parametrize("believed", [Outcome.FAILED, Outcome.SUPERSEDED, Outcome.REJECTED])
    def test_what_is_promoted_is_deployed_whatever_its_caller_believes(
        self, adapter: Adapter, believed: Outcome
    ) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        adapter.promote(FIRST, "x1", "A-x1")
        assert adapter.finish(upload(), believed, full_at=7) is Outcome.DEPLOYED
        assert not adapter.records[FIRST].given_up
        assert adapter.records[FIRST].full_at is None

    def test_what_is_not_promoted_is_not_deployed_whatever_its_caller_believes(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        assert adapter.finish(upload(), Outcome.DEPLOYED) is Outcome.FAILED

    def test_another_attempts_upload_has_no_outcome_to_report(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        assert adapter.finish(upload(attempt="x2"), Outcome.FAILED) is None
        assert adapter.records[FIRST] == upload()

    def test_an_upload_whose_claim_failed_is_entered(self, adapter: Adapter) -> None:
        assert adapter.finish(upload(), Outcome.FAILED) is Outcome.FAILED
        assert adapter.records[FIRST].outcome is Outcome.FAILED
        assert adapter.claim(upload(attempt="x2")).decision is Decision.REPEATED

    def test_it_ends_the_attempt_where_no_clean_up_did(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        adapter.finish(upload(), Outcome.FAILED)
        assert adapter.state_of("A-x1") is ComponentState.DELETING
        assert adapter.promote(FIRST, "x1", "A-x1").decision is Decision.LOST
        assert adapter.use(FIRST, "x1").decision is Decision.LOST

    def test_it_is_reported_after_it_has_an_outcome_to_one_channel_after_the_other(self) -> None:
        assert lifecycle.mark_reported(upload(), ["tag"], is_complete=True).record is None
        assert lifecycle.mark_reported(None, ["tag"], is_complete=True).record is None
        partly = lifecycle.mark_reported(upload(outcome=Outcome.FAILED), ["tag", "event"], is_complete=False).record
        assert partly is not None
        assert (partly.reported, partly.is_reported) == ("event tag", False)
        wholly = lifecycle.mark_reported(partly, ["message"], is_complete=True).record
        assert wholly is not None
        assert (wholly.reported, wholly.is_reported) == ("event message tag", True)
        assert lifecycle.mark_reported(wholly, [], is_complete=True).record is None

    def test_an_outcome_that_a_recovery_wrote_gets_its_words_later_and_once(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.recover(FIRST, "x1")
        assert adapter.finish(upload(), Outcome.FAILED, summary="words", entry="{}") is Outcome.FAILED
        assert adapter.finish(upload(), Outcome.FAILED, summary="other words") is Outcome.FAILED
        assert (adapter.records[FIRST].summary, adapter.records[FIRST].entry) == ("words", "{}")


class TestRemove:
    def test_clients_that_hold_its_name_are_served_for_the_grace_period(self, adapter: Adapter) -> None:
        live = adapter.deployed(FIRST, "x1")
        removed = adapter.remove(SECOND)
        assert (removed.outcome, removed.replaced, removed.is_reported) == (Outcome.REMOVED, live, False)
        assert adapter.state.live is None
        assert adapter.state.floor == SECOND
        assert adapter.state.components[live].until == NOW + GRACE_SECONDS

    def test_it_is_done_once_and_has_the_same_answer_when_it_is_asked_again(self, adapter: Adapter) -> None:
        adapter.deployed(FIRST, "x1")
        assert adapter.remove(SECOND) == adapter.remove(SECOND, now=NOW + 99)
        assert adapter.remove(SECOND, "r2") is None

    def test_what_was_uploaded_after_it_stays(self, adapter: Adapter) -> None:
        adapter.deployed(SECOND, "x2")
        assert adapter.remove(FIRST) is None
        assert adapter.state.live is not None

    def test_a_removal_without_an_event_takes_its_place_behind_what_it_removes(self, adapter: Adapter) -> None:
        adapter.deployed(FIRST, "x1")
        assert adapter.remove(f"{FIRST}.0000000000001") is not None
        assert adapter.claim(upload(SECOND, "x2")).decision is Decision.CLAIMED


class TestRecover:
    def test_an_upload_whose_execution_died_failed(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        recovered = adapter.recover(FIRST, "x1")
        assert (recovered.outcome, recovered.components) == (Outcome.FAILED, ("A-x1",))
        assert adapter.recover(FIRST, "x1") == recovered
        assert adapter.promote(FIRST, "x1", "A-x1").decision is Decision.LOST

    def test_one_that_died_after_its_promotion_is_deployed(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        adapter.promote(FIRST, "x1", "A-x1")
        recovered = adapter.recover(FIRST, "x1")
        assert (recovered.outcome, recovered.components) == (Outcome.DEPLOYED, ())
        assert adapter.state_of("A-x1") is ComponentState.LIVE

    def test_another_attempts_upload_is_left_alone(self, adapter: Adapter) -> None:
        adapter.claim(upload())
        adapter.use(FIRST, "x1")
        assert adapter.recover(FIRST, "x9").outcome is None
        assert adapter.records[FIRST].outcome is None
        assert adapter.state_of("A-x1") is ComponentState.MAKING


def test_a_standby_makes_room_once_no_client_can_hold_its_name_the_oldest_first() -> None:
    entry = ComponentEntry(
        "x", FIRST, "A", "endpoint", "base", ComponentState.STANDBY, replaced_at=NOW, until=NOW + 1000
    )
    later = NOW + CLIENT_SECONDS
    states = [
        ("b", AdapterState(components={"b-2": replace(entry, replaced_at=NOW - 1), "b-1": entry})),
        ("a", AdapterState(components={"a-1": replace(entry, replaced_at=NOW - 2)})),
        ("c", AdapterState(components={"young": replace(entry, replaced_at=NOW + 1)})),
        ("d", AdapterState(components={"elsewhere": replace(entry, endpoint="another")})),
        ("e", AdapterState(components={"live": replace(entry, state=ComponentState.LIVE)})),
    ]
    assert early_standbys(states, "endpoint", later) == [("a", "a-1"), ("b", "b-2"), ("b", "b-1")]
    assert CLIENT_SECONDS >= CACHE_SECONDS + 60, "60 s is InvokeEndpoint's limit"
