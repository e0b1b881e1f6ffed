"""The safetensors format: its header read strictly, its values looked at as they stream by.

The format: a little-endian u64 N, then N bytes of JSON that name each tensor's dtype, shape and place, then the data.
"""

import functools
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from loradrop.archive import Body
from loradrop.policy import Policy
from loradrop.problems import Consequence, Fix, FixKind, ProblemCode, Problems, shown
from loradrop.stream import GIT_LFS_POINTER, HEAD_BYTES, what_is_it
from loradrop.strict_json import DuplicateKeyError, JsonError, parse_object

WEIGHTS_FILE = "adapter_model.safetensors"
LENGTH_BYTES = 8
_JSON_SPACE = b" \t\r\n"
_TENSOR_KEYS = frozenset({"dtype", "shape", "data_offsets"})
_MAX_U64 = 2**64 - 1
# Of the values of a tensor: to scan all of them would cost as much as the hash.
_SAMPLE = 16
_ZERO_RUN = bytes(2048)
_ZEROS = re.compile(rb"\0*")


def _below(suspect: int) -> bytes:
    """The most significant bytes of usual numbers, of both signs."""
    return bytes(byte for byte in range(256) if byte & 0x7F < suspect)


@dataclass(frozen=True, slots=True)
class Float:
    """Where a floating point type keeps its magnitude.

    A value counts as infinite when (bits & magnitude) >= limit: the dtype's own infinities and NaNs, and for the wide
    types also what is 2**121 and more: a product with it is infinite. `suspects` are the values of the most
    significant byte, without its sign, at which that is possible: a quick scan of every n-th byte rules out the rest.
    `usual` are those of numbers below 512 (in F64 below 131,072), above which no training leaves a weight;
    `below_absurd` those of numbers below 2**65, above which the answers are not finite for long.
    """

    bytes_each: int
    magnitude: int
    limit: int
    suspects: tuple[int, ...]
    usual: bytes
    below_absurd: bytes


@dataclass(frozen=True, slots=True)
class SmallFloat:
    """A floating point type of one byte: which bytes are NaN or infinite, and which are 0 or -0."""

    not_finite: bytes
    zero: bytes
    bytes_each: int = 1
    below_absurd: bytes = bytes(range(256))


_HUGE_TOPS = (0x7C, 0x7D, 0x7E, 0x7F)
# bits of one element, and how to read its values: None where the engine cannot use the type
_DTYPES: dict[str, tuple[int, Float | SmallFloat | None]] = {
    "F64": (
        64,
        Float(8, 0x7FFF_FFFF_FFFF_FFFF, 0x4780_0000_0000_0000, tuple(range(0x47, 0x80)), _below(0x41), _below(0x44)),
    ),
    "F32": (32, Float(4, 0x7FFF_FFFF, 0x7C00_0000, _HUGE_TOPS, _below(0x44), _below(0x60))),
    "BF16": (16, Float(2, 0x7FFF, 0x7C00, _HUGE_TOPS, _below(0x44), _below(0x60))),
    "F16": (16, Float(2, 0x7FFF, 0x7C00, _HUGE_TOPS, _below(0x60), _below(0x80))),
    "F8_E5M2": (8, SmallFloat(b"\x7c\x7d\x7e\x7f\xfc\xfd\xfe\xff", b"\x00\x80")),
    "F8_E4M3": (8, SmallFloat(b"\x7f\xff", b"\x00\x80")),
    "F8_E5M2FNUZ": (8, SmallFloat(b"\x80", b"\x00")),
    "F8_E4M3FNUZ": (8, SmallFloat(b"\x80", b"\x00")),
    "F8_E8M0": (8, SmallFloat(b"\xff", b"")),  # powers of two: it has no zero
    **dict.fromkeys(("I64", "U64", "C64"), (64, None)),
    **dict.fromkeys(("I32", "U32"), (32, None)),
    **dict.fromkeys(("I16", "U16"), (16, None)),
    **dict.fromkeys(("I8", "U8", "BOOL"), (8, None)),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), (6, None)),
    "F4": (4, None),
}
NATIVE_DTYPES = frozenset({"F16", "BF16", "F32"})
CAST_DTYPES = frozenset({"F64", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0"})


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(slots=True)
class Weights:
    """What the file holds; `zero`, `not_finite`, `huge` and `absurd` name tensors by what their values are.

    `zero_run_bytes`: how many bytes of a tensor lie in long runs of zeros.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    zero: set[str] = field(default_factory=set)
    not_finite: set[str] = field(default_factory=set)
    huge: set[str] = field(default_factory=set)
    absurd: set[str] = field(default_factory=set)
    zero_run_bytes: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_weights(body: Body, policy: Policy, problems: Problems) -> Weights | None:
    """None where the header cannot be read. Leaves the rest of the body unread where its tensors cannot be trusted."""
    size = body.left
    if size < LENGTH_BYTES:
        problems.add(
            ProblemCode.SAFETENSORS_TOO_SHORT,
            f"{WEIGHTS_FILE} has {size} bytes; the format starts with a length of {LENGTH_BYTES}.",
            place=WEIGHTS_FILE,
        )
        return None
    first = body.take(LENGTH_BYTES)
    length = int.from_bytes(first, "little")
    if LENGTH_BYTES + length > size or length > policy.max_header_bytes:
        head = first
        try:
            head += body.take(HEAD_BYTES - LENGTH_BYTES)
        finally:  # reported, also where the archive is damaged right after
            _add_no_header(head, size, policy, problems)
        return None
    weights = _read_header(body.take(length), policy, problems)
    if weights is not None and _check_places(weights, size - LENGTH_BYTES - length, problems):
        _read_values(weights, body)
    return weights


def _add_no_header(head: bytes, size: int, policy: Policy, problems: Problems) -> None:
    """Of a file of `size` bytes that begins with `head`, and whose first bytes cannot be the length of a header."""
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    found = what_is_it(head)
    if found is not None and not found.startswith("a safetensors"):
        problems.add(
            ProblemCode.SAFETENSORS_OTHER_FORMAT,
            f"{WEIGHTS_FILE} is {found}.",
            place=WEIGHTS_FILE,
            fix=Fix(FixKind.PULL_LFS if head.startswith(GIT_LFS_POINTER) else FixKind.SAVE_AGAIN),
        )
    elif length > policy.max_header_bytes:
        problems.add(
            ProblemCode.SAFETENSORS_HEADER_TOO_LARGE,
            f"{WEIGHTS_FILE} declares a header of {length} bytes; at most {policy.max_header_bytes} are read. "
            "That is usual of a file that was not saved as safetensors.",
            place=WEIGHTS_FILE,
        )
    else:
        problems.add(
            ProblemCode.SAFETENSORS_TOO_SHORT,
            f"{WEIGHTS_FILE} declares a header of {length} bytes, and the whole file has {size}: it was cut short.",
            place=WEIGHTS_FILE,
        )


def _read_header(data: bytes, policy: Policy, problems: Problems) -> Weights | None:
    if not data.startswith(b"{"):
        # The format forbids white space there, and the engine's reader takes it.
        is_padded = data.lstrip(_JSON_SPACE).startswith(b"{")
        problems.add(
            ProblemCode.SAFETENSORS_HEADER_INVALID,
            f"The header of {WEIGHTS_FILE} does not start with an opening brace.",
            place=WEIGHTS_FILE,
            consequence=Consequence.POLICY if is_padded else None,
        )
        if not is_padded:
            return None
    try:
        entries = parse_object(data, max_depth=policy.max_header_depth)
    except DuplicateKeyError as error:
        problems.add(
            ProblemCode.SAFETENSORS_DUPLICATE_KEY,
            f"In the header of {WEIGHTS_FILE} the key {shown(error.key)} occurs twice.",
            place=WEIGHTS_FILE,
        )
        return None
    except JsonError as error:
        problems.add(
            ProblemCode.SAFETENSORS_HEADER_INVALID,
            f"The header of {WEIGHTS_FILE} cannot be read: {error}.",
            place=WEIGHTS_FILE,
        )
        return None
    weights = Weights()
    metadata = entries.pop("__metadata__", {})
    if isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()):
        weights.metadata = metadata
    else:
        problems.add(
            ProblemCode.SAFETENSORS_METADATA_INVALID,
            f"__metadata__ is {shown(metadata)}; it must be an object whose values are strings.",
            place="__metadata__",
            consequence=Consequence.POLICY if metadata is None else None,  # as if there were none
        )
    is_whole = True
    for name in list(entries):
        tensor = _read_tensor(name, entries.pop(name), problems)
        if tensor is None:
            is_whole = False
        else:
            weights.tensors[name] = tensor
    return weights if is_whole else None


def _read_tensor(name: str, entry: object, problems: Problems) -> Tensor | None:
    if not isinstance(entry, dict) or entry.keys() != _TENSOR_KEYS:
        found = ", ".join(sorted(shown(key) for key in entry)) if isinstance(entry, dict) else shown(entry)
        has_more = isinstance(entry, dict) and entry.keys() > _TENSOR_KEYS
        problems.add_grouped(
            ProblemCode.SAFETENSORS_TENSOR_INVALID,
            f"The entry of {shown(name)} is {found or 'empty'}; it must be dtype, shape and data_offsets alone.",
            place=name,
            consequence=Consequence.POLICY if has_more else None,
        )
        if not has_more:
            return None
    assert isinstance(entry, dict)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        problems.add_grouped(
            ProblemCode.SAFETENSORS_TENSOR_INVALID,
            f"The entry of {shown(name)} has dtype {shown(dtype)}, shape {shown(shape)} and data_offsets "
            f"{shown(offsets)}; a string, a list and a pair of whole numbers of at least 0 are needed.",
            place=name,
        )
        return None
    if dtype not in _DTYPES:
        problems.add_grouped(
            ProblemCode.SAFETENSORS_DTYPE_UNKNOWN,
            f"{shown(name)} has the dtype {shown(dtype)}, which the format does not know.",
            place=name,
        )
        return None
    tensor = Tensor(name, dtype, tuple(shape), offsets[0], offsets[1])
    bits = _bits(tensor)
    if bits is None:
        problems.add_grouped(
            ProblemCode.SAFETENSORS_SIZE_MISMATCH,
            f"{shown(name)} is {dtype} {shown(shape)}: more elements than 64 bits can count.",
            place=name,
        )
        return None
    if bits != 8 * (tensor.end - tensor.begin):
        problems.add_grouped(
            ProblemCode.SAFETENSORS_SIZE_MISMATCH,
            f"{shown(name)} is {dtype} {shown(shape)}, which is {bits / 8:.15g} bytes, and its data_offsets "
            f"{shown(offsets)} span {tensor.end - tensor.begin}.",
            place=name,
        )
        return None
    return tensor


def _bits(tensor: Tensor) -> int | None:
    """The length of the data; None where a product on the way there overflows 64 bits, as safetensors refuses it."""
    bits = 1
    for factor in (*tensor.shape, _DTYPES[tensor.dtype][0]):
        bits *= factor
        if bits > _MAX_U64:
            return None
    return bits


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= _MAX_U64 for item in value
    )


def _check_places(weights: Weights, data_bytes: int, problems: Problems) -> bool:
    """Whether the tensors tile the data exactly, from 0 to its end."""
    position = 0
    for tensor in sorted(weights.tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != position:
            what = "leaves a hole" if tensor.begin > position else "overlaps"
            problems.add(
                ProblemCode.SAFETENSORS_OFFSETS_INVALID,
                f"{shown(tensor.name)} begins at byte {tensor.begin} of the data and {what}: "
                f"the tensors before it end at {position}.",
                place=tensor.name,
            )
            return False
        position = tensor.end
    if position != data_bytes:
        what = (
            f"{data_bytes - position} bytes follow" if position < data_bytes else f"{position - data_bytes} are missing"
        )
        problems.add(
            ProblemCode.SAFETENSORS_OFFSETS_INVALID,
            f"The tensors end at byte {position} of the data, which has {data_bytes}: {what}.",
            place=WEIGHTS_FILE,
        )
        return False
    return True


def _read_values(weights: Weights, body: Body) -> None:
    for tensor in sorted(weights.tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        layout = _DTYPES[tensor.dtype][1]
        if layout is None:
            for _ in body.pieces(tensor.end - tensor.begin):
                pass
            continue
        is_zero, is_finite, is_usual, is_absurd = True, True, True, False
        elements, runs = 0, _ZeroRuns()
        split = b""  # the first bytes of an element that two pieces share
        for view in body.pieces(tensor.end - tensor.begin):
            piece = split + bytes(view) if split else bytes(view)
            whole = len(piece) - len(piece) % layout.bytes_each
            split = piece[whole:]
            values = piece[:whole]
            is_finite = is_finite and all_finite(values, layout)
            # Zeros consist of these two bytes alone: trained weights show another one at once.
            is_zero = is_zero and not values[:64].strip(b"\x00\x80") and all_zero(values, layout)
            if unusual := unusual_sample(values, layout, elements):
                is_usual = False
                is_absurd = is_absurd or bool(unusual.translate(None, layout.below_absurd))
            elements += len(values) // layout.bytes_each
            runs.add(values)
        if is_zero and tensor.end > tensor.begin:
            weights.zero.add(tensor.name)
        elif zero_run_bytes := runs.total_bytes():
            weights.zero_run_bytes[tensor.name] = zero_run_bytes
        if not is_finite:
            weights.not_finite.add(tensor.name)
        elif is_absurd:
            weights.absurd.add(tensor.name)
        elif not is_usual:
            weights.huge.add(tensor.name)


def all_finite(values: bytes, layout: Float | SmallFloat) -> bool:
    """Whether no element is NaN, infinite, or infinite once rounded to bfloat16."""
    if isinstance(layout, SmallFloat):
        return not any(byte in values for byte in layout.not_finite)
    if not values:
        return True
    top = values[layout.bytes_each - 1 :: layout.bytes_each]
    if not any(suspect in top or suspect | 0x80 in top for suspect in layout.suspects):
        return True
    # One addition decides about all elements: it carries into an element's sign bit where the limit is reached.
    sign = 1 << (8 * layout.bytes_each - 1)
    count = len(values) // layout.bytes_each
    magnitudes = int.from_bytes(values, "little") & _repeated(layout.magnitude, layout.bytes_each, count)
    carried = magnitudes + _repeated(sign - layout.limit, layout.bytes_each, count)
    return carried & _repeated(sign, layout.bytes_each, count) == 0


def unusual_sample(values: bytes, layout: Float | SmallFloat, position: int) -> bytes:
    """Of each _SAMPLE elements the first: the most significant bytes of those above a magnitude that training gives.

    `position`: how many elements of the tensor came before, so that its cut into pieces makes no difference.
    """
    if isinstance(layout, SmallFloat):
        return b""
    first = -position % _SAMPLE * layout.bytes_each
    return values[first + layout.bytes_each - 1 :: layout.bytes_each * _SAMPLE].translate(None, layout.usual)


class _ZeroRuns:
    """Counts the bytes in runs of zeros that are at least as long as _ZERO_RUN, however a tensor is cut into pieces."""

    def __init__(self) -> None:
        self._counted = 0
        self._open = 0  # zeros at the end of what came

    def add(self, values: bytes) -> None:
        position = _end_of_zeros(values, 0)
        if position == len(values):
            self._open += position
            return
        self._close(position)
        while (begin := values.find(_ZERO_RUN, position)) >= 0:
            position = _end_of_zeros(values, begin)
            self._open = position - begin
            if position == len(values):
                return
            self._close(0)
        tail = values[max(position, len(values) - len(_ZERO_RUN)) :]
        self._open = len(tail) - len(tail.rstrip(b"\0"))

    def _close(self, more: int) -> None:
        run = self._open + more
        self._counted += run if run >= len(_ZERO_RUN) else 0
        self._open = 0

    def total_bytes(self) -> int:
        self._close(0)
        return self._counted


def _end_of_zeros(values: bytes, position: int) -> int:
    match = _ZEROS.match(values, position)
    return position if match is None else match.end()


def all_zero(values: bytes, layout: Float | SmallFloat) -> bool:
    """Whether every element is 0 or -0."""
    if isinstance(layout, SmallFloat):
        return not values.strip(layout.zero)
    if values.count(0) == len(values):
        return True
    count = len(values) // layout.bytes_each
    return int.from_bytes(values, "little") & _repeated(layout.magnitude, layout.bytes_each, count) == 0


@functools.lru_cache(maxsize=8)
def _repeated(element: int, bytes_each: int, count: int) -> int:
    return int.from_bytes(element.to_bytes(bytes_each, "little") * count, "little")


def read_layout(path: Path, policy: Policy) -> tuple[Weights, int] | None:
    """The tensors of a file, without a look at their values, and where its data begins; None where the validator would refuse its form."""
    problems = Problems()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        begin = LENGTH_BYTES + length
        if begin > size or length > policy.max_header_bytes:
            return None
        weights = _read_header(file.read(length), policy, problems)
    is_whole = weights is not None and _check_places(weights, size - begin, problems)
    return None if weights is None or not is_whole or problems.errors() else (weights, begin)
