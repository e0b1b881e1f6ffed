"""Labelled text: what is read from files, and every finding with its line."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradrop_training.data_recipe import write_recipe
from loradrop_training.dataset import DataError, Dataset, Template, read_dataset
from loradrop_training.findings import Code, finding_lines
from loradrop_training.recipe import Data, read_recipe

LABELS = ("no", "yes")
SPECIAL = ("<|eot_id|>", "<|begin_of_text|>")


def jsonl(*records: Any) -> bytes:
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def rows(*pairs: tuple[str, str]) -> bytes:
    return jsonl(*({"text": text, "label": label} for text, label in pairs))


HELD_OUT = rows(("held one", "yes"), ("held two", "no"))
TRAIN = rows(("a cat", "yes"), ("a dog", "no"))


def read(folder: Path, train: bytes = TRAIN, held_out: bytes = HELD_OUT, *, suffix: str = ".jsonl", **options: Any) -> Dataset:  # fmt: skip
    (folder / f"train{suffix}").write_bytes(train)
    (folder / "held.jsonl").write_bytes(held_out)
    settings = {"prompt": "{text}", "answer": "label", "labels": LABELS, "held_out": (str(folder / "held.jsonl"),)}
    return read_dataset(Data(train=(str(folder / f"train{suffix}"),), **settings | options), SPECIAL)


def found(dataset: Dataset) -> list[tuple[Code, str]]:
    return [(one.code, str(one.place)) for one in dataset.findings]


def test_good_data_has_no_findings(tmp_path: Path) -> None:
    dataset = read(tmp_path, prompt="Is it? {text} {{really}}")
    assert dataset.findings == ()
    assert [(row.prompt, row.answer, str(row.place)) for row in dataset.train] == [
        ("Is it? a cat {really}", "yes", "train.jsonl:1"),
        ("Is it? a dog {really}", "no", "train.jsonl:2"),
    ]
    assert len(dataset.held_out) == 2


@pytest.mark.parametrize(
    ("train", "code", "line"),
    [
        (TRAIN + b"{\n", Code.NOT_A_RECORD, 3),
        (TRAIN + b"[1]\n", Code.NOT_A_RECORD, 3),
        (TRAIN + b"[" * 100_000, Code.NOT_A_RECORD, 3),
        (TRAIN + b'{"text": "\\ud800", "label": "yes"}\n', Code.NOT_A_RECORD, 3),
        (TRAIN + '{"text": "café", "label": "yes"}\n'.encode("latin-1"), Code.NOT_UTF8, 3),
        (TRAIN.decode().encode("utf-16"), Code.NOT_UTF8, 1),
        (TRAIN + jsonl({"text": "c"}), Code.MISSING_COLUMN, 3),
        (TRAIN + jsonl({"text": None, "label": "yes"}), Code.MISSING_COLUMN, 3),
        (TRAIN + jsonl({"text": {"a": 1}, "label": "yes"}), Code.MISSING_COLUMN, 3),
        (TRAIN + jsonl({"text": float("nan"), "label": "yes"}), Code.MISSING_COLUMN, 3),
        (TRAIN + rows((" \t", "yes")), Code.EMPTY_TEXT, 3),
        (TRAIN + rows(("c", "")), Code.EMPTY_TEXT, 3),
        (TRAIN + rows(("c", "maybe")), Code.UNKNOWN_LABEL, 3),
        (TRAIN + rows(("c", "Yes")), Code.UNKNOWN_LABEL, 3),
        (TRAIN + rows(("c <|eot_id|> d", "yes")), Code.SPECIAL_TOKEN, 3),
    ],
)
def test_what_must_not_be_trained_on_is_fatal_and_has_its_line(
    tmp_path: Path, train: bytes, code: Code, line: int
) -> None:
    dataset = read(tmp_path, train)
    assert (code, f"train.jsonl:{line}") in found(dataset)
    assert all(one.is_fatal for one in dataset.findings)


@pytest.mark.parametrize(
    ("train", "code", "place"),
    [
        (TRAIN + rows(("A  Cat!", "yes")), Code.DUPLICATE, "train.jsonl:3"),
        (TRAIN + rows(("a cat", "no")), Code.CONTRADICTION, "train.jsonl:3"),
        (TRAIN + rows(("caf\u00c3\u00a9", "yes")), Code.SUSPECT_ENCODING, "train.jsonl:3"),
        (TRAIN + rows(("lost \ufffd", "yes")), Code.SUSPECT_ENCODING, "train.jsonl:3"),
        (rows(*((f"c{number}", "no") for number in range(30)), ("d", "yes")), Code.IMBALANCE, "None"),
    ],
)
def test_what_is_only_suspect_is_a_warning(tmp_path: Path, train: bytes, code: Code, place: str) -> None:
    dataset = read(tmp_path, train)
    assert found(dataset) == [(code, place)]
    assert not any(one.is_fatal for one in dataset.findings)


def test_a_held_out_text_that_is_also_trained_on_is_fatal(tmp_path: Path) -> None:
    dataset = read(tmp_path, held_out=HELD_OUT + rows(("A cat.", "yes")))
    (leak,) = dataset.findings
    assert (leak.code, str(leak.place), leak.detail, leak.is_fatal) == (Code.LEAKAGE, "held.jsonl:3", "as train.jsonl:1", True)  # fmt: skip


def test_a_label_that_no_example_has_is_fatal(tmp_path: Path) -> None:
    assert [one.code for one in read(tmp_path, labels=(*LABELS, "maybe")).findings] == [Code.LABEL_WITHOUT_EXAMPLE]


def test_nothing_to_train_on_is_fatal(tmp_path: Path) -> None:
    assert Code.NO_EXAMPLES in {one.code for one in read(tmp_path, b"\n\n").findings}


def test_a_file_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    data = Data(train=(str(tmp_path / "none.jsonl"), str(tmp_path / "a.xlsx")), prompt="{text}", answer="label")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    texts = [one.detail for one in read_dataset(data).findings if one.code is Code.UNREADABLE_FILE]
    assert "No such file" in texts[0]
    assert "ends in none of .jsonl" in texts[1]


def test_csv_is_read_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """With a byte order mark, quoted delimiters, quotes and line ends in a cell; lines are counted in the file."""
    text = '\ufefftext,label\r\n"a, ""cat""\r\nsat",yes\r\na dog,no\r\n'
    dataset = read(tmp_path, text.encode(), suffix=".csv")
    assert [(row.prompt, row.answer, row.place.line) for row in dataset.train] == [
        ('a, "cat"\r\nsat', "yes", 2),
        ("a dog", "no", 4),
    ]
    assert dataset.findings == ()


@pytest.mark.parametrize(
    ("line", "what"), [("a, cat,yes", "3 cells under 2 columns"), ("only", "1 cells under"), ('"open,yes', "not CSV")]
)
def test_a_csv_line_that_does_not_fit_is_reported(tmp_path: Path, line: str, what: str) -> None:
    dataset = read(tmp_path, f"text,label\na dog,no\n{line}\n".encode(), suffix=".csv")
    finding = next(one for one in dataset.findings if one.code is Code.NOT_A_RECORD)
    assert (str(finding.place), what in finding.detail) == ("train.csv:3", True)


def test_two_columns_of_one_name_are_reported(tmp_path: Path) -> None:
    dataset = read(tmp_path, b"text,text,label\na,b,yes\nc,d,no\n", suffix=".csv")
    assert (Code.NOT_A_RECORD, "train.csv:1") in found(dataset)


def test_a_prompt_that_gives_the_answer_away_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gives the answer away: \{label\}"):
        read(tmp_path, prompt="{text}? {label}")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A pipe, or a device, may have no end."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    data = Data(train=(str(tmp_path / "pipe.jsonl"),), prompt="{text}", answer="label")
    assert "is no file" in read_dataset(data).findings[0].detail


def test_no_text_of_the_data_steers_a_terminal(tmp_path: Path) -> None:
    dataset = read(tmp_path, TRAIN + jsonl({"\x1b[2Jte\nxt": "a", "label": "yes"}))
    lines = finding_lines(dataset.findings)
    assert all(line.isprintable() for line in lines)
    assert any("\\u001b[2Jte\\nxt" in line for line in lines)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(texts, st.sampled_from(LABELS)), min_size=1, max_size=5))
def test_csv_and_jsonl_give_the_same_rows(tmp_path_factory: pytest.TempPathFactory, pairs: Sequence[tuple[str, str]]) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("data")
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["text", "label"])
    writer.writerows(pairs)
    from_csv = read(folder, lines.getvalue().encode(), suffix=".csv")
    from_json = read(folder, rows(*pairs))
    assert [(row.prompt, row.answer) for row in from_csv.train] == [(row.prompt, row.answer) for row in from_json.train]


@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".csv", ".tsv"]))
def test_any_bytes_give_findings_and_no_exception(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
) -> None:
    dataset = read(tmp_path_factory.mktemp("data"), data, suffix=suffix)
    assert any(one.is_fatal for one in dataset.findings)
    assert finding_lines(dataset.findings)


def test_the_split_keeps_copies_together_and_does_not_move_when_data_is_added(tmp_path: Path) -> None:
    def split(count: int) -> Dataset:
        pairs = [(f"text number {number}", LABELS[number % 2]) for number in range(count)]
        file = tmp_path / "all.jsonl"
        file.write_bytes(rows(*pairs, *((text.upper(), label) for text, label in pairs)))
        return read_dataset(Data(train=(str(file),), prompt="{text}", answer="label", held_out_share=0.2))

    small, large = split(200), split(400)
    assert {row.prompt for row in small.held_out} <= {row.prompt for row in large.held_out}
    assert not {row.prompt.casefold() for row in large.train} & {row.prompt.casefold() for row in large.held_out}
    assert 0.1 < len(large.held_out) / 800 < 0.3


@pytest.mark.parametrize(
    "prompt", ["{text.__class__}", "{text[0]}", "{}", "{text!r}", "{text:>9}", "no column", "{text"]
)
def test_a_prompt_with_anything_but_plain_columns_is_refused(prompt: str) -> None:
    with pytest.raises(DataError, match=r"data\.prompt"):
        Template(prompt)


def test_a_text_is_never_read_as_a_template() -> None:
    assert Template("<{text}>").fill({"text": "{label} {{", "label": "secret"}) == "<{label} {{>"


def test_many_findings_make_a_short_list(tmp_path: Path) -> None:
    dataset = read(tmp_path, TRAIN + b"{\n" * 1000)
    lines = finding_lines(dataset.findings)
    assert lines[0] == "error NOT_A_RECORD: the line is not a record (1,000)"
    assert len(lines) == 7
    assert lines[-1].strip() == "… and 995 more"


# Splits by a column


SPLIT_ROWS = [
    {"text": "A dog.", "label": "yes", "split": "train"},
    {"text": "A cat.", "label": "no", "split": " Training "},
    {"text": "A cow.", "label": "yes", "split": "test"},
    {"text": "A pig.", "label": "no", "split": "validation"},
]


def read_split(folder: Path, records: list[dict[str, Any]], **options: Any) -> Dataset:
    file = folder / "all.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return read_dataset(Data(train=(str(file),), prompt="{text}", answer="label", split="split", **options))


def test_a_column_says_what_is_held_out(tmp_path: Path) -> None:
    dataset = read_split(tmp_path, SPLIT_ROWS)
    assert [row.prompt for row in dataset.train] == ["A dog.", "A cat."]
    assert [row.prompt for row in dataset.held_out] == ["A cow.", "A pig."]
    assert not dataset.findings


def test_a_row_of_no_split_is_found_and_the_others_are_read(tmp_path: Path) -> None:
    odd = [{"text": "A fox.", "label": "no", "split": "north"}, {"text": "A hen.", "label": "no"}]
    dataset = read_split(tmp_path, [*odd, *SPLIT_ROWS])
    assert [(one.code, one.place.line if one.place else 0) for one in dataset.findings] == [
        (Code.UNKNOWN_SPLIT, 1),
        (Code.UNKNOWN_SPLIT, 2),
    ]
    assert '"north"' in dataset.findings[0].detail
    assert len(dataset.train) == len(dataset.held_out) == 2


def test_a_text_of_both_splits_leaks_and_two_ways_to_hold_out_are_refused(tmp_path: Path) -> None:
    dataset = read_split(tmp_path, [*SPLIT_ROWS, SPLIT_ROWS[0] | {"split": "dev"}])
    assert [one.code for one in dataset.findings] == [Code.LEAKAGE]
    with pytest.raises(DataError, match="Keep one of them"):
        read_split(tmp_path, SPLIT_ROWS, held_out=("held.jsonl",))


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("split", ("train", "test"), "split"),
        ("Subset", ("training", "validation"), "Subset"),
        ("split", ("train", "train"), None),  # nothing is held out by it
        ("split", ("train", "north"), None),
        ("origin", ("train", "test"), None),
    ],
)
def test_the_recipe_for_a_file_takes_its_split_column(
    tmp_path: Path, column: str, values: tuple[str, str], expected: str | None
) -> None:
    file = tmp_path / "all.jsonl"
    file.write_bytes(jsonl(*({"prompt": "p", "completion": "c", column: values[n % 2]} for n in range(4))))
    write_recipe(str(file), tmp_path / "recipe.yaml", base="tiny", profile=None, name=None, force=False)
    data = read_recipe(tmp_path / "recipe.yaml").data
    assert data.split == expected
