"""What stands behind a base component: an engine that holds the base once and any number of adapters beside it.

stand_in.py has no model in it, llama.py a real one; vllm.py is the engine of the containers themselves, in a process of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class AdapterLoadError(Exception):
    """An adapter that cannot be served; `reason` is a sentence for the person who made it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownAdapterError(LookupError):
    """A request, or an unload, for an adapter that is not loaded."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no adapter named {name!r} is loaded")


class EngineDiedError(Exception):
    """The engine's process has ended, and all that was loaded with it; `reason` has its last words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EngineState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; `logprob` is natural, of the raw logits.

    The texts of all tokens, joined, are the generation's text: a token whose text is held back (half a character, or
    what may become a stop string) and the one that ends the answer have the empty text. Of several tokens that came in
    one piece, the first has the piece's text.
    """

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Generation:
    text: str
    tokens: tuple[Token, ...]
    finish_reason: str  # "length" | "eos_token" | "stop"
    prompt_tokens: int


@dataclass(slots=True)
class Run:
    """What becomes known during a generation."""

    prompt_tokens: int = 0
    finish_reason: str = "length"


class Engine(Protocol):
    """What each call of an engine that has died raises, beside its own errors: EngineDiedError."""

    @property
    def state(self) -> EngineState: ...

    @property
    def last_words(self) -> str:
        """Why it died, as far as it said; empty while it lives."""

    def close(self) -> None:
        """Ends its process, if it has one: with a container ends what was in it. An engine of this process stays as it is."""

    def load_adapter(self, name: str, tarball: bytes, *, max_rank: int | None = None) -> None:
        """Raises AdapterLoadError; nothing has changed then."""

    def unload_adapter(self, name: str) -> None:
        """Raises UnknownAdapterError."""

    def generate(
        self, prompt: str, *, adapter: str | None, max_new_tokens: int, temperature: float, stop: Sequence[str] = ()
    ) -> Generation:
        """The whole answer of the adapter, or of the base if `adapter` is None. Raises UnknownAdapterError."""

    def stream(
        self,
        prompt: str,
        *,
        adapter: str | None,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str] = (),
        run: Run | None = None,
    ) -> Iterator[Token]:
        """The same answer, token by token. `run` has its prompt's length from the first token on."""

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str: ...


# Of the environment that the base's container is started with.
EngineFactory = Callable[[Mapping[str, str]], Engine]


def check_rank(rank: int, max_rank: int | None) -> None:
    """As vLLM says it."""
    if max_rank is not None and rank > max_rank:
        raise AdapterLoadError(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
