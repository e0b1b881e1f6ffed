"""What stands behind a base component: an engine that holds the base once and any number of adapters beside it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol


class Token(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def logprob(self) -> float: ...


class Generation(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> Sequence[Token]: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...


class Engine(Protocol):
    """The interface of local/engine.py, which is the one with a real model in it."""

    def load_adapter(self, name: str, tarball: bytes) -> None: ...
    def unload_adapter(self, name: str) -> None: ...
    def generate(
        self, prompt: str, *, adapter: str | None, max_new_tokens: int, temperature: float, stop: Sequence[str] = ()
    ) -> Generation: ...
    def stream(
        self, prompt: str, *, adapter: str | None, max_new_tokens: int, temperature: float, stop: Sequence[str] = ()
    ) -> Iterator[Token]: ...
    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str: ...


EngineFactory = Callable[[], Engine]
