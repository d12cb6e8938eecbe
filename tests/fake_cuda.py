"""Stand-ins for torch's graphs and streams where there is no GPU: on which device each was made and captured."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch

from apportion.core import graphs


class Graph:
    """Counts captures and replays."""

    captures: ClassVar[list[object]] = []
    replays: ClassVar[int] = 0

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        Graph.captures.append(Stream.devices[-1])

    def capture_end(self) -> None:
        pass

    def replay(self) -> None:
        Graph.replays += 1


class Stream:
    """One of the current device, as torch's are."""

    devices: ClassVar[list[object]] = ["the current one"]
    made_on: ClassVar[list[object]] = []

    def __init__(self, device: object = None) -> None:
        self.device = device or Stream.devices[-1]
        Stream.made_on.append(self.device)

    def wait_stream(self, other: "Stream") -> None:
        assert other.device == self.device

    def synchronize(self) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch, graph: type = Graph) -> None:
    """Put the stand-ins in torch's place."""

    @contextmanager
    def device(wanted: object) -> Iterator[None]:
        Stream.devices.append(wanted)
        try:
            yield
        finally:
            Stream.devices.pop()

    monkeypatch.setattr(graphs, "STREAMS", {})
    Graph.captures.clear()
    Graph.replays = 0
    Stream.made_on.clear()
    stand_ins = {"device": device, "CUDAGraph": graph, "Stream": Stream, "current_stream": Stream}
    stand_ins |= {"current_device": lambda: Stream.devices[-1]}
    stand_ins |= {"stream": lambda stream: nullcontext(), "graph_pool_handle": lambda: 1}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
