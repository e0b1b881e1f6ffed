"""Whether an adapter is better than its base: figures from both models' answers to held-out questions, and the smoke prompts that prove it.

Every figure has a 95 % interval. Shares from 0 to 1: for labels, by what is generated and by which label is likelier; for free
text, chrF and exact match. For chats, the log-likelihood of the recorded answers comes first.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import CHRF
from scipy.stats import bootstrap
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from loradrop.smoke import MAX_NEW_TOKENS, MAX_SMOKE_BYTES, SmokePromptsInvalidError, parse_smoke_prompts

if TYPE_CHECKING:
    from .examples import TokenizedExample  # imports torch, which takes seconds

GENERATION, LOG_LIKELIHOOD = "generation", "log-likelihood"
RESAMPLES = 9999
FEW_QUESTIONS = 30
SHARE, NATS = "share", "nats"
# An adapter whose answers are at most so much further from the recorded ones may replace the model before it.
REPLACEMENT_MARGIN = 0.02
SMOKE_PROMPTS = 8  # each costs the stack three invocations before an adapter goes live
# Nearer than this, a server's bfloat16 may turn a greedy answer: its log-probabilities are some hundredths of a nat off.
SURE_NATS = 0.5
EXPECT_CHARACTERS = 20  # a shorter start of an answer may be anyone's

Numbers = NDArray[Any]
# (truth (…, questions), said (…, questions)) -> (…)
Statistic = Callable[[Numbers, Numbers], Numbers]


class Verdict(StrEnum):
    BETTER = "better"
    NOT_SHOWN = "not shown to be better"
    WORSE = "worse"


@dataclass(frozen=True, slots=True)
class Question:
    """The whole prompt, with special tokens as text, and the right answer: a label, or a text."""

    prompt: str
    truth: str
    previous: str | None = None  # the answer of the model that is to be replaced, where it is recorded


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and both answers. `…_scores` are the labels' log-likelihoods, nats (labels,); empty for free text.

    Of a chat, `…_nats` are the log-likelihoods of all its recorded answers, which have `answer_tokens` together.
    """

    question: Question
    adapter: str
    base: str
    adapter_scores: tuple[float, ...] = ()
    base_scores: tuple[float, ...] = ()
    adapter_nats: float = 0.0
    base_nats: float = 0.0
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share, 0 to 1, a difference of two, -1 to 1, or nats; and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of adapter and base on the same questions; `difference` is the adapter's less the base's, question by question."""

    name: str
    adapter: Estimate
    base: Estimate
    difference: Estimate
    unit: str = SHARE


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Of one label; shares from 0 to 1. `support` is how many held-out questions have it as their truth."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class LabelTable:
    """`confusion` counts questions (labels of truth, labels said + 1): the last column is for answers that name no label."""

    who: str  # "adapter" | "base"
    by: str  # GENERATION | LOG_LIKELIHOOD
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The first of `measures` decides the verdict. `labels` and `tables` are empty for free text."""

    verdict: Verdict
    sentence: str
    notes: tuple[str, ...]
    replacement: str  # whether it may replace the model before it; empty where nobody asks
    measures: tuple[Measure, ...]
    tables: tuple[LabelTable, ...]
    labels: tuple[str, ...]
    commonest_label_share: float | None  # what is right by always saying the commonest label
    max_new_tokens: int
    seed: int
    answered: tuple[Answered, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def is_right(self, answer: str, truth: str) -> bool:
        return label_of(answer, self.labels) == truth if self.labels else normalised(answer) == normalised(truth)


def evaluate(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    labels: Sequence[str] | None,
    turn: tuple[str, str],
    max_new_tokens: int,
    batch_tokens: int,
    seed: int,
    chats: Sequence["TokenizedExample"] = (),
) -> Evaluation:
    """Asks the adapter of a peft model and then its base the same prompts. Without `labels`, the truths are free text.

    `chats` are the questions' whole chats, where they are chats. `turn` is what the chat template writes before an answer (Mistral's a space, Qwen3's an empty thought) and behind it.
    """
    from .answers import (  # they import torch, which takes seconds
        answer_log_likelihoods,
        greedy_answers,
        log_likelihoods,
    )

    prompts = [one.prompt for one in questions]
    before, behind = turn
    offered = [f"{before}{label}{behind}" for label in labels or ()]

    def ask(who: str) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
        said = greedy_answers(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_tokens=batch_tokens,
            doing=f"{who} answers",
        )
        said = [_without(before.strip(), one) for one in said]
        scores, nats = np.zeros((len(prompts), 0)), np.zeros(len(prompts))
        if offered:
            scores = log_likelihoods(
                model, tokenizer, prompts, offered, batch_tokens=batch_tokens, doing=f"{who} scores the labels"
            )
        if chats:
            doing = f"{who} scores the chats"
            nats = answer_log_likelihoods(
                model, chats, pad_id=tokenizer.pad_token_id, batch_tokens=batch_tokens, doing=doing
            )
        if not (np.isfinite(scores).all() and np.isfinite(nats).all()):
            raise ValueError(
                f"The {who}'s log-likelihoods are not numbers: its weights are broken, or training diverged."
            )
        return said, scores, nats

    adapter, adapter_scores, adapter_nats = ask("adapter")
    with model.disable_adapter():
        base, base_scores, base_nats = ask("base")
    answered = [
        Answered(
            one,
            adapter[number],
            base[number],
            tuple(adapter_scores[number].tolist()),
            tuple(base_scores[number].tolist()),
            float(adapter_nats[number]),
            float(base_nats[number]),
            chats[number].answer_tokens if chats else 0,
        )
        for number, one in enumerate(questions)
    ]
    return score_answers(answered, labels=labels, max_new_tokens=max_new_tokens, seed=seed)


def _without(start: str, answer: str) -> str:
    """The answer less what every answer begins with: whoever was trained on the template's turns says it, and it is no part of a label."""
    said = answer.lstrip()
    return said.removeprefix(start).lstrip() if start and said.startswith(start) else answer


def score_answers(
    answered: Sequence[Answered], *, labels: Sequence[str] | None, max_new_tokens: int, seed: int
) -> Evaluation:
    """The figures and the verdict. The same answers and seed give the same intervals."""
    if not answered:
        raise ValueError("Without held-out questions nothing can be said about an adapter.")
    measures, tables = _of_labels(answered, labels, seed) if labels else (_of_texts(answered, seed), [])
    verdict = _verdict(measures[0])
    notes = []
    if len(answered) < FEW_QUESTIONS:
        notes.append(
            f"Only {len(answered)} held-out questions: the intervals are wide, and may be too narrow still. "
            f"Hold out {FEW_QUESTIONS} or more, better some hundreds."
        )
    for other in measures:
        if other.name == f"accuracy by {LOG_LIKELIHOOD}" and _verdict(other) is not verdict:
            notes.append(f"Where both may only choose among the labels: {_sentence(other, len(answered))}")
    truths = Counter(one.question.truth for one in answered)
    return Evaluation(
        verdict=verdict,
        sentence=_sentence(measures[0], len(answered)),
        notes=tuple(notes),
        replacement=_replacement(answered, labels, seed),
        measures=tuple(measures),
        tables=tuple(tables),
        labels=tuple(labels or ()),
        commonest_label_share=max(truths.values()) / len(answered) if labels else None,
        max_new_tokens=max_new_tokens,
        seed=seed,
        answered=tuple(answered),
    )


def _verdict(measure: Measure) -> Verdict:
    if measure.difference.low > 0:
        return Verdict.BETTER
    return Verdict.WORSE if measure.difference.high < 0 else Verdict.NOT_SHOWN


def _sentence(measure: Measure, questions: int) -> str:
    opening = {
        Verdict.BETTER: "The adapter is better than the base",
        Verdict.NOT_SHOWN: "The adapter is not shown to be better than the base",
        Verdict.WORSE: "The adapter is not better than the base, it is worse",
    }[_verdict(measure)]
    difference = measure.difference
    if measure.unit == NATS:
        return (
            f"{opening}: the {measure.name} of the recorded answers is {measure.adapter.value:.3f} nats with it and "
            f"{measure.base.value:.3f} without, on {questions} held-out chats; the difference is {difference.value:+.3f} nats "
            f"(95 % interval {difference.low:+.3f} to {difference.high:+.3f})."
        )
    return (
        f"{opening}: {measure.name} is {measure.adapter.value:.1%} with it and {measure.base.value:.1%} without, on "
        f"{questions} held-out questions; the difference is {100 * difference.value:+.1f} points "
        f"(95 % interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f})."
    )


def _replacement(answered: Sequence[Answered], labels: Sequence[str] | None, seed: int) -> str:
    """Whether the adapter may replace the model whose answers are recorded: if it is hardly further from the truth."""
    recorded = [one for one in answered if one.question.previous is not None]
    if not recorded:
        if not any(one.answer_tokens for one in answered):
            return ""
        return (
            "Whether the adapter may replace the model that you are leaving is not known: the data does not record that model's "
            "own answers. Ask it the held-out chats, add its answers as a column, and name the column in data.previous."
        )

    def close(answer: str, truth: str) -> float:
        return float(label_of(answer, labels) == truth) if labels else chrf(answer, truth)

    adapter = np.array([close(one.adapter, one.question.truth) for one in recorded])
    previous = np.array([close(one.question.previous or "", one.question.truth) for one in recorded])
    agrees = np.mean([normalised(one.adapter) == normalised(one.question.previous or "") for one in recorded])
    name = "accuracy" if labels else "chrF"
    found = _measure(name, _mean, np.zeros(len(recorded)), adapter, previous, seed)
    low, high = found.difference.low, found.difference.high
    opening = "It is not shown that the adapter may replace the model before it"
    if low >= -REPLACEMENT_MARGIN:
        opening = "The adapter may replace the model before it"
    elif high < -REPLACEMENT_MARGIN:
        opening = "The adapter may not replace the model before it"
    return (
        f"{opening}: {name} with the recorded truth is {found.adapter.value:.1%} for the adapter and {found.base.value:.1%} for "
        f"that model, on {len(recorded)} held-out examples; the difference is {100 * found.difference.value:+.1f} points (95 % "
        f"interval {100 * low:+.1f} to {100 * high:+.1f}), and {-100 * REPLACEMENT_MARGIN:+.0f} is the limit. Both give the "
        f"same answer to {agrees:.1%}."
    )


def _mean(_truth: Numbers, said: Numbers) -> Numbers:
    average: Numbers = np.mean(said, axis=-1)
    return average


def label_of(answer: str, labels: Sequence[str]) -> str | None:
    """The label that the answer names, None if it names none: nothing but the label counts, in any case, dotted or not."""
    said = answer.strip()
    if said in labels:
        return said
    named = [label for label in labels if _plain(label) == _plain(said) != ""]
    return named[0] if len(named) == 1 else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".!").rstrip().casefold()


def _of_labels(
    answered: Sequence[Answered], labels: Sequence[str], seed: int
) -> tuple[list[Measure], list[LabelTable]]:
    number = {label: place for place, label in enumerate(labels)}
    unknown = sorted({one.question.truth for one in answered} - number.keys())
    if unknown:
        raise ValueError(f"The held-out truth {unknown[0]!r} is none of the {len(labels)} labels.")
    nothing = len(labels)
    truth = np.array([number[one.question.truth] for one in answered])

    def generated(answers: Sequence[str]) -> Numbers:
        return np.array([nothing if (label := label_of(one, labels)) is None else number[label] for one in answers])

    def likeliest(scores: Sequence[tuple[float, ...]]) -> Numbers:
        best: Numbers = np.array(scores).argmax(axis=1)
        return best

    said = {
        GENERATION: (generated([one.adapter for one in answered]), generated([one.base for one in answered])),
        LOG_LIKELIHOOD: (
            likeliest([one.adapter_scores for one in answered]),
            likeliest([one.base_scores for one in answered]),
        ),
    }
    measures, tables = [], []
    for by, (adapter, base) in said.items():
        measures.append(_measure(f"accuracy by {by}", _accuracy, truth, adapter, base, seed))
        measures.append(_measure(f"macro F1 by {by}", _macro_f1(len(labels)), truth, adapter, base, seed))
        tables += [_table(who, by, labels, truth, one) for who, one in (("adapter", adapter), ("base", base))]
    return measures, tables


def _table(who: str, by: str, labels: Sequence[str], truth: Numbers, said: Numbers) -> LabelTable:
    numbers = range(len(labels))
    figures = precision_recall_fscore_support(truth, said, labels=list(numbers), zero_division=0.0)
    counts = confusion_matrix(truth, said, labels=[*numbers, len(labels)])[:-1]  # (labels, labels + 1)
    return LabelTable(
        who=who,
        by=by,
        classes=tuple(
            ClassFigures(label, float(precision), float(recall), float(f1), int(support))
            for label, precision, recall, f1, support in zip(labels, *figures, strict=True)
        ),
        confusion=tuple(tuple(map(int, row)) for row in counts),
    )


def _accuracy(truth: Numbers, said: Numbers) -> Numbers:
    share: Numbers = np.mean(truth == said, axis=-1)
    return share


def _macro_f1(labels: int) -> Statistic:
    """Over the labels that are asked for or named; scikit-learn's macro F1 with zero_division=nan, for many samples at once."""

    def macro_f1(truth: Numbers, said: Numbers) -> Numbers:
        total, present = np.zeros(truth.shape[:-1]), np.zeros(truth.shape[:-1])
        for label in range(labels):
            asked, named = truth == label, said == label
            both = asked.sum(axis=-1) + named.sum(axis=-1)
            total += 2 * (asked & named).sum(axis=-1) / np.maximum(both, 1)
            present += both > 0
        f1: Numbers = total / np.maximum(present, 1)
        return f1

    return macro_f1


def normalised(text: str) -> str:
    """What differs in white space or in Unicode form alone is the same text; case and punctuation count."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def chrf(answer: str, truth: str) -> float:
    """Overlap in runs of up to six characters, 0 to 1: sacrebleu's sentence chrF, over 100."""
    return float(CHRF().sentence_score(answer, [truth]).score) / 100


def _of_texts(answered: Sequence[Answered], seed: int) -> list[Measure]:
    """chrF is taken by question and averaged: so each question counts the same, however long its answer, and can be
    resampled. It decides, for two long texts are hardly ever equal."""
    nothing = np.zeros(len(answered))

    def compared(name: str, of: Callable[[str, str], float]) -> Measure:
        adapter = np.array([of(one.adapter, one.question.truth) for one in answered])
        base = np.array([of(one.base, one.question.truth) for one in answered])
        return _measure(name, _mean, nothing, adapter, base, seed)

    chats = any(one.answer_tokens for one in answered)
    same = "agreement" if chats else "exact match"
    measures = [compared("chrF", chrf), compared(same, lambda said, truth: normalised(said) == normalised(truth))]
    return [_of_tokens(answered, seed), *measures] if chats else measures


def _of_tokens(answered: Sequence[Answered], seed: int) -> Measure:
    """All answer tokens count alike; chats are resampled whole, since the tokens of one hang together."""

    def per_token(tokens: Numbers, nats: Numbers) -> Numbers:
        share: Numbers = nats.sum(axis=-1) / np.maximum(tokens.sum(axis=-1), 1)
        return share

    tokens = np.array([one.answer_tokens for one in answered])
    adapter, base = (np.array([getattr(one, f"{who}_nats") for one in answered]) for who in ("adapter", "base"))
    return _measure("log-likelihood per token", per_token, tokens, adapter, base, seed, unit=NATS)


def _measure(
    name: str,
    statistic: Statistic,
    truth: Numbers,
    adapter: Numbers,
    base: Numbers,
    seed: int,
    *,
    unit: str = SHARE,
) -> Measure:
    """Percentiles of the paired bootstrap, where questions are drawn with the answers of both.

    BCa has no value where all answers are right, or all wrong; percentiles have one, but of no width. There, Wilson's
    interval holds: for one of the two as it is, for the difference by the shares of questions won and lost.
    """

    def all_three(truth: Numbers, adapter: Numbers, base: Numbers, axis: int = -1) -> Numbers:  # noqa: ARG001
        one, other = statistic(truth, adapter), statistic(truth, base)
        return np.stack([one, other, one - other])

    count = len(truth)
    values = all_three(truth, adapter, base)  # (3,)
    low = high = values
    if count > 1:
        drawn = bootstrap(
            (truth, adapter, base),
            all_three,
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=RESAMPLES,
            batch=max(1, 1_000_000 // count),  # 8 MB an array
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = drawn.low, drawn.high
    one, other, difference = (Estimate(*map(float, three)) for three in zip(values, low, high, strict=True))
    if unit == NATS:
        if count == 1:  # one chat shows nothing
            difference = Estimate(difference.value, min(difference.value, 0.0), max(difference.value, 0.0))
        return Measure(name, one, other, difference, unit)
    if one.low == one.high:
        one = _wilson(one.value, count)
    if other.low == other.high:
        other = _wilson(other.value, count)
    if difference.low == difference.high:
        won, lost = _wilson(max(difference.value, 0.0), count), _wilson(max(-difference.value, 0.0), count)
        difference = Estimate(
            difference.value,
            difference.value - float(np.hypot(won.value - won.low, lost.high - lost.value)),
            difference.value + float(np.hypot(won.high - won.value, lost.value - lost.low)),
        )
    return Measure(name, one, other, difference)


def _wilson(share: float, count: int) -> Estimate:
    """Wilson's score interval at 95 %. Of all quantities from 0 to 1 with this mean, a yes-or-no one varies most."""
    z_squared = 1.959964**2
    middle = (share + z_squared / (2 * count)) / (1 + z_squared / count)
    half = (z_squared * (share * (1 - share) / count + z_squared / (4 * count**2))) ** 0.5 / (1 + z_squared / count)
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def smoke_lines(
    evaluation: Evaluation, *, begins: str = "", per_label: int = 2, at_most: int = SMOKE_PROMPTS
) -> list[str]:
    """Lines of `smoke.jsonl`: held-out questions that the adapter gets right and the base does not. Empty if there is none.

    The surest come first, one of each label before a second of any; for free text, those that the base misses by most.
    `begins` is the token that a server puts before every prompt (vLLM: add_special_tokens), and so is left out here.
    """
    sure: dict[str, tuple[float, str]] = {}  # line -> how sure, truth
    for one in evaluation.answered:
        truth = one.question.truth
        if not evaluation.is_right(one.adapter, truth) or evaluation.is_right(one.base, truth):
            continue
        if evaluation.labels:
            width, expect = _width_nats(one, evaluation.labels), _expected_of_label(one)
        else:
            width, expect = 1 - chrf(one.base, truth), _expected_of_text(one)
        if expect is None or (evaluation.labels and width < SURE_NATS):
            continue
        parameters = {"max_new_tokens": min(evaluation.max_new_tokens, MAX_NEW_TOKENS)}
        line = json.dumps(
            {"inputs": one.question.prompt.removeprefix(begins), "parameters": parameters, "expect": expect}
        )
        if _is_accepted(line):
            sure[line] = (width, truth)
    taken: Counter[str] = Counter()
    ranked: list[tuple[int, str]] = []
    for line, (_, truth) in sorted(sure.items(), key=lambda one: -one[1][0]):
        ranked.append((taken[truth], line))
        taken[truth] += 1
    lines: list[str] = []
    left = MAX_SMOKE_BYTES
    for rank, line in sorted(ranked, key=lambda one: one[0]):
        if rank < per_label and len(lines) < at_most and len(line) + 1 <= left:  # it is ASCII
            lines.append(line)
            left -= len(line) + 1
    return lines


def _width_nats(one: Answered, labels: Sequence[str]) -> float:
    """How far the two answers are from turning: the adapter's lead over its next label, or how unlikely the base finds
    the truth, whichever is less."""
    place = labels.index(one.question.truth)
    others = [score for number, score in enumerate(one.adapter_scores) if number != place]
    return min(one.adapter_scores[place] - max(others, default=-np.inf), -one.base_scores[place])


def _expected_of_label(one: Answered) -> str | None:
    said = one.adapter.strip()
    expect = one.question.truth if one.question.truth in said else said  # it may be said in another case
    return None if expect in one.base else _not_a_pattern(expect)


def _expected_of_text(one: Answered) -> str | None:
    """The shortest start of the answer, in whole words, that the base's answer does not hold: less can turn than in all of it."""
    said = one.adapter.strip()
    ends = [place for place in range(1, len(said)) if said[place].isspace() and not said[place - 1].isspace()]
    for end in (*ends, len(said)):
        start = said[:end]
        # A token is a byte or more: so much is generated whatever the recipe's own limit is.
        if len(start.encode(errors="replace")) > MAX_NEW_TOKENS:
            return None
        if start not in one.base and len(start) >= min(EXPECT_CHARACTERS, len(said)):
            return _not_a_pattern(start)
    return None


def _not_a_pattern(expect: str) -> str:
    """Text between slashes would be read as a regular expression; one that means this very text is."""
    return f"/{re.escape(expect)}/" if len(expect) > 2 and expect[0] == expect[-1] == "/" else expect


def _is_accepted(line: str) -> bool:
    try:
        parse_smoke_prompts(line.encode())
    except SmokePromptsInvalidError:
        return False
    return True
