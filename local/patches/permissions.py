"""IAM: what requests and callers are to a policy."""

import contextvars
import functools
import json
import os
import re
from typing import Any

from ministack import app
from ministack.core import iam_actions, iam_evaluator, responses, router
from ministack.services import dynamodb, s3


def count_the_loopback_as_secure() -> None:
    """AWS is reached by TLS and buckets refuse anything else (aws:SecureTransport); the local cloud has only the loopback."""
    pin = app.pin_request_origin

    @functools.wraps(pin)
    def pin_as_secure(source_ip: str, _secure_transport: bool) -> None:
        pin(source_ip, True)

    app.pin_request_origin = pin_as_secure


def match_every_character_of_an_arn() -> None:
    """IAM's `*` matches any characters; MiniStack's stops at a line end, which a key may hold."""
    compile_pattern = iam_evaluator._fnmatch_compile

    @functools.cache
    def compile_for_all_characters(pattern: str, ignore_case: bool) -> re.Pattern[str]:
        compiled: re.Pattern[str] = compile_pattern(pattern, ignore_case)
        return re.compile(compiled.pattern, compiled.flags | re.DOTALL)

    iam_evaluator._fnmatch_compile = compile_for_all_characters


def know_the_role_behind_a_session() -> None:
    """aws:PrincipalArn of an assumed role is the role's ARN, as AWS documents it; MiniStack gives the session's."""
    resolve = iam_evaluator._resolve_condition_key

    @functools.wraps(resolve)
    def resolve_role(key: str, context: Any) -> Any:
        value = resolve(key, context)
        if key.lower() != "aws:principalarn" or ":assumed-role/" not in str(value):
            return value
        role = iam_evaluator._role_name_from_assumed_arn(value)
        return f"arn:aws:iam::{context.principal_account}:role/{role}"

    iam_evaluator._resolve_condition_key = resolve_role


def hide_missing_objects() -> None:
    """S3 says 404 for a missing object to those alone who may list the bucket, and 403 to others; MiniStack says 404 to all."""
    dispatch = app._dispatch_service_request

    @functools.wraps(dispatch)
    async def dispatch_hiding(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any], request_id: str
    ) -> Any:
        answer = await dispatch(method, path, headers, body, query, request_id)
        bucket, _, key = path.lstrip("/").partition("/")
        if not (enforces_iam() and answer[0] == 404 and _is_missing_object(method, bucket, key, answer[2])):
            return answer
        denied = iam_evaluator.enforce(
            router.extract_access_key_id(headers, query),
            "s3:ListBucket",
            "s3",
            router.extract_region(headers, query),
            resource_arn=f"arn:aws:s3:::{bucket}",
        )
        if denied is None:
            return answer
        return iam_actions.access_denied_response(
            "s3", "s3:ListBucket", denied.principal_arn, request_id, headers=headers
        )

    app._dispatch_service_request = dispatch_hiding


def ask_for_the_key_of_an_object() -> None:
    """S3 reads an object under a customer's KMS key for those alone who may use the key; MiniStack reads it to all."""
    dispatch = app._dispatch_service_request

    @functools.wraps(dispatch)
    async def dispatch_asking(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any], request_id: str
    ) -> Any:
        answer = await dispatch(method, path, headers, body, query, request_id)
        sent = {name.lower(): value for name, value in answer[1].items()} if method == "GET" else {}
        key = str(sent.get("x-amz-server-side-encryption-aws-kms-key-id", ""))
        if not (enforces_iam() and answer[0] < 300 and key.startswith("arn:")):
            return answer
        denied = iam_evaluator.enforce(
            router.extract_access_key_id(headers, query),
            "kms:Decrypt",
            "kms",
            router.extract_region(headers, query),
            resource_arn=key,
        )
        if denied is None:
            return answer
        return iam_actions.access_denied_response(
            "s3", "kms:Decrypt", denied.principal_arn, request_id, headers=headers, resource_arn=key
        )

    app._dispatch_service_request = dispatch_asking


def _is_missing_object(method: str, bucket: str, key: str, content: bytes) -> bool:
    """Whether this 404 is about an object: not a bucket, nor a policy or a tag set that is not there."""
    if method == "HEAD":  # which has no content
        return bool(key) and s3._ensure_bucket(bucket) is not None
    return method == "GET" and any(code in content for code in (b"<Code>NoSuchKey<", b"<Code>NoSuchVersion<"))


def denial_of_role(role_arn: str, service: str, action: str, resource_arn: str) -> str | None:
    """AWS's sentence if the role, taken by the service, has no right to this; else None."""
    account, _, role = role_arn.split(":", 4)[4].partition(":role/")
    role = role.rpartition("/")[2]
    session = f"arn:aws:sts::{account}:assumed-role/{role}/{service}"
    context = iam_evaluator.EvalContext(
        principal_arn=session,
        principal_type="AssumedRole",
        principal_account=account,
        action=action,
        resource_arn=resource_arn,
        region=responses.get_region(),
    )
    decision = iam_evaluator.evaluate(context, iam_evaluator._gather_role_policies(role, account)).decision
    if decision == "Allow":
        return None
    return str(iam_actions.identity_denial_message(action, session, resource_arn, decision == "Deny"))


def enforces_iam() -> bool:
    return os.environ.get("AUTH") == "true"


_request_body: contextvars.ContextVar[bytes] = contextvars.ContextVar("request_body", default=b"")


def know_the_condition_keys_of_requests() -> None:
    """Keys that come of a request's body, which MiniStack does not know: events:source and events:detail-type, of every
    entry of PutEvents; dynamodb:LeadingKeys, the hash keys that are read or written."""
    dispatch, enforce = app._dispatch_service_request, iam_evaluator.enforce

    @functools.wraps(dispatch)
    async def dispatch_keeping_body(
        method: str, path: str, headers: dict[str, str], body: bytes, *args: Any, **kwargs: Any
    ) -> Any:
        _request_body.set(body)
        return await dispatch(method, path, headers, body, *args, **kwargs)

    @functools.wraps(enforce)
    def enforce_with_keys(
        access_key_id: str, iam_action: str, *args: Any, service_context: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        contexts: list[dict[str, Any]] = [{}]
        if iam_action == "events:PutEvents":
            contexts = _entry_contexts(_body()) or contexts
        elif iam_action.startswith("dynamodb:"):
            resource = kwargs.get("resource_arn") or (args[2] if len(args) > 2 else "")
            table = str(resource).rpartition(":table/")[2].partition("/")[0]
            keys = sorted(_leading_keys(_body(), table))
            contexts = [{"dynamodb:LeadingKeys": keys}] if keys else [{}]
        for context in contexts:
            denied = enforce(
                access_key_id, iam_action, *args, service_context=(service_context or {}) | context, **kwargs
            )
            if denied is not None:
                return denied
        return None

    app._dispatch_service_request = dispatch_keeping_body
    iam_evaluator.enforce = enforce_with_keys


def _body() -> dict[str, Any]:
    try:
        body = json.loads(_request_body.get())
    except ValueError:
        return {}  # the service itself refuses such a body
    return body if isinstance(body, dict) else {}


def _entry_contexts(body: dict[str, Any]) -> list[dict[str, Any]]:
    keys = {"Source": "events:source", "DetailType": "events:detail-type"}
    return [{key: entry[name] for name, key in keys.items() if name in entry} for entry in body.get("Entries", [])]


def _leading_keys(body: dict[str, Any], table: str) -> set[str]:
    """The values of the hash key, of the table or of the index that is queried, that a request of any kind names.

    Of a transaction, those of all its items at once: a policy that passes here passes item by item.
    """
    described: dict[str, Any] = dynamodb._tables.get(table) or {}
    indexes = described.get("GlobalSecondaryIndexes") or []
    queried = [index for index in indexes if index["IndexName"] == body.get("IndexName")]
    schema = (queried or [described])[0].get("KeySchema", [])
    hash_key = next((one["AttributeName"] for one in schema if one["KeyType"] == "HASH"), None)
    found: set[str] = set()
    if hash_key is None:
        return found

    def add(item: Any) -> None:
        value = item.get(hash_key) if isinstance(item, dict) else None
        if isinstance(value, dict):
            found.update(map(str, value.values()))

    requests = [body, *_members(body.get("TransactItems"))]
    for request in requests:
        if request.get("TableName") == table:
            add(request.get("Key"))
            add(request.get("Item"))
            names, values = request.get("ExpressionAttributeNames", {}), request.get("ExpressionAttributeValues", {})
            condition = str(request.get("KeyConditionExpression", ""))
            for name, value in re.findall(r"([#\w.-]+)\s*=\s*(:\w+)", condition):
                if names.get(name, name) == hash_key:
                    add({hash_key: values.get(value)})
            for name, one in request.get("KeyConditions", {}).items():
                if name == hash_key:
                    add({hash_key: one.get("AttributeValueList", [None])[0]})
    batched = body.get("RequestItems", {}).get(table, [])
    for key in batched.get("Keys", []) if isinstance(batched, dict) else []:
        add(key)
    for request in batched if isinstance(batched, list) else []:
        add(request.get("PutRequest", {}).get("Item"))
        add(request.get("DeleteRequest", {}).get("Key"))
    return found


def _members(items: Any) -> list[dict[str, Any]]:
    return [member for item in items or [] for member in item.values()]
