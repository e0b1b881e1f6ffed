"""`loradrop plan`: how many adapters fit where, what a request waits for on average, and what it costs.

The engine keeps adapters in three places: slots on the GPU (MaxLoras), host memory (MaxCpuLoras), and the disk, the least
recently used one out first. A slot has the size of MaxLoraRank, whatever rank is in it.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass

from loradrop.profile import EMBEDDING_MODULE, HEAD_MODULE, BaseProfile, load_profile

from .exit_codes import ExitCode
from .terminal import CommandError, print_message

GIB = 2**30
BYTES_PER_WEIGHT = 2  # bf16
HOURS_PER_MONTH = 730
# What vLLM takes of the GPU's memory unless it is told otherwise; what its kernels and graphs need of that is a guess.
GPU_SHARE = 0.9
GPU_OVERHEAD_BYTES = 2 * GIB
# vLLM, container and operating system.
HOST_OVERHEAD_BYTES = 10 * GIB
DISK_OVERHEAD_BYTES = 60 * 10**9
# https://aws.amazon.com/blogs/machine-learning/ on LoRA adapter inference components: Llama-3.1-8B on ml.g5.2xlarge.
RESIDENT_OVERHEAD = 0.02
HOST_MILLISECONDS, DISK_MILLISECONDS = 12, 64
# Of EC2's pages: GPU memory of one GPU, host memory, and NVMe disk. All have one GPU.
INSTANCES = {
    "ml.g5.2xlarge": (24, 32, 450),
    "ml.g6.2xlarge": (24, 32, 450),
    "ml.g6e.xlarge": (48, 32, 250),
    "ml.g6e.2xlarge": (48, 64, 450),
    "ml.g6e.4xlarge": (48, 128, 600),
}
DEFAULT_INSTANCE = "ml.g6e.xlarge"
# As third parties name it for us-east-1, 2026-11: AWS's own price list could not be read here.
DEFAULT_HOURLY_PRICE = 1.861
_WHOLE_MODEL = (EMBEDDING_MODULE, HEAD_MODULE)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is planned for. `skew` is Zipf's exponent: 0 asks every adapter as often, 1 is what usage is often like."""

    adapters: int
    rank: int
    max_rank: int
    gpu_slots: int
    host_slots: int
    model_length: int
    skew: float
    instance: str
    hourly_price: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes, shares of requests, milliseconds that a request waits beyond a base's on average, and dollars a month."""

    adapter_bytes: int
    gpu_slot_bytes: int
    base_bytes: int
    cache_tokens: int
    host_bytes: int
    host_limit_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    gpu_share: float
    host_share: float
    disk_share: float
    added_milliseconds: float
    monthly_price: float
    monthly_price_each: float
    problems: tuple[str, ...]


def capacity(profile: BaseProfile, settings: Settings) -> Capacity:
    gpu, host, disk = INSTANCES[settings.instance]
    adapter_bytes = _lora_bytes(profile, _projections(profile), settings.rank)
    slot_bytes = _lora_bytes(profile, profile.lora_modules, settings.max_rank)
    base_bytes = _base_parameters(profile) * BYTES_PER_WEIGHT
    cached_token_bytes = (
        2 * profile.num_hidden_layers * profile.num_key_value_heads * profile.head_dim * BYTES_PER_WEIGHT
    )
    left = gpu * 10**9 * GPU_SHARE - GPU_OVERHEAD_BYTES - base_bytes - slot_bytes * settings.gpu_slots
    cache_tokens = max(0, int(left // cached_token_bytes))
    host_bytes = settings.host_slots * adapter_bytes + HOST_OVERHEAD_BYTES
    disk_bytes = settings.adapters * adapter_bytes + base_bytes + DISK_OVERHEAD_BYTES
    on_gpu = hits(settings.adapters, settings.skew, settings.gpu_slots)
    on_host = hits(settings.adapters, settings.skew, settings.host_slots)
    gpu_share, host_share, disk_share = on_gpu, max(0.0, on_host - on_gpu), max(0.0, 1 - max(on_host, on_gpu))
    monthly = settings.hourly_price * HOURS_PER_MONTH
    problems = []
    if settings.host_slots < settings.gpu_slots:
        problems.append(
            f"MaxCpuLoras ({settings.host_slots}) is below MaxLoras ({settings.gpu_slots}): the engine refuses to start."
        )
    if settings.rank > settings.max_rank:
        problems.append(
            f"Adapters of rank {settings.rank} do not fit MaxLoraRank {settings.max_rank}: the validator rejects them."
        )
    if cache_tokens < settings.model_length:
        problems.append(
            f"The GPU has room for {cache_tokens:,} tokens of context, and one request may have {settings.model_length:,}: lower "
            "MaxLoras, MaxLoraRank or MaxModelLength, or take a GPU with more memory."
        )
    if host_bytes > host * GIB:
        problems.append(
            f"Host memory has {host} GiB, and {settings.host_slots} adapters take about {host_bytes / GIB:.0f} GiB with what "
            "else is there: lower MaxCpuLoras, or take an instance with more memory."
        )
    if disk_bytes > disk * 10**9:
        problems.append(
            f"The disk has {disk} GB, and {settings.adapters} adapters take about {disk_bytes / 1e9:,.0f} GB with what else is there."
        )
    return Capacity(
        adapter_bytes,
        slot_bytes,
        base_bytes,
        cache_tokens,
        host_bytes,
        host * GIB,
        disk_bytes,
        disk * 10**9,
        gpu_share,
        host_share,
        disk_share,
        host_share * HOST_MILLISECONDS + disk_share * DISK_MILLISECONDS,
        monthly,
        monthly / settings.adapters,
        tuple(problems),
    )


def _projections(profile: BaseProfile) -> tuple[str, ...]:
    return tuple(module for module in profile.lora_modules if module not in _WHOLE_MODEL)


def _lora_bytes(profile: BaseProfile, modules: tuple[str, ...], rank: int) -> int:
    """Of one adapter of this rank on these modules."""
    rows = sum(
        sum(profile.dimensions(module)) * (1 if module in _WHOLE_MODEL else profile.num_hidden_layers)
        for module in modules
    )
    return rows * rank * BYTES_PER_WEIGHT


def _base_parameters(profile: BaseProfile) -> int:
    """Of a dense decoder whose output head has weights of its own; norms are too small to count."""
    layer = sum(math.prod(profile.dimensions(module)) for module in _projections(profile))
    return layer * profile.num_hidden_layers + 2 * profile.vocab_size * profile.hidden_size


def hits(adapters: int, skew: float, slots: int) -> float:
    """The share of requests whose adapter is among the `slots` most recently used ones.

    Che's approximation: each adapter stays for the same time T after its last request, where T is such that `slots` of
    them are there on average. Requests are independent; adapter k is asked for in proportion to 1 / k^skew.
    """
    if slots >= adapters:
        return 1.0
    weights: list[float] = [1 / k**skew for k in range(1, adapters + 1)]
    total = sum(weights)
    rates = [weight / total for weight in weights]
    low, high = 0.0, 1.0
    while sum(1 - math.exp(-rate * high) for rate in rates) < slots:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if sum(1 - math.exp(-rate * middle) for rate in rates) < slots:
            low = middle
        else:
            high = middle
    return math.fsum(rate * (1 - math.exp(-rate * high)) for rate in rates)


def plan(arguments: argparse.Namespace) -> int:
    profile = load_profile(arguments.base)
    settings = Settings(
        arguments.adapters,
        arguments.rank,
        arguments.max_rank or profile.max_lora_rank,
        arguments.max_loras,
        arguments.max_cpu_loras,
        arguments.max_model_length,
        arguments.skew,
        arguments.instance,
        arguments.hourly_price,
    )
    if settings.instance != DEFAULT_INSTANCE and settings.hourly_price == DEFAULT_HOURLY_PRICE:
        raise CommandError(f"What does {settings.instance} cost an hour in your region? Add --hourly-price.")
    found = capacity(profile, settings)
    if arguments.json:
        print(json.dumps({"base": profile.name} | asdict(settings) | asdict(found), indent=2))
    else:
        print_message("\n".join(_lines(profile, settings, found)))
    return ExitCode.REJECTED if found.problems else ExitCode.DONE


def _lines(profile: BaseProfile, settings: Settings, found: Capacity) -> list[str]:
    price = f"${settings.hourly_price:.3f} an hour"
    alone = settings.adapters * found.monthly_price
    rows = [
        ("one adapter", f"{found.adapter_bytes / 1e6:,.0f} MB at rank {settings.rank}, all projections, bf16"),
        (
            "GPU",
            f"base {found.base_bytes / 1e9:.1f} GB, {settings.gpu_slots} slots of {found.gpu_slot_bytes / 1e6:,.0f} MB",
        ),
        ("", f"at rank {settings.max_rank}, and context for {found.cache_tokens:,} tokens"),
        (
            "host memory",
            f"{settings.host_slots} adapters, {found.host_bytes / GIB:.0f} of {found.host_limit_bytes / GIB:.0f} GiB",
        ),
        (
            "disk",
            f"{settings.adapters} adapters, {found.disk_bytes / 1e9:,.0f} of {found.disk_limit_bytes / 1e9:,.0f} GB",
        ),
    ]
    shares = [
        ("from the GPU", f"{found.gpu_share:6.1%}  about {RESIDENT_OVERHEAD:.0%} slower than the base"),
        ("from the host", f"{found.host_share:6.1%}  {HOST_MILLISECONDS} ms more"),
        ("from the disk", f"{found.disk_share:6.1%}  {DISK_MILLISECONDS} ms more"),
    ]
    return [
        f"{settings.adapters} adapters of {profile.name} on one {settings.instance}",
        *(f"  {name:<14}{text}" for name, text in rows),
        "",
        f"Requests, if adapter k is asked for in proportion to 1 / k^{settings.skew:g}:",
        *(f"  {name:<14}{text}" for name, text in shares),
        f"  on average    {found.added_milliseconds:.1f} ms more",
        "",
        f"Cost, at {price}: ${found.monthly_price:,.0f} a month, ${found.monthly_price_each:,.2f} for each adapter. An endpoint "
        f"for each would be ${alone:,.0f}.",
        *(["", *(f"Does not fit: {one}" for one in found.problems)] if found.problems else []),
    ]
