"""The arguments of `loradrop train` and `loradrop recipe`: apart, since torch takes seconds to import."""

import argparse
from pathlib import Path

DESCRIPTION = (
    "Trains an adapter: checks the data, asks the validator before it trains, compares the adapter with its base on held-out "
    "examples, and packs it with smoke prompts of its own. Given data instead of a recipe, it chooses a recipe, writes it "
    "beside the output, and goes on."
)
RECIPE_DESCRIPTION = (
    "Reads data (chats, prompts and completions, instructions, labels; JSON lines, JSON, CSV, TSV, Parquet) from a file, a "
    "folder or an s3:// prefix, and writes a recipe for it, with the reason for each choice."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE_OR_DATA",
        help="recipe file (docs/recipe.md lists its keys), name of a shipped recipe (such as sentiment-tiny), or data",
    )
    add_choices(parser)
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help="output folder (default: the recipe's `output`)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print steps, memory, time and the validator's verdict; load no weights"
    )
    parser.add_argument(
        "--show-example", action="store_true", help="print one example, with what is trained on in ⟦ ⟧, and stop"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    parser.add_argument("--force", action="store_true", help="replace what is in the output folder")
    parser.add_argument(
        "--require-better",
        action="store_true",
        help="exit with code 1 unless the adapter is shown to be better than its base",
    )


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="file, folder or s3:// prefix")
    add_choices(parser)
    parser.add_argument("-o", "--output", metavar="FILE.yaml", type=Path, required=True, help="recipe to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def add_choices(parser: argparse.ArgumentParser) -> None:
    """What a recipe for data is chosen with."""
    parser.add_argument(
        "--base", metavar="MODEL", help="with data: base model (default: meta-llama/Llama-3.1-8B-Instruct)"
    )
    parser.add_argument(
        "--profile", metavar="PROFILE", help="with data: base profile of the endpoint (default: the base's)"
    )
    parser.add_argument("--name", help="with data: adapter name (default: from the file's name)")
