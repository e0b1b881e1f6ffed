"""The adapter of the demo: tells whether a review is positive or negative, by recipes/sentiment-tiny.yaml.

    python -m loradrop_training.sentiment     ->  .cache/sentiment-1/adapter.tar.gz, its report, and how well it does beside the base

The 200 held-out sentences are never trained on, and the recipe was chosen without them, by cross-validation in the others.
"""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cache, tiny
from .recipe import Recipe, read_recipe

RECIPE_FILE = Path(__file__).parent / "recipes" / "sentiment-tiny.yaml"
RECIPE = read_recipe(RECIPE_FILE)
LABELS = RECIPE.data.labels or ()
MAX_NEW_TOKENS = RECIPE.evaluation.max_new_tokens
SOURCES = (
    "base_model.py",
    "chats.py",
    "records.py",
    "dataset.py",
    "examples.py",
    "packed.py",
    "loop.py",
    "plan.py",
    "fine_tune.py",
    "output.py",
    "answers.py",
    "evaluation.py",
)
PACKAGES = ("torch", "transformers", "peft", "scikit-learn", "sacrebleu")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A sentence that was not trained on: `prompt` is the whole prompt, as chat, to send as `inputs`."""

    text: str
    label: str  # "positive" | "negative"
    prompt: str


def sentiment_adapter(seed: int = 1) -> Path:
    """The tarball of the adapter; trains it, and the base, if they are not there yet."""
    recipe = dataclasses.replace(RECIPE, optimisation=dataclasses.replace(RECIPE.optimisation, seed=seed))
    files = [RECIPE_FILE, *map(Path, (*recipe.data.train, *recipe.data.held_out))]
    sources = [Path(__file__).parent / name for name in SOURCES]
    digest = cache.digest_of([*files, *sources], PACKAGES, tiny.digest(), f"seed {seed}")
    folder = cache.made_once(cache.CACHE_DIR / f"sentiment-{seed}", digest, lambda to: _make(to, recipe))
    return folder / "adapter.tar.gz"


def _make(folder: Path, recipe: Recipe) -> None:
    from .fine_tune import fine_tune  # imports torch, which takes seconds
    from .plan import make_plan

    plan = make_plan(recipe)
    print(
        f"training the sentiment adapter, seed {recipe.optimisation.seed}, on {len(plan.train)} sentences, once",
        flush=True,
    )
    fine_tune(plan, folder)


def held_out(seed: int = 1) -> tuple[HeldOut, ...]:
    """The sentences that the adapter was evaluated on, in the order of their file."""
    asked = evaluation(seed)["answered"]
    texts = [json.loads(line)["text"] for file in RECIPE.data.held_out for line in Path(file).read_text().splitlines()]
    return tuple(
        HeldOut(text, one["question"]["truth"], one["question"]["prompt"])
        for text, one in zip(texts, asked, strict=True)
    )


def evaluation(seed: int = 1) -> dict[str, Any]:
    """The evaluation.json of the adapter."""
    found: dict[str, Any] = json.loads((sentiment_adapter(seed).parent / "evaluation.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loradrop_training.sentiment", description="Train the demo's adapter."
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed makes another adapter (default: %(default)s)")
    seed = parser.parse_args().seed
    print(f"the sentiment adapter is in {sentiment_adapter(seed)}\n{evaluation(seed)['sentence']}")


if __name__ == "__main__":
    main()
