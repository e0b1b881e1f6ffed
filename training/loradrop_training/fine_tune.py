"""From a recipe to a proven adapter: data checked, judged before it is trained, trained, held against its base, packed.

loradrop train RECIPE        or        python -m loradrop_training.fine_tune RECIPE
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from peft import LoraConfig, get_peft_model
from torch import distributed
from transformers.utils import logging as transformers_logging

from loradrop import __version__
from loradrop.adapter_config import CONFIG_FILE
from loradrop.names import AdapterNameInvalidError, check_adapter_name
from loradrop.packing import package
from loradrop.profile import BaseProfile, ProfileError, load_profile
from loradrop.validator import SMOKE_FILE

from . import loop
from .answers import BATCH_TOKENS
from .arguments import DESCRIPTION, add_arguments
from .base_model import BaseModel, attention, device, dtype, find_base, load_weights, one_thread
from .dataset import Code, DataError, Dataset, Finding, Row, finding_lines, printable, read_dataset
from .estimate import (
    Step,
    estimate_seconds,
    fit,
    flops_per_second,
    judge_untrained,
    memory_available,
    return_freed_memory,
)
from .evaluation import Evaluation, Question, evaluate, smoke_lines
from .examples import (
    ChatTemplateError,
    Example,
    TokenizedExample,
    begins_with,
    chat_example,
    grouped,
    plain_example,
    tokenize,
)
from .recipe import Lora, Recipe, RecipeError, read_recipe
from .report import EVALUATION_FILE, PICTURES_DIR, REPORT_FILE, write_report

DONE, REFUSED, UNUSABLE, FAILED = 0, 1, 2, 3
ADAPTER_FOLDER = "adapter"
TARBALL, RECIPE_FILE, VERSIONS_FILE = "adapter.tar.gz", "recipe.yaml", "versions.json"
PACKAGES = ("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "scikit-learn", "sacrebleu")
LEAST_BATCH_TOKENS = 64  # of an evaluation: a question or two
# Narrower layers are waited for by a second thread longer than they are multiplied.
LEAST_WIDTH_FOR_THREADS = 512

# The bar of the training is enough.
transformers_logging.disable_progress_bar()
# peft sets what transformers is about to rename; nobody here can mend it.
warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing.*` is deprecated")


class RefusedError(Exception):
    """What must not be trained; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known before the weights are loaded."""

    recipe: Recipe
    base: BaseModel
    base_name: str
    profile: BaseProfile
    lora: LoraConfig
    dataset: Dataset
    train: tuple[TokenizedExample, ...]
    questions: tuple[Question, ...]
    turn: tuple[str, str]  # what the chat template writes before an answer and behind it
    weights: torch.dtype
    steps: int
    made_from: str

    @property
    def padded_tokens(self) -> int:
        """Of all steps together."""
        optimisation = self.recipe.optimisation
        groups = grouped(self.train, max_tokens=optimisation.batch_tokens, dice=random.Random(0))
        _, in_epoch = loop.steps_of(self.train, optimisation)
        return round(sum(map(_padded_tokens, groups)) * self.steps / in_epoch)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loradrop_training.fine_tune", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """The exit code: 0 done, 1 refused (or not better, where that is required), 2 wrong usage, 3 failed, 130 interrupted."""
    if os.environ.get("RANK", "0") == "0":
        return _run(arguments)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # one of several processes speaks for all
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        recipe = read_recipe(arguments.recipe)
        output = arguments.output or Path(recipe.output)
        if not arguments.dry_run:
            _make_room(output, resume=arguments.resume, force=arguments.force)
        plan = make_plan(recipe)
        check(plan)
        if arguments.dry_run:
            return DONE
        if arguments.force:
            _clear(output)
        evaluation = fine_tune(plan, output)
    except (RecipeError, ProfileError, AdapterNameInvalidError) as error:
        return _say(error, UNUSABLE)
    except (DataError, RefusedError, ChatTemplateError) as error:
        return _say(error, REFUSED)
    except loop.TrainingError as error:
        return _say(error, FAILED)
    except loop.InterruptedTraining as stopped:
        print(f"loradrop: {stopped}; --resume goes on from there.", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print("loradrop: interrupted; --resume goes on from the last checkpoint, where there is one.", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        raise
    except OSError as error:  # a disk that is full, a folder that is gone
        return _say(OSError(f"{error.filename or output}: {error.strerror or error}."), FAILED)
    if evaluation is None:  # another process weighs the adapter
        return DONE
    print(f"\n{evaluation.sentence}")
    for note in evaluation.notes:
        print(note)
    print(f"\nThe report is {output / 'REPORT.md'}; the adapter is {output / TARBALL}. To bring it in:")
    print(f"  loradrop push {output / TARBALL} --name {recipe.name}")
    is_better = evaluation.verdict == "better"
    return REFUSED if arguments.require_better and not is_better else DONE


def _say(error: Exception, code: int) -> int:
    for line in str(error).splitlines():
        print(f"loradrop: {printable(line)}", file=sys.stderr)
    return code


def _make_room(output: Path, *, resume: bool, force: bool) -> None:
    """Raises RecipeError where the output folder holds what nobody said may go."""
    has_checkpoint = (output / loop.CHECKPOINT_FILE).exists()
    if not force:
        for made in (output / TARBALL, output / ADAPTER_FOLDER):
            # An adapter beside a checkpoint was not finished.
            if made.exists() and not (has_checkpoint and made.name == ADAPTER_FOLDER):
                raise RecipeError(f"{made} is there already; --force replaces it, --output writes elsewhere.")
        if has_checkpoint and not resume:
            raise RecipeError(f"{output} holds an interrupted training; --resume goes on with it, --force starts anew.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{output} cannot be made: {error.strerror}.") from error


def _clear(output: Path) -> None:
    """Takes away what an earlier training left: only once the new one is sure to begin, and before any process looks for it."""
    rank, count = loop.processes()
    if rank == 0:
        for name in (loop.CHECKPOINT_FILE, loop.LOG_FILE, TARBALL, REPORT_FILE, EVALUATION_FILE):
            (output / name).unlink(missing_ok=True)
        for name in (ADAPTER_FOLDER, PICTURES_DIR):
            shutil.rmtree(output / name, ignore_errors=True)
    if count > 1:
        distributed.barrier()


def make_plan(recipe: Recipe) -> Plan:
    """Reads everything but the weights. Raises what `run` catches; the data's findings are printed."""
    check_adapter_name(recipe.name)
    profile = load_profile(recipe.base.profile)
    base = find_base(recipe.base)
    tokenizer = base.tokenizer
    if recipe.data.chat and not tokenizer.chat_template:
        raise RecipeError(
            "data.chat: the base's tokenizer has no chat template; name an instruct model, or set data.chat to false."
        )
    dataset = read_dataset(recipe.data, _special_tokens(tokenizer))
    dataset, train = _tokenized(recipe, base, dataset)
    for line in finding_lines(dataset.findings):
        print(line)
    if any(one.is_fatal for one in dataset.findings):
        raise DataError("The data must not be trained on as it is: mend the lines above marked as errors.")
    questions = tuple(Question(_example(recipe, tokenizer, row).prompt, row.answer) for row in dataset.held_out)
    limit = recipe.evaluation.examples or len(questions)
    told = "answer"
    before, _, behind = _example(recipe, tokenizer, Row("x", told, dataset.train[0].place)).answer.partition(told)
    steps, _ = loop.steps_of(train, recipe.optimisation, loop.processes()[1])
    return Plan(
        recipe=recipe,
        base=base,
        base_name=recipe.base.name or (profile.base_model_names or (_last_part(recipe.base.model),))[0],
        profile=profile,
        lora=lora_config(recipe.lora),
        dataset=dataset,
        train=train,
        questions=questions[:limit],
        turn=(before, behind),
        weights=dtype(recipe.optimisation.precision),
        steps=steps,
        made_from=_digest(recipe, base, train, loop.processes()[1]),
    )


def _special_tokens(tokenizer: Any) -> list[str]:
    """Llama-3.1's tokenizer names its ends alone as such; the headers of a turn are special among the added ones."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def _last_part(model: str) -> str:
    """Where a folder or a bucket lies concerns nobody who reads the adapter's configuration; an id on the hub does."""
    is_place = Path(model).is_dir() or model.startswith("s3://")
    return model.rstrip("/").rpartition("/")[2] if is_place else model


def lora_config(lora: Lora) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.modules),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True if lora.init == "default" else lora.init,
        modules_to_save=list(lora.modules_to_save) or None,
    )


def _example(recipe: Recipe, tokenizer: Any, row: Row) -> Example:
    if recipe.data.chat:
        try:
            return chat_example(tokenizer, row.prompt, row.answer, recipe.data.system)
        except TemplateError as error:
            raise ChatTemplateError(
                f"The base's chat template refuses the prompt: {error}. Leave data.system out, or set data.chat to false."
            ) from error
    return plain_example(tokenizer, row.prompt, row.answer)


def _tokenized(recipe: Recipe, base: BaseModel, dataset: Dataset) -> tuple[Dataset, tuple[TokenizedExample, ...]]:
    """The training examples; those of both splits that are too long are findings, and left out where the recipe says so."""
    tokenizer = base.tokenizer
    most = min(recipe.data.max_tokens, getattr(base.config, "max_position_embeddings", recipe.data.max_tokens))
    findings = list(dataset.findings)
    code = Code.TOO_LONG if recipe.data.too_long == "refuse" else Code.DROPPED_LONG

    def fitting(rows: Sequence[Row]) -> list[tuple[Row, TokenizedExample]]:
        kept = []
        for row, one in zip(rows, tokenize(tokenizer, [_example(recipe, tokenizer, row) for row in rows]), strict=True):
            if len(one.ids) <= most:
                kept.append((row, one))
            else:
                findings.append(Finding(code, row.place, f"{len(one.ids):,} tokens; at most {most:,}"))
        return kept

    train, held_out = fitting(dataset.train), fitting(dataset.held_out)
    if not train or not held_out:
        findings.append(
            Finding(Code.NO_EXAMPLES, None, f"{len(train)} examples to learn and {len(held_out)} to ask are left")
        )
    kept = Dataset(tuple(row for row, _ in train), tuple(row for row, _ in held_out), tuple(findings))
    return kept, tuple(one for _, one in train)


def _digest(recipe: Recipe, base: BaseModel, train: Sequence[TokenizedExample], count: int) -> str:
    """Of all that decides what the weights become; the data is here as it is learnt, wherever its files lie.

    `count` processes share out a step's batches.
    """
    optimisation = dataclasses.replace(recipe.optimisation, checkpoint_steps=1)
    digest = hashlib.sha256(f"{recipe.base} {recipe.lora} {optimisation} {count}".encode())
    digest.update(json.dumps(base.config.to_dict(), sort_keys=True, default=str).encode())
    for one in train:
        digest.update(f"{one.prompt_tokens}:{one.ids}".encode())
    return digest.hexdigest()


def check(plan: Plan) -> None:
    """Prints what the training will take and what the serving stack will say to its result.

    Raises RefusedError where the judge would refuse the adapter, or where the training cannot fit.
    """
    recipe = plan.recipe
    tokens = [len(one.ids) for one in plan.train]
    step = fullest_step(plan)
    try:
        fits = fit(step, memory_available(device()))
    except ValueError as error:  # peft's own words, for modules that the base does not have and the like
        raise RecipeError(f"lora: {error}") from error
    estimate = fits.estimate
    speed = flops_per_second(device(), plan.weights)
    seconds = estimate_seconds(estimate, step, total_tokens=plan.padded_tokens, device_flops_per_second=speed)
    print(f"base        {recipe.base.model}, {estimate.base_parameters:,} parameters in {_name(plan.weights)}")
    print(
        f"adapter     {estimate.adapter_parameters:,} parameters, rank {recipe.lora.rank} on {', '.join(recipe.lora.modules)}"
    )
    print(
        f"data        {len(plan.train):,} examples to learn, {sum(tokens):,} tokens, {min(tokens)} to {max(tokens)} each; "
        f"{len(plan.questions):,} held out"
    )
    print(f"training    {plan.steps:,} steps on {_device_name()}, about {_duration(seconds)}")
    print(
        f"memory      about {estimate.total_bytes / 1e9:.2f} GB at the fullest, {fits.available_bytes / 1e9:.1f} GB available",
        flush=True,
    )
    report = judge_untrained(plan.base.config, plan.lora, plan.profile, plan.base_name, plan.weights)
    if not report.accepted:
        raise RefusedError(f"The serving stack would refuse this adapter, so it is not trained.\n{report.summary()}")
    assert report.manifest is not None
    modules = report.manifest.modules
    if missing := [one for one in recipe.lora.modules if one.rpartition(".")[2] not in modules]:
        raise RecipeError(
            f"lora.modules: the base has no {', '.join(missing)}; it has {', '.join(plan.profile.lora_modules)}."
        )
    print(f"judge       accepts such an adapter for {plan.profile.name}")
    for line in report.summary().splitlines()[1:]:
        print(f"            {line}")
    if fits.advice is not None:
        raise RefusedError(fits.advice)
    if fits.is_tight and device().type == "cpu":
        return_freed_memory()  # costs half as much time again


def fullest_step(plan: Plan) -> Step:
    """The largest batch that the data makes, in all that decides its memory."""
    optimisation = plan.recipe.optimisation
    groups = grouped(plan.train, max_tokens=optimisation.batch_tokens, dice=random.Random(0))
    largest = max(groups, key=_padded_tokens)
    return Step(
        config=plan.base.config,
        lora=plan.lora,
        dtype=plan.weights,
        examples=len(largest),
        longest=max(len(one.ids) for one in largest),
        answer_tokens=max(sum(one.answer_tokens for one in group) for group in groups),
        four_bit=plan.recipe.base.four_bit,
        gradient_checkpointing=optimisation.gradient_checkpointing,
        attention=attention(plan.base.config, plan.weights),
        device_type=device().type,
    )


def _padded_tokens(group: Sequence[TokenizedExample]) -> int:
    return len(group) * max(len(one.ids) for one in group)


def fine_tune(plan: Plan, output: Path) -> Evaluation | None:
    """Trains, weighs and packs. Of several processes the first weighs and packs alone; the others return None."""
    recipe = plan.recipe
    with one_thread() if _is_small(plan.base.config) else nullcontext():
        torch.manual_seed(recipe.optimisation.seed)  # the adapter's first weights
        model = get_peft_model(load_weights(plan.base, plan.weights, four_bit=recipe.base.four_bit), plan.lora)
        try:
            entries = loop.train(
                model,
                plan.train,
                recipe.optimisation,
                pad_id=plan.base.tokenizer.pad_token_id,
                folder=output,
                made_from=plan.made_from,
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            advice = fit(fullest_step(plan), memory_available(device()), ran_out=True).advice
            # A checkpoint is of the settings that it was made with.
            raise loop.TrainingError(f"Out of memory. {advice} Then train anew, with --force.") from error
        rank, count = loop.processes()
        if count > 1:
            distributed.destroy_process_group()
        if rank > 0:
            return None
        as_served(model, plan.weights)
        evaluation = weighed(plan, model)
    _write(plan, output, model, entries, evaluation)
    return evaluation


def weighed(plan: Plan, model: Any) -> Evaluation:
    """The adapter held against its base; where memory does not suffice, with fewer questions at once.

    Raises TrainingError where not even few fit: what was learnt is in the checkpoint.
    """
    recipe = plan.recipe
    batch_tokens = min(recipe.optimisation.batch_tokens, BATCH_TOKENS)
    while True:
        try:
            return evaluate(
                model,
                plan.base.tokenizer,
                plan.questions,
                labels=recipe.data.labels,
                turn=plan.turn,
                max_new_tokens=recipe.evaluation.max_new_tokens,
                batch_tokens=batch_tokens,
                seed=recipe.optimisation.seed,
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if batch_tokens < LEAST_BATCH_TOKENS:
                raise loop.TrainingError(
                    "Out of memory while the adapter was weighed, which is trained: --resume weighs it where more is free."
                ) from error
        # Behind the handler, whose traceback holds the tensors.
        batch_tokens //= 2
        print(f"out of memory; asking with {batch_tokens:,} tokens at once", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def as_served(model: Any, weights: torch.dtype) -> None:
    """The adapter in the base's precision, as it is saved and as the server computes it; what is weighed is what is served."""
    model.eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(weights)


def _write(plan: Plan, output: Path, model: Any, entries: Sequence[loop.Logged], evaluation: Evaluation) -> None:
    recipe = plan.recipe
    folder = output / ADAPTER_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    save(model, folder, base_name=plan.base_name)
    smoke = smoke_lines(evaluation, begins=begins_with(plan.base.tokenizer), at_most=recipe.evaluation.smoke_prompts)
    if smoke:
        (folder / SMOKE_FILE).write_text("".join(f"{line}\n" for line in smoke))
    else:
        print(
            "No held-out question is answered right by the adapter and wrong by the base: there is no smoke.jsonl, and the stack asks its default prompts."
        )
    (output / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
    (output / VERSIONS_FILE).write_text(json.dumps(versions(), indent=2) + "\n")
    last = entries[-1]
    facts = {
        "recipe": recipe.name,
        "base": f"{plan.base_name} in {_name(plan.weights)}{', 4 bits while training' if recipe.base.four_bit else ''}",
        "adapter": f"rank {recipe.lora.rank}, alpha {recipe.lora.alpha:g}, on {', '.join(recipe.lora.modules)}",
        "learnt": f"{len(plan.train):,} examples, {last.tokens:,} tokens in {last.step:,} steps",
        "asked": f"{len(plan.questions):,} held-out examples",
        "took": f"{_duration(last.seconds)} of training on {_device_name()}, {last.tokens / max(last.seconds, 1e-3):,.0f} tokens/s, {last.peak_memory_bytes / 1e9:.2f} GB at the peak",
        "smoke prompts": f"{len(smoke)}",
    }  # fmt: skip
    write_report(output, evaluation, title=recipe.name, facts=facts, log_file=output / loop.LOG_FILE)
    report = package(folder, output / TARBALL, plan.profile, lambda _: None)
    if not report.accepted:
        raise RefusedError(f"The judge refuses the adapter that came out.\n{report.summary()}")
    # What it held is in the adapter; whoever wants more trains anew.
    (output / loop.CHECKPOINT_FILE).unlink(missing_ok=True)


def save(model: Any, folder: Path, *, base_name: str) -> None:
    """The two files that an adapter is. They say the base's name, and nothing of the machine that trained it."""
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


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def _is_small(config: Any) -> bool:
    return device().type == "cpu" and config.hidden_size < LEAST_WIDTH_FOR_THREADS


def _name(weights: torch.dtype) -> str:
    return str(weights).removeprefix("torch.")


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(main())
