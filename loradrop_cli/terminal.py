"""A person's terminal: colour, a progress bar, and no character of a stranger's that could steer it."""

import os
import shutil
import sys
import time
import unicodedata
from typing import TextIO

MAX_COLUMNS = 110
_SECONDS_BEFORE_BAR = 0.7
_SECONDS_BETWEEN_BARS = 0.1
_BAR_CELLS = 24
# Beside lines and tabs: zero-width (non-)joiner, without which Persian, Hindi and emoji fall apart.
_OF_TEXTS = "\n\t\u200c\u200d"
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


class CommandError(Exception):
    """Wrong usage, or something that cannot be read or written. The message is a sentence for a person."""


def safe(text: str) -> str:
    """The text with every control character, direction mark and lone surrogate spelled out: \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def safe_text(text: str) -> str:
    """As `safe`, of a text that may have lines and tabs, the spaces of many languages, and joined letters and emoji."""
    return "".join(
        character if character in _OF_TEXTS or unicodedata.category(character) == "Zs" else safe(character)
        for character in text
    )


def painted(text: str, colour: str, stream: TextIO) -> str:
    """In a colour of _COLOURS where `stream` is a terminal that wants any (https://no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


def columns() -> int:
    return min(shutil.get_terminal_size((MAX_COLUMNS, 24)).columns, MAX_COLUMNS)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


class Progress:
    """A bar on standard error: only where that is a terminal, and only once the work takes long.

    `total_bytes` 0 where it is not known. `advance` may be called from another thread.
    """

    def __init__(self, what: str, total_bytes: int) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._started = time.monotonic()
        self._next_bar = self._started + _SECONDS_BEFORE_BAR
        self._is_shown = False
        self._is_wanted = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_wanted = False
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def advance(self, count: int) -> None:
        self._done_bytes += count
        now = time.monotonic()
        if self._is_wanted and now >= self._next_bar:
            self._next_bar = now + _SECONDS_BETWEEN_BARS
            self._is_shown = True
            sys.stderr.write("\r" + self._line(now) + "\x1b[K")
            sys.stderr.flush()

    def _line(self, now: float) -> str:
        done, total = self._done_bytes, self._total_bytes
        speed = max(1.0, done / (now - self._started))
        if not total:
            return f"{self._what} {megabytes(done)}  {megabytes(int(speed))}/s"
        filled = min(_BAR_CELLS, _BAR_CELLS * done // total)
        bar = "#" * filled + "-" * (_BAR_CELLS - filled)
        left = max(0, total - done) / speed
        return (
            f"{self._what} [{bar}] {min(100, 100 * done // total):3d} %  {megabytes(int(speed))}/s  {left:.0f} s left"
        )
