"""The registry, read: adapters' states and their uploads. The Lambdas' own Registry writes, too; a command only reads."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from loradrop.lifecycle import AdapterState, UploadRecord
from loradrop.names import is_adapter_name
from loradrop.registry_items import (
    AFTER_UPLOADS,
    OPEN,
    STATE,
    UPLOAD,
    WATCHED_INDEX,
    line_key,
    line_of,
    record_of,
    state_of,
)
from loradrop.turns import Line

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# An upload that is followed is among these.
_RECENT = 20


class RegistryReader:
    """Every method may raise botocore's errors. It may be shared by threads.

    Requires dynamodb:GetItem and dynamodb:Query on the table; for what is watched dynamodb:Query on its index.
    """

    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client, self._table = client, table

    def state(self, adapter: str) -> AdapterState:
        """Of revision 0 for an adapter that was never uploaded."""
        item = self._get(adapter, STATE)
        return state_of(item) if item else AdapterState()

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

    def open_uploads(self, adapter: str) -> Iterator[UploadRecord]:
        """Those whose outcome is not yet reported, newest first."""
        return (record for record in self.uploads(adapter) if not record.is_reported)

    def newest(self, adapter: str) -> UploadRecord | None:
        """One plain query: a list asks this of every adapter."""
        items = self._client.query(**self._history(adapter), Limit=1)["Items"]
        return record_of(items[0]) if items else None

    def of_version(self, adapter: str, version_id: str) -> UploadRecord | None:
        """The upload of this version, among the newest; None until its execution has claimed it."""
        recent = self.uploads(adapter, _RECENT)
        return next((one for one in recent if one.version_id == version_id and one.heals is None), None)

    def watched_states(self, after: str = "") -> Iterator[tuple[str, AdapterState]]:
        """Every adapter behind `after`, by name, and every key that names none. The index lags behind by a moment."""
        return ((item["adapter"]["S"], state_of(item)) for item in self._watched(STATE, after))

    def adapters(self, after: str = "") -> Iterator[tuple[str, AdapterState]]:
        """Every adapter behind `after`, by name. The index lags behind by a moment."""
        return ((name, state) for name, state in self.watched_states(after) if is_adapter_name(name))

    def watched_uploads(self, after: str = "") -> Iterator[tuple[str, UploadRecord]]:
        """The uploads of every adapter behind `after` that are not yet reported. The index lags behind by a moment."""
        return ((item["adapter"]["S"], record_of(item)) for item in self._watched(OPEN, after))

    def line(self, endpoint: str) -> Line:
        """The creates of an endpoint that wait for their turn."""
        item = self._client.get_item(TableName=self._table, Key=line_key(endpoint), ConsistentRead=True).get("Item")
        return line_of(item) if item else Line()

    def _watched(self, watch: str, after: str) -> Iterator[dict[str, Any]]:
        """A page of 1 MB at a time."""
        condition, values = "watch = :watch", {":watch": {"S": watch}}
        if after:  # a key's value is never empty
            condition, values = f"{condition} AND adapter > :after", values | {":after": {"S": after}}
        pages = self._client.get_paginator("query").paginate(
            TableName=self._table,
            IndexName=WATCHED_INDEX,
            KeyConditionExpression=condition,
            ExpressionAttributeValues=values,
        )
        return (item for page in pages for item in page["Items"])

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
