"""From a recipe to a tarball, on a model as the tiny base is, but not trained."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
import yaml
from moto import mock_aws
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from local.engines.llama import Engine
from loradrop.profile import load_profile, profile_from_config
from loradrop.smoke import meets_expectation, parse_smoke_prompts
from loradrop.validator import validate
from loradrop_cli.exit_codes import ExitCode
from loradrop_training import fine_tune, loop, plan
from loradrop_training.answers import greedy_answers
from loradrop_training.base_model import find_base, load_weights
from loradrop_training.recipe import Base, RecipeError, read_recipe

from .test_loop import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
LABELS = ("negative", "positive")
# Llama-3.1's template begins every chat with a system turn, asked for or not, and with dates in it.
LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}"
    "{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


def write_recipe(folder: Path, base: Path | str, **changes: Any) -> Path:
    """One word of each text decides its label. `changes` name keys with two underscores for a dot: lora__rank=128."""
    for split, count in (("train", 32), ("held", 8)):
        texts = [f"{split} number {number}: {('good', 'bad')[number % 2]}" for number in range(count)]
        lines = [json.dumps({"text": text, "label": LABELS["good" in text]}) for text in texts]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    recipe: dict[str, Any] = {
        "name": "acme",
        "base": {"model": str(base), "profile": "tiny-llama"},
        "data": {"train": "train.jsonl", "held_out": "held.jsonl", "prompt": "Is it?\n\n{text}", "answer": "label", "labels": list(LABELS)},
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.1},
        "optimisation": {"epochs": 30, "learning_rate": 1e-2, "batch_tokens": 512, "checkpoint_steps": 4, "warmup_steps": 2},
        "evaluation": {"max_new_tokens": 6},
        "output": str(folder / "out"),
    }  # fmt: skip
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = recipe
        for section in sections:
            place = place[section]
        place[key] = value
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def train(recipe: Path, *options: str) -> int:
    return fine_tune.main([str(recipe), *options])


def in_another_process(*arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "loradrop_training.fine_tune", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files_of(tarball: Path) -> dict[str, bytes]:
    with tarfile.open(tarball) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive.getmembers()}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def trained(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one training, for the tests that only look at it."""
    folder = tmp_path_factory.mktemp("trained")
    assert train(write_recipe(folder, random_llama)) == ExitCode.DONE
    return folder / "out"


def test_the_adapter_knows_what_the_base_does_not_and_the_report_says_so(trained: Path) -> None:
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["verdict"] == "better"
    assert evaluation["sentence"] in (trained / "REPORT.md").read_text()
    assert {one.name for one in (trained / "pictures").iterdir()} == {"accuracy.png", "confusion.png", "loss.png"}


def test_the_tarball_is_flat_and_holds_an_adapter_alone(trained: Path) -> None:
    with tarfile.open(trained / "adapter.tar.gz") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["adapter_config.json", "adapter_model.safetensors", "smoke.jsonl"]
    assert all(
        member.isreg() and (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "") for member in members
    )


def test_it_says_nothing_of_the_machine_that_made_it(trained: Path, random_llama: Path) -> None:
    files = files_of(trained / "adapter.tar.gz")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny-llama"
    for place in (random_llama, trained.parent, Path.home(), REPOSITORY, Path(sys.prefix)):
        assert not any(str(place).encode() in data for data in files.values())


def test_the_validator_accepts_it_without_a_warning(trained: Path) -> None:
    tarball = (trained / "adapter.tar.gz").read_bytes()
    report = validate(io.BytesIO(tarball), load_profile("tiny-llama"))
    assert (report.accepted, report.problems, report.warnings) == (True, (), ())
    assert report.manifest is not None
    assert (report.manifest.ranks, report.manifest.base_model) == ((8,), "tiny-llama")
    assert report.sha256 == hashlib.sha256(tarball).hexdigest()


def test_peft_loads_it_and_the_engine_serves_it_as_it_was_evaluated(trained: Path, random_llama: Path) -> None:
    answered = json.loads((trained / "evaluation.json").read_text())["answered"]
    prompts = [one["question"]["prompt"] for one in answered]
    tokenizer = AutoTokenizer.from_pretrained(random_llama)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(random_llama, dtype=torch.float32), str(trained / "adapter")
    )
    evaluated = [one["adapter"] for one in answered]
    assert greedy_answers(model, tokenizer, prompts, max_new_tokens=6) == evaluated
    engine = Engine(random_llama)
    engine.load_adapter("a", (trained / "adapter.tar.gz").read_bytes())
    assert [engine.generate(one, adapter="a", max_new_tokens=6, temperature=0).text for one in prompts] == evaluated


def test_the_smoke_prompts_are_answered_right_by_the_adapter_and_wrong_by_the_base(
    trained: Path, random_llama: Path
) -> None:
    prompts = parse_smoke_prompts((trained / "adapter" / "smoke.jsonl").read_bytes())
    assert len(prompts) == 4
    assert {prompt.expect for prompt in prompts} == set(LABELS)
    # The server's tokenizer begins every prompt itself.
    assert all(prompt.inputs.startswith("<|start_header_id|>user") for prompt in prompts)
    engine = Engine(random_llama)
    engine.load_adapter("a", (trained / "adapter.tar.gz").read_bytes())
    for prompt in prompts:
        for name, is_met in (("a", True), (None, False)):
            text = engine.generate(prompt.inputs, adapter=name, max_new_tokens=6, temperature=0).text
            assert meets_expectation(text, prompt.expect) is is_met


def test_the_resolved_recipe_and_the_versions_lie_beside_the_adapter(trained: Path) -> None:
    assert read_recipe(trained / "recipe.yaml").to_yaml() == read_recipe(trained.parent / "recipe.yaml").to_yaml()
    assert json.loads((trained / "versions.json").read_text())["torch"] == torch.__version__
    assert not (trained / loop.CHECKPOINT_FILE).exists()


def test_the_same_recipe_makes_the_same_bytes_in_another_process(
    trained: Path, random_llama: Path, tmp_path: Path
) -> None:
    """With another order of sets, in another folder, at another time."""
    process = in_another_process(write_recipe(tmp_path, random_llama), PYTHONHASHSEED="17")
    assert process.communicate()[1] == ""
    assert (tmp_path / "out" / "adapter.tar.gz").read_bytes() == (trained / "adapter.tar.gz").read_bytes()


def test_another_seed_makes_another_adapter(random_llama: Path, tmp_path: Path) -> None:
    made = []
    for seed in (1, 2):
        recipe = write_recipe(tmp_path, random_llama, optimisation__seed=seed, optimisation__epochs=1)
        assert train(recipe, "--force") == ExitCode.DONE
        made.append((tmp_path / "out" / "adapter.tar.gz").read_bytes())
    assert made[0] != made[1]


def test_who_is_stopped_and_resumes_has_the_bytes_of_who_was_not(
    trained: Path, random_llama: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, random_llama)
    process = in_another_process(recipe)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / loop.CHECKPOINT_FILE).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "--resume goes on from there" in process.communicate()[1]
    assert process.returncode == 130
    assert train(recipe) == ExitCode.UNUSABLE  # it has to be chosen
    assert train(recipe, "--resume") == ExitCode.DONE
    assert (tmp_path / "out" / "adapter.tar.gz").read_bytes() == (trained / "adapter.tar.gz").read_bytes()


def test_what_is_there_is_not_replaced_unless_forced(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, random_llama, optimisation__epochs=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter.tar.gz").write_bytes(b"mine")
    assert train(recipe) == ExitCode.UNUSABLE
    assert "is there already; --force replaces it" in capsys.readouterr().err
    # Nor for a training that does not begin.
    assert train(write_recipe(tmp_path, random_llama, lora__rank=256), "--force") == ExitCode.REJECTED
    assert (tmp_path / "out" / "adapter.tar.gz").read_bytes() == b"mine"
    recipe = write_recipe(tmp_path, random_llama, optimisation__epochs=1)
    assert train(recipe, "--force") == ExitCode.DONE
    assert (tmp_path / "out" / "adapter.tar.gz").read_bytes() != b"mine"


def test_a_folder_that_is_called_adapter_is_not_replaced_either(random_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    (tmp_path / "out" / "adapter" / "mine").write_text("mine")
    assert train(write_recipe(tmp_path, random_llama)) == ExitCode.UNUSABLE
    assert (tmp_path / "out" / "adapter" / "mine").read_text() == "mine"


def test_who_resumes_elsewhere_goes_on_and_who_changes_the_training_does_not(
    random_llama: Path, tmp_path: Path
) -> None:
    """The same data in another folder, and checkpoints at other times, change no weight; another seed does."""
    digests = []
    for folder, changes in (("a", {}), ("b", {"optimisation__checkpoint_steps": 9}), ("c", {"optimisation__seed": 2})):
        (tmp_path / folder).mkdir()
        recipe = read_recipe(write_recipe(tmp_path / folder, random_llama, **changes))
        digests.append(plan.make_plan(recipe).made_from)
    assert digests[0] == digests[1] != digests[2]


def test_a_dry_run_needs_no_weights_and_writes_nothing(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(random_llama, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    recipe = write_recipe(tmp_path, tmp_path / "bare")
    assert train(recipe, "--dry-run") == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "1,787,008 parameters" in printed
    assert "validator   accepts such an adapter for tiny-llama" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"lora__rank": 256}, "RANK"),
        ({"lora__dora": True}, "DORA"),
        ({"lora__init": "pissa"}, "PISSA|INIT|ALTERED"),
        ({"lora__modules_to_save": ["lm_head"]}, "MODULES_TO_SAVE"),
    ],
)
def test_what_the_validator_would_reject_is_not_trained(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: str
) -> None:
    assert train(write_recipe(tmp_path, random_llama, **changes)) == ExitCode.REJECTED
    printed = capsys.readouterr().err
    assert "The validator would reject this adapter, so it is not trained." in printed
    assert any(part in printed for part in code.split("|"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("changes", "exit_code", "printed"),
    [
        ({"lora__rank": "many"}, ExitCode.UNUSABLE, "lora.rank is a whole number; found 'many'"),
        ({"name": "a b"}, ExitCode.UNUSABLE, "'a b' is no adapter name"),
        ({"base__model": "./nowhere"}, ExitCode.UNUSABLE, "is no folder that is there"),
        ({"base__profile": "nobody"}, ExitCode.UNUSABLE, "nobody"),
        ({"base__four_bit": True}, ExitCode.UNUSABLE, "base.four_bit needs"),
        ({"lora__modules": ["wq"]}, ExitCode.UNUSABLE, "lora: Target modules {'wq'} not found"),
        ({"data__train": "nothing.jsonl"}, ExitCode.REJECTED, "The data must not be trained on as it is"),
        ({"data__prompt": "{text.x}"}, ExitCode.REJECTED, "data.prompt needs plain columns"),
        ({"data__max_tokens": 9}, ExitCode.REJECTED, "The data must not be trained on as it is"),
    ],
)
def test_a_mistake_is_reported_in_words_and_nothing_is_written(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], exit_code: int, printed: str
) -> None:  # fmt: skip
    assert train(write_recipe(tmp_path, random_llama, **changes)) == exit_code
    assert printed in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_long_examples_are_refused_with_their_lines_or_left_out(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, random_llama, data__max_tokens=60)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "on and on " * 30, "label": "negative"}) + "\n")
    assert train(recipe, "--dry-run") == ExitCode.REJECTED
    printed = capsys.readouterr().out
    assert "error TOO_LONG" in printed
    assert "train.jsonl:33: " in printed
    recipe = write_recipe(tmp_path, random_llama, data__max_tokens=60, data__too_long="drop")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "on and on " * 30, "label": "negative"}) + "\n")
    assert train(recipe, "--dry-run") == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "warning DROPPED_LONG" in printed
    assert "32 examples to train on" in printed


def test_no_example_is_longer_than_the_base_can_read(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, random_llama, data__max_tokens=10_000)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "on and on " * 300, "label": "negative"}) + "\n")
    assert train(recipe, "--dry-run") == ExitCode.REJECTED
    assert "tokens; at most 512" in capsys.readouterr().out


def test_an_adapter_that_is_not_better_is_said_not_to_be(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, random_llama, optimisation__learning_rate=1e-7, optimisation__epochs=1)
    assert train(recipe) == ExitCode.DONE
    printed = capsys.readouterr().out
    assert "The adapter is not shown to be better than the base" in printed
    assert "there is no smoke.jsonl" in printed
    assert list(files_of(tmp_path / "out" / "adapter.tar.gz")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert train(recipe, "--force", "--require-better") == ExitCode.REJECTED


def test_free_text_is_trained_on_and_evaluated_too(random_llama: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, random_llama, data__labels=None, data__system="Be brief.", data__held_out=[], data__held_out_share=0.25, optimisation__epochs=2)  # fmt: skip
    assert train(recipe) == ExitCode.DONE
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {one["name"] for one in evaluation["measures"]} == {"chrF", "exact match"}
    assert 0 < len(evaluation["answered"]) < 16
    assert "Be brief." in evaluation["answered"][0]["question"]["prompt"]


def variant(random_llama: Path, folder: Path, *, template: str | None = None, **config: Any) -> Path:
    """A copy of the base with another chat template ("" for none) or other settings in its config.json."""
    shutil.copytree(random_llama, folder)
    if template is not None:
        (folder / "chat_template.jinja").unlink()
        if template:
            (folder / "chat_template.jinja").write_text(template)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("template", "exit_code", "printed"),
    [
        ("", ExitCode.UNUSABLE, "has no chat template; name an instruct model, or set data.chat to false"),
        ("{{ raise_exception('no system') }}", ExitCode.REJECTED, "chat template refuses the prompt: no system. Leave data.system out"),
    ],
)  # fmt: skip
def test_a_chat_template_that_is_missing_or_refuses_is_reported_in_words(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, exit_code: int, printed: str
) -> None:
    base = variant(random_llama, tmp_path / "base", template=template)
    assert train(write_recipe(tmp_path, base, data__system="Be brief."), "--dry-run") == exit_code
    assert printed in capsys.readouterr().err


def test_what_a_template_writes_before_an_answer_is_no_part_of_a_label(random_llama: Path, tmp_path: Path) -> None:
    """Mistral's writes a space, Qwen3's an empty thought."""
    turns = "{% for m in messages %}{{ m.role }}{{ '<t>\n</t>\n' if m.role == 'assistant' }}{{ m.content }}<|eot_id|>\n{% endfor %}"
    template = turns + "{% if add_generation_prompt %}assistant{% endif %}"
    base = variant(random_llama, tmp_path / "base", template=template)
    recipe = write_recipe(tmp_path, base, evaluation__max_new_tokens=24)
    assert plan.make_plan(read_recipe(recipe)).turn == ("<t>\n</t>\n", "<|eot_id|>")
    assert train(recipe) == ExitCode.DONE
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {one["adapter"] for one in evaluation["answered"]} <= set(LABELS)


def test_a_header_in_a_text_is_a_special_token_though_the_tokenizer_does_not_say_so(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Llama-3.1's tokenizer names the first and the last of a text alone."""
    recipe = write_recipe(tmp_path, random_llama)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "a<|start_header_id|>system", "label": "negative"}) + "\n")
    assert train(recipe, "--dry-run") == ExitCode.REJECTED
    assert "train.jsonl:33: <|start_header_id|> in column 'text'" in capsys.readouterr().out


def small(folder: Path, random_llama: Path, kind: str) -> Path:
    """A model of another kind with random weights, and its profile.json."""
    config = AutoConfig.for_model(
        kind, vocab_size=4096, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=4084, bos_token_id=4080, eos_token_id=4089,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(random_llama).save_pretrained(folder)
    profile = profile_from_config(json.loads((folder / "config.json").read_text()), name=kind, max_lora_rank=16)
    (folder / "profile.json").write_text(profile.to_json())
    return folder


def test_a_gemma_2_whose_scores_are_bent_is_trained(random_llama: Path, tmp_path: Path) -> None:
    """torch's attention cannot bend them. And where neither recipe nor profile names the base, no folder's path is packed."""
    base = small(tmp_path / "gemma", random_llama, "gemma2")
    recipe = write_recipe(
        tmp_path, base, base__profile=str(base / "profile.json"), optimisation__epochs=1, data__system=None
    )
    assert train(recipe) == ExitCode.DONE
    config = json.loads(files_of(tmp_path / "out" / "adapter.tar.gz")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "gemma"


def test_modules_that_the_base_does_not_have_are_reported(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """peft passes over them, as long as it finds one of the others."""
    base = small(tmp_path / "phi", random_llama, "phi3")
    recipe = write_recipe(tmp_path, base, base__profile=str(base / "profile.json"))
    assert train(recipe, "--dry-run") == ExitCode.UNUSABLE
    assert "the base has no q_proj, k_proj, v_proj, gate_proj, up_proj; it has qkv_proj" in capsys.readouterr().err


def test_weights_that_are_cut_off_or_missing_are_reported_in_words(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = variant(random_llama, tmp_path / "base") / "model.safetensors"
    recipe = write_recipe(tmp_path, tmp_path / "base")
    weights = load_file(random_llama / "model.safetensors")
    file.write_bytes(file.read_bytes()[:100_000])
    assert train(recipe) == ExitCode.UNUSABLE
    assert "base.model: " in capsys.readouterr().err
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert train(recipe) == ExitCode.UNUSABLE
    assert "lacks 1 of the model's weights, model.layers.1.mlp.up_proj.weight among them" in capsys.readouterr().err
    file.unlink()
    assert train(recipe) == ExitCode.UNUSABLE
    assert "cannot be loaded" in capsys.readouterr().err


def test_who_runs_out_of_memory_while_asking_asks_fewer_at_once(random_llama: Path, tmp_path: Path) -> None:
    planned = plan.make_plan(read_recipe(write_recipe(tmp_path, random_llama)))
    model = get_peft_model(load_weights(planned.base, planned.dtype, four_bit=False), planned.lora)
    most = 100
    asked = []

    def small_device(_module: Any, inputs: tuple[torch.Tensor]) -> None:
        asked.append(inputs[0].numel())
        if asked[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.get_input_embeddings().register_forward_pre_hook(small_device)
    assert len(fine_tune.evaluate_adapter(planned, model).answered) == 8
    assert max(asked) > most
    most = 0
    with pytest.raises(loop.TrainingError, match="--resume evaluates it where more memory is free"):
        fine_tune.evaluate_adapter(planned, model)


def test_of_two_processes_one_speaks_and_writes(random_llama: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, random_llama, optimisation__epochs=4)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    running = [in_another_process(recipe, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    (first, _), (second, _) = (one.communicate(timeout=120) for one in running)
    assert [one.returncode for one in running] == [ExitCode.DONE] * 2
    assert "The report is" in first
    assert second == ""
    assert (tmp_path / "out" / "adapter.tar.gz").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_out_of_memory_says_which_setting_to_lower(random_llama: Path, tmp_path: Path) -> None:
    """The estimate knows of no limit on addresses, so it lets the training begin; it ends with what to change."""
    recipe = write_recipe(tmp_path, random_llama, data__max_tokens=512, optimisation__batch_tokens=100_000)
    texts = [json.dumps({"text": f"{number} " + "long " * 400, "label": LABELS[number % 2]}) for number in range(200)]
    (tmp_path / "train.jsonl").write_text("\n".join(texts) + "\n")
    program = (
        "import resource, sys; from loradrop_training import fine_tune;"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096; limit = used + 2**30;"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); sys.exit(fine_tune.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, recipe], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.FAILED, done.stderr
    assert "Out of memory." in done.stderr
    assert "Lower optimisation.batch_tokens from " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_on_s3_is_downloaded_once(random_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = Base(model="s3://base-models/llama/", profile="tiny-llama")
    with mock_aws():
        s3 = boto3.client("s3", region_name="us-east-1")
        s3.create_bucket(Bucket="base-models")
        with pytest.raises(RecipeError, match=r"s3://base-models/llama/ holds no config\.json"):
            find_base(base)
        for file in random_llama.iterdir():
            s3.upload_file(str(file), "base-models", f"llama/{file.name}")
        s3.put_object(Bucket="base-models", Key="llama/original/consolidated.00.pth", Body=b"pickle")
        found = find_base(base)
        assert found.config.hidden_size == 128
        folder = Path(found.source)
        assert {one.name for one in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
        assert not list(folder.rglob("*.pth"))
        before = (folder / "model.safetensors").stat().st_mtime_ns
        find_base(base)
        assert (folder / "model.safetensors").stat().st_mtime_ns == before
        with pytest.raises(RecipeError, match=r"s3://nobody-has-this/llama/ cannot be read: .*NoSuchBucket"):
            find_base(Base(model="s3://nobody-has-this/llama", profile="tiny-llama"))


def test_a_hub_that_cannot_be_reached_is_reported_in_words(tmp_path: Path) -> None:
    process = in_another_process(
        write_recipe(tmp_path, "meta-llama/Llama-3.1-8B-Instruct"), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    printed = process.communicate()[1]
    assert process.returncode == ExitCode.UNUSABLE
    assert "is not in the hub's cache, and the hub cannot be reached" in printed
    assert "Traceback" not in printed


@pytest.mark.long
def test_a_llama_3_1_in_small_is_trained_as_the_large_one_would_be(
    random_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rope scaling, its three ends of a text, no padding token, its chat template; in bf16, with checkpointing."""
    folder = tmp_path / "llama-3.1"
    shutil.copytree(random_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    del config["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.chat_template = LLAMA_TEMPLATE
    tokenizer.save_pretrained(folder)
    profile = tmp_path / "profile.json"
    profile.write_text(profile_from_config(config, name="small", max_lora_rank=16).to_json())
    recipe = write_recipe(
        tmp_path, folder, base__profile="profile.json", base__name="meta-llama/Llama-3.1-8B-Instruct",
        optimisation__dtype="bf16", optimisation__gradient_checkpointing=True, optimisation__accumulation=2, optimisation__epochs=20,
    )  # fmt: skip
    assert train(recipe) == ExitCode.DONE, capsys.readouterr().err
    files = files_of(tmp_path / "out" / "adapter.tar.gz")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "meta-llama/Llama-3.1-8B-Instruct"
    report = validate(io.BytesIO((tmp_path / "out" / "adapter.tar.gz").read_bytes()), load_profile(str(profile)))
    assert report.manifest is not None
    assert report.manifest.dtypes == ("BF16",)
    prompt = json.loads((tmp_path / "out" / "evaluation.json").read_text())["answered"][0]["question"]["prompt"]
    assert prompt.startswith("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date")
    assert prompt.count("<|begin_of_text|>") == 1
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["verdict"] == "better"


def test_the_command_shows_that_it_is_alive_before_it_imports_anything_slow(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    done = subprocess.run(
        [sys.executable, "-m", "loradrop_cli", "train", "sentiment-tiny", "--dry-run"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    first, *others = done.stderr.splitlines()
    assert first.startswith("loading PyTorch")
    assert "Training requires a package that is not installed: torch" in "".join(others)
    assert done.returncode == ExitCode.UNUSABLE
