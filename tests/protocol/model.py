"""The world that the protocol is explored in: what is, what can happen next, and what must hold.

A script says what is done to the bucket, in its order: A B C upload good bytes, x are rejected, d fail the smoke test,
- deletes (a delete marker), ! deletes the current version for good. `globex:A` is another adapter's; acme's otherwise.

One move is one call of a handler to AWS, or a step of the registry, or something that happens by itself. What only reads
goes with the call behind it where nobody could tell. All of S3's events may come late, in any order, and again.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import loradrop
from loradrop.lifecycle import ComponentState, Outcome
from loradrop.names import order_of
from loradrop.problems import Problem, ProblemCode
from loradrop.validation_report import ValidationReport
from tests.protocol.handlers import (
    BASE,
    ENDPOINT,
    GRACE_SECONDS,
    RELEASES,
    STACK,
    VALUES,
    Refusal,
    next_action,
    put,
    registry_step,
)

MACHINES = Path(loradrop.__file__).parents[2] / "statemachine"
# One tick is longer than a grace period, than an event is late, and than any Lambda lives.
TICK_SECONDS = 10_000
START = 1_700_000_000
MARKER = -7
ADAPTERS = ("acme", "globex")
STATUS = {"C": "Creating", "I": "InService", "F": "Failed", "D": "Deleting"}

FAULTS = (
    "crash, retried",
    "crash, caught",
    "zombie",
    "abort",
    "gave up",
    "exhausted",
    "endpoint full",
    "deadline",
    "smoke flake",
    "component failed",
    "failed after InService",
    "deleted by hand",
    "event lost",
    "not reported",
)


class Exec(NamedTuple):
    """An execution of DeployAdapter in a task: `log` is what its Lambda knows so far."""

    attempt: str
    state: str
    deployment: int
    log: tuple[int, ...] = ()


class Repair(NamedTuple):
    """A pass of ReconcileFleet for one adapter: RepairAdapter, then ReportOutcome for each of `reports`."""

    attempt: str
    event: int
    reports: tuple[int, ...] | None = None
    log: tuple[int, ...] = ()


class World(NamedTuple):
    """Everything that decides what can happen, all of it sorted: two ways to the same world are one state."""

    items: int  # the registry's table
    objects: tuple[tuple[int, ...], ...]  # by adapter: the versions under its key, the current one last
    uploads: tuple[tuple[int, str, int, int], ...]  # by version: adapter, content, number of its event, tick
    script: int  # how much of the script was done
    clock: int  # S3's events so far
    components: tuple[tuple[str, str, bool, int, str], ...]  # name, status, proven, tick, what it serves
    execs: tuple[Exec, ...]
    ended: tuple[str, ...]  # healings: an execution's name is not used twice
    repairs: tuple[Repair, ...]
    zombies: tuple[tuple[str, int, tuple[int, ...], str], ...]  # Lambdas that the state machine gave up waiting for
    events: tuple[tuple[str, int, int], ...]  # of S3's, not yet delivered: kind, version or adapter, number
    starts: tuple[int, ...]  # by version: how many executions it has had
    budget: tuple[int, int, int, int]  # faults, repeated events, passes of the reconciler, ticks: left
    tick: int
    grace: tuple[tuple[str, int], ...]  # what was live, and until when clients hold its name
    broken: tuple[str, ...]  # components that the environment broke
    told: tuple[tuple[str, str, str], ...]  # adapter, order, outcome: what was reported


class Move(NamedTuple):
    label: tuple[Any, ...]
    fault: str | None
    after: World
    violations: tuple[str, ...] = ()


# ---------------------------------------------------------------- the state machines, from their files
DEPLOY = yaml.safe_load((MACHINES / "deploy_adapter.asl.yaml").read_text())["States"]
RECONCILE = yaml.safe_load((MACHINES / "reconcile_fleet.asl.yaml").read_text())["States"]
REPAIR = RECONCILE["RepairAdapters"]["ItemProcessor"]["States"]
REPORT = REPAIR["ReportOutcomes"]["ItemProcessor"]["States"]["ReportOutcome"]

Known = dict[str, Any]
# JSONata is mapped by its exact text, so that a change there stops the checker. (deployment, report) → bool
CONDITIONS: dict[str, Callable[[Known, Known], bool]] = {
    "$exists($deployment.repeated_by) or $exists($deployment.superseded) or $exists($deployment.validation)": (
        lambda d, r: bool(d.keys() & {"repeated_by", "superseded", "validation"})
    ),
    "$exists($deployment.release)": lambda d, r: "release" in d,
    "$exists($deployment.superseded)": lambda d, r: "superseded" in d,
    "$exists($deployment.turn.wait_seconds)": lambda d, r: "wait_seconds" in d.get("turn", {}),
    "$exists($deployment.promotion)": lambda d, r: "promotion" in d,
    "$deployment.validation.accepted": lambda d, r: d["validation"]["accepted"],
    "$deployment.component.status = 'InService'": lambda d, r: d["component"]["status"] == "InService",
    "$deployment.smoke.passed": lambda d, r: d["smoke"]["passed"],
    **{
        f"$report.outcome = '{outcome}'": (lambda d, r, o=outcome: r["outcome"] == o)
        for outcome in (*Outcome, "repeated")
    },
}
_ERROR = "{'Error': $states.errorOutput.Error, 'Cause': $substring($states.errorOutput.Cause, 0, 2000)}"
ASSIGNS: dict[str, Callable[[Known, Known], tuple[str, Known]]] = {
    "deployment: $states.result": lambda d, result: ("deployment", result),
    "report: $states.result": lambda d, result: ("report", result),
    "failure: $states.errorOutput": lambda d, error: ("failure", error),
    f"deployment: $merge([$deployment, {{'failure': {_ERROR}}}])": lambda d, e: ("deployment", d | {"failure": e}),
    f"deployment: $merge([$deployment, {{'left_behind': {_ERROR}}}])": (
        lambda d, e: ("deployment", d | {"left_behind": e})
    ),
}


def bare(text: str) -> str:
    return text.removeprefix("{% ").removesuffix(" %}")


def assigned(body: dict[str, Any], deployment: Known, found: Known) -> tuple[str, Known]:
    ((name, text),) = body["Assign"].items()
    return ASSIGNS[f"{name}: {bare(text)}"](deployment, found)


def is_retried(body: dict[str, Any], error: str) -> bool:
    return any(error in retry["ErrorEquals"] for retry in body.get("Retry", []))


# ---------------------------------------------------------------- what a call is
READS = {"describe_execution", "describe_inference_component", "state", "live", "upload", "uploads", "open_uploads"}
# Nobody's decision depends on these: they are answered on the way.
INLINE = {
    ("s3", "get_object_tagging"): {"TagSet": []},
    ("s3", "put_object_tagging"): {},
    ("s3", "put_object"): {},
    ("events", "put_events"): {"FailedEntryCount": 0, "Entries": [{}]},
}
OF_ONE_ATTEMPT = {"describe_inference_component", "create_inference_component", "publish", "mark_reported"}
# What the report says beside the outcome is not modelled.
OF_THE_REPORT = {"live": put(None), "uploads": put([])}
MISSING = put(Refusal("404", "Not Found"))
DONE = NOTHING = put({})


@functools.cache
def kind_of(request: int) -> str:
    service, operation, _, named = VALUES[request]
    if (service, operation) in INLINE or (operation == "head_object" and named["Key"].startswith("reports/")):
        return "inline"
    if named.get("InferenceComponentName") == BASE:
        return "inline"
    return f"read of {service}" if operation in READS else f"write of {service}"


class Model:
    """One scenario: a script, and how many faults, repeated events, passes of the reconciler and ticks are allowed."""

    def __init__(
        self,
        script: str,
        *,
        faults: int = 0,
        repeats: int = 0,
        looks: int = 0,
        ticks: int = 0,
        kinds: tuple[str, ...] = FAULTS,
        is_reduced: bool = True,
    ) -> None:
        self.is_reduced = is_reduced
        self.script: list[tuple[int, str]] = []
        for one in script.split(","):
            name, _, content = one.rpartition(":")
            self.script.append((ADAPTERS.index(name or "acme"), content))
        self.adapters = ADAPTERS[: 1 + max(adapter for adapter, _ in self.script)]
        self.budget = (faults, repeats, looks, ticks)
        self.kinds = frozenset(kinds)
        # Where nothing is deleted, all is uploaded before the first event comes: that nobody can tell.
        self.is_deleted_from = any(content in "-!" for _, content in self.script)
        self.is_uploaded_at_once = not looks and not self.is_deleted_from
        self._checked: dict[int, tuple[str, ...]] = {}
        self._events: dict[int, int] = {}
        self._assignments: dict[tuple[str, int, int | str], tuple[int, int]] = {}
        self._following: dict[tuple[Any, ...], tuple[str, int]] = {}
        self._entries: dict[int, dict[str, Any]] = {}
        self._lives: dict[int, dict[str, Any]] = {}
        self._records: dict[int, dict[tuple[str, str], dict[str, Any]]] = {}

    def initial(self) -> World:
        world = World(
            items=put({}),
            objects=((),) * len(self.adapters),
            uploads=(),
            script=0,
            clock=0,
            components=(),
            execs=(),
            ended=(),
            repairs=(),
            zombies=(),
            events=(),
            starts=(),
            budget=self.budget,
            tick=0,
            grace=(),
            broken=(),
            told=(),
        )
        while self.is_uploaded_at_once and world.script < len(self.script):
            world = self.acted(world)
        return world

    # ------------------------------------------------------------ the bucket
    def acted(self, w: World) -> World:
        """The next thing of the script is done to the bucket."""
        adapter, content = self.script[w.script]
        w = w._replace(script=w.script + 1)
        stack = w.objects[adapter]
        match content:
            case "-":
                if not stack or stack[-1] == MARKER:
                    return w
                return self._event(w, "deleted", adapter, (*stack, MARKER), adapter)
            case "!":
                if not stack:
                    return w
                return self._event(w, "deleted", adapter, stack[:-1], adapter)
            case _:
                return self._put(w, adapter, content)

    def _put(self, w: World, adapter: int, content: str) -> World:
        version = len(w.uploads)
        w = w._replace(uploads=(*w.uploads, (adapter, content, w.clock + 1, w.tick)), starts=(*w.starts, 0))
        return self._event(w, "uploaded", adapter, (*w.objects[adapter], version), version)

    @staticmethod
    def _event(w: World, kind: str, adapter: int, stack: tuple[int, ...], of: int) -> World:
        clock = w.clock + 1
        objects = (*w.objects[:adapter], stack, *w.objects[adapter + 1 :])
        return w._replace(objects=objects, clock=clock, events=tuple(sorted((*w.events, (kind, of, clock)))))

    def current(self, w: World, adapter: int) -> int | None:
        stack = w.objects[adapter]
        return stack[-1] if stack and stack[-1] != MARKER else None

    def object_event(self, w: World, version: int) -> Known:
        adapter, content, number, _ = w.uploads[version]
        return {
            "detail-type": "Object Created",
            "time": "then",
            "detail": {
                "bucket": {"name": "uploads"},
                "object": {
                    "key": f"adapters/{self.adapters[adapter]}.tar.gz",
                    "version-id": f"v{version + 1}",
                    "sequencer": sequencer(number),
                    "size": 7,
                    "etag": content,
                },
            },
        }

    # ------------------------------------------------------------ what the registry holds
    def entries(self, items: int) -> dict[str, Any]:
        """Component → its entry, of all adapters."""
        if items not in self._entries:
            self._entries[items] = {
                name: {key: value.get("S") for key, value in entry["M"].items()}
                for (_, record), item in VALUES[items].items()
                if record == "state"
                for name, entry in item["components"]["M"].items()
            }
        return self._entries[items]

    def lives(self, items: int) -> dict[str, Any]:
        """Adapter → its live pointer, where it has one, and its floor."""
        if items not in self._lives:
            self._lives[items] = {
                adapter: {"floor": item["floor"]["S"]}
                | {key: value["S"] for key, value in item.get("live", {}).get("M", {}).items()}
                for (adapter, record), item in VALUES[items].items()
                if record == "state"
            }
        return self._lives[items]

    def records(self, items: int) -> dict[tuple[str, str], dict[str, Any]]:
        """(adapter, order) → the upload, healing or removal."""
        if items not in self._records:
            self._records[items] = {
                (adapter, record.removeprefix("upload#")): {
                    key: next(iter(value.values())) for key, value in item.items()
                }
                for (adapter, record), item in VALUES[items].items()
                if record != "state"
            }
        return self._records[items]

    # ------------------------------------------------------------ one call
    def now(self, w: World) -> int:
        return START + w.tick * TICK_SECONDS

    def call(self, w: World, request: int, caller: str, event: int) -> tuple[World, int, tuple[str, ...]]:
        """(world, request of a handler) → the world after it, the answer, what it violates."""
        service, operation, _, named = VALUES[request]
        match service:
            case "registry" if operation.startswith("watched_"):
                return w, registry_step(w.items, request)[1], ()
            case "registry":
                return self._registry(w, request)
            case "sagemaker":
                return self._sagemaker(w, operation, named, caller)
            case "s3":
                return self._s3(w, operation, named)
            case "stepfunctions":
                return self._step_functions(w, operation, named)
            case "sns":
                return self._told(w, named, event)
            case _:
                return w, put(INLINE[service, operation]), ()

    def _registry(self, w: World, request: int) -> tuple[World, int, tuple[str, ...]]:
        after, answer = registry_step(w.items, request)
        if after == w.items:
            return w, answer, ()
        violations = []
        grace = dict(w.grace)
        before, now = self.lives(w.items), self.lives(after)
        for adapter, live in now.items():
            old = before.get(adapter, {"floor": ""})
            if live["floor"] < old["floor"]:
                violations.append("I5 the floor fell")
            if old.get("component") != live.get("component"):
                if "component" in old:
                    grace[old["component"]] = self.now(w) + GRACE_SECONDS
                grace.pop(live.get("component", ""), None)
                if "component" in live and live["order"] <= old["floor"]:
                    violations.append("I5 something below the floor went live")
                removals = [
                    order for (of, order), r in self.records(w.items).items() if of == adapter and is_removal(r)
                ]
                if "component" in live and live["order"] <= max(removals, default=""):
                    violations.append("I5 something that was removed went live")
        records = self.records(after)
        for key, record in self.records(w.items).items():
            if "outcome" in record and records.get(key, {}).get("outcome") != record["outcome"]:
                violations.append("I6 an outcome was changed in the registry")
        return w._replace(items=after, grace=tuple(sorted(grace.items()))), answer, tuple(violations)

    def _sagemaker(self, w: World, operation: str, named: Known, caller: str) -> tuple[World, int, tuple[str, ...]]:
        name = named.get("InferenceComponentName", "")
        found = next((one for one in w.components if one[0] == name), None)
        missing = put(Refusal("ValidationException", f'Could not find inference component "{name}".'))
        match operation:
            case "describe_inference_component" if name == BASE:
                return w, put({"InferenceComponentStatus": "InService"}), ()
            case "describe_inference_component":
                return w, put(described(found)) if found else missing, ()
            case "list_inference_components":
                listed = [described(one) for one in w.components]
                return w, put([{"InferenceComponents": listed}]), ()
            case "list_tags":
                return w, put({"Tags": [{"Key": "loradrop:stack", "Value": STACK}]}), ()
            case "create_inference_component":
                if found:
                    text = f'Cannot create already existing inference component "{name}".'
                    return w, put(Refusal("ValidationException", text)), ()
                made = (name, "C", False, w.tick, named["Specification"]["Container"]["ArtifactUrl"])
                return self._with_component(w, name, made), DONE, ()
            case "delete_inference_component":
                if found is None:
                    return w, missing, ()
                if found[1] in "CD":
                    text = f"its status is {'CREATE' if found[1] == 'C' else 'DELETE'}_IN_PROGRESS"
                    return w, put(Refusal("ValidationException", text)), ()
                violations = self._of_deletion(w, found, caller)
                return self._with_component(w, name, (name, "D", False, *found[3:])), DONE, violations
            case _:
                raise AssertionError(operation)

    @staticmethod
    def _with_component(w: World, name: str, value: tuple[str, str, bool, int, str] | None, **more: Any) -> World:
        others = [one for one in w.components if one[0] != name]
        return w._replace(components=tuple(sorted([*others, value] if value else others)), **more)

    def _of_deletion(self, w: World, found: tuple[str, str, bool, int, str], caller: str) -> tuple[str, ...]:
        name, status = found[:2]
        violations = []
        entry = self.entries(w.items).get(name)
        if entry is not None and entry["state"] != ComponentState.DELETING:
            violations.append(f"I4 a component that is {entry['state']} is deleted")
        if status == "I" and dict(w.grace).get(name, 0) > self.now(w):
            violations.append("I7 a component is deleted while clients hold its name")
        for one in w.execs:
            deployment = VALUES[one.deployment]
            is_used = deployment.get("component", {}).get("name") == name and one.attempt != caller
            if is_used and status == "I" and one.state in ("WaitForInService", "SmokeTestAdapter", "PromoteAdapter"):
                upload = deployment["upload"]
                if not self.records(w.items)[upload["adapter"], upload["order"]]["given_up"]:
                    violations.append("I4 a component is deleted under an attempt that is not over")
        return tuple(violations)

    def _s3(self, w: World, operation: str, named: Known) -> tuple[World, int, tuple[str, ...]]:
        key = named.get("Key", "")
        adapter = next((i for i, name in enumerate(self.adapters) if key == f"adapters/{name}.tar.gz"), None)
        if operation == "list_object_versions":
            currents = [(i, self.current(w, i)) for i in range(len(self.adapters))]
            versions = [
                {"Key": f"adapters/{self.adapters[i]}.tar.gz", "IsLatest": True, **self._head(w, version)}
                for i, version in currents
                if version is not None
            ]
            return w, put([{"Versions": versions}]), ()
        if (inline := INLINE.get(("s3", operation))) is not None:
            return w, put(inline), ()
        if adapter is None:
            return w, MISSING, ()
        version = self.current(w, adapter)
        if operation == "head_object":
            if "VersionId" in named:
                wanted = int(named["VersionId"][1:]) - 1
                version = wanted if wanted in w.objects[adapter] else None
            return w, MISSING if version is None else put(self._head(w, version)), ()
        assert operation == "copy_object", operation
        if version is None or self._head(w, version)["ETag"] != named["IfMatch"]:
            return w, put(Refusal("PreconditionFailed", "At least one of the pre-conditions did not hold")), ()
        source = int(named["CopySource"]["VersionId"][1:]) - 1
        if source not in w.objects[adapter]:
            return w, put(Refusal("NoSuchVersion", "The specified version does not exist.")), ()
        w = self._put(w, adapter, w.uploads[source][1])
        return w, put({"VersionId": f"v{len(w.uploads)}"}), ()

    def _head(self, w: World, version: int) -> Known:
        _, content, _, tick = w.uploads[version]
        written = datetime.fromtimestamp(START + tick * TICK_SECONDS, UTC)
        return {"VersionId": f"v{version + 1}", "ETag": content, "LastModified": written, "Metadata": {}}

    def _step_functions(self, w: World, operation: str, named: Known) -> tuple[World, int, tuple[str, ...]]:
        running = {one.attempt for one in w.execs} | {one.attempt for one in w.repairs}
        match operation:
            case "list_executions":
                return w, put([{"executions": [{"executionArn": one.attempt} for one in w.execs]}]), ()
            case "describe_execution":
                attempt = named["executionArn"]
                return w, put({"status": "RUNNING" if attempt in running else "FAILED"}), ()
            case "start_execution":
                name = named["name"]
                if name in running or name in w.ended:
                    return w, put(Refusal("ExecutionAlreadyExists", name)), ()
                return self._started(w, name, json.loads(named["input"])), put({"executionArn": name}), ()
            case _:
                raise AssertionError(operation)

    @staticmethod
    def _started(w: World, attempt: str, event: Known) -> World:
        deployment = put({"version": 1, "attempt": attempt, "event": event})
        return w._replace(execs=tuple(sorted((*w.execs, Exec(attempt, DEPLOY["Begin"]["Next"], deployment)))))

    def _told(self, w: World, named: Known, event: int) -> tuple[World, int, tuple[str, ...]]:
        deployment = VALUES[event]["deployment"]
        upload = deployment.get("upload")
        if upload is None:
            thing = deployment["event"]["detail"]["object"]
            upload = {
                "adapter": thing["key"][len("adapters/") : -len(".tar.gz")],
                "order": order_of(thing["sequencer"]),
            }
        outcome = named["Subject"].split(": ")[1]
        key = (upload["adapter"], upload["order"])
        violations = []
        if self.records(w.items).get(key, {}).get("outcome") != outcome:
            violations.append("I6 an outcome is reported that the registry does not hold")
        if any(one[:2] == key and one[2] != outcome for one in w.told):
            violations.append("I6 two outcomes of one upload are reported")
        return w._replace(told=tuple(sorted({*w.told, (*key, outcome)}))), DONE, tuple(violations)

    # ------------------------------------------------------------ a Lambda
    def ran(
        self, w: World, handler: str, event: int, log: tuple[int, ...], caller: str
    ) -> tuple[World, tuple[int, ...], tuple[str, ...], int | None]:
        """The Lambda makes its next call, and those around it that go with it: (world, its log, violations, the call)."""
        violations: tuple[str, ...] = ()
        last, made = "", None
        now = self.now(w)
        while True:
            action = next_action(handler, event, log, now)
            if action[0] != "call":
                return w, log, violations, made
            kind = kind_of(action[1])
            if last and not _goes_with(last, kind):
                return w, log, violations, made
            operation = VALUES[action[1]][1]
            if handler == "ReportOutcome" and operation in OF_THE_REPORT:
                log = (*log, OF_THE_REPORT[operation])
                continue
            w, answer, more = self.call(w, action[1], caller, event)
            log, violations = (*log, answer), violations + more
            if kind != "inline":
                last, made = kind, action[1]

    # ------------------------------------------------------------ executions of DeployAdapter
    @staticmethod
    def _with_exec(w: World, old: Exec, new: Exec | None) -> World:
        others = [one for one in w.execs if one is not old]
        return w._replace(execs=tuple(sorted([*others, new] if new else others)))

    def _end(self, w: World, one: Exec) -> World:
        w = self._with_exec(w, one, None)
        return w._replace(ended=tuple(sorted((*w.ended, one.attempt)))) if one.attempt.startswith("heal-") else w

    def goto(self, w: World, one: Exec, state: str, deployment: int, report: int = NOTHING) -> World:
        """The execution moves on to `state`, and through everything that calls nobody, until it must call or wait."""
        key = (state, deployment, report, w.uploads)
        if (following := self._following.get(key)) is None:
            following = self._following[key] = self._next_task(w, state, VALUES[deployment], VALUES[report])
        if not following[0]:
            return self._end(w, one)
        return self._with_exec(w, one, Exec(one.attempt, *following))

    def _next_task(self, w: World, state: str, deployment: Known, report: Known) -> tuple[str, int]:
        while True:
            body = DEPLOY[state]
            match body["Type"]:
                case "Succeed" | "Fail":
                    return "", NOTHING
                case "Choice":
                    chosen = (
                        c["Next"] for c in body["Choices"] if CONDITIONS[bare(c["Condition"])](deployment, report)
                    )
                    state = next(chosen, body["Default"])
                case "Wait":
                    state = body["Next"]
                case "Task" if state == "ValidateAdapter":
                    deployment = deployment | self._validated(w, deployment)
                    state = body["Next"]
                case "Task":
                    return state, put(deployment)
                case other:
                    raise AssertionError(other)

    def _validated(self, w: World, deployment: Known) -> Known:
        upload = deployment["upload"]
        content = w.uploads[int(upload["version_id"][1:]) - 1][1]
        if content == "x":
            problem = Problem(ProblemCode.UPLOAD_EMPTY, "There is nothing in it.")
            return {"validation": ValidationReport.rejected(problem).to_dict()}
        sha256 = content * 64
        key = f"releases/{upload['adapter']}/{sha256}.tar.gz"
        release = {"sha256": sha256, "bucket": RELEASES, "key": key, "manifest_key": "m"}
        return {"validation": ValidationReport(accepted=True, problems=()).to_dict(), "release": release}

    def _event_of(self, one: Exec) -> int:
        if (event := self._events.get(one.deployment)) is None:
            event = self._events[one.deployment] = put({"deployment": VALUES[one.deployment]})
        return event

    def _assigned(self, state: str, deployment: int, found: int | str) -> tuple[int, int]:
        """(deployment, report) after a task has returned a value, or an error was caught."""
        key = (state, deployment, found)
        if key not in self._assignments:
            is_error = isinstance(found, str)
            # Which fault it was decides nothing, but for one.
            error = {"Error": found if found == "EndpointFull" else "Fault", "Cause": ""}
            body = DEPLOY[state]["Catch"][0] if is_error else DEPLOY[state]
            value = error if isinstance(found, str) else VALUES[found]
            name, after = assigned(body, VALUES[deployment], value)
            self._assignments[key] = (put(after), NOTHING) if name == "deployment" else (deployment, put(after))
        return self._assignments[key]

    def _caught(self, w: World, one: Exec, error: str) -> World:
        return self.goto(
            w, one, DEPLOY[one.state]["Catch"][0]["Next"], *self._assigned(one.state, one.deployment, error)
        )

    def _settled(self, w: World, one: Exec, now: int) -> Iterator[tuple[str, str | None, World]]:
        """After its Lambda has had an answer: the execution goes on if the Lambda has ended. (note, fault, world)."""
        action = next_action(one.state, self._event_of(one), one.log, now)
        if action[0] == "call":
            yield "", None, w
            return
        if action[0] == "return":
            after = self._assigned(one.state, one.deployment, action[1])
            yield "", None, self.goto(w, one, DEPLOY[one.state]["Next"], *after)
            return
        _, error, message = action
        if not is_retried(DEPLOY[one.state], error):
            yield f"{error}: {message[:60]}", None, self._caught(w, one, error)
            return
        yield f"{error}, retried", None, self._with_exec(w, one, one._replace(log=()))
        yield f"{error}, retries used up", "exhausted", self._caught(w, one, error)

    def _steps_of(self, w: World, one: Exec) -> Iterator[Move]:
        if one.state == "SmokeTestAdapter":
            yield from self._smoke_tested(w, one)
            return
        event = self._event_of(one)
        now = self.now(w)
        name = VALUES[one.deployment].get("component", {}).get("name")
        status = next((c[1] for c in w.components if c[0] == name), None)
        if one.state == "WaitForInService" and status == "C":
            # It polls again later, and nothing is different then. But its deadline may be over.
            if w.budget[0] and "deadline" in self.kinds:
                yield Move((one.attempt, one.state, "not in service in time"), "deadline", self._caught(w, one, "Late"))
                yield Move((one.attempt, one.state, "aborted"), "abort", self._end(w, one))
            return
        before = one.log
        after, log, violations, request = self.ran(w, one.state, event, before, one.attempt)
        answered = one._replace(log=log)
        base = self._with_exec(after, one, answered)
        for note, fault, settled in self._settled(base, answered, now):
            yield Move((one.attempt, one.state, request, note), fault, settled, violations)
        if not w.budget[0] or request is None:
            return
        retried = one._replace(log=())
        label = (one.attempt, one.state, request)
        if is_retried(DEPLOY[one.state], "Lambda.Unknown"):
            again = self._with_exec(after, one, retried)
            yield Move((*label, "the answer is lost, retried"), "crash, retried", again, violations)
        caught = self._caught(self._with_exec(after, one, one), one, "Lambda.Unknown")
        yield Move((*label, "the answer is lost, retries used up"), "crash, caught", caught, violations)
        zombie = (one.state, event, before, one.attempt)
        left = w._replace(zombies=tuple(sorted((*w.zombies, zombie))))
        if is_retried(DEPLOY[one.state], "States.Timeout"):
            yield Move((*label, "hangs; retried meanwhile"), "zombie", self._with_exec(left, one, retried))
        yield Move((*label, "hangs; States.Timeout"), "zombie", self._caught(left, one, "States.Timeout"))
        yield Move((*label, "the execution is aborted after it"), "abort", self._end(after, one), violations)
        yield Move((*label, "the execution is aborted before it"), "abort", self._end(w, one))
        yield Move((*label, "the execution is aborted, its Lambda goes on"), "zombie", self._end(left, one))
        yield Move((*label, "fails for good"), "gave up", self._caught(w, one, "Refused"))
        if VALUES[request][1] == "create_inference_component":
            yield Move((*label, "the endpoint is full"), "endpoint full", self._caught(w, one, "EndpointFull"))
        if VALUES[request][1] == "publish":
            yield Move((*label, "the topic refuses"), "not reported", self._caught(w, one, "OutcomeNotReported"))

    def _smoke_tested(self, w: World, one: Exec) -> Iterator[Move]:
        known = VALUES[one.deployment]
        name, sha256 = known["component"]["name"], known["release"]["sha256"]
        found = next((c for c in w.components if c[0] == name), None)
        label = (one.attempt, one.state)
        following = DEPLOY[one.state]["Next"]
        if found is None or found[1] != "I":
            yield Move((*label, "refused"), None, self._caught(w, one, "InvocationRefused"))
            return

        def with_result(world: World, *, passed: bool) -> World:
            smoke = {"passed": passed, "summary": "s", "prompts": 1, "adapter_ms": 1, "base_ms": 1}
            return self.goto(world, one, following, put(known | {"smoke": smoke}))

        is_good = not sha256.startswith("d")
        proven = self._with_component(w, name, (name, "I", True, *found[3:])) if is_good else w
        yield Move((*label, "passed" if is_good else "not passed"), None, with_result(proven, passed=is_good))
        if w.budget[0]:
            yield Move((*label, "not passed: a bad moment"), "smoke flake", with_result(w, passed=False))
            yield Move((*label, "aborted"), "abort", self._end(w, one))

    # ------------------------------------------------------------ passes of ReconcileFleet
    def _looking(self, w: World, adapter: int, removed_by: int | None) -> World:
        attempt = f"r{self.budget[2] - w.budget[2]}" if removed_by is None else f"r-{removed_by}"
        event = {
            "adapter": self.adapters[adapter],
            "wanted": [],
            "removed_by": sequencer(removed_by) if removed_by is not None else "",
            "attempt": attempt,
        }
        return w._replace(repairs=tuple(sorted((*w.repairs, Repair(attempt, put(event))), key=_sortable)))

    @staticmethod
    def _with_repair(w: World, old: Repair, new: Repair | None) -> World:
        others = [one for one in w.repairs if one is not old]
        return w._replace(repairs=tuple(sorted([*others, new] if new else others, key=_sortable)))

    def _steps_of_repair(self, w: World, one: Repair) -> Iterator[Move]:
        handler = "RepairAdapter" if one.reports is None else "ReportOutcome"
        body = REPAIR["RepairAdapter"] if one.reports is None else REPORT
        event = one.event if one.reports is None else put({"deployment": VALUES[one.reports[0]]})
        after, log, violations, request = self.ran(w, handler, event, one.log, one.attempt)
        label = (one.attempt, handler, request)

        def reported(world: World, reports: tuple[int, ...]) -> World:
            return self._with_repair(world, one, one._replace(reports=reports, log=()) if reports else None)

        action = next_action(handler, event, log, self.now(w))
        match action[0]:
            case "call":
                yield Move(label, None, self._with_repair(after, one, one._replace(log=log)), violations)
            case "return" if one.reports is None:
                reports = tuple(put(report) for report in VALUES[action[1]]["reports"])
                yield Move(label, None, reported(after, reports), violations)
            case "return":
                yield Move(label, None, reported(after, one.reports[1:]), violations)  # type: ignore[index]
            case _ if is_retried(body, action[1]):
                retried = self._with_repair(after, one, one._replace(log=()))
                yield Move((*label, f"{action[1]}, retried"), None, retried, violations)
                given_up = self._with_repair(after, one, None)
                yield Move((*label, f"{action[1]}, retries used up"), None, given_up, violations)
            case _:
                yield Move((*label, action[1]), None, self._with_repair(after, one, None), violations)
        if w.budget[0] and request is not None:
            again = self._with_repair(after, one, one._replace(log=()))
            if is_retried(body, "Lambda.Unknown"):
                yield Move((*label, "the answer is lost, retried"), "crash, retried", again, violations)
            yield Move((*label, "it ends after it"), "abort", self._with_repair(after, one, None), violations)
            zombie = (handler, event, one.log, one.attempt)
            left = w._replace(zombies=tuple(sorted((*w.zombies, zombie))))
            yield Move((*label, "hangs; it ends"), "zombie", self._with_repair(left, one, None))

    def reconciled(self, w: World) -> tuple[World, tuple[str, ...]]:
        """Nothing moves by itself any more: time passes, and ReconcileFleet looks at everything, alone."""
        w = w._replace(tick=w.tick + 1, zombies=())
        w, plan, violations = self._alone(w, "PlanRepairs", {"scope": {}, "after": ""}, "reconciler")
        for repair in plan["repairs"] if plan else []:
            event = {"removed_by": "", "attempt": f"t{w.tick}", **repair}
            w, done, more = self._alone(w, "RepairAdapter", event, "reconciler")
            violations += more
            for report in done["reports"] if done else []:
                w, _, more = self._alone(w, "ReportOutcome", {"deployment": report}, "reconciler")
                violations += more
        return w, violations

    def _alone(self, w: World, handler: str, event: Known, caller: str) -> tuple[World, Any, tuple[str, ...]]:
        number, log, violations = put(event), (), ()
        log: tuple[int, ...]
        while True:
            w, log, more, _ = self.ran(w, handler, number, log, caller)
            violations += more
            action = next_action(handler, number, log, self.now(w))
            if action[0] == "return":
                return w, VALUES[action[1]], violations
            if action[0] == "error":
                return w, None, (*violations, f"the reconciler alone fails in {handler}: {action[1]}")

    # ------------------------------------------------------------ everything that can happen
    def moves(self, w: World) -> tuple[list[Move], bool]:
        """Every move; and whether the world is at rest: nothing happens by itself, and the reconciler finds nothing to do."""
        if self.is_reduced and (alone := self._of_nobody_elses_concern(w)):
            return alone, False
        found = list(self._by_itself(w))
        is_quiet = not any(one.fault is None and one.after != w for one in found)
        found += self._by_chance(w)
        faults = w.budget[0]
        moves = []
        for one in found:
            if one.fault is None:
                moves.append(one)
            elif faults and one.fault in self.kinds:
                after = one.after._replace(budget=(faults - 1, *one.after.budget[1:]))
                moves.append(one._replace(after=after))
        is_at_rest = False
        if is_quiet:
            after, violations = self.reconciled(w)
            is_at_rest = after._replace(tick=w.tick, zombies=w.zombies) == w
            after = w if is_at_rest else after
            moves.append(Move(("time passes, the reconciler looks",), None, after, violations))
        return [one for one in moves if one.after != w or one.violations], is_at_rest

    def _of_nobody_elses_concern(self, w: World) -> list[Move]:
        """Moves of one execution that commute with all others: where there are some, only they are explored.

        Partial order reduction. While nobody looks at the fleet and nothing fails any more, what an attempt does with its
        own component, and with its own report, is read by nobody else. test_checker.py compares it with the whole.
        """
        faults, _, looks, ticks = w.budget
        if faults or looks or ticks or w.repairs or w.zombies:
            return []
        for one in w.execs:
            if one.state == "WaitForInService":
                name = VALUES[one.deployment]["component"]["name"]
                making = next((c for c in w.components if c[0] == name and c[1] == "C"), None)
                moves = list(self._of_component(w, making) if making else self._steps_of(w, one))
            elif one.state in ("CreateComponent", "ReportOutcome"):
                action = next_action(one.state, self._event_of(one), one.log, self.now(w))
                if action[0] != "call" or VALUES[action[1]][1] not in OF_ONE_ATTEMPT:
                    continue
                moves = list(self._steps_of(w, one))
            else:
                continue
            moves = [move for move in moves if move.fault is None]
            if len(moves) == 1 and moves[0].after != w:
                return moves
        return []

    def _by_itself(self, w: World) -> Iterator[Move]:
        if w.script < len(self.script):
            yield Move(("bucket", self.script[w.script][1]), None, self.acted(w))
        for event in w.events:
            kind, of, number = event
            rest = w._replace(events=tuple(one for one in w.events if one != event))
            if kind == "uploaded":
                yield Move(("event of", f"v{of + 1}={w.uploads[of][1]}"), None, self._deployed(rest, of))
            else:
                yield Move(("event of a deletion",), None, self._looking(rest, of, number))
            yield Move(("event", kind, f"{of + 1}", "is lost"), "event lost", rest)
        for one in w.execs:
            yield from self._steps_of(w, one)
        for repair in w.repairs:
            yield from self._steps_of_repair(w, repair)
        for zombie in w.zombies:
            handler, event, log, caller = zombie
            others = tuple(one for one in w.zombies if one is not zombie)
            after, log, violations, request = self.ran(w, handler, event, log, caller)
            if request is None:
                yield Move(("zombie", handler, "ends"), None, w._replace(zombies=others))
                continue
            after = after._replace(zombies=tuple(sorted((*others, (handler, event, log, caller)))))
            yield Move(("zombie of", caller, handler, request), None, after, violations)
        for component in w.components:
            yield from self._of_component(w, component)

    def _of_component(self, w: World, component: tuple[str, str, bool, int, str]) -> Iterator[Move]:
        name, status, proven, *rest = component
        if status == "I" and not w.budget[0]:
            return
        broken = tuple(sorted({*w.broken, name}))
        failed = self._with_component(w, name, (name, "F", False, *rest), broken=broken)  # type: ignore[arg-type]
        match status:
            case "C":
                serving = self._with_component(w, name, (name, "I", proven, *rest))  # type: ignore[arg-type]
                yield Move(("SageMaker", name, "is InService"), None, serving)
                yield Move(("SageMaker", name, "FAILED"), "component failed", failed)
            case "D":
                yield Move(("SageMaker", name, "is gone"), None, self._with_component(w, name, None))
            case "I":
                yield Move(("SageMaker", name, "FAILED after InService"), "failed after InService", failed)
                by_hand = self._with_component(w, name, (name, "D", False, *rest), broken=broken)  # type: ignore[arg-type]
                yield Move(("somebody", name, "deleted by hand"), "deleted by hand", by_hand)

    def _deployed(self, w: World, version: int) -> World:
        starts = w.starts[version] + 1
        w = w._replace(starts=(*w.starts[:version], starts, *w.starts[version + 1 :]))
        return self._started(w, f"v{version + 1}.{starts}", self.object_event(w, version))

    def _by_chance(self, w: World) -> list[Move]:
        faults, repeats, looks, ticks = w.budget
        found = []
        if repeats:
            less = w._replace(budget=(faults, repeats - 1, looks, ticks))
            for version, started in enumerate(w.starts):
                if started:
                    found.append(Move(("event of", f"v{version + 1}", "AGAIN"), None, self._deployed(less, version)))
        if looks:
            less = w._replace(budget=(faults, repeats, looks - 1, ticks))
            for adapter in range(len(self.adapters)):
                found.append(
                    Move(("the reconciler looks at", self.adapters[adapter]), None, self._looking(less, adapter, None))
                )
        # No Lambda outlives a tick, and no event is as late.
        is_idle = not w.events and not w.repairs and all(not one.log for one in w.execs)
        if ticks and is_idle:
            later = w._replace(budget=(faults, repeats, looks, ticks - 1), tick=w.tick + 1, zombies=())
            found.append(Move(("time passes",), None, later))
        return found

    # ------------------------------------------------------------ what must hold
    def violations(self, w: World) -> tuple[str, ...]:
        """Of the invariants that hold in every state."""
        components = {one[0]: one for one in w.components}
        entries, lives = self.entries(w.items), self.lives(w.items)
        found = list(self._of_the_registry(w.items))
        for live in lives.values():
            if "component" not in live:
                continue
            name = live["component"]
            if entries.get(name, {}).get("state") != ComponentState.LIVE:
                found.append(f"I1 what is live is {entries.get(name, {}).get('state', 'unknown')} in the registry")
            component = components.get(name)
            is_serving = component is not None and component[1] == "I" and component[2]
            if not is_serving and name not in w.broken:
                status = component[1] if component else "gone"
                found.append(f"I1 live names a component that is not proven or not in service ({status})")
            if live["floor"] != live["order"]:
                found.append("I5 the floor is not the order of what is live")
        return tuple(found)

    def _of_the_registry(self, items: int) -> tuple[str, ...]:
        if items not in self._checked:
            found = []
            pointed = {live["component"] for live in self.lives(items).values() if "component" in live}
            if any(one["state"] == ComponentState.LIVE and n not in pointed for n, one in self.entries(items).items()):
                found.append("I1 a component is marked as live that no pointer names")
            for record in self.records(items).values():
                outcome = record.get("outcome")
                if outcome and not is_removal(record) and record["promoted"] != (outcome == Outcome.DEPLOYED):
                    found.append(
                        f"I6 an upload is {outcome}, and it was {'' if record['promoted'] else 'not '}promoted"
                    )
            self._checked[items] = tuple(found)
        return self._checked[items]

    def violations_at_rest(self, w: World) -> tuple[str, ...]:
        """Of those that hold when nothing moves any more and the reconciler finds nothing to do."""
        components = {one[0]: one for one in w.components}
        entries, records, lives = self.entries(w.items), self.records(w.items), self.lives(w.items)
        found = []
        for name, component in components.items():
            state = entries.get(name, {}).get("state", "unknown")
            if state not in (ComponentState.LIVE, ComponentState.STANDBY) or component[1] != "I":
                found.append(f"I3 a component is left over: {state}, {STATUS[component[1]]}")
        for name, entry in entries.items():
            if entry["state"] != ComponentState.LIVE:
                found.append(f"I3 an entry is left over: {entry['state']}")
            elif components.get(name, ("", ""))[1] != "I":
                found.append("I3 what is live is not healed")
        for key, record in records.items():
            told = [one[2] for one in w.told if one[:2] == key]
            if told != [record.get("outcome")] or not record["is_reported"]:
                found.append(f"I6 an upload whose outcome {record.get('outcome')} was reported as {told}")
        for version, (adapter, _, number, _) in enumerate(w.uploads):
            is_known = (self.adapters[adapter], order_of(sequencer(number))) in records
            # One whose execution was aborted before it could claim it was reported as an execution that ended.
            if version == self.current(w, adapter) and not is_known:
                found.append("I6 the current upload has no outcome")
        for adapter, name in enumerate(self.adapters):
            found += self._of_adapter(w, adapter, lives.get(name, {"floor": ""}), records)
        return tuple(found)

    def _of_adapter(self, w: World, adapter: int, live: Known, records: Known) -> Iterator[str]:
        """I2: the newest good upload is live, or it was removed since, or its failure was reported."""
        current, name = self.current(w, adapter), self.adapters[adapter]
        if current is None:
            if "component" in live:
                yield "I2 something is live although its tarball was deleted"
            return
        if live.get("version_id") == f"v{current + 1}":
            return
        order = order_of(sequencer(w.uploads[current][2]))
        outcome = records.get((name, order), {}).get("outcome", "no outcome")
        if outcome not in (Outcome.FAILED, Outcome.WAITING, Outcome.REJECTED):
            yield f"I2 the newest upload is not live; it was reported {outcome}"
        if self.is_deleted_from:
            return  # what was superseded may have been so by a deletion
        for (other, older), record in records.items():
            if (
                other == name
                and older > live["floor"]
                and record["outcome"] == Outcome.SUPERSEDED
                and "heals" not in record
            ):
                yield "I2 an upload was superseded by nothing that is live"

    def shown(self, label: tuple[Any, ...]) -> str:
        """A move for who reads a trace."""
        return " ".join(shown_request(part) if isinstance(part, int) else str(part) for part in label if part)


def is_removal(record: Known) -> bool:
    return record.get("outcome") == Outcome.REMOVED


def _goes_with(last: str, kind: str) -> bool:
    """Whether a call may be part of the move of the one before it: reads of one service together, before what they decide."""
    if kind == "inline":
        return True
    if last.startswith("read"):
        return kind == last or (last, kind) == ("read of registry", "write of registry")
    return (last, kind) == ("write of registry", "read of registry")


def _sortable(one: Repair) -> tuple[Any, ...]:
    return one.attempt, one.event, one.reports or (), one.reports is None, one.log


def sequencer(number: int) -> str:
    return f"{0x10 + number:018X}"


def described(component: tuple[str, str, bool, int, str]) -> Known:
    name, status, _, tick, url = component
    return {
        "InferenceComponentName": name,
        "InferenceComponentArn": f"arn/{name}",
        "InferenceComponentStatus": STATUS[status],
        "CreationTime": datetime.fromtimestamp(START + tick * TICK_SECONDS, UTC),
        "EndpointName": ENDPOINT,
        "Specification": {"BaseInferenceComponentName": BASE, "Container": {"ArtifactUrl": url}},
    }


def shown_request(request: int) -> str:
    service, operation, arguments, named = VALUES[request]
    what = named.get("InferenceComponentName") or named.get("Key") or named.get("executionArn") or ""
    if service == "registry":
        what = " ".join(re.sub(r"^0{20,}", "", str(one)) for one in arguments[1:] if isinstance(one, str))
    return f"{operation} {what}".strip()
