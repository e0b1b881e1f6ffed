"""Folders that are made once, and again only when what they depend on has changed."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path


def user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loradrop"


# Of the checkout; installed, this package lies where nothing of the user's belongs.
_root = Path(__file__).parents[2]
CACHE_DIR = _root / ".cache" if (_root / "functions").is_dir() else user_cache()
DIGEST_FILE = ".made-from"


def digest_of(files: Iterable[Path], packages: Iterable[str] = (), *settings: str) -> str:
    """Names a result by what it depends on: the content of files, the versions of packages, settings in words."""
    parts = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    parts += [f"{package} {version(package)}" for package in packages]
    return hashlib.sha256("\n".join((*parts, *settings)).encode()).hexdigest()


def is_made(folder: Path, digest: str) -> bool:
    stored = folder / DIGEST_FILE
    return stored.is_file() and stored.read_text() == digest


def made_once(folder: Path, digest: str, make: Callable[[Path], None]) -> Path:
    """The folder, as `make` filled it for this digest.

    `make` fills a folder beside it that takes its place only at the end: whoever interrupts leaves what was there.
    Of two that need it at once the second waits, and finds the work of the first.
    """
    if is_made(folder, digest):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = stack.enter_context((folder.parent / f".{folder.name}.lock").open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_made(folder, digest):
            return folder
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent)))
        made = scratch / "made"
        made.mkdir()
        make(made)
        (made / DIGEST_FILE).write_text(digest)
        if folder.exists():
            folder.rename(scratch / "old")  # a folder that is not empty cannot be renamed over
        made.rename(folder)
    return folder
