"""CloudFormation's resource types of SageMaker hosting and application auto scaling.

Each calls the public API of the local cloud, as CloudFormation's own handlers call AWS's: what a template may not say, the API refuses.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import ClientError, ParamValidationError
from botocore.model import ListShape, MapShape, Shape, StructureShape
from ministack.core.responses import get_account_id, get_region
from ministack.services.cloudformation.provisioners import _physical_name

from .hosting.validation import service_model

Properties = dict[str, Any]
# Physical id (what Ref gives) and attributes (what GetAtt gives).
Provisioned = tuple[str, dict[str, Any]]

MAX_NAME = 63
# A real base takes 5 to 15 minutes; this one is up when its model is loaded.
COMPONENT_DEADLINE_SECONDS = 900.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ResourceType:
    create: Callable[[str, Properties, str], Provisioned]
    update: Callable[[str, Properties, Properties, str], Provisioned]
    delete: Callable[[str, Properties], None]
    # The properties whose change makes a new resource.
    replacing: tuple[str, ...]
    is_tagged: bool = True

    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {"create": self.create, "update": self.update, "delete": self.delete}


def _client(service: str) -> Any:
    # The account and region of the stack: a key that is an account's number is that account's root.
    connect: Any = boto3.client
    return connect(service, region_name=get_region(), aws_access_key_id=get_account_id(), aws_secret_access_key="test")


def _call(service: str, operation: str, parameters: Properties) -> dict[str, Any]:
    """Raises ValueError, with the API's words, for what the API refuses: the stack's events show it."""
    model = service_model(service).operation_model(operation)
    python_name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in operation).lstrip("_")
    try:
        answer: dict[str, Any] = getattr(_client(service), python_name)(**_typed(model.input_shape, parameters))
    except (ClientError, ParamValidationError) as error:
        raise ValueError(f'Resource handler returned message: "{error}"') from error
    return answer


def _typed(shape: Shape | None, value: Any) -> Any:
    """A template's values in the types of the API: YAML and parameters bring numbers and booleans as texts."""
    if isinstance(shape, StructureShape):
        return {
            name: _typed(shape.members[name], item) if name in shape.members else item for name, item in value.items()
        }
    if isinstance(shape, ListShape):
        return [_typed(shape.member, item) for item in value]
    if isinstance(shape, MapShape):
        return {str(key): _typed(shape.value, item) for key, item in value.items()}
    if shape is None:
        return value
    if shape.type_name == "boolean":
        return value if isinstance(value, bool) else str(value).lower() == "true"
    if shape.type_name in ("integer", "long"):
        return int(value)
    if shape.type_name in ("float", "double"):
        return float(value)
    return str(value) if isinstance(value, int | float) else value


def _named(property_name: str, logical_id: str, props: Properties, stack_name: str) -> Properties:
    name = props.get(property_name) or _physical_name(stack_name, logical_id, max_len=MAX_NAME)
    return props | {property_name: name}


def _name_of(arn: str) -> str:
    return arn.rpartition("/")[2]


def _retag(arn: str, old: Properties, new: Properties) -> None:
    before = {tag["Key"]: tag["Value"] for tag in old.get("Tags") or []}
    after = {tag["Key"]: tag["Value"] for tag in new.get("Tags") or []}
    dropped = sorted(before.keys() - after.keys())
    if dropped:
        _call("sagemaker", "DeleteTags", {"ResourceArn": arn, "TagKeys": dropped})
    if after != before and after:
        tags = [{"Key": key, "Value": value} for key, value in after.items()]
        _call("sagemaker", "AddTags", {"ResourceArn": arn, "Tags": tags})


def _delete_unless_gone(operation: str, parameters: Properties) -> None:
    try:
        _call("sagemaker", operation, parameters)
    except ValueError as error:
        if not any(reason in str(error) for reason in ("Could not find", "DELETE_IN_PROGRESS")):
            raise


# AWS::SageMaker::Model, EndpointConfig, Endpoint: Ref is the ARN, GetAtt the name


def _simple(kind: str) -> tuple[Any, Any, Any]:
    name_property = f"{kind}Name"

    def create(logical_id: str, props: Properties, stack_name: str) -> Provisioned:
        named = _named(name_property, logical_id, props, stack_name)
        arn = _call("sagemaker", f"Create{kind}", named)[f"{kind}Arn"]
        return arn, {name_property: named[name_property]}

    def update(physical_id: str, old: Properties, new: Properties, _stack_name: str) -> Provisioned:
        _retag(physical_id, old, new)
        return physical_id, {name_property: _name_of(physical_id)}

    def delete(physical_id: str, _props: Properties) -> None:
        _delete_unless_gone(f"Delete{kind}", {name_property: _name_of(physical_id)})

    return create, update, delete


def _update_endpoint(physical_id: str, old: Properties, new: Properties, _stack_name: str) -> Provisioned:
    name = _name_of(physical_id)
    if old.get("EndpointConfigName") != new.get("EndpointConfigName"):
        _call("sagemaker", "UpdateEndpoint", {"EndpointName": name, "EndpointConfigName": new["EndpointConfigName"]})
    _retag(physical_id, old, new)
    return physical_id, {"EndpointName": name}


# AWS::SageMaker::InferenceComponent: Ref is the ARN; created when it is in service


def _create_component(logical_id: str, props: Properties, stack_name: str) -> Provisioned:
    named = _named("InferenceComponentName", logical_id, props, stack_name)
    name = named["InferenceComponentName"]
    # A base is deployed one copy at a time; how, the emulator has no use for.
    requested = {key: value for key, value in named.items() if key != "DeploymentConfig"}
    _call("sagemaker", "CreateInferenceComponent", requested)
    try:
        described = _await_in_service(name)
    except ValueError:
        _delete_component(name, {})
        raise
    return described["InferenceComponentArn"], _component_attributes(described)


def _update_component(physical_id: str, old: Properties, new: Properties, _stack_name: str) -> Provisioned:
    name = _name_of(physical_id)
    changed = {key: new[key] for key in ("Specification", "RuntimeConfig") if key in new and new[key] != old.get(key)}
    if changed:
        _call("sagemaker", "UpdateInferenceComponent", {"InferenceComponentName": name} | changed)
    _retag(physical_id, old, new)
    return physical_id, _component_attributes(_await_in_service(name))


def _delete_component(physical_id: str, _props: Properties) -> None:
    name = _name_of(physical_id)
    _delete_unless_gone("DeleteInferenceComponent", {"InferenceComponentName": name})
    deadline = time.monotonic() + COMPONENT_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            _call("sagemaker", "DescribeInferenceComponent", {"InferenceComponentName": name})
        except ValueError as error:
            if "Could not find" in str(error):
                return
            raise
        time.sleep(POLL_SECONDS)
    raise ValueError(f"The inference component {name} is still there after {COMPONENT_DEADLINE_SECONDS:.0f} s.")


def _await_in_service(name: str) -> dict[str, Any]:
    deadline = time.monotonic() + COMPONENT_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        described = _call("sagemaker", "DescribeInferenceComponent", {"InferenceComponentName": name})
        if described["InferenceComponentStatus"] == "InService":
            return described
        if described["InferenceComponentStatus"] == "Failed":
            raise ValueError(
                f"The inference component {name} failed: {described.get('FailureReason', 'no reason given')}"
            )
        time.sleep(POLL_SECONDS)
    raise ValueError(f"The inference component {name} is not in service after {COMPONENT_DEADLINE_SECONDS:.0f} s.")


def _component_attributes(described: dict[str, Any]) -> dict[str, Any]:
    attributes = {
        "InferenceComponentArn": described["InferenceComponentArn"],
        "InferenceComponentName": described["InferenceComponentName"],
        "EndpointArn": described["EndpointArn"],
        "InferenceComponentStatus": described["InferenceComponentStatus"],
        "CreationTime": described["CreationTime"].isoformat(),
        "LastModifiedTime": described["LastModifiedTime"].isoformat(),
    }
    for name, count in described.get("RuntimeConfig", {}).items():
        attributes[f"RuntimeConfig.{name}"] = str(count)
    return attributes


# AWS::ApplicationAutoScaling::ScalableTarget: Ref and Id are resource|dimension|namespace

TARGET_KEY = ("ResourceId", "ScalableDimension", "ServiceNamespace")


def _create_target(_logical_id: str, props: Properties, _stack_name: str) -> Provisioned:
    # CloudFormation writes RoleARN where the API has the same name; scheduled actions are calls of their own.
    registered = {key: value for key, value in props.items() if key != "ScheduledActions"}
    _call("application-autoscaling", "RegisterScalableTarget", registered)
    physical_id = "|".join(str(props[name]) for name in TARGET_KEY)
    return physical_id, {"Id": physical_id}


def _update_target(_physical_id: str, _old: Properties, new: Properties, stack_name: str) -> Provisioned:
    return _create_target("", new, stack_name)


def _delete_target(physical_id: str, _props: Properties) -> None:
    key = dict(zip(TARGET_KEY, physical_id.split("|"), strict=True))
    _delete_scaling("DeregisterScalableTarget", key)


# AWS::ApplicationAutoScaling::ScalingPolicy: Ref and Arn are the ARN


def _create_policy(_logical_id: str, props: Properties, _stack_name: str) -> Provisioned:
    request = _policy_key(props) | {key: value for key, value in props.items() if key != "ScalingTargetId"}
    arn = _call("application-autoscaling", "PutScalingPolicy", request)["PolicyARN"]
    return arn, {"Arn": arn}


def _update_policy(_physical_id: str, _old: Properties, new: Properties, stack_name: str) -> Provisioned:
    return _create_policy("", new, stack_name)


def _delete_policy(_physical_id: str, props: Properties) -> None:
    _delete_scaling("DeleteScalingPolicy", _policy_key(props) | {"PolicyName": props["PolicyName"]})


def _policy_key(props: Properties) -> Properties:
    """A policy names its target by id, or by the three parts of it."""
    if "ScalingTargetId" in props:
        return dict(zip(TARGET_KEY, props["ScalingTargetId"].split("|"), strict=True))
    return {name: props[name] for name in TARGET_KEY}


def _delete_scaling(operation: str, parameters: Properties) -> None:
    try:
        _call("application-autoscaling", operation, parameters)
    except ValueError as error:
        if "found for" not in str(error):
            raise


_create_model, _update_model, _delete_model = _simple("Model")
_create_config, _update_config, _delete_config = _simple("EndpointConfig")
_create_endpoint, _, _delete_endpoint = _simple("Endpoint")

MODEL_PROPERTIES = [
    "Containers",
    "EnableNetworkIsolation",
    "ExecutionRoleArn",
    "InferenceExecutionConfig",
    "ModelName",
    "PrimaryContainer",
    "VpcConfig",
]
CONFIG_PROPERTIES = [
    "AsyncInferenceConfig",
    "DataCaptureConfig",
    "EnableNetworkIsolation",
    "EndpointConfigName",
    "ExecutionRoleArn",
    "ExplainerConfig",
    "KmsKeyId",
    "ProductionVariants",
    "ShadowProductionVariants",
    "VpcConfig",
]

RESOURCE_TYPES = {
    "AWS::SageMaker::Model": ResourceType(_create_model, _update_model, _delete_model, tuple(MODEL_PROPERTIES)),
    "AWS::SageMaker::EndpointConfig": ResourceType(
        _create_config, _update_config, _delete_config, tuple(CONFIG_PROPERTIES)
    ),
    "AWS::SageMaker::Endpoint": ResourceType(_create_endpoint, _update_endpoint, _delete_endpoint, ("EndpointName",)),
    "AWS::SageMaker::InferenceComponent": ResourceType(
        _create_component,
        _update_component,
        _delete_component,
        ("InferenceComponentName", "EndpointName", "VariantName"),
    ),
    "AWS::ApplicationAutoScaling::ScalableTarget": ResourceType(
        _create_target, _update_target, _delete_target, TARGET_KEY, is_tagged=False
    ),
    "AWS::ApplicationAutoScaling::ScalingPolicy": ResourceType(
        _create_policy,
        _update_policy,
        _delete_policy,
        (*TARGET_KEY, "PolicyName", "ScalingTargetId"),
        is_tagged=False,
    ),
}
