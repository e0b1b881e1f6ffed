"""How much memory the validator takes above the interpreter that imported it, in MiB, for the inputs that take the most.

    python -m tests.validator_memory     ->  {"large": 22.1, …}

Each is validated in a process of its own, since a peak never falls.
"""

import io
import json
import multiprocessing
import random
import resource
import tarfile
import zlib
from collections.abc import Callable, Iterator

from loradrop.policy import DEFAULT_POLICY, MIB
from loradrop.profile import load_profile
from loradrop.validator import validate

CONFIG = b'{"r": 4, "lora_alpha": 8, "target_modules": []}'
LARGE_BYTES = 200 * MIB


class Pieces:
    """A stream that makes what is read of it, and holds none of it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def _packed(header: bytes, data_bytes: int) -> Iterator[bytes]:
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    for name, head, length in (
        ("adapter_config.json", CONFIG, 0),
        ("adapter_model.safetensors", len(header).to_bytes(8, "little") + header, data_bytes),
    ):
        member = tarfile.TarInfo(name)
        member.size = len(head) + length
        yield deflate.compress(member.tobuf(tarfile.USTAR_FORMAT) + head)
        piece = random.Random(0).randbytes(MIB).replace(b"\x7f", b"\x3f").replace(b"\xff", b"\x3f")
        for _ in range(length // MIB):
            yield deflate.compress(piece)
        yield deflate.compress(bytes(-member.size % 512))
    yield deflate.compress(bytes(1024)) + deflate.flush()


def large() -> Iterator[bytes]:
    tensor = {"dtype": "F32", "shape": [LARGE_BYTES // 4], "data_offsets": [0, LARGE_BYTES]}
    return _packed(json.dumps({"x": tensor}).encode(), LARGE_BYTES)


def many_tensors() -> Iterator[bytes]:
    entries = (b'"%x":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}' % number for number in range(30_000))
    return _header_of(entries)


def lists() -> Iterator[bytes]:
    return _header_of(b'"%x":[[],[],[],[],[],[],[],[],[],[],[],[],[]]' % number for number in range(30_000))


def objects() -> Iterator[bytes]:
    return _header_of(b'"%x":{}' % number for number in range(200_000))


def _header_of(entries: Iterator[bytes]) -> Iterator[bytes]:
    text = b'{"\xf0\x9f\x98\x80":{}'  # four bytes for every character of the text
    parts = [text]
    length = len(text)
    while length < DEFAULT_POLICY.max_header_bytes - 1000:
        parts.append(b"," + next(entries))
        length += len(parts[-1])
    return _packed(b"".join([*parts, b"}"]), 0)


INPUTS: dict[str, Callable[[], Iterator[bytes]]] = {
    "large": large,
    "many tensors": many_tensors,
    "lists": lists,
    "objects": objects,
}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str) -> float:
    profile = load_profile("tiny-llama")
    validate(io.BytesIO(b"".join(_packed(b"{}", 0))), profile)  # imports and threads are not what is measured
    pieces = Pieces(INPUTS[name]())
    before = _peak_mib()
    validate(pieces, profile)
    return round(_peak_mib() - before, 1)


if __name__ == "__main__":
    # spawn: a fork would begin at the peak of its parent
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps({name: pool.apply(measure, (name,)) for name in INPUTS}))
