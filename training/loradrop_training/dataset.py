"""Labelled text from files, and what is wrong with it: every finding with its file and line, before anything is trained."""

import codecs
import csv
import hashlib
import io
import json
import re
import stat
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from .recipe import Data

MAX_FILE_BYTES = 4 << 30
# Fewer of the rarest label than one in so many of the commonest: a model that never names it is rarely wrong.
MAX_IMBALANCE = 10
# UTF-8 that was read as Latin-1 or Windows-1252 and saved again: "Ã©", "â€™"; or characters that were lost before.
MOJIBAKE = re.compile(r"[ÂÃ][\u0080-\u00bf]|â€[\u0080-\u2122]|\ufffd")
SHOWN_PLACES = 5


class Code(StrEnum):
    """What can be wrong with labelled text. Each is fatal unless `WARNINGS` holds it."""

    UNREADABLE_FILE = "the file cannot be read"
    NOT_UTF8 = "the line is not UTF-8"
    NOT_A_RECORD = "the line is no record"
    MISSING_COLUMN = "a column is missing, or holds no text"
    EMPTY_TEXT = "a text is empty"
    UNKNOWN_LABEL = "the label is none of the recipe's"
    SPECIAL_TOKEN = "the text holds one of the model's special tokens, which would end or begin a turn"
    TOO_LONG = "the example has more tokens than the recipe's data.max_tokens"
    CONTRADICTION = "the same text has different answers"
    LEAKAGE = "a held-out text is also in the training data: the evaluation would measure memory"
    NO_EXAMPLES = "there is nothing to learn or to ask"
    DUPLICATE = "the same text with the same answer again"
    IMBALANCE = "one label is far rarer than another"
    LABEL_WITHOUT_EXAMPLE = "a label of the recipe has no example"
    SUSPECT_ENCODING = "the text looks like UTF-8 that was once read as something else"
    DROPPED_LONG = "the example has more tokens than data.max_tokens and is left out"


WARNINGS = frozenset({Code.DUPLICATE, Code.CONTRADICTION, Code.IMBALANCE, Code.SUSPECT_ENCODING, Code.DROPPED_LONG})


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, both as people name them: from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Finding:
    code: Code
    place: Place | None
    detail: str

    @property
    def is_fatal(self) -> bool:
        return self.code not in WARNINGS


@dataclass(frozen=True, slots=True)
class Row:
    """One example as text: the filled prompt, and the answer."""

    prompt: str
    answer: str
    place: Place


@dataclass(frozen=True, slots=True)
class Dataset:
    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    findings: tuple[Finding, ...]


class DataError(Exception):
    """Data that must not be trained on. The message lists every finding."""


def read_dataset(data: Data, special_tokens: Sequence[str] = ()) -> Dataset:
    """The rows of the recipe's files with every finding; nothing is raised for what the data holds.

    Raises DataError where the prompt template itself is wrong.
    """
    template = Template(data.prompt)
    if data.answer in template.columns:
        raise DataError(f"data.prompt gives the answer away: {{{data.answer}}} is the column that data.answer names.")
    findings: list[Finding] = []
    reader = _RowReader(data, template, tuple(one for one in special_tokens if one), findings)
    train = [row for file in data.train for row in reader.rows(Path(file))]
    held_out = [row for file in data.held_out for row in reader.rows(Path(file))]
    if not data.held_out:
        train, held_out = _split(train, data.held_out_share)
    for name, rows in (("data.train", train), ("the held-out data", held_out)):
        if not rows:
            findings.append(Finding(Code.NO_EXAMPLES, None, f"{name} gave no example"))
        findings.extend(_repeats(rows))
    findings.extend(_leaks(train, held_out))
    if data.labels is not None and train:
        findings.extend(_imbalance(train, data.labels))
    return Dataset(tuple(train), tuple(held_out), tuple(findings))


class Template:
    """A prompt with `{column}` in it; `{{` and `}}` are braces."""

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise DataError(f"data.prompt: {error}; write {{{{ for a brace and {{column}} for a column.") from error
        self.columns = tuple(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
        odd = [
            name
            for _, name, spec, conversion in parts
            if name is not None and (spec or conversion or not name or set(name) & set(".[]"))
        ]
        if odd or not self.columns:
            found = ", ".join(f"{{{name}}}" for name in odd) or "none"
            raise DataError(f"data.prompt needs plain columns in braces, like {{text}}; found {found}.")

    def fill(self, record: dict[str, str]) -> str:
        # A column's text is never read as a template itself.
        parts = string.Formatter().parse(self._text)
        return "".join(literal + (record[name] if name is not None else "") for literal, name, _, _ in parts)


class _RowReader:
    def __init__(
        self, data: Data, template: Template, special_tokens: tuple[str, ...], findings: list[Finding]
    ) -> None:
        self._data = data
        self._template = template
        # One pattern: Llama-3.1 has 256 of them.
        self._special = re.compile("|".join(map(re.escape, special_tokens)) or "(?!)")
        self._findings = findings

    def rows(self, file: Path) -> Iterator[Row]:
        for line, record in _records(file, self._findings):
            place = Place(file.name, line)
            row = self._row(record, place)
            if row is not None:
                yield row

    def _row(self, record: dict[str, Any], place: Place) -> Row | None:
        before = len(self._findings)
        texts: dict[str, str] = {}
        for column in dict.fromkeys((*self._template.columns, self._data.answer)):
            value = record.get(column)
            # NaN, which is not itself, is how pandas writes a text that is missing.
            if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
                value = str(value)
            if not isinstance(value, str):
                found = "there is none" if column not in record else f"it holds {json.dumps(value)[:60]}"
                there = ", ".join(name[:40] for name in sorted(record)[:8])
                self._find(
                    Code.MISSING_COLUMN, place, f"column {column!r}: {found}; the line has {there or 'no column'}"
                )
            elif not value.strip():
                self._find(Code.EMPTY_TEXT, place, f"column {column!r}")
            else:
                texts[column] = value
                self._look_at(value, column, place)
        answer = texts.get(self._data.answer, "").strip()
        if self._data.labels is not None and answer and answer not in self._data.labels:
            labels = [repr(label) for label in self._data.labels[:8]]
            more = ", …" if len(self._data.labels) > 8 else ""
            self._find(Code.UNKNOWN_LABEL, place, f"{answer[:60]!r}; the labels are {', '.join(labels)}{more}")
        if any(one.is_fatal for one in self._findings[before:]):
            return None
        return Row(self._template.fill(texts), answer, place)

    def _look_at(self, text: str, column: str, place: Place) -> None:
        for token in dict.fromkeys(self._special.findall(text)):
            self._find(Code.SPECIAL_TOKEN, place, f"{token} in column {column!r}")
        if found := MOJIBAKE.search(text):
            around = text[max(0, found.start() - 10) : found.end() + 10]
            self._find(Code.SUSPECT_ENCODING, place, f"column {column!r}: {around!r}")

    def _find(self, code: Code, place: Place, detail: str) -> None:
        self._findings.append(Finding(code, place, detail))


def _records(file: Path, findings: list[Finding]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each record with the number of the line where it begins."""
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv_lines, ".tsv": _csv_lines}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        findings.append(Finding(Code.UNREADABLE_FILE, None, f"{file}: its name ends in none of {', '.join(readers)}"))
        return
    try:
        status = file.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):  # a device or a pipe may have no end
            findings.append(Finding(Code.UNREADABLE_FILE, None, f"{file} is no file"))
            return
        if size > MAX_FILE_BYTES:
            findings.append(
                Finding(Code.UNREADABLE_FILE, None, f"{file} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
            )
            return
        raw = file.read_bytes()
    except OSError as error:
        findings.append(Finding(Code.UNREADABLE_FILE, None, f"{file}: {error.strerror}"))
        return
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        findings.append(Finding(Code.NOT_UTF8, Place(file.name, 1), "UTF-16; save it as UTF-8"))
        return
    # A BOM is what spreadsheets write first; it is no part of the text.
    yield from reader(file, raw.removeprefix(codecs.BOM_UTF8), findings)


def _decoded(line: bytes, place: Place, findings: list[Finding]) -> str | None:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        findings.append(
            Finding(Code.NOT_UTF8, place, f"byte {line[error.start]:#04x} at {error.start}; save the file as UTF-8")
        )
        return None


def _json_lines(file: Path, raw: bytes, findings: list[Finding]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(raw.split(b"\n"), start=1):
        place = Place(file.name, number)
        text = _decoded(line, place, findings)
        if text is None or not text.strip():
            continue
        try:
            record = json.loads(text)
            json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            what = "half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else f"not JSON: {error}"
            findings.append(Finding(Code.NOT_A_RECORD, place, what))
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            findings.append(Finding(Code.NOT_A_RECORD, place, f"a JSON {type(record).__name__}; an object is needed"))


def _csv_lines(file: Path, raw: bytes, findings: list[Finding]) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = [
        _decoded(line, Place(file.name, number), findings) for number, line in enumerate(raw.split(b"\n"), start=1)
    ]
    if None in lines:  # a record may span lines: which of them fall out with a bad one cannot be told
        return
    reader = csv.reader(
        io.StringIO("\n".join(line for line in lines if line is not None), newline=""),
        delimiter="\t" if file.suffix.lower() == ".tsv" else ",",
        strict=True,
    )
    csv.field_size_limit(1 << 24)
    header: list[str] = []
    begins = 1
    try:
        for cells in reader:
            if not header:
                header = [cell.strip() for cell in cells]
                if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                    what = f"the column {twice[0]!r} is there twice"
                    findings.append(Finding(Code.NOT_A_RECORD, Place(file.name, begins), what))
                    return
            elif cells:
                if len(cells) != len(header):
                    findings.append(
                        Finding(
                            Code.NOT_A_RECORD,
                            Place(file.name, begins),
                            f"{len(cells)} cells under {len(header)} columns; is a text with the delimiter in quotes?",
                        )
                    )
                else:
                    yield begins, dict(zip(header, cells, strict=True))
            begins = reader.line_num + 1
    except csv.Error as error:
        findings.append(Finding(Code.NOT_A_RECORD, Place(file.name, begins), f"not CSV: {error}"))


def _same(text: str) -> str:
    """Texts that people would call the same: in any case, however spaced or punctuated."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(words) or text


def _split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """By a hash of the text: copies fall on one side, and more data moves nothing that was there."""

    def is_held_out(row: Row) -> bool:
        return int.from_bytes(hashlib.sha256(_same(row.prompt).encode()).digest()[:8], "big") < share * 2**64

    return [row for row in rows if not is_held_out(row)], [row for row in rows if is_held_out(row)]


def _repeats(rows: Iterable[Row]) -> Iterator[Finding]:
    first: dict[str, Row] = {}
    for row in rows:
        earlier = first.setdefault(_same(row.prompt), row)
        if earlier is row:
            continue
        if earlier.answer == row.answer:
            yield Finding(Code.DUPLICATE, row.place, f"as {earlier.place}")
        else:
            yield Finding(
                Code.CONTRADICTION, row.place, f"{row.answer[:40]!r}; {earlier.place} says {earlier.answer[:40]!r}"
            )


def _leaks(train: Iterable[Row], held_out: Iterable[Row]) -> Iterator[Finding]:
    learnt = {_same(row.prompt): row for row in reversed(list(train))}
    for row in held_out:
        if (same := learnt.get(_same(row.prompt))) is not None:
            yield Finding(Code.LEAKAGE, row.place, f"as {same.place}")


def _imbalance(rows: Sequence[Row], labels: Sequence[str]) -> Iterator[Finding]:
    counts = Counter(row.answer for row in rows)
    common = max(labels, key=lambda one: counts[one])
    for label in labels:
        if not counts[label]:
            yield Finding(Code.LABEL_WITHOUT_EXAMPLE, None, f"{label!r}; take it out of data.labels, or add examples")
        elif counts[label] * MAX_IMBALANCE < counts[common]:
            yield Finding(
                Code.IMBALANCE, None, f"{counts[label]:,} of {label!r} against {counts[common]:,} of {common!r}"
            )


def printable(text: str) -> str:
    """One line in which no character of a stranger's steers a terminal."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """For a person: fatal ones first, a group for each code, its count, and the first few places."""
    groups: dict[Code, list[Finding]] = defaultdict(list)
    for one in findings:
        groups[one.code].append(one)
    lines = []
    for code in sorted(groups, key=lambda one: (one in WARNINGS, list(Code).index(one))):
        group = groups[code]
        kind = "warning" if code in WARNINGS else "error"
        lines.append(f"{kind} {code.name}: {code.value} ({len(group):,})")
        lines += [printable(f"    {one.place or 'data'}: {one.detail}") for one in group[:SHOWN_PLACES]]
        if len(group) > SHOWN_PLACES:
            lines.append(f"    … and {len(group) - SHOWN_PLACES:,} more")
    return lines
