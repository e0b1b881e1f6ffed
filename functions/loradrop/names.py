"""Names: of adapters, of the components and objects that stand for them, and the order of uploads."""

import hashlib
import re

UPLOAD_PREFIX = "adapters/"
UPLOAD_SUFFIX = ".tar.gz"
REPORT_PREFIX = "reports/"
# Of a copy onto an adapter's key: the version that it repeats, and why. Whoever uploads can write them too.
REPEATS_METADATA, REASON_METADATA = "loradrop-repeats", "loradrop-reason"
# The report of the key `adapters/.tar.gz`.
UNNAMED = "(no name)"

MAX_ADAPTER_NAME_CHARACTERS = 128
# SageMaker: [a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?, at most 63 characters (CreateInferenceComponent).
MAX_COMPONENT_NAME_CHARACTERS = 63
# S3 sends 16 to 18 hexadecimal digits today; the order holds for any length up to this one.
SEQUENCER_DIGITS = 40

_SEGMENT = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_ADAPTER_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]+")
_DIGEST_CHARACTERS = 20

ADAPTER_NAME_RULE = (
    "letters, digits, '.', '_' and '-', each part between slashes beginning and ending with a letter or digit, "
    f"at most {MAX_ADAPTER_NAME_CHARACTERS} characters in all"
)


class AdapterNameInvalidError(ValueError):
    """The key names no adapter; the message says what is allowed."""


def is_upload_key(key: str) -> bool:
    """Whether a key is of the form that starts a deployment, whatever adapter it names."""
    return key.startswith(UPLOAD_PREFIX) and key.endswith(UPLOAD_SUFFIX)


def key_stem(key: str) -> str:
    """`adapters/tenant/acme.tar.gz` → `tenant/acme`, whatever characters stand between."""
    return key.removeprefix(UPLOAD_PREFIX).removesuffix(UPLOAD_SUFFIX)


def is_adapter_name(name: str) -> bool:
    return len(name) <= MAX_ADAPTER_NAME_CHARACTERS and _ADAPTER_NAME.fullmatch(name) is not None


def check_adapter_name(name: str) -> None:
    """Raises AdapterNameInvalidError, with the rule in its message, where an adapter cannot be called so."""
    if not is_adapter_name(name):
        raise AdapterNameInvalidError(f"{name!r} is no adapter name. Allowed: {ADAPTER_NAME_RULE}.")


def adapter_name(key: str) -> str:
    """The adapter that a key names. Raises AdapterNameInvalidError with the rule in its message."""
    name = key_stem(key)
    if not is_upload_key(key):
        raise AdapterNameInvalidError(f"The key {key!r} is not of the form {UPLOAD_PREFIX}<adapter>{UPLOAD_SUFFIX}.")
    try:
        check_adapter_name(name)
    except AdapterNameInvalidError as error:
        raise AdapterNameInvalidError(f"{error} Upload it again as {UPLOAD_PREFIX}<name>{UPLOAD_SUFFIX}.") from error
    return name


def upload_key(adapter: str) -> str:
    return f"{UPLOAD_PREFIX}{adapter}{UPLOAD_SUFFIX}"


def nameless_adapter(key: str) -> str:
    """What the registry keeps a key under that names no adapter. No adapter's name begins like this."""
    return f"!{key}"


def component_name(adapter: str, release: str, *, endpoint: str, base: str, attempt: str) -> str:
    """The name of the component that one attempt makes for a release, the same each time that attempt asks.

    Names are unique in an account and region, so the digest holds endpoint and base as well; and the attempt, so that
    nothing that comes late meets anybody else's component. The readable part is for the console.
    """
    parts = "\0".join((endpoint, base, adapter, release, attempt))
    digest = hashlib.sha256(parts.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    room = MAX_COMPONENT_NAME_CHARACTERS - len(digest) - 1
    readable = re.sub(r"[^A-Za-z0-9]+", "-", adapter)[:room].strip("-")
    return f"{readable}-{digest}"


def release_key(adapter: str, release: str) -> str:
    return f"releases/{adapter}/{release}{UPLOAD_SUFFIX}"


def release_manifest_key(adapter: str, release: str) -> str:
    return f"releases/{adapter}/{release}.json"


def answers_key(adapter: str, release: str, order: str) -> str:
    """Where all the answers of an upload's smoke test lie, in the release bucket."""
    return f"smoke/{adapter}/{release}-{order}.json"


def validation_key(adapter: str, order: str) -> str:
    """Where the whole validation report of a rejected upload lies, in the release bucket."""
    return f"validations/{adapter}/{order}.json"


def report_key(key: str) -> str:
    """Where the report on an upload's adapter lies, in the upload bucket; also for a key that names no adapter."""
    return f"{REPORT_PREFIX}{key_stem(key) or UNNAMED}.json"


def order_of(sequencer: str) -> str:
    """A sequencer as a string that sorts as S3 orders the events of one key: hexadecimal, padded from the left.

    Raises ValueError if it is not hexadecimal or longer than SEQUENCER_DIGITS.
    """
    if not _HEXADECIMAL.fullmatch(sequencer) or len(sequencer) > SEQUENCER_DIGITS:
        raise ValueError(f"The sequencer {sequencer!r} is not 1 to {SEQUENCER_DIGITS} hexadecimal digits.")
    return sequencer.upper().zfill(SEQUENCER_DIGITS)


def order_behind(order: str, milliseconds: int) -> str:
    """The order of a decision that has no event of its own: above what it repairs, below every later event."""
    return f"{order[:SEQUENCER_DIGITS]}.{milliseconds:013d}"


def made_behind(order: str) -> int:
    """Unix milliseconds: when a decision that has no event of its own was made; 0 for an upload's order."""
    return int(order[SEQUENCER_DIGITS + 1 :] or 0)
