"""`python -m local`: the local cloud, until it is interrupted."""

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .engines import vllm

DEFAULT_PORT = 4566
DEFAULT_DOOR_PORT = 8080  # of `loradrop serve`, too
MAX_PORT = 65535
DEFAULT_BASE = Path(".cache/tiny-llama")
HOST = "127.0.0.1"
REGION = "us-east-1"
ACCOUNT = "000000000000"
# How long requests that are under way may take to end once the end is asked for.
GRACE_SECONDS = 2.0
MIN_MEMORY_FOLDER_BYTES = 2 << 30
# What takes no time in a unit test and takes time on AWS.
BEHAVIOUR = {"seconds_to_delete": 2.0}
# Lambdas that may run at once, LAMBDA_ACCOUNT_CONCURRENCY if that is set: each is a process of some 50 MB. A new account of AWS's has 10.
LAMBDA_CONCURRENCY = 16

NEXT = """
Ctrl-C ends it, and all that was deployed on it. In a second shell:

  eval "$(make -s local-env PORT={port})"
  sam build
  sam deploy --config-env local

  loradrop push .cache/sentiment-1/adapter.tar.gz --name acme --stack loradrop-local
  loradrop invoke acme "Is this review positive or negative? Great cake." --stack loradrop-local

The page of the stack, and OpenAI's API in front of its adapters:

  {door}/
  {door}/v1
"""


def main() -> int:
    options = _options()
    try:
        listener = _listen(options.port)
        door = None if options.until_stdin_closes else _listen_for_the_door(options.door_port)
    except OSError as error:
        print(f"loradrop: cannot listen on {HOST}:{options.port}: {error.strerror}.\n{_advice(error)}", file=sys.stderr)
        return 1
    if options.engine == "vllm" and (problem := vllm.not_installed()) is not None:
        print(f"loradrop: {problem}", file=sys.stderr)
        return 1
    if options.engine != "stand-in" and not (options.base / "config.json").is_file():
        print(
            f"loradrop: there is no model in {options.base}. Make it:\n"
            "  python -m loradrop_training.tiny\n"
            "or start without a model:\n"
            "  python -m local --engine stand-in",
            file=sys.stderr,
        )
        return 1
    port = listener.getsockname()[1]
    state = Path(tempfile.mkdtemp(prefix="loradrop-local-", dir=_folder_in_memory()))
    _set_environment(port, state, auth=options.auth, wait_scale=options.wait_scale)
    logging.basicConfig(level=options.log_level, format="%(asctime)s %(levelname)s [%(name)s] %(message)s")
    try:
        # Not asyncio.run, which waits for threads that wait for an execution or a Lambda: those are ended below.
        asyncio.new_event_loop().run_until_complete(_serve(listener, door, options))
    finally:
        _kill_workers()
        shutil.rmtree(state, ignore_errors=True)
    sys.stdout.flush()
    os._exit(0)


def _advice(error: OSError) -> str:
    """What to do about a port that cannot be used."""
    taken = "Another local cloud, or another program, uses this port: end it, or take any free one:"
    return f"{taken if error.errno == errno.EADDRINUSE else 'Take another port, or any free one:'}\n  python -m local --port 0"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local", description="The local cloud: AWS, as far as the stack needs it."
    )
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="0 takes any free port (default: %(default)s)")
    parser.add_argument(
        "--door-port",
        type=_port,
        default=DEFAULT_DOOR_PORT,
        help="of the page and OpenAI's API; any free one where it is taken (default: %(default)s)",
    )
    parser.add_argument(
        "--engine", choices=("tiny", "stand-in", "vllm"), default="tiny", help="what answers (default: %(default)s)"
    )
    parser.add_argument(
        "--base", type=Path, default=DEFAULT_BASE, help="the base model's folder (default: %(default)s)"
    )
    parser.add_argument("--auth", action=argparse.BooleanOptionalAction, default=True, help="enforce IAM")
    parser.add_argument("--behaviour", type=_behaviour, default={}, help="JSON, as PATCH /_loradrop/behaviour takes it")
    parser.add_argument(
        "--wait-scale", type=float, default=1.0, help="factor on the state machine's waits (default: %(default)s)"
    )
    parser.add_argument(
        "--log-level",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        default="WARNING",
        help="of the services (default: %(default)s)",
    )
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when the parent does")
    return parser.parse_args()


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= MAX_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; it must be a whole number from 0 to {MAX_PORT}")
    return int(text)


def _behaviour(text: str) -> dict[str, Any]:
    from .hosting.behaviour import Behaviour, changes_in

    try:
        changes = changes_in(text)
        Behaviour().changed(changes)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return changes


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_for_the_door(port: int) -> socket.socket:
    try:
        return _listen(port)
    except OSError:  # others like this port, too
        return _listen(0)


def _folder_in_memory() -> Path | None:
    """Every worker of a Lambda unpacks its code: thousands of small files, made and removed far faster in memory.

    None where the caller has chosen a folder (TMPDIR), or where memory is short.
    """
    if "TMPDIR" in os.environ:
        return None
    folder = Path("/dev/shm")
    if folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= MIN_MEMORY_FOLDER_BYTES:
        return folder
    return None


def _set_environment(port: int, state: Path, *, auth: bool, wait_scale: float) -> None:
    """MiniStack reads its settings when it is imported; the Lambdas' processes inherit them."""
    for name in (
        "AWS_PROFILE",
        "AWS_SESSION_TOKEN",
        "AWS_CONFIG_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_ENDPOINT_URL_S3",
    ):
        os.environ.pop(name, None)
    os.environ.update(
        AUTH="true" if auth else "false",
        SFN_WAIT_SCALE=str(wait_scale),
        GATEWAY_PORT=str(port),
        MINISTACK_HOST=HOST,
        MINISTACK_ACCOUNT_ID=ACCOUNT,
        MINISTACK_REGION=REGION,
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
        AWS_ENDPOINT_URL=f"http://{HOST}:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION=REGION,
        AWS_REGION=REGION,
        AWS_EC2_METADATA_DISABLED="true",
        TMPDIR=str(state),
        LAMBDA_ACCOUNT_CONCURRENCY=os.environ.get("LAMBDA_ACCOUNT_CONCURRENCY", str(LAMBDA_CONCURRENCY)),
        LOG_LEVEL=os.environ.get("LOG_LEVEL", "WARNING"),
    )
    tempfile.tempdir = str(state)


async def _serve(listener: socket.socket, door: socket.socket | None, options: argparse.Namespace) -> None:
    # Late: these read the environment that was just set.
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    from . import faults, patches
    from .front import Front, s3_client_of_role
    from .hosting import CONTROL, SERVING
    from .hosting.serving import stand_in_engine

    faults.apply()  # first: what it answers for a dead Lambda, the patches name
    patches.apply()
    CONTROL.change(**BEHAVIOUR | options.behaviour)
    s3_client = s3_client_of_role if options.auth else None
    factories = {"stand-in": stand_in_engine, "tiny": _tiny_engine(options.base), "vllm": _vllm_engine(options.base)}
    SERVING.serve_with(factories[options.engine], s3_client)

    def config_of(socket_: socket.socket) -> Config:
        config = Config()
        config.bind = [f"fd://{socket_.fileno()}"]
        config.keep_alive_timeout = 75
        config.graceful_timeout = GRACE_SECONDS
        config.loglevel = options.log_level
        config.accesslog = None
        return config

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if options.until_stdin_closes:
        threading.Thread(target=_await_end_of_stdin, args=(loop, ended), daemon=True).start()
    front = Front(auth=options.auth)
    server = asyncio.create_task(serve(front, config_of(listener), shutdown_trigger=ended.wait))
    port = listener.getsockname()[1]
    await _await_answer(port, server)
    print(f"loradrop local cloud ready on http://{HOST}:{port}", flush=True)
    if door is not None:  # a person started it
        from .door import LocalDoor

        at_door = asyncio.create_task(serve(LocalDoor(), config_of(door), shutdown_trigger=ended.wait))
        print(NEXT.format(port=port, door=f"http://{HOST}:{door.getsockname()[1]}"), flush=True)
    await asyncio.wait({server, asyncio.create_task(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
    front.close()
    await asyncio.wait({server} if door is None else {server, at_door}, timeout=GRACE_SECONDS)
    SERVING.close()


def _tiny_engine(base: Path) -> Any:
    def load(_environment: Mapping[str, str]) -> Any:
        from .engines.llama import Engine  # torch, which takes seconds to import and is not always wanted

        return Engine(base)

    return load


def _vllm_engine(base: Path) -> Any:
    return lambda environment: vllm.VllmEngine(base, vllm.LoraLimits.of(environment))


def _await_end_of_stdin(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    sys.stdin.buffer.read()
    with contextlib.suppress(RuntimeError):  # the loop has ended before
        loop.call_soon_threadsafe(ended.set)


async def _await_answer(port: int, server: "asyncio.Task[None]") -> None:
    """Until the server answers; if it ended instead, its error."""
    while True:
        if server.done():
            server.result()
            raise RuntimeError("the server ended before it answered")
        try:
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /_loradrop/behaviour HTTP/1.1\r\nHost: local\r\nConnection: close\r\n\r\n")
            answered = (await asyncio.wait_for(reader.readline(), timeout=1)).startswith(b"HTTP/1.1 200")
            writer.close()
        except (OSError, TimeoutError):
            answered = False
        if answered:
            return
        await asyncio.sleep(0.05)


def _kill_workers() -> None:
    from ministack.core import lambda_runtime

    lambda_runtime.reset()


if __name__ == "__main__":
    sys.exit(main())
