"""What is wrong with an upload before anything in it is read: its key, its size, how S3 keeps it.

Each function gives the Problem; `ValidationReport.rejected` makes the report of it.
"""

import re

from loradrop.names import ADAPTER_NAME_RULE, MAX_ADAPTER_NAME_CHARACTERS, UPLOAD_PREFIX, UPLOAD_SUFFIX, key_stem
from loradrop.problems import Fix, FixKind, Problem, ProblemCode, shown

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_NOT_AT_ENDS = "._-"
_TARBALL_ENDINGS = (UPLOAD_SUFFIX, ".tgz")


def name_invalid(bucket: str, key: str) -> Problem:
    """The key is adapters/….tar.gz, but what stands between is no adapter name."""
    name = key_stem(key)
    found = f"The adapter name {shown(name)} in the key is not valid" if name else "The key has no adapter name"
    return Problem.of(
        ProblemCode.ADAPTER_NAME_INVALID,
        f"{found}. Allowed: {ADAPTER_NAME_RULE}.",
        place=key,
        fix=Fix(FixKind.COPY_TO, bucket=bucket, key=key, to_key=starting_key(key)),
    )


def starts_nothing(bucket: str, key: str) -> Problem:
    """The key is not adapters/….tar.gz at all."""
    to_key = starting_key(key)
    is_tarball = key.lower().endswith(_TARBALL_ENDINGS)
    fix = Fix(FixKind.COPY_TO, bucket=bucket, key=key, to_key=to_key)
    return Problem.of(
        ProblemCode.KEY_STARTS_NOTHING,
        f"The key {shown(key)} deploys nothing: only {UPLOAD_PREFIX}NAME{UPLOAD_SUFFIX} does, in lower case. "
        f"{to_key} would deploy.",
        place=key,
        fix=fix if is_tarball else Fix(FixKind.UPLOAD_AGAIN, bucket=bucket, key=to_key),
    )


def starting_key(key: str) -> str:
    """The key that deploys and is nearest to `key`."""
    folder, _, rest = key.partition("/")
    name = rest if folder.lower() == UPLOAD_PREFIX.rstrip("/") else key.rpartition("/")[2]
    ending = next(
        (ending for ending in (*_TARBALL_ENDINGS, ".tar", ".gz", ".zip") if name.lower().endswith(ending)), ""
    )
    parts = (_NOT_IN_NAMES.sub("-", part).strip(_NOT_AT_ENDS) for part in name[: len(name) - len(ending)].split("/"))
    valid = "/".join(part for part in parts if part)[:MAX_ADAPTER_NAME_CHARACTERS].strip(f"{_NOT_AT_ENDS}/")
    return f"{UPLOAD_PREFIX}{valid or 'my-adapter'}{UPLOAD_SUFFIX}"


def empty(bucket: str, key: str) -> Problem:
    return Problem.of(
        ProblemCode.UPLOAD_EMPTY,
        "The upload is empty: it has 0 bytes.",
        place=key,
        fix=Fix(FixKind.UPLOAD_AGAIN, bucket=bucket, key=key),
    )


def too_large(key: str, size_bytes: int, max_bytes: int) -> Problem:
    return Problem.of(
        ProblemCode.UPLOAD_TOO_LARGE,
        f"The upload has {size_bytes:,} bytes; at most {max_bytes:,} are allowed (the stack's parameter "
        "MaxUploadMegabytes).",
        place=key,
        fix=Fix(FixKind.REPACKAGE),
    )


def vanished(bucket: str, key: str, version_id: str) -> Problem:
    return Problem.of(
        ProblemCode.UPLOAD_VANISHED,
        f"Version {version_id} of the upload was deleted before it was read.",
        place=key,
        fix=Fix(FixKind.UPLOAD_AGAIN, bucket=bucket, key=key),
    )


def not_versioned(bucket: str, key: str) -> Problem:
    return Problem.of(
        ProblemCode.UPLOAD_NOT_VERSIONED,
        f"The upload has no version id: versioning is suspended on the bucket {bucket}.",
        place=key,
        fix=Fix(FixKind.ENABLE_VERSIONING, bucket=bucket, key=key),
    )


def archived(bucket: str, key: str, version_id: str, storage_class: str) -> Problem:
    return Problem.of(
        ProblemCode.UPLOAD_ARCHIVED,
        f"The upload is in the storage class {storage_class}, which cannot be read before it is restored.",
        place=key,
        fix=Fix(FixKind.RESTORE, bucket=bucket, key=key, version_id=version_id),
    )


def unreadable(bucket: str, key: str, reason: str) -> Problem:
    """`reason`: what S3 answered."""
    return Problem.of(
        ProblemCode.UPLOAD_UNREADABLE,
        f"S3 refused to let the validator read the upload: {reason}",
        place=key,
        fix=Fix(FixKind.ENCRYPT_BY_S3, bucket=bucket, key=key),
    )
