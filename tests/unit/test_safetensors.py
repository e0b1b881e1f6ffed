"""The reader of safetensors: what it refuses, that the library agrees, and that no NaN hides from it."""

import itertools
import json
import math
import struct
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loradrop.archive import Body
from loradrop.policy import DEFAULT_POLICY
from loradrop.problems import ProblemCode, Problems
from loradrop.safetensors import Float, Weights, _ZeroRuns, read_weights, unusual_sample
from loradrop.stream import ByteSource
from tests.adapters import safetensors_file

C = ProblemCode


def read(data: bytes, piece: int = 1 << 20) -> tuple[Weights | None, list[ProblemCode]]:
    """What is read of a file that comes in pieces of so many bytes, and which problems it has."""
    problems = Problems()
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    weights = read_weights(Body(ByteSource(pieces), len(data), "file"), DEFAULT_POLICY, problems)
    return weights, [problem.code for problem in problems]


def library_takes(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


def entry(dtype: Any = "U8", shape: Any = (2,), offsets: Any = (0, 2), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def one(data: bytes = b"ab", **fields: Any) -> bytes:
    return safetensors_file(json.dumps({"a": entry(**fields)}).encode(), data)


def text(header: str | bytes, data: bytes = b"") -> bytes:
    return safetensors_file(header if isinstance(header, bytes) else header.encode(), data)


def two(first: tuple[int, int], second: tuple[int, int], size: int) -> bytes:
    header = {name: entry("U8", [end - begin], [begin, end]) for name, (begin, end) in zip("ab", (first, second))}  # noqa: B905
    return safetensors_file(json.dumps(header).encode(), bytes(size))


TENSOR, SIZE, PLACES, HEADER = (
    C.SAFETENSORS_TENSOR_INVALID,
    C.SAFETENSORS_SIZE_MISMATCH,
    C.SAFETENSORS_OFFSETS_INVALID,
    C.SAFETENSORS_HEADER_INVALID,
)
WRONG: dict[str, tuple[bytes, ProblemCode]] = {  # the library refuses each of these too
    "nothing": (b"", C.SAFETENSORS_TOO_SHORT),
    "seven bytes": (bytes(7), C.SAFETENSORS_TOO_SHORT),
    "a header past the end": (struct.pack("<Q", 3) + b"{}", C.SAFETENSORS_TOO_SHORT),
    "a header of 2^64 - 1": (b"\xff" * 8 + b"{}", C.SAFETENSORS_HEADER_TOO_LARGE),
    "a header of 0 bytes": (bytes(8), HEADER),
    "a header that is no object": (text("[]"), HEADER),
    "not JSON": (text("{a}"), HEADER),
    "not UTF-8": (text(b'{"\xff":1}'), HEADER),
    "something after the object": (text("{}{}"), HEADER),
    "a byte order mark": (text("\ufeff{}"), HEADER),
    "NaN": (text('{"a": NaN}'), HEADER),
    "half of a surrogate pair as a name": (text('{"\\ud800":' + json.dumps(entry()) + "}", b"ab"), HEADER),
    "half of a surrogate pair as metadata": (text('{"__metadata__":{"a":"\\udc00x"}}'), HEADER),
    "a line break in a text": (text('{"__metadata__":{"a":"\n"}}'), HEADER),
    "nested deeply": (text('{"a":' + "[" * 500 + "]" * 500 + "}"), HEADER),
    "nested endlessly": (text('{"a":' + "[" * 100_000), HEADER),
    "quotes that never end": (text('{"a":' + '\\"' * 100_000), HEADER),
    "a number of many digits": (one(shape=[10**100]), HEADER),
    "metadata that are no texts": (text('{"__metadata__":{"a":1}}'), C.SAFETENSORS_METADATA_INVALID),
    "metadata that are a list": (text('{"__metadata__":[]}'), C.SAFETENSORS_METADATA_INVALID),
    "a tensor that is a number": (text('{"a":1}'), TENSOR),
    "no dtype": (text('{"a":{"shape":[2],"data_offsets":[0,2]}}', b"ab"), TENSOR),
    "a dtype that is a number": (one(dtype=1), TENSOR),
    "an unknown dtype": (one(dtype="Q8"), C.SAFETENSORS_DTYPE_UNKNOWN),
    "a dtype in small letters": (one(dtype="u8"), C.SAFETENSORS_DTYPE_UNKNOWN),
    "a negative dimension": (one(shape=[-2]), TENSOR),
    "a dimension of -0": (text('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), TENSOR),
    "a fraction": (one(shape=[2.0]), TENSOR),
    "a dimension of 2^64": (one(shape=[2**64]), TENSOR),
    "true as a dimension": (one(shape=[True]), TENSOR),
    "one offset": (one(offsets=[0]), TENSOR),
    "three offsets": (one(offsets=[0, 1, 2]), TENSOR),
    "offsets that are texts": (one(offsets=["0", "2"]), TENSOR),
    "a product that overflows": (one(shape=[2**63, 4], offsets=[0, 0], data=b""), SIZE),
    "a product that overflows on its way to 0": (one(shape=[2**63, 4, 0], offsets=[0, 0], data=b""), SIZE),
    "bits that overflow": (one(dtype="F64", shape=[2**60], offsets=[0, 0], data=b""), SIZE),
    "50000 dimensions": (one(shape=[2**64 - 1] * 45_000, offsets=[0, 2]), SIZE),
    "too few bytes": (one(shape=[3]), SIZE),
    "half a byte": (one(dtype="F4", shape=[3]), SIZE),
    "an end before its beginning": (one(offsets=[2, 0], shape=[0]), SIZE),
    "a hole at the beginning": (one(offsets=[1, 3], data=b"abc"), PLACES),
    "a hole": (two((0, 2), (3, 5), 5), PLACES),
    "an overlap": (two((0, 3), (2, 5), 5), PLACES),
    "the same place": (two((0, 2), (0, 2), 2), PLACES),
    "bytes that are missing": (one(data=b"a"), PLACES),
    "bytes that follow": (one(data=b"abc"), PLACES),
    "data of no tensor": (text("{}", b"a"), PLACES),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_malformed_file_is_refused_as_the_library_does(name: str) -> None:
    data, code = WRONG[name]
    assert read(data)[1] == [code]
    assert not library_takes(data)


STRICTER: dict[str, tuple[bytes, ProblemCode]] = {
    "a tensor twice": (
        text('{"a":' + json.dumps(entry()) + ',"a":' + json.dumps(entry()) + "}", b"ab"),
        C.SAFETENSORS_DUPLICATE_KEY,
    ),
    "white space before the brace": (text(" {}"), HEADER),
    "another field of a tensor": (one(more=1), TENSOR),
    "metadata of null": (text('{"__metadata__":null}'), C.SAFETENSORS_METADATA_INVALID),
    "a tensor as a list": (text('{"a":["U8",[2],[0,2]]}', b"ab"), TENSOR),
    "a header of 1 MiB and more": (text("{" + " " * (1 << 20) + "}"), C.SAFETENSORS_HEADER_TOO_LARGE),
}


@pytest.mark.parametrize("name", STRICTER)
def test_this_reader_is_stricter_than_the_library(name: str) -> None:
    data, code = STRICTER[name]
    assert read(data)[1] == [code]
    assert library_takes(data)


RIGHT: dict[str, bytes] = {
    "no tensor": text("{}"),
    "white space at the end": text("{}  \n"),
    "a scalar": one(shape=[], offsets=[0, 1], data=b"a"),
    "an empty tensor": one(shape=[0], offsets=[0, 0], data=b""),
    "a name that is escaped": text('{"\\u0061\\ud83d\\ude00\\u0000":' + json.dumps(entry()) + "}", b"ab"),
    "two tensors out of order": two((2, 4), (0, 2), 4),
    "an empty tensor between": two((2, 2), (0, 2), 2),
    "6 bits": one(dtype="F6_E2M3", shape=[4], offsets=[0, 3], data=b"abc"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_taken_by_both(name: str) -> None:
    assert read(RIGHT[name])[1] == []
    assert library_takes(RIGHT[name])


DTYPES = (
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
_sizes = st.one_of(st.integers(0, 4), st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 0.0, 1.5, "1", None]))
_shapes = st.lists(_sizes, max_size=4)


@st.composite
def _files(draw: st.DrawFn) -> bytes:
    """Files whose tensors tile the data, with here and there something changed."""
    header: dict[str, Any] = {}
    position = 0
    for name in draw(st.lists(st.text(max_size=3), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        bits = 64 if dtype == "C64" else 8 if dtype == "BOOL" else int(dtype.split("_")[0].lstrip("BFIU"))
        length = math.prod(shape) * bits // 8
        header[name] = entry(dtype, shape, [position, position + length])
        position += length
    if draw(st.booleans()) and header:
        changed = header[draw(st.sampled_from(sorted(header)))]
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        changed[key] = draw(st.sampled_from([*DTYPES, "F9"])) if key == "dtype" else draw(_shapes)
    size = max(0, position + draw(st.sampled_from([0, 0, 0, -1, 1])))
    return safetensors_file(json.dumps(header).encode(), bytes(size))


@settings(max_examples=400, deadline=None)
@given(_files())
def test_this_reader_and_the_library_agree(data: bytes) -> None:
    weights, problems = read(data)
    assert (not problems) == library_takes(data)
    if not problems:
        assert weights is not None
        theirs = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in weights.tensors.items()} == {
            name: (found["dtype"], list(found["shape"])) for name, found in theirs.items()
        }


def file_of(dtype: str, values: bytes, bytes_each: int, before: int = 0) -> bytes:
    """A file of one tensor, after `before` bytes of another."""
    header = {
        "before": entry("U8", [before], [0, before]),
        "a": entry(dtype, [len(values) // bytes_each], [before, before + len(values)]),
    }
    return safetensors_file(json.dumps(header).encode(), bytes(before) + values)


TORCH = {
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_EDGES_32 = (0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7F000000, 1, 0)
_EDGES_64 = (
    *(0x47EFEFFFEFFFFFFF, 0x47EFEFFFF0000000, 0x47EFEFFFFFFFFFFF, 0x47EFF00000000000, 0x47F0000000000000),
    *(0x7FF0000000000000, 0x7FF0000000000001, 0x7FF8000000000000, 0x46FFFFFFFFFFFFFF, 0x47E0000000000000, 1, 0),
)


LARGEST = dict.fromkeys(("F64", "F32", "BF16"), 2.0**121) | {"F16": math.inf}


def patterns(dtype: str) -> tuple[int, list[int]]:
    """(bytes of an element, the bits to look at): all of them for the small types, the edges for the others."""
    match dtype:
        case "F32":
            return 4, [edge | sign for edge in _EDGES_32 for sign in (0, 1 << 31)]
        case "F64":
            return 8, [edge | sign for edge in _EDGES_64 for sign in (0, 1 << 63)]
        case "F16" | "BF16":
            return 2, list(range(1 << 16))
        case _:
            return 1, list(range(1 << 8))


@pytest.mark.parametrize("dtype", TORCH)
def test_finite_and_zero_are_what_torch_says(dtype: str) -> None:
    """Of each bit pattern; of the wide types, what is so large that a product with it is infinite counts as infinite."""
    bytes_each, bits = patterns(dtype)
    packed = b"".join(pattern.to_bytes(bytes_each, "little") for pattern in bits)
    values = torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(TORCH[dtype])
    finite = (
        values.to(torch.bfloat16).isfinite()
        if dtype.startswith("F8")
        else values.to(torch.float64).abs() < LARGEST[dtype]
    )
    zero = values.to(torch.float64) == 0
    for start in range(0, len(bits), 4096):  # each a tensor of its own
        numbers = range(start, min(start + 4096, len(bits)))
        header = {
            str(number): entry(dtype, [1], [(number - start) * bytes_each, (number - start + 1) * bytes_each])
            for number in numbers
        }
        data = packed[start * bytes_each : numbers.stop * bytes_each]
        weights, problems = read(safetensors_file(json.dumps(header).encode(), data))
        assert weights is not None
        assert problems == []
        assert weights.not_finite == {str(number) for number in numbers if not finite[number]}
        assert weights.zero == {str(number) for number in numbers if zero[number]}


NAN = {
    "F8_E5M2": b"\x7e",
    "F8_E4M3": b"\xff",
    "F8_E5M2FNUZ": b"\x80",
    "F8_E4M3FNUZ": b"\x80",
    "F8_E8M0": b"\xff",
    "F16": b"\0\x7c",
    "BF16": b"\xc0\xff",
    "F32": b"\0\0\x80\x7f",
    "F64": b"\1\0\0\0\0\0\xf0\xff",
}


@pytest.mark.parametrize("dtype", NAN)
@pytest.mark.parametrize("piece", [1, 3, 5, 8, 13])
def test_no_nan_hides_where_pieces_meet(dtype: str, piece: int) -> None:
    """At every element, with the data at an even and at an odd place."""
    nan = NAN[dtype]
    for position, before in itertools.product(range(12), (0, 1, 3)):
        values = bytearray(b"\1" * 12 * len(nan))
        assert read(file_of(dtype, bytes(values), len(nan), before), piece)[0].not_finite == set()  # type: ignore[union-attr]
        values[position * len(nan) : (position + 1) * len(nan)] = nan
        weights, _ = read(file_of(dtype, bytes(values), len(nan), before), piece)
        assert weights is not None
        assert weights.not_finite == {"a"}


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("piece", [1, 3, 7])
def test_zeros_are_seen_through_signs_and_pieces(dtype: str, piece: int) -> None:
    bytes_each = len(NAN[dtype])
    minus_zero = bytes(bytes_each - 1) + b"\x80"
    zeros = (bytes(bytes_each) + minus_zero) * 6
    assert read(file_of(dtype, zeros, bytes_each, 1), piece)[0].zero == {"a"}  # type: ignore[union-attr]
    for position in range(12):
        values = bytearray(zeros)
        values[position * bytes_each] |= 1
        assert read(file_of(dtype, bytes(values), bytes_each, 1), piece)[0].zero == set()  # type: ignore[union-attr]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=30), st.integers(1, 200))
@example([3.3895314e38, -3.3895314e38], 4)
def test_any_float32_is_read_as_torch_does(values: list[float], piece: int) -> None:
    data = struct.pack(f"<{len(values)}f", *values)
    tensor = torch.frombuffer(bytearray(data), dtype=torch.float32)
    weights, _ = read(file_of("F32", data, 4), piece)
    assert weights is not None
    assert ("a" in weights.not_finite) is not bool((tensor.abs() < LARGEST["F32"]).all())
    assert ("a" in weights.zero) is not bool(tensor.any())


@pytest.mark.parametrize("sizes", [(10_000,), (1, 9_999), (2_047, 1, 2_048, 5_904), (4_000, 6_000)])
@pytest.mark.parametrize(
    ("data", "counted"),
    [
        (b"\1" + bytes(2_048) + b"\1" * 7_951, 2_048),
        (b"\1" + bytes(2_047) + b"\1" * 7_952, 0),
        (bytes(3_000) + b"\1" * 4_000 + bytes(3_000), 6_000),
        ((bytes(2_049) + b"\1") * 4 + b"\1" * 1_800, 4 * 2_049),
        (b"\1" * 10_000, 0),
        (bytes(10_000), 10_000),
    ],
)
def test_long_runs_of_zeros_are_counted_however_a_tensor_is_cut(
    data: bytes, counted: int, sizes: tuple[int, ...]
) -> None:
    runs, begin = _ZeroRuns(), 0
    for size in sizes:
        runs.add(data[begin : begin + size])
        begin += size
    assert runs.total_bytes() == counted


def test_the_sample_of_magnitudes_does_not_depend_on_the_cut() -> None:
    layout = Float(2, 0x7FFF, 0x7F80, (0x7F,), bytes(range(0x44)) + bytes(range(0x80, 0xC4)), b"")
    data = bytearray(struct.pack("<H", 0x3F80) * 100)  # 1.0
    data[2 * 32 : 2 * 33] = struct.pack("<H", 0xE000)  # far below -512, the third of the sample
    for cut in range(101):
        head, tail = bytes(data[: 2 * cut]), bytes(data[2 * cut :])
        assert unusual_sample(head, layout, 0) + unusual_sample(tail, layout, cut)
    data[2 * 32 : 2 * 33] = struct.pack("<H", 0xC380)  # -256
    assert not unusual_sample(bytes(data), layout, 0)
