"""Tuned scales: nearer to full precision, same codes and bytes, never worse where the state is chosen."""

import pytest
import torch

from apportion.bits.rounding import round_plan
from apportion.bits.rounding.nearest import Nearest
from apportion.bits.rounding.tuning import CHECKS, batches, lesson_of, loss_of, require_tunable, tune
from apportion.core.device import place
from apportion.core.errors import InputError
from apportion.formats import COMPRESSED_TENSORS, HQQ, grid_width
from apportion.models.load import load_staged
from tests.tiny_models import KINDS

WINDOWS = torch.randint(2, 150, (96, 24), generator=torch.Generator().manual_seed(5))


def rounded_to(staged, bits: int):
    return round_plan(staged, Nearest(), dict.fromkeys(staged.originals, grid_width(bits, 32)))


@pytest.mark.parametrize("kind", KINDS)
def test_tuning_brings_predictions_nearer_on_unseen_text_and_keeps_codes(checkpoint, kind):
    staged = load_staged(str(checkpoint(kind)), place("cpu", "float32"))
    rounded = rounded_to(staged, 2)
    own = staged.window_nll(WINDOWS).copy()
    tuned = tune(staged, rounded, lesson_of(staged, WINDOWS, 24))
    unseen = torch.randint(2, 150, (8, 24), generator=torch.Generator().manual_seed(6))
    teacher = staged.last_hidden(unseen)
    assert loss_of(staged, tuned.packed, unseen, teacher) < loss_of(staged, rounded, unseen, teacher)
    assert tuned.after < tuned.before
    assert tuned.steps in {24 * look // CHECKS for look in range(1, CHECKS + 1)}
    for path, item in rounded.items():
        after = tuned.packed[path]
        assert torch.equal(item.codes, after.codes)
        assert item.width == after.width
        assert item.scale.dtype == after.scale.dtype
        assert item.scale.shape == after.scale.shape
    assert (staged.window_nll(WINDOWS) == own).all()  # the checkpoint's own weights are back
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in staged.model.parameters())


def test_the_untuned_state_is_kept_where_tuning_makes_it_worse(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded = rounded_to(staged, 4)
    monkeypatch.setattr("apportion.bits.rounding.tuning.RATE", 3.0)  # far too fast
    tuned = tune(staged, rounded, lesson_of(staged, WINDOWS, 4))
    assert tuned.steps == 0
    assert tuned.after == tuned.before
    assert all(torch.equal(item.scale, tuned.packed[path].scale) for path, item in rounded.items())


def test_the_same_seed_gives_the_same_scales(checkpoint):
    staged = load_staged(str(checkpoint("qwen3")), place("cpu", "float32"))
    rounded = rounded_to(staged, 2)
    first, again = (tune(staged, rounded, lesson_of(staged, WINDOWS, 6, seed=3)).packed for _ in range(2))
    assert all(torch.equal(item.scale, again[path].scale) for path, item in first.items())


def test_every_window_is_taught_once_before_any_comes_again():
    taken = torch.cat(list(batches(10, 3, 10, seed=0))).tolist()
    assert sorted(taken[:10]) == sorted(taken[10:20]) == list(range(10))


def test_what_cannot_be_tuned_is_refused(checkpoint):
    with pytest.raises(InputError, match="nearest or gptq"):
        require_tunable("hqq", HQQ, 10)
    with pytest.raises(InputError, match="steps"):
        require_tunable("nearest", COMPRESSED_TENSORS, -1)
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    with pytest.raises(InputError, match="fewer than two windows"):
        lesson_of(staged, WINDOWS[:1], 2)
