"""The validator against every problem code: one change to a good adapter that PEFT made, and the problem that it makes."""

import dataclasses
import gzip
import hashlib
import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loradrop import rendering
from loradrop.policy import DEFAULT_POLICY, MIB, Policy
from loradrop.problems import POLICIES, Consequence, Fix, FixKind, ProblemCode, Severity
from loradrop.profile import load_profile
from loradrop.validation_report import MAX_REPORT_BYTES, ValidationReport
from loradrop.validator import validate
from tests.adapters import Tensors, safetensors_file, tarball, tensors_of, weights_file
from tests.hostile import deflate_blocks, gzipped, pax, tar_end, tar_member
from tests.peft_adapters import good_adapter

ROOT = Path(__file__).parents[2]
PROFILE = load_profile("tiny-llama")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.0"
Q_A, Q_B = f"{LAYER}.self_attn.q_proj.lora_A.weight", f"{LAYER}.self_attn.q_proj.lora_B.weight"

O_A = f"{LAYER}.self_attn.o_proj.lora_A.weight"
UP_B = f"{LAYER}.mlp.up_proj.lora_B.weight"

Files = dict[str, bytes]
Change = Callable[[Files], Files | bytes]


def validated(files: Files | bytes, *, engine: str = "0.26.0", policy: Policy = DEFAULT_POLICY) -> ValidationReport:
    body = files if isinstance(files, bytes) else tarball(files)
    report = validate(io.BytesIO(body), dataclasses.replace(PROFILE, engine_version=engine), policy)
    json.dumps(report.to_dict(), allow_nan=False).encode()
    rendering.plain(report.problems, report.warnings).encode()
    return report


def codes(report: ValidationReport) -> set[str]:
    return {problem.code.name for problem in report.problems}


def config(**entries: Any) -> Change:
    """The configuration with these entries; `...` takes one out."""

    def change(files: Files) -> Files:
        settings = json.loads(files[CONFIG]) | entries
        kept = {key: value for key, value in settings.items() if value is not ...}
        return files | {CONFIG: json.dumps(kept).encode()}

    return change


def config_text(text: bytes | str) -> Change:
    data = text.encode() if isinstance(text, str) else text
    return lambda files: files | {CONFIG: data}


def file(name: str, data: bytes = b"x") -> Change:
    return lambda files: files | {name: data}


def without(name: str) -> Change:
    return lambda files: {other: data for other, data in files.items() if other != name}


def moved(folder: str) -> Change:
    return lambda files: {f"{folder}/{name}": data for name, data in files.items()}


def packed(change: Callable[[bytes], bytes]) -> Change:
    """Of the bytes of the tarball."""
    return lambda files: change(tarball(files))


def plain(change: Callable[[bytes], bytes]) -> Change:
    """Of the bytes of the tar archive."""
    return lambda files: gzipped(change(gzip.decompress(tarball(files))))


def weights(change: Callable[[Tensors], Tensors]) -> Change:
    return lambda files: files | {WEIGHTS: weights_file(change(tensors_of(files[WEIGHTS])))}


def tensor(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Change:
    return weights(lambda tensors: tensors | {name: (dtype, shape, data)})


def values(name: str, change: Callable[[bytes], bytes]) -> Change:
    return weights(lambda tensors: tensors | {name: (*tensors[name][:2], change(tensors[name][2]))})


def without_tensor(gone: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: entry for name, entry in tensors.items() if name != gone}


def renamed(change: Callable[[str], str]) -> Change:
    return weights(lambda tensors: {change(name): entry for name, entry in tensors.items()})


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Of the parsed header of the weights."""

    def changed(files: Files) -> Files:
        start = 8 + int.from_bytes(files[WEIGHTS][:8], "little")
        entries = json.loads(files[WEIGHTS][8:start])
        text = json.dumps(change(entries)).encode()
        return files | {WEIGHTS: safetensors_file(text, files[WEIGHTS][start:])}

    return changed


def header_text(change: Callable[[bytes], bytes]) -> Change:
    def changed(files: Files) -> Files:
        start = 8 + int.from_bytes(files[WEIGHTS][:8], "little")
        return files | {WEIGHTS: safetensors_file(change(files[WEIGHTS][8:start]), files[WEIGHTS][start:])}

    return changed


def tensor_entry(**fields: Any) -> Change:
    return header(lambda entries: entries | {Q_A: entries[Q_A] | fields})


def first_tensor_twice(text: bytes) -> bytes:
    name, entry = next((name, entry) for name, entry in json.loads(text).items() if name != "__metadata__")
    return b"{" + json.dumps(name).encode() + b":" + json.dumps(entry).encode() + b"," + text[1:]


class Row(NamedTuple):
    code: ProblemCode
    change: Change
    words: str  # of the message
    place: str | None = None
    also: tuple[ProblemCode, ...] = ()  # other errors that the same change makes
    policy: Policy = DEFAULT_POLICY


C = ProblemCode
ROWS = [
    Row(C.UPLOAD_EMPTY, packed(lambda _: b""), "0 bytes"),
    Row(C.UPLOAD_TOO_LARGE, packed(bytes), "limit of 1000 bytes", policy=Policy(max_compressed_bytes=1000)),
    Row(C.NOT_GZIP, packed(gzip.decompress), "it is a plain tar archive"),
    Row(C.GZIP_CORRUPT, packed(lambda body: body[:-8] + bytes(4) + body[-4:]), "is damaged"),
    Row(C.GZIP_TRUNCATED, packed(lambda body: body[: len(body) // 2]), "ends early"),
    Row(C.GZIP_SEVERAL_MEMBERS, packed(lambda body: body + body), "Another gzip stream"),
    Row(C.GZIP_TRAILING_DATA, packed(lambda body: body + b"\0"), "Bytes follow"),
    Row(
        C.COMPRESSION_RATIO_TOO_HIGH,
        lambda files: tarball({"0": bytes(40 * MIB), **files}),
        "more than 100 times",
    ),
    Row(
        C.COMPRESSION_WASTEFUL,
        lambda files: deflate_blocks("stored", 300_000) + tarball(files)[10:],
        " compressed bytes unpack to ",
    ),
    Row(C.UNPACKED_TOO_LARGE, packed(bytes), "limit of 9999 bytes", policy=Policy(max_unpacked_bytes=9999)),
    Row(C.NOT_TAR, lambda files: gzipped(files[CONFIG]), "is not a tar archive: it is JSON"),
    Row(C.TAR_CORRUPT, plain(lambda tar: tar_member("a") + b"x" * 512 + tar), "checksum is wrong"),
    Row(C.TAR_TRUNCATED, lambda files: gzipped(tar_member("a", b"1")), "without its end mark"),
    Row(C.TAR_HIDDEN_DATA, plain(lambda tar: tar + tar), "follows the archive's end mark"),
    Row(
        C.TAR_HEADER_REFUSED,
        plain(lambda tar: pax((b"hdrcharset", b"BINARY")) + tar),
        "hdrcharset",
    ),
    Row(C.MEMBER_TYPE_REFUSED, plain(lambda tar: tar_member("link", kind=b"2") + tar), "link is a symbolic link"),
    Row(C.MEMBER_NAME_UNSAFE, file("../evil"), "`..` part", "../evil"),
    Row(C.MEMBER_NAME_DUPLICATE, file("readme.MD"), "called readme.MD"),
    Row(C.TOO_MANY_MEMBERS, packed(bytes), "more than 2 members", policy=Policy(max_members=2)),
    Row(C.CONFIG_FILE_MISSING, without(CONFIG), f"no {CONFIG} at its root. It has README.md", CONFIG),
    Row(C.WEIGHTS_FILE_MISSING, without(WEIGHTS), f"no {WEIGHTS} at its root. It has README.md", WEIGHTS),
    Row(C.WRAPPING_FOLDER, moved("my adapter"), "inside the folder my adapter", "my adapter"),
    Row(C.SUBFOLDER, file("checkpoint-10/README.md"), "checkpoint-10/README.md is in a folder"),
    Row(C.PICKLE_FILE, file("Training_Args.BIN"), "is a pickle", "Training_Args.BIN"),
    Row(C.CODE_FILE, file("model.py"), "is code", "model.py"),
    Row(C.OTHER_WEIGHTS, file("new_embeddings.safetensors"), "other weights", "new_embeddings.safetensors"),
    Row(C.EXTRA_FILE, file(".env", b"SECRET=1"), "not one of an adapter's usual files", ".env"),
    Row(C.MACOS_FILES, file("._adapter_config.json"), "macOS", "._adapter_config.json"),
    Row(C.SMOKE_PROMPTS_INVALID, file("smoke.jsonl", b"[]"), "line 1", "smoke.jsonl"),
    Row(C.CONFIG_TOO_LARGE, config(padding="x" * 300_000), "at most 262144 are read", CONFIG),
    Row(C.CONFIG_NOT_JSON, config_text(b"\xef\xbb\xbf{}"), "byte order mark", CONFIG),
    Row(C.CONFIG_DUPLICATE_KEY, lambda files: config_text(b'{"r":4,' + files[CONFIG][1:])(files), '"r" occurs twice'),
    Row(C.CONFIG_KEY_MISSING, config(target_modules=...), "no 'target_modules'", "target_modules"),
    Row(C.RANK_INVALID, config(r=4.5), "r is 4.5", "r"),
    Row(C.RANK_TOO_HIGH, config(r=32), "takes at most 16", "r", also=(C.SHAPE_MISMATCH,)),
    Row(C.LORA_ALPHA_INVALID, config(lora_alpha=0), "lora_alpha is 0", "lora_alpha"),
    Row(C.BIAS_UNSUPPORTED, config(bias="lora_only"), 'bias is "lora_only"', "bias"),
    Row(C.LORA_BIAS_UNSUPPORTED, config(lora_bias=True), "lora_bias is true", "lora_bias"),
    Row(C.DORA_UNSUPPORTED, config(use_dora=True), "use_dora is true", "use_dora"),
    Row(C.MODULES_TO_SAVE_UNSUPPORTED, config(modules_to_save=["lm_head"]), '["lm_head"]', "modules_to_save"),
    Row(C.PATTERN_UNSUPPORTED, config(alpha_pattern={"q_proj": 4}), "ignores patterns"),
    Row(C.INIT_ALTERS_BASE, config(init_lora_weights="pissa_niter_4"), "pissa_niter_4", "init_lora_weights"),
    Row(C.FEATURE_UNSUPPORTED, config(layer_replication=[[0, 2]]), "layer_replication", "layer_replication"),
    Row(C.PEFT_TYPE_UNSUPPORTED, config(peft_type="LOHA"), 'peft_type is "LOHA"', "peft_type"),
    Row(C.UNKNOWN_FLAG, config(use_magic=True), '"use_magic" is true', "use_magic"),
    Row(C.BASE_MODEL_DIFFERS, config(base_model_name_or_path="/tmp/mine"), '"/tmp/mine"', "base_model_name_or_path"),
    Row(C.SCALING_UNUSUAL, config(lora_alpha=4096), "scaled by 1024", "lora_alpha"),
    Row(C.SAFETENSORS_TOO_SHORT, file(WEIGHTS, b"version"), "has 7 bytes", WEIGHTS),
    Row(C.SAFETENSORS_OTHER_FORMAT, file(WEIGHTS, b"version https://git-lfs.g"), "is a Git LFS pointer", WEIGHTS),
    Row(C.SAFETENSORS_HEADER_TOO_LARGE, file(WEIGHTS, b"somebody's notes"), "declares a header of", WEIGHTS),
    Row(C.SAFETENSORS_HEADER_INVALID, header_text(lambda text: b" " + text), "opening brace", WEIGHTS),
    Row(C.SAFETENSORS_DUPLICATE_KEY, header_text(first_tensor_twice), "occurs twice", WEIGHTS),
    Row(C.SAFETENSORS_METADATA_INVALID, header(lambda all_: all_ | {"__metadata__": {"n": 1}}), "strings"),
    Row(C.SAFETENSORS_TENSOR_INVALID, tensor_entry(extra=1), '"extra"', Q_A),
    Row(C.SAFETENSORS_DTYPE_UNKNOWN, tensor_entry(dtype="F12"), '"F12"', Q_A),
    Row(C.SAFETENSORS_SIZE_MISMATCH, tensor_entry(shape=[4, 127]), "which is 2032 bytes", Q_A),
    Row(
        C.SAFETENSORS_OFFSETS_INVALID,
        lambda files: files | {WEIGHTS: files[WEIGHTS] + b"\0"},
        "1 bytes follow",
        WEIGHTS,
    ),
    Row(
        C.NO_LORA_TENSORS,
        renamed(lambda name: name.replace("lora_", "")),
        "None of the 56",
        also=(C.TENSOR_NAME_UNEXPECTED,),
    ),
    Row(
        C.TENSOR_NAME_UNEXPECTED,
        renamed(lambda name: name.replace(".weight", ".default.weight") if name == Q_A else name),
        "save with save_pretrained",
        also=(C.LORA_PAIR_INCOMPLETE,),
    ),
    Row(
        C.BASE_LAYER_UNEXPECTED,
        tensor("x.lm_head.base_layer.weight", "F16", (4096, 128), b"\0\1" * (4096 * 128)),
        "is [4096, 128]; of the base's own weights only those of lm_head and model.embed_tokens",
        "x.lm_head.base_layer.weight",
    ),
    Row(C.MODULE_UNSUPPORTED, renamed(lambda name: name.replace("q_proj", "c_attn")), "takes no LoRA"),
    Row(C.MOE_UNSUPPORTED, renamed(lambda name: name.replace("mlp", "mlp.experts.0")), "mixture of experts"),
    Row(
        C.MODULE_PATH_UNKNOWN,
        renamed(lambda name: name.replace("model.layers", "model.language_model.layers")),
        "does not exist",
    ),
    Row(C.LAYER_OUT_OF_RANGE, renamed(lambda name: name.replace("layers.3", "layers.4")), "is in layer 4"),
    Row(
        C.MODULE_TWICE,
        weights(lambda tensors: tensors | {Q_A.removeprefix("base_model.model."): tensors[Q_A]}),
        "lora_A twice",
    ),
    Row(
        C.LORA_PAIR_INCOMPLETE,
        weights(lambda tensors: {name: entry for name, entry in tensors.items() if name != Q_B}),
        "has lora_A and no lora_B",
        Q_A,
    ),
    Row(C.SHAPE_MISMATCH, tensor(Q_A, "F32", (4, 64), b"\1" * 1024), "is [4, 64]", Q_A),
    Row(C.DTYPE_UNSUPPORTED, tensor(Q_A, "I8", (4, 128), b"\1" * 512), "is I8", Q_A),
    Row(C.DTYPE_CAST, tensor(Q_A, "F64", (4, 128), struct.pack("<d", 0.5) * 512), "is F64", Q_A),
    Row(C.NOT_FINITE, values(Q_B, lambda data: data[:-4] + struct.pack("<f", float("nan"))), "NaN or infinity", Q_B),
    Row(
        C.NO_EFFECT,
        weights(lambda all_: {n: (d, s, bytes(len(v)) if "lora_B" in n else v) for n, (d, s, v) in all_.items()}),
        "All 28 modules",
    ),
    Row(C.PARTLY_UNTRAINED, values(UP_B, lambda data: bytes(4800) + data[4800:]), "has 4800 of its 5632 bytes", UP_B),
    Row(
        C.MAGNITUDE_UNUSUAL,
        values(Q_B, lambda data: struct.pack("<f", -1e4) * (len(data) // 4)),
        "holds numbers above 512",
        Q_B,
    ),
    Row(C.DEAD_MODULES, values(Q_B, lambda data: bytes(len(data))), "only zeros in lora_B", Q_B),
]
# What the validator cannot find, since it is about the object and not its bytes.
TESTED_ELSEWHERE = {
    **dict.fromkeys(
        (C.UPLOAD_NOT_VERSIONED, C.UPLOAD_ARCHIVED, C.UPLOAD_UNREADABLE, C.KEY_STARTS_NOTHING), "test_rendering"
    ),
    C.ADAPTER_NAME_INVALID: "test_handlers.TestClaimUpload.test_what_need_not_be_read_is_rejected",
    C.UPLOAD_VANISHED: "test_handlers.TestValidateAdapter.test_an_upload_that_vanished_is_a_rejection",
}


def test_a_good_adapter_is_accepted_without_a_warning() -> None:
    report = validated(good_adapter())
    assert (report.accepted, report.problems, report.warnings) == (True, (), ())


@pytest.mark.parametrize("row", ROWS, ids=[row.code.name for row in ROWS])
def test_one_change_makes_one_problem(row: Row) -> None:
    report = validated(row.change(good_adapter()), policy=row.policy)
    is_error = row.code.severity is Severity.ERROR
    assert report.accepted is not is_error
    assert codes(report) == {code.name for code in ((row.code, *row.also) if is_error else ())}
    (problem,) = (one for one in (*report.problems, *report.warnings) if one.code is row.code)
    assert row.words in problem.message
    assert row.place in (None, problem.place)
    assert problem.code.name in rendering.plain(report.problems, report.warnings)
    if not is_error:
        assert [warning.code for warning in report.warnings] == [row.code]


def test_every_code_has_a_row() -> None:
    assert {row.code for row in ROWS} | TESTED_ELSEWHERE.keys() == set(ProblemCode)
    assert len(ROWS) + len(TESTED_ELSEWHERE) == len(ProblemCode)


ACCEPTED: dict[str, Change] = {
    "an unknown number": config(some_new_key=0.1),
    "keys that the engine ignores": config(fan_in_fan_out=True, auto_mapping={}, megatron_config={}, task_type=None),
    "target_modules that say nothing true": config(target_modules="all-linear", layers_to_transform=[0]),
    "an old PEFT's few keys": config_text('{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}'),
    "a rank of 4.0": config(r=4.0),
    "rsLoRA": config(use_rslora=True),
    "init_lora_weights that leave the base alone": config(init_lora_weights="gaussian"),
    "features that are off": config(modules_to_save=[], alora_invocation_tokens=None, layer_replication=[]),
    "patterns that say what r and lora_alpha say": config(rank_pattern={"(q|k).*": 4}, alpha_pattern={"(a+)+b": 8.0}),
    "patterns of no module that there is": config(
        rank_pattern={"nonexistent": 8}, alpha_pattern={"layers.9.q_proj": 1}
    ),
    "a pattern after one that wins": config(
        rank_pattern={"layers.0.self_attn.q_proj": 4, "layers.9.self_attn.q_proj": 8}
    ),
    "another case of the kind": config(peft_type="lora"),
    "how the training began": config(loftq_config={"loftq_bits": 4}, eva_config={"rho": 2.0}),
    "the prefix twice": renamed(lambda name: f"base_model.model.{name}"),
    "no prefix": renamed(lambda name: name.removeprefix("base_model.model.")),
    "tokenizer files": lambda files: files | {"tokenizer.json": b"{}", "chat_template.jinja": b"x"},
    "spaces after the header": header_text(lambda text: text + b"   "),
    "a folder's own entry": plain(lambda tar: tar_member("./", kind=b"5") + tar),
    "names that begin with ./": lambda files: tarball({f"./{name}": data for name, data in files.items()}),
    "an embedding saved beside its LoRA": tensor(
        "base_model.model.lm_head.base_layer.weight", "F16", (4096, 128), b"\0\1" * (4096 * 128)
    ),
    "LoRA of the embedding": weights(
        lambda tensors: (
            tensors
            | {
                "base_model.model.model.embed_tokens.lora_embedding_A": ("BF16", (4, 4096), b"\1" * 32768),
                "base_model.model.model.embed_tokens.lora_embedding_B": ("BF16", (128, 4), b"\1" * 1024),
            }
        )
    ),
    "LoRA of the head": weights(
        lambda tensors: (
            tensors
            | {
                "base_model.model.lm_head.lora_A.weight": ("BF16", (4, 128), b"\1" * 1024),
                "base_model.model.lm_head.lora_B.weight": ("BF16", (4096, 4), b"\1" * 32768),
            }
        )
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_engine_serves_is_accepted(name: str) -> None:
    report = validated(ACCEPTED[name](good_adapter()))
    assert (report.accepted, report.problems, report.warnings) == (True, (), ())


# Beside a good adapter.
REFUSED_FILES = {
    C.CODE_FILE: (
        *(
            "x.py",
            "model.pyc",
            "__init__.py",
            "sitecustomize.py",
            "model.so",
            "model.PY ",
            "setup.py",
            "run.sh",
            "a.whl",
        ),
        *(
            "Dockerfile",
            "pyproject.toml",
            "requirements.txt",
            "serving.properties",
            "notebook.ipynb",
            "tokenization_x.py",
        ),
    ),
    C.OTHER_WEIGHTS: (
        *(
            "new_embeddings.safetensors",
            "model.safetensors",
            "adapter_model.safetensors.index.json",
            "adapter_model.gguf",
        ),
        *("weights.npy", "adapter_model.h5", "data.msgpack", "model.tensors", "model.onnx", "__0_0.distcp"),
    ),
    C.PICKLE_FILE: ("model.dill", "x.pickle.gz", "optimizer.pt", "zero_pp_rank_0_optim_states.PT"),
}
USUAL = (
    *(
        "README.md",
        "LICENSE",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "config.json", "generation_config.json"),
    *("trainer_state.json", "all_results.json", "trainer_log.jsonl", "training_loss.png", "axolotl_config.yaml"),
    *(".gitattributes", "latest", "train.log", "args.json", "preprocessor_config.json"),
)


@pytest.mark.parametrize(("code", "name"), [(code, name) for code, names in REFUSED_FILES.items() for name in names])
def test_code_and_other_weights_are_refused(code: ProblemCode, name: str) -> None:
    report = validated(file(name)(good_adapter()))
    assert codes(report) == {code.name}
    assert report.problems[0].fix is not None


def test_what_trainers_leave_is_accepted_and_the_rest_warned_about() -> None:
    files = good_adapter() | dict.fromkeys(USUAL, b"x")
    assert validated(files).warnings == ()
    (warning,) = validated(files | {".env": b"x", "code.zip": b"PK", "credentials": b"x"}).warnings
    assert (warning.code, warning.count) == (C.EXTRA_FILE, 3)


def test_ballast_under_a_usual_name_is_warned_about() -> None:
    policy = dataclasses.replace(DEFAULT_POLICY, max_usual_file_bytes=1_500_000)
    files = good_adapter() | {"README.md": b"text" * 500_000, "tokenizer.json": b"text" * 250_000}
    report = validated(files, policy=policy)
    assert report.accepted
    [warning] = report.warnings
    assert (warning.code, warning.place) == (C.EXTRA_FILE, "README.md")
    assert "2 MB" in warning.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 83946192\n",
            "Git LFS pointer",
        ),
        (b"PK\x03\x04\0\0\x08\x08" + bytes(2000), "a zip archive (torch.save"),
        (b"<!DOCTYPE html><html>" * 50, "an HTML page"),
        (b"\x80\x02}q\x00" + bytes(100), "a Python pickle"),
        (b"GGUF" + bytes(100), "a GGUF model"),
    ],
)
@pytest.mark.parametrize(("name", "code"), [(WEIGHTS, C.SAFETENSORS_OTHER_FORMAT), (CONFIG, C.CONFIG_NOT_JSON)])
def test_what_is_something_else_under_its_name_is_named(name: str, code: ProblemCode, data: bytes, words: str) -> None:
    (problem,) = validated(file(name, data)(good_adapter())).problems
    assert problem.code is code
    assert words in problem.message
    if data.startswith(b"version"):
        assert problem.fix == Fix(FixKind.PULL_LFS)


def test_the_table_of_policies_has_every_code_that_is_one_by_itself() -> None:
    ours = {
        code
        for code in ProblemCode
        if code.severity is Severity.ERROR and code.consequence in (Consequence.POLICY, Consequence.UNSAFE)
    }
    assert ours <= set(POLICIES)
    assert {code for code in set(POLICIES) - ours if code.severity is not Severity.ERROR} == set()


F, S, P, U = Consequence.FAIL, Consequence.SILENT, Consequence.POLICY, Consequence.UNSAFE
RULES = [  # change, engine, code or None where it is accepted, what the engine would have done
    (config_text(b"[]"), "0.26.0", C.CONFIG_NOT_JSON, F),
    (config_text(b"{'r': 4}"), "0.26.0", C.CONFIG_NOT_JSON, F),
    (config_text(b'{"r": "\xff"}'), "0.26.0", C.CONFIG_NOT_JSON, F),
    (config_text("{}".encode("utf-16")), "0.26.0", C.CONFIG_NOT_JSON, F),
    (config_text(b""), "0.26.0", C.CONFIG_NOT_JSON, F),
    (config_text(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"), "0.26.0", C.CONFIG_NOT_JSON, F),
    (config_text(b'{"r": ' + b"9" * 5000 + b"}"), "0.26.0", C.CONFIG_NOT_JSON, F),
    (config_text(b'{"r": 1e999}'), "0.26.0", C.RANK_INVALID, F),
    (config_text(b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"), "0.26.0", C.CONFIG_NOT_JSON, P),
    (config_text(rb'{"a": "\ud800"}'), "0.26.0", C.CONFIG_NOT_JSON, P),
    (config(a=int("9" * 60)), "0.32.0", None, None),
    (config(r=...), "0.26.0", C.CONFIG_KEY_MISSING, F),
    (config(lora_alpha=...), "0.26.0", C.CONFIG_KEY_MISSING, F),
    (config(r=0), "0.26.0", C.RANK_INVALID, F),
    (config(r=-4), "0.25.1", C.RANK_INVALID, S),
    (config(r=-4, use_rslora=True), "0.25.1", C.RANK_INVALID, F),
    (config(r=-4), "0.26.0", C.RANK_INVALID, F),
    (config(r="4"), "0.26.0", C.RANK_INVALID, F),
    (config(r=None), "0.26.0", C.RANK_INVALID, F),
    (config(r=True), "0.26.0", C.RANK_INVALID, S),
    (config(r=4.5), "0.26.0", C.RANK_INVALID, S),
    (config(r=float("inf")), "0.26.0", C.RANK_INVALID, F),
    (config(r=[4]), "0.26.0", C.RANK_INVALID, F),
    (config(r=float("nan")), "0.26.0", C.RANK_INVALID, S),
    (config(r=1e300), "0.26.0", C.RANK_TOO_HIGH, F),
    (config(rank_pattern={"q_proj": 128}), "0.26.0", C.PATTERN_UNSUPPORTED, S),
    (config(rank_pattern={"q_proj": 128}), "0.32.0", C.RANK_TOO_HIGH, F),
    (config(rank_pattern={"q_proj": 0}), "0.32.0", C.RANK_INVALID, F),
    (config(lora_alpha="16"), "0.26.0", C.LORA_ALPHA_INVALID, F),
    (config(lora_alpha=None), "0.26.0", C.LORA_ALPHA_INVALID, F),
    (config(lora_alpha=-8), "0.26.0", C.LORA_ALPHA_INVALID, S),
    (config(lora_alpha=float("nan")), "0.26.0", C.LORA_ALPHA_INVALID, S),
    (config(lora_alpha=float("inf")), "0.26.0", C.LORA_ALPHA_INVALID, S),
    (config(lora_alpha=10**200), "0.26.0", C.LORA_ALPHA_INVALID, S),
    (config(lora_alpha=10**400), "0.26.0", C.CONFIG_NOT_JSON, P),
    (config(r=10**299), "0.26.0", C.RANK_TOO_HIGH, F),
    (config(rank_pattern={"q_proj": -1}, use_rslora=True), "0.32.0", C.RANK_INVALID, F),
    (config(rank_pattern={"q_proj": 10**299}, use_rslora=True), "0.32.0", C.RANK_TOO_HIGH, F),
    (config(lora_alpha=1e-30), "0.26.0", C.LORA_ALPHA_INVALID, S),
    (config(lora_alpha=1e30), "0.26.0", C.LORA_ALPHA_INVALID, S),
    (config(bias="all"), "0.26.0", C.BIAS_UNSUPPORTED, F),
    (config(bias=None), "0.26.0", C.BIAS_UNSUPPORTED, F),
    (config(use_dora="yes"), "0.26.0", C.DORA_UNSUPPORTED, F),
    (config(lora_bias=True), "0.31.0", C.LORA_BIAS_UNSUPPORTED, S),
    (config(lora_bias=True), "0.32.0", C.LORA_BIAS_UNSUPPORTED, F),
    (config(modules_to_save=["score"]), "0.30.0", C.MODULES_TO_SAVE_UNSUPPORTED, F),
    (config(modules_to_save=["score"]), "0.31.0", C.MODULES_TO_SAVE_UNSUPPORTED, S),
    (config(lora_alpha=1, alpha_pattern={"q_proj": True}), "0.31.0", C.PATTERN_UNSUPPORTED, S),
    (config(modules_to_save=["classifier", "score"]), "0.26.0", C.MODULES_TO_SAVE_UNSUPPORTED, F),
    (config(modules_to_save=["lm_head"]), "0.26.0", C.MODULES_TO_SAVE_UNSUPPORTED, F),
    (config(modules_to_save="score"), "0.26.0", C.MODULES_TO_SAVE_UNSUPPORTED, F),
    (config(rank_pattern={"q_proj": 2}), "0.31.9", C.PATTERN_UNSUPPORTED, S),
    (config(alpha_pattern={r"layers\.1\.mlp\.up_proj": 2}), "0.31.9", C.PATTERN_UNSUPPORTED, S),
    (config(alpha_pattern={"q_proj": "8"}), "0.31.9", C.PATTERN_UNSUPPORTED, S),
    (config(alpha_pattern={"q.*": 4}), "0.31.9", C.PATTERN_UNSUPPORTED, S),
    (config(alpha_pattern={"(a+)+b": 4}), "0.31.9", C.PATTERN_UNSUPPORTED, P),
    (config(rank_pattern={"q_proj": 4.0, "k_proj": 5}), "0.32.0", C.RANK_INVALID, F),
    (config(rank_pattern={"q_proj": 4.0}), "0.32.0", C.RANK_INVALID, F),
    (config(rank_pattern={"q_proj": 4.0}), "0.31.0", None, None),
    (config(alpha_pattern={r"layers\.1\.mlp\.up_proj": 2}), "0.32.0", None, None),
    (config(rank_pattern={"q_proj": 4}), "0.32.0", None, None),
    (config(alpha_pattern={"^model.layers.0.self_attn.q_proj": 4}), "0.32.1", None, None),
    (config(alpha_pattern={"(a+)+b": 4}), "0.32.0", C.PATTERN_UNSUPPORTED, Consequence.POLICY),
    (config(alpha_pattern={"q.proj": 4}), "0.32.0", None, None),
    (config(alpha_pattern={r".*layers\.\d+\.self_attn\.(q|v)_proj$": 4}), "0.32.0", None, None),
    (config(alpha_pattern={f"{'a' * n}.*q_proj": 4 for n in range(9)}), "0.32.0", C.PATTERN_UNSUPPORTED, P),
    (config(alpha_pattern=["q_proj"]), "0.32.0", C.PATTERN_UNSUPPORTED, F),
    (config(alpha_pattern=["q_proj"]), "0.31.0", C.PATTERN_UNSUPPORTED, P),
    (config(alpha_pattern={"(": 8}), "0.32.0", C.PATTERN_UNSUPPORTED, F),
    (config(alpha_pattern={r"\q_proj": 8}), "0.32.0", C.PATTERN_UNSUPPORTED, F),
    (config(alpha_pattern={r"\gate_proj": 8}), "0.32.0", C.PATTERN_UNSUPPORTED, S),
    (config(rank_pattern={"*": 4}), "0.32.0", C.PATTERN_UNSUPPORTED, F),
    (config(rank_pattern={"*": 4}), "0.31.0", None, None),
    (config(alpha_pattern={"nothing": "8"}), "0.32.0", None, None),
    (config(alpha_pattern={"q_proj": "8"}), "0.32.0", C.LORA_ALPHA_INVALID, F),
    (config(alpha_pattern={"q_proj": None}), "0.32.0", C.LORA_ALPHA_INVALID, S),
    (config(rank_pattern={"nothing": True}), "0.32.0", None, None),
    (config(rank_pattern={"q_proj": True}), "0.32.0", C.RANK_INVALID, S),
    (config(alpha_pattern={"q_proj": 0}), "0.32.0", C.LORA_ALPHA_INVALID, S),
    *((config(init_lora_weights=how), "0.31.0", C.INIT_ALTERS_BASE, S) for how in ("pissa", "OLoRA", "loftq", "corda")),
    *((config(init_lora_weights=how), "0.32.0", C.INIT_ALTERS_BASE, F) for how in ("pissa", "OLoRA", "new_method")),
    (config(init_lora_weights="lora_ga"), "0.32.0", C.INIT_ALTERS_BASE, S),
    (config(init_lora_weights="MiCA"), "0.32.0", None, None),
    *(
        (config(**{key: value}), engine, C.FEATURE_UNSUPPORTED, consequence)
        for key, value in {
            "alora_invocation_tokens": [1],
            "layer_replication": [[0, 4]],
            "use_qalora": True,
            "use_bdlora": {"nblocks": 2},
        }.items()
        for engine, consequence in (("0.26.0", S), ("0.33.0", F))
    ),
    *(
        (config(**{key: value}), engine, C.FEATURE_UNSUPPORTED, S)
        for key, value in {
            "invocation_string": "<|start_of_role|>",
            "alora_invocation_string": "<|start_of_role|>",
            "use_alora": True,
            "trainable_token_indices": [1],
            "kasa_config": {"beta": 1},
        }.items()
        for engine in ("0.26.0", "0.33.0")
    ),
    (config(vllm_lora_scaling_factor=2), "0.32.0", None, None),  # the engine computes its own
    *((config(peft_type=kind), "0.26.0", C.PEFT_TYPE_UNSUPPORTED, S) for kind in ("ADALORA", "IA3", None)),
    *(
        (file(name), "0.26.0", C.PICKLE_FILE, Consequence.UNSAFE)
        for name in ("optimizer.pt", "a.pth", "scheduler.CKPT", "x.pkl", "rng_state.pth", "adapter_model.bin")
    ),
    (file("requirements.txt"), "0.26.0", C.CODE_FILE, Consequence.UNSAFE),
    (file("Model.py"), "0.26.0", C.CODE_FILE, Consequence.UNSAFE),
    *(
        (renamed(lambda name, new=new: name.replace("base_model.model.model.layers", new)), "0.26.0", code, S)  # type: ignore[misc]
        for new, code in {
            "base_model.model.transformer.layers": C.MODULE_PATH_UNKNOWN,
            "base_model.model.layers": C.MODULE_PATH_UNKNOWN,
            "model.base_model.model.model.layers": C.MODULE_PATH_UNKNOWN,
            "base_model.model.model.layers.0": C.MODULE_PATH_UNKNOWN,
            "base_model.model.model.layers.00": C.MODULE_PATH_UNKNOWN,
        }.items()
    ),
    *(
        (tensor(name, "F32", (128,), b"\1" * 512), "0.26.0", C.TENSOR_NAME_UNEXPECTED, F)
        for name in (
            f"{LAYER}.self_attn.q_proj.lora_magnitude_vector",
            f"{LAYER}.input_layernorm.weight",
            "base_model.model.model.embed_tokens.weight",
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            "lm_head.base_layer.weight",  # the engine skips it only with something before it
            f"{LAYER}.self_attn.q_proj.base_layer.weight",
            f"{LAYER}.self_attn.q_proj.lora_embedding_A",
            "",
        )
    ),
    (values(Q_B, lambda data: struct.pack("<f", -1e20) * (len(data) // 4)), "0.26.0", C.NOT_FINITE, S),
    (tensor(Q_A, "F32", (8, 128), b"\1" * 4096), "0.26.0", C.SHAPE_MISMATCH, S),  # fits into a slot of rank 16
    (tensor(Q_A, "F32", (17, 128), b"\1" * 8704), "0.26.0", C.SHAPE_MISMATCH, F),
    (tensor(Q_A, "F32", (4, 129), b"\1" * 2064), "0.26.0", C.SHAPE_MISMATCH, F),
    (tensor(Q_B, "F32", (128, 5), b"\1" * 2560), "0.26.0", C.SHAPE_MISMATCH, S),
    (tensor(Q_B, "F32", (129, 4), b"\1" * 2064), "0.26.0", C.SHAPE_MISMATCH, F),
    (weights(without_tensor(Q_A)), "0.32.0", C.LORA_PAIR_INCOMPLETE, S),  # packed with k and v
    (weights(without_tensor(Q_B)), "0.32.0", C.LORA_PAIR_INCOMPLETE, F),
    (weights(without_tensor(O_A)), "0.32.0", C.LORA_PAIR_INCOMPLETE, F),
    (header(lambda entries: entries | {"__metadata__": None}), "0.32.0", C.SAFETENSORS_METADATA_INVALID, P),
    (header_text(lambda text: b" " + text), "0.32.0", C.SAFETENSORS_HEADER_INVALID, P),
    (header_text(first_tensor_twice), "0.32.0", C.SAFETENSORS_DUPLICATE_KEY, U),
    (renamed(lambda name: name.replace(".lora_", ".base_layer.lora_")), "0.32.0", C.MODULE_UNSUPPORTED, S),
    (tensor(Q_A, "F32", (2, 128), b"\1" * 1024), "0.26.0", C.SHAPE_MISMATCH, S),
    (tensor(Q_A, "F32", (512,), b"\1" * 2048), "0.26.0", C.SHAPE_MISMATCH, F),
    (tensor(Q_A, "F32", (4, 128, 1), b"\1" * 2048), "0.26.0", C.SHAPE_MISMATCH, F),
    (tensor(Q_A, "F32", (), b"\1" * 4), "0.26.0", C.SHAPE_MISMATCH, F),
    (tensor(Q_A, "F32", (0,), b""), "0.26.0", C.SHAPE_MISMATCH, F),
    (tensor(Q_A, "F32", (0, 128), b""), "0.26.0", C.SHAPE_MISMATCH, S),
    *(
        (tensor(Q_A, dtype, (4, 128), bytes(512 * bits // 8)), "0.26.0", C.DTYPE_UNSUPPORTED, S)
        for dtype, bits in {"I64": 64, "BOOL": 8, "C64": 64, "F4": 4, "F6_E2M3": 6, "U16": 16}.items()
    ),
    # Skipped, whatever is in it.
    (tensor("x.lm_head.base_layer.weight", "I8", (1,), b"\1"), "0.26.0", C.BASE_LAYER_UNEXPECTED, U),
    (tensor("x.lm_head.base_layer.weight", "F16", (1,), b"\0\x7c"), "0.26.0", C.BASE_LAYER_UNEXPECTED, U),
]


@pytest.mark.parametrize(("change", "engine", "code", "consequence"), RULES)
def test_the_rule_book(change: Change, engine: str, code: ProblemCode | None, consequence: Consequence | None) -> None:
    report = validated(change(good_adapter()), engine=engine)
    if code is None:
        assert (report.accepted, report.problems, report.warnings) == (True, (), ())
        return
    assert not report.accepted
    assert consequence in {problem.consequence for problem in report.problems if problem.code is code}


def test_all_problems_come_at_once_outermost_first() -> None:
    files = good_adapter()
    for change in (
        config(r=32, use_dora=True, lora_alpha="8"),
        file("optimizer.pt"),
        values(Q_B, lambda data: struct.pack("<f", float("inf")) + data[4:]),
        renamed(lambda name: name.replace("layers.3", "layers.40")),
    ):
        files = change(files)  # type: ignore[assignment]
    report = validated(files)
    assert [problem.code.name for problem in report.problems] == [
        "PICKLE_FILE",
        "RANK_TOO_HIGH",
        "LORA_ALPHA_INVALID",
        "DORA_UNSUPPORTED",
        "LAYER_OUT_OF_RANGE",
        "SHAPE_MISMATCH",
        "NOT_FINITE",
    ]


def test_a_duplicate_key_hides_no_other_problem() -> None:
    report = validated(config_text('{"r": 4, "r": 32, "lora_alpha": null, "target_modules": []}')(good_adapter()))
    assert {"CONFIG_DUPLICATE_KEY", "RANK_TOO_HIGH", "LORA_ALPHA_INVALID"} <= codes(report)


def test_a_thousand_wrong_tensors_make_a_short_report() -> None:
    wrong: Tensors = {
        f"base_model.model.model.layers.{layer}.{module}.lora_A.weight": ("F32", (1, 1), b"\1" * 4)
        for layer in range(250)
        for module in ("self_attn.q_proj", "mlp.c_fc", "mlp.experts.1.up_proj", "x.q_proj")
    }
    report = validated(file(WEIGHTS, weights_file(wrong))(good_adapter()))
    assert len(json.dumps(report.to_dict())) < 6000
    by_code = {problem.code: problem for problem in report.problems}
    assert by_code[C.MODULE_UNSUPPORTED].count == 250
    assert len(by_code[C.MODULE_UNSUPPORTED].examples) == 5
    assert by_code[C.LAYER_OUT_OF_RANGE].count == 246
    assert " 249 more like it: " in rendering.plain(report.problems, report.warnings)


class TestManifest:
    def test_it_says_what_the_adapter_is(self) -> None:
        body = tarball(good_adapter())
        report = validated(body)
        assert report.manifest is not None
        entry = report.manifest.to_dict()
        files = {one["name"]: one for one in entry.pop("files")}
        assert files.keys() == good_adapter().keys()
        for name, data in good_adapter().items():
            assert files[name] == {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert entry.pop("peft_version")
        assert entry == {
            "ranks": [4],
            "lora_alpha": 8.0,
            "use_rslora": False,
            "scalings": [2.0],
            "modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "layers": "0-3",
            "adapted_modules": 28,
            "parameters": 37376,
            "dtypes": ["F32"],
            "bytes": len(good_adapter()[WEIGHTS]),
            "sha256": hashlib.sha256(body).hexdigest(),
            "base_model": "tiny-llama",
        }

    def test_scalings_follow_rslora_and_patterns(self) -> None:
        assert validated(config(use_rslora=True)(good_adapter())).manifest.scalings == (4.0,)  # type: ignore[union-attr]
        patterned = config(alpha_pattern={"q_proj": 16, "layers.1.mlp.up_proj": 12})(good_adapter())
        assert validated(patterned, engine="0.32.0").manifest.scalings == (2.0, 3.0, 4.0)  # type: ignore[union-attr]

    def test_a_rejected_adapter_has_none(self) -> None:
        report = validated(config(r=32)(good_adapter()))
        assert report.manifest is None
        assert report.sha256 is not None

    def test_the_digest_is_left_out_where_chance_would_decide_it(self) -> None:
        assert validated(tarball(good_adapter()) + b"x").sha256 is None


class TestFixes:
    def command(self, code: ProblemCode, files: Files | bytes) -> str:
        report = validated(files)
        fix = next(one.fix for one in (*report.problems, *report.warnings) if one.code is code)
        assert fix is not None
        (command,) = rendering.steps(fix, rendering.Source("acme.tar.gz")).commands
        return command

    def test_a_wrapping_folder(self) -> None:
        assert self.command(C.WRAPPING_FOLDER, moved("acme")(good_adapter())) == (
            "mkdir unpacked && tar -xzf acme.tar.gz -C unpacked && loradrop package unpacked/acme -o acme-fixed.tar.gz"
        )

    def test_the_name_of_a_folder_is_quoted(self) -> None:
        command = self.command(C.WRAPPING_FOLDER, moved("a; rm -rf $HOME")(good_adapter()))
        assert "loradrop package 'unpacked/a; rm -rf $HOME' -o" in command

    def test_a_pickle_beside_good_weights(self) -> None:
        command = self.command(C.PICKLE_FILE, file("optimizer.pt")(good_adapter()))
        assert command.endswith("&& loradrop package unpacked -o acme-fixed.tar.gz")

    def test_macos_files(self) -> None:
        assert "loradrop package" in self.command(C.MACOS_FILES, file(".DS_Store")(good_adapter()))

    def test_macos_files_do_not_count_as_structure(self) -> None:
        files = {"._acme": b"", "__MACOSX/._x": b"", "acme/._x": b""} | dict(moved("acme")(good_adapter()))  # type: ignore[arg-type]
        assert codes(validated(files)) == {"WRAPPING_FOLDER"}
        assert validated(good_adapter() | {"__MACOSX/._x": b""}).accepted

    def test_pickled_weights_alone_are_converted(self, tmp_path: Any) -> None:
        import safetensors.torch
        import torch

        state = safetensors.torch.load(good_adapter()[WEIGHTS])
        pickled = io.BytesIO()
        torch.save(state, pickled)
        files = without(WEIGHTS)(good_adapter()) | {"adapter_model.bin": pickled.getvalue()}  # type: ignore[operator]
        command = self.command(C.WEIGHTS_FILE_MISSING, files)
        (tmp_path / "acme.tar.gz").write_bytes(tarball(files))
        convert = command.rpartition(" && loradrop")[0].replace("python -c", f"{sys.executable} -c")
        subprocess.run(["bash", "-c", convert], cwd=tmp_path, check=True)
        made = (tmp_path / "unpacked" / WEIGHTS).read_bytes()
        assert validated(good_adapter() | {WEIGHTS: made}).accepted

    def test_a_missing_save_pretrained(self) -> None:
        command = self.command(C.CONFIG_FILE_MISSING, {"model.safetensors": good_adapter()[WEIGHTS]})
        assert command == "loradrop package acme -o acme.tar.gz"


def test_nothing_from_the_upload_reaches_a_terminal_as_it_is() -> None:
    def nasty(tensors: Tensors) -> Tensors:
        return tensors | {"\x1b[31m\u202e.lora_A.weight": ("F32", (1, 1), b"\1" * 4)}

    for files in (
        config(base_model_name_or_path="\x1b]0;x\x07", peft_version="\x1b[2J", bias="\x1b", **{"use_\x1b": True})(
            good_adapter()
        ),
        config(rank_pattern={"\x1b[31m": 2}, peft_type=["\x1b"])(good_adapter()),
        weights(nasty)(good_adapter()),
        gzipped(tar_member("\x1b[31m\n", kind=b"1") + tar_member("\x1b\u202e", b"1") + tar_end()),
        gzipped(tar_member("\x1b[31m/", b"1") + tar_end()),
        config_text(json.dumps({"\x1b": 1})[:-1] + ', "\\u001b": 2}')(good_adapter()),
        file("smoke.jsonl", b'{"inputs": "a", "expect": "/(\x1b/"}')(good_adapter()),
        header(lambda entries: {"\x1b": {"\x07": 1}} | entries)(good_adapter()),
    ):
        report = validated(files)
        texts = [rendering.plain(report.problems, report.warnings).replace("\n", " "), *_texts(report.to_dict())]
        assert all(text.isprintable() for text in texts), [text for text in texts if not text.isprintable()]


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.items() for text in _texts(list(item))]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def test_the_report_is_bounded_whatever_comes() -> None:
    many = {f"{'é' * 60}{number}{'😀' * 30}": b"" for number in range(200)}
    for files in (
        config(base_model_name_or_path="x" * 250_000)(good_adapter()),
        good_adapter() | many,
        good_adapter() | {f"{name}.bin": b"" for name in many},
        {f"d{number}/{name}.bin": b"" for number, name in enumerate(many)},
        config(**{f"use_{'😀' * 50}{number}": True for number in range(500)})(good_adapter()),
        config(rank_pattern={f"{number}": "x" * 500 for number in range(400)}, r="y" * 9999)(good_adapter()),
    ):
        report = validated(files)
        assert len(json.dumps(report.to_dict(), ensure_ascii=False).encode()) <= MAX_REPORT_BYTES
        assert len(rendering.plain(report.problems, report.warnings)) <= 4000
        assert report.problems or report.manifest


def test_memory_does_not_grow_with_the_adapter() -> None:
    """200 MB of weights, and the headers that take the most memory: under 48 MiB above the interpreter."""
    peaks = json.loads(
        subprocess.run(
            [sys.executable, "-m", "tests.validator_memory"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
    )
    assert peaks.keys() == {"large", "many tensors", "lists", "objects"}
    assert {name: peak for name, peak in peaks.items() if peak > 48} == {}
