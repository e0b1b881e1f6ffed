"""The outcome report: what became of everything that was dropped under one key, the newest first.

It lies at reports/<adapter>.json in the upload bucket, and is made of the registry's history each time.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loradrop.lifecycle import Live, UploadRecord
from loradrop.problems import printable

# The newest, and twenty before it.
MAX_ENTRIES = 20


def outcome_report(adapter: str, records: Sequence[UploadRecord], live: Live | None) -> dict[str, Any]:
    """`records` are the newest first; those without an outcome yet are left out. The last deployed one always stays."""
    finished = [record for record in records if record.outcome is not None]
    shown = finished[: MAX_ENTRIES + 1]
    if live is not None:
        shown += [record for record in finished[MAX_ENTRIES + 1 :] if record.order == live.order]
    entries = [_entry(record) for record in shown]
    return {
        "adapter": printable(adapter),
        "live": None if live is None else asdict(live),
        "newest": entries[0] if entries else None,
        "earlier": entries[1:],
    }


def _entry(record: UploadRecord) -> dict[str, Any]:
    if record.entry:
        found: dict[str, Any] = json.loads(record.entry)
        return found
    return {"outcome": record.outcome, "message": record.summary, "upload": {"version_id": record.version_id}}
