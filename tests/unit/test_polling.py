from hypothesis import given
from hypothesis import strategies as st

from loradrop.polling import next_poll_seconds


def polls_until(in_service_seconds: float, deadline_seconds: float = 1200) -> list[float]:
    polls = [0.0]
    while polls[-1] < in_service_seconds and polls[-1] < deadline_seconds:
        polls.append(polls[-1] + next_poll_seconds(polls[-1], deadline_seconds))
    return polls


@given(st.floats(30, 1100))
def test_a_component_is_noticed_within_a_tenth_of_its_time(in_service_seconds: float) -> None:
    assert polls_until(in_service_seconds)[-1] <= in_service_seconds * 1.1


def test_two_minutes_cost_few_polls() -> None:
    assert len(polls_until(120)) <= 28


def test_the_last_poll_is_at_the_deadline() -> None:
    assert polls_until(10_000, deadline_seconds=100)[-1] == 100
