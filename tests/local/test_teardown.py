"""`loradrop teardown`: what a stack made goes, in an order in which it can go; what is others' stays."""

from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError

from loradrop_cli.main import main
from tests.adapters import good_tarball

from .conftest import StackUnderTest, build_and_deploy, eventually

Teardown = Callable[..., tuple[int, str]]


@pytest.fixture
def teardown(stack: StackUnderTest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Teardown:
    for name, value in stack.cloud.environment().items():
        monkeypatch.setenv(name, value)

    def run(of: StackUnderTest, *words: str) -> tuple[int, str]:
        code = main(["teardown", "--stack", of.name, *words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def is_there(stack: StackUnderTest) -> dict[str, bool]:
    """Of what a stack has: whether it is there still."""

    def answers(call: Callable[[], object]) -> bool:
        try:
            call()
        except ClientError:
            return False
        return True

    outputs = stack.outputs
    return {
        "stack": answers(lambda: stack.client("cloudformation").describe_stacks(StackName=stack.name)),
        "endpoint": answers(lambda: stack.sagemaker.describe_endpoint(EndpointName=outputs["EndpointName"])),
        "uploads": answers(lambda: stack.s3.head_bucket(Bucket=stack.uploads)),
        "releases": answers(lambda: stack.s3.head_bucket(Bucket=stack.releases)),
        "registry": answers(lambda: stack.dynamodb.describe_table(TableName=outputs["RegistryTable"])),
    }


def test_a_stack_goes_while_it_works_and_its_data_stays(stack: StackUnderTest, teardown: Teardown) -> None:
    build_and_deploy(stack.cloud, "--stack-name", "loradrop-gone")
    gone = StackUnderTest(stack.cloud, "loradrop-gone")
    endpoint, base = gone.outputs["EndpointName"], gone.outputs["BaseComponentName"]
    gone.drop("acme", good_tarball(seed=401))
    [release] = [key for key in gone.released("acme") if key.endswith(".tar.gz")]
    source = {"ArtifactUrl": f"s3://{gone.releases}/{release}"}
    gone.sagemaker.create_inference_component(
        InferenceComponentName="a-strangers",
        EndpointName=endpoint,
        Specification={"BaseInferenceComponentName": base, "Container": source},
    )
    code, said = teardown(gone, "--yes")
    assert code == 2
    assert "\n  aws sagemaker delete-inference-component --inference-component-name a-strangers" in said
    assert gone.live("acme"), "nothing was touched"
    assert teardown(gone)[0] == 2, "without a terminal it wants --yes"

    gone.sagemaker.delete_inference_component(InferenceComponentName="a-strangers")
    stack.cloud.behave(seconds_to_in_service=2.0, seconds_to_delete=1.0)
    gone.upload("acme", good_tarball(seed=402))
    eventually(lambda: len(gone.components("acme")) == 2, "a deployment that runs")
    code, said = teardown(gone, "--yes")
    assert code == 0, said
    assert is_there(gone) == {"stack": False, "endpoint": False, "uploads": True, "releases": True, "registry": True}
    assert gone.uploads in said
    assert gone.components("acme") == {}


@pytest.mark.long
def test_a_guest_goes_with_its_data_and_leaves_its_host(stack: StackUnderTest, teardown: Teardown) -> None:
    endpoint, base = stack.outputs["EndpointName"], stack.outputs["BaseComponentName"]
    config = stack.sagemaker.describe_endpoint(EndpointName=endpoint)["EndpointConfigName"]
    role = stack.sagemaker.describe_endpoint_config(EndpointConfigName=config)["ExecutionRoleArn"]
    existing = f"ExistingEndpointName={endpoint} ExistingBaseComponentName={base} ExistingExecutionRoleArn={role}"
    parameters = f"BaseProfile=tiny-llama MaxLoraRank=16 GracePeriodSeconds=1 InServiceDeadlineSeconds=60 {existing}"
    build_and_deploy(stack.cloud, "--stack-name", "loradrop-leaving", "--parameter-overrides", parameters)
    guest = StackUnderTest(stack.cloud, "loradrop-leaving")
    stack.drop("host", good_tarball(seed=403))
    guest.drop("visitor", good_tarball(seed=404))
    code, said = teardown(guest, "--yes", "--data")
    assert code == 0, said
    assert is_there(guest) == {
        "stack": False,
        "endpoint": True,
        "uploads": False,
        "releases": False,
        "registry": False,
    }
    assert guest.components("visitor") == {}
    assert stack.components("host") == {stack.live("host"): "InService"}
