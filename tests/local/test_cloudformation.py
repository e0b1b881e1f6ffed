"""CloudFormation's resources of SageMaker hosting on the local cloud: made, changed, rolled back and removed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from local.cloud import LocalCloud
from tests.adapters import good_tarball

from .account import Account, allow, unique
from .conftest import eventually


@pytest.fixture(scope="module")
def account(cloud: LocalCloud) -> Account:
    return Account(cloud)


class HostingStack:
    """An endpoint configuration, an endpoint and a base component, as the template has them."""

    def __init__(self, account: Account) -> None:
        self._account, self._cloudformation = account, account.cloudformation
        self.name = unique("hosting")
        self.base: dict[str, Any] = {
            "EndpointName": {"Fn::GetAtt": ["Endpoint", "EndpointName"]},
            "VariantName": "AllTraffic",
            "RuntimeConfig": {"CopyCount": 1},
            "Specification": {
                "Container": {
                    "Image": "djl-inference:lmi",
                    "Environment": {"OPTION_ENABLE_LORA": "true", "OPTION_MAX_LORAS": 4},
                },
                "ComputeResourceRequirements": {"MinMemoryRequiredInMb": "4096"},
            },
        }
        self.instances: Any = 1
        self.role = account.role("sagemaker", allow("s3:GetObject"))
        self.more: dict[str, Any] = {}

    def template(self) -> str:
        variant = {
            "VariantName": "AllTraffic",
            "InstanceType": "ml.g6e.xlarge",
            "InitialInstanceCount": self.instances,
        }
        config = {"ExecutionRoleArn": self.role, "ProductionVariants": [variant]}
        endpoint = {"EndpointConfigName": {"Fn::GetAtt": ["Config", "EndpointConfigName"]}}
        resources = {
            "Config": {"Type": "AWS::SageMaker::EndpointConfig", "Properties": config},
            "Endpoint": {"Type": "AWS::SageMaker::Endpoint", "Properties": endpoint},
            "Base": {"Type": "AWS::SageMaker::InferenceComponent", "Properties": self.base},
        }
        base = {"Fn::Select": [1, {"Fn::Split": ["/", {"Ref": "Base"}]}]}
        outputs = {"Endpoint": {"Fn::GetAtt": ["Endpoint", "EndpointName"]}, "Base": base}
        return json.dumps(
            {"Resources": resources | self.more, "Outputs": {name: {"Value": value} for name, value in outputs.items()}}
        )

    def create(self) -> str:
        self._cloudformation.create_stack(StackName=self.name, TemplateBody=self.template())
        return self.settled()

    def update(self) -> str:
        self._cloudformation.update_stack(StackName=self.name, TemplateBody=self.template())
        return self.settled()

    def delete(self) -> str:
        self._cloudformation.delete_stack(StackName=self.name)
        return self.settled()

    def settled(self) -> str:
        def poll() -> str | None:
            status = self._status()
            return None if status.endswith("IN_PROGRESS") else status

        return eventually(poll, f"the end of what {self.name} does", seconds=20)

    def _status(self) -> str:
        # A stack that is gone is known by its id alone; these here are asked for by name.
        for stack in self._cloudformation.describe_stacks()["Stacks"]:
            if stack["StackName"] == self.name:
                return str(stack["StackStatus"])
        return "DELETE_COMPLETE"

    def events(self) -> list[tuple[str, str]]:
        """Logical ids and statuses, the first first."""
        found = self._cloudformation.describe_stack_events(StackName=self.name)["StackEvents"]
        return [(event["LogicalResourceId"], event["ResourceStatus"]) for event in reversed(found)]

    def reasons(self, status: str) -> list[str]:
        found = self._cloudformation.describe_stack_events(StackName=self.name)["StackEvents"]
        return [event["ResourceStatusReason"] for event in found if event["ResourceStatus"] == status]

    def outputs(self) -> dict[str, str]:
        [stack] = self._cloudformation.describe_stacks(StackName=self.name)["Stacks"]
        return {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}

    def resources(self) -> list[str]:
        """What of this stack is there, whoever knows of it."""
        sagemaker = self._account.sagemaker
        listed = [
            *sagemaker.list_endpoint_configs(NameContains=self.name)["EndpointConfigs"],
            *sagemaker.list_endpoints(NameContains=self.name)["Endpoints"],
            *sagemaker.list_inference_components(NameContains=self.name)["InferenceComponents"],
        ]
        names = ("EndpointConfigName", "InferenceComponentName", "EndpointName")
        return [next(one[name] for name in names if name in one) for one in listed]


@pytest.fixture
def hosting(account: Account) -> Iterator[HostingStack]:
    before = account.cloud.behaviour()
    stack = HostingStack(account)
    yield stack
    account.cloud.behave(**before)
    assert stack.delete() == "DELETE_COMPLETE"
    assert stack.resources() == []


def test_a_stack_is_made_and_the_base_answers(account: Account, hosting: HostingStack) -> None:
    account.cloud.behave(seconds_to_in_service=0.3)
    assert hosting.create() == "CREATE_COMPLETE"
    completed = [name for name, status in hosting.events() if status == "CREATE_COMPLETE"]
    assert completed == ["Config", "Endpoint", "Base", hosting.name]
    outputs = hosting.outputs()
    described = account.sagemaker.describe_inference_component(InferenceComponentName=outputs["Base"])
    assert described["InferenceComponentStatus"] == "InService", "it is complete when it is in service"
    # A template's numbers may be texts, and an environment's texts numbers.
    assert described["Specification"]["ComputeResourceRequirements"]["MinMemoryRequiredInMb"] == 4096
    assert described["Specification"]["Container"]["Environment"] == {
        "OPTION_ENABLE_LORA": "true",
        "OPTION_MAX_LORAS": "4",
    }
    answer = account.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=outputs["Endpoint"], InferenceComponentName=outputs["Base"], Body=b'{"inputs": "Hello"}'
    )
    assert json.load(answer["Body"])["generated_text"]


def test_a_changed_configuration_is_replaced_under_the_same_endpoint(account: Account, hosting: HostingStack) -> None:
    hosting.create()
    before = hosting.outputs()
    [old] = account.sagemaker.list_endpoint_configs(NameContains=hosting.name)["EndpointConfigs"]
    hosting.instances = 2
    assert hosting.update() == "UPDATE_COMPLETE"
    assert hosting.outputs() == before
    [new] = account.sagemaker.list_endpoint_configs(NameContains=hosting.name)["EndpointConfigs"]
    assert new["EndpointConfigName"] != old["EndpointConfigName"]
    endpoint = account.sagemaker.describe_endpoint(EndpointName=before["Endpoint"])
    assert endpoint["EndpointConfigName"] == new["EndpointConfigName"]
    assert endpoint["ProductionVariants"][0]["DesiredInstanceCount"] == 2


def test_a_changed_base_is_updated_in_place(account: Account, hosting: HostingStack) -> None:
    hosting.create()
    before = hosting.outputs()
    hosting.base["RuntimeConfig"]["CopyCount"] = 3
    hosting.base["Tags"] = [{"Key": "team", "Value": "speech"}]
    assert hosting.update() == "UPDATE_COMPLETE"
    assert hosting.outputs() == before
    described = account.sagemaker.describe_inference_component(InferenceComponentName=before["Base"])
    assert described["RuntimeConfig"] == {"DesiredCopyCount": 3, "CurrentCopyCount": 3}
    tags = account.sagemaker.list_tags(ResourceArn=described["InferenceComponentArn"])["Tags"]
    assert {"Key": "team", "Value": "speech"} in tags


def test_a_base_that_fails_rolls_the_stack_back_and_says_why(account: Account, hosting: HostingStack) -> None:
    account.cloud.behave(create_fails="The container did not pass its health check.")
    assert hosting.create() == "ROLLBACK_COMPLETE"
    [reason] = hosting.reasons("CREATE_FAILED")
    assert reason.endswith("failed: The container did not pass its health check.")
    assert hosting.resources() == []


def test_what_the_api_refuses_rolls_the_stack_back_with_its_words(hosting: HostingStack) -> None:
    del hosting.base["Specification"]["ComputeResourceRequirements"]
    assert hosting.create() == "ROLLBACK_COMPLETE"
    [reason] = hosting.reasons("CREATE_FAILED")
    assert "ComputeResourceRequirements is required when BaseInferenceComponentName is not specified." in reason
    assert hosting.resources() == []


def test_an_update_that_fails_says_why(account: Account, hosting: HostingStack) -> None:
    hosting.create()
    account.cloud.behave(create_fails="No capacity.")
    hosting.base["RuntimeConfig"]["CopyCount"] = 3
    assert hosting.update() == "UPDATE_ROLLBACK_COMPLETE"
    [reason] = hosting.reasons("UPDATE_FAILED")
    assert reason.endswith("failed: No capacity.")


def test_a_stack_goes_in_order_and_waits_for_the_base(account: Account, hosting: HostingStack) -> None:
    hosting.create()
    account.cloud.behave(seconds_to_delete=0.5)
    # Somebody has begun to delete it by hand.
    account.sagemaker.delete_inference_component(InferenceComponentName=hosting.outputs()["Base"])
    assert hosting.delete() == "DELETE_COMPLETE"
    assert hosting.resources() == []


def test_a_stack_whose_base_has_adapters_stays_and_names_them(account: Account, hosting: HostingStack) -> None:
    hosting.create()
    bucket, adapter, outputs = account.bucket(), unique("adapter"), hosting.outputs()
    account.s3.put_object(Bucket=bucket, Key="acme.tar.gz", Body=good_tarball())
    account.sagemaker.create_inference_component(
        InferenceComponentName=adapter,
        EndpointName=outputs["Endpoint"],
        Specification={
            "BaseInferenceComponentName": outputs["Base"],
            "Container": {"ArtifactUrl": f"s3://{bucket}/acme.tar.gz"},
        },
    )
    assert hosting.delete() == "DELETE_FAILED"
    reasons = hosting.reasons("DELETE_FAILED")
    assert any(f"it is a base inference component of the inference components {adapter}" in one for one in reasons)
    kinds = [name for name in ("Config", "Endpoint", "Base") if any(f"-{name}-" in one for one in hosting.resources())]
    assert kinds == ["Config", "Endpoint", "Base"], "what the base stands on stays with it"
    assert any("Base needs it, and could not be deleted." in one for one in reasons)
    account.cloud.behave(seconds_to_delete=0)
    account.sagemaker.delete_inference_component(InferenceComponentName=adapter)


def test_a_base_may_be_scaled_automatically(account: Account, hosting: HostingStack) -> None:
    target = {
        "MinCapacity": 1,
        "MaxCapacity": "4",
        "ResourceId": {
            "Fn::Sub": ["inference-component/${Name}", {"Name": {"Fn::GetAtt": ["Base", "InferenceComponentName"]}}]
        },
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
        "ServiceNamespace": "sagemaker",
    }
    metric = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
    policy = {
        "PolicyName": "Concurrency",
        "PolicyType": "TargetTrackingScaling",
        "ScalingTargetId": {"Ref": "Target"},
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": "5",
            "PredefinedMetricSpecification": {"PredefinedMetricType": metric},
        },
    }
    hosting.more = {
        "Target": {"Type": "AWS::ApplicationAutoScaling::ScalableTarget", "Properties": target},
        "Policy": {"Type": "AWS::ApplicationAutoScaling::ScalingPolicy", "Properties": policy},
    }
    assert hosting.create() == "CREATE_COMPLETE", hosting.reasons("CREATE_FAILED")
    scaling = account.client("application-autoscaling")
    resource = {"ServiceNamespace": "sagemaker", "ResourceId": f"inference-component/{hosting.outputs()['Base']}"}
    [described] = scaling.describe_scaling_policies(**resource)["ScalingPolicies"]
    assert described["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 5
    target["MaxCapacity"] = 6
    assert hosting.update() == "UPDATE_COMPLETE"
    [registered] = scaling.describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=[resource["ResourceId"]]
    )["ScalableTargets"]
    assert (registered["MinCapacity"], registered["MaxCapacity"]) == (1, 6)
    assert hosting.delete() == "DELETE_COMPLETE"
    assert scaling.describe_scaling_policies(**resource)["ScalingPolicies"] == []
