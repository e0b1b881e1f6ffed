"""The line of creates: its rules, then its item in the registry, with others who write it at the same time."""

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.turns import Turns
from loradrop.registry_items import line_fields, line_of
from loradrop.registry_reader import RegistryReader
from loradrop.turns import (
    LEAST_RATE,
    MOMENT_SECONDS,
    SECONDS_UNTIL_FASTER,
    SLOWER,
    Line,
    before,
    refreshed,
    taken,
    throttled,
    turn_at,
    waiting,
)
from tests.unit.conftest import TABLE, Resources

MOST = 2.0


def take(line: Line, now: float, most: float) -> tuple[Line, int]:
    ticket = line.next_ticket
    return taken(replace(line, next_ticket=ticket + 1), ticket, now, most), ticket


def tickets_of(count: int, line: Line | None = None, now: float = 100.0) -> tuple[Line, list[int]]:
    line, tickets = line or Line(), []
    for _ in range(count):
        line, ticket = take(line, now, MOST)
        tickets.append(ticket)
    return line, tickets


def test_where_nobody_waits_the_turn_is_now() -> None:
    line, [ticket] = tickets_of(1)
    assert turn_at(line, ticket) == 100
    line, ticket = take(line, 5_000.0, MOST)
    assert turn_at(line, ticket) == 5_000
    assert waiting(line, 5_000.5) == 0


def test_turns_come_one_after_another_at_the_rate() -> None:
    line, tickets = tickets_of(5)
    assert [turn_at(line, ticket) for ticket in tickets] == [100, 100.5, 101, 101.5, 102]
    assert [before(line, ticket, 100.0) for ticket in tickets] == [0, 0, 1, 2, 3]
    assert (waiting(line, 100.1), waiting(line, 101.9), waiting(line, 102.1)) == (4, 1, 0)


def test_time_that_nobody_used_is_not_saved_up() -> None:
    line, _ = tickets_of(1)
    line, tickets = tickets_of(4, line, now=1_000.0)
    assert [turn_at(line, ticket) for ticket in tickets] == [1_000, 1_000.5, 1_001, 1_001.5]


def test_a_throttle_moves_everybody_back_and_slows_the_line_and_the_refused_one_is_first() -> None:
    line, tickets = tickets_of(4)
    after, again = throttled(line, 100.0)
    rate = MOST * SLOWER
    assert turn_at(after, again) == pytest.approx(100 + 1 / rate)
    times = [turn_at(after, ticket) for ticket in (again, *tickets[1:])]
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [pytest.approx(1 / rate)] * 3
    assert (before(after, again, 100.0), before(after, tickets[1], 100.0)) == (0, 1)


def test_throttles_of_one_moment_slow_the_line_once_and_each_gets_a_turn() -> None:
    line, _ = tickets_of(6)
    line, one = throttled(line, 101.0)
    line, two = throttled(line, 101.1)
    assert line.rate == MOST * SLOWER
    assert abs(turn_at(line, one) - turn_at(line, two)) == pytest.approx(1 / line.rate)
    line, _ = throttled(line, 101.0 + MOMENT_SECONDS)
    assert line.rate == pytest.approx(MOST * SLOWER**2)


def test_the_rate_comes_back_and_never_exceeds_the_parameter() -> None:
    line, _ = tickets_of(1)
    line, _ = throttled(line, 100.0)
    assert refreshed(line, 101.0, MOST) == line
    for number in range(1, 9):
        line = refreshed(line, 100.0 + number * SECONDS_UNTIL_FASTER, MOST)
    assert line.rate == MOST
    assert refreshed(line, 1_000.0, 0.5).rate == 0.5, "the parameter was lowered"


@given(
    st.lists(st.tuples(st.sampled_from(["take", "throttle", "refresh"]), st.floats(0, 3)), max_size=60),
    st.floats(0.1, 100),
)
def test_whatever_happens_the_order_stays_and_no_turn_comes_earlier_than_the_rate_allows(
    steps: list[tuple[str, float]], most: float
) -> None:
    now, line = 1_000.0, Line()
    waits: list[int] = []
    for what, seconds in steps:
        now += seconds
        waits = [ticket for ticket in waits if turn_at(line, ticket) > now] if line.rate else []
        if what == "take":
            line, ticket = take(line, now, most)
            assert turn_at(line, ticket) >= now - 1e-6
            waits.append(ticket)
        elif what == "throttle" and line.next_ticket:
            line, ticket = throttled(line, now)
            assert turn_at(line, ticket) >= now - 1e-6
            waits.insert(0, ticket)
        elif what == "refresh":
            line = refreshed(line, now, most)
        assert line.rate <= most or line.rate == LEAST_RATE or not line.rate
        assert waits == sorted(set(waits)), "two have the same turn, or overtake each other"
        assert line_of(line_fields(line) | {"next_ticket": {"N": str(line.next_ticket)}}) == line


@pytest.fixture
def registry(stack: Resources) -> Any:
    return stack.dynamodb


def turns(registry: Any, most: float) -> Turns:
    return Turns(registry, TABLE, "endpoint", most)


def test_a_turn_that_is_now_is_not_waited_for_and_the_next_one_is(registry: Any) -> None:
    line = turns(registry, 0.01)
    first = line.wait(None)
    assert (first.before, first.wait_seconds) == (0, None)
    second = line.wait(None)
    assert second.before == 0
    assert isinstance(second.wait_seconds, int)
    assert 1 <= second.wait_seconds <= 100
    assert line.wait(second).ticket == second.ticket, "who looks again keeps the place"
    assert waiting(RegistryReader(registry, TABLE).line("endpoint"), time.time()) == 1


def test_what_is_shorter_than_the_state_machine_can_wait_is_slept_through(registry: Any) -> None:
    line = turns(registry, 5)
    line.wait(None)
    began = time.time()
    assert line.wait(None).wait_seconds is None
    assert time.time() - began >= 0.1


def test_a_throttled_create_waits_as_the_first(registry: Any) -> None:
    line = turns(registry, 0.1)
    first, second = line.wait(None), line.wait(None)
    moved = line.move_back(first)
    assert moved.throttles == 1
    assert moved.before == 0
    assert moved.wait_seconds == pytest.approx(10 / SLOWER, abs=2)
    assert line.wait(second).before == 1


class Overtaken:
    """A client before each of whose first writes another takes a ticket."""

    def __init__(self, client: Any, others: int) -> None:
        self._client, self._others = client, others
        self.tickets: list[int] = []

    def get_item(self, **request: Any) -> Any:
        return self._client.get_item(**request)

    def update_item(self, **request: Any) -> Any:
        if len(self.tickets) < self._others:
            self.tickets.append(turns(self._client, 0.01).wait(None).ticket)
        return self._client.update_item(**request)


def test_who_is_overtaken_gets_a_turn_of_its_own(registry: Any) -> None:
    first = turns(registry, 0.01).wait(None).ticket
    client = Overtaken(registry, 1)
    late = turns(client, 0.01).wait(None)
    assert late.before == late.ticket - 1, "the first has had its turn; the others wait"
    assert sorted([first, late.ticket, *client.tickets]) == [0, 1, 2]
