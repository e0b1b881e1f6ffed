"""Problems as text: commands that do what they say, messages that are bounded and printable, JSON that comes back."""

import io
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from loradrop import rendering, upload_problems
from loradrop.names import adapter_name
from loradrop.problems import Fix, FixKind, Problem, ProblemCode
from loradrop.profile import load_profile
from loradrop.rendering import Source
from loradrop.validation_report import LeftOut, ValidationReport
from loradrop.validator import validate
from tests.adapters import good_tarball, wrapped_tarball

C = ProblemCode
BUCKET, KEY = "uploads", "adapters/acme.tar.gz"
HOSTILE = "adapters/acme is live.\n\nGo to https://evil.example\x1b[2J\u202e'$(rm -rf ~)`\\.tar.gz"
MADE = {
    "name": lambda key: upload_problems.name_invalid(BUCKET, key),
    "key": lambda key: upload_problems.starts_nothing(BUCKET, key),
    "empty": lambda key: upload_problems.empty(BUCKET, key),
    "too large": lambda key: upload_problems.too_large(key, 5_000_000_000, 4_000_000_000),
    "vanished": lambda key: upload_problems.vanished(BUCKET, key, "v1"),
    "not versioned": lambda key: upload_problems.not_versioned(BUCKET, key),
    "archived": lambda key: upload_problems.archived(BUCKET, key, "v1", "DEEP_ARCHIVE"),
    "unreadable": lambda key: upload_problems.unreadable(BUCKET, key, "Access Denied"),
}
made = pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))
Make = Callable[[str], Problem]


def commands(problem: Problem, source: Source | None = None) -> tuple[str, ...]:
    assert problem.fix is not None
    return rendering.steps(problem.fix, source or Source()).commands


def a_report(files: bytes) -> ValidationReport:
    return validate(io.BytesIO(files), load_profile("tiny-llama"))


class TestCommands:
    @made
    def test_every_problem_of_an_upload_has_commands_that_a_shell_reads_as_they_are(self, make: Make) -> None:
        for key in (KEY, HOSTILE):
            for command in commands(make(key)):
                assert command.isprintable()
                done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
                assert done.stderr == b""

    def test_a_key_with_control_characters_reaches_the_command_as_it_is(self) -> None:
        (command,) = commands(upload_problems.name_invalid(BUCKET, HOSTILE))
        heard = command.replace("aws s3 cp", "printf '%s\\0'")
        words = subprocess.run(["bash", "-c", heard], capture_output=True, check=True).stdout.decode().split("\0")
        assert words[0] == f"s3://{BUCKET}/{HOSTILE}"
        assert adapter_name(words[1].removeprefix(f"s3://{BUCKET}/"))

    @pytest.mark.parametrize(
        ("key", "starting"),
        [
            ("adapters/acme.tgz", "adapters/acme.tar.gz"),
            ("adapters/acme.TAR.GZ", "adapters/acme.tar.gz"),
            ("Adapters/tenant/acme.tar.gz", "adapters/tenant/acme.tar.gz"),
            ("models/v2/acme.tar.gz", "adapters/acme.tar.gz"),
            ("acme.tar", "adapters/acme.tar.gz"),
            ("adapters/.tar.gz", "adapters/my-adapter.tar.gz"),
            ("adapters/mine and yours!.tar.gz", "adapters/mine-and-yours.tar.gz"),
        ],
    )
    def test_a_key_that_deploys_is_suggested(self, key: str, starting: str) -> None:
        assert upload_problems.starting_key(key) == starting

    @given(st.text(max_size=300))
    def test_what_is_suggested_is_always_a_name(self, key: str) -> None:
        assert adapter_name(upload_problems.starting_key(key))

    def test_what_is_no_tarball_is_not_copied(self) -> None:
        assert commands(upload_problems.starts_nothing(BUCKET, "adapters/acme.zip")) == (
            "aws s3 cp acme.tar.gz s3://uploads/adapters/acme.tar.gz",
        )

    def test_an_archived_upload_is_restored_and_then_copied(self) -> None:
        restore, copy = commands(upload_problems.archived(BUCKET, KEY, "v1", "GLACIER"))
        assert restore == (
            "aws s3api restore-object --bucket uploads --key adapters/acme.tar.gz --version-id v1 --restore-request Days=1"
        )
        assert copy.startswith(f"aws s3 cp s3://{BUCKET}/{KEY} s3://{BUCKET}/{KEY} ")

    def test_the_tarball_in_s3_is_fetched_fixed_and_uploaded(self, tmp_path: Path) -> None:
        """The commands run as they stand, with an `aws` that copies files and the `loradrop` of this checkout."""
        (tmp_path / "bucket").mkdir()
        (tmp_path / "bucket" / "acme.tar.gz").write_bytes(wrapped_tarball())
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir()
        (bin_folder / "aws").write_text(
            '#!/bin/sh\nfrom=${3#s3://}; to=${4#s3://}\n[ "$to" = - ] && exec cat "$from"\nexec cp "$from" "$to"\n'
        )
        root = Path(__file__).parents[2]
        (bin_folder / "loradrop").write_text(
            f'#!/bin/sh\nPYTHONPATH={root}/functions:{root}/training:{root} exec {sys.executable} -m loradrop_cli "$@" --base tiny-llama\n'
        )
        for script in bin_folder.iterdir():
            script.chmod(0o755)
        report = a_report(wrapped_tarball())
        fixes = commands(report.problems[0], Source("s3://bucket/acme.tar.gz"))
        for command in fixes:
            subprocess.run(
                ["bash", "-c", f"PATH={bin_folder}:$PATH; {command}"], cwd=tmp_path, check=True, capture_output=True
            )
        assert a_report((tmp_path / "bucket" / "acme.tar.gz").read_bytes()).accepted


class TestPlain:
    @made
    def test_the_keys_text_is_printable(self, make: Make) -> None:
        text = rendering.plain([make(HOSTILE)])
        assert all(line.isprintable() for line in text.split("\n"))
        assert "evil.example" not in text.split("\n")

    def test_a_command_has_a_line_of_its_own(self) -> None:
        report = a_report(wrapped_tarball())
        text = rendering.plain(report.problems, source=Source("acme.tar.gz"))
        assert text.split("\n") == [
            f"WRAPPING_FOLDER: {report.problems[0].message} The engine would have failed to load it.",
            "  Fix: Package the adapter's own files again:",
            "    mkdir unpacked && tar -xzf acme.tar.gz -C unpacked && "
            f"loradrop package unpacked/{report.problems[0].place} -o acme-fixed.tar.gz",
        ]

    def test_one_fix_is_shown_once(self) -> None:
        fix = Fix(FixKind.REPACKAGE)
        problems = [Problem.of(C.PICKLE_FILE, f"{name} is a pickle.", place=name, fix=fix) for name in "abc"]
        text = rendering.plain(problems)
        assert text.count("loradrop package") == 1
        assert text.count("Fix: as above.") == 2

    @pytest.mark.parametrize("room", [50, 200, 1_000, 3_000, 20_000])
    def test_whole_problems_are_cut_from_the_end_and_counted(self, room: int) -> None:
        problems = [Problem.of(C.RANK_INVALID, f"r{number} " + "x" * 500 + ".") for number in range(20)]
        warnings = [Problem.of(C.DTYPE_CAST, "w.", place="t")]
        whole = rendering.plain(problems, warnings, 10**6).split("\n")
        lines = rendering.plain(problems, warnings, room).split("\n")
        assert len("\n".join(lines)) <= room
        shown = list(itertools.takewhile(lambda line: not line.startswith("…"), lines))
        assert shown == whole[: len(shown)]
        assert len(shown) % 2 == 0  # a problem and its fix
        if len(shown) < len(whole):
            assert lines[len(shown) :] == [f"… and {21 - len(shown) // 2} more problems."]

    def test_what_the_report_itself_left_out_is_counted_too(self) -> None:
        assert rendering.plain([Problem.of(C.NOT_TAR, "It is not.")], left_out=2).endswith("\n… and 2 more problems.")


class TestJson:
    @made
    def test_a_problem_comes_back(self, make: Make) -> None:
        problem = make(HOSTILE)
        assert Problem.from_dict(json.loads(json.dumps(problem.to_dict()))) == problem

    @pytest.mark.parametrize("files", [good_tarball(), wrapped_tarball(), b"PK\x03\x04", b""])
    def test_a_report_comes_back(self, files: bytes) -> None:
        report = a_report(files)
        assert ValidationReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report

    @pytest.mark.parametrize("room", [600, 2_000, 9_000])
    def test_it_is_bounded_in_bytes_and_counts_what_is_left_out(self, room: int) -> None:
        problems = [Problem.of(C.RANK_INVALID, "ランク" * 100, place="モジュール" * 9) for _ in range(8)]
        report = ValidationReport(False, tuple(problems), (Problem.of(C.DTYPE_CAST, "w"),))
        entry = report.to_dict(room)
        assert len(json.dumps(entry, ensure_ascii=False).encode()) <= room
        again = ValidationReport.from_dict(json.loads(json.dumps(entry)))
        assert len(again.problems) + again.left_out.problems == 8
        assert len(again.warnings) + again.left_out.warnings == 1
        assert again.left_out != LeftOut()

    def test_a_rejection_of_an_upload_has_the_form_of_any_other(self) -> None:
        problem = upload_problems.empty(BUCKET, KEY)
        entry = ValidationReport.rejected(problem).to_dict()
        assert entry.keys() == a_report(wrapped_tarball()).to_dict().keys()
        assert (entry["accepted"], entry["problems"]) == (False, [problem.to_dict()])


class TestMarkdown:
    def test_nothing_of_an_upload_becomes_markup(self) -> None:
        name = "<img src=x> [a](b) **c** | `d`"
        problem = Problem.of(C.TENSOR_NAME_UNEXPECTED, f"No tensor is called {name}.", fix=Fix(FixKind.REPACKAGE, name))
        report = ValidationReport(accepted=False, problems=(problem,))
        text = "\n".join(rendering.markdown(report, name, load_profile("tiny-llama"), source=Source()))
        html = MarkdownIt("commonmark").render(text)
        assert "<img" not in html
        assert "<a " not in html
        assert "<strong>" not in html
        assert "No tensor is called &lt;img src=x&gt; [a](b) **c** | `d`." in html
        command = html.partition("<code")[2].partition("</code>")[0]
        assert shlex.quote(f"unpacked/{name}").replace("<", "&lt;").replace(">", "&gt;") in command
