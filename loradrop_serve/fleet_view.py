"""The fleet as the page shows it, kept up to date while somebody looks: what changed is read, nothing else."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loradrop.lifecycle import AdapterState, Outcome, UploadRecord
from loradrop_cli.connection import THREADS, Connection
from loradrop_cli.fleet import stack_document
from loradrop_cli.standing import Condition, finished_at, standing
from loradrop_client import LoradropError, explaining

_LOG = logging.getLogger(__name__)
POLL_SECONDS = 2.0
STACK_SECONDS = 15.0
KEEP_ALIVE_SECONDS = 15.0
MAX_LOOKERS = 64
# A page that takes so few of its events is gone, or will ask anew.
MAX_HELD_EVENTS = 32
SHOWN_UPLOADS = 8


class FleetView:
    """Its `refresh` is called by one thread at a time; `rows` may be read by any."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._revisions: dict[str, int] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def refresh(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The rows that changed, and the names that are gone. An adapter whose revision is the same is not read."""
        registry = self._connection.registry
        with explaining("list the adapters of the registry"):
            states = dict(registry.adapters())
            changed = [name for name, state in states.items() if self._revisions.get(name) != state.revision]

            def read(name: str) -> dict[str, Any]:
                return row_of(name, states[name], list(registry.uploads(name, SHOWN_UPLOADS)))

            with ThreadPoolExecutor(THREADS) as threads:
                rows = list(threads.map(read, changed))
        gone = [name for name in self.rows if name not in states]
        kept = {name: row for name, row in self.rows.items() if name in states}
        self.rows = kept | {row["name"]: row for row in rows}
        self._revisions = {name: state.revision for name, state in states.items()}
        return rows, gone

    def stack(self) -> dict[str, Any]:
        counts = Counter(Condition(row["state"]) for row in self.rows.values())
        full_at = [row["full_at"] for row in self.rows.values() if row["full_at"] is not None]
        return stack_document(self._connection, counts, min(full_at, default=None))


def row_of(name: str, state: AdapterState, uploads: list[UploadRecord]) -> dict[str, Any]:
    """`uploads` are the newest, newest first."""
    newest = uploads[0] if uploads else None
    proof = next((one for one in uploads if state.live and one.order == state.live.order), None)
    figures = proof.figures if proof else {}
    return {
        **standing(name, state, newest).to_dict(),
        "adapter_ms": figures.get("adapter_ms"),
        "base_ms": figures.get("base_ms"),
        "proof": proof_in(proof),
        "full_at": newest.full_at if newest and newest.outcome is Outcome.FAILED else None,
        "execution": newest.attempt if newest and newest.outcome is None else None,
        "history": [[one.outcome or "running", finished_at(one) or one.uploaded_at] for one in reversed(uploads)],
        "name": name,
    }


def proof_in(record: UploadRecord | None) -> str:
    """What the smoke test found, in its own sentence."""
    if record is None or not record.entry:
        return ""
    smoke = json.loads(record.entry).get("smoke")
    return str(smoke.get("summary", "")) if isinstance(smoke, dict) else ""


class Broadcast:
    """Server-sent events to every page that is open. The registry is polled once for all, and only while there is one."""

    def __init__(self, view: FleetView, threads: ThreadPoolExecutor, clock: Callable[[], float] = time.monotonic):
        self._view, self._threads, self._clock = view, threads, clock
        self._lookers: set[asyncio.Queue[bytes | None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._last: dict[str, bytes] = {}  # kind → the newest event of it, for who comes later

    @property
    def is_full(self) -> bool:
        return len(self._lookers) >= MAX_LOOKERS

    async def events(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_HELD_EVENTS)
        if self._poller is None or self._poller.done():
            self._last.clear()
            self._lookers.add(queue)
            self._poller = asyncio.create_task(self._poll())
        else:
            if self._view.rows:
                queue.put_nowait(_event("fleet", {"rows": list(self._view.rows.values()), "gone": [], "whole": True}))
            for last in self._last.values():
                queue.put_nowait(last)
            self._lookers.add(queue)
        try:
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    event = b": still here\n\n"
                if event is None:
                    return
                yield event
        finally:
            self._lookers.discard(queue)

    def end(self) -> None:
        """Ends the events of all pages, so that the server can end too."""
        for queue in tuple(self._lookers):
            self._let_go(queue)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        is_first, stack_at = True, 0.0
        while self._lookers:
            try:
                rows, gone = await loop.run_in_executor(self._threads, self._view.refresh)
                if is_first:
                    rows, gone = list(self._view.rows.values()), []
                if rows or gone or is_first:
                    self._send("fleet", {"rows": rows, "gone": gone, "whole": is_first})
                if is_first or rows or self._clock() - stack_at > STACK_SECONDS:
                    self._send("stack", await loop.run_in_executor(self._threads, self._view.stack))
                    stack_at = self._clock()
                is_first = False
                if self._last.pop("trouble", None):
                    self._send("well", {})
            except LoradropError as error:
                self._send("trouble", {"message": str(error)})
            except Exception:  # noqa: BLE001 - a poller that ended would leave its pages saying that they are up to date
                if "trouble" not in self._last:
                    _LOG.exception("the fleet")
                self._send("trouble", {"message": "This server failed to read the fleet; its log says why."})
            await asyncio.sleep(POLL_SECONDS)

    def _send(self, kind: str, data: dict[str, Any]) -> None:
        event = _event(kind, data)
        if kind in ("stack", "trouble"):
            self._last[kind] = event
        for queue in tuple(self._lookers):
            if queue.full():
                self._let_go(queue)
            else:
                queue.put_nowait(event)

    def _let_go(self, queue: "asyncio.Queue[bytes | None]") -> None:
        self._lookers.discard(queue)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
