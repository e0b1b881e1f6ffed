"""`python -m cli` runs the command from a checkout, without installing it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "functions"))

from .main import run

run()
