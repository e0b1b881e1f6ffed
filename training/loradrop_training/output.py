"""What a training leaves behind: the adapter and its tarball, the report, and what they were made from."""

import json
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import distributed

from loradrop import __version__
from loradrop.adapter_config import CONFIG_FILE
from loradrop.packing import package
from loradrop.rendering import plain
from loradrop.validator import SMOKE_FILE

from . import loop
from .device import device_name, dtype_name
from .dry_run import RefusedError, duration
from .evaluation import Evaluation, smoke_lines
from .evaluation_report import EVALUATION_FILE, PICTURES_DIR, REPORT_FILE, write_report
from .examples import begins_with
from .plan import Plan
from .recipe import RecipeError

ADAPTER_FOLDER = "adapter"
TARBALL, RECIPE_FILE, VERSIONS_FILE = "adapter.tar.gz", "recipe.yaml", "versions.json"
PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "scikit-learn", "sacrebleu")


def make_room(output: Path, *, resume: bool, force: bool) -> None:
    """Raises RecipeError where the output folder holds what nobody said may go."""
    has_checkpoint = (output / loop.CHECKPOINT_FILE).exists()
    if not force:
        for made in (output / TARBALL, output / ADAPTER_FOLDER):
            # An adapter beside a checkpoint was not finished.
            if made.exists() and not (has_checkpoint and made.name == ADAPTER_FOLDER):
                raise RecipeError(f"{made} is there already; --force replaces it, --output writes elsewhere.")
        if has_checkpoint and not resume:
            raise RecipeError(f"{output} holds an interrupted training; --resume goes on with it, --force starts over.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{output} cannot be made: {error.strerror}.") from error


def clear(output: Path) -> None:
    """Removes what an earlier training left: only once the new one is sure to begin, and before any process reads it."""
    rank, count = loop.processes()
    if rank == 0:
        for name in (loop.CHECKPOINT_FILE, loop.LOG_FILE, TARBALL, REPORT_FILE, EVALUATION_FILE):
            (output / name).unlink(missing_ok=True)
        for name in (ADAPTER_FOLDER, PICTURES_DIR):
            shutil.rmtree(output / name, ignore_errors=True)
    if count > 1:
        distributed.barrier()


def write_output(plan: Plan, output: Path, model: Any, entries: Sequence[loop.Logged], evaluation: Evaluation) -> None:
    """Raises RefusedError where the validator rejects what came out."""
    recipe = plan.recipe
    folder = output / ADAPTER_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(model, folder, base_name=plan.base_name)
    smoke = smoke_lines(evaluation, begins=begins_with(plan.base.tokenizer), at_most=recipe.evaluation.smoke_prompts)
    if smoke:
        (folder / SMOKE_FILE).write_text("".join(f"{line}\n" for line in smoke))
    else:
        print(
            "The adapter answers no held-out question right that the base gets wrong, so there is no smoke.jsonl: the stack "
            "asks its default prompts."
        )
    (output / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
    (output / VERSIONS_FILE).write_text(json.dumps(versions(), indent=2) + "\n")
    facts = _facts(plan, entries[-1], len(smoke))
    write_report(output, evaluation, title=recipe.name, facts=facts, log_file=output / loop.LOG_FILE)
    report = package(folder, output / TARBALL, plan.profile, lambda _: None)
    if not report.accepted:
        raise RefusedError(
            f"The validator rejects the adapter that came out.\n{plain(report.problems, report.warnings)}"
        )
    # The checkpoint's weights are in the adapter now.
    (output / loop.CHECKPOINT_FILE).unlink(missing_ok=True)


def _facts(plan: Plan, last: loop.Logged, smoke_prompts: int) -> dict[str, str]:
    recipe = plan.recipe
    four_bit = ", 4 bits while training" if recipe.base.four_bit else ""
    return {
        "recipe": recipe.name,
        "base": f"{plan.base_name} in {dtype_name(plan.dtype)}{four_bit}",
        "adapter": f"rank {recipe.lora.rank}, alpha {recipe.lora.alpha:g}, on {', '.join(recipe.lora.modules)}",
        "trained on": f"{len(plan.train):,} examples, {last.tokens:,} tokens in {last.step:,} steps",
        "evaluated on": f"{len(plan.questions):,} held-out examples",
        "took": f"{duration(last.seconds)} of training on {device_name()}, "
        f"{last.tokens / max(last.seconds, 1e-3):,.0f} tokens/s, {last.peak_memory_bytes / 1e9:.2f} GB at the peak",
        "smoke prompts": f"{smoke_prompts}",
    }


def save_adapter(model: Any, folder: Path, *, base_name: str) -> None:
    """The two files that an adapter is. They name the base, and nothing of the machine that trained it."""
    model.peft_config["default"].base_model_name_or_path = base_name
    # "auto" would look for the base's vocabulary on the hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form
    config_file = folder / CONFIG_FILE
    config = json.loads(config_file.read_text())
    # peft keeps a set, whose order is another in each process.
    config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def versions() -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "loradrop": __version__,
    }
    return found | {name: version(name) for name in PACKAGES}
