"""What MiniStack 1.5.33 does otherwise than AWS and this project needs done right: one function for each, with the reason.

Each mend wraps a function of MiniStack's by name: where a name has gone, the local cloud does not start. tests/local/test_patches.py
shows what each is for, and tells when MiniStack does it by itself; then the mend goes.
"""

import contextvars
import functools
import json
import logging
import os
from enum import Enum
from typing import Any

import yaml
from ministack import app
from ministack.core import iam_actions, iam_evaluator, lambda_runtime, responses, router
from ministack.services import eventbridge, lambda_svc, s3, stepfunctions
from ministack.services.cloudformation import provisioners, stacks
from moto.applicationautoscaling import models as moto_autoscaling
from moto.applicationautoscaling import responses as moto_autoscaling_responses

from . import cloudformation

logger = logging.getLogger("local")


def apply() -> None:
    report_a_lambda_error_by_its_class()
    name_the_version_in_s3_events()
    take_state_machines_in_yaml()
    put_out_what_a_succeed_state_says()
    know_sagemaker_resources()
    scale_inference_components()
    count_the_loopback_as_secure()
    know_the_condition_keys_of_put_events()
    know_the_role_behind_a_session()
    hide_missing_objects()
    ask_the_role_of_a_state_machine()
    ask_the_role_of_a_rule()


# A Lambda's errors

_error_class: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("error_class", default=None)

WORKER_ANSWERS = '"error": str(e), "trace": traceback.format_exc()'
WORKER_ANSWERS_IN_FULL = (
    '"error": str(e), "error_type": type(e).__name__, "stack": traceback.format_tb(e.__traceback__), '
    '"trace": traceback.format_exc()'
)


def report_a_lambda_error_by_its_class() -> None:
    """Lambda reports an exception by its class name; MiniStack calls every one Runtime.HandlerError, so Retry and Catch miss."""
    script: str = lambda_runtime._PYTHON_WORKER_SCRIPT
    if WORKER_ANSWERS not in script:
        raise RuntimeError("MiniStack's Python worker answers otherwise than this mend expects")
    lambda_runtime._PYTHON_WORKER_SCRIPT = script.replace(WORKER_ANSWERS, WORKER_ANSWERS_IN_FULL)
    worker_invoke, execute = lambda_runtime.Worker.invoke, lambda_svc._execute_function_warm

    @functools.wraps(worker_invoke)
    def invoke(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = worker_invoke(self, *args, **kwargs)
        _error_class.set(answer if answer.get("error_type") else None)
        return answer

    @functools.wraps(execute)
    def execute_naming_the_class(*args: Any, **kwargs: Any) -> Any:
        _error_class.set(None)
        result = execute(*args, **kwargs)
        raised = _error_class.get()
        if result.get("error") and raised is not None:
            result["body"]["errorType"] = raised["error_type"]
            result["body"]["stackTrace"] = raised["stack"]
        return result

    lambda_runtime.Worker.invoke = invoke
    lambda_svc._execute_function_warm = execute_naming_the_class


# The version in an S3 event

_event_version: contextvars.ContextVar[str | None] = contextvars.ContextVar("event_version", default=None)


def name_the_version_in_s3_events() -> None:
    """S3 says detail.object.version-id for a versioned bucket; MiniStack knows it and leaves it out on the bus."""
    fire, dispatch = s3._fire_s3_event, eventbridge._dispatch_event

    @functools.wraps(fire)
    def fire_with_version(*args: Any, **kwargs: Any) -> Any:
        token = _event_version.set(kwargs.get("version_id"))
        try:
            return fire(*args, **kwargs)
        finally:
            _event_version.reset(token)

    @functools.wraps(dispatch)
    def dispatch_with_version(event: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        version = _event_version.get()
        if version is not None and event.get("Source") == "aws.s3":
            detail = json.loads(event["Detail"])
            detail["object"].setdefault("version-id", version)
            event = event | {"Detail": json.dumps(detail)}
        return dispatch(event, *args, **kwargs)

    s3._fire_s3_event = fire_with_version
    eventbridge._dispatch_event = dispatch_with_version


# State machines in YAML


class _PlainLoader(yaml.SafeLoader):
    """YAML as JSON has it: a date is a text."""


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def take_state_machines_in_yaml() -> None:
    """CloudFormation takes a definition in YAML as well; MiniStack deploys it and then fails every execution."""
    read_definition = provisioners._sfn_definition

    @functools.wraps(read_definition)
    def read_definition_as_json(props: dict[str, Any]) -> str:
        definition: str = read_definition(props)
        try:
            json.loads(definition)
        except ValueError:
            # No timestamps are made of plain texts, so the content is JSON's; the loader is a SafeLoader.
            return json.dumps(yaml.load(definition, Loader=_PlainLoader))
        return definition

    provisioners._sfn_definition = read_definition_as_json


def put_out_what_a_succeed_state_says() -> None:
    """A JSONata Succeed state has an Output, as every other; MiniStack looks for the JSONPath fields alone."""
    apply = stepfunctions._apply_output_path

    @functools.wraps(apply)
    def apply_output(state: dict[str, Any], data: Any, context: Any = None) -> Any:
        if state.get("Type") == "Succeed" and stepfunctions._state_query_language(state, context) == "JSONata":
            return stepfunctions._apply_jsonata_output(state, data, context, default=data)
        return apply(state, data, context)

    stepfunctions._apply_output_path = apply_output


# CloudFormation


def know_sagemaker_resources() -> None:
    """MiniStack has no SageMaker and no application auto scaling; its registry of resource types is a dictionary."""
    runs_on_worker_thread = stacks._runs_on_worker_thread

    @functools.wraps(runs_on_worker_thread)
    def runs_on_worker_thread_too(resource_type: str) -> bool:
        # They wait for a component to come up, and they call this very server.
        return resource_type in cloudformation.RESOURCE_TYPES or runs_on_worker_thread(resource_type)

    stacks._runs_on_worker_thread = runs_on_worker_thread_too
    for name, resource_type in cloudformation.RESOURCE_TYPES.items():
        provisioners._RESOURCE_HANDLERS[name] = resource_type.handlers()
        provisioners._REPLACING_PROPERTIES[name] = resource_type.replacing
        if resource_type.is_tagged:
            provisioners._STACK_TAG_PROPERTY[name] = ("Tags", "list")


def scale_inference_components() -> None:
    """moto's list of what can be scaled, which its requests are held against, is from before inference components."""
    known = {member.name: member.value for member in moto_autoscaling.ScalableDimensionValueSet}
    known["SAGEMAKER_INFERENCE_COMPONENT"] = "sagemaker:inference-component:DesiredCopyCount"
    extended = Enum("ScalableDimensionValueSet", known)  # type: ignore[misc]  # its members are moto's
    moto_autoscaling.ScalableDimensionValueSet = extended
    moto_autoscaling_responses.ScalableDimensionValueSet = extended


# IAM


def count_the_loopback_as_secure() -> None:
    """AWS is reached by TLS and buckets refuse anything else (aws:SecureTransport); the local cloud has only the loopback."""
    pin = app.pin_request_origin

    @functools.wraps(pin)
    def pin_as_secure(source_ip: str, _secure_transport: bool) -> None:
        pin(source_ip, True)

    app.pin_request_origin = pin_as_secure


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
        if not (_enforces_iam() and answer[0] == 404 and _is_missing_object(method, bucket, key, answer[2])):
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


def _is_missing_object(method: str, bucket: str, key: str, content: bytes) -> bool:
    """Whether this 404 is about an object: not a bucket, nor a policy or a tag set that is not there."""
    if method == "HEAD":  # which has no content
        return bool(key) and s3._ensure_bucket(bucket) is not None
    return method == "GET" and any(code in content for code in (b"<Code>NoSuchKey<", b"<Code>NoSuchVersion<"))


def _denial(role_arn: str, service: str, action: str, resource_arn: str) -> str | None:
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


_execution_role: contextvars.ContextVar[str | None] = contextvars.ContextVar("execution_role", default=None)


def ask_the_role_of_a_state_machine() -> None:
    """Step Functions invokes a Lambda as the machine's role; MiniStack invokes it whoever asks, whether AUTH is on or off."""
    run, call = stepfunctions._run_execution, stepfunctions._call_lambda

    @functools.wraps(run)
    def run_as_role(execution_arn: str) -> None:
        execution = stepfunctions._executions.get(execution_arn) or {}
        machine = stepfunctions._state_machines.get(execution.get("stateMachineArn")) or {}
        token = _execution_role.set(machine.get("roleArn"))
        try:
            run(execution_arn)
        finally:
            _execution_role.reset(token)

    @functools.wraps(call)
    def call_as_role(function: Any, event: Any) -> Any:
        role = _execution_role.get()
        denial = _denial(role, "states", "lambda:InvokeFunction", str(function)) if role and _enforces_iam() else None
        if denial is not None:
            raise stepfunctions._ExecutionError("Lambda.AWSLambdaException", denial)
        return call(function, event)

    stepfunctions._run_execution = run_as_role
    stepfunctions._call_lambda = call_as_role


def ask_the_role_of_a_rule() -> None:
    """EventBridge starts an execution as the target's role, and sends an event it has no right to start to the dead-letter queue."""
    invoke_target = eventbridge._invoke_target

    @functools.wraps(invoke_target)
    def invoke_as_role(target: dict[str, Any], event: dict[str, Any], rule: Any, view: Any = None) -> None:
        arn, role = str(target.get("Arn", "")), target.get("RoleArn")
        if ":states:" in arn and role and _enforces_iam():
            denial = _denial(role, "events", "states:StartExecution", arn)
            if denial is not None:
                logger.warning("EventBridge: %s", denial)
                queue = target.get("DeadLetterConfig", {}).get("Arn")
                if queue:
                    view = view or eventbridge._pattern_event_view(event)
                    eventbridge._dispatch_to_sqs(eventbridge.parse_arn(queue), json.dumps(view.event_with_detail()))
                return
        invoke_target(target, event, rule, view)

    eventbridge._invoke_target = invoke_as_role


def _enforces_iam() -> bool:
    return os.environ.get("AUTH") == "true"


_request_body: contextvars.ContextVar[bytes] = contextvars.ContextVar("request_body", default=b"")


def know_the_condition_keys_of_put_events() -> None:
    """events:source and events:detail-type are conditions on every entry of PutEvents; MiniStack knows neither key."""
    dispatch, enforce = app._dispatch_service_request, iam_evaluator.enforce

    @functools.wraps(dispatch)
    async def dispatch_keeping_body(
        method: str, path: str, headers: dict[str, str], body: bytes, *args: Any, **kwargs: Any
    ) -> Any:
        _request_body.set(body)
        return await dispatch(method, path, headers, body, *args, **kwargs)

    @functools.wraps(enforce)
    def enforce_entry_by_entry(
        access_key_id: str, iam_action: str, *args: Any, service_context: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        contexts = _entry_contexts() if iam_action == "events:PutEvents" else [{}]
        for context in contexts or [{}]:
            denied = enforce(
                access_key_id, iam_action, *args, service_context=(service_context or {}) | context, **kwargs
            )
            if denied is not None:
                return denied
        return None

    app._dispatch_service_request = dispatch_keeping_body
    iam_evaluator.enforce = enforce_entry_by_entry


def _entry_contexts() -> list[dict[str, str]]:
    try:
        entries = json.loads(_request_body.get()).get("Entries", [])
    except (ValueError, AttributeError):
        return []  # the service itself refuses such a body
    keys = {"Source": "events:source", "DetailType": "events:detail-type"}
    return [{key: entry[name] for name, key in keys.items() if name in entry} for entry in entries]
