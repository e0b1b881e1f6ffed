"""LMI's answers: the text in a whole one, and the pieces of text in a streamed one.

A streamed answer is lines of JSON: `messages` is answered in the form of OpenAI's chat (as server-sent events, `data: {…}`
and `data: [DONE]`, or as bare lines, by LMI's handler), `inputs` by one token a line. SageMaker cuts the bytes where it likes,
so a part may hold half a line, or half a character.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import ModelError, StreamBrokenError

MAX_SHOWN_CHARACTERS = 300
# A line of a stream holds a token, its last one the whole text and the details of each token. What never ends is none.
MAX_LINE_BYTES = 16 * 1024 * 1024
# What a choice or the details give as the reason where the engine gave up, and the text is incomplete.
BROKEN_REASONS = ("error", "abort")


def answer_of(body: bytes) -> dict[str, Any]:
    """A whole answer. Raises ModelError for an error, which LMI can send with status 200, and for what is no answer."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"The model's answer is not JSON: {_shown(body)}") from error
    if isinstance(answer, list) and len(answer) == 1:  # some of LMI's handlers answer a batch of one
        answer = answer[0]
    if not isinstance(answer, dict):
        raise ModelError(f"The model's answer is not a JSON object: {_shown(body)}")
    if (failure := _failure_in(answer)) is not None:
        raise ModelError(f"The model answered with an error: {failure}", _status_in(answer), failure)
    return answer


def text_of(answer: dict[str, Any]) -> str:
    """The text of a whole answer, whichever schema asked for it. Raises ModelError if there is none."""
    text = _text_in(answer)
    if text is None:
        raise ModelError(f"The model's answer has no text: {_shown(json.dumps(answer).encode())}")
    return text


def pieces_of(events: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The pieces of text in a stream's events, none of them empty."""
    is_begun = False
    for event in events:
        if is_begun and "generated_text" in event and "token" not in event:
            continue  # the whole text once more
        if piece := _text_in(event):
            is_begun = True
            yield piece


def events_of(parts: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The events of a stream as they come. Raises StreamBrokenError where the answer breaks off."""
    is_answered = is_choice = is_finished = False
    for line in _lines(parts):
        event = _event_in(line)
        if event is None:
            continue
        is_answered = True
        if (failure := _failure_in(event)) is not None:
            raise StreamBrokenError(f"The model broke off its answer: {failure}", _status_in(event), failure)
        if event.get("choices") is not None:
            is_choice = True
            is_finished = is_finished or any(choice.get("finish_reason") for choice in _choices_in(event))
        yield event
    if not is_answered:
        raise StreamBrokenError("The model's answer ended before it had begun.")
    # Only of this schema is it sure that a last piece says so.
    if is_choice and not is_finished:
        raise StreamBrokenError("The model's answer ended in the middle: its last piece did not come.")


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for part in parts:
        ending, *begun = part.split(b"\n")
        held += ending
        for beginning in begun:
            yield bytes(held)
            held = bytearray(beginning)
        if len(held) > MAX_LINE_BYTES:
            raise StreamBrokenError(f"The model's stream has a line of more than {MAX_LINE_BYTES:,} bytes.")
    yield bytes(held)


def _event_in(line: bytes) -> dict[str, Any] | None:
    """None of what is no event of its own: an empty line, a comment, the mark of the end."""
    text = line.strip()
    if not text.startswith(b"{"):
        field, _, text = text.partition(b":")
        text = text.strip()
        if field != b"data" or text in (b"", b"[DONE]"):
            if field in (b"", b"data", b"event", b"id", b"retry"):
                return None
            raise StreamBrokenError(f"The model's stream has a line that is not JSON: {_shown(line)}")
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StreamBrokenError(f"The model's stream has a line that is not JSON: {_shown(line)}") from error
    return event if isinstance(event, dict) else None


def _text_in(answer: dict[str, Any]) -> str | None:
    """Of a whole answer or of one line of a stream, in any of LMI's schemas."""
    text: Any = None
    if isinstance(answer.get("token"), dict):  # its last line repeats the whole text beside the last token
        text = answer["token"].get("text")
    elif choices := _choices_in(answer):
        choice = choices[0]
        said = choice.get("delta") or choice.get("message") or choice
        text = said.get("content", choice.get("text")) if isinstance(said, dict) else None
        text = "" if text is None else text
    else:
        text = answer.get("generated_text")
    return text if isinstance(text, str) else None


def _failure_in(answer: dict[str, Any]) -> str | None:
    failure = answer.get("error")
    if failure is None and answer.get("object") == "error":
        failure = answer
    if failure is None and any(one.get("finish_reason") in BROKEN_REASONS for one in _endings_in(answer)):
        failure = "the engine failed"
    if failure is None:
        return None
    return str(failure.get("message", failure) if isinstance(failure, dict) else failure)[:MAX_SHOWN_CHARACTERS]


def _choices_in(answer: dict[str, Any]) -> list[dict[str, Any]]:
    choices = answer.get("choices")
    return [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []


def _endings_in(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What may hold a finish_reason."""
    details = answer.get("details")
    return [*_choices_in(answer), *([details] if isinstance(details, dict) else [])]


def _status_in(answer: dict[str, Any]) -> int | None:
    inner = answer.get("error")
    for holder in (answer, inner if isinstance(inner, dict) else {}):
        if isinstance(code := holder.get("code"), int):
            return code
    return None


def _shown(body: bytes) -> str:
    return repr(body[:MAX_SHOWN_CHARACTERS].decode(errors="replace"))
