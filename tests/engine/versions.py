"""The Python code of other versions of vLLM: fetched, and asked about adapters.

.engine/bin/python tests/engine/versions.py         # make engine-versions: fetches what is missing into .engine-versions
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".engine-versions"
REQUIREMENTS = ROOT / "requirements-engine-versions.txt"
PYTHON = ROOT / ".engine" / "bin" / "python"
ORACLE = Path(__file__).with_name("version_oracle.py")
INSTALLED = "0.32.0"


def requirements() -> dict[str, str]:
    """Version → what pip fetches for it."""
    lines = (line.strip() for line in REQUIREMENTS.read_text().splitlines())
    return {line.rpartition("==")[2]: line for line in lines if line and not line.startswith("#")}


def missing() -> list[str]:
    return [version for version in requirements() if not (FOLDER / version / "vllm" / "lora").is_dir()]


def fetch(version: str) -> None:
    """Only the Python files: some 25 MB of a wheel of 100 to 350."""
    with tempfile.TemporaryDirectory(prefix="loradrop-vllm-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*command, requirements()[version]], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        unpacked = FOLDER / f".{version}.part"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [name for name in archive.namelist() if name.endswith(".py")])
        unpacked.rename(FOLDER / version)


class VersionOracle:
    """One version, asked by way of a pipe."""

    def __init__(self, version: str) -> None:
        folder = "" if version == INSTALLED else str(FOLDER / version)
        self._process = subprocess.Popen(
            [PYTHON, "-P", ORACLE, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, folder: Path) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(str(folder)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "its code cannot be imported"
        answer: dict[str, Any] = json.loads(line)
        return answer


if __name__ == "__main__":
    for one in missing():
        print(f"fetching {requirements()[one]}", flush=True)
        fetch(one)
