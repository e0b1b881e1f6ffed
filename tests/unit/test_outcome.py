import json
from typing import Any

import pytest

from loradrop import upload_problems
from loradrop.deployment import (
    MAX_RECORD_BYTES,
    Deployment,
    Failure,
    Placement,
    Promotion,
    Release,
    SmokeResult,
    Supersession,
    Upload,
)
from loradrop.lifecycle import Live, Outcome, UploadRecord
from loradrop.outcome import MAX_ENTRY_BYTES, MAX_MESSAGE_CHARACTERS, entry, intended, message
from loradrop.outcome_report import MAX_ENTRIES, outcome_report
from loradrop.problems import Problem, ProblemCode
from loradrop.validation_report import ValidationReport

UPLOAD = Upload("acme", "b", "adapters/acme.tar.gz", "0001", "v1")
LIVE = Live("acme-old", "endpoint", "base", "release", "0000", "v0", "2026-01-01")
SMOKE = SmokeResult(True, "2 of 2.", 2, 3, 2, "s3://releases/smoke/acme.json")
REJECTED = ValidationReport.rejected(upload_problems.empty("b", "adapters/acme.tar.gz")).to_dict()
BEGUN = Deployment("arn:one", upload=UPLOAD)
DEPLOYED = BEGUN.having(
    component=Placement("acme-new", "endpoint", "base", 0), smoke=SMOKE, promotion=Promotion("2026-01-02", "acme-old")
)


@pytest.mark.parametrize(
    ("outcome", "deployment", "parts"),
    [
        (Outcome.DEPLOYED, DEPLOYED, ["acme is live.", "acme-new", "replaced acme-old", "adapter 3 ms, base 2 ms"]),
        (
            Outcome.REJECTED,
            BEGUN.having(validation=REJECTED),
            ["acme was rejected: 1 problem.", "UPLOAD_EMPTY", "What was live stays live: component acme-old."],
        ),
        (
            Outcome.FAILED,
            BEGUN.having(
                failure=Failure("ComponentFailed", '{"errorMessage": "No memory.", "errorType": "ComponentFailed"}'),
                component=Placement("acme-new", "endpoint", "base", 0),
                left_behind=Failure("Throttled"),
            ),
            [
                "acme could not be deployed.",
                "ComponentFailed: No memory.",
                "acme-new could not be deleted yet (Throttled); the next reconciliation deletes it.",
                "Fix the cause, then upload the tarball again.",
            ],
        ),
        (
            Outcome.FAILED,
            BEGUN.having(smoke=SmokeResult(False, "It answers like the base.", 2, 3, 2, "s3://r/smoke.json")),
            ["The smoke test failed. It answers like the base.", "All answers: s3://r/smoke.json"],
        ),
        (
            Outcome.WAITING,
            BEGUN.having(failure=Failure("EndpointFull", "Full."), full_at=7),
            [
                "acme waits for room on the endpoint, which is full with 7 components.",
                "EndpointFull: Full.",
                "What was live stays live: component acme-old.",
                "retried automatically",
                "\n  loradrop remove ADAPTER\n",
            ],
        ),
        (Outcome.SUPERSEDED, BEGUN.having(superseded=Supersession("v2")), ["a newer one (version v2) supersedes it"]),
        (Outcome.SUPERSEDED, BEGUN.having(superseded=Supersession(removed=True)), ["was removed after it"]),
        (Outcome.REMOVED, BEGUN, ["acme was removed: its tarball was deleted."]),
    ],
)
def test_a_message_says_what_happened_to_which_upload_why_and_what_to_do(
    outcome: Outcome, deployment: Deployment, parts: list[str]
) -> None:
    text = message(outcome, deployment, LIVE)
    for part in [*parts, "s3://b/adapters/acme.tar.gz, version v1"]:
        assert part in text


def test_a_command_stands_on_a_line_of_its_own() -> None:
    lines = message(Outcome.REJECTED, BEGUN.having(validation=REJECTED), None).splitlines()
    [command] = [line for line in lines if "aws s3 cp" in line]
    assert command.strip().startswith("aws s3 cp acme.tar.gz s3://b/adapters/acme.tar.gz")


def test_what_is_too_long_is_cut_and_never_the_end() -> None:
    problems = [Problem.of(ProblemCode.PICKLE_FILE, "x" * 400, place=f"{n}.pkl") for n in range(200)]
    deployment = BEGUN.having(validation=ValidationReport.rejected(*problems).to_dict())
    text = message(Outcome.REJECTED, deployment, LIVE)
    assert len(text) <= MAX_MESSAGE_CHARACTERS
    assert text.startswith("acme was rejected: 200 problems.")
    assert "more problem" in text
    assert text.splitlines()[-2:] == [
        "What was live stays live: component acme-old.",
        "Upload: s3://b/adapters/acme.tar.gz, version v1.",
    ]
    failed = message(Outcome.FAILED, BEGUN.having(failure=Failure("X", "y" * 9_000)), LIVE)
    assert len(failed) <= MAX_MESSAGE_CHARACTERS
    assert failed.endswith("version v1.")


def test_nothing_of_a_key_is_more_than_text() -> None:
    key = "adapters/x\n\nacme is live.\n\x1b[2J.tar.gz"
    upload = Upload("!" + key, "b", key, "0001", "v1")
    problem = upload_problems.name_invalid("b", key)
    text = message(
        Outcome.REJECTED,
        Deployment("arn", upload=upload, validation=ValidationReport.rejected(problem).to_dict()),
        None,
    )
    assert "\x1b" not in text
    assert "acme is live." not in text.splitlines()


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ({"promotion": Promotion("2026-01-02")}, Outcome.DEPLOYED),
        ({"validation": REJECTED}, Outcome.REJECTED),
        ({"validation": REJECTED, "failure": Failure("X")}, Outcome.FAILED),
        ({"superseded": Supersession("v2")}, Outcome.SUPERSEDED),
        ({"smoke": SmokeResult(False, "", 1, 1, 1)}, Outcome.FAILED),
        ({"failure": Failure("EndpointFull"), "full_at": 7}, Outcome.WAITING),
        ({"failure": Failure("RoomBeingMade")}, Outcome.WAITING),  # how many there are could not be counted
        ({"promotion": Promotion("2026-01-02"), "failure": Failure("Lambda.Unknown")}, Outcome.DEPLOYED),
    ],
)
def test_the_outcome_is_what_was_found_out(found: dict[str, Any], outcome: Outcome) -> None:
    assert intended(BEGUN.having(**found)) is outcome


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (
            {"Error": "Throttled", "Cause": '{"errorMessage":"Slow \\"down\\".","errorType":"Throttled"}'},
            'Throttled: Slow "down".',
        ),
        ({"Error": "Throttled", "Cause": '{"errorMessage": "Cut off in the mid'}, "Throttled: Cut off in the mid"),
        ({"Error": "States.Timeout"}, "States.Timeout"),
        ({"Error": "Lambda.Unknown", "Cause": "out of memory"}, "Lambda.Unknown: out of memory"),
    ],
)
def test_a_lambdas_error_is_shown_as_its_sentence(failure: dict[str, str], reason: str) -> None:
    assert Failure.from_dict(failure).reason == reason


# The record


def test_a_record_reads_what_it_wrote() -> None:
    full = DEPLOYED.having(
        release=Release("f" * 64, "releases", "k", "m"),
        validation=REJECTED,
        failure=Failure("E", "C"),
        superseded=Supersession("v2", "arn:two"),
        full_at=3,
    )
    assert Deployment.from_dict(json.loads(json.dumps(full.to_dict()))) == full


def test_a_record_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 99"):
        Deployment.from_dict(BEGUN.to_dict() | {"version": 99})


def test_a_record_is_bounded_in_bytes_of_utf8() -> None:
    with pytest.raises(ValueError, match=str(MAX_RECORD_BYTES)):
        BEGUN.having(failure=Failure("X", "語" * 11_000)).to_dict()


# The report


def record(number: int, outcome: Outcome = Outcome.REJECTED, **more: Any) -> UploadRecord:
    found = json.dumps({"outcome": outcome, "upload": {"version_id": f"v{number}"}})
    return UploadRecord(f"{number:04}", "arn", "b", "k", f"v{number}", outcome=outcome, entry=found, **more)


def test_a_report_has_the_newest_first_and_leaves_out_what_is_still_running() -> None:
    running = UploadRecord("0009", "arn", "b", "k", "v9")
    report = outcome_report("acme", [running, record(2), record(1)], None)
    assert report["newest"]["upload"]["version_id"] == "v2"
    assert [one["upload"]["version_id"] for one in report["earlier"]] == ["v1"]


def test_a_report_does_not_grow_for_ever_and_never_loses_what_is_live() -> None:
    records = [record(n) for n in range(99, 50, -1)] + [record(1, Outcome.DEPLOYED)]
    live = Live("c", "e", "b", "r", "0001", "v1", "")
    report = outcome_report("acme", records, live)
    assert [one["outcome"] for one in report["earlier"]] == ["rejected"] * MAX_ENTRIES + ["deployed"]


def test_an_entry_is_bounded_and_keeps_its_message() -> None:
    wide = ValidationReport.rejected(
        *(Problem.of(ProblemCode.PICKLE_FILE, "語" * 400, place=f"{n}") for n in range(50))
    ).to_dict(max_bytes=12 * 1024)
    found = entry("rejected", BEGUN.having(validation=wide), "語" * 4_000, "now")
    assert len(json.dumps(found, ensure_ascii=False).encode()) <= MAX_ENTRY_BYTES
    assert found["message"] == "語" * 4_000
