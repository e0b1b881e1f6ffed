"""What stands behind the emulated endpoints of this process: the engine, and the way to the adapters' bytes in S3."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from .engines import Engine, EngineFactory
from .errors import AdapterNotLoadedError
from .stand_in import StandInEngine

# role, region -> a client that reads as the endpoint's execution role would. moto has nobody to refuse, so the role is not used there.
S3ClientFactory = Callable[[str | None, str], Any]


def default_s3_client(_role_arn: str | None, region: str) -> Any:
    return boto3.client("s3", region_name=region)


@dataclass(frozen=True, slots=True)
class _Loaded:
    engine: Engine
    refusals: tuple[type[Exception], ...]


class Serving:
    """One base in memory for all that the process serves; it is loaded when the first component asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._factory: EngineFactory = StandInEngine
        self.s3_client: S3ClientFactory = default_s3_client

    def serve_with(self, factory: EngineFactory, s3_client: S3ClientFactory | None = None) -> None:
        with self._lock:
            self._factory, self._loaded = factory, None
            self.s3_client = s3_client or default_s3_client

    def engine(self) -> Engine:
        return self._load().engine

    def load_adapter(self, slot: str, artifact_url: str, role_arn: str | None, region: str) -> None:
        """Fetches the adapter and puts it beside the base. Raises AdapterNotLoadedError with the reason."""
        loaded = self._load()
        tarball = self._fetch(artifact_url, role_arn, region)
        try:
            loaded.engine.load_adapter(slot, tarball)
        except loaded.refusals as error:
            raise AdapterNotLoadedError(str(error)) from error

    def _load(self) -> _Loaded:
        with self._lock:
            if self._loaded is None:
                engine = self._factory()
                # Each engine brings an AdapterLoadError of its own: naming the real one here would import torch.
                refusal = vars(__import__(type(engine).__module__, fromlist=["_"]))["AdapterLoadError"]
                self._loaded = _Loaded(engine, (refusal,))
            return self._loaded

    def _fetch(self, artifact_url: str, role_arn: str | None, region: str) -> bytes:
        url = urlsplit(artifact_url)
        try:
            answer = self.s3_client(role_arn, region).get_object(Bucket=url.netloc, Key=url.path.removeprefix("/"))
            content: bytes = answer["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise AdapterNotLoadedError(f"Failed to download model data from {artifact_url}: {error}") from error
        return content


SERVING = Serving()
