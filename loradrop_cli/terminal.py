"""A person's terminal: colour, a progress bar, and no character of a stranger's that could steer it."""

import os
import shutil
import sys
import textwrap
import threading
import time
import unicodedata
from typing import TextIO

MAX_COLUMNS = 110
PLAIN_COLUMNS = 80
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


def width() -> int:
    """Of plain text: a terminal's own, and 80 where there is none."""
    return columns() if sys.stdout.isatty() else min(columns(), PLAIN_COLUMNS)


def print_message(message: str, stream: TextIO | None = None, indent: str = "") -> None:
    """Each line, wrapped. A command, which is indented, stays on one line, and so does every word."""
    for line in message.splitlines():
        if line.startswith(" "):
            print(f"{indent}{safe(line)}", file=stream)
            continue
        for part in textwrap.wrap(
            safe(line),
            width(),
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]:
            print(part, file=stream)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


class Progress:
    """A line on standard error that says what is done and how far it is: only on a terminal, once it takes long.

    `total_bytes` 0 where it is not known, or bytes do not count it. A thread draws it, so that it moves while nothing comes.
    `advance` may be called from any thread.
    """

    def __init__(self, what: str, total_bytes: int = 0) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._thread = threading.Thread(
                target=self._draw, args=(sys.stderr,), name="loradrop-progress", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def advance(self, count: int) -> None:
        self._done_bytes += count

    def _draw(self, stream: TextIO) -> None:
        if self._ended.wait(_SECONDS_BEFORE_BAR):
            return
        while not self._ended.is_set():
            stream.write(f"\r{self.line(time.monotonic() - self._started)}\x1b[K")
            stream.flush()
            self._ended.wait(_SECONDS_BETWEEN_BARS)
        stream.write("\r\x1b[K")
        stream.flush()

    def line(self, seconds: float) -> str:
        """What it shows `seconds` after its start."""
        done, total = self._done_bytes, self._total_bytes
        speed = max(1.0, done / max(seconds, 1e-3))
        if not done:
            return f"{self._what} … {seconds:.0f} s"
        if not total:
            return f"{self._what} {megabytes(done)}  {megabytes(int(speed))}/s"
        filled = min(_BAR_CELLS, _BAR_CELLS * done // total)
        bar = "#" * filled + "-" * (_BAR_CELLS - filled)
        left = max(0, total - done) / speed
        return (
            f"{self._what} [{bar}] {min(100, 100 * done // total):3d} %  {megabytes(int(speed))}/s  {left:.0f} s left"
        )
