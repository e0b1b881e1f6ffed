"""What validation says: accepted or not, every problem, and of an accepted adapter what it is."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from loradrop.problems import Consequence, Problem, clipped
from loradrop.smoke import SmokePrompt

MAX_REPORT_BYTES = 32 * 1024
MAX_SUMMARY_CHARACTERS = 4000
# Of files, and of different scalings.
MAX_LISTED = 40
_OTHERWISE = {
    Consequence.FAIL: " Served, it would have failed.",
    Consequence.SILENT: " Served, it would have been wrong in silence.",
}


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
        entry = asdict(self)
        entry["files"] = list(entry["files"][:MAX_LISTED])
        entry["scalings"] = entry["scalings"][:MAX_LISTED]
        entry["layers"] = layer_ranges(self.layers)
        return entry


@dataclass(frozen=True, slots=True)
class Report:
    accepted: bool
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    manifest: Manifest | None
    sha256: str | None
    smoke_prompts: tuple[SmokePrompt, ...]
    profile: str

    def to_dict(self) -> dict[str, object]:
        """JSON-able, and at most MAX_REPORT_BYTES as JSON: what does not fit is counted in `left_out`."""
        problems = [problem.to_dict() for problem in self.problems]
        warnings = [problem.to_dict() for problem in self.warnings]
        manifest = None if self.manifest is None else self.manifest.to_dict()
        report: dict[str, object] = {
            "accepted": self.accepted,
            "profile": self.profile,
            "sha256": self.sha256,
            "problems": problems,
            "warnings": warnings,
            "manifest": manifest,
        }
        files = [] if manifest is None else manifest["files"]
        left_out = 0
        while len(json.dumps(report)) > MAX_REPORT_BYTES and (files or warnings or problems):
            (files or warnings or problems).pop()
            left_out += 1
            report["left_out"] = left_out
        return report

    def summary(self) -> str:
        """A few lines for a person: the cause of a failed execution, or what was accepted."""
        lines = []
        if self.manifest is not None:
            manifest = self.manifest
            lines.append(
                f"Accepted: rank {', '.join(map(str, manifest.ranks))}, scaling "
                f"{', '.join(f'{scaling:g}' for scaling in manifest.scalings[:MAX_LISTED])}, {manifest.adapted_modules} modules, "
                f"{manifest.parameters} parameters, {', '.join(manifest.dtypes)}."
            )
        elif self.problems:
            count = sum(problem.count for problem in self.problems)
            lines.append(f"Rejected for {count} problem{'s' if count > 1 else ''}:")
        lines += [_line(problem) for problem in self.problems]
        lines += [f"Warning: {_line(warning)}" for warning in self.warnings]
        return clipped("\n".join(lines), MAX_SUMMARY_CHARACTERS)


def _line(problem: Problem) -> str:
    more = f" (and {problem.count - 1} more like it)" if problem.count > 1 else ""
    command = f" Mend it: {problem.command}" if problem.command else ""
    return f"{problem.code}: {problem.message}{more}{_OTHERWISE.get(problem.consequence, '')}{command}"


def layer_ranges(layers: tuple[int, ...]) -> str:
    """0-31, or 0-3,8,10-31."""
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
