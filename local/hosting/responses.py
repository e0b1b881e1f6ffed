"""The wire of the hosting emulator: requests to calls on the state, results and errors to responses."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.responses import SageMakerResponse
from moto.sagemakerruntime.responses import SageMakerRuntimeResponse

from ..engines import UnknownAdapterError
from . import event_stream
from .errors import InvocationError, ValidationException
from .models import ComponentStatus, HostingBackend, InferenceComponent, hosting_backend
from .validation import check_request

DEFAULT_MAX_RESULTS = 10
EVENT_STREAM = "application/vnd.amazon.eventstream"


class HostingResponse(SageMakerResponse):  # type: ignore[misc]
    @property
    def hosting(self) -> HostingBackend:
        return hosting_backend(self.current_account, self.region)

    def create_endpoint_config(self) -> ActionResult:
        check_request("CreateEndpointConfig", self.params)
        config = self.hosting.create_endpoint_config(
            execution_role_arn=self._get_param("ExecutionRoleArn"),
            endpoint_config_name=self._get_param("EndpointConfigName"),
            async_inference_config=self._get_param("AsyncInferenceConfig"),
            production_variants=self._get_param("ProductionVariants"),
            data_capture_config=self._get_param("DataCaptureConfig"),
            tags=self._get_param("Tags"),
            kms_key_id=self._get_param("KmsKeyId"),
        )
        return ActionResult({"EndpointConfigArn": config.endpoint_config_arn})

    def update_endpoint(self) -> ActionResult:
        check_request("UpdateEndpoint", self.params)
        endpoint = self.hosting.update_endpoint(self._get_param("EndpointName"), self._get_param("EndpointConfigName"))
        return ActionResult({"EndpointArn": endpoint.arn})

    def create_inference_component(self) -> ActionResult:
        component = self.hosting.create_inference_component(_plain(self.params))
        return ActionResult({"InferenceComponentArn": component.arn})

    def describe_inference_component(self) -> ActionResult:
        component = self.hosting.describe_inference_component(self._get_param("InferenceComponentName", ""))
        return ActionResult(component.description())

    def update_inference_component(self) -> ActionResult:
        component = self.hosting.update_inference_component(_plain(self.params))
        return ActionResult({"InferenceComponentArn": component.arn})

    def update_inference_component_runtime_config(self) -> ActionResult:
        component = self.hosting.update_inference_component_runtime_config(_plain(self.params))
        return ActionResult({"InferenceComponentArn": component.arn})

    def delete_inference_component(self) -> EmptyResult:
        self.hosting.delete_inference_component(self._get_param("InferenceComponentName", ""))
        return EmptyResult()

    def list_inference_components(self) -> ActionResult:
        request = _plain(self.params)
        check_request("ListInferenceComponents", request)
        found = [component for component in self.hosting.list_inference_components() if _is_wanted(component, request)]
        found.sort(
            key=_sort_key(request.get("SortBy", "CreationTime")),
            reverse=request.get("SortOrder", "Descending") == "Descending",
        )
        start = _page_start(request.get("NextToken"))
        end = start + request.get("MaxResults", DEFAULT_MAX_RESULTS)
        result: dict[str, Any] = {"InferenceComponents": [component.summary() for component in found[start:end]]}
        if end < len(found):
            result["NextToken"] = str(end)
        return ActionResult(result)


def _plain(params: Any) -> dict[str, Any]:
    """What moto parsed, as plain dictionaries without the members that were not sent."""
    plain: dict[str, Any] = json.loads(json.dumps(params, default=str))
    stripped: dict[str, Any] = _without_nulls(plain)
    return stripped


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _is_wanted(component: InferenceComponent, request: dict[str, Any]) -> bool:
    times = {
        "CreationTime": component.creation_time.isoformat(sep=" "),
        "LastModifiedTime": component.last_modified_time.isoformat(sep=" "),
    }
    return (
        request.get("NameContains", "").lower() in component.name.lower()
        and request.get("StatusEquals", component.status) == component.status
        and request.get("EndpointNameEquals", component.endpoint_name) == component.endpoint_name
        and request.get("VariantNameEquals", component.variant_name) == component.variant_name
        and all(times[name] <= request.get(f"{name}Before", "~") for name in times)
        and all(times[name] >= request.get(f"{name}After", "") for name in times)
    )


def _sort_key(sort_by: str) -> Any:
    return {
        "Name": lambda component: component.name,
        "CreationTime": lambda component: component.creation_time,
        "Status": lambda component: list(ComponentStatus).index(component.status),
    }[sort_by]


def _page_start(token: str | None) -> int:
    if token is None:
        return 0
    if not token.isdecimal():
        raise ValidationException("NextToken is invalid.")
    return int(token)


class HostingRuntimeResponse(SageMakerRuntimeResponse):  # type: ignore[misc]
    """For mock_aws: moto wants a whole body, so a stream is joined. The local cloud sends the pieces as they come."""

    # A body is the container's business: it need not be text.
    use_raw_body = True

    def invoke_endpoint(self) -> tuple[int, dict[str, str], bytes]:
        return self._invoke(streamed=False)

    def invoke_endpoint_with_response_stream(self) -> tuple[int, dict[str, str], bytes]:
        return self._invoke(streamed=True)

    def _invoke(self, *, streamed: bool) -> tuple[int, dict[str, str], bytes]:
        backend = hosting_backend(self.current_account, self.region)
        endpoint_name = unquote(self.path.split("/")[2])
        status, headers, chunks = invoke(backend, endpoint_name, dict(self.headers), self.raw_body, streamed=streamed)
        # moto takes the status from the headers.
        return status, headers | {"status": str(status)}, b"".join(chunks)


def invoke(
    backend: HostingBackend, endpoint_name: str, headers: dict[str, str], body: bytes, *, streamed: bool
) -> tuple[int, dict[str, str], Iterator[bytes]]:
    """One invocation as HTTP: status, headers, and the body in pieces."""
    sent = {name.lower(): value for name, value in headers.items()}
    component_name = sent.get("x-amzn-sagemaker-inference-component")
    try:
        variant, answer = backend.invoke(endpoint_name, component_name, body or b"", streamed=streamed)
    except InvocationError as error:
        content = json.dumps({"Message": error.message, **error.members}).encode()
        return error.status, {"Content-Type": "application/json", "x-amzn-ErrorType": error.code}, iter((content,))
    reply = {"x-Amzn-Invoked-Production-Variant": variant}
    if "x-amzn-sagemaker-inference-id" in sent:
        reply["x-Amzn-SageMaker-Inference-Id"] = sent["x-amzn-sagemaker-inference-id"]
    if not streamed:
        return 200, reply | {"Content-Type": answer.content_type}, answer.chunks
    reply |= {"Content-Type": EVENT_STREAM, "X-Amzn-SageMaker-Content-Type": answer.content_type}
    return 200, reply, _events(answer.chunks)


def completed(
    backend: HostingBackend, endpoint_name: str, headers: dict[str, str], body: bytes, streamed: bool
) -> tuple[int, dict[str, str], Iterator[bytes]]:
    """The same of SageMaker's own OpenAI path: errors in OpenAI's form, a stream as server-sent events."""
    try:
        _, answer = backend.invoke(
            endpoint_name, headers["x-amzn-sagemaker-inference-component"], body, streamed=streamed
        )
    except InvocationError as error:
        said = error.members.get("OriginalMessage", error.message)
        content = {"error": {"message": said, "type": "invalid_request_error", "param": None, "code": error.code}}
        status = int(error.members.get("OriginalStatusCode", error.status))
        return status, {"Content-Type": "application/json"}, iter((json.dumps(content).encode(),))
    if not streamed:
        return 200, {"Content-Type": "application/json"}, answer.chunks
    return 200, {"Content-Type": "text/event-stream"}, _server_sent(answer.chunks)


def _server_sent(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield b"data: " + chunk.strip() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _events(chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        for chunk in chunks:
            yield event_stream.payload_part(chunk)
    except UnknownAdapterError as error:  # the adapter was unloaded in the middle of its answer
        yield event_stream.exception("ModelStreamError", Message=str(error), ErrorCode="ModelInvocationFailed")
