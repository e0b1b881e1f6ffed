"""What stands behind the emulated endpoints of this process: the engine, and the way to the adapters' bytes in S3."""

import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from ..engines import AdapterLoadError, Engine, EngineFactory, EngineState
from ..engines.stand_in import StandInEngine

# role, region -> a client that reads as the endpoint's execution role would. moto has nobody to refuse, so the role is not used there.
S3ClientFactory = Callable[[str | None, str], Any]


def default_s3_client(_role_arn: str | None, region: str) -> Any:
    return boto3.client("s3", region_name=region)


def stand_in_engine(_environment: Mapping[str, str]) -> Engine:
    return StandInEngine()


class Serving:
    """One base in memory for all that the process serves; it is loaded when the first component asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._factory: EngineFactory = stand_in_engine
        self.s3_client: S3ClientFactory = default_s3_client

    def serve_with(self, factory: EngineFactory, s3_client: S3ClientFactory | None = None) -> None:
        with self._lock:
            self._factory, self._engine = factory, None
            self.s3_client = s3_client or default_s3_client

    def start(self, environment: Mapping[str, str]) -> Engine:
        """The engine, for a base's container with this environment: the one that runs, or a new one where it has died."""
        with self._lock:
            if self._engine is None or self._engine.state is EngineState.DEAD:
                self._engine = self._factory(environment)
            return self._engine

    def engine(self) -> Engine:
        """The engine as it is, dead or alive."""
        with self._lock:
            if self._engine is None:
                self._engine = self._factory({})
            return self._engine

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.close()

    def load_adapter(
        self, slot: str, artifact_url: str, role_arn: str | None, region: str, max_rank: int | None = None
    ) -> None:
        """Fetches the adapter and puts it beside the base. Raises AdapterLoadError, EngineDiedError."""
        tarball = self._fetch(artifact_url, role_arn, region)
        self.engine().load_adapter(slot, tarball, max_rank=max_rank)

    def _fetch(self, artifact_url: str, role_arn: str | None, region: str) -> bytes:
        url = urlsplit(artifact_url)
        try:
            answer = self.s3_client(role_arn, region).get_object(Bucket=url.netloc, Key=url.path.removeprefix("/"))
            content: bytes = answer["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise AdapterLoadError(f"Failed to download model data from {artifact_url}: {error}") from error
        return content


SERVING = Serving()
