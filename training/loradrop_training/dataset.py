"""The examples in files, and what is wrong with them: every finding with its file and line, before anything is trained."""

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chats import Chat, Find, is_preference, preference_advice, read_chat
from .findings import Code, Finding, Place
from .recipe import Data
from .records import data_files, read_records

# Fewer of the rarest label than one in so many of the commonest: a model that never names it is rarely wrong.
MAX_IMBALANCE = 10
# UTF-8 that was read as Latin-1 or Windows-1252 and saved again: "Ã©", "â€™"; or characters that were lost before.
MOJIBAKE = re.compile(r"[ÂÃ][\u0080-\u00bf]|â€[\u0080-\u2122]|\ufffd")
# Keys that their makers mark as such, private keys, and runs of digits that may be a card's.
SECRET = re.compile(
    r"\b(?:sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|ghp_\w{36}|xox[bp]-[\w-]{20,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
HELD_OUT_NAME = re.compile(r"(^|[^a-z])(test|valid|validation|val|dev|eval|held.?out)([^a-z]|$)")
TRAIN_NAME = re.compile(r"(^|[^a-z])train(ing)?([^a-z]|$)")


@dataclass(frozen=True, slots=True)
class Row:
    """One example as text: the filled prompt, and the answer. Of a chat, `prompt` is all before its last answer, as text.

    `previous` is what the model that is to be replaced answered, where the file records it. `is_held_out` is what its own
    column says, where the recipe names one.
    """

    prompt: str
    answer: str
    place: Place
    chat: Chat | None = None
    previous: str | None = None
    is_held_out: bool = False


@dataclass(frozen=True, slots=True)
class Dataset:
    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    findings: tuple[Finding, ...]
    format: str


class DataError(Exception):
    """Data that must not be trained on."""


def read_dataset(data: Data, special_tokens: Sequence[str] = ()) -> Dataset:
    """The rows of the recipe's files with every finding; nothing is raised for what the data holds.

    Raises DataError where the recipe's settings do not fit the data, RecipeError where files cannot be had.
    """
    findings: list[Finding] = []
    if data.split is not None and data.held_out:
        raise DataError("data.split and data.held_out both say what is held out. Keep one of them.")
    train_files, held_out_files = _files(data)
    form = data.format if data.format != "auto" else "columns" if data.prompt is not None else _format_in(train_files)
    reader = _RowReader(data, form, tuple(one for one in special_tokens if one), findings)
    train = [row for file in train_files for row in reader.rows(file)]
    held_out = [row for file in held_out_files for row in reader.rows(file)]
    if data.split is not None:
        rows = [*train, *held_out]
        train, held_out = [one for one in rows if not one.is_held_out], [one for one in rows if one.is_held_out]
    elif not held_out_files:
        train, held_out = _split(train, data.held_out_share)
    for name, rows in (("data.train", train), ("the held-out data", held_out)):
        if not rows:
            findings.append(Finding(Code.NO_EXAMPLES, None, f"{name} gave no example"))
        findings.extend(_repeats(rows))
    findings.extend(_leaks(train, held_out))
    if data.labels is not None and train:
        findings.extend(_imbalance(train, data.labels))
    return Dataset(tuple(train), tuple(held_out), tuple(findings), form)


def is_held_out(split: object) -> bool | None:
    """Whether rows of a split that is named so are never trained on; None if it is no name of a split."""
    name = str(split).strip().lower()
    return True if HELD_OUT_NAME.search(name) else False if TRAIN_NAME.search(name) else None


def _files(data: Data) -> tuple[list[Path], list[Path]]:
    """Of training and held-out data. In a folder, files that are named test, validation or the like are held out."""
    train = [(file, Path(name) != file) for name in data.train for file in data_files(name)]
    held_out = [file for name in data.held_out for file in data_files(name)]
    if held_out:
        return [file for file, _ in train if file not in held_out], held_out
    held_out = [file for file, in_folder in train if in_folder and HELD_OUT_NAME.search(file.stem.lower())]
    if len(held_out) == len(train):  # whatever it is called, it is all there is
        held_out = []
    return [file for file, _ in train if file not in held_out], held_out


def _format_in(files: Sequence[Path]) -> str:
    """By the first record that there is."""
    for file in files:
        for _, record in read_records(file, []):
            return format_of(record)
    return "chat"


def format_of(record: dict[str, Any]) -> str:
    """The format that a record's columns mean; "columns" where only a recipe's `prompt` and `answer` can say it."""
    if "messages" in record or is_preference(record):
        return "chat"
    if "conversations" in record or "conversation" in record:
        return "conversations"
    if "prompt" in record and "completion" in record:
        return "prompt_completion"
    if "instruction" in record and ("output" in record or "response" in record):
        return "instruction"
    return "columns"


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
    def __init__(self, data: Data, form: str, special_tokens: tuple[str, ...], findings: list[Finding]) -> None:
        self._data = data
        self._format = form
        self._template, self._answer = _columns(data, form)
        # One pattern: Llama-3.1 has 256 of them.
        self._special = re.compile("|".join(map(re.escape, special_tokens)) or "(?!)")
        self._findings = findings

    def rows(self, file: Path) -> Iterator[Row]:
        for line, record in read_records(file, self._findings):
            row = self._row(record, Place(file.name, line))
            if row is not None:
                yield row

    def _row(self, record: dict[str, Any], place: Place) -> Row | None:
        before = len(self._findings)

        def find(code: Code, detail: str) -> None:
            self._findings.append(Finding(code, place, detail))

        if is_preference(record):
            find(Code.PREFERENCE_PAIR, preference_advice(record))
            return None
        previous = record.get(self._data.previous) if self._data.previous else None
        if self._data.previous and not isinstance(previous, str):
            find(Code.MISSING_COLUMN, f"column {self._data.previous!r}, which data.previous names")
        of_split = is_held_out(record.get(self._data.split)) if self._data.split else False
        if of_split is None:
            found = json.dumps(record.get(self._data.split or ""))[:60]
            find(Code.UNKNOWN_SPLIT, f"column {self._data.split!r}, which data.split names, holds {found}")
        if self._template is None or isinstance(record.get("prompt"), list):
            row = self._chat(record, place, find)
        else:
            row = self._texts(record, place, find)
        # A row that lacks a text has a fatal finding, and is not used.
        if row is None or any(one.is_fatal for one in self._findings[before:]):
            return None
        return Row(row.prompt, row.answer, place, row.chat, previous, bool(of_split))

    def _chat(self, record: dict[str, Any], place: Place, find: Find) -> Row | None:
        if isinstance(record.get("prompt"), list):  # trl's conversational prompt and completion
            context = [
                one | {"weight": 0} if isinstance(one, dict) and one.get("role") == "assistant" else one
                for one in record["prompt"]
            ]
            completion = record.get("completion")
            if isinstance(completion, str):
                completion = [{"role": "assistant", "content": completion}]
            record = {**record, "messages": [*context, *(completion if isinstance(completion, list) else [])]}
        chat = read_chat(record, find, loss=self._data.loss, system=self._data.system)
        if chat is None:
            return None
        for where, text in chat.texts():
            self._check_text(text, where, find)
        *context, last = chat.messages
        prompt = "\n\n".join(f"{one['role']}: {one['content']}{_calls(one)}" for one in context)
        return Row(prompt, (last["content"] + _calls(last)).strip(), place, chat)

    def _texts(self, record: dict[str, Any], place: Place, find: Find) -> Row:
        assert self._template is not None
        if self._format == "instruction":
            record = {"input": "", **record}
            record["input"] = f"\n\n{record['input']}" if record["input"] else "\n"
            record["output"] = record.get("output", record.get("response"))
        texts: dict[str, str] = {}
        for column in dict.fromkeys((*self._template.columns, self._answer)):
            value = record.get(column)
            # NaN, which is not itself, is how pandas writes a text that is missing.
            if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
                value = str(value)
            if not isinstance(value, str):
                found = "there is none" if column not in record else f"it holds {json.dumps(value)[:60]}"
                there = ", ".join(name[:40] for name in sorted(record)[:8])
                find(Code.MISSING_COLUMN, f"column {column!r}: {found}; the line has {there or 'no column'}")
            elif not value.strip() and not (self._format == "instruction" and column == "input"):
                find(Code.EMPTY_TEXT, f"column {column!r}")
            else:
                texts[column] = value
                self._check_text(value, f"column {column!r}", find)
        answer = texts.get(self._answer, "").strip()
        if self._data.labels is not None and answer and answer not in self._data.labels:
            labels = [repr(label) for label in self._data.labels[:8]]
            more = ", …" if len(self._data.labels) > 8 else ""
            find(Code.UNKNOWN_LABEL, f"{answer[:60]!r}; the labels are {', '.join(labels)}{more}")
        if not set(self._template.columns) <= texts.keys():
            return Row("", answer, place)
        prompt = self._template.fill(texts)
        return Row(prompt.rstrip() if self._format == "instruction" else prompt, answer, place)

    def _check_text(self, text: str, where: str, find: Find) -> None:
        for token in dict.fromkeys(self._special.findall(text)):
            find(Code.SPECIAL_TOKEN, f"{token} in {where}")
        if found := MOJIBAKE.search(text):
            around = text[max(0, found.start() - 10) : found.end() + 10]
            find(Code.SUSPECT_ENCODING, f"{where}: {around!r}")
        if SECRET.search(text):
            find(Code.PERSONAL_DATA, f"{where} looks like it holds a key")
        elif any(_is_card(one[0]) for one in CARD.finditer(text)):
            find(Code.PERSONAL_DATA, f"{where} looks like it holds a card number")


def _columns(data: Data, form: str) -> tuple["Template | None", str]:
    """The prompt's template and the answer's column; of chats, which have neither, None."""
    if form in ("chat", "conversations"):
        return None, ""
    if form == "prompt_completion":
        return Template(data.prompt or "{prompt}"), data.answer or "completion"
    if form == "instruction":
        return Template("{instruction}{input}"), "output"
    if data.prompt is None or data.answer is None:
        raise DataError(
            "Which columns are prompt and answer? Set data.prompt, such as '{question}', and data.answer, such as answer."
        )
    template = Template(data.prompt)
    if data.answer in template.columns:
        raise DataError(f"data.prompt gives the answer away: {{{data.answer}}} is the column that data.answer names.")
    if form == "labels" and data.labels is None:
        raise DataError("data.format is labels; set data.labels to the answers that there are.")
    return template, data.answer


def _calls(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls")
    return f"\n{json.dumps([one['function'] for one in calls], ensure_ascii=False)}" if calls else ""


def _is_card(digits: str) -> bool:
    """By Luhn's check digit, which one number in ten has by chance, and by the first digit of the card networks."""
    numbers = [int(one) for one in digits if one.isdigit()]
    doubled = [sum(divmod(2 * one, 10)) if place % 2 else one for place, one in enumerate(reversed(numbers))]
    return numbers[0] in (3, 4, 5, 6) and sum(doubled) % 10 == 0


def _same(text: str) -> str:
    """Texts that people would call the same: in any case, however spaced or punctuated."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(words) or text


def _split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """By a hash of the text: copies fall on one side, and more data moves nothing that was there."""

    def is_chosen(row: Row) -> bool:
        return int.from_bytes(hashlib.sha256(_same(row.prompt).encode()).digest()[:8], "big") < share * 2**64

    return [row for row in rows if not is_chosen(row)], [row for row in rows if is_chosen(row)]


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
    trained_on = {_same(row.prompt): row for row in reversed(list(train))}
    for row in held_out:
        if (same := trained_on.get(_same(row.prompt))) is not None:
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
