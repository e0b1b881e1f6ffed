"""From labelled text to a live adapter: what the recipe of the tiny base made, pushed to a stack whose engine really loads it."""

import json
from collections.abc import Iterator

import boto3
import pytest

from local.cloud import REGION, LocalCloud
from loradrop_cli.main import main
from loradrop_client import Adapters
from loradrop_training.sentiment import LABELS, MAX_NEW_TOKENS, evaluation, held_out, sentiment_adapter

from .conftest import StackUnderTest, build_and_deploy

ASKED = 40


@pytest.fixture(scope="module")
def stack() -> Iterator[StackUnderTest]:
    tarball = sentiment_adapter()  # trained first where that was not done yet
    assert tarball.is_file()
    with LocalCloud(engine="tiny", wait_scale=0.2) as cloud:
        build_and_deploy(cloud)
        yield StackUnderTest(cloud)


def test_a_trained_adapter_goes_live_proven_by_its_own_smoke_prompts_and_answers_as_it_was_evaluated(
    stack: StackUnderTest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in stack.cloud.environment().items():
        monkeypatch.setenv(name, value)
    assert main(["push", str(sentiment_adapter()), "--name", "sentiment", "--stack", stack.name, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["outcome"] == "deployed"
    assert stack.report("sentiment")["newest"]["smoke"]["passed"]
    prompts = stack.smoke_answers("sentiment")
    assert len(prompts) == 4
    for prompt in prompts:
        assert prompt["expect"] in prompt["adapter"]
        assert prompt["expect"] not in prompt["base"]

    adapters = Adapters.of_stack(stack.name, session=boto3.Session(region_name=REGION))
    asked = held_out()[:ASKED]
    parameters = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0}
    answers = [adapters.invoke("sentiment", {"inputs": one.prompt, "parameters": parameters}) for one in asked]
    said = [answer["generated_text"] for answer in answers]
    evaluated = [one["adapter"] for one in evaluation()["answered"][:ASKED]]
    # The server asks one by one, the evaluation in batches: a close answer may turn.
    assert sum(one == other for one, other in zip(said, evaluated, strict=True)) >= ASKED - 2
    assert {answer.strip() for answer in said} == set(LABELS)
