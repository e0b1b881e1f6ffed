"""vLLM itself, in a process and an environment of its own (`make engine`), asked by the routes that SageMaker uses.

An adapter is registered from its unpacked tarball by POST /adapters, unregistered by DELETE, and invoked by /invocations with the
adapter's name in a header, as AWS's containers do it. docs/engine.md says what it costs.
"""

import contextlib
import gzip
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import AdapterLoadError, EngineDiedError, EngineState, Generation, Run, Token, UnknownAdapterError

HOST = "127.0.0.1"
REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = REPOSITORY / ".engine" / "bin" / "python"
SERVER = Path(__file__).with_name("vllm_server.py")
MODEL_NAME = "base"
ADAPTER_HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
START_DEADLINE_SECONDS = 300.0
# A server whose core has died answers 500 for a moment before it ends itself.
END_DEADLINE_SECONDS = 20.0
REQUEST_SECONDS = 120.0
POLL_SECONDS = 0.1
LAST_LINES = 20
# Settings of the environment come before these.
SETTINGS = {
    # On a small base a second thread costs more than it does.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class LoraLimits:
    """With vLLM's own defaults, but for max_cpu_loras: that is max_loras there."""

    max_loras: int = 4
    max_cpu_loras: int = 16
    max_lora_rank: int = 16

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "LoraLimits":
        """From the environment of LMI's container, or of AWS's vLLM container."""
        default = cls()

        def number(name: str, otherwise: int) -> int:
            return int(environment.get(f"SM_VLLM_{name}", environment.get(f"OPTION_{name}", otherwise)))

        return cls(
            max_loras=number("MAX_LORAS", default.max_loras),
            max_cpu_loras=number("MAX_CPU_LORAS", default.max_cpu_loras),
            max_lora_rank=number("MAX_LORA_RANK", default.max_lora_rank),
        )


def not_installed() -> str | None:
    """What to do where the engine's environment is missing."""
    return None if PYTHON.is_file() else "vLLM is not installed here. Install it (3.4 GB, some minutes):\n  make engine"


class VllmEngine:
    """Starts at once and is ready later: see `state`. Thread-safe."""

    def __init__(self, model_dir: Path, limits: LoraLimits | None = None) -> None:
        self._limits = limits or LoraLimits()
        self._folder = Path(tempfile.mkdtemp(prefix="loradrop-vllm-"))
        self._log = (self._folder / "log").open("wb")
        self._port = _free_port()
        self._adapters: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._is_ready = False
        self._first_text: str | None = None  # of the token that stands before every prompt
        self._deadline = time.monotonic() + START_DEADLINE_SECONDS
        self._process = subprocess.Popen(
            # -P: or `import vllm` would find the file beside the server.
            [PYTHON, "-P", SERVER, *self._arguments(model_dir.resolve())],
            cwd=self._folder,
            env=SETTINGS | os.environ,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, which is killed as a whole
        )

    def _arguments(self, model_dir: Path) -> list[str]:
        options: dict[str, object] = {
            "model": model_dir,
            "served-model-name": MODEL_NAME,
            "host": HOST,
            "port": self._port,
            "dtype": "float32",
            "max-loras": self._limits.max_loras,
            "max-cpu-loras": self._limits.max_cpu_loras,
            "max-lora-rank": self._limits.max_lora_rank,
            "uvicorn-log-level": "warning",
        }
        return ["--enable-lora", "--enforce-eager", *(f"--{name}={value}" for name, value in options.items())]

    # Its life

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    @property
    def state(self) -> EngineState:
        if self._process.poll() is not None:
            return EngineState.DEAD
        if self._is_ready:
            return EngineState.READY
        self._is_ready = self._answers_ping()
        if not self._is_ready and time.monotonic() > self._deadline:
            self.close()
            return EngineState.DEAD
        return EngineState.READY if self._is_ready else EngineState.STARTING

    def await_ready(self) -> None:
        """Raises EngineDiedError where it does not come up."""
        while (state := self.state) is EngineState.STARTING:
            time.sleep(POLL_SECONDS)
        if state is EngineState.DEAD:
            raise EngineDiedError(self.last_words)

    @property
    def last_words(self) -> str:
        if self._process.poll() is None:
            return ""
        status = f"vLLM ended with status {self._process.returncode}"
        with contextlib.suppress(OSError):
            lines = (self._folder / "log").read_text(errors="replace").splitlines()
            errors = [line for line in lines if "Error" in line]
            return "\n".join([status, *(errors or lines)[-LAST_LINES:]])
        return status

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._kill()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill(self) -> None:
        """The server, its core and its workers, also where the server has ended before them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    # Adapters

    def load_adapter(self, name: str, tarball: bytes, *, max_rank: int | None = None) -> None:
        """The engine itself knows the highest rank: `max_rank` is what it was started with."""
        with contextlib.ExitStack() as undo:
            folder = Path(tempfile.mkdtemp(prefix="adapter-", dir=self._folder))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            _unpack(tarball, folder)
            status, answer = self._call("POST", "/adapters", {"name": name, "src": str(folder)})
            if status != 200:
                raise AdapterLoadError(_message(answer))
            undo.pop_all()
        with self._lock:
            self._adapters[name] = folder

    def unload_adapter(self, name: str) -> None:
        status, answer = self._call("DELETE", f"/adapters/{quote(name, safe='')}")
        if status == 404:
            raise UnknownAdapterError(name)
        if status != 200:
            raise RuntimeError(f"vLLM did not unregister {name}: {_message(answer)}")
        with self._lock:
            folder = self._adapters.pop(name)
        shutil.rmtree(folder, ignore_errors=True)

    def folder_of(self, name: str) -> Path:
        """Where a registered adapter lies unpacked. What is evicted is read from there again."""
        return self._adapters[name]

    # Answers

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """vLLM's own answer, as it is: (status, body)."""
        return self._call("POST", path, body, headers)

    def generate(
        self, prompt: str, *, adapter: str | None, max_new_tokens: int, temperature: float, stop: Sequence[str] = ()
    ) -> Generation:
        run = Run()
        tokens = tuple(self._tokens(run, prompt, adapter, max_new_tokens, temperature, stop))
        return Generation("".join(token.text for token in tokens), tokens, run.finish_reason, run.prompt_tokens)

    def stream(
        self,
        prompt: str,
        *,
        adapter: str | None,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str] = (),
        run: Run | None = None,
    ) -> Iterator[Token]:
        return self._tokens(run or Run(), prompt, adapter, max_new_tokens, temperature, stop)

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
        tokens = self._json("/tokenize", {"messages": list(messages), "add_generation_prompt": True})["tokens"]
        return str(self._json("/detokenize", {"tokens": tokens})["prompt"])

    def _tokens(
        self, run: Run, prompt: str, adapter: str | None, max_new_tokens: int, temperature: float, stop: Sequence[str]
    ) -> Iterator[Token]:
        prompt_ids, context_tokens = self._tokenized(prompt)
        run.prompt_tokens = len(prompt_ids)
        if len(prompt_ids) >= context_tokens:
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens and the model's context holds {context_tokens}, "
                "which leaves no room for an answer"
            )
        request = {
            "prompt": prompt_ids,
            "max_tokens": min(max_new_tokens, context_tokens - len(prompt_ids)),  # vLLM refuses more than fits
            "temperature": temperature,
            "stop": list(stop) or None,
            "logprobs": 0,  # of the chosen token
            "return_token_ids": True,
            "stream": True,
        }
        headers = {} if adapter is None else {ADAPTER_HEADER: adapter}
        with self._request("POST", "/invocations", request, headers) as response:
            if response.status != 200:
                self._raise_refusal(response.status, response.read(), adapter)
            for chunk in _events(response):
                if "error" in chunk:
                    self._raise_refusal(chunk["error"].get("code", 500), json.dumps(chunk).encode(), adapter)
                for choice in chunk["choices"]:
                    run.finish_reason = _finish_reason(choice)
                    logprobs = (choice.get("logprobs") or {}).get("token_logprobs", [])
                    texts = [choice["text"], *[""] * len(logprobs)]
                    ids = choice.get("token_ids") or []
                    for token_id, text, logprob in zip(ids, texts, logprobs, strict=False):
                        yield Token(token_id, text, float("nan") if logprob is None else logprob)
                    if not ids and choice["text"]:
                        raise RuntimeError(f"vLLM sent a text without its token: {choice}")

    def _tokenized(self, prompt: str) -> tuple[list[int], int]:
        """The prompt's tokens, and how many the model's context holds."""
        if self._first_text is None:
            marked = self._json("/tokenize", {"prompt": "", "return_token_strs": True})
            self._first_text = "".join(marked["token_strs"])
        # A chat prompt brings its own first token; a second one would be a different prompt.
        starts_itself = bool(self._first_text) and prompt.startswith(self._first_text)
        answer = self._json("/tokenize", {"prompt": prompt, "add_special_tokens": not starts_itself})
        return answer["tokens"], answer["max_model_len"]

    def _raise_refusal(self, status: int, answer: bytes, adapter: str | None) -> None:
        if status == 404 and adapter is not None:
            raise UnknownAdapterError(adapter)
        if status < 500:
            raise ValueError(_message(answer))
        self._check_alive()
        raise RuntimeError(f"vLLM failed: {_message(answer)}")

    # The wire

    def _json(self, path: str, body: dict[str, Any]) -> Any:
        status, answer = self._call("POST", path, body)
        if status != 200:
            raise ValueError(_message(answer))
        return json.loads(answer)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        with self._request(method, path, body, headers) as response:
            status, answer = response.status, response.read()
        if status >= 500:
            self._check_alive()
        return status, answer

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=REQUEST_SECONDS)
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, content, {"Content-Type": "application/json"} | dict(headers or {}))
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._check_alive()
            raise RuntimeError(f"vLLM did not answer: {error}") from error
        finally:
            connection.close()

    def _check_alive(self) -> None:
        """After a failure: raises EngineDiedError if the engine is dead or dying."""
        if self._process.poll() is None and self._answers_ping():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_DEADLINE_SECONDS)
        self._kill()
        raise EngineDiedError(self.last_words)

    def _answers_ping(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=5)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _unpack(tarball: bytes, folder: Path) -> None:
    try:
        with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
        raise AdapterLoadError(f"the tarball cannot be unpacked: {error}") from error


def _events(response: http.client.HTTPResponse) -> Iterator[Any]:
    """The JSON of each server-sent event, up to [DONE]."""
    for line in response:
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return
        if data:
            yield json.loads(data)


def _finish_reason(choice: Mapping[str, Any]) -> str:
    if choice.get("finish_reason") != "stop":
        return "length"
    return "stop" if isinstance(choice.get("stop_reason"), str) else "eos_token"


def _message(answer: bytes) -> str:
    """The sentence in vLLM's error, or all of it."""
    text = answer.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text
    error = found.get("error", found.get("detail", found)) if isinstance(found, dict) else found
    return str(error["message"] if isinstance(error, dict) and "message" in error else error)
