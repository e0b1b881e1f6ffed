"""The dry run: what a training will take, and what the validator will say of its result, before any weight is loaded."""

from loradrop.rendering import plain

from .device import device, device_name, dtype_name, flops_per_second, memory_available, return_freed_memory
from .estimate import estimate_seconds, fit
from .plan import Plan
from .recipe import RecipeError
from .untrained import validate_untrained


class RefusedError(Exception):
    """What must not be trained; the message says why."""


def dry_run(plan: Plan) -> None:
    """Prints what the training will take and what the validator says of the adapter that it would make.

    Raises RefusedError where the validator would reject the adapter or the training cannot fit, RecipeError where the
    base lacks a module.
    """
    recipe = plan.recipe
    tokens = [len(one.ids) for one in plan.train]
    print(
        f"data        {len(plan.train):,} examples to train on, {sum(tokens):,} tokens, {min(tokens)} to {max(tokens)} each; "
        f"{len(plan.questions):,} held out",
        flush=True,
    )
    try:
        fits = fit(plan.fullest_step, memory_available(device()))
    except ValueError as error:  # peft's own words, for modules that the base does not have and the like
        raise RecipeError(f"lora: {error}") from error
    estimate = fits.estimate
    print(f"base        {recipe.base.model}, {estimate.base_parameters:,} parameters in {dtype_name(plan.dtype)}")
    print(
        f"adapter     {estimate.adapter_parameters:,} parameters, rank {recipe.lora.rank} on {', '.join(recipe.lora.modules)}"
    )
    print(
        f"memory      about {estimate.total_bytes / 1e9:.2f} GB at the peak, {fits.available_bytes / 1e9:.1f} GB available",
        flush=True,
    )
    speed = flops_per_second(device(), plan.dtype)
    seconds = estimate_seconds(
        estimate, plan.fullest_step, total_tokens=plan.padded_tokens, device_flops_per_second=speed
    )
    print(f"training    {plan.steps:,} steps on {device_name()}, about {duration(seconds)}", flush=True)
    _validate(plan)
    if fits.advice is not None:
        raise RefusedError(fits.advice)
    if fits.is_tight and device().type == "cpu":
        return_freed_memory()  # costs half as much time again


def _validate(plan: Plan) -> None:
    report = validate_untrained(plan.base.config, plan.lora, plan.profile, plan.base_name, plan.dtype)
    if not report.accepted:
        raise RefusedError(
            f"The validator would reject this adapter, so it is not trained.\n{plain(report.problems, report.warnings)}"
        )
    assert report.manifest is not None
    modules = report.manifest.modules
    if missing := [one for one in plan.recipe.lora.modules if one.rpartition(".")[2] not in modules]:
        raise RecipeError(
            f"lora.modules: the base has no {', '.join(missing)}; it has {', '.join(plan.profile.lora_modules)}."
        )
    print(f"validator   accepts such an adapter for {plan.profile.name}")
    for line in plain((), report.warnings).splitlines():
        print(f"            {line}")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
