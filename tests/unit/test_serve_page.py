"""What the page asks its server, on moto; the browser itself is in tests/local/test_serve_page.py."""

import asyncio
import functools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import boto3
import pytest
from starlette.testclient import TestClient

from loradrop.lifecycle import AdapterState, ComponentEntry, ComponentState, Live, Outcome, UploadRecord
from loradrop.registry_items import record_item, state_item
from loradrop_cli.connection import Connection
from loradrop_cli.main import MAX_DEPLOYMENT_SECONDS, MAX_REMOVAL_SECONDS
from loradrop_client import Adapters, StackOutputs
from loradrop_serve.app import application
from loradrop_serve.door import Door, Models
from loradrop_serve.executions_view import execution_document, graph_of
from loradrop_serve.fleet_view import MAX_HELD_EVENTS, Broadcast, FleetView
from loradrop_serve.metrics import Metrics
from loradrop_serve.page import COMMAND_SECONDS, TOKEN_HEADER, Page
from tests.adapters import good_tarball, wrapped_tarball

from .conftest import BASE, ENDPOINT, REGION, TABLE

HOSTILE = "<img src=x onerror=alert(1)>"
MACHINE = f"arn:aws:states:{REGION}:123456789012:stateMachine:DeployAdapter"
OUTPUTS = {
    "RegistryTable": TABLE,
    "EndpointName": ENDPOINT,
    "BaseComponentName": BASE,
    "ReleaseBucketName": "releases",
    "UploadBucketName": "uploads",
    "UploadUri": "s3://uploads/adapters/",
    "StateMachineArn": MACHINE,
    "ReconcileFleetArn": MACHINE.replace("DeployAdapter", "ReconcileFleet"),
}
PARAMETERS = {"BaseProfile": "tiny-llama", "MaxLoraRank": "16", "EngineVersion": "0.26.0", "MaxUploadMegabytes": "1"}
DEPLOYED = UploadRecord(
    order="1",
    attempt=f"{MACHINE.replace(':stateMachine:', ':execution:')}:one",
    bucket="uploads",
    key="adapters/acme.tar.gz",
    version_id="v1",
    requester=HOSTILE,
    uploaded_at="2026-01-02T03:04:00Z",
    promoted=True,
    outcome=Outcome.DEPLOYED,
    is_reported=True,
    release="1111aaaa" * 8,
    summary="acme is live.",
    entry=json.dumps(
        {
            "smoke": {"summary": "2 of 2 smoke prompts answered.", "answers": "s3://releases/smoke/acme/1.json"},
            "release": {"manifest_key": "releases/acme/1.json"},
        }
    ),
    figures={"finished_at": "2026-01-02T03:04:05Z", "smoke_prompts": 2, "adapter_ms": 30, "base_ms": 27},
)
ENTRY = ComponentEntry("attempt", "1", DEPLOYED.release or "", ENDPOINT, BASE, ComponentState.LIVE)
LIVE = Live("acme-1", ENDPOINT, BASE, DEPLOYED.release or "", "1", "v1", "2026-01-02T03:04:05Z")
STATE = AdapterState(2, "1", LIVE, {"acme-1": ENTRY})


@functools.cache
def session_of(_aws: Any) -> boto3.Session:
    """One for all tests: it keeps the services' descriptions, which take long to read."""
    return boto3.Session()


class Site:
    def __init__(self, stack: Any, aws: Any, *, parameters: dict[str, str] = PARAMETERS, **settings: Any) -> None:
        self.stack, self.aws = stack, aws
        session = session_of(aws)
        self.connection = Connection(StackOutputs("loradrop", OUTPUTS, parameters), session)
        # No rule starts an execution on moto.
        self.page = Page(self.connection, start_seconds=0, **settings)
        door = Door(
            Adapters(registry_table=TABLE, session=session), Models(self.connection.registry), Metrics(), max_requests=1
        )
        self.app = application(door, self.page)

    def put(self, name: str, state: AdapterState, *records: UploadRecord) -> None:
        self.stack.dynamodb.put_item(TableName=TABLE, Item=state_item(name, state))
        for record in records:
            self.stack.dynamodb.put_item(TableName=TABLE, Item=record_item(name, record))

    def client(self) -> TestClient:
        return TestClient(self.app, base_url="http://127.0.0.1:8080")


@pytest.fixture
def site(stack: Any, aws: Any) -> Site:
    site = Site(stack, aws)
    site.put("acme", STATE, DEPLOYED)
    return site


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    with site.client() as client:
        yield client


def token(client: TestClient) -> dict[str, str]:
    return {TOKEN_HEADER: client.get("/api/session").json()["token"]}


# The files


def test_the_page_asks_nothing_of_other_sites_and_has_nothing_inline(client: TestClient) -> None:
    page, script, style = (client.get(path) for path in ("/", "/page.js", "/page.css"))
    assert [one.headers["content-type"].partition(";")[0] for one in (page, script, style)] == [
        "text/html",
        "text/javascript",
        "text/css",
    ]
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for text in (page.text, script.text, style.text):
        found = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text))
        assert found <= {"http://www.w3.org"}, found  # the name of SVG, which nobody asks
    assert not re.search(r"<style|<script(?! src=)|\son\w+=|\sstyle=|javascript:", page.text)


def test_what_comes_from_the_stack_becomes_text_and_nothing_else() -> None:
    script = files("loradrop_serve").joinpath("static/page.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc", script)


def test_a_link_of_another_site_leads_to_the_page_and_to_nothing_else(client: TestClient) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/", headers=link | {"sec-fetch-mode": "cors"}).status_code == 403
    assert client.get("/", headers=link | {"origin": "https://evil.example"}).status_code == 403
    assert client.get("/api/session", headers=link).status_code == 403
    assert client.post("/", headers=link).status_code == 403


# What is


def test_a_row_has_what_the_registry_knows(site: Site) -> None:
    view = FleetView(site.connection)
    [row], gone = view.refresh()
    assert gone == []
    assert row["name"] == "acme"
    assert (row["state"], row["since"], row["live_release"]) == ("live", LIVE.since, LIVE.release)
    assert (row["adapter_ms"], row["base_ms"], row["proof"]) == (30, 27, "2 of 2 smoke prompts answered.")
    assert row["history"] == [["deployed", "2026-01-02T03:04:05Z"]]
    assert row["requester"] == HOSTILE


def test_only_what_changed_is_read_again(site: Site) -> None:
    calls: list[str] = []
    view = FleetView(site.connection)
    view.refresh()
    events = site.connection.registry._client.meta.events
    events.register("before-call.dynamodb", lambda model, params, **_: calls.append(params["body"].decode()))
    assert view.refresh() == ([], [])
    assert [call for call in calls if "watched" not in call] == []
    site.put("acme", replace(STATE, revision=3), DEPLOYED)
    site.put("globex", AdapterState(1), replace(DEPLOYED, outcome=Outcome.REJECTED, summary=f"no\n{HOSTILE}"))
    changed, _ = view.refresh()
    assert {row["name"]: row["state"] for row in changed} == {"acme": "live", "globex": "rejected"}
    site.stack.dynamodb.delete_item(TableName=TABLE, Key={"adapter": {"S": "acme"}, "record": {"S": "state"}})
    assert view.refresh() == ([], ["acme"])
    assert list(view.rows) == ["globex"]


def test_pages_hear_of_changes_and_who_does_not_listen_is_let_go(site: Site) -> None:
    async def scenario() -> None:
        class Still(FleetView):
            def stack(self) -> dict[str, Any]:
                return {"stack": "loradrop"}

        broadcast = Broadcast(Still(site.connection), ThreadPoolExecutor(1))
        first, second = broadcast.events(), broadcast.events()
        event = await asyncio.wait_for(anext(first), 10)
        assert event.startswith(b"event: fleet\n")
        assert json.loads(event.partition(b"data: ")[2])["rows"][0]["name"] == "acme"
        assert (await asyncio.wait_for(anext(first), 10)).startswith(b"event: stack\n")
        # Who comes later has all of it at once.
        late = json.loads((await asyncio.wait_for(anext(second), 10)).partition(b"data: ")[2])
        assert late["whole"]
        assert late["rows"][0]["name"] == "acme"
        for number in range(MAX_HELD_EVENTS + 2):
            broadcast._send("stack", {"number": number})
        assert len([one async for one in first]) < MAX_HELD_EVENTS  # it ends
        await second.aclose()
        assert broadcast._lookers == set()

    asyncio.run(scenario())


def test_pages_hear_of_any_trouble_and_the_fleet_is_read_on(site: Site) -> None:
    async def scenario() -> None:
        class Odd(FleetView):
            def refresh(self) -> Any:
                raise KeyError("a record as nobody expected it")

        broadcast = Broadcast(Odd(site.connection), ThreadPoolExecutor(1))
        events = broadcast.events()
        assert (await asyncio.wait_for(anext(events), 10)).startswith(b"event: trouble\n")
        assert broadcast._poller is not None
        await asyncio.wait([broadcast._poller], timeout=0.05)
        assert not broadcast._poller.done()
        await events.aclose()
        broadcast._poller.cancel()

    asyncio.run(scenario())


def test_an_adapter_is_shown_with_its_history(site: Site, client: TestClient) -> None:
    found = client.get("/api/adapter", params={"name": "acme"}).json()
    assert found["live"]["component"] == "acme-1"
    assert found["live"]["status"] == "missing"
    [upload] = found["uploads"]
    assert (upload["outcome"], upload["live"], upload["has_answers"]) == ("deployed", True, True)
    assert found["commands"]["rollback"] == "loradrop rollback acme --stack loradrop"
    assert client.get("/api/adapter", params={"name": "nobody"}).status_code == 404
    assert client.get("/api/adapter", params={"name": HOSTILE}).status_code == 400


def test_problems_come_with_their_fixes(site: Site, client: TestClient) -> None:
    import io

    from loradrop.profile import load_profile
    from loradrop.validator import validate

    report = validate(io.BytesIO(wrapped_tarball()), load_profile("tiny-llama"))
    rejected = replace(
        DEPLOYED, order="2", outcome=Outcome.REJECTED, entry=json.dumps({"validation": report.to_dict()})
    )
    site.put("globex", AdapterState(1), rejected)
    [upload] = client.get("/api/adapter", params={"name": "globex"}).json()["uploads"]
    [problem] = upload["report"]["problems"]
    assert problem["code"] == "WRAPPING_FOLDER"
    assert problem["commands"][0].startswith("mkdir unpacked && aws s3 cp s3://uploads/adapters/acme.tar.gz -")


def test_answers_and_manifest_are_read_from_the_release_bucket_alone(site: Site, client: TestClient) -> None:
    asked = {"name": "acme", "order": "1"}
    assert client.get("/api/document", params=asked | {"kind": "smoke"}).status_code == 404
    site.stack.s3.put_object(Bucket="releases", Key="smoke/acme/1.json", Body=b'{"prompts": []}')
    site.stack.s3.put_object(Bucket="releases", Key="releases/acme/1.json", Body=b'{"accepted": true}')
    assert client.get("/api/document", params=asked | {"kind": "smoke"}).json() == {"prompts": []}
    assert client.get("/api/document", params=asked | {"kind": "manifest"}).json() == {"accepted": True}
    assert client.get("/api/document", params=asked | {"kind": "../secret"}).status_code == 400
    assert client.get("/api/document", params=asked | {"order": "9", "kind": "smoke"}).status_code == 404


def test_only_the_stacks_own_executions_are_shown(client: TestClient) -> None:
    other = MACHINE.replace(":stateMachine:DeployAdapter", ":execution:Other:one")
    assert client.get("/api/execution", params={"arn": other}).status_code == 404
    assert client.get("/api/execution", params={"arn": f"{other.replace('Other', 'DeployAdapter')}"}).status_code == 404
    assert client.get("/api/executions").status_code == 502  # moto has no ReconcileFleet here


class Machine:
    """Step Functions' answers on one execution."""

    def __init__(self, events: list[dict[str, Any]], status: str = "SUCCEEDED") -> None:
        self.events, self.status = events, status
        self.began = datetime(2026, 1, 2, tzinfo=UTC)

    def describe_execution(self, **_: Any) -> dict[str, Any]:
        ended = {} if self.status == "RUNNING" else {"stopDate": self.began + timedelta(seconds=9)}
        return {"name": "one", "status": self.status, "startDate": self.began, "output": '{"message": "done"}', **ended}

    def describe_state_machine_for_execution(self, **_: Any) -> dict[str, Any]:
        return {"stateMachineArn": MACHINE, "definition": '{"StartAt": "A", "States": {"A": {"Type": "Succeed"}}}'}

    def get_paginator(self, _: str) -> Any:
        return self

    def paginate(self, **_: Any) -> list[dict[str, Any]]:
        return [{"events": [one | {"timestamp": self.began + timedelta(seconds=one["at"])} for one in self.events]}]


def entered(number: int, at: float, name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "at": at, "type": "TaskStateEntered", "stateEnteredEventDetails": {"name": name}, **more}


def left(number: int, at: float, name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "at": at, "type": "TaskStateExited", "stateExitedEventDetails": {"name": name}, **more}


def test_an_execution_is_its_states_with_times_tries_and_failures() -> None:
    failed = {"error": "Throttled", "cause": json.dumps({"errorMessage": HOSTILE})}
    machine = Machine(
        [
            entered(1, 0, "A"),
            {"id": 2, "at": 0, "type": "TaskScheduled"},
            {"id": 3, "at": 1, "type": "TaskFailed", "taskFailedEventDetails": failed},
            {"id": 4, "at": 2, "type": "TaskScheduled"},
            left(5, 3, "A"),
            entered(6, 3, "B"),
            {"id": 7, "at": 3, "type": "TaskScheduled"},
            {"id": 8, "at": 4, "type": "TaskFailed", "taskFailedEventDetails": failed},
            left(9, 4, "B"),
            entered(10, 4, "C"),
        ],
        "RUNNING",
    )
    found = execution_document(machine, "arn:one")
    states = found["states"]
    assert {name: (one["status"], one["tries"]) for name, one in states.items()} == {
        "A": ("done", 2),
        "B": ("failed", 1),
        "C": ("running", 0),
    }
    assert (states["A"]["entered"], states["A"]["left"]) == (0, 3)
    assert states["B"]["failure"] == f"Throttled: {HOSTILE}"
    assert (found["seconds"], found["cause"]) == (None, "done")


def test_events_of_iterations_that_run_at_once_belong_to_the_event_before_them() -> None:
    machine = Machine(
        [
            entered(1, 0, "A", previousEventId=0),
            entered(2, 0, "B", previousEventId=0),
            {"id": 3, "at": 1, "type": "TaskScheduled", "previousEventId": 1},
            {"id": 4, "at": 1, "type": "TaskScheduled", "previousEventId": 3},
        ],
        "ABORTED",
    )
    states = execution_document(machine, "arn:one")["states"]
    assert {name: (one["tries"], one["left"], one["status"]) for name, one in states.items()} == {
        "A": (2, 9, "failed"),
        "B": (0, 9, "failed"),
    }


def test_the_graph_is_the_machines_own() -> None:
    import yaml

    definition = yaml.safe_load((Path(__file__).parents[2] / "statemachine/deploy_adapter.asl.yaml").read_text())
    graph = graph_of(definition)
    assert graph["start"] == "Begin"
    assert set(graph["states"]) == set(definition["States"])
    ways = {name: [way for way, _ in one["ways"]] for name, one in graph["states"].items()}
    assert "IsAdapterAccepted" in ways["ValidateAdapter"]
    assert all(way in graph["states"] for found in ways.values() for way in found)
    assert any(kind == "catch" for _, kind in graph["states"]["ValidateAdapter"]["ways"])


# What changes something


@pytest.mark.parametrize("path", ["/api/change", "/api/drop?name=acme"])
def test_what_changes_something_wants_the_pages_token(site: Site, client: TestClient, path: str) -> None:
    for headers in ({}, {TOKEN_HEADER: "other"}):
        assert client.post(path, json={"action": "remove", "name": "acme"}, headers=headers).status_code == 403
    crossed = {**token(client), "origin": "https://evil.example"}
    assert client.post(path, json={"action": "remove", "name": "acme"}, headers=crossed).status_code == 403
    with Site(site.stack, site.aws, read_only=True).client() as other:
        session = other.get("/api/session").json()
        assert session["read_only"]
        refused = other.post(path, json={"action": "remove", "name": "acme"}, headers=token(other))
    assert refused.status_code == 403
    assert "--read-only" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "asked",
    [
        [],
        {"action": "push", "name": "acme"},
        {"action": "rollback", "name": "--all"},
        {"action": "rollback", "name": "acme", "release": "--stack=other"},
        {"action": "rollback", "name": "acme", "release": 7},
        {"action": "remove", "name": "acme; rm -rf /"},
    ],
)
def test_only_the_buttons_commands_are_run(client: TestClient, asked: Any) -> None:
    assert client.post("/api/change", json=asked, headers=token(client)).status_code == 400


def test_a_command_that_takes_too_long_is_said_to_go_on(site: Site) -> None:
    with Site(site.stack, site.aws, command_seconds=0).client() as client:
        said = client.post("/api/change", json={"action": "retry", "name": "acme"}, headers=token(client)).json()
    assert (said["command"], said["code"]) == ("loradrop retry acme --stack loradrop", None)
    assert "It continues in the stack" in said["message"]
    assert max(MAX_DEPLOYMENT_SECONDS, MAX_REMOVAL_SECONDS) < COMMAND_SECONDS


def steps(answered: Any) -> list[dict[str, Any]]:
    assert answered.status_code == 200, answered.text
    return [json.loads(line) for line in answered.text.splitlines()]


def test_a_bad_tarball_is_rejected_and_nothing_is_uploaded(site: Site, client: TestClient) -> None:
    answered = client.post("/api/drop?name=globex", content=wrapped_tarball(), headers=token(client))
    [validated] = steps(answered)
    assert not validated["accepted"]
    assert [one["code"] for one in validated["problems"]] == ["WRAPPING_FOLDER"]
    assert "Contents" not in site.stack.s3.list_objects_v2(Bucket="uploads")
    for name, status in (("", 400), ("../x", 400)):
        assert client.post("/api/drop", params={"name": name}, content=b"", headers=token(client)).status_code == status
    large = client.post("/api/drop?name=globex", content=b"x" * 1_000_001, headers=token(client))
    assert large.status_code == 413
    assert "MaxUploadMegabytes" in large.json()["error"]["message"]


def test_a_fault_of_the_server_is_the_last_step_of_a_tarball(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with Site(site.stack, site.aws, parameters=PARAMETERS | {"MaxLoraRank": "sixteen"}).client() as client:
        [failed] = steps(client.post("/api/drop?name=globex", content=good_tarball(), headers=token(client)))
    assert (failed["step"], failed["message"]) == ("failed", "This server failed; its log says why.")
    assert "sixteen" in caplog.text


def test_a_good_tarball_is_validated_then_uploaded_to_the_byte(site: Site, client: TestClient) -> None:
    body = good_tarball()
    found = steps(client.post("/api/drop?name=tenant/acme", content=body, headers=token(client)))
    assert [one["step"] for one in found] == ["validated", "uploading", "uploaded", "started"]
    assert (found[1]["bytes"], found[1]["of"]) == (len(body), len(body))
    got = site.stack.s3.get_object(Bucket="uploads", Key="adapters/tenant/acme.tar.gz")
    assert got["VersionId"] == found[2]["version"]
    assert got["Body"].read() == body
