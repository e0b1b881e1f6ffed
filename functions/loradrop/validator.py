"""The judge: predicts what the serving engine will do with an adapter, in one bounded read.

It reads to the end even when it already knows that the adapter is refused: the uploader gets every problem at once, and
the second that the rest costs is less than another upload. Only where nothing further can be understood (a damaged
archive, a limit) it stops.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from loradrop.adapter_config import CONFIG_FILE, AdapterConfig, read_config
from loradrop.archive import Body, Member, read_members
from loradrop.modules import Pair, match_modules, scalings
from loradrop.policy import DEFAULT_POLICY, Policy
from loradrop.problems import ProblemCode, Problems
from loradrop.profile import BaseProfile
from loradrop.report import FileEntry, Manifest, Report
from loradrop.safetensors import WEIGHTS_FILE, Weights, read_weights
from loradrop.smoke import SmokePrompt, SmokePromptsInvalidError, parse_smoke_prompts
from loradrop.stream import ArchiveError, BinaryStream, Unpacked

SMOKE_FILE = "smoke.jsonl"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, SMOKE_FILE)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
# What the container runs, installs or obeys when it finds it at the root.
CODE_FILES = frozenset({"model.py", "requirements.txt", "serving.properties"})
# What `safe_serialization=False`, or an old PEFT, wrote.
PICKLED_WEIGHTS = "adapter_model.bin"
_CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    f"s.save_file(torch.load('unpacked/{PICKLED_WEIGHTS}', 'cpu', weights_only=True), 'unpacked/{WEIGHTS_FILE}')\""
)
_SAVE = "in Python: model.save_pretrained('FOLDER'); then: loradrop package FOLDER -o NEW.tar.gz"


@dataclass(slots=True)
class _Folder:
    """The adapter's own files found in one folder of the archive: the root, or one that wraps everything."""

    names: set[str] = field(default_factory=set)
    config: AdapterConfig | None = None
    weights: Weights | None = None
    weights_bytes: int = 0
    smoke_prompts: tuple[SmokePrompt, ...] = ()
    problems: Problems = field(default_factory=Problems)


def validate(stream: BinaryStream, profile: BaseProfile, policy: Policy = DEFAULT_POLICY) -> Report:
    """Whether the tarball that `stream` yields would serve well on this base. Raises only what `stream.read` raises."""
    problems = Problems()
    with Unpacked(stream, policy) as unpacked:
        hearing = _Hearing(profile, policy, problems)
        try:
            hearing.hear(read_members(unpacked.source, policy, problems))
        except ArchiveError as error:
            hearing.is_cut_short = True
            problems.add(error.code, error.message, place=error.place, command=error.command)
        return hearing.report(unpacked.sha256)


class _Hearing:
    """Goes through an adapter's members and gathers what they say."""

    def __init__(self, profile: BaseProfile, policy: Policy, problems: Problems) -> None:
        self._profile = profile
        self._policy = policy
        self._problems = problems
        self._root = _Folder()
        self._wrapping: tuple[str, _Folder] | None = None  # the first folder that has files
        self._nested: list[str] = []
        self._files: list[FileEntry] = []
        self.is_cut_short = False

    def hear(self, members: Iterable[Member]) -> None:
        for member in members:
            if member.is_folder:
                continue
            if _is_of_macos(member.name):
                self._problems.add_grouped(
                    ProblemCode.MACOS_FILES,
                    f"{member.name} was put in by macOS and is ignored; COPYFILE_DISABLE=1 before tar leaves it out.",
                    place=member.name,
                    command=_repack(),
                )
            else:
                self._hear_file(member)
            member.body.skip()
            self._files.append(FileEntry(member.name, member.size, member.body.sha256))

    def _folder(self, name: str) -> _Folder | None:
        """Where the adapter's own files are looked for: at the root, and in the first folder in case it wraps all."""
        if not name:
            return self._root
        if self._wrapping is None:
            self._wrapping = (name, _Folder())
        return self._wrapping[1] if self._wrapping[0] == name else None

    def _hear_file(self, member: Member) -> None:
        folder_name, _, name = member.name.rpartition("/")
        folder = self._folder(folder_name)
        if folder_name:
            self._nested.append(member.name)
        if name.lower().endswith(PICKLE_SUFFIXES):
            self._problems.add(
                ProblemCode.PICKLE_FILE,
                f"{member.name} is a pickle: loading it runs code. Pack the adapter without it.",
                place=member.name,
                command=None if name == PICKLED_WEIGHTS else _repack(folder_name),
            )
        if name.lower() in CODE_FILES:
            self._problems.add(
                ProblemCode.CODE_FILE,
                f"{member.name} would be run or obeyed by the container. Pack the adapter without it.",
                place=member.name,
                command=_repack(folder_name),
            )
        if folder is None:
            return
        folder.names.add(name)
        if name == CONFIG_FILE:
            folder.config = self._read_config(member, folder.problems)
        elif name == WEIGHTS_FILE:
            folder.weights_bytes = member.size
            folder.weights = read_weights(member.body, self._policy, folder.problems)
        elif name == SMOKE_FILE:
            folder.smoke_prompts = self._read_smoke(member.body, folder.problems)

    def _read_config(self, member: Member, problems: Problems) -> AdapterConfig | None:
        limit = self._policy.max_config_bytes
        if member.size > limit:
            problems.add(
                ProblemCode.CONFIG_TOO_LARGE,
                f"{CONFIG_FILE} has {member.size} bytes; at most {limit} are read.",
                place=CONFIG_FILE,
            )
            return None
        return read_config(member.body.take(member.size), self._profile, self._policy, problems)

    def _read_smoke(self, body: Body, problems: Problems) -> tuple[SmokePrompt, ...]:
        limit = self._policy.max_smoke_bytes
        try:
            # One byte more than the limit is enough for its parser to say that there are too many.
            return parse_smoke_prompts(body.take(limit + 1))
        except SmokePromptsInvalidError as error:
            problems.add(ProblemCode.SMOKE_PROMPTS_INVALID, str(error), place=SMOKE_FILE)
            return ()

    def report(self, sha256: str | None) -> Report:
        if self.is_cut_short:
            sha256 = None  # how far the bytes were read ahead is chance
        folder = self._validated_folder()
        pairs: tuple[Pair, ...] = ()
        if folder.weights is not None:
            pairs = match_modules(folder.weights, folder.config, self._profile, folder.problems)
            if folder.config is not None:
                self._weigh_scalings(pairs, folder.config, folder.problems)
        errors = self._problems.errors() + folder.problems.errors()
        warnings = self._problems.warnings() + folder.problems.warnings()
        manifest = None
        if not errors and folder.config is not None and folder.weights is not None:
            manifest = self._manifest(folder, folder.config, pairs, sha256)
        return Report(
            accepted=manifest is not None,
            problems=errors,
            warnings=warnings,
            manifest=manifest,
            sha256=sha256,
            smoke_prompts=folder.smoke_prompts if manifest is not None else (),
            profile=self._profile.name,
        )

    def _weigh_scalings(self, pairs: tuple[Pair, ...], config: AdapterConfig, problems: Problems) -> None:
        least, most = self._policy.usual_scaling
        for scaling, count in scalings(pairs, config).items():
            if not least <= scaling <= most:
                problems.add_grouped(
                    ProblemCode.SCALING_UNUSUAL,
                    f"The update of {count} modules is scaled by {scaling:g}; people train with {least:g} to {most:g}.",
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
                    f"The adapter lies inside the folder {name}; its files must lie at the root of the archive.",
                    place=name,
                    command=_repack(name),
                )
                self._add_missing_files(folder)
                return folder
        for path in self._nested:
            self._problems.add_grouped(
                ProblemCode.SUBFOLDER,
                f"{path} lies in a folder; an adapter is flat. Pack its own files alone.",
                place=path,
                command=_repack(),
            )
        self._add_missing_files(self._root)
        return self._root

    def _add_missing_files(self, folder: _Folder) -> None:
        if self.is_cut_short:
            return  # it may well be in the part that could not be read
        found = ", ".join(sorted(folder.names)[:8]) or "no file"
        for name, code in (
            (CONFIG_FILE, ProblemCode.CONFIG_FILE_MISSING),
            (WEIGHTS_FILE, ProblemCode.WEIGHTS_FILE_MISSING),
        ):
            if name in folder.names:
                continue
            is_pickled = name == WEIGHTS_FILE and PICKLED_WEIGHTS in folder.names
            self._problems.add(
                code,
                f"The archive has no {name} at its root; it has {found}.",
                place=name,
                command=_repack(first=_CONVERT) if is_pickled else _SAVE,
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
                module for module in self._profile.lora_modules if any(pair.module == module for pair in pairs)
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


def _repack(folder: str = "", first: str | None = None) -> str:
    """The commands that make a good tarball of a bad one; `first` is done once it is unpacked."""
    path = shlex.quote(f"unpacked/{folder}") if folder else "unpacked"
    steps = ["mkdir unpacked", "tar -xzf OLD.tar.gz -C unpacked", f"loradrop package {path} -o NEW.tar.gz"]
    if first is not None:
        steps.insert(2, first)
    return " && ".join(steps)


def _is_of_macos(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith("._") or name == ".DS_Store" or path.startswith("__MACOSX/")
