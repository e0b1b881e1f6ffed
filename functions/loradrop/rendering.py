"""Problems as text: for a terminal, for a cause or a mail (plain), and as Markdown.

A fix is data until it comes here. A command always stands on a line of its own and can be pasted as it is.
"""

import itertools
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from loradrop.names import UPLOAD_SUFFIX
from loradrop.problems import Consequence, Fix, FixKind, Problem, Severity, printable
from loradrop.profile import BaseProfile
from loradrop.validation_report import Manifest, ValidationReport, layer_ranges

Paint = Callable[[str, str], str]  # (text, colour) → the text in that colour

_CONSEQUENCE = {
    Consequence.FAIL: " The engine would have failed to load it.",
    Consequence.SILENT: " It would have loaded and answered wrongly, without any error.",
}
_COLOUR = {Severity.ERROR: "red", Severity.WARNING: "yellow"}
_LABEL_COLUMNS = 11
# What `safe_serialization=False`, or an old PEFT, wrote; read without running what a pickle may hold.
_CONVERT = (
    "import sys, torch, safetensors.torch as s; "
    "s.save_file(torch.load(sys.argv[1], 'cpu', weights_only=True), sys.argv[2])"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the adapter lies that the commands are to fix: a tarball's path, a folder's, or the URI of an S3 object."""

    location: str = "adapter.tar.gz"
    is_folder: bool = False

    @property
    def is_object(self) -> bool:
        return self.location.startswith("s3://")

    @property
    def name(self) -> str:
        """What to call a new tarball or folder, without suffix."""
        last = self.location.rstrip("/").rpartition("/")[2].removesuffix(UPLOAD_SUFFIX).removesuffix(".tgz")
        return "adapter" if last in ("", ".", "..") or last.startswith("-") else last


@dataclass(frozen=True, slots=True)
class Steps:
    """A fix for a person: what to do, and the commands that do it, each a line."""

    text: str
    commands: tuple[str, ...]


def steps(fix: Fix, source: Source) -> Steps:
    """`source` is what the commands work on, where the fix is not about an S3 object that it names itself."""
    uri, name = f"s3://{fix.bucket}/{fix.key}", source.name
    onto_itself = f"aws s3 cp {_quoted(uri)} {_quoted(uri)} --metadata-directive REPLACE"
    text: str
    commands: tuple[str, ...]
    match fix.kind:
        case FixKind.REPACKAGE:
            text, commands = "Package the adapter's own files again:", _repackage(fix.folder, source)
        case FixKind.MEND:
            text = "Package it again, with its names and form mended; no number is changed:"
            commands = _repackage(fix.folder, source, options=" --mend")
        case FixKind.CONVERT_PICKLE:
            text = "Convert the weights to safetensors, and package them:"
            commands = _repackage(fix.folder, source, is_converted=True)
        case FixKind.SAVE_AGAIN:
            folder = source.location if source.is_folder else name
            text = f"Save it again in Python with model.save_pretrained({folder!r}), then package it:"
            commands = (f"loradrop package {_quoted(folder)} -o {_quoted(name + UPLOAD_SUFFIX)}",)
        case FixKind.PACKAGE_FOLDER:
            text = "In the folder that holds adapter_config.json, package it again:"
            commands = (f"loradrop package . -o {_quoted(f'../{name}{UPLOAD_SUFFIX}')}",)
        case FixKind.PULL_LFS:
            text = (
                "In the Git clone, in the folder that holds adapter_config.json, fetch the real files and package them:"
            )
            commands = (f"git lfs pull && loradrop package . -o {_quoted(f'../{name}{UPLOAD_SUFFIX}')}",)
        case FixKind.COMPRESS_AGAIN:
            text, commands = "Compress it again as one stream:", _compress_again(source)
        case FixKind.UPLOAD_AGAIN:
            text = "Upload it again:"
            commands = (f"aws s3 cp {_quoted(Source(uri).name + UPLOAD_SUFFIX)} {_quoted(uri)}",)
        case FixKind.COPY_TO:
            text = "Copy it to a key that deploys:"
            commands = (f"aws s3 cp {_quoted(uri)} {_quoted(f's3://{fix.bucket}/{fix.to_key}')}",)
        case FixKind.ENABLE_VERSIONING:
            text = "Enable versioning, then copy the upload onto itself, which makes a version of it:"
            enable = f"aws s3api put-bucket-versioning --bucket {_quoted(fix.bucket)}"
            commands = (f"{enable} --versioning-configuration Status=Enabled", onto_itself)
        case FixKind.RESTORE:
            text = "Restore it. When that is complete, hours later, copy it onto itself:"
            version = f" --version-id {_quoted(fix.version_id)}" if fix.version_id else ""
            restore = f"aws s3api restore-object --bucket {_quoted(fix.bucket)} --key {_quoted(fix.key)}{version}"
            commands = (
                f"{restore} --restore-request Days=1",
                f"{onto_itself} --storage-class STANDARD --force-glacier-transfer",
            )
        case FixKind.ENCRYPT_BY_S3:
            text = "With credentials that may use the KMS key, copy it onto itself under S3's own key:"
            commands = (f"{onto_itself} --sse AES256",)
    return Steps(text, commands)


def _repackage(folder: str, source: Source, *, is_converted: bool = False, options: str = "") -> tuple[str, ...]:
    """One line: each command runs only if the one before it did its work."""
    unpacked, commands = source.location, []
    if not source.is_folder:
        unpacked = "unpacked"
        commands.append(f"mkdir {unpacked}")
        if source.is_object:
            commands.append(f"aws s3 cp {_quoted(source.location)} - | tar -xzf - -C {unpacked}")
        else:
            commands.append(f"tar -xzf {_quoted(source.location)} -C {unpacked}")
    path = f"{unpacked.rstrip('/') or '/'}/{folder}" if folder else unpacked
    if is_converted:
        before, after = f"{path}/adapter_model.bin", f"{path}/adapter_model.safetensors"
        commands.append(f'python -c "{_CONVERT}" {_quoted(before)} {_quoted(after)}')
    output = _fixed(source)
    commands.append(f"loradrop package {_quoted(path)} -o {_quoted(output)}{options}")
    return (" && ".join(commands), *_upload(source, output))


def _compress_again(source: Source) -> tuple[str, ...]:
    output = _fixed(source)
    if source.is_object:
        return f"aws s3 cp {_quoted(source.location)} - | gunzip | gzip > {_quoted(output)}", *_upload(source, output)
    return (f"gunzip -c {_quoted(source.location)} | gzip > {_quoted(output)}",)


def _fixed(source: Source) -> str:
    """The tarball to write: none that the source itself is."""
    return (
        f"{source.name}{UPLOAD_SUFFIX}"
        if source.is_object or source.is_folder
        else f"{source.name}-fixed{UPLOAD_SUFFIX}"
    )


def _upload(source: Source, output: str) -> tuple[str, ...]:
    return (f"aws s3 cp {_quoted(output)} {_quoted(source.location)}",) if source.is_object else ()


def _quoted(word: str) -> str:
    """The word for a shell, on one line: what cannot be printed in bash's own form, $'…'."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(
        c
        if c.isprintable() and c not in "\\'"
        else "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogatepass"))
        for c in word
    )
    return f"$'{escaped}'"


def counted(problems: Sequence[Problem], left_out: int = 0, adjective: str = "") -> str:
    """3 problems."""
    count = sum(problem.count for problem in problems) + left_out
    return f"{count:,} {adjective}problem{'' if count == 1 else 's'}"


def described(manifest: Manifest) -> str:
    """An accepted adapter in one line."""
    return (
        f"Rank {_numbers(manifest.ranks)}, scaling {_numbers(manifest.scalings)}, {manifest.adapted_modules:,} modules, "
        f"{manifest.parameters:,} parameters, {', '.join(manifest.dtypes)}."
    )


def plain(
    problems: Sequence[Problem],
    warnings: Sequence[Problem] = (),
    max_characters: int = 4_000,
    *,
    source: Source | None = None,
    left_out: int = 0,
) -> str:
    """Lines for a cause or a mail: each problem, then how to fix it. No heading: `counted` helps to write one.

    Whole problems are left out at the end, and counted, where there is no room for them. `left_out` are further ones
    that the report itself had no room for.
    """
    source = source or Source()
    every = (*problems, *warnings)
    said: set[str] = set()
    shown: list[str] = []
    rest = sum(problem.count for problem in every) + left_out
    for problem in every:
        block = _plain_block(problem, source, said)
        left = rest - problem.count
        more = [f"… and {counted((), left, 'more ')}."] if left else []
        if len("\n".join([*shown, block, *more])) > max_characters:
            break
        shown.append(block)
        rest = left
    if rest:
        shown.append(f"… and {counted((), rest, 'more ')}.")
    return "\n".join(shown)


def _plain_block(problem: Problem, source: Source, said: set[str]) -> str:
    """A problem's lines. `said` holds the fixes that were shown before, which are not shown again."""
    warning = "Warning: " if problem.code.severity is Severity.WARNING else ""
    found = f"{warning}{problem.code}: {_message(problem)}{_CONSEQUENCE.get(problem.consequence, '')}"
    if problem.fix is None:
        fix = f"  Fix: {problem.code.how_to_fix}"
    else:
        made = steps(problem.fix, source)
        fix = "\n".join([f"  Fix: {made.text}", *(f"    {command}" for command in made.commands)])
    if fix in said:
        return f"{found}\n  Fix: as above."
    said.add(fix)
    return f"{found}\n{fix}"


def _message(problem: Problem) -> str:
    """The message, with its place where it does not say it, and further places of the same."""
    place = problem.place or ""
    text = problem.message if place in problem.message else f"{place}: {problem.message}"
    if problem.count > 1:
        others = [example for example in problem.examples if example != place]
        more = ", …" if problem.count > len(others) + 1 else ""
        text += f" {problem.count - 1:,} more like it{': ' if others else ''}{', '.join(others)}{more}"
        text += "" if text.endswith("…") else "."
    return text


def terminal(
    report: ValidationReport,
    what: str,
    profile: BaseProfile,
    *,
    source: Source,
    reason: str = "",
    columns: int,
    paint: Paint = lambda text, _colour: text,
) -> Iterator[str]:
    """The report as lines of at most `columns`, but for commands. `what` was validated; `reason` says why this profile."""
    verdict = paint("ACCEPTED", "green") if report.accepted else paint("REJECTED", "red")
    yield f"{verdict}  {printable(what)}"
    why = f" ({reason})" if reason else ""
    yield f"for {printable(profile.name)}{why}: rank up to {profile.max_lora_rank}, vLLM {profile.engine_version}"
    if report.manifest is not None:
        yield ""
        yield from rows(_manifest_rows(report.manifest), columns)
    for code, group in itertools.groupby((*report.problems, *report.warnings), key=lambda one: one.code):
        problems = tuple(group)
        yield ""
        yield f"{paint(f'{code.severity.value:<8}', _COLOUR[code.severity])} {paint(code, 'bold')}"
        yield from rows((("found", _message(problem)) for problem in problems), columns)
        if code.severity is Severity.ERROR:
            yield from rows([("served", problems[0].consequence.sentence)], columns)
        yield from rows([("fix", code.how_to_fix)], columns)
        for fix in dict.fromkeys(problem.fix for problem in problems if problem.fix is not None):
            made = steps(fix, source)
            yield from rows([("", made.text)], columns)
            yield from (" " * _LABEL_COLUMNS + command for command in made.commands)  # in one line, to be pasted


def rows(labelled: Iterable[tuple[str, str]], columns: int) -> Iterator[str]:
    """(label, text) as wrapped lines."""
    for label, text in labelled:
        yield from textwrap.wrap(
            printable(text),
            columns,
            initial_indent=f"  {label:<{_LABEL_COLUMNS - 3}} ",
            subsequent_indent=" " * _LABEL_COLUMNS,
            break_long_words=False,
            break_on_hyphens=False,
        )


def _manifest_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    rslora = ", rsLoRA" if manifest.use_rslora else ""
    yield "rank", _numbers(manifest.ranks)
    yield "scaling", f"{_numbers(manifest.scalings)} (alpha {manifest.lora_alpha:g}{rslora})"
    yield "modules", f"{', '.join(manifest.modules)} ({manifest.adapted_modules} in all)"
    if manifest.layers:
        yield "layers", layer_ranges(manifest.layers)
    yield "weights", f"{manifest.parameters:,} parameters, {', '.join(manifest.dtypes)}, {manifest.bytes / 1e6:,.1f} MB"
    yield "base", manifest.base_model or "not named"
    if manifest.peft_version:
        yield "peft", manifest.peft_version
    yield "files", ", ".join(entry.name for entry in manifest.files)
    if manifest.sha256:
        yield "sha256", manifest.sha256


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def markdown(report: ValidationReport, what: str, profile: BaseProfile, *, source: Source) -> Iterator[str]:
    """The report as Markdown, for an issue or the summary of a CI run."""
    verdict = "accepted" if report.accepted else f"rejected: {counted(report.problems)}"
    yield f"## {_escaped(what)}: {verdict}"
    yield ""
    yield f"Base {_escaped(profile.name)}: rank up to {profile.max_lora_rank}, vLLM {_escaped(profile.engine_version)}."
    if report.manifest is not None:
        yield ""
        yield _escaped(described(report.manifest))
    for problem in (*report.problems, *report.warnings):
        yield ""
        yield f"### {problem.code} ({problem.code.severity.value})"
        yield ""
        yield f"{_escaped(_message(problem))} {problem.consequence.sentence}"
        yield ""
        if problem.fix is None:
            yield f"Fix: {problem.code.how_to_fix}"
            continue
        made = steps(problem.fix, source)
        yield made.text
        yield ""
        yield "```sh"
        yield from made.commands
        yield "```"


def _escaped(text: str) -> str:
    """Text that Markdown takes as it is: nothing of an upload becomes markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-.!|~$&@:" else c for c in printable(text))
