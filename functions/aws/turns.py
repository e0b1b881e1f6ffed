"""The line of creates in the registry: one item for each endpoint, adapter = endpoint#<name>, record = turns."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aws.faults import RegistryContended, error_code
from loradrop import turns
from loradrop.deployment import Turn
from loradrop.registry_items import line_item, line_key, line_of
from loradrop.turns import Line

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Hundreds come at once: each try is two calls of a few milliseconds, and one of all that try at once succeeds.
TRIES = 40
MAX_DELAY_SECONDS = 0.1
# Step Functions waits whole seconds. What is shorter, and the last part of what is longer, is slept through here: a state
# transition costs as much as seven seconds of this function.
MAX_SLEEP_SECONDS = 1.5
MAX_SLEEPS = 10


class Turns:
    """Every method may raise RegistryContended, and botocore's ClientError."""

    def __init__(self, client: "DynamoDBClient", table: str, endpoint: str, most_per_second: float) -> None:
        self._client, self._table, self._endpoint, self._most = client, table, endpoint, most_per_second

    def wait(self, turn: Turn | None) -> Turn:
        """The turn, taken if there is none yet: it has come, or says in how many whole seconds to look again."""
        if turn is None:
            _, ticket = self._step(lambda line, now: turns.take(line, now, self._most))
            turn = Turn(ticket)
        for _ in range(MAX_SLEEPS):
            line, now = self._refreshed(), time.time()
            seconds = turns.turn_at(line, turn.ticket) - now
            if seconds <= 0:
                return replace(turn, before=0, wait_seconds=None)
            if seconds > MAX_SLEEP_SECONDS:
                break
            time.sleep(seconds)
        return replace(
            turn,
            before=turns.before(line, turn.ticket, now),
            wait_seconds=max(1, int(seconds - MAX_SLEEP_SECONDS / 2)),
            is_queued=True,
        )

    def move_back(self, turn: Turn) -> Turn:
        """AWS refused the create: everybody waits, this attempt as the first."""
        _, ticket = self._step(turns.throttled)
        return self.wait(Turn(ticket, throttles=turn.throttles + 1))

    def _step(self, rule: Callable[[Line, float], tuple[Line, int]]) -> tuple[Line, int]:
        for _ in range(TRIES):
            line = self._line()
            after, ticket = rule(line, time.time())
            if self._write(replace(after, revision=line.revision + 1)):
                return after, ticket
            time.sleep(random.uniform(0, MAX_DELAY_SECONDS))  # noqa: S311
        raise RegistryContended(
            f"The line of creates of {self._endpoint} was written by others, {TRIES} times in a row."
        )

    def _refreshed(self) -> Line:
        """The line; whoever looks at it makes it faster, if it is time. If another was quicker, theirs will do next time."""
        line = self._line()
        after = turns.refreshed(line, time.time(), self._most)
        if after != line:
            self._write(replace(after, revision=line.revision + 1))
        return after

    def _line(self) -> Line:
        found: Any = self._client.get_item(TableName=self._table, Key=line_key(self._endpoint), ConsistentRead=True)
        return line_of(found["Item"]) if "Item" in found else Line()

    def _write(self, line: Line) -> bool:
        """Whether the line was still the one that this one was made of."""
        condition: Any = {"ConditionExpression": "attribute_not_exists(adapter)"}
        if line.revision > 1:
            condition = {
                "ConditionExpression": "revision = :revision",
                "ExpressionAttributeValues": {":revision": {"N": str(line.revision - 1)}},
            }
        try:
            self._client.put_item(TableName=self._table, Item=line_item(self._endpoint, line), **condition)
        except ClientError as error:
            if error_code(error) in ("ConditionalCheckFailedException", "TransactionConflictException"):
                return False
            raise
        return True
