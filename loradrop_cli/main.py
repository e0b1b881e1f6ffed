"""The command line: reads the arguments, calls the domain, prints, and returns the exit code."""

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from loradrop import __version__
from loradrop.packing import PackingError, adapter_below, check_output, own_entries, package, part_beside, size_of
from loradrop.problems import ProblemCode
from loradrop.profile import (
    DEFAULT_ENGINE_VERSION,
    MAX_LORA_RANKS,
    ProfileError,
    profile_from_config,
    shipped_profiles,
)
from loradrop.report import Report
from loradrop.strict_json import JsonError, parse_object
from loradrop.validator import ADAPTER_FILES
from loradrop_training.arguments import DESCRIPTION, add_arguments

from .tables import code_document, code_lines
from .terminal import CommandError, Progress, megabytes, safe
from .validating import chosen_profile, print_report, validate_path, validate_stream

ACCEPTED, REJECTED, UNUSABLE, INTERRUPTED, BROKEN_PIPE, TERMINATED = 0, 1, 2, 130, 141, 143
DEFAULT_PROFILE = "llama-3.1-8b-instruct"
MAX_MODEL_CONFIG_BYTES = 4 * 1024 * 1024
MAX_LISTED_NAMES = 8
MAX_DEPLOYMENT_SECONDS = 3600

_EXAMPLES = """\
examples:
  loradrop validate acme.tar.gz
  loradrop validate out/checkpoint-500 --base tiny-llama --json
  aws s3 cp s3://bucket/acme.tar.gz - | loradrop validate -
  loradrop package out/checkpoint-500 -o acme.tar.gz
  loradrop train training/loradrop_training/recipes/sentiment-tiny.yaml
  loradrop push acme.tar.gz --stack loradrop-dev
  loradrop invoke acme "How are you?"
  loradrop profile ./my-base-model --max-rank 64 -o my-base.json
  loradrop codes SHAPE_MISMATCH

exit codes: 0 accepted or done, 1 rejected, 2 wrong usage, unreadable, or AWS out of reach; train, push and invoke have more
"""
_TRAIN_CODES = """\
exit codes:
  0    trained, weighed and packed
  1    refused: by the judge, for the data, or because it cannot fit (with --require-better: or not better than the base)
  2    wrong usage, a wrong recipe, or a base that cannot be had
  3    the training failed: out of memory, or a loss that is not finite
  130  interrupted; --resume goes on
"""
_PUSH_CODES = """\
exit codes:
  0    deployed: it is live (with --no-wait: uploaded)
  1    rejected, by the judge here or by the stack
  2    wrong usage, unreadable, or AWS refused or could not be reached
  3    the deployment failed, a newer upload goes before it, or it did not end in time
  130  interrupted; once uploaded, the deployment goes on
"""
_INVOKE_CODES = """\
examples:
  loradrop invoke acme "How are you?" --system "Answer in one word."
  loradrop invoke acme - --raw --temperature 0 < prompt.txt

exit codes: 0 answered, 2 wrong usage, nothing live by this name, or AWS refused; 3 the model did not answer, or broke off
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
    except (CommandError, PackingError, ProfileError) as error:
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
    def __init__(self, **settings: Any) -> None:
        # Commands are made by this class too. An abbreviation in a script would break with the next option.
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        super().error(safe(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="loradrop",
        description="Train, judge, package, deploy and ask LoRA adapters.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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

    train = commands.add_parser(
        "train",
        help="make an adapter of labelled text, and prove it",
        description=f"{DESCRIPTION} Needs: pip install 'loradrop[train]'",
        epilog=_TRAIN_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(train)
    train.set_defaults(run=_train)

    push = commands.add_parser(
        "push",
        help="judge an adapter, upload it, and follow its deployment",
        description="Judges a tarball, or a folder that it packages as `package` does, by the stack's own rules; uploads\n"
        "what is accepted, and shows the states of its deployment until that ends.",
        epilog=_PUSH_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    push.add_argument("path", metavar="FILE_OR_DIR", help="a tarball, or the folder that holds adapter_config.json")
    push.add_argument("--name", help="of the adapter, such as acme or tenant/acme (the file's or the folder's)")
    _add_stack(push)
    _add_base(push, default=None, printed="outcome")
    push.add_argument("--no-wait", action="store_true", help="leave once it is uploaded")
    push.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=MAX_DEPLOYMENT_SECONDS,
        help="how long to follow the deployment (%(default)s)",
    )
    push.set_defaults(run=_push)

    invoke = commands.add_parser(
        "invoke",
        help="ask an adapter that is live",
        epilog=_INVOKE_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    invoke.add_argument("adapter", metavar="ADAPTER")
    invoke.add_argument("text", metavar="TEXT", nargs="+", help="a message to it, or - for stdin")
    _add_stack(invoke)
    invoke.add_argument("--system", metavar="TEXT", help="the system message before it")
    invoke.add_argument("--max-tokens", metavar="N", type=int, default=256, help="of the answer (%(default)s)")
    invoke.add_argument(
        "--temperature", metavar="T", type=float, help="0: always the likeliest token (the model's own)"
    )
    invoke.add_argument("--raw", action="store_true", help="TEXT is the whole prompt: no chat template")
    invoke.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print the answer as it comes (on a terminal: yes)",
    )
    invoke.set_defaults(run=_invoke)

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


def _add_stack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stack", metavar="NAME", help="of the deployed stack (LORADROP_STACK, or loradrop-dev)")


def _add_base(parser: argparse.ArgumentParser, default: str | None = DEFAULT_PROFILE, printed: str = "report") -> None:
    parser.add_argument(
        "--base",
        metavar="PROFILE",
        default=default,
        help=f"the base: {', '.join(shipped_profiles())}, or a file that `loradrop profile` wrote "
        f"({'the one of the stack' if default is None else default})",
    )
    parser.add_argument("--max-rank", metavar="N", type=int, help="as the stack's MaxLoraRank sets it")
    parser.add_argument("--engine", metavar="VERSION", help="of vLLM, as the stack's EngineVersion sets it")
    parser.add_argument("--json", action="store_true", help=f"print the {printed} as JSON")


def _add_output(parser: argparse.ArgumentParser, metavar: str) -> None:
    parser.add_argument("-o", "--output", metavar=metavar, type=Path, required=True, help="where to write")
    parser.add_argument("--force", action="store_true", help="replace it where it is there already")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) >= 0:  # nan is not: it would never be over
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")


def _problem_code(text: str) -> ProblemCode:
    code = ProblemCode.__members__.get(text.upper())
    if code is None:
        raise argparse.ArgumentTypeError(f"there is no code {text!r}; `loradrop codes` lists them")
    return code


def _validate(arguments: argparse.Namespace) -> int:
    profile = chosen_profile(arguments.base, arguments)
    if arguments.path == "-":
        # Unbuffered: a buffer's lock, held by a thread that waits for more, would spoil the exit.
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            report = validate_stream(stdin, profile)
    else:
        report = validate_path(Path(arguments.path), profile)
    what = "standard input" if arguments.path == "-" else arguments.path
    print_report(report, what, profile, as_json=arguments.json)
    return ACCEPTED if report.accepted else REJECTED


def _package(arguments: argparse.Namespace) -> int:
    folder, output = arguments.folder, arguments.output
    profile = chosen_profile(arguments.base, arguments)
    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder; name the one that holds {ADAPTER_FILES[0]}.")
    check_output(output, force=arguments.force)
    entries = own_entries(folder)
    with Progress("packing", size_of(entries)) as progress:
        report = package(folder, output, profile, progress.advance)
    print_report(report, str(folder), profile, as_json=arguments.json)
    if not arguments.json:
        print()
        for line in _package_notes(folder, output, report):
            print(safe(line))
    return ACCEPTED if report.accepted else REJECTED


def _package_notes(folder: Path, output: Path, report: Report) -> list[str]:
    if not report.accepted:
        notes = [f"{output} was not written."]
        if (inner := adapter_below(folder)) is not None:
            notes.append(f"An adapter lies in {inner}; is that the one?")
        return notes
    notes = [f"Wrote {output}, {megabytes(output.stat().st_size)}."]
    others = sorted(found.name for found in os.scandir(folder) if found.name not in ADAPTER_FILES)
    if others:
        more = ", …" if len(others) > MAX_LISTED_NAMES else ""
        notes.append(f"Left out, as serving needs none of it: {', '.join(others[:MAX_LISTED_NAMES])}{more}")
    return notes


def _train(arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the training keeps a checkpoint
    try:
        from loradrop_training import fine_tune
    except ImportError as error:
        raise CommandError(
            f"Training needs packages that are not installed ({error.name}): pip install 'loradrop[train]'."
        ) from error
    return fine_tune.run(arguments)


def _push(arguments: argparse.Namespace) -> int:
    from .push import push  # boto3 takes half a second, which no other command need wait for

    return push(arguments)


def _invoke(arguments: argparse.Namespace) -> int:
    from .invoke import invoke

    return invoke(arguments)


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
