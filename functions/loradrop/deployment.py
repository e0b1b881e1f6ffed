"""The deployment: the one typed record that travels through DeployAdapter, from the event to the outcome.

Every handler takes {"deployment": record} and returns the record with what it found out. A record is JSON, has a
`version`, and is at most MAX_RECORD_BYTES long as Lambda sends it: what is larger lies in S3, and the record names it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from loradrop import lifecycle
from loradrop.lifecycle import Claim, UploadRecord, Use
from loradrop.names import AdapterNameInvalidError, adapter_name, nameless_adapter, order_of
from loradrop.problems import clipped, printable

RECORD_VERSION = 1
# aws/faults.py: the endpoint has no room, or none yet.
FULL_ERRORS = ("EndpointFull", "RoomBeingMade")
MAX_RECORD_BYTES = 32 * 1024
MAX_CAUSE_CHARACTERS = 2_000
MAX_KEY_BYTES = 1024  # of S3


class _Record:
    """Reads and writes a flat dataclass as JSON. Unknown keys are an error: two versions of the code have met."""

    __slots__ = ()

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(**record)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Upload(_Record):
    """One object version in the upload bucket, as its Object Created event has it.

    `adapter` is the adapter's name, or `!` and the key where the key names none. `order` is its place among the
    adapter's events. `heals` is the component that a healing replaces; it then stands for the upload that is live.
    """

    adapter: str
    bucket: str
    key: str
    order: str
    version_id: str | None = None
    size_bytes: int = 0
    etag: str | None = None
    requester: str | None = None
    source_ip: str | None = None
    uploaded_at: str | None = None
    heals: str | None = None

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Self:
        """From an S3 event of EventBridge. The key is raw there, not URL-encoded.

        Raises KeyError or ValueError if the event is of another form.
        """
        detail = event["detail"]
        thing = detail["object"]
        try:
            adapter = adapter_name(thing["key"])
        except AdapterNameInvalidError:
            adapter = nameless_adapter(thing["key"])
        return cls(
            adapter=adapter,
            bucket=detail["bucket"]["name"],
            key=thing["key"],
            version_id=thing.get("version-id"),
            order=order_of(thing["sequencer"]),
            size_bytes=thing.get("size", 0),
            etag=thing.get("etag"),
            requester=detail.get("requester"),
            source_ip=detail.get("source-ip-address"),
            uploaded_at=event.get("time"),
        )

    @classmethod
    def from_record(cls, adapter: str, record: UploadRecord) -> Self:
        """As the registry's history has it."""
        known = {field.name: getattr(record, field.name) for field in fields(cls) if field.name != "adapter"}
        return cls(adapter=adapter, **(known | {"version_id": record.version_id or None}))

    def record(self, attempt: str) -> UploadRecord:
        """What the registry keeps of it, as an attempt claims it."""
        known = {name: value for name, value in self.to_dict().items() if name != "adapter"}
        return UploadRecord(**({"version_id": ""} | known), attempt=attempt)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def shown_adapter(self) -> str:
        """For messages: the adapter's name, or the key that names none."""
        return printable(self.adapter.removeprefix("!"))

    @property
    def shown(self) -> str:
        """For messages: whatever bytes the key holds, it prints on one line."""
        version = f", version {self.version_id}" if self.version_id else ""
        return f"{printable(self.uri)}{version}"


@dataclass(frozen=True, slots=True)
class Release(_Record):
    """Validated bytes in the release bucket; `manifest_key` is what validation found out, with the smoke prompts."""

    sha256: str
    bucket: str
    key: str
    manifest_key: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class Placement(_Record):
    """The attempt's component: where it is made, and how its making goes. `since` is in Unix seconds."""

    name: str
    endpoint: str
    base: str
    since: int
    taken_over: bool = False
    status: str | None = None
    waited_seconds: float = 0.0
    next_poll_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Turn(_Record):
    """A place in the line of creates. `wait_seconds` stands until the turn has come, with how many are `before` it.

    `is_queued`: the state machine waited for it.
    """

    ticket: int
    before: int = 0
    wait_seconds: int | None = None
    is_queued: bool = False
    throttles: int = 0


@dataclass(frozen=True, slots=True)
class SmokeResult(_Record):
    """What the smoke test found; all its answers lie at `answers`, an s3:// URI."""

    passed: bool
    summary: str
    prompts: int
    adapter_ms: int
    base_ms: int
    answers: str | None = None


@dataclass(frozen=True, slots=True)
class Supersession(_Record):
    """Why this upload ends without going live: a newer upload or removal of its adapter."""

    version_id: str | None = None
    attempt: str | None = None
    removed: bool = False

    @classmethod
    def by(cls, decided: Claim | Use | lifecycle.Promotion) -> Self:
        return cls(decided.by_version_id, decided.by_attempt, decided.removed)


@dataclass(frozen=True, slots=True)
class Promotion(_Record):
    """The live pointer names this attempt's component. `replaced` is the component that it named before."""

    since: str
    replaced: str | None = None


@dataclass(frozen=True, slots=True)
class Failure(_Record):
    """What Step Functions caught. `Error` and `Cause` are its words."""

    Error: str
    Cause: str = ""

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        return cls(str(record.get("Error", "Unknown")), str(record.get("Cause", "")))

    @property
    def reason(self) -> str:
        """One sentence: Cause is a Lambda's error as JSON, perhaps cut, or plain text."""
        sentence = self.Cause
        start = sentence.find('"errorMessage"')
        if sentence.startswith("{") and start >= 0:
            try:
                value = sentence[start:].partition(":")[2].lstrip()
                sentence = json.JSONDecoder(strict=False).raw_decode(value)[0]
            except ValueError:
                sentence = value.strip('"')
        return clipped(f"{self.Error}: {sentence}" if sentence else self.Error, MAX_CAUSE_CHARACTERS)


_PARTS: dict[str, type[_Record]] = {
    "upload": Upload,
    "release": Release,
    "turn": Turn,
    "component": Placement,
    "smoke": SmokeResult,
    "superseded": Supersession,
    "promotion": Promotion,
    "failure": Failure,
    "left_behind": Failure,
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """All that one attempt has found out. `attempt` is the ARN of its execution."""

    attempt: str
    event: Mapping[str, Any] | None = None
    upload: Upload | None = None
    repeated_by: str | None = None  # the attempt that has this upload: this execution says nothing
    validation: Mapping[str, Any] | None = None  # ValidationReport.to_dict()
    validation_report: str | None = None  # where the whole of it lies, an s3:// URI, if it is longer
    release: Release | None = None
    turn: Turn | None = None
    component: Placement | None = None
    smoke: SmokeResult | None = None
    superseded: Supersession | None = None
    promotion: Promotion | None = None
    failure: Failure | None = None
    left_behind: Failure | None = None  # why CleanUpComponent could not delete the component
    full_at: int | None = None  # how many components stood on the endpoint when it was full

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Raises ValueError on a record of another version."""
        known = dict(record)
        if (version := known.pop("version", None)) != RECORD_VERSION:
            raise ValueError(f"This deployment record is of version {version}; this code reads {RECORD_VERSION}.")
        for name, part in _PARTS.items():
            if known.get(name) is not None:
                known[name] = part.from_dict(known[name])
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. Raises ValueError past MAX_RECORD_BYTES, which no upload can bring about."""
        record: dict[str, Any] = {"version": RECORD_VERSION}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                record[field.name] = value.to_dict() if isinstance(value, _Record) else value
        if (size := record_bytes(record)) > MAX_RECORD_BYTES:
            raise ValueError(f"The deployment record has {size} bytes; {MAX_RECORD_BYTES} are allowed.")
        return record

    def having(self, **found: Any) -> Self:
        """The same deployment with what was found out."""
        return replace(self, **found)

    @property
    def found_no_room(self) -> bool:
        """Whether it failed because the endpoint was full: no fault, it is tried again."""
        return self.failure is not None and self.failure.Error in FULL_ERRORS

    @property
    def begun(self) -> Upload:
        """The upload. Raises ValueError before ClaimUpload has read the event."""
        if self.upload is None:
            raise ValueError("This deployment has no upload yet.")
        return self.upload


def record_bytes(record: object) -> int:
    """The length of a JSON value in UTF-8, with non-ASCII characters as Lambda sends them: the longer of both forms."""
    return max(len(json.dumps(record)), len(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")))
