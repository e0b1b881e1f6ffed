"""The server's life: its address, its token, its beginning and its end."""

import argparse
import ipaddress
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from loradrop.registry_reader import RegistryReader
from loradrop_cli.connection import Connection
from loradrop_cli.exit_codes import ExitCode
from loradrop_cli.terminal import CommandError
from loradrop_client import Adapters, Served

from .app import application
from .door import MAX_REQUESTS, Door, Models
from .guard import LOOPBACK
from .metrics import Metrics
from .page import Page

MIN_TOKEN_CHARACTERS = 16
GRACE_SECONDS = 5
# What must be there of an adapter before its first request: the connections are kept for the next.
BACKLOG = 256


def serve(arguments: argparse.Namespace) -> int:
    """Until it is interrupted. Raises CommandError and LoradropError."""
    token = _token(arguments.token_file)
    is_local = _is_loopback(arguments.host)
    if not is_local and token is None:
        raise CommandError(
            f"On {arguments.host} others can reach the server, and each request runs with your AWS credentials. Give it a token, "
            "which its clients have as their API key:\n"
            "  python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > token && chmod 600 token\n"
            f"  loradrop serve --host {arguments.host} --token-file token"
        )
    connection = Connection.of(arguments)
    listener = listen(arguments.host, arguments.port)
    hosts = hosts_of(arguments.host) if is_local and token is None else None
    app = application_of(connection, token=token, hosts=hosts, read_only=arguments.read_only)
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=75,
            ws="none",
        )
    )
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"The stack {connection.stack.name}: {url}/\nOpenAI's API:    {url}/v1\nCtrl-C ends it.", flush=True)
    server.run(sockets=[listener])
    return ExitCode.DONE


class _Server(uvicorn.Server):
    """Pages listen for ever: they are let go before the server waits for its requests to end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        app.state.page.end_events()
        await super().shutdown(sockets)


def application_of(
    connection: Connection,
    *,
    token: str | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK,
    read_only: bool = False,
) -> Starlette:
    """Of one stack. Raises LoradropError."""
    return application(_door_of(connection), Page(connection, read_only=read_only), token=token, hosts=hosts)


def _door_of(connection: Connection) -> Door:
    stack = connection.stack
    base = Served(stack.output("BaseComponentName"), stack.output("EndpointName"))
    adapters = Adapters(
        registry_table=stack.output("RegistryTable"),
        session=connection.session,
        base=base,
        max_connections=MAX_REQUESTS,
    )
    registry = RegistryReader(connection.client("dynamodb"), stack.output("RegistryTable"))
    return Door(adapters, Models(registry), Metrics())


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise CommandError(
            f"The token in {path} must be one line of at least {MIN_TOKEN_CHARACTERS} ASCII characters without spaces."
        )
    return token


def hosts_of(host: str) -> tuple[str, ...]:
    """What a server on this machine may be called."""
    return (*LOOPBACK, f"[{host}]" if ":" in host else host.lower())


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Named, or else asyncio leaves Nagle's algorithm on, which holds each answer's body back for 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise CommandError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Take another port, or any free one:\n"
            "  loradrop serve --port 0"
        ) from error
    listener.set_inheritable(True)
    return listener
