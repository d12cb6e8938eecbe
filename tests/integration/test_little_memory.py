"""Where memory runs out: the same result with fewer windows at once, or an error that says what to do."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apportion.bits.compare.activations import block_flow
from apportion.bits.compare.gradients import weight_gradients
from apportion.bits.rounding import round_plan, rounding_named
from apportion.cli import main
from apportion.core.device import place
from apportion.core.errors import OutOfMemoryError
from apportion.formats import grid_width
from apportion.models.load import load_staged
from apportion.models.staged import StagedModel

Make = Callable[..., Path]
WINDOWS = torch.randint(2, 150, (6, 24), generator=torch.Generator().manual_seed(4))
FULL = "CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has a total capacity of 139.80 GiB"


@pytest.fixture
def staged(checkpoint: Make) -> StagedModel:
    return load_staged(str(checkpoint("llama")), place("cpu", "float32"))


def holding(staged: StagedModel, most: int, failing: int = -1) -> list[int]:
    """A device that has room for so many windows in a block, and once, at a call, for none.

    Returns:
        How many windows each call of the first block was given.
    """
    asked: list[int] = []

    def watch(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        asked.append(len(given[0]))
        if len(given[0]) > most or len(asked) - 1 == failing:
            raise torch.OutOfMemoryError(FULL)

    staged.blocks[0].register_forward_pre_hook(watch)
    return asked


def test_gradients_are_those_of_all_windows_at_once(staged: StagedModel) -> None:
    expected = weight_gradients(staged, WINDOWS)
    asked = holding(staged, 3, failing=2)  # after the backward pass of a first half, which may not be counted twice
    found = weight_gradients(staged, WINDOWS)
    assert asked == [6, 3, 3, 1, 1, 1, 1, 1, 1]
    assert found.keys() == expected.keys()
    for path, gradient in found.items():
        torch.testing.assert_close(gradient, expected[path], rtol=1e-4, atol=1e-7)
    assert staged.given_up == ["gradients of 3 windows at once", "gradients of 1 windows at once"]


def test_one_window_that_does_not_fit_says_what_to_leave_out(staged: StagedModel) -> None:
    holding(staged, 0)
    with pytest.raises(OutOfMemoryError, match="gradient of one window of 24 tokens") as caught:
        weight_gradients(staged, WINDOWS)
    assert "llm-mq" in caught.value.remedy


def test_what_flows_through_blocks_is_the_same(staged: StagedModel) -> None:
    expected = block_flow(staged, WINDOWS)
    asked = holding(staged, 2)
    found = block_flow(staged, WINDOWS)
    assert found.cosine == pytest.approx(expected.cosine, rel=1e-6)
    assert found.norm == pytest.approx(expected.norm, rel=1e-6)
    assert max(asked) > 2 >= asked[-1]
    assert staged.given_up


def test_rounding_in_sequence_begins_again_with_fewer_windows(staged: StagedModel) -> None:
    widths, start = dict.fromkeys(staged.originals, grid_width(3, 16)), staged.block_tokens
    staged.block_tokens = 2 * WINDOWS.shape[1]
    expected = round_plan(staged, rounding_named("gptq"), widths, WINDOWS)
    staged.block_tokens = start
    asked = holding(staged, 2)
    found = round_plan(staged, rounding_named("gptq"), widths, WINDOWS)
    assert asked[0] == 6
    assert all(torch.equal(found[path].codes, item.codes) for path, item in expected.items())
    assert staged.given_up


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(FULL), MemoryError(), RuntimeError(FULL)])
def test_where_nothing_can_be_given_up_a_command_ends_with_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text_file: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["apportion.bits.compare.compare"], "compare", fail)
    words = ["compare", "model", "--text", text_file, "--out", "folder"]
    monkeypatch.setattr("sys.argv", ["apportion", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "error: memory ran out" in said
    assert "GPU 0" not in said
    assert "--resume" in said
