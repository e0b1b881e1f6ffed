"""Every reason for which an adapter is rejected or warned about: one enumeration, and what collects it.

`docs/problems.md` and `loradrop codes` are generated from this enumeration.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_EXAMPLES = 5
MAX_PROBLEMS_PER_CODE = 8
MAX_SHOWN_CHARACTERS = 100
MAX_MESSAGE_CHARACTERS = 700


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


class Consequence(StrEnum):
    """What would have happened, had the adapter been served all the same."""

    FAIL = "the engine raises, and may take the base and its other adapters down with it"
    SILENT = "it loads, and answers wrongly or exactly like the base"
    UNSAFE = "it may run code, hide content, or exhaust whoever unpacks it"
    NEVER_READ = "it never gets as far as the engine"
    NONE = "it is served, and may not do what was meant"


class ProblemCode(StrEnum):
    """Each member: its code, severity, what the engine would have done, what it is, how to mend it."""

    severity: Severity
    consequence: Consequence
    meaning: str
    mending: str

    def __new__(
        cls, code: str, severity: Severity, consequence: Consequence, meaning: str, mending: str
    ) -> "ProblemCode":
        member = str.__new__(cls, code)
        member._value_ = code
        member.severity = severity
        member.consequence = consequence
        member.meaning = meaning
        member.mending = mending
        return member

    # The upload

    ADAPTER_NAME_INVALID = (
        "ADAPTER_NAME_INVALID",
        Severity.ERROR,
        Consequence.NEVER_READ,
        "The key between `adapters/` and `.tar.gz` is no adapter name.",
        "Upload under a key that the message's rule allows.",
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
    UPLOAD_EMPTY = (
        "UPLOAD_EMPTY",
        Severity.ERROR,
        Consequence.FAIL,
        "The upload has no bytes.",
        "Upload it again; look at the size of the local file first.",
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
        "The file was damaged on its way: make it anew, and upload it in binary mode.",
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
        "Make the archive anew with `loradrop package`.",
    )
    COMPRESSION_RATIO_TOO_HIGH = (
        "COMPRESSION_RATIO_TOO_HIGH",
        Severity.ERROR,
        Consequence.UNSAFE,
        "The data unpacks to far more than trained weights do: a decompression bomb, or weights that are one constant.",
        "Upload a trained adapter; trained weights compress to no less than a fifth.",
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
        "What is compressed is no tar archive. The message names what it is, where that can be told.",
        "Make it with `tar -czf` or `loradrop package`.",
    )
    TAR_CORRUPT = (
        "TAR_CORRUPT",
        Severity.ERROR,
        Consequence.UNSAFE,
        "A header of the tar archive is damaged. Some readers stop there in silence and miss what follows.",
        "Make the archive anew with `tar -czf` or `loradrop package`.",
    )
    TAR_TRUNCATED = (
        "TAR_TRUNCATED",
        Severity.ERROR,
        Consequence.FAIL,
        "The tar archive ends inside a member, or without its end mark.",
        "Make the archive anew: the program that wrote it did not finish.",
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
        "Put the files themselves in: `tar -czhf` follows links; so does `loradrop package`.",
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
        "The archive has more members than a folder that `save_pretrained` wrote.",
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
        "Save with `model.save_pretrained(FOLDER)`, without `safe_serialization=False`.",
    )
    WRAPPING_FOLDER = (
        "WRAPPING_FOLDER",
        Severity.ERROR,
        Consequence.FAIL,
        "Everything lies inside one folder; the engine looks at the root of the archive only.",
        "Pack from within the folder: `tar -czf adapter.tar.gz -C FOLDER .`",
    )
    SUBFOLDER = (
        "SUBFOLDER",
        Severity.ERROR,
        Consequence.FAIL,
        "The archive has folders; an adapter is flat.",
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
        "A file that the container runs, installs or obeys: `model.py` is executed inside the model process.",
        "`loradrop package FOLDER -o adapter.tar.gz` leaves it out.",
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
        "Put the file there that `save_pretrained` wrote.",
    )
    CONFIG_NOT_JSON = (
        "CONFIG_NOT_JSON",
        Severity.ERROR,
        Consequence.FAIL,
        "`adapter_config.json` is not UTF-8 (or has a byte order mark), not JSON, not an object, or nested too deeply.",
        "Put the file there that `save_pretrained` wrote; editors and shells on Windows add a byte order mark.",
    )
    CONFIG_DUPLICATE_KEY = (
        "CONFIG_DUPLICATE_KEY",
        Severity.ERROR,
        Consequence.SILENT,
        "A key stands twice in `adapter_config.json`: the last one wins, which a reader of the file may not see.",
        "Leave the right one of the two.",
    )
    CONFIG_KEY_MISSING = (
        "CONFIG_KEY_MISSING",
        Severity.ERROR,
        Consequence.FAIL,
        "A key that the engine requires is absent: `r`, `lora_alpha`, `target_modules`.",
        "Put the file there that `save_pretrained` wrote.",
    )
    RANK_INVALID = (
        "RANK_INVALID",
        Severity.ERROR,
        Consequence.FAIL,
        "`r`, or a rank of `rank_pattern`, is not a whole number of at least 1.",
        "Write the rank that the adapter was trained with.",
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
        "`lora_alpha` is not a number above 0: a text or null fails, 0 switches the adapter off, a negative one turns "
        "it against its training.",
        "Write the alpha that the adapter was trained with.",
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
        "`rank_pattern` or `alpha_pattern` is set, and this engine ignores it (it is honoured from vLLM 0.32), or it "
        "holds a regular expression that is more than a module's name.",
        "Train with one rank and one alpha, or serve on a newer engine; write plain names such as `q_proj`.",
    )
    INIT_ALTERS_BASE = (
        "INIT_ALTERS_BASE",
        Severity.ERROR,
        Consequence.SILENT,
        "`init_lora_weights` names a method that alters the base's weights (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA): the "
        "adapter is right on the altered base only.",
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
        Consequence.FAIL,
        "The adapter is of another kind than LoRA: AdaLoRA, LoHa, IA3, prompt tuning, VeRA, …",
        "Train a plain LoRA: `LoraConfig(…)`.",
    )
    UNKNOWN_FLAG = (
        "UNKNOWN_FLAG",
        Severity.WARNING,
        Consequence.NONE,
        "A key `use_…` that this validator does not know is true: it likely has a meaning that the engine ignores.",
        "Compare the served answers with those of PEFT.",
    )
    BASE_MODEL_DIFFERS = (
        "BASE_MODEL_DIFFERS",
        Severity.WARNING,
        Consequence.NONE,
        "`base_model_name_or_path` is not a name of the base. The engine ignores it, and people train on local paths.",
        "Make sure that the adapter was trained on this base and not on a sister of the same shape.",
    )
    SCALING_UNUSUAL = (
        "SCALING_UNUSUAL",
        Severity.WARNING,
        Consequence.NONE,
        "The effective scaling (alpha/r, or alpha/√r with rsLoRA) is far from what people train with.",
        "Compare `lora_alpha` and `r` with the training script.",
    )

    # adapter_model.safetensors: the format

    SAFETENSORS_TOO_SHORT = (
        "SAFETENSORS_TOO_SHORT",
        Severity.ERROR,
        Consequence.FAIL,
        "`adapter_model.safetensors` has no room for its header: fewer than 8 bytes, or a header that reaches past the "
        "end of the file. A Git LFS pointer is such a file.",
        "Fetch or save the real file (`git lfs pull`).",
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
        Consequence.SILENT,
        "The header names a tensor (or a field) twice: which of the two is loaded depends on the reader.",
        "Save with `save_pretrained`.",
    )
    SAFETENSORS_METADATA_INVALID = (
        "SAFETENSORS_METADATA_INVALID",
        Severity.ERROR,
        Consequence.FAIL,
        "`__metadata__` is not an object of texts.",
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
        "A tensor's dtype is none of the format's.",
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
        "The weights hold no `lora_A`/`lora_B` tensor at all.",
        "Save the PEFT model (`get_peft_model(…).save_pretrained`), not its base.",
    )
    TENSOR_NAME_UNEXPECTED = (
        "TENSOR_NAME_UNEXPECTED",
        Severity.ERROR,
        Consequence.FAIL,
        "A tensor's name is none that the engine takes: `[base_model.model.]MODULE.lora_A.weight`, `….lora_B.weight`, "
        "`….lora_embedding_A`, `….lora_embedding_B`.",
        "Save with `save_pretrained`, not with `torch.save(model.state_dict())`; train without the feature that made "
        "the tensor.",
    )
    MODULE_UNSUPPORTED = (
        "MODULE_UNSUPPORTED",
        Severity.ERROR,
        Consequence.FAIL,
        "The adapter changes a module that takes no LoRA on this base.",
        "Train with `target_modules` out of the modules that the message lists.",
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
        "Train on the base that is served, loaded by `AutoModelForCausalLM`; a wrapper (Unsloth, a multimodal model, "
        "DeepSpeed) may have renamed the modules.",
    )
    LAYER_OUT_OF_RANGE = (
        "LAYER_OUT_OF_RANGE",
        Severity.ERROR,
        Consequence.SILENT,
        "A tensor belongs to a layer that the base does not have; it would be dropped.",
        "Train on the base that is served, not on a larger sister.",
    )
    MODULE_TWICE = (
        "MODULE_TWICE",
        Severity.ERROR,
        Consequence.SILENT,
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
        "A tensor's dtype is no floating point that the engine can use (integers, bool, complex, 4 and 6 bits).",
        "Save in bfloat16, float16 or float32; a quantised adapter has to be dequantised first.",
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
    DEAD_MODULES = (
        "DEAD_MODULES",
        Severity.WARNING,
        Consequence.NONE,
        "Some modules have only zeros in `lora_B` or in `lora_A`: they have no effect.",
        "Look whether the training reached them (frozen by mistake, pipeline stage not saved).",
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, or many of the same code: `count` of them, `examples` the first few places."""

    code: ProblemCode
    message: str
    place: str | None = None
    count: int = 1
    examples: tuple[str, ...] = ()
    command: str | None = None  # the exact command that mends it, where there is one
    consequence: Consequence = Consequence.NONE  # the code's own, or what this very case would have been

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
        if self.command is not None:
            entry["command"] = self.command
        return entry


class Problems:
    """Collects problems. Each is bounded in length, and their number by code, whatever the input."""

    def __init__(self) -> None:
        self._found: dict[tuple[ProblemCode, str | None], Problem] = {}

    def add(
        self,
        code: ProblemCode,
        message: str,
        *,
        place: str | None = None,
        command: str | None = None,
        consequence: Consequence | None = None,
    ) -> None:
        """A problem that stands on its own. Past MAX_PROBLEMS_PER_CODE the further ones are only counted."""
        of_code = [key for key in self._found if key[0] is code]
        key = (code, place)
        if key not in self._found and len(of_code) >= MAX_PROBLEMS_PER_CODE:
            key = of_code[-1]
        self._record(key, message, place, command, consequence or code.consequence)

    def add_grouped(
        self,
        code: ProblemCode,
        message: str,
        *,
        place: str,
        command: str | None = None,
        consequence: Consequence | None = None,
    ) -> None:
        """One of possibly thousands: the first says its message, the others are counted."""
        self._record((code, None), message, place, command, consequence or code.consequence)

    def _record(
        self,
        key: tuple[ProblemCode, str | None],
        message: str,
        place: str | None,
        command: str | None,
        consequence: Consequence,
    ) -> None:
        place = None if place is None else shown_name(place)
        seen = self._found.get(key)
        if seen is None:
            first = () if place is None else (place,)
            text = clipped(printable(clipped(message, MAX_MESSAGE_CHARACTERS)), MAX_MESSAGE_CHARACTERS)
            self._found[key] = Problem(key[0], text, place, 1, first, command, consequence)
            return
        examples = seen.examples
        if place is not None and len(examples) < MAX_EXAMPLES and place not in examples:
            examples = (*examples, place)
        if consequence is not Consequence.FAIL:  # one failure is enough to end the loading
            consequence = seen.consequence
        self._found[key] = replace(seen, count=seen.count + 1, examples=examples, consequence=consequence)

    def __contains__(self, code: ProblemCode) -> bool:
        return any(key[0] is code for key in self._found)

    def __iter__(self) -> Iterator[Problem]:
        """In the order of the enumeration: outermost first, as one mends them."""
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
