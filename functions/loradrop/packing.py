"""A folder as a tar.gz, made while it is read: what validating a folder and packaging one have in common.

The tarball has one form for one content, on every machine: names in order, no times, owners or modes of the files, no
name or time in the gzip header.
"""

import contextlib
import dataclasses
import os
import secrets
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from loradrop.archive import BLOCK
from loradrop.profile import BaseProfile
from loradrop.validation_report import ValidationReport
from loradrop.validator import ADAPTER_FILES, validate

Advance = Callable[[int], None]
Choose = Callable[[str | None], BaseProfile | None]  # a profile by the base that an adapter names

_CHUNK_BYTES = 256 * 1024
# Neither name nor time, and "unknown" as the system: zlib would write the one it was built on.
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


class PackingError(Exception):
    """A folder that cannot be packed, or a tarball that cannot be written. The message is a sentence for a person."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One file of a folder, or something else that stands there: `kind` is tarfile's type of it."""

    path: Path
    name: str  # as the archive calls it
    kind: bytes = tarfile.REGTYPE


def all_entries(folder: Path, prefix: str = "") -> Iterator[Entry]:
    """Everything below a folder, as `tar -czf x.tar.gz -C FOLDER .` takes it; but links to files are followed."""
    for found in sorted(os.scandir(folder), key=lambda one: one.name):
        name, path = prefix + found.name, Path(found.path)
        if found.is_file():
            yield Entry(path, name)
        elif found.is_dir(follow_symlinks=False):
            yield Entry(path, f"{name}/", tarfile.DIRTYPE)
            yield from all_entries(path, f"{name}/")
        elif (kind := _odd_kind(found.stat(follow_symlinks=False).st_mode)) is not None:
            yield Entry(path, name, kind)


def _odd_kind(mode: int) -> bytes | None:
    """Of what is neither a file nor a folder; a socket has none, and tar leaves it out too."""
    kinds = {
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFIFO: tarfile.FIFOTYPE,
        stat.S_IFCHR: tarfile.CHRTYPE,
        stat.S_IFBLK: tarfile.BLKTYPE,
    }
    return kinds.get(stat.S_IFMT(mode))


def own_entries(folder: Path) -> list[Entry]:
    """The adapter's own files. README.md and the tokenizer change nothing that is served, but would change the hash."""
    return [Entry(folder / name, name) for name in sorted(ADAPTER_FILES) if (folder / name).is_file()]


def adapter_below(folder: Path) -> Path | None:
    """The last folder in `folder` that holds an adapter, where it holds none itself: checkpoint-500."""
    if (folder / ADAPTER_FILES[0]).exists():
        return None
    return max((path.parent for path in folder.glob(f"*/{ADAPTER_FILES[0]}")), default=None)


def size_of(entries: Iterable[Entry]) -> int:
    """In bytes, of the files."""
    return sum(entry.path.stat().st_size for entry in entries if entry.kind == tarfile.REGTYPE)


def validate_folder(
    folder: Path, profile: BaseProfile, advance: Advance, choose: Choose | None = None
) -> ValidationReport:
    """The report on the tarball of everything in the folder."""
    # Not compressed: the validator would only have to unpack it again.
    return without_tarball(
        _validate_packed(
            all_entries(folder), profile, zlib.compressobj(0, wbits=-zlib.MAX_WBITS), advance, choose=choose
        )
    )


def without_tarball(report: ValidationReport) -> ValidationReport:
    """The report on a tarball that was made for the validator alone: without a SHA-256, for nobody will ever see it."""
    manifest = None if report.manifest is None else dataclasses.replace(report.manifest, sha256=None)
    return dataclasses.replace(report, sha256=None, manifest=manifest)


def package(
    folder: Path, output: Path, profile: BaseProfile, advance: Advance, choose: Choose | None = None
) -> ValidationReport:
    """Writes the adapter's own files to `output`; only if the validator, reading what is written, accepts it."""
    entries = own_entries(folder)
    if any(output.exists() and output.samefile(entry.path) for entry in entries):
        raise PackingError(f"{output} is one of the adapter's own files; choose another name for the tarball.")
    # Trained weights repeat nothing: Huffman codes alone make them smaller than level 6 does, five times as fast.
    compressor = zlib.compressobj(6, wbits=-zlib.MAX_WBITS, strategy=zlib.Z_HUFFMAN_ONLY)
    with part_beside(output) as part:
        with part.open("xb") as sink:
            report = _validate_packed(entries, profile, compressor, advance, sink, choose)
            sink.flush()
            os.fsync(sink.fileno())
        if report.accepted:
            part.replace(output)
    return report


def check_output(output: Path, *, force: bool) -> None:
    """Raises PackingError where `output` cannot be written, or is there already and may not be replaced."""
    if not output.parent.is_dir():
        raise PackingError(f"There is no folder {output.parent} to write {output.name} to.")
    if os.path.lexists(output):
        if not output.is_file():
            raise PackingError(f"{output} is not a file; name the file to write.")
        if not force:
            raise PackingError(f"{output} is there already; --force replaces it.")


@contextlib.contextmanager
def part_beside(output: Path) -> Iterator[Path]:
    """A name beside `output`, to write to and then to rename; removed where that did not come about."""
    # Not by the process id: containers that share a volume have the same ones.
    part = output.with_name(f".loradrop-{secrets.token_hex(8)}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _validate_packed(
    entries: Iterable[Entry],
    profile: BaseProfile,
    compressor: "zlib._Compress",
    advance: Advance,
    sink: BinaryIO | None = None,
    choose: Choose | None = None,
) -> ValidationReport:
    return validate(Pieces(_gzipped(_tarred(entries, advance), compressor), sink), profile, choose=choose)


class Pieces:
    """Bytes as they are made, for the validator to read; written to `sink` on the way, so that what was validated is what was written."""

    def __init__(self, pieces: Iterator[bytes], sink: BinaryIO | None = None) -> None:
        self._pieces = pieces
        self._sink = sink

    def read(self, _size: int, /) -> bytes:
        """The next piece, of any size that suits its maker; empty at the end."""
        piece = next(self._pieces, b"")
        if self._sink is not None:
            self._sink.write(piece)
        return piece


def _gzipped(pieces: Iterable[bytes], compressor: "zlib._Compress") -> Iterator[bytes]:
    checksum = length = 0
    yield _GZIP_HEADER
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        length += len(piece)
        if packed := compressor.compress(piece):
            yield packed
    yield compressor.flush() + checksum.to_bytes(4, "little") + (length & 0xFFFF_FFFF).to_bytes(4, "little")


def _tarred(entries: Iterable[Entry], advance: Advance) -> Iterator[bytes]:
    for entry in entries:
        header = tarfile.TarInfo(entry.name)  # mode 0644, no owner, no time
        header.type = entry.kind
        if entry.kind != tarfile.REGTYPE:
            yield header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
            continue
        with entry.path.open("rb", buffering=0) as file:
            header.size = os.fstat(file.fileno()).st_size
            yield header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
            left = header.size
            while left:
                piece = file.read(min(left, _CHUNK_BYTES))
                if not piece:
                    raise PackingError(f"{entry.path} became shorter while it was read; is it still being written?")
                left -= len(piece)
                advance(len(piece))
                yield piece
        yield bytes(-header.size % BLOCK)
    yield bytes(2 * BLOCK)
