"""SmokeTestAdapter: invoke the adapter and the base; it must answer, as expected, and differently from the base."""

import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from loradrop.smoke import Answer, SmokePrompt, compare, meets_expectation, parse_answer, parse_smoke_prompts
from runtime import (
    CLIENT_CONFIG,
    SAGEMAKER_CONFIG,
    InvocationRefused,
    ModelNotReady,
    error_code,
    error_message,
    logger,
    setting,
)

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

s3 = boto3.client("s3", config=CLIENT_CONFIG)
invoker = boto3.client("sagemaker-runtime", config=SAGEMAKER_CONFIG)
endpoint = setting("ENDPOINT_NAME")
base = setting("BASE_COMPONENT_NAME")
default_prompts = parse_smoke_prompts(setting("SMOKE_PROMPTS").encode())

MAX_SHOWN_CHARACTERS = 200
# 424 is what LMI says while it loads an adapter, and when it can't: the state machine's budget tells them apart.
NOT_READY_STATUSES = frozenset({424, 429, 500, 503, 530})


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{release} → {passed, summary, prompts: […], adapter_ms, base_ms}."""
    component = event["release"]["component"]
    prompts = _prompts(event["release"]) or default_prompts
    asked = [_ask(component, prompt) for prompt in prompts]
    answered_badly = [one["problem"] for one in asked if one["problem"]]
    differs = any(one["differs"] for one in asked)
    problems = answered_badly or (
        []
        if differs
        else [
            f"The adapter answers all {len(asked)} smoke prompts exactly as the base does: it has no effect. It may be "
            "untrained, trained for another base, or its tensor names may not be those of the base's modules."
        ]
    )
    logger.info("adapter smoke-tested", component=component, passed=not problems, prompts=len(asked))
    return {
        "passed": not problems,
        "summary": " ".join(problems) or f"{len(asked)} of {len(asked)} smoke prompts answered, unlike the base.",
        "prompts": asked,
        "adapter_ms": round(statistics.median(one["adapter_ms"] for one in asked)),
        "base_ms": round(statistics.median(one["base_ms"] for one in asked)),
    }


def _prompts(release: dict[str, Any]) -> tuple[SmokePrompt, ...]:
    body = s3.get_object(Bucket=release["bucket"], Key=release["manifest_key"])["Body"].read()
    return tuple(SmokePrompt(**prompt) for prompt in json.loads(body)["smoke_prompts"])


def _ask(component: str, prompt: SmokePrompt) -> dict[str, Any]:
    adapter, adapter_ms = _invoke(component, prompt)
    one, base_ms = _invoke(base, prompt)
    # The base is asked twice: what it differs from itself is the server's noise, not the adapter's effect.
    again, _ = _invoke(base, prompt)
    comparison = compare(adapter, one, again)
    shown = prompt.inputs[:MAX_SHOWN_CHARACTERS]
    problem = None
    if not adapter.text.strip():
        problem = f"The adapter's answer to {shown!r} is empty."
    elif not meets_expectation(adapter.text, prompt.expect):
        problem = (
            f"The adapter's answer to {shown!r} is {adapter.text[:MAX_SHOWN_CHARACTERS]!r}; "
            f"smoke.jsonl expects {prompt.expect!r}."
        )
    return {
        "inputs": shown,
        "expect": prompt.expect,
        "adapter": adapter.text[:MAX_SHOWN_CHARACTERS],
        "base": one.text[:MAX_SHOWN_CHARACTERS],
        "differs": comparison.differs,
        "compared_by": comparison.compared_by,
        "adapter_ms": adapter_ms,
        "base_ms": base_ms,
        "problem": problem,
    }


def _invoke(component: str, prompt: SmokePrompt) -> tuple[Answer, int]:
    started = time.monotonic()
    try:
        response = invoker.invoke_endpoint(
            EndpointName=endpoint,
            InferenceComponentName=component,
            ContentType="application/json",
            Body=json.dumps(prompt.payload()).encode(),
        )
        body = response["Body"].read()
    except ClientError as error:
        status = error.response.get("OriginalStatusCode", error.response["ResponseMetadata"]["HTTPStatusCode"])
        message = error.response.get("OriginalMessage", error_message(error))
        said = f"{component} answered {status} ({error_code(error)}): {message}"
        if status in NOT_READY_STATUSES or error_code(error) in ("ThrottlingException", "ModelNotReadyException"):
            raise ModelNotReady(said) from error
        raise InvocationRefused(said) from error
    milliseconds = round((time.monotonic() - started) * 1000)
    try:
        return parse_answer(body), milliseconds
    except ValueError as error:
        raise InvocationRefused(f"{component}: {error}") from error
