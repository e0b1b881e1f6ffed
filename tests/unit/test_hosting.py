"""The hosting emulator as boto3 meets it under mock_aws: inference components from their creation to their end, and invocations."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.config import Config
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError
from botocore.model import ListShape, MapShape, Shape, StructureShape

from local.engines.stand_in import StandInEngine
from local.hosting import CONTROL, SERVING, HostingBackend, behaving, hosting_backend
from local.hosting.responses import invoke
from local.hosting.serving import stand_in_engine
from local.hosting.validation import service_model
from tests.adapters import adapter_files, good_tarball, tarball, wrapped_tarball

from .conftest import BASE, ENDPOINT, REGION, Resources, client

ACCOUNT = "123456789012"
ARN = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:inference-component"
NAME_RULE = r"Member must satisfy regular expression pattern: [a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?"
ROLE = "arn:aws:iam::123456789012:role/endpoint"
# The SDK would try again, and a test would not see the first answer; and it would validate a request before the service does.
ONCE = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
ASKED = {"inputs": "Hello", "parameters": {"temperature": 0, "max_new_tokens": 8}}


class Hosting:
    """A stack's endpoint and its base, and adapters to put on it."""

    def __init__(self, stack: Resources) -> None:
        self.sagemaker, self._s3 = stack.sagemaker, stack.s3
        self.unchecked, self.runtime = client("sagemaker", config=ONCE), client("sagemaker-runtime", config=ONCE)

    @property
    def backend(self) -> HostingBackend:
        return hosting_backend(ACCOUNT, REGION)

    def put(self, body: bytes | None = None, *, key: str = "acme.tar.gz", seed: int = 0) -> str:
        self._s3.put_object(Bucket="releases", Key=key, Body=good_tarball(seed=seed) if body is None else body)
        return f"s3://releases/{key}"

    def request(self, name: str = "acme", url: str = "s3://releases/acme.tar.gz", **members: Any) -> dict[str, Any]:
        specification = {"BaseInferenceComponentName": BASE, "Container": {"ArtifactUrl": url}}
        return {"InferenceComponentName": name, "EndpointName": ENDPOINT, "Specification": specification} | members

    def create(self, name: str = "acme", url: str | None = None, **members: Any) -> str:
        request = self.request(name, url or self.put(), **members)
        arn: str = self.sagemaker.create_inference_component(**request)["InferenceComponentArn"]
        return arn

    def describe(self, name: str = "acme") -> dict[str, Any]:
        described: dict[str, Any] = self.unchecked.describe_inference_component(InferenceComponentName=name)
        return described

    def status(self, name: str = "acme") -> str:
        return str(self.describe(name)["InferenceComponentStatus"])

    def delete(self, name: str = "acme") -> None:
        self.sagemaker.delete_inference_component(InferenceComponentName=name)

    def names(self, **wanted: Any) -> list[str]:
        listed = self.sagemaker.list_inference_components(**wanted)["InferenceComponents"]
        return [one["InferenceComponentName"] for one in listed]

    def invoke(
        self, component: str | None = "acme", request: Any = ASKED, *, endpoint: str = ENDPOINT
    ) -> dict[str, Any]:
        named = {} if component is None else {"InferenceComponentName": component}
        answer = self.runtime.invoke_endpoint(
            EndpointName=endpoint, ContentType="application/json", Body=json.dumps(request), **named
        )
        return answer | {"Body": json.load(answer["Body"])}

    def text(self, component: str = "acme") -> str:
        return str(self.invoke(component)["Body"]["generated_text"])

    def make_endpoint(self, name: str, **variant: Any) -> None:
        described = {"VariantName": "AllTraffic", "InstanceType": "ml.g6e.xlarge", "InitialInstanceCount": 1} | variant
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=f"{name}-config", ExecutionRoleArn=ROLE, ProductionVariants=[described]
        )
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=f"{name}-config")

    def make_base(self, name: str, endpoint: str = ENDPOINT, **environment: str) -> None:
        self.sagemaker.create_inference_component(
            InferenceComponentName=name,
            EndpointName=endpoint,
            Specification={
                "Container": {"Image": "djl-inference:lmi", "Environment": environment},
                "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 4096},
            },
        )


@pytest.fixture
def hosting(stack: Resources) -> Hosting:
    return Hosting(stack)


def refusal(call: Callable[..., Any], **request: Any) -> tuple[str, str]:
    """Code and message of what is refused."""
    with pytest.raises(ClientError) as refused:
        call(**request)
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


def eventually(poll: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 5
    while not poll():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def assert_conforms(shape: Shape, value: Any, path: str) -> None:
    """No member that botocore's model does not know, none missing that it requires, and each of its type."""
    if isinstance(shape, StructureShape):
        assert set(value) <= set(shape.members), path
        assert set(shape.required_members) <= set(value), path
        for name, member in value.items():
            assert_conforms(shape.members[name], member, f"{path}.{name}")
    elif isinstance(shape, ListShape):
        for item in value:
            assert_conforms(shape.member, item, f"{path}[]")
    elif isinstance(shape, MapShape):
        for item in value.values():
            assert_conforms(shape.value, item, f"{path}.*")
    else:
        types = {"string": str, "integer": int, "timestamp": datetime, "boolean": bool, "float": float}
        assert isinstance(value, types[shape.type_name]), path
        assert "enum" not in shape.metadata or value in shape.metadata["enum"], path


# Create and describe


def test_an_adapter_is_described(hosting: Hosting) -> None:
    url = hosting.put()
    before = datetime.now(UTC) - timedelta(seconds=1)
    arn = hosting.create(url=url)
    assert arn == f"{ARN}/acme"
    described = hosting.describe()
    del described["ResponseMetadata"]
    created, modified = described.pop("CreationTime"), described.pop("LastModifiedTime")
    assert before < created <= modified
    assert described == {
        "InferenceComponentName": "acme",
        "InferenceComponentArn": arn,
        "EndpointName": ENDPOINT,
        "EndpointArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{ENDPOINT}",
        "VariantName": "AllTraffic",
        "InferenceComponentStatus": "InService",
        "Specification": {"BaseInferenceComponentName": BASE, "Container": {"ArtifactUrl": url}},
    }


def test_a_base_is_described(hosting: Hosting) -> None:
    described = hosting.describe(BASE)
    assert described["RuntimeConfig"] == {"DesiredCopyCount": 1, "CurrentCopyCount": 1}
    container = described["Specification"]["Container"]
    assert container["DeployedImage"]["SpecifiedImage"] == "djl-inference:lmi"
    assert container["Environment"]["OPTION_ENABLE_LORA"] == "true"
    assert "Image" not in container, "what was asked for is the DeployedImage"


def test_descriptions_and_summaries_have_the_members_of_the_model(hosting: Hosting) -> None:
    hosting.create("good")
    hosting.create("bad", hosting.put(b"no tarball", key="bad.tar.gz"))
    model = service_model("sagemaker")
    described, summary = "DescribeInferenceComponentOutput", "InferenceComponentSummary"
    components = hosting.backend.list_inference_components()
    assert sorted(component.name for component in components) == ["bad", BASE, "good"]
    for component in components:
        assert_conforms(model.shape_for(described), component.description(), component.name)
        assert_conforms(model.shape_for(summary), component.summary(), component.name)


@pytest.mark.parametrize("name", ["a", "A-1", "a--b", "x" * 63])
def test_names_that_are_allowed(hosting: Hosting, name: str) -> None:
    assert hosting.create(name) == f"{ARN}/{name}"
    assert hosting.status(name) == "InService"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("a_b", NAME_RULE),
        ("a.b", NAME_RULE),
        ("-a", NAME_RULE),
        ("a-", NAME_RULE),
        ("tenant/acme", NAME_RULE),
        ("", NAME_RULE),
        ("x" * 64, "Member must have length less than or equal to 63"),
    ],
)
def test_names_that_are_refused(hosting: Hosting, name: str, rule: str) -> None:
    message = (
        f"1 validation error detected: Value '{name}' at 'inferenceComponentName' failed to satisfy constraint: {rule}"
    )
    for call, request in (
        (hosting.unchecked.create_inference_component, hosting.request(name)),
        (hosting.unchecked.describe_inference_component, {"InferenceComponentName": name}),
        (hosting.unchecked.delete_inference_component, {"InferenceComponentName": name}),
    ):
        assert refusal(call, **request) == ("ValidationException", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"EndpointName": None}, "Value null at 'endpointName' failed to satisfy constraint: Member must not be null"),
        (
            {"EndpointName": "other"},
            f'Could not find endpoint "arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/other".',
        ),
        ({"Specification": None}, "Specification is required to create an inference component."),
        (
            {"Specification.BaseInferenceComponentName": "other"},
            f'Could not find inference component "{ARN}/other".',
        ),
        ({"Specification.Container": {}}, "Container.ArtifactUrl is required"),
        ({"Specification.Container": None}, "Container.ArtifactUrl is required"),
        (
            {"Specification.Container": {"ArtifactUrl": "releases/acme.tar.gz"}},
            "at 'specification.container.artifactUrl' failed to satisfy constraint: Member must satisfy regular expression",
        ),
        (
            {"Specification.Container": {"ArtifactUrl": "s3://releases/" + "x" * 1011}},
            "at 'specification.container.artifactUrl' failed to satisfy constraint: Member must have length less than or equal to 1024",
        ),
        (
            {"Specification.Container": {"ArtifactUrl": "s3://releases/acme.tar.gz", "Image": "djl"}},
            "Container.Image cannot be specified together with BaseInferenceComponentName.",
        ),
        (
            {"Specification.ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128}},
            "ComputeResourceRequirements cannot be specified together with BaseInferenceComponentName",
        ),
        (
            {"RuntimeConfig": {"CopyCount": 1}},
            "RuntimeConfig is not supported when BaseInferenceComponentName is specified.",
        ),
        ({"VariantName": "Other"}, 'Could not find variant "Other" on endpoint'),
        (
            {"Tags": [{"Key": f"k{number}", "Value": ""} for number in range(51)]},
            "at 'tags' failed to satisfy constraint: Member must have length less than or equal to 50",
        ),
        (
            {"InferenceComponentName": "a_b", "EndpointName": "c_d"},
            "2 validation errors detected: Value 'a_b' at 'inferenceComponentName'",
        ),
    ],
)
def test_an_adapter_that_is_asked_for_wrongly(hosting: Hosting, changes: dict[str, Any], message: str) -> None:
    hosting.put()
    request = hosting.request()
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = request["Specification"] if parents else request
        place[last] = value
        if value is None:
            del place[last]
    code, said = refusal(hosting.unchecked.create_inference_component, **request)
    assert (code, message in said) == ("ValidationException", True), said
    assert hosting.names() == [BASE]


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({"ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128}}, "Specify either ModelName or Container"),
        (
            {"Container": {"ArtifactUrl": "s3://b/k"}, "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128}},
            "Container.Image is required when neither ModelName nor BaseInferenceComponentName is specified.",
        ),
        ({"Container": {"Image": "djl"}}, "ComputeResourceRequirements is required"),
        (
            {"Container": {"Image": "djl"}, "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 127}},
            "Member must have value greater than or equal to 128",
        ),
        (
            {"ModelName": "other", "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128}},
            "Could not find model",
        ),
        (
            {
                "Container": {"Image": "djl"},
                "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128},
                "StartupParameters": {"ContainerStartupHealthCheckTimeoutInSeconds": 3601},
            },
            "Member must have value less than or equal to 3600",
        ),
    ],
)
def test_a_base_that_is_asked_for_wrongly(hosting: Hosting, specification: dict[str, Any], message: str) -> None:
    request = hosting.request("base-2", Specification=specification)
    code, said = refusal(hosting.unchecked.create_inference_component, **request)
    assert (code, message in said) == ("ValidationException", True), said


def test_a_base_must_be_a_base_in_service_on_the_same_endpoint(hosting: Hosting) -> None:
    hosting.create("adapter")
    hosting.make_endpoint("other")
    hosting.make_base("other-base", "other")
    with behaving(seconds_to_in_service=60):
        hosting.make_base("coming")

    def refusal_of(base: str) -> str:
        specification = {"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": hosting.put()}}
        request = hosting.request(Specification=specification)
        return refusal(hosting.sagemaker.create_inference_component, **request)[1]

    assert refusal_of("adapter").endswith("is an adapter and cannot be a base.")
    assert refusal_of("other-base").endswith(f"is on the endpoint other, not on {ENDPOINT}.")
    assert refusal_of("coming").endswith("is Creating, not InService.")


def test_a_name_is_taken_once(hosting: Hosting) -> None:
    hosting.create()
    assert refusal(hosting.sagemaker.create_inference_component, **hosting.request()) == (
        "ValidationException",
        f'Cannot create already existing inference component "{ARN}/acme".',
    )


@pytest.mark.parametrize("operation", ["describe", "delete", "update"])
def test_a_component_that_does_not_exist(hosting: Hosting, operation: str) -> None:
    call = getattr(hosting.sagemaker, f"{operation}_inference_component")
    assert refusal(call, InferenceComponentName="acme") == (
        "ValidationException",
        f'Could not find inference component "{ARN}/acme".',
    )


# The life cycle


def test_a_component_is_creating_for_as_long_as_it_is_told_to(hosting: Hosting) -> None:
    with behaving(seconds_to_in_service=0.2):
        started = time.monotonic()
        hosting.create()
        assert hosting.status() == "Creating"
        assert refusal(hosting.invoke)[0] == "ValidationError"
        eventually(lambda: hosting.status() == "InService", "in service after 0.2 s")
        assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "Failed to download model data from s3://releases/missing.tar.gz: An error occurred (NoSuchKey)"),
        (b"", "the tarball cannot be read"),
        (b"no tarball", "the tarball cannot be read"),
        (wrapped_tarball(), "adapter_config.json is missing at the root of the tarball"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_fails_and_says_why(hosting: Hosting, body: bytes | None, reason: str) -> None:
    url = "s3://releases/missing.tar.gz" if body is None else hosting.put(body)
    hosting.create(url=url)
    described = hosting.describe()
    assert described["InferenceComponentStatus"] == "Failed"
    assert described["FailureReason"].startswith(f"Failed to load the adapter: {reason}")
    code, message = refusal(hosting.invoke)
    assert (code, message) == ("ValidationError", "Inference Component acme is Failed, not InService.")


def test_a_failed_component_can_be_replaced_under_its_name(hosting: Hosting) -> None:
    hosting.create(url=hosting.put(b"no tarball"))
    assert hosting.status() == "Failed"
    hosting.delete()
    hosting.create()
    described = hosting.describe()
    assert described["InferenceComponentStatus"] == "InService"
    assert "FailureReason" not in described


def test_a_deletion_takes_its_time_and_is_done_once(hosting: Hosting) -> None:
    hosting.create()
    assert hosting.text() != hosting.text(BASE)
    with behaving(seconds_to_delete=0.2):
        hosting.delete()
        assert hosting.status() == "Deleting"
        code, message = refusal(hosting.delete)
        assert (code, "DELETE_IN_PROGRESS" in message) == ("ValidationException", True)
        assert refusal(hosting.invoke)[0] == "ValidationError"
        eventually(lambda: hosting.names() == [BASE], "gone after 0.2 s")
    assert refusal(hosting.describe)[1] == f'Could not find inference component "{ARN}/acme".'


def test_a_base_stays_while_adapters_hang_on_it(hosting: Hosting) -> None:
    hosting.create("one")
    hosting.create("two")
    code, message = refusal(hosting.delete, name=BASE)
    assert code == "ValidationException"
    assert "it is a base inference component of the inference components one, two" in message
    for name in ("one", "two"):
        hosting.delete(name)
    hosting.delete(BASE)
    assert hosting.names() == []


def test_a_base_can_go_when_its_adapters_are_gone_though_nobody_read_them(hosting: Hosting) -> None:
    hosting.create()
    with behaving(seconds_to_delete=0.1):
        hosting.delete()

    def base_is_deleted() -> bool:
        try:
            hosting.delete(BASE)
        except ClientError:
            return False
        return True

    eventually(base_is_deleted, "deletable 0.1 s later")


def test_a_name_that_is_used_again_belongs_to_the_new_component(hosting: Hosting) -> None:
    """Whoever still reads the deleted one must not take the new one away."""
    hosting.put()
    backend, ended = hosting.backend, threading.Event()

    def read() -> None:
        while not ended.is_set():
            backend.list_inference_components()

    watchers = [threading.Thread(target=read) for _ in range(4)]
    for watcher in watchers:
        watcher.start()
    try:
        with behaving(dynamic_loading=True):
            for _ in range(300):
                created = backend.create_inference_component(hosting.request())
                assert backend.describe_inference_component("acme") is created
                backend.delete_inference_component("acme")
    finally:
        ended.set()
        for watcher in watchers:
            watcher.join()


# List


def test_a_list_holds_ten_unless_told_otherwise_and_goes_on(hosting: Hosting) -> None:
    url = hosting.put()
    for number in range(11):
        hosting.create(f"n{number:02}", url)
    assert len(hosting.names()) == 10
    assert len(hosting.names(MaxResults=100)) == 12
    pages = hosting.sagemaker.get_paginator("list_inference_components").paginate(
        SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 5}
    )
    found = [[one["InferenceComponentName"] for one in page["InferenceComponents"]] for page in pages]
    assert [len(page) for page in found] == [5, 5, 2]
    assert [name for page in found for name in page] == [BASE, *(f"n{number:02}" for number in range(11))]
    assert refusal(hosting.sagemaker.list_inference_components, NextToken="x")[0] == "ValidationException"
    for size in (0, 101):
        assert refusal(hosting.unchecked.list_inference_components, MaxResults=size)[0] == "ValidationException"


def test_a_list_is_filtered(hosting: Hosting) -> None:
    hosting.make_endpoint("other", VariantName="Blue")
    hosting.make_base("other-base", "other")
    hosting.create("acme-1")
    hosting.create("acme-2", hosting.put(b"no tarball", key="bad.tar.gz"))
    assert sorted(hosting.names(NameContains="ACME")) == ["acme-1", "acme-2"]
    assert hosting.names(StatusEquals="Failed") == ["acme-2"]
    assert hosting.names(EndpointNameEquals="other") == ["other-base"]
    assert hosting.names(VariantNameEquals="Blue") == ["other-base"]
    assert hosting.names(NameContains="acme", StatusEquals="InService") == ["acme-1"]
    assert hosting.names(NameContains="nothing") == []


def test_a_list_is_filtered_by_time(hosting: Hosting) -> None:
    hosting.create("first")
    time_between = datetime.now(UTC)
    eventually(lambda: datetime.now(UTC) - time_between > timedelta(milliseconds=5), "the clock goes on")
    hosting.create("second")
    assert hosting.names(NameContains="s", CreationTimeAfter=time_between) == ["second"]
    assert hosting.names(NameContains="first", CreationTimeBefore=time_between) == ["first"]
    assert hosting.names(CreationTimeAfter=time_between + timedelta(hours=1)) == []
    assert hosting.names(LastModifiedTimeBefore=time_between - timedelta(hours=1)) == []
    elsewhere = time_between.astimezone().replace(microsecond=0) - timedelta(hours=1)
    assert len(hosting.names(CreationTimeAfter=elsewhere)) == 3


def test_a_list_is_sorted(hosting: Hosting) -> None:
    for name in ("b", "a", "c"):
        hosting.create(name)
    assert hosting.names() == ["c", "a", "b", BASE], "the newest first"
    assert hosting.names(SortOrder="Ascending") == [BASE, "b", "a", "c"]
    assert hosting.names(SortBy="Name", SortOrder="Ascending") == ["a", "b", BASE, "c"]
    assert hosting.names(SortBy="Name") == ["c", BASE, "b", "a"]


def test_a_summary_does_not_tell_an_adapter_from_a_base(hosting: Hosting) -> None:
    hosting.create()
    listed = hosting.sagemaker.list_inference_components()["InferenceComponents"]
    assert len(listed) == 2
    assert all("Specification" not in one for one in listed)


# Update


def test_an_adapter_that_is_updated_answers_nobody_in_between(hosting: Hosting) -> None:
    hosting.create()
    before = hosting.text()
    changed = {"Container": {"ArtifactUrl": hosting.put(seed=2, key="acme-2.tar.gz")}}
    with behaving(seconds_to_in_service=0.1):
        hosting.sagemaker.update_inference_component(InferenceComponentName="acme", Specification=changed)
        assert hosting.status() == "Updating"
        assert refusal(hosting.invoke)[1] == "Inference Component acme is Updating, not InService."
        assert refusal(
            hosting.sagemaker.update_inference_component, InferenceComponentName="acme", Specification=changed
        ) == ("ValidationException", f'Cannot update in-progress inference component "{ARN}/acme".')
        eventually(lambda: hosting.status() == "InService", "updated after 0.1 s")
    described = hosting.describe()
    assert described["Specification"] == changed | {"BaseInferenceComponentName": BASE}
    assert described["LastModifiedTime"] > described["CreationTime"]
    assert hosting.text() not in (before, hosting.text(BASE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RuntimeConfig": {"CopyCount": 2}}, "RuntimeConfig is not supported when BaseInferenceComponentName"),
        ({"Specification": {"BaseInferenceComponentName": "other"}}, "BaseInferenceComponentName cannot be changed"),
        ({"Specification": {"Container": {"Image": "djl"}}}, "Container.ArtifactUrl is required"),
        (
            {"Specification": {"ModelName": "other"}},
            "ModelName cannot be specified together with BaseInferenceComponent",
        ),
    ],
)
def test_an_adapter_that_is_updated_wrongly_stays_as_it_is(
    hosting: Hosting, changes: dict[str, Any], message: str
) -> None:
    hosting.create()
    before = hosting.describe()["Specification"]
    request = {"Specification": {"Container": {"ArtifactUrl": "s3://releases/other.tar.gz"}}} | changes
    code, said = refusal(hosting.sagemaker.update_inference_component, InferenceComponentName="acme", **request)
    assert (code, message in said) == ("ValidationException", True), said
    assert hosting.status() == "InService"
    assert hosting.describe()["Specification"] == before


def test_a_base_is_scaled(hosting: Hosting) -> None:
    update = hosting.sagemaker.update_inference_component_runtime_config
    with behaving(seconds_to_in_service=0.1):
        update(InferenceComponentName=BASE, DesiredRuntimeConfig={"CopyCount": 3})
        assert hosting.describe(BASE)["RuntimeConfig"] == {"DesiredCopyCount": 3, "CurrentCopyCount": 0}
        eventually(lambda: hosting.status(BASE) == "InService", "scaled after 0.1 s")
    assert hosting.describe(BASE)["RuntimeConfig"] == {"DesiredCopyCount": 3, "CurrentCopyCount": 3}
    hosting.create()
    request = {"InferenceComponentName": "acme", "DesiredRuntimeConfig": {"CopyCount": 2}}
    assert refusal(update, **request)[0] == "ValidationException"


# Tags


def test_tags_of_a_component(hosting: Hosting) -> None:
    arn = hosting.create(Tags=[{"Key": "adapter", "Value": "acme"}, {"Key": "stack", "Value": "one"}])
    hosting.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "stack", "Value": "two"}, {"Key": "more", "Value": ""}])
    hosting.sagemaker.delete_tags(ResourceArn=arn, TagKeys=["adapter"])
    tags = hosting.sagemaker.list_tags(ResourceArn=arn)["Tags"]
    assert tags == [{"Key": "stack", "Value": "two"}, {"Key": "more", "Value": ""}]
    hosting.delete()
    assert refusal(hosting.sagemaker.list_tags, ResourceArn=arn)[0] == "ValidationException"


# Endpoints and their configurations


def test_an_endpoint_stays_while_components_are_on_it(hosting: Hosting) -> None:
    code, message = refusal(hosting.sagemaker.delete_endpoint, EndpointName=ENDPOINT)
    assert (code, f"it hosts the inference components {BASE}" in message) == ("ValidationException", True)
    hosting.delete(BASE)
    hosting.sagemaker.delete_endpoint(EndpointName=ENDPOINT)
    code, message = refusal(hosting.sagemaker.describe_endpoint, EndpointName=ENDPOINT)
    assert (code, "Could not find endpoint" in message) == ("ValidationException", True)


def test_a_configuration_says_its_role_and_its_variants(hosting: Hosting) -> None:
    described = hosting.sagemaker.describe_endpoint_config(EndpointConfigName="config")
    assert described["ExecutionRoleArn"] == ROLE
    assert described["ProductionVariants"] == [
        {"VariantName": "AllTraffic", "InstanceType": "ml.g6e.xlarge", "InitialInstanceCount": 1}
    ]
    without_role = {"EndpointConfigName": "bare", "ProductionVariants": described["ProductionVariants"]}
    assert refusal(hosting.sagemaker.create_endpoint_config, **without_role) == (
        "ValidationException",
        "ExecutionRoleArn is required when the production variants of the endpoint configuration specify no ModelName.",
    )
    unknown = [{"VariantName": "AllTraffic", "InstanceType": "ml.huge", "InitialInstanceCount": 1}]
    code, message = refusal(
        hosting.sagemaker.create_endpoint_config,
        EndpointConfigName="bare",
        ExecutionRoleArn=ROLE,
        ProductionVariants=unknown,
    )
    assert (code, "Member must satisfy enum value set" in message) == ("ValidationException", True)


def test_an_endpoint_takes_another_configuration(hosting: Hosting) -> None:
    variant = {"VariantName": "AllTraffic", "InstanceType": "ml.g6e.xlarge", "InitialInstanceCount": 2}
    hosting.sagemaker.create_endpoint_config(
        EndpointConfigName="wider", ExecutionRoleArn=ROLE, ProductionVariants=[variant]
    )
    hosting.sagemaker.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName="wider")
    described = hosting.sagemaker.describe_endpoint(EndpointName=ENDPOINT)
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "wider")
    assert described["ProductionVariants"][0]["DesiredInstanceCount"] == 2


# Rates, limits and faults


def test_requests_above_the_rate_are_throttled(hosting: Hosting) -> None:
    url = hosting.put()
    with behaving(creates_per_second=2, describes_per_second=1):
        hosting.create("one", url)
        hosting.create("two", url)
        throttled = ("ThrottlingException", "Rate exceeded")
        assert refusal(hosting.unchecked.create_inference_component, **hosting.request("three", url)) == throttled
        hosting.describe("one")
        assert refusal(hosting.describe) == throttled

        def created() -> bool:
            with contextlib.suppress(ClientError):
                hosting.unchecked.create_inference_component(**hosting.request("three", url))
                return True
            return False

        eventually(created, "the rate refills")
    assert sorted(hosting.names(NameContains="t")) == ["three", "two"]


def test_an_endpoint_holds_so_many_components(hosting: Hosting) -> None:
    with behaving(components_per_endpoint=2):
        hosting.create("one")
        with pytest.raises(hosting.unchecked.exceptions.ResourceLimitExceeded, match="is 2 Components"):
            hosting.unchecked.create_inference_component(**hosting.request("two"))
        hosting.delete("one")
        hosting.create("two")


@pytest.mark.parametrize("fault", ["create_fails", "load_fails"])
def test_a_component_fails_on_request_with_the_reason(hosting: Hosting, fault: str) -> None:
    with behaving(**{fault: "LoRA rank 64 is greater than max_lora_rank 16. " + "x" * 1024}):
        hosting.create()
        described = hosting.describe()
    assert described["InferenceComponentStatus"] == "Failed"
    assert "LoRA rank 64 is greater than max_lora_rank 16." in described["FailureReason"]
    assert len(described["FailureReason"]) == 1024, "the most that SageMaker gives"


@pytest.mark.parametrize("by_environment", [False, True])
def test_dynamic_loading_is_in_service_at_once_and_loads_at_the_first_invocation(
    hosting: Hosting, by_environment: bool
) -> None:
    base = BASE
    if by_environment:
        base = "dynamic"
        hosting.make_base(base, SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY="10")

    def create(name: str, url: str) -> None:
        specification = {"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": url}}
        hosting.create(name, url, Specification=specification)
        assert hosting.status(name) == "InService"

    with behaving(dynamic_loading=not by_environment, seconds_to_in_service=60):
        create("good", hosting.put())
        create("bad", hosting.put(b"no tarball", key="bad.tar.gz"))
        assert hosting.text("good") != hosting.text(base)
        with pytest.raises(ClientError) as refused:
            hosting.invoke("bad")
    assert refused.value.response["Error"]["Code"] == "ModelError"
    error = json.loads(refused.value.response["OriginalMessage"])
    assert error["error"].startswith("Failed to load the adapter bad: the tarball cannot be read")


def test_a_reason_may_hold_quotes(hosting: Hosting) -> None:
    with behaving(dynamic_loading=True, load_fails='no "LORA" in it'):
        hosting.create()
        with pytest.raises(ClientError) as refused:
            hosting.invoke()
    assert json.loads(refused.value.response["OriginalMessage"]) == {
        "error": 'Failed to load the adapter acme: no "LORA" in it',
        "code": 424,
    }


def test_an_adapter_that_is_ignored_answers_as_the_base_does(hosting: Hosting) -> None:
    hosting.create()
    with behaving(adapters_ignored=True):
        assert hosting.text() == hosting.text(BASE)
    assert hosting.text() != hosting.text(BASE)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ValidationError"),
        (424, "ModelError"),
        (429, "ModelNotReadyException"),
        (500, "InternalFailure"),
        (503, "ServiceUnavailable"),
        (530, "InternalDependencyException"),
    ],
)
def test_invocations_fail_as_often_as_they_are_told_to(hosting: Hosting, status: int, code: str) -> None:
    hosting.create()
    with behaving(invoke_errors={"times": 2, "status": status, "component": "acme"}):
        assert hosting.text(BASE)
        for _ in range(2):
            with pytest.raises(ClientError) as refused:
                hosting.invoke()
            assert refused.value.response["Error"]["Code"] == code
            assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert hosting.text()


# Invocations


def test_an_adapter_answers_otherwise_than_its_base_and_than_another(hosting: Hosting) -> None:
    hosting.create("one", hosting.put(seed=1, key="one.tar.gz"))
    hosting.create("two", hosting.put(seed=2, key="two.tar.gz"))
    assert len({hosting.text("one"), hosting.text("two"), hosting.text(BASE)}) == 3
    answer = hosting.invoke("one")
    assert (answer["ContentType"], answer["InvokedProductionVariant"]) == ("application/json", "AllTraffic")


def test_the_handler_is_the_one_that_the_base_names(hosting: Hosting) -> None:
    hosting.create()
    hosting.make_base("rolling", OPTION_ROLLING_BATCH="vllm")
    asked = {"inputs": "Hello", "parameters": {"temperature": 0, "max_new_tokens": 2, "details": True}}

    def token_fields(component: str) -> set[str]:
        return set(hosting.invoke(component, asked)["Body"]["details"]["tokens"][0])

    assert token_fields("acme") == token_fields(BASE) == {"id", "text", "logprob"}
    assert token_fields("rolling") == {"id", "text", "log_prob"}


def test_what_the_container_refuses_is_a_model_error_with_its_words(hosting: Hosting) -> None:
    with pytest.raises(ClientError) as refused:
        hosting.invoke(BASE, {"text": "Hello"})
    response = refused.value.response
    assert response["Error"]["Code"] == "ModelError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == 424
    assert json.loads(response["OriginalMessage"])["code"] == 424
    assert response["LogStreamArn"].endswith(f":log-group:/aws/sagemaker/InferenceComponents/{BASE}")
    assert response["OriginalMessage"] in response["Error"]["Message"]


@pytest.mark.parametrize(
    ("request_members", "message"),
    [
        ({"endpoint": "other"}, f"Endpoint other of account {ACCOUNT} not found."),
        ({"component": "other"}, f"Inference Component other of account {ACCOUNT} not found."),
        ({"component": None}, "Inference Component Name header is required for endpoints to which you plan to deploy"),
        ({"endpoint": "elsewhere"}, f"Inference Component {BASE} of account {ACCOUNT} not found."),
    ],
)
def test_an_invocation_of_what_is_not_there(hosting: Hosting, request_members: dict[str, Any], message: str) -> None:
    hosting.make_endpoint("elsewhere")
    code, said = refusal(hosting.invoke, **({"component": BASE} | request_members))
    assert (code, said.startswith(message)) == ("ValidationError", True), said


def test_an_endpoint_of_a_model_needs_no_component(hosting: Hosting) -> None:
    hosting.sagemaker.create_model(ModelName="model", PrimaryContainer={"Image": "djl"}, ExecutionRoleArn=ROLE)
    hosting.make_endpoint("modelled", ModelName="model")
    assert hosting.invoke(None, endpoint="modelled")["Body"]["generated_text"]
    code, message = refusal(hosting.invoke, component=BASE, endpoint="modelled")
    assert (code, message.startswith("Inference Component Name header is not allowed")) == ("ValidationError", True)
    request = hosting.request(EndpointName="modelled", Specification={"Container": {"Image": "djl"}})
    assert "cannot host inference components" in refusal(hosting.sagemaker.create_inference_component, **request)[1]


def test_a_component_may_run_a_model(hosting: Hosting) -> None:
    hosting.sagemaker.create_model(
        ModelName="model",
        PrimaryContainer={"Image": "djl", "Environment": {"OPTION_ASYNC_MODE": "true"}},
        ExecutionRoleArn=ROLE,
    )
    specification = {"ModelName": "model", "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 128}}
    hosting.sagemaker.create_inference_component(**hosting.request("of-model", Specification=specification))
    asked = {"inputs": "Hello", "parameters": {"details": True}}
    assert "logprob" in hosting.invoke("of-model", asked)["Body"]["details"]["tokens"][0]


def test_a_stream_comes_in_payload_parts(hosting: Hosting) -> None:
    hosting.create()
    answer = hosting.runtime.invoke_endpoint_with_response_stream(
        EndpointName=ENDPOINT,
        InferenceComponentName="acme",
        ContentType="application/json",
        Body=json.dumps(ASKED | {"stream": True}),
    )
    assert answer["ContentType"] == "application/jsonlines"
    parts = [event["PayloadPart"]["Bytes"] for event in answer["Body"]]
    lines = [json.loads(part) for part in parts]
    assert len(lines) == 8, "a part for each token"
    assert "".join(line["token"]["text"] for line in lines) == lines[-1]["generated_text"] == hosting.text()


def test_a_stream_that_is_refused_is_an_error_and_no_stream(hosting: Hosting) -> None:
    code, _ = refusal(
        hosting.runtime.invoke_endpoint_with_response_stream,
        EndpointName=ENDPOINT,
        InferenceComponentName=BASE,
        Body=json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 0}, "stream": True}),
    )
    assert code == "ModelError"


def test_a_streaming_request_that_is_not_invoked_as_a_stream_gets_all_lines_at_once(hosting: Hosting) -> None:
    answer = hosting.runtime.invoke_endpoint(
        EndpointName=ENDPOINT, InferenceComponentName=BASE, Body=json.dumps(ASKED | {"stream": True})
    )
    lines = [json.loads(line) for line in answer["Body"].read().splitlines()]
    assert lines[-1]["generated_text"] == hosting.text(BASE)


def test_a_stream_whose_adapter_goes_ends_with_an_error(hosting: Hosting) -> None:
    hosting.create()
    body = json.dumps({"inputs": "Hello", "parameters": {"max_new_tokens": 4000, "temperature": 0}, "stream": True})
    header = {"X-Amzn-SageMaker-Inference-Component": "acme"}
    status, _, chunks = invoke(hosting.backend, ENDPOINT, header, body.encode(), streamed=True)
    assert status == 200
    events = EventStreamBuffer()
    events.add_data(next(chunks))
    assert next(events).headers[":event-type"] == "PayloadPart"
    hosting.delete()
    events.add_data(b"".join(chunks))
    *_, last = events
    assert last.headers[":exception-type"] == "ModelStreamError"
    assert "is loaded" in json.loads(last.payload)["Message"]


# What stands behind it


@pytest.fixture
def engines() -> Iterator[list[StandInEngine]]:
    """The engines that were made, while this is in place."""
    made: list[StandInEngine] = []

    def make(_environment: Mapping[str, str]) -> StandInEngine:
        made.append(StandInEngine())
        return made[-1]

    SERVING.serve_with(make)
    yield made
    SERVING.serve_with(stand_in_engine)


def test_one_base_in_memory_serves_all(engines: list[StandInEngine], hosting: Hosting) -> None:
    hosting.make_endpoint("other")
    hosting.make_base("other-base", "other")
    hosting.create("one")
    hosting.create("two")
    assert hosting.text("one") == hosting.text("two"), "the same adapter"
    assert len(engines) == 1
    assert len(engines[0].adapters) == 2
    hosting.delete("one")
    hosting.delete("two")
    assert engines[0].adapters == ()


def test_the_artifact_is_read_as_the_endpoint_may_read_it(hosting: Hosting) -> None:
    asked: list[tuple[str | None, str]] = []

    class Reader:
        def get_object(self, **_: str) -> dict[str, Any]:
            return {"Body": io.BytesIO(good_tarball())}

    def client(role: str | None, region: str) -> Reader:
        asked.append((role, region))
        return Reader()

    SERVING.serve_with(stand_in_engine, client)
    try:
        hosting.create()
        assert hosting.status() == "InService"
    finally:
        SERVING.serve_with(stand_in_engine)
    assert asked == [(ROLE, REGION)]


def test_a_test_leaves_no_behaviour_behind(hosting: Hosting) -> None:
    CONTROL.change(create_fails="only in this test")  # the fixture puts it back
    hosting.create()
    assert hosting.describe()["FailureReason"] == "only in this test"


# As strict as AWS, or stricter


def test_a_component_that_comes_up_or_is_updated_is_not_deleted(hosting: Hosting) -> None:
    with behaving(seconds_to_in_service=60):
        hosting.create("coming")
        code, message = refusal(hosting.delete, name="coming")
        assert (code, message.endswith("its status is CREATE_IN_PROGRESS.")) == ("ValidationException", True)
    hosting.create("there")
    assert hosting.status("there") == "InService"
    with behaving(seconds_to_in_service=60):
        hosting.sagemaker.update_inference_component_runtime_config(
            InferenceComponentName=BASE, DesiredRuntimeConfig={"CopyCount": 1}
        )
        hosting.unchecked.update_inference_component(
            InferenceComponentName="there",
            Specification={
                "BaseInferenceComponentName": BASE,
                "Container": {"ArtifactUrl": hosting.put(key="other.tar.gz")},
            },
        )
        assert "UPDATE_RC_IN_PROGRESS" in refusal(hosting.delete, name="there")[1]


LORA = {"OPTION_ENABLE_LORA": "true", "OPTION_MAX_LORA_RANK": "8"}
VLLM = {"SM_VLLM_ENABLE_LORA": "true", "SM_VLLM_MAX_LORA_RANK": "8", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true"}


def on(base: str) -> dict[str, Any]:
    return {"BaseInferenceComponentName": base, "Container": {"ArtifactUrl": "s3://releases/acme.tar.gz"}}


@pytest.mark.parametrize(
    ("environment", "rank", "reason"),
    [
        (LORA, 8, None),
        (LORA, 16, "LoRA rank 16 is greater than max_lora_rank 8."),
        ({"OPTION_ENABLE_LORA": "true"}, 16, None),
        ({"OPTION_ENABLE_LORA": "true"}, 32, "LoRA rank 32 is greater than max_lora_rank 16."),
        ({"OPTION_ENABLE_LORA": "false"}, 8, "LoRA is not enabled."),
        ({"OPTION_MAX_MODEL_LEN": "8192"}, 8, "LoRA is not enabled."),
        (VLLM, 8, None),
        (VLLM, 16, "LoRA rank 16 is greater than max_lora_rank 8."),
        (VLLM | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "false"}, 8, "LoRA is not enabled."),
    ],
)
def test_the_container_serves_the_adapters_that_it_was_started_for(
    hosting: Hosting, environment: dict[str, str], rank: int, reason: str | None
) -> None:
    url = hosting.put(tarball(adapter_files(rank=rank)))
    hosting.make_base("lmi", **environment)
    hosting.create(url=url, Specification=on("lmi"))
    described = hosting.describe()
    assert described["InferenceComponentStatus"] == ("Failed" if reason else "InService")
    assert (reason or "") in described.get("FailureReason", "")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"OPTION_MAX_LORA_RANK": "48"}, "max_lora_rank (48) must be one of"),
        ({"OPTION_MAX_LORAS": "0"}, "max_loras (0) must be greater"),
        (VLLM | {"SM_VLLM_MAX_LORAS": "0"}, "max_loras (0) must be greater"),
        ({"OPTION_MAX_LORAS": "8", "OPTION_MAX_CPU_LORAS": "4"}, "max_cpu_loras (4) must be greater than or equal"),
    ],
)
def test_a_container_with_options_that_the_engine_refuses_does_not_start(
    hosting: Hosting, options: dict[str, str], reason: str
) -> None:
    hosting.make_base("lmi", **LORA | options)
    described = hosting.describe("lmi")
    assert described["InferenceComponentStatus"] == "Failed"
    assert reason in described["FailureReason"]


@pytest.mark.parametrize("forgets", [True, False])
def test_an_update_of_the_base_forgets_its_adapters_or_registers_them_anew(hosting: Hosting, forgets: bool) -> None:
    hosting.make_base("lmi", **LORA)
    hosting.create(Specification=on("lmi"))
    before = hosting.text()
    with behaving(base_update_forgets_adapters=forgets):
        hosting.sagemaker.update_inference_component(
            InferenceComponentName="lmi",
            Specification={
                "Container": {"Image": "djl-inference:next", "Environment": LORA},
                "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 4096},
            },
        )
        assert hosting.status("lmi") == "InService"
    assert hosting.status() == "InService", "as if nothing had happened"
    if forgets:
        code, message = refusal(hosting.invoke)
        assert (code, "Adapter acme is not registered" in message) == ("ModelError", True)
    else:
        assert hosting.text() == before
    hosting.delete()


def test_a_base_without_copies_has_no_capacity_for_anybody(hosting: Hosting) -> None:
    hosting.create()
    for _ in range(2):
        with behaving(no_capacity=True):
            for name in ("acme", BASE):
                code, message = refusal(hosting.invoke, component=name)
                assert (code, "has no capacity to process this request" in message) == ("ValidationError", True)
        assert hosting.text()
    hosting.sagemaker.update_inference_component_runtime_config(
        InferenceComponentName=BASE, DesiredRuntimeConfig={"CopyCount": 0}
    )
    assert "has no capacity" in refusal(hosting.invoke)[1]


def test_a_component_can_be_made_to_fail_while_it_serves(hosting: Hosting) -> None:
    hosting.create()
    hosting.create("other")
    with behaving(failed_components=("acme",)):
        assert (hosting.status(), hosting.status("other")) == ("Failed", "InService")
    assert hosting.status() == "Failed", "for good"
    assert "Failed, not InService" in refusal(hosting.invoke)[1]
    hosting.delete()


def test_an_endpoint_is_described_without_what_is_not_set(hosting: Hosting) -> None:
    described = hosting.sagemaker.describe_endpoint(EndpointName=ENDPOINT)
    assert not {"DataCaptureConfig", "FailureReason", "LastDeploymentConfig"} & set(described)
    assert all(value not in (None, {}, []) for value in described.values())
