"""The validator: predicts what the serving engine will do with an adapter, in one bounded read.

It reads to the end even when it already knows that the adapter is refused: the uploader gets every problem at once, and
the second that the rest costs is less than another upload. Only where nothing further can be understood (a damaged
archive, a limit) it stops.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from loradrop.adapter_config import CONFIG_FILE, AdapterConfig, base_model_in, read_config
from loradrop.archive import Body, Member, read_members
from loradrop.modules import Pair, match_modules, scalings
from loradrop.policy import DEFAULT_POLICY, Policy
from loradrop.problems import Consequence, Fix, FixKind, ProblemCode, Problems
from loradrop.profile import BaseProfile
from loradrop.safetensors import WEIGHTS_FILE, Weights, read_weights
from loradrop.smoke import SmokePrompt, SmokePromptsInvalidError, parse_smoke_prompts
from loradrop.stream import ArchiveError, BinaryStream, Unpacked
from loradrop.trainers import trainer_of
from loradrop.validation_report import FileEntry, Manifest, ValidationReport

SMOKE_FILE = "smoke.jsonl"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, SMOKE_FILE)
# Suffixes count wherever they stand in a name, so that x.pickle.gz is a pickle.
PICKLE_SUFFIXES = frozenset({"bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib", "dill"})
# What the container runs, installs or obeys when it finds it at the root, and what is a program anywhere.
CODE_FILES = frozenset(
    {"requirements.txt", "serving.properties", "dockerfile", "makefile", "setup.cfg", "pyproject.toml"}
)
CODE_SUFFIXES = frozenset(
    {
        *(
            "py",
            "pyc",
            "pyo",
            "pyd",
            "pyx",
            "ipynb",
            "so",
            "dll",
            "dylib",
            "exe",
            "o",
            "a",
            "whl",
            "egg",
            "jar",
            "class",
        ),
        *("sh", "bash", "zsh", "bat", "cmd", "ps1", "js", "pl", "rb", "lua", "wasm"),
    }
)
WEIGHTS_SUFFIXES = frozenset(
    {
        "safetensors",
        "gguf",
        "ggml",
        "npy",
        "npz",
        "h5",
        "hdf5",
        "msgpack",
        "onnx",
        "tensors",
        "tflite",
        "mlmodel",
        "distcp",
    }
)
# What people's trainers leave beside an adapter, and serving ignores.
USUAL_SUFFIXES = frozenset(
    {"md", "txt", "json", "jsonl", "jinja", "model", "yaml", "yml", "csv", "log", "png", "jpg", "jpeg", "svg", "html"}
)
USUAL_FILES = frozenset({"license", "licence", "notice", "latest", ".gitattributes", ".gitignore"})
# What `safe_serialization=False`, or an old PEFT, wrote.
PICKLED_WEIGHTS = "adapter_model.bin"
_REPACKAGE = Fix(FixKind.REPACKAGE)


@dataclass(slots=True)
class _Folder:
    """The adapter's own files found in one folder of the archive: the root, or one that wraps everything."""

    profile: BaseProfile
    names: set[str] = field(default_factory=set)
    config: AdapterConfig | None = None
    weights: Weights | None = None
    weights_bytes: int = 0
    smoke_prompts: tuple[SmokePrompt, ...] = ()
    problems: Problems = field(default_factory=Problems)


def validate(
    stream: BinaryStream,
    profile: BaseProfile,
    policy: Policy = DEFAULT_POLICY,
    *,
    choose: Callable[[str | None], BaseProfile | None] | None = None,
) -> ValidationReport:
    """Whether the tarball that `stream` yields would serve well on this base. Raises only what `stream.read` raises.

    `choose` may name another profile, by the base that the adapter itself names.
    """
    problems = Problems()
    with Unpacked(stream, policy) as unpacked:
        validation = _Validation(profile, policy, problems, choose or (lambda _: None))
        try:
            validation.read(read_members(unpacked.source, policy, problems))
        except ArchiveError as error:
            validation.is_cut_short = True
            problems.add(error.code, error.message, place=error.place, fix=error.fix)
        return validation.report(unpacked.sha256)


class _Validation:
    """Reads an adapter's members and gathers what they say."""

    def __init__(
        self,
        profile: BaseProfile,
        policy: Policy,
        problems: Problems,
        choose: Callable[[str | None], BaseProfile | None],
    ) -> None:
        self._profile = profile
        self._choose = choose
        self._policy = policy
        self._problems = problems
        self._root = _Folder(profile)
        self._wrapping: tuple[str, _Folder] | None = None  # the first folder that has files
        self._nested: list[str] = []
        self._files: list[FileEntry] = []
        self.is_cut_short = False

    def read(self, members: Iterable[Member]) -> None:
        for member in members:
            if member.is_folder:
                continue
            if _is_of_macos(member.name):
                self._problems.add_grouped(
                    ProblemCode.MACOS_FILES,
                    f"{member.name} was put in by macOS. It is ignored.",
                    place=member.name,
                    fix=_REPACKAGE,
                )
            else:
                self._read_file(member)
            member.body.skip()
            self._files.append(FileEntry(member.name, member.size, member.body.sha256))

    def _folder(self, name: str) -> _Folder | None:
        """Where the adapter's own files are looked for: at the root, and in the first folder in case it wraps all."""
        if not name:
            return self._root
        if self._wrapping is None:
            self._wrapping = (name, _Folder(self._profile))
        return self._wrapping[1] if self._wrapping[0] == name else None

    def _read_file(self, member: Member) -> None:
        folder_name, _, name = member.name.rpartition("/")
        folder = self._folder(folder_name)
        if folder_name:
            self._nested.append(member.name)
        if name not in ADAPTER_FILES:
            self._check_extra_file(member.name, name, folder_name, member.size)
        if folder is None:
            return
        folder.names.add(name)
        if name == CONFIG_FILE:
            folder.config = self._read_config(member, folder)
        elif name == WEIGHTS_FILE:
            folder.weights_bytes = member.size
            folder.weights = read_weights(member.body, self._policy, folder.problems)
        elif name == SMOKE_FILE:
            folder.smoke_prompts = self._read_smoke(member.body, folder.problems)

    def _check_extra_file(self, path: str, name: str, folder_name: str, size: int) -> None:
        """Code and other weights are refused; what is not usual beside an adapter is warned about."""
        plain = name.lower().strip()
        suffixes = set(plain.split(".")[1:])
        fix = Fix(FixKind.REPACKAGE, folder_name)
        if suffixes & PICKLE_SUFFIXES:
            self._problems.add(
                ProblemCode.PICKLE_FILE,
                f"{path} is a pickle: loading it runs code.",
                place=path,
                fix=None if name == PICKLED_WEIGHTS else fix,
            )
        elif plain in CODE_FILES or suffixes & CODE_SUFFIXES:
            self._problems.add(
                ProblemCode.CODE_FILE,
                f"{path} is code: the container may run, install or obey it.",
                place=path,
                fix=fix,
            )
        elif suffixes & WEIGHTS_SUFFIXES:
            self._problems.add(
                ProblemCode.OTHER_WEIGHTS, f"{path} holds other weights than the adapter's.", place=path, fix=fix
            )
        elif plain not in USUAL_FILES and not suffixes & USUAL_SUFFIXES:
            self._problems.add_grouped(
                ProblemCode.EXTRA_FILE, f"{path} is not one of an adapter's usual files.", place=path, fix=fix
            )
        elif size > self._policy.max_usual_file_bytes:
            self._problems.add_grouped(
                ProblemCode.EXTRA_FILE,
                f"{path} has {size / 1e6:,.0f} MB, which each start of the adapter fetches and unpacks for nothing.",
                place=path,
                fix=fix,
            )

    def _read_config(self, member: Member, folder: _Folder) -> AdapterConfig | None:
        limit = self._policy.max_config_bytes
        if member.size > limit:
            folder.problems.add(
                ProblemCode.CONFIG_TOO_LARGE,
                f"{CONFIG_FILE} has {member.size} bytes; at most {limit} are read.",
                place=CONFIG_FILE,
            )
            return None
        data = member.body.take(member.size)
        folder.profile = self._choose(base_model_in(data, self._policy)) or folder.profile
        return read_config(data, folder.profile, self._policy, folder.problems)

    def _read_smoke(self, body: Body, problems: Problems) -> tuple[SmokePrompt, ...]:
        limit = self._policy.max_smoke_bytes
        try:
            # One byte more than the limit is enough for its parser to say that there are too many.
            return parse_smoke_prompts(body.take(limit + 1))
        except SmokePromptsInvalidError as error:
            problems.add(ProblemCode.SMOKE_PROMPTS_INVALID, str(error), place=SMOKE_FILE)
            return ()

    def report(self, sha256: str | None) -> ValidationReport:
        if self.is_cut_short:
            sha256 = None  # how far the bytes were read ahead is chance
        folder = self._validated_folder()
        pairs: tuple[Pair, ...] = ()
        if folder.weights is not None:
            pairs = match_modules(folder.weights, folder.config, folder.profile, folder.problems)
            if folder.config is not None:
                self._check_scalings(pairs, folder.config, folder.problems)
        errors = self._problems.errors() + folder.problems.errors()
        warnings = self._problems.warnings() + folder.problems.warnings()
        manifest = None
        if not errors and folder.config is not None and folder.weights is not None:
            manifest = self._manifest(folder, folder.config, pairs, sha256)
        return ValidationReport(
            accepted=manifest is not None,
            problems=errors,
            warnings=warnings,
            manifest=manifest,
            sha256=sha256,
            smoke_prompts=folder.smoke_prompts if manifest is not None else (),
            profile=folder.profile.name,
        )

    def _check_scalings(self, pairs: tuple[Pair, ...], config: AdapterConfig, problems: Problems) -> None:
        least, most = self._policy.usual_scaling
        least_effective, most_effective = self._policy.effective_scaling
        for scaling, count in scalings(pairs, config).items():
            if not least_effective <= scaling <= most_effective:
                problems.add(
                    ProblemCode.LORA_ALPHA_INVALID,
                    f"The update of {count} modules is scaled by {scaling:g} (lora_alpha by r): nothing is left of it, or nothing "
                    f"else. Usual are {least:g} to {most:g}.",
                    place="lora_alpha",
                    consequence=Consequence.SILENT,
                )
            elif not least <= scaling <= most:
                problems.add_grouped(
                    ProblemCode.SCALING_UNUSUAL,
                    f"The update of {count} modules is scaled by {scaling:g}; usual are {least:g} to {most:g}.",
                    place="lora_alpha",
                )

    def _validated_folder(self) -> _Folder:
        """The folder that holds the adapter; what is wrong with where it lies becomes a problem."""
        adapter_names = {CONFIG_FILE, WEIGHTS_FILE}
        if self._wrapping is not None and not self._root.names & adapter_names:
            name, folder = self._wrapping
            if folder.names & adapter_names and all(path.startswith(f"{name}/") for path in self._nested):
                self._problems.add(
                    ProblemCode.WRAPPING_FOLDER,
                    f"The adapter is inside the folder {name}; its files must be at the root of the archive.",
                    place=name,
                    fix=Fix(FixKind.REPACKAGE, name),
                )
                self._add_missing_files(folder)
                return folder
        has_adapter = self._root.names >= adapter_names
        for path in self._nested:
            self._problems.add_grouped(
                ProblemCode.SUBFOLDER,
                f"{path} is in a folder; an adapter's files are all at the root.",
                place=path,
                fix=_REPACKAGE,
                # The engine opens two files by name, and never lists folders.
                consequence=Consequence.POLICY if has_adapter else Consequence.FAIL,
            )
        self._add_missing_files(self._root)
        return self._root

    def _add_missing_files(self, folder: _Folder) -> None:
        if self.is_cut_short:
            return  # it may well be in the part that could not be read
        found = ", ".join(sorted(folder.names)[:8]) or "no file"
        told = trainer_of(entry.name for entry in self._files)
        for name, code in (
            (CONFIG_FILE, ProblemCode.CONFIG_FILE_MISSING),
            (WEIGHTS_FILE, ProblemCode.WEIGHTS_FILE_MISSING),
        ):
            if name in folder.names:
                continue
            is_pickled = name == WEIGHTS_FILE and PICKLED_WEIGHTS in folder.names  # the engine would load that
            message = f"The archive has no {name} at its root. It has {found}."
            fix: Fix | None = Fix(FixKind.CONVERT_PICKLE if is_pickled else FixKind.SAVE_AGAIN)
            if told is not None and not is_pickled:
                message += f" {told[0]} is {told[1].advice}"
                fix = told[1].fix
            self._problems.add(
                code,
                message,
                place=name,
                fix=fix,
                consequence=Consequence.POLICY if is_pickled else None,
            )

    def _manifest(
        self, folder: _Folder, config: AdapterConfig, pairs: tuple[Pair, ...], sha256: str | None
    ) -> Manifest:
        adapted = [tensor for pair in pairs for tensor in (pair.a, pair.b)]
        return Manifest(
            ranks=tuple(sorted({pair.a.shape[0] for pair in pairs})),
            lora_alpha=config.lora_alpha or 0.0,
            use_rslora=config.use_rslora,
            scalings=tuple(sorted(scalings(pairs, config))),
            modules=tuple(
                module for module in folder.profile.lora_modules if any(pair.module == module for pair in pairs)
            ),
            layers=tuple(sorted({pair.layer for pair in pairs if pair.layer is not None})),
            adapted_modules=len(pairs),
            parameters=sum(tensor.elements for tensor in adapted),
            dtypes=tuple(sorted({tensor.dtype for tensor in adapted})),
            bytes=folder.weights_bytes,
            sha256=sha256,
            files=tuple(self._files),
            base_model=config.base_model,
            peft_version=config.peft_version,
        )


def _is_of_macos(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith("._") or name == ".DS_Store" or path.startswith("__MACOSX/")
