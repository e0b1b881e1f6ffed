"""From a recipe to a proven adapter: plan, dry run, training, evaluation beside the base, tarball.

loradrop train RECIPE        or        python -m loradrop_training.fine_tune RECIPE
"""

import argparse
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import distributed
from transformers.utils import logging as transformers_logging

from loradrop.names import AdapterNameInvalidError
from loradrop.problems import printable
from loradrop.profile import ProfileError
from loradrop_cli.exit_codes import ExitCode

from . import loop
from .answers import BATCH_TOKENS
from .arguments import DESCRIPTION, add_arguments
from .base_model import load_weights
from .data_recipe import is_data, output_of, recipe_name, write_recipe
from .dataset import DataError
from .device import device, is_out_of_memory, memory_available, one_thread
from .dry_run import RefusedError, dry_run
from .estimate import fit
from .evaluation import Evaluation, Verdict, evaluate
from .evaluation_report import REPORT_FILE
from .examples import ChatTemplateError
from .output import TARBALL, clear, make_room, write_output
from .plan import Plan, make_plan
from .recipe import Recipe, RecipeError, find_recipe, read_recipe

LEAST_BATCH_TOKENS = 64  # of an evaluation: a question or two
# Narrower layers are waited for by a second thread longer than they are multiplied.
LEAST_WIDTH_FOR_THREADS = 512

# The bar of the training is enough.
transformers_logging.disable_progress_bar()
# peft sets what transformers is about to rename; nobody here can fix it.
warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing.*` is deprecated")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loradrop_training.fine_tune", description=DESCRIPTION)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """The exit code; loradrop_cli/exit_codes.py says what each means here."""
    if os.environ.get("RANK", "0") == "0":
        return _run(arguments)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # of several processes the first prints
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    output = arguments.output
    try:
        recipe = _recipe(arguments)
        output = output or Path(recipe.output)
        if not (arguments.dry_run or arguments.show_example):
            make_room(output, resume=arguments.resume, force=arguments.force)
        plan = make_plan(recipe)
        if arguments.show_example:
            print(f"\n{plan.shown_example.marked()}")
            return ExitCode.DONE
        dry_run(plan)
        if arguments.dry_run:
            return ExitCode.DONE
        if arguments.force:
            clear(output)
        evaluation = fine_tune(plan, output)
    except (RecipeError, ProfileError, AdapterNameInvalidError) as error:
        return _print_error(error, ExitCode.UNUSABLE)
    except (DataError, RefusedError, ChatTemplateError) as error:
        return _print_error(error, ExitCode.REJECTED)
    except loop.TrainingError as error:
        return _print_error(error, ExitCode.FAILED)
    except loop.InterruptedTraining as stopped:
        print(f"loradrop: {stopped}; --resume goes on from there.", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print("loradrop: interrupted; --resume goes on from the last checkpoint, where there is one.", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        raise
    except OSError as error:  # a disk that is full, a folder that is gone
        return _print_error(OSError(f"{error.filename or output}: {error.strerror or error}."), ExitCode.FAILED)
    if evaluation is None:  # another process evaluates the adapter
        return ExitCode.DONE
    print(f"\n{evaluation.sentence}")
    for note in (*evaluation.notes, evaluation.replacement):
        if note:
            print(note)
    print(f"\nThe report is {output / REPORT_FILE}; the adapter is {output / TARBALL}. To deploy it:")
    print(f"  loradrop push {output / TARBALL} --name {recipe.name}")
    is_better = evaluation.verdict is Verdict.BETTER
    return ExitCode.REJECTED if arguments.require_better and not is_better else ExitCode.DONE


def _recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe of that name; for data, one that is chosen, and written beside the output."""
    given = arguments.recipe
    if not is_data(given):
        recipe = read_recipe(find_recipe(Path(given)))
        print(f"recipe      {given}: {recipe.name}, on {recipe.base.model}", flush=True)
        return recipe
    choices = {"base": arguments.base, "profile": arguments.profile, "name": arguments.name}
    if arguments.dry_run or arguments.show_example:  # which write nothing
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.yaml"
            about = write_recipe(given, file, **choices, force=True)
            recipe = read_recipe(file)
        print(f"data        {about}", flush=True)
    else:
        output = arguments.output or output_of(recipe_name(given, arguments.name))
        file = output.with_name(f"{output.name}.yaml")
        about = write_recipe(given, file, **choices, force=arguments.force)
        recipe = read_recipe(file)
        print(f"data        {about}\nrecipe      {file}, with the reason for each choice", flush=True)
    return recipe


def _print_error(error: Exception, code: ExitCode) -> ExitCode:
    for line in str(error).splitlines():
        print(f"loradrop: {printable(line)}", file=sys.stderr)
    return code


def fine_tune(plan: Plan, output: Path) -> Evaluation | None:
    """Trains, evaluates and packs. Of several processes the first evaluates and packs; the others return None."""
    recipe = plan.recipe
    with one_thread() if _is_small(plan.base.config) else nullcontext():
        torch.manual_seed(recipe.optimisation.seed)  # the adapter's first weights
        model = get_peft_model(load_weights(plan.base, plan.dtype, four_bit=recipe.base.four_bit), plan.lora)
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
            if not is_out_of_memory(error):
                raise
            advice = fit(plan.fullest_step, memory_available(device()), ran_out=True).advice
            # A checkpoint is of the settings that it was made with.
            raise loop.TrainingError(f"Out of memory. {advice} Then train again, with --force.") from error
        rank, count = loop.processes()
        if count > 1:
            distributed.destroy_process_group()
        if rank > 0:
            return None
        as_served(model, plan.dtype)
        evaluation = evaluate_adapter(plan, model)
    write_output(plan, output, model, entries, evaluation)
    return evaluation


def as_served(model: Any, dtype: torch.dtype) -> None:
    """The adapter in the base's dtype, as it is saved and as the server computes it: what is evaluated is what is served."""
    model.eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def evaluate_adapter(plan: Plan, model: Any) -> Evaluation:
    """The adapter beside its base; where memory does not suffice, with fewer questions at once.

    Raises TrainingError where not even few fit: the trained weights are in the checkpoint.
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
                chats=plan.held_out,
            )
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_tokens < LEAST_BATCH_TOKENS:
                raise loop.TrainingError(
                    "Out of memory while evaluating the adapter, which is trained: --resume evaluates it where more memory is free."
                ) from error
        # Behind the handler, whose traceback holds the tensors.
        batch_tokens //= 2
        print(f"out of memory; asking with {batch_tokens:,} tokens at once", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_small(config: Any) -> bool:
    return device().type == "cpu" and config.hidden_size < LEAST_WIDTH_FOR_THREADS


if __name__ == "__main__":
    sys.exit(main())
