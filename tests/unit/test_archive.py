"""Hostile archives, and the many ways in which honest programs write good ones."""

import gzip
import io
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from loradrop.policy import Policy
from loradrop.profile import load_profile
from loradrop.validation_report import ValidationReport
from loradrop.validator import validate
from tests.adapters import adapter_files, good_tarball, tarball
from tests.hostile import Case, corpus, deflate_blocks, gzip_stream, gzipped, pax, tar_end, tar_header, tar_member

PROFILE = load_profile("tiny-llama")
FILES = adapter_files(rank=1)
CORPUS = corpus(FILES)
MEMBERS = b"".join(tar_member(name, data) for name, data in FILES.items())


def validated(body: bytes, policy: Policy | None = None) -> ValidationReport:
    return validate(io.BytesIO(body), PROFILE, policy or Policy())


@pytest.mark.parametrize("case", CORPUS, ids=[case.name for case in CORPUS])
def test_a_hostile_archive_is_refused_for_what_is_hostile(case: Case) -> None:
    report = validated(case.body)
    assert {problem.code.name for problem in report.problems} == {case.code}
    assert case.words in report.problems[0].message


def test_the_names_of_the_corpus_are_all_different() -> None:
    assert len({case.name for case in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_read(tar_format: int) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tar_format) as archive:
        for name, data in FILES.items() | {(f"{'long/'.replace('/', '-') * 30}.txt", b"x")}:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 1_700_000_000.5 if tar_format == tarfile.PAX_FORMAT else 1
            if tar_format == tarfile.USTAR_FORMAT and len(name) > 100:
                continue  # without a slash it does not fit
            archive.addfile(member, io.BytesIO(data))
    assert validated(gzipped(plain.getvalue())).accepted


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("how", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_what_gnu_tar_writes_is_read(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name, data in (FILES | {"vocabulary-" + "x" * 80: b""}).items():
        (folder / name).write_bytes(data)
    made = tmp_path / "adapter.tar.gz"
    subprocess.run(["tar", f"--format={how}", "-czf", made, "-C", folder, "."], check=True)
    report = validated(made.read_bytes())
    assert report.problems == ()
    assert report.manifest is not None
    assert {one.name for one in report.manifest.files} == {path.name for path in folder.iterdir()}


GOOD: dict[str, bytes] = {
    "a gzip name of 1 MB": gzip_stream(MEMBERS + tar_end(), flags=8, fields=b"a" * 1_000_000 + b"\0"),
    "a gzip comment": gzip_stream(MEMBERS + tar_end(), flags=16, fields=b"hello\0"),
    "a gzip extra field, as bgzip writes": gzip_stream(MEMBERS + tar_end(), flags=4, fields=b"\6\0BC\2\0\1\1"),
    "one zero block at the end": gzipped(MEMBERS + bytes(512)),
    "a megabyte of padding": gzipped(MEMBERS + bytes(1_000_000)),
    "stored, not compressed": gzip.compress(MEMBERS + tar_end(), compresslevel=0),
    "a global comment, as git archive writes": gzipped(pax((b"comment", b"c" * 40), kind=b"g") + MEMBERS + tar_end()),
    "times and attributes in pax headers, as bsdtar writes": gzipped(
        pax((b"mtime", b"1.5"), (b"LIBARCHIVE.xattr.com.apple.quarantine", b"cQ"), (b"SCHILY.fflags", b"x"))
        + MEMBERS
        + tar_end()
    ),
    "the size in a pax header too": gzipped(pax((b"size", b"1")) + tar_member("a", b"1") + MEMBERS + tar_end()),
    "a size in GNU's binary form": gzipped(
        tar_header(b"a", size=b"\x80" + bytes(10) + b"\1") + b"1".ljust(512, b"\0") + MEMBERS + tar_end()
    ),
    "the oldest type of file": gzipped(tar_member("a", b"1", kind=b"\0", magic=b"") + MEMBERS + tar_end()),
    "a name of 255 bytes": gzipped(pax((b"path", b"a" * 255)) + tar_member("a") + MEMBERS + tar_end()),
    "a path in two fields": tarball(FILES | {"x": b""}),
    "a folder twice": gzipped(tar_member("./", kind=b"5") * 2 + MEMBERS + tar_end()),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_odd_and_harmless_is_accepted(name: str) -> None:
    assert validated(GOOD[name]).problems == ()


@pytest.mark.parametrize("name", GOOD)
def test_python_reads_the_same_out_of_what_is_accepted(name: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(GOOD[name]))) as archive:
        found = {one.name: one.size for one in archive if one.isfile()}
    manifest = validated(GOOD[name]).manifest
    assert manifest is not None
    assert found == {one.name: one.size for one in manifest.files}


def test_the_prefix_of_a_ustar_header_is_part_of_the_name() -> None:
    report = validated(gzipped(tar_header(b"b", prefix=b"a") + MEMBERS + tar_end()))
    assert "a/b is in a folder" in report.problems[0].message


def test_what_comes_before_the_damage_is_validated() -> None:
    files = adapter_files(rank=1, use_dora=True)
    members = b"".join(tar_member(name, data) for name, data in files.items())
    report = validated(gzipped(members + b"x" * 512))
    assert [problem.code.name for problem in report.problems] == ["TAR_CORRUPT", "DORA_UNSUPPORTED"]


def test_after_a_damage_nothing_is_called_missing() -> None:
    report = validated(gzipped(tar_member("a") + b"x" * 512))
    assert [problem.code.name for problem in report.problems] == ["TAR_CORRUPT"]


def test_a_refused_member_does_not_end_the_reading() -> None:
    tar = tar_member("link", kind=b"2") + tar_member("../x") + MEMBERS + tar_end()
    report = validated(gzipped(tar))
    assert [problem.code.name for problem in report.problems] == ["MEMBER_TYPE_REFUSED", "MEMBER_NAME_UNSAFE"]


def test_links_count_as_members() -> None:
    links = b"".join(tar_member(f"{number}", kind=b"2") for number in range(300))
    report = validated(gzipped(links + MEMBERS + tar_end()))
    assert "TOO_MANY_MEMBERS" in [problem.code.name for problem in report.problems]


CONFIG = FILES["adapter_config.json"]
WEIGHTS = tar_member("adapter_model.safetensors", FILES["adapter_model.safetensors"]) + tar_end()


def _with_pax(key: bytes, value: bytes, kind: bytes = b"x") -> bytes:
    return pax((key, value), kind=kind) + tar_member("adapter_config.json", CONFIG)


def _config(**header: bytes) -> bytes:
    return tar_member("adapter_config.json", CONFIG, **header)


FORMS: dict[str, bytes] = {
    **{
        f"pax {key.decode()} {value[:20]!r}": _with_pax(key, value)
        for key, values in {
            b"linkpath": (b"/etc/passwd", b"adapter_model.safetensors"),
            b"mtime": (b"abc", b"9" * 40, b"nan", b"", b"1.5", b"-1", b"1e3", b"0x1", b" 1", b"1."),
            b"atime": (b"x", b"9" * 40),
            b"uid": (b"abc", b"9" * 40, b"-1", b"1000", b"4294967296"),
            b"uname": (b"\xff\xfe", b"a\0b", "j\u00fcrgen".encode()),
            b"comment": (b"a\0b", b"hello"),
            b"size": (str(len(CONFIG)).encode(), b"000" + str(len(CONFIG)).encode()),
            b"path": (b"adapter_config.json/", b"./adapter_config.json"),
            b"SCHILY.dev": (b"abc",),
            b"SCHILY.nlink": (b"-1",),
            b"SCHILY.acl.access": (b"user::rwx,group::---,other::---",),
            b"SCHILY.xattr.security.capability": (b"\1\0\0\2" + bytes(16),),
            b"LIBARCHIVE.creationtime": (b"abc", b"1.5"),
            b"LIBARCHIVE.xattr.user.a": (b"!!!", b"aGk="),
            b"RHT.security.selinux": (b"x\0y",),
        }.items()
        for value in values
    },
    **{f"global pax {key.decode()}": _with_pax(key, b"x", b"g") for key in (b"uid", b"mtime", b"comment", b"gname")},
    "a long link of a file": tar_member("././@LongLink", b"/etc/passwd\0", kind=b"K") + _config(),
    "a link field of a file": _config(link=b"/etc/passwd"),
    "setuid": _config(mode=b"0004755\0"),
    "a mode in GNU's binary form": _config(mode=b"\x80\0\0\0\0\0\1\xa4"),
    "a negative mode": _config(mode=b"\xff" * 8),
    "a blank mode": _config(mode=b" " * 8),
    "a mode of NULs": _config(mode=bytes(8)),
    "no magic": _config(magic=bytes(8)),
    "another version": _config(magic=b"ustar\0zz"),
    "the folder ./ twice, of no mode": tar_member("./", kind=b"5", mode=b"0000000\0") * 2 + _config(),
    "a name like an option": tar_member("-rf", b"x") + _config(),
    "a NUL in a name": tar_member(b"adapter_config.json\0evil", CONFIG),
    "a dot after the name": tar_member("adapter_config.json.", b"{}") + _config(),
}


def extracted(body: bytes, folder: Path, reader: str) -> dict[str, bytes] | None:
    """What a reader makes of an archive; None where it refuses it."""
    folder.mkdir()
    if reader == "gnu":
        tar = ["tar", "-xzf", "-", "--no-same-owner", "-C", str(folder)]
        if subprocess.run(tar, input=body, capture_output=True, check=False).returncode:
            return None
    else:
        try:
            with tarfile.open(fileobj=io.BytesIO(body), mode=reader) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, ValueError, OSError, OverflowError):
            return None
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("name", FORMS)
def test_what_is_accepted_every_reader_reads_alike(name: str, tmp_path: Path) -> None:
    body = gzipped(FORMS[name] + WEIGHTS)
    report = validated(body)
    readers = {reader: extracted(body, tmp_path / str(n), reader) for n, reader in enumerate(("gnu", "r:gz", "r|gz"))}
    if report.accepted:
        for reader, found in readers.items():
            assert found is not None, reader
            assert {name: found.get(name) for name in FILES} == FILES, reader
    else:
        assert {problem.code.name for problem in report.problems} <= {
            *("TAR_HEADER_REFUSED", "TAR_CORRUPT", "MEMBER_NAME_DUPLICATE", "MEMBER_NAME_UNSAFE"),
        }


def test_most_of_these_forms_are_taken() -> None:
    """So that the test above is not one of refusals."""
    accepted = [name for name, form in FORMS.items() if validated(gzipped(form + WEIGHTS)).accepted]
    assert len(accepted) >= 20


@pytest.mark.parametrize(
    ("kind", "count", "literals"), [("stored", 400_000, 0), ("fixed", 1_500_000, 0), ("dynamic", 150_000, 0)]
)
def test_blocks_that_hold_nothing_are_given_up_early(kind: str, count: int, literals: int) -> None:
    body = deflate_blocks(kind, count, literals=literals)
    report = validated(body)
    assert [problem.code.name for problem in report.problems] == ["COMPRESSION_WASTEFUL"]


def test_blocks_that_hold_as_much_as_they_are_long_are_given_up_by_time() -> None:
    body = deflate_blocks("dynamic", 100_000, literals=24)
    policy = Policy(inflate_free_seconds=0.05, min_inflate_bytes_per_second=1e9)
    (problem,) = validated(body, policy).problems
    assert (problem.code.name, " s to unpack" in problem.message) == ("COMPRESSION_WASTEFUL", True)


class Cut:
    """A stream that gives at most so many bytes at once, and fails at a given place."""

    def __init__(self, body: bytes, most: int, fails_at: int | None = None) -> None:
        self._file = io.BytesIO(body)
        self._most = most
        self._fails_at = fails_at

    def read(self, size: int, /) -> bytes:
        if self._fails_at is not None and self._file.tell() >= self._fails_at:
            raise ConnectionResetError("peer")
        return self._file.read(min(size, self._most))


@pytest.mark.parametrize("most", [1, 7, 511, 4096])
def test_how_a_stream_cuts_its_bytes_changes_nothing(most: int) -> None:
    for body in (good_tarball(), *(case.body for case in CORPUS[:: 1 if most > 100 else 25])):
        if len(body) < 200_000:
            assert validate(Cut(body, most), PROFILE) == validated(body)


@pytest.mark.parametrize("policy", [Policy(), Policy(read_bytes=1000), Policy(read_bytes=1000, inflate_bytes=333)])
@pytest.mark.parametrize("fails_at", [0, 1, 5000])
def test_what_the_stream_raises_is_raised(policy: Policy, fails_at: int) -> None:
    with pytest.raises(ConnectionResetError):
        validate(Cut(good_tarball(), 1000, fails_at), PROFILE, policy)


@pytest.mark.usefixtures("_no_thread_left")
class TestThreads:
    def test_none_is_left_when_all_is_read(self) -> None:
        assert validated(good_tarball()).accepted

    @pytest.mark.parametrize("body", [b"", b"x", gzipped(b"x" * 600)])
    def test_none_is_left_when_it_ends_early(self, body: bytes) -> None:
        assert not validated(body + bytes(10_000_000)).accepted

    def test_none_is_left_when_the_archive_ends_the_reading(self) -> None:
        tar = tar_member("a") + b"x" * 512 + bytes(range(256)) * 100_000
        report = validated(gzip.compress(tar, compresslevel=0), Policy(read_bytes=1000, inflate_bytes=1000))
        assert not report.accepted

    def test_none_is_left_when_the_stream_raises(self) -> None:
        with pytest.raises(ConnectionResetError):
            validate(Cut(good_tarball(), 100, 20_000), PROFILE, Policy(read_bytes=100, inflate_bytes=100))


@pytest.fixture
def _no_thread_left() -> Any:
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


def test_nothing_is_read_past_the_limit() -> None:
    body = gzip.compress(bytes(range(256)) * 40_000, compresslevel=0)
    stream = io.BytesIO(body)
    report = validate(stream, PROFILE, Policy(max_compressed_bytes=100_000, read_bytes=10_000))
    assert [problem.code.name for problem in report.problems] == ["NOT_TAR"]  # known before the limit is reached
    assert stream.tell() < 500_000
