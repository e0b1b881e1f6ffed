from hypothesis import given
from hypothesis import strategies as st

from loradrop.polling import next_poll_seconds, watch


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


@given(st.floats(0.1, 20))
def test_what_is_quick_is_noticed_within_half_a_second_or_a_twentieth(in_service_seconds: float) -> None:
    at, polls = 0.0, 0
    for seconds in watch(0.0, 20.0):
        if at >= in_service_seconds:
            break
        at, polls = at + seconds, polls + 1
    assert at <= max(in_service_seconds * 1.05, in_service_seconds + 0.25)
    assert polls <= 55


def test_what_has_been_waited_for_for_long_is_not_watched() -> None:
    assert list(watch(20.0, 20.0)) == []
