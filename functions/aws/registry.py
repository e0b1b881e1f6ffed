"""The registry: one table, keys `adapter` and `record`.

    record = state            revision · floor · live {component, endpoint, base, release, order, version_id, since}
                              components {name: {attempt, order, release, endpoint, base, state, replaced_at?, until?}}
    record = upload#<order>   an upload, healing or removal: who has it, and what became of it; all of them are the history

A step reads the state, then the upload; lets a rule of loradrop/lifecycle.py decide; and writes both back on the condition
that the state's `revision` is unchanged. Every change raises the revision, of an upload alone too: whoever read the state
first and the upload after it, and finds the revision unchanged, has seen both as they were together.

Attributes are native ones, without those that have no value. `watch` is a sparse index (GSI `watched`: hash `watch`, range
`adapter`): "state" on states, "open" on uploads whose outcome is not yet reported.

`claim` and `finish` take an UploadRecord, which names order and attempt: it is entered where there is none yet.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from aws.faults import RegistryContended
from loradrop import lifecycle
from loradrop.lifecycle import (
    AdapterState,
    Claim,
    GiveUp,
    Live,
    Outcome,
    Promotion,
    Recovered,
    Step,
    UploadRecord,
    Use,
)
from loradrop.registry_items import record_item, state_item
from loradrop.registry_reader import RegistryReader

T = TypeVar("T")
Rule = Callable[[AdapterState, UploadRecord | None], Step[T]]

# Within one call; after that the state machine retries, with jitter, where the console shows it.
TRIES = 3

_CONFLICTS = frozenset({"ConditionalCheckFailed", "TransactionConflict"})


class Registry(RegistryReader):
    """Every step may raise RegistryContended, and botocore's ClientError."""

    # Steps of the protocol. What they decide is said in loradrop/lifecycle.py.

    def claim(self, adapter: str, upload: UploadRecord, *, deleted: bool) -> Claim:
        return self._step(adapter, upload.order, lambda s, r: lifecycle.claim(s, r, upload, deleted=deleted))

    def use_component(
        self,
        adapter: str,
        order: str,
        attempt: str,
        *,
        release: str,
        endpoint: str,
        base: str,
        new_name: str,
        instead_of: str | None = None,
    ) -> Use:
        def rule(state: AdapterState, record: UploadRecord | None) -> Step[Use]:
            return lifecycle.use_component(
                state,
                record,
                attempt,
                release=release,
                endpoint=endpoint,
                base=base,
                new_name=new_name,
                instead_of=instead_of,
            )

        return self._step(adapter, order, rule)

    def promote(
        self, adapter: str, order: str, attempt: str, name: str, *, since: str, now: int, grace_seconds: int
    ) -> Promotion:
        def rule(state: AdapterState, record: UploadRecord | None) -> Step[Promotion]:
            return lifecycle.promote(state, record, attempt, name, since=since, now=now, grace_seconds=grace_seconds)

        return self._step(adapter, order, rule)

    def give_up(self, adapter: str, order: str, attempt: str) -> GiveUp:
        return self._step(adapter, order, lambda s, r: lifecycle.give_up(s, r, attempt))

    def begin_delete(self, adapter: str, name: str, *, now: int, needed_room_since: int | None = None) -> bool:
        def rule(state: AdapterState, _: UploadRecord | None) -> Step[bool]:
            return lifecycle.begin_delete(state, name, now=now, needed_room_since=needed_room_since)

        return self._step(adapter, None, rule)

    def end_delete(self, adapter: str, name: str) -> None:
        self._step(adapter, None, lambda s, _: lifecycle.end_delete(s, name))

    def finish(
        self,
        adapter: str,
        upload: UploadRecord,
        outcome: Outcome,
        *,
        release: str | None = None,
        summary: str | None = None,
        entry: str | None = None,
        figures: Mapping[str, str | int | float] | None = None,
        full_at: int | None = None,
    ) -> Outcome | None:
        def rule(state: AdapterState, record: UploadRecord | None) -> Step[Outcome | None]:
            return lifecycle.finish(
                state,
                record,
                upload,
                outcome,
                release=release,
                summary=summary,
                entry=entry,
                figures=figures,
                full_at=full_at,
            )

        return self._step(adapter, upload.order, rule)

    def mark_reported(self, adapter: str, order: str, channels: Iterable[str], *, is_complete: bool) -> None:
        self._step(adapter, order, lambda _, r: lifecycle.mark_reported(r, channels, is_complete=is_complete))

    def remove(self, adapter: str, removal: UploadRecord, *, now: int, grace_seconds: int) -> UploadRecord | None:
        def rule(state: AdapterState, record: UploadRecord | None) -> Step[UploadRecord | None]:
            return lifecycle.remove(state, record, removal, now=now, grace_seconds=grace_seconds)

        return self._step(adapter, removal.order, rule)

    def recover(self, adapter: str, order: str, attempt: str) -> Recovered:
        return self._step(adapter, order, lambda s, r: lifecycle.recover(s, r, attempt))

    def live(self, adapter: str) -> Live | None:
        return self.state(adapter).live

    def _step(self, adapter: str, order: str | None, rule: Rule[T]) -> T:
        for _ in range(TRIES):
            state = self.state(adapter)  # before the upload: see above
            step = rule(state, self.upload(adapter, order) if order is not None else None)
            if step.state is None and step.record is None:
                return step.answer
            after = replace(step.state or state, revision=state.revision + 1)
            if step.record is not None:
                after = lifecycle.with_newest(after, step.record)
            if self._write(adapter, after, step.record):
                return step.answer
        raise RegistryContended(f"The state of {adapter} was written by others, {TRIES} times in a row.")

    def _write(self, adapter: str, state: AdapterState, record: UploadRecord | None) -> bool:
        """Whether the state was still the one that this one was made of."""
        put_state: Any = {"TableName": self._table, "Item": state_item(adapter, state)}
        if state.revision == 1:
            put_state["ConditionExpression"] = "attribute_not_exists(adapter)"
        else:
            put_state["ConditionExpression"] = "revision = :revision"
            put_state["ExpressionAttributeValues"] = {":revision": {"N": str(state.revision - 1)}}
        puts: list[Any] = [{"Put": put_state}]
        if record is not None:
            puts.append({"Put": {"TableName": self._table, "Item": record_item(adapter, record)}})
        try:
            self._client.transact_write_items(TransactItems=puts)
        except ClientError as error:
            refused: Any = error.response
            reasons = {one.get("Code") for one in refused.get("CancellationReasons", [])}
            if reasons & _CONFLICTS:
                return False
            raise
        return True
