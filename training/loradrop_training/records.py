"""Records from files as people have them: JSON lines, JSON, CSV, TSV, Parquet; one file, a folder, or a prefix on S3.

A mistake in one line is a finding of that line; the other lines are read all the same.
"""

import codecs
import csv
import io
import json
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import cache
from .findings import Code, Finding, Place
from .recipe import RecipeError

MAX_FILE_BYTES = 4 << 30
MAX_CELL_CHARACTERS = 1 << 24
S3_URI = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<prefix>.*)")

Records = Iterator[tuple[int, dict[str, Any]]]  # the line where each begins, from 1


def read_records(file: Path, findings: list[Finding]) -> Records:
    """Each record with the number of the line where it begins; of Parquet, the number of its row."""
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        findings.append(Finding(Code.UNREADABLE_FILE, None, f"{file}: its name ends in none of {', '.join(READERS)}"))
        return
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a device or a pipe may have no end
            findings.append(Finding(Code.UNREADABLE_FILE, None, f"{file} is no file"))
            return
        if status.st_size > MAX_FILE_BYTES:
            what = f"{file} has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read"
            findings.append(Finding(Code.UNREADABLE_FILE, None, what))
            return
        raw = file.read_bytes()
    except OSError as error:
        findings.append(Finding(Code.UNREADABLE_FILE, None, f"{file}: {error.strerror}"))
        return
    if reader is not _parquet and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        findings.append(Finding(Code.NOT_UTF8, Place(file.name, 1), "UTF-16; save it as UTF-8"))
        return
    # A BOM is what spreadsheets write first; it is no part of the text.
    yield from reader(file, raw.removeprefix(codecs.BOM_UTF8), findings)


def _decoded(line: bytes, place: Place, findings: list[Finding]) -> str | None:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {line[error.start]:#04x} at {error.start}; save the file as UTF-8"
        findings.append(Finding(Code.NOT_UTF8, place, what))
        return None


def _json(file: Path, raw: bytes, findings: list[Finding]) -> Records:
    """One array of objects, or an object of one, as exports have it; and JSON lines, which are often called .json too."""
    start = raw.lstrip()[:1]
    first = raw.strip().partition(b"\n")[0]
    if start == b"[" and first.rstrip() != b"[]":
        yield from _json_array(file, raw, findings)
        return
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        pass
    else:
        yield from _json_lines(file, raw, findings)
        return
    try:
        whole = json.loads(raw)
    except (ValueError, RecursionError):  # whatever it is, the lines say best what is wrong
        yield from _json_lines(file, raw, findings)
        return
    arrays = [one for one in whole.values() if isinstance(one, list)] if isinstance(whole, dict) else []
    if len(arrays) != 1:
        what = "a JSON object without exactly one array of records in it; save an array, or one object a line"
        findings.append(Finding(Code.NOT_A_RECORD, Place(file.name, 1), what))
        return
    for number, record in enumerate(arrays[0], start=1):
        yield from _checked(record, number, Place(file.name, number), findings)


def _json_array(file: Path, raw: bytes, findings: list[Finding]) -> Records:
    text = _decoded(raw, Place(file.name, 1), findings)
    if text is None:
        return
    decoder = json.JSONDecoder()
    between = re.compile(r"[\s,]*")
    at = text.index("[") + 1
    line, counted = 1, 0
    while True:
        at = between.match(text, at).end()  # type: ignore[union-attr]
        line += text.count("\n", counted, at)
        counted = at
        if text[at : at + 1] in ("]", ""):
            return
        place = Place(file.name, line)
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            wrong = line + text.count("\n", counted, getattr(error, "pos", counted))
            what = f"not JSON: {getattr(error, 'msg', error)}; what follows in the array was not read"
            findings.append(Finding(Code.NOT_A_RECORD, Place(file.name, wrong), what))
            return
        yield from _checked(record, line, place, findings)


def _checked(record: Any, line: int, place: Place, findings: list[Finding]) -> Records:
    if not isinstance(record, dict):
        findings.append(Finding(Code.NOT_A_RECORD, place, f"a JSON {type(record).__name__}; an object is needed"))
        return
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        findings.append(Finding(Code.NOT_A_RECORD, place, "half of a surrogate pair"))
        return
    yield line, record


def _json_lines(file: Path, raw: bytes, findings: list[Finding]) -> Records:
    if raw.lstrip()[:1] == b"[" and raw.rstrip()[-1:] == b"]" and raw.count(b"\n[") == 0:
        yield from _json_array(file, raw, findings)  # an array that is called .jsonl
        return
    for number, line in enumerate(raw.split(b"\n"), start=1):
        place = Place(file.name, number)
        text = _decoded(line, place, findings)
        if text is None or not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            findings.append(Finding(Code.NOT_A_RECORD, place, f"not JSON: {error}"))
            continue
        yield from _checked(record, number, place, findings)


def _csv(file: Path, raw: bytes, findings: list[Finding]) -> Records:
    lines = [
        _decoded(line, Place(file.name, number), findings) for number, line in enumerate(raw.split(b"\n"), start=1)
    ]
    if None in lines:  # a record may span lines: which of them a bad line belongs to is unknown
        return
    text = "\n".join(line for line in lines if line is not None)
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(file, text), strict=True)
    header: list[str] = []
    begins = 1
    try:
        for cells in reader:
            if not header:
                header = [cell.strip() for cell in cells]
                if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                    what = f"the column {twice[0]!r} is there twice"
                    findings.append(Finding(Code.NOT_A_RECORD, Place(file.name, begins), what))
                    return
            elif cells:
                if len(cells) != len(header):
                    what = f"{len(cells)} cells under {len(header)} columns; is a text with the delimiter in quotes?"
                    findings.append(Finding(Code.NOT_A_RECORD, Place(file.name, begins), what))
                else:
                    yield begins, dict(zip(header, cells, strict=True))
            begins = reader.line_num + 1
    except csv.Error as error:
        findings.append(Finding(Code.NOT_A_RECORD, Place(file.name, begins), f"not CSV: {error}"))


def _delimiter(file: Path, text: str) -> str:
    """Excel writes semicolons where the comma is the decimal mark."""
    if file.suffix.lower() == ".tsv":
        return "\t"
    header = text.lstrip("\n").partition("\n")[0]
    return ";" if ";" in header and "," not in header else ","


def _parquet(file: Path, _raw: bytes, findings: list[Finding]) -> Records:
    try:
        import pyarrow
        from pyarrow import parquet  # large, and of use for this one format
    except ImportError:
        what = f"{file}: Parquet needs pyarrow: pip install pyarrow"
        findings.append(Finding(Code.UNREADABLE_FILE, None, what))
        return
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield number, _without_nulls(record)
    except pyarrow.ArrowException as error:
        findings.append(Finding(Code.UNREADABLE_FILE, None, f"{file}: row {number + 1}: {error}"))


def _without_nulls(value: Any) -> Any:
    """Parquet gives every message all columns that any has, and null for those that it lacks."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path, bytes, list[Finding]], Records]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


def data_files(name: str) -> list[Path]:
    """The files that a name of the recipe means: one, those of a folder, or those of a prefix on S3, downloaded once.

    Raises RecipeError where a folder or a prefix holds none, or S3 cannot be read.
    """
    if match := S3_URI.fullmatch(name):
        folder = from_s3(match["bucket"], match["prefix"], tuple(READERS), f"data: {name}")
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        return [Path(name)]
    found = sorted(one for one in folder.iterdir() if one.suffix.lower() in READERS and one.is_file())
    if not found:
        raise RecipeError(f"data: {name} holds no file that ends in {', '.join(READERS)}.")
    return found


def from_s3(bucket: str, prefix: str, suffixes: tuple[str, ...], what: str, *, needs: str | None = None) -> Path:
    """A folder with the objects directly under the prefix, or with the one of that key; downloaded only where S3 holds others.

    `needs` names an object that must be there. Raises RecipeError, which begins with `what`.
    """
    import boto3  # only who names s3:// needs it
    from botocore.exceptions import BotoCoreError, ClientError

    uri = f"s3://{bucket}/{prefix}"
    try:
        s3 = boto3.client("s3")
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [one for page in pages for one in page.get("Contents", [])]
        below = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        single = [one for one in objects if one["Key"] == prefix]
        wanted = {one["Key"].rpartition("/")[2]: one for one in single} or {
            one["Key"].removeprefix(below): one for one in objects if one["Key"].startswith(below)
        }
        wanted = {name: one for name, one in wanted.items() if "/" not in name and name.endswith(suffixes)}
        if (needs and needs not in wanted) or not wanted:
            raise RecipeError(f"{what}: {uri} holds no {needs or 'file that ends in ' + ', '.join(suffixes)}.")
        digest = cache.digest_of((), (), *sorted(f"{name} {one['ETag']} {one['Size']}" for name, one in wanted.items()))

        def download(folder: Path) -> None:
            needed = sum(one["Size"] for one in wanted.values())
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise RecipeError(
                    f"{what}: {uri} has {needed / 1e9:.1f} GB; {folder.parent} has {free / 1e9:.1f} GB free."
                )
            print(f"downloading {uri}, {needed / 1e9:.2f} GB, once", flush=True)
            for name, one in sorted(wanted.items()):
                s3.download_file(bucket, one["Key"], str(folder / name))

        name = re.sub(r"[^\w.-]", "-", f"{bucket}-{prefix.rstrip('/')}")
        return cache.made_once(cache.user_cache() / "downloads" / name, digest, download)
    except (BotoCoreError, ClientError) as error:
        raise RecipeError(f"{what}: {uri} cannot be read: {error}") from error
