import json
from typing import Any

import pytest

from loradrop.outcome import MAX_EARLIER_ENTRIES, Outcome, describe, failure_reason, merge_report


def entry(sequencer: str, **more: Any) -> dict[str, Any]:
    return {"upload": {"version_id": f"v{sequencer}", "sequencer": sequencer}, **more}


def test_the_newest_upload_is_first_whichever_ends_last() -> None:
    report = merge_report(None, entry("0A"), "acme")
    report = merge_report(report, entry("09"), "acme")
    assert report["newest"] == entry("0A")
    assert report["earlier"] == [entry("09")]
    report = merge_report(report, entry("100"), "acme")
    assert [one["upload"]["sequencer"] for one in (report["newest"], *report["earlier"])] == ["100", "0A", "09"]


def test_an_upload_that_is_reported_again_stands_once() -> None:
    report = merge_report(merge_report(None, entry("1", outcome="failed"), "a"), entry("1", outcome="deployed"), "a")
    assert report == {"adapter": "a", "newest": entry("1", outcome="deployed"), "earlier": []}


def test_a_report_does_not_grow_for_ever() -> None:
    report = None
    for number in range(MAX_EARLIER_ENTRIES + 9):
        report = merge_report(report, entry(f"{number:X}"), "a")
    assert report is not None
    assert len(report["earlier"]) == MAX_EARLIER_ENTRIES


@pytest.mark.parametrize(
    "garbage", [[], {}, {"newest": 3, "earlier": {"a": 1}}, {"newest": {"upload": []}, "earlier": [None]}]
)
def test_what_an_uploader_left_in_the_reports_place_is_replaced(garbage: Any) -> None:
    assert merge_report(garbage, entry("1"), "a") == {"adapter": "a", "newest": entry("1"), "earlier": []}


def test_a_lambdas_error_is_told_by_its_sentence() -> None:
    cause = json.dumps({"errorMessage": "It is full.", "errorType": "ResourceLimitExceeded", "stackTrace": ["…"]})
    assert failure_reason({"Error": "ResourceLimitExceeded", "Cause": cause}) == "ResourceLimitExceeded: It is full."
    assert failure_reason({"Error": "States.Timeout"}) == "States.Timeout"
    assert failure_reason({"Error": "Lambda.Unknown", "Cause": "out of memory"}) == "Lambda.Unknown: out of memory"


UPLOAD = {"adapter": "acme", "bucket": "b", "key": "adapters/acme.tar.gz", "version_id": "v1", "sequencer": "1"}
LIVE = {"component": "acme-old"}
KNOWN = {
    Outcome.DEPLOYED: {
        "release": {"component": "acme-new"},
        "smoke": {"summary": "2 of 2.", "adapter_ms": 3, "base_ms": 2},
        "validation": {"warnings": [{"message": "alpha is odd."}]},
    },
    Outcome.REJECTED: {"validation": {"summary": "No adapter_config.json."}},
    Outcome.FAILED: {
        "failure": {"Error": "ComponentFailed", "Cause": "x"},
        "left_behind": {
            "component": "acme-new",
            "failure": {"Error": "Throttled", "Cause": '{"errorMessage": "Slow."}'},
        },
    },
    Outcome.SUPERSEDED: {"claim": {"superseded_by": {"version_id": "v2"}}},
}


@pytest.mark.parametrize(
    ("outcome", "parts"),
    [
        (Outcome.DEPLOYED, ["acme is live: component acme-new", "2 of 2.", "adapter 3 ms, base 2 ms", "alpha is odd."]),
        (
            Outcome.REJECTED,
            ["acme was rejected. No adapter_config.json.", "What was live stays live: component acme-old"],
        ),
        (
            Outcome.FAILED,
            [
                "could not be deployed. ComponentFailed: x",
                "--inference-component-name acme-new",
                "upload the tarball again",
            ],
        ),
        (Outcome.SUPERSEDED, ["a newer upload (version v2)"]),
    ],
)
def test_a_message_says_what_happened_to_which_upload_why_and_what_to_do(outcome: Outcome, parts: list[str]) -> None:
    message = describe(outcome, {"upload": UPLOAD, **KNOWN[outcome]}, LIVE)
    for part in [*parts, "s3://b/adapters/acme.tar.gz, version v1"]:
        assert part in message


def test_a_failed_smoke_test_is_told_by_its_summary() -> None:
    known = {"upload": UPLOAD, "smoke": {"passed": False, "summary": "It answers like the base."}}
    assert "Smoke test failed: It answers like the base. No component" in describe(Outcome.FAILED, known, None)
