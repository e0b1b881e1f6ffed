"""Lambda: errors by their names, throttles, and a bound on processes."""

import contextvars
import functools
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import lambda_svc

_error_class: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("error_class", default=None)

WORKER_ANSWERS = '"error": str(e), "trace": traceback.format_exc()'
WORKER_ANSWERS_IN_FULL = (
    '"error": str(e), "error_type": type(e).__name__, "stack": traceback.format_tb(e.__traceback__), '
    '"trace": traceback.format_exc()'
)

# What MiniStack says of a worker whose process has gone: the handler exited, was killed, or took too much memory.
WORKER_DIED = ("Worker process died", "Worker returned no response", "[Errno 32] Broken pipe")


def report_a_lambda_error_by_its_class() -> None:
    """Lambda reports an exception by its class name, and a process that died as Runtime.ExitError; MiniStack calls them all Runtime.HandlerError, so Retry and Catch miss."""
    script: str = lambda_runtime._PYTHON_WORKER_SCRIPT
    if WORKER_ANSWERS not in script:
        raise RuntimeError("MiniStack's Python worker does not answer as this patch expects")
    lambda_runtime._PYTHON_WORKER_SCRIPT = script.replace(WORKER_ANSWERS, WORKER_ANSWERS_IN_FULL)
    worker_invoke, execute = lambda_runtime.Worker.invoke, lambda_svc._execute_function_warm

    @functools.wraps(worker_invoke)
    def invoke(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = worker_invoke(self, *args, **kwargs)
        if answer.get("error") in WORKER_DIED:
            answer |= {"error": "Error: Runtime exited with error: signal: killed", "error_type": "Runtime.ExitError"}
        _error_class.set(answer if answer.get("error_type") else None)
        return answer

    @functools.wraps(execute)
    def execute_naming_the_class(*args: Any, **kwargs: Any) -> Any:
        _error_class.set(None)
        result = execute(*args, **kwargs)
        raised = _error_class.get()
        if result.get("error") and raised is not None:
            result["body"]["errorType"] = raised["error_type"]
            if "stack" in raised:
                result["body"]["stackTrace"] = raised["stack"]
        return result

    lambda_runtime.Worker.invoke = invoke
    lambda_svc._execute_function_warm = execute_naming_the_class


def name_throttles_as_step_functions_does() -> None:
    """A throttled invocation is Lambda.TooManyRequestsException to a state machine; MiniStack calls it Lambda.Unknown."""
    throttle = lambda_svc._throttle_response

    @functools.wraps(throttle)
    def throttle_by_name(*args: Any, **kwargs: Any) -> Any:
        response = throttle(*args, **kwargs)
        response["body"] |= {
            "errorType": "Lambda.TooManyRequestsException",
            "errorMessage": response["body"]["message"],
        }
        return response

    lambda_svc._throttle_response = throttle_by_name


# A burst goes through all functions at once: with no idle process to spare, each call would start one anew.
KEPT_FOR_EACH_AT_WORK = 3


def bound_the_processes() -> None:
    """Each function keeps the processes of its busiest moment; here all functions together keep three for each that may run."""
    acquire = lambda_runtime.acquire_worker

    @functools.wraps(acquire)
    def acquire_within_bound(*args: Any, **kwargs: Any) -> Any:
        acquired = acquire(*args, **kwargs)
        if acquired[1] == "spawn":
            _end_idle_workers(KEPT_FOR_EACH_AT_WORK * lambda_svc._ACCOUNT_CONCURRENCY_CAP)
        return acquired

    lambda_runtime.acquire_worker = lambda_svc.acquire_worker = acquire_within_bound


def _end_idle_workers(most: int) -> None:
    """Ends the workers that have been idle for longest, until there are no more than this."""
    with lambda_runtime._lock:
        workers = [(key, worker) for key, pool in lambda_runtime._workers.items() for worker in pool]
        idle = sorted((one for one in workers if not one[1].in_use), key=lambda one: one[1].last_used)
        ended = idle[: max(0, len(workers) - most)] if most > 0 else []
        for key, worker in ended:
            lambda_runtime._workers[key].remove(worker)
    lambda_runtime.kill_workers([worker for _, worker in ended])
