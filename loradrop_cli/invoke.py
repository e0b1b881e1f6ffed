"""`loradrop invoke`: send a prompt to a live adapter."""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from loradrop_client import Adapters, ModelError

from .connection import Connection
from .exit_codes import ExitCode
from .terminal import CommandError, Progress, safe, safe_text


def invoke(arguments: argparse.Namespace) -> int:
    """The exit code. Raises CommandError and LoradropError if the adapter cannot be invoked."""
    is_streamed = sys.stdout.isatty() if arguments.stream is None else arguments.stream
    request = _request(arguments)
    try:
        adapters = Adapters.of_stack(arguments.stack)
        if is_streamed:
            with Progress(f"waiting for {safe(arguments.adapter)}"):
                pieces = adapters.stream(arguments.adapter, request)
            _print(pieces)
        else:
            with Progress(f"waiting for {safe(arguments.adapter)}"):
                answer = adapters.chat(arguments.adapter, request)
            _print([answer])
    except ModelError as error:
        print(f"loradrop: {safe(str(error))}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.DONE


def url(arguments: argparse.Namespace) -> int:
    """The URL alone on standard output; what to know of it on standard error."""
    connection = Connection.of(arguments)
    adapters = Adapters(registry_table=connection.stack.output("RegistryTable"), session=connection.session)
    served = adapters.served(arguments.adapter)
    host = connection.client("sagemaker-runtime").meta.endpoint_url
    print(f"{host}/endpoints/{served.endpoint}/inference-components/{served.component}/openai/v1")
    print(
        f"It names the component that is live now, {served.component}: it breaks when the next release of {safe(arguments.adapter)} replaces it "
        "and the grace period is over. Its clients need a bearer token of SageMaker's, and leave `model` empty. A URL that follows the "
        f"live pointer:\n  {connection.command('serve')}",
        file=sys.stderr,
    )
    return ExitCode.DONE


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    """In OpenAI's schema for chat or, where --raw gives the whole prompt, for a completion: both kinds of container have them."""
    text = _stdin() if arguments.text == ["-"] else " ".join(arguments.text)
    for given in (text, arguments.system or ""):
        if any("\ud800" <= character <= "\udfff" for character in given):  # as Python holds bytes of the command line
            raise CommandError("The text is not UTF-8.")
    if not text.strip():
        raise CommandError("The text is empty.")
    sampling = {} if arguments.temperature is None else {"temperature": arguments.temperature}
    if arguments.raw:
        if arguments.system is not None:
            raise CommandError("--system does not go with --raw: put the system message into the prompt.")
        return {"prompt": text, "max_tokens": arguments.max_tokens, **sampling}
    messages = [{"role": "user", "content": text}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return {"messages": messages, "max_tokens": arguments.max_tokens, **sampling}


def _stdin() -> str:
    if sys.stdin is None:  # the caller closed it
        raise CommandError("Standard input is closed, so the text cannot be read from it.")
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
