"""The line of creates in the registry: one item for each endpoint, adapter = endpoint#<name>, record = turns."""

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aws.faults import RegistryContended, error_code
from loradrop import turns
from loradrop.deployment import Turn
from loradrop.registry_items import line_fields, line_key, line_of
from loradrop.turns import Line

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Writers are few: whoever comes to an empty line, is throttled, or makes the line faster. Tickets need no try.
TRIES = 20
MAX_DELAY_SECONDS = 0.1
MAX_SLEEPS = 10


class Turns:
    """Every method may raise RegistryContended, and botocore's ClientError."""

    def __init__(self, client: "DynamoDBClient", table: str, endpoint: str, most_per_second: float) -> None:
        self._client, self._table, self._endpoint, self._most = client, table, endpoint, most_per_second

    def wait(self, turn: Turn | None) -> Turn:
        """The turn, taken if there is none yet: it has come, or says in how many whole seconds to look again."""
        turn = turn or Turn(self._take())
        for _ in range(MAX_SLEEPS):
            line, now = self._refreshed(), time.time()
            wait_seconds = turns.seconds_to_wait(line, turn.ticket, now, self._most)
            if wait_seconds:
                before = turns.before(line, turn.ticket, now)
                return replace(turn, before=before, wait_seconds=wait_seconds, is_queued=True)
            seconds = turns.turn_at(line, turn.ticket) - now
            if seconds <= 0:
                break
            time.sleep(seconds)
        return replace(turn, before=0, wait_seconds=None)

    def move_back(self, turn: Turn) -> Turn:
        """AWS refused the create: everybody waits, this attempt as the first."""
        for _ in range(TRIES):
            line, ticket = turns.throttled(before := self._line(), time.time())
            if self._write(before, line):
                return self.wait(Turn(ticket, is_queued=True, throttles=turn.throttles + 1))
            time.sleep(random.uniform(0, MAX_DELAY_SECONDS))  # noqa: S311
        raise self._contended()

    def _take(self) -> int:
        counted: Any = self._client.update_item(
            TableName=self._table,
            Key=line_key(self._endpoint),
            UpdateExpression="ADD next_ticket :one",
            ExpressionAttributeValues={":one": {"N": "1"}},
            ReturnValues="ALL_NEW",
        )
        line = line_of(counted["Attributes"])
        ticket = line.next_ticket - 1
        for _ in range(TRIES):
            after = turns.taken(line, ticket, time.time(), self._most)
            if after == line or self._write(line, after):
                return ticket
            time.sleep(random.uniform(0, MAX_DELAY_SECONDS))  # noqa: S311
            line = self._line()
        raise self._contended()

    def _refreshed(self) -> Line:
        """The line; whoever looks at it makes it faster, if it is time."""
        line = self._line()
        after = turns.refreshed(line, time.time(), self._most)
        return after if after == line or self._write(line, after) else self._line()

    def _line(self) -> Line:
        found: Any = self._client.get_item(TableName=self._table, Key=line_key(self._endpoint), ConsistentRead=True)
        return line_of(found["Item"]) if "Item" in found else Line()

    def _write(self, before: Line, after: Line) -> bool:
        """Whether the line was still the one that this one was made of. Tickets that were taken meanwhile stay taken."""
        fields = line_fields(replace(after, revision=before.revision + 1))
        is_same = "#revision = :before" if before.revision else "attribute_not_exists(#revision)"
        values = {f":{name}": value for name, value in fields.items()}
        try:
            self._client.update_item(
                TableName=self._table,
                Key=line_key(self._endpoint),
                UpdateExpression="SET " + ", ".join(f"#{name} = :{name}" for name in fields),
                ConditionExpression=is_same,
                ExpressionAttributeNames={f"#{name}": name for name in fields},
                ExpressionAttributeValues=values
                | ({":before": {"N": str(before.revision)}} if before.revision else {}),
            )
        except ClientError as error:
            if error_code(error) in ("ConditionalCheckFailedException", "TransactionConflictException"):
                return False
            raise
        return True

    def _contended(self) -> RegistryContended:
        return RegistryContended(
            f"The line of creates of {self._endpoint} was written by others, {TRIES} times in a row."
        )
