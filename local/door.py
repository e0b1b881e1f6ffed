"""The page and OpenAI's API of the stack on the local cloud, on a port of their own, as `loradrop serve` has them on AWS."""

import argparse
import asyncio
from typing import Any

from starlette.responses import PlainTextResponse

from loradrop_cli.connection import Connection
from loradrop_client import LoradropError
from loradrop_serve.server import application_of

from .stack import STACK_NAME

REFRESH_SECONDS = 3


class LocalDoor:
    """An ASGI application that waits for the stack to be deployed, which the cloud itself cannot know."""

    def __init__(self, stack: str = STACK_NAME) -> None:
        self._stack = stack
        self._app: Any = None
        self._connecting = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for moment in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{moment}.complete"})
            return
        app = self._app or await self._connect()
        await app(scope, receive, send)

    async def _connect(self) -> Any:
        async with self._connecting:
            if self._app is None:
                try:
                    connection = await asyncio.to_thread(Connection.of, argparse.Namespace(stack=self._stack))
                    self._app = application_of(connection)
                except LoradropError:
                    said = f"The stack {self._stack} is not deployed yet. In a shell that points here:\n\n  sam build\n  sam deploy --config-env local\n"
                    return PlainTextResponse(said, 503, {"Refresh": str(REFRESH_SECONDS), "Retry-After": "3"})
            return self._app
