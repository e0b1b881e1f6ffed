"""Figures against values worked out by hand, intervals against what they promise, smoke prompts against the stack's own reader."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from sacrebleu.metrics import CHRF
from sklearn.metrics import f1_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from loradrop.smoke import MAX_SMOKE_BYTES, meets_expectation, parse_smoke_prompts
from loradrop_training.answers import log_likelihoods
from loradrop_training.evaluation import (
    Answered,
    Evaluation,
    Measure,
    Question,
    Verdict,
    evaluate,
    label_of,
    score_answers,
    smoke_lines,
)

LABELS = ("positive", "negative")


def labelled(rows: Sequence[tuple[str, str, str]], *, lead: float = 3.0, labels: Sequence[str] = LABELS) -> Evaluation:
    """From (truth, what the adapter says, what the base says). The adapter's scores lead by `lead` nats for what it says."""
    answered = []
    for number, (truth, adapter, base) in enumerate(rows):
        mine = tuple(-0.1 if label == label_of(adapter, labels) else -0.1 - lead for label in labels)
        theirs = tuple(-5.0 if label == label_of(base, labels) else -8.0 for label in labels)
        answered.append(Answered(Question(f"question {number}", truth), adapter, base, mine, theirs))
    return score_answers(answered, labels=labels, max_new_tokens=6, seed=1)


def free(rows: Sequence[tuple[str, str, str]], max_new_tokens: int = 40) -> Evaluation:
    answered = [Answered(Question(f"question {n}", truth), mine, base) for n, (truth, mine, base) in enumerate(rows)]
    return score_answers(answered, labels=None, max_new_tokens=max_new_tokens, seed=1)


def measure(evaluation: Evaluation, name: str) -> Measure:
    return next(one for one in evaluation.measures if one.name == name)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("positive", "positive"),
        (" Negative.", "negative"),
        ("NEGATIVE!\n", "negative"),
        ("positive .", "positive"),
        ("positive positive", None),
        ("positively", None),
        ("not negative", None),
        ("", None),
        (".", None),
    ],
)
def test_an_answer_names_a_label_or_none(answer: str, label: str | None) -> None:
    assert label_of(answer, LABELS) == label


def test_labels_that_differ_in_case_or_end_with_a_dot_are_told_apart() -> None:
    assert label_of("it", ("IT", "it")) == "it"
    assert label_of("It", ("IT", "it")) is None  # either
    assert label_of("No", ("No.", "Yes.")) == "No."
    assert label_of("!", ("!", "?")) == "!"


HAND_MADE = [
    ("positive", "positive", "delicious"),
    ("positive", " Positive.", "positive"),
    ("positive", "negative", "positive"),
    ("negative", "negative", "negative negative"),
    ("negative", "good", "positive"),
]


def test_figures_of_labels_are_those_worked_out_by_hand() -> None:
    evaluation = labelled(HAND_MADE)
    accuracy, macro_f1 = measure(evaluation, "accuracy by generation"), measure(evaluation, "macro F1 by generation")
    assert (accuracy.adapter.value, accuracy.base.value) == (3 / 5, 2 / 5)
    assert accuracy.difference.value == pytest.approx(1 / 5)
    # the adapter: 0.8 and 0.5; the base: precision 2/3 and recall 2/3, and nothing of the negative ones
    assert macro_f1.adapter.value == pytest.approx(0.65)
    assert macro_f1.base.value == pytest.approx(1 / 3)
    table = next(one for one in evaluation.tables if (one.who, one.by) == ("adapter", "generation"))
    assert table.confusion == ((2, 1, 0), (0, 1, 1))  # the last column: no label named
    positive, negative = table.classes
    assert (positive.label, positive.precision, positive.recall, positive.support) == ("positive", 1.0, 2 / 3, 3)
    assert positive.f1 == pytest.approx(0.8)
    assert (negative.precision, negative.recall, negative.f1, negative.support) == (0.5, 0.5, 0.5, 2)
    assert evaluation.commonest_label_share == 3 / 5


def test_log_likelihood_takes_the_likelier_label_whatever_is_generated() -> None:
    answered = [
        Answered(Question("a", "positive"), "well", "well", (-2.0, -3.0), (-3.0, -2.0)),
        Answered(Question("b", "negative"), "well", "well", (-9.0, -8.5), (-3.0, -2.0)),
    ]
    evaluation = score_answers(answered, labels=LABELS, max_new_tokens=6, seed=1)
    likelier = measure(evaluation, "accuracy by log-likelihood")
    assert (likelier.adapter.value, likelier.base.value) == (1.0, 0.5)
    assert measure(evaluation, "accuracy by generation").adapter.value == 0.0
    table = next(one for one in evaluation.tables if (one.who, one.by) == ("base", "log-likelihood"))
    assert table.confusion == ((0, 1, 0), (0, 1, 0))


@pytest.mark.parametrize("count", [3, 40])
def test_macro_f1_is_scikit_learns_over_the_labels_that_occur(count: int) -> None:
    dice = np.random.default_rng(count)
    labels = tuple("abcdefgh")
    truths, said = dice.choice(labels[:6], count), dice.choice([*labels[1:7], "no label"], count)
    evaluation = labelled([(str(t), str(s), "") for t, s in zip(truths, said, strict=True)], labels=labels)
    expected = f1_score(truths, said, labels=labels, average="macro", zero_division=np.nan)
    assert measure(evaluation, "macro F1 by generation").adapter.value == pytest.approx(expected)


def test_figures_of_free_text_are_sacrebleus_and_equality() -> None:
    evaluation = free(
        [
            ("Paris is the capital.", " Paris  is the capital.\n", "The capital is Paris."),
            ("caf\u00e9", "cafe\u0301", "Cafe"),  # one text in two Unicode forms
            ("Rome", "rome", "Rome"),
        ]
    )
    exact, overlap = measure(evaluation, "exact match"), measure(evaluation, "chrF")
    assert (exact.adapter.value, exact.base.value) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    sentences = [("The capital is Paris.", "Paris is the capital."), ("Cafe", "caf\u00e9"), ("Rome", "Rome")]
    expected = sum(CHRF().sentence_score(said, [truth]).score for said, truth in sentences) / 300
    assert overlap.base.value == pytest.approx(expected)
    assert evaluation.measures[0].name == "chrF"
    assert (evaluation.tables, evaluation.labels, evaluation.commonest_label_share) == ((), (), None)


def drawn(dice: np.random.Generator, count: int, right: float, base_right: float) -> Evaluation:
    def said(share: float) -> list[str]:
        return ["positive" if one else "negative" for one in dice.random(count) < share]

    return labelled([("positive", *both) for both in zip(said(right), said(base_right), strict=True)])


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    dice = np.random.default_rng(0)
    held = {"adapter": 0, "difference": 0}
    for _ in range(60):
        one = drawn(dice, 100, 0.8, 0.6).measures[0]
        held["adapter"] += one.adapter.low <= 0.8 <= one.adapter.high
        held["difference"] += one.difference.low <= 0.2 <= one.difference.high
    assert all(52 <= count <= 60 for count in held.values()), held  # 57 are expected


def test_the_interval_shrinks_with_the_root_of_the_number_of_questions() -> None:
    dice = np.random.default_rng(1)
    few, many = (drawn(dice, count, 0.7, 0.5).measures[0].difference for count in (100, 1600))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.25)


def test_the_difference_is_paired() -> None:
    """Both are right on the same 60 of 128 questions, and the adapter on 8 more: by their own intervals, these are lost."""
    rows = [("positive", "positive", "positive")] * 60 + [("positive", "negative", "negative")] * 60
    rows += [("positive", "positive", "negative")] * 8
    evaluation = labelled(rows)
    accuracy = evaluation.measures[0]
    assert accuracy.adapter.low < accuracy.base.high
    assert evaluation.verdict is Verdict.BETTER


def test_the_same_seed_gives_the_same_intervals() -> None:
    assert labelled(HAND_MADE * 5).to_dict() == labelled(HAND_MADE * 5).to_dict()


@pytest.mark.parametrize("count", [1, 2, 20, 300])
def test_all_right_and_all_wrong_are_not_certainty(count: int) -> None:
    evaluation = labelled([("positive", "positive", "negative")] * count)
    for one in evaluation.measures:
        assert (one.adapter.value, one.base.value, one.difference.value) == (1.0, 0.0, 1.0)
        # Wilson's limit for all right is n / (n + 1.96²).
        assert one.adapter.low == pytest.approx(count / (count + 1.96**2), abs=1e-4)
        assert one.adapter.high == 1.0
        assert one.base.high == pytest.approx(1.96**2 / (count + 1.96**2), abs=1e-4)
        assert one.difference.low < 1.0
    assert evaluation.verdict is (Verdict.NOT_SHOWN if count == 1 else Verdict.BETTER)
    json.dumps(evaluation.to_dict(), allow_nan=False)


def test_equal_answers_show_nothing_however_many() -> None:
    evaluation = labelled([("positive", "positive", "positive"), ("negative", "positive", "positive")] * 200)
    difference = evaluation.measures[0].difference
    assert (difference.value, evaluation.verdict) == (0.0, Verdict.NOT_SHOWN)
    assert -0.02 < difference.low < 0 < difference.high < 0.02


@pytest.mark.parametrize(
    ("right", "base_right", "verdict", "opening"),
    [
        (90, 60, Verdict.BETTER, "The adapter is better than the base: accuracy by generation is 90.0% with it and"),
        (62, 60, Verdict.NOT_SHOWN, "The adapter is not shown to be better than the base: accuracy"),
        (60, 90, Verdict.WORSE, "The adapter is not better than the base, it is worse: accuracy"),
    ],
)
def test_the_verdict_is_a_plain_sentence(right: int, base_right: int, verdict: Verdict, opening: str) -> None:
    rows = [
        ("positive", "positive" if n < right else "negative", "positive" if n >= 100 - base_right else "negative")
        for n in range(100)
    ]
    evaluation = labelled(rows)
    assert evaluation.verdict is verdict
    assert evaluation.sentence.startswith(opening)
    assert f"{base_right}.0% without, on 100 held-out questions" in evaluation.sentence


def test_few_questions_and_a_skill_that_is_format_alone_are_noted() -> None:
    assert any("Only 5 held-out questions" in note for note in labelled(HAND_MADE).notes)
    assert labelled(HAND_MADE * 6).notes == ()
    # The base says other words, but finds the right label likelier: the adapter taught it the form, not the skill.
    answered = [
        Answered(Question(str(n), LABELS[n % 2]), LABELS[n % 2], "well", *[(-1.0, -3.0)[:: 1 - n % 2 * 2]] * 2)
        for n in range(60)
    ]
    evaluation = score_answers(answered, labels=LABELS, max_new_tokens=6, seed=1)
    assert evaluation.verdict is Verdict.BETTER
    (note,) = evaluation.notes
    assert note.startswith("Where both may only choose among the labels: The adapter is not shown to be better")


def test_what_cannot_be_evaluated_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="Without held-out questions"):
        score_answers([], labels=LABELS, max_new_tokens=6, seed=1)
    with pytest.raises(ValueError, match="truth 'neutral' is none of the 2 labels"):
        labelled([("neutral", "positive", "positive")])


def prompts_of(lines: list[str]) -> list[str]:
    return [json.loads(line)["inputs"] for line in lines]


def test_smoke_prompts_are_what_the_adapter_alone_gets_right_spread_over_labels() -> None:
    rows = [
        ("positive", "positive", "positive"),  # 0: the base too
        ("positive", "positive", "delicious"),
        ("positive", "positive", "negative"),
        ("positive", "positive", "not positive"),  # 3: the base's answer holds the word
        ("positive", "positive", "well"),
        ("negative", "negative", "well"),
        ("negative", "positive", "well"),  # 6: wrong
        ("negative", "Negative.", "negatives"),
    ]
    lines = smoke_lines(labelled(rows))
    found = parse_smoke_prompts("\n".join(lines).encode())
    assert [one.inputs for one in found] == [f"question {number}" for number in (1, 5, 2, 7)]
    assert [one.expect for one in found] == ["positive", "negative", "positive", "Negative."]
    assert {one.parameters["max_new_tokens"] for one in found} == {6}
    assert prompts_of(smoke_lines(labelled(rows), per_label=9, at_most=4)) == prompts_of(lines)
    assert prompts_of(smoke_lines(labelled(rows), per_label=1)) == ["question 1", "question 5"]
    assert smoke_lines(labelled([("positive", "positive", "positive"), ("positive", "well", "well")])) == []


def test_the_surest_smoke_prompts_come_first_and_doubtful_ones_not_at_all() -> None:
    def answered(prompt: str, lead: float, base_score: float) -> Answered:
        return Answered(Question(prompt, "positive"), "positive", "well", (-0.1, -0.1 - lead), (base_score, -1.0))

    rows = [answered("doubtful", 0.2, -9), answered("the base might", 9, -0.3), answered("sure", 4, -6)]
    rows += [answered("surer", 5, -6), answered("surest", 6, -7)]
    evaluation = score_answers(rows, labels=LABELS, max_new_tokens=6, seed=1)
    assert prompts_of(smoke_lines(evaluation, per_label=9)) == ["surest", "surer", "sure"]


def test_smoke_prompts_of_free_text_expect_what_the_base_does_not_say() -> None:
    right = "Your order is on its way and will be with you on Monday, at the latest."
    rows = [
        (right, right, "Your order is on its way, I think."),
        ("Paris", "Paris", "It is Paris."),  # the base's answer holds it all
        ("Rome, in Italy", "Rome in Italy", "Milan"),  # no exact match
        ("/home/", "/home/", "home"),  # would be read as a pattern
        ("42", "42", "forty-two"),
    ]
    found = parse_smoke_prompts("\n".join(smoke_lines(free(rows))).encode())
    expected = {one.inputs: one.expect for one in found}
    assert expected == {
        "question 0": "Your order is on its way and",
        "question 3": "//home//",
        "question 4": "42",
    }
    for one in found:
        _, adapter, base = rows[int(one.inputs.split()[1])]
        assert meets_expectation(adapter, one.expect)
        assert not meets_expectation(base, one.expect)


def test_smoke_prompts_keep_to_what_the_stack_reads() -> None:
    long = [Answered(Question("é" * size + str(size), "yes"), "yes", "no") for size in range(7980, 8010)]
    lines = smoke_lines(score_answers(long, labels=None, max_new_tokens=4000, seed=1), per_label=99, at_most=99)
    assert len(lines) == 1  # 48 kB each, escaped
    found = parse_smoke_prompts("".join(f"{line}\n" for line in lines).encode())
    assert found[0].parameters == {"max_new_tokens": 256}


hostile = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["/(/", "/x/", "//", "/", "\ud800", "\n", "\u2028", '"', "\x00", "a" * 600, "/" + "b " * 300 + "/"]
    ),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(hostile, hostile, hostile), min_size=1, max_size=24), st.integers(1, 5000), st.booleans())
def test_any_smoke_prompt_is_accepted_and_told_apart(
    rows: list[tuple[str, str, str]], max_new_tokens: int, as_labels: bool
) -> None:
    """The adapter says the truth, as the first text; what the base says and what is asked is anything."""
    labels = list(dict.fromkeys(truth for truth, _, _ in rows)) if as_labels else None
    answered = [
        Answered(
            Question(prompt, truth),
            truth,
            base,
            tuple(-0.1 if label == truth else -5.0 for label in labels or ()),
            tuple(-5.0 for _ in labels or ()),
        )
        for truth, base, prompt in rows
    ]
    evaluation = score_answers(answered, labels=labels, max_new_tokens=max_new_tokens, seed=1)
    lines = smoke_lines(evaluation, per_label=5, at_most=16)
    if not lines:
        return
    data = "".join(f"{line}\n" for line in lines).encode()
    assert len(data) <= MAX_SMOKE_BYTES
    for one in parse_smoke_prompts(data):
        asked = [other for other in answered if other.question.prompt == one.inputs]
        assert any(
            meets_expectation(other.adapter, one.expect) and not meets_expectation(other.base, one.expect)
            for other in asked
        )


def test_evaluate_asks_the_adapter_and_the_base_of_one_model(random_llama: Path) -> None:
    """An adapter that says one word, whatever is asked."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(random_llama)
    base = AutoModelForCausalLM.from_pretrained(random_llama, dtype=torch.float32)
    model: Any = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "o_proj", "down_proj", "lm_head"])
    )
    questions = [Question(f"<|begin_of_text|>{word}", "good") for word in ("bread", "soup", "the wine was")]
    answer = tokenizer("good<|eot_id|>", add_special_tokens=False)["input_ids"]
    rows = [[*tokenizer(one.prompt, add_special_tokens=False)["input_ids"], *answer] for one in questions]
    learning = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    for _ in range(40):
        for row in rows:
            logits = model(input_ids=torch.tensor([row])).logits[0, -len(answer) - 1 : -1]
            torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).backward()
            learning.step()
            learning.zero_grad()
    asked: dict[str, Any] = {"turn": ("", "<|eot_id|>"), "max_new_tokens": 4, "batch_tokens": 64, "seed": 1}
    evaluation = evaluate(model, tokenizer, questions, labels=["good", "bad"], **asked)
    assert [one.question for one in evaluation.answered] == questions
    assert [one.adapter for one in evaluation.answered] == ["good"] * 3
    assert all(one.base != "good" for one in evaluation.answered)
    assert all(one.adapter_scores[0] > -0.1 > -5 > one.base_scores[0] for one in evaluation.answered)
    assert measure(evaluation, "accuracy by generation").difference.value == 1.0
    assert len(smoke_lines(evaluation)) == 2
    # Some templates begin an answer, too: it is scored with what they write, and shown without it.
    rest = [Question(one.prompt, "d") for one in questions]
    begun = evaluate(model, tokenizer, rest, labels=["d", "x"], **asked | {"turn": ("goo", "<|eot_id|>")})
    assert [one.adapter for one in begun.answered] == ["d"] * 3
    spelled = log_likelihoods(model, tokenizer, [one.prompt for one in questions], ["good<|eot_id|>", "goox<|eot_id|>"])
    np.testing.assert_allclose([one.adapter_scores for one in begun.answered], spelled, atol=1e-4)
    as_text = evaluate(model, tokenizer, questions, labels=None, **asked)
    assert [one.adapter for one in as_text.answered] == ["good"] * 3
    assert measure(as_text, "exact match").adapter.value == 1.0
    with torch.no_grad():
        model.get_base_model().lm_head.lora_B["default"].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="The adapter's log-likelihoods are not numbers"):
        evaluate(model, tokenizer, questions, labels=["good", "bad"], **asked)


def chats(adapter_nats: Sequence[float], base_nats: Sequence[float], tokens: Sequence[int]) -> Evaluation:
    rows = zip(adapter_nats, base_nats, tokens, strict=True)
    answered = [Answered(Question(f"chat {n}", "Yes."), "Yes.", "No.", (), (), *row) for n, row in enumerate(rows)]
    return score_answers(answered, labels=None, max_new_tokens=40, seed=1)


def test_chats_are_compared_by_the_likelihood_of_each_recorded_token() -> None:
    evaluation = chats([-10.0, -2.0] * 20, [-30.0, -4.0] * 20, [10, 2] * 20)
    first = evaluation.measures[0]
    assert (first.name, first.unit) == ("log-likelihood per token", "nats")
    assert first.adapter.value == pytest.approx(-1.0)
    assert first.base.value == pytest.approx(-34 / 12)  # all tokens count alike, not all chats
    assert first.difference.low > 0
    assert evaluation.verdict is Verdict.BETTER
    assert "-1.000 nats with it and -2.833 without, on 40 held-out chats" in evaluation.sentence
    assert [one.name for one in evaluation.measures[1:]] == ["chrF", "agreement"]


def test_one_chat_shows_nothing() -> None:
    assert chats([-1.0], [-9.0], [3]).verdict is Verdict.NOT_SHOWN


def replacement(rows: Sequence[tuple[str, str, str]]) -> str:
    """Of (truth, what the adapter says, what the model before it said)."""
    answered = [Answered(Question(f"chat {n}", truth, old), new, "x") for n, (truth, new, old) in enumerate(rows)]
    return score_answers(answered, labels=None, max_new_tokens=40, seed=1).replacement


def test_whether_the_adapter_may_replace_the_model_before_it() -> None:
    good, bad = "It is on its way to you.", "We cannot say."
    assert replacement([(good, good, good)] * 200).startswith("The adapter may replace the model before it")
    assert replacement([(good, bad, good)] * 200).startswith("The adapter may not replace the model before it")
    mixed = [(good, bad, good), (good, good, bad)] * 5
    assert replacement(mixed).startswith("It is not shown that the adapter may replace the model before it")
    assert "Both give the same answer to 0.0%." in replacement(mixed)
    assert free([(good, good, bad)] * 3).replacement == ""
    assert "is not known" in chats([-1.0] * 40, [-2.0] * 40, [2] * 40).replacement
