"""The arguments of a training, for `loradrop train` and for `python -m loradrop_training.fine_tune`: here, since torch takes seconds to import."""

import argparse
from pathlib import Path

DESCRIPTION = (
    "Makes an adapter of labelled text: checks the data, asks the judge before anything is trained, trains, holds the "
    "adapter against its base on held-out examples, and packs it with smoke prompts of its own."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a YAML file (docs/recipe.md lists its keys)")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help="write there, and not where the recipe says")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it will take and what the judge says; load no weights"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, where there is one")
    parser.add_argument("--force", action="store_true", help="replace what is in the output folder")
    parser.add_argument(
        "--require-better",
        action="store_true",
        help="exit with 1 where the adapter is not shown to be better than its base",
    )
