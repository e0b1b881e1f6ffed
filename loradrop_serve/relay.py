"""Bytes from a thread, which boto3 needs, to the event loop, which answers the client."""

import asyncio
import threading
from typing import Protocol

# Of one answer that its client does not take as fast as it comes.
MAX_HELD_BYTES = 256 * 1024
# A client that takes nothing for so long is gone.
MAX_STALLED_SECONDS = 120.0


class Ends(Protocol):
    def end(self) -> None: ...


class StalledError(Exception):
    """The client took nothing for so long that what it has of its answer must not end as if it were whole."""


class Relay:
    """One writer, a thread, and one reader, the loop. Either may leave; the other then hears of it at once."""

    def __init__(self, stalled_seconds: float = MAX_STALLED_SECONDS) -> None:
        self.stalled_seconds = stalled_seconds
        self._loop = asyncio.get_running_loop()
        self._room = threading.Condition()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_finished = self._is_left = self._is_broken = False
        self._source: Ends | None = None
        self._ready = asyncio.Event()

    # The thread's side

    def opened(self, source: Ends) -> bool:
        """`source` is ended when the reader leaves. False if it has left already."""
        with self._room:
            self._source = source
            return not self._is_left

    def put(self, piece: bytes) -> bool:
        """Waits while too much is held. False where the reader has left, or takes nothing."""
        with self._room:
            if self._held_bytes > MAX_HELD_BYTES and not self._is_broken:
                self._room.wait_for(lambda: self._held_bytes == 0 or self._is_left, self.stalled_seconds)
                self._is_broken = self._held_bytes > MAX_HELD_BYTES
            if self._is_left or self._is_broken:
                return False
            self._held.append(piece)
            self._held_bytes += len(piece)
            is_first = len(self._held) == 1
        if is_first:
            self._wake()
        return True

    def finish(self) -> None:
        with self._room:
            self._is_finished = True
        self._wake()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ready.set)

    # The loop's side

    async def take(self) -> bytes | None:
        """All that has come since, or None at the end. Raises StalledError where pieces are missing."""
        while True:
            with self._room:
                if self._is_broken and not self._is_left:
                    raise StalledError
                if self._held and not self._is_left:
                    taken, self._held, self._held_bytes = b"".join(self._held), [], 0
                    self._ready.clear()
                    self._room.notify_all()
                    return taken
                if self._is_finished or self._is_left:
                    return None
                self._ready.clear()
            await self._ready.wait()

    def leave(self) -> None:
        with self._room:
            self._is_left = True
            self._held, self._held_bytes = [], 0
            source = None if self._is_finished else self._source
            self._room.notify_all()
        self._ready.set()
        if source is not None:
            source.end()

    @property
    def is_left(self) -> bool:
        return self._is_left
