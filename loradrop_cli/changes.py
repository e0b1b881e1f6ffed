"""`loradrop rollback`, `remove`, `retry`, `redeploy` and `reconcile`: what changes an adapter's life.

S3 is the one log. Going back, trying again and deploying again are copies onto the adapter's key, which get an event and a
place in the order as every upload has; a removal is a delete marker. DeployAdapter and ReconcileFleet do the rest.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from loradrop.lifecycle import AdapterState, Outcome, UploadRecord
from loradrop.names import REASON_METADATA, REPEATS_METADATA, release_key, upload_key
from loradrop.wire import OBJECT_GONE_CODES
from loradrop_client import LoradropError, explaining

from .connection import Connection
from .executions import POLL_SECONDS, RUNNING, Execution, follow_execution
from .exit_codes import ExitCode
from .fleet import short
from .standing import UNSUCCESSFUL, Condition, standing, standings
from .terminal import CommandError, Progress, painted, print_message, safe

# Of adapters that are deployed again at a time: each needs room for one component more.
DEPLOYED_AT_ONCE = 4
MIN_RELEASE_CHARACTERS = 4
MAX_CHOICES = 8
BATCH_POLL_SECONDS = 1.0
CONTENT_TYPE = "application/gzip"
_MESSAGES = 10  # of SQS at a time
_OVERTAKEN = ("412", "PreconditionFailed", "ConditionalRequestConflict", "404", "NoSuchKey", "NoSuchVersion")


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one adapter. `upload` is None where nothing was uploaded, for the reason in `message`."""

    adapter: str
    code: ExitCode
    message: str
    upload: UploadRecord | None = None
    version_id: str | None = None
    answers: str | None = None

    def to_dict(self) -> dict[str, Any]:
        record = self.upload
        return {
            "adapter": self.adapter,
            "outcome": record.outcome.value if record and record.outcome else None,
            "message": self.message,
            "release": record.release if record else None,
            "component": record.component if record and record.promoted else None,
            "replaced": record.replaced if record else None,
            "version_id": self.version_id,
            "execution": record.attempt if record else None,
        } | ({"answers": self.answers} if self.answers else {})


class OvertakenError(LoradropError):
    """Somebody else wrote the adapter's key in between."""


class _Uploads:
    """Copies onto an adapter's key, and what becomes of them."""

    def __init__(self, connection: Connection, timeout_seconds: float, view: Any = None) -> None:
        """`view` is the stream that shows executions as they run; None where there are many."""
        self.connection, self._view = connection, view
        self._bucket = connection.stack.output("UploadBucketName")
        self._deadline = time.monotonic() + timeout_seconds

    def stop(self) -> None:
        """Time is over: whatever is awaited comes back as it is."""
        self._deadline = time.monotonic()

    def current(self, adapter: str) -> Mapping[str, Any] | None:
        return self.connection.head(self._bucket, upload_key(adapter))

    def again(self, adapter: str, current: Mapping[str, Any], reason: str) -> str:
        """Copies the current version onto itself; the new version. Its metadata and tags stay. Raises OvertakenError."""
        version: str = current["VersionId"]
        source = {"Bucket": self._bucket, "Key": upload_key(adapter), "VersionId": version}
        metadata = {**current["Metadata"], REPEATS_METADATA: version, REASON_METADATA: reason}
        kind = current.get("ContentType", CONTENT_TYPE)
        return self._copy(adapter, source, metadata, kind, TaggingDirective="COPY", IfMatch=current["ETag"])

    def from_source(
        self, adapter: str, source: Any, current: Mapping[str, Any] | None, repeats: str, reason: str
    ) -> str:
        """Copies other bytes onto the adapter's key; the new version. Raises OvertakenError."""
        metadata = {REPEATS_METADATA: repeats, REASON_METADATA: reason}
        condition = {"IfMatch": current["ETag"]} if current else {"IfNoneMatch": "*"}
        return self._copy(adapter, source, metadata, CONTENT_TYPE, TaggingDirective="REPLACE", **condition)

    def _copy(self, adapter: str, source: Any, metadata: dict[str, str], content_type: str, **options: Any) -> str:
        key = upload_key(adapter)
        with explaining(f"copy onto s3://{self._bucket}/{key}"):
            try:
                copied = self.connection.s3.copy_object(
                    Bucket=self._bucket,
                    Key=key,
                    CopySource=source,
                    MetadataDirective="REPLACE",
                    Metadata=metadata,
                    ContentType=content_type,
                    **options,
                )
            except ClientError as error:
                if error.response["Error"].get("Code") in _OVERTAKEN:
                    raise OvertakenError(
                        f"{adapter} was uploaded or removed by somebody else in the meantime. Check its status, and try again."
                    ) from error
                raise
        return copied["VersionId"]

    def end_of(self, adapter: str, version_id: str) -> Ended:
        """What became of this version, as the registry says."""
        if self._view is not None:
            self._show(adapter, version_id)
        poll_seconds = BATCH_POLL_SECONDS if self._view is None else POLL_SECONDS / 4
        record = self._wait(adapter, version_id, lambda one: bool(one.outcome and one.summary), poll_seconds)
        if record is None or record.outcome is None:
            return self._unfinished(adapter, version_id, record)
        code = {Outcome.DEPLOYED: ExitCode.DONE, Outcome.REJECTED: ExitCode.REJECTED}.get(
            record.outcome, ExitCode.FAILED
        )
        return Ended(adapter, code, record.summary or "", record, version_id)

    def _show(self, adapter: str, version_id: str) -> None:
        """The execution of this version until it ends."""
        try:
            with Progress("waiting for the deployment to start"):
                record = self._wait(adapter, version_id, lambda _: True, POLL_SECONDS / 4)
            if record is not None:
                follow_execution(
                    self.connection.executions, "DeployAdapter", record.attempt, self._view, self._deadline
                )
        except KeyboardInterrupt:
            print(f"\n{self._unfinished(adapter, version_id, None).message}", file=sys.stderr)
            raise

    def _wait(
        self, adapter: str, version_id: str, is_enough: Callable[[UploadRecord], bool], poll_seconds: float
    ) -> UploadRecord | None:
        """The upload's record once it is enough, or what there is of it when time is over."""
        while True:
            with explaining(f"read {adapter} from the registry"):
                record = self.connection.registry.of_version(adapter, version_id)
            if record is not None and is_enough(record):
                return record
            if time.monotonic() >= self._deadline:
                return record
            time.sleep(poll_seconds)

    def _unfinished(self, adapter: str, version_id: str, record: UploadRecord | None) -> Ended:
        what = (
            "The deployment continues"
            if record
            else "The upload is complete; the deployment starts without this command"
        )
        command = self.connection.command("status", adapter, "--watch")
        return Ended(adapter, ExitCode.FAILED, f"{what}. To see how it ends:\n  {command}", record, version_id)


def _print_end(connection: Connection, ended: Ended, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps({"stack": connection.stack.name, **ended.to_dict()}, indent=2))
    else:
        print_message(ended.message)
    return ended.code


def _stream(arguments: argparse.Namespace) -> Any:
    return sys.stderr if arguments.json else sys.stdout


# rollback


def rollback(arguments: argparse.Namespace) -> int:
    connection = Connection.of(arguments)
    connection.check_names([arguments.adapter])
    name = arguments.adapter
    uploads = _Uploads(connection, arguments.timeout, _stream(arguments))
    with explaining(f"read the history of {name}"):
        state = connection.registry.state(name)
        target = _earlier(connection, name, state, arguments.to)
    current = uploads.current(name)
    release = target.release or ""
    if state.live is not None and state.live.release == release:
        ended = Ended(name, ExitCode.DONE, f"Release {release} of {name} is live already; nothing was changed.")
        return _print_end(connection, ended, arguments)
    bucket, key = connection.stack.output("ReleaseBucketName"), release_key(name, release)
    source = {"Bucket": bucket, "Key": key}
    if connection.head(bucket, key) is None:
        source = {"Bucket": target.bucket, "Key": target.key, "VersionId": target.version_id}
        if connection.head(target.bucket, target.key, VersionId=target.version_id) is None:
            raise CommandError(
                f"Release {short(release)} of {name} is neither in the release bucket nor among the versions of its tarball "
                "any more. Push its adapter again."
            )
    was = f"release {short(state.live.release)}" if state.live else "nothing"
    reason = f"rolled back to release {short(release)}, when {was} was live"
    version = uploads.from_source(name, source, current, target.version_id, reason)
    if not arguments.json:
        print_message(f"Rolling {name} back to release {short(release)}, as upload {version}. Live until then: {was}.")
    ended = uploads.end_of(name, version)
    return _print_end(connection, ended, arguments)


def _earlier(connection: Connection, name: str, state: AdapterState, wanted: str | None) -> UploadRecord:
    """The newest upload that went live with the wanted release: any but the one that is live now, or the one named."""
    live = state.live.release if state.live else None
    deployed: dict[str, UploadRecord] = {}
    for record in connection.registry.uploads(name):
        if record.outcome is not Outcome.DEPLOYED or not record.release:
            continue
        if wanted is None and record.release != live:
            return record
        if wanted is not None and record.version_id == wanted:
            return record
        deployed.setdefault(record.release, record)
    if wanted is None:
        what = "No other release" if live else "No release"
        raise CommandError(
            f"{what} of {name} was ever live, so there is nothing to go back to. Its history:\n"
            f"  {connection.command('history', name)}"
        )
    matching = [release for release in deployed if release.startswith(wanted.lower())]
    if len(matching) == 1 and len(wanted) >= MIN_RELEASE_CHARACTERS:
        return deployed[matching[0]]
    known = ", ".join(short(release) for release in [*deployed][:MAX_CHOICES]) or "none"
    why = (
        f"is less than {MIN_RELEASE_CHARACTERS} characters"
        if len(wanted) < MIN_RELEASE_CHARACTERS
        else f"matches {len(matching)} releases"
        if matching
        else "was never live"
    )
    raise CommandError(
        f"Release {wanted!r} of {name} {why}. Releases that were live: {known}. To see them whole:\n"
        f"  {connection.command('history', name, '--json')}"
    )


# remove


def remove(arguments: argparse.Namespace) -> int:
    connection = Connection.of(arguments)
    connection.check_names([arguments.adapter])
    name = arguments.adapter
    uploads = _Uploads(connection, arguments.timeout)
    with explaining(f"read {name} from the registry"):
        state = connection.registry.state(name)
        newest = connection.registry.newest(name)
    current = uploads.current(name)
    if current is None and state.live is None:
        return _print_end(connection, Ended(name, ExitCode.DONE, f"{name} is removed already."), arguments)
    if not arguments.yes and not _is_sure(name, state):
        print("Nothing was removed.", file=sys.stderr)
        return ExitCode.UNUSABLE
    bucket, key = connection.stack.output("UploadBucketName"), upload_key(name)
    with explaining(f"delete s3://{bucket}/{key}"):
        connection.s3.delete_object(Bucket=bucket, Key=key)
    is_deploying = newest is not None and newest.outcome is None
    if state.live is None and not is_deploying:
        ended = Ended(name, ExitCode.DONE, f"The tarball of {name} is deleted; nothing of it was live.")
        return _print_end(connection, ended, arguments)
    if arguments.no_wait:
        ended = Ended(name, ExitCode.DONE, f"The tarball of {name} is deleted; ReconcileFleet takes it out of service.")
        return _print_end(connection, ended, arguments)
    return _print_end(connection, _removal(connection, name, state.floor, arguments.timeout), arguments)


def _is_sure(name: str, state: AdapterState) -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        raise CommandError(f"To remove {name} without a question, add --yes.")
    live = f" (release {short(state.live.release)} is live)" if state.live else ""
    print(f"Take {name}{live} out of service? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _removal(connection: Connection, name: str, floor: str, timeout_seconds: float) -> Ended:
    deadline = time.monotonic() + timeout_seconds
    with Progress(f"waiting for {safe(name)} to go out of service"), explaining(f"read {name} from the registry"):
        while True:
            state = connection.registry.state(name)
            if state.live is None and state.floor > floor:
                break
            if time.monotonic() >= deadline:
                said = f"The tarball of {name} is deleted. ReconcileFleet takes it out of service in its next pass. To do it now:"
                return Ended(name, ExitCode.FAILED, f"{said}\n  {connection.command('reconcile', name)}")
            time.sleep(POLL_SECONDS / 4)
        record = connection.registry.upload(name, state.floor)
    grace = connection.stack.parameters.get("GracePeriodSeconds", "0")
    kept = f"\nComponent {record.replaced} stays as a standby for {grace} s." if record and record.replaced else ""
    back = f"\nTo bring it back:\n  {connection.command('rollback', name)}"
    return Ended(name, ExitCode.DONE, f"{name} is out of service.{kept}{back}", record)


# retry and redeploy


def retry(arguments: argparse.Namespace) -> int:
    if bool(arguments.adapters) == arguments.failed:
        raise CommandError("Name the adapters to retry, or give --failed for all that failed.")
    connection = Connection.of(arguments)
    connection.check_names(arguments.adapters)
    lost = _start_lost_events(connection) if arguments.failed else None
    names = arguments.adapters
    if arguments.failed:
        with explaining("list the adapters of the registry"):
            found = standings(connection.registry)
            # What was rejected would be again.
            names = [one.adapter for one, _ in found if one.condition in (Condition.WAITING, Condition.FAILED)]
    return _each(connection, arguments, names, _retried, {} if lost is None else {"lost_events": lost})


def redeploy(arguments: argparse.Namespace) -> int:
    if bool(arguments.adapters) == arguments.all:
        raise CommandError("Name the adapters to redeploy, or give --all for every live one.")
    connection = Connection.of(arguments)
    connection.check_names(arguments.adapters)
    names = arguments.adapters
    if arguments.all:
        with explaining("list the adapters of the registry"):
            names = [name for name, state in connection.registry.adapters() if state.live is not None]
    return _each(connection, arguments, names, _redeployed, {})


def _retried(connection: Connection, uploads: _Uploads, name: str) -> Ended:
    state, newest = connection.registry.state(name), connection.registry.newest(name)
    now = standing(name, state, newest)
    if now.condition not in UNSUCCESSFUL:
        return Ended(name, ExitCode.DONE, f"{name} is {now.condition}; there is nothing to retry.")
    current = uploads.current(name)
    if current is None:
        return Ended(name, ExitCode.FAILED, f"The tarball of {name} was deleted; push it again.")
    version = uploads.again(name, current, f"tried again, since it was {now.condition}")
    return uploads.end_of(name, version)


def _redeployed(connection: Connection, uploads: _Uploads, name: str) -> Ended:
    state = connection.registry.state(name)
    if state.live is None:
        return Ended(name, ExitCode.FAILED, f"Nothing of {name} is live.")
    current = uploads.current(name)
    if current is None or current["VersionId"] != state.live.version_id:
        said = "Its newest upload is not the one that is live. First retry it, or roll back."
        return Ended(name, ExitCode.FAILED, f"{name} stays as it was.\n{said}")
    before = connection.registry.upload(name, state.live.order)
    version = uploads.again(name, current, "deployed again")
    ended = uploads.end_of(name, version)
    if ended.code is not ExitCode.DONE or ended.upload is None:
        return ended
    answers = _compared(_answers(uploads, before), _answers(uploads, ended.upload))
    return Ended(name, ended.code, ended.message, ended.upload, version, answers)


def _compared(before: list[tuple[str, str]] | None, after: list[tuple[str, str]] | None) -> str:
    """Of the smoke test's answers."""
    if before is None or after is None:
        return "not compared"
    differing = len(after) if len(before) != len(after) else sum(a != b for a, b in zip(before, after, strict=True))
    return f"{differing} of {len(after)} answers differ" if differing else "the same answers"


def _answers(uploads: _Uploads, record: UploadRecord | None) -> list[tuple[str, str]] | None:
    """(prompt, the adapter's answer) of an upload's smoke test; None where they are not kept any more."""
    if record is None or not record.entry:
        return None
    uri = json.loads(record.entry).get("smoke", {}).get("answers")
    if uri is None:
        return None
    bucket, _, key = str(uri).removeprefix("s3://").partition("/")
    with explaining(f"read {uri}"):
        try:
            body = uploads.connection.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"].get("Code") in OBJECT_GONE_CODES:
                return None
            raise
    return [(str(one["inputs"]), str(one["adapter"])) for one in json.loads(body)["prompts"]]


_Change = Callable[[Connection, _Uploads, str], Ended]


def _each(
    connection: Connection, arguments: argparse.Namespace, names: list[str], change: _Change, more: dict[str, Any]
) -> int:
    """Does it to each adapter, a few at a time; one that fails does not stop the others."""
    stream = _stream(arguments)
    uploads = _Uploads(connection, arguments.timeout, stream if len(names) == 1 else None)
    began = time.monotonic()
    ends: list[Ended] = []
    for ended in _ends(connection, uploads, names, change):
        ends.append(ended)
        print(_line(ended, time.monotonic() - began, stream), file=stream, flush=True)
        if len(names) == 1 or ended.code is not ExitCode.DONE:
            print_message(ended.message, stream, indent=" " * 13 if len(names) > 1 else "")
    if arguments.json:
        said = {"stack": connection.stack.name, **more, "adapters": [one.to_dict() for one in ends]}
        print(json.dumps(said, indent=2))
    else:
        _print_summary(names, ends, more.get("lost_events"))
    return max((one.code for one in ends), default=ExitCode.DONE)


def _print_summary(names: list[str], ends: list[Ended], lost: dict[str, Any] | None) -> None:
    if lost is not None and lost["started"]:
        print(f"{lost['started']} lost events were started.")
    if lost is not None and lost["left"]:
        print(f"{len(lost['left'])} messages in the queue of lost events are not events; they stay there:")
        for body in lost["left"]:
            print(f"  {safe(body)}")
    if not names:
        print("There is nothing to do.")
    elif len(names) > 1:
        done = sum(one.code is ExitCode.DONE for one in ends)
        differ = sum(bool(one.answers and one.answers.endswith("differ")) for one in ends)
        answers = f", {differ} with other answers" if any(one.answers for one in ends) else ""
        left = len(names) - done
        failed = (
            ""
            if not left
            else ", 1 failed and stays as it was"
            if left == 1
            else f", {left} failed and stay as they were"
        )
        print(f"{done} of {len(names)} done{answers}{failed}.")


def _ends(connection: Connection, uploads: _Uploads, names: list[str], change: _Change) -> Iterator[Ended]:
    def one(name: str) -> Ended:
        try:
            with explaining(f"deploy {name}"):
                return change(connection, uploads, name)
        except LoradropError as error:
            return Ended(name, ExitCode.FAILED, str(error))

    with ThreadPoolExecutor(DEPLOYED_AT_ONCE) as threads:
        pending = [threads.submit(one, name) for name in names]
        try:
            for future in as_completed(pending):
                yield future.result()
        finally:  # at Ctrl-C nobody waits for the others
            uploads.stop()
            for future in pending:
                future.cancel()


def _line(ended: Ended, seconds: float, stream: Any) -> str:
    is_done = ended.code is ExitCode.DONE
    mark = painted("✓" if is_done else "✗", "green" if is_done else "red", stream)
    outcome = str(ended.upload.outcome) if ended.upload and ended.upload.outcome else "unchanged"
    return f"  {seconds:5.1f} s  {mark} {safe(ended.adapter):<22} {outcome:<10} {ended.answers or ''}".rstrip()


# The dead-letter queue


def _start_lost_events(connection: Connection) -> dict[str, Any]:
    """Starts what the events of the dead-letter queue would have started. SQS itself moves only what a queue lost."""
    sqs, queue = connection.client("sqs"), connection.stack.output("LostEventsQueueUrl")
    started, left, seen = 0, [], set()
    with explaining("read the queue of lost events"):
        while got := sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=_MESSAGES).get("Messages", []):
            fresh = [one for one in got if one["MessageId"] not in seen]
            if not fresh:
                break
            for message in fresh:
                seen.add(message["MessageId"])
                machine = _machine_for(connection, message["Body"])
                if machine is None:
                    left.append(message["Body"])
                    continue
                connection.executions.start_execution(stateMachineArn=machine, input=message["Body"])
                sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
                started += 1
    return {"started": started, "left": left}


def _machine_for(connection: Connection, body: str) -> str | None:
    """None for what is no event of the stack's rules, as a message to the topic."""
    try:
        kind = json.loads(body)["detail-type"]
    except (ValueError, KeyError, TypeError):
        return None
    if kind == "Object Created":
        return connection.stack.output("StateMachineArn")
    if kind in ("Object Deleted", "Step Functions Execution Status Change"):
        return connection.stack.output("ReconcileFleetArn")
    return None


# reconcile


def reconcile(arguments: argparse.Namespace) -> int:
    scope: dict[str, Any] = {"adapter": arguments.adapter} if arguments.adapter else {}
    scope |= {"dry_run": True} if arguments.dry_run else {}
    connection = Connection.of(arguments)
    if arguments.adapter:
        connection.check_names([arguments.adapter])
    with explaining("start ReconcileFleet"):
        started = connection.executions.start_execution(
            stateMachineArn=connection.stack.output("ReconcileFleetArn"), input=json.dumps(scope)
        )
    deadline = time.monotonic() + arguments.timeout
    execution = follow_execution(
        connection.executions, "ReconcileFleet", started["executionArn"], _stream(arguments), deadline
    )
    with explaining("read what was repaired"):
        plans, done = _repairs(connection, execution.arn)
    is_done = execution.status == "SUCCEEDED"
    if arguments.json:
        said = {
            "stack": connection.stack.name,
            "execution": execution.arn,
            "status": execution.status,
            "dry_run": arguments.dry_run,
            "examined": sum(one["examined"] for one in plans),
            "planned": [repair for one in plans for repair in one["repairs"]],
            "done": done,
            "cause": execution.cause or None,
        }
        print(json.dumps(said, indent=2))
        return ExitCode.DONE if is_done else ExitCode.FAILED
    for line in _reconciled(execution, plans, done, is_dry=arguments.dry_run):
        print_message(line)
    return ExitCode.DONE if is_done else ExitCode.FAILED


def _reconciled(
    execution: Execution, plans: list[dict[str, Any]], done: list[dict[str, Any]], *, is_dry: bool
) -> Iterator[str]:
    if execution.status == RUNNING:
        yield "The execution is still running, and continues without this command."
    repairs = [repair for one in plans for repair in one["repairs"]]
    for repair in repairs:
        for one in repair["wanted"]:
            yield f"{repair['adapter'] or '(no adapter)'}: {one['repair']}, since {one['reason']}"
    for result in done:
        for what in result["done"]:
            yield f"  ✓ {what}"
    examined = sum(one["examined"] for one in plans)
    would = "would be repaired" if is_dry else "needed a repair"
    if execution.status == "SUCCEEDED":
        yield f"{examined} adapter{'s' * (examined != 1)} examined, {len(repairs)} {would}."
    if execution.cause:
        yield execution.cause


def _repairs(connection: Connection, arn: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The plans, and what was done, as the functions returned them."""
    plans, done = [], []
    pages = connection.executions.get_paginator("get_execution_history").paginate(executionArn=arn)
    for event in (event for page in pages for event in page["events"]):
        details: Any = event.get("lambdaFunctionSucceededEventDetails") or event.get("taskSucceededEventDetails")
        if not details or not details.get("output"):
            continue
        output = json.loads(details["output"])
        if isinstance(output, dict) and "examined" in output:
            plans.append(output)
        elif isinstance(output, dict) and "done" in output:
            done.append(output)
    return plans, done
