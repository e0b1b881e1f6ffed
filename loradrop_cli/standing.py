"""How an adapter stands, from what the registry has of it: no call to SageMaker or Step Functions."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from loradrop.lifecycle import AdapterState, Outcome, UploadRecord
from loradrop.registry_reader import RegistryReader


class Condition(StrEnum):
    """By the newest upload: what was live before it may be live still. WAITING: for room on the endpoint."""

    LIVE = "live"
    DEPLOYING = "deploying"
    WAITING = "waiting"
    FAILED = "failed"
    REJECTED = "rejected"
    REMOVED = "removed"


UNSUCCESSFUL = (Condition.WAITING, Condition.FAILED, Condition.REJECTED)


@dataclass(frozen=True, slots=True)
class Standing:
    """`since` is ISO 8601, UTC. `release` is the one that is live, `requester` who made the newest upload, as S3 sent it."""

    adapter: str
    condition: Condition
    since: str | None
    release: str | None
    requester: str | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "state": self.condition.value,
            "since": self.since,
            "live_release": self.release,
            "requester": self.requester,
            "reason": self.reason or None,
        }


def standing(adapter: str, state: AdapterState, newest: UploadRecord | None) -> Standing:
    live = state.live
    condition = _condition(state, newest)
    since = finished_at(newest) if newest else None
    if condition is Condition.LIVE and live is not None:
        since = live.since
    elif condition is Condition.DEPLOYING and newest is not None:
        since = newest.uploaded_at
    return Standing(
        adapter,
        condition,
        since,
        live.release if live else None,
        newest.requester if newest else None,
        _reason(condition, newest),
    )


def standings(registry: RegistryReader, after: str = "") -> Iterator[tuple[Standing, UploadRecord | None]]:
    """Every adapter behind `after`, by name, with its newest upload."""
    for name, state in registry.adapters(after):
        newest = state.newest or registry.newest(name)  # a state that was written before it kept the newest upload
        yield standing(name, state, newest), newest


def finished_at(record: UploadRecord) -> str | None:
    at = record.figures.get("finished_at")
    return str(at) if at else None


def what_went_wrong(record: UploadRecord) -> str:
    """The reason in a line: what the message of the outcome says behind its heading."""
    lines = (record.summary or "").splitlines()
    return lines[1] if len(lines) > 1 else ""


def minute(at: str | None) -> str:
    """A time of the registry's, to the minute, in UTC."""
    return "-" if at is None else _parsed(at).strftime("%Y-%m-%d %H:%M")


def age(at: str | None, now: datetime) -> str:
    """How long ago, in the largest unit: `3 d`."""
    if at is None:
        return "-"
    seconds = max(0, int((now - _parsed(at)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def seconds_between(began: str | None, ended: str | None) -> float | None:
    return None if began is None or ended is None else (_parsed(ended) - _parsed(began)).total_seconds()


def _parsed(at: str) -> datetime:
    parsed = datetime.fromisoformat(at)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _condition(state: AdapterState, newest: UploadRecord | None) -> Condition:
    if newest is not None:
        match newest.outcome:
            case None:
                return Condition.LIVE if newest.promoted else Condition.DEPLOYING
            case Outcome.REJECTED:
                return Condition.REJECTED
            case Outcome.FAILED:
                return Condition.FAILED
            case Outcome.WAITING:
                return Condition.WAITING
            case _:
                pass
    return Condition.REMOVED if state.live is None else Condition.LIVE


def _reason(condition: Condition, newest: UploadRecord | None) -> str:
    if newest is None:
        return ""
    if condition is Condition.WAITING:
        return f"full at {newest.full_at} components"
    if condition is Condition.REMOVED and newest.outcome is Outcome.REMOVED:
        return "tarball deleted"
    return what_went_wrong(newest) if condition in UNSUCCESSFUL else ""
