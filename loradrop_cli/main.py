"""The command line: reads the arguments, calls the domain, prints, and returns the exit code."""

import argparse
import contextlib
import importlib
import io
import os
import shlex
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from loradrop import __version__
from loradrop.packing import (
    PackingError,
    adapter_below,
    check_output,
    own_entries,
    package,
    part_beside,
    size_of,
    validate_folder,
)
from loradrop.problems import ProblemCode
from loradrop.profile import (
    DEFAULT_ENGINE_VERSION,
    MAX_LORA_RANKS,
    ProfileError,
    profile_from_config,
    shipped_profiles,
)
from loradrop.strict_json import JsonError, parse_object
from loradrop.validation_report import ValidationReport
from loradrop.validator import ADAPTER_FILES
from loradrop_training.arguments import DESCRIPTION, RECIPE_DESCRIPTION, add_arguments, add_recipe_arguments

from .capacity import DEFAULT_HOURLY_PRICE, DEFAULT_INSTANCE, INSTANCES, plan
from .exit_codes import ExitCode, exit_codes_help
from .mending import NotMendableError, mending_of
from .tables import code_document, code_lines, print_report
from .terminal import CommandError, Progress, megabytes, safe, safe_text
from .validating import ProfileChoice, validate_path, validate_stream

DEFAULT_PROFILE = "llama-3.1-8b-instruct"
MAX_MODEL_CONFIG_BYTES = 4 * 1024 * 1024
MAX_LISTED_NAMES = 8
MAX_DEPLOYMENT_SECONDS = 3600
# ReconcileFleet is started at once; what it misses, its next pass finds.
MAX_REMOVAL_SECONDS = 300

_EXAMPLES = """\
examples:
  loradrop validate acme.tar.gz
  loradrop validate out/checkpoint-500 --base tiny-llama --json
  aws s3 cp s3://bucket/acme.tar.gz - | loradrop validate -
  loradrop package out/checkpoint-500 -o acme.tar.gz
  loradrop package adapters -o acme.tar.gz --mend
  loradrop train sentiment-tiny
  loradrop train chats.jsonl --dry-run
  loradrop push acme.tar.gz --stack loradrop-dev
  loradrop invoke acme "How are you?"
  loradrop list --failed
  loradrop rollback acme
  loradrop serve --port 8080
  loradrop profile ./my-base-model --max-rank 64 -o my-base.json
  loradrop codes SHAPE_MISMATCH

"""
_INVOKE_EXAMPLES = """\
examples:
  loradrop invoke acme "How are you?" --system "Answer in one word."
  loradrop invoke acme - --raw --temperature 0 < prompt.txt

"""


def run() -> NoReturn:
    """The console script."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED)
    )  # unwinds, so that no part of a file is left
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
        return ExitCode.BROKEN_PIPE
    except OSError as error:
        _give_up_stdout()
        return _unusable(f"{error.filename or 'reading or writing'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code


def _unusable(message: str) -> int:
    print(f"loradrop: {safe_text(message)}", file=sys.stderr)
    return ExitCode.UNUSABLE


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
        description="Train, validate, package, deploy, invoke and operate LoRA adapters.",
        epilog=_EXAMPLES + exit_codes_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"loradrop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, description: str | None = None, examples: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=description or f"{summary[0].upper()}{summary[1:]}.",
            epilog=examples + exit_codes_help(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    validate = command("validate", "check whether an adapter can be served, and list every problem")
    validate.add_argument(
        "path", metavar="PATH", help="tarball, folder written by save_pretrained, or - for standard input"
    )
    _add_base(validate)
    validate.add_argument("--markdown", action="store_true", help="report as Markdown")
    validate.set_defaults(run=_validate)

    pack = command(
        "package",
        "make a flat, reproducible tarball of an adapter",
        f"Packages {', '.join(ADAPTER_FILES)} (where it exists) and nothing else.\n"
        "An adapter that would be rejected is not written. Where mending its form is enough, that is offered.",
    )
    pack.add_argument("folder", metavar="DIR", type=Path, help="folder that holds adapter_config.json")
    _add_output(pack, "FILE.tar.gz", "tarball to write")
    pack.add_argument(
        "--mend",
        action="store_true",
        help="mend what takes no guess, and say what: names with wrappers or an adapter's name in them, the base's own weights, a "
        "folder around the adapter, dtypes that are cast anyway, mlx-lm's form; DIR is not changed",
    )
    _add_base(pack)
    pack.set_defaults(run=_package)

    train = command(
        "train",
        "train an adapter on labels, chats or other text, and evaluate it",
        f"{textwrap.fill(DESCRIPTION, 100)}\nRequires: pip install 'loradrop[train]'",
    )
    add_arguments(train)
    train.set_defaults(run=_train)

    recipe = command("recipe", "choose a recipe for a data file", textwrap.fill(RECIPE_DESCRIPTION, 100))
    add_recipe_arguments(recipe)
    recipe.set_defaults(run=_recipe)

    push = command(
        "push",
        "validate an adapter, upload it, and follow its deployment",
        "Validates a tarball by the stack's own rules; a folder is packaged first. If it is accepted, uploads it,\n"
        "and shows each state of the deployment until the adapter is live.",
    )
    push.add_argument("path", metavar="FILE_OR_DIR", help="tarball, or folder that holds adapter_config.json")
    push.add_argument("--name", help="adapter name, such as acme or tenant/acme (default: name of the file or folder)")
    _add_stack(push)
    _add_base(push, default="the stack's own", printed="outcome")
    push.add_argument(
        "--no-wait", action="store_true", help="return after the upload, without following the deployment"
    )
    _add_timeout(push)
    push.set_defaults(run=_on_aws("push", "push"))

    invoke = command("invoke", "send a prompt to a live adapter", examples=_INVOKE_EXAMPLES)
    invoke.add_argument("adapter", metavar="ADAPTER", help="adapter name")
    invoke.add_argument("text", metavar="TEXT", nargs="+", help="message to the adapter, or - for standard input")
    _add_stack(invoke)
    invoke.add_argument("--system", metavar="TEXT", help="system message (default: none)")
    invoke.add_argument(
        "--max-tokens", metavar="N", type=int, default=256, help="longest answer, in tokens (default: %(default)s)"
    )
    invoke.add_argument(
        "--temperature", metavar="T", type=float, help="sampling temperature; 0 is greedy (default: the model's own)"
    )
    invoke.add_argument("--raw", action="store_true", help="send TEXT as the whole prompt, without a chat template")
    invoke.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print the answer as it is generated (default: only on a terminal)",
    )
    invoke.set_defaults(run=_on_aws("invoke", "invoke"))

    _add_life(command)
    _add_serving(command)

    sizing = command(
        "plan",
        "say how many adapters fit where, how long requests wait, and what it costs",
        "Computes from the base's dimensions what fits on the GPU, in host memory and on the disk, which share of the\n"
        "requests finds its adapter in each, and the cost for each adapter. Reads nothing from AWS.",
    )
    _add_plan(sizing)

    profile = command("profile", "make the profile of another base model")
    profile.add_argument(
        "config", metavar="CONFIG_JSON_OR_DIR", type=Path, help="Hugging Face model folder, or its config.json"
    )
    profile.add_argument(
        "--max-rank",
        metavar="N",
        type=int,
        required=True,
        help=f"highest rank to serve: {', '.join(map(str, MAX_LORA_RANKS))}",
    )
    profile.add_argument(
        "--engine", metavar="VERSION", default=DEFAULT_ENGINE_VERSION, help="vLLM version (default: %(default)s)"
    )
    profile.add_argument("--name", help="profile name (default: the model's own)")
    _add_output(profile, "FILE", "profile to write")
    profile.set_defaults(run=_profile)

    codes = command("codes", "explain the problem codes")
    codes.add_argument("codes", metavar="CODE", nargs="*", type=_problem_code, help="codes to explain (default: all)")
    codes.add_argument("--markdown", action="store_true", help="all of docs/problems.md, as Markdown")
    codes.set_defaults(run=_codes)
    return parser


def _add_life(command: Any) -> None:
    """What people do with adapters after the first push."""
    listing = command("list", "list the adapters and the state of each")
    listing.add_argument("--failed", action="store_true", help="only those that failed, were rejected or wait for room")
    listing.add_argument("--limit", metavar="N", type=_count, help="adapters per page (default: all)")
    listing.add_argument("--after", metavar="ADAPTER", help="start the page after this adapter (default: at the first)")
    _add_operated(listing, "fleet", "list_adapters")

    status = command("status", "show the state of an adapter, or of the stack")
    status.add_argument("adapter", metavar="ADAPTER", nargs="?", help="adapter name (default: the whole stack)")
    status.add_argument("--watch", action="store_true", help="follow the running deployment to its end first")
    _add_operated(status, "fleet", "status")

    history = command("history", "list every upload of an adapter, newest first")
    history.add_argument("adapter", metavar="ADAPTER", help="adapter name")
    history.add_argument(
        "--limit", metavar="N", type=_count, default=20, help="number of uploads (default: %(default)s)"
    )
    _add_operated(history, "fleet", "history")

    rollback = command("rollback", "make an earlier release live again, after another smoke test")
    rollback.add_argument("adapter", metavar="ADAPTER", help="adapter name")
    rollback.add_argument(
        "--to",
        metavar="RELEASE",
        help="release, its first characters, or an upload's version (default: the one that was live before)",
    )
    _add_timeout(rollback)
    _add_operated(rollback, "changes", "rollback")

    remove = command("remove", "take an adapter out of service")
    remove.add_argument("adapter", metavar="ADAPTER", help="adapter name")
    remove.add_argument("--yes", action="store_true", help="no confirmation question")
    remove.add_argument(
        "--no-wait", action="store_true", help="return after the deletion, without following the removal"
    )
    _add_timeout(remove, MAX_REMOVAL_SECONDS)
    _add_operated(remove, "changes", "remove")

    retry = command("retry", "deploy again what failed")
    retry.add_argument("adapters", metavar="ADAPTER", nargs="*", help="adapter names")
    retry.add_argument("--failed", action="store_true", help="all that failed or wait for room, and all lost events")
    _add_timeout(retry)
    _add_operated(retry, "changes", "retry")

    redeploy = command(
        "redeploy",
        "deploy live releases again, onto the endpoint and base that the stack has now",
        "Deploys live releases again, onto the endpoint and base that the stack has now.\n"
        "Each is smoke-tested before its live pointer moves, and its answers are compared with the earlier ones.",
    )
    redeploy.add_argument("adapters", metavar="ADAPTER", nargs="*", help="adapter names")
    redeploy.add_argument("--all", action="store_true", help="every live adapter")
    _add_timeout(redeploy)
    _add_operated(redeploy, "changes", "redeploy")

    reconcile = command("reconcile", "compare bucket, registry and endpoint, and repair the difference")
    reconcile.add_argument("adapter", metavar="ADAPTER", nargs="?", help="adapter name (default: all)")
    reconcile.add_argument("--dry-run", action="store_true", help="plan, without repairs")
    _add_timeout(reconcile)
    _add_operated(reconcile, "changes", "reconcile")

    cost = command(
        "cost",
        "say what the stack cost this month, and for whom",
        "Divides the endpoint's price among the adapters: the time of their requests by SageMaker's metrics, and the idle\n"
        "rest in equal parts among those that are live. Adds storage and deployments, and what an endpoint for each would cost.",
    )
    cost.add_argument("--month", metavar="YYYY-MM", help="another month (default: this one, up to now)")
    cost.add_argument(
        "--hourly-price",
        metavar="DOLLARS",
        type=_amount,
        help=f"of one instance in your region (default for {DEFAULT_INSTANCE}: {DEFAULT_HOURLY_PRICE}, by third parties)",
    )
    cost.add_argument("--csv", action="store_true", help="the adapters as CSV")
    _add_operated(cost, "cost", "cost")

    teardown = command(
        "teardown",
        "delete the stack and everything that it made",
        "Deletes the stack's adapter components, then the stack with its endpoint and base. What others made stays.\n"
        "The buckets and the registry stay too, unless --data is given.",
    )
    teardown.add_argument("--data", action="store_true", help="delete adapters, releases and history as well, for good")
    teardown.add_argument("--yes", action="store_true", help="no confirmation question")
    _add_timeout(teardown)
    _add_operated(teardown, "teardown", "teardown")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapters", metavar="N", type=_count, required=True, help="how many adapters")
    parser.add_argument("--rank", metavar="N", type=_count, default=16, help="their rank (default: %(default)s)")
    parser.add_argument(
        "--base", metavar="PROFILE", default=DEFAULT_PROFILE, help="base profile, or a file (default: %(default)s)"
    )
    parser.add_argument("--max-rank", metavar="N", type=_count, help="the stack's MaxLoraRank (default: the profile's)")
    parser.add_argument("--max-loras", metavar="N", type=_count, default=8, help="MaxLoras (default: %(default)s)")
    parser.add_argument(
        "--max-cpu-loras", metavar="N", type=_count, default=32, help="MaxCpuLoras (default: %(default)s)"
    )
    parser.add_argument(
        "--max-model-length", metavar="N", type=_count, default=8192, help="MaxModelLength (default: %(default)s)"
    )
    parser.add_argument(
        "--skew",
        metavar="S",
        type=_amount,
        default=1.0,
        help="adapter k is asked for in proportion to 1 / k^S; 0 is all alike (default: %(default)s)",
    )
    parser.add_argument(
        "--instance", choices=INSTANCES, default=DEFAULT_INSTANCE, help="instance type (default: %(default)s)"
    )
    parser.add_argument(
        "--hourly-price",
        metavar="DOLLARS",
        type=_amount,
        default=DEFAULT_HOURLY_PRICE,
        help=f"of the instance in your region (default: %(default)s, of {DEFAULT_INSTANCE}, by third parties)",
    )
    parser.add_argument("--json", action="store_true", help="result as JSON")
    parser.set_defaults(run=plan)


def _add_serving(command: Any) -> None:
    serve = command(
        "serve",
        "serve OpenAI's API and a page of the stack",
        "Serves OpenAI's API (/v1), in which an adapter's name is a model, and a page to look at the stack (/).\n"
        "Requires: pip install 'loradrop[serve]'",
    )
    _add_stack(serve)
    serve.add_argument("--port", metavar="N", type=_port, default=8080, help="0 is any free one (default: %(default)s)")
    serve.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="others require a token (default: %(default)s)"
    )
    serve.add_argument(
        "--token-file", metavar="FILE", type=Path, help="file with the token that clients have as their API key"
    )
    serve.add_argument("--read-only", action="store_true", help="a page without anything that changes the stack")
    serve.set_defaults(run=_serve)

    url = command(
        "url",
        "print SageMaker's own OpenAI URL of a live adapter",
        "Prints the base URL of SageMaker's OpenAI API for the component that is live now: chat alone, with a bearer token of\n"
        "SageMaker's. It breaks when that component is replaced; `loradrop serve` follows the live pointer.",
    )
    url.add_argument("adapter", metavar="ADAPTER", help="adapter name")
    _add_stack(url)
    url.set_defaults(run=_on_aws("invoke", "url"))


def _add_operated(parser: argparse.ArgumentParser, module: str, function: str) -> None:
    _add_stack(parser)
    parser.add_argument("--json", action="store_true", help="result as JSON")
    parser.set_defaults(run=_on_aws(module, function))


def _add_timeout(parser: argparse.ArgumentParser, seconds: int = MAX_DEPLOYMENT_SECONDS) -> None:
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_amount,
        default=seconds,
        help="time limit for the wait (default: %(default)s)",
    )


def _port(text: str) -> int:
    if text.isdecimal() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port; it must be a whole number from 0 to 65535")


def _count(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")


def _add_stack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stack", metavar="NAME", help="deployed stack (default: $LORADROP_STACK, or else loradrop-dev)"
    )


def _add_base(
    parser: argparse.ArgumentParser,
    default: str = f"by the base that the adapter names, or else {DEFAULT_PROFILE}",
    printed: str = "report",
) -> None:
    parser.add_argument(
        "--base",
        metavar="PROFILE",
        help=f"base profile: {', '.join(shipped_profiles())}, or a file from `loradrop profile` (default: {default})",
    )
    parser.add_argument("--max-rank", metavar="N", type=int, help="the stack's MaxLoraRank (default: the profile's)")
    parser.add_argument("--engine", metavar="VERSION", help="the stack's EngineVersion (default: the profile's)")
    parser.add_argument("--json", action="store_true", help=f"{printed} as JSON")


def _add_output(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    parser.add_argument("-o", "--output", metavar=metavar, type=Path, required=True, help=what)
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def _amount(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (amount := float(text)) >= 0:  # nan is not: a time limit would never be over
            return amount
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")


def _problem_code(text: str) -> ProblemCode:
    code = ProblemCode.__members__.get(text.upper())
    if code is None:
        raise argparse.ArgumentTypeError(f"there is no problem code {text!r}; `loradrop codes` lists them all")
    return code


def _validate(arguments: argparse.Namespace) -> int:
    choice = ProfileChoice(arguments, DEFAULT_PROFILE)
    if arguments.path == "-":
        # Unbuffered: a buffer's lock, held by a thread that waits for more, would spoil the exit.
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            report = validate_stream(stdin, choice)
    else:
        report = validate_path(Path(arguments.path), choice)
    what = "standard input" if arguments.path == "-" else arguments.path
    print_report(report, what, choice, as_json=arguments.json, as_markdown=arguments.markdown)
    return ExitCode.DONE if report.accepted else ExitCode.REJECTED


def _package(arguments: argparse.Namespace) -> int:
    folder, output = arguments.folder, arguments.output
    choice = ProfileChoice(arguments, DEFAULT_PROFILE)
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder; name the one that holds {ADAPTER_FILES[0]}.")
    check_output(output, force=arguments.force)
    changes: list[str] | None = None
    notes: list[str] = []
    if arguments.mend:
        changes, report, notes = _packaged_mended(folder, output, choice)
    else:
        with Progress("packaging", size_of(own_entries(folder))) as progress:
            report = package(folder, output, choice.profile, progress.advance, choice.choose)
    print_report(report, str(folder), choice, as_json=arguments.json, changes=changes)
    if not arguments.json:
        if not report.accepted and not arguments.mend:
            notes = _offer(arguments, choice)
        print()
        for line in (*notes, *_package_notes(folder, output, report)):
            print(safe(line))
    return ExitCode.DONE if report.accepted else ExitCode.REJECTED


def _packaged_mended(
    folder: Path, output: Path, choice: ProfileChoice
) -> tuple[list[str], ValidationReport, list[str]]:
    """What was changed, the report on what was written, and both for a person. What cannot be mended is packaged as it is."""
    changes, notes, source = [], [], folder
    with tempfile.TemporaryDirectory(prefix=".loradrop-", dir=output.parent) as written:
        try:
            mending = mending_of(folder, choice.choose)
            if mending.changes:
                mending.write(Path(written))
                source, changes = Path(written), mending.changes
            notes = [f"Mended: {change}." for change in changes] or ["There was nothing to mend."]
        except NotMendableError as error:
            notes = [f"Not mended: {error}"]
        with Progress("packaging", size_of(own_entries(source))) as progress:
            return changes, package(source, output, choice.profile, progress.advance, choice.choose), notes


def _offer(arguments: argparse.Namespace, choice: ProfileChoice) -> list[str]:
    """Where mending makes a rejected adapter an accepted one: what it would do, and the command."""
    folder, output = arguments.folder, arguments.output
    try:
        with tempfile.TemporaryDirectory(prefix=".loradrop-", dir=output.parent) as written:
            mending = mending_of(folder, choice.choose)
            if not mending.changes:
                return []
            mending.write(Path(written))
            if not validate_folder(Path(written), choice.profile, lambda _: None, choice.choose).accepted:
                return []
    except (NotMendableError, OSError):  # the report on the folder stands, and with it the exit code
        return []
    given = (("--base", arguments.base), ("--max-rank", arguments.max_rank), ("--engine", arguments.engine))
    options = [word for name, value in given if value is not None for word in (name, str(value))]
    words = ["loradrop", "package", str(folder), "-o", str(output), *options, "--mend"]
    command = shlex.join([*words, *(["--force"] if arguments.force else [])])
    changes = [f"  {change}" for change in mending.changes]
    return [
        "It can be mended without changing a number, but by a cast that is named here:",
        *changes,
        f"  {command}",
        "",
    ]


def _package_notes(folder: Path, output: Path, report: ValidationReport) -> list[str]:
    if not report.accepted:
        notes = [f"{output} was not written."]
        if (inner := adapter_below(folder)) is not None:
            notes.append(f"There is an adapter in {inner}: did you mean that folder?")
        return notes
    notes = [f"Wrote {output}, {megabytes(output.stat().st_size)}."]
    others = sorted(found.name for found in os.scandir(folder) if found.name not in ADAPTER_FILES)
    if others:
        more = ", …" if len(others) > MAX_LISTED_NAMES else ""
        notes.append(f"Left out, because serving does not need it: {', '.join(others[:MAX_LISTED_NAMES])}{more}")
    return notes


def _train(arguments: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # training saves a checkpoint
    print("loading PyTorch and transformers, a few seconds", file=sys.stderr, flush=True)
    try:
        from loradrop_training import fine_tune
    except ImportError as error:
        raise CommandError(
            f"Training requires a package that is not installed: {error.name}. Install it:\n  pip install 'loradrop[train]'"
        ) from error
    return fine_tune.run(arguments)


def _recipe(arguments: argparse.Namespace) -> int:
    try:
        from loradrop_training import data_recipe
    except ImportError as error:
        raise CommandError(
            f"A recipe requires a package that is not installed: {error.name}. Install it:\n  pip install 'loradrop[train]'"
        ) from error
    return data_recipe.run(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise CommandError(
            f"Serving requires a package that is not installed: {error.name}. Install it:\n  pip install 'loradrop[serve]'"
        ) from error
    del starlette, uvicorn
    return _on_aws("loradrop_serve.server", "serve")(arguments)


def _on_aws(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """A command that calls AWS, and reports what that refuses as wrong usage is reported."""

    def run(arguments: argparse.Namespace) -> int:
        # boto3 takes half a second, which no other command need wait for
        from loradrop_client import LoradropError

        command: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(module if "." in module else f".{module}", __package__), function
        )
        try:
            return command(arguments)
        except LoradropError as error:
            raise CommandError(str(error)) from error

    return run


def _profile(arguments: argparse.Namespace) -> int:
    path, output = arguments.config, arguments.output
    check_output(output, force=arguments.force)
    path = path / "config.json" if path.is_dir() else path
    with path.open("rb") as file:
        data = file.read(MAX_MODEL_CONFIG_BYTES)
    try:
        config = parse_object(data, max_depth=100, constants=True)
    except JsonError as error:
        raise CommandError(f"{path} is not the config.json of a model: {error}.") from error
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
        print("It has no base_model_names: add the base_model_name_or_path that your adapters have.")
    return ExitCode.DONE


def _codes(arguments: argparse.Namespace) -> int:
    if arguments.markdown:
        print(code_document(), end="")
        return ExitCode.DONE
    for line in code_lines(arguments.codes or ProblemCode, sys.stdout):
        print(line)
    return ExitCode.DONE
