"""The registry's table in memory: what aws/registry.py uses of DynamoDB, and nothing else.

test_table.py holds it against moto.
"""

from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

Items = dict[tuple[str, str], dict[str, Any]]


class Table:
    """A client of DynamoDB's with one table. `items` is (adapter, record) → item; writes replace whole items."""

    def __init__(self, items: Items) -> None:
        self.items = items

    def get_item(self, *, TableName: str, Key: dict[str, Any], ConsistentRead: bool) -> dict[str, Any]:
        found = self.items.get((Key["adapter"]["S"], Key["record"]["S"]))
        return {"Item": found} if found is not None else {}

    def transact_write_items(self, *, TransactItems: list[dict[str, Any]]) -> None:
        puts = [one["Put"] for one in TransactItems]
        reasons = [{"Code": "None" if self._holds(put) else "ConditionalCheckFailed"} for put in puts]
        if any(one["Code"] != "None" for one in reasons):
            error: Any = {"Error": {"Code": "TransactionCanceledException", "Message": "Transaction cancelled"}}
            raise ClientError(error | {"CancellationReasons": reasons}, "TransactWriteItems")
        for put in puts:
            self.items[_key(put)] = put["Item"]

    def _holds(self, put: dict[str, Any]) -> bool:
        found = self.items.get(_key(put))
        match put.get("ConditionExpression"):
            case None:
                return True
            case "attribute_not_exists(adapter)":
                return found is None
            case "revision = :revision":
                return found is not None and found["revision"] == put["ExpressionAttributeValues"][":revision"]
            case other:
                raise AssertionError(f"The table in memory does not know the condition {other!r}.")

    def get_paginator(self, operation: str) -> "Table":
        assert operation == "query"
        return self

    def paginate(self, **query: Any) -> Iterator[dict[str, Any]]:
        values = {name: value["S"] for name, value in query["ExpressionAttributeValues"].items()}
        match query["KeyConditionExpression"]:
            case "adapter = :adapter AND #record BETWEEN :first AND :last":
                keys = [
                    key
                    for key in self.items
                    if key[0] == values[":adapter"] and values[":first"] <= key[1] <= values[":last"]
                ]
            case "watch = :watch" | "watch = :watch AND adapter > :after":
                keys = [
                    key
                    for key, item in self.items.items()
                    if item.get("watch") == {"S": values[":watch"]} and key[0] > values.get(":after", "")
                ]
            case other:
                raise AssertionError(f"The table in memory does not know the query {other!r}.")
        keys.sort(reverse=not query.get("ScanIndexForward", True))
        yield {"Items": [self.items[key] for key in keys[: query.get("PaginationConfig", {}).get("MaxItems")]]}


def _key(put: dict[str, Any]) -> tuple[str, str]:
    return put["Item"]["adapter"]["S"], put["Item"]["record"]["S"]
