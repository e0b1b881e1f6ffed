"""An evaluation as people read it: `REPORT.md` with its pictures, and `evaluation.json` with every answer."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .evaluation import (
    GENERATION,
    LOG_LIKELIHOOD,
    NATS,
    RESAMPLES,
    Answered,
    Estimate,
    Evaluation,
    LabelTable,
    Measure,
    chrf,
)

EVALUATION_FILE, REPORT_FILE, PICTURES_DIR = "evaluation.json", "REPORT.md", "pictures"
MISTAKES = 8
SHOWN_CHARACTERS = 240
TABLE_LABELS = 10  # a wider table of confusions is not read; the picture is
NUMBERED_LABELS = 20  # in the picture
SMOOTHED_STEPS = 20
ENDS = ".!?…\"')"
DOTS_PER_INCH = 150
# Okabe and Ito's blue and orange, which the colour-blind can tell apart, and grey.
ADAPTER_COLOUR, BASE_COLOUR, QUIET = "#0072B2", "#E69F00", "#666666"
# What Markdown or GitHub would take for its own: entities are never markup, not even in a table's cell.
MARKUP = str.maketrans({character: f"&#{ord(character)};" for character in "&<>|`\\*_[]~$@#"})


def write_report(
    folder: Path, evaluation: Evaluation, *, title: str, facts: Mapping[str, str], log_file: Path | None
) -> None:
    """`facts` name in words what was trained, on what, with which versions; `log_file` is the CSV that training wrote."""
    pictures = folder / PICTURES_DIR
    pictures.mkdir(parents=True, exist_ok=True)
    text = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False)
    (folder / EVALUATION_FILE).write_text(f"{text}\n", encoding="utf-8")
    shown = ["accuracy.png"]
    measures_picture(evaluation, pictures / "accuracy.png")
    if evaluation.labels:
        confusion_picture(evaluation, pictures / "confusion.png")
        shown.append("confusion.png")
    if log_file is not None:
        loss_picture(log_file, pictures / "loss.png")
        shown.append("loss.png")
    (folder / REPORT_FILE).write_text(_markdown(evaluation, title, facts, shown), encoding="utf-8")


def _markdown(evaluation: Evaluation, title: str, facts: Mapping[str, str], pictures: Sequence[str]) -> str:
    parts = [f"# {escaped(title)}", f"**{evaluation.sentence}**", *evaluation.notes]
    if evaluation.replacement:
        parts += ["## May it replace the model before it?", evaluation.replacement]
    parts.append("## Adapter beside base")
    parts.append(
        _table(
            ("", "adapter", "base", "difference"),
            [
                (one.name, *map(_nats, (one.adapter, one.base, one.difference)))
                if one.unit == NATS
                else (one.name, _percent(one.adapter), _percent(one.base), _points(one.difference))
                for one in evaluation.measures
            ],
        )
    )
    if evaluation.commonest_label_share is not None:
        parts.append(f"Always the commonest label would be right on {evaluation.commonest_label_share:.1%}.")
    parts.append(f"![Adapter and base with their intervals]({PICTURES_DIR}/accuracy.png)")
    if evaluation.tables:
        parts += _of_labels(evaluation)
    parts += _mistakes(evaluation)
    if "loss.png" in pictures:
        parts += ["## Training", f"![Loss by step]({PICTURES_DIR}/loss.png)"]
    if facts:
        parts += [
            "## What was trained",
            _table(("", ""), [(escaped(name), escaped(said)) for name, said in facts.items()]),
        ]
    parts += ["## How it was measured", *_method(evaluation)]
    return "\n\n".join(parts) + "\n"


def _of_labels(evaluation: Evaluation) -> list[str]:
    parts = ["## By label"]
    for by in (GENERATION, LOG_LIKELIHOOD):
        adapter, base = (_label_table(evaluation, who, by) for who in ("adapter", "base"))
        rows = [
            (
                escaped(mine.label),
                str(mine.support),
                *(f"{share:.1%}" for one in (mine, theirs) for share in (one.precision, one.recall, one.f1)),
            )
            for mine, theirs in zip(adapter.classes, base.classes, strict=True)
        ]
        of_both = [f"{who}: {figure}" for who in ("adapter", "base") for figure in ("precision", "recall", "F1")]
        parts += [f"By {by}:", _table(("label", "questions", *of_both), rows)]
    parts += ["## Confusion", f"![What adapter and base say to each label]({PICTURES_DIR}/confusion.png)"]
    if len(evaluation.labels) <= TABLE_LABELS:
        names = [escaped(label) for label in evaluation.labels]
        for who in ("adapter", "base"):
            rows = [
                (f"**{name}**", *map(str, counts))
                for name, counts in zip(names, _label_table(evaluation, who, GENERATION).confusion, strict=True)
            ]
            parts += [
                f"Questions by truth (rows) and by the {who}'s answer (columns):",
                _table(("", *names, "no label"), rows),
            ]
    return parts


def _label_table(evaluation: Evaluation, who: str, by: str) -> LabelTable:
    return next(one for one in evaluation.tables if (one.who, one.by) == (who, by))


def _mistakes(evaluation: Evaluation) -> list[str]:
    wrong = [one for one in evaluation.answered if not evaluation.is_right(one.adapter, one.question.truth)]
    if not wrong:
        return ["## Mistakes", f"The adapter makes none on these {len(evaluation.answered)} questions."]
    # The most confident mistakes first: they reveal most about the data.
    wrong.sort(key=lambda one: _sureness(evaluation, one), reverse=True)
    words = _without_template([one.question.prompt for one in evaluation.answered])
    shown = {one.question.prompt: text for one, text in zip(evaluation.answered, words, strict=True)}
    rows = [
        (_short(shown[one.question.prompt]), *map(_short, (one.question.truth, one.adapter, one.base)))
        for one in wrong[:MISTAKES]
    ]
    right_too = sum(evaluation.is_right(one.base, one.question.truth) for one in wrong)
    return [
        "## Mistakes",
        f"The adapter is wrong on {len(wrong)} of {len(evaluation.answered)} questions; the base is right on {right_too} of "
        f"these. {min(MISTAKES, len(wrong))} of them, {'the surest' if evaluation.labels else 'the furthest'} first:",
        _table(("question", "truth", "adapter says", "base says"), rows),
    ]


def _sureness(evaluation: Evaluation, one: Answered) -> float:
    if not evaluation.labels:
        return -chrf(one.adapter, one.question.truth)
    return max(one.adapter_scores) - one.adapter_scores[evaluation.labels.index(one.question.truth)]


def _without_template(prompts: Sequence[str]) -> list[str]:
    """The prompts less the words that all of them begin and end with, so that the data's own are left."""
    if len(set(prompts)) < 2:
        return list(prompts)
    start = _common_start(prompts)
    end = _common_start([one[start:][::-1] for one in prompts])
    while start and prompts[0][start - 1].isalnum():  # not within a word
        start -= 1
    while end and (prompts[0][-end].isalnum() or prompts[0][-end] in ENDS):  # nor before the end of a sentence
        end -= 1
    return [one[start : len(one) - end] for one in prompts]


def _common_start(texts: Sequence[str]) -> int:
    """How many characters all begin with: the first and the last by the alphabet differ soonest."""
    first, last = min(texts), max(texts)
    alike = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(alike, min(len(first), len(last)))


def _method(evaluation: Evaluation) -> list[str]:
    common = (
        f"{len(evaluation.answered)} held-out questions were put to the adapter and to its base by the same prompts. Answers are "
        f"greedy and at most {evaluation.max_new_tokens} tokens long. In parentheses: 95 % intervals, from {RESAMPLES:,} paired bootstrap "
        f"resamples of the questions (percentiles, seed {evaluation.seed}; Wilson's interval where all answers are right or all wrong). The "
        f"verdict is drawn from the first row's difference: better if its whole interval is above 0, worse if below."
    )
    if evaluation.labels:
        own = (
            "By generation, an answer counts if it is the label and nothing else, in any case, dotted or not. By log-likelihood, "
            "the label counts that the model finds likeliest as the whole answer; so a base is measured that knows the right label but "
            "puts it into other words. Macro F1 is the mean over the labels that are asked for or named."
        )
    else:
        own = (
            "chrF is sacrebleu's sentence chrF, the overlap in runs of up to six characters, averaged over the questions. An exact "
            "match may differ in white space and in Unicode form alone; case and punctuation count."
        )
        if any(one.unit == NATS for one in evaluation.measures):
            own += (
                " The log-likelihood is that of every token of the recorded answers, in natural logarithms: nearer to 0 is better. "
                "Of a chat, its last answer is asked for; the agreement is the share of answers that are the recorded ones exactly."
            )
    return [common, own, f"Every answer is in [{EVALUATION_FILE}]({EVALUATION_FILE})."]


def escaped(text: str) -> str:
    """Any text as Markdown that shows these very characters, on one line, in a table or out of it."""
    return "".join(one if one.isprintable() else " " for one in text).translate(MARKUP)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return escaped(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _percent(one: Estimate) -> str:
    return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})"


def _nats(one: Estimate) -> str:
    return f"{one.value:.3f} nats ({one.low:.3f} to {one.high:.3f})"


def _points(one: Estimate) -> str:
    return f"{100 * one.value:+.1f} points ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def measures_picture(evaluation: Evaluation, to: Path) -> None:
    """Adapter and base with their intervals, measure by measure; a line for what a guess gets right."""
    measures = [one for one in evaluation.measures if one.unit != NATS]  # they have no place between 0 and 100 %
    figure = Figure(figsize=(7, 1.1 + 0.75 * len(measures)), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    for who, colour, marker, offset in (("adapter", ADAPTER_COLOUR, "o", -0.14), ("base", BASE_COLOUR, "s", 0.14)):
        estimates: list[Estimate] = [_of(one, who) for one in measures]
        values = [100 * one.value for one in estimates]
        heights = [place + offset for place in range(len(measures))]
        # An interval need not be even about its value, nor, by percentiles, quite hold it.
        axes.errorbar(
            [50 * (one.low + one.high) for one in estimates],
            heights,
            xerr=[50 * (one.high - one.low) for one in estimates],
            fmt="none",
            color=colour,
            capsize=3,
            linewidth=1.8,
        )
        axes.plot(values, heights, marker, color=colour, label=who)
        for value, height in zip(values, heights, strict=True):
            axes.annotate(
                f"{value:.1f}",
                (value, height),
                xytext=(0, 6 if who == "adapter" else -6),
                textcoords="offset points",
                ha="center",
                va="bottom" if who == "adapter" else "top",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # over the line of a guess
            )
    if evaluation.commonest_label_share is not None:
        axes.axvline(
            100 * evaluation.commonest_label_share,
            color=QUIET,
            linestyle=":",
            label="always the commonest label (accuracy)",
        )
    axes.set_yticks(range(len(measures)), [one.name for one in measures])
    axes.set_ylim(len(measures) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.set_xlabel(
        f"% of {len(evaluation.answered)} held-out questions, with 95 % intervals"
        if evaluation.labels
        else f"% (mean of {len(evaluation.answered)} held-out questions), with 95 % intervals"
    )
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _quiet(axes)
    axes.grid(axis="x", alpha=0.25)
    figure.savefig(to)


def _of(measure: Measure, who: str) -> Estimate:
    return measure.adapter if who == "adapter" else measure.base


def confusion_picture(evaluation: Evaluation, to: Path) -> None:
    """What adapter and base generate for each true label, shares of a row as colour and counts as numbers."""
    count = len(evaluation.labels)
    side = min(12.0, max(2.6, 0.45 * count))
    figure = Figure(figsize=(2 * side + 2.4, side + 1.6), dpi=DOTS_PER_INCH, layout="constrained")
    both = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.06})
    size = 9 if count <= NUMBERED_LABELS else max(3.0, 72 * side / count * 0.7)
    for axes, who in zip(both, ("adapter", "base"), strict=True):
        counts = _label_table(evaluation, who, GENERATION).confusion
        shares = [[100 * one / max(1, sum(row)) for one in row] for row in counts]
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        if count <= NUMBERED_LABELS:
            for row, (numbers, parts) in enumerate(zip(counts, shares, strict=True)):
                for column, (number, share) in enumerate(zip(numbers, parts, strict=True)):
                    colour = "white" if share > 55 else "black" if number else QUIET
                    axes.text(column, row, str(number), ha="center", va="center", color=colour, fontsize=9)
        # A label is text: a dollar in it begins no formula.
        names = [one if len(one) <= 24 else f"{one[:23]}…" for one in evaluation.labels]
        axes.set_xticks(
            range(count + 1), [*names, "no label"], rotation=0 if count <= 3 else 90, fontsize=size, parse_math=False
        )
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
        axes.axvline(count - 0.5, color="white", linewidth=3)
        axes.set_title(who)
        axes.set_xlabel(f"the {who} says")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    both[0].set_ylabel("truth")
    figure.colorbar(drawn, ax=both, label="% of the label's questions", shrink=0.9)
    figure.savefig(to)


def loss_picture(log_file: Path, to: Path) -> None:
    """The training loss by step, from the log's columns `step` and `loss`: every step faint, and a running mean of them."""
    with log_file.open(newline="", encoding="utf-8") as lines:
        # A resumed run writes the steps after its checkpoint again: the later ones led to these weights.
        losses = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(lines)}
    steps = sorted(step for step, loss in losses.items() if math.isfinite(loss))
    figure = Figure(figsize=(7, 3.6), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    raw = [losses[step] for step in steps]
    reach = min(SMOOTHED_STEPS, len(steps) // 10) // 2
    axes.plot(steps, raw, color=ADAPTER_COLOUR, alpha=0.3, linewidth=0.9, label="each step")
    axes.plot(
        steps,
        _running_mean(raw, reach),
        color=ADAPTER_COLOUR,
        linewidth=2,
        label=f"mean of {2 * reach + 1} steps around",
    )
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss, nats per answer token")
    axes.set_ylim(bottom=0)
    if steps:
        axes.legend(frameon=False)
    else:
        axes.set_title("no step was logged")
    _quiet(axes)
    axes.grid(axis="y", alpha=0.25)
    figure.savefig(to)


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Of each value and up to `reach` on either side, fewer at the ends: (values,)."""
    parts = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _quiet(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
