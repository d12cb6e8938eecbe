"""Recorded steps: other inputs of the same shape are replayed, what cannot be recorded runs plainly and says why.

Here a graph is the work itself, run again on the inputs that it was recorded with; tests/gpu has real ones.
"""

import pytest
import torch

from apportion.bits.rounding.descent import Descent, Micro
from apportion.bits.rounding.latent import Latents
from apportion.bits.rounding.recorded import Recorder
from tests.fake_cuda import Graph, Stream, install

VALUE = [3.0, -1.0]


class Replayed(Graph):
    """Keeps what was run while it was recorded."""

    def capture_end(self):
        self.gradient = MOVING[-1].grad

    def replay(self):
        super().replay()
        inputs, loss, value = Replayed.kept
        loss.copy_((value.detach() * inputs[0]).sum())
        self.gradient.copy_(inputs[0])


MOVING = []


@pytest.fixture
def value(monkeypatch):
    install(monkeypatch, Replayed)
    MOVING.append(torch.tensor(VALUE, requires_grad=True))
    return MOVING[-1]


def working(value, seen, fails=0):
    """The product's gradient is the input; the work is told of, and fails after so many runs."""

    def work(inputs):
        seen.append(inputs[0].clone())
        if fails and len(seen) >= fails:
            raise torch.OutOfMemoryError("CUDA out of memory\nmore")
        loss = (value * inputs[0]).sum()
        loss.backward()
        loss = loss.detach()
        Replayed.kept = (inputs, loss, value)
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


def test_a_recording_is_made_on_the_device_of_what_moves_whichever_is_current(value):
    """Recorded on another device's stream it would hold nothing, and every step would have the first one's gradient."""
    Recorder([value]).run(working(value, []), (torch.ones(2),))
    assert Stream.made_on
    assert set(Stream.made_on) == {value.device}


class Codes:
    steady = True

    def __init__(self, value):
        self.value = value

    def optimizer(self):
        return torch.optim.SGD([self.value], lr=0.0)

    def confine(self):
        pass


class Bare(Latents):
    """One value and no linears."""

    def __init__(self, value):
        self.codes, self.value = [Codes(value)], value

    def weights(self, dtype, progress):
        return {"w": self.value * 1}


class Task:
    """Memory for the inputs of a whole batch runs out once steps were recorded."""

    steps = 0

    def inputs(self, chosen):
        self.steps += 1
        if self.steps > 1 and len(chosen) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (torch.ones(2),)

    def gradient(self, weights, inputs, share):
        loss = (weights["w"] * inputs[0]).sum() * share
        loss.backward()
        Replayed.kept = (inputs, loss.detach(), weights["w"])
        return loss.detach()


def test_a_recording_is_let_go_when_memory_runs_out_and_the_result_says_so(value):
    """It holds what a step of the whole batch needs: beside it the halves might not fit either."""
    descent, task, batch = Descent(Bare(value), 10, torch.float32, Micro(4)), Task(), torch.arange(4)
    descent.recorder = Recorder([value])
    descent.step(task, batch)
    assert descent.execution == "recorded"
    assert descent.recorder.graph is not None
    assert float(descent.step(task, batch)) == 2
    assert torch.equal(value.grad, torch.ones(2))
    assert descent.micro.windows == 2
    assert descent.execution == "plain: memory ran out"
    assert descent.recorder.graph is None
    assert not descent.recorder.gradients
