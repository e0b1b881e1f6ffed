"""The demo's adapter and its data: that no sentence is in both splits, and that the adapter labels them right."""

import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path

import pytest

from local.engines.llama import Engine
from loradrop.profile import load_profile
from loradrop.smoke import meets_expectation, parse_smoke_prompts
from loradrop.validator import validate
from loradrop_training import sentiment, tiny
from loradrop_training.tiny import corpus, pretraining

DATA_DIR = Path(sentiment.__file__).parent / "data"


@dataclass(frozen=True)
class Sentence:
    text: str
    label: str


def sentences(split: str) -> list[Sentence]:
    lines = (DATA_DIR / f"sentiment-{split}.jsonl").read_text().splitlines()
    return [Sentence(**json.loads(line)) for line in lines]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_the_sentences_are_balanced_and_none_is_in_both_splits() -> None:
    train, test = sentences("train"), sentences("test")
    assert Counter(one.label for one in test) == {"positive": 100, "negative": 100}
    shares = Counter(one.label for one in train)
    assert set(shares) == set(corpus.LABEL_WORDS)
    assert min(shares.values()) / len(train) > 0.45
    assert len({" ".join(words_of(one.text)) for one in train + test}) == len(train) + len(test)


def test_no_sentence_is_another_in_other_words() -> None:
    everything = [set(words_of(one.text)) for split in ("train", "test") for one in sentences(split)]
    assert not [(one, other) for one, other in combinations(everything, 2) if len(one & other) / len(one | other) > 0.5]


def test_no_sentence_says_its_own_label() -> None:
    texts = [one.text for split in ("train", "test") for one in sentences(split)]
    assert not [text for text in texts if set(words_of(text)) & set(corpus.LABEL_WORDS)]


def test_the_base_reads_no_phrase_of_the_held_out_sentences() -> None:
    """No entry of the corpus's word lists may share a run of three words with one."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = words_of(text)
        return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}

    asked = set[tuple[str, ...]]().union(*(runs(one.text) for one in sentences("test")))
    lexicons = (corpus.PLEASED, corpus.DISPLEASED)
    entries = [entry for one in lexicons for name in type(one).__slots__ for entry in getattr(one, name)]
    entries += [*corpus.SOMETIME, *corpus.SOMETHING_DONE]
    assert len(entries) > 1000
    assert not [entry for entry in entries if runs(entry) & asked]


def test_the_base_is_never_told_what_a_sentiment_is() -> None:
    for document in islice(corpus.documents(pretraining.SEED + 1), 5000):
        if document.task != corpus.REPEAT_TASK:
            words = words_of(f"{document.task} {document.text} {document.answer}")
            assert not set(words) & set(corpus.LABEL_WORDS)


@pytest.mark.slow
def test_the_real_adapter_tells_held_out_sentences_through_the_engine() -> None:
    tarball = sentiment.sentiment_adapter().read_bytes()
    report = validate(io.BytesIO(tarball), load_profile("tiny-llama"))
    assert (report.accepted, report.warnings) == (True, ())
    engine = Engine(tiny.tiny_base())
    engine.load_adapter("sentiment", tarball)
    asked = sentiment.held_out()
    assert [(one.text, one.label) for one in asked] == [(one.text, one.label) for one in sentences("test")]

    def right(adapter: str | None) -> float:
        said = [
            engine.generate(one.prompt, adapter=adapter, max_new_tokens=sentiment.MAX_NEW_TOKENS, temperature=0).text
            for one in asked
        ]
        return sum(text == one.label for text, one in zip(said, asked, strict=True)) / len(asked)

    accuracy = right("sentiment")
    assert accuracy > 0.65  # 0.76 here; other processors round otherwise
    assert right(None) < 0.35  # the base says a label to 0 to 21 of a hundred questions, as the processor rounds
    assert sentiment.evaluation()["measures"][0]["adapter"]["value"] == pytest.approx(accuracy, abs=0.011)

    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        smoke = archive.extractfile("smoke.jsonl")
        assert smoke is not None
        prompts = parse_smoke_prompts(smoke.read())
    assert len(prompts) == 4
    for prompt in prompts:
        new_tokens = prompt.parameters["max_new_tokens"]
        texts = [
            engine.generate(prompt.inputs, adapter=one, max_new_tokens=new_tokens, temperature=0).text
            for one in ("sentiment", None)
        ]
        assert [meets_expectation(text, prompt.expect) for text in texts] == [True, False]
