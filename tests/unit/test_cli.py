"""The `loradrop` command: what it prints, writes and returns."""

import gzip
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from loradrop.problems import ProblemCode
from loradrop_cli.exit_codes import ExitCode
from loradrop_cli.main import main
from loradrop_cli.tables import code_document
from loradrop_cli.terminal import Progress, safe, safe_text
from tests.adapters import adapter_files, good_tarball, tarball, wrapped_tarball

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "loradrop_cli"]
TINY = ["--base", "tiny-llama"]
ESCAPE = "\x1b"


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As save_pretrained writes it."""
    return write(tmp_path / "adapter", adapter_files() | {"README.md": b"# Model card"})


def run(*arguments: str | Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )


def codes_of(report: Mapping[str, list[dict[str, str]]]) -> list[str]:
    return [problem["code"] for problem in report["problems"]]


# validate


def test_an_accepted_tarball_exits_0_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "acme.tar.gz"
    path.write_bytes(good_tarball())
    assert main(["validate", str(path), *TINY]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("ACCEPTED")
    assert re.search(r"rank +4\n", shown.out)
    assert ESCAPE not in shown.out
    assert shown.err == ""


def test_a_rejected_tarball_exits_1_and_names_its_own_path_in_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it is.tar.gz"
    path.write_bytes(wrapped_tarball())
    assert main(["validate", str(path), *TINY]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("REJECTED")
    assert "WRAPPING_FOLDER" in shown
    assert f"tar -xzf '{path}'" in shown


def test_the_command_for_a_folder_unpacks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "it is", {f"acme/{name}": data for name, data in adapter_files().items()})
    assert main(["validate", str(folder), *TINY]) == 1
    assert f"\n           loradrop package '{folder}/acme' -o 'it is.tar.gz'\n" in capsys.readouterr().out


def test_json_is_one_report_on_stdout(tmp_path: Path) -> None:
    path = tmp_path / "acme.tar.gz"
    path.write_bytes(tarball(adapter_files(use_dora=True)))
    done = run("validate", path, *TINY, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["accepted"], codes_of(report)) == (False, ["DORA_UNSUPPORTED"])
    assert done.stderr == b""


@pytest.mark.parametrize(
    "files",
    [
        adapter_files(),
        adapter_files() | {"README.md": b"#", "training_args.bin": b"pickle"},
        adapter_files(use_dora=True),
        {"adapter_config.json": b"{"},
        {f"inner/{name}": data for name, data in adapter_files().items()},
        adapter_files() | {"checkpoint-1/optimizer.pt": b"1", "x" * 150: b"long", "ä": b"1"},
        {},
    ],
    ids=["good", "pickle", "dora", "broken config", "wrapped", "checkpoint", "empty"],
)
def test_a_folder_is_validated_as_the_tarball_that_tar_makes_of_it(
    files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    write(tmp_path / "adapter", files)
    subprocess.run(["tar", "-czf", "adapter.tar.gz", "-C", "adapter", "."], cwd=tmp_path, check=True)
    reports = []
    for name in ("adapter", "adapter.tar.gz"):
        code = main(["validate", str(tmp_path / name), *TINY, "--json"])
        report = json.loads(capsys.readouterr().out)
        assert code == (0 if report["accepted"] else 1)
        reports.append(report)
    of_folder, of_tarball = reports
    assert of_folder["sha256"] is None
    assert codes_of(of_folder) == codes_of(of_tarball)
    assert of_folder["warnings"] == of_tarball["warnings"]
    if of_folder["accepted"]:
        files_of = [sorted(report["manifest"]["files"], key=lambda entry: entry["name"]) for report in reports]
        assert files_of[0] == files_of[1]


def test_links_to_files_are_followed_and_other_oddities_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.rename(tmp_path / "blob")  # as the Hugging Face cache keeps files
    weights.symlink_to(tmp_path / "blob")
    assert main(["validate", str(folder), *TINY]) == 0
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "missing")
    capsys.readouterr()
    assert main(["validate", str(folder), *TINY, "--json"]) == 1
    assert codes_of(json.loads(capsys.readouterr().out)) == ["MEMBER_TYPE_REFUSED"] * 3


def test_the_base_can_be_a_file_and_its_limits_those_of_a_stack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "acme.tar.gz"
    path.write_bytes(tarball(adapter_files(alpha_pattern={"q_proj": 4})))
    base = ROOT / "functions/loradrop/profiles/tiny-llama.json"
    assert main(["validate", str(path), "--base", str(base)]) == 1
    assert main(["validate", str(path), "--base", str(base), "--engine", "0.32.0"]) == 0
    assert main(["validate", str(path), "--base", str(base), "--engine", "0.32.0", "--max-rank", "1"]) == 1
    assert "r is 4; the base tiny-llama takes at most 1" in capsys.readouterr().out


UNSLOTH = "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"


@pytest.mark.parametrize("form", ["folder", "tarball", "pipe"])
@pytest.mark.parametrize(
    ("base_model", "profile", "reason"),
    [
        ("/home/me/.cache/tiny-llama", "tiny-llama", "the base that the adapter names"),
        (UNSLOTH, "llama-3.1-8b-instruct", "the base that the adapter names"),
        ("my-own-model", "llama-3.1-8b-instruct", "the default"),
    ],
)
def test_without_a_base_it_is_the_one_that_the_adapter_names(
    base_model: str, profile: str, reason: str, form: str, tmp_path: Path
) -> None:
    files = adapter_files(base_model_name_or_path=base_model)
    body = tarball(files)
    path = write(tmp_path / "acme", files) if form == "folder" else tmp_path / "acme.tar.gz"
    if form != "folder":
        path.write_bytes(body)
    done = run("validate", "-" if form == "pipe" else path, stdin=body)
    assert f"for {profile} ({reason}): rank up to".encode() in done.stdout
    assert done.returncode == (0 if profile == "tiny-llama" else 1)
    assert (b"BASE_MODEL_DIFFERS" in done.stdout) is (reason == "the default")
    given = run("validate", "-", "--base", "llama-3.1-8b-instruct", stdin=body)
    assert b"for llama-3.1-8b-instruct: rank up to" in given.stdout


def test_package_takes_the_adapters_own_base_too(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "acme.tar.gz"
    assert main(["package", str(folder), "-o", str(output)]) == 0
    assert main(["validate", str(output)]) == 0


def test_a_report_is_markdown_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "acme.tar.gz"
    path.write_bytes(wrapped_tarball())
    assert main(["validate", str(path), *TINY, "--markdown"]) == 1
    shown = capsys.readouterr().out
    assert "### WRAPPING_FOLDER (error)" in shown
    assert f"\n```sh\nmkdir unpacked && tar -xzf {path} " in shown


@pytest.mark.parametrize(
    "command",
    [
        [],
        *([name] for name in ("validate", "package", "train", "push", "invoke", "profile", "codes")),
        *([name] for name in ("list", "status", "history", "rollback", "remove", "retry", "redeploy", "reconcile")),
    ],
)
def test_the_help_of_every_command_lists_its_exit_codes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out.partition("\nexit codes:\n")[2]
    listed = [int(code) for code in re.findall(r"^  (\d+) +\S", shown, re.MULTILINE)]
    assert listed[0] == ExitCode.DONE
    assert listed == sorted(set(listed) & set(ExitCode))


def test_standard_input_is_read_where_the_path_is_a_dash() -> None:
    done = run("validate", "-", *TINY, stdin=good_tarball())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"ACCEPTED  standard input")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["validate"], "PATH"),
        (["validate", "missing.tar.gz"], "missing.tar.gz: No such file"),
        (["validate", ".", "--base", "llama-9"], "llama-3.1-8b-instruct, tiny-llama"),
        (["validate", ".", "--base", "README.md"], "README.md is not JSON"),
        (["validate", ".", "--max-rank", "17"], "max_lora_rank is 17"),
        (["validate", ".", "--engine", "new"], "engine_version is 'new'"),
        (["package", "README.md", "-o", "x.tar.gz"], "README.md is not a folder"),
        (["package", ".", "-o", "missing/x.tar.gz"], "There is no folder missing"),
        (["package", ".", "-o", "README.md"], "--force"),
        (["package", ".", "-o", "tests"], "tests is not a file"),
        (["package", ".", "-o", "/dev/null", "--force"], "/dev/null is not a file"),
        (["profile", "README.md", "--max-rank", "8", "-o", "x.json"], "README.md is not the config.json of a model"),
        (["profile", ".", "--max-rank", "8", "-o", "x.json"], "config.json: No such file"),
        (["codes", "NO_SUCH_CODE"], "there is no problem code 'NO_SUCH_CODE'"),
        (["validate", "a", f"{ESCAPE}[31m"], "unrecognized arguments"),
        (["validate", f"{ESCAPE}[31m"], "No such file"),
        (["validate", "--base", f"{ESCAPE}[31m", "."], "There is no profile"),
    ],
)
def test_wrong_usage_and_what_cannot_be_read_exit_2_with_a_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code: object
    try:
        code = main(arguments)
    except SystemExit as end:  # argparse's way
        code = end.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert said in shown.err
    assert ESCAPE not in shown.err


# package


def test_what_is_packaged_is_accepted_flat_and_the_adapters_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, {"training_args.bin": b"pickle", "checkpoint-1/optimizer.pt": b"1"})
    write(folder, {"smoke.jsonl": b'{"inputs": "Hello"}\n'})
    output = tmp_path / "acme.tar.gz"
    assert main(["package", str(folder), "-o", str(output), *TINY]) == 0
    assert "README.md, checkpoint-1, training_args.bin" in capsys.readouterr().out
    with tarfile.open(output) as archive:
        assert archive.getnames() == ["adapter_config.json", "adapter_model.safetensors", "smoke.jsonl"]
        for member in archive.getmembers():
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
            packed = archive.extractfile(member)
            assert packed is not None
            assert packed.read() == (folder / member.name).read_bytes()
    assert main(["validate", str(output), *TINY]) == 0


def test_the_same_content_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", dict(reversed(adapter_files().items())))
    for path in other.iterdir():
        path.chmod(0o600)
        os.utime(path, (1, 1))
    packed = []
    for source, name in ((folder, "one.tar.gz"), (other, "two.tgz")):
        assert main(["package", str(source), "-o", str(tmp_path / name), *TINY]) == 0
        packed.append((tmp_path / name).read_bytes())
    assert packed[0] == packed[1]
    assert packed[0].startswith(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")


def test_the_report_of_packaging_names_the_hash_of_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "acme.tar.gz"
    assert main(["package", str(folder), "-o", str(output), *TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["validate", str(output), *TINY, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == report["sha256"]


def test_what_is_refused_is_not_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, adapter_files(use_dora=True))
    output = tmp_path / "out" / "acme.tar.gz"
    output.parent.mkdir()
    assert main(["package", str(folder), "-o", str(output), *TINY]) == 1
    assert list(output.parent.iterdir()) == []
    shown = capsys.readouterr().out
    assert "DORA_UNSUPPORTED" in shown
    assert f"{output} was not written." in shown


def test_an_older_tarball_stays_as_it_was_unless_it_is_forced(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "acme.tar.gz"
    output.write_bytes(b"old")
    assert main(["package", str(folder), "-o", str(output), *TINY]) == 2
    assert output.read_bytes() == b"old"
    write(folder, adapter_files(use_dora=True))
    assert main(["package", str(folder), "-o", str(output), *TINY, "--force"]) == 1
    assert output.read_bytes() == b"old"
    write(folder, adapter_files())
    assert main(["package", str(folder), "-o", str(output), *TINY, "--force"]) == 0
    assert gzip.decompress(output.read_bytes())


def test_the_adapters_own_file_is_never_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = folder / "adapter_model.safetensors"
    before = weights.read_bytes()
    assert main(["package", str(folder), "-o", str(weights), *TINY, "--force"]) == 2
    assert weights.read_bytes() == before
    assert "own files" in capsys.readouterr().err


def test_a_checkpoint_below_the_folder_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "run" / "checkpoint-500", adapter_files())
    assert main(["package", str(tmp_path / "run"), "-o", str(tmp_path / "x.tar.gz"), *TINY]) == 1
    assert f"There is an adapter in {tmp_path / 'run' / 'checkpoint-500'}" in capsys.readouterr().out


def test_a_full_disk_is_reported_in_a_sentence_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    limited = (
        f"ulimit -f 40; exec {sys.executable} -m loradrop_cli package {folder} -o {tmp_path}/x.tar.gz --base tiny-llama"
    )
    done = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "loradrop: reading or writing: File too large.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_another_process_with_the_same_id_is_not_disturbed(folder: Path, tmp_path: Path) -> None:
    """As containers that share a volume have it."""
    others = tmp_path / f".loradrop-{os.getpid()}.part"
    others.write_bytes(b"half a tarball")
    assert main(["package", str(folder), "-o", str(tmp_path / "x.tar.gz"), *TINY]) == 0
    assert others.read_bytes() == b"half a tarball"


# profile


MODEL_CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}


def test_a_profile_is_made_from_a_models_folder_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write(tmp_path / "my-qwen", {"config.json": json.dumps(MODEL_CONFIG).encode()})
    output = tmp_path / "base.json"
    assert main(["profile", str(model), "--max-rank", "64", "--engine", "0.33.0", "-o", str(output)]) == 0
    profile = json.loads(output.read_text())
    assert (profile["name"], profile["max_lora_rank"], profile["engine_version"]) == ("my-qwen", 64, "0.33.0")
    tar = tmp_path / "acme.tar.gz"
    tar.write_bytes(good_tarball())
    assert main(["validate", str(tar), "--base", str(output)]) == 1
    assert "my-qwen at this rank" in " ".join(capsys.readouterr().out.split())
    assert main(["profile", str(model / "config.json"), "--max-rank", "8", "-o", str(output)]) == 2  # it is there
    again = ["profile", str(model / "config.json"), "--max-rank", "8", "--name", "small", "-o", str(output), "--force"]
    assert main(again) == 0
    assert json.loads(output.read_text())["name"] == "small"


@pytest.mark.parametrize(
    ("change", "said"),
    [({"num_local_experts": 8}, "mixture of experts"), ({"hidden_size": None}, "hidden_size None"), ({}, "knows only")],
)
def test_a_model_that_cannot_be_served_makes_no_profile(
    change: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, {"config.json": json.dumps(MODEL_CONFIG | change).encode()}) / "config.json"
    assert main(["profile", str(config), "--max-rank", "64" if change else "65", "-o", str(tmp_path / "x.json")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ('{"engine_version": 5}', "engine_version is 5; it must be a string"),
        ('{"base_model_names": 5}', "base_model_names is 5; it must be a list of strings"),
        ('{"lora_modules": [["q_proj"]]}', "lora_modules is (['q_proj'],); it must be a list of strings"),
        ('{"hidden_size": "wide"}', "hidden_size is 'wide'; it must be a whole number"),
        ('{"colour": 1}', "does not have the right fields"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a JSON object"),
    ],
)
def test_a_profile_that_was_edited_wrongly_is_refused_with_the_reason(
    fields: str, said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = (ROOT / "functions/loradrop/profiles/tiny-llama.json").read_bytes()
    base = tmp_path / "base.json"
    base.write_text(json.dumps(json.loads(shipped) | json.loads(fields)) if fields[0] == "{" else fields)
    assert main(["validate", str(folder), "--base", str(base)]) == 2
    assert said in capsys.readouterr().err


# codes


def test_every_code_is_listed_and_one_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codes"]) == 0
    listed = capsys.readouterr().out
    assert [code for code in ProblemCode if not re.search(rf"^{code}  ", listed, re.MULTILINE)] == []
    assert main(["codes", "rank_too_high"]) == 0
    assert capsys.readouterr().out.startswith("RANK_TOO_HIGH  error\n")


def test_the_document_of_the_codes_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codes", "--markdown"]) == 0
    document = capsys.readouterr().out
    assert document == code_document()
    assert (ROOT / "docs/problems.md").read_text() == document, "run `make docs`"


# the terminal


HOSTILE = tarball(
    adapter_files(peft_type=f"{ESCAPE}]0;owned\x07", base_model_name_or_path=f"\u202e{ESCAPE}[2J")
    | {f"{ESCAPE}[31mred": b"1", "\u202eevil.gz": b"2", "bell\x07/\x9b2J": b"3", "pickle\r\n.bin": b"4"}
)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_hostile_names_do_not_reach_the_terminal(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / f"{ESCAPE}[5m\u202e.tar.gz"
    path.write_bytes(HOSTILE)
    for more in ([], ["--json"]):
        done = run("validate", path, *TINY, *more, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (1, b"")
        assert all(character.isprintable() or character == "\n" for character in done.stdout.decode(encoding))


def test_hostile_names_in_a_folder_do_not_either(folder: Path, tmp_path: Path) -> None:
    write(folder, {f"{ESCAPE}[31mred": b"1"})
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"2")
    for command in (["validate", str(folder)], ["package", str(folder), "-o", f"{tmp_path}/x.tar.gz"]):
        done = run(*command, *TINY)
        assert done.stderr == b""
        assert all(character.isprintable() or character == "\n" for character in done.stdout.decode())


def test_a_text_keeps_its_lines_spaces_and_joined_letters() -> None:
    text = "Combien\u202f?\n\tdix\u00a0mille, \u3000\u0645\u06cc\u200c\u062e 👩\u200d🔬"
    assert safe_text(text) == text
    assert safe_text("\x1b[2J\x9b\u202e\u2066\r\x08") == "\\x1b[2J\\x9b\\u202e\\u2066\\r\\x08"


def test_safe_spells_out_what_could_steer_a_terminal() -> None:
    assert safe("\x1b[31m\u202e\udcff\n ä") == r"\x1b[31m\u202e\udcff\n ä"


def on_a_terminal(*arguments: str | Path, **environment: str) -> str:
    """What the command writes where stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    settings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=theirs, stderr=theirs, cwd=ROOT, env=settings | environment
    ) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            written += piece
        process.wait()
    os.close(ours)
    return written.decode()


def test_colour_is_for_terminals_that_want_it(tmp_path: Path) -> None:
    path = tmp_path / "acme.tar.gz"
    path.write_bytes(good_tarball())
    assert f"{ESCAPE}[32mACCEPTED{ESCAPE}[0m" in on_a_terminal("validate", path, *TINY)
    assert ESCAPE not in on_a_terminal("validate", path, *TINY, NO_COLOR="1")
    assert ESCAPE not in on_a_terminal("validate", path, *TINY, TERM="dumb")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_shows_that_it_is_alive_on_a_terminal_only_and_goes_when_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((Terminal(), "validating … "), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        began = time.monotonic()
        with Progress("validating"):
            while stream.isatty() and not stream.getvalue():
                assert time.monotonic() - began < 2
                time.sleep(0.01)
        assert expected in stream.getvalue()
        assert stream.getvalue() == "" or stream.getvalue().endswith("\r\x1b[K")


def test_the_bar_says_how_far_it_is() -> None:
    progress = Progress("validating", 100_000_000)
    progress.advance(50_000_000)
    assert progress.line(2.0).endswith("50 %  25.0 MB/s  2 s left")
    assert Progress("uploading").line(3.2) == "uploading … 3 s"


# how it ends


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m loradrop_cli codes | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) in ((141, b""), (0, b""))  # 0: all of it fitted into the pipe


def test_closed_streams_are_no_error() -> None:
    script = f"{sys.executable} -m loradrop_cli codes >&-; exec {sys.executable} -m loradrop_cli codes NONE 2>&-"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """A shell starts what runs in the background with SIGINT ignored, and so it would stay for the commands started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_is_quiet_even_while_a_pipe_says_nothing() -> None:
    with subprocess.Popen(
        [*COMMAND, "validate", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(good_tarball()[:1000])
        process.stdin.flush()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) in (-signal.SIGINT, 130)
        assert process.stderr.read() == b""


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_ctrl_c_while_packaging_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with (folder / "adapter_model.safetensors").open("r+b") as weights:
        weights.truncate(3_000_000_000)  # sparse: takes long to pack, and no room
    output = tmp_path / "out" / "acme.tar.gz"
    output.parent.mkdir()
    for sent, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(
            [*COMMAND, "package", folder, "-o", output, *TINY, "--force"], stderr=subprocess.PIPE, cwd=ROOT
        ) as process:
            assert process.stderr is not None
            while not list(output.parent.iterdir()) and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(sent)
            assert process.wait(timeout=10) == code
            assert process.stderr.read() == b""
        assert list(output.parent.iterdir()) == []


# what is installed


def test_every_package_of_the_wheel_exists_and_the_script_starts_in_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    folders = dict(zip(packages, packages, strict=True)) | project["tool"]["setuptools"]["package-dir"]
    assert set(folders) == set(packages)
    assert [path for path in folders.values() if not (ROOT / path / "__init__.py").is_file()] == []
    module, _, function = project["project"]["scripts"]["loradrop"].partition(":")
    package, _, name = module.partition(".")
    assert f"def {function}(" in (ROOT / folders[package] / f"{name}.py").read_text()
    assert (ROOT / project["project"]["license-files"][0]).is_file()
    subfolders = {path.parent for folder in folders.values() for path in (ROOT / folder).rglob("__init__.py")}
    assert subfolders == {ROOT / folder for folder in folders.values()}  # a new one must be listed


def test_the_light_install_needs_nothing_else() -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('boto3', 'torch', 'numpy', 'transformers', 'isal', 'rich')));"
        "from loradrop_cli.main import main; sys.exit(main(['codes']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
