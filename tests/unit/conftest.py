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
    "STACK_NAME": "stack",
    "SMOKE_PROMPTS": '{"inputs": "Hello"}',
    "TOPIC_ARN": f"arn:aws:sns:{REGION}:123456789012:topic",
}
os.environ.pop("AWS_ENDPOINT_URL", None)

import boto3
import pytest
from moto import mock_aws

from local import hosting


@dataclass(frozen=True, slots=True)
class Context:
    """What Powertools' logger reads of a Lambda's context."""

    function_name: str = "function"
    memory_limit_in_mb: int = 256
    invoked_function_arn: str = f"arn:aws:lambda:{REGION}:123456789012:function:function"
    aws_request_id: str = "request"


CONTEXT: Any = Context()


# Making a client takes longer than most tests: one for all.
client: Any = functools.cache(boto3.client)


class Stack:
    """The resources of the template that handlers meet."""

    def __init__(self) -> None:
        self.s3, self.dynamodb, self.sagemaker = client("s3"), client("dynamodb"), client("sagemaker")
        for bucket in ("uploads", "releases"):
            self.s3.create_bucket(Bucket=bucket)
            self.s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        self.dynamodb.create_table(
            TableName=TABLE,
            KeySchema=[{"AttributeName": "adapter", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "adapter", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
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

    def upload(self, body: bytes, *, adapter: str = "acme") -> dict[str, Any]:
        """Put an object; what the state machine's ReadUpload makes of its event."""
        key = f"adapters/{adapter}.tar.gz"
        put = self.s3.put_object(Bucket="uploads", Key=key, Body=body)
        self._sequencer += 1
        return {
            "adapter": adapter,
            "bucket": "uploads",
            "key": key,
            "version_id": put["VersionId"],
            "sequencer": f"{self._sequencer:018X}",
            "size_bytes": len(body),
        }

    def registry_item(self, adapter: str = "acme") -> dict[str, Any]:
        return self.dynamodb.get_item(TableName=TABLE, Key={"adapter": {"S": adapter}}).get("Item", {})

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
def stack(aws: Any) -> Iterator[Stack]:
    aws.reset()
    with hosting.behaving():
        yield Stack()


Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model as the tiny base is, but not trained: the tokenizer and the shapes are the real ones."""
    from loradrop_training.pretraining import make_model, make_tokenizer  # torch takes seconds that few tests need

    folder = tmp_path_factory.mktemp("random-llama")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
