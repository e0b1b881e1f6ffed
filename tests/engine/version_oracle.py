"""Asks the Python code of one version of vLLM what it makes of adapters: its PEFT helper, its parser of names, its loader.

    .engine/bin/python -P tests/engine/version_oracle.py FOLDER

FOLDER holds that version's `vllm/**.py`; "" is the installed one. Its kernels are not needed, and the packages that only other models need
are stubbed. A line of the standard input is the folder of an adapter; the answer is a line of the standard output:
{"failed": true, "error": "…"} or {"failed": false, "modules": {path: [scale, shape of lora_A, shape of lora_B]}}.
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from typing import Any

MAX_RANK = 16
MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"}
VOCABULARY = 4096
STUBBED = ("gguf",)


class _Stub(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - as a package has it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub(f"{self.__name__}.{name}")


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        is_stubbed = fullname.split(".", maxsplit=1)[0] in STUBBED
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if is_stubbed else None

    def create_module(self, spec: Any) -> Any:
        return _Stub(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"
    if sys.argv[1]:
        sys.path.insert(0, sys.argv[1])
    sys.meta_path.insert(0, _Stubs())
    import vllm.lora.lora_model as loader
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.model_executor.models.utils import WeightsMapper

    loader.PIN_MEMORY = False  # of a build for a GPU, where there is none
    limits = types.SimpleNamespace(max_lora_rank=MAX_RANK)
    for line in sys.stdin:
        folder = json.loads(line)
        try:
            helper = PEFTHelper.from_local_dir(folder, 1024)
            helper.validate_legal(limits)
            model = LoRAModel.from_local_checkpoint(
                folder,
                MODULES,
                peft_helper=helper,
                lora_model_id=1,
                device="cpu",
                model_vocab_size=VOCABULARY,
                weights_mapper=WeightsMapper(),
            )
            modules = {}
            for name, lora in model.loras.items():
                scale = float(lora.scaling)
                a, b = (None if half is None else list(half.shape) for half in (lora.lora_a, lora.lora_b))
                modules[name] = [scale if abs(scale) < 1e300 else None, a, b]
            answer: dict[str, Any] = {"failed": False, "error": "", "modules": modules}
        except Exception as error:  # noqa: BLE001 (whatever it raises is the answer)
            answer = {"failed": True, "error": f"{type(error).__name__}: {error}"[:300], "modules": {}}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
