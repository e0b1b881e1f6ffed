"""The knobs of the emulated hosting: what they take, and what they say to a value that makes no sense."""

import re
import time
from typing import Any

import pytest

from local.hosting import CONTROL, Behaviour, Control, InvokeErrors, behaving
from local.hosting.behaviour import RateLimit, changes_in


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seconds": 1}, "seconds: no such setting; there are adapters_ignored, components_per_endpoint"),
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
    ],
)
def test_a_value_that_makes_no_sense_is_refused_in_words(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(complaint)):
        Behaviour().changed(changes)


def test_what_was_read_can_be_set_again() -> None:
    behaviour = Behaviour(seconds_to_in_service=2, load_fails="no", invoke_errors=InvokeErrors(2, 503, "acme"))
    assert Behaviour().changed(behaviour.to_dict()) == behaviour


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
