"""The tiny base: a Llama of 1.8 million parameters, with the files and special tokens of Llama-3.1, pretrained on made-up reviews.

    python -m loradrop_training.tiny     ->  .cache/tiny-llama/

Pretraining takes about two minutes on one core; a second run finds the model and returns at once. The model knows which words
go together, how a chat goes, and words that describe a text. It was never asked for a sentiment: that is the adapter's task.
"""

from pathlib import Path

from .. import cache

NAME = "tiny-llama"
TINY_LLAMA_DIR = cache.CACHE_DIR / NAME
SOURCES = ("tiny/pretraining.py", "tiny/corpus.py", "examples.py")


def tiny_base() -> Path:
    """The folder of the tiny base, which is pretrained first if it is not there yet."""
    return cache.made_once(TINY_LLAMA_DIR, digest(), _make)


def digest() -> str:
    """Of what the tiny base is made of."""
    package = Path(__file__).parents[1]
    return cache.digest_of([package / name for name in SOURCES], ("torch", "transformers", "tokenizers"))


def _make(folder: Path) -> None:
    from .pretraining import make_tiny_base  # imports torch, which takes seconds

    make_tiny_base(folder)
