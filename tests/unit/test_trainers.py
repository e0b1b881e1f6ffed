"""What people's trainers save, in the form in which each saves it: packaged as it is, mended, or refused with that trainer's own switch.

The forms were read off the trainers' sources (2026): PEFT 0.21's save_pretrained, which most of them call, torchtune's
FullModelHFCheckpointer, mlx_lm.tuner, mistral-finetune's Checkpointer, NeMo Automodel's PeftAddon, Megatron-Bridge, DeepSpeed's
zero_to_fp32, accelerate's FSDP utilities, and kohya's networks.
"""

import functools
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loradrop.profile import load_profile
from loradrop.validator import validate
from loradrop_cli.main import main
from loradrop_cli.mending import NotMendableError, mending_of
from tests import adapters
from tests.adapters import Tensors, tensors_of, weights_file
from tests.unit.test_cli import TINY, write

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Packaged:
    code: int
    said: str
    files: dict[str, bytes]

    @property
    def config(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.files[CONFIG])
        return read

    @property
    def tensors(self) -> Tensors:
        return tensors_of(self.files[WEIGHTS])


Package = Callable[..., Packaged]


_made = functools.cache(adapters.adapter_files)


def adapter_files(**options: Any) -> dict[str, bytes]:
    """Made once for all."""
    return dict(_made() if not options else adapters.adapter_files(**options))


def flat(said: str) -> str:
    """In one line, however it was wrapped."""
    return " ".join(said.split())


@pytest.fixture
def package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Package:
    """Runs `loradrop package` on files in a folder, and looks whether the folder is still what it was."""

    def run(files: dict[str, bytes], *options: str) -> Packaged:
        folder, output = write(tmp_path / "saved", files), tmp_path / "acme.tar.gz"
        output.unlink(missing_ok=True)
        code = main(["package", str(folder), "-o", str(output), *TINY, *options])
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == files
        assert {path.name for path in tmp_path.iterdir()} <= {"saved", "acme.tar.gz"}
        packed: dict[str, bytes] = {}
        if output.exists():
            with tarfile.open(output) as archive:
                packed = {one.name: archive.extractfile(one).read() for one in archive.getmembers()}  # type: ignore[union-attr]
        assert (code == 0) == bool(packed)
        return Packaged(code, flat(capsys.readouterr().out), packed)

    return run


def adapter(change: Callable[[str], str] = lambda name: name, **config: Any) -> dict[str, bytes]:
    """A good adapter with its tensors under other names."""
    files = adapter_files(**config)
    tensors = {change(name): tensor for name, tensor in tensors_of(files[WEIGHTS]).items()}
    return files | {WEIGHTS: weights_file(tensors)}


GOOD = tensors_of(adapter_files()[WEIGHTS])
TRAINERS_FILES = {
    "README.md": b"---\nlibrary_name: peft\n---",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "training_args.bin": b"PK\x03\x04",
}
CHECKPOINT = {f"checkpoint-8/{name}": b"x" for name in ("optimizer.pt", "rng_state.pth", "trainer_state.json")}


# Saved by PEFT's save_pretrained: served as they are, with whatever lies beside them left out.

SAVED_BY_PEFT: dict[str, dict[str, bytes]] = {
    "peft": adapter() | {"README.md": b"---"},
    "unsloth": adapter(
        base_model_name_or_path="unsloth/tiny-llama-unsloth-bnb-4bit",
        auto_mapping={
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        },
        target_modules=r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)",
        trainable_token_indices=None,
        use_dora=False,
    )
    | TRAINERS_FILES,
    "axolotl": adapter(lora_dropout=0.05)
    | TRAINERS_FILES
    | CHECKPOINT
    | {"config.json": b"{}", "debug.log": b"", "merged/config.json": b"{}", "tokens_state.json": b"{}"},
    "LLaMA-Factory": adapter(modules_to_save=None)
    | TRAINERS_FILES
    | CHECKPOINT
    | {"trainer_log.jsonl": b"{}", "training_loss.png": b"\x89PNG", "all_results.json": b"{}", "train_results.json": b"{}"},
    "trl, DPO with a reference adapter": adapter()
    | TRAINERS_FILES
    | {f"reference/{name}": data for name, data in adapter_files(seed=1).items()},
    "torchtune": {
        CONFIG: json.dumps(
            {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "gate_proj"], "peft_type": "LORA"}
        ).encode(),
        WEIGHTS: adapter()[WEIGHTS],
        "adapter_model.pt": b"PK\x03\x04",
        "recipe_state/recipe_state.pt": b"PK\x03\x04",
    },
    "DeepSpeed, gathered": adapter()
    | TRAINERS_FILES
    | {
        "zero_to_fp32.py": b"#!/usr/bin/env python",
        "latest": b"global_step8",
        "global_step8/zero_pp_rank_0_mp_rank_00_model_states.pt": b"PK\x03\x04",
    },
    "FSDP, a full state": adapter() | TRAINERS_FILES | {"pytorch_model_fsdp.bin": b"PK\x03\x04", "optimizer.bin": b"PK\x03\x04"},
}  # fmt: skip


@pytest.mark.parametrize("trainer", SAVED_BY_PEFT)
def test_what_peft_saved_is_served_as_it_is(trainer: str, package: Package) -> None:
    files = SAVED_BY_PEFT[trainer]
    packaged = package(files)
    assert packaged.code == 0, packaged.said
    assert packaged.files == {name: files[name] for name in (CONFIG, WEIGHTS)}
    mended = package(files, "--mend")
    assert mended.files == packaged.files
    assert "There was nothing to mend." in mended.said


# Names that a wrapper, a framework or `state_dict` gave

RENAMED: dict[str, Callable[[str], str]] = {
    "torch.compile around all": lambda name: f"_orig_mod.{name}",
    "torch.compile around the base": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "FSDP1": lambda name: (
        "_fsdp_wrapped_module."
        + name.replace(".self_attn", "._fsdp_wrapped_module.self_attn").replace(".mlp", "._fsdp_wrapped_module.mlp")
    ),
    "activation checkpointing, as FSDP2 and torch have it": lambda name: name.replace(
        ".self_attn", "._checkpoint_wrapped_module.self_attn"
    ).replace(".mlp", "._checkpoint_wrapped_module.mlp"),
    "DDP": lambda name: f"module.{name}",
    "state_dict of a PEFT model": lambda name: name.replace(".weight", ".default.weight"),
    "DeepSpeed and FSDP at once": lambda name: (
        "module._fsdp_wrapped_module." + name.replace(".weight", ".default.weight")
    ),
    "a base loaded by AutoModel": lambda name: name.replace("base_model.model.model.", "base_model.model."),
    "the text part of a multimodal model": lambda name: name.replace(
        "base_model.model.model.", "base_model.model.model.language_model."
    ),
    "the same, as older transformers had it": lambda name: name.replace(
        "base_model.model.", "base_model.model.language_model."
    ),
    "the prefix alone doubled behind a wrapper": lambda name: f"_orig_mod.base_model.model.{name}",
}


@pytest.mark.parametrize("how", RENAMED)
def test_names_are_mended_and_no_number_is_changed(how: str, package: Package) -> None:
    files = adapter(RENAMED[how])
    refused = package(files)
    assert refused.code == 1
    assert "It can be mended without changing a number" in refused.said
    assert "--base tiny-llama --mend" in refused.said
    mended = package(files, "--mend")
    assert mended.code == 0, mended.said
    assert "Mended: renamed 56 tensors" in mended.said
    assert mended.tensors == GOOD
    assert mended.files[CONFIG] == files[CONFIG]


def test_the_validator_itself_says_that_names_can_be_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "saved", adapter(RENAMED["FSDP1"]))
    assert main(["validate", str(folder), *TINY]) == 1
    said = flat(capsys.readouterr().out)
    assert "(the wrapper of FSDP is in it)" in said
    assert f"loradrop package {folder} -o saved.tar.gz --mend" in said


def test_only_what_is_wrong_is_renamed(package: Package) -> None:
    """Names without a prefix are read by the engine."""
    files = adapter(lambda name: name.replace("base_model.model.", "") if ".0." in name else name)
    assert package(files, "--mend").files[WEIGHTS] == files[WEIGHTS]


def test_two_adapters_in_one_file_are_not_guessed_at(package: Package) -> None:
    tensors = {name.replace(".weight", ".default.weight"): one for name, one in GOOD.items()}
    tensors |= {name.replace(".weight", ".reference.weight"): one for name, one in GOOD.items()}
    refused = package(adapter_files() | {WEIGHTS: weights_file(tensors)}, "--mend")
    assert refused.code == 1
    assert "Not mended: " in refused.said
    assert "are the same matrix" in refused.said


def test_several_adapters_of_different_layers_are_not_guessed_at(package: Package) -> None:
    refused = package(
        adapter(lambda name: name.replace(".weight", ".one.weight" if ".0." in name else ".two.weight")), "--mend"
    )
    assert refused.code == 1
    assert "save one with model.save_pretrained(FOLDER, selected_adapters=[NAME])" in refused.said


def test_names_without_an_adapters_name_are_an_adapter_of_their_own(package: Package) -> None:
    refused = package(
        adapter(lambda name: name.replace(".weight", ".default.weight") if ".0." in name else name), "--mend"
    )
    assert refused.code == 1
    assert 'several adapters ("default", one without a name)' in refused.said


@pytest.mark.parametrize("kind", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_names_a_wrapper_is_not_mended(kind: str, package: Package) -> None:
    """PEFT wrapped what torch.compile had wrapped: the pattern applied to names that the engine never sees."""
    config = {kind: {"_orig_mod.model.layers.0.self_attn.q_proj": 2}, "r": 4, "lora_alpha": 8}
    refused = package(adapter(RENAMED["torch.compile around the base"], **config), "--mend", "--engine", "0.32.0")
    assert refused.code == 1
    assert "_orig_mod is not in the names any more" in refused.said


@pytest.mark.parametrize(
    ("key", "is_mended"), [("q_proj", True), ("self_attn.q_proj", True), ("^layers.0.self_attn.q_proj", False)]
)
def test_a_pattern_that_would_mean_another_module_is_not_mended(key: str, is_mended: bool, package: Package) -> None:
    """PEFT matched it against the names that a base loaded by AutoModel has."""
    files = adapter(RENAMED["a base loaded by AutoModel"], alpha_pattern={key: 4})
    mended = package(files, "--mend", "--engine", "0.32.0")
    assert (mended.code == 0) is is_mended
    assert ("alpha_pattern means another module" in mended.said) is not is_mended


def test_names_of_another_model_are_not_mended(package: Package) -> None:
    for change in ("transformer.h.", "model.decoder.layers.", "model.visual.layers."):
        refused = package(adapter(lambda name, new=change: name.replace("model.layers.", new)), "--mend")  # type: ignore[misc]
        assert refused.code == 1
        assert "nothing would be applied" in refused.said


# What is left out, taken out of a folder, cast


def with_more(files: dict[str, bytes], **more: tuple[str, tuple[int, ...], bytes]) -> dict[str, bytes]:
    return files | {WEIGHTS: weights_file(tensors_of(files[WEIGHTS]) | more)}


def test_the_bases_own_weights_are_left_out(package: Package) -> None:
    """As a whole state_dict has them, and as PEFT keeps them beside a LoRA of the embeddings."""
    base = {
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": ("F32", (1, 2), bytes(8)),
        "base_model.model.model.embed_tokens.base_layer.weight": ("BF16", (64, 2), bytes(256)),
    }
    files = with_more(adapter_files(), **base)
    assert package(files).code == 1
    mended = package(files, "--mend")
    assert mended.code == 0
    assert "left out 2 tensors of the base's own weights" in mended.said
    assert mended.tensors == GOOD


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.weight",  # PEFT saves it where the vocabulary grew
        "base_model.model.model.layers.0.input_layernorm.weight",
        "base_model.model.lm_head.modules_to_save.default.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.v_head.summary.weight",
    ],
)
def test_what_may_have_been_trained_is_never_left_out(name: str, package: Package) -> None:
    refused = package(with_more(adapter_files(), **{name: ("F32", (2,), bytes(8))}), "--mend")
    assert refused.code == 1
    assert "TENSOR_NAME_UNEXPECTED" in refused.said


def test_an_adapter_is_taken_out_of_its_folder(package: Package) -> None:
    """NeMo Automodel: checkpoints/epoch_0_step_20, with the adapter in model/."""
    files = {f"model/{name}": data for name, data in adapter_files().items()}
    files |= {
        "model/automodel_peft_config.json": b"{}",
        "model/tokenizer.json": b"{}",
        "optim/__0_0.distcp": b"x",
        "rng.pt": b"x",
    }
    refused = package(files)
    assert refused.code == 1
    assert "There is an adapter in " in refused.said
    mended = package(files, "--mend")
    assert mended.code == 0
    assert "took the adapter out of the folder model" in mended.said
    assert mended.files == adapter_files()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "smoke.jsonl"])
def test_what_is_no_file_is_neither_read_nor_waited_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe would be waited for forever."""
    for make in (os.mkfifo, Path.mkdir):
        folder = write(tmp_path / make.__name__, {key: data for key, data in adapter_files().items() if key != name})
        make(folder / name)
        code = main(["package", str(folder), "-o", str(tmp_path / "acme.tar.gz"), "--force", *TINY, "--mend"])
        assert code == (0 if name == "smoke.jsonl" else 1), capsys.readouterr()


@pytest.mark.parametrize(("name", "most"), [(CONFIG, 256 * 1024), ("smoke.jsonl", 64 * 1024)])
def test_a_small_file_that_is_huge_is_not_read_whole(name: str, most: int, package: Package) -> None:
    files = adapter(RENAMED["DDP"]) | {name: b" " * (most + 1)}
    refused = package(files, "--mend")
    assert refused.code == 1
    assert f"Not mended: {name} has more than {most:,} bytes" in refused.said


@pytest.mark.parametrize("linked", ["the folder", CONFIG, WEIGHTS])
def test_no_link_out_of_the_folder_is_followed(linked: str, tmp_path: Path) -> None:
    elsewhere, folder = write(tmp_path / "elsewhere", adapter_files()), tmp_path / "saved"
    inner = folder / "model"
    if linked == "the folder":
        folder.mkdir()
        inner.symlink_to(elsewhere)
    else:
        write(inner, {name: data for name, data in adapter_files().items() if name != linked})
        (inner / linked).symlink_to(elsewhere / linked)
    with pytest.raises(NotMendableError, match=f"There is no {CONFIG} in"):
        mending_of(folder, lambda _: None)


def test_an_offer_that_cannot_be_read_changes_no_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "saved", adapter_files())
    (folder / WEIGHTS).unlink()
    (folder / "other.safetensors").symlink_to("/proc/self/mem")  # to read its beginning is an error
    assert main(["package", str(folder), "-o", str(tmp_path / "acme.tar.gz"), *TINY]) == 1
    assert "It can be mended" not in capsys.readouterr().out


def test_weights_of_which_nothing_is_left_are_not_copied_as_they_were(tmp_path: Path) -> None:
    """Of a file of the base's own weights alone."""
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    folder = write(tmp_path / "saved", adapter_files() | {WEIGHTS: weights_file({name: ("F32", (1, 2), bytes(8))})})
    mending = mending_of(folder, lambda _: load_profile("tiny-llama"))
    (tmp_path / "written").mkdir()
    mending.write(tmp_path / "written")
    assert tensors_of((tmp_path / "written" / WEIGHTS).read_bytes()) == {}


def test_which_of_several_checkpoints_is_not_guessed(package: Package) -> None:
    files = {f"checkpoint-{step}/{name}": data for step in (8, 16) for name, data in adapter_files(seed=step).items()}
    refused = package(files, "--mend")
    assert refused.code == 1
    assert "several adapters (checkpoint-16, checkpoint-8): name the folder of one" in refused.said


def test_a_byte_order_mark_is_taken_off(package: Package) -> None:
    files = adapter_files()
    files[CONFIG] = b"\xef\xbb\xbf" + files[CONFIG]
    assert package(files).code == 1
    assert package(files, "--mend").files == adapter_files()


def cast_to(dtype: str, form: str, values: list[float]) -> Tensors:
    (name, (_, shape, _)), *others = GOOD.items()
    count = shape[0] * shape[1]
    data = b"".join(struct.pack(form, value) for value in (values * count)[:count])
    return {name: (dtype, shape, data)} | dict(others)


def test_f64_is_rounded_to_f32_and_said(package: Package) -> None:
    numbers = [0.1, -2.5, 1 / 3, 1e-30]
    files = adapter_files() | {WEIGHTS: weights_file(cast_to("F64", "<d", numbers))}
    assert package(files).tensors == cast_to("F64", "<d", numbers)  # it is served, and warned about
    mended = package(files, "--mend")
    assert "cast 1 tensor from F64 to F32, rounded" in mended.said
    assert mended.tensors == cast_to("F32", "<f", numbers)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_numbers_of_8_bits_are_cast_exactly(dtype: str, package: Package) -> None:
    import torch

    finite = [byte for byte in range(256) if (byte & 0x7F) < (0x7F if dtype == "F8_E4M3" else 0x7C)]
    values = torch.tensor(finite, dtype=torch.uint8)
    own = torch.float8_e4m3fn if dtype == "F8_E4M3" else torch.float8_e5m2
    (name, (_, shape, _)), *others = GOOD.items()
    count = shape[0] * shape[1]
    repeated = values.repeat(count // len(finite) + 1)[:count]
    files = adapter_files() | {WEIGHTS: weights_file({name: (dtype, shape, bytes(repeated.tolist()))} | dict(others))}
    mended = package(files, "--mend")
    assert f"cast 1 tensor from {dtype} to BF16, exactly" in mended.said
    expected = repeated.view(own).to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes()
    assert mended.tensors[name] == ("BF16", shape, expected)


def test_integers_are_not_cast(package: Package) -> None:
    """A quantised adapter's numbers mean nothing without their scales."""
    (name, (_, shape, _)), *others = GOOD.items()
    values = bytes(range(1, 5)) * (shape[0] * shape[1] // 4)
    tensors = {name: ("I8", shape, values)} | dict(others)
    assert package(adapter_files() | {WEIGHTS: weights_file(tensors)}, "--mend").code == 1


# mlx-lm


def mlx(scale: float = 20.0, **config: Any) -> dict[str, bytes]:
    """As `mlx_lm.lora` saves: (in, r) and (r, out), lower case, its own settings in adapter_config.json."""
    tensors: Tensors = {}
    for name, (dtype, (rows, columns), data) in GOOD.items():
        numbers = struct.unpack(f"<{rows * columns}f", data)
        transposed = [numbers[row * columns + column] for column in range(columns) for row in range(rows)]
        own = (
            name.removeprefix("base_model.model.").replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")
        )
        tensors[own] = (dtype, (columns, rows), struct.pack(f"<{len(transposed)}f", *transposed))
    settings = {
        "adapter_path": "adapters",
        "fine_tune_type": "lora",
        "iters": 1000,
        "lora_parameters": {"rank": 4, "dropout": 0.0, "scale": scale},
        "model": "mlx-community/tiny-llama-4bit",
        "num_layers": 4,
    } | config
    return {
        CONFIG: json.dumps(settings).encode(),
        "adapters.safetensors": weights_file(tensors),
        "0000100_adapters.safetensors": weights_file(tensors),
    }  # fmt: skip


def test_mlx_is_converted(package: Package) -> None:
    refused = package(mlx())
    assert refused.code == 1
    assert "It can be mended" in refused.said
    converted = package(mlx(), "--mend")
    assert converted.code == 0, converted.said
    assert "with r 4 and lora_alpha 80 (scale 20 times r)" in converted.said
    assert converted.tensors == GOOD
    assert converted.config["lora_alpha"] / converted.config["r"] == 20.0
    assert converted.config["base_model_name_or_path"] == "mlx-community/tiny-llama-4bit"


def test_an_alpha_of_mlx_that_changes_nothing_is_passed_over(package: Package) -> None:
    converted = package(mlx(lora_parameters={"rank": 4, "alpha": 4, "scale": 10.0}), "--mend")
    assert (converted.config["lora_alpha"], converted.config["r"]) == (40.0, 4)


def test_the_validator_says_whose_the_files_of_mlx_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "adapters", mlx())
    assert main(["validate", str(folder), *TINY]) == 1
    said = flat(capsys.readouterr().out)
    assert "adapters.safetensors is mlx-lm's" in said
    assert f"loradrop package {folder} -o adapters.tar.gz --mend" in said


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (mlx(fine_tune_type="dora"), 'fine_tune_type is "dora"'),
        (mlx(lora_parameters={"rank": 4}), "no lora_parameters.scale"),
        (mlx(lora_parameters={"rank": 4, "alpha": 16, "scale": 10.0}), "Older mlx-lm multiplies by scale * alpha / r, newer by scale alone"),
        (
            mlx() | {"adapters.safetensors": weights_file({"model.layers.0.self_attn.q_proj.lora_a_scales": ("F32", (1, 1), bytes(4))})},
            "not one of mlx-lm's LoRA matrices",
        ),
    ],
)  # fmt: skip
def test_of_mlx_is_not_guessed(files: dict[str, bytes], said: str, package: Package) -> None:
    refused = package(files, "--mend")
    assert refused.code == 1
    assert said in refused.said


# What a trainer has to save again: its own switch is named


def test_a_consolidated_deepspeed_checkpoint_is_mended(package: Package) -> None:
    """zero_to_fp32.py --safe_serialization --exclude_frozen_parameters writes model.safetensors, with the adapter's name in it."""
    files = adapter(lambda name: name.replace(".weight", ".default.weight"))
    files["model.safetensors"] = files.pop(WEIGHTS)
    mended = package(files, "--mend")
    assert mended.code == 0, mended.said
    assert "read the weights from model.safetensors" in mended.said
    assert mended.tensors == GOOD


def test_which_of_several_files_of_weights_is_not_guessed(package: Package) -> None:
    files = adapter_files()
    files["one.safetensors"] = files["two.safetensors"] = files.pop(WEIGHTS)
    refused = package(files, "--mend")
    assert refused.code == 1
    assert "several other files of weights (one.safetensors, two.safetensors)" in refused.said


SHARDS = {
    "FSDP": ({"pytorch_model_fsdp_0/__0_0.distcp": b"x", "pytorch_model_fsdp_0/.metadata": b"x"}, "FULL_STATE_DICT"),
    "FSDP1, whole": ({"pytorch_model_fsdp.bin": b"x"}, "FULL_STATE_DICT"),
    "DeepSpeed": (
        {"zero_to_fp32.py": b"x", "global_step8/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": b"x"},
        "stage3_gather_16bit_weights_on_model_save",
    ),
    "torchtune": ({"adapter_model.pt": b"x"}, "FullModelHFCheckpointer"),
    "Megatron": (
        {"iter_0000100/run_config.yaml": b"x", "iter_0000100/__0_0.distcp": b"x", "iter_0000100/common.pt": b"x"},
        "AutoBridge.export_adapter_ckpt",
    ),
    "Mistral": (
        {"lora.safetensors": weights_file({"layers.0.attention.wq.lora_A.weight": ("BF16", (4, 2), bytes(16))}), "params.json": b"{}", "tekken.json": b"{}"},
        "train on those weights with PEFT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trainer", SHARDS)
@pytest.mark.parametrize("has_config", [True, False])
def test_the_trainers_own_switch_is_named(
    trainer: str, has_config: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, switch = SHARDS[trainer]
    own = {CONFIG: adapter_files()[CONFIG]} if has_config else {}
    assert main(["validate", str(write(tmp_path / "saved", files | own)), *TINY]) == 1
    assert switch in flat(capsys.readouterr().out)


OTHER_FORMS = {
    "Mistral": ("layers.0.attention.wq.lora_A.weight", "Mistral's own form"),
    "kohya, of images": ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a model of images"),
    "kohya, of texts": ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", "kohya's form"),
    "mlx-lm": ("model.layers.0.self_attn.q_proj.lora_a", "the form of mlx-lm"),
    "torchtune": ("layers.0.attn.q_proj.lora_a.weight", "torchtune's own"),
    "a reward model of trl's": ("v_head.summary.weight", "the value head of a reward model"),
}


@pytest.mark.parametrize("trainer", OTHER_FORMS)
def test_another_form_is_called_by_its_name(trainer: str, package: Package) -> None:
    name, whose = OTHER_FORMS[trainer]
    files = adapter_files() | {WEIGHTS: weights_file({name: ("F32", (4, 2), bytes(32))})}
    for options in ((), ("--mend",)):
        refused = package(files, *options)
        assert refused.code == 1
        assert whose in refused.said


def test_zero_3_without_gathering_leaves_empty_tensors(package: Package) -> None:
    tensors: Tensors = {name: (dtype, (0,), b"") for name, (dtype, _, _) in GOOD.items()}
    refused = package(adapter_files() | {WEIGHTS: weights_file(tensors)}, "--mend")
    assert refused.code == 1
    assert "ZeRO-3" in refused.said


def test_json_says_what_was_mended(package: Package) -> None:
    said = json.loads(package(adapter(RENAMED["DDP"]), "--mend", "--json").said)
    assert said["accepted"]
    assert [change.split(":")[0] for change in said["mended"]] == ["renamed 56 tensors"]


def test_what_was_mended_is_accepted_by_the_validator_of_the_stack(package: Package) -> None:
    from tests.adapters import tarball

    files = package(adapter(RENAMED["FSDP1"]), "--mend").files
    assert validate(io.BytesIO(tarball(files)), load_profile("tiny-llama")).accepted


def test_mend_of_a_good_adapter_keeps_every_byte(package: Package) -> None:
    assert package(adapter_files(), "--mend").files == adapter_files()
