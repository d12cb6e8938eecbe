"""Where kernels are launched, and how their results are read."""

from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from os import environ
from shutil import which
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
Made = TypeVar("Made")


def has_kernels(device: torch.device) -> bool:
    """Whether kernels in Triton (which comes with torch for CUDA and needs a C compiler) run on a device."""
    return device.type == "cuda" and can_compile()


@cache
def can_compile() -> bool:
    return find_spec("triton") is not None and any(map(which, (environ.get("CC", "gcc"), "gcc", "clang")))


def to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host, and when it is there (None: it is); work queued after it is not waited for."""
    host = values.to("cpu", non_blocking=True)  # from a GPU into pinned memory
    if values.device.type != "cuda":
        return host, None
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(values.device))
    return host, ready


def on_its_device(launch: Callable[P, Made]) -> Callable[P, Made]:
    """Launch where the first tensor is: Triton launches on the current device, which may be another."""

    @wraps(launch)
    def launched(*given: P.args, **named: P.kwargs) -> Made:
        first = given[0]
        assert isinstance(first, Tensor)
        with torch.cuda.device(first.device):
            return launch(*given, **named)

    return launched
