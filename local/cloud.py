"""The local cloud as a context manager, for tests and the demo."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

READY = "loradrop local cloud ready on "
REGION = "us-east-1"
REPOSITORY = Path(__file__).resolve().parent.parent
START_DEADLINE_SECONDS = 60.0
END_DEADLINE_SECONDS = 60.0
EngineName = Literal["stand-in", "tiny", "vllm"]


class LocalCloud:
    """Starts the local cloud in a process of its own and waits until it answers; ends it, with all that it started, at the end.

    with LocalCloud(port=0, engine="stand-in") as cloud:
        subprocess.run([...], env=os.environ | cloud.environment())
    """

    def __init__(
        self,
        port: int = 0,
        engine: EngineName = "stand-in",
        *,
        auth: bool = True,
        wait_scale: float = 1.0,
        base: Path | None = None,
        behaviour: dict[str, Any] | None = None,
        log: IO[bytes] | int | None = None,
    ) -> None:
        self._arguments = [f"--port={port}", f"--engine={engine}", "--auth" if auth else "--no-auth"]
        self._arguments.append(f"--wait-scale={wait_scale}")
        self._arguments += [f"--behaviour={json.dumps(behaviour or {})}", "--until-stdin-closes"]
        if base is not None:
            self._arguments.append(f"--base={base}")
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint_url = ""

    def __enter__(self) -> Self:
        # A pipe to its stdin: if this process dies, however it dies, the pipe closes and the cloud ends too.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "local", *self._arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self.endpoint_url = self._await_ready(self._process)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(END_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def environment(self) -> dict[str, str]:
        """What `aws`, `sam` and boto3 need to know, and nothing of this project's own."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "SAM_CLI_TELEMETRY": "0",
        }

    def behave(self, **changes: Any) -> dict[str, Any]:
        """Changes the hosting's behaviour while it runs (see local.hosting.Behaviour); the behaviour comes back."""
        return self._behaviour("PATCH", json.dumps(changes).encode())

    def behaviour(self) -> dict[str, Any]:
        return self._behaviour("GET", None)

    def _behaviour(self, method: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.endpoint_url}/_loradrop/behaviour", body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                behaviour: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["message"]) from error
        return behaviour

    def _await_ready(self, process: "subprocess.Popen[bytes]") -> str:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        deadline = time.monotonic() + START_DEADLINE_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            printed = b""
            while (left := deadline - time.monotonic()) > 0:
                selector.select(left)
                read = process.stdout.read()
                if read == b"":  # it has closed its output: it is ending
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(END_DEADLINE_SECONDS)
                    break
                printed += read or b""
                for line in printed.decode(errors="replace").splitlines():
                    if line.startswith(READY):
                        return line.removeprefix(READY).strip()
        status = process.poll()
        ended = "did not become ready" if status is None else f"ended with status {status}"
        raise RuntimeError(f"the local cloud {ended}; it printed: {printed.decode(errors='replace') or 'nothing'}")
