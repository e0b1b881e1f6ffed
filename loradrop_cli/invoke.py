"""`loradrop invoke`: ask an adapter that is live."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from loradrop_client import Adapters, LoradropError, ModelError

from .terminal import CommandError, safe, safe_text

ANSWERED, NOT_ANSWERED = 0, 3


def invoke(arguments: argparse.Namespace) -> int:
    """The exit code. Raises CommandError where the adapter could not be asked."""
    is_streamed = sys.stdout.isatty() if arguments.stream is None else arguments.stream
    request = _request(arguments)
    try:
        adapters = Adapters.of_stack(arguments.stack)
        if is_streamed:
            _print(adapters.stream(arguments.adapter, request))
        else:
            _print([adapters.chat(arguments.adapter, request)])
    except ModelError as error:
        print(f"loradrop: {safe(str(error))}", file=sys.stderr)
        return NOT_ANSWERED
    except LoradropError as error:
        raise CommandError(str(error)) from error
    return ANSWERED


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    """In LMI's schema for chat or, where --raw gives the whole prompt, in its own."""
    text = _stdin() if arguments.text == ["-"] else " ".join(arguments.text)
    for given in (text, arguments.system or ""):
        if any("\ud800" <= character <= "\udfff" for character in given):  # as Python holds bytes of the command line
            raise CommandError("The text is not UTF-8.")
    if not text.strip():
        raise CommandError("There is nothing to ask: the text is empty.")
    sampling = {} if arguments.temperature is None else {"temperature": arguments.temperature}
    if arguments.raw:
        if arguments.system is not None:
            raise CommandError("--system goes with a chat message; in a whole prompt (--raw) write it yourself.")
        return {"inputs": text, "parameters": {"max_new_tokens": arguments.max_tokens, **sampling}}
    messages = [{"role": "user", "content": text}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return {"messages": messages, "max_tokens": arguments.max_tokens, **sampling}


def _stdin() -> str:
    if sys.stdin is None:  # the caller closed it
        raise CommandError("Standard input is closed; there is nothing to read the text from.")
    try:
        return sys.stdin.buffer.read().decode()  # whatever the locale says
    except UnicodeDecodeError as error:
        raise CommandError(f"Standard input is not UTF-8: {error.reason} at byte {error.start}.") from error


def _print(pieces: Iterable[str]) -> None:
    """Exactly, but for a terminal: that must not be steered by what a model says."""
    is_terminal = sys.stdout.isatty()
    try:
        for piece in pieces:
            print(safe_text(piece) if is_terminal else piece, end="", flush=True)
    finally:
        print(flush=True)
