"""Adapters as the installed PEFT makes them, over its options and over small architectures, validated by the rule book."""

import dataclasses
import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftConfig

from loradrop.profile import ProfileError
from loradrop.rendering import plain
from loradrop.validation_report import ValidationReport
from loradrop.validator import validate
from tests.adapters import tarball
from tests.peft_adapters import adapter_of, base, profile_of, saved

OLD, NEW = "0.26.0", "0.32.0"
ATTENTION = ["q_proj", "v_proj"]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on options that are tried here on purpose
        yield


def validated(
    files: dict[str, bytes], name: str = "llama", engine: str = OLD, max_lora_rank: int = 16
) -> ValidationReport:
    return validate(io.BytesIO(tarball(files)), profile_of(name, engine=engine, max_lora_rank=max_lora_rank))


def errors(report: ValidationReport) -> set[str]:
    return {problem.code.name for problem in report.problems}


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "task_type": "CAUSAL_LM"} | options))


DENSE = ["llama", "mistral", "qwen2", "qwen3", "qwen3-tied", "gemma2", "gemma3", "phi3"]


@pytest.mark.parametrize("name", DENSE)
def test_all_linear_modules_of_a_dense_architecture(name: str) -> None:
    report = validated(adapter_of(base(name), lora(target_modules="all-linear")), name)
    assert report.problems == ()
    assert report.manifest is not None
    assert report.manifest.to_dict()["layers"] == "0-1"
    assert report.manifest.adapted_modules == (8 if name == "phi3" else 14)


@pytest.mark.parametrize(("trained_on", "served_on"), [("llama", "qwen3"), ("qwen3", "llama"), ("phi3", "llama")])
def test_an_adapter_of_another_architecture(trained_on: str, served_on: str) -> None:
    report = validated(adapter_of(base(trained_on), lora(target_modules="all-linear")), served_on)
    assert errors(report) <= {"SHAPE_MISMATCH", "MODULE_UNSUPPORTED"}
    assert not report.accepted


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "mistral", "qwen2", "gemma2", "gemma3"])
def test_embeddings_and_head(name: str) -> None:
    """Allowed on Llama, Qwen3 and Phi-3; PEFT saves the embedding's own weights beside them, which are skipped."""
    attention = ["qkv_proj"] if name == "phi3" else ATTENTION
    files = adapter_of(base(name), lora(target_modules=["embed_tokens", "lm_head", *attention]))
    assert any("base_layer" in tensor for tensor in safetensors.torch.load(files["adapter_model.safetensors"]))
    report = validated(files, name)
    assert errors(report) == (set() if name in ("llama", "qwen3", "phi3") else {"MODULE_UNSUPPORTED"})
    if report.manifest is not None:
        assert report.manifest.modules[-2:] == ("embed_tokens", "lm_head")


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_a_mixture_of_experts_has_no_profile(name: str) -> None:
    with pytest.raises(ProfileError, match="mixture of experts"):
        profile_of(name)


def test_experts_are_refused_on_a_dense_base() -> None:
    model = base("mixtral")
    experts = [name for name, _ in model.named_parameters() if name.endswith("mlp.experts.down_proj")]
    files = adapter_of(model, lora(target_modules=[], target_parameters=experts))
    assert errors(validated(files)) == {"MOE_UNSUPPORTED", "FEATURE_UNSUPPORTED"}


F, N = "FEATURE_UNSUPPORTED", "TENSOR_NAME_UNEXPECTED"
OPTIONS: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {  # options, errors of the old and of the new engine
    "plain": ({}, set(), set()),
    "rank 1": ({"r": 1}, set(), set()),
    "rsLoRA": ({"use_rslora": True}, set(), set()),
    "gaussian": ({"init_lora_weights": "gaussian"}, set(), set()),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, set(), set()),
    "a regular expression of modules": ({"target_modules": r".*\.(q|k)_proj"}, set(), set()),
    "one layer": ({"layers_to_transform": [1], "layers_pattern": "layers"}, set(), set()),
    "excluded modules": ({"exclude_modules": ["v_proj"]}, set(), set()),
    "a rank above the base's": ({"r": 32}, {"RANK_TOO_HIGH"}, {"RANK_TOO_HIGH"}),
    "DoRA": ({"use_dora": True}, {"DORA_UNSUPPORTED", N}, {"DORA_UNSUPPORTED", N}),
    "PiSSA": ({"init_lora_weights": "pissa"}, {"INIT_ALTERS_BASE"}, {"INIT_ALTERS_BASE"}),
    "OLoRA": ({"init_lora_weights": "olora"}, {"INIT_ALTERS_BASE"}, {"INIT_ALTERS_BASE"}),
    "a whole head": (
        {"modules_to_save": ["lm_head"]},
        {"MODULES_TO_SAVE_UNSUPPORTED", N},
        {"MODULES_TO_SAVE_UNSUPPORTED", N},
    ),
    "a bias of lora_B": ({"lora_bias": True}, {"LORA_BIAS_UNSUPPORTED", N}, {"LORA_BIAS_UNSUPPORTED", N}),
    "ranks by pattern": ({"rank_pattern": {"q_proj": 2}}, {"PATTERN_UNSUPPORTED", "SHAPE_MISMATCH"}, set()),
    "ranks by the layer's pattern": (
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 8}},
        {"PATTERN_UNSUPPORTED", "SHAPE_MISMATCH"},
        set(),
    ),
    "ranks above the base's by pattern": (
        {"rank_pattern": {"q_proj": 32}},
        {"PATTERN_UNSUPPORTED", "SHAPE_MISMATCH"},
        {"RANK_TOO_HIGH"},
    ),
    "alphas by pattern": ({"alpha_pattern": {"q_proj": 2}}, {"PATTERN_UNSUPPORTED"}, set()),
    "trainable tokens": ({"trainable_token_indices": [1, 2]}, {F, N}, {F, N}),
    "activated LoRA": ({"alora_invocation_tokens": [1, 2]}, {F}, {F}),
    "more layers than the base": (
        {"layer_replication": [(0, 2), (0, 2)]},
        {F, "LAYER_OUT_OF_RANGE"},
        {F, "LAYER_OUT_OF_RANGE"},
    ),
    "LoRA of a parameter": (
        {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]},
        {F},
        {F},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_lora(name: str) -> None:
    options, old, new = OPTIONS[name]
    files = adapter_of(base("llama"), lora(**options))
    for engine, expected in ((OLD, old), (NEW, new)):
        report = validated(files, engine=engine)
        assert errors(report) == expected
        assert report.warnings == ()


def test_every_setting_of_the_installed_peft_is_known() -> None:
    """A new one has to be looked at: whether it changes what the saved matrices mean."""
    names = [field.name for field in dataclasses.fields(LoraConfig)]
    assert len(names) > 30
    files = adapter_of(base("llama"), lora())
    for name in names:
        settings = json.loads(files["adapter_config.json"])
        settings[name] = settings.get(name) or [1]
        report = validated(files | {"adapter_config.json": json.dumps(settings).encode()})
        assert not any(name in warning.message for warning in report.warnings), name


def test_a_setting_that_nobody_knows_is_warned_about() -> None:
    files = adapter_of(base("llama"), lora())
    for name, value in {
        "variant": "dora",
        "use_magic": "yes",
        "enable_x": True,
        "new_cfg": {"a": 1},
        "tokens": [1],
    }.items():
        settings = json.loads(files["adapter_config.json"]) | {name: value}
        report = validated(files | {"adapter_config.json": json.dumps(settings).encode()})
        assert report.accepted
        assert [(one.code.name, one.place) for one in report.warnings] == [("UNKNOWN_FLAG", name)]
    settings = json.loads(files["adapter_config.json"]) | {"new_dropout": 0.1, "_by": "me", "some_version": "1"}
    assert validated(files | {"adapter_config.json": json.dumps(settings).encode()}).warnings == ()


def test_ranks_and_scalings_by_pattern_are_those_of_peft() -> None:
    options = {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 8},
        "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 1, "v_proj": 16},
        "use_rslora": True,
    }
    model = base("llama")
    report = validated(adapter_of(model, lora(**options)), engine=NEW)
    assert report.manifest is not None
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert report.manifest.ranks == tuple(sorted({layer.r["default"] for layer in layers}))
    assert report.manifest.scalings == tuple(sorted({layer.scaling["default"] for layer in layers}))


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases(bias: str) -> None:
    report = validated(adapter_of(base("qwen2"), lora(bias=bias)), "qwen2")
    assert errors(report) == {"BIAS_UNSUPPORTED", N}


OTHER_KINDS: dict[str, PeftConfig] = {
    "AdaLoRA": peft.AdaLoraConfig(target_modules=ATTENTION, task_type="CAUSAL_LM", total_step=10),
    "LoHa": peft.LoHaConfig(target_modules=ATTENTION, task_type="CAUSAL_LM"),
    "LoKr": peft.LoKrConfig(target_modules=ATTENTION, task_type="CAUSAL_LM"),
    "IA3": peft.IA3Config(target_modules=[*ATTENTION, "down_proj"], feedforward_modules=["down_proj"]),
    "VeRA": peft.VeraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "OFT": peft.OFTConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", oft_block_size=4),
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
@pytest.mark.parametrize("engine", [OLD, NEW])
def test_another_kind_of_adapter(name: str, engine: str) -> None:
    report = validated(adapter_of(base("llama"), OTHER_KINDS[name]), engine=engine)
    assert {"PEFT_TYPE_UNSUPPORTED", "NO_LORA_TENSORS", N} <= errors(report)


def test_a_classifier_is_refused_on_a_causal_model() -> None:
    report = validated(adapter_of(base("classifier"), lora(task_type="SEQ_CLS")))
    assert errors(report) == {"MODULES_TO_SAVE_UNSUPPORTED", N}


def test_an_untrained_adapter_has_no_effect() -> None:
    assert errors(validated(adapter_of(base("llama"), lora(), is_trained=False))) == {"NO_EFFECT"}


@pytest.mark.parametrize(
    ("dtype", "name", "warning"),
    [
        (torch.bfloat16, "BF16", []),
        (torch.float16, "F16", []),
        (torch.float64, "F64", ["DTYPE_CAST"]),
        (torch.float8_e4m3fn, "F8_E4M3", ["DTYPE_CAST"]),
        (torch.float8_e5m2, "F8_E5M2", ["DTYPE_CAST"]),
    ],
)
def test_dtypes(dtype: torch.dtype, name: str, warning: list[str]) -> None:
    files = adapter_of(base("llama"), lora())
    tensors = safetensors.torch.load(files["adapter_model.safetensors"])
    cast = safetensors.torch.save({key: tensor.to(dtype) for key, tensor in tensors.items()})
    report = validated(files | {"adapter_model.safetensors": cast})
    assert report.manifest is not None
    assert report.manifest.dtypes == (name,)
    assert [one.code.name for one in report.warnings] == warning


def test_a_converted_pissa_is_a_plain_lora_of_twice_the_rank(tmp_path: Any) -> None:
    model = peft.get_peft_model(base("llama"), lora(init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    files = saved(model, path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    report = validated(files)
    assert report.problems == ()
    assert report.manifest is not None
    assert report.manifest.ranks == (8,)


def saved_wrongly(how: Callable[[Any], dict[str, bytes]]) -> dict[str, bytes]:
    model = peft.get_peft_model(base("llama"), lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return saved(model) | how(model)


def test_a_state_dict_saved_by_hand() -> None:
    report = validated(
        saved_wrongly(
            lambda model: {
                "adapter_model.safetensors": safetensors.torch.save(
                    {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
                )
            }
        )
    )
    assert errors(report) == {N, "NO_LORA_TENSORS"}
    assert "save with save_pretrained" in plain(report.problems, report.warnings)


def test_a_whole_model_saved_beside_a_configuration() -> None:
    report = validated(
        saved_wrongly(lambda model: {"adapter_model.safetensors": safetensors.torch.save(base("mistral").state_dict())})
    )
    assert errors(report) == {N, "NO_LORA_TENSORS"}


def test_weights_saved_as_a_pickle() -> None:
    model = peft.get_peft_model(base("llama"), lora())
    assert errors(validated(saved(model, safe_serialization=False))) == {"PICKLE_FILE", "WEIGHTS_FILE_MISSING"}


def test_another_name_than_default_makes_a_wrapping_folder() -> None:
    model = peft.get_peft_model(base("llama"), lora(), adapter_name="french")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    files = {name: data for name, data in saved(model).items() if name != "README.md"}
    assert files.keys() == {"french/adapter_config.json", "french/adapter_model.safetensors"}
    assert errors(validated(files)) == {"WRAPPING_FOLDER"}


def test_a_module_that_the_training_did_not_reach_is_a_warning() -> None:
    files = adapter_of(base("llama"), lora())
    tensors = safetensors.torch.load(files["adapter_model.safetensors"])
    name = next(name for name in tensors if "lora_B" in name)
    report = validated(
        files | {"adapter_model.safetensors": safetensors.torch.save(tensors | {name: torch.zeros_like(tensors[name])})}
    )
    assert report.accepted
    assert [one.code.name for one in report.warnings] == ["DEAD_MODULES"]


def test_the_configuration_of_every_kind_is_json_that_is_read() -> None:
    for config in (lora(), *OTHER_KINDS.values()):
        files = adapter_of(base("llama"), config)
        assert json.loads(files["adapter_config.json"])["peft_type"]
        assert "CONFIG_NOT_JSON" not in errors(validated(files))
