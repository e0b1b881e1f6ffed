"""What one deployment costs: state transitions, Lambda time and money, and the seconds from `aws s3 cp` to live.

    .venv/bin/python -m benchmarks.deploy_adapter          -> two tables in Markdown

The stack runs on the local cloud, whose Lambdas are processes of this machine: the transitions are AWS's, the times are not.
The adapter is of the tiny base, a few hundred kB: what a larger one costs to validate is in benchmarks/validator.py.
"""

import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.cloud import LocalCloud
from local.stack import DeployedStack
from tests.adapters import good_tarball
from tests.template import TEMPLATE

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = 6
CREATE_SECONDS = 10.0
TRANSITION_DOLLARS = 0.025 / 1000  # Step Functions Standard
GB_SECOND_DOLLARS = 0.0000133334  # Lambda, arm64
DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Deployment:
    transitions: int
    lambda_seconds: dict[str, float]  # by state
    seconds_to_live: float  # from the upload's begin, the create's own time taken off
    gb_seconds: float


def memory_gb(state: str) -> float:
    function = TEMPLATE["Resources"][f"{state}Function"]["Properties"]
    return float(function.get("MemorySize", TEMPLATE["Globals"]["Function"]["MemorySize"])) / 1024


def deploy(stack: DeployedStack, number: int) -> Deployment:
    adapter = f"measured-{number}"
    started = time.time()
    stack.client("s3").put_object(
        Bucket=stack.outputs["UploadBucketName"], Key=f"adapters/{adapter}.tar.gz", Body=good_tarball(seed=number)
    )
    execution = _ended_execution(stack, adapter)
    states: list[str] = []
    seconds: dict[str, float] = {}
    scheduled = promoted = 0.0
    for event in stack.history(execution):
        at = event["timestamp"].timestamp()
        if "stateEnteredEventDetails" in event:
            states.append(event["stateEnteredEventDetails"]["name"])
        elif event["type"] in ("TaskScheduled", "LambdaFunctionScheduled"):
            scheduled = at
        elif event["type"] in ("TaskSucceeded", "LambdaFunctionSucceeded"):
            seconds[states[-1]] = seconds.get(states[-1], 0.0) + at - scheduled
            promoted = at if states[-1] == "PromoteAdapter" else promoted
    return Deployment(
        transitions=len(states),
        lambda_seconds=seconds,
        seconds_to_live=promoted - started - CREATE_SECONDS,
        gb_seconds=sum(memory_gb(state) * spent for state, spent in seconds.items()),
    )


def _ended_execution(stack: DeployedStack, adapter: str) -> str:
    """The execution of this adapter's upload, once it has ended."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        listed = stack.states.list_executions(stateMachineArn=stack.outputs["StateMachineArn"])["executions"]
        for one in listed[:1]:
            described: dict[str, Any] = stack.states.describe_execution(executionArn=one["executionArn"])
            if f"/{adapter}.tar.gz" in described["input"] and described["status"] != "RUNNING":
                if described["status"] != "SUCCEEDED":
                    raise RuntimeError(f"{adapter} was not deployed: {described.get('cause')}")
                return str(one["executionArn"])
        time.sleep(0.2)
    raise RuntimeError(f"{adapter} was not deployed within {DEADLINE_SECONDS:.0f} s")


def main() -> None:
    with LocalCloud(engine="stand-in", behaviour={"seconds_to_in_service": CREATE_SECONDS}) as cloud:
        environment = os.environ | cloud.environment()
        environment["PATH"] = f"{ROOT}/.venv/bin:{ROOT}/.tools/sam/bin:{environment['PATH']}"
        for words in (["sam", "build"], ["sam", "deploy", "--config-env", "local"]):
            subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
        stack = DeployedStack(cloud)
        cloud.behave(seconds_to_in_service=CREATE_SECONDS)
        first, *later = (deploy(stack, number) for number in range(DEPLOYMENTS))
    print(
        f"One deployment with a create of {CREATE_SECONDS:.0f} s; median of {len(later)}, after a first with cold Lambdas.\n"
    )
    print("| | cold | warm |")
    print("|---|---|---|")
    _row("state transitions", "", first.transitions, [one.transitions for one in later], digits=0)
    _row("Lambda time", " s", sum(first.lambda_seconds.values()), [sum(one.lambda_seconds.values()) for one in later])
    _row("Lambda, billed", " GB-s", first.gb_seconds, [one.gb_seconds for one in later])
    _row("from upload to live, without the create", " s", first.seconds_to_live, [one.seconds_to_live for one in later])
    transitions = [TRANSITION_DOLLARS * one.transitions for one in later]
    _row("transitions", " $", TRANSITION_DOLLARS * first.transitions, transitions, digits=6)
    billed = [GB_SECOND_DOLLARS * one.gb_seconds for one in later]
    _row("Lambda", " $", GB_SECOND_DOLLARS * first.gb_seconds, billed, digits=6)
    print("\n| state | cold, s | warm, s | memory, MB |")
    print("|---|---|---|---|")
    for state in first.lambda_seconds:
        warm = statistics.median(one.lambda_seconds[state] for one in later)
        print(f"| {state} | {first.lambda_seconds[state]:.2f} | {warm:.2f} | {memory_gb(state) * 1024:.0f} |")


def _row(name: str, unit: str, cold: float, warm: list[float] | list[int], digits: int = 2) -> None:
    print(f"| {name} | {cold:.{digits}f}{unit} | {statistics.median(warm):.{digits}f}{unit} |")


if __name__ == "__main__":
    main()
