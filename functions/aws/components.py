"""Inference components over SageMaker's API: what it answers, in the faults that the state machines know."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import ClientError

from aws.faults import (
    BaseUpdating,
    ComponentBusy,
    ComponentRefused,
    EndpointFull,
    error_code,
    error_message,
    raise_if_throttled,
)
from aws.runtime import SAGEMAKER_CONFIG
from loradrop.wire import COMPONENT_BUSY_TEXTS, COMPONENT_LEAVING_TEXT, STACK_TAG, is_component_missing

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.literals import InferenceComponentStatusType
    from mypy_boto3_sagemaker.type_defs import DescribeInferenceComponentOutputTypeDef, InferenceComponentSummaryTypeDef

sagemaker = boto3.client("sagemaker", config=SAGEMAKER_CONFIG)


def describe(name: str) -> "DescribeInferenceComponentOutputTypeDef | None":
    """The component, or None if there is none of that name. Raises Throttled."""
    try:
        return sagemaker.describe_inference_component(InferenceComponentName=name)
    except ClientError as error:
        raise_if_throttled(error)
        if _is_missing(error):
            return None
        raise


def create(name: str, endpoint: str, base: str, artifact_url: str, tags: dict[str, str]) -> None:
    """Make the adapter component.

    Raises Throttled, EndpointFull, BaseUpdating or ComponentRefused. A component of that name that exists already is
    this attempt's own: its name holds the attempt.
    """
    try:
        # No ComputeResourceRequirements and no RuntimeConfig: an adapter lives on its base's.
        sagemaker.create_inference_component(
            InferenceComponentName=name,
            EndpointName=endpoint,
            Specification={"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": artifact_url}},
            Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
        )
    except ClientError as error:
        raise_if_throttled(error)
        code, message = error_code(error), error_message(error)
        if code == "ResourceLimitExceeded":
            raise EndpointFull(
                f"{message} Remove adapters that nobody calls, or ask AWS for a higher quota of inference components."
            ) from error
        if code == "ValidationException" and "already exist" in message.lower():
            return
        if code == "ValidationException" and _is_base_changing(base):
            raise BaseUpdating(f"The base {base} is not in service yet: {message}") from error
        if code == "ValidationException":
            raise ComponentRefused(
                f"SageMaker refused the component on endpoint {endpoint!r} with base {base!r}: {message} "
                "Check that both exist and are InService."
            ) from error
        raise


def delete(name: str) -> bool:
    """Delete a component, if it is there. True once it is gone; else ask again later.

    Looks before and after: IAM refuses to delete what does not exist, since that carries no tag of this stack's.
    Raises Throttled and ComponentBusy.
    """
    found = describe(name)
    if found is None:
        return True
    if found.get("InferenceComponentStatus") != "Deleting":
        try:
            sagemaker.delete_inference_component(InferenceComponentName=name)
        except ClientError as error:
            raise_if_throttled(error)
            message = error_message(error)
            if any(text in message for text in COMPONENT_BUSY_TEXTS):
                raise ComponentBusy(f"{name} is {found.get('InferenceComponentStatus')}: {message}") from error
            if not (COMPONENT_LEAVING_TEXT in message or _is_missing(error) or describe(name) is None):
                raise
    return describe(name) is None


def on_endpoint(
    endpoint: str, status: "InferenceComponentStatusType | None" = None
) -> "Iterator[InferenceComponentSummaryTypeDef]":
    """All components of an endpoint, the base too; or those of one status. Raises Throttled."""
    wanted: Any = {"StatusEquals": status} if status else {}
    try:
        for page in sagemaker.get_paginator("list_inference_components").paginate(
            EndpointNameEquals=endpoint, PaginationConfig={"PageSize": 100}, **wanted
        ):
            yield from page["InferenceComponents"]
    except ClientError as error:
        raise_if_throttled(error)
        raise


def stack_of(component_arn: str) -> str | None:
    """The stack that made a component, by its tag. Raises Throttled."""
    try:
        tags = sagemaker.list_tags(ResourceArn=component_arn)["Tags"]
    except ClientError as error:
        raise_if_throttled(error)
        if _is_missing(error):
            return None
        raise
    return next((tag["Value"] for tag in tags if tag["Key"] == STACK_TAG), None)


def is_in_service(name: str) -> bool:
    """Whether a base can take adapters now. Raises Throttled."""
    found = describe(name)
    return found is not None and found.get("InferenceComponentStatus") == "InService"


def _is_base_changing(base: str) -> bool:
    found = describe(base)
    return found is not None and found.get("InferenceComponentStatus") in ("Creating", "Updating")


def _is_missing(error: ClientError) -> bool:
    return is_component_missing(error_code(error), error_message(error))
