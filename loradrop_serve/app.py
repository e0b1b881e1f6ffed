"""The application: the door, and the page."""

import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from .door import Door
from .guard import LOOPBACK, Guard
from .page import Page
from .refusals import RefusalError


def application(
    door: Door, page: Page | None = None, *, token: str | None = None, hosts: tuple[str, ...] | None = LOOPBACK
) -> Starlette:
    @contextlib.asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        yield
        door.close()
        if page is not None:
            page.close()

    app = Starlette(
        routes=[*door.routes(), *(page.routes() if page is not None else [])],
        middleware=[Middleware(Guard, token=token, hosts=hosts)],
        exception_handlers={RefusalError: _refused, HTTPException: _unknown, Exception: _failed},
        lifespan=life,
    )
    app.state.page = page
    return app


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return error.response()


async def _unknown(request: Request, error: Exception) -> Response:
    """No such path or method."""
    assert isinstance(error, HTTPException)
    said = f"{HTTPStatus(error.status_code).phrase}: {request.method} {request.url.path[:200]}"
    return RefusalError(error.status_code, said, code="unknown_url").response()


async def _failed(_request: Request, _error: Exception) -> Response:
    """What nobody foresaw: Starlette raises it once more after this answer, so that the server's log has it."""
    return RefusalError(500, "This server failed; its log says why.", "server_error").response()
