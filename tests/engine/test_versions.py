"""The validator's rules for other versions of vLLM, held against those versions' own Python code: `make engine-versions` fetches it.

What a version's PEFT helper, parser of names and loader do is compared with what those of 0.32.0 do, which ran as a whole in the differential
test. Where both do the same, the validator has to say the same for both; where they differ, it has to differ as they do.
"""

import dataclasses
import io
import math
import tarfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from loradrop.problems import Consequence, ProblemCode
from loradrop.validation_report import ValidationReport
from loradrop.validator import validate
from tests.adapters import tarball

from .differential import PROFILE, _is_unread
from .generated import Draft, adapters
from .versions import INSTALLED, VersionOracle, missing, requirements

ADAPTERS = 500
LATER = (ProblemCode.SHAPE_MISMATCH, ProblemCode.LORA_PAIR_INCOMPLETE)


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    number: int
    draft: Draft
    folder: Path
    body: bytes
    of_installed: Consequence | None  # the gravest that the validator says for 0.32.0


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[Case]:
    if absent := missing():
        pytest.fail(f"The code of vLLM {', '.join(absent)} is not here. Fetch it:\n  make engine-versions")
    made = []
    for number, draft in enumerate(islice(adapters(request.config.getoption("--seed") + 1000), ADAPTERS)):
        body, folder = tarball(draft.packed()), tmp_path_factory.mktemp("adapter")
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            archive.extractall(folder, filter="data")
        made.append(Case(number, draft, folder, body, gravest(validate(io.BytesIO(body), PROFILE))))
    return made


def asked(version: str, cases: list[Case]) -> Iterator[tuple[Case, str, str]]:
    """Each case, what the version's code does, and its error."""
    with VersionOracle(version) as oracle:
        for case in cases:
            answer = oracle.ask(case.folder)
            yield case, "fail" if answer["failed"] else _loaded(case.draft, answer["modules"]), answer["error"]


def _loaded(draft: Draft, modules: Mapping[str, list[Any]]) -> str:
    """Whether what was loaded is what was meant, as far as names, ranks and scales go."""
    if not draft.is_served_as_meant or modules.keys() != draft.updates.keys():
        return "silent"
    for path, update in draft.updates.items():
        scale, a, b = modules[path]
        if any(half is not None and len(half) != 2 for half in (a, b)):
            return "fail"  # as it is copied
        if scale is None or a is None or b is None or not math.isclose(scale, update.scale, rel_tol=1e-6):
            return "silent"
    return "loads"


def gravest(report: ValidationReport) -> Consequence | None:
    said = {problem.consequence for problem in report.problems}
    return next((one for one in (Consequence.FAIL, Consequence.SILENT) if one in said), next(iter(said), None))


def is_right(case: Case, did: str, of_installed: str, report: ValidationReport) -> bool:
    """Of what this version's code does, and the installed one's."""
    said = gravest(report)
    if did == of_installed:
        return said == case.of_installed
    if did == "fail":
        return said is Consequence.FAIL
    # What the loader does not look at, and a later step fails for on every version.
    fails_later = any(problem.code in LATER and problem.consequence is Consequence.FAIL for problem in report.problems)
    if did == "silent":
        return said is Consequence.SILENT or fails_later
    # A setting that the installed version refuses, and this one leaves unread: something else was meant, but by patterns for no
    # module, and by text that nobody knows, which is warned about.
    is_harmless = any("_pattern" in change or "init_lora_weights" in change for change in case.draft.changes)
    return said is Consequence.SILENT or fails_later or (is_harmless and said is not Consequence.FAIL)


@pytest.fixture(scope="module")
def known(cases: list[Case]) -> list[str]:
    return [did for _, did, _ in asked(INSTALLED, cases)]


@pytest.mark.parametrize("version", requirements())
def test_the_validator_differs_between_versions_as_their_code_does(
    version: str, cases: list[Case], known: list[str]
) -> None:
    profile = dataclasses.replace(PROFILE, engine_version=version)
    wrong, different = [], 0
    for (case, did, error), of_installed in zip(asked(version, cases), known, strict=True):
        report = validate(io.BytesIO(case.body), profile)
        if not report.accepted and _is_unread(report):
            continue
        different += did != of_installed
        if not is_right(case, did, of_installed, report):
            codes = [f"{problem.code}:{problem.consequence}" for problem in report.problems]
            wrong.append(
                f"#{case.number} {case.draft.changes}: {version} {did} ({error[:120]}), {INSTALLED} {of_installed}; said {codes}"
            )
    print(f"{version}: {different} of {len(cases)} adapters differ from {INSTALLED}")
    assert not wrong, f"{len(wrong)} of {len(cases)}\n" + "\n".join(wrong[:40])
    assert different or version > INSTALLED
