"""Judging what a path names, and printing the verdict: what `validate`, `package` and `push` have in common."""

import argparse
import dataclasses
import io
import itertools
import json
import os
import signal
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from loradrop.packing import all_entries, judge_folder, size_of
from loradrop.policy import DEFAULT_POLICY
from loradrop.profile import BaseProfile, load_profile
from loradrop.report import Report
from loradrop.validator import validate

from .tables import report_lines
from .terminal import Progress


def chosen_profile(base: str, arguments: argparse.Namespace) -> BaseProfile:
    """The profile `base`, with the limits that --max-rank and --engine set."""
    profile = load_profile(base)
    if arguments.max_rank is not None:
        profile = dataclasses.replace(profile, max_lora_rank=arguments.max_rank)
    if arguments.engine is not None:
        profile = dataclasses.replace(profile, engine_version=arguments.engine)
    return profile


def validate_path(path: Path, profile: BaseProfile) -> Report:
    """The verdict on a tarball, or on the tarball of everything in a folder."""
    if path.is_dir():
        few = itertools.islice(all_entries(path), DEFAULT_POLICY.max_members)  # past these the judge stops
        with Progress("judging", size_of(few)) as progress:
            return judge_folder(path, profile, progress.advance)
    with path.open("rb", buffering=0) as file:
        return validate_stream(file, profile)


def validate_stream(file: BinaryIO | io.FileIO, profile: BaseProfile) -> Report:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        # A read of a pipe that nobody writes to cannot be called off: Ctrl-C must end the process itself.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with Progress("judging", status.st_size) as progress:
        return validate(_Watched(file, progress), profile)


class _Watched:
    """A file whose reading advances a bar."""

    def __init__(self, file: BinaryIO | io.FileIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int, /) -> bytes:
        chunk = self._file.read(size) or b""
        self._progress.advance(len(chunk))
        return chunk


def print_report(report: Report, what: str, profile: BaseProfile, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    for line in report_lines(report, what, profile, sys.stdout):
        print(line)
