"""AWS as moto emulates it, with the hosting emulator behind SageMaker, and the resources that the template makes."""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REGION = "us-east-1"
TABLE = "registry"
ENDPOINT = "endpoint"
BASE = "base"
STACK_ID = "arn:aws:cloudformation:us-east-1:123456789012:stack/loradrop/1"

# The handlers read their settings, and make their clients, when they are imported.
os.environ |= {
    "AWS_DEFAULT_REGION": REGION,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "POWERTOOLS_SERVICE_NAME": "loradrop",
    "POWERTOOLS_METRICS_NAMESPACE": "loradrop",
    "POWERTOOLS_TRACE_DISABLED": "true",
    "REGISTRY_TABLE": TABLE,
    "RELEASE_BUCKET": "releases",
    "ENDPOINT_NAME": ENDPOINT,
    "BASE_COMPONENT_NAME": BASE,
    "BASE_PROFILE": "tiny-llama",
    "MAX_LORA_RANK": "16",
    "ENGINE_VERSION": "0.26.0",
    "MAX_UPLOAD_MEGABYTES": "1",
    "IN_SERVICE_DEADLINE_SECONDS": "60",
    "GRACE_PERIOD_SECONDS": "100",
    "CREATES_PER_SECOND": "1000",
    "WATCHED_SECONDS": "1",
    "STACK_ID": STACK_ID,
    "UPLOAD_BUCKET": "uploads",
    "DEPLOY_ADAPTER_ARN": f"arn:aws:states:{REGION}:123456789012:stateMachine:DeployAdapter",
    "SMOKE_PROMPTS": '{"inputs": "Hello"}',
    "TENANTS": "acme, globex",
    "CONTAINER_KIND": "lmi",
    "TOPIC_ARN": f"arn:aws:sns:{REGION}:123456789012:topic",
}
os.environ.pop("AWS_ENDPOINT_URL", None)

import boto3
import pytest
from moto import mock_aws

from local import hosting
from tests.template import TEMPLATE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, so that the other process is not waited for at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@dataclass(frozen=True, slots=True)
class Context:
    """What Powertools' logger reads of a Lambda's context."""

    function_name: str = "function"
    memory_limit_in_mb: int = 256
    invoked_function_arn: str = f"arn:aws:lambda:{REGION}:123456789012:function:function"
    aws_request_id: str = "request"


CONTEXT: Any = Context()


def s3_event(key: str, version_id: str | None, sequencer: str, size_bytes: int = 1) -> dict[str, Any]:
    """An Object Created event as EventBridge delivers it."""
    thing = {"key": key, "size": size_bytes, "etag": "e", "sequencer": sequencer}
    return {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "time": "2026-01-02T03:04:05Z",
        "detail": {
            "bucket": {"name": "uploads"},
            "object": thing | ({"version-id": version_id} if version_id else {}),
            "requester": "123456789012",
            "source-ip-address": "192.0.2.1",
            "reason": "PutObject",
        },
    }


def registry_table() -> dict[str, Any]:
    """Keys and index of the registry, as the template has them."""
    properties = TEMPLATE["Resources"]["Registry"]["Properties"]
    return {name: properties[name] for name in ("AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes")}


# Making a client takes longer than most tests: one for all.
client: Any = functools.cache(boto3.client)


class Resources:
    """The resources of the template that handlers meet."""

    def __init__(self) -> None:
        self.s3, self.dynamodb, self.sagemaker = client("s3"), client("dynamodb"), client("sagemaker")
        for bucket in ("uploads", "releases"):
            self.s3.create_bucket(Bucket=bucket)
            self.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        self.dynamodb.create_table(TableName=TABLE, BillingMode="PAY_PER_REQUEST", **registry_table())
        client("sns").create_topic(Name="topic")
        self.states = client("stepfunctions")
        definition = '{"StartAt": "End", "States": {"End": {"Type": "Succeed"}}}'
        role = "arn:aws:iam::123456789012:role/machine"
        self.states.create_state_machine(name="DeployAdapter", definition=definition, roleArn=role)
        self._make_base()
        self._sequencer = 0x10

    def _make_base(self) -> None:
        self.sagemaker.create_endpoint_config(
            EndpointConfigName="config",
            ExecutionRoleArn="arn:aws:iam::123456789012:role/endpoint",
            ProductionVariants=[
                {"VariantName": "AllTraffic", "InstanceType": "ml.g6e.xlarge", "InitialInstanceCount": 1}
            ],
        )
        self.sagemaker.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName="config")
        self.sagemaker.create_inference_component(
            InferenceComponentName=BASE,
            EndpointName=ENDPOINT,
            VariantName="AllTraffic",
            Specification={
                "Container": {
                    "Image": "djl-inference:lmi",
                    "Environment": {
                        "OPTION_ENABLE_LORA": "true",
                        "OPTION_ENTRYPOINT": "djl_python.lmi_vllm.vllm_async_service",
                    },
                },
                "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 4096, "NumberOfAcceleratorDevicesRequired": 1},
            },
            RuntimeConfig={"CopyCount": 1},
        )

    def upload(self, body: bytes, *, adapter: str = "acme", key: str | None = None, **options: Any) -> dict[str, Any]:
        """Put an object; the event that S3 sends of it."""
        key = key or f"adapters/{adapter}.tar.gz"
        put = self.s3.put_object(Bucket="uploads", Key=key, Body=body, **options)
        self._sequencer += 1
        return s3_event(key, put["VersionId"], f"{self._sequencer:018X}", len(body))

    def state(self, adapter: str = "acme") -> dict[str, Any]:
        """The adapter's state item in the registry."""
        key = {"adapter": {"S": adapter}, "record": {"S": "state"}}
        return self.dynamodb.get_item(TableName=TABLE, Key=key).get("Item", {})

    def live(self, adapter: str = "acme") -> str | None:
        """The component that the live pointer names."""
        live = self.state(adapter).get("live", {}).get("M")
        return live["component"]["S"] if live else None

    def adapter_components(self) -> dict[str, str]:
        """Name → status of the components beside the base."""
        found = self.sagemaker.list_inference_components(EndpointNameEquals=ENDPOINT, MaxResults=100)
        return {
            one["InferenceComponentName"]: one["InferenceComponentStatus"]
            for one in found["InferenceComponents"]
            if one["InferenceComponentName"] != BASE
        }

    def released(self) -> list[str]:
        return [one["Key"] for one in self.s3.list_objects_v2(Bucket="releases").get("Contents", [])]


# Starting moto takes as long, and it brings a new boto3 session each time.
@pytest.fixture(scope="session")
def aws() -> Iterator[Any]:
    with mock_aws() as mocked:
        yield mocked


@pytest.fixture
def stack(aws: Any) -> Iterator[Resources]:
    aws.reset()
    with hosting.behaving():
        yield Resources()


Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model as the tiny base is, but not trained: the tokenizer and the shapes are the real ones."""
    from loradrop_training.tiny.pretraining import make_model, make_tokenizer  # torch takes seconds that few tests need

    folder = tmp_path_factory.mktemp("random-llama")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
