"""The walk over blocks: what moments it hands out, and what it leaves behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apportion.bits.rounding import Moments, round_all, round_plan
from apportion.bits.rounding.gptq import Gptq
from apportion.bits.rounding.nearest import Nearest
from apportion.bits.rounding.sequential import stages_of, walk
from apportion.core.device import place
from apportion.core.errors import InputError
from apportion.formats import GridWeight, Width, grid_width
from apportion.models.load import load_staged
from apportion.models.staged import StagedModel

WINDOWS = torch.randint(2, 160, (6, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["llama", "gemma2", "qwen3"])
def staged(checkpoint: Callable[..., Path], request: pytest.FixtureRequest) -> StagedModel:
    return load_staged(str(checkpoint(request.param, blocks=2)), place("cpu", "float32"))


def inputs_of_model(staged: StagedModel, path: str) -> Tensor:
    """What a linear is given by a plain forward pass of the whole model."""
    kept: list[Tensor] = []
    module = staged.model.get_submodule(path)
    handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.inference_mode():
        staged.model(input_ids=WINDOWS, use_cache=False)
    handle.remove()
    return kept[0].flatten(0, -2)


def test_stages_are_linears_with_one_input(staged: StagedModel) -> None:
    embedded = staged.embed(WINDOWS)
    found = [[name.rsplit(".", 1)[-1] for name in stage] for stage in stages_of(staged, 0, embedded.hidden, embedded)]
    assert found == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_moments_are_those_of_whole_model_forwards(staged: StagedModel) -> None:
    """Every weight becomes 0.9 of itself; each linear must see all earlier ones so, and itself not yet."""
    seen: dict[str, Moments] = {}

    def visit(path: str, moments: Moments) -> Tensor:
        seen[path] = moments
        return staged.originals[path].float() * 0.9

    walk(staged, WINDOWS, visit)
    assert list(seen) == sorted(seen, key=staged.layout.paths().index)
    full = {path: inputs_of_model(staged, path) for path in seen}
    for path in seen:
        rounded = inputs_of_model(staged, path)
        tokens = len(rounded)
        assert torch.allclose(seen[path].hessian, rounded.T @ rounded / tokens, rtol=1e-4, atol=1e-5)
        cross = seen[path].cross
        assert cross is not None
        assert torch.allclose(cross, full[path].T @ rounded / tokens, rtol=1e-4, atol=1e-5)
        module = staged.model.get_submodule(path)
        module.weight.data = module.weight.data * 0.9  # stays so for the linears after it
    staged.restore()


def test_weights_are_restored_after_a_walk(staged: StagedModel) -> None:
    before = staged.window_nll(WINDOWS)
    walk(staged, WINDOWS, lambda path, _: torch.zeros_like(staged.originals[path]), full_stream=False)
    assert (staged.window_nll(WINDOWS) == before).all()


def test_none_leaves_the_full_stream(staged: StagedModel) -> None:
    def visit(_: str, moments: Moments) -> None:
        assert moments.cross is not None
        assert torch.equal(moments.cross, moments.hessian)

    walk(staged, WINDOWS, visit, staged_blocks=False)


def test_a_plan_rounded_in_sequence_beats_nearest(staged: StagedModel) -> None:
    """On the very text of the moments: closer to the full-precision logits than rounding to nearest."""

    def distance(weights: dict[str, Tensor]) -> float:
        with torch.inference_mode():
            full = staged.model(WINDOWS).logits
            for path, weight in weights.items():
                staged.model.get_submodule(path).weight.data = weight
            found = float((staged.model(WINDOWS).logits - full).pow(2).mean())
        staged.restore()
        return found

    bits = dict.fromkeys(staged.originals, grid_width(3, 32))
    gptq = round_plan(staged, Gptq(), bits, WINDOWS)
    nearest = round_plan(staged, Nearest(), bits)
    assert list(gptq) == list(nearest) == list(bits)
    ours, theirs = ({path: item.dequantize(torch.float32) for path, item in found.items()} for found in (gptq, nearest))
    assert distance(ours) < distance(theirs)


def test_a_plan_may_mix_widths_and_group_sizes(staged: StagedModel) -> None:
    mixed = [grid_width(2, 16), grid_width(3, 32), grid_width(4, 64)]
    widths = {path: mixed[place % 3] for place, path in enumerate(staged.originals)}
    for rounding in (Gptq(rounds=1), Nearest()):
        found = round_plan(staged, rounding, widths, WINDOWS)
        for path, item in found.items():
            assert isinstance(item, GridWeight)
            assert item.width == widths[path]
            assert item.scale.shape == (item.shape[0], item.shape[1] // widths[path].group_size)


def test_a_bank_holds_every_width_and_needs_text(staged: StagedModel) -> None:
    widths = (grid_width(2, 32), grid_width(4, 32))
    found = round_all(staged, Gptq(rounds=1), widths, WINDOWS)
    assert set(found) == {(path, width) for path in staged.originals for width in widths}
    with pytest.raises(InputError, match="needs calibration text"):
        round_all(staged, Gptq(), widths)


def test_a_killed_rounding_goes_on_after_the_last_finished_block(staged: StagedModel, tmp_path: Path) -> None:
    """To the same codes and scales; the block that was under way is done again, finished ones are read."""
    rounding, widths = Gptq(rounds=1), dict.fromkeys(staged.originals, grid_width(2, 32))
    whole = round_plan(staged, rounding, widths, WINDOWS)
    in_block = len(staged.layout.linears[0])
    dying = Counted(rounding, dies_at=in_block + 2)
    with pytest.raises(KeyboardInterrupt):
        round_plan(staged, dying, widths, WINDOWS, tmp_path)
    staged.restore()
    counted = Counted(rounding)
    again = round_plan(staged, counted, widths, WINDOWS, tmp_path)
    assert counted.rounded == len(widths) - in_block
    assert list(again) == list(whole)
    for path, item in whole.items():
        assert torch.equal(item.codes, again[path].codes)
        assert torch.equal(item.scale, again[path].scale)


def test_blocks_of_another_text_are_not_gone_on_from(staged: StagedModel, tmp_path: Path) -> None:
    rounding, widths = Gptq(rounds=1), dict.fromkeys(staged.originals, grid_width(2, 32))
    round_plan(staged, rounding, widths, WINDOWS, tmp_path)
    counted = Counted(rounding)
    round_plan(staged, counted, widths, WINDOWS.flip(0), tmp_path)
    assert counted.rounded == len(widths)


def test_a_damaged_piece_is_made_again(staged: StagedModel, tmp_path: Path) -> None:
    rounding, widths = Gptq(rounds=1), dict.fromkeys(staged.originals, grid_width(2, 32))
    whole = round_plan(staged, rounding, widths, WINDOWS, tmp_path)
    piece = tmp_path / "block-0.safetensors"
    content = bytearray(piece.read_bytes())
    content[-1] ^= 1
    piece.write_bytes(content)
    counted = Counted(rounding)
    again = round_plan(staged, counted, widths, WINDOWS, tmp_path)
    assert counted.rounded == len(staged.layout.linears[0])
    assert all(torch.equal(item.codes, again[path].codes) for path, item in whole.items())


class Counted:
    """A rounding that counts, and dies when it is told to; to what is kept it is the rounding inside."""

    def __init__(self, inner: Gptq, dies_at: int = -1) -> None:
        self.inner, self.dies_at, self.rounded = inner, dies_at, 0
        self.name, self.format, self.needs_hessian = inner.name, inner.format, True

    def round(self, weight: Tensor, width: Width, moments: Moments | None = None) -> GridWeight:
        if self.rounded == self.dies_at:
            raise KeyboardInterrupt
        self.rounded += 1
        return self.inner.round(weight, width, moments)

    def __repr__(self) -> str:
        return repr(self.inner)
