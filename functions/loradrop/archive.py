"""The members of a tar archive, read once from front to back.

Python's tarfile, GNU tar and libarchive disagree about odd archives: two readers see two archives. So this reader knows
the plain forms that `tar`, `bsdtar` and Python write (ustar, GNU long names, pax), and refuses everything else: what it
accepts, all of them read alike.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from loradrop.policy import Policy
from loradrop.problems import Fix, FixKind, ProblemCode, Problems, shown_name
from loradrop.stream import GZIP_MAGIC, ArchiveError, ByteSource, what_is_it

BLOCK = 512
_ZERO_BLOCK = bytes(BLOCK)
_OCTAL = re.compile(rb" *([0-7]{1,12})[ \x00]*")
_BLANK = re.compile(rb"[ \x00]*")
# Where mode, uid, gid and mtime stand, and the two numbers of a device, which are blank in old archives.
_NUMBERS = ((100, 108), (108, 116), (116, 124), (136, 148))
_DEVICE_NUMBERS = ((329, 337), (337, 345))
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,5}) ")
# Keys of pax headers that say nothing about what is unpacked where, and the values that every reader takes.
_SECONDS = re.compile(rb"-?[0-9]{1,11}(\.[0-9]{1,20})?")
_ID = re.compile(rb"[0-9]{1,9}")  # GNU tar takes them up to 2^32
_COUNT = re.compile(rb"-?[0-9]{1,18}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_TEXT = re.compile(rb"[^\0]*")
_ANY = re.compile(rb".*", re.DOTALL)
_PAX_IGNORED: tuple[tuple[re.Pattern[str], re.Pattern[bytes]], ...] = tuple(
    (re.compile(keys, re.DOTALL), values)
    for keys, values in (
        (r"mtime|atime|ctime|LIBARCHIVE\.creationtime", _SECONDS),
        (r"uid|gid", _ID),
        (r"SCHILY\.(dev|ino|nlink)", _COUNT),
        (r"uname|gname|comment|SCHILY\.(fflags|acl\..*)|RHT\..*", _TEXT),
        (r"LIBARCHIVE\.xattr\..*", _BASE64),
        (r"SCHILY\.xattr\..*", _ANY),
    )
)
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"V": "a volume label",
    b"M": "a part of a file on another volume",
}


class Body:
    """The bytes of one member: read once, hashed on the way."""

    def __init__(self, source: ByteSource, size: int, name: str) -> None:
        self._source = source
        self._name = name
        self._digest = hashlib.sha256()
        self.left = size

    def pieces(self, count: int) -> Iterator[memoryview]:
        """The next `count` bytes, or as many as are left."""
        count = min(count, self.left)
        for piece in self._source.pieces(count):
            self._digest.update(piece)
            self.left -= len(piece)
            count -= len(piece)
            yield piece
        if count:
            raise ArchiveError(
                ProblemCode.TAR_TRUNCATED,
                f"The archive ends inside {self._name}: {self.left} bytes are missing.",
                place=self._name,
            )

    def take(self, count: int) -> bytes:
        return b"".join(self.pieces(count))

    def skip(self) -> None:
        for _ in self.pieces(self.left):
            pass

    @property
    def sha256(self) -> str:
        """Of what was read so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Member:
    name: str  # normalised: no leading ./ and no trailing /
    size: int
    is_folder: bool
    body: Body


@dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    size: int
    kind: bytes


@dataclass(slots=True)
class _Extensions:
    """What extended headers said about the member that follows them."""

    name: bytes | None = None
    size: int | None = None
    kinds: list[str] = field(default_factory=list)


class Names:
    """Which names are safe, and not taken yet."""

    def __init__(self, policy: Policy, problems: Problems) -> None:
        self._policy = policy
        self._problems = problems
        self._taken: dict[str, bool] = {}  # folded name: whether it is a folder

    def normalise(self, raw: bytes, is_folder: bool) -> str | None:
        """The name without ./ and trailing slash; None where it is refused or the root itself."""
        shown = raw[: self._policy.max_name_bytes].decode("utf-8", "backslashreplace")
        try:
            name = _safe_name(raw, self._policy.max_name_bytes)
        except _UnsafeNameError as error:
            self._problems.add(ProblemCode.MEMBER_NAME_UNSAFE, f"A member's name {error}.", place=shown)
            return None
        if name == "":
            if not is_folder:
                self._problems.add(ProblemCode.MEMBER_NAME_UNSAFE, "A file has no name.", place=shown)
            return None
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if folded in self._taken:
            if is_folder and self._taken[folded]:
                return None
            self._problems.add(
                ProblemCode.MEMBER_NAME_DUPLICATE,
                f"Two members are called {name} (capitals and Unicode forms set aside): readers pick different ones.",
                place=shown,
            )
            return None
        self._taken[folded] = is_folder
        return name


def read_members(source: ByteSource, policy: Policy, problems: Problems) -> Iterator[Member]:
    """The members whose names are safe; the others become problems. A body that is not read is skipped.

    Raises ArchiveError where nothing further can be understood.
    """
    names = Names(policy, problems)
    extensions = _Extensions()
    header = _next_header(source, is_first=True)
    count = 0
    while header is not None:
        if header.kind in (b"x", b"g", b"L", b"K"):
            _read_extension(header, source, policy, extensions)
        else:
            count += 1
            if count > policy.max_members:
                raise ArchiveError(
                    ProblemCode.TOO_MANY_MEMBERS,
                    f"The archive has more than {policy.max_members} members; an adapter has three or so.",
                    fix=Fix(FixKind.PACKAGE_FOLDER),
                )
            if extensions.size not in (None, header.size):
                raise _refused(f"A pax header gives a member {extensions.size} bytes, its own header {header.size}.")
            name = header.name if extensions.name is None else extensions.name
            extensions = _Extensions()
            yield from _read_member(header, name, source, names, problems)
        header = _next_header(source, is_first=False)
    if extensions.kinds:
        raise _refused("An extended header is followed by no member.")
    _refuse_hidden_data(source)


def _read_member(
    header: _Header, name: bytes, source: ByteSource, names: Names, problems: Problems
) -> Iterator[Member]:
    """The member, if it is a file or a folder of a safe name; afterwards its body is read in any case."""
    shown = name.decode("utf-8", "backslashreplace")
    body = Body(source, header.size, shown)
    if header.kind in (b"0", b"\0", b"5"):
        is_folder = header.kind == b"5"
        if not is_folder and name.endswith(b"/"):
            # The oldest tars wrote folders so; some readers still take such a file for one.
            raise _refused(f"The file {shown} is named like a folder.", place=shown)
        if is_folder and header.size:
            raise _refused(f"The folder {shown} has {header.size} bytes of its own.", place=shown)
        normal = names.normalise(name, is_folder)
        if normal is not None:
            yield Member(normal, header.size, is_folder, body)
    else:
        what = _KINDS.get(header.kind, f"of the unknown type {header.kind!r}")
        message = f"{shown} is {what}; only files and folders are allowed."
        if header.size or header.kind not in (b"1", b"2", b"3", b"4", b"6"):
            # Readers disagree about whether bytes follow such a header: nothing after it is certain.
            raise ArchiveError(ProblemCode.MEMBER_TYPE_REFUSED, message, place=shown)
        problems.add(ProblemCode.MEMBER_TYPE_REFUSED, message, place=shown)
    body.skip()
    padding = -header.size % BLOCK
    if len(source.take(padding)) < padding:
        raise _truncated()


class _UnsafeNameError(ValueError):
    """The message continues "A member's name …"."""


def _safe_name(raw: bytes, max_bytes: int) -> str:
    """Without ./ and trailing slash; empty for the root itself."""
    if len(raw) > max_bytes:
        raise _UnsafeNameError(f"has {len(raw)} bytes; at most {max_bytes} are allowed")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _UnsafeNameError("is not UTF-8") from error
    if name.startswith("/"):
        raise _UnsafeNameError("is absolute")
    if "\\" in name:
        raise _UnsafeNameError("has a backslash")
    if not name.isprintable():
        raise _UnsafeNameError("has a control character or another one that cannot be seen")
    while name.startswith("./"):
        name = name[2:]
    name = name.removesuffix("/")
    if name in ("", "."):
        return ""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise _UnsafeNameError("has an empty, `.` or `..` part")
    return name


def _next_header(source: ByteSource, *, is_first: bool) -> _Header | None:
    """None at the archive's end mark."""
    block = source.take(BLOCK)
    if len(block) < BLOCK:
        raise _not_a_tar(block) if is_first else _truncated()
    if block == _ZERO_BLOCK:
        return None
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _octal(block[148:156]) != checksum:
        if is_first:
            raise _not_a_tar(block)
        raise ArchiveError(
            ProblemCode.TAR_CORRUPT, "A header in the middle of the archive is damaged: its checksum is wrong."
        )
    size = _number(block[124:136])
    if size is None:
        raise ArchiveError(ProblemCode.TAR_CORRUPT, "A header's size is no number, or below 0.")
    numbers = (block[begin:end] for begin, end in _NUMBERS)
    devices = (block[begin:end] for begin, end in _DEVICE_NUMBERS)
    if not (all(map(_is_number, numbers)) and all(_is_number(one) or _BLANK.fullmatch(one) for one in devices)):
        # GNU tar refuses such a header; Python's tarfile takes it for the end of the archive.
        raise ArchiveError(ProblemCode.TAR_CORRUPT, "A header's mode, owner, time or device is no number.")
    name = block[:100].partition(b"\0")[0]
    if block[257:263] != b"ustar\0":
        # GNU tar keeps other things there, Python's tarfile takes them for the beginning of the name.
        if any(block[345:500]):
            raise _refused("A header that is not of the ustar format has something where ustar keeps a path.")
    else:
        if block[508:512] == b"tar\0":
            raise _refused("The archive is in star's own format, which other programs read differently.")
        prefix = block[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return _Header(name, size, block[156:157])


def _octal(text: bytes) -> int | None:
    match = _OCTAL.fullmatch(text)
    return None if match is None else int(match[1], 8)


def _is_number(text: bytes) -> bool:
    return text[0] in (0x80, 0xFF) or _OCTAL.fullmatch(text) is not None


def _number(text: bytes) -> int | None:
    if text[0] == 0x80:  # GNU's form for sizes from 8 GiB
        return int.from_bytes(text[1:], "big")
    return _octal(text)


def _read_extension(header: _Header, source: ByteSource, policy: Policy, extensions: _Extensions) -> None:
    if header.size > policy.max_extended_header_bytes:
        raise _refused(
            f"An extended header has {header.size} bytes; at most {policy.max_extended_header_bytes} are read."
        )
    kind = header.kind.decode()
    if kind in extensions.kinds or {kind, *extensions.kinds} >= {"x", "L"} or (kind == "g" and extensions.kinds):
        raise _refused("Two extended headers speak of the same member.")
    extensions.kinds.append(kind)
    data = source.take(header.size + -header.size % BLOCK)
    if len(data) < header.size:
        raise _truncated()
    data = data[: header.size]
    if kind in ("L", "K"):
        name = data.removesuffix(b"\0")
        if not name or b"\0" in name:
            raise _refused("A GNU long name is empty or holds a NUL.")
        if kind == "L":
            extensions.name = name
        return
    for key, value in _pax_records(data).items():
        if kind == "g" and key in ("path", "size", "linkpath"):
            raise _refused(f"A global pax header sets {key} for every member.")
        _apply_pax(key, value, extensions)


def _apply_pax(key: str, value: bytes, extensions: _Extensions) -> None:
    if key == "path":
        if not value or b"\0" in value:
            raise _refused("A pax path is empty or holds a NUL.")
        extensions.name = value
    elif key == "size":
        if not re.fullmatch(rb"[0-9]{1,19}", value):
            raise _refused("A pax size is no whole number of at least 0.")
        extensions.size = int(value)
    elif key.startswith("GNU.sparse"):
        raise ArchiveError(ProblemCode.MEMBER_TYPE_REFUSED, "A member is a sparse file; only plain files are allowed.")
    elif key != "linkpath":
        values = next((values for keys, values in _PAX_IGNORED if keys.fullmatch(key)), None)
        if values is None:
            raise _refused(f"A pax header has the key {shown_name(key)}, which readers understand differently.")
        if not values.fullmatch(value) or (values is _TEXT and not _is_utf8(value)):
            raise _refused(f"A pax header has a value of {shown_name(key)} that some readers refuse.")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _pax_records(data: bytes) -> dict[str, bytes]:
    """Records `LENGTH KEY=VALUE\\n`, where LENGTH counts the whole record."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        match = _PAX_LENGTH.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or end > len(data) or end <= match.end() or data[end - 1 : end] != b"\n":
            raise _refused("A pax header is malformed.")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        text = key.decode("utf-8", "backslashreplace")
        if not equals or text in records:
            raise _refused("A pax header is malformed or has a key twice.")
        records[text] = value
        position = end
    return records


def _refuse_hidden_data(source: ByteSource) -> None:
    while piece := source.take(64 * 1024):
        if piece.count(0) != len(piece):
            raise ArchiveError(
                ProblemCode.TAR_HIDDEN_DATA,
                "Data follows the archive's end mark: a second archive, or members that most readers never see.",
                fix=Fix(FixKind.PACKAGE_FOLDER),
            )


def _refused(message: str, *, place: str | None = None) -> ArchiveError:
    return ArchiveError(ProblemCode.TAR_HEADER_REFUSED, message, place=place)


def _truncated() -> ArchiveError:
    return ArchiveError(ProblemCode.TAR_TRUNCATED, "The tar archive ends early, without its end mark.")


def _not_a_tar(block: bytes) -> ArchiveError:
    if not block:
        found = "nothing"
    elif block.startswith(GZIP_MAGIC):
        found = "gzip data again, so it was compressed twice"
    else:
        found = what_is_it(block) or "of an unknown kind"
    return ArchiveError(
        ProblemCode.NOT_TAR,
        f"The gzip data is not a tar archive: it is {found}.",
        fix=Fix(FixKind.PACKAGE_FOLDER),
    )
