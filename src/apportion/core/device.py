"""Which device and dtype a run uses, and why. Imports torch only when asked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from apportion.core.errors import InputError

Made = TypeVar("Made")
DTYPES = ("float32", "bfloat16", "float16")
UNTOLD = 4 << 30


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, a compute dtype by name, and the reason for both."""

    device: str
    dtype: str
    reason: str


def where_not_finite(dtype: str, *also: str) -> str:
    """The remedy where a loss computed in a dtype is not finite: a wider dtype, where there is one, or what else helps.

    >>> where_not_finite("bfloat16", "another --rounding")
    'use --dtype float32 or another --rounding'
    >>> where_not_finite("float32")
    'the weights are damaged, or the checkpoint is not what its config.json says: bring it again'
    """
    ways = [*(["--dtype float32"] if dtype != "float32" else []), *also]
    if not ways:
        return "the weights are damaged, or the checkpoint is not what its config.json says: bring it again"
    return "use " + " or ".join(part for part in (", ".join(ways[:-1]), ways[-1]) if part)


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Choose device and dtype; an automatic choice carries its reason.

    Raises:
        InputError: a device that is not here, or an unknown dtype.
    """
    import torch

    if dtype not in ("auto", *DTYPES):
        raise InputError(f"--dtype {dtype}: expected auto or one of {', '.join(DTYPES)}")
    if device == "auto":
        has_cuda = torch.cuda.is_available()
        device = "cuda" if has_cuda else "cpu"
        reason = "a CUDA device is present" if has_cuda else "no CUDA device is present"
    else:
        reason = "asked for"
        require_device(device)
    if dtype == "auto":
        on_gpu = device.startswith("cuda")
        dtype = "bfloat16" if on_gpu else "float32"
        reason += f"; {dtype} is {'fastest there at the accuracy the game needs' if on_gpu else 'fast on every CPU'}"
    return Placement(device, dtype, reason)


def require_device(device: str) -> None:
    """Refuse a device that is not here, or that nothing has been tested on.

    Raises:
        InputError: neither `cpu` nor a CUDA device that torch sees.
    """
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= count:
        seen = f"torch sees {count} CUDA devices" if kind == "cuda" else "there is one CPU"
        raise InputError(f"--device {device}: {seen}", "use --device cpu or auto")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's, on a GPU or on the CPU (a RuntimeError of its allocator), or Python's.

    >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    True
    """
    text = str(error)
    kinds = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(kind in text for kind in kinds)
    )


def within_memory(work: Callable[[], Made], shrink: Callable[[], None]) -> Made:
    """Work, tried again whenever memory runs out in it, after `shrink`, which makes the next try need less, or raises.

    The error and what its frames hold are gone before `shrink` begins.

    >>> sizes = [8]
    >>> def half():
    ...     sizes.append(sizes[-1] // 2)
    >>> def work():
    ...     if sizes[-1] > 2:
    ...         raise MemoryError
    ...     return sizes[-1]
    >>> within_memory(work, half)
    2
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        shrink()


def free_memory(device: str) -> None:
    """Give what torch keeps for later back to a CUDA device."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def peak_memory() -> int | None:
    """Peak memory of this process in bytes: of the GPU that it used most, else resident; None where it is not told."""
    import sys

    import torch

    used = [torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())]
    if any(used):
        return int(max(used))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Begin anew what `peak_memory` tells of GPUs; what was resident cannot be begun anew."""
    import torch

    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def room_in_container(folder: str = "/sys/fs/cgroup") -> int | float:
    """Bytes that Linux still gives a group of processes with a limit; its files in memory can be let go of."""
    import math
    from pathlib import Path

    try:
        most, used = (Path(folder, name).read_text().strip() for name in ("memory.max", "memory.current"))
        told = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        return math.inf if most == "max" else max(0, int(most) - int(used) + int(told.get("inactive_file", 0)))
    except (OSError, ValueError):
        return math.inf


def free_bytes(device: str) -> int:
    """Memory that may be taken on a device; of a CPU's what Linux can give back too, UNTOLD bytes where no one says."""
    import os

    import torch

    if torch.device(device).type == "cuda":
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + spare
    try:
        with open("/proc/meminfo", encoding="ascii") as told:
            free = next(1024 * int(line.split()[1]) for line in told if line.startswith("MemAvailable:"))
        return int(min(free, room_in_container()))
    except (OSError, StopIteration, ValueError, IndexError):
        pass  # not Linux
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNTOLD
