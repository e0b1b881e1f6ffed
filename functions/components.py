"""Inference components over SageMaker's API: what it answers, in the faults that the state machine knows."""

from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError

from runtime import (
    SAGEMAKER_CONFIG,
    ComponentBusy,
    ComponentRefused,
    ResourceLimitExceeded,
    Throttled,
    error_code,
    error_message,
)

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.type_defs import DescribeInferenceComponentOutputTypeDef

sagemaker = boto3.client("sagemaker", config=SAGEMAKER_CONFIG)

_THROTTLES = frozenset({"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded"})


def describe(name: str) -> "DescribeInferenceComponentOutputTypeDef | None":
    """The component, or None if there is none of that name. Raises Throttled."""
    try:
        return sagemaker.describe_inference_component(InferenceComponentName=name)
    except ClientError as error:
        _raise_if_throttled(error)
        if _is_missing(error):
            return None
        raise


def create(name: str, endpoint: str, base: str, artifact_url: str, tags: dict[str, str]) -> None:
    """Make the adapter component. Raises Throttled, ResourceLimitExceeded, ComponentBusy or ComponentRefused."""
    try:
        # No ComputeResourceRequirements and no RuntimeConfig: an adapter lives on its base's.
        sagemaker.create_inference_component(
            InferenceComponentName=name,
            EndpointName=endpoint,
            Specification={"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": artifact_url}},
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
        )
    except ClientError as error:
        _raise_if_throttled(error)
        code, message = error_code(error), error_message(error)
        if code == "ResourceLimitExceeded":
            raise ResourceLimitExceeded(
                f"{message} Delete adapters that nobody calls, or ask AWS for a higher quota of inference components."
            ) from error
        if code == "ValidationException" and "already exist" in message.lower():
            raise ComponentBusy(f"{name} was made by another call a moment ago.") from error
        if code == "ValidationException":
            raise ComponentRefused(
                f"SageMaker refused the component on endpoint {endpoint!r} with base {base!r}: {message} "
                "Check that both exist and are InService."
            ) from error
        raise


def delete(name: str) -> None:
    """Delete a component; one that is gone, or going, counts as deleted. Raises Throttled."""
    try:
        sagemaker.delete_inference_component(InferenceComponentName=name)
    except ClientError as error:
        _raise_if_throttled(error)
        being_deleted = error_code(error) == "ValidationException" and "DELETE_IN_PROGRESS" in error_message(error)
        if not (being_deleted or _is_missing(error)):
            raise


def _raise_if_throttled(error: ClientError) -> None:
    if error_code(error) in _THROTTLES:
        raise Throttled(str(error)) from error


def _is_missing(error: ClientError) -> bool:
    # SageMaker models no error of its own for a component that does not exist.
    return error_code(error) == "ValidationException" and "could not find" in error_message(error).lower()
