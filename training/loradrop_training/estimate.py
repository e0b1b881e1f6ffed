"""How much memory and time training will take, estimated before a weight is loaded.

The memory is not a formula. One step - forward, the answers' loss, backward - is run on PyTorch's meta device, where
tensors have shapes and no data, and every storage is counted from its allocation to its release. So what an architecture,
peft's casts and gradient checkpointing save, copy or recompute is counted as it is. A model of 8B takes two seconds.
"""

import copy
import dataclasses
import math
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig

from loradrop.policy import MIB

# transformers and peft use what transformers is about to rename.
warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing(_enable)?` is deprecated")

GB = 1e9
# Gradient and AdamW's two moments, each as large as the weight: float32, in which peft keeps the adapter while it trains.
COPIES_OF_ADAPTER = 4
# bitsandbytes' nf4: half a byte, and a float32 scale for each 64 weights. Double quantization takes 0.52.
FOUR_BIT_BYTES = 0.5 + 4 / 64
# What is taken beside tensors: (bytes whatever the model, share of what a step makes). The CPU's were measured
# (docs/benchmarks.md). CUDA's were not: cuBLAS's workspaces, and what the caching allocator cannot use again. The CUDA
# context is not in it, since memory_available does not count that as available either.
OVERHEADS = {"cpu": (40 * MIB, 0.02), "cuda": (256 * MIB, 0.08)}
# The share of a bare matrix product's speed that a step reaches. The CPU's was measured, CUDA's was not.
UTILISATION = {"cpu": 0.6, "cuda": 0.4}
LEAST_RANK = 8
# How many times the estimate a training on a CPU held at most, where malloc does as it pleases: measured 2.3.
KEPT_BY_MALLOC = 2.5
# Whoever ran out of memory although the estimate fitted had a step that takes more: it is planned for this much of it.
SHARE_AFTER_OUT_OF_MEMORY = 0.8


@dataclass(frozen=True, slots=True)
class Step:
    """A training step in all that decides its memory: the fullest of the run.

    `examples` of `longest` tokens, padding included; of them `answer_tokens`, of all examples together, are trained on.
    `attention` as transformers calls it: "sdpa", "flash_attention_2", "eager".
    """

    config: PretrainedConfig
    lora: LoraConfig
    dtype: torch.dtype  # of the base's weights
    examples: int
    longest: int
    answer_tokens: int
    four_bit: bool = False
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    device_type: str = "cpu"  # "cuda"

    @property
    def batch_tokens(self) -> int:
        return self.examples * self.longest

    def of(self, examples: int) -> "Step":
        """The same with another number of such examples."""
        answer_tokens = math.ceil(self.answer_tokens * examples / self.examples)
        return dataclasses.replace(self, examples=examples, answer_tokens=answer_tokens)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What is held on the device at the fullest moment of a step, in bytes. The parts add up to `total_bytes`."""

    base_bytes: int
    adapter_bytes: int  # weights, gradients, the optimizer's moments
    activation_bytes: int  # of what the forward through the body made
    logit_bytes: int  # of what the head and the loss made
    backward_bytes: int  # of what the backward made: gradients on their way, activations computed again
    overhead_bytes: int  # what kernels and allocator take beside tensors; a 4-bit layer as it is dequantised
    base_parameters: int
    adapter_parameters: int
    step_flops: int

    @property
    def total_bytes(self) -> int:
        return (
            self.base_bytes
            + self.adapter_bytes
            + self.activation_bytes
            + self.logit_bytes
            + self.backward_bytes
            + self.overhead_bytes
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """`advice` is a sentence where it does not fit: which settings make it fit."""

    estimate: MemoryEstimate
    available_bytes: int
    advice: str | None

    @property
    def fits(self) -> bool:
        return self.advice is None

    @property
    def is_tight(self) -> bool:
        """On a CPU: whether it fits only with return_freed_memory."""
        return self.available_bytes < KEPT_BY_MALLOC * self.estimate.total_bytes


def estimate_memory(step: Step) -> MemoryEstimate:
    """Raises peft's ValueError where the LoRA fits no module of the base."""
    model = model_without_data(step.config, step.lora, step.dtype, step.attention)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    adapter_bytes = COPIES_OF_ADAPTER * sum(map(bytes_of, trainable))
    base_bytes = sum(map(bytes_of, [*frozen, *model.buffers()]))
    dequantised_bytes = 0
    if step.four_bit:
        linear = _four_bit_weights(model.get_base_model())
        base_bytes += sum(int(FOUR_BIT_BYTES * weight.numel()) - bytes_of(weight) for weight in linear)
        dequantised_bytes = max(map(bytes_of, linear))
    ledger = _run_step(model, step)
    fixed_bytes, share = OVERHEADS.get(step.device_type, OVERHEADS["cuda"])
    return MemoryEstimate(
        base_bytes=base_bytes,
        adapter_bytes=adapter_bytes,
        activation_bytes=ledger.at_peak["forward"],
        logit_bytes=ledger.at_peak["head"],
        backward_bytes=ledger.at_peak["backward"],
        overhead_bytes=fixed_bytes + int(share * sum(ledger.at_peak.values())) + dequantised_bytes,
        base_parameters=sum(parameter.numel() for parameter in frozen),
        adapter_parameters=sum(parameter.numel() for parameter in trainable),
        step_flops=ledger.flops,
    )


def fit(step: Step, available_bytes: int, *, ran_out: bool = False) -> Fit:
    """Whether the step fits, and else what would: the first that does of fewer tokens, checkpointing, 4-bit, rank.

    `ran_out`: it did not, whatever the estimate says; the same advice for an out-of-memory error.
    """
    estimate = estimate_memory(step)
    if ran_out:
        available_bytes = min(available_bytes, int(SHARE_AFTER_OUT_OF_MEMORY * estimate.total_bytes))
    elif estimate.total_bytes <= available_bytes:
        return Fit(estimate, available_bytes, None)
    found = f"A step takes {estimate.total_bytes / GB:.1f} GB; {available_bytes / GB:.1f} GB are available."
    if ran_out:
        found = f"A step takes more memory than there is; {available_bytes / GB:.1f} GB are safe to plan with."
    for changed in _smaller(step):
        least_bytes = estimate_memory(changed.of(1)).total_bytes
        if least_bytes <= available_bytes:
            most_bytes = estimate.total_bytes if changed is step else estimate_memory(changed).total_bytes
            examples = _examples_that_fit(step.examples, least_bytes, most_bytes, available_bytes)
            return Fit(estimate, available_bytes, f"{found} {_settings(step, changed.of(examples))}")
    return Fit(
        estimate,
        available_bytes,
        f"{found} {_settings(step, changed.of(1))} Even then it takes {least_bytes / GB:.1f} GB: it needs a device "
        f"with {math.ceil(least_bytes / GB)} GB.",
    )


def _smaller(step: Step) -> Iterator[Step]:
    """The step, and with ever more given up, in the order in which people would."""
    yield step
    if not step.gradient_checkpointing:
        step = dataclasses.replace(step, gradient_checkpointing=True)
        yield step
    if not step.four_bit and step.device_type == "cuda":
        step = dataclasses.replace(step, four_bit=True)
        yield step
    while step.lora.r > LEAST_RANK:
        lora = copy.deepcopy(step.lora)
        lora.r = max(LEAST_RANK, lora.r // 2)
        step = dataclasses.replace(step, lora=lora)
        yield step


def _examples_that_fit(examples: int, least_bytes: int, most_bytes: int, available_bytes: int) -> int:
    """How many do, where one takes `least_bytes`, which fit, and all take `most_bytes`.

    Memory grows with the examples as the greatest of some straight lines does (one for each moment), so a chord lies
    above it: what fits by the chord fits.
    """
    if most_bytes <= available_bytes:
        return examples
    return 1 + int((available_bytes - least_bytes) / (most_bytes - least_bytes) * (examples - 1))


def _settings(step: Step, changed: Step) -> str:
    """What to write in the recipe to get from one to the other."""
    changes = []
    if changed.batch_tokens < step.batch_tokens:
        changes.append(f"lower optimisation.batch_tokens from {step.batch_tokens} to {changed.batch_tokens}")
    if changed.gradient_checkpointing and not step.gradient_checkpointing:
        changes.append("set optimisation.gradient_checkpointing to true")
    if changed.four_bit and not step.four_bit:
        changes.append("set base.four_bit to true")
    if changed.lora.r < step.lora.r:
        changes.append(f"lower lora.rank from {step.lora.r} to {changed.lora.r}")
    if not changes:
        return "No setting of the recipe makes it smaller."
    *others, last = changes
    sentence = f"{', '.join(others)} and {last}" if others else last
    return f"{sentence[0].upper()}{sentence[1:]}."


def estimate_seconds(
    estimate: MemoryEstimate, step: Step, *, total_tokens: int, device_flops_per_second: float
) -> float:
    """Of all forwards and backwards together, `total_tokens` with padding; not of loading, evaluation and saving.

    Work is taken to grow with the tokens. That of a small model on a fast device is bound by the launching of its
    kernels instead, and takes longer than this.
    """
    utilisation = UTILISATION.get(step.device_type, UTILISATION["cuda"])
    return estimate.step_flops * total_tokens / step.batch_tokens / (device_flops_per_second * utilisation)


def bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _four_bit_weights(base: Any) -> list[torch.Tensor]:
    """The weights that transformers quantizes: of every linear layer but the head."""
    head = set(base.get_output_embeddings().modules())
    return [
        module.weight
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and module not in head and ".lora_" not in name
    ]


def model_without_data(config: PretrainedConfig, lora: LoraConfig, dtype: torch.dtype, attention: str) -> Any:
    """The base with the adapter on it, on the meta device, ready to train."""
    config, lora = copy.deepcopy(config), copy.deepcopy(lora)  # transformers and peft write into them
    lora.init_lora_weights = False  # PiSSA and its like compute with the base's values
    implementation = "eager" if attention == "eager" else _FUSED
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=implementation)
        model = get_peft_model(base, lora)
    return model.train()


_FUSED = "loradrop_estimate"


def _fused_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by a kernel that keeps no (tokens, tokens). On meta tensors torch would take the path that does.

    Flash attention on CUDA saves the same as the CPU's: query, key, value, output, and a float32 per head and token.
    """
    output, _sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, True, scale=scaling
    )  # (examples, heads, tokens, head_dim)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_FUSED, _fused_attention)


def _run_step(model: Any, step: Step) -> "_Ledger":
    base = model.get_base_model()
    if step.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        if parameter.requires_grad:  # there already, as when gradients are accumulated
            parameter.grad = torch.empty_like(parameter)
    ledger = _Ledger(model)
    with torch.device("meta"), ledger:
        input_ids = torch.zeros((step.examples, step.longest), dtype=torch.long)
        hidden = base.model(input_ids, use_cache=False).last_hidden_state  # (examples, longest, hidden_size)
        ledger.phase = "head"
        trained_on = hidden.view(-1, hidden.shape[-1])[torch.zeros(step.answer_tokens, dtype=torch.long)]
        loss = F.cross_entropy(base.lm_head(trained_on), torch.zeros(step.answer_tokens, dtype=torch.long))
        ledger.phase = "backward"
        loss.backward()  # type: ignore[no-untyped-call]
    return ledger


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every storage that is made while it is on, until nobody holds it; and the matrix products' work.

    `at_peak` has the bytes held at the fullest moment, by the phase in which they were made.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        given = [*model.parameters(), *model.buffers()]
        given += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._given = {tensor.untyped_storage()._cdata for tensor in given}
        self._held: dict[int, tuple[str, int, Any]] = {}
        self._now = {"forward": 0, "head": 0, "backward": 0}
        self.phase = "forward"
        self.at_peak = dict(self._now)
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0  # transformers asks whether examples are packed: they are not
        out = func(*args, **(kwargs or {}))
        self.flops += _flops(func, args, kwargs or {}, out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._given or key in self._held:
            return
        self._held[key] = self.phase, storage.nbytes(), weakref.ref(storage, lambda _: self._release(key))
        self._now[self.phase] += storage.nbytes()
        if sum(self._now.values()) > sum(self.at_peak.values()):
            self.at_peak = dict(self._now)

    def _release(self, key: int) -> None:
        phase, size, _ = self._held.pop(key)
        self._now[phase] -= size


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Floating point operations of matrix products and attention: the rest is bound by memory."""
    aten = torch.ops.aten
    attention = {  # matrix products of (tokens, tokens), of which a causal kernel computes half
        aten._scaled_dot_product_flash_attention_for_cpu.default: (0, 2),
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (1, 5),
    }
    if func in attention:
        place, products = attention[func]
        examples, heads, tokens, head_dim = args[place].shape
        return int(products * examples * heads * tokens * tokens * head_dim)
    count = flop_registry.get(func.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))
