"""The machine that trains: its device, dtypes and threads, how fast it multiplies, and how much memory it has left."""

import ctypes
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"


def dtype_of(name: str) -> torch.dtype:
    """The dtype of the base's weights. Only a GPU multiplies bf16 faster than fp32 everywhere."""
    if name == "auto":
        name = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def one_thread() -> Iterator[None]:
    """A second thread saves a third of the time on an idle machine and costs ten times as much beside another program: such
    small matrices are waited for longer than they are multiplied. With one, sums come out the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def memory_available(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that a new tensor could take: what CUDA reports; else what the system and every cgroup of this process leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():  # not Linux: nothing reports what is available
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (line,) = (line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    return min([int(line.split()[1]) * 1024, *_left_by_cgroups(root)])


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """Of each limit that this process is under, in both versions of cgroups; a file cache gives way."""
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif controllers == "memory":
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        limit_file, usage_file, cache = names
        own = mount / path.lstrip("/")
        # In a container the path may be the host's: then the mount itself is the container's group.
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount) and (folder / limit_file).exists():
                limit = (folder / limit_file).read_text().strip()
                if limit != "max":
                    stat = dict(one.split() for one in (folder / "memory.stat").read_text().splitlines())
                    used = int((folder / usage_file).read_text()) - int(stat.get(cache, 0))
                    yield max(0, int(limit) - used)


def return_freed_memory() -> None:
    """Makes malloc give back at once what a step frees, as the estimate for a CPU takes for granted; to call before training.

    It costs half as much time again, so it is for where memory `is_tight`. By itself glibc raises its threshold for
    giving back up to 32 MiB, and keeps what comes to 2.3 times the estimate (docs/benchmarks.md); to set the threshold,
    to what it begins with, is what stops it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, 128 * 1024)


_M_MMAP_THRESHOLD = -3  # malloc.h


def flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Of a bare matrix product, the fastest of some: less than a second."""
    size = 8192 if device.type == "cuda" else 1024
    factor = torch.ones(size, size, device=device, dtype=dtype)
    best, begun = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - begun < 0.3:
        started = time.perf_counter()
        product = factor @ factor
        product[0, 0].item()  # waits until it is there
        # The first makes buffers and picks kernels; the fastest is what counts.
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
