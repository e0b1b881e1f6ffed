"""The registry, read from outside: adapters' states and their uploads."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from loradrop.lifecycle import AdapterState, UploadRecord
from loradrop.registry_items import AFTER_UPLOADS, STATE, UPLOAD, WATCHED_INDEX, record_of, state_of

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# What the registry keeps under a key that names no adapter.
_NAMELESS = "!"
# An upload that is followed is among these.
_RECENT = 20


class RegistryReader:
    """Every method may raise botocore's errors. It may be shared by threads.

    Requires dynamodb:GetItem and dynamodb:Query on the table; for `states` dynamodb:Query on its index.
    """

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client, self._table = client, table

    def states(self, after: str = "") -> Iterator[tuple[str, AdapterState]]:
        """Every adapter behind `after`, by name, a page of 1 MB at a time. The index lags behind by a moment."""
        condition, values = "watch = :watch", {":watch": {"S": STATE}}
        if after:  # a key's value is never empty
            condition, values = f"{condition} AND adapter > :after", values | {":after": {"S": after}}
        pages = self._client.get_paginator("query").paginate(
            TableName=self._table,
            IndexName=WATCHED_INDEX,
            KeyConditionExpression=condition,
            ExpressionAttributeValues=values,
        )
        found = ((item["adapter"]["S"], state_of(item)) for page in pages for item in page["Items"])
        return ((name, state) for name, state in found if not name.startswith(_NAMELESS))

    def state(self, adapter: str) -> AdapterState | None:
        """None of an adapter that was never uploaded."""
        item = self._get(adapter, STATE)
        return state_of(item) if item else None

    def upload(self, adapter: str, order: str) -> UploadRecord | None:
        item = self._get(adapter, UPLOAD + order)
        return record_of(item) if item else None

    def uploads(self, adapter: str, limit: int | None = None) -> Iterator[UploadRecord]:
        """The adapter's history, newest first."""
        pages = self._client.get_paginator("query").paginate(
            **self._history(adapter),
            PaginationConfig={"MaxItems": limit, "PageSize": limit} if limit is not None else {},
        )
        return (record_of(item) for page in pages for item in page["Items"])

    def newest(self, adapter: str) -> UploadRecord | None:
        """One plain query: a list asks this of every adapter."""
        items = self._client.query(**self._history(adapter), Limit=1)["Items"]
        return record_of(items[0]) if items else None

    def of_version(self, adapter: str, version_id: str) -> UploadRecord | None:
        """The upload of this version, among the newest; None until its execution has claimed it."""
        recent = self.uploads(adapter, _RECENT)
        return next((one for one in recent if one.version_id == version_id and one.heals is None), None)

    def _history(self, adapter: str) -> Any:
        return {
            "TableName": self._table,
            "KeyConditionExpression": "adapter = :adapter AND #record BETWEEN :first AND :last",
            "ExpressionAttributeNames": {"#record": "record"},
            "ExpressionAttributeValues": {
                ":adapter": {"S": adapter},
                ":first": {"S": UPLOAD},
                ":last": {"S": AFTER_UPLOADS},
            },
            "ScanIndexForward": False,
            "ConsistentRead": True,
        }

    def _get(self, adapter: str, record: str) -> dict[str, Any] | None:
        key = {"adapter": {"S": adapter}, "record": {"S": record}}
        return self._client.get_item(TableName=self._table, Key=key, ConsistentRead=True).get("Item")
