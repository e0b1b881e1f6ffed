"""The report as a reader of GitHub sees it: what it says first, whole tables whatever the data holds, pictures of the data."""

import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.image import imread

from loradrop_training.evaluation import Answered, Evaluation, Question, score_answers
from loradrop_training.evaluation_report import confusion_picture, escaped, loss_picture, measures_picture, write_report

TEMPLATE = "<|begin_of_text|>Which one is it?\n\n{}<|eot_id|>assistant\n\n"
HOSTILE = "a|b `c` <img src=x onerror=y>\r\n| --- |\n\n# d *e* [f](g) $h$ \\| \u202eend &amp; ~~i~~"
HEADER = "step,epoch,loss,learning_rate,gradient_norm,tokens,seconds,tokens_per_second,peak_memory_bytes\n"


def labelled(
    rows: Sequence[tuple[str, str, str]], *, text: str = "text", labels: Sequence[str] = ("yes", "no")
) -> Evaluation:
    """From (truth, what the adapter says, what the base says)."""
    answered = [
        Answered(
            Question(TEMPLATE.format(f"{number} {text} {number}"), truth),
            adapter,
            base,
            tuple(-0.1 if label == adapter else -3.0 for label in labels),
            tuple(-0.1 if label == base else -3.0 for label in labels),
        )
        for number, (truth, adapter, base) in enumerate(rows)
    ]
    return score_answers(answered, labels=labels, max_new_tokens=6, seed=1)


GOOD = [("yes", "yes", "no"), ("no", "no", "yes"), ("no", "yes", "no")] * 20
EVEN = [("yes", "yes", "yes"), ("no", "yes", "no"), ("no", "no", "yes")] * 20


class Tables(HTMLParser):
    """The cells of every table of a page as text, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: set[str] = set()
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data


def read(markdown: str) -> Tables:
    return Tables(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


def report_of(folder: Path, evaluation: Evaluation, **settings: object) -> str:
    given: dict[str, object] = {"title": "A title", "facts": {}, "log_file": None}
    write_report(folder, evaluation, **(given | settings))  # type: ignore[arg-type]
    return (folder / "REPORT.md").read_text(encoding="utf-8")


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log.csv", [2 / step for step in range(1, 200)])


def write_log(file: Path, losses: Sequence[float], first_step: int = 1) -> Path:
    rows = (f"{step},0.1,{loss},1e-3,1.0,512,0.1,5120,1000\n" for step, loss in enumerate(losses, first_step))
    file.write_text(HEADER + "".join(rows))
    return file


def test_the_report_says_first_that_the_adapter_is_not_better(tmp_path: Path) -> None:
    first = report_of(tmp_path, labelled(EVEN)).split("\n\n")[1]
    assert first.startswith("**The adapter is not shown to be better than the base: accuracy by generation is 66.7%")
    worse = [("yes", "no", "yes"), ("no", "yes", "no")] * 20
    assert report_of(tmp_path, labelled(worse)).split("\n\n")[1].startswith("**The adapter is not better than the base")


def test_the_report_shows_both_with_intervals_by_label_and_in_confusion(tmp_path: Path, log_file: Path) -> None:
    evaluation = labelled(GOOD)
    facts = {"base": "tiny-llama", "transformers": "5.23"}
    text = report_of(tmp_path, evaluation, facts=facts, log_file=log_file)
    assert text.split("\n\n")[1].startswith("**The adapter is better than the base")
    figures, by_generation, _, adapter, base, mistakes, of_training = read(text).tables
    assert figures[0] == ["", "adapter", "base", "difference"]
    assert [row[0] for row in figures[1:]] == [one.name for one in evaluation.measures]
    assert re.fullmatch(r"66\.7% \(\d\d\.\d% to \d\d\.\d%\)", figures[1][1])
    assert re.fullmatch(r"\+33\.3 points \(\+\d+\.\d to \+\d+\.\d\)", figures[1][3])
    assert by_generation[1][:5] == ["yes", "20", "50.0%", "100.0%", "66.7%"]
    assert adapter[1:] == [["yes", "20", "0", "0"], ["no", "20", "20", "0"]]
    assert base[1:] == [["yes", "0", "20", "0"], ["no", "20", "20", "0"]]
    assert mistakes[1] == ["2 text 2", "no", "yes", "no"]  # the data's words, without the template around them
    assert len(mistakes) == 9
    assert of_training[1:] == [["base", "tiny-llama"], ["transformers", "5.23"]]
    for picture in re.findall(r"\]\((pictures/.*?)\)", text):
        assert (tmp_path / picture).is_file()
    assert len(list((tmp_path / "pictures").iterdir())) == 3
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored == json.loads(json.dumps(evaluation.to_dict()))
    assert (stored["verdict"], len(stored["answered"])) == ("better", 60)


def test_few_questions_are_said_to_be_few(tmp_path: Path) -> None:
    assert "Only 3 held-out questions: the intervals are wide" in report_of(tmp_path, labelled(GOOD[:3]))


def test_free_text_has_no_labels_to_confuse(tmp_path: Path) -> None:
    rows = [("the right answer", "the right answer", "well"), ("another", "the wrong one", "another")] * 20
    answered = [Answered(Question(f"q{n}", truth), mine, base) for n, (truth, mine, base) in enumerate(rows)]
    text = report_of(tmp_path, score_answers(answered, labels=None, max_new_tokens=9, seed=1))
    figures, mistakes = read(text).tables
    assert [row[0] for row in figures] == ["", "chrF", "exact match"]
    assert figures[2][1].startswith("50.0% (")
    assert mistakes[1][1:] == ["another", "the wrong one", "another"]
    assert "the base is right on 20 of these" in text
    assert "onfusion" not in text
    assert [one.name for one in (tmp_path / "pictures").iterdir()] == ["accuracy.png"]


def test_an_adapter_without_a_mistake_is_said_to_make_none(tmp_path: Path) -> None:
    assert "The adapter makes none on these 20" in report_of(tmp_path, labelled([("yes", "yes", "no")] * 20))


def test_hostile_text_breaks_no_table_and_is_shown_as_it_is(tmp_path: Path) -> None:
    labels = ("yes", HOSTILE)
    rows = [(HOSTILE, "yes", HOSTILE), ("yes", HOSTILE, "yes")] * 20
    text = report_of(tmp_path, labelled(rows, text=HOSTILE, labels=labels), title=HOSTILE, facts={HOSTILE: HOSTILE})
    page = read(text)
    plain = read(report_of(tmp_path, labelled([("no", "yes", "no"), ("yes", "no", "yes")] * 20), facts={"a": "b"}))
    assert [[len(row) for row in table] for table in page.tables] == [
        [len(row) for row in table] for table in plain.tables
    ]
    assert page.tags == plain.tags  # nothing of the text has become markup
    shown = " ".join(HOSTILE.replace("\u202e", " ").split())
    words = [[" ".join(cell.split()) for cell in row] for row in page.tables[-2]]
    assert {cell for row in words[1:] for cell in row[1:]} == {"yes", shown}
    assert all(shown in row[0] for row in words[1:])
    assert [" ".join(cell.split()) for cell in page.tables[-1][1]] == [shown, shown]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_one_cell_that_shows_it(text: str) -> None:
    (table,) = read(f"| a | b |\n| --- | --- |\n| {escaped(text)} | end |").tables
    printable = "".join(one if one.isprintable() else " " for one in text)
    assert [" ".join(cell.split()) for cell in table[1]] == [" ".join(printable.split()), "end"]


def test_the_long_text_of_a_mistake_is_cut(tmp_path: Path) -> None:
    text = report_of(tmp_path, labelled(EVEN, text="long" * 500))
    assert max(map(len, text.split("\n"))) < 1000
    (question, *_) = read(text).tables[-1][1]
    assert re.fullmatch(r"1 (long)+l?o?n?…", question)


def pixels(draw: Callable[[Path], None], to: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    draw(to)
    assert to.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = imread(to)  # (height, width, 4)
    height, width, _ = picture.shape
    assert 300 < height < 2500
    assert 900 < width < 5000
    assert 0.005 < (picture[..., :3].min(axis=-1) < 0.9).mean() < 0.9  # neither blank nor covered
    return picture


def test_each_picture_shows_its_data(tmp_path: Path) -> None:
    falling = write_log(tmp_path / "falling.csv", [2 / step for step in range(1, 200)])
    rising = write_log(tmp_path / "rising.csv", [step / 100 for step in range(1, 200)])
    drawings: list[tuple[Callable[[Path], None], Callable[[Path], None]]] = [
        (lambda to: loss_picture(falling, to), lambda to: loss_picture(rising, to)),
        (lambda to: measures_picture(labelled(GOOD), to), lambda to: measures_picture(labelled(EVEN), to)),
        (lambda to: confusion_picture(labelled(GOOD), to), lambda to: confusion_picture(labelled(EVEN), to)),
    ]
    for one, other in drawings:
        first, second = pixels(one, tmp_path / "a.png"), pixels(other, tmp_path / "b.png")
        assert first.shape != second.shape or (first != second).any()
        assert (first == pixels(one, tmp_path / "c.png")).all()


def test_the_loss_is_drawn_where_it_is(tmp_path: Path) -> None:
    """A loss that falls has its ink at the upper left and the lower right; the axes and the legend apart."""
    picture = pixels(
        lambda to: loss_picture(write_log(tmp_path / "log.csv", np.linspace(2, 0.1, 300)), to), tmp_path / "a.png"
    )  # type: ignore[arg-type]
    blue = (picture[..., 2] - picture[..., 0]) > 0.5  # the running mean
    height, width = blue.shape
    rows, columns = np.nonzero(blue)
    early, late = rows[columns < width * 0.3], rows[(columns > width * 0.8) & (rows > height * 0.3)]
    assert early.max() < height * 0.5 < late.min()


def test_a_resumed_log_counts_each_step_once_and_what_is_not_a_number_not_at_all(tmp_path: Path) -> None:
    whole = write_log(tmp_path / "whole.csv", [1.0, 0.9, 0.5, 0.4])
    resumed = tmp_path / "resumed.csv"
    rows = whole.read_text().removeprefix(HEADER).splitlines(keepends=True)
    resumed.write_text(HEADER + "".join([*rows[:2], "3,0.1,9.0,0,0,0,0,0,0\n", "5,0.1,nan,0,0,0,0,0,0\n", *rows[2:]]))
    one = pixels(lambda to: loss_picture(whole, to), tmp_path / "a.png")
    assert (one == pixels(lambda to: loss_picture(resumed, to), tmp_path / "b.png")).all()


def test_a_log_without_a_step_is_a_picture_that_says_so(tmp_path: Path) -> None:
    loss_picture(write_log(tmp_path / "log.csv", []), tmp_path / "a.png")
    assert imread(tmp_path / "a.png").shape[2] == 4


def test_many_labels_and_labels_that_look_like_formulas_are_drawn(tmp_path: Path) -> None:
    labels = [f"$x_{{{number}$ a long name of a label {number}" for number in range(30)]
    dice = np.random.default_rng(0)
    rows = [(label, str(dice.choice(labels)), label) for label in labels * 2]
    evaluation = labelled(rows, labels=labels)
    assert pixels(lambda to: confusion_picture(evaluation, to), tmp_path / "a.png").shape[1] > 2500
    assert len(read(report_of(tmp_path, evaluation)).tables) == 4  # no table of 30 columns
