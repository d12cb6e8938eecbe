"""Recorded steps: other inputs of the same shape are replayed, what cannot be recorded runs plainly and says why.

Here a graph is the work itself, run again on the inputs that it was recorded with; tests/gpu has real ones.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from apportion.bits.rounding.recorded import Recorder

VALUE = [3.0, -1.0]


class Graph:
    """Keeps what was run while it was recorded."""

    replays = 0

    def replay(self):
        Graph.replays += 1
        inputs, loss, value = self.kept
        loss.copy_((value.detach() * inputs[0]).sum())
        self.gradient.copy_(inputs[0])


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def value(monkeypatch):
    @contextmanager
    def graph(graph, **_):
        yield
        graph.gradient = moving.grad

    moving = torch.tensor(VALUE, requires_grad=True)
    Graph.replays = 0
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return moving


def working(value, seen, fails=0):
    """The product's gradient is the input; the work is told of, and fails after so many runs."""

    def work(inputs):
        seen.append(inputs[0].clone())
        if fails and len(seen) >= fails:
            raise torch.OutOfMemoryError("CUDA out of memory\nmore")
        loss = (value * inputs[0]).sum()
        loss.backward()
        loss = loss.detach()
        Graph.kept = (inputs, loss, value)
        return loss

    return work


def test_inputs_of_the_same_shape_are_replayed_and_gradients_are_not_added(value):
    recorder, seen = Recorder([value]), []
    for number in (1.0, 2.0, 5.0):
        given = torch.tensor([number, 0.5])
        value.grad = None
        loss = recorder.run(working(value, seen), (given,))
        assert torch.equal(value.grad, given)
        assert float(loss) == pytest.approx(3 * number - 0.5)
    assert len(seen) == 2  # once outside of the recording, once recorded
    assert Graph.replays == 3
    assert recorder.failure == ""


def test_inputs_of_another_shape_run_plainly(value):
    recorder, seen = Recorder([value]), []
    recorder.run(working(value, seen), (torch.ones(2),))
    value.grad = None
    recorder.run(working(value, seen), (torch.ones(1),))
    assert torch.equal(value.grad, torch.ones(2))
    assert (len(seen), Graph.replays) == (3, 1)


@pytest.mark.parametrize("run", [1, 2])
def test_what_fails_to_be_recorded_is_run_plainly_from_then_on(value, run):
    recorder, seen = Recorder([value]), []
    with pytest.raises(torch.OutOfMemoryError):  # and so does the plain run
        recorder.run(working(value, seen, fails=run), (torch.ones(2),))
    assert recorder.failure == "CUDA out of memory"
    value.grad = None
    for _ in range(2):
        assert float(recorder.run(working(value, []), (torch.ones(2),))) == 2
    assert torch.equal(value.grad, torch.full((2,), 2.0))  # plain work adds, as the work always did
    assert Graph.replays == 0
