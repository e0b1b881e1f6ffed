"""The front of the local cloud: one ASGI application on one port.

SageMaker's calls go to the hosting emulator, everything else to MiniStack. Both see the same credentials and the same IAM policies:
a SageMaker call is authorized by MiniStack's own evaluation before it is answered.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import boto3
from botocore.awsrequest import AWSPreparedRequest
from botocore.compat import HTTPHeaders
from ministack import app as ministack
from ministack.core import iam_actions, iam_evaluator, responses, router
from ministack.services import sts
from moto.core.botocore_stubber import BotocoreStubber

from . import faults
from .hosting import CONTROL, hosting_backend
from .hosting.behaviour import changes_in
from .hosting.responses import completed, invoke
from .permissions import Permission, permissions_to_call, permissions_to_complete, permissions_to_invoke

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

INVOCATION = re.compile(r"/endpoints/(?P<endpoint>[^/]+)/invocations(?P<streamed>-response-stream)?")
# SageMaker's own OpenAI path: chat alone, and a component in its name.
OPENAI = re.compile(
    r"/endpoints/(?P<endpoint>[^/]+)/inference-components/(?P<component>[^/]+)/openai/v1/chat/completions"
)
MAX_TOKEN_SECONDS = 12 * 3600
# The services that moto answers: what their X-Amz-Target begins with, and the host under which moto knows them.
MOTO_HOSTS = {"SageMaker": "api.sagemaker", "AnyScaleFrontendService": "application-autoscaling"}
BEHAVIOUR_PATH = "/_loradrop/behaviour"
# Calls of the control plane wait for locks and downloads; invocations for the engine. Neither may hold up the other.
CALL_THREADS = 16
INVOCATION_THREADS = 16

logger = logging.getLogger("local")


class Front:
    def __init__(self, *, auth: bool) -> None:
        self._auth = auth
        self._moto = BotocoreStubber()
        self._calls = ThreadPoolExecutor(CALL_THREADS, "hosting-call")
        self._invocations = ThreadPoolExecutor(INVOCATION_THREADS, "hosting-invocation")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await ministack.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] == BEHAVIOUR_PATH:
            await self._behaviour(scope, receive, send)
            return
        invocation = faults.invocation_of(headers) if faults.PROCESS_HEADER in headers else None
        if invocation is None and not CONTROL.behaviour.refusals:
            await self._route(scope, headers, receive, send)
            return
        body = await _whole(receive)
        dies = invocation is not None and faults.dies_with_this_call(invocation)
        query = parse_qs(scope.get("query_string", b"").decode(), keep_blank_values=True)
        action = faults.action_of(scope["method"], scope["path"], query, headers, body)
        component = headers.get("x-amzn-sagemaker-inference-component", "")
        text = " ".join([scope["path"], repr(query), component, body.decode("latin-1")])
        refusal = CONTROL.take_refusal(action, invocation.function if invocation else "", text)
        loses_answer = dies or (refusal is not None and refusal.carried_out)
        if refusal is None or loses_answer:
            await self._route(scope, headers, _replayed(body), _discard if loses_answer else send)
        if invocation is not None and dies:
            faults.end(invocation)
        elif refusal is not None:
            await _send(send, *faults.answer(refusal, action, headers))

    async def _route(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        invocation = INVOCATION.fullmatch(scope["path"])
        openai = OPENAI.fullmatch(scope["path"])
        if openai and headers.get("authorization", "").startswith("Bearer "):
            await self._complete(openai, scope, headers, receive, send)
        elif invocation and "/sagemaker/" in headers.get("authorization", ""):
            await self._invoke(invocation, scope, headers, receive, send)
        elif headers.get("x-amz-target", "").split(".")[0] in MOTO_HOSTS:
            await self._call(scope, headers, receive, send)
        else:
            await ministack.app(scope, receive, send)

    # The two ways to SageMaker

    async def _call(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        body = await self._read(scope, headers, receive)
        service, _, operation = headers["x-amz-target"].partition(".")
        account, region = responses.get_account_id(), responses.get_region()
        wanted: Iterator[Permission] = iter(())
        if service == "SageMaker":
            wanted = iter(permissions_to_call(operation, _json_object(body), region, account))
        denied = self._denied(wanted, headers, region)
        if denied is not None:
            await _send(send, *denied)
            return
        request = AWSPreparedRequest(
            method=scope["method"],
            url=f"https://{MOTO_HOSTS[service]}.{region}.amazonaws.com/",
            headers=_moto_headers(headers, account),
            body=body,
            stream_output=False,
        )
        loop = asyncio.get_running_loop()
        try:
            status, reply, content = await loop.run_in_executor(self._calls, self._moto.process_request, request)
        except NotImplementedError as error:
            unknown = json.dumps({"__type": "UnknownOperationException", "message": str(error)})
            status, reply, content = 400, {"Content-Type": "application/x-amz-json-1.1"}, unknown
        await _send(send, status, reply, content.encode() if isinstance(content, str) else content)

    async def _invoke(
        self, match: re.Match[str], scope: Scope, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        body = await self._read(scope, headers, receive)
        account, region = responses.get_account_id(), responses.get_region()
        endpoint, component = unquote(match["endpoint"]), headers.get("x-amzn-sagemaker-inference-component")
        is_streamed = match["streamed"] is not None
        needed = permissions_to_invoke(endpoint, component, region, account, is_streamed=is_streamed)
        denied = self._denied(needed, headers, region)
        if denied is not None:
            await _send(send, *denied)
            return
        loop = asyncio.get_running_loop()
        status, reply, chunks = await loop.run_in_executor(
            self._invocations,
            lambda: invoke(hosting_backend(account, region), endpoint, headers, body, streamed=is_streamed),
        )
        await send({"type": "http.response.start", "status": status, "headers": _header_list(reply)})
        while (chunk := await loop.run_in_executor(self._invocations, next, chunks, None)) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _complete(
        self, match: re.Match[str], scope: Scope, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        """By a bearer token, which names its signer as a presigned URL does."""
        credential = credential_of(headers["authorization"].removeprefix("Bearer ").strip(), time.time())
        if credential is None:
            await _send(send, *_openai_error(401, "The bearer token is not valid, or it has expired."))
            return
        # As if it were signed: whose it is, is found where every request has it.
        headers = headers | {"authorization": f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host"}
        body = await self._read(scope, headers, receive)
        account, region = responses.get_account_id(), responses.get_region()
        endpoint, component = unquote(match["endpoint"]), unquote(match["component"])
        asked = _json_object(body)
        is_streamed = bool(asked.get("stream"))
        needed = permissions_to_complete(endpoint, component, region, account, is_streamed=is_streamed)
        denied = self._denied(needed, headers, region)
        if denied is not None:
            await _send(send, *_openai_error(403, denied[2].decode()))
            return
        if "messages" not in asked:
            await _send(send, *_openai_error(400, "`messages` is missing."))
            return
        sent = {"x-amzn-sagemaker-inference-component": component}
        wanted = json.dumps({name: value for name, value in asked.items() if name != "model"}).encode()
        loop = asyncio.get_running_loop()
        status, reply, chunks = await loop.run_in_executor(
            self._invocations, lambda: completed(hosting_backend(account, region), endpoint, sent, wanted, is_streamed)
        )
        await send({"type": "http.response.start", "status": status, "headers": _header_list(reply)})
        while (chunk := await loop.run_in_executor(self._invocations, next, chunks, None)) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self, scope: Scope, headers: dict[str, str], receive: Receive) -> bytes:
        """The body; and the request's caller, account and region, pinned where MiniStack's evaluation looks for them."""
        query = parse_qs(scope.get("query_string", b"").decode(), keep_blank_values=True)
        address = (scope.get("client") or ("127.0.0.1",))[0]
        responses.set_request_client_ip(address)
        ministack.pin_request_origin(address, False)
        key = router.extract_access_key_id(headers, query)
        if key:
            responses.set_request_account_id(ministack._request_account_scope(key) if self._auth else key)
        responses.set_request_region(router.extract_region(headers, query))
        if self._auth:
            raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
            iam_evaluator.pin_signed_request(scope["method"], raw_path.decode("latin-1"), query, scope["headers"])
        body: bytes = await ministack._read_request_body(receive, scope["method"], headers)
        return body

    def _denied(self, wanted: Any, headers: dict[str, str], region: str) -> tuple[int, dict[str, str], bytes] | None:
        """The refusal, if any of these permissions is refused."""
        if not self._auth:
            return None
        request_id = str(uuid.uuid4())
        key = router.extract_access_key_id(headers, {})
        backend = hosting_backend(responses.get_account_id(), region)
        for permission in wanted:
            action, resource = permission.action, permission.resource
            tags = {f"aws:ResourceTag/{name}": value for name, value in backend.tags_of(resource).items()}
            denied = iam_evaluator.enforce(
                key, action, "sagemaker", region, resource_arn=resource, service_context=tags | dict(permission.keys)
            )
            if isinstance(denied, iam_evaluator.AuthError):
                refusal: tuple[int, dict[str, str], bytes] = ministack._credential_failure(
                    "sagemaker", action, request_id, denied, headers
                )
                return refusal
            if denied is not None:
                explicitly = denied.decision == "Deny"
                message = iam_actions.identity_denial_message(action, denied.principal_arn, resource, explicitly)
                return _access_denied(message, is_json_1_1="x-amz-target" in headers)
        return None

    # The behaviour

    async def _behaviour(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, content = 200, CONTROL.behaviour.to_dict()
        if scope["method"] == "PATCH":
            body = await ministack._read_request_body(receive, "PATCH", {})
            try:
                content = CONTROL.change(**changes_in(body)).to_dict()
            except ValueError as error:
                status, content = 400, {"message": str(error)}
        elif scope["method"] != "GET":
            status, content = 405, {"message": f"{BEHAVIOUR_PATH} takes GET and PATCH"}
        await _send(send, status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def close(self) -> None:
        for pool in (self._calls, self._invocations):
            pool.shutdown(wait=False, cancel_futures=True)


async def _whole(receive: Receive) -> bytes:
    """The body as it was sent: one in AWS's chunks stays so."""
    chunks: list[bytes] = []
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


def _replayed(body: bytes) -> Receive:
    """A body that was read, to be read once more."""
    messages = iter(({"type": "http.request", "body": body, "more_body": False},))

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    return receive


async def _discard(_message: dict[str, Any]) -> None:
    """An answer that nobody gets."""


def s3_client_of_role(role_arn: str | None, region: str) -> Any:
    """S3 as the endpoint's execution role may read it: where IAM is enforced, a role without the right to an adapter fails here."""
    if role_arn is None:
        return boto3.client("s3", region_name=region)
    account, _, role = role_arn.split(":", 4)[4].partition(":role/")
    digest = hashlib.sha256(f"hosting:{role_arn}".encode()).hexdigest()
    key, secret, token = f"ASIA{digest[:16].upper()}", digest[16:56], digest[56:]
    sts.register_session(
        key,
        {
            "Arn": f"arn:aws:sts::{account}:assumed-role/{role.rpartition('/')[2]}/SageMaker",
            "UserId": f"{role}:SageMaker",
            "SecretAccessKey": secret,
            "SessionToken": token,
        },
    )
    return boto3.client(
        "s3", region_name=region, aws_access_key_id=key, aws_secret_access_key=secret, aws_session_token=token
    )


def credential_of(token: str, now: float) -> str | None:
    """What a token was signed with: access key, day, region, service. None for what is no token, or has expired.

    AWS publishes no form of SageMaker's tokens. This one is that of Bedrock's: any prefix that ends in a hyphen, and a presigned
    URL of the action CallWithBearerToken in base64.
    """
    try:
        url = base64.b64decode(token.rpartition("-")[2], validate=True).decode("ascii")
        query = {name: values[0] for name, values in parse_qs(url.partition("?")[2]).items()}
        signed = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        seconds = int(query["X-Amz-Expires"])
    except (ValueError, KeyError):  # of base64 and of text, too
        return None
    is_valid = query.get("Action") == "CallWithBearerToken" and "X-Amz-Signature" in query
    is_valid = is_valid and 0 < seconds <= MAX_TOKEN_SECONDS and signed - 300 <= now <= signed + seconds
    return query.get("X-Amz-Credential") if is_valid else None


def _openai_error(status: int, message: str) -> tuple[int, dict[str, str], bytes]:
    content = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _access_denied(message: str, *, is_json_1_1: bool) -> tuple[int, dict[str, str], bytes]:
    content = {"__type": "AccessDeniedException", "Message": message}
    if is_json_1_1:
        return 400, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(content).encode()
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": "AccessDeniedException"}
    return 403, headers, json.dumps(content).encode()


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _moto_headers(headers: Mapping[str, str], account: str) -> HTTPHeaders:
    sent = HTTPHeaders()
    for name, value in headers.items():
        sent[name] = value
    sent["x-moto-account-id"] = account
    return sent


def _header_list(headers: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), str(value).encode("latin-1")) for name, value in headers.items()]


async def _send(send: Send, status: int, headers: Mapping[str, Any], content: bytes) -> None:
    kept = {name: value for name, value in headers.items() if name.lower() not in ("content-length", "status")}
    start = _header_list(kept | {"Content-Length": len(content)})
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": content, "more_body": False})
