"""The deployment protocol: what each step makes of an adapter's state and of one of its uploads.

Every rule is a pure function: no AWS, no clock but what it is given. It returns a Step: the answer, and the new state
and the new upload record, or None for what stays as it is. aws/registry.py reads and writes; docs/protocol.md explains.

    floor        never falls; an upload below it does not go live
    components   making → live → standby → deleting → (the entry is removed), making → deleting, standby → making → standby
    outcome      is written here before anybody hears of it, once, and says what happened, not what a caller believes
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")

# How long a client may still use a component that was replaced: it keeps the pointer for 5 s (loradrop_client), and an
# answer is streamed for at most 8 minutes. Where room is needed, a standby may go after this.
CLIENT_SECONDS = 5 + 480
FINISHED_AT = "finished_at"
# Of an upload's message, in a list: its heading and the reason.
MAX_SHOWN_CHARACTERS = 300


class Outcome(StrEnum):
    """How an upload ended.

    WAITING: there was no room on the endpoint; ReconcileFleet tries it again, as a new upload. REMOVED is the outcome of a
    removal, which has a record in the history as uploads have.
    """

    DEPLOYED = "deployed"
    REJECTED = "rejected"
    FAILED = "failed"
    WAITING = "waiting"
    SUPERSEDED = "superseded"
    REMOVED = "removed"


class Decision(StrEnum):
    """What a rule decided. LOST: this attempt was given up, or it never had the upload."""

    CLAIMED = "claimed"
    REPEATED = "repeated"
    SUPERSEDED = "superseded"
    USE = "use"
    PROMOTED = "promoted"
    LOST = "lost"


class ComponentState(StrEnum):
    MAKING = "making"
    LIVE = "live"
    STANDBY = "standby"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Live:
    """What clients are to invoke. `since` is ISO 8601, UTC."""

    component: str
    endpoint: str
    base: str
    release: str
    order: str
    version_id: str
    since: str


@dataclass(frozen=True, slots=True)
class ComponentEntry:
    """A component of the adapter's, and the attempt that it belongs to.

    `replaced_at` and `until` (Unix seconds) stand while clients may hold its name: from the moment when it stopped being
    live; it is not deleted before `until`. `is_unfit` says that an attempt took it over in vain: nobody does so again.
    """

    attempt: str
    order: str
    release: str
    endpoint: str
    base: str
    state: ComponentState
    replaced_at: int | None = None
    until: int | None = None
    is_unfit: bool = False


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """One upload, healing or removal: who has it, and what became of it. All of them are the adapter's history.

    `heals` is the component that a healing replaces. `repeats` is the version that this one is a copy of, and `asked_by`
    who asked for the copy. `full_at` is how many components stood on the endpoint when it was full. `summary` is the message
    of the outcome, `entry` what the outcome report says of it, as JSON; `reported` the channels that have it already.
    """

    order: str
    attempt: str
    bucket: str
    key: str
    version_id: str
    size_bytes: int = 0
    etag: str | None = None
    requester: str | None = None
    source_ip: str | None = None
    uploaded_at: str | None = None
    heals: str | None = None
    repeats: str | None = None
    asked_by: str | None = None
    promoted: bool = False
    component: str | None = None
    since: str | None = None
    replaced: str | None = None
    given_up: bool = False
    outcome: Outcome | None = None
    reported: str = ""
    is_reported: bool = False
    release: str | None = None
    summary: str | None = None
    entry: str | None = None
    figures: Mapping[str, str | int | float] = field(default_factory=dict)
    full_at: int | None = None


@dataclass(frozen=True, slots=True)
class AdapterState:
    """`floor` is the order of the newest promotion or removal. `revision` is the registry's, 0 while there is no item.

    `newest` is the newest upload, in short: lists show it, no rule reads it.
    """

    revision: int = 0
    floor: str = ""
    live: Live | None = None
    components: Mapping[str, ComponentEntry] = field(default_factory=dict)
    newest: UploadRecord | None = None


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """What a rule answers, and what it changes."""

    answer: T
    state: AdapterState | None = None
    record: UploadRecord | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """CLAIMED, SUPERSEDED or REPEATED; by which upload or attempt, or by a removal."""

    decision: Decision
    by_version_id: str | None = None
    by_attempt: str | None = None
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """USE the component `name`, or SUPERSEDED (by what, as in Claim), or LOST."""

    decision: Decision
    name: str | None = None
    taken_over: bool = False
    by_version_id: str | None = None
    by_attempt: str | None = None
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Promotion:
    """PROMOTED in place of `replaced`, or SUPERSEDED (by what, as in Claim), or LOST."""

    decision: Decision
    since: str | None = None
    replaced: str | None = None
    by_version_id: str | None = None
    by_attempt: str | None = None
    removed: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The components that the attempt is to delete; or that it was promoted after all, and there is nothing to delete."""

    promoted: bool
    since: str | None = None
    replaced: str | None = None
    components: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recovered:
    """The outcome of the upload that the attempt had, if it had one, and the components to delete."""

    outcome: Outcome | None
    components: tuple[str, ...] = ()


def with_newest(state: AdapterState, record: UploadRecord) -> AdapterState:
    """The state with this upload, if it is the newest: what a list shows of it, which is at most a few hundred bytes."""
    if state.newest is not None and record.order < state.newest.order:
        return state
    finished = {name: at for name, at in record.figures.items() if name == FINISHED_AT}
    summary = "\n".join((record.summary or "").splitlines()[:2])[:MAX_SHOWN_CHARACTERS] or None
    return replace(state, newest=replace(record, entry=None, summary=summary, figures=finished))


def claim(state: AdapterState, record: UploadRecord | None, upload: UploadRecord, *, deleted: bool) -> Step[Claim]:
    """Take an upload for the attempt that `upload` names. `deleted`: nothing is current under its key.

    What supersedes it is a newer one that is live, or a removal. A newer one that was merely claimed does not: it may fail.
    """
    if record is not None and record.attempt != upload.attempt:
        return Step(Claim(Decision.REPEATED, record.version_id, record.attempt))
    entered = upload if record is None else None
    current = record or upload
    if not current.promoted and (deleted or not _may_go_live(state, current)):
        version_id, attempt, removed = _superseded_by(state, deleted=deleted)
        return Step(Claim(Decision.SUPERSEDED, version_id, attempt, removed), record=entered)
    return Step(Claim(Decision.CLAIMED), record=entered)


def use_component(
    state: AdapterState,
    record: UploadRecord | None,
    attempt: str,
    *,
    release: str,
    endpoint: str,
    base: str,
    new_name: str,
    instead_of: str | None = None,
) -> Step[Use]:
    """Which component the attempt is to make, before it makes it: a standby of the release if there is one.

    `instead_of` is the standby that was chosen before, if it turned out not to be in service.
    """
    if record is None or record.attempt != attempt or _is_over(record):
        return Step(Use(Decision.LOST))
    if record.promoted:
        return Step(Use(Decision.USE, record.component, record.component != new_name))
    if not _may_go_live(state, record):
        return Step(Use(Decision.SUPERSEDED, None, False, *_superseded_by(state)))

    components = dict(state.components)
    if instead_of is not None and _is_making(components.get(instead_of), attempt):
        _abandon(components, instead_of)
    for name, entry in components.items():
        if _is_making(entry, attempt):
            return Step(Use(Decision.USE, name, name != new_name))
    standbys = [
        (entry.until or 0, name)
        for name, entry in components.items()
        if entry.state is ComponentState.STANDBY
        and (entry.release, entry.endpoint, entry.base) == (release, endpoint, base)
        and not entry.is_unfit
    ]
    if standbys:
        _, name = max(standbys)
        components[name] = replace(components[name], state=ComponentState.MAKING, attempt=attempt, order=record.order)
    elif new_name in components:
        return Step(Use(Decision.LOST))
    else:
        name = new_name
        components[name] = ComponentEntry(attempt, record.order, release, endpoint, base, ComponentState.MAKING)
    return Step(Use(Decision.USE, name, name != new_name), replace(state, components=components))


def promote(
    state: AdapterState,
    record: UploadRecord | None,
    attempt: str,
    name: str,
    *,
    since: str,
    now: int,
    grace_seconds: int,
) -> Step[Promotion]:
    """Make the attempt's proven component live. The same promotion twice is one promotion, with one answer."""
    if record is None or record.attempt != attempt:
        return Step(Promotion(Decision.LOST))
    if record.promoted:
        return Step(Promotion(Decision.PROMOTED, record.since, record.replaced))
    if not _may_go_live(state, record):
        return Step(Promotion(Decision.SUPERSEDED, None, None, *_superseded_by(state)))
    entry = state.components.get(name)
    if _is_over(record) or entry is None or not _is_making(entry, attempt):
        return Step(Promotion(Decision.LOST))

    components = dict(state.components)
    replaced = state.live.component if state.live else None
    if replaced is not None:
        _put_on_standby(components, replaced, now, grace_seconds)
    components[name] = replace(entry, state=ComponentState.LIVE, replaced_at=None, until=None)
    live = Live(name, entry.endpoint, entry.base, entry.release, record.order, record.version_id, since)
    return Step(
        Promotion(Decision.PROMOTED, since, replaced),
        replace(state, floor=record.order, live=live, components=components),
        replace(record, promoted=True, component=name, since=since, replaced=replaced),
    )


def give_up(state: AdapterState, record: UploadRecord | None, attempt: str) -> Step[GiveUp]:
    """End an attempt that failed: it cannot go live any more, and what it made is to be deleted."""
    if record is None or record.attempt != attempt:
        return Step(GiveUp(promoted=False))
    if record.promoted:
        return Step(GiveUp(promoted=True, since=record.since, replaced=record.replaced))
    after = _without_making(state, attempt)
    given_up = None if record.given_up else replace(record, given_up=True)
    return Step(GiveUp(promoted=False, components=_deleting(after or state, attempt)), after, given_up)


def begin_delete(state: AdapterState, name: str, *, now: int, needed_room_since: int | None = None) -> Step[bool]:
    """Whether the component may be deleted: it is being deleted, or it is a standby whose time is over.

    `now` and `needed_room_since` are Unix seconds. Where room is needed, a standby that was replaced at or before
    `needed_room_since` may go early: no client can hold its name any longer.
    """
    entry = state.components.get(name)
    if entry is None or entry.state in (ComponentState.MAKING, ComponentState.LIVE):
        return Step(answer=False)
    if entry.state is ComponentState.DELETING:
        return Step(answer=True)
    is_over = entry.until is None or entry.until <= now
    is_unknown = needed_room_since is not None and (entry.replaced_at or 0) <= needed_room_since
    if not (is_over or is_unknown):
        return Step(answer=False)
    components = {**state.components, name: replace(entry, state=ComponentState.DELETING)}
    return Step(answer=True, state=replace(state, components=components))


def early_standbys(states: Iterable[tuple[str, AdapterState]], endpoint: str, now: int) -> list[tuple[str, str]]:
    """(adapter, component) of the standbys that may make room on the endpoint, those first that were replaced first."""
    found = [
        (entry.replaced_at or 0, adapter, name)
        for adapter, state in states
        for name, entry in state.components.items()
        if entry.state is ComponentState.STANDBY and entry.endpoint == endpoint
    ]
    return [(adapter, name) for replaced_at, adapter, name in sorted(found) if replaced_at <= now - CLIENT_SECONDS]


def end_delete(state: AdapterState, name: str) -> Step[None]:
    """Forget a component that was being deleted and that SageMaker does not find any more."""
    entry = state.components.get(name)
    if entry is None or entry.state is not ComponentState.DELETING:
        return Step(None)
    components = {other: kept for other, kept in state.components.items() if other != name}
    return Step(None, replace(state, components=components))


def finish(
    state: AdapterState,
    record: UploadRecord | None,
    upload: UploadRecord,
    outcome: Outcome,
    *,
    release: str | None = None,
    summary: str | None = None,
    entry: str | None = None,
    figures: Mapping[str, str | int | float] | None = None,
    full_at: int | None = None,
) -> Step[Outcome | None]:
    """The outcome that counts, before it is reported; None if another attempt has the upload.

    `upload` says order and attempt, and is entered if its claim never got that far. The attempt is over with this: what it
    still makes is to be deleted, and a Lambda of its own that lingers cannot promote it.
    """
    current = record or upload
    if current.attempt != upload.attempt:
        return Step(None)
    if current.outcome is not None:  # of a recovery or a removal, there are no words yet
        described = None if current.summary else replace(current, summary=summary, entry=entry, figures=figures or {})
        return Step(current.outcome, record=described)
    if current.promoted:
        outcome = Outcome.DEPLOYED
    elif outcome is Outcome.DEPLOYED:
        outcome = Outcome.FAILED
    finished = replace(
        current,
        outcome=outcome,
        given_up=not current.promoted,
        release=release or current.release,
        summary=summary,
        entry=entry,
        figures=figures or {},
        full_at=full_at if outcome is Outcome.WAITING else None,
    )
    return Step(outcome, _without_making(state, upload.attempt), finished)


def mark_reported(record: UploadRecord | None, channels: Iterable[str], *, is_complete: bool) -> Step[None]:
    """These channels have the outcome; is_complete: everybody who is to hear of it has."""
    if record is None or record.outcome is None or record.is_reported:
        return Step(None)
    reported = " ".join(sorted({*record.reported.split(), *channels}))
    return Step(None, record=replace(record, reported=reported, is_reported=is_complete))


def remove(
    state: AdapterState,
    record: UploadRecord | None,
    removal: UploadRecord,
    *,
    now: int,
    grace_seconds: int,
) -> Step[UploadRecord | None]:
    """Take the adapter out of service, since nothing is current under its key. None if something newer is live.

    `removal` gets a record of its own in the history, with its outcome; it is yet to be reported.
    """
    if record is not None:
        return Step(record if record.attempt == removal.attempt else None)
    if removal.order <= state.floor:
        return Step(None)
    components = dict(state.components)
    replaced = state.live.component if state.live else None
    if replaced is not None:
        _put_on_standby(components, replaced, now, grace_seconds)
    removed = replace(removal, outcome=Outcome.REMOVED, replaced=replaced)
    return Step(removed, replace(state, floor=removal.order, live=None, components=components), removed)


def recover(state: AdapterState, record: UploadRecord | None, attempt: str) -> Step[Recovered]:
    """End an attempt whose execution does not run any more. The caller asked that before the state was read."""
    after = _without_making(state, attempt)
    components = _deleting(after or state, attempt)
    if record is None or record.attempt != attempt:
        return Step(Recovered(None, components), after)
    if record.outcome is not None:
        return Step(Recovered(record.outcome, components), after)
    outcome = Outcome.DEPLOYED if record.promoted else Outcome.FAILED
    recovered = replace(record, outcome=outcome, given_up=not record.promoted)
    return Step(Recovered(outcome, components), after, recovered)


def _may_go_live(state: AdapterState, record: UploadRecord) -> bool:
    """Above the floor; and a healing replaces the component that is broken and nothing else."""
    is_broken_one_live = state.live is not None and state.live.component == record.heals
    return record.order > state.floor and (record.heals is None or is_broken_one_live)


def _superseded_by(state: AdapterState, *, deleted: bool = False) -> tuple[str | None, str | None, bool]:
    """(version, attempt) of what is live; or whether the adapter was removed."""
    if state.live is None or deleted:
        return None, None, True
    entry = state.components.get(state.live.component)
    return state.live.version_id, entry.attempt if entry else None, False


def _is_over(record: UploadRecord) -> bool:
    return record.given_up or (record.outcome is not None and not record.promoted)


def _is_making(entry: ComponentEntry | None, attempt: str) -> bool:
    return entry is not None and entry.state is ComponentState.MAKING and entry.attempt == attempt


def _put_on_standby(components: dict[str, ComponentEntry], name: str, now: int, grace_seconds: int) -> None:
    standby = replace(components[name], state=ComponentState.STANDBY, replaced_at=now, until=now + grace_seconds)
    components[name] = standby


def _abandon(components: dict[str, ComponentEntry], name: str) -> None:
    """An attempt lets go of a component. One that it took over goes back: clients may still hold its name."""
    entry = components[name]
    if entry.until is None:
        components[name] = replace(entry, state=ComponentState.DELETING)
    else:
        components[name] = replace(entry, state=ComponentState.STANDBY, is_unfit=True)


def _without_making(state: AdapterState, attempt: str) -> AdapterState | None:
    """The state after the attempt has let go of what it makes; None if it makes nothing."""
    components = dict(state.components)
    making = [name for name, entry in components.items() if _is_making(entry, attempt)]
    for name in making:
        _abandon(components, name)
    return replace(state, components=components) if making else None


def _deleting(state: AdapterState, attempt: str) -> tuple[str, ...]:
    return tuple(
        sorted(
            name
            for name, entry in state.components.items()
            if entry.attempt == attempt and entry.state is ComponentState.DELETING
        )
    )
