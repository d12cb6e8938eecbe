"""Where memory runs out: the same result with fewer windows at once, or an error that says what to do."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apportion.bits.compare.activations import block_flow
from apportion.bits.compare.gradients import weight_gradients
from apportion.bits.divergence import divergence_of, reference_of
from apportion.bits.game import MeasuredGame
from apportion.bits.gguf.importance import input_squares
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import lesson_of, round_plan, rounding_named, tune
from apportion.bits.rounding.gptq import Gptq
from apportion.cli import main
from apportion.core.device import place, room_in_container
from apportion.core.errors import OutOfMemoryError
from apportion.formats import grid_width
from apportion.models.load import load_staged
from apportion.models.mixture import read_mixture
from apportion.models.pretrained import load_tokenizer
from apportion.models.staged import StagedModel

Make = Callable[..., Path]
WINDOWS = torch.randint(2, 150, (6, 24), generator=torch.Generator().manual_seed(4))
FULL = "CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has a total capacity of 139.80 GiB"


@pytest.fixture
def staged(checkpoint: Make) -> StagedModel:
    return load_staged(str(checkpoint("llama")), place("cpu", "float32"))


def holding(staged: StagedModel, most: int, *failing: int, block: int = 0) -> list[int]:
    """A device that has room for so many windows in a block and, at some of its calls, for none.

    Returns:
        How many windows each call of the block was given.
    """
    asked: list[int] = []

    def watch(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if given[0].shape[1] == 1:  # the head is given its tokens so
            return
        asked.append(len(given[0]))
        if len(given[0]) > most or len(asked) - 1 in failing:
            raise torch.OutOfMemoryError(FULL)

    staged.blocks[block].register_forward_pre_hook(watch)
    return asked


def test_gradients_are_those_of_all_windows_at_once(staged: StagedModel) -> None:
    expected = weight_gradients(staged, WINDOWS)
    asked = holding(staged, 3, 2)  # after the backward pass of a first half, which may not be counted twice
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


def test_a_copy_that_was_cut_off_leaves_the_model_as_it_was(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = load_staged(str(checkpoint("llama")), place("cpu", "bfloat16"))
    before = staged.window_nll(WINDOWS)
    honest, cast = torch.Tensor.to, []

    def limited(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args == (torch.float32,):
            cast.append(tensor)
            if len(cast) == 20:
                raise torch.OutOfMemoryError(FULL)
        return honest(tensor, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", limited)
        with pytest.raises(OutOfMemoryError, match="a copy of the weights"):
            weight_gradients(staged, WINDOWS)
    assert {item.dtype for item in staged.model.parameters()} == {torch.bfloat16}
    assert (staged.window_nll(WINDOWS) == before).all()


def test_rounding_in_sequence_begins_again_with_fewer_windows(staged: StagedModel) -> None:
    """Cut off in block 2, with rounded weights in place of blocks before it."""
    widths, start = dict.fromkeys(staged.originals, grid_width(3, 16)), staged.block_tokens
    staged.block_tokens = 3 * WINDOWS.shape[1]
    expected = round_plan(staged, rounding_named("gptq"), widths, WINDOWS)
    staged.block_tokens = start
    asked = holding(staged, 6, 5, block=2)
    found = round_plan(staged, rounding_named("gptq"), widths, WINDOWS)
    assert asked[:6] == [6] * 6
    assert set(asked[6:]) == {3}
    assert all(torch.equal(found[path].codes, item.codes) for path, item in expected.items())
    assert staged.given_up == ["72 tokens at once"]
    assert all(torch.equal(staged.model.get_submodule(path).weight, own) for path, own in staged.originals.items())


@pytest.mark.parametrize("lasting", [False, True])
def test_a_linear_whose_rounding_does_not_fit_is_tried_once_more_and_named(
    staged: StagedModel, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    widths = dict.fromkeys(staged.originals, grid_width(3, 16))
    honest, tried = Gptq.round, []

    def limited(rounding: Gptq, *args: Any) -> Any:
        tried.append(None)
        if len(tried) == 4 or (lasting and len(tried) == 5):
            raise torch.OutOfMemoryError(FULL)
        return honest(rounding, *args)

    monkeypatch.setattr(Gptq, "round", limited)
    if lasting:
        with pytest.raises(OutOfMemoryError, match=r"while model\.layers\.0\.\S+ was rounded"):
            round_plan(staged, rounding_named("gptq"), widths, WINDOWS)
    else:
        round_plan(staged, rounding_named("gptq"), widths, WINDOWS)
        assert len(tried) == len(widths) + 1
    assert not staged.given_up


def test_importance_counts_no_pass_that_was_cut_off(staged: StagedModel) -> None:
    expected = input_squares(staged, WINDOWS)
    holding(staged, 6, 0, block=2)
    found = input_squares(staged, WINDOWS)
    assert found.keys() == expected.keys()
    for path, squares in found.items():
        torch.testing.assert_close(squares, expected[path], rtol=1e-4, atol=1e-8)
    assert staged.given_up


def test_divergence_is_that_of_all_windows_at_once(staged: StagedModel) -> None:
    reference = reference_of(staged, WINDOWS)
    with staged.in_place(
        round_plan(staged, rounding_named("nearest"), dict.fromkeys(staged.originals, grid_width(3, 16)))
    ):
        expected = divergence_of(reference, staged)
        asked = holding(staged, 6, 0, block=2)
        found = divergence_of(reference, staged)
    assert asked == [6, 3, 3, 3, 3]  # embedded, then run
    assert found.kl == pytest.approx(expected.kl, rel=1e-3, abs=1e-6)
    assert found.kl.mean() > 0.01


def test_what_others_gave_up_does_not_keep_a_game_from_decoding_once(staged: StagedModel, text_file: Path) -> None:
    tokenizer = load_tokenizer(staged.source)
    bank = Quantizer(staged, tokenizer, Recipe(group_size=16)).bank
    text = read_mixture(text_file, tokenizer, 24).draw(2, seed=0)
    staged.given_up.append("gradients of 1 windows at once")
    game = MeasuredGame(bank, text)
    game.values([bank.costs.uniform(0)])
    assert bank.cache.limit > 0
    assert "nothing is kept" not in game.execution()["decoded_cache"]


def test_answers_asked_anew_are_not_kept_and_a_step_is_halved_with_them(staged: StagedModel) -> None:
    widths = dict.fromkeys(staged.originals, grid_width(2, 16))
    rounded = round_plan(staged, rounding_named("nearest"), widths)
    lesson = replace(lesson_of(staged, WINDOWS.repeat(4, 1), 6), teacher=None)
    size = len(lesson.windows)
    kept = len(staged._embedded.kept)
    assert tune(staged, rounded, lesson).batch == size
    assert len(staged._embedded.kept) == kept
    holding(staged, size // 2)
    assert tune(staged, rounded, lesson).batch == size // 2


def test_the_room_of_a_container_is_what_its_limit_leaves(tmp_path: Path) -> None:
    assert room_in_container(str(tmp_path)) == float("inf")
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "700\n"),
        ("memory.stat", "anon 500\ninactive_file 150"),
    ):
        (tmp_path / name).write_text(text)
    assert room_in_container(str(tmp_path)) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert room_in_container(str(tmp_path)) == float("inf")


def test_words_about_memory_in_a_wrong_command_are_no_lack_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["apportion", "perplexity", "m", "--text", "t", "out of memory"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "memory ran out" not in capsys.readouterr().err


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
    assert "smaller --window-tokens, --device cpu, into another --out" in said
