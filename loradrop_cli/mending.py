"""`loradrop package --mend`: brings an adapter into the form that the engine reads, where that takes no guess.

Names lose what wrappers and frameworks put before them, what the engine would not read is left out, dtypes that it would cast are
cast, mlx-lm's matrices are transposed. No number that the engine reads becomes another one but by a cast, and that is said. The folder
itself is never written to.
"""

import array
import dataclasses
import json
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from loradrop.adapter_config import CONFIG_FILE, base_model_in, read_config
from loradrop.modules import PEFT_PREFIX, is_base_layer, mended_name, peft_path
from loradrop.policy import DEFAULT_POLICY
from loradrop.problems import Problems, shown
from loradrop.profile import BaseProfile
from loradrop.safetensors import WEIGHTS_FILE, Tensor, Weights, read_layout
from loradrop.strict_json import JsonError, parse_object
from loradrop.validator import SMOKE_FILE

MLX_WEIGHTS = "adapters.safetensors"
_MLX_HALVES = {".lora_a": "lora_A", ".lora_b": "lora_B"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WORD = re.compile(r"\w+")
_COPY_BYTES = 4 * 1024 * 1024
# What is cast: to which dtype, of how many bytes. Every number of 8 bits is one of bfloat16 too.
_CASTS = {"F64": ("F32", 4), "F8_E4M3": ("BF16", 2), "F8_E5M2": ("BF16", 2)}


Choose = Callable[[str | None], BaseProfile | None]  # a profile by the base that an adapter names


class NotMendableError(Exception):
    """What would have to be guessed. The message is a sentence for a person."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor as it will be written: where its bytes come from, and what is done to them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Tensor
    is_transposed: bool = False


@dataclass(slots=True)
class Mending:
    """What is to be done, before anything is. `changes` are sentences; empty where there is nothing to mend."""

    folder: Path
    config: bytes | None = None  # None: as it is
    weights: Path | None = None
    data_begin: int = 0
    targets: list[_Target] | None = None  # None: the weights as they are
    changes: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """The adapter's own files, mended, into an empty folder."""
        config = _read_small(self.folder, CONFIG_FILE, DEFAULT_POLICY.max_config_bytes)
        smoke = _read_small(self.folder, SMOKE_FILE, DEFAULT_POLICY.max_smoke_bytes)
        for name, data in ((CONFIG_FILE, config if self.config is None else self.config), (SMOKE_FILE, smoke)):
            if data is not None:
                (folder / name).write_bytes(data)
        if self.weights is None:
            return
        if self.targets is None:
            shutil.copyfile(self.weights, folder / WEIGHTS_FILE)
            return
        with self.weights.open("rb") as source, (folder / WEIGHTS_FILE).open("xb") as sink:
            sink.write(_header(self.targets))
            for target in self.targets:
                for piece in _values(target, source, self.data_begin):
                    sink.write(piece)


def mending_of(folder: Path, choose: Choose) -> Mending:
    """Reads names and shapes only, and never a pickle. Raises NotMendableError."""
    mending = Mending(folder)
    if not (folder / CONFIG_FILE).is_file():
        mending.folder = _unwrapped(folder)
        mending.changes.append(f"took the adapter out of the folder {mending.folder.relative_to(folder)}")
    config = _read_small(mending.folder, CONFIG_FILE, DEFAULT_POLICY.max_config_bytes) or b""
    if config.startswith(_BYTE_ORDER_MARK):
        config = config.removeprefix(_BYTE_ORDER_MARK)
        mending.config = config
        mending.changes.append(f"took the byte order mark off {CONFIG_FILE}")
    mending.weights = _weights_of(mending.folder)
    if mending.weights.name not in (WEIGHTS_FILE, MLX_WEIGHTS):
        mending.changes.append(f"read the weights from {mending.weights.name}")
    layout = read_layout(mending.weights, DEFAULT_POLICY)
    if layout is None:
        raise NotMendableError(f"{mending.weights.name} is damaged.")
    weights, mending.data_begin = layout
    if mending.weights.name == MLX_WEIGHTS or _is_of_mlx(weights):
        _convert_mlx(mending, config, weights, choose)
    else:
        profile = choose(base_model_in(config, DEFAULT_POLICY))
        if profile is not None:
            _rename(mending, weights, config, profile)
    _cast(mending)
    targets = mending.targets
    if targets is not None and len(targets) == len(weights.tensors) and not any(map(_is_changed, targets)):
        mending.targets = None
    return mending


def _is_changed(target: _Target) -> bool:
    source = target.source
    return target.is_transposed or (target.name, target.dtype) != (source.name, source.dtype)


def _read_small(folder: Path, name: str, most: int) -> bytes | None:
    """None where there is no such file. A pipe or a folder of that name is none either: to read it might never end."""
    path = folder / name
    if not path.is_file():
        return None
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise NotMendableError(f"{name} has more than {most:,} bytes.")
    return data


def _unwrapped(folder: Path) -> Path:
    root = folder.resolve()
    paths = (*folder.glob(f"*/{CONFIG_FILE}"), *folder.glob(f"*/*/{CONFIG_FILE}"))
    found = sorted({path.parent for path in paths if path.is_file() and _is_within(path.parent, folder, root)})
    if not found:
        raise NotMendableError(f"There is no {CONFIG_FILE} in {folder}.")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:8])
        raise NotMendableError(f"{folder} holds several adapters ({names}): name the folder of one.")
    return found[0]


def _is_within(inner: Path, folder: Path, root: Path) -> bool:
    """Whether no link leads to it, and none of what would be packed leads out of the folder that was named."""
    own = (inner / CONFIG_FILE, inner / SMOKE_FILE, *inner.glob("*.safetensors"))
    return inner.resolve() == root / inner.relative_to(folder) and all(
        path.resolve().is_relative_to(root) for path in own
    )


def _weights_of(folder: Path) -> Path:
    for name in (WEIGHTS_FILE, MLX_WEIGHTS):
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if len(found) != 1:
        several = ", ".join(path.name for path in found[:8])
        raise NotMendableError(
            f"There is no {WEIGHTS_FILE} in {folder}, and {f'several other files of weights ({several})' if found else 'no other safetensors file'}."
        )
    return found[0]


def _rename(mending: Mending, weights: Weights, config: bytes, profile: BaseProfile) -> None:
    seen: dict[str, str] = {}
    adapters: set[str | None] = set()  # None: names without an adapter's name are of one of their own
    targets: list[_Target] = []
    renamed: list[tuple[str, str]] = []
    dropped: list[str] = []
    for tensor in _in_order(weights):
        if is_base_layer(tensor.name):
            dropped.append(tensor.name)
            continue
        mended = mended_name(tensor.name, profile)
        name = tensor.name if mended is None else mended.name
        if name in seen:
            raise NotMendableError(f"{shown(seen[name])} and {shown(tensor.name)} are the same matrix, {shown(name)}.")
        seen[name] = tensor.name
        if mended is not None:
            adapters.add(mended.adapter)
        if name != tensor.name:
            renamed.append((tensor.name, name))
        targets.append(_Target(name, tensor.dtype, tensor.shape, tensor))
    mending.targets = targets
    if len(adapters) > 1:
        names = sorted("one without a name" if name is None else shown(name) for name in adapters)
        raise NotMendableError(
            f"The file holds several adapters ({', '.join(names)}): save one with "
            "model.save_pretrained(FOLDER, selected_adapters=[NAME])."
        )
    if renamed:
        _check_patterns(renamed, config, profile)
        old, new = renamed[0]
        mending.changes.append(f"renamed {_counted(renamed)}: {shown(old)} to {shown(new)}{_and_so_on(renamed)}")
    if dropped:
        mending.changes.append(
            f"left out {_counted(dropped)} of the base's own weights: {shown(dropped[0])}{_and_so_on(dropped)}"
        )


def _check_patterns(renamed: list[tuple[str, str]], config: bytes, profile: BaseProfile) -> None:
    """Raises NotMendableError where rank_pattern or alpha_pattern would apply to another module than PEFT applied it to."""
    honouring = dataclasses.replace(profile, engine_version="0.32.0")
    read = read_config(config, honouring, DEFAULT_POLICY, Problems())
    if read is None:
        return
    lost = _parts(old for old, _ in renamed) - _parts(new for _, new in renamed)
    for entry in (*read.rank_pattern, *read.alpha_pattern):
        if gone := sorted(lost.intersection(_WORD.findall(entry.key))):
            raise NotMendableError(
                f"rank_pattern or alpha_pattern names {shown(entry.key)}, and {gone[0]} is not in the names any more."
            )
    for old, new in renamed:
        before, after = (peft_path(name) for name in (old, new))
        if (read.rank_of(before), read.alpha_of(before)) != (read.rank_of(after), read.alpha_of(after)):
            raise NotMendableError(
                f"rank_pattern or alpha_pattern means another module once {shown(old)} is called {shown(new)}."
            )


def _parts(names: Iterable[str]) -> set[str]:
    return {part for name in names for part in name.split(".")}


def _is_of_mlx(weights: Weights) -> bool:
    return any(name.endswith(tuple(_MLX_HALVES)) for name in weights.tensors)


def _convert_mlx(mending: Mending, data: bytes, weights: Weights, choose: Choose) -> None:
    """mlx-lm computes x·A·B·scale, with A (in, r) and B (r, out): PEFT's A and B are their transposes, and lora_alpha is scale·r."""
    config = _json(data)
    settings = config.get("lora_parameters")
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise NotMendableError(f"fine_tune_type is {shown(kind)} in mlx-lm's {CONFIG_FILE}; only lora can be served.")
    scale = settings.get("scale") if isinstance(settings, dict) else None
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        raise NotMendableError(f"mlx-lm's {CONFIG_FILE} has no lora_parameters.scale.")
    base = config.get("model")
    profile = choose(base if isinstance(base, str) else None)
    ranks: set[int] = set()
    targets: list[_Target] = []
    for tensor in _in_order(weights):
        ending = next((ending for ending in _MLX_HALVES if tensor.name.endswith(ending)), None)
        if ending is None or len(tensor.shape) != 2:
            raise NotMendableError(f"{shown(tensor.name)} is not one of mlx-lm's LoRA matrices.")
        name = f"{PEFT_PREFIX}{tensor.name.removesuffix(ending)}.{_MLX_HALVES[ending]}.weight"
        mended = None if profile is None else mended_name(name, profile)
        first, second = tensor.shape
        ranks.add(second if ending == ".lora_a" else first)
        targets.append(
            _Target(name if mended is None else mended.name, tensor.dtype, (second, first), tensor, is_transposed=True)
        )
    mending.targets = targets
    names = {target.name for target in targets}
    if len(ranks) != 1 or len(names) != len(targets):
        raise NotMendableError(f"The matrices of {MLX_WEIGHTS} have the ranks {sorted(ranks)}; mlx-lm gives one.")
    if any("embed_tokens" in name for name in names):
        raise NotMendableError("An embedding of mlx-lm's is not converted.")
    (rank,) = ranks
    alpha = settings.get("alpha") if isinstance(settings, dict) else None
    if alpha is not None and alpha != rank:
        raise NotMendableError(
            f"lora_parameters has the alpha {shown(alpha)} beside the scale {scale:g} and r {rank}. Older mlx-lm multiplies by "
            "scale * alpha / r, newer by scale alone, and the file does not say which trained it. Where it was a newer one, take "
            f"alpha out of {CONFIG_FILE}; where an older one, put scale * alpha / r as the scale too."
        )
    modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in names})
    peft = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": modules,
    }
    mending.config = json.dumps(peft, indent=2).encode() + b"\n"
    mending.changes.append(
        f"converted {_counted(targets)} of mlx-lm's: transposed, with r {rank} and lora_alpha {scale * rank:g} (scale {scale:g} times r)"
    )


def _json(data: bytes) -> dict[str, object]:
    try:
        return parse_object(data, max_depth=DEFAULT_POLICY.max_json_depth)
    except JsonError as error:
        raise NotMendableError(f"{CONFIG_FILE} cannot be read: {error}.") from error


def _cast(mending: Mending) -> None:
    cast: dict[str, int] = {}
    targets = mending.targets or []
    for number, target in enumerate(targets):
        if target.dtype in _CASTS and not target.is_transposed:
            cast[target.dtype] = cast.get(target.dtype, 0) + 1
            targets[number] = _Target(target.name, _CASTS[target.dtype][0], target.shape, target.source)
    for dtype, count in cast.items():
        to = _CASTS[dtype][0]
        how = "rounded" if dtype == "F64" else "exactly"
        mending.changes.append(f"cast {count} tensor{'' if count == 1 else 's'} from {dtype} to {to}, {how}")


def _in_order(weights: Weights) -> list[Tensor]:
    return sorted(weights.tensors.values(), key=lambda tensor: (tensor.begin, tensor.end))


def _counted(items: Sized) -> str:
    count = len(items)
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def _and_so_on(items: Sized) -> str:
    return ", and so on" if len(items) > 1 else ""


def _header(targets: list[_Target]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for target in targets:
        size = _size(target)
        entries[target.name] = {
            "dtype": target.dtype,
            "shape": list(target.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the data is aligned, as safetensors itself does it
    return struct.pack("<Q", len(header)) + header


def _size(target: _Target) -> int:
    length = target.source.end - target.source.begin
    if target.dtype == target.source.dtype:
        return length
    return target.source.elements * _CASTS[target.source.dtype][1]


def _values(target: _Target, file: BinaryIO, data_begin: int) -> Iterator[bytes]:
    file.seek(data_begin + target.source.begin)
    left = target.source.end - target.source.begin
    if target.is_transposed:
        yield _transposed(_read(file, left), target.source.shape)
        return
    while left:
        piece = _read(file, min(left, _COPY_BYTES))  # of whole elements: a multiple of 8, or the end
        left -= len(piece)
        yield piece if target.dtype == target.source.dtype else _cast_values(piece, target.source.dtype)


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise NotMendableError(f"{file.name} became shorter while it was read.")
    return data


def _transposed(values: bytes, shape: tuple[int, ...]) -> bytes:
    """Of a matrix in rows, its columns. Elements are moved as whole numbers, so that no bit changes."""
    rows, columns = shape
    if not values:
        return values
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[len(values) // (rows * columns)]
    before, after = array.array(code, values), array.array(code, bytes(len(values)))
    if rows < columns:
        for row in range(rows):
            after[row::rows] = before[row * columns : (row + 1) * columns]
    else:
        for column in range(columns):
            after[column * rows : (column + 1) * rows] = before[column::columns]
    return after.tobytes()


def _cast_values(values: bytes, dtype: str) -> bytes:
    if dtype == "F64":
        doubles = array.array("d", values)
        if sys.byteorder == "big":
            doubles.byteswap()
        try:
            return struct.pack(f"<{len(doubles)}f", *doubles)
        except OverflowError:
            raise NotMendableError("A tensor of F64 holds a number that F32 has no room for.") from None
    low, high = _small_floats(dtype)
    out = bytearray(2 * len(values))
    out[0::2], out[1::2] = values.translate(low), values.translate(high)
    return bytes(out)


def _small_floats(dtype: str) -> tuple[bytes, bytes]:
    """Of each number of 8 bits, the two bytes of the same number in bfloat16."""
    exponent_bits, bias = (4, 7) if dtype == "F8_E4M3" else (5, 15)
    fraction_bits = 7 - exponent_bits
    tops = []
    for byte in range(256):
        exponent, fraction = (byte & 0x7F) >> fraction_bits, byte & ((1 << fraction_bits) - 1)
        is_special = exponent == (1 << exponent_bits) - 1 and (
            dtype == "F8_E5M2" or fraction == (1 << fraction_bits) - 1
        )
        if is_special:
            number = float("nan") if fraction else float("inf")
        elif exponent:
            number = (1 + fraction / (1 << fraction_bits)) * 2.0 ** (exponent - bias)
        else:
            number = fraction / (1 << fraction_bits) * 2.0 ** (1 - bias)
        tops.append(struct.pack("<f", -number if byte & 0x80 else number)[2:])
    return bytes(top[0] for top in tops), bytes(top[1] for top in tops)
