"""The command line: reads the arguments, calls the domain, prints, and returns the exit code."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from loradrop import __version__
from loradrop.judge import ADAPTER_FILES, judge
from loradrop.policy import DEFAULT_POLICY
from loradrop.problems import ProblemCode
from loradrop.profile import (
    DEFAULT_ENGINE_VERSION,
    MAX_LORA_RANKS,
    BaseProfile,
    ProfileError,
    load_profile,
    profile_from_config,
    shipped_profiles,
)
from loradrop.report import Report
from loradrop.strict_json import JsonError, parse_object

from .packing import CommandError, all_entries, check_output, judge_folder, own_entries, package, part_beside, size_of
from .tables import code_document, code_lines, report_lines
from .terminal import Progress, megabytes, safe

ACCEPTED, REJECTED, UNUSABLE, INTERRUPTED, BROKEN_PIPE, TERMINATED = 0, 1, 2, 130, 141, 143
DEFAULT_PROFILE = "llama-3.1-8b-instruct"
MAX_MODEL_CONFIG_BYTES = 4 * 1024 * 1024
MAX_LISTED_NAMES = 8

_EXAMPLES = """\
examples:
  loradrop validate acme.tar.gz
  loradrop validate out/checkpoint-500 --base tiny-llama --json
  aws s3 cp s3://bucket/acme.tar.gz - | loradrop validate -
  loradrop package out/checkpoint-500 -o acme.tar.gz
  loradrop profile ./my-base-model --max-rank 64 -o my-base.json
  loradrop codes SHAPE_MISMATCH

exit codes: 0 accepted or done, 1 rejected, 2 wrong usage or unreadable
"""


def run() -> NoReturn:
    """The console script."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # unwinds, so that no part of a file is left
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code. Wrong usage leaves by SystemExit, as argparse does it."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - None where the caller closed it
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no message fails for a terminal's poor encoding
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except (CommandError, ProfileError) as error:
        return _unusable(str(error))
    except BrokenPipeError:
        _give_up_stdout()
        return BROKEN_PIPE
    except OSError as error:
        _give_up_stdout()
        return _unusable(f"{error.filename or 'reading or writing'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _unusable(message: str) -> int:
    print(f"loradrop: {safe(message)}", file=sys.stderr)
    return UNUSABLE


def _give_up_stdout() -> None:
    """Whoever read it is gone: what Python still holds for it must not fail once more at exit."""
    with contextlib.suppress(io.UnsupportedOperation), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(safe(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="loradrop",
        description="Judge and package LoRA adapters for the serving stack, before anything is uploaded.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"loradrop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    validate = commands.add_parser("validate", help="say whether an adapter would serve well, and why not")
    validate.add_argument(
        "path", metavar="PATH", help="a tarball, a folder as save_pretrained writes it, or - for stdin"
    )
    _add_base(validate)
    validate.set_defaults(run=_validate)

    pack = commands.add_parser(
        "package",
        help="make a flat, reproducible tarball of an adapter",
        description=f"Packs {', '.join(ADAPTER_FILES)} (where there is one) and nothing else. What the judge would "
        "refuse is not written.",
    )
    pack.add_argument("folder", metavar="DIR", type=Path, help="the folder that holds adapter_config.json")
    _add_output(pack, "FILE.tar.gz")
    _add_base(pack)
    pack.set_defaults(run=_package)

    profile = commands.add_parser("profile", help="make the profile of another base model")
    profile.add_argument(
        "config", metavar="CONFIG_JSON_OR_DIR", type=Path, help="a Hugging Face model or its config.json"
    )
    profile.add_argument(
        "--max-rank", metavar="N", type=int, required=True, help=f"one of {', '.join(map(str, MAX_LORA_RANKS))}"
    )
    profile.add_argument("--engine", metavar="VERSION", default=DEFAULT_ENGINE_VERSION, help="of vLLM (%(default)s)")
    profile.add_argument("--name", help="of the profile (the model's own)")
    _add_output(profile, "FILE")
    profile.set_defaults(run=_profile)

    codes = commands.add_parser("codes", help="explain the problem codes")
    codes.add_argument("codes", metavar="CODE", nargs="*", type=_problem_code, help="only these")
    codes.add_argument("--markdown", action="store_true", help="print docs/problems.md")
    codes.set_defaults(run=_codes)
    return parser


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        metavar="PROFILE",
        default=DEFAULT_PROFILE,
        help=f"the base: {', '.join(shipped_profiles())}, or a file that `loradrop profile` wrote (%(default)s)",
    )
    parser.add_argument("--max-rank", metavar="N", type=int, help="as the stack's MaxLoraRank sets it")
    parser.add_argument("--engine", metavar="VERSION", help="of vLLM, as the stack's EngineVersion sets it")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_output(parser: argparse.ArgumentParser, metavar: str) -> None:
    parser.add_argument("-o", "--output", metavar=metavar, type=Path, required=True, help="where to write")
    parser.add_argument("--force", action="store_true", help="replace it where it is there already")


def _problem_code(text: str) -> ProblemCode:
    code = ProblemCode.__members__.get(text.upper())
    if code is None:
        raise argparse.ArgumentTypeError(f"there is no code {text!r}; `loradrop codes` lists them")
    return code


def _base(arguments: argparse.Namespace) -> BaseProfile:
    profile = load_profile(arguments.base)
    if arguments.max_rank is not None:
        profile = dataclasses.replace(profile, max_lora_rank=arguments.max_rank)
    if arguments.engine is not None:
        profile = dataclasses.replace(profile, engine_version=arguments.engine)
    return profile


def _validate(arguments: argparse.Namespace) -> int:
    profile = _base(arguments)
    path = Path(arguments.path)
    if arguments.path == "-":
        # Unbuffered: a buffer's lock, held by a thread that waits for more, would spoil the exit.
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            report = _judge_stream(stdin, profile)
    elif path.is_dir():
        few = itertools.islice(all_entries(path), DEFAULT_POLICY.max_members)  # past these the judge stops
        with Progress("judging", size_of(few)) as progress:
            report = judge_folder(path, profile, progress.advance)
    else:
        with path.open("rb", buffering=0) as file:
            report = _judge_stream(file, profile)
    _print_report(report, "standard input" if arguments.path == "-" else arguments.path, profile, arguments)
    return ACCEPTED if report.accepted else REJECTED


def _judge_stream(file: BinaryIO | io.FileIO, profile: BaseProfile) -> Report:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        # A read of a pipe that nobody writes to cannot be called off: Ctrl-C must end the process itself.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    with Progress("judging", status.st_size) as progress:
        return judge(_Watched(file, progress), profile)


class _Watched:
    """A file whose reading advances a bar."""

    def __init__(self, file: BinaryIO | io.FileIO, progress: Progress) -> None:
        self._file = file
        self._progress = progress

    def read(self, size: int, /) -> bytes:
        chunk = self._file.read(size) or b""
        self._progress.advance(len(chunk))
        return chunk


def _print_report(report: Report, what: str, profile: BaseProfile, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    for line in report_lines(report, what, profile, sys.stdout):
        print(line)


def _package(arguments: argparse.Namespace) -> int:
    folder, output = arguments.folder, arguments.output
    profile = _base(arguments)
    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder; name the one that holds {ADAPTER_FILES[0]}.")
    check_output(output, force=arguments.force)
    entries = own_entries(folder)
    with Progress("packing", size_of(entries)) as progress:
        report = package(folder, output, profile, progress.advance)
    _print_report(report, str(folder), profile, arguments)
    if not arguments.json:
        print()
        for line in _package_notes(folder, output, report):
            print(safe(line))
    return ACCEPTED if report.accepted else REJECTED


def _package_notes(folder: Path, output: Path, report: Report) -> list[str]:
    if not report.accepted:
        notes = [f"{output} was not written."]
        inner = sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_FILES[0]}"))
        if inner and not (folder / ADAPTER_FILES[0]).exists():
            notes.append(f"An adapter lies in {folder / inner[-1]}; is that the one?")
        return notes
    notes = [f"Wrote {output}, {megabytes(output.stat().st_size)}."]
    others = sorted(found.name for found in os.scandir(folder) if found.name not in ADAPTER_FILES)
    if others:
        more = ", …" if len(others) > MAX_LISTED_NAMES else ""
        notes.append(f"Left out, as serving needs none of it: {', '.join(others[:MAX_LISTED_NAMES])}{more}")
    return notes


def _profile(arguments: argparse.Namespace) -> int:
    path, output = arguments.config, arguments.output
    check_output(output, force=arguments.force)
    path = path / "config.json" if path.is_dir() else path
    with path.open("rb") as file:
        data = file.read(MAX_MODEL_CONFIG_BYTES)
    try:
        config = parse_object(data, max_depth=100, constants=True)
    except JsonError as error:
        raise CommandError(f"{path} is no model's config.json: {error}.") from error
    hub_name = config.get("_name_or_path")
    name = arguments.name or (hub_name if isinstance(hub_name, str) and hub_name else str(path.resolve().parent))
    profile = profile_from_config(
        config, name=Path(name).name or "base", max_lora_rank=arguments.max_rank, engine_version=arguments.engine
    )
    with part_beside(output) as part:
        part.write_text(profile.to_json(), encoding="utf-8")
        part.replace(output)
    print(
        safe(f"Wrote {output}: {profile.architecture}, {profile.num_hidden_layers} layers, {profile.hidden_size} wide.")
    )
    print(
        safe(
            f"LoRA on {', '.join(profile.lora_modules)}; rank up to {profile.max_lora_rank}, vLLM {profile.engine_version}."
        )
    )
    if not profile.base_model_names:
        print("It names no base model: add to base_model_names what your adapters carry as base_model_name_or_path.")
    return ACCEPTED


def _codes(arguments: argparse.Namespace) -> int:
    if arguments.markdown:
        print(code_document(), end="")
        return ACCEPTED
    for line in code_lines(arguments.codes or ProblemCode, sys.stdout):
        print(line)
    return ACCEPTED
