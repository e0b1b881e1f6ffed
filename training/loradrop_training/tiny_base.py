"""Makes the tiny base: a Llama of 1.8 million parameters, in the files and with the special tokens of Llama-3.1, that has read made-up reviews.

    python -m training.tiny_base     ->  .cache/tiny-llama/

About two minutes, on one core; the second run finds its own work and returns at once. It knows which words keep company, how a chat goes, and
words that describe what it read. It has never been asked for a sentiment: that is left to the adapter.
"""

from pathlib import Path

from . import cache

NAME = "tiny-llama"
TINY_LLAMA_DIR = cache.CACHE_DIR / NAME
SOURCES = ("pretraining.py", "corpus.py", "examples.py")


def tiny_base() -> Path:
    """The folder of the tiny base; trains it first where that has not been done yet."""
    return cache.made_once(TINY_LLAMA_DIR, digest(), _make)


def digest() -> str:
    """Of what the tiny base is made of."""
    here = Path(__file__).parent
    return cache.digest_of([here / name for name in SOURCES], ("torch", "transformers", "tokenizers"))


def _make(folder: Path) -> None:
    from .pretraining import make_tiny_base  # torch takes seconds that who finds the work done does not need

    make_tiny_base(folder)


def main() -> None:
    print(f"the tiny base is in {tiny_base()}")


if __name__ == "__main__":
    main()
