"""The dry run: its memory estimate beside what a process takes, and its rejections beside the validator's codes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, MistralConfig

from benchmarks.training_memory import CASES, Case, measure
from loradrop.problems import ProblemCode
from loradrop.profile import load_profile, profile_from_config
from loradrop_training.device import flops_per_second, memory_available
from loradrop_training.estimate import (
    GB,
    MemoryEstimate,
    Step,
    estimate_memory,
    estimate_seconds,
    fit,
)
from loradrop_training.untrained import validate_untrained

BASE_NAME = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_8B = LlamaConfig(  # the dimensions of its config.json
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)
SMALL: dict[str, int] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL_PARAMETERS = 2 * 1000 * 64 + 3 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96 + 2 * 64) + 64
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**({"r": 16, "lora_alpha": 32, "target_modules": ALL, "task_type": "CAUSAL_LM"} | settings))


def small_step(**settings: Any) -> Step:
    plain: dict[str, Any] = {
        "config": LlamaConfig(**SMALL),
        "lora": lora(r=8),
        "dtype": torch.float32,
        "examples": 16,
        "longest": 32,
        "answer_tokens": 32,
    }
    return Step(**(plain | settings))


def large_step(**settings: Any) -> Step:
    plain: dict[str, Any] = {
        "config": LLAMA_8B,
        "lora": lora(),
        "dtype": torch.bfloat16,
        "examples": 8,
        "longest": 512,
        "answer_tokens": 200,
        "gradient_checkpointing": True,
        "device_type": "cuda",
    }
    return Step(**(plain | settings))


# Memory


@pytest.mark.slow
# A size with each setting; benchmarks/training_memory.py has them crossed, and bfloat16 and eager attention too.
@pytest.mark.parametrize("case", [CASES[0], pytest.param(CASES[-1], marks=pytest.mark.long)], ids=str)
def test_memory_is_within_a_fifth_of_what_a_process_takes(case: Case) -> None:
    assert estimate_memory(case.step()).total_bytes == pytest.approx(measure(case, steps=2).peak_bytes, rel=0.2)


def test_parameters_are_counted_exactly() -> None:
    estimate = estimate_memory(small_step())
    assert estimate.base_parameters == SMALL_PARAMETERS
    in_and_out = 3 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 96) * 3)
    assert estimate.adapter_parameters == 8 * in_and_out
    assert estimate.adapter_bytes == 16 * estimate.adapter_parameters  # weight, gradient, two moments, in float32


def test_tied_weights_are_counted_once() -> None:
    tied = estimate_memory(small_step(config=LlamaConfig(**SMALL, tie_word_embeddings=True)))
    assert tied.base_parameters == SMALL_PARAMETERS - 1000 * 64


@pytest.fixture(scope="module")
def llama_8b() -> MemoryEstimate:
    return estimate_memory(large_step())


def test_llama_8b_in_bfloat16(llama_8b: MemoryEstimate) -> None:
    estimate = llama_8b
    assert estimate.base_parameters == 8_030_261_248
    assert estimate.base_bytes / GB == pytest.approx(16.06, abs=0.005)
    assert estimate.adapter_parameters == 41_943_040
    assert 17 < estimate.total_bytes / GB < 24


def test_a_4_bit_base_keeps_embedding_head_and_norms() -> None:
    plain, quantized = estimate_memory(small_step()), estimate_memory(small_step(four_bit=True))
    linear = 3 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)
    saved = linear * (4 - 0.5625)
    assert plain.base_bytes - quantized.base_bytes == pytest.approx(saved, abs=21)  # a fraction of a byte each
    assert quantized.overhead_bytes - plain.overhead_bytes == 64 * 96 * 4  # one layer as it was
    assert quantized.base_parameters == plain.base_parameters


def test_checkpointing_takes_less_memory() -> None:
    plain, checkpointed = estimate_memory(small_step()), estimate_memory(small_step(gradient_checkpointing=True))
    assert checkpointed.total_bytes - checkpointed.overhead_bytes < plain.total_bytes - plain.overhead_bytes


def test_eager_attention_grows_with_the_square_of_the_length() -> None:
    def held(attention: str, longest: int) -> int:
        estimate = estimate_memory(small_step(attention=attention, longest=longest, examples=2048 // longest))
        return estimate.total_bytes - estimate.overhead_bytes

    assert held("sdpa", 512) < 1.02 * held("sdpa", 128)
    assert held("eager", 512) > 1.5 * held("eager", 128)


def test_many_answer_tokens_show_as_logits() -> None:
    few, many = (estimate_memory(small_step(answer_tokens=tokens, gradient_checkpointing=True)) for tokens in (1, 512))
    assert many.logit_bytes >= 512 * 1000 * 4
    assert many.total_bytes > few.total_bytes


def test_the_settings_are_left_as_they_were() -> None:
    config, settings = LlamaConfig(**SMALL), lora(target_modules="all-linear", init_lora_weights="pissa")
    before = config.to_dict(), settings.to_dict()
    estimate_memory(small_step(config=config, lora=settings))
    assert (config.to_dict(), settings.to_dict()) == before


def test_a_lora_of_no_module_is_refused_in_pefts_words() -> None:
    with pytest.raises(ValueError, match=r"foo.* not found in the base model"):
        estimate_memory(small_step(lora=lora(target_modules=["foo"])))


# What fits, and what would


def total(step: Step) -> int:
    return estimate_memory(step).total_bytes


def test_what_fits_gets_no_advice() -> None:
    step = small_step()
    found = fit(step, total(step))
    assert found.fits
    assert found.advice is None
    assert found.is_tight
    assert not fit(step, 3 * found.estimate.total_bytes).is_tight


def test_fewer_tokens_are_the_first_advice_and_the_most_that_fit() -> None:
    step = small_step(examples=64)
    available = (total(step) + total(step.of(1))) // 2
    advice = fit(step, available).advice
    assert advice is not None
    tokens = int(advice.split()[-1].rstrip("."))
    assert advice.endswith(f" Lower optimisation.batch_tokens from 2048 to {tokens}.")
    assert total(step.of(tokens // 32)) <= available
    assert total(step.of(tokens // 32 + 2)) > available


def test_checkpointing_is_advised_where_not_even_one_example_fits() -> None:
    step = small_step(examples=1, longest=512)
    advice = fit(step, total(step) - 1).advice
    assert advice is not None
    assert advice.endswith("are available. Set optimisation.gradient_checkpointing to true.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("available_gb", "ends"),
    [
        (18.5, "18.5 GB are available. Lower optimisation.batch_tokens from 4096 to 2048."),
        pytest.param(12, "12.0 GB are available. Set base.four_bit to true.", marks=pytest.mark.long),
        pytest.param(
            5,
            "5.0 GB are available. Lower optimisation.batch_tokens from 4096 to 512, set base.four_bit to true and lower "
            "lora.rank from 16 to 8. Even then it takes 7.1 GB: it needs a device with 8 GB.",
            marks=pytest.mark.long,
        ),
    ],
)
def test_advice_for_llama_8b(available_gb: float, ends: str) -> None:
    found = fit(large_step(), int(available_gb * GB))
    assert found.advice is not None
    assert found.advice.startswith(f"A step takes {found.estimate.total_bytes / GB:.1f} GB; ")
    assert found.advice.endswith(ends)


def test_a_lower_rank_is_advised_where_the_adapter_is_what_is_large() -> None:
    step = small_step(lora=lora(r=512), gradient_checkpointing=True, examples=1)
    advice = fit(step, total(step) - 1).advice
    assert advice is not None
    assert advice.endswith("Lower lora.rank from 512 to 256.")


def test_4_bit_is_not_advised_on_a_cpu() -> None:
    advice = fit(small_step(), 1).advice
    assert advice is not None
    assert "four_bit" not in advice
    assert "needs a device with 1 GB" in advice


def test_who_ran_out_gets_advice_although_the_estimate_fits() -> None:
    step = small_step(examples=64, config=LlamaConfig(**SMALL | {"intermediate_size": 4096}))
    available = 2 * total(step)
    assert fit(step, available).fits
    advice = fit(step, available, ran_out=True).advice
    assert advice is not None
    assert "Lower optimisation.batch_tokens from 2048 to " in advice


def test_advice_where_nothing_is_left_to_lower() -> None:
    advice = fit(small_step(examples=1, gradient_checkpointing=True), 1).advice
    assert advice is not None
    assert "No setting of the recipe makes it smaller." in advice


# What is available


def machine(folder: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A file system as Linux shows it, with 8 GiB available."""
    meminfo = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n"
    for name, text in {"proc/meminfo": meminfo, "proc/self/cgroup": cgroup, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


GIB = 1024**3
V2 = {
    "sys/fs/cgroup/jobs/memory.max": f"{4 * GIB}\n",
    "sys/fs/cgroup/jobs/memory.current": f"{2 * GIB}\n",
    "sys/fs/cgroup/jobs/memory.stat": f"anon 5\ninactive_file {GIB}\n",
    "sys/fs/cgroup/jobs/one/memory.max": "max\n",
}
V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
}


@pytest.mark.parametrize(
    ("cgroup", "files", "gib"),
    [
        pytest.param("0::/\n", {}, 8, id="no limit"),
        pytest.param("0::/jobs/one\n", V2, 3, id="a limit above; its file cache gives way"),
        pytest.param("3:cpu:/x\n5:memory:/docker/abc\n", V1, 1, id="version 1, seen from inside a container"),
    ],
)
def test_available_memory_is_the_least_that_system_and_cgroups_leave(
    tmp_path: Path, cgroup: str, files: dict[str, str], gib: int
) -> None:
    assert memory_available(torch.device("cpu"), machine(tmp_path, cgroup, files)) == gib * GIB


def test_this_machine_has_memory() -> None:
    assert memory_available(torch.device("cpu")) > 0


# Time


def test_seconds_grow_with_tokens_and_shrink_with_speed() -> None:
    step = small_step()
    estimate = estimate_memory(step)
    one = estimate_seconds(estimate, step, total_tokens=1000, device_flops_per_second=1e9)
    assert estimate_seconds(estimate, step, total_tokens=3000, device_flops_per_second=1e9) == pytest.approx(3 * one)
    assert estimate_seconds(estimate, step, total_tokens=1000, device_flops_per_second=4e9) == pytest.approx(one / 4)


def test_work_is_four_operations_for_each_weight_and_six_where_the_forward_is_computed_again(
    llama_8b: MemoryEstimate,
) -> None:
    """2 forward, 2 backward, and none for gradients of frozen weights; 2 for the forward again."""
    body = 8_030_261_248 - 2 * 128256 * 4096  # without embedding and head
    assert llama_8b.step_flops == pytest.approx(6 * body * 8 * 512, rel=0.05)
    plain, checkpointed = (estimate_memory(small_step(gradient_checkpointing=on)) for on in (False, True))
    assert checkpointed.step_flops / plain.step_flops == pytest.approx(6 / 4, rel=0.1)


def test_speed_is_measured() -> None:
    assert flops_per_second(torch.device("cpu"), torch.float32) > 1e8


# The validator

LLAMA_PROFILE = load_profile("llama-3.1-8b-instruct")
TINY = LlamaConfig(
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
TINY_PROFILE = load_profile("tiny-llama")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings", [{}, {"target_modules": "all-linear"}, {"target_modules": ["q_proj", "lm_head"]}, {"use_rslora": True}]
)
def test_a_plain_lora_is_accepted(settings: dict[str, Any], dtype: torch.dtype) -> None:
    report = validate_untrained(TINY, lora(**{"r": 8} | settings), TINY_PROFILE, "tiny-llama", dtype)
    assert report.problems == ()
    assert report.warnings == ()
    assert report.accepted
    assert report.sha256 is None


def test_llama_8b_is_accepted() -> None:
    report = validate_untrained(LLAMA_8B, lora(), LLAMA_PROFILE, BASE_NAME, torch.bfloat16)
    assert report.accepted
    assert report.manifest is not None
    assert report.manifest.parameters == 41_943_040
    assert report.manifest.dtypes == ("F32",)
    assert report.manifest.base_model == BASE_NAME


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"r": 128}, ProblemCode.RANK_TOO_HIGH),
        ({"use_dora": True}, ProblemCode.DORA_UNSUPPORTED),
        ({"init_lora_weights": "pissa"}, ProblemCode.INIT_ALTERS_BASE),
        ({"init_lora_weights": "olora"}, ProblemCode.INIT_ALTERS_BASE),
        ({"modules_to_save": ["lm_head"]}, ProblemCode.MODULES_TO_SAVE_UNSUPPORTED),
        ({"bias": "lora_only"}, ProblemCode.BIAS_UNSUPPORTED),
        ({"lora_bias": True}, ProblemCode.LORA_BIAS_UNSUPPORTED),
        ({"rank_pattern": {"q_proj": 4}}, ProblemCode.PATTERN_UNSUPPORTED),
        ({"lora_alpha": 0}, ProblemCode.LORA_ALPHA_INVALID),
    ],
    ids=str,
)
def test_what_the_stack_refuses_is_refused_before_training(settings: dict[str, Any], code: ProblemCode) -> None:
    report = validate_untrained(TINY, lora(**{"r": 8} | settings), TINY_PROFILE, "tiny-llama", torch.float32)
    assert not report.accepted
    assert code in {problem.code for problem in report.problems}


def test_a_module_that_takes_no_lora_there_is_refused() -> None:
    config = MistralConfig(**SMALL, head_dim=16, architectures=["MistralForCausalLM"])
    profile = profile_from_config(config.to_dict(), name="small-mistral", max_lora_rank=16)
    report = validate_untrained(config, lora(target_modules=["q_proj", "lm_head"]), profile, "small", torch.float32)
    assert [problem.code for problem in report.problems] == [ProblemCode.MODULE_UNSUPPORTED]


def test_another_base_than_the_profiles_is_refused() -> None:
    report = validate_untrained(LlamaConfig(**SMALL), lora(), LLAMA_PROFILE, "small", torch.float32)
    assert ProblemCode.SHAPE_MISMATCH in {problem.code for problem in report.problems}


def test_a_rank_above_the_limit_of_8b_is_reported_with_the_limit() -> None:
    profile = dataclasses.replace(LLAMA_PROFILE, max_lora_rank=64)
    report = validate_untrained(LLAMA_8B, lora(r=128, target_modules=["q_proj"]), profile, BASE_NAME, torch.bfloat16)
    assert [problem.code for problem in report.problems] == [ProblemCode.RANK_TOO_HIGH]
    assert "takes at most 64" in report.problems[0].message
