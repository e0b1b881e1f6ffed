"""From a stream of compressed bytes to pieces of the unpacked ones, read ahead in threads and bounded in memory."""

import contextlib
import hashlib
import queue
import threading
import time
import zlib
from collections.abc import Generator, Iterator
from types import ModuleType
from typing import Protocol, TypeVar

from loradrop.policy import MIB, Policy
from loradrop.problems import Fix, FixKind, ProblemCode

fastest_zlib: ModuleType
try:  # Intel's inflate, where it is installed, is 1.5 to 2 times as fast as zlib's.
    from isal import isal_zlib as fastest_zlib
except ImportError:
    fastest_zlib = zlib

Item = TypeVar("Item")
GZIP_MAGIC = b"\x1f\x8b"
GIT_LFS_POINTER = b"version https://git-lfs"
HEAD_BYTES = 512  # enough to tell what a file is: tar's own mark stands at 257
# RFC 1952, byte 3: a checksum of the header (which isal gets wrong in pieces, and old readers take for something else)
# and what is reserved (which zlib refuses, isal does not). No program that packs files sets them.
_GZIP_FLAGS_REFUSED = 0xE2
_MAGICS = (
    (b"PK\x03\x04", "a zip archive (torch.save writes one, too)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xfd7zXZ\x00", "xz-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"\x04\x22\x4d\x18", "lz4-compressed"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1f\x9d", "compress'ed (.Z)"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF model"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<?xml", "XML, such as an error page of S3"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (GIT_LFS_POINTER, "a Git LFS pointer, not the file itself"),
    (b"{", "JSON"),
)


class BinaryStream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Decompressor(Protocol):
    """What zlib's and isal's decompression objects have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class ArchiveError(Exception):
    """The archive cannot be read further. Becomes a problem of the report."""

    def __init__(self, code: ProblemCode, message: str, *, place: str | None = None, fix: Fix | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.place = place
        self.fix = fix


def what_is_it(head: bytes) -> str | None:
    """What a file that begins with `head` is, in words; None where it cannot be told."""
    if head[257:262] == b"ustar":
        return "a plain tar archive"
    if head[1:9] == b"\x00\x00\x00\x00\x00\x00\x00{" or head[3:9] == b"\x00\x00\x00\x00\x00{":
        return "a safetensors file"
    return next((what for magic, what in _MAGICS if head.startswith(magic)), None)


def read_ahead(items: Iterator[Item], depth: int) -> Generator[Item]:
    """The same items, made in a thread of their own up to `depth` ahead. Closing it ends the thread."""
    made: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
    abandoned = threading.Event()

    def make() -> None:
        end = _End()
        try:
            for item in items:
                made.put(item)
                if abandoned.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            end.error = error
        made.put(end)

    thread = threading.Thread(target=make, name="loradrop-read-ahead", daemon=True)
    thread.start()
    item: Item | _End | None = None
    try:
        while not isinstance(item := made.get(), _End):
            yield item
    finally:
        abandoned.set()
        while not isinstance(item, _End):  # one always comes, and there is room for it
            item = made.get()
        thread.join()
        if isinstance(items, Generator):
            items.close()
    if item.error is not None:
        raise item.error


class _End:
    error: BaseException | None = None


class Unpacked:
    """The unpacked bytes of a gzip stream. Use as a context manager: leaving it ends the threads behind it."""

    def __init__(self, stream: BinaryStream, policy: Policy) -> None:
        self._stream = stream
        self._policy = policy
        self._digest = hashlib.sha256()
        self.compressed_bytes = 0  # read so far, ahead of what is consumed
        self._consumed_bytes = 0
        self._inflate_began = 0.0  # on the clock of the thread that inflates
        self.unpacked_bytes = 0
        self.read_to_end = False
        compressed = read_ahead(self._read(), policy.read_ahead)
        self._chunks = read_ahead(self._inflate(compressed), policy.inflate_ahead)
        self.source = ByteSource(self._chunks)
        # Once it has freed a block of this size, glibc keeps what smaller ones leave, where it would give it back to
        # the system and fetch it anew: a sixth of the time. The block is never touched and takes no memory.
        bytes(8 * MIB)

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self._chunks.close()

    @property
    def sha256(self) -> str | None:
        """Of the compressed bytes; None before they are read to the end."""
        return self._digest.hexdigest() if self.read_to_end else None

    def _read(self) -> Iterator[bytes]:
        while chunk := self._read_chunk():
            self.compressed_bytes += len(chunk)
            if self.compressed_bytes > self._policy.max_compressed_bytes:
                raise ArchiveError(
                    ProblemCode.UPLOAD_TOO_LARGE,
                    f"The upload is larger than the limit of {self._policy.max_compressed_bytes} bytes.",
                )
            self._digest.update(chunk)
            yield chunk
        self.read_to_end = True

    def _read_chunk(self) -> bytes:
        """Of `read_bytes` but at the end, however the stream cuts them: so the bytes alone decide what is reported."""
        pieces = []
        missing = self._policy.read_bytes
        while missing > 0 and (piece := self._stream.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _inflate(self, compressed: Generator[bytes]) -> Iterator[bytes]:
        with contextlib.closing(compressed):
            self._inflate_began = time.thread_time()
            head = b""
            while len(head) < HEAD_BYTES and (chunk := next(compressed, b"")):
                head += chunk
            _refuse_what_is_not_gzip(head)
            decompressor = fastest_zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            yield from self._inflate_chunk(decompressor, head)
            for chunk in compressed:
                if decompressor.eof:
                    _refuse_what_follows(chunk)
                yield from self._inflate_chunk(decompressor, chunk)
            if not decompressor.eof:
                raise ArchiveError(
                    ProblemCode.GZIP_TRUNCATED,
                    f"The gzip data ends early, after {self.compressed_bytes} bytes ({self.unpacked_bytes} unpacked): "
                    "the upload is only a part of the file.",
                )

    def _inflate_chunk(self, decompressor: Decompressor, data: bytes) -> Iterator[bytes]:
        policy = self._policy
        self._consumed_bytes += len(data)
        while True:
            try:
                piece = decompressor.decompress(data, policy.inflate_bytes)
            except (zlib.error, fastest_zlib.error) as error:
                raise ArchiveError(
                    ProblemCode.GZIP_CORRUPT,
                    f"The gzip data is damaged after {self.unpacked_bytes} unpacked bytes ({error}).",
                ) from error
            data = decompressor.unconsumed_tail
            self.unpacked_bytes += len(piece)
            if self.unpacked_bytes > policy.max_unpacked_bytes:
                raise ArchiveError(
                    ProblemCode.UNPACKED_TOO_LARGE,
                    f"The archive unpacks to more than the limit of {policy.max_unpacked_bytes} bytes.",
                )
            consumed = self._consumed_bytes - len(data)
            if self.unpacked_bytes > max(policy.ratio_free_bytes, policy.max_ratio * consumed):
                raise ArchiveError(
                    ProblemCode.COMPRESSION_RATIO_TOO_HIGH,
                    f"{consumed} compressed bytes unpack to {self.unpacked_bytes}, more than {policy.max_ratio} times "
                    "as many; trained weights are nowhere near.",
                )
            self._refuse_empty_work(consumed)
            if piece:
                yield piece
            if decompressor.eof:
                _refuse_what_follows(decompressor.unused_data)
                return
            if not data and len(piece) < policy.inflate_bytes:
                return

    def _refuse_empty_work(self, consumed: int) -> None:
        """Deflate can hold blocks that take long to read and hold little, or nothing at all."""
        policy = self._policy
        limit = (1 + policy.max_deflate_overhead) * self.unpacked_bytes + policy.deflate_overhead_free_bytes
        seconds = time.thread_time() - self._inflate_began
        allowed = policy.inflate_free_seconds + self.unpacked_bytes / policy.min_inflate_bytes_per_second
        if consumed > limit:
            found = f"{consumed} compressed bytes unpack to {self.unpacked_bytes} only"
        elif seconds > allowed:
            found = f"{consumed} compressed bytes take {seconds:.0f} s to unpack to {self.unpacked_bytes}"
        else:
            return
        raise ArchiveError(
            ProblemCode.COMPRESSION_WASTEFUL,
            f"{found}: the archive was not made by an ordinary program.",
            fix=Fix(FixKind.REPACKAGE),
        )


def _refuse_what_is_not_gzip(head: bytes) -> None:
    if not head:
        raise ArchiveError(ProblemCode.UPLOAD_EMPTY, "The upload is empty: it has 0 bytes.")
    if not head.startswith(GZIP_MAGIC):
        found = what_is_it(head)
        raise ArchiveError(
            ProblemCode.NOT_GZIP,
            f"The upload is not gzip-compressed: it is {found or 'of an unknown kind'}, whatever its name says. "
            "A gzip-compressed tar archive is needed.",
            fix=Fix(FixKind.PACKAGE_FOLDER),
        )
    if len(head) > 3 and head[3] & _GZIP_FLAGS_REFUSED:
        raise ArchiveError(
            ProblemCode.GZIP_CORRUPT,
            f"The gzip header has the flags {head[3]:#04x}; no program that packs files sets them, and readers "
            "understand them differently.",
        )


def _refuse_what_follows(rest: bytes) -> None:
    if rest.startswith(GZIP_MAGIC):
        raise ArchiveError(
            ProblemCode.GZIP_SEVERAL_MEMBERS,
            "Another gzip stream follows the first one: some readers see it and others do not.",
            fix=Fix(FixKind.COMPRESS_AGAIN),
        )
    if rest:
        raise ArchiveError(
            ProblemCode.GZIP_TRAILING_DATA, "Bytes follow the end of the gzip data; nothing may stand there."
        )


class ByteSource:
    """Pieces of a chunked stream, asked for by length; nothing is copied but what `take` returns."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def pieces(self, count: int) -> Iterator[memoryview]:
        """The next `count` bytes, in pieces; fewer at the end of the stream."""
        while count > 0:
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    return
            piece = self._rest[:count]
            self._rest = self._rest[count:]
            count -= len(piece)
            yield piece

    def take(self, count: int) -> bytes:
        return b"".join(self.pieces(count))
