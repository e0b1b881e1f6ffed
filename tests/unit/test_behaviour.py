"""The behaviour of the emulated hosting: what they take, and what they say to a value that makes no sense."""

import json
import re
import time
from typing import Any

import pytest

from local.hosting import CONTROL, Behaviour, Control, InvokeErrors, Kill, Refusal, behaving
from local.hosting.behaviour import RateLimit, changes_in


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seconds": 1}, "seconds: no such setting; there are adapters_ignored, base_update_forgets_adapters"),
        ({"seconds_to_in_service": -1}, "seconds_to_in_service is -1; it must be a number of seconds, 0 or more"),
        ({"seconds_to_in_service": None}, "seconds_to_in_service is None; it must be a number of seconds"),
        ({"seconds_to_delete": float("nan")}, "seconds_to_delete is nan; it must be a number of seconds"),
        ({"seconds_to_delete": True}, "seconds_to_delete is True; it must be a number of seconds"),
        ({"creates_per_second": 0}, "creates_per_second is 0; it must be a rate above 0, or null"),
        ({"describes_per_second": "many"}, "describes_per_second is 'many'; it must be a rate above 0, or null"),
        ({"components_per_endpoint": 1.5}, "components_per_endpoint is 1.5; it must be a whole number"),
        (
            {"components_per_endpoint": -1},
            "components_per_endpoint is -1; it must be a whole number, 0 or more, or null",
        ),
        ({"dynamic_loading": "yes"}, "dynamic_loading is 'yes'; it must be true or false"),
        ({"adapters_ignored": 1}, "adapters_ignored is 1; it must be true or false"),
        ({"create_fails": True}, "create_fails is True; it must be the reason as a text, or null"),
        ({"load_fails": 3}, "load_fails is 3; it must be the reason as a text, or null"),
        ({"invoke_errors": 3}, "invoke_errors must be null or an object with times, status"),
        ({"invoke_errors": {"times": 1}}, "invoke_errors takes times, status and, if wanted, component"),
        ({"invoke_errors": {"times": 1, "status": 503, "name": "x"}}, "invoke_errors takes times, status"),
        (
            {"invoke_errors": {"times": 1, "status": 418}},
            "invoke_errors.status is 418; it must be one of 400, 424, 429, 500, 503, 530",
        ),
        ({"invoke_errors": {"times": -1, "status": 503}}, "invoke_errors.times is -1; it must be a whole number"),
        (
            {"invoke_errors": {"times": 1, "status": 503, "component": None}},
            "invoke_errors.component is None; it must be a part of a component's name",
        ),
        ({"failed_components": "acme"}, "failed_components is 'acme'; it must be a list of names"),
        ({"kills": {"function": "Create"}}, "kills must be a list of objects with function, nth, after_calls, error"),
        ({"kills": [{}]}, "kills takes objects with function, nth, after_calls, error"),
        ({"kills": [{"function": "Create", "nth": 0}]}, "kills.nth is 0; it must be a whole number, 1 or more"),
        ({"kills": [{"function": "Create", "error": "Dead"}]}, "kills.error is 'Dead'; it must be one of Runtime."),
        ({"refusals": [{"action": "PutObject"}]}, "refusals.action is 'PutObject'; it must be service:Operation"),
        ({"refusals": [{"action": "s3:*", "status": 200}]}, "refusals.status is 200; it must be an HTTP status"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_in_words(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(complaint)):
        Behaviour().changed(changes)


def test_what_was_read_can_be_set_again() -> None:
    behaviour = Behaviour(
        seconds_to_in_service=2,
        load_fails="no",
        invoke_errors=InvokeErrors(2, 503, "acme"),
        failed_components=("acme",),
        kills=(Kill("Create", nth=2, after_calls=1),),
        refusals=(Refusal("s3:*", carried_out=True),),
    )
    assert Behaviour().changed(json.loads(json.dumps(behaviour.to_dict()))) == behaviour


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"'])
def test_settings_are_one_json_object(text: str) -> None:
    with pytest.raises(ValueError, match=r"^no (JSON|object of settings)"):
        changes_in(text)


def test_a_refused_change_changes_nothing() -> None:
    control = Control()
    with pytest.raises(ValueError, match="seconds_to_delete"):
        control.change(seconds_to_in_service=5, seconds_to_delete=-1)
    assert control.behaviour == Behaviour()


def test_errors_are_counted_for_the_components_they_are_meant_for() -> None:
    control = Control(Behaviour(invoke_errors=InvokeErrors(2, 503, "acme")))
    taken = [control.take_invoke_error(name) for name in ("other", "acme-1", "other", "my-acme", "acme-1")]
    assert taken == [None, 503, None, 503, None]
    assert control.behaviour.invoke_errors is None


def test_faults_are_counted_for_the_functions_and_the_calls_they_are_meant_for() -> None:
    late, always = Kill("Create", nth=2), Refusal("dynamodb:*Item", times=2, function="Claim")
    control = Control(Behaviour(kills=(late,), refusals=(always,)))
    assert [control.take_kill(name) for name in ("CreateOne", "Claim", "CreateOne", "CreateOne")] == [
        None,
        None,
        late,
        None,
    ]
    calls = [("dynamodb:GetItem", ""), ("s3:GetObject", "ClaimOne")] + [("dynamodb:PutItem", "ClaimOne")] * 3
    assert [control.take_refusal(*call, "acme") for call in calls] == [None, None, always, always, None]
    control.change(kills=[{"function": "Create"}])
    assert control.take_kill("CreateOne") == Kill("Create"), "a change counts from one again"


def test_a_refusal_counts_the_calls_that_it_is_about() -> None:
    about = Refusal("*:*", nth=2, about="acme")
    control = Control(Behaviour(refusals=(about,)))
    texts = ["adapters/acme.tar.gz", "adapters/other.tar.gz", '{"adapter": "acme"}', "acme"]
    assert [control.take_refusal("s3:GetObject", "", text) for text in texts] == [None, None, about, None]


def test_a_block_behaves_and_then_all_is_as_before() -> None:
    before = CONTROL.behaviour

    def fail_within() -> None:
        with behaving(create_fails="no room") as control:
            assert control is CONTROL
            assert control.behaviour.create_fails == "no room"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_within()
    assert CONTROL.behaviour == before


def test_a_rate_lets_its_second_through_and_refills() -> None:
    limit = RateLimit()
    assert [limit.allows(3) for _ in range(4)] == [True, True, True, False]
    emptied = time.monotonic()
    deadline = emptied + 5
    while not limit.allows(20) and time.monotonic() < deadline:
        pass
    assert 0.02 < time.monotonic() - emptied < 1, "a request each 50 ms"
    assert all(limit.allows(None) for _ in range(100))
