"""Half a minute of the soak run; `make soak` is the long one."""

import pytest

from .conftest import StackUnderTest
from .soak import Soak, updates_in_a_row


@pytest.fixture(autouse=True)
def _client_of_the_local_cloud(stack: StackUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.cloud.environment().items():
        monkeypatch.setenv(name, value)


def test_whatever_happens_the_invariants_hold_at_rest_and_clients_are_served(stack: StackUnderTest) -> None:
    soak = Soak(stack, seed=3, adapters=2)
    assert soak.run(seconds=15) == []
    assert soak.done.total() > 5
    answered = [one for one in soak.clients.requests if one.release is not None]
    assert answered, "clients were served meanwhile"


def test_an_update_under_continuous_requests_fails_none(stack: StackUnderTest) -> None:
    requests, failures = updates_in_a_row(stack, 3, seed=4)
    assert failures == []
    assert requests > 20
