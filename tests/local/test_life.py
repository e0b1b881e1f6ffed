"""An adapter's whole life on the deployed stack, by the commands, under the documented permissions."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loradrop_cli.main import main
from tests.adapters import good_tarball, wrapped_tarball

from .account import unique
from .conftest import REPOSITORY, StackUnderTest, command, eventually
from .test_push import as_user, documented, known_names, push, without_each_action

__all__ = ["as_user", "push"]  # fixtures

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(push: Any, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command as an operator has it; every line that is no command fits 80 columns."""

    def loradrop(*words: str | Path) -> tuple[int, str]:
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        if "--json" not in words:
            assert [one for one in shown.out.splitlines() if len(one) > 80 and not re.match(r" |Upload", one)] == []
        return code, shown.out if "--json" in words else shown.out + shown.err

    return loradrop


def said(run: Run, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*words, "--json")[1])
    return found


def to_operate(stack: StackUnderTest) -> list[dict[str, Any]]:
    """The policy of docs/operations.md, for this stack."""
    section = (REPOSITORY / "docs/operations.md").read_text().partition("## Who may operate")[2].partition("\n## ")[0]
    [policy] = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    names = known_names(stack)
    statements: list[dict[str, Any]] = json.loads(re.sub(r"[A-Z_]{5,}", lambda found: names[found[0]], policy))[
        "Statement"
    ]
    return statements


def test_an_adapters_whole_life(
    stack: StackUnderTest, run: Run, as_user: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique("life")
    monkeypatch.chdir(tmp_path)  # a long path has a line of its own length
    first, second = Path("v1.tar.gz"), Path("v2.tar.gz")
    first.write_bytes(good_tarball(seed=300))
    second.write_bytes(good_tarball(seed=301))
    as_user([*documented(stack)[0]["Statement"], *to_operate(stack)])

    assert run("push", first, "--name", name)[0] == 0
    one = said(run, "status", name)["live"]
    code, shown = run("push", second, "--name", name)
    assert code == 0
    assert f"loradrop rollback {name} --stack {stack.name}" in shown
    two = said(run, "status", name)["live"]
    assert two["release"] != one["release"]
    uploads = said(run, "history", name)["uploads"]
    assert [(upload["release"], upload["live"]) for upload in uploads] == [
        (two["release"], True),
        (one["release"], False),
    ]
    assert uploads[0]["replaced"] == one["component"]

    code, shown = run("rollback", name)
    assert code == 0, shown
    assert f"It replaced {two['component']}" in shown
    assert stack.live(name) == one["component"], "its standby was taken over"

    # Plain S3 does the same, and the newest release's standby is taken over in turn.
    release = f"s3://{stack.releases}/releases/{name}/{two['release']}.tar.gz"
    command(stack.cloud, "aws", "s3", "cp", "--no-progress", release, f"{stack.outputs['UploadUri']}{name}.tar.gz")
    eventually(lambda: stack.live(name) == two["component"], "the way back by plain S3")
    assert run("rollback", name)[0] == 0
    assert stack.live(name) == one["component"]

    repeated = stack.event_of(stack.end_of(uploads[0]["execution"]))
    assert stack.start(repeated).output["outcome"] == "repeated"
    assert stack.live(name) == one["component"], "a late duplicate does not undo it"

    code, shown = run("remove", name, "--yes")
    assert code == 0, shown
    assert stack.live(name) is None
    assert stack.start(repeated).output["outcome"] == "repeated"
    lost = stack.event(name, repeated["detail"]["object"]["version-id"], "01")  # the same, as no execution has seen it
    assert stack.start(lost).output["outcome"] == "superseded"
    assert stack.live(name) is None, "a late event does not bring it back"
    assert said(run, "status", name)["state"] == "removed"


def test_what_failed_is_listed_and_tried_again(stack: StackUnderTest, run: Run) -> None:
    name, wrapped = unique("life"), unique("life")
    stack.cloud.behave(create_fails="out of order")
    stack.drop(name, good_tarball(seed=304))
    stack.cloud.behave(create_fails=None)
    stack.drop(wrapped, wrapped_tarball())
    failed = {one["adapter"]: one for one in said(run, "list", "--failed")["adapters"]}
    assert (failed[name]["state"], failed[wrapped]["state"]) == ("failed", "rejected")
    assert "out of order" in failed[name]["reason"]
    alarm = stack.resource("DeploymentsFailedAlarm")
    eventually(lambda: alarm in [one["name"] for one in said(run, "status")["alarms"]], "the alarm")
    stack.cloud.behave(seconds_to_in_service=2.0)
    code, shown = run("retry", name, "--timeout", "0")
    assert code == 3
    assert f"loradrop status {name} --watch" in shown
    eventually(lambda: said(run, "status", name)["running"], "its execution")
    shown = run("status", name, "--watch")[1]
    assert "✓ AdapterDeployed" in shown
    assert f"{name}: live since" in shown
    assert "Is" not in re.findall(r"✓ (\w\w)", shown), "no Choice is shown"
    assert said(run, "history", name)["uploads"][0]["repeats_because"] == "tried again, since it was failed"
    code, shown = run("retry", wrapped)
    assert code == 1
    assert "WRAPPING_FOLDER" in shown


def test_the_fleet_is_redeployed_reconciled_and_shown(stack: StackUnderTest, run: Run) -> None:
    names = [unique("life") for _ in range(3)]
    versions = [stack.upload(name, good_tarball(seed=305 + number)) for number, name in enumerate(names)]
    for version in versions:
        assert stack.end_of(stack.execution_of(version)).status == "SUCCEEDED"
    before = {name: stack.live(name) for name in names}
    code, shown = run("redeploy", *names)
    assert code == 0, shown
    assert "3 of 3 done, 0 with other answers." in shown
    assert all(stack.live(name) != before[name] for name in names)

    stack.sagemaker.delete_inference_component(InferenceComponentName=stack.live(names[0]))
    eventually(lambda: "missing" in run("status", names[0])[1], "the deletion")
    planned = said(run, "reconcile", names[0], "--dry-run")["planned"]
    assert "heal" in [one["repair"] for one in planned[0]["wanted"]]
    code, shown = run("reconcile", names[0])
    assert code == 0
    assert f"{names[0]}: heal, since the live component is missing" in shown
    stack.settle()
    assert said(run, "status", names[0])["live"]["component_status"] == "InService", "it was healed"

    shown = run("status")[1]
    assert f"{stack.outputs['EndpointName']}: InService" in shown


def test_each_documented_permission_to_operate_is_needed(stack: StackUnderTest, run: Run, as_user: Any) -> None:
    name = unique("life")
    stack.drop(name, good_tarball(seed=308))
    needs = {
        "dynamodb:Query": ["list"],
        "dynamodb:GetItem": ["status", name],
        "cloudformation:ListStackResources": ["status"],
        "cloudwatch:DescribeAlarms": ["status"],
        "sagemaker:DescribeInferenceComponent": ["status"],
        "sagemaker:ListInferenceComponents": ["status"],
        "states:StartExecution": ["reconcile", "--dry-run"],
        "s3:GetObjectVersion": ["history", name],
        "s3:DeleteObject": ["remove", name, "--yes"],
    }
    for missing, statements in without_each_action(to_operate(stack)):
        if missing not in needs:
            continue
        as_user(statements)
        code, shown = run(*needs[missing])
        assert code == 2, missing
        assert "AWS refused" in shown, missing
