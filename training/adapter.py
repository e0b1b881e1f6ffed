"""A LoRA adapter from its first step to its tarball: fine-tuned on prompts and answers, saved as peft saves, packed flat."""

import gzip
import io
import json
import random
import tarfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from .examples import Example, answer_loss, batches, tokenize

# peft sets what transformers is about to rename; nobody here can mend it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

CONFIG_FILE, WEIGHTS_FILE, SMOKE_FILE = "adapter_config.json", "adapter_model.safetensors", "smoke.jsonl"
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Recipe:
    rank: int
    alpha: int
    dropout: float
    epochs: int
    learning_rate: float
    warmup_steps: int
    batch_tokens: int
    seed: int


def load_base(folder: Path) -> tuple[Any, Any]:
    """The model, in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def fine_tune(base: Any, tokenizer: Any, examples: Sequence[Example], recipe: Recipe) -> Any:
    """The base with an adapter that has learnt the examples' answers. The same seed on the same machine makes the same."""
    torch.manual_seed(recipe.seed)
    dice = random.Random(recipe.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(LINEAR_MODULES),
    )
    model = get_peft_model(base, config)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=recipe.learning_rate, weight_decay=0.0)
    tokenized = tokenize(tokenizer, examples)
    epochs = [
        list(batches(tokenized, max_tokens=recipe.batch_tokens, pad_id=tokenizer.pad_token_id, dice=dice))
        for _ in range(recipe.epochs)
    ]
    steps = sum(map(len, epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / recipe.warmup_steps, 1 - step / steps)
    )
    model.train()
    started = time.perf_counter()
    for number, epoch in enumerate(epochs, start=1):
        losses = []
        for batch in epoch:
            loss = answer_loss(model.get_base_model(), batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        seconds = time.perf_counter() - started
        print(
            f"  epoch {number:>2}/{recipe.epochs}  loss {sum(losses) / len(losses):.3f} nats per answer token"
            f"  {seconds:4.0f} s elapsed, {seconds / number * (recipe.epochs - number):3.0f} s left",
            flush=True,
        )
    model.eval()
    return model


def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
    """What the model says to each prompt, special tokens left out."""
    ids = tokenizer(list(prompts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    with torch.inference_mode():
        rows = model.generate(**ids, max_new_tokens=max_new_tokens, do_sample=False)  # (prompts, longest + new)
    answers: list[str] = tokenizer.batch_decode(rows[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def save(model: Any, folder: Path, *, base_name: str) -> None:
    """The two files that an adapter is. They say the base's name, and nothing of the machine that trained it."""
    model.peft_config["default"].base_model_name_or_path = base_name
    # "auto" would look for the base's vocabulary on the hub.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty form
    config_file = folder / CONFIG_FILE
    config = json.loads(config_file.read_text())
    config["target_modules"] = sorted(
        config["target_modules"]
    )  # peft keeps a set, whose order is another in each process
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def pack(folder: Path, tarball: Path) -> None:
    """The adapter's files, flat; the same files make the same bytes, whoever packs them and when."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in (CONFIG_FILE, WEIGHTS_FILE, SMOKE_FILE):
            file = folder / name
            if not file.exists() and name == SMOKE_FILE:
                continue
            member = tarfile.TarInfo(name)
            member.size, member.mode = file.stat().st_size, 0o644
            with file.open("rb") as content:
                archive.addfile(member, content)
    tarball.write_bytes(gzip.compress(plain.getvalue(), mtime=0))
