"""The registry's items: an adapter's state and its uploads, as DynamoDB keeps them. aws/registry.py says what they mean."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from loradrop.lifecycle import AdapterState, ComponentEntry, ComponentState, Live, Outcome, UploadRecord
from loradrop.turns import Line

WATCHED_INDEX = "watched"
STATE = "state"
OPEN = "open"
UPLOAD = "upload#"
# `upload#` and everything that begins so: `$` is the character after `#`.
AFTER_UPLOADS = "upload$"
# Of an endpoint, not of an adapter: no adapter's name holds a #.
TURNS = "turns"


def state_item(adapter: str, state: AdapterState) -> dict[str, Any]:
    return {
        "adapter": {"S": adapter},
        "record": {"S": STATE},
        "watch": {"S": STATE},
        **_attributes(state),
        "components": {"M": {name: {"M": _attributes(entry)} for name, entry in state.components.items()}},
        **({"live": {"M": _attributes(state.live)}} if state.live else {}),
        **({"newest": {"M": _record_attributes(state.newest)}} if state.newest else {}),
    }


def record_item(adapter: str, record: UploadRecord) -> dict[str, Any]:
    return {
        "adapter": {"S": adapter},
        "record": {"S": UPLOAD + record.order},
        **({} if record.is_reported else {"watch": {"S": OPEN}}),
        **_record_attributes(record),
    }


def _record_attributes(record: UploadRecord) -> dict[str, Any]:
    return {
        **_attributes(record),
        "figures": {"M": {name: _attribute(value) for name, value in record.figures.items()}},
    }


def line_key(endpoint: str) -> dict[str, Any]:
    return {"adapter": {"S": f"endpoint#{endpoint}"}, "record": {"S": TURNS}}


def line_fields(line: Line) -> dict[str, Any]:
    """What a write sets: all but the tickets, which are counted."""
    return {name: value for name, value in _attributes(line).items() if name != "next_ticket"}


def line_of(item: Mapping[str, Any]) -> Line:
    return Line(**_known(Line, {name: _value(attribute) for name, attribute in item.items()}))


def _attributes(record: AdapterState | Live | ComponentEntry | UploadRecord | Line) -> dict[str, Any]:
    """The plain fields of a record that have a value."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: _attribute(value) for name, value in values.items() if isinstance(value, str | int | float)}


def _attribute(value: str | int | float) -> dict[str, Any]:
    match value:
        case bool():
            return {"BOOL": value}
        case str():
            return {"S": str(value)}
        case _:
            return {"N": repr(value)}


def _value(attribute: Mapping[str, Any]) -> Any:
    ((kind, value),) = attribute.items()
    match kind:
        case "N":
            return int(value) if value.lstrip("-").isdigit() else float(value)
        case "M":
            return {name: _value(one) for name, one in value.items()}
        case _:
            return value


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the dataclass has a field for: a newer version of the code may have written more."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def state_of(item: Mapping[str, Any]) -> AdapterState:
    values = {name: _value(attribute) for name, attribute in item.items()}
    live = values.get("live")
    return AdapterState(
        revision=values["revision"],
        floor=values["floor"],
        live=Live(**_known(Live, live)) if live else None,
        components={name: _entry_of(entry) for name, entry in values["components"].items()},
        newest=_record_of(values["newest"]) if "newest" in values else None,
    )


def _entry_of(values: Mapping[str, Any]) -> ComponentEntry:
    known = _known(ComponentEntry, values)
    return ComponentEntry(**(known | {"state": ComponentState(known["state"])}))


def record_of(item: Mapping[str, Any]) -> UploadRecord:
    return _record_of({name: _value(attribute) for name, attribute in item.items()})


def _record_of(values: Mapping[str, Any]) -> UploadRecord:
    known = _known(UploadRecord, values)
    outcome = known.get("outcome")
    return UploadRecord(**(known | {"outcome": Outcome(outcome) if outcome else None}))
