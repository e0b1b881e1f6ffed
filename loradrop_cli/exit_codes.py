"""The exit codes of the `loradrop` command, and the help that lists them."""

import textwrap
from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    """Each member: the code, and what it means whichever command ends with it."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "ExitCode":
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = (0, "accepted or done")
    REJECTED = (1, "rejected")
    UNUSABLE = (2, "wrong usage, an unreadable file, or no answer from AWS")
    FAILED = (3, "failed")
    INTERRUPTED = (130, "interrupted (Ctrl-C)")
    BROKEN_PIPE = (141, "the reader of the output has gone")
    TERMINATED = (143, "terminated (SIGTERM)")


_READING = {
    ExitCode.UNUSABLE: "wrong usage, or a file that cannot be read or written",
    ExitCode.INTERRUPTED: ExitCode.INTERRUPTED.meaning,
}
_OPERATING = {
    ExitCode.UNUSABLE: "wrong usage, no such adapter, or AWS refused or could not be reached",
    ExitCode.INTERRUPTED: "interrupted; what has begun continues",
}
# What each command can end with, beside the two that any can, and what that means to it.
_OF_COMMAND: Mapping[str, Mapping[ExitCode, str]] = {
    "validate": {ExitCode.DONE: "accepted", ExitCode.REJECTED: "rejected", **_READING},
    "package": {
        ExitCode.DONE: "accepted, and the tarball is written",
        ExitCode.REJECTED: "rejected; nothing is written",
        **_READING,
    },
    "train": {
        ExitCode.DONE: "trained, evaluated and packaged",
        ExitCode.REJECTED: "rejected: by the validator, because of the data, or because it does not fit in memory; with "
        "--require-better also if the adapter is not shown to be better than its base",
        ExitCode.UNUSABLE: "wrong usage, a wrong recipe, or no base model",
        ExitCode.FAILED: "failed: out of memory, or a loss that is not finite",
        ExitCode.INTERRUPTED: "interrupted; --resume continues",
        ExitCode.TERMINATED: "terminated; --resume continues",
    },
    "recipe": {
        ExitCode.DONE: "the recipe is written",
        ExitCode.UNUSABLE: "wrong usage, or no recipe can be made for this data or base",
        ExitCode.INTERRUPTED: ExitCode.INTERRUPTED.meaning,
    },
    "push": {
        ExitCode.DONE: "live (with --no-wait: uploaded)",
        ExitCode.REJECTED: "rejected, here or by the stack",
        ExitCode.UNUSABLE: "wrong usage, an unreadable file, or AWS refused or could not be reached",
        ExitCode.FAILED: "deployment failed, superseded by a newer upload, waiting for room on the endpoint, or not finished before --timeout",
        ExitCode.INTERRUPTED: "interrupted; a deployment that has begun continues",
    },
    "invoke": {
        ExitCode.DONE: "answered",
        ExitCode.UNUSABLE: "wrong usage, no live adapter of that name, or AWS refused or could not be reached",
        ExitCode.FAILED: "no answer from the model, or only a part of one",
        ExitCode.INTERRUPTED: ExitCode.INTERRUPTED.meaning,
    },
    "list": {ExitCode.DONE: "listed", **_OPERATING},
    "status": {ExitCode.DONE: "shown", **_OPERATING},
    "history": {ExitCode.DONE: "shown", **_OPERATING},
    "rollback": {
        ExitCode.DONE: "the release is live",
        ExitCode.REJECTED: "rejected by the stack",
        ExitCode.FAILED: "deployment failed, superseded, or not finished before --timeout; what was live stays live",
        **_OPERATING,
    },
    "remove": {
        ExitCode.DONE: "out of service",
        ExitCode.FAILED: "deleted, but not out of service before --timeout",
        **_OPERATING,
    },
    "retry": {
        ExitCode.DONE: "all live",
        ExitCode.REJECTED: "some rejected by the stack",
        ExitCode.FAILED: "some failed, superseded, waiting for room, or not finished before --timeout",
        **_OPERATING,
    },
    "redeploy": {
        ExitCode.DONE: "all live again",
        ExitCode.REJECTED: "some rejected by the stack; they stay as they were",
        ExitCode.FAILED: "some failed, or not finished before --timeout; they stay as they were",
        **_OPERATING,
    },
    "reconcile": {
        ExitCode.DONE: "planned, or all repaired",
        ExitCode.FAILED: "some could not be repaired, or not finished before --timeout",
        **_OPERATING,
    },
    "cost": {
        ExitCode.DONE: "shown",
        ExitCode.UNUSABLE: "wrong usage, no price, or AWS refused or could not be reached",
        ExitCode.INTERRUPTED: ExitCode.INTERRUPTED.meaning,
    },
    "teardown": {
        ExitCode.DONE: "the stack is gone",
        ExitCode.FAILED: "something could not be deleted, or not before --timeout; what is gone stays gone",
        **_OPERATING,
        ExitCode.UNUSABLE: "wrong usage, no such stack, or AWS refused or could not be reached",
    },
    "plan": {ExitCode.DONE: "it fits", ExitCode.REJECTED: "something does not fit", **_READING},
    "serve": {
        ExitCode.INTERRUPTED: "ended by Ctrl-C",
        ExitCode.TERMINATED: "ended by SIGTERM",
        ExitCode.UNUSABLE: "wrong usage, an address that cannot be used, or AWS refused or could not be reached",
    },
    "url": {
        ExitCode.DONE: "printed",
        ExitCode.UNUSABLE: "wrong usage, no live adapter of that name, or AWS refused or could not be reached",
        ExitCode.INTERRUPTED: ExitCode.INTERRUPTED.meaning,
    },
    "profile": {ExitCode.DONE: "the profile is written", **_READING},
    "codes": {ExitCode.DONE: "done", ExitCode.UNUSABLE: "wrong usage"},
}


def exit_codes_help(command: str | None = None) -> str:
    """The lines for the end of a command's help; without a command those of `loradrop` itself."""
    listed = (
        {code: code.meaning for code in ExitCode} if command is None else dict(sorted(_OF_COMMAND[command].items()))
    )
    lines = (
        textwrap.fill(meaning, 100, initial_indent=f"  {code.value:<4} ", subsequent_indent=" " * 7)
        for code, meaning in listed.items()
    )
    return "\n".join(["exit codes:", *lines, ""])
