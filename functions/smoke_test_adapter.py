"""SmokeTestAdapter: invoke the adapter and the base; it must answer, in health, as expected, and differently."""

import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from aws.faults import InvocationRefused, ModelNotReady, error_code, error_message
from aws.runtime import CLIENT_CONFIG, INVOKE_CONFIG, logger, setting
from loradrop.deployment import Deployment, Placement, Release, SmokeResult
from loradrop.names import answers_key
from loradrop.problems import clipped, printable
from loradrop.smoke import (
    Answer,
    ContainerKind,
    SmokePrompt,
    compare,
    health_problem,
    meets_expectation,
    parse_answer,
    parse_smoke_prompts,
)
from loradrop.wire import is_not_ready

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

s3 = boto3.client("s3", config=CLIENT_CONFIG)
invoker = boto3.client("sagemaker-runtime", config=INVOKE_CONFIG)
default_prompts = parse_smoke_prompts(setting("SMOKE_PROMPTS").encode())
container_kind = ContainerKind(setting("CONTAINER_KIND"))

MAX_SHOWN_CHARACTERS = 200
MAX_SUMMARY_CHARACTERS = 1_500


@logger.inject_lambda_context
def handler(event: dict[str, Any], _context: "LambdaContext") -> dict[str, Any]:
    """{deployment} → the deployment with the smoke test's result. Raises ModelNotReady, InvocationRefused."""
    deployment = Deployment.from_dict(event["deployment"])
    release, component = deployment.release, deployment.component
    if release is None or component is None:
        raise ValueError("There is no component to ask.")
    asked = [_ask(component, prompt) for prompt in _prompts(release) or default_prompts]
    problems = [one["problem"] for one in asked if one["problem"]]
    if not problems and not any(one["differs"] for one in asked):
        problems = [
            f"The adapter answers all {len(asked)} smoke prompts exactly as the base does: it has no effect. It may be "
            "untrained, trained for another base, or its tensor names may not be those of the base's modules."
        ]
    result = SmokeResult(
        passed=not problems,
        summary=clipped(
            "\n".join(problems) or f"{len(asked)} of {len(asked)} smoke prompts answered, unlike the base.",
            MAX_SUMMARY_CHARACTERS,
        ),
        prompts=len(asked),
        adapter_ms=round(statistics.median(one["adapter_ms"] for one in asked)),
        base_ms=round(statistics.median(one["base_ms"] for one in asked)),
        answers=_keep_answers(deployment, release, asked),
    )
    logger.info("adapter smoke-tested", component=component.name, passed=result.passed, prompts=result.prompts)
    return deployment.having(smoke=result).to_dict()


def _prompts(release: Release) -> tuple[SmokePrompt, ...]:
    body = s3.get_object(Bucket=release.bucket, Key=release.manifest_key)["Body"].read()
    return tuple(SmokePrompt(**prompt) for prompt in json.loads(body)["smoke_prompts"])


def _keep_answers(deployment: Deployment, release: Release, asked: list[dict[str, Any]]) -> str:
    """All answers, whatever their length; the record only names them."""
    upload = deployment.begun
    key = answers_key(upload.adapter, release.sha256, upload.order)
    body = json.dumps({"attempt": deployment.attempt, "prompts": asked}, indent=2).encode()
    s3.put_object(Bucket=release.bucket, Key=key, Body=body, ContentType="application/json")
    return f"s3://{release.bucket}/{key}"


def _ask(component: Placement, prompt: SmokePrompt) -> dict[str, Any]:
    adapter, adapter_ms = _invoke(component, component.name, prompt)
    one, base_ms = _invoke(component, component.base, prompt)
    # The base is asked twice: what it differs from itself is the server's noise, not the adapter's effect.
    again, _ = _invoke(component, component.base, prompt)
    comparison = compare(adapter, one, again)
    return {
        "inputs": prompt.inputs,
        "expect": prompt.expect,
        "adapter": adapter.text,
        "base": one.text,
        "differs": comparison.differs,
        "compared_by": comparison.compared_by,
        "adapter_ms": adapter_ms,
        "base_ms": base_ms,
        "problem": _problem(prompt, adapter),
    }


def _problem(prompt: SmokePrompt, answer: Answer) -> str | None:
    asked = _shown(prompt.inputs)
    if not answer.text.strip():
        return f"The adapter's answer to {asked} is empty."
    if problem := health_problem(answer):
        return f"The adapter's answer to {asked}: {problem}"
    if not meets_expectation(answer.text, prompt.expect):
        return f"The adapter's answer to {asked} is {_shown(answer.text)}; smoke.jsonl expects {_shown(prompt.expect or '')}."
    return None


def _shown(text: str) -> str:
    return f'"{printable(clipped(text, MAX_SHOWN_CHARACTERS))}"'


def _invoke(placement: Placement, component: str, prompt: SmokePrompt) -> tuple[Answer, int]:
    started = time.monotonic()
    try:
        response = invoker.invoke_endpoint(
            EndpointName=placement.endpoint,
            InferenceComponentName=component,
            ContentType="application/json",
            Body=json.dumps(prompt.payload(container_kind)).encode(),
        )
        body = response["Body"].read()
    except ClientError as error:
        refused: Any = error.response
        status = refused.get("OriginalStatusCode", refused["ResponseMetadata"]["HTTPStatusCode"])
        message = refused.get("OriginalMessage", error_message(error))
        answered = f"{component} answered {status} ({error_code(error)}): {message}"
        if is_not_ready(status, error_code(error), message):
            raise ModelNotReady(answered) from error
        raise InvocationRefused(answered) from error
    milliseconds = round((time.monotonic() - started) * 1000)
    try:
        return parse_answer(body), milliseconds
    except ValueError as error:
        raise InvocationRefused(f"{component}: {error}") from error
