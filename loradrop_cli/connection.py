"""A deployed stack as the commands that operate it have it: its outputs, and AWS's API."""

import argparse
import difflib
import functools
import shlex
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from loradrop.names import AdapterNameInvalidError, check_adapter_name
from loradrop.registry_reader import RegistryReader
from loradrop.wire import OBJECT_GONE_CODES
from loradrop_client import StackOutputs, default_stack, explaining, read_stack

from .terminal import CommandError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_stepfunctions import SFNClient

# Calls of one command at a time; DynamoDB answers in milliseconds, and Step Functions throttles.
THREADS = 16
MAX_NEAR_NAMES = 3
_one_at_a_time = threading.Lock()
NEAR = 0.5  # of difflib's ratio
_CONFIG = Config(
    retries={"mode": "adaptive", "total_max_attempts": 10}, connect_timeout=5, read_timeout=20, max_pool_connections=32
)
# S3 answers a copy of some gigabytes when it is done.
_COPY_CONFIG = _CONFIG.merge(Config(read_timeout=300))


@dataclass(frozen=True)
class Connection:
    """Clients are made when they are first used: each takes a part of a second."""

    stack: StackOutputs
    session: boto3.Session

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Connection":
        """To the stack that --stack or LORADROP_STACK names. Raises LoradropError."""
        with explaining("sign in to AWS"):
            session = boto3.Session()
        return cls(read_stack(arguments.stack or default_stack(), session), session)

    @functools.cached_property
    def registry(self) -> RegistryReader:
        return RegistryReader(self.client("dynamodb"), self.stack.output("RegistryTable"))

    @functools.cached_property
    def s3(self) -> "S3Client":
        client: S3Client = self.client("s3", _COPY_CONFIG)
        return client

    @functools.cached_property
    def executions(self) -> "SFNClient":
        client: SFNClient = self.client("stepfunctions")
        return client

    def head(self, bucket: str, key: str, **version: Any) -> Mapping[str, Any] | None:
        """The object's metadata; None if there is no such object or version, or it is a delete marker."""
        with explaining(f"read the metadata of s3://{bucket}/{key}"):
            try:
                return self.s3.head_object(Bucket=bucket, Key=key, **version)
            except ClientError as error:
                if error.response["Error"].get("Code") in OBJECT_GONE_CODES:
                    return None
                raise

    def client(self, service: str, config: Config = _CONFIG) -> Any:
        connect: Any = self.session.client
        # A session makes one client at a time; threads may be the first to use one.
        with _one_at_a_time, explaining("reach AWS"):
            return connect(service, config=config)

    def check_names(self, names: Iterable[str]) -> None:
        """Raises CommandError, with near names, for an adapter that the registry does not know."""
        for name in names:
            with explaining(f"read {name} from the registry"):
                if self.registry.state(name).revision:
                    continue
            raise CommandError(self._unknown(name))

    def command(self, *words: str) -> str:
        """A `loradrop` command for this stack, to be shown."""
        return shlex.join(["loradrop", *words, "--stack", self.stack.name])

    def _unknown(self, name: str) -> str:
        with explaining("list the adapters of the registry"):
            known = [adapter for adapter, _ in self.registry.adapters()]
        near = difflib.get_close_matches(name, known, MAX_NEAR_NAMES, NEAR)
        said = f"The stack {self.stack.name} has no adapter {name!r}."
        try:
            check_adapter_name(name)
        except AdapterNameInvalidError as error:
            said = str(error)
        if near:
            return f"{said} Did you mean {' or '.join(near)}?"
        return f"{said} To list them all:\n  {self.command('list')}"
