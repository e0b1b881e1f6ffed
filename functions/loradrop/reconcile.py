"""What ReconcileFleet finds wrong with an adapter, from what is: bucket, registry, endpoint and executions.

Pure: the same rules plan for the whole fleet, from lists that may be some seconds old, and decide the repair of one
adapter, from what was just read. A plan is a hint; a repair looks again.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from loradrop.lifecycle import AdapterState, ComponentState, Outcome, UploadRecord
from loradrop.names import made_behind

# Events come within seconds as a rule. A copy that is made too early only costs a second deployment.
LOST_EVENT_SECONDS = 600
# No Lambda, and so no create call, lives longer.
LAMBDA_SECONDS = 900
ORPHAN_SECONDS = 2 * LAMBDA_SECONDS
# A healing that failed is tried again after this, then after twice as long each time, up to the most.
HEAL_AGAIN_SECONDS = 600
MAX_HEAL_AGAIN_SECONDS = 6 * 3600
# Of one adapter in a plan; the repair looks again and finds all.
MAX_SHOWN_REPAIRS = 10


class Repair(StrEnum):
    """What is to be done, and why."""

    RECOVER = "recover"  # an attempt whose execution has ended without an outcome
    REPORT = "report"  # an outcome that not everybody has heard of
    DELETE = "delete"  # a component that is being deleted, or a standby whose time is over
    REMOVE = "remove"  # nothing is current under the key, and something is live or being made
    HEAL = "heal"  # the live component is missing, Failed, or not where the stack serves now
    REPEAT = "repeat"  # the current object is not what the registry knows: its event was lost, or it came back
    RETRY = "retry"  # it found the endpoint full, and there is room now
    ORPHAN = "orphan"  # a component of this stack's that no adapter knows


@dataclass(frozen=True, slots=True)
class CurrentObject:
    """The object that is current under an adapter's key. `age_seconds` since it was written."""

    version_id: str
    age_seconds: float
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is common to all adapters. `components` has each component's status on the stack's endpoint by name."""

    endpoint: str
    base: str
    is_base_in_service: bool
    components: Mapping[str, str]
    running: Collection[str]  # attempts: executions that have not ended
    now: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is known of one adapter. `history` is needed where `is_history_needed` says so; `open` has no reported outcome."""

    name: str
    state: AdapterState
    current: CurrentObject | None
    history: tuple[UploadRecord, ...]  # newest first
    open: tuple[UploadRecord, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One repair: of a component by name, of an upload by order, or of the object version to copy onto itself."""

    repair: Repair
    reason: str
    component: str | None = None
    order: str | None = None
    version_id: str | None = None
    uploaded_at: str | None = None
    full_at: int | None = None

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(**(dict(record) | {"repair": Repair(record["repair"])}))

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def wanted(adapter: Adapter, fleet: Fleet, *, is_patient: bool = True) -> tuple[Wanted, ...]:
    """Every repair that this adapter needs, in the order in which they are done.

    `is_patient`: a healing that has failed waits longer each time before the next one. A person who asks does not wait.
    """
    return (
        *_of_uploads(adapter, fleet),
        *_of_components(adapter, fleet),
        *_of_the_live_one(adapter, fleet, is_patient=is_patient),
        *_of_the_object(adapter),
    )


def is_history_needed(adapter: Adapter, fleet: Fleet) -> bool:
    """Whether what the adapter needs depends on its history: reading that is one query more."""
    live, current = adapter.state.live, adapter.current
    if current is None:
        return False
    return (
        live is None
        or live.version_id != current.version_id
        or bool(_of_the_live_one(adapter, fleet, is_patient=False))
    )


def _of_uploads(adapter: Adapter, fleet: Fleet) -> list[Wanted]:
    found = []
    for record in adapter.open:
        if record.attempt in fleet.running:
            continue
        if record.outcome is None:
            found.append(Wanted(Repair.RECOVER, "its execution ended without an outcome", order=record.order))
        else:
            found.append(Wanted(Repair.REPORT, "its outcome was not reported to everybody", order=record.order))
    return found


def _of_components(adapter: Adapter, fleet: Fleet) -> list[Wanted]:
    """Of an attempt that has ended, whatever it still makes is deleted; nothing of a running one is touched."""
    found = []
    for name, entry in sorted(adapter.state.components.items()):
        is_gone = name not in fleet.components and entry.endpoint == fleet.endpoint
        match entry.state:
            case ComponentState.DELETING if entry.attempt not in fleet.running or is_gone:
                found.append(Wanted(Repair.DELETE, "it is to be deleted", component=name))
            case ComponentState.STANDBY if entry.until is not None and entry.until <= fleet.now:
                found.append(Wanted(Repair.DELETE, "its time as a standby is over", component=name))
            case ComponentState.MAKING if entry.attempt not in fleet.running:
                found.append(Wanted(Repair.RECOVER, "its attempt has ended", component=name, order=entry.order))
            case _:
                pass
    return found


def _of_the_live_one(adapter: Adapter, fleet: Fleet, *, is_patient: bool = True) -> list[Wanted]:
    live = adapter.state.live
    if live is None or adapter.current is None or not fleet.is_base_in_service:
        return []
    if any(record.heals == live.component and record.outcome is None for record in adapter.open):
        return []
    if is_patient and fleet.now < _heal_not_before(adapter, live.component):
        return []
    if live.endpoint != fleet.endpoint or live.base != fleet.base:
        reason = f"it is on endpoint {live.endpoint}, and the stack now serves on {fleet.endpoint}"
        if live.endpoint == fleet.endpoint:
            reason = f"it is on base {live.base}, and the stack now has {fleet.base}"
        return [Wanted(Repair.HEAL, reason, component=live.component)]
    status = fleet.components.get(live.component)
    if status is None:
        return [Wanted(Repair.HEAL, "the live component is missing", component=live.component)]
    if status in ("Failed", "Deleting"):
        return [Wanted(Repair.HEAL, f"the live component is {status}", component=live.component)]
    return []


def _heal_not_before(adapter: Adapter, component: str) -> int:
    """Unix seconds: how often the component was healed in vain says how long to wait after the last time."""
    failed = [record.order for record in adapter.history if record.heals == component]
    if not failed:
        return 0
    wait_seconds = min(HEAL_AGAIN_SECONDS << (len(failed) - 1), MAX_HEAL_AGAIN_SECONDS)
    return made_behind(max(failed)) // 1000 + wait_seconds


def _of_the_object(adapter: Adapter) -> list[Wanted]:
    state, current = adapter.state, adapter.current
    if current is None:
        is_making = any(entry.state is ComponentState.MAKING for entry in state.components.values())
        if state.live is not None or is_making:
            return [Wanted(Repair.REMOVE, "its tarball was deleted")]
        return []
    if state.live is not None and state.live.version_id == current.version_id:
        return []
    # A healing has the version of what it heals.
    of_version = (one for one in adapter.history if one.version_id == current.version_id and one.heals is None)
    record = next(of_version, None)
    if record is None:
        if current.age_seconds < LOST_EVENT_SECONDS:
            return []
        return [Wanted(Repair.REPEAT, "its event was lost", version_id=current.version_id)]
    if record.outcome is None:
        return []  # its attempt runs, or is recovered above
    # Superseded, too: by a delete marker that stood when it was claimed, and that is gone.
    is_back = record.order < state.floor or record.outcome is Outcome.SUPERSEDED
    if is_back and current.age_seconds >= LOST_EVENT_SECONDS:
        return [
            Wanted(Repair.REPEAT, "what came after it was deleted: it is current again", version_id=current.version_id)
        ]
    if record.outcome is Outcome.WAITING:
        at = "" if record.full_at is None else f" at {record.full_at} components"
        reason = f"it found the endpoint full{at}"
        return [
            Wanted(
                Repair.RETRY,
                reason,
                version_id=current.version_id,
                uploaded_at=record.uploaded_at,
                full_at=record.full_at,
            )
        ]
    return []


def is_orphan(component: str, known: Collection[str], age_seconds: float) -> bool:
    """Whether a component on the endpoint is nobody's, and not just being made. The caller looks at its tag."""
    return component not in known and age_seconds > ORPHAN_SECONDS


@dataclass(frozen=True, slots=True)
class Scope:
    """What to reconcile: one adapter, or all. `order` is the sequencer of the event that says it was deleted."""

    adapter: str | None = None
    dry_run: bool = False
    order: str | None = None
    is_by_hand: bool = False


@dataclass(slots=True)
class Plan:
    """The repairs of many adapters, of at most `limit` adapters at a time."""

    limit: int
    repairs: list[dict[str, Any]] = field(default_factory=list)
    examined: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    retries: list[tuple[str, str, Wanted]] = field(default_factory=list)

    def add(self, adapter: str, found: tuple[Wanted, ...], *, removed_by: str | None = None) -> None:
        """Retries on a full endpoint are kept aside: they are done oldest first, as many as there is room for."""
        self.retries += [(one.uploaded_at or "", adapter, one) for one in found if one.repair is Repair.RETRY]
        self._append(adapter, [one for one in found if one.repair is not Repair.RETRY], removed_by)

    def keep_retries(self, *, standing: int) -> None:
        """`standing` is how many components the endpoint has: fewer than when it was full leave room.

        One that could not count them then is tried again.
        """
        taken = 0
        for _, adapter, one in sorted(self.retries, key=lambda entry: entry[:2]):
            if self.is_full:
                return  # the next pass takes the rest
            if one.full_at is None or standing + taken < one.full_at:
                self._append(adapter, [one], None)
                taken += 1

    def _append(self, adapter: str, found: list[Wanted], removed_by: str | None) -> None:
        for one in found:
            self.counts[one.repair.value] = self.counts.get(one.repair.value, 0) + 1
        if found:
            entry: dict[str, Any] = {"adapter": adapter, "wanted": [one.to_dict() for one in found[:MAX_SHOWN_REPAIRS]]}
            self.repairs.append(entry | ({"removed_by": removed_by} if removed_by else {}))

    @property
    def is_full(self) -> bool:
        return len(self.repairs) >= self.limit
