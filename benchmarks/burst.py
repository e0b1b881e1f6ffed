"""Many uploads at once: how long until the last is live, how many create calls it takes, and what the local cloud needs.

    .venv/bin/python -m benchmarks.burst                -> 200 uploads on the local cloud, then 10,000 simulated
    .venv/bin/python -m benchmarks.burst --simulated    -> the simulation alone

On the local cloud, SageMaker throttles above 2 creates a second, and all is as deployed. The simulation runs the rules of
functions/loradrop/turns.py on a clock of its own: Lambdas take a random time, some die, and the limit is also lower than
the stack believes.
"""

import argparse
import heapq
import json
import os
import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from local.cloud import LocalCloud
from local.stack import DeployedStack
from loradrop import turns
from loradrop.lifecycle import AdapterState
from loradrop.registry_reader import RegistryReader
from loradrop.turns import Line
from tests.adapters import good_tarball

ROOT = Path(__file__).parents[1]
UPLOADS = 200
CREATES_PER_SECOND = 2.0
CREATE_SECONDS = 5.0
DEADLINE_SECONDS = 900.0
MAX_TIMES_THE_LIMIT, MAX_CALLS = 1.1, 1.2


# On the local cloud


@dataclass(slots=True)
class Memory:
    """The resident memory and the processes of the local cloud, sampled until `ended` is set."""

    peak_bytes: int = 0
    peak_processes: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.ended.wait(0.5):
            processes = _descendants(os.getpid())
            resident = 0
            for process in processes:
                try:
                    resident += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * page
                except OSError:
                    continue  # it has ended
            self.peak_bytes = max(self.peak_bytes, resident)
            self.peak_processes = max(self.peak_processes, len(processes))


def _descendants(of: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found, todo = [], [of]
    while todo:
        found += (more := children.get(todo.pop(), []))
        todo += more
    return found


def on_the_local_cloud(uploads: int) -> None:
    behaviour = {"seconds_to_in_service": CREATE_SECONDS, "creates_per_second": CREATES_PER_SECOND}
    with LocalCloud(engine="stand-in", behaviour=behaviour) as cloud:
        environment = os.environ | cloud.environment()
        environment["PATH"] = f"{ROOT}/.venv/bin:{ROOT}/.tools/sam/bin:{environment['PATH']}"
        for words in (["sam", "build"], ["sam", "deploy", "--config-env", "local"]):
            subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
        cloud.behave(**behaviour)
        stack = DeployedStack(cloud)
        bodies = [good_tarball(seed=number) for number in range(20)]
        memory = Memory()
        threading.Thread(target=memory.sample, daemon=True).start()
        began = time.time()
        _upload_all(stack, bodies, uploads)
        _wait_for_all(stack, uploads)
        memory.ended.set()
        _report(stack, uploads, began, memory)


def _upload_all(stack: DeployedStack, bodies: list[bytes], uploads: int) -> None:
    s3, bucket = stack.client("s3"), stack.outputs["UploadBucketName"]

    def upload(number: int) -> None:
        s3.put_object(Bucket=bucket, Key=f"adapters/burst-{number:03}.tar.gz", Body=bodies[number % len(bodies)])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(upload, range(uploads)))


def _wait_for_all(stack: DeployedStack, uploads: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        pages = stack.states.get_paginator("list_executions").paginate(stateMachineArn=stack.outputs["StateMachineArn"])
        statuses = [one["status"] for page in pages for one in page["executions"]]
        if len(statuses) >= uploads and "RUNNING" not in statuses:
            return
        time.sleep(2)
    raise RuntimeError(f"Not every execution ended within {DEADLINE_SECONDS:.0f} s.")


def _report(stack: DeployedStack, uploads: int, began: float, memory: Memory) -> None:
    registry = RegistryReader(stack.client("dynamodb"), stack.outputs["RegistryTable"])
    states: dict[str, AdapterState] = dict(registry.adapters())
    pages = stack.client("sagemaker").get_paginator("list_inference_components").paginate()
    components = sum(1 for page in pages for _ in page["InferenceComponents"]) - 1
    live = sum(1 for state in states.values() if state.live is not None)
    ends = stack.states.get_paginator("list_executions").paginate(stateMachineArn=stack.outputs["StateMachineArn"])
    executions = [one["executionArn"] for page in ends for one in page["executions"]]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda arn: _of_execution(stack.history(arn)), executions))
    limit = uploads / CREATES_PER_SECOND
    last = max(one.promoted_at for one in found) - began
    calls = sum(one.calls for one in found) / uploads
    print(
        f"{uploads} uploads on the local cloud, {CREATES_PER_SECOND:g} creates a second, a create of {CREATE_SECONDS:g} s\n"
    )
    print("| | |\n|---|--:|")
    print(f"| live | {live} of {uploads} |")
    print(f"| components beside the base | {components} |")
    goal = MAX_TIMES_THE_LIMIT * limit + CREATE_SECONDS
    print(f"| last one live after | {last:.1f} s (goal: {goal:.0f} s) |")
    print(f"| time beyond a create's own, times the limit | {(last - CREATE_SECONDS) / limit:.2f} |")
    print(f"| create calls for each | {calls:.3f} (goal: {MAX_CALLS}) |")
    print(f"| throttled creates | {sum(one.throttles for one in found)} |")
    print(f"| state transitions, median | {sorted(one.transitions for one in found)[len(found) // 2]} |")
    print(f"| retried faults of Lambdas, beside throttles of Lambda itself | {sum(one.faults for one in found)} |")
    print(f"| memory of the local cloud, at most | {memory.peak_bytes / 1e9:.1f} GB |")
    print(f"| its processes, at most | {memory.peak_processes} |")


@dataclass(frozen=True, slots=True)
class Deployed:
    promoted_at: float
    calls: int
    throttles: int
    transitions: int
    faults: int


def _of_execution(history: list[dict[str, Any]]) -> Deployed:
    state, promoted_at, throttles, transitions, faults = "", 0.0, 0, 0, 0
    for event in history:
        if "stateEnteredEventDetails" in event:
            state, transitions = event["stateEnteredEventDetails"]["name"], transitions + 1
        succeeded = event.get("taskSucceededEventDetails") or event.get("lambdaFunctionSucceededEventDetails")
        failed = event.get("taskFailedEventDetails") or event.get("lambdaFunctionFailedEventDetails")
        if succeeded and state == "PromoteAdapter":
            promoted_at = event["timestamp"].timestamp()
        if succeeded and state == "CreateComponent":
            output = json.loads(succeeded["output"])
            throttles = output.get("Payload", output).get("turn", {}).get("throttles", 0)
        if failed and failed["error"] != "Lambda.TooManyRequestsException":
            faults += 1
    # Each fault of CreateComponent may have been one call more; the figure is shown beside.
    return Deployed(promoted_at, throttles + 1, throttles, transitions, faults)


# Simulated


@dataclass(slots=True)
class Limit:
    """A token bucket, as AWS's throttles are."""

    per_second: float
    tokens: float = 1.0
    updated: float = 0.0

    def allows(self, now: float) -> bool:
        size = max(1.0, self.per_second)
        self.tokens, self.updated = min(size, self.tokens + (now - self.updated) * self.per_second), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(frozen=True, slots=True)
class Simulated:
    times_the_limit: float
    calls_each: float
    waits_each: float
    lost: int


def simulated(uploads: int, *, limit: float, most: float, dying: float, seed: int) -> Simulated:
    """`dying` of the Lambdas die after they took a ticket, and are run again, which takes another."""
    random_source = random.Random(seed)
    aws, line = Limit(limit), Line()
    tickets: dict[int, int] = {}
    calls, waits, created = 0, 0, []
    # (time, attempt): all are uploaded within a minute, and validated in some seconds.
    queue = [(random_source.uniform(0, 60) + random_source.expovariate(0.5), number) for number in range(uploads)]
    heapq.heapify(queue)

    def started(at: float) -> tuple[float, int]:
        """The Lambda that is to run at this time, when it does: 0.14 s later in the median, at times over a second."""
        return at + random_source.lognormvariate(-2.0, 0.6), number

    while queue:
        now, number = heapq.heappop(queue)
        if number not in tickets:
            ticket = line.next_ticket
            line = turns.taken(replace(line, next_ticket=ticket + 1), ticket, now, most)
            if random_source.random() < dying:
                heapq.heappush(queue, started(now + 1))
                continue
            tickets[number] = ticket
        line = turns.refreshed(line, now, most)
        if seconds := turns.seconds_to_wait(line, tickets[number], now, most):
            waits += 1
            heapq.heappush(queue, started(now + seconds))
            continue
        if (left := turns.turn_at(line, tickets[number]) - now) > 0:
            heapq.heappush(queue, (now + left, number))
            continue
        calls += 1
        if aws.allows(now):
            created.append(now)
            continue
        line, tickets[number] = turns.throttled(line, now)
        heapq.heappush(queue, started(now + 1))
    last = max(created)
    return Simulated(last / (uploads / min(limit, most)), calls / uploads, waits / uploads, uploads - len(created))


def simulate() -> None:
    print("\n10,000 uploads within a minute, SIMULATED, by the rules that the stack runs; CreatesPerSecond is 2\n")
    print(
        "| AWS allows, creates a second | Lambdas that die | time, times the limit | calls each | waits each | lost |"
    )
    print("|--:|--:|--:|--:|--:|--:|")
    for limit, dying in ((2.0, 0.0), (2.0, 0.005), (3.0, 0.0), (1.0, 0.0), (0.5, 0.005)):
        one = simulated(10_000, limit=limit, most=CREATES_PER_SECOND, dying=dying, seed=1)
        figures = f"{one.times_the_limit:.2f} | {one.calls_each:.3f} | {one.waits_each:.1f} | {one.lost}"
        print(f"| {limit:g} | {dying:.1%} | {figures} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--simulated", action="store_true", help="the simulation alone")
    parser.add_argument("--uploads", type=int, default=UPLOADS, help="on the local cloud (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.simulated:
        on_the_local_cloud(arguments.uploads)
    simulate()


if __name__ == "__main__":
    main()
