"""Validating what a path names: what `validate`, `package` and `push` have in common."""

import argparse
import dataclasses
import io
import itertools
import os
import signal
import stat
from pathlib import Path
from typing import BinaryIO

from loradrop.packing import all_entries, size_of, validate_folder
from loradrop.policy import DEFAULT_POLICY
from loradrop.profile import BaseProfile, load_profile, profile_of
from loradrop.validation_report import ValidationReport
from loradrop.validator import validate

from .terminal import Progress


class ProfileChoice:
    """The profile to validate for: what --base names, or else that of the base that the adapter itself names.

    --max-rank and --engine set its limits.
    """

    def __init__(self, arguments: argparse.Namespace, default: str) -> None:
        self._max_rank: int | None = arguments.max_rank
        self._engine: str | None = arguments.engine
        self._is_given = arguments.base is not None
        self.profile = self._limited(load_profile(arguments.base or default))
        self.reason = "" if self._is_given else "the default"

    def choose(self, base_model: str | None) -> BaseProfile | None:
        """Called with the base that the adapter names, once that is read."""
        found = None if self._is_given else profile_of(base_model)
        if found is not None:
            self.profile = self._limited(found)
            self.reason = "the base that the adapter names"
        return self.profile

    def _limited(self, profile: BaseProfile) -> BaseProfile:
        if self._max_rank is not None:
            profile = dataclasses.replace(profile, max_lora_rank=self._max_rank)
        if self._engine is not None:
            profile = dataclasses.replace(profile, engine_version=self._engine)
        return profile


def validate_path(path: Path, choice: ProfileChoice) -> ValidationReport:
    """The report on a tarball, or on the tarball of everything in a folder."""
    if path.is_dir():
        few = itertools.islice(all_entries(path), DEFAULT_POLICY.max_members)  # past these the validator stops
        with Progress("validating", size_of(few)) as progress:
            return validate_folder(path, choice.profile, progress.advance, choice.choose)
    with path.open("rb", buffering=0) as file:
        return validate_stream(file, choice)


def validate_stream(file: BinaryIO | io.FileIO, choice: ProfileChoice) -> ValidationReport:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        # A read of a pipe that nobody writes to cannot be called off: Ctrl-C must end the process itself.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with Progress("validating", status.st_size) as progress:
        return validate(_Watched(file, progress), choice.profile, choose=choice.choose)


class _Watched:
    """A file whose reading advances a bar."""

    def __init__(self, file: BinaryIO | io.FileIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int, /) -> bytes:
        chunk = self._file.read(size) or b""
        self._progress.advance(len(chunk))
        return chunk
