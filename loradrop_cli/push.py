"""`loradrop push`: validate an adapter, upload it, and follow its deployment until it is live."""

import argparse
import base64
import contextlib
import dataclasses
import hashlib
import io
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from loradrop import rendering
from loradrop.lifecycle import Outcome
from loradrop.names import UPLOAD_SUFFIX, AdapterNameInvalidError, check_adapter_name
from loradrop.packing import adapter_below, own_entries, package, size_of
from loradrop.profile import ProfileError
from loradrop.rendering import Source
from loradrop.validation_report import ValidationReport
from loradrop_client import LoradropError, StackOutputs, default_stack, explaining, read_stack

from .executions import POLL_SECONDS, RUNNING, Execution, UploadExecutions, follow_execution
from .exit_codes import ExitCode
from .tables import print_report
from .terminal import CommandError, Progress, megabytes, print_message, safe
from .validating import ProfileChoice, validate_stream

# Events come within seconds as a rule; EventBridge itself goes on trying for a day.
START_DEADLINE_SECONDS = 120.0
# From this size on, and in parts of this size.
PART_BYTES = 8 * 1024 * 1024
_TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 6}, connect_timeout=5, read_timeout=60)
# Step Functions lets an account poll a few times a second; with many pushes at once each polls less often, and none gives up.
_STATES_CONFIG = Config(retries={"mode": "adaptive", "total_max_attempts": 12}, connect_timeout=5, read_timeout=20)
# Stopped by hand, or at its time limit: it could neither clean up nor report.
_UNREPORTED = "The execution ended as {} without an outcome. ReconcileFleet cleans up and reports the outcome within minutes. To see it:\n  {}"
_ARCHIVE_ENDINGS = (".tar.gz", ".tgz")


@dataclasses.dataclass(frozen=True, slots=True)
class Tarball:
    """What is to be uploaded, and the report on it."""

    file: BinaryIO
    size_bytes: int
    report: ValidationReport


@dataclasses.dataclass(frozen=True, slots=True)
class Upload:
    adapter: str
    bucket: str
    key: str
    version_id: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def report_command(self) -> str:
        return f"aws s3 cp s3://{self.bucket}/reports/{self.adapter}.json -"


def push(arguments: argparse.Namespace) -> int:
    """The exit code. Raises CommandError and LoradropError for what is not the adapter's fault."""
    path = Path(arguments.path)
    adapter = _adapter(arguments.name, path)
    stack_name = arguments.stack or default_stack()
    with explaining("sign in to AWS"):
        session = boto3.Session()
    # With --base no stack is needed to reject an adapter.
    stack = read_stack(stack_name, session) if arguments.base is None else None
    choice = stack_choice(arguments, stack)
    with _tarball(path, choice) as tarball:
        if not (arguments.json and tarball.report.accepted):
            _print_validation(arguments, adapter, stack_name, path, choice, tarball.report)
        if not tarball.report.accepted:
            return ExitCode.REJECTED
        stack = stack or read_stack(stack_name, session)
        return Push(arguments, adapter, stack, session).run(tarball)


def _print_validation(
    arguments: argparse.Namespace, adapter: str, stack: str, path: Path, choice: ProfileChoice, report: ValidationReport
) -> None:
    if not arguments.json:
        print_report(report, str(path), choice)
        if not report.accepted:
            print("\nNothing was uploaded.")
            if path.is_dir() and (inner := adapter_below(path)) is not None:
                print(safe(f"There is an adapter in {inner}: did you mean that folder?"))
        return
    _print_json(
        adapter,
        stack,
        report,
        outcome=Outcome.REJECTED,
        message=rendering.plain(report.problems, report.warnings, source=Source(str(path), path.is_dir())),
    )


def _print_json(adapter: str, stack: str, report: ValidationReport, **more: Any) -> None:
    """One object in one form, whatever became of the push."""
    blank: dict[str, Any] = {
        "outcome": None,
        "message": None,
        "component": None,
        "replaced": None,
        "upload": None,
        "execution": None,
    }
    print(json.dumps({"adapter": adapter, "stack": stack, **blank, **more, "validation": report.to_dict()}, indent=2))


_EVERYBODYS_NAME = "adapter"


def _adapter(name: str | None, path: Path) -> str:
    """The adapter's name: the one given, or the file's or the folder's."""
    if name is None:
        name = path.absolute().name  # of a link its own, not the one of what it stands for
        ending = next((ending for ending in _ARCHIVE_ENDINGS if name.endswith(ending)), "")
        name = name.removesuffix(ending)
        if name == _EVERYBODYS_NAME:  # as `loradrop train` writes it: it would replace somebody else's
            raise CommandError(
                f"{path} is what every trained tarball is called. Choose the adapter's name with --name NAME."
            )
    try:
        check_adapter_name(name)
    except AdapterNameInvalidError as error:
        raise CommandError(f"{error} Choose a name with --name NAME.") from error
    return name


def stack_choice(arguments: argparse.Namespace, stack: StackOutputs | None) -> ProfileChoice:
    """What --base names; else what the stack itself validates for."""
    if stack is None:
        return ProfileChoice(arguments, arguments.base)
    base = stack.parameters.get("BaseProfile")
    if base is None:
        raise CommandError(f"The stack {stack.name} has no parameter BaseProfile, so it is not a loradrop stack.")
    max_rank, engine = stack.parameters.get("MaxLoraRank"), stack.parameters.get("EngineVersion")
    own = argparse.Namespace(
        base=base,
        max_rank=arguments.max_rank if max_rank is None or arguments.max_rank is not None else int(max_rank),
        engine=arguments.engine or engine,
    )
    try:
        return ProfileChoice(own, base)
    except ProfileError as error:
        raise CommandError(
            f"The stack {stack.name} validates for the profile {base!r}. {error} "
            "Name that profile's file with --base, and the stack's limits with --max-rank and --engine."
        ) from error


@contextlib.contextmanager
def _tarball(path: Path, choice: ProfileChoice) -> Iterator[Tarball]:
    """The tarball at `path`, validated; of a folder, a temporary one."""
    with contextlib.ExitStack() as held:
        report = None
        if path.is_dir():
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="loradrop-push-")))
            packed = folder / "adapter.tar.gz"
            with Progress("packaging", size_of(own_entries(path))) as progress:
                report = package(path, packed, choice.profile, progress.advance)
            if not report.accepted:  # then none was written
                yield Tarball(io.BytesIO(), 0, report)
                return
            path = packed
        elif path.exists() and not path.is_file():
            raise CommandError(f"{path} is neither a file nor a folder; name a tarball or an adapter's folder.")
        file = held.enter_context(path.open("rb"))
        if report is None:
            report = validate_stream(file, choice)
        yield Tarball(file, path.stat().st_size, report)


class Push:
    """One upload, from the stack's outputs to its outcome."""

    def __init__(
        self, arguments: argparse.Namespace, adapter: str, stack: StackOutputs, session: boto3.Session
    ) -> None:
        self._arguments, self._adapter, self._stack = arguments, adapter, stack
        self._json: bool = arguments.json
        bucket, _, prefix = stack.output("UploadUri").removeprefix("s3://").partition("/")
        self._bucket, self._key = bucket, f"{prefix}{adapter}{UPLOAD_SUFFIX}"
        self._machine = stack.output("StateMachineArn")
        with explaining("reach AWS"):
            self._s3 = session.client("s3", config=_CONFIG)
            self._states = session.client("stepfunctions", config=_STATES_CONFIG)

    def run(self, tarball: Tarball) -> int:
        most = int(self._stack.parameters.get("MaxUploadMegabytes", "0")) * 1_000_000
        if most and tarball.size_bytes > most:
            message = (
                f"The tarball has {tarball.size_bytes:,} bytes; the stack {self._stack.name} allows at most {most:,} "
                "(its parameter MaxUploadMegabytes). Nothing was uploaded."
            )
            return self._end(tarball, ExitCode.REJECTED, Outcome.REJECTED, message)
        executions = None
        if not self._arguments.no_wait:
            with explaining(f"list the executions of {self._machine}"):
                executions = UploadExecutions(self._states, self._machine)
        upload = self._upload(tarball)
        if not self._json:
            print(f"\nUploaded {megabytes(tarball.size_bytes)} to {safe(upload.uri)}, version {upload.version_id}.")
        if executions is None:
            return self._end(
                tarball, ExitCode.DONE, None, f"To see its outcome later:\n  {upload.report_command}", upload
            )
        try:
            return self._follow(tarball, upload, executions)
        except LoradropError as error:
            raise CommandError(
                f"{error}\nThe upload is complete, and its deployment continues. To see its outcome:\n  {upload.report_command}"
            ) from error

    def _upload(self, tarball: Tarball) -> Upload:
        with Progress("uploading", tarball.size_bytes) as progress:
            return self.upload(tarball, progress.advance)

    def upload(self, tarball: Tarball, advance: Callable[[int], None]) -> Upload:
        """What is in S3 afterwards is what was validated, to the byte.

        boto3 sends the SHA-256 of each request's body, and so of each part of a large file; S3 stores nothing that does not
        match. S3 answers with a checksum of the whole: the file's SHA-256, or with several parts the SHA-256 over theirs. The
        same is computed here, in the pass that compares the file with the validator's own SHA-256.
        """
        sha256, expected = _checksums(tarball.file, tarball.size_bytes)
        if sha256 != tarball.report.sha256:
            raise CommandError("The tarball changed after it was validated. Is it still being written? Push it again.")
        answers: list[dict[str, Any]] = []

        def note(parsed: dict[str, Any], model: Any, **_: Any) -> None:
            if model.name in ("PutObject", "CompleteMultipartUpload"):
                answers.append(parsed)

        # The transfer returns nothing, and the newest version of the key could be another's.
        self._s3.meta.events.register("after-call.s3", note)
        tarball.file.seek(0)
        with explaining(f"upload to s3://{self._bucket}/{self._key}"):
            self._s3.upload_fileobj(
                tarball.file,
                self._bucket,
                self._key,
                ExtraArgs={"ChecksumAlgorithm": "SHA256", "ContentType": "application/gzip"},
                Callback=advance,
                Config=_TRANSFER,
            )
        answer = answers[-1]
        # Of several parts S3 adds their number: …=-3.
        if answer.get("ChecksumSHA256", expected).partition("-")[0] != expected:
            raise CommandError(
                f"S3 has other bytes than were validated, as version {answer.get('VersionId')} of s3://{self._bucket}/{self._key}. "
                "Was the file written meanwhile? Push it again."
            )
        if "VersionId" not in answer:
            raise CommandError(
                f"Versioning is suspended on the bucket {self._bucket}, so the stack rejects the upload. Enable it, and push again:\n"
                f"  aws s3api put-bucket-versioning --bucket {self._bucket} --versioning-configuration Status=Enabled"
            )
        return Upload(self._adapter, self._bucket, self._key, answer["VersionId"])

    def _follow(self, tarball: Tarball, upload: Upload, executions: UploadExecutions) -> int:
        deadline = time.monotonic() + self._arguments.timeout
        arn = None
        try:
            arn = self._execution(executions, upload, deadline)
            while arn is not None:
                execution = self._watch(arn, deadline)
                if execution.output.get("outcome") != "repeated":
                    return self._conclude(tarball, upload, execution)
                # The event came twice, and this execution left the upload to the other.
                arn = self._execution(executions, upload, deadline, besides=arn)
        except KeyboardInterrupt:
            print(f"\n{_continues(upload, arn)}", file=sys.stderr)
            return ExitCode.INTERRUPTED
        message = (
            "No execution has started for this upload yet. EventBridge keeps trying for a day; an event that it cannot deliver goes "
            f"to the queue {self._stack.outputs.get('LostEventsQueueUrl')}. To see the outcome:\n  {upload.report_command}"
        )
        return self._end(tarball, ExitCode.FAILED, None, message, upload)

    def _execution(
        self, executions: UploadExecutions, upload: Upload, deadline: float, besides: str | None = None
    ) -> str | None:
        deadline = min(deadline, time.monotonic() + START_DEADLINE_SECONDS)
        with Progress("waiting for the deployment to start"), explaining("find the execution of this upload"):
            while (arn := executions.of_version(upload.version_id, besides=besides)) is None:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(POLL_SECONDS)
        return arn

    def _watch(self, arn: str, deadline: float) -> Execution:
        stream = sys.stderr if self._json else sys.stdout
        return follow_execution(self._states, "DeployAdapter", arn, stream, deadline)

    def _conclude(self, tarball: Tarball, upload: Upload, execution: Execution) -> int:
        code, outcome = _meaning(execution)
        if execution.status == RUNNING:
            message = f"Not finished after {self._arguments.timeout:g} s. {_continues(upload, execution.arn)}"
        else:
            unreported = _UNREPORTED.format(execution.status, upload.report_command)
            message = execution.output.get("message") or execution.cause or unreported
        return self._end(tarball, code, outcome, message, upload, execution)

    def _end(
        self,
        tarball: Tarball,
        code: ExitCode,
        outcome: Outcome | None,
        message: str,
        upload: Upload | None = None,
        execution: Execution | None = None,
    ) -> int:
        if self._json:
            _print_json(
                self._adapter,
                self._stack.name,
                tarball.report,
                outcome=outcome,
                message=message,
                component=execution.output.get("component") if execution and outcome is Outcome.DEPLOYED else None,
                replaced=execution.output.get("replaced") if execution and outcome is Outcome.DEPLOYED else None,
                upload=None if upload is None else {"uri": upload.uri, "version_id": upload.version_id},
                execution=execution.arn if execution else None,
            )
            return code
        print_message(message)
        if outcome is Outcome.DEPLOYED:
            for line in self._examples(execution is not None and bool(execution.output.get("replaced"))):
                print(safe(line))
        return code

    def _examples(self, has_replaced: bool) -> Iterator[str]:
        name, stack = self._adapter, self._stack.name
        if has_replaced:
            yield ""
            yield "Go back to what it replaced:"
            yield f"  loradrop rollback {name} --stack {shlex.quote(stack)}"
        yield ""
        yield "Invoke it:"
        yield f'  loradrop invoke {name} "How are you?" --stack {shlex.quote(stack)}'
        yield "or in Python:"
        yield "  from loradrop_client import Adapters"
        yield f'  print(Adapters.of_stack("{stack}").chat("{name}", "How are you?"))'


def _meaning(execution: Execution) -> tuple[ExitCode, Outcome | None]:
    """Exit code and outcome. The outcome is None while it is not known."""
    if execution.status == "SUCCEEDED":
        outcome = Outcome(execution.output["outcome"])
        return (ExitCode.DONE if outcome is Outcome.DEPLOYED else ExitCode.FAILED), outcome
    if execution.error == "AdapterRejected":
        return ExitCode.REJECTED, Outcome.REJECTED
    outcomes = {"DeploymentFailed": Outcome.FAILED, "UploadWaiting": Outcome.WAITING}
    return ExitCode.FAILED, outcomes.get(execution.error)


def _continues(upload: Upload, arn: str | None) -> str:
    describe = f"aws stepfunctions describe-execution --execution-arn {arn} --query '[status, output, cause]'"
    return f"The deployment continues. To see how it ends:\n  {describe if arn else upload.report_command}"


def _checksums(file: BinaryIO, size_bytes: int) -> tuple[str, str]:
    """The file's SHA-256 in hexadecimal, and the checksum that S3 makes of its parts."""
    whole, parts = hashlib.sha256(), []
    file.seek(0)
    while piece := file.read(PART_BYTES):
        whole.update(piece)
        parts.append(hashlib.sha256(piece).digest())
    composed = whole if size_bytes < PART_BYTES else hashlib.sha256(b"".join(parts))
    return whole.hexdigest(), base64.b64encode(composed.digest()).decode()
