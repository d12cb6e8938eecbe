"""Work recorded once as a CUDA graph and replayed: thousands of small kernels launched as one."""

from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import torch

from apportion.core.device import free_memory

Made = TypeVar("Made")
STREAMS: dict[int, torch.cuda.Stream] = {}  # by the device's number: `cuda` is the current one
LOCK = Lock()  # what another thread runs on the stream while one records would be recorded too


def recording_stream() -> torch.cuda.Stream:
    """The stream on which the current device's work is recorded, always the same: torch keeps a pool's free memory by
    stream, so graphs of one pool that were recorded on several would not share it."""
    number = torch.cuda.current_device()
    if number not in STREAMS:
        STREAMS[number] = torch.cuda.Stream()
    return STREAMS[number]


def record(
    work: Callable[[], Made],
    device: torch.device,
    *,
    first: Callable[[], object] | None = None,
    pool: Any = None,
    lean: bool = False,
) -> tuple[torch.cuda.CUDAGraph, Made]:
    """Record work on a device, whichever the current one is: what other devices do is not recorded. One at a time.

    Args:
        first: run before, unrecorded: libraries set themselves up when they are first used, which cannot be recorded.
        pool: memory that several graphs share which never run at once (`torch.cuda.graph_pool_handle`).
        lean: give what torch keeps for later back first: what is recorded has memory of its own.

    Returns:
        The graph, and what the work made, which every replay makes anew in the same place.

    Raises:
        RuntimeError: as torch has it: the work waits for the device, or memory ran out.
    """
    with LOCK, torch.cuda.device(device):
        graph, stream, current = torch.cuda.CUDAGraph(), recording_stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                if first is not None:
                    if lean:  # what other streams keep is of no use on this one
                        free_memory(str(device))
                    first()
                stream.synchronize()
                if lean:
                    free_memory(str(device))
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    made = work()
                finally:
                    graph.capture_end()
        finally:
            current.wait_stream(stream)
    return graph, made
