"""vLLM's OpenAI server, ended with whoever started it. Runs in the engine's own environment (.engine), and imports nothing of this one.

Its standard input is a pipe: when the other end closes, however that happens, the whole process group is killed: vLLM's core is a
process of its own, which would otherwise live on.
"""

import os
import runpy
import signal
import threading


def _end_with_parent() -> None:
    while os.read(0, 4096):  # not by sys.stdin, whose lock a thread may not hold as Python ends
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
