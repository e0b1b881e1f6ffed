"""How an upload ended, in words: a heading, what was found, what is live now, and which upload it was."""

import json
from typing import Any

from loradrop.deployment import Deployment, Upload
from loradrop.lifecycle import FINISHED_AT, Live, Outcome
from loradrop.problems import clipped, printable
from loradrop.rendering import Source, counted, plain
from loradrop.validation_report import ValidationReport

# Step Functions takes a cause of 32,768 characters; a mail is read on a phone.
MAX_MESSAGE_CHARACTERS = 4_000
# Of one entry in the outcome report; the validation of the newest is in it.
MAX_ENTRY_BYTES = 32 * 1024
WAITING_ADVICE = (
    "It is retried automatically when there is room, the oldest upload first. To make room, remove an adapter that nobody "
    "calls:\n  loradrop remove ADAPTER"
)


def intended(deployment: Deployment) -> Outcome:
    """The outcome as the attempt sees it. The registry has the last word: an answer may have been lost."""
    if deployment.promotion is not None:
        return Outcome.DEPLOYED
    if deployment.failure is None and deployment.superseded is not None:
        return Outcome.SUPERSEDED
    if deployment.failure is None and deployment.validation is not None and not deployment.validation["accepted"]:
        return Outcome.REJECTED
    return Outcome.WAITING if deployment.found_no_room else Outcome.FAILED


def message(outcome: Outcome, deployment: Deployment, live: Live | None) -> str:
    """A readable message. Its beginning and its end always stand; what lies between is cut if it is too long."""
    upload = deployment.begun
    adapter = upload.shown_adapter
    head, tail = _head(outcome, deployment, adapter), [*_tail(outcome, live), _which(upload)]
    room = MAX_MESSAGE_CHARACTERS - len(head) - sum(len(line) + 1 for line in tail) - 2
    body = ""
    if outcome is Outcome.DEPLOYED:
        body = clipped(_deployed(deployment, live), room)
    elif outcome is Outcome.REJECTED:
        body = _rejected(deployment, room)
    elif outcome in (Outcome.FAILED, Outcome.WAITING):
        body = clipped(_failed(deployment), room)
    return "\n".join([head, *([body] if body else []), *tail])


def _head(outcome: Outcome, deployment: Deployment, adapter: str) -> str:
    match outcome:
        case Outcome.DEPLOYED:
            return f"{adapter} is live."
        case Outcome.REJECTED:
            report = ValidationReport.from_dict(deployment.validation or {})
            return f"{adapter} was rejected: {counted(report.problems, report.left_out.problems)}."
        case Outcome.FAILED:
            return f"{adapter} could not be deployed."
        case Outcome.WAITING:
            full_with = "" if deployment.full_at is None else f" with {deployment.full_at} components"
            return f"{adapter} waits for room on the endpoint, which is full{full_with}."
        case Outcome.SUPERSEDED:
            return _superseded(deployment, adapter)
        case Outcome.REMOVED:
            return f"{adapter} was removed: its tarball was deleted."


def _tail(outcome: Outcome, live: Live | None) -> list[str]:
    if outcome is Outcome.DEPLOYED:
        return []
    if outcome is Outcome.WAITING:
        return [_unchanged(live), WAITING_ADVICE]
    if outcome is not Outcome.FAILED:
        return [_unchanged(live)]
    return [_unchanged(live), "Fix the cause, then upload the tarball again."]


def _which(upload: Upload) -> str:
    if upload.heals:
        return f"Healed without a new upload, from the release of {upload.shown}."
    if not upload.version_id:
        return f"Tarball: {upload.shown}."
    return f"Upload: {upload.shown}."


def _deployed(deployment: Deployment, live: Live | None) -> str:
    lines = []
    component = deployment.component.name if deployment.component else live.component if live else None
    if component:
        lines.append(f"Component: {component}.")
    if deployment.promotion and deployment.promotion.replaced and deployment.begun.heals:
        lines.append(f"It replaced {deployment.promotion.replaced}, which was broken.")
    elif deployment.promotion and deployment.promotion.replaced:
        lines.append(f"It replaced {deployment.promotion.replaced}, which stays as a standby for the grace period.")
    if deployment.smoke:
        smoke = deployment.smoke
        lines += [smoke.summary, f"Median latency: adapter {smoke.adapter_ms} ms, base {smoke.base_ms} ms."]
    if deployment.validation:
        report = ValidationReport.from_dict(deployment.validation)
        lines += [plain((), report.warnings, MAX_MESSAGE_CHARACTERS // 2)] if report.warnings else []
    return "\n".join(lines)


def _rejected(deployment: Deployment, room: int) -> str:
    report = ValidationReport.from_dict(deployment.validation or {})
    whole = f"\nThe whole report: {deployment.validation_report}" if deployment.validation_report else ""
    left_out = report.left_out.problems + report.left_out.warnings
    source = Source(deployment.begun.uri)
    return plain(report.problems, report.warnings, room - len(whole), source=source, left_out=left_out) + whole


def _failed(deployment: Deployment) -> str:
    lines = []
    if deployment.failure:
        lines.append(printable_lines(deployment.failure.reason))
    elif deployment.smoke:
        lines.append(f"The smoke test failed. {deployment.smoke.summary}")
        if deployment.smoke.answers:
            lines.append(f"All answers: {deployment.smoke.answers}")
    if deployment.left_behind and deployment.component:
        lines.append(
            f"Its component {deployment.component.name} could not be deleted yet ({deployment.left_behind.Error}); "
            "the next reconciliation deletes it."
        )
    return "\n".join(lines)


def _superseded(deployment: Deployment, adapter: str) -> str:
    by = deployment.superseded
    if by is not None and by.removed:
        return f"This upload of {adapter} ends here: the adapter was removed after it."
    newer = f"version {by.version_id}" if by is not None and by.version_id else "one that is live already"
    return f"This upload of {adapter} ends here: a newer one ({newer}) supersedes it."


def _unchanged(live: Live | None) -> str:
    if live is None:
        return "No component of this adapter is live."
    return f"What was live stays live: component {live.component}."


def printable_lines(text: str) -> str:
    """Text of AWS's or the model server's, which may repeat an uploader's: line by line, nothing that a terminal obeys."""
    return "\n".join(printable(line) for line in text.splitlines())


def entry(outcome: str, deployment: Deployment, text: str, at: str, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the history keeps of an upload. At most MAX_ENTRY_BYTES in UTF-8: else the validation is left out."""
    record = deployment.to_dict()
    for name in ("version", "event"):
        record.pop(name, None)
    found: dict[str, Any] = {"outcome": outcome, "message": text, "at": at, **record}
    if notes:
        found["notes"] = list(notes)
    if len(json.dumps(found, ensure_ascii=False).encode()) > MAX_ENTRY_BYTES:
        found.pop("validation", None)
        found["left_out"] = ["validation"]
    return found


def figures(deployment: Deployment, at: str) -> dict[str, str | int | float]:
    """What lists and histories show of an upload in numbers. Times are in seconds and milliseconds."""
    found: dict[str, str | int | float] = {FINISHED_AT: at}
    if deployment.component is not None:
        found["seconds_to_in_service"] = deployment.component.waited_seconds
    if deployment.smoke is not None:
        smoke = deployment.smoke
        found |= {"smoke_prompts": smoke.prompts, "adapter_ms": smoke.adapter_ms, "base_ms": smoke.base_ms}
    return found
