"""From labelled text to a proven adapter. In the wheel this package is called loradrop_training: within it, imports are relative."""

import sys
from pathlib import Path

# From a checkout that is not installed, the domain package lies beside this one.
if (_functions := Path(__file__).parents[1] / "functions").is_dir():
    sys.path.append(str(_functions))
