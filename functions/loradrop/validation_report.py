"""What validation says: accepted or not, every problem, and of an accepted adapter what it is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from loradrop.problems import Problem
from loradrop.smoke import SmokePrompt

MAX_REPORT_BYTES = 32 * 1024
# Of files, of ranks and of different scalings.
MAX_LISTED = 40


@dataclass(frozen=True, slots=True)
class FileEntry:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """An accepted adapter in figures. `bytes` is the weights' file, `sha256` the whole tarball's."""

    ranks: tuple[int, ...]
    lora_alpha: float
    use_rslora: bool
    scalings: tuple[float, ...]
    modules: tuple[str, ...]
    layers: tuple[int, ...]
    adapted_modules: int
    parameters: int
    dtypes: tuple[str, ...]
    bytes: int
    sha256: str | None
    files: tuple[FileEntry, ...]
    base_model: str | None
    peft_version: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. Of long lists the first MAX_LISTED; layers as ranges."""
        entry = asdict(self)
        for name in ("files", "ranks", "scalings"):
            entry[name] = list(entry[name][:MAX_LISTED])
        for name in ("modules", "dtypes"):
            entry[name] = list(entry[name])
        entry["layers"] = layer_ranges(self.layers)
        return entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Manifest":
        lists = {name: tuple(entry[name]) for name in ("ranks", "scalings", "modules", "dtypes")}
        files = tuple(FileEntry(**file) for file in entry["files"])
        return cls(**{**entry, **lists, "files": files, "layers": _layers_in(entry["layers"])})


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many of each did not fit into the JSON form that a report was read from."""

    problems: int = 0
    warnings: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class ValidationReport:
    accepted: bool
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...] = ()
    manifest: Manifest | None = None
    sha256: str | None = None
    smoke_prompts: tuple[SmokePrompt, ...] = ()  # not in the JSON form: they stay beside the release
    profile: str | None = None
    left_out: LeftOut = LeftOut()

    @classmethod
    def rejected(cls, *problems: Problem) -> "ValidationReport":
        """Of an upload that is rejected before anything in it is read."""
        return cls(accepted=False, problems=problems)

    def to_dict(self, max_bytes: int = MAX_REPORT_BYTES) -> dict[str, Any]:
        """JSON-able, and at most `max_bytes` as JSON in UTF-8: what does not fit is counted in `left_out`.

        Files go first, then warnings, then problems, each from the end.
        """
        problems = [problem.to_dict() for problem in self.problems]
        warnings = [problem.to_dict() for problem in self.warnings]
        manifest = None if self.manifest is None else self.manifest.to_dict()
        lists: dict[str, list[Any]] = {
            "files": [] if manifest is None else manifest["files"],
            "warnings": warnings,
            "problems": problems,
        }
        left_out = asdict(self.left_out)
        report: dict[str, Any] = {
            "accepted": self.accepted,
            "profile": self.profile,
            "sha256": self.sha256,
            "problems": problems,
            "warnings": warnings,
            "manifest": manifest,
        }
        if any(left_out.values()):
            report["left_out"] = left_out
        while _json_bytes(report) > max_bytes and (name := next((name for name in lists if lists[name]), None)):
            lists[name].pop()
            left_out[name] += 1
            report["left_out"] = left_out
        return report

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "ValidationReport":
        """What `to_dict` made, without the smoke prompts."""
        return cls(
            accepted=entry["accepted"],
            problems=tuple(Problem.from_dict(problem) for problem in entry["problems"]),
            warnings=tuple(Problem.from_dict(problem) for problem in entry["warnings"]),
            manifest=None if entry["manifest"] is None else Manifest.from_dict(entry["manifest"]),
            sha256=entry["sha256"],
            profile=entry["profile"],
            left_out=LeftOut(**entry.get("left_out", {})),
        )


def _json_bytes(value: object) -> int:
    # Lambda's runtime writes no \u escapes for what is not ASCII.
    return len(json.dumps(value, ensure_ascii=False).encode())


def layer_ranges(layers: tuple[int, ...]) -> str:
    """0-31, or 0-3,8,10-31."""
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _layers_in(ranges: str) -> tuple[int, ...]:
    layers: list[int] = []
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        layers += range(int(first), int(last or first) + 1)
    return tuple(layers)
