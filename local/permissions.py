"""Which IAM permissions a SageMaker call needs: action and resource, as the service authorization reference has them.

Where the reference names several resource types for an action, all of them are asked for; and where AWS's pages differ, what
any of them asks for: a policy that passes here passes there.
"""

import re
from collections.abc import Iterator
from typing import Any

Permission = tuple[str, str]

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
    action = f"sagemaker:{operation}"
    match = ON_ONE_RESOURCE.fullmatch(operation)
    if operation in ON_TAGS:
        yield action, str(request.get("ResourceArn", "*"))
        return
    if match is None:
        yield action, "*"
        return
    own = _arn(match[2], request, region, account)
    yield action, own
    if operation == "CreateInferenceComponent":
        yield action, _arn("Endpoint", request, region, account)
    elif operation in ("CreateEndpoint", "UpdateEndpoint"):
        yield action, _arn("EndpointConfig", request, region, account)
    if match[1] == "Create" and request.get("Tags"):
        yield "sagemaker:AddTags", own


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
            yield action, resource


def _arn(kind: str, request: dict[str, Any], region: str, account: str) -> str:
    return f"arn:aws:sagemaker:{region}:{account}:{KINDS[kind]}/{request.get(f'{kind}Name', '')}"
