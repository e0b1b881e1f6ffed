"""What can be wrong with data, and how it is shown: each finding with its file and line."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from loradrop.problems import printable

SHOWN_PLACES = 5


class Code(StrEnum):
    """What can be wrong with data. Each is fatal unless `WARNINGS` holds it."""

    UNREADABLE_FILE = "the file cannot be read"
    NOT_UTF8 = "the line is not UTF-8"
    NOT_A_RECORD = "the line is not a record"
    MISSING_COLUMN = "a column is missing, or holds no text"
    UNKNOWN_SPLIT = "the row's split is neither train nor one that is held out, such as test or validation"
    EMPTY_TEXT = "a text is empty"
    UNKNOWN_LABEL = "the label is none of the recipe's"
    NOT_A_CHAT = "the chat is not a list of messages with a role and content each"
    PREFERENCE_PAIR = "the line is a preference pair, and loradrop trains on answers, not on preferences"
    ROLE_ORDER = "the roles of the chat are out of order"
    NO_ANSWER = "the chat has no assistant turn to train on"
    NOT_TEXT = "the message holds more than text"
    TEMPLATE = "the base's chat template cannot write the chat"
    SPECIAL_TOKEN = "the text holds one of the model's special tokens, which would end or begin a turn"
    TOO_LONG = "the example has more tokens than the recipe's data.max_tokens"
    LEAKAGE = "a held-out text is also in the training data: the evaluation would measure memory"
    NO_EXAMPLES = "there is nothing to train on, or nothing held out"
    LABEL_WITHOUT_EXAMPLE = "a label of the recipe has no example"
    CONTRADICTION = "the same text has different answers"
    DUPLICATE = "the same text with the same answer again"
    IMBALANCE = "one label is far rarer than another"
    SUSPECT_ENCODING = "the text looks like UTF-8 that was once read as something else"
    PERSONAL_DATA = "the text looks like a key or a card number, which a model can repeat to anybody"
    DROPPED_LONG = "the example has more tokens than data.max_tokens and is left out"
    CUT_LONG = "the chat has more tokens than data.max_tokens; its last turns are left out"


WARNINGS = frozenset(
    {
        Code.CONTRADICTION,
        Code.DUPLICATE,
        Code.IMBALANCE,
        Code.SUSPECT_ENCODING,
        Code.PERSONAL_DATA,
        Code.DROPPED_LONG,
        Code.CUT_LONG,
    }
)


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, both as people name them: from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Finding:
    code: Code
    place: Place | None
    detail: str

    @property
    def is_fatal(self) -> bool:
        return self.code not in WARNINGS


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """For a person: fatal ones first, a group for each code, its count, and the first few places."""
    groups: dict[Code, list[Finding]] = defaultdict(list)
    for one in findings:
        groups[one.code].append(one)
    lines = []
    for code in sorted(groups, key=lambda one: (one in WARNINGS, list(Code).index(one))):
        group = groups[code]
        kind = "warning" if code in WARNINGS else "error"
        lines.append(f"{kind} {code.name}: {code.value} ({len(group):,})")
        lines += [printable(f"    {one.place or 'data'}: {one.detail}") for one in group[:SHOWN_PLACES]]
        if len(group) > SHOWN_PLACES:
            lines.append(f"    … and {len(group) - SHOWN_PLACES:,} more")
    return lines
