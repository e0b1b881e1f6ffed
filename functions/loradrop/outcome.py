"""How an upload ended, in words: what happened, to which upload, why, and what to do."""

import json
from contextlib import suppress
from enum import StrEnum
from typing import Any

MAX_SENTENCE_CHARACTERS = 4_000
# Earlier uploads that a report keeps beside the newest.
MAX_EARLIER_ENTRIES = 20


class Outcome(StrEnum):
    DEPLOYED = "deployed"
    REJECTED = "rejected"
    FAILED = "failed"
    SUPERSEDED = "superseded"


def failure_reason(failure: dict[str, Any]) -> str:
    """The sentence in what Step Functions caught: {Error, Cause}, Cause being a Lambda's error as JSON or plain text."""
    error, cause = failure.get("Error", "Unknown"), failure.get("Cause", "")
    with suppress(ValueError, KeyError, TypeError):
        cause = json.loads(cause)["errorMessage"]
    return f"{error}: {cause}"[:MAX_SENTENCE_CHARACTERS] if cause else str(error)


def describe(outcome: Outcome, known: dict[str, Any], live: dict[str, str] | None) -> str:
    """A readable message. `known` is what the execution found out; `live` is the adapter's pointer as it now is."""
    upload = known["upload"]
    adapter = upload["adapter"]
    match outcome:
        case Outcome.DEPLOYED:
            sentences = [f"{adapter} is live: component {known['release']['component']}.", known["smoke"]["summary"]]
            sentences.append(
                f"Median latency: adapter {known['smoke']['adapter_ms']} ms, base {known['smoke']['base_ms']} ms."
            )
            sentences += [f"Warning: {warning['message']}" for warning in known["validation"]["warnings"]]
        case Outcome.REJECTED:
            sentences = [f"{adapter} was rejected.", known["validation"]["summary"], _unchanged(live)]
        case Outcome.FAILED:
            sentences = [f"{adapter} could not be deployed.", _why_failed(known), _left_behind(known), _unchanged(live)]
            sentences.append("Mend the cause, then upload the tarball again.")
        case Outcome.SUPERSEDED:
            by = known.get("claim", {}).get("superseded_by") or {}
            newer = f"version {by['version_id']}" if by.get("version_id") else "one that is live already"
            sentences = [
                f"This upload of {adapter} ends here: a newer upload ({newer}) goes before it.",
                _unchanged(live),
            ]
    sentences.append(f"Upload: s3://{upload['bucket']}/{upload['key']}, version {upload['version_id']}.")
    return " ".join(sentence for sentence in sentences if sentence)[:MAX_SENTENCE_CHARACTERS]


def _why_failed(known: dict[str, Any]) -> str:
    if known.get("failure"):
        return failure_reason(known["failure"])
    return f"Smoke test failed: {known['smoke']['summary']}"


def _left_behind(known: dict[str, Any]) -> str:
    left = known.get("left_behind")
    if not left:
        return ""
    command = f"aws sagemaker delete-inference-component --inference-component-name {left['component']}"
    reason = failure_reason(left["failure"])
    return f"Its component could not be deleted ({reason}) and still takes a slot; delete it with: {command}."


def _unchanged(live: dict[str, str] | None) -> str:
    if live is None:
        return "No component of this adapter is live."
    return f"What was live stays live: component {live['component']}."


def merge_report(current: dict[str, Any] | None, entry: dict[str, Any], adapter: str) -> dict[str, Any]:
    """The adapter's report with one more entry: the newest upload's first, by sequencer, the others after it.

    `current` is what lies in the bucket, which uploaders can write: anything of another form is started anew.
    """
    entries = [entry]
    if isinstance(current, dict):
        old = [current.get("newest"), *(current["earlier"] if isinstance(current.get("earlier"), list) else [])]
        entries += [
            one for one in old if _is_entry(one) and one["upload"]["version_id"] != entry["upload"]["version_id"]
        ]
    entries.sort(key=lambda one: str(one["upload"]["sequencer"]).upper().zfill(40), reverse=True)
    return {"adapter": adapter, "newest": entries[0], "earlier": entries[1 : 1 + MAX_EARLIER_ENTRIES]}


def _is_entry(one: object) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(one.get("upload"), dict)
        and {"version_id", "sequencer"} <= one["upload"].keys()
    )
