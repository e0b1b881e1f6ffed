"""`loradrop list`, `status` and `history`: what is, without changing anything."""

import argparse
import json
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from loradrop.lifecycle import AdapterState, ComponentState, Outcome, UploadRecord
from loradrop.names import REASON_METADATA, REPEATS_METADATA
from loradrop.outcome import WAITING_ADVICE
from loradrop.problems import clipped
from loradrop.turns import turn_at, waiting
from loradrop_client import explaining

from .connection import THREADS, Connection
from .executions import RUNNING, Execution, follow_execution, read_execution
from .exit_codes import ExitCode
from .standing import (
    UNSUCCESSFUL,
    Condition,
    Standing,
    age,
    finished_at,
    minute,
    seconds_between,
    standing,
    standings,
    what_went_wrong,
)
from .terminal import painted, print_message, safe, width

MAX_WATCHED_SECONDS = 86_400
SHOWN_RELEASE_CHARACTERS = 8
_LABEL_COLUMNS = 13
_COLOUR = {
    Condition.LIVE: "green",
    Condition.DEPLOYING: "bold",
    Condition.WAITING: "yellow",
    Condition.FAILED: "red",
    Condition.REJECTED: "red",
    Condition.REMOVED: "dim",
}


def short(release: str | None) -> str:
    return release[:SHOWN_RELEASE_CHARACTERS] if release else "-"


# list


def list_adapters(arguments: argparse.Namespace) -> int:
    connection = Connection.of(arguments)
    with explaining("list the adapters of the registry"):
        return _list(connection, arguments)


def _list(connection: Connection, arguments: argparse.Namespace) -> int:
    found = (one for one, _ in standings(connection.registry, arguments.after or ""))
    if arguments.failed:
        found = (one for one in found if one.condition in UNSUCCESSFUL)
    shown: list[Standing] = []
    last = None
    now = datetime.now(UTC)
    for number, one in enumerate(found):
        if number == arguments.limit:
            last = shown[-1].adapter
            break
        shown.append(one)
        if arguments.json:
            continue
        if number == 0:
            print(_columns("ADAPTER", "STATE", "SINCE", "LIVE", "BY", "REASON"))
        line = _columns(
            one.adapter,
            one.condition,
            age(one.since, now),
            short(one.release),
            one.requester or "-",
            safe(one.reason),
        )
        print(line.replace(f" {one.condition} ", f" {painted(one.condition, _COLOUR[one.condition], sys.stdout)} ", 1))
    if arguments.json:
        listed = {"stack": connection.stack.name, "adapters": [one.to_dict() for one in shown], "next": last}
        print(json.dumps(listed, indent=2))
    elif last is not None:
        words = ["list", *(["--failed"] if arguments.failed else []), "--limit", str(arguments.limit), "--after", last]
        print(f"There are more:\n  {connection.command(*words)}")
    elif not shown:
        print(f"The stack {connection.stack.name} has no {'failed adapters' if arguments.failed else 'adapters'}.")
    return ExitCode.DONE


def _columns(adapter: str, state: str, since: str, live: str, requester: str, reason: str) -> str:
    fixed = f"{_cut(adapter, 20):<20} {state:<9}  {since:<6}  {live:<8}  {_cut(requester, 12):<12}  "
    return f"{fixed}{_cut(reason, width() - len(fixed))}".rstrip()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


# status


def status(arguments: argparse.Namespace) -> int:
    connection = Connection.of(arguments)
    if arguments.adapter is None:
        return _stack_status(connection, arguments)
    connection.check_names([arguments.adapter])
    with explaining(f"read the status of {arguments.adapter}"):
        return _adapter_status(connection, arguments)


def _stack_status(connection: Connection, arguments: argparse.Namespace) -> int:
    with explaining("list the adapters of the registry"):
        found = list(standings(connection.registry))
    counts = Counter(one.condition for one, _ in found)
    full_at = [record.full_at for _, record in found if record is not None and record.full_at is not None]
    said = stack_document(connection, counts, min(full_at, default=None))
    stack, components, alarms = connection.stack, said["components"], said["alarms"]
    if arguments.json:
        print(json.dumps(said, indent=2))
        return ExitCode.DONE
    print(stack.name)
    standing_now = ", ".join(f"{count} {state}" for state, count in sorted(components.items())) or "none"
    limit = f"; the endpoint was full at {min(full_at)}" if full_at else ""
    lines = [
        *((one, f"{said[one]['name']}: {said[one]['status']}") for one in ("endpoint", "base")),
        ("profile", stack.parameters.get("BaseProfile", "-")),
        ("components", f"{standing_now}, beside the base{limit}"),
        ("creates", _creates(said["creates"])),
        ("adapters", ", ".join(f"{counts[one]} {one}" for one in Condition if counts[one]) or "none"),
        *(("alarm", f"{alarm['name']}: {alarm['description']}") for alarm in alarms),
    ]
    _print_rows(lines if alarms else [*lines, ("alarms", "none")])
    if any(counts[one] for one in UNSUCCESSFUL):
        print(f"To see what failed:\n  {connection.command('list', '--failed')}")
    return ExitCode.DONE


def stack_document(connection: Connection, counts: Mapping[Condition, int], full_at: int | None) -> dict[str, Any]:
    """The stack as `status --json` has it. `counts` are of adapters, `full_at` is when the endpoint was full."""
    stack = connection.stack
    endpoint, base = stack.output("EndpointName"), stack.output("BaseComponentName")
    sagemaker = connection.client("sagemaker")
    with explaining("read the endpoint"):
        endpoint_status = _status_of(lambda: sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointStatus"])
        base_status = component_status_of(sagemaker, base)
        pages = sagemaker.get_paginator("list_inference_components").paginate(
            EndpointNameEquals=endpoint, PaginationConfig={"PageSize": 100}
        )
        components = Counter(
            one.get("InferenceComponentStatus", "Creating")
            for page in pages
            for one in page["InferenceComponents"]
            if one["InferenceComponentName"] != base
        )
    with explaining("read the line of creates"):
        line, now = connection.registry.line(endpoint), time.time()
    in_line = waiting(line, now)
    return {
        "stack": stack.name,
        "endpoint": {"name": endpoint, "status": endpoint_status},
        "base": {"name": base, "status": base_status, "profile": stack.parameters.get("BaseProfile")},
        "components": dict(components),
        "endpoint_was_full_at": full_at,
        "creates": {
            "waiting": in_line,
            "last_turn_in_seconds": round(turn_at(line, line.next_ticket - 1) - now) if in_line else 0,
            "per_second": line.rate or None,
        },
        "adapters": {one.value: counts.get(one, 0) for one in Condition},
        "alarms": _alarms(connection),
    }


def _creates(line: dict[str, Any]) -> str:
    if not line["waiting"]:
        return "none waits for its turn"
    return (
        f"{line['waiting']} wait for their turn, the last for {line['last_turn_in_seconds']} s, "
        f"at {line['per_second']:.2g} a second"
    )


def _adapter_status(connection: Connection, arguments: argparse.Namespace) -> int:
    name = arguments.adapter
    if arguments.watch:
        _watch(connection, name, sys.stderr if arguments.json else sys.stdout)
    state = connection.registry.state(name)
    newest = connection.registry.newest(name)
    now = standing(name, state, newest)
    sagemaker = connection.client("sagemaker")
    live, proof = state.live, None
    component_status = component_status_of(sagemaker, live.component) if live else None
    if live is not None:
        proof = connection.registry.upload(name, live.order)
    running = None
    if newest is not None and newest.outcome is None:
        running = _running(connection, newest.attempt)
    alarms = _alarms(connection)
    if arguments.json:
        said = now.to_dict() | {
            "live": None
            if live is None
            else {
                "component": live.component,
                "component_status": component_status,
                "endpoint": live.endpoint,
                "base": live.base,
                "release": live.release,
                "since": live.since,
                "version_id": live.version_id,
                "figures": dict(proof.figures) if proof else {},
            },
            "components": [
                {"name": one, "state": entry.state.value, "release": entry.release, "until": entry.until}
                for one, entry in sorted(state.components.items())
            ],
            "running": running and {"execution": running.arn, "state": _at(running), "seconds": running.seconds},
            "newest": newest and upload_dict(newest, {}),
            "alarms": alarms,
        }
        print(json.dumps({"stack": connection.stack.name, **said}, indent=2))
        return ExitCode.DONE
    print(f"{name}: {painted(now.condition, _COLOUR[now.condition], sys.stdout)} since {minute(now.since)} UTC")
    _print_rows(_status_rows(state, now.condition, newest, proof, component_status, running))
    for alarm in alarms:
        _print_rows([("alarm", f"{alarm['name']}: {alarm['description']}")])
    for line in _advice(connection, name, now.condition, live is not None, component_status):
        print_message(line)
    return ExitCode.DONE


def _status_rows(
    state: AdapterState,
    condition: Condition,
    newest: UploadRecord | None,
    proof: UploadRecord | None,
    component_status: str | None,
    running: Execution | None,
) -> Iterator[tuple[str, str]]:
    live = state.live
    if live is None:
        yield "live", "nothing"
    else:
        yield "release", live.release
        yield "live since", f"{minute(live.since)} UTC"
        yield "component", f"{live.component}: {component_status}"
        yield "endpoint", f"{live.endpoint}, base {live.base}"
        if proof is not None:
            yield "proof", proof_of(proof) or "none in the registry yet"
    for name, entry in sorted(state.components.items()):
        if entry.state is ComponentState.STANDBY and entry.until is not None:
            until = datetime.fromtimestamp(entry.until, UTC)
            kept = f"until {until:%H:%M:%S} UTC" if until > datetime.now(UTC) else "its grace period is over"
            yield "standby", f"{name}, release {short(entry.release)}, {kept}"
        elif entry.state is not ComponentState.LIVE:
            yield str(entry.state), f"{name}, release {short(entry.release)}"
    if running is not None:
        in_line = f", {running.in_line}" if running.in_line else ""
        yield (
            "running",
            f"{_at(running)}{in_line}, {running.seconds:.0f} s in all, execution {running.arn.rpartition(':')[2]}",
        )
    if newest is not None and condition in UNSUCCESSFUL:
        yield (
            "newest",
            f"{newest.outcome} at {minute(finished_at(newest))} UTC: {clipped(what_went_wrong(newest), 300)}",
        )


def _advice(
    connection: Connection, name: str, condition: Condition, is_live: bool, component_status: str | None
) -> Iterator[str]:
    if is_live and component_status not in ("InService", "Updating"):
        yield "The live component is broken. The next reconciliation heals it. To do it now:"
        yield f"  {connection.command('reconcile', name)}"
    match condition:
        case Condition.FAILED:
            yield f"To retry it:\n  {connection.command('retry', name)}"
        case Condition.WAITING:
            yield WAITING_ADVICE
        case Condition.REJECTED:
            yield f"Fix the adapter and push it again. Every reason:\n  {connection.command('history', name, '--json')}"
        case Condition.REMOVED:
            yield f"To bring it back:\n  {connection.command('rollback', name)}"
        case _:
            pass


def _watch(connection: Connection, name: str, stream: Any) -> None:
    """The newest deployment to its end, if it runs."""
    newest = connection.registry.newest(name)
    if newest is not None and newest.outcome is None and not newest.promoted:
        deadline = time.monotonic() + MAX_WATCHED_SECONDS
        follow_execution(connection.executions, "DeployAdapter", newest.attempt, stream, deadline)


def _running(connection: Connection, arn: str) -> Execution | None:
    try:
        execution = read_execution(connection.executions, arn)
    except ClientError as error:
        if error.response["Error"].get("Code") in ("ExecutionDoesNotExist", "InvalidArn"):
            return None
        raise
    return execution if execution.status == RUNNING else None


def _at(execution: Execution) -> str:
    return execution.steps[-1].state if execution.steps else "Begin"


def component_status_of(sagemaker: Any, name: str) -> str:
    return _status_of(
        lambda: sagemaker.describe_inference_component(InferenceComponentName=name)["InferenceComponentStatus"]
    )


def _status_of(describe: Any) -> str:
    try:
        found: str = describe()
    except ClientError as error:
        if error.response["Error"].get("Code") in ("ValidationException", "ValidationError"):
            return "missing"
        raise
    return found


def _alarms(connection: Connection) -> list[dict[str, str]]:
    """The stack's alarms that are not quiet."""
    with explaining("read the alarms of the stack"):
        pages = connection.client("cloudformation").get_paginator("list_stack_resources")
        names = [
            one["PhysicalResourceId"]
            for page in pages.paginate(StackName=connection.stack.name)
            for one in page["StackResourceSummaries"]
            if one["ResourceType"] == "AWS::CloudWatch::Alarm"
        ]
        if not names:
            return []
        found = connection.client("cloudwatch").describe_alarms(AlarmNames=names, StateValue="ALARM")["MetricAlarms"]
    return [{"name": one["AlarmName"], "description": one.get("AlarmDescription", "")} for one in found]


# history


def history(arguments: argparse.Namespace) -> int:
    connection = Connection.of(arguments)
    connection.check_names([arguments.adapter])
    with explaining(f"read the history of {arguments.adapter}"):
        records = list(connection.registry.uploads(arguments.adapter, arguments.limit))
        state = connection.registry.state(arguments.adapter)
    origins = _origins(connection, records)
    live = state.live.order if state.live else None
    if arguments.json:
        said = [upload_dict(one, origins.get(one.order, {})) | {"live": one.order == live} for one in records]
        print(json.dumps({"stack": connection.stack.name, "adapter": arguments.adapter, "uploads": said}, indent=2))
        return ExitCode.DONE
    print("WHEN (UTC)        OUTCOME     RELEASE   TOOK     BY")
    for one in records:
        outcome = "running" if one.outcome is None else str(one.outcome)
        mark = " *" if one.order == live else ""
        took = seconds_between(one.uploaded_at, finished_at(one))
        line = (
            f"{minute(one.uploaded_at or finished_at(one)):<16}  {outcome + mark:<10}  {short(one.release):<8}"
            f"  {'-' if took is None else f'{took:.0f} s':<7}  {_who(one)}"
        )
        print(safe(line.rstrip()))
        for note in _notes(one, origins.get(one.order, {})):
            _print_rows([("", clipped(note, 300))])
    print("* is live.")
    return ExitCode.DONE


def _notes(record: UploadRecord, origin: dict[str, str]) -> Iterator[str]:
    if record.heals:
        yield f"healed {record.heals}"
    if REASON_METADATA in origin:
        yield f"a copy of version {origin.get(REPEATS_METADATA, 'unknown')}: {origin[REASON_METADATA]}"
    if record.outcome in (Outcome.FAILED, Outcome.WAITING, Outcome.REJECTED) and (reason := what_went_wrong(record)):
        yield reason
    if proof := proof_of(record):
        yield proof
    if record.replaced:
        yield f"replaced {record.replaced}"


def _who(record: UploadRecord) -> str:
    """As S3 sent it: an account's id for a user or role of the account, a principal for others."""
    if record.requester is None:
        return "this stack" if record.heals else "-"
    return f"{record.requester} at {record.source_ip}" if record.source_ip else record.requester


def proof_of(record: UploadRecord) -> str:
    figures = record.figures
    if "smoke_prompts" not in figures:
        return ""
    return (
        f"{figures['smoke_prompts']} smoke prompts, median latency {figures.get('adapter_ms')} ms, "
        f"base {figures.get('base_ms')} ms"
    )


def upload_dict(record: UploadRecord, origin: dict[str, str]) -> dict[str, Any]:
    return {
        "order": record.order,
        "version_id": record.version_id or None,
        "outcome": record.outcome.value if record.outcome else None,
        "release": record.release,
        "requester": record.requester,
        "source_ip": record.source_ip,
        "uploaded_at": record.uploaded_at,
        "finished_at": finished_at(record),
        "message": record.summary,
        "component": record.component,
        "replaced": record.replaced,
        "heals": record.heals,
        "repeats": origin.get(REPEATS_METADATA),
        "repeats_because": origin.get(REASON_METADATA),
        "figures": dict(record.figures),
        "execution": record.attempt,
    }


def _origins(connection: Connection, records: Sequence[UploadRecord]) -> dict[str, dict[str, str]]:
    """By order: the metadata of those versions that still exist."""

    def read(record: UploadRecord) -> dict[str, str]:
        head = connection.head(record.bucket, record.key, VersionId=record.version_id)
        return {} if head is None else head["Metadata"]

    uploads = [one for one in records if one.version_id and one.heals is None]
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip([one.order for one in uploads], threads.map(read, uploads), strict=True))


def _print_rows(labelled: Iterable[tuple[str, str]]) -> None:
    for label, text in labelled:
        first = f"  {label:<{_LABEL_COLUMNS - 2}}"
        for line in textwrap.wrap(
            safe(text), width(), initial_indent=first, subsequent_indent=" " * _LABEL_COLUMNS, break_on_hyphens=False
        ) or [first.rstrip()]:
            print(line)
