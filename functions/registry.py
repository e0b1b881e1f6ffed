"""The registry: one item per adapter, and one conditional write per step.

    adapter     S   the key
    newest      M   sequencer, version_id, execution: the newest upload that an execution has claimed
    components  M   name → sequencer, release, state (in-use | deleting): what stands on the endpoint for this adapter,
                    each with the newest upload that wants it
    live        M   component, release, version_id, sequencer, since: what clients are to invoke

All conditions of a step look at the one item, so that DynamoDB decides between executions that meet.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from loradrop.names import Upload, comparable_sequencer
from runtime import ComponentBusy, error_code

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


@dataclass(frozen=True, slots=True)
class Claim:
    """Whether this execution has the upload; else which upload or execution has it, for the message."""

    outcome: str  # claimed | superseded | repeated
    by_version_id: str | None = None
    by_execution: str | None = None


@dataclass(frozen=True, slots=True)
class Promotion:
    promoted: bool
    previous_component: str | None


class Registry:
    def __init__(self, client: "DynamoDBClient", table: str) -> None:
        self._client = client
        self._table = table

    def claim(self, adapter: str, upload: Upload, execution: str) -> Claim:
        """Take the upload for this execution, unless a newer upload, or another execution, was here first."""
        sequencer = comparable_sequencer(upload.sequencer)
        refused = self._update(
            adapter,
            "SET newest = :newest, components = if_not_exists(components, :none)",
            "attribute_not_exists(newest) OR newest.sequencer < :sequencer"
            " OR (newest.sequencer = :sequencer AND newest.execution = :execution)",
            {
                ":newest": _map(sequencer=sequencer, version_id=upload.version_id, execution=execution),
                ":none": {"M": {}},
                ":sequencer": {"S": sequencer},
                ":execution": {"S": execution},
            },
        )
        if refused is None:
            return Claim("claimed")
        newest = refused["newest"]["M"]
        outcome = "repeated" if newest["sequencer"]["S"] == sequencer else "superseded"
        return Claim(outcome, newest["version_id"]["S"], newest["execution"]["S"])

    def use_component(self, adapter: str, component: str, release: str, sequencer: str) -> None:
        """Say that this upload wants the component, before it is made. Raises ComponentBusy while it is deleted."""
        sequencer = comparable_sequencer(sequencer)
        refused = self._update(
            adapter,
            "SET components.#component = :entry",
            "attribute_not_exists(components.#component)"
            " OR (components.#component.#state = :in_use AND components.#component.sequencer <= :sequencer)",
            {
                ":entry": _map(sequencer=sequencer, release=release, state="in-use"),
                ":in_use": {"S": "in-use"},
                ":sequencer": {"S": sequencer},
            },
            {"#component": component, "#state": "state"},
        )
        # Refused for a newer upload's sake is no refusal: that upload has the same content and keeps the component.
        if refused is not None and refused["components"]["M"][component]["M"]["state"]["S"] == "deleting":
            raise ComponentBusy(f"The component {component} of an earlier upload is being deleted.")

    def begin_delete(self, adapter: str, component: str, sequencer: str) -> bool:
        """Mark a component for deletion. False if it is live, or if a newer upload wants it, or if it is not ours."""
        refused = self._update(
            adapter,
            "SET components.#component.#state = :deleting",
            "attribute_exists(components.#component) AND components.#component.sequencer <= :sequencer"
            " AND (attribute_not_exists(live) OR live.component <> :component)",
            {
                ":deleting": {"S": "deleting"},
                ":sequencer": {"S": comparable_sequencer(sequencer)},
                ":component": {"S": component},
            },
            {"#component": component, "#state": "state"},
        )
        return refused is None

    def end_delete(self, adapter: str, component: str) -> None:
        """Forget a component that begin_delete marked and that is gone."""
        self._update(
            adapter,
            "REMOVE components.#component",
            "components.#component.#state = :deleting",
            {":deleting": {"S": "deleting"}},
            {"#component": component, "#state": "state"},
        )

    def promote(self, adapter: str, component: str, release: str, upload: Upload, since: str) -> Promotion:
        """Make a component the live one, unless a newer upload's is. The same promotion twice is one promotion."""
        sequencer = comparable_sequencer(upload.sequencer)
        values = {
            ":live": _map(
                component=component, release=release, version_id=upload.version_id, sequencer=sequencer, since=since
            ),
            ":sequencer": {"S": sequencer},
        }
        before: dict[str, Any] = {}
        refused = self._update(
            adapter,
            "SET previous = if_not_exists(live, :live), live = :live",
            "attribute_not_exists(live) OR live.sequencer < :sequencer",
            values,
            before=before,
        )
        item = before if refused is None else refused
        if refused is not None and refused["live"]["M"]["sequencer"]["S"] != sequencer:
            return Promotion(promoted=False, previous_component=None)
        # A retried promotion finds itself live; what it replaced is then in `previous`.
        replaced = item.get("previous" if refused is not None else "live", {}).get("M", {})
        name = replaced.get("component", {}).get("S")
        return Promotion(promoted=True, previous_component=None if name == component else name)

    def live(self, adapter: str) -> dict[str, str] | None:
        """The live pointer, or None."""
        item = self._client.get_item(TableName=self._table, Key={"adapter": {"S": adapter}}, ConsistentRead=True)
        live = item.get("Item", {}).get("live", {}).get("M")
        return {name: value["S"] for name, value in live.items()} if live else None

    def _update(
        self,
        adapter: str,
        expression: str,
        condition: str,
        values: dict[str, Any],
        names: dict[str, str] | None = None,
        before: dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """None if the condition held, else the item as it is. `before` is filled with the item as it was."""
        request: dict[str, Any] = {"ExpressionAttributeNames": names} if names else {}
        try:
            response = self._client.update_item(
                TableName=self._table,
                Key={"adapter": {"S": adapter}},
                UpdateExpression=expression,
                ConditionExpression=condition,
                ExpressionAttributeValues=values,
                ReturnValues="ALL_OLD",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **request,
            )
        except ClientError as error:
            if error_code(error) != "ConditionalCheckFailedException":
                raise
            refused: Any = error.response
            found: dict[str, Any] = refused.get("Item", {})
            return found
        if before is not None:
            before.update(response.get("Attributes", {}))
        return None


def _map(**values: str) -> dict[str, Any]:
    return {"M": {name: {"S": value} for name, value in values.items()}}
