"""An engine without a model, for tests that ask how things are wired and not what a model says.

Its answers follow from the prompt and the adapter's bytes alone: the same question gets the same answer in every process, two
adapters differ from each other and from the base, and an adapter whose lora_B is all zero answers exactly as the base does.
"""

import gzip
import hashlib
import io
import json
import math
import struct
import tarfile
import threading
import zlib
from collections.abc import Iterator, Sequence

from . import AdapterLoadError, EngineState, Generation, Run, Token, UnknownAdapterError, check_rank

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

WORDS = [
    "the",
    "a",
    "one",
    "every",
    "some",
    "river",
    "stone",
    "cloud",
    "garden",
    "letter",
    "window",
    "morning",
    "evening",
    "engine",
    "teacher",
    "sailor",
    "reads",
    "sends",
    "keeps",
    "finds",
    "leaves",
    "opens",
    "carries",
    "answers",
    "under",
    "over",
    "beside",
    "without",
    "after",
    "before",
    "quietly",
    "soon",
]
END_OF_TEXT = len(WORDS)


class StandInEngine:
    state, last_words = EngineState.READY, ""

    def close(self) -> None:
        """Nothing of it is a process."""

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._digests)

    def load_adapter(self, name: str, tarball: bytes, *, max_rank: int | None = None) -> None:
        digest = _digest(tarball, max_rank)
        with self._lock:
            if name in self._digests:
                raise AdapterLoadError(f"an adapter named {name!r} is loaded already; unload it first")
            self._digests[name] = digest

    def unload_adapter(self, name: str) -> None:
        with self._lock:
            self._weights(name)
            del self._digests[name]

    def _weights(self, name: str) -> bytes:
        if name not in self._digests:
            raise UnknownAdapterError(name)
        return self._digests[name]

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
        return "".join(f"<{message['role']}>{message['content']}\n" for message in messages) + "<assistant>"

    def generate(
        self, prompt: str, *, adapter: str | None, max_new_tokens: int, temperature: float, stop: Sequence[str] = ()
    ) -> Generation:
        tokens = tuple(
            self.stream(prompt, adapter=adapter, max_new_tokens=max_new_tokens, temperature=temperature, stop=stop)
        )
        text = "".join(token.text for token in tokens)
        if tokens and tokens[-1].id == END_OF_TEXT:
            reason = "eos_token"
        elif any(ending in text for ending in stop):
            reason = "stop"
        else:
            reason = "length"
        return Generation(text, tokens, reason, prompt_tokens=len(prompt.split()))

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
        if run is not None:
            run.prompt_tokens = len(prompt.split())
        text = ""
        for step in range(max_new_tokens):
            # Looked up for every token: an adapter that is unloaded in the middle of its answer ends the answer.
            weights = b"" if adapter is None else self._weights(adapter)
            drawn = hashlib.sha256(f"{prompt}\0{step}\0".encode() + weights).digest()
            # One token in 64 ends the text, so that long answers end for either reason.
            chosen = END_OF_TEXT if drawn[0] < 4 and step else int.from_bytes(drawn[1:5], "big") % len(WORDS)
            logprob = -math.exp(-drawn[5] / 64)
            if chosen == END_OF_TEXT:
                yield Token(END_OF_TEXT, "", logprob)
                return
            word = (" " if step else "") + WORDS[chosen]
            text += word
            yield Token(chosen, word, logprob)
            if any(ending in text for ending in stop):
                return


def _digest(tarball: bytes, max_rank: int | None) -> bytes:
    """What of an adapter decides its answers: its weights, or nothing at all if they add nothing to the base."""
    files = _read(tarball)
    for wanted in (CONFIG_FILE, WEIGHTS_FILE):
        if wanted not in files:
            raise AdapterLoadError(f"{wanted} is missing at the root of the tarball")
    config = _json(CONFIG_FILE, files[CONFIG_FILE])
    if not isinstance(config, dict):
        raise AdapterLoadError(f"{CONFIG_FILE} holds no object")
    if isinstance(config.get("r"), int):
        check_rank(config["r"], max_rank)
    weights = files[WEIGHTS_FILE]
    return b"" if _adds_nothing(weights) else hashlib.sha256(weights).digest()


def _read(tarball: bytes) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    files[member.name.removeprefix("./")] = content.read()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise AdapterLoadError(f"the tarball cannot be read: {error}") from error
    return files


def _adds_nothing(weights: bytes) -> bool:
    """Whether every lora_B of this safetensors file is zero."""
    if len(weights) < 8:
        raise AdapterLoadError(f"{WEIGHTS_FILE} has {len(weights)} bytes, which is no header")
    (header_bytes,) = struct.unpack("<Q", weights[:8])
    header = _json(WEIGHTS_FILE, weights[8 : 8 + header_bytes])
    if not isinstance(header, dict):
        raise AdapterLoadError(f"{WEIGHTS_FILE} has no header")
    data = weights[8 + header_bytes :]
    spans = [entry["data_offsets"] for name, entry in header.items() if ".lora_B." in name]
    return bool(spans) and not any(any(data[start:end]) for start, end in spans)


def _json(name: str, text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AdapterLoadError(f"{name} is no JSON: {error}") from error
