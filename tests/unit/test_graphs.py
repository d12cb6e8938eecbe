"""What is recorded runs on its own device, once before where that is asked for; an error ends the recording."""

import pytest
import torch

from apportion.core import graphs
from apportion.core.graphs import record
from tests.fake_cuda import Graph, Stream, install


def test_work_is_recorded_on_its_device_whichever_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    seen: list[object] = []
    device = torch.device("cpu")
    graph, made = record(lambda: seen.append(Stream.devices[-1]) or 7, device, first=lambda: seen.append("first"))
    assert made == 7
    assert isinstance(graph, Graph)
    assert seen == ["first", device]
    assert set(Stream.made_on) == {device}
    assert Graph.captures == [device]
    assert Stream.devices == ["the current one"]


def test_nothing_is_run_before_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    runs: list[int] = []
    record(lambda: runs.append(1), torch.device("cpu"))
    assert runs == [1]


def test_memory_is_given_back_before_the_first_run_and_before_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    done: list[str] = []
    monkeypatch.setattr(graphs, "free_memory", lambda device: done.append(f"free {device}"))
    record(lambda: done.append("work"), torch.device("cpu"), first=lambda: done.append("first"), lean=True)
    assert done == ["free cpu", "first", "free cpu", "work"]
    done.clear()
    record(lambda: done.append("work"), torch.device("cpu"), lean=True)
    assert done == ["free cpu", "work"]


def test_an_error_while_recording_ends_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    class Watched(Graph):
        def capture_end(self) -> None:
            ended.append(True)

    install(monkeypatch, Watched)

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        record(fails, torch.device("cpu"))
    assert ended == [True]
    assert Stream.devices == ["the current one"]
