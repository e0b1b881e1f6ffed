"""The whole way on the real engine: the stack on the local cloud, with vLLM behind its endpoint."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from local.cloud import REGION, LocalCloud
from local.engines.vllm import not_installed
from loradrop_cli.main import main
from loradrop_client import Adapters
from loradrop_training.sentiment import LABELS, MAX_NEW_TOKENS, evaluation, held_out, sentiment_adapter
from tests.adapters import adapter_files, tarball
from tests.local.conftest import StackUnderTest, build_and_deploy, eventually

ASKED = 40
START_SECONDS = 180.0


@pytest.fixture(scope="module")
def stack() -> Iterator[StackUnderTest]:
    problem = not_installed()
    if problem is not None:
        pytest.fail(problem)
    sentiment_adapter()  # trained first where that was not done yet
    with LocalCloud(engine="vllm", wait_scale=0.2) as cloud:
        build_and_deploy(cloud)
        yield StackUnderTest(cloud)
    assert not engine_processes(), "vLLM ends with the cloud that started it"


@pytest.fixture(autouse=True)
def environment(stack: StackUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.cloud.environment().items():
        monkeypatch.setenv(name, value)


def engine_processes() -> list[psutil.Process]:
    """vLLM's core and workers, which this process has started by way of others."""
    return [one for one in psutil.Process().children(recursive=True) if one.name().startswith("VLLM")]


def push(stack: StackUnderTest, tarball_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["push", str(tarball_path), "--name", name, "--stack", stack.name, "--json"])
    return code, capsys.readouterr().out


def test_a_trained_adapter_goes_live_and_answers_as_it_was_evaluated(
    stack: StackUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = push(stack, sentiment_adapter(), "sentiment", capsys)
    assert code == 0
    assert json.loads(printed)["outcome"] == "deployed"
    adapters = Adapters.of_stack(stack.name, session=boto3.Session(region_name=REGION))
    parameters = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0}
    asked = held_out()[:ASKED]
    said = [
        adapters.invoke("sentiment", {"inputs": one.prompt, "parameters": parameters})["generated_text"]
        for one in asked
    ]
    evaluated = [one["adapter"] for one in evaluation()["answered"][:ASKED]]
    # The evaluation asks in batches: a close answer may turn.
    assert sum(one == other for one, other in zip(said, evaluated, strict=True)) >= ASKED - 2
    assert {answer.strip() for answer in said} == set(LABELS)


def test_an_adapter_without_effect_is_stopped_by_the_smoke_test(
    stack: StackUnderTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its numbers are no zeros, so the validator accepts it; the engine registers it, and answers as the base does."""
    path = tmp_path / "faint.tar.gz"
    path.write_bytes(tarball(adapter_files(scale=1e-6)))
    code, printed = push(stack, path, "faint", capsys)
    assert code != 0
    assert json.loads(printed)["outcome"] == "failed"
    assert stack.live("faint") is None
    eventually(lambda: not stack.components("faint"), "the end of its component")


def test_a_base_that_dies_takes_its_components_down_and_an_update_starts_it_anew(
    stack: StackUnderTest, capsys: pytest.CaptureFixture[str]
) -> None:
    if stack.live("sentiment") is None:
        assert push(stack, sentiment_adapter(), "sentiment", capsys)[0] == 0
    component, base = stack.live("sentiment"), stack.outputs["BaseComponentName"]
    assert component is not None

    def status(name: str) -> str:
        found = stack.sagemaker.describe_inference_component(InferenceComponentName=name)
        return str(found["InferenceComponentStatus"])

    for process in engine_processes():
        process.kill()
    with pytest.raises(ClientError) as failed:
        stack.ask(component, "Is this good?")
    assert failed.value.response["Error"]["Code"] in ("ModelError", "ValidationError")
    assert [status(base), status(component)] == ["Failed", "Failed"]
    why = stack.sagemaker.describe_inference_component(InferenceComponentName=base)["FailureReason"]
    assert why.startswith("The container died. vLLM ended with status")

    specification = stack.sagemaker.describe_inference_component(InferenceComponentName=base)["Specification"]
    specification["Container"]["Image"] = specification["Container"].pop("DeployedImage")["SpecifiedImage"]
    stack.sagemaker.update_inference_component(InferenceComponentName=base, Specification=specification)
    eventually(lambda: status(base) == "InService", "the new container", START_SECONDS)
    assert stack.ask(base, "Is this good?")
