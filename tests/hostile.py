"""Hostile archives, built byte by byte: what no program writes, and some readers take."""

import bz2
import gzip
import io
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


def gzip_stream(data: bytes, *, flags: int = 0, fields: bytes = b"", method: int = 8) -> bytes:
    """One gzip member with the header as wanted. `fields` are what the flags announce."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = deflate.compress(data) + deflate.flush()
    head = bytes([0x1F, 0x8B, method, flags, 0, 0, 0, 0, 0, 0xFF])
    return head + fields + packed + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


class _Bits:
    """Bits as deflate packs them, from the lowest up."""

    def __init__(self) -> None:
        self._held = self._count = 0
        self.written = bytearray()

    def put(self, value: int, count: int) -> None:
        self._held |= value << self._count
        self._count += count
        while self._count >= 8:
            self.written.append(self._held & 255)
            self._held >>= 8
            self._count -= 8

    def align(self) -> None:
        if self._count:
            self.put(0, 8 - self._count)


def deflate_blocks(kind: str, count: int, *, literals: int = 0) -> bytes:
    """The beginning of a gzip stream: blocks that hold `literals` NULs each, and end on a byte for what follows."""
    bits = _Bits()
    for _ in range(count):
        bits.put(0, 1)
        if kind == "stored":
            bits.put(0, 2)
            bits.align()
            bits.written += b"\0\0\xff\xff"
        elif kind == "fixed":
            bits.put(1, 2)
            for _ in range(literals):
                bits.put(0b00001100, 8)  # NUL, its code's highest bit first
            bits.put(0, 7)
        else:
            _dynamic_block(bits, literals)
    bits.put(0, 1)  # an empty stored block
    bits.put(0, 2)
    bits.align()
    bits.written += b"\0\0\xff\xff"
    return bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF]) + bytes(bits.written)


def _dynamic_block(bits: _Bits, literals: int) -> None:
    """Code lengths of one bit for NUL and for the end, none for all the rest: tables to build, and nothing in them."""
    bits.put(2, 2)
    bits.put(0, 10)  # 257 literal codes, 1 distance code
    order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]
    bits.put(18 - 4, 4)
    for symbol in order[:18]:
        bits.put(1 if symbol in (1, 18) else 0, 3)
    bits.put(0, 1)  # NUL: one bit
    for zeros in (138, 117):
        bits.put(1, 1)
        bits.put(zeros - 11, 7)
    bits.put(0, 1)  # the end: one bit
    bits.put(0, 1)  # the distance
    for _ in range(literals):
        bits.put(0, 1)
    bits.put(1, 1)


def tar_header(
    name: bytes,
    *,
    size: int | bytes = 0,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    mode: bytes = b"0000644\0",
    link: bytes = b"",
    device: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """One header with the right checksum. `tail` is written at the end of the prefix field's area, byte 500."""
    size_field = b"%011o\0" % size if isinstance(size, int) else size
    block = bytearray(BLOCK)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108] = mode
    block[108:124] = b"0000000\0" * 2
    block[124:136] = size_field
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157:257] = link.ljust(100, b"\0")
    block[257:265] = magic.ljust(8, b"\0")
    block[329:337] = device.ljust(8, b"\0")
    block[345:500] = prefix.ljust(155, b"\0")
    block[500:512] = tail.ljust(12, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def tar_member(name: str | bytes, data: bytes = b"", *, kind: bytes = b"0", **header: bytes) -> bytes:
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    return tar_header(raw, size=len(data), kind=kind, **header) + padded(data)


def tar_end() -> bytes:
    return bytes(2 * BLOCK)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extended header with these records."""
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        body += str(length).encode() + rest
    return tar_member("pax", body, kind=kind)


class Case(NamedTuple):
    name: str
    body: bytes  # of the tarball
    code: str
    words: str = ""  # of the problem's message


def _streams(tar: bytes) -> Iterator[Case]:
    """Gzip streams around a good archive."""
    good = gzipped(tar)
    corrupt, truncated = "GZIP_CORRUPT", "GZIP_TRUNCATED"
    for flags in (0x02, 0x20, 0x40, 0x80):
        yield Case(f"gzip flags {flags:#x}", gzip_stream(tar, flags=flags, fields=b"\0\0"), corrupt, "flags")
    yield Case("another compression method", gzip_stream(tar, method=7), corrupt)
    yield Case("a wrong checksum", good[:-8] + bytes(4) + good[-4:], corrupt)
    yield Case("a wrong length", good[:-4] + b"\1\2\3\4", corrupt)
    yield Case("a deflate block of no known type", good[:10] + b"\xff" * 100, corrupt)
    for missing in range(1, 9):
        yield Case(f"{missing} bytes of the trailer missing", good[:-missing], truncated, "ends early")
    for length in (2, 3, 9):
        yield Case(f"{length} bytes of a header", good[:length], truncated)
    yield Case("a file name that never ends", gzip_stream(b"", flags=8)[:10] + b"a" * 50_000, truncated)
    yield Case("an extra field that is not there", gzip_stream(b"", flags=4)[:10] + b"\xff\xff", truncated)
    yield Case("two streams", gzipped(tar[:512]) + gzipped(tar[512:]), "GZIP_SEVERAL_MEMBERS")
    yield Case("a thousand empty streams", gzipped(b"") * 1000 + good, "GZIP_SEVERAL_MEMBERS")
    yield Case("padding", good + bytes(512), "GZIP_TRAILING_DATA")
    yield Case("a signature after the end", good + b"-----BEGIN", "GZIP_TRAILING_DATA")
    yield Case("a bomb", gzipped(tar_header(b"zeros", size=2**36) + bytes(40 * 2**20)), "COMPRESSION_RATIO_TOO_HIGH")
    yield Case("gzip of nothing", gzipped(b""), "NOT_TAR", "nothing")
    yield Case("gzip of a byte", gzipped(b"x"), "NOT_TAR", "of an unknown kind")
    yield Case("gzip twice", gzipped(good), "NOT_TAR", "compressed twice")
    yield Case("xz in gzip", gzipped(lzma.compress(tar)), "NOT_TAR", "xz")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("adapter_config.json", "{}")
    for name, body, words in (
        ("nothing", b"", ""),
        ("a plain tar", tar, "a plain tar archive"),
        ("xz", lzma.compress(tar), "xz"),
        ("bzip2", bz2.compress(tar), "bzip2"),
        ("zstd", b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
        ("zip", zipped.getvalue(), "a zip archive"),
        ("a pickle", pickle.dumps({"a": 1}), "a Python pickle"),
        ("safetensors", struct.pack("<Q", 300) + b"{" + bytes(400), "a safetensors file"),
        ("an error page", b"<?xml version='1.0'?><Error>", "error page of S3"),
        ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("noise", bytes(range(1, 200)), "of an unknown kind"),
    ):
        yield Case(f"{name} instead of gzip", body, "NOT_GZIP" if body else "UPLOAD_EMPTY", words)


def _ends(members: bytes) -> Iterator[Case]:
    """Archives that end too early, too late, or twice."""
    good = members + tar_end()
    for name, tar, code in (
        ("no end mark", members, "TAR_TRUNCATED"),
        ("half a header", members + good[:100], "TAR_TRUNCATED"),
        ("half a body", members[:-700], "TAR_TRUNCATED"),
        ("no padding", tar_member("a", b"1")[:-10], "TAR_TRUNCATED"),
        ("an archive after the end", good + good, "TAR_HIDDEN_DATA"),
        ("a zero block in the middle", tar_member("a") + bytes(512) + good, "TAR_HIDDEN_DATA"),
        ("noise after the end", good + b"x", "TAR_HIDDEN_DATA"),
        ("noise far after the end", good + bytes(100_000) + b"x", "TAR_HIDDEN_DATA"),
        ("a damaged header", members + b"x" * 512 + good, "TAR_CORRUPT"),
        ("a damaged first header", b"x" * 512 + good, "NOT_TAR"),
        ("300 files", b"".join(tar_member(f"{n}") for n in range(300)) + good, "TOO_MANY_MEMBERS"),
    ):
        yield Case(name, gzipped(tar), code)


def _headers() -> Iterator[tuple[str, bytes, str]]:
    """What stands before a good archive."""
    corrupt, refused, kind = "TAR_CORRUPT", "TAR_HEADER_REFUSED", "MEMBER_TYPE_REFUSED"
    yield "a negative size", tar_header(b"a", size=b"\xff" * 12), corrupt
    for text in (b"-0000000001\0", b"0o00000017\0 ", b"1_0\0".ljust(12, b"\0"), b"9".ljust(12, b"\0"), bytes(12)):
        yield f"the size {text!r}", tar_header(b"a", size=text), corrupt
    yield "a size of 2^80", tar_header(b"a", size=b"\x80" + b"\1" + bytes(10)), "TAR_TRUNCATED"
    yield "a mode that is no number", tar_header(b"a", mode=b"rw-r--r-"), corrupt
    yield "a device that is no number", tar_header(b"a", device=b"\1"), corrupt
    yield "a path where GNU keeps times", tar_header(b"a", magic=b"ustar  \0", prefix=b"b"), refused
    yield "star's own format", tar_header(b"a", tail=b"\0\0\0\0\0\0\0\0tar\0"), refused
    yield "a file named like a folder", tar_member("a/", b"1"), refused
    yield "a folder with bytes", tar_member("a", b"1", kind=b"5"), refused
    for letter in b"12346":
        yield f"the type {letter:c}", tar_member("a", kind=bytes([letter]), link=b"/etc/passwd"), kind
        yield f"the type {letter:c} with bytes", tar_member("a", b"1", kind=bytes([letter])), kind
    for letter in b"7SMVDNXAZ":
        yield f"the type {letter:c}", tar_member("a", kind=bytes([letter])), kind
    for key in (b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.realsize", b"GNU.sparse.name"):
        yield f"{key.decode()}", pax((key, b"1")) + tar_member("a"), kind
    for name, records in {
        "another size": ((b"size", b"2"),),
        "a negative size by pax": ((b"size", b"-1"),),
        "a size of many digits": ((b"size", b"9" * 30),),
        "a NUL in a path": ((b"path", b"a\0b"),),
        "an empty path": ((b"path", b""),),
        "another character set": ((b"hdrcharset", b"BINARY"),),
        "a key twice": ((b"path", b"a"), (b"path", b"b")),
        "a key of no meaning": ((b"x" * 200, b"a"),),
        "a path of 5 MB": ((b"path", b"a" * 5_000_000),),
    }.items():
        yield f"pax: {name}", pax(*records) + tar_member("a", b"1"), refused
    for body in (
        b"5 a=\n",
        b"9 a=b\n",
        b"0 a=b\n",
        b"06 a=b\n",
        b"6 a=b ",
        b"6 ab\n\n",
        b"x",
        b"-6 a=b\n",
        b"6  a=b\n",
    ):
        yield f"the pax record {body!r}", tar_member("p", body, kind=b"x") + tar_member("a"), refused
    path, long_name = pax((b"path", b"b")), tar_member("././@LongLink", b"b\0", kind=b"L")
    for name, tar in {
        "two pax headers": path + path,
        "two long names": long_name + long_name,
        "a pax header and a long name": path + long_name,
        "a long name and a pax header": long_name + path,
        "a global header between": path + pax((b"comment", b"c"), kind=b"g"),
        "a global path": pax((b"path", b"b"), kind=b"g"),
        "a global size": pax((b"size", b"1"), kind=b"g"),
        "a NUL in a long name": tar_member("L", b"a\0b\0", kind=b"L"),
        "an empty long name": tar_member("L", b"\0", kind=b"L"),
        "a long name of 5 MB": tar_member("L", b"a" * 5_000_000, kind=b"L"),
        "a long link of 5 MB": tar_member("K", b"a" * 5_000_000, kind=b"K"),
    }.items():
        yield name, tar + tar_member("a"), refused
    for unsafe in UNSAFE_NAMES:
        yield f"the name {unsafe[:40]!r}", pax((b"path", unsafe)) + tar_member("a"), "MEMBER_NAME_UNSAFE"
    yield "a file without a name", tar_header(b""), "MEMBER_NAME_UNSAFE"
    for one, other in DUPLICATE_NAMES:
        yield f"{one} and {other}", tar_member(one) + tar_member(other), "MEMBER_NAME_DUPLICATE"
    yield "a folder and a file of one name", tar_member("a", kind=b"5") + tar_member("a"), "MEMBER_NAME_DUPLICATE"


UNSAFE_NAMES = (
    *(b"/etc/passwd", b"..", b"../a", b"a/../../b", b"a/..", b".//a", b"a//b", b"a/./b", b"."),
    *(b"a\\b", b"C:\\a", b"a\nb", b"a\rb", b"a\x1b[2Jb", b"a\x7f", b"a\tb", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\xae"),
    *(text.encode() for text in ("\u202etxt.exe", "a\u200bb", "a\u00a0b", "\ufeffa", "a" * 256, "é" * 128)),
)
DUPLICATE_NAMES = (
    *(("a", "a"), ("a", "./a"), ("a", "././a"), ("a", "A"), ("\u00e9", "e\u0301"), ("stra\u00dfe", "STRASSE")),
    *(("\u03c3", "\u03c2"), ("\u212a", "k")),
)


def corpus(files: dict[str, bytes]) -> list[Case]:
    """Hostile tarballs that would be good ones of `files`, were it not for one thing."""
    members = b"".join(tar_member(name, data) for name, data in files.items())
    tar = members + tar_end()
    before = [Case(name, gzipped(head + tar), code) for name, head, code in _headers()]
    at_end = Case(
        "a long name of nothing", gzipped(members + tar_member("L", b"a", kind=b"L") + tar_end()), "TAR_HEADER_REFUSED"
    )
    return [*_streams(tar), *_ends(members), *before, at_end]
