"""Chats as people hold them, OpenAI's `messages` and ShareGPT's `conversations`, as messages that a chat template takes."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .findings import Code

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_response": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
TEXT_PARTS = ("text", "input_text", "output_text")
# Of preference data sets, by the columns that give them away: the answers to train on, as a command.
PREFERENCE_COMMANDS = {
    "preferred_output": "jq -c '{messages: (.input.messages + .preferred_output)}' PAIRS.jsonl > CHATS.jsonl",
    "chosen": 'jq -c \'if (.chosen|type) == "string" then {prompt, completion: .chosen} '
    "elif .prompt then {messages: (.prompt + .chosen)} else {messages: .chosen} end' PAIRS.jsonl > CHATS.jsonl",
}

Find = Callable[[Code, str], None]


@dataclass(frozen=True, slots=True)
class Chat:
    """`messages` end with the last turn that is trained on; `trained_on` are the numbers of such turns, from 0."""

    messages: tuple[dict[str, Any], ...]
    trained_on: frozenset[int]
    tools: tuple[dict[str, Any], ...] = ()

    def texts(self) -> Iterator[tuple[str, str]]:
        """(where, text) of all that people and models wrote."""
        for number, message in enumerate(self.messages, start=1):
            if message["content"]:
                yield f"message {number} ({message['role']})", message["content"]
            for call in message.get("tool_calls", ()):
                yield f"message {number} (tool call)", json.dumps(call["function"], ensure_ascii=False)


def is_preference(record: Mapping[str, Any]) -> bool:
    return any(column in record for column in PREFERENCE_COMMANDS)


def preference_advice(record: Mapping[str, Any]) -> str:
    column = next(one for one in PREFERENCE_COMMANDS if one in record)
    return f"it has {column!r}; keep the preferred answers, and train on them: {PREFERENCE_COMMANDS[column]}"


def read_chat(record: Mapping[str, Any], find: Find, *, loss: str = "all", system: str | None = None) -> Chat | None:
    """The chat of a record of either form; None where something is wrong, which `find` has been given.

    `loss` is "all" or "last": which of the assistant's turns are trained on. `system` is for chats without a system message.
    """
    found: list[Code] = []

    def problem(code: Code, detail: str) -> None:
        found.append(code)
        find(code, detail)

    column = next((one for one in ("messages", "conversations", "conversation") if one in record), None)
    given = record.get(column) if column else None
    if isinstance(given, str):  # a cell of a table
        try:
            given = json.loads(given)
        except ValueError:
            given = None
    if not isinstance(given, list) or not given:
        there = ", ".join(sorted(map(str, record))[:8]) or "nothing"
        problem(
            Code.NOT_A_CHAT, f"it needs a list of messages under 'messages' or 'conversations'; the line has {there}"
        )
        return None
    messages, weights = [], []
    for number, one in enumerate(given, start=1):
        message = _message(one, number, problem)
        if message is not None:
            messages.append(message)
            weights.append(_weight(one, message["role"], number, problem))
    if found:
        return None
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
        weights.insert(0, 0)
    _check_order(messages, problem)
    answers = [number for number, weight in enumerate(weights) if weight]
    if not answers:
        has_weights = any(message["role"] == "assistant" for message in messages)
        problem(
            Code.NO_ANSWER,
            "every assistant turn has weight 0" if has_weights else "add the answer, or take the line out",
        )
    tools = _tools(record, problem)
    if found:
        return None
    trained_on = answers if loss == "all" else answers[-1:]
    return Chat(tuple(messages[: answers[-1] + 1]), frozenset(trained_on), tools)


def _message(one: Any, number: int, problem: Find) -> dict[str, Any] | None:
    if not isinstance(one, dict):
        problem(
            Code.NOT_A_CHAT, f"message {number} is a {type(one).__name__}; it must be an object with role and content"
        )
        return None
    given = one.get("role", one.get("from"))
    role = ROLES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        found = f"role {given!r}" if given is not None else "no role"
        problem(Code.NOT_A_CHAT, f"message {number} has {found[:60]}; it must be one of system, user, assistant, tool")
        return None
    content = _content(one.get("content", one.get("value")), number, problem)
    if content is None:
        return None
    message: dict[str, Any] = {"role": role, "content": content}
    calls = _tool_calls(one, number, problem)
    if given in ("function_call", "tool_call") and not calls:
        calls = _tool_calls({"function_call": _parsed(content)}, number, problem)
        message["content"] = ""
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        message |= {name: one[name] for name in ("tool_call_id", "name") if isinstance(one.get(name), str)}
    elif not message["content"].strip() and not calls:
        problem(Code.EMPTY_TEXT, f"message {number} ({role})")
        return None
    return message


def _content(content: Any, number: int, problem: Find) -> str | None:
    """OpenAI's content is a text, nothing (beside tool calls), or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(one, dict) for one in content):
        others = sorted({str(one.get("type")) for one in content if one.get("type") not in TEXT_PARTS})
        if not others:
            return "".join(str(one.get("text", "")) for one in content)
        problem(
            Code.NOT_TEXT,
            f"message {number} holds {', '.join(others)[:60]}; the base reads text alone: take the line out",
        )
        return None
    problem(Code.NOT_A_CHAT, f"the content of message {number} is a {type(content).__name__}; it must be a text")
    return None


def _weight(one: dict[str, Any], role: str, number: int, problem: Find) -> int:
    if role != "assistant":
        return 0
    weight = one.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, bool):
        problem(Code.NOT_A_CHAT, f"the weight of message {number} is {weight!r}; it must be 0 or 1")
        return 0
    return int(weight)


def _tool_calls(one: Mapping[str, Any], number: int, problem: Find) -> list[dict[str, Any]]:
    """With arguments as objects, as templates take them; OpenAI has them as JSON in a text."""
    given = one.get("tool_calls") or ([{"function": one["function_call"]}] if one.get("function_call") else [])
    calls = []
    for call in given if isinstance(given, list) else [None]:
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = _parsed(function.get("arguments", {})) if isinstance(function, dict) else None
        if not isinstance(call, dict) or not isinstance(name, str) or not isinstance(arguments, dict):
            problem(
                Code.NOT_A_CHAT, f"a tool call of message {number} lacks a name, or arguments that are a JSON object"
            )
            continue
        has_id = isinstance(call, dict) and isinstance(call.get("id"), str)
        calls.append(
            ({"id": call["id"]} if has_id else {})
            | {"type": "function", "function": {"name": name, "arguments": arguments}}
        )
    return calls


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _tools(record: Mapping[str, Any], problem: Find) -> tuple[dict[str, Any], ...]:
    tools = _parsed(record.get("tools")) or [
        {"type": "function", "function": one} for one in _parsed(record.get("functions")) or ()
    ]
    if not isinstance(tools, list) or not all(isinstance(one, dict) for one in tools):
        problem(Code.NOT_A_CHAT, "tools must be a list of objects, each with a function")
        return ()
    return tuple(tools)


def _check_order(messages: list[dict[str, Any]], problem: Find) -> None:
    """What no server is ever asked; whether two user turns may follow each other is the template's to say."""
    before: dict[str, Any] = {"role": "nothing"}
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role == "assistant" and before["role"] in ("nothing", "system"):
            problem(
                Code.ROLE_ORDER,
                f"message {number} is the assistant's, and nobody has asked yet; begin with a user turn",
            )
        elif role == "assistant" == before["role"]:
            problem(Code.ROLE_ORDER, f"message {number} is the assistant's, as the one before it; join the two")
        elif role == "tool" and not ("tool_calls" in before or before["role"] == "tool"):
            problem(Code.ROLE_ORDER, f"message {number} is a tool's result, and message {number - 1} calls no tool")
        elif role == "system" and before["role"] not in ("nothing", "system"):
            problem(Code.ROLE_ORDER, f"message {number} is a system message; it must come first")
        before = message
