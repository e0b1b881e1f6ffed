"""Invoke the adapters that a loradrop stack serves.

    from loradrop_client import Adapters

    adapters = Adapters.of_stack("loradrop-dev")
    print(adapters.chat("acme", "How are you?", max_tokens=64))
    for piece in adapters.stream("acme", "Tell me a story."):
        print(piece, end="", flush=True)

Every failure is a LoradropError, whose message is a sentence for whoever reads it.
"""

from .adapters import BASE, Adapters, AnswerStream, Message, Served
from .errors import (
    AWS_ERRORS,
    AccessRefusedError,
    AwsUnavailableError,
    ComponentBrokenError,
    LoradropError,
    ModelError,
    ModelNotReadyError,
    NoLiveComponentError,
    RequestRefusedError,
    StackNotFoundError,
    StreamBrokenError,
    explained,
    explaining,
)
from .stack_outputs import DEFAULT_STACK, STACK_VARIABLE, StackOutputs, default_stack, read_stack

__all__ = [
    "AWS_ERRORS",
    "BASE",
    "DEFAULT_STACK",
    "STACK_VARIABLE",
    "AccessRefusedError",
    "Adapters",
    "AnswerStream",
    "AwsUnavailableError",
    "ComponentBrokenError",
    "LoradropError",
    "Message",
    "ModelError",
    "ModelNotReadyError",
    "NoLiveComponentError",
    "RequestRefusedError",
    "Served",
    "StackNotFoundError",
    "StackOutputs",
    "StreamBrokenError",
    "default_stack",
    "explained",
    "explaining",
    "read_stack",
]
