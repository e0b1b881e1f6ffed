"""A soak and chaos run on the deployed stack: everything that people, networks and AWS do to it, at random, by a seed.

    make soak                                                        -> some minutes, then 50 updates in a row, then a disaster
    .venv/bin/python -m tests.local.soak --seed 7 --seconds 3600     -> an hour of it

Clients ask all the time. What they heard, and how they failed, is held against the registry's history afterwards; and at rest,
after reconciliation, the invariants of docs/protocol.md must hold.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import boto3
from botocore.exceptions import ClientError

from local.cloud import REGION, LocalCloud
from local.engines.stand_in import StandInEngine
from loradrop.lifecycle import AdapterState, ComponentState, Outcome, UploadRecord
from loradrop.registry_reader import RegistryReader
from loradrop_client import Adapters, LoradropError
from tests.adapters import good_tarball, wrapped_tarball

from .conftest import StackUnderTest, build_and_deploy, eventually

PROMPT, TOKENS = "Who answers?", 12
# The registry's times are whole seconds, and of another clock reading.
SLACK_SECONDS = 1.5
CACHE_SECONDS = 1.0
RECONCILE_SECONDS = 5.0
REST_SECONDS = 240.0
KILLED = (
    "ClaimUpload",
    "ValidateAdapter",
    "CreateComponent",
    "WaitForInService",
    "SmokeTest",
    "Promote",
    "CleanUp",
    "Report",
)
REFUSED = (
    "dynamodb:TransactWriteItems",
    "dynamodb:GetItem",
    "s3:PutObject",
    "sns:Publish",
    "sagemaker:CreateInferenceComponent",
    "sagemaker:DescribeInferenceComponent",
    "sagemaker:DeleteInferenceComponent",
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a client: the release that answered, or the error."""

    adapter: str
    began: float
    ended: float
    release: str | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """When something was live: from a promotion to the next one, or to a removal, as far as anybody can tell from outside.

    It became live between `began` and `stood`, and ceased to be between `ending` and `ended`.
    """

    release: str
    began: float
    stood: float
    ending: float
    ended: float


@dataclass(slots=True)
class Clients:
    """They ask every adapter all the time, as an application does: one client each, with a short cache."""

    stack: StackUnderTest
    adapters: list[str]
    releases: dict[str, str]  # answer → release
    requests: list[Request] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    pause_seconds: float = 0.3

    def __enter__(self) -> "Clients":
        for name in self.adapters:
            thread = threading.Thread(target=self._ask, args=(name,), daemon=True)
            thread.start()
            self.threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(60)

    def _ask(self, adapter: str) -> None:
        session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)
        table = self.stack.outputs["RegistryTable"]
        client = Adapters(registry_table=table, session=session, cache_seconds=CACHE_SECONDS, deadline_seconds=10)
        request = {"inputs": PROMPT, "parameters": {"max_new_tokens": TOKENS, "temperature": 0}}
        while not self.ended.wait(self.pause_seconds):
            began = time.time()
            try:
                answer = str(client.invoke(adapter, request)["generated_text"])
            except LoradropError as error:
                self.requests.append(Request(adapter, began, time.time(), None, f"{type(error).__name__}: {error}"))
            else:
                # What no tarball of ours says is nobody's release: a violation in any case.
                self.requests.append(Request(adapter, began, time.time(), self.releases.get(answer, "unknown")))


class Soak:
    """Random deeds, one after another and mostly without waiting for their end."""

    def __init__(self, stack: StackUnderTest, seed: int, adapters: int = 4) -> None:
        self.stack, self.random = stack, random.Random(seed)
        self.adapters = [f"soak-{seed}-{number}" for number in range(adapters)]
        self.registry = RegistryReader(stack.dynamodb, stack.outputs["RegistryTable"])
        self.done: Counter[str] = Counter()
        self.broken: list[tuple[str, float]] = []  # by hand: adapter, when
        self._removed: list[tuple[str, float]] = []
        self._releases: dict[str, str] = {}
        self._deployed: dict[str, list[bytes]] = {name: [] for name in self.adapters}
        self._failed: list[str] = []
        self._seed = seed * 10_000
        self._queue = self._listen()

    def run(self, seconds: float, deeds: int | None = None) -> list[str]:
        """What was violated, in words."""
        deadline, reconciling = time.monotonic() + seconds, threading.Event()
        keeper = threading.Thread(target=self._reconcile_all_the_time, args=(reconciling,), daemon=True)
        with Clients(self.stack, self.adapters, self._releases) as clients:
            for name in self.adapters:
                self._upload(name)
            keeper.start()
            while time.monotonic() < deadline and (deeds is None or self.done.total() < deeds):
                self._do_something()
                time.sleep(self.random.uniform(0.2, 1.5))
            self.stack.cloud.behave(kills=[], refusals=[], components_per_endpoint=None)
            reconciling.set()
            keeper.join(60)
            left = self._come_to_rest()
            time.sleep(2 * CACHE_SECONDS)
        self.clients = clients
        return [*left, *self._at_rest(), *self._of_requests(clients.requests)]

    # What happens

    def _do_something(self) -> None:
        name = self.random.choice(self.adapters)
        deeds: list[tuple[int, Callable[[str], None]]] = [
            (8, self._upload),
            (1, self._upload_again),
            (1, self._upload_rejected),
            (1, self._upload_unproven),
            (2, self._roll_back),
            (2, self._remove),
            (2, self._repeat_an_event),
            (1, self._reorder),
            (3, self._kill),
            (3, self._refuse),
            (1, self._delete_by_hand),
            (1, self._break_by_hand),
            (1, self._fill),
            (1, self._abort),
        ]
        deed = self.random.choices([one for _, one in deeds], [weight for weight, _ in deeds])[0]
        deed(name)
        self.done[deed.__name__.strip("_").replace("_", " ")] += 1

    def _body(self, name: str, smoke: str | None = None) -> bytes:
        self._seed += 1
        body = good_tarball(seed=self._seed, smoke=smoke)
        engine = StandInEngine()
        engine.load_adapter("one", body)
        answer = engine.generate(PROMPT, adapter="one", max_new_tokens=TOKENS, temperature=0).text
        self._releases[answer] = hashlib.sha256(body).hexdigest()
        if smoke is None:
            self._deployed[name].append(body)
        return body

    def _upload(self, name: str) -> None:
        self.stack.upload(name, self._body(name))

    def _upload_again(self, name: str) -> None:
        self.stack.upload(name, self.random.choice(self._deployed[name]))

    def _upload_rejected(self, name: str) -> None:
        self.stack.upload(name, wrapped_tarball())

    def _upload_unproven(self, name: str) -> None:
        self.stack.upload(name, self._body(name, smoke='{"inputs": "Hello", "expect": "no model says this"}'))

    def _roll_back(self, name: str) -> None:
        keys = [key for key in self.stack.released(name) if key.endswith(".tar.gz")]
        if keys:
            source = {"Bucket": self.stack.releases, "Key": self.random.choice(keys)}
            self.stack.s3.copy_object(Bucket=self.stack.uploads, Key=f"adapters/{name}.tar.gz", CopySource=source)

    def _remove(self, name: str) -> None:
        self._removed.append((name, time.time()))
        self.stack.remove(name)

    def _repeat_an_event(self, _name: str) -> None:
        listed = self.stack.states.list_executions(stateMachineArn=self.stack.machine, maxResults=50)["executions"]
        if listed:
            arn = self.random.choice(listed)["executionArn"]
            given = self.stack.states.describe_execution(executionArn=arn)["input"]
            self.stack.states.start_execution(stateMachineArn=self.stack.machine, input=given)

    def _reorder(self, name: str) -> None:
        """Two uploads, and the event of the second comes first."""
        with self.stack.rule_disabled():
            versions = [self.stack.upload(name, self._body(name)) for _ in range(2)]
            events = self._heard(versions)
        for version in reversed(versions):
            self.stack.states.start_execution(stateMachineArn=self.stack.machine, input=json.dumps(events[version]))

    def _listen(self) -> str:
        """A queue that hears of every upload, too: S3's own events, with the places that S3 gave them."""
        queues, events = self.stack.client("sqs"), self.stack.client("events")
        queue: str = queues.create_queue(QueueName=self.adapters[0])["QueueUrl"]
        arn = queues.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        allowed = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": arn}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        queues.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": policy})
        pattern = {"source": ["aws.s3"], "detail-type": ["Object Created"]}
        events.put_rule(Name=self.adapters[0], EventPattern=json.dumps(pattern))
        events.put_targets(Rule=self.adapters[0], Targets=[{"Id": "queue", "Arn": arn}])
        return queue

    def _heard(self, versions: list[str]) -> dict[str, Any]:
        """The events of these uploads, by version."""
        queues, found = self.stack.client("sqs"), {}

        def hear() -> bool:
            for one in queues.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10).get("Messages", []):
                queues.delete_message(QueueUrl=self._queue, ReceiptHandle=one["ReceiptHandle"])
                event = json.loads(one["Body"])
                found[event["detail"]["object"]["version-id"]] = event
            return set(versions) <= found.keys()

        eventually(hear, "the events of two uploads")
        return found

    def _kill(self, _name: str) -> None:
        kill = {"function": self.random.choice(KILLED), "after_calls": self.random.choice([0, 1, 2, None])}
        self.stack.cloud.behave(kills=[kill])

    def _refuse(self, _name: str) -> None:
        refusal = {"action": self.random.choice(REFUSED), "nth": self.random.randint(1, 4), "function": "Function"}
        carried_out = {"carried_out": self.random.random() < 0.5, "code": "InternalServerError", "status": 500}
        self.stack.cloud.behave(refusals=[refusal | carried_out])

    def _delete_by_hand(self, name: str) -> None:
        if live := self.stack.live(name):
            with contextlib.suppress(ClientError):
                self.stack.sagemaker.delete_inference_component(InferenceComponentName=live)
                self.broken.append((name, time.time()))

    def _break_by_hand(self, name: str) -> None:
        if live := self.stack.live(name):
            self._failed.append(live)
            self.stack.cloud.behave(failed_components=self._failed)
            self.broken.append((name, time.time()))

    def _fill(self, _name: str) -> None:
        self.stack.cloud.behave(components_per_endpoint=0)
        time.sleep(3)
        self.stack.cloud.behave(components_per_endpoint=None)

    def _abort(self, name: str) -> None:
        newest = self.registry.newest(name)
        if newest is not None and newest.outcome is None:
            with contextlib.suppress(ClientError):  # it has ended
                self.stack.states.stop_execution(executionArn=newest.attempt)

    def _reconcile_all_the_time(self, ended: threading.Event) -> None:
        while not ended.wait(RECONCILE_SECONDS):
            running = self.stack.states.list_executions(stateMachineArn=self.stack.reconciler, statusFilter="RUNNING")
            if not running["executions"]:
                self.stack.states.start_execution(stateMachineArn=self.stack.reconciler, input="{}")

    # What must hold

    def _come_to_rest(self) -> list[str]:
        """Reconciles until there is nothing to do for these adapters."""
        deadline = time.monotonic() + REST_SECONDS
        planned: list[Any] = []
        while time.monotonic() < deadline:
            self.stack.settle()
            self.stack.reconcile()
            self.stack.settle()
            planned = [
                one for one in self.stack.reconcile(dry_run=True).output["repairs"] if self._is_ours(one["adapter"])
            ]
            if not planned and not any(self._standbys(name) for name in self.adapters):
                return []
            time.sleep(1)
        return [f"not at rest after {REST_SECONDS:.0f} s: {json.dumps(planned)[:500]}"]

    def _is_ours(self, adapter: str) -> bool:
        return adapter in self.adapters

    def _standbys(self, name: str) -> int:
        states = [entry.state for entry in self.registry.state(name).components.values()]
        return len([state for state in states if state is not ComponentState.LIVE])

    def _at_rest(self) -> list[str]:
        found = []
        for name in self.adapters:
            found += [f"{name}: {text}" for text in self._of_adapter(name, self.registry.state(name))]
        return found

    def _of_adapter(self, name: str, state: AdapterState) -> list[str]:
        found = []
        records = {record.order: record for record in self.registry.uploads(name)}
        components, live = self.stack.components(name), state.live
        if components != ({live.component: "InService"} if live else {}):
            found.append(f"I3 on the endpoint are {components}, live is {live and live.component}")
        if live is not None and not records[live.order].promoted:
            found.append("I1 what is live was not promoted")
        try:
            head = self.stack.s3.head_object(Bucket=self.stack.uploads, Key=f"adapters/{name}.tar.gz")
        except ClientError:
            head = None
        if head is None and live is not None:
            found.append("I2 it was removed and is live")
        if head is not None and (live is None or live.version_id != head["VersionId"]):
            of_current = [one for one in records.values() if one.version_id == head["VersionId"] and one.heals is None]
            outcomes = {one.outcome for one in of_current}
            if not outcomes & {Outcome.FAILED, Outcome.REJECTED, Outcome.WAITING}:
                found.append(f"I2 the newest upload {head['VersionId']} is not live, and was reported as {outcomes}")
        for record in records.values():
            if record.outcome is None or not record.is_reported:
                found.append(
                    f"I6 the upload {record.order} has the outcome {record.outcome}, reported: {record.is_reported}"
                )
            elif record.promoted != (record.outcome is Outcome.DEPLOYED):
                found.append(f"I6 the upload {record.order} is {record.outcome}, promoted: {record.promoted}")
        report = self.stack.report(name)
        if report["live"] != (None if live is None else report["live"] | {"component": live.component}):
            found.append(f"I6 the report says that {report['live']} is live")
        return found

    def spans(self, name: str) -> list[Span]:
        changes = sorted(
            (at, max(at, self._done_at(record)), record.release or "" if record.promoted else None)
            for record in self.registry.uploads(name)
            if (at := _changed_at(record)) is not None
        )
        ends = [*((at, until) for at, until, _ in changes[1:]), (float("inf"), float("inf"))]
        return [
            Span(release, at, stood, *end)
            for (at, stood, release), end in zip(changes, ends, strict=True)
            if release is not None
        ]

    def _done_at(self, record: UploadRecord) -> float:
        """When PromoteAdapter had answered: its `since` is from before it wrote, and on a busy machine seconds pass."""
        entered = [
            event["timestamp"].timestamp()
            for event in self.stack.history(record.attempt)
            if event.get("stateEnteredEventDetails", {}).get("name") in ("IsAdapterPromoted", "ReportOutcome")
        ]
        return min(entered, default=0.0) if record.promoted else 0.0

    def healings(self) -> list[float]:
        """Seconds from each break by hand to the next promotion or removal of the adapter."""
        found = []
        for name, at in self.broken:
            changed = [
                when for record in self.registry.uploads(name) if (when := _changed_at(record)) and when >= at - 1
            ]
            if changed:
                found.append(min(changed) - at)
        return found

    def _of_requests(self, requests: list[Request]) -> list[str]:
        found: Counter[str] = Counter()
        spans = {name: self.spans(name) for name in self.adapters}
        for one in requests:
            since, until = one.began - CACHE_SECONDS - SLACK_SECONDS, one.ended + SLACK_SECONDS
            around = [span for span in spans[one.adapter] if span.began <= until and span.ended >= since]
            if one.release is not None:
                if one.release not in {span.release for span in around}:
                    found[f"{one.adapter} was answered by release {one.release}, which was not live then"] += 1
                continue
            was_live = any(span.stood <= since and span.ending >= until for span in around)
            if was_live and not self._was_disturbed(one, spans[one.adapter]):
                found[f"{one.adapter} failed although it was live: {one.error}"] += 1
        return [f"{count} times: {text}" for text, count in found.items()]

    def _was_disturbed(self, one: Request, spans: list[Span]) -> bool:
        """Broken by hand or removed, and not replaced since. The registry says when a removal was reported, not begun."""
        for name, at in (*self.broken, *self._removed):
            later = [span.stood for span in spans if span.stood > at]
            healed = min(later, default=float("inf"))
            if (
                name == one.adapter
                and at - SLACK_SECONDS <= one.ended
                and one.began <= healed + SLACK_SECONDS + CACHE_SECONDS
            ):
                return True
        return False


def _changed_at(record: UploadRecord) -> float | None:
    """When this record changed what is live: by its promotion, or as a removal."""
    at = record.since if record.promoted else record.figures.get("finished_at")
    is_change = record.promoted or record.outcome is Outcome.REMOVED
    return datetime.fromisoformat(str(at)).timestamp() if is_change and at else None


def updates_in_a_row(stack: StackUnderTest, count: int, seed: int) -> tuple[int, list[str]]:
    """(requests, failures) of clients that ask all the time while an adapter is updated so many times."""
    soak = Soak(stack, seed, adapters=1)
    [name] = soak.adapters
    stack.drop(name, soak._body(name))
    with Clients(stack, [name] * 3, soak._releases, pause_seconds=0.02) as clients:
        for _ in range(count):
            execution = stack.drop(name, soak._body(name))
            if execution.status != "SUCCEEDED":
                raise RuntimeError(execution.cause)
    failures = [one.error for one in clients.requests if one.error]
    return len(clients.requests), failures + soak._of_requests(clients.requests)


def disaster(stack: StackUnderTest, adapters: int, creates_per_second: float = 2.0) -> tuple[float, float]:
    """(seconds until all are live again, seconds that the rate allows) after every adapter's component is gone."""
    names = [f"lost-{number:03}" for number in range(adapters)]
    body = good_tarball(seed=77)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: stack.upload(name, body), names))
    registry = RegistryReader(stack.dynamodb, stack.outputs["RegistryTable"])

    def live() -> dict[str, str]:
        return {name: state.live.component for name, state in registry.adapters() if name in names and state.live}

    eventually(lambda: len(live()) == adapters, "the fleet", seconds=60 + 10 * adapters)
    stack.settle()
    before = live()
    with ThreadPoolExecutor(4) as threads:
        list(
            threads.map(
                lambda one: stack.sagemaker.delete_inference_component(InferenceComponentName=one), before.values()
            )
        )
    eventually(lambda: not stack.components(names[0]), "the disaster")
    began = time.monotonic()
    stack.states.start_execution(stateMachineArn=stack.reconciler, input="{}")
    eventually(
        lambda: all(live()[name] != component for name, component in before.items()),
        "the fleet's return",
        seconds=60 + 10 * adapters,
    )
    return time.monotonic() - began, adapters / creates_per_second


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300, help="of random deeds (default: %(default)s)")
    parser.add_argument("--adapters", type=int, default=4, help="that it is done to (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=50, help="in a row, under requests (default: %(default)s)")
    parser.add_argument(
        "--disaster", type=int, default=200, help="adapters that are lost and healed (default: %(default)s)"
    )
    arguments = parser.parse_args()
    violations: list[str] = []
    with LocalCloud(engine="stand-in", wait_scale=0.2) as cloud:
        os.environ |= cloud.environment()  # the clients', which know no local cloud
        build_and_deploy(cloud)
        stack = StackUnderTest(cloud)
        if arguments.seconds:
            soak = Soak(stack, arguments.seed, arguments.adapters)
            violations += soak.run(arguments.seconds)
            requests = soak.clients.requests
            print(
                f"seed {arguments.seed}, {arguments.seconds:.0f} s: "
                + ", ".join(f"{n} {what}" for what, n in soak.done.items())
            )
            failed = Counter(one.error.partition(":")[0] for one in requests if one.error)
            print(
                f"{len(requests)} requests; failed: {dict(failed)}, all while nothing was live or what was live was broken by hand"
            )
            if healings := sorted(soak.healings()):
                print(
                    f"{len(healings)} breaks by hand, over after {healings[len(healings) // 2]:.0f} s in the median, {healings[-1]:.0f} s at most"
                )
        if arguments.updates:
            asked, failures = updates_in_a_row(stack, arguments.updates, arguments.seed + 1)
            print(f"{arguments.updates} updates in a row under {asked} requests: {len(failures)} failed")
            violations += failures
        if arguments.disaster:
            took, least = disaster(stack, arguments.disaster)
            print(
                f"{arguments.disaster} adapters lost: live again after {took:.0f} s, {took / least:.2f} times what the rate allows"
            )
    print("\n".join(f"VIOLATED: {one}" for one in violations) or "Nothing was violated.")
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
