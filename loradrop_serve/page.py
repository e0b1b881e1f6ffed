"""`/`: the page, and what it asks its own server (`/api`).

What changes something runs a command of this package as a person would, in a process of its own, and the page shows which.
"""

import argparse
import asyncio
import dataclasses
import hmac
import json
import logging
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any, BinaryIO

from botocore.exceptions import ClientError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loradrop import rendering
from loradrop.lifecycle import ComponentState, UploadRecord
from loradrop.names import AdapterNameInvalidError, check_adapter_name
from loradrop.profile import ProfileError
from loradrop.rendering import Source
from loradrop.validation_report import ValidationReport
from loradrop.validator import validate
from loradrop.wire import OBJECT_GONE_CODES
from loradrop_cli.connection import Connection
from loradrop_cli.fleet import component_status_of, upload_dict
from loradrop_cli.main import MAX_DEPLOYMENT_SECONDS
from loradrop_cli.push import Push, Tarball, stack_choice
from loradrop_cli.terminal import CommandError
from loradrop_client import LoradropError, explaining

from .executions_view import execution_document
from .fleet_view import Broadcast, FleetView, proof_in, row_of
from .refusals import RefusalError
from .relay import Relay

_LOG = logging.getLogger(__name__)
TOKEN_HEADER = "x-loradrop-token"  # noqa: S105 - its name, not its value
SHOWN_UPLOADS = 50
LISTED_EXECUTIONS = 40
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
MAX_COMMANDS = 8
COMMAND_SECONDS = MAX_DEPLOYMENT_SECONDS + 60.0  # longer than any command waits by itself
MAX_OUTPUT_BYTES = 64 * 1024
MAX_DROPS = 2
START_DEADLINE_SECONDS = 120.0
_STATIC = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


class Page:
    def __init__(
        self,
        connection: Connection,
        *,
        read_only: bool = False,
        start_seconds: float = START_DEADLINE_SECONDS,
        command_seconds: float = COMMAND_SECONDS,
    ) -> None:
        """`start_seconds` is how long the execution of an upload is waited for, `command_seconds` how long a command."""
        self._connection, self._read_only, self._start_seconds = connection, read_only, start_seconds
        self._command_seconds = command_seconds
        self._token = secrets.token_urlsafe(32)
        self._threads = ThreadPoolExecutor(8, "page")
        self._view = FleetView(connection)
        self._broadcast = Broadcast(self._view, ThreadPoolExecutor(1, "page-fleet"))
        self._commands = asyncio.Semaphore(MAX_COMMANDS)
        self._drops = 0

    def routes(self) -> list[Route]:
        static = [Route(path, _static(*file), methods=["GET"]) for path, file in _STATIC.items()]
        return [
            *static,
            Route("/favicon.ico", _nothing, methods=["GET"]),  # a browser asks for it unasked
            Route("/api/session", self._session, methods=["GET"]),
            Route("/api/events", self._events, methods=["GET"]),
            Route("/api/adapter", self._asked(self._adapter), methods=["GET"]),
            Route("/api/document", self._asked(self._document), methods=["GET"]),
            Route("/api/execution", self._asked(self._execution), methods=["GET"]),
            Route("/api/executions", self._asked(self._executions), methods=["GET"]),
            Route("/api/change", self._change, methods=["POST"]),
            Route("/api/drop", self._drop, methods=["POST"]),
        ]

    def end_events(self) -> None:
        self._broadcast.end()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _asked(self, answer: Callable[[Mapping[str, str]], Any]) -> Callable[[Request], Any]:
        """A question of the query's words, answered in a thread."""

        async def endpoint(request: Request) -> Response:
            loop = asyncio.get_running_loop()
            try:
                found = await loop.run_in_executor(self._threads, answer, request.query_params)
            except LoradropError as error:
                raise RefusalError(502, str(error), "server_error") from error
            return JSONResponse(found)

        return endpoint

    # What is

    async def _session(self, _request: Request) -> Response:
        stack = self._connection.stack
        region = self._connection.session.region_name
        host = self._connection.executions.meta.endpoint_url
        is_aws = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
        return JSONResponse(
            {
                "stack": stack.name,
                "region": region,
                "token": self._token,
                "read_only": self._read_only,
                "console": f"https://{region}.console.aws.amazon.com/states/home?region={region}#" if is_aws else None,
                "max_upload_megabytes": int(stack.parameters.get("MaxUploadMegabytes", "0")),
                "grace_seconds": int(stack.parameters.get("GracePeriodSeconds", "0")),
            },
            headers={"Cache-Control": "no-store"},
        )

    async def _events(self, _request: Request) -> Response:
        if self._broadcast.is_full:
            raise RefusalError(503, "Too many pages are open.", "server_error", headers={"Retry-After": "10"})
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._broadcast.events(), media_type="text/event-stream", headers=headers)

    def _adapter(self, query: Mapping[str, str]) -> dict[str, Any]:
        name = _name(query)
        registry = self._connection.registry
        with explaining(f"read {name} from the registry"):
            state = registry.state(name)
            uploads = list(registry.uploads(name, SHOWN_UPLOADS))
        if not state.revision:
            raise RefusalError(404, f"The stack {self._connection.stack.name} has no adapter {name!r}.")
        live = state.live
        status = None
        if live is not None:
            with explaining(f"read the component {live.component}"):
                status = component_status_of(self._connection.client("sagemaker"), live.component)
        return {
            **row_of(name, state, uploads),
            "live": live and dataclasses.asdict(live) | {"status": status},
            "standbys": [
                {"component": one, "release": entry.release, "until": entry.until}
                for one, entry in sorted(state.components.items())
                if entry.state is ComponentState.STANDBY
            ],
            "uploads": [_upload(one) | {"live": live is not None and one.order == live.order} for one in uploads],
            "commands": {
                "rollback": self._command("rollback", name),
                "retry": self._command("retry", name),
                "remove": self._command("remove", name),
            },
        }

    def _document(self, query: Mapping[str, str]) -> Any:
        """What lies in the release bucket about an upload: `smoke` or `manifest`."""
        name, order, kind = _name(query), query.get("order", ""), query.get("kind", "")
        with explaining(f"read {name} from the registry"):
            record = self._connection.registry.upload(name, order) if order else None
        entry = json.loads(record.entry) if record and record.entry else {}
        bucket = self._connection.stack.output("ReleaseBucketName")
        if kind == "smoke":
            key = str(entry.get("smoke", {}).get("answers", "")).removeprefix(f"s3://{bucket}/")
        elif kind == "manifest":
            key = str(entry.get("release", {}).get("manifest_key", ""))
        else:
            raise RefusalError(400, "`kind` must be smoke or manifest.")
        if not key:
            raise RefusalError(404, "Nothing of it is kept.")
        with explaining(f"read s3://{bucket}/{key}"):
            try:
                got = self._connection.s3.get_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if error.response["Error"].get("Code") in OBJECT_GONE_CODES:
                    raise RefusalError(404, f"s3://{bucket}/{key} is not kept any more.") from error
                raise
            if got["ContentLength"] > MAX_DOCUMENT_BYTES:
                raise RefusalError(413, f"It is too large to be shown: s3://{bucket}/{key}")
            return json.loads(got["Body"].read())

    def _execution(self, query: Mapping[str, str]) -> dict[str, Any]:
        arn = query.get("arn", "")
        # Only of this stack's machines: whoever looks here need not see what else these credentials may read.
        prefixes = [machine.replace(":stateMachine:", ":execution:") + ":" for machine in self._machines()]
        if not arn.startswith(tuple(prefixes)):
            raise RefusalError(404, f"The stack {self._connection.stack.name} has no such execution.")
        with explaining("read the execution"):
            try:
                return execution_document(self._connection.executions, arn)
            except ClientError as error:
                if error.response["Error"].get("Code") == "ExecutionDoesNotExist":
                    raise RefusalError(
                        404, "The execution is not kept any more; AWS keeps them for 90 days."
                    ) from error
                raise

    def _executions(self, _query: Mapping[str, str]) -> list[dict[str, Any]]:
        found = []
        with explaining("list the executions"):
            for machine, kind in zip(self._machines(), ("DeployAdapter", "ReconcileFleet"), strict=True):
                listed = self._connection.executions.list_executions(
                    stateMachineArn=machine, maxResults=LISTED_EXECUTIONS
                )["executions"]
                found += [
                    {
                        "arn": one["executionArn"],
                        "machine": kind,
                        "status": one["status"],
                        "started_at": one["startDate"].isoformat(),
                        "stopped_at": one["stopDate"].isoformat() if "stopDate" in one else None,
                    }
                    for one in listed
                ]
        return sorted(found, key=lambda one: str(one["started_at"]), reverse=True)[:LISTED_EXECUTIONS]

    def _machines(self) -> list[str]:
        return [self._connection.stack.output(name) for name in ("StateMachineArn", "ReconcileFleetArn")]

    def _command(self, *words: str) -> str:
        return self._connection.command(*words)

    # What changes something

    def _check_may_change(self, request: Request) -> None:
        if self._read_only:
            raise RefusalError(403, "This page was started with --read-only.", "permission_error")
        if not hmac.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            raise RefusalError(403, "The page is older than the server. Load it again.", "permission_error")

    async def _change(self, request: Request) -> Response:
        self._check_may_change(request)
        try:
            words = _words(await request.json())
        except ValueError as error:
            raise RefusalError(400, "The request is not JSON.") from error
        if self._commands.locked():
            raise RefusalError(503, "Too many commands are running. Try again in a moment.", "server_error")
        async with self._commands:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "loradrop_cli",
                *words,
                *("--stack", self._connection.stack.name, "--json"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                out, err = await asyncio.wait_for(process.communicate(), self._command_seconds)
            except TimeoutError:
                message = f"The command was ended after {self._command_seconds:g} s. It continues in the stack: what it began is not undone."
                return JSONResponse({"command": self._command(*words), "code": None, "message": message})
            finally:
                if process.returncode is None:  # what it began goes on without it
                    process.terminate()
                    await process.communicate()  # until it has ended: its pipes belong to this loop
        said = _message(out[:MAX_OUTPUT_BYTES]) or err[-MAX_OUTPUT_BYTES:].decode(errors="replace").strip()
        return JSONResponse({"command": self._command(*words), "code": process.returncode, "message": said})

    async def _drop(self, request: Request) -> Response:
        """A tarball: validated, then uploaded. The answer is a line of JSON for each step."""
        self._check_may_change(request)
        name = _name(request.query_params)
        if self._drops >= MAX_DROPS:
            raise RefusalError(503, "Other tarballs are being uploaded. Try again in a moment.", "server_error")
        self._drops += 1
        file = tempfile.TemporaryFile(prefix="loradrop-drop-")  # noqa: SIM115 - the thread closes it
        try:
            size = await self._received(request, file)
        except BaseException as error:
            self._drops -= 1
            file.close()
            if isinstance(error, ClientDisconnect):
                return Response(status_code=499)
            raise
        relay = Relay()
        asyncio.get_running_loop().run_in_executor(self._threads, self._deploy, relay, name, file, size)

        async def lines() -> Any:
            try:
                while (piece := await relay.take()) is not None:
                    yield piece
            finally:
                relay.leave()

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})

    async def _received(self, request: Request, file: BinaryIO) -> int:
        most = int(self._connection.stack.parameters.get("MaxUploadMegabytes", "0")) * 1_000_000
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if most and size > most:
                raise RefusalError(
                    413, f"The tarball has more than the {most:,} bytes that the stack allows (MaxUploadMegabytes)."
                )
            file.write(piece)
        return size

    def _deploy(self, relay: Relay, name: str, file: BinaryIO, size: int) -> None:
        def say(**step: Any) -> None:
            relay.put(json.dumps(step).encode() + b"\n")

        try:
            choice = stack_choice(argparse.Namespace(base=None, max_rank=None, engine=None), self._connection.stack)
            file.seek(0)
            report = validate(file, choice.profile, choose=choice.choose)
            say(step="validated", **_report(report, Source(f"{name.rpartition('/')[2]}.tar.gz")))
            if not report.accepted:
                return
            push = Push(
                argparse.Namespace(json=True, no_wait=True, timeout=0),
                name,
                self._connection.stack,
                self._connection.session,
            )
            sent = 0

            def advance(more: int) -> None:
                nonlocal sent
                sent += more
                say(step="uploading", bytes=sent, of=size)

            upload = push.upload(Tarball(file, size, report), advance)
            say(step="uploaded", uri=upload.uri, version=upload.version_id)
            say(step="started", execution=self._execution_of(name, upload.version_id))
        except (LoradropError, CommandError, ProfileError) as error:
            say(step="failed", message=str(error))
        except Exception:  # noqa: BLE001 - the last step must say how it ended, whatever it was
            _LOG.exception("the tarball of %s", name)
            say(step="failed", message="This server failed; its log says why.")
        finally:
            self._drops -= 1
            file.close()
            relay.finish()

    def _execution_of(self, name: str, version: str) -> str | None:
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            with explaining(f"read {name} from the registry"):
                record = self._connection.registry.of_version(name, version)
            if record is not None:
                return record.attempt
            time.sleep(0.5)
        return None


def _static(name: str, kind: str) -> Callable[[Request], Any]:
    async def endpoint(_request: Request) -> Response:
        body = files(__package__).joinpath("static", name).read_bytes()
        return Response(body, media_type=kind, headers={"Cache-Control": "no-cache"})

    return endpoint


async def _nothing(_request: Request) -> Response:
    return Response(status_code=204)


def _name(query: Mapping[str, str]) -> str:
    name = query.get("name", "")
    try:
        check_adapter_name(name)
    except AdapterNameInvalidError as error:
        raise RefusalError(400, str(error), param="name") from error
    return name


def _words(asked: Any) -> list[str]:
    """The command that a button stands for. Its words are checked: none of them can be an option."""
    if not isinstance(asked, dict):
        raise RefusalError(400, "The request must be a JSON object.")
    name = _name({"name": str(asked.get("name", ""))})
    match asked.get("action"):
        case "rollback":
            release = asked.get("release")
            if release is None:
                return ["rollback", name]
            if not isinstance(release, str) or not release.isalnum() or len(release) > 64:
                raise RefusalError(400, "`release` must be a release, in hexadecimal.", param="release")
            return ["rollback", name, "--to", release]
        case "retry":
            return ["retry", name]
        case "remove":
            return ["remove", name, "--yes"]
        case _:
            raise RefusalError(400, "`action` must be rollback, retry or remove.", param="action")


def _message(printed: bytes) -> str:
    try:
        said = json.loads(printed)
    except ValueError:
        return ""
    one = said["adapters"][0] if said.get("adapters") else said
    return str(one.get("message") or "")


def _upload(record: UploadRecord) -> dict[str, Any]:
    entry = json.loads(record.entry) if record.entry else {}
    shown = upload_dict(record, {}) | {"size_bytes": record.size_bytes, "proof": proof_in(record), "report": None}
    if isinstance(entry.get("validation"), dict):
        report = ValidationReport.from_dict(entry["validation"])
        shown["report"] = _report(report, Source(f"s3://{record.bucket}/{record.key}"))
    shown["repeats"], shown["asked_by"] = record.repeats, record.asked_by
    failure = entry.get("failure")
    shown["failure"] = failure if isinstance(failure, dict) else None
    shown["has_answers"] = (
        bool(entry.get("smoke", {}).get("answers")) if isinstance(entry.get("smoke"), dict) else False
    )
    return shown


def _report(report: ValidationReport, source: Source) -> dict[str, Any]:
    """Problems in words, each with its fix's text and commands."""

    def shown(problem: Any) -> dict[str, Any]:
        fix = rendering.steps(problem.fix, source) if problem.fix is not None else None
        return {
            "code": problem.code.value,
            "severity": problem.code.severity.value,
            "message": problem.message,
            "consequence": problem.consequence.sentence,
            "fix": fix.text if fix else problem.code.how_to_fix,
            "commands": list(fix.commands) if fix else [],
        }

    return {
        "accepted": report.accepted,
        "profile": report.profile,
        "problems": [shown(one) for one in report.problems],
        "warnings": [shown(one) for one in report.warnings],
        "left_out": report.left_out.problems + report.left_out.warnings,
        "manifest": report.manifest.to_dict() if report.manifest else None,
        "sha256": report.sha256,
    }
