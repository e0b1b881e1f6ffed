"""The serving engine of the local cloud: one Llama in memory, LoRA adapters beside it, all of it real.

The base is loaded once, with transformers; every adapter is injected into it with peft from the bytes of its tarball
and can be taken out again. Whatever adapters come and go, the base answers bit for bit as if it were alone: an adapter
that is not asked for is never computed.

It stands where vLLM stands in the container, so it is as strict as vLLM: a flat tarball, safetensors and no pickle,
plain LoRA on linear modules.
"""

import gzip
import io
import json
import re
import tarfile
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch
from peft import LoraConfig
from peft.functional import delete_adapter, inject_adapter_in_model, set_adapter, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from . import AdapterLoadError, EngineState, Generation, Run, Token, UnknownAdapterError, check_rank

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30
# More than the files may hold together: a bomb ends here, before it fills the memory.
MAX_UNPACKED_BYTES = MAX_WEIGHTS_BYTES + (64 << 20)
MAX_MEMBERS = 1000

PREFIX = "base_model.model."
# The prefix is peft's own; vLLM serves names without it as well.
LORA_TENSOR = re.compile(r"(base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# What vLLM refuses as well. Each would make peft do something else than add two matrices to a linear module.
REFUSED_FEATURES = ("modules_to_save", "use_dora", "layer_replication", "trainable_token_indices", "target_parameters")

# Several adapters in one model is the purpose here, and the server's output is no place for progress bars.
warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
transformers_logging.disable_progress_bar()


class PromptTooLongError(ValueError):
    """A prompt that leaves no room for an answer in the model's context."""


class _Logits(Protocol):
    logits: torch.Tensor


class Engine:
    """Serves one base and any number of adapters. Thread-safe; generations take turns token by token."""

    state, last_words = EngineState.READY, ""

    def __init__(self, model_dir: Path) -> None:
        # mypy sees transformers' lazy modules as untyped: `Any` here, our own types from here on.
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
        self._model.eval().requires_grad_(False)
        self._linear_shapes = {
            name: (module.out_features, module.in_features)
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        self._context_tokens = int(self._model.config.max_position_embeddings)
        self._eos_ids = _eos_ids(self._model, self._tokenizer)
        self._slots: dict[str, str] = {}  # adapter name -> peft's name for it, which allows fewer characters
        self._slots_made = 0
        self._active_slot: str | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing of it is a process of its own."""

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._slots)

    def load_adapter(self, name: str, tarball: bytes | BinaryIO, *, max_rank: int | None = None) -> None:
        """Reads the tarball and puts the adapter beside the base. On AdapterLoadError nothing has changed."""
        config, tensors = _read_tarball(io.BytesIO(tarball) if isinstance(tarball, bytes) else tarball)
        rank, alpha, use_rslora = _rank_and_scale(config)
        check_rank(rank, max_rank)
        modules = self._checked_modules(rank, tensors)
        # The modules are those that the file has weights for, whatever the config lists: that is how vLLM reads it.
        lora_config = LoraConfig(
            r=rank, lora_alpha=cast(int, alpha), use_rslora=use_rslora, target_modules=modules, inference_mode=True
        )
        with self._lock:
            if name in self._slots:
                raise AdapterLoadError(f"an adapter named {name!r} is loaded already; unload it first")
            slot = f"slot_{self._slots_made}"
            self._slots_made += 1
            try:
                # Meta tensors first, then the file's own: nothing is initialised only to be thrown away.
                inject_adapter_in_model(lora_config, self._model, slot, low_cpu_mem_usage=True)
                set_peft_model_state_dict(self._model, _with_prefix(tensors), slot, low_cpu_mem_usage=True)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                self._remove(slot)
                raise AdapterLoadError(f"peft refused the adapter: {error}") from error
            self._model.requires_grad_(False)
            self._activate(None)
            self._slots[name] = slot

    def unload_adapter(self, name: str) -> None:
        with self._lock:
            if name not in self._slots:
                raise UnknownAdapterError(name)
            self._remove(self._slots.pop(name))

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt for these messages, ready for the assistant's turn."""
        return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def generate(
        self, prompt: str, *, adapter: str | None, max_new_tokens: int, temperature: float, stop: Sequence[str] = ()
    ) -> Generation:
        """The whole answer of the adapter, or of the base if `adapter` is None. Temperature 0 is greedy."""
        run = Run()
        tokens = tuple(self._tokens(run, prompt, adapter, max_new_tokens, temperature, stop))
        text = "".join(token.text for token in tokens)
        return Generation(text, tokens, run.finish_reason, run.prompt_tokens)

    def stream(
        self,
        prompt: str,
        *,
        adapter: str | None,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str] = (),
        run: Run | None = None,
    ) -> Iterator[Token]:
        """The same answer, token by token."""
        return self._tokens(run or Run(), prompt, adapter, max_new_tokens, temperature, stop)

    def _tokens(
        self, run: Run, prompt: str, adapter: str | None, max_new_tokens: int, temperature: float, stop: Sequence[str]
    ) -> Iterator[Token]:
        if adapter is not None and adapter not in self._slots:
            raise UnknownAdapterError(adapter)
        slot = None if adapter is None else self._slots[adapter]
        # A chat prompt brings its own first token; a second one would be a different prompt.
        starts_itself = bool(self._tokenizer.bos_token) and prompt.startswith(self._tokenizer.bos_token)
        prompt_ids: list[int] = self._tokenizer(prompt, add_special_tokens=not starts_itself)["input_ids"]
        run.prompt_tokens = len(prompt_ids)
        if len(prompt_ids) >= self._context_tokens:
            raise PromptTooLongError(
                f"the prompt has {len(prompt_ids)} tokens and the model's context holds {self._context_tokens}, "
                "which leaves no room for an answer"
            )
        decoder = DecodeStream(skip_special_tokens=True)
        unsent = _Unsent(stop)
        cache = DynamicCache(config=self._model.config)
        input_ids = torch.tensor([prompt_ids])  # (1, prompt_tokens), then (1, 1)
        budget = min(max_new_tokens, self._context_tokens - len(prompt_ids))
        for step in range(budget):
            logits = self._forward(adapter, slot, input_ids, cache)  # (vocab_size,)
            logprobs = torch.log_softmax(logits, dim=-1)
            if temperature == 0:
                chosen = int(logits.argmax())
            else:
                chosen = int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1))
            logprob = float(logprobs[chosen])
            if chosen in self._eos_ids:
                run.finish_reason = "eos_token"
                yield Token(chosen, unsent.rest(), logprob)
                return
            text = unsent.add(decoder.step(self._tokenizer.backend_tokenizer, chosen) or "")
            if unsent.stopped:
                run.finish_reason = "stop"
            elif step == budget - 1:
                text += unsent.rest()
            yield Token(chosen, text, logprob)
            if unsent.stopped:
                return
            input_ids = torch.tensor([[chosen]])

    def _forward(
        self, adapter: str | None, slot: str | None, input_ids: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits of the next token, (vocab_size,). Locks for one step: a slow reader of a stream holds up nobody."""
        with self._lock, torch.inference_mode():
            if adapter is not None and self._slots.get(adapter) != slot:  # taken out while it answered
                raise UnknownAdapterError(adapter)
            self._activate(slot)
            output = cast(_Logits, self._model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1))
            return output.logits[0, -1]

    def _activate(self, slot: str | None) -> None:
        if slot is not None and slot == self._active_slot:
            return
        for layer in self._tuner_layers():
            layer.enable_adapters(slot is not None)
        if slot is not None:
            set_adapter(self._model, slot, inference_mode=True)
        self._active_slot = slot

    def _remove(self, slot: str) -> None:
        peft_configs = getattr(self._model, "peft_config", {})
        if slot in peft_configs:
            delete_adapter(self._model, slot, prefix="lora_")
            del peft_configs[slot]
        self._activate(None)

    def _tuner_layers(self) -> Iterator[BaseTunerLayer]:
        return (module for module in self._model.modules() if isinstance(module, BaseTunerLayer))

    def _checked_modules(self, rank: int, tensors: dict[str, torch.Tensor]) -> list[str]:
        """The modules that the tensors adapt: each the base's own, with A (r, in_features) and B (out_features, r).

        No other tensor may come any further: one that bears a name of the base, peft writes over the base's weights.
        """
        modules: dict[str, set[str]] = {}
        for tensor_name, tensor in sorted(tensors.items()):  # of several faults always the same one is reported
            match = LORA_TENSOR.fullmatch(tensor_name)
            if match is None:
                raise AdapterLoadError(f"{WEIGHTS_FILE} holds the tensor {tensor_name!r}, which is no LoRA weight")
            module, side = match["module"], match["side"]
            if module not in self._linear_shapes:
                raise AdapterLoadError(f"{WEIGHTS_FILE} adapts the module {module!r}, which the base does not have")
            out_features, in_features = self._linear_shapes[module]
            expected = (rank, in_features) if side == "A" else (out_features, rank)
            if tuple(tensor.shape) != expected:
                raise AdapterLoadError(
                    f"the tensor {tensor_name!r} has the shape {tuple(tensor.shape)}; "
                    f"rank {rank} on this base needs {expected}"
                )
            modules.setdefault(module, set()).add(side)
        if not modules:
            raise AdapterLoadError(f"{WEIGHTS_FILE} holds no tensor")
        for module, sides in modules.items():
            if len(sides) == 1:
                missing = "B" if sides == {"A"} else "A"
                raise AdapterLoadError(f"{WEIGHTS_FILE} lacks lora_{missing} of the module {module!r}")
        return sorted(modules)


def _with_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name if name.startswith(PREFIX) else PREFIX + name: tensor for name, tensor in tensors.items()}


class _Unsent:
    """Holds back text that may be the beginning of a stop string, and cuts the text where a stop string begins."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """The text that is safe to send now."""
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def rest(self) -> str:
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are a beginning of the stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(eos_id for eos_id in (*ids, tokenizer.eos_token_id) if eos_id is not None)


def _rank_and_scale(config: dict[str, Any]) -> tuple[int, float, bool]:
    """The fields that the arithmetic needs and no others: some of peft's import modules by name or change the base."""
    if config.get("peft_type") != "LORA":
        raise AdapterLoadError(f"{CONFIG_FILE} has the peft_type {config.get('peft_type')!r}; only 'LORA' is served")
    for feature in REFUSED_FEATURES:
        if config.get(feature):
            raise AdapterLoadError(f"{CONFIG_FILE} sets {feature}, which the engine does not serve")
    if config.get("bias", "none") != "none":
        raise AdapterLoadError(f"{CONFIG_FILE} has the bias {config['bias']!r}; only 'none' is served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise AdapterLoadError(f"{CONFIG_FILE} has the rank r={rank!r}; it must be a whole number of at least 1")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise AdapterLoadError(f"{CONFIG_FILE} has lora_alpha={alpha!r}; it must be a number")
    return rank, float(alpha), bool(config.get("use_rslora"))


class _Capped(io.RawIOBase):
    """The unpacked bytes of a gzip stream, up to a limit."""

    def __init__(self, packed: BinaryIO) -> None:
        self._unpacked = gzip.GzipFile(fileobj=packed)
        self._left = MAX_UNPACKED_BYTES

    def read(self, size: int = -1) -> bytes:
        data = self._unpacked.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise AdapterLoadError(f"the tarball unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
        return data


def _read_tarball(packed: BinaryIO) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The two files that count, read by name into memory. Nothing is unpacked to a path: a name can do no harm."""
    limits = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: MAX_WEIGHTS_BYTES}
    files: dict[str, bytes] = {}
    names: list[str] = []
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Capped(packed)), mode="r|") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                names.append(name)
                if len(names) > MAX_MEMBERS:
                    raise AdapterLoadError(f"the tarball has more than {MAX_MEMBERS} members")
                if name not in limits or not member.isreg():
                    continue
                if member.size > limits[name]:
                    raise AdapterLoadError(f"{name} has {member.size:,} bytes; the limit is {limits[name]:,}")
                content = archive.extractfile(member)
                files[name] = content.read() if content else b""
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise AdapterLoadError(f"the tarball cannot be read: {error}") from error
    if CONFIG_FILE not in files:
        raise AdapterLoadError(f"{CONFIG_FILE} is missing at the root of the tarball")
    if WEIGHTS_FILE not in files:
        pickled = " (adapter_model.bin is a pickle, which is never loaded)" if "adapter_model.bin" in names else ""
        raise AdapterLoadError(f"{WEIGHTS_FILE} is missing at the root of the tarball{pickled}")
    try:
        config = json.loads(files[CONFIG_FILE])
    except (ValueError, RecursionError) as error:
        raise AdapterLoadError(f"{CONFIG_FILE} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterLoadError(f"{CONFIG_FILE} holds a {type(config).__name__}, not an object")
    try:
        tensors = load_safetensors(files[WEIGHTS_FILE])
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that torch does not know
        raise AdapterLoadError(f"{WEIGHTS_FILE} cannot be read: {error}") from error
    return config, {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
