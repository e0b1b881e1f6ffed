"""The faults of the behaviour that are not SageMaker's: Lambdas that die mid-way, and AWS calls that are refused.

Every call of a Lambda's SDK names the process that it comes from, so that a call is known to belong to an invocation.
"""

import functools
import json
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from ministack.core import iam_actions, lambda_runtime

from .hosting import CONTROL, Kill, Refusal

PROCESS_HEADER = "x-loradrop-process"
INSTALLED = 'botocore.handlers.BUILTIN_HANDLERS.append(("before-call", _ms_add_invoke_depth))'
INSTALLED_WITH_PROCESS = f"""
    def _name_the_process(params, **kwargs):
        params["headers"]["{PROCESS_HEADER}"] = str(os.getpid())

    {INSTALLED}
    botocore.handlers.BUILTIN_HANDLERS.append(("before-call", _name_the_process))
"""


@dataclass(slots=True, eq=False)
class Invocation:
    """One that runs now."""

    worker: Any
    function: str
    kill: Kill | None
    calls: int = 0
    is_killed: bool = False


_lock = threading.Lock()
_running: list[Invocation] = []


def apply() -> None:
    """Once, before a function is invoked."""
    script: str = lambda_runtime._PYTHON_WORKER_SCRIPT
    if INSTALLED not in script:
        raise RuntimeError("MiniStack's Python worker does not begin as this patch expects")
    lambda_runtime._PYTHON_WORKER_SCRIPT = script.replace(INSTALLED, INSTALLED_WITH_PROCESS.strip())
    invoke = lambda_runtime.Worker.invoke

    @functools.wraps(invoke)
    def invoke_with_fault(self: Any, *args: Any, **kwargs: Any) -> Any:
        kill = CONTROL.take_kill(self.func_name)
        if kill is not None and kill.after_calls == 0:
            return _death(kill)
        invocation = Invocation(self, self.func_name, kill)
        with _lock:
            _running.append(invocation)
        try:
            answer = invoke(self, *args, **kwargs)
        finally:
            with _lock:
                _running.remove(invocation)
        is_at_its_end = kill is not None and kill.after_calls is None
        return _death(kill) if kill is not None and (is_at_its_end or invocation.is_killed) else answer

    lambda_runtime.Worker.invoke = invoke_with_fault


def _death(kill: Kill) -> dict[str, Any]:
    message = "Task timed out" if kill.error == "Sandbox.Timedout" else "Runtime exited with error: signal: killed"
    return {"status": "error", "error": f"Error: {message}", "error_type": kill.error, "log": ""}


def invocation_of(headers: Mapping[str, str]) -> Invocation | None:
    """The running invocation that this request comes from."""
    process = headers.get(PROCESS_HEADER, "")
    with _lock:
        for invocation in _running:
            if str(getattr(invocation.worker._proc, "pid", "")) == process:
                return invocation
    return None


def dies_with_this_call(invocation: Invocation) -> bool:
    """Counts the call."""
    invocation.calls += 1
    return invocation.kill is not None and invocation.calls == invocation.kill.after_calls


def end(invocation: Invocation) -> None:
    invocation.is_killed = True
    os.kill(invocation.worker._proc.pid, signal.SIGKILL)


def action_of(method: str, path: str, query: Mapping[str, Any], headers: Mapping[str, str], body: bytes) -> str:
    """What IAM calls this request, from the service that it is signed for."""
    scope = headers.get("authorization", "").partition("Credential=")[2].partition(",")[0].split("/")
    service = scope[3] if len(scope) > 3 else ""
    if service == "s3":
        return f"s3:{iam_actions._s3_action(method, path, dict(query)) or method}"
    if "x-amz-target" in headers:
        return f"{service}:{headers['x-amz-target'].rpartition('.')[2]}"
    if path.startswith("/endpoints/"):
        return "sagemaker:InvokeEndpoint"
    return f"{service}:{(parse_qs(body.decode(errors='replace')).get('Action') or [method])[0]}"


def answer(refusal: Refusal, action: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
    """The refusal in the service's own protocol."""
    service, message = action.partition(":")[0], f"{action} was refused on request."
    if service == "sagemaker":
        content = json.dumps({"__type": refusal.code, "message": message}).encode()
        kind = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-ErrorType": refusal.code}
        return refusal.status, kind, content
    _, kind, content = iam_actions.access_denied_response(
        service, action, "", "fault", error_code=refusal.code, message=message, headers=dict(headers)
    )
    return refusal.status, kind, content
