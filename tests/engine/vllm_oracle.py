"""Asks vLLM about adapters, one after the other, in one process. Runs in the engine's own environment, and imports nothing of this one.

    .engine/bin/python -P tests/engine/vllm_oracle.py BASE

A line of the standard input is a question: {"folder": …, "prompts": [[token id, …], …]}, with a folder of null for the base. The
answer is a line of the standard output: {"failed": null | "load" | "answer", "error": "…", "likeliest": [[[token id, nats], …], …]},
for each prompt the tokens that would most likely follow, null for a log-probability that is not finite. It loads and computes with vLLM's own code, without HTTP; what raises here is an error of the server's
for "load", and the end of its engine for "answer".
"""

import json
import math
import os
import sys
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)


def main() -> None:
    # The libraries print to the standard output too: the answers have it to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        sys.argv[1],
        dtype="float32",
        enforce_eager=True,
        enable_lora=True,
        max_loras=1,
        max_cpu_loras=1,
        max_lora_rank=16,
        max_num_seqs=4,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
    )
    # Not prompt_logprobs: with LoRA on a CPU they raise as soon as two prompts come together, which ends a server's engine.
    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=8)
    for number, line in enumerate(sys.stdin, start=1):
        question = json.loads(line)
        answer: dict[str, Any] = {"failed": None, "error": "", "likeliest": []}
        lora, stage = None, "load"
        try:
            if question["folder"] is not None:
                lora = LoRARequest(f"adapter-{number}", number, question["folder"])
                llm.llm_engine.add_lora(lora)
            stage = "answer"
            prompts = [{"prompt_token_ids": ids} for ids in question["prompts"]]
            outputs = llm.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
            for output in outputs:
                (found,) = output.outputs[0].logprobs
                values = [(token, one.logprob) for token, one in found.items()]
                answer["likeliest"].append([(token, nats if math.isfinite(nats) else None) for token, nats in values])
        except Exception as error:  # noqa: BLE001 (whatever the engine raises is the answer)
            answer |= {"failed": stage, "error": f"{type(error).__name__}: {error}", "likeliest": []}
        if lora is not None:
            # A load that failed half-way leaves the adapter registered.
            llm.llm_engine.remove_lora(lora.lora_int_id)
        print(json.dumps(answer), file=answers, flush=True)
        if stage == "answer" and answer["failed"]:
            return  # the engine's state is lost: who asks starts another


if __name__ == "__main__":
    main()
