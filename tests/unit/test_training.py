"""From labelled text to a tarball: what is learnt, what is packed, and that no sentence is both learnt and asked."""

import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from local.engine import Engine
from loradrop.judge import judge
from loradrop.profile import load_profile
from loradrop.smoke import meets_expectation, parse_smoke_prompts
from training import adapter, cache, corpus, sentiment, tiny_base
from training.adapter import Recipe
from training.examples import IGNORED, Example, TokenizedExample, answer_loss, batches, padded, tokenize
from training.sentiment import Sentence

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = Recipe(
    rank=4, alpha=8, dropout=0.1, epochs=2, learning_rate=1e-3, warmup_steps=2, batch_tokens=256, seed=1
)  # fmt: skip
SMOKE = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 4}, "expect": "positive"})


@pytest.fixture(scope="module")
def tokenizer(random_llama: Path) -> Any:
    return adapter.load_tokenizer(random_llama)


def make_adapter(base: Path, folder: Path, recipe: Recipe = QUICK, sentences: int = 24) -> Path:
    """A few steps' worth of an adapter; its tarball."""
    folder.mkdir()
    model, tokenizer = adapter.load_base(base)
    examples = [
        Example(tiny_base.chat_prompt(tokenizer, sentiment.TASK, one.text), f"{one.label}<|eot_id|>")
        for one in sentiment.sentences("train")[:sentences]
    ]
    with tiny_base.one_thread():
        adapter.save(adapter.fine_tune(model, tokenizer, examples, recipe), folder, base_name=tiny_base.NAME)
    (folder / adapter.SMOKE_FILE).write_text(f"{SMOKE}\n")
    adapter.pack(folder, folder / "adapter.tar.gz")
    return folder / "adapter.tar.gz"


@pytest.fixture(scope="module")
def tarball(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(random_llama, tmp_path_factory.mktemp("adapter") / "one")


def test_only_the_answer_is_learnt_token_by_token(tokenizer: Any) -> None:
    prompt = tiny_base.chat_prompt(tokenizer, sentiment.TASK, "Great soup.")
    long, short = tokenize(tokenizer, [Example(prompt, "negative<|eot_id|>"), Example("<|begin_of_text|>", "Hi")])
    batch = padded([long, short], tokenizer.pad_token_id)
    for row, (one, answer) in enumerate(((long, "negative<|eot_id|>"), (short, "Hi"))):
        answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        padding = batch.input_ids.shape[1] - len(one.ids)
        assert batch.labels[row].tolist() == [
            *[IGNORED] * one.prompt_tokens,
            *answer_ids,
            *[IGNORED] * padding,
        ]
        assert batch.input_ids[row].tolist() == [*one.ids, *[tokenizer.pad_token_id] * padding]
    assert tokenizer.decode([one for one in batch.labels[0].tolist() if one != IGNORED]) == "negative<|eot_id|>"


def test_the_tokens_of_prompt_and_answer_are_those_that_meet_when_an_answer_is_generated(tokenizer: Any) -> None:
    prompt = tiny_base.chat_prompt(tokenizer, sentiment.TASK, "Great soup.")
    (example,) = tokenize(tokenizer, [Example(prompt, "positive<|eot_id|>")])
    # A chat prompt begins the text itself; the engine adds nothing to it.
    assert list(example.ids[: example.prompt_tokens]) == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert example.ids.count(tokenizer.bos_token_id) == 1
    assert example.ids[-1] == tokenizer.eos_token_id


def test_the_prompt_is_the_chat_that_the_engine_makes(random_llama: Path, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": f"{sentiment.TASK}\n\nGreat soup."}]
    made = tiny_base.chat_prompt(tokenizer, sentiment.TASK, "Great soup.")
    assert made == Engine(random_llama).apply_chat_template(messages)


def test_the_loss_is_the_mean_over_answers_and_padding_does_not_touch_it(random_llama: Path) -> None:
    model, tokenizer = adapter.load_base(random_llama)
    examples = tokenize(tokenizer, [Example("A long prompt, and", " an answer of several words"), Example("A", " b")])
    losses = []
    for one in examples:
        logits = model(torch.tensor([one.ids])).logits[0, one.prompt_tokens - 1 : -1]  # (answer tokens, vocab_size)
        losses.append(F.cross_entropy(logits, torch.tensor(one.ids[one.prompt_tokens :])).item())
    together = answer_loss(model, padded(examples, tokenizer.pad_token_id))
    assert together.item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_every_example_is_in_one_batch_and_no_batch_is_too_large() -> None:
    dice = random.Random(0)
    examples = [TokenizedExample(tuple(range(dice.randint(2, 60))), 1) for _ in range(200)]
    made = list(batches(examples, max_tokens=256, pad_id=0, dice=dice))
    assert all(batch.input_ids.numel() <= 256 for batch in made)
    assert sum(len(batch.input_ids) for batch in made) == 200
    assert sum(int((batch.labels != IGNORED).sum()) for batch in made) == sum(len(one.ids) - 1 for one in examples)


def test_an_example_longer_than_a_batch_has_one_of_its_own() -> None:
    examples = [TokenizedExample(tuple(range(size)), 1) for size in (3, 40, 3)]
    made = batches(examples, max_tokens=10, pad_id=0, dice=random.Random(0))
    assert sorted(tuple(batch.input_ids.shape) for batch in made) == [(1, 40), (2, 3)]


def test_the_tarball_is_flat_and_holds_an_adapter_alone(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["adapter_config.json", "adapter_model.safetensors", "smoke.jsonl"]
    assert all(
        member.isreg() and (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "") for member in members
    )


def test_the_tarball_says_nothing_of_the_machine_that_made_it(tarball: Path, random_llama: Path) -> None:
    with tarfile.open(tarball) as archive:
        files = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny-llama"
    for place in (random_llama, tarball.parent, Path.home(), REPOSITORY, Path(sys.prefix)):
        assert not any(str(place).encode() in data for data in files.values())


def test_the_same_seed_makes_the_same_bytes_in_another_process(
    tarball: Path, random_llama: Path, tmp_path: Path
) -> None:
    """Another process, with another order of sets, another folder and another time."""
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_training import make_adapter;"
        "make_adapter(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    again = tmp_path / "again"
    path = os.pathsep.join((str(REPOSITORY / "functions"), str(REPOSITORY)))
    subprocess.run(
        [sys.executable, "-c", program, random_llama, again],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "17", "PYTHONPATH": path},
    )
    assert (again / "adapter.tar.gz").read_bytes() == tarball.read_bytes()


def test_another_seed_makes_another_adapter(tarball: Path, random_llama: Path, tmp_path: Path) -> None:
    other = Recipe(**{name: getattr(QUICK, name) for name in Recipe.__slots__} | {"seed": 2})
    assert make_adapter(random_llama, tmp_path / "other", other).read_bytes() != tarball.read_bytes()


def test_the_judge_accepts_it_without_a_warning(tarball: Path) -> None:
    report = judge(io.BytesIO(tarball.read_bytes()), load_profile("tiny-llama"))
    assert (report.accepted, report.problems, report.warnings) == (True, (), ())
    assert report.manifest is not None
    assert report.manifest.ranks == (4,)
    assert report.manifest.base_model == "tiny-llama"
    assert report.sha256 == hashlib.sha256(tarball.read_bytes()).hexdigest()
    assert [prompt.expect for prompt in report.smoke_prompts] == ["positive"]


def test_the_engine_answers_as_the_model_that_was_trained(random_llama: Path, tmp_path: Path) -> None:
    base, tokenizer = adapter.load_base(random_llama)
    prompts = [tiny_base.chat_prompt(tokenizer, sentiment.TASK, one.text) for one in sentiment.sentences("train")[:6]]
    examples = [Example(prompt, "positive<|eot_id|>") for prompt in prompts]
    eager = Recipe(
        rank=8, alpha=16, dropout=0.0, epochs=12, learning_rate=5e-3, warmup_steps=2, batch_tokens=512, seed=1
    )
    model = adapter.fine_tune(base, tokenizer, examples, eager)
    adapter.save(model, tmp_path, base_name=tiny_base.NAME)
    adapter.pack(tmp_path, tmp_path / "adapter.tar.gz")
    engine = Engine(random_llama)
    engine.load_adapter("a", (tmp_path / "adapter.tar.gz").read_bytes())
    served = [engine.generate(one, adapter="a", max_new_tokens=6, temperature=0).text for one in prompts]
    assert served == ["positive"] * 6
    assert served == adapter.greedy_answers(model, tokenizer, prompts, max_new_tokens=6)
    with model.disable_adapter():
        unchanged = adapter.greedy_answers(model, tokenizer, prompts, max_new_tokens=6)
    assert not any("positive" in answer for answer in unchanged)


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_the_sentences_are_balanced_and_none_is_in_both_splits() -> None:
    train, test = sentiment.sentences("train"), sentiment.held_out_sentences()
    assert Counter(one.label for one in test) == {"positive": 100, "negative": 100}
    shares = Counter(one.label for one in train)
    assert set(shares) == set(corpus.LABEL_WORDS)
    assert min(shares.values()) / len(train) > 0.45
    assert len({" ".join(words_of(one.text)) for one in train + test}) == len(train) + len(test)


def test_no_sentence_is_another_in_other_words() -> None:
    everything = [set(words_of(one.text)) for split in ("train", "test") for one in sentiment.sentences(split)]
    assert not [(one, other) for one, other in combinations(everything, 2) if len(one & other) / len(one | other) > 0.5]


def test_no_sentence_says_its_own_label() -> None:
    texts = [one.text for split in ("train", "test") for one in sentiment.sentences(split)]
    assert not [text for text in texts if set(words_of(text)) & set(corpus.LABEL_WORDS)]


def test_the_base_reads_no_phrase_of_the_held_out_sentences() -> None:
    """No entry of the corpus's word lists may share a run of three words with one."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = words_of(text)
        return {tuple(words[start : start + 3]) for start in range(len(words) - 2)}

    asked = set[tuple[str, ...]]().union(*(runs(one.text) for one in sentiment.held_out_sentences()))
    lexicons = (corpus.PLEASED, corpus.DISPLEASED)
    entries = [entry for one in lexicons for name in type(one).__slots__ for entry in getattr(one, name)]
    entries += [*corpus.SOMETIME, *corpus.SOMETHING_DONE]
    assert len(entries) > 1000
    assert not [entry for entry in entries if runs(entry) & asked]


def test_the_base_is_never_told_what_a_sentiment_is() -> None:
    for document in islice(corpus.documents(tiny_base.SEED + 1), 5000):
        if document.task != corpus.REPEAT_TASK:
            told = words_of(f"{document.task} {document.text} {document.answer}")
            assert not set(told) & set(corpus.LABEL_WORDS)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("positive", "positive"),
        (" Negative.", "negative"),
        ("positive positive", None),
        ("positively", None),
        ("not negative", None),
        ("", None),
    ],
)
def test_an_answer_names_a_label_or_none(answer: str, label: str | None) -> None:
    assert sentiment.label_of(answer) == label


def test_accuracy_counts_an_answer_without_a_label_as_wrong() -> None:
    asked = [Sentence("a", "positive"), Sentence("b", "negative"), Sentence("c", "negative"), Sentence("d", "positive")]
    assert sentiment.accuracy(["positive", "negative", "delicious", "negative"], asked) == 0.5


def test_a_folder_is_made_once_for_what_it_depends_on(tmp_path: Path) -> None:
    made: list[str] = []

    def make(folder: Path) -> None:
        made.append(folder.name)
        (folder / "result").write_text(str(len(made)))

    folder = tmp_path / "cache" / "thing"
    for _ in range(2):
        assert cache.made_once(folder, "one", make) == folder
    assert (folder / "result").read_text() == "1"
    cache.made_once(folder, "two", make)
    assert (folder / "result").read_text() == "2"
    assert not list((tmp_path / "cache").glob(".thing-*"))


def test_who_is_interrupted_leaves_what_was_there(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "result").write_text("whole")

    def interrupted(folder: Path) -> None:
        (folder / "result").write_text("half")
        raise KeyboardInterrupt

    folder = tmp_path / "thing"
    with pytest.raises(KeyboardInterrupt):
        cache.made_once(folder, "one", interrupted)
    assert not folder.exists()
    cache.made_once(folder, "one", make)
    with pytest.raises(KeyboardInterrupt):
        cache.made_once(folder, "two", interrupted)
    assert (folder / "result").read_text() == "whole"
    assert cache.is_made(folder, "one")
    assert not list(tmp_path.glob(".thing-*"))


def test_the_digest_changes_with_each_thing_that_it_is_made_of(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("1")
    first = cache.digest_of([source], ["torch"], "seed 1")
    assert cache.digest_of([source], ["torch"], "seed 1") == first
    others = [cache.digest_of([source], ["peft"], "seed 1"), cache.digest_of([source], ["torch"], "seed 2")]
    source.write_text("2")
    others.append(cache.digest_of([source], ["torch"], "seed 1"))
    assert len({first, *others}) == 4


@pytest.mark.slow
def test_the_real_adapter_tells_held_out_sentences_through_the_engine() -> None:
    tarball = sentiment.sentiment_adapter().read_bytes()
    report = judge(io.BytesIO(tarball), load_profile("tiny-llama"))
    assert (report.accepted, report.warnings) == (True, ())
    engine = Engine(tiny_base.tiny_base())
    engine.load_adapter("sentiment", tarball)
    asked = sentiment.held_out_sentences()

    def answers(adapter_name: str | None) -> list[str]:
        return [
            engine.generate(
                sentiment.prompt_of(one.text),
                adapter=adapter_name,
                max_new_tokens=sentiment.MAX_NEW_TOKENS,
                temperature=0,
            ).text
            for one in asked
        ]

    assert sentiment.accuracy(answers("sentiment"), asked) > 0.65  # 0.77 here; other processors round otherwise
    assert sentiment.accuracy(answers(None), asked) < 0.1

    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        smoke = archive.extractfile("smoke.jsonl")
        assert smoke is not None
        prompts = parse_smoke_prompts(smoke.read())
    assert len(prompts) == 4
    for prompt in prompts:
        new_tokens = prompt.parameters["max_new_tokens"]
        right = engine.generate(prompt.inputs, adapter="sentiment", max_new_tokens=new_tokens, temperature=0).text
        wrong = engine.generate(prompt.inputs, adapter=None, max_new_tokens=new_tokens, temperature=0).text
        assert meets_expectation(right, prompt.expect)
        assert not meets_expectation(wrong, prompt.expect)
