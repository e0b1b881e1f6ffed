"""Who may ask: no page of another site through its visitor's browser, and elsewhere than on this machine only who has the token."""

import base64
import binascii
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import RefusalError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# The page has three files of its own and asks its own server; nothing in it is inline, framed or from elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """`token` is what requests must bring, as a bearer token or as the password of Basic; None: nothing.

    `hosts` are the names that the server may be called by; None: any. Without a token a page whose name's address was changed to
    127.0.0.1 (DNS rebinding) must not be answered.
    """

    def __init__(self, app: ASGIApp, token: str | None = None, hosts: Iterable[str] | None = LOOPBACK) -> None:
        self._app, self._token = app, token
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        refusal = self._refusal(Headers(scope=scope), is_page=(scope["method"], scope["path"]) == ("GET", "/"))
        app: ASGIApp = self._app if refusal is None else refusal.response()
        await app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, *, is_page: bool) -> RefusalError | None:
        host = headers.get("host", "")
        if self._hosts is not None and _without_port(host) not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            return RefusalError(421, f"This server is called {names}, not {_without_port(host)[:100]!r}.")
        origin = headers.get("origin")
        is_own = origin is None or urlsplit(origin).netloc == host
        # A link in a wiki may lead here: the site that has it reads nothing of the page.
        is_link = is_page and headers.get("sec-fetch-mode") == "navigate"
        if not is_own or (headers.get("sec-fetch-site") == "cross-site" and not is_link):
            return RefusalError(403, "A page of another site may not ask this server.", "permission_error")
        if self._token is not None and not hmac.compare_digest(_given(headers).encode(), self._token.encode()):
            message = (
                "This server wants its token: as the API key of a client (Authorization: Bearer …), or as the password, "
                "with any user name, in a browser."
            )
            asks = {"WWW-Authenticate": 'Basic realm="loradrop", charset="UTF-8"'}
            return RefusalError(401, message, "authentication_error", "invalid_api_key", headers=asks)
        return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _given(headers: Headers) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return value if scheme.lower() == "bearer" else ""
