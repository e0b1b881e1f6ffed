"""`python -m loradrop_cli` is the `loradrop` command."""

from .main import run

run()
