"""`make demo`: watch an adapter tarball become a live, proven component, and a wrong one be rejected.

Every command that it shows can be typed by hand, on the cloud that `make local` keeps running.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loradrop_cli.executions import RUNNING, Execution, StateView, follow, read_execution
from loradrop_cli.terminal import print_message
from loradrop_training.sentiment import LABELS, MAX_NEW_TOKENS, held_out, sentiment_adapter

from .cloud import REPOSITORY, EngineName, LocalCloud
from .stack import DeployedStack

# A real create takes minutes; this is long enough to see the machine wait.
SECONDS_TO_IN_SERVICE = 4.0
EXECUTION_DEADLINE_SECONDS = 120.0
POLL_SECONDS = 0.2
SHOWN_SENTENCES = 6

console = Console(highlight=False)


class DemoError(Exception):
    """A step that did not work; the message says which and why."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--port", type=int, default=4566, help="of the local cloud (default: %(default)s)")
    parser.add_argument(
        "--engine", choices=("tiny", "vllm"), default="tiny", help="what answers (default: %(default)s)"
    )
    options = parser.parse_args()
    started = time.monotonic()
    try:
        _demo(options.port, options.engine)
    except DemoError as error:
        console.print(f"[red]The demo ends here:[/red] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted; the local cloud has been ended.")
        return 130
    console.print(f"\nThe demo took {time.monotonic() - started:.0f} s and has left nothing running.")
    local = "make local" if options.engine == "tiny" else f"make local ENGINE={options.engine}"
    console.print(NEXT.format(local=local), soft_wrap=True)
    return 0


NEXT = """
What to try next:
  {local:<22}  the same cloud, kept running; it says how to go on,
                          and serves a page to look at the stack: http://127.0.0.1:8080/
  make test               all that CI runs
  docs/deploying.md       the same on AWS
  docs/using.md           invoking an adapter from Python"""


def _demo(port: int, engine: EngineName) -> None:
    _heading("A base, and an adapter that somebody trained")
    adapter = _build_adapter()
    _heading("The local cloud: MiniStack for AWS, and SageMaker hosting that loads adapters")
    with _local_cloud(port, engine) as cloud:
        shell = Shell(cloud)
        _heading("The stack, deployed as on AWS")
        shell.run_quietly("sam", "build")
        if engine == "vllm":
            console.print("   vLLM starts as the base's component, which takes 30 to 45 s.")
        shell.run_quietly("sam", "deploy", "--config-env", "local")
        stack = Stack(cloud)

        _heading("Drop a tarball")
        execution = stack.execution_after(
            lambda: shell.run("aws", "s3", "cp", "--no-progress", adapter, f"{stack.upload_uri}acme.tar.gz")
        )
        ended = _watch(stack, execution)
        if ended.status != "SUCCEEDED":
            raise DemoError(f"the adapter was not deployed: {ended.cause}")
        print_message(ended.output["message"], indent="   ")

        _heading("Ask the adapter and its base the same questions")
        _compare(stack, component=ended.output["component"])

        _heading("Drop a tarball with a wrong structure: everything inside one folder")
        with tempfile.TemporaryDirectory(prefix="loradrop-demo-") as folder:
            wrong = _wrap(adapter, Path(folder), shell)
            execution = stack.execution_after(
                lambda: shell.run("aws", "s3", "cp", "--no-progress", wrong, f"{stack.upload_uri}globex.tar.gz")
            )
            ended = _watch(stack, execution)
        if ended.error != "AdapterRejected":
            raise DemoError(f"the wrong tarball was not rejected: {ended.status} {ended.cause}")
        console.print("   Its cause, as the console shows it:")
        print_message(ended.cause, indent="   ")
        shell.run("aws", "s3", "ls", f"{stack.upload_uri.removesuffix('adapters/')}reports/")
        console.print("   acme is still live: one adapter's mistake never touches another.")


def _build_adapter() -> Path:
    adapter = sentiment_adapter()
    size = adapter.stat().st_size / 1000
    console.print(
        f"   {adapter.relative_to(REPOSITORY)}, {size:,.0f} kB: is a review positive or negative?",
        soft_wrap=True,
    )
    return adapter.relative_to(REPOSITORY)


@contextmanager
def _local_cloud(port: int, engine: EngineName) -> Iterator[LocalCloud]:
    with tempfile.TemporaryFile() as log:
        started = time.monotonic()
        cloud = LocalCloud(port, engine, behaviour={"seconds_to_in_service": SECONDS_TO_IN_SERVICE}, log=log)
        try:
            with console.status("   starting"):
                cloud.__enter__()
        except RuntimeError as error:
            log.seek(0)
            said = log.read().decode(errors="replace").strip()
            raise DemoError(f"{said or error}\nWith another port:\n  make demo PORT={port + 1}") from error
        try:
            console.print(f"   ready on {cloud.endpoint_url} after {time.monotonic() - started:.1f} s")
            yield cloud
        finally:
            cloud.close()


class Shell:
    """Runs the commands that a person would type, and shows them."""

    def __init__(self, cloud: LocalCloud) -> None:
        self._environment = os.environ | cloud.environment()

    def run(self, *words: str | Path, cwd: Path = REPOSITORY) -> None:
        _show_command(words)
        done = self._call(words, cwd)
        for line in done.stdout.splitlines():
            console.print(f"   {line}", style="dim", soft_wrap=True, markup=False)

    def run_quietly(self, *words: str | Path) -> None:
        """Shows of a wordy command only that it runs, and how long it took."""
        started = time.monotonic()
        with console.status(f"   $ {shlex.join(map(str, words))}"):
            self._call(words, REPOSITORY)
        _show_command(words, f"{time.monotonic() - started:.1f} s")

    def _call(self, words: Sequence[str | Path], cwd: Path) -> "subprocess.CompletedProcess[str]":
        program = shutil.which(str(words[0]), path=self._environment["PATH"])
        if program is None:
            raise DemoError(f"there is no {words[0]} on the PATH; run this by `make demo`")
        done = subprocess.run(
            [program, *words[1:]], cwd=cwd, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DemoError(f"{shlex.join(map(str, words))} failed:\n{done.stdout}\n{done.stderr}")
        return done


def _show_command(words: Sequence[str | Path], after: str = "") -> None:
    console.print(Text.assemble(("   $ ", "dim"), shlex.join(map(str, words)), (f"   {after}", "dim")), soft_wrap=True)


class Stack(DeployedStack):
    @property
    def upload_uri(self) -> str:
        return self.outputs["UploadUri"]

    def execution_after(self, act: Callable[[], None]) -> str:
        """The execution that `act` starts."""
        known = self._executions()
        act()
        deadline = time.monotonic() + EXECUTION_DEADLINE_SECONDS
        while not (new := self._executions() - known):
            if time.monotonic() > deadline:
                raise DemoError("the upload started no execution")
            time.sleep(POLL_SECONDS)
        return new.pop()

    def _executions(self) -> set[str]:
        listed = self.states.list_executions(stateMachineArn=self.outputs["StateMachineArn"])
        return {one["executionArn"] for one in listed["executions"]}


def _watch(stack: Stack, execution: str) -> Execution:
    """Show the execution's states as they happen, until it ends."""
    console.print(f"   DeployAdapter, execution {execution.rpartition(':')[2]}", soft_wrap=True)
    ended = follow(
        lambda: read_execution(stack.states, execution),
        StateView(sys.stdout, indent="   "),
        deadline=time.monotonic() + EXECUTION_DEADLINE_SECONDS,
        poll_seconds=POLL_SECONDS,
    )
    if ended.status == RUNNING:
        raise DemoError(f"the execution did not end within {EXECUTION_DEADLINE_SECONDS:.0f} s")
    return ended


def _compare(stack: Stack, component: str) -> None:
    from loradrop_training.evaluation import label_of  # its statistics take a second to import

    examples = held_out()
    table = Table(box=None, padding=(0, 2, 0, 3))
    for column in ("sentence", "truth", "base", "acme"):
        table.add_column(column, overflow="fold")
    right = {stack.outputs["BaseComponentName"]: 0, component: 0}
    with console.status("") as status:
        for number, example in enumerate(examples):
            answers = {one: stack.ask(one, example.prompt, MAX_NEW_TOKENS) for one in right}
            for one, answer in answers.items():
                right[one] += label_of(answer, LABELS) == example.label
            if number < SHOWN_SENTENCES:
                table.add_row(
                    example.text, example.label, *(Text(answer.strip() or "(nothing)") for answer in answers.values())
                )
            status.update(f"   {number + 1} of {len(examples)} held-out sentences, each asked of both")
    console.print(table)
    base, adapter = (f"{count / len(examples):.0%}" for count in right.values())
    console.print(
        f"   Right on {len(examples)} sentences new to both: base {base}, acme [bold]{adapter}[/bold] (a coin: 50%)"
    )


def _wrap(adapter: Path, folder: Path, shell: Shell) -> Path:
    """The same adapter as many people pack it: the folder, not what is in it."""
    inner = folder / "globex"
    inner.mkdir()
    subprocess.run(["tar", "-xzf", REPOSITORY / adapter, "-C", inner], check=True)
    shell.run("tar", "-czf", "globex.tar.gz", "globex", cwd=folder)
    return folder / "globex.tar.gz"


def _heading(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
