"""Errors in OpenAI's form: what a client of that API looks at is the status, then `error.type` and `error.code`."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from loradrop.wire import is_not_ready
from loradrop_client import (
    AccessRefusedError,
    AwsUnavailableError,
    ComponentBrokenError,
    LoradropError,
    ModelError,
    ModelNotReadyError,
    NoLiveComponentError,
    RequestRefusedError,
    StackNotFoundError,
    StreamBrokenError,
)

# ReconcileFleet heals within minutes; a client that asks sooner hears the same once more.
HEALING_RETRY_SECONDS = 30
BUSY_RETRY_SECONDS = 2


class RefusalError(Exception):
    """An answer with a status from 400. `param` names the field of the request that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = headers or {}

    def error(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JSONResponse(self.error(), self.status, dict(self.headers))


def refusal_of(error: LoradropError, near: list[str] | None = None) -> RefusalError:
    """`near` are names like the one that was asked for."""
    match error:
        case NoLiveComponentError():
            first = str(error).partition("\n")[0].removesuffix(" Deploy it:")
            meant = f" Did you mean {' or '.join(near)}?" if near else ""
            return RefusalError(404, f"{first}{meant}", code="model_not_found", param="model")
        case RequestRefusedError():
            return _as_it_is(error, error.status or 400)
        case ComponentBrokenError():
            retry = {"Retry-After": str(HEALING_RETRY_SECONDS)}
            return RefusalError(503, str(error), "server_error", "component_broken", headers=retry)
        case ModelNotReadyError():
            retry = {"Retry-After": str(BUSY_RETRY_SECONDS)}
            status = 429 if error.status == 429 else 503
            return RefusalError(status, str(error), "server_error", "model_not_ready", headers=retry)
        case StreamBrokenError():
            # Where nothing was sent yet it is an answer like any other.
            if error.status is None:
                return RefusalError(502, str(error), "server_error", "stream_broken")
            if is_not_ready(error.status, "", error.said):
                retry = {"Retry-After": str(BUSY_RETRY_SECONDS)}
                return RefusalError(503, str(error), "server_error", "model_not_ready", headers=retry)
            return _as_it_is(error, error.status if 400 <= error.status < 600 else 502)
        case ModelError():
            return _as_it_is(error, error.status if error.status and error.status >= 500 else 502)
        case AccessRefusedError() | StackNotFoundError():
            # As the openai SDK reads it: not to be tried again, though it is a 5xx.
            return RefusalError(
                502, str(error), "server_error", "aws_access_refused", headers={"x-should-retry": "false"}
            )
        case AwsUnavailableError():
            return RefusalError(502, str(error), "server_error", "aws_unavailable")
        case _:
            return RefusalError(500, str(error), "server_error")


def _as_it_is(error: ModelError, status: int) -> RefusalError:
    """The model server's own refusal, which may have OpenAI's form already."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    try:
        answer = json.loads(error.said)
    except (ValueError, RecursionError):
        return RefusalError(status, error.said or str(error), kind)
    said = answer.get("error", answer) if isinstance(answer, dict) else answer
    if not isinstance(said, dict):
        return RefusalError(status, said if isinstance(said, str) else error.said, kind)
    texts = {name: said[name] for name in ("type", "param", "code") if isinstance(said.get(name), str)}
    message = said.get("message")
    return RefusalError(
        status,
        message if isinstance(message, str) else error.said,
        texts.get("type", kind),
        texts.get("code"),
        texts.get("param"),
    )
