"""Which IAM permissions a SageMaker call needs: action and resource, as the service authorization reference has them.

Where the reference names several resource types for an action, all of them are asked for; and where AWS's pages differ, what
any of them asks for: a policy that passes here passes there.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Permission:
    action: str
    resource: str
    # The condition keys that come of the request.
    keys: Mapping[str, str | list[str]] = field(default_factory=dict)


KINDS = {
    "EndpointConfig": "endpoint-config",
    "Endpoint": "endpoint",
    "InferenceComponent": "inference-component",
    "Model": "model",
}
ON_ONE_RESOURCE = re.compile(
    rf"(Create|Describe|Update|Delete)({'|'.join(KINDS)})(RuntimeConfig|WeightsAndCapacities)?"
)
ON_TAGS = ("AddTags", "DeleteTags", "ListTags")


def permissions_to_call(operation: str, request: dict[str, Any], region: str, account: str) -> Iterator[Permission]:
    action, tags = f"sagemaker:{operation}", _tag_keys(request)
    match = ON_ONE_RESOURCE.fullmatch(operation)
    if operation in ON_TAGS:
        yield Permission(action, str(request.get("ResourceArn", "*")), tags)
        return
    if match is None:
        yield Permission(action, "*")
        return
    own = _arn(match[2], request, region, account)
    yield Permission(action, own, tags)
    if operation == "CreateInferenceComponent":
        yield Permission(action, _arn("Endpoint", request, region, account), tags)
    elif operation in ("CreateEndpoint", "UpdateEndpoint"):
        yield Permission(action, _arn("EndpointConfig", request, region, account), tags)
    if match[1] == "Create" and request.get("Tags"):
        # Only tags of a creation have this key; an AddTags call has none.
        yield Permission("sagemaker:AddTags", own, tags | {"sagemaker:TaggingAction": operation})


def _tag_keys(request: dict[str, Any]) -> dict[str, str | list[str]]:
    tags = [tag for tag in request.get("Tags") or [] if isinstance(tag, dict)]
    named = [str(tag.get("Key", "")) for tag in tags] + [str(key) for key in request.get("TagKeys") or []]
    keys: dict[str, str | list[str]] = {f"aws:RequestTag/{tag.get('Key')}": str(tag.get("Value", "")) for tag in tags}
    return keys | ({"aws:TagKeys": named} if named else {})


def permissions_to_invoke(
    endpoint: str, component: str | None, region: str, account: str, *, is_streamed: bool
) -> Iterator[Permission]:
    """Of a streamed invocation the API's reference names the first action, the service authorization reference the second."""
    resources = [_arn("Endpoint", {"EndpointName": endpoint}, region, account)]
    if component is not None:
        resources.append(_arn("InferenceComponent", {"InferenceComponentName": component}, region, account))
    for action in (
        "sagemaker:InvokeEndpoint",
        *(["sagemaker:InvokeEndpointWithResponseStream"] if is_streamed else []),
    ):
        for resource in resources:
            yield Permission(action, resource)


def permissions_to_complete(
    endpoint: str, component: str, region: str, account: str, *, is_streamed: bool
) -> Iterator[Permission]:
    """Of SageMaker's own OpenAI path."""
    yield Permission("sagemaker:CallWithBearerToken", "*")
    yield from permissions_to_invoke(endpoint, component, region, account, is_streamed=is_streamed)


def _arn(kind: str, request: dict[str, Any], region: str, account: str) -> str:
    return f"arn:aws:sagemaker:{region}:{account}:{KINDS[kind]}/{request.get(f'{kind}Name', '')}"
