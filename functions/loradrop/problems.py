"""Every reason for which an adapter is rejected or warned about: one enumeration, and what collects it.

`docs/problems.md` and `loradrop codes` are generated from this enumeration.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

MAX_EXAMPLES = 5
MAX_PROBLEMS_PER_CODE = 8
MAX_SHOWN_CHARACTERS = 100
MAX_MESSAGE_CHARACTERS = 700


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


class Consequence(StrEnum):
    """What would have happened, had the adapter been served all the same."""

    sentence: str

    def __new__(cls, code: str, sentence: str) -> "Consequence":
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    FAIL = ("fail", "The engine raises an error, and may take the base and its other adapters down with it.")
    SILENT = ("silent", "It loads, and answers wrongly or exactly like the base.")
    UNSAFE = ("unsafe", "It can run code, hide content, or exhaust the program that unpacks it.")
    POLICY = ("policy", "The engine would serve it. It is loradrop's own policy not to.")
    NEVER_READ = ("never_read", "It never reaches the engine.")
    NONE = ("none", "It is served, but may not do what was meant.")


class ProblemCode(StrEnum):
    """Each member: its code, severity, what the engine would have done, what it is, how to fix it."""

    severity: Severity
    consequence: Consequence
    meaning: str
    how_to_fix: str

    def __new__(
        cls, code: str, severity: Severity, consequence: Consequence, meaning: str, how_to_fix: str
    ) -> "ProblemCode":
        member = str.__new__(cls, code)
        member._value_ = code
        member.severity = severity
        member.consequence = consequence
        member.meaning = meaning
        member.how_to_fix = how_to_fix
        return member

    # The upload

    ADAPTER_NAME_INVALID = (
        "ADAPTER_NAME_INVALID",
        Severity.ERROR,
        Consequence.NEVER_READ,
        "The key between `adapters/` and `.tar.gz` is not a valid adapter name.",
        "Upload it under a valid name: the message says what is allowed.",
    )
    UPLOAD_TOO_LARGE = (
        "UPLOAD_TOO_LARGE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "The tarball is larger than any adapter of this base can be.",
        "Upload the adapter alone: `loradrop package` leaves everything else out.",
    )
    UPLOAD_VANISHED = (
        "UPLOAD_VANISHED",
        Severity.ERROR,
        Consequence.NEVER_READ,
        "The object version was deleted before it was read.",
        "Upload it again.",
    )
    UPLOAD_NOT_VERSIONED = (
        "UPLOAD_NOT_VERSIONED",
        Severity.ERROR,
        Consequence.NEVER_READ,
        "The upload has no version id: versioning is suspended on the upload bucket. loradrop reads one exact version, "
        "so that nothing can change between validation and serving.",
        "Enable versioning on the bucket, then upload the tarball again.",
    )
    UPLOAD_ARCHIVED = (
        "UPLOAD_ARCHIVED",
        Severity.ERROR,
        Consequence.NEVER_READ,
        "The upload is in an archive storage class (GLACIER or DEEP_ARCHIVE), which cannot be read at once.",
        "Upload the tarball again without `--storage-class`, or restore it and copy it.",
    )
    UPLOAD_UNREADABLE = (
        "UPLOAD_UNREADABLE",
        Severity.ERROR,
        Consequence.NEVER_READ,
        "S3 refuses to let the validator read the upload. It is usually encrypted with a KMS key that the validator may "
        "not use.",
        "Upload the tarball again without a KMS key of your own (`--sse AES256`), or let ValidateAdapter's role use the "
        "key.",
    )
    KEY_STARTS_NOTHING = (
        "KEY_STARTS_NOTHING",
        Severity.ERROR,
        Consequence.NEVER_READ,
        "The key is not `adapters/NAME.tar.gz`, so the upload deploys nothing. `.tgz`, `.TAR.GZ` and other prefixes do "
        "not count.",
        "Upload the tarball under the key `adapters/NAME.tar.gz`.",
    )
    UPLOAD_EMPTY = (
        "UPLOAD_EMPTY",
        Severity.ERROR,
        Consequence.FAIL,
        "The upload has no bytes.",
        "Check the size of the local file, and upload it again.",
    )

    # The gzip stream

    NOT_GZIP = (
        "NOT_GZIP",
        Severity.ERROR,
        Consequence.FAIL,
        "The upload is not gzip-compressed, whatever its name says. The message names what it is instead.",
        "Make it with `tar -czf` or `loradrop package`.",
    )
    GZIP_CORRUPT = (
        "GZIP_CORRUPT",
        Severity.ERROR,
        Consequence.FAIL,
        "The compressed data does not decode, or its checksum or length disagrees.",
        "The file was damaged: make it again, and transfer it in binary mode.",
    )
    GZIP_TRUNCATED = (
        "GZIP_TRUNCATED",
        Severity.ERROR,
        Consequence.FAIL,
        "The compressed data ends early.",
        "Upload the whole file; compare its size with the local one.",
    )
    GZIP_SEVERAL_MEMBERS = (
        "GZIP_SEVERAL_MEMBERS",
        Severity.ERROR,
        Consequence.UNSAFE,
        "Several gzip streams stand one after the other. Some readers see only the first of them, so that two readers "
        "see two archives.",
        "Compress again as one stream: `gunzip -c OLD.tar.gz | gzip > NEW.tar.gz`.",
    )
    GZIP_TRAILING_DATA = (
        "GZIP_TRAILING_DATA",
        Severity.ERROR,
        Consequence.UNSAFE,
        "Bytes that belong to no archive follow the compressed data.",
        "Make the archive again with `loradrop package`.",
    )
    COMPRESSION_RATIO_TOO_HIGH = (
        "COMPRESSION_RATIO_TOO_HIGH",
        Severity.ERROR,
        Consequence.UNSAFE,
        "The data unpacks to far more than trained weights do: a decompression bomb, or weights that are one constant.",
        "Upload a trained adapter; trained weights compress to a fifth at most.",
    )
    COMPRESSION_WASTEFUL = (
        "COMPRESSION_WASTEFUL",
        Severity.ERROR,
        Consequence.UNSAFE,
        "The compressed data is larger than what it unpacks to, or takes far longer to unpack than ordinary data: it is made "
        "of blocks that hold little or nothing.",
        "Make the archive again with `loradrop package`.",
    )
    UNPACKED_TOO_LARGE = (
        "UNPACKED_TOO_LARGE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "The archive unpacks to more bytes than any adapter needs.",
        "Upload the adapter alone: `loradrop package` leaves checkpoints and everything else out.",
    )

    # The tar archive

    NOT_TAR = (
        "NOT_TAR",
        Severity.ERROR,
        Consequence.FAIL,
        "The compressed data is not a tar archive. The message names what it is, if that can be recognised.",
        "Make it with `tar -czf` or `loradrop package`.",
    )
    TAR_CORRUPT = (
        "TAR_CORRUPT",
        Severity.ERROR,
        Consequence.UNSAFE,
        "A header of the tar archive is damaged. Some readers stop there in silence and miss what follows.",
        "Make the archive again with `tar -czf` or `loradrop package`.",
    )
    TAR_TRUNCATED = (
        "TAR_TRUNCATED",
        Severity.ERROR,
        Consequence.FAIL,
        "The tar archive ends inside a member, or without its end mark.",
        "Make the archive again: the program that wrote it did not finish.",
    )
    TAR_HIDDEN_DATA = (
        "TAR_HIDDEN_DATA",
        Severity.ERROR,
        Consequence.UNSAFE,
        "Data follows the archive's end mark: some readers see it and others do not.",
        "Make one archive of the files, rather than joining two archives.",
    )
    TAR_HEADER_REFUSED = (
        "TAR_HEADER_REFUSED",
        Severity.ERROR,
        Consequence.UNSAFE,
        "An extended header is too long, malformed, or changes a member in a way that readers understand differently.",
        "Make the archive with `tar -czf` or `loradrop package`; a plain adapter needs no such header.",
    )
    MEMBER_TYPE_REFUSED = (
        "MEMBER_TYPE_REFUSED",
        Severity.ERROR,
        Consequence.UNSAFE,
        "A member is a link, a device, a pipe, a sparse file or another thing that is neither a file nor a folder.",
        "Pack the files themselves: `tar -czhf` follows links; so does `loradrop package`.",
    )
    MEMBER_NAME_UNSAFE = (
        "MEMBER_NAME_UNSAFE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "A member's name is absolute, climbs out with `..`, holds a backslash or a control character, is not UTF-8, or "
        "is too long.",
        "Pack from within the folder: `tar -czf adapter.tar.gz -C FOLDER .`",
    )
    MEMBER_NAME_DUPLICATE = (
        "MEMBER_NAME_DUPLICATE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "Two members have the same name, or names that a file system may take for the same (upper and lower case, "
        "Unicode forms): which of them is served depends on who unpacks.",
        "Pack each file once.",
    )
    TOO_MANY_MEMBERS = (
        "TOO_MANY_MEMBERS",
        Severity.ERROR,
        Consequence.UNSAFE,
        "The archive has more members than a folder that `save_pretrained` writes.",
        "Pack the adapter's own folder: `loradrop package` takes only what is needed.",
    )

    # The files

    CONFIG_FILE_MISSING = (
        "CONFIG_FILE_MISSING",
        Severity.ERROR,
        Consequence.FAIL,
        "There is no `adapter_config.json` at the root.",
        "Save with `model.save_pretrained(FOLDER)` of a PEFT model, then `loradrop package FOLDER -o adapter.tar.gz`.",
    )
    WEIGHTS_FILE_MISSING = (
        "WEIGHTS_FILE_MISSING",
        Severity.ERROR,
        Consequence.FAIL,
        "There is no `adapter_model.safetensors` at the root.",
        "Save with `model.save_pretrained(FOLDER)`, without `safe_serialization=False`. For the files of other trainers, "
        "the message names their own switch, and `loradrop package --mend` converts those of mlx-lm.",
    )
    WRAPPING_FOLDER = (
        "WRAPPING_FOLDER",
        Severity.ERROR,
        Consequence.FAIL,
        "Everything is inside one folder; the engine looks only at the root of the archive.",
        "Pack from within the folder: `tar -czf adapter.tar.gz -C FOLDER .`",
    )
    SUBFOLDER = (
        "SUBFOLDER",
        Severity.ERROR,
        Consequence.FAIL,
        "The archive has folders; an adapter's files are all at the root.",
        "`loradrop package FOLDER -o adapter.tar.gz` takes the adapter's own files and nothing else.",
    )
    PICKLE_FILE = (
        "PICKLE_FILE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "A file with a pickle's suffix. Loading a pickle runs code; the container's secure mode refuses the whole "
        "adapter for it.",
        "`loradrop package FOLDER -o adapter.tar.gz` leaves it out. Weights that exist as a pickle only: load them "
        "where you trained and `save_pretrained` again.",
    )
    CODE_FILE = (
        "CODE_FILE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "A program, or a file that the container runs, installs or obeys: `model.py` is executed inside the model process.",
        "`loradrop package FOLDER -o adapter.tar.gz` leaves it out.",
    )
    OTHER_WEIGHTS = (
        "OTHER_WEIGHTS",
        Severity.ERROR,
        Consequence.POLICY,
        "A file of other weights than `adapter_model.safetensors`. Some engines load such files on their own "
        "(`new_embeddings.safetensors`), and nobody has validated them.",
        "`loradrop package FOLDER -o adapter.tar.gz` leaves it out.",
    )
    EXTRA_FILE = (
        "EXTRA_FILE",
        Severity.WARNING,
        Consequence.NONE,
        "A file that is neither the adapter's nor usual beside one, or is far larger than such files are. It is kept with the "
        "release, and ignored.",
        "`loradrop package FOLDER -o adapter.tar.gz` leaves it out. Check that it holds no secret: everybody who may read the "
        "bucket can read an upload.",
    )
    MACOS_FILES = (
        "MACOS_FILES",
        Severity.WARNING,
        Consequence.NONE,
        "macOS has put its own files (`._*`, `.DS_Store`) into the archive. They are ignored.",
        "`COPYFILE_DISABLE=1 tar -czf …`, or `loradrop package`.",
    )
    SMOKE_PROMPTS_INVALID = (
        "SMOKE_PROMPTS_INVALID",
        Severity.ERROR,
        Consequence.NEVER_READ,
        "`smoke.jsonl` is not what the smoke test understands.",
        'One object a line: `{"inputs": "…", "parameters": {…}, "expect": "…"}`, or leave the file out.',
    )

    # adapter_config.json

    CONFIG_TOO_LARGE = (
        "CONFIG_TOO_LARGE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "`adapter_config.json` is larger than a configuration is.",
        "Use the file that `save_pretrained` wrote.",
    )
    CONFIG_NOT_JSON = (
        "CONFIG_NOT_JSON",
        Severity.ERROR,
        Consequence.FAIL,
        "`adapter_config.json` is not UTF-8 (or has a byte order mark), not JSON, not an object, or nested too deeply.",
        "Use the file that `save_pretrained` wrote; editors and shells on Windows add a byte order mark.",
    )
    CONFIG_DUPLICATE_KEY = (
        "CONFIG_DUPLICATE_KEY",
        Severity.ERROR,
        Consequence.UNSAFE,
        "A key occurs twice in `adapter_config.json`: the last one wins, which a reader of the file may not see.",
        "Keep the right one of the two.",
    )
    CONFIG_KEY_MISSING = (
        "CONFIG_KEY_MISSING",
        Severity.ERROR,
        Consequence.FAIL,
        "A key that the engine requires is absent: `r`, `lora_alpha`, `target_modules`.",
        "Use the file that `save_pretrained` wrote.",
    )
    RANK_INVALID = (
        "RANK_INVALID",
        Severity.ERROR,
        Consequence.FAIL,
        "`r`, or a rank of `rank_pattern`, is not a whole number of at least 1.",
        "Set it to the rank that the adapter was trained with.",
    )
    RANK_TOO_HIGH = (
        "RANK_TOO_HIGH",
        Severity.ERROR,
        Consequence.FAIL,
        "The rank is higher than the base's `max_lora_rank`.",
        "Train with a lower rank, or raise the stack's parameter MaxLoraRank (one of 1, 8, 16, 32, 64, 128, 256, 320, "
        "512), which costs GPU memory for every slot.",
    )
    LORA_ALPHA_INVALID = (
        "LORA_ALPHA_INVALID",
        Severity.ERROR,
        Consequence.SILENT,
        "`lora_alpha` is not a number above 0: a string or null fails, 0 switches the adapter off, and a negative one "
        "reverses its training.",
        "Set it to the alpha that the adapter was trained with.",
    )
    BIAS_UNSUPPORTED = (
        "BIAS_UNSUPPORTED",
        Severity.ERROR,
        Consequence.FAIL,
        "The adapter trained biases (`bias` other than `none`), which the engine cannot add.",
        'Train with `LoraConfig(bias="none")`.',
    )
    LORA_BIAS_UNSUPPORTED = (
        "LORA_BIAS_UNSUPPORTED",
        Severity.ERROR,
        Consequence.FAIL,
        "The adapter has biases on `lora_B` (`lora_bias`).",
        "Train with `LoraConfig(lora_bias=False)`.",
    )
    DORA_UNSUPPORTED = (
        "DORA_UNSUPPORTED",
        Severity.ERROR,
        Consequence.FAIL,
        "The adapter is a DoRA (`use_dora`): the engine has no magnitude vectors.",
        "Train with `LoraConfig(use_dora=False)`, or merge it into a base of its own.",
    )
    MODULES_TO_SAVE_UNSUPPORTED = (
        "MODULES_TO_SAVE_UNSUPPORTED",
        Severity.ERROR,
        Consequence.FAIL,
        "The adapter carries whole modules (`modules_to_save`), such as `lm_head`, `embed_tokens` or a classifier.",
        "Train without `modules_to_save`; a classifier cannot be served as an adapter of a causal language model.",
    )
    PATTERN_UNSUPPORTED = (
        "PATTERN_UNSUPPORTED",
        Severity.ERROR,
        Consequence.SILENT,
        "`rank_pattern` or `alpha_pattern` changes a module, and this engine ignores it (it is honoured from vLLM 0.32), or "
        "it holds a regular expression that is more than a module's name. A pattern that changes nothing is accepted.",
        "Train with one rank and one alpha, or serve on a newer engine; write plain names such as `q_proj`.",
    )
    INIT_ALTERS_BASE = (
        "INIT_ALTERS_BASE",
        Severity.ERROR,
        Consequence.SILENT,
        "`init_lora_weights` names a method that alters the base's weights (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA): the "
        "adapter is right on the altered base only. From vLLM 0.32 on, the engine refuses every method that it does not "
        "know.",
        "Convert it when saving: `save_pretrained(FOLDER, path_initial_model_for_weight_conversion=INITIAL)`, which "
        "writes a plain LoRA of twice the rank.",
    )
    FEATURE_UNSUPPORTED = (
        "FEATURE_UNSUPPORTED",
        Severity.ERROR,
        Consequence.SILENT,
        "The configuration switches on something that the engine does not have: activated LoRA, layer replication, "
        "QA-LoRA, BD-LoRA, Arrow, KaSA, token or parameter adapters.",
        "Train without it.",
    )
    PEFT_TYPE_UNSUPPORTED = (
        "PEFT_TYPE_UNSUPPORTED",
        Severity.ERROR,
        Consequence.SILENT,
        "The adapter is of another kind than LoRA: AdaLoRA, LoHa, IA3, prompt tuning, VeRA, …",
        "Train a plain LoRA: `LoraConfig(…)`.",
    )
    UNKNOWN_FLAG = (
        "UNKNOWN_FLAG",
        Severity.WARNING,
        Consequence.NONE,
        "A setting that this validator does not know has a value. It may have a meaning that the engine ignores.",
        "Compare the served answers with those of PEFT.",
    )
    BASE_MODEL_DIFFERS = (
        "BASE_MODEL_DIFFERS",
        Severity.WARNING,
        Consequence.NONE,
        "`base_model_name_or_path` does not name the base. The engine ignores it.",
        "Make sure that the adapter was trained on this base, and not on another model of the same shape.",
    )
    SCALING_UNUSUAL = (
        "SCALING_UNUSUAL",
        Severity.WARNING,
        Consequence.NONE,
        "The effective scaling (alpha/r, or alpha/√r with rsLoRA) is far from usual.",
        "Compare `lora_alpha` and `r` with the training script.",
    )

    # adapter_model.safetensors: the format

    SAFETENSORS_OTHER_FORMAT = (
        "SAFETENSORS_OTHER_FORMAT",
        Severity.ERROR,
        Consequence.FAIL,
        "`adapter_model.safetensors` is something else under that name: a Git LFS pointer, a zip file as `torch.save` writes "
        "it, a pickle, an error page. The message says what.",
        "Fetch the real file (`git lfs pull`), or save with `save_pretrained`; renaming a file does not convert it.",
    )
    SAFETENSORS_TOO_SHORT = (
        "SAFETENSORS_TOO_SHORT",
        Severity.ERROR,
        Consequence.FAIL,
        "`adapter_model.safetensors` has no room for its header: fewer than 8 bytes, or a header that reaches past the "
        "end of the file.",
        "The file was cut short: copy or save it again and compare sizes.",
    )
    SAFETENSORS_HEADER_TOO_LARGE = (
        "SAFETENSORS_HEADER_TOO_LARGE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "The header says that it is larger than any adapter's: either not a safetensors file, or made to exhaust "
        "memory.",
        "Save with `save_pretrained`.",
    )
    SAFETENSORS_HEADER_INVALID = (
        "SAFETENSORS_HEADER_INVALID",
        Severity.ERROR,
        Consequence.FAIL,
        "The header is not a UTF-8 JSON object that starts with `{`, or is nested too deeply.",
        "Save with `save_pretrained`.",
    )
    SAFETENSORS_DUPLICATE_KEY = (
        "SAFETENSORS_DUPLICATE_KEY",
        Severity.ERROR,
        Consequence.UNSAFE,
        "The header names a tensor (or a field) twice: which of the two is loaded depends on the reader.",
        "Save with `save_pretrained`.",
    )
    SAFETENSORS_METADATA_INVALID = (
        "SAFETENSORS_METADATA_INVALID",
        Severity.ERROR,
        Consequence.FAIL,
        "`__metadata__` is not an object of strings.",
        "Save with `save_pretrained`.",
    )
    SAFETENSORS_TENSOR_INVALID = (
        "SAFETENSORS_TENSOR_INVALID",
        Severity.ERROR,
        Consequence.FAIL,
        "An entry of the header is not exactly `dtype`, `shape` and `data_offsets` with whole numbers of at least 0.",
        "Save with `save_pretrained`.",
    )
    SAFETENSORS_DTYPE_UNKNOWN = (
        "SAFETENSORS_DTYPE_UNKNOWN",
        Severity.ERROR,
        Consequence.FAIL,
        "A tensor has a dtype that the format does not define.",
        "Save in bfloat16, float16 or float32.",
    )
    SAFETENSORS_SIZE_MISMATCH = (
        "SAFETENSORS_SIZE_MISMATCH",
        Severity.ERROR,
        Consequence.FAIL,
        "A tensor's shape times its element size is not the length of its data.",
        "Save with `save_pretrained`.",
    )
    SAFETENSORS_OFFSETS_INVALID = (
        "SAFETENSORS_OFFSETS_INVALID",
        Severity.ERROR,
        Consequence.FAIL,
        "The tensors do not tile the data exactly: a hole, an overlap, missing bytes or bytes after the last tensor.",
        "The file was cut or joined: save with `save_pretrained` again and compare sizes.",
    )

    # adapter_model.safetensors: the tensors

    NO_LORA_TENSORS = (
        "NO_LORA_TENSORS",
        Severity.ERROR,
        Consequence.FAIL,
        "The file has no `lora_A` or `lora_B` tensor at all.",
        "Save the PEFT model (`get_peft_model(…).save_pretrained`), not its base.",
    )
    TENSOR_NAME_UNEXPECTED = (
        "TENSOR_NAME_UNEXPECTED",
        Severity.ERROR,
        Consequence.FAIL,
        "The engine does not accept a tensor's name. It accepts `[base_model.model.]MODULE.lora_A.weight`, `….lora_B.weight`, "
        "`….lora_embedding_A`, `….lora_embedding_B`.",
        "Save with `save_pretrained`, not with `torch.save(model.state_dict())`; train without the feature that made "
        "the tensor. Wrappers and an adapter's name in it: `loradrop package FOLDER -o adapter.tar.gz --mend`.",
    )
    BASE_LAYER_UNEXPECTED = (
        "BASE_LAYER_UNEXPECTED",
        Severity.ERROR,
        Consequence.UNSAFE,
        "A tensor named `….embed_tokens.base_layer.weight` or `….lm_head.base_layer.weight` is not the base's own, by its path "
        "and shape. The engine reads it into memory and then skips it.",
        "Save with `save_pretrained(FOLDER, save_embedding_layers=False)`, or let `loradrop package --mend` leave it out.",
    )
    MODULE_UNSUPPORTED = (
        "MODULE_UNSUPPORTED",
        Severity.ERROR,
        Consequence.FAIL,
        "The adapter changes a module that takes no LoRA on this base.",
        "Train with `target_modules` among those that the message lists.",
    )
    MOE_UNSUPPORTED = (
        "MOE_UNSUPPORTED",
        Severity.ERROR,
        Consequence.FAIL,
        "The adapter changes experts or a router of a mixture-of-experts model; loradrop serves dense models only.",
        "Train on the base that is served.",
    )
    MODULE_PATH_UNKNOWN = (
        "MODULE_PATH_UNKNOWN",
        Severity.ERROR,
        Consequence.SILENT,
        "A tensor's module does not exist in the base: its last name is right, the path before it is not. Nothing "
        "would be applied.",
        "Train on the base that is served, loaded by `AutoModelForCausalLM`. Where a wrapper (torch.compile, FSDP, DeepSpeed, a "
        "multimodal model) renamed the modules: `loradrop package FOLDER -o adapter.tar.gz --mend`.",
    )
    LAYER_OUT_OF_RANGE = (
        "LAYER_OUT_OF_RANGE",
        Severity.ERROR,
        Consequence.SILENT,
        "A tensor belongs to a layer that the base does not have; it would be dropped.",
        "Train on the base that is served, not on a larger model of its family.",
    )
    MODULE_TWICE = (
        "MODULE_TWICE",
        Severity.ERROR,
        Consequence.UNSAFE,
        "One module has the same tensor under two names (with and without `base_model.model.`): one of them is lost.",
        "Save with `save_pretrained`.",
    )
    LORA_PAIR_INCOMPLETE = (
        "LORA_PAIR_INCOMPLETE",
        Severity.ERROR,
        Consequence.FAIL,
        "A module has `lora_A` without `lora_B`, or the reverse.",
        "Save with `save_pretrained`; under DeepSpeed ZeRO-3 or FSDP gather the weights first.",
    )
    SHAPE_MISMATCH = (
        "SHAPE_MISMATCH",
        Severity.ERROR,
        Consequence.SILENT,
        "A tensor's shape is not the one that the base and the rank demand. A larger one fails, a smaller one is padded "
        "with zeros in silence.",
        "Train on the base that is served; saving under DeepSpeed ZeRO-3 without gathering makes empty shapes.",
    )
    DTYPE_UNSUPPORTED = (
        "DTYPE_UNSUPPORTED",
        Severity.ERROR,
        Consequence.SILENT,
        "A tensor's dtype is not a floating-point type that the engine can use (integers, bool, complex, 4 and 6 bits).",
        "Save in bfloat16, float16 or float32; dequantise a quantised adapter first.",
    )
    DTYPE_CAST = (
        "DTYPE_CAST",
        Severity.WARNING,
        Consequence.NONE,
        "A tensor is float64 or 8-bit float: the engine casts it.",
        "Save in bfloat16 to serve exactly what was saved.",
    )
    NOT_FINITE = (
        "NOT_FINITE",
        Severity.ERROR,
        Consequence.SILENT,
        "A tensor holds NaN or infinity, or a number that becomes infinite in bfloat16: every answer turns to garbage.",
        "The training diverged: lower the learning rate, clip gradients, avoid float16.",
    )
    NO_EFFECT = (
        "NO_EFFECT",
        Severity.ERROR,
        Consequence.SILENT,
        "Every module has only zeros in `lora_B` or in `lora_A`: it was not trained, and answers like the base.",
        "Train before saving; under DeepSpeed ZeRO-3 or FSDP gather the weights first.",
    )
    PARTLY_UNTRAINED = (
        "PARTLY_UNTRAINED",
        Severity.ERROR,
        Consequence.POLICY,
        "A `lora_B` has long runs of rows that are exactly zero, which no training leaves: a part of it was lost when it was "
        "saved from several processes.",
        "Gather the weights before saving (DeepSpeed ZeRO-3: `stage3_gather_16bit_weights_on_model_save`; FSDP: "
        "`fsdp_state_dict_type: FULL_STATE_DICT`), and save again.",
    )
    MAGNITUDE_UNUSUAL = (
        "MAGNITUDE_UNUSUAL",
        Severity.WARNING,
        Consequence.NONE,
        "A tensor holds numbers far larger than training gives: answers are likely garbage.",
        "Check the training loss, and lower the learning rate. The smoke test fails if the answers are not finite.",
    )
    DEAD_MODULES = (
        "DEAD_MODULES",
        Severity.WARNING,
        Consequence.NONE,
        "Some modules have only zeros in `lora_B` or in `lora_A`: they have no effect.",
        "Check whether they were trained: frozen by mistake, or a pipeline stage that was not saved.",
    )


# What is rejected although the engine would serve it, and why. Of a code whose consequence is another as a rule: the cases in
# which a problem says that it is a policy. tests/engine holds this against vLLM itself.
POLICIES: Mapping[ProblemCode, str] = {
    ProblemCode.UPLOAD_TOO_LARGE: "Reading it would cost more than any adapter is worth.",
    ProblemCode.GZIP_SEVERAL_MEMBERS: "Some readers see the first stream alone: what was validated may not be what is served.",
    ProblemCode.GZIP_TRAILING_DATA: "Nobody knows what it is for.",
    ProblemCode.COMPRESSION_RATIO_TOO_HIGH: "It would exhaust the program that unpacks it.",
    ProblemCode.COMPRESSION_WASTEFUL: "Unpacking it takes far too long for what is in it.",
    ProblemCode.UNPACKED_TOO_LARGE: "It would exhaust the program that unpacks it.",
    ProblemCode.TAR_CORRUPT: "Some readers stop at the damage, and others go on.",
    ProblemCode.TAR_HIDDEN_DATA: "Some readers see what follows the end mark, and others do not.",
    ProblemCode.TAR_HEADER_REFUSED: "Readers understand such headers differently.",
    ProblemCode.MEMBER_TYPE_REFUSED: "A link or a device reaches outside the adapter.",
    ProblemCode.MEMBER_NAME_UNSAFE: "Such a name reaches outside the adapter's folder, or means another file on another system.",
    ProblemCode.MEMBER_NAME_DUPLICATE: "Which of the two is served depends on who unpacks.",
    ProblemCode.TOO_MANY_MEMBERS: "It would exhaust the program that unpacks it.",
    ProblemCode.WEIGHTS_FILE_MISSING: "Where there is an `adapter_model.bin` the engine loads it: a pickle, which can run code.",
    ProblemCode.SUBFOLDER: "The engine opens two files by name; other readers of an adapter list its folders.",
    ProblemCode.PICKLE_FILE: "The container's secure mode refuses the whole adapter for it.",
    ProblemCode.CODE_FILE: "The container may run, install or obey it; the engine itself does not.",
    ProblemCode.OTHER_WEIGHTS: "Nobody has validated them, and some engines load them.",
    ProblemCode.CONFIG_TOO_LARGE: "No configuration is that large.",
    ProblemCode.CONFIG_NOT_JSON: "Deep nesting, numbers of hundreds of digits, halves of surrogate pairs: Python's reader accepts them, and others do not.",
    ProblemCode.CONFIG_DUPLICATE_KEY: "The engine takes the last value, and a reader may see the first.",
    ProblemCode.PATTERN_UNSUPPORTED: "An expression with more than two repetitions, or with a repeated group: matching it "
    "can take for ever.",
    ProblemCode.SAFETENSORS_HEADER_TOO_LARGE: "No adapter has that many tensors, and parsed JSON takes 25 times its bytes.",
    ProblemCode.SAFETENSORS_HEADER_INVALID: "White space before the header: the format forbids it, and the engine's reader accepts it.",
    ProblemCode.SAFETENSORS_TENSOR_INVALID: "Further fields: the format has none, and the engine's reader skips them.",
    ProblemCode.SAFETENSORS_METADATA_INVALID: "A null: the format requires an object, and the engine's reader takes null for no metadata.",
    ProblemCode.SAFETENSORS_DUPLICATE_KEY: "Which of the two is loaded depends on the reader.",
    ProblemCode.BASE_LAYER_UNEXPECTED: "The engine reads it into the host's memory before it skips it.",
    ProblemCode.MODULE_TWICE: "The engine silently takes one of them; if both hold the same values, nothing is lost.",
    ProblemCode.PARTLY_UNTRAINED: "It is served as it was saved, but a part of it was not saved.",
}


class FixKind(StrEnum):
    """What fixes a problem. `loradrop.rendering` makes sentences and commands of it."""

    REPACKAGE = "repackage"  # unpack the tarball and package `folder` in it ("" for all of it)
    CONVERT_PICKLE = "convert_pickle"  # unpack it, convert adapter_model.bin in `folder`, package that
    MEND = "mend"  # unpack it, and package it with `--mend`
    SAVE_AGAIN = "save_again"  # save with save_pretrained and package the result
    PACKAGE_FOLDER = "package_folder"  # package the folder that the tarball was made of
    COMPRESS_AGAIN = "compress_again"  # several gzip streams into one
    UPLOAD_AGAIN = "upload_again"  # the local tarball, to `bucket` and `key`
    COPY_TO = "copy_to"  # the object, to `to_key`
    ENABLE_VERSIONING = "enable_versioning"  # on `bucket`, then copy the object onto itself
    RESTORE = "restore"  # the archived object, then copy it onto itself
    PULL_LFS = "pull_lfs"  # fetch what Git LFS pointers stand for, and package that
    ENCRYPT_BY_S3 = "encrypt_by_s3"  # copy the object onto itself, under S3's own key


@dataclass(frozen=True, slots=True)
class Fix:
    """How to fix one problem, as data. Each kind says which of the other fields it has."""

    kind: FixKind
    folder: str = ""
    bucket: str = ""
    key: str = ""
    version_id: str = ""
    to_key: str = ""

    def to_dict(self) -> dict[str, str]:
        fields = ("folder", "bucket", "key", "version_id", "to_key")
        given = {name: getattr(self, name) for name in fields}
        return {"kind": self.kind.value} | {name: value for name, value in given.items() if value}

    @classmethod
    def from_dict(cls, entry: Mapping[str, str]) -> "Fix":
        return cls(FixKind(entry["kind"]), **{name: value for name, value in entry.items() if name != "kind"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, or many of the same code: `count` of them, `examples` the first few places.

    Made by `of`, its text is bounded in length and printable, whatever the upload holds.
    """

    code: ProblemCode
    message: str
    place: str | None = None
    count: int = 1
    examples: tuple[str, ...] = ()
    fix: Fix | None = None
    consequence: Consequence = Consequence.NONE  # the code's own, or what this very case would have been

    @classmethod
    def of(
        cls,
        code: ProblemCode,
        message: str,
        *,
        place: str | None = None,
        fix: Fix | None = None,
        consequence: Consequence | None = None,
    ) -> "Problem":
        place = None if place is None else shown_name(place)
        text = clipped(printable(clipped(message, MAX_MESSAGE_CHARACTERS)), MAX_MESSAGE_CHARACTERS)
        return cls(code, text, place, 1, () if place is None else (place,), fix, consequence or code.consequence)

    def to_dict(self) -> dict[str, object]:
        entry: dict[str, object] = {
            "code": self.code.value,
            "message": self.message,
            "consequence": self.consequence.value,
        }
        if self.place is not None:
            entry["place"] = self.place
        if self.count > 1:
            entry["count"] = self.count
            entry["examples"] = list(self.examples)
        if self.fix is not None:
            entry["fix"] = self.fix.to_dict()
        return entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "Problem":
        place = entry.get("place")
        return cls(
            code=ProblemCode[entry["code"]],
            message=entry["message"],
            place=place,
            count=entry.get("count", 1),
            examples=tuple(entry.get("examples", () if place is None else (place,))),
            fix=Fix.from_dict(entry["fix"]) if "fix" in entry else None,
            consequence=Consequence[entry["consequence"].upper()],
        )


class Problems:
    """Collects problems, and bounds their number by code, whatever the input."""

    def __init__(self) -> None:
        self._found: dict[tuple[ProblemCode, str | None], Problem] = {}

    def add(
        self,
        code: ProblemCode,
        message: str,
        *,
        place: str | None = None,
        fix: Fix | None = None,
        consequence: Consequence | None = None,
    ) -> None:
        """A problem that stands on its own. Past MAX_PROBLEMS_PER_CODE the further ones are only counted."""
        of_code = [key for key in self._found if key[0] is code]
        key = (code, place)
        if key not in self._found and len(of_code) >= MAX_PROBLEMS_PER_CODE:
            key = of_code[-1]
        self._record(key, Problem.of(code, message, place=place, fix=fix, consequence=consequence))

    def add_grouped(
        self,
        code: ProblemCode,
        message: str,
        *,
        place: str,
        fix: Fix | None = None,
        consequence: Consequence | None = None,
    ) -> None:
        """One of possibly thousands: the first says its message, the others are counted."""
        self._record((code, None), Problem.of(code, message, place=place, fix=fix, consequence=consequence))

    def _record(self, key: tuple[ProblemCode, str | None], problem: Problem) -> None:
        seen = self._found.get(key)
        if seen is None:
            self._found[key] = problem
            return
        examples, place = seen.examples, problem.place
        if place is not None and len(examples) < MAX_EXAMPLES and place not in examples:
            examples = (*examples, place)
        # One failure is enough to end the loading.
        consequence = problem.consequence if problem.consequence is Consequence.FAIL else seen.consequence
        self._found[key] = replace(seen, count=seen.count + 1, examples=examples, consequence=consequence)

    def __contains__(self, code: ProblemCode) -> bool:
        return any(key[0] is code for key in self._found)

    def __iter__(self) -> Iterator[Problem]:
        """In the order of the enumeration: outermost first, as one fixes them."""
        order = {code: position for position, code in enumerate(ProblemCode)}
        return iter(sorted(self._found.values(), key=lambda problem: order[problem.code]))

    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self if problem.code.severity is Severity.ERROR)

    def warnings(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self if problem.code.severity is Severity.WARNING)


def clipped(text: str, max_characters: int) -> str:
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def printable(text: str) -> str:
    """The text with all that a terminal might obey, or that cannot be encoded, written as JSON escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def shown_name(name: str) -> str:
    """A name from the upload, safe to print: short, no control characters, no lone surrogates."""
    return printable(clipped(name, MAX_SHOWN_CHARACTERS))


def shown(value: object) -> str:
    """Any JSON value from the upload, short and safe to print."""
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        few = ", ".join(shown(item) if not isinstance(item, list) else "[…]" for item in value[:8])
        return clipped(f"[{few}{', …' if len(value) > 8 else ''}]", MAX_SHOWN_CHARACTERS)
    if isinstance(value, str):
        return f'"{shown_name(value)}"'
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return clipped(json.dumps(value), MAX_SHOWN_CHARACTERS)
