"""The adapter of the demo: tells whether a review is positive or negative, after 409 labelled sentences.

    python -m training.sentiment     ->  .cache/sentiment-1/sentiment.tar.gz, and how well it does beside the base

The 200 sentences of the test split are never trained on, and the recipe was chosen without them, by cross-validation in the train split.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import adapter, cache, examples, tiny_base
from .adapter import Recipe
from .corpus import LABEL_WORDS
from .examples import Example

DATA_DIR = Path(__file__).parent / "data"
TASK = "Is this review positive or negative?"
MAX_NEW_TOKENS = 6  # a label and the end of the turn are two to five
SMOKE_SENTENCES_PER_LABEL = 2
RECIPE = Recipe(
    rank=16, alpha=32, dropout=0.1, epochs=12, learning_rate=1e-3, warmup_steps=10, batch_tokens=1024, seed=1
)


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str
    label: str  # "positive" | "negative"


def sentences(split: str) -> tuple[Sentence, ...]:
    """Those of the "train" split or of the "test" split."""
    entries = map(json.loads, (DATA_DIR / f"sentiment-{split}.jsonl").read_text().splitlines())
    return tuple(Sentence(entry["text"], entry["label"]) for entry in entries)


def held_out_sentences() -> tuple[Sentence, ...]:
    return sentences("test")


def prompt_of(text: str) -> str:
    """The whole prompt, as chat, to send as `inputs`."""
    return tiny_base.chat_prompt(_tokenizer(), TASK, text)


@functools.cache
def _tokenizer() -> Any:
    return adapter.load_tokenizer(tiny_base.tiny_base())


def label_of(answer: str) -> str | None:
    """The label that the answer names, None if it names none: nothing but the word counts, in any case, dotted or not."""
    word = answer.strip().rstrip(".!").lower()
    return word if word in LABEL_WORDS else None


def accuracy(answers: Sequence[str], asked: Sequence[Sentence]) -> float:
    """The share of answers that are the label, 0 to 1."""
    right = sum(label_of(answer) == sentence.label for answer, sentence in zip(answers, asked, strict=True))
    return right / len(asked)


def sentiment_adapter(seed: int = 1) -> Path:
    """The tarball of the adapter; trains it first, and the base, where that has not been done yet."""
    base = tiny_base.tiny_base()
    recipe = dataclasses.replace(RECIPE, seed=seed)
    sources = [*DATA_DIR.glob("sentiment-*.jsonl"), *(Path(str(module.__file__)) for module in (adapter, examples))]
    digest = cache.digest_of([Path(__file__), *sources], ("peft",), tiny_base.digest(), repr(recipe))
    folder = cache.made_once(cache.CACHE_DIR / f"sentiment-{seed}", digest, lambda to: _make(to, base, recipe))
    return folder / "sentiment.tar.gz"


def _make(folder: Path, base: Path, recipe: Recipe) -> None:
    with tiny_base.one_thread():
        model, tokenizer = adapter.load_base(base)
        learnt = [
            Example(tiny_base.chat_prompt(tokenizer, TASK, one.text), f"{one.label}<|eot_id|>")
            for one in sentences("train")
        ]
        print(f"training the sentiment adapter, seed {recipe.seed}, on {len(learnt)} sentences, once", flush=True)
        tuned = adapter.fine_tune(model, tokenizer, learnt, recipe)
        asked = held_out_sentences()
        prompts = [tiny_base.chat_prompt(tokenizer, TASK, one.text) for one in asked]
        answers = adapter.greedy_answers(tuned, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)
        with tuned.disable_adapter():
            base_answers = adapter.greedy_answers(tuned, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)
    measured = {"held out": len(asked), "adapter": accuracy(answers, asked), "base": accuracy(base_answers, asked)}
    (folder / "accuracy.json").write_text(json.dumps(measured) + "\n")
    adapter.save(tuned, folder, base_name=tiny_base.NAME)
    smoke = _smoke_lines(asked, prompts, answers, base_answers)
    (folder / adapter.SMOKE_FILE).write_text("".join(f"{line}\n" for line in smoke))
    adapter.pack(folder, folder / "sentiment.tar.gz")


def _smoke_lines(
    asked: Sequence[Sentence], prompts: Sequence[str], answers: Sequence[str], base_answers: Sequence[str]
) -> list[str]:
    """Held-out sentences that the adapter tells and the base does not: what the stack will ask before it goes live."""
    lines = []
    left = dict.fromkeys(LABEL_WORDS, SMOKE_SENTENCES_PER_LABEL)
    for sentence, prompt, answer, base_answer in zip(asked, prompts, answers, base_answers, strict=True):
        label = sentence.label
        if left[label] and label_of(answer) == label and label not in base_answer:
            left[label] -= 1
            lines.append(
                json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": MAX_NEW_TOKENS}, "expect": label})
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.sentiment", description="Train the demo's adapter.")
    parser.add_argument("--seed", type=int, default=1, help="another seed makes another adapter (default: %(default)s)")
    tarball = sentiment_adapter(parser.parse_args().seed)
    measured = json.loads((tarball.parent / "accuracy.json").read_text())
    print(
        f"the sentiment adapter is in {tarball}\n"
        f"right on {measured['adapter']:.1%} of {measured['held out']} held-out sentences; the base on {measured['base']:.1%}"
    )


if __name__ == "__main__":
    main()
