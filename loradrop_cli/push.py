"""`loradrop push`: judge an adapter, upload it, and follow its deployment to the end."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from loradrop.names import UPLOAD_SUFFIX, AdapterNameInvalidError, check_adapter_name
from loradrop.outcome import Outcome
from loradrop.packing import adapter_below, own_entries, package, size_of
from loradrop.profile import BaseProfile, ProfileError
from loradrop.report import Report
from loradrop_client import AWS_ERRORS, LoradropError, Stack, default_stack, explained, read_stack

from .executions import RUNNING, Execution, StateView, UploadExecutions, follow, look_at
from .terminal import CommandError, Progress, megabytes, safe
from .validating import chosen_profile, print_report, validate_stream

DEPLOYED, REJECTED, FAILED, INTERRUPTED = 0, 1, 3, 130
# Events come within seconds as a rule; EventBridge itself goes on trying for a day.
START_DEADLINE_SECONDS = 120.0
POLL_SECONDS = 1.0
# From this size on, and in parts of this size.
PART_BYTES = 8 * 1024 * 1024
_TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
_CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 6}, connect_timeout=5, read_timeout=60)
# Step Functions lets an account look a few times a second; who pushes beside others looks less often, and does not give up.
_STATES_CONFIG = Config(retries={"mode": "adaptive", "total_max_attempts": 12}, connect_timeout=5, read_timeout=20)
# Stopped by hand, or at its time limit: no state of it cleaned up or wrote a report.
_UNREPORTED = (
    "The execution ended as {} and told nothing. Its component may still stand, and take a slot: push the same again, which adopts "
    "it. What is live, the registry says (docs/operations.md)."
)
_ARCHIVE_ENDINGS = (".tar.gz", ".tgz")


@dataclasses.dataclass(frozen=True, slots=True)
class _Tarball:
    """What is to be uploaded, and what the judge says of it."""

    file: BinaryIO
    size_bytes: int
    report: Report


@dataclasses.dataclass(frozen=True, slots=True)
class _Upload:
    adapter: str
    bucket: str
    key: str
    version_id: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def where_to_look(self) -> str:
        return f"aws s3 cp s3://{self.bucket}/reports/{self.adapter}.json -"


def push(arguments: argparse.Namespace) -> int:
    """The exit code. Raises CommandError for what is not the adapter's fault."""
    path = Path(arguments.path)
    adapter = _adapter(arguments.name, path)
    stack_name = arguments.stack or default_stack()
    try:
        with _explaining("sign in to AWS"):
            session = boto3.Session()
        # Where --base says what to judge by, a wrong adapter is told so without AWS.
        stack = read_stack(stack_name, session) if arguments.base is None else None
        profile = _profile(arguments, stack)
        with _tarball(path, profile) as tarball:
            if not (arguments.json and tarball.report.accepted):
                _print_verdict(arguments, adapter, stack_name, path, profile, tarball.report)
            if not tarball.report.accepted:
                return REJECTED
            stack = stack or read_stack(stack_name, session)
            return _Push(arguments, adapter, stack, session).run(tarball)
    except LoradropError as error:
        raise CommandError(str(error)) from error


def _print_verdict(
    arguments: argparse.Namespace, adapter: str, stack: str, path: Path, profile: BaseProfile, report: Report
) -> None:
    if not arguments.json:
        print_report(report, str(path), profile, as_json=False)
        if not report.accepted:
            print("\nNothing was uploaded.")
            if path.is_dir() and (inner := adapter_below(path)) is not None:
                print(safe(f"An adapter lies in {inner}; is that the one?"))
        return
    _print_json(adapter, stack, report, outcome=Outcome.REJECTED, message=report.summary())


def _print_json(adapter: str, stack: str, report: Report, **more: Any) -> None:
    """One object in one form, whatever became of the push."""
    blank: dict[str, Any] = {"outcome": None, "message": None, "component": None, "upload": None, "execution": None}
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
                f"{path} is called as every trained adapter is. Choose the name that it goes live under with --name."
            )
    try:
        check_adapter_name(name)
    except AdapterNameInvalidError as error:
        raise CommandError(f"{error} Choose one with --name.") from error
    return name


def _profile(arguments: argparse.Namespace, stack: Stack | None) -> BaseProfile:
    """What --base names; else what the stack itself judges by."""
    if stack is None:
        return chosen_profile(arguments.base, arguments)
    base = stack.parameters.get("BaseProfile")
    if base is None:
        raise CommandError(f"The stack {stack.name} has no parameter BaseProfile: it is none of loradrop's.")
    max_rank, engine = stack.parameters.get("MaxLoraRank"), stack.parameters.get("EngineVersion")
    own = argparse.Namespace(
        max_rank=arguments.max_rank if max_rank is None or arguments.max_rank is not None else int(max_rank),
        engine=arguments.engine or engine,
    )
    try:
        return chosen_profile(base, own)
    except ProfileError as error:
        raise CommandError(
            f"The stack {stack.name} judges by the profile {base!r}. {error} "
            "Name the file of that profile with --base, with --max-rank and --engine as the stack has them."
        ) from error


@contextlib.contextmanager
def _tarball(path: Path, profile: BaseProfile) -> Iterator[_Tarball]:
    """The tarball at `path`, judged; of a folder, one that is made for the while."""
    with contextlib.ExitStack() as held:
        report = None
        if path.is_dir():
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="loradrop-push-")))
            packed = folder / "adapter.tar.gz"
            with Progress("packing", size_of(own_entries(path))) as progress:
                report = package(path, packed, profile, progress.advance)
            if not report.accepted:  # then none was written
                yield _Tarball(io.BytesIO(), 0, report)
                return
            path = packed
        elif path.exists() and not path.is_file():
            raise CommandError(f"{path} is neither a file nor a folder; name a tarball, or the folder of an adapter.")
        file = held.enter_context(path.open("rb"))
        if report is None:
            report = validate_stream(file, profile)
        yield _Tarball(file, path.stat().st_size, report)


class _Push:
    """One upload, from the stack's outputs to its outcome."""

    def __init__(self, arguments: argparse.Namespace, adapter: str, stack: Stack, session: boto3.Session) -> None:
        self._arguments, self._adapter, self._stack = arguments, adapter, stack
        self._json: bool = arguments.json
        bucket, _, prefix = stack.output("UploadUri").removeprefix("s3://").partition("/")
        self._bucket, self._key = bucket, f"{prefix}{adapter}{UPLOAD_SUFFIX}"
        self._machine = stack.output("StateMachineArn")
        with _explaining("reach AWS"):
            self._s3 = session.client("s3", config=_CONFIG)
            self._states = session.client("stepfunctions", config=_STATES_CONFIG)

    def run(self, tarball: _Tarball) -> int:
        most = int(self._stack.parameters.get("MaxUploadMegabytes", "0")) * 1_000_000
        if most and tarball.size_bytes > most:
            message = (
                f"The tarball has {tarball.size_bytes:,} bytes; the stack {self._stack.name} takes at most {most:,} "
                "(its parameter MaxUploadMegabytes). Nothing was uploaded."
            )
            return self._end(tarball, REJECTED, Outcome.REJECTED, message)
        executions = None
        if not self._arguments.no_wait:
            with _explaining(f"list the executions of {self._machine}"):
                executions = UploadExecutions(self._states, self._machine)
        upload = self._upload(tarball)
        if not self._json:
            print(f"\nUploaded {megabytes(tarball.size_bytes)} to {safe(upload.uri)}, version {upload.version_id}.")
        if executions is None:
            return self._end(tarball, DEPLOYED, None, f"Its outcome will be told in: {upload.where_to_look}", upload)
        try:
            return self._follow(tarball, upload, executions)
        except LoradropError as error:
            raise CommandError(
                f"{error} The upload is done; its deployment, if it had begun, goes on. Its outcome: {upload.where_to_look}"
            ) from error

    def _upload(self, tarball: _Tarball) -> _Upload:
        """What lies in S3 afterwards is what was judged, to the byte.

        boto3 sends the SHA-256 of each request's body, of each part of a large file by itself, and S3 stores nothing that does
        not match. That the parts together are what the judge read is seen from the checksum that S3 answers with: the file's
        SHA-256, or of several parts the SHA-256 over theirs. The same is computed here, in the pass that compares the file with
        the judge's own SHA-256.
        """
        sha256, expected = _checksums(tarball.file, tarball.size_bytes)
        if sha256 != tarball.report.sha256:
            raise CommandError("The tarball changed after it was judged; is it still being written? Push it again.")
        answers: list[dict[str, Any]] = []

        def note(parsed: dict[str, Any], model: Any, **_: Any) -> None:
            if model.name in ("PutObject", "CompleteMultipartUpload"):
                answers.append(parsed)

        # The transfer returns nothing, and the newest version of the key could be another's.
        self._s3.meta.events.register("after-call.s3", note)
        tarball.file.seek(0)
        with (
            Progress("uploading", tarball.size_bytes) as progress,
            _explaining(f"upload to s3://{self._bucket}/{self._key}"),
        ):
            self._s3.upload_fileobj(
                tarball.file,
                self._bucket,
                self._key,
                ExtraArgs={"ChecksumAlgorithm": "SHA256", "ContentType": "application/gzip"},
                Callback=progress.advance,
                Config=_TRANSFER,
            )
        answer = answers[-1]
        # Of several parts S3 adds their number: …=-3.
        if answer.get("ChecksumSHA256", expected).partition("-")[0] != expected:
            raise CommandError(
                f"S3 holds other bytes than were judged, as version {answer.get('VersionId')} of s3://{self._bucket}/{self._key}; "
                "was the file written meanwhile? Push it again."
            )
        if "VersionId" not in answer:
            raise CommandError(f"The bucket {self._bucket} keeps no versions: it is none of loradrop's.")
        return _Upload(self._adapter, self._bucket, self._key, answer["VersionId"])

    def _follow(self, tarball: _Tarball, upload: _Upload, executions: UploadExecutions) -> int:
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
            print(f"\n{_goes_on(upload, arn)}", file=sys.stderr)
            return INTERRUPTED
        message = (
            "No execution has started for this upload yet. EventBridge goes on trying for a day; what it gives up lies in the "
            f"queue {self._stack.outputs.get('LostEventsQueueUrl')}. Its outcome will be told in: {upload.where_to_look}"
        )
        return self._end(tarball, FAILED, None, message, upload)

    def _execution(
        self, executions: UploadExecutions, upload: _Upload, deadline: float, besides: str | None = None
    ) -> str | None:
        deadline = min(deadline, time.monotonic() + START_DEADLINE_SECONDS)
        with _explaining("find the execution of this upload"):
            while (arn := executions.of_version(upload.version_id, besides=besides)) is None:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(POLL_SECONDS)
        return arn

    def _watch(self, arn: str, deadline: float) -> Execution:
        stream = sys.stderr if self._json else sys.stdout
        print(f"DeployAdapter, execution {arn.rpartition(':')[2]}", file=stream)
        with _explaining("follow the execution"):
            return follow(
                lambda: look_at(self._states, arn), StateView(stream), deadline=deadline, poll_seconds=POLL_SECONDS
            )

    def _conclude(self, tarball: _Tarball, upload: _Upload, execution: Execution) -> int:
        code, outcome = _meaning(execution)
        if execution.status == RUNNING:
            message = f"Not at its end after {self._arguments.timeout:g} s. {_goes_on(upload, execution.arn)}"
        else:
            message = execution.output.get("message") or execution.cause or _UNREPORTED.format(execution.status)
        return self._end(tarball, code, outcome, message, upload, execution)

    def _end(
        self,
        tarball: _Tarball,
        code: int,
        outcome: Outcome | None,
        message: str,
        upload: _Upload | None = None,
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
                upload=None if upload is None else {"uri": upload.uri, "version_id": upload.version_id},
                execution=execution.arn if execution else None,
            )
            return code
        for line in message.splitlines():
            print(safe(line))
        if outcome is Outcome.DEPLOYED:
            for line in self._examples():
                print(safe(line))
        return code

    def _examples(self) -> Iterator[str]:
        name, stack = self._adapter, self._stack.name
        yield ""
        yield "Ask it:"
        yield f'  loradrop invoke {name} "How are you?" --stack {shlex.quote(stack)}'
        yield "or in Python:"
        yield "  from loradrop_client import Adapters"
        yield f'  print(Adapters.of_stack("{stack}").chat("{name}", "How are you?"))'


def _meaning(execution: Execution) -> tuple[int, Outcome | None]:
    """Exit code and outcome. A component left behind is a fault, but the adapter is live (docs/operations.md)."""
    if execution.status == "SUCCEEDED":
        outcome = Outcome(execution.output["outcome"])
        return (DEPLOYED if outcome is Outcome.DEPLOYED else FAILED), outcome
    if execution.status == RUNNING:
        return FAILED, None
    if execution.error == "AdapterRejected":
        return REJECTED, Outcome.REJECTED
    if execution.error == "PreviousNotRetired":
        return DEPLOYED, Outcome.DEPLOYED
    return FAILED, Outcome.FAILED


def _goes_on(upload: _Upload, arn: str | None) -> str:
    look = f"aws stepfunctions describe-execution --execution-arn {arn} --query '[status, output, cause]'"
    return f"The deployment goes on. To see how it ends: {look if arn else upload.where_to_look}"


def _checksums(file: BinaryIO, size_bytes: int) -> tuple[str, str]:
    """The file's SHA-256 in hexadecimal, and the checksum that S3 makes of its parts."""
    whole, parts = hashlib.sha256(), []
    file.seek(0)
    while piece := file.read(PART_BYTES):
        whole.update(piece)
        parts.append(hashlib.sha256(piece).digest())
    composed = whole if size_bytes < PART_BYTES else hashlib.sha256(b"".join(parts))
    return whole.hexdigest(), base64.b64encode(composed.digest()).decode()


@contextlib.contextmanager
def _explaining(doing: str) -> Iterator[None]:
    try:
        yield
    except AWS_ERRORS as error:
        raise explained(error, doing) from error
