"""Which trainer left a folder that has no weights in PEFT's form, by its files; and how that trainer saves them so."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from loradrop.problems import Fix, FixKind


@dataclass(frozen=True, slots=True)
class Trainer:
    """`files`: what the names of its own files are like, in any folder. `advice` goes on from "FILE is"."""

    files: re.Pattern[str]
    advice: str
    fix: Fix | None = None


_TRAINERS = (
    Trainer(
        re.compile(r"adapters\.safetensors"),
        "mlx-lm's, which keeps its matrices transposed and its scale under another name.",
        Fix(FixKind.MEND),
    ),
    Trainer(
        re.compile(r"lora\.safetensors"),
        "mistral-finetune's, which keeps the rows of q and k in another order than the weights on Hugging Face have, and has no "
        "switch for PEFT's form: train on those weights with PEFT.",
    ),
    Trainer(
        re.compile(r"adapter_model\.pt|adapter_[0-9]+\.pt"),
        "torchtune's own: train with `checkpointer._component_: torchtune.training.FullModelHFCheckpointer` and "
        "`checkpointer.safe_serialization: True`.",
    ),
    Trainer(
        re.compile(r"zero_to_fp32\.py|.*_(model|optim)_states\.pt"),
        "DeepSpeed's: set `stage3_gather_16bit_weights_on_model_save`, or put the checkpoint together with "
        "`python zero_to_fp32.py . merged --safe_serialization --exclude_frozen_parameters`.",
    ),
    Trainer(
        re.compile(r"run_config\.yaml|latest_train_state\.pt|common\.pt"),
        "Megatron's (NeMo): write PEFT's form with `AutoBridge.export_adapter_ckpt` of Megatron-Bridge.",
    ),
    Trainer(
        re.compile(r".*\.distcp|pytorch_model_fsdp.*\.bin"),
        "a part of a checkpoint in shards, as FSDP saves it: set `fsdp_state_dict_type: FULL_STATE_DICT` (FSDP2: "
        "`state_dict_type`) in accelerate, axolotl, LLaMA-Factory or trl, and save again.",
    ),
)


def trainer_of(paths: Iterable[str]) -> tuple[str, Trainer] | None:
    """The file that tells, and whose it is."""
    names = [path.rpartition("/")[2] for path in paths]
    for trainer in _TRAINERS:
        for name in names:
            if trainer.files.fullmatch(name):
                return name, trainer
    return None
