"""Tuned scales and learned codes: nearer to full precision, same bytes, never worse where the state is chosen."""

import math
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from apportion.bits.rounding import distil, looks, round_plan, tuning
from apportion.bits.rounding import lesson as lessons
from apportion.bits.rounding.descent import Descent, batches
from apportion.bits.rounding.lesson import batch_of, lesson_of, loss_of, parted
from apportion.bits.rounding.looks import LOOKS
from apportion.bits.rounding.nearest import Nearest
from apportion.bits.rounding.tuning import require_tunable, tune
from apportion.core.device import place
from apportion.core.errors import InputError, OutOfMemoryError
from apportion.formats import COMPRESSED_TENSORS, HQQ, grid_width
from apportion.models.load import load_staged
from tests.learned import WINDOWS, rounded_to, same_weights, steps_of
from tests.tiny_models import KINDS


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
    assert tuned.steps in {round(24 * share) for share in LOOKS}
    assert tuned.slowed == ()
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
    monkeypatch.setattr("apportion.bits.rounding.latent.GAIN_RATE", 15.0)  # far too fast, and over before it tells
    tuned = tune(staged, rounded, lesson_of(staged, WINDOWS, 4))
    assert tuned.steps == 0
    assert tuned.after == tuned.before
    assert tuned.slowed == ()
    assert all(torch.equal(item.scale, tuned.packed[path].scale) for path, item in rounded.items())


@pytest.mark.parametrize("codes", [False, True])
def test_the_same_seed_gives_the_same_weights(checkpoint, codes):
    staged = load_staged(str(checkpoint("qwen3")), place("cpu", "float32"))
    rounded = rounded_to(staged, 2)
    first, again = (tune(staged, rounded, lesson_of(staged, WINDOWS, 6, seed=3, codes=codes)).packed for _ in range(2))
    assert same_weights(first, again)


def test_learned_codes_beat_tuned_scales_on_unseen_text(checkpoint):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded = rounded_to(staged, 2)
    scales, codes = (tune(staged, rounded, lesson_of(staged, WINDOWS, 48, codes=learn)) for learn in (False, True))
    unseen = torch.randint(2, 150, (8, 24), generator=torch.Generator().manual_seed(6))
    teacher = staged.last_hidden(unseen)
    assert loss_of(staged, codes.packed, unseen, teacher) < loss_of(staged, scales.packed, unseen, teacher)
    assert codes.learned == "codes and scales"
    assert scales.learned == "scales"
    assert codes.moved > 0 == scales.moved


def test_where_a_text_is_short_the_model_writes_on_from_its_beginnings_and_nothing_of_it_is_aside(checkpoint):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    kept, taught = parted(WINDOWS, 48, 0, batch_of(staged, WINDOWS))
    lesson = lesson_of(staged, WINDOWS, 48, codes=True)
    assert lesson.own == 48 * batch_of(staged, WINDOWS) // lessons.OFTEN - len(taught) > 0
    assert torch.equal(lesson.kept, kept)
    assert torch.equal(lesson.windows[: len(taught)], taught)
    written = lesson.windows[len(taught) :]
    assert len(written) == lesson.own
    assert torch.equal(written[: len(taught), :12], taught[:, :12])  # half a window, it being shorter than BEGINNING
    assert not torch.equal(written[: len(taught), 12:], taught[:, 12:])
    assert len({tuple(row) for row in written.tolist()}) > len(taught)  # the same beginning is not gone on with alike
    assert torch.allclose(lesson.teacher[-3:], staged.last_hidden(written[-3:]), atol=1e-5)


def test_where_beginnings_are_used_up_the_model_goes_on_from_within_the_windows():
    pieces = lessons.beginnings_of(WINDOWS[:3], 18, 4)
    assert torch.equal(pieces[:3], WINDOWS[:3, :4])
    for turn, piece in enumerate(pieces):
        assert piece.tolist() in WINDOWS[turn % 3].unfold(0, 4, 1).tolist()  # of the window whose turn it is
    assert len({tuple(piece.tolist()) for piece in pieces}) == 18  # and never the same one
    begun = torch.cat([torch.ones(3, 1, dtype=torch.long), WINDOWS[:3]], 1)
    assert (lessons.beginnings_of(begun, 18, 4)[:, 0] == 1).all()  # a beginning-of-text stays where it belongs
    assert torch.equal(lessons.beginnings_of(WINDOWS[:1], 1, 24), WINDOWS[:1])
    alone = torch.arange(8)[None]
    assert (
        lessons.beginnings_of(alone, 2, 3)[1].tolist() in alone[0].unfold(0, 3, 1).tolist()
    )  # all of one share nothing


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_full_precisions_answers_are_the_same_wherever_there_is_room_for_them(checkpoint, monkeypatch, free):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    monkeypatch.setattr(lessons, "free_bytes", lambda device: free)
    monkeypatch.setattr(lessons, "PART", 2)
    found = lessons.full_precision_hidden(staged, WINDOWS[:5])
    torch.testing.assert_close(found, staged.last_hidden(WINDOWS[:5]))


def test_where_there_is_no_room_for_full_precisions_answers_it_is_asked_anew_at_every_step(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded = round_plan(staged, Nearest(), dict.fromkeys(staged.originals, grid_width(2, 16)))
    lesson = lesson_of(staged, WINDOWS, 12, codes=True)
    kept, anew = (tune(staged, rounded, one) for one in (lesson, replace(lesson, teacher=None)))
    assert anew.execution == "plain" + tuning.ANEW
    assert kept.execution == "plain"
    assert anew.after == pytest.approx(kept.after, rel=1e-6)
    assert all(torch.equal(item.codes, anew.packed[path].codes) for path, item in kept.packed.items())
    size = lessons.hidden_bytes(staged, lesson.windows)
    for free, room in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr(lessons, "free_bytes", lambda device, free=free: free)
        assert (lesson_of(staged, WINDOWS, 12, codes=True).teacher is not None) == room


def test_scales_and_few_steps_are_learned_from_the_text_alone(checkpoint):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    assert lesson_of(staged, WINDOWS, 48).own == 0
    assert lesson_of(staged, WINDOWS, 3, codes=True).own == 0


def test_what_the_model_writes_does_not_depend_on_the_global_seed(checkpoint):
    staged = load_staged(str(checkpoint("gemma2")), place("cpu", "float32"))
    first, again = (written_after(seed, staged) for seed in (1, 2))
    assert torch.equal(first, again)


def written_after(seed, staged):
    torch.manual_seed(seed)
    return lessons.written_by(staged, WINDOWS[:4], 7, seed=0)


def test_every_linear_keeps_to_its_own_width_and_group_size(checkpoint):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    mixed = [grid_width(2, 32), grid_width(3, 16), grid_width(4, 32)]
    widths = {path: mixed[place % 3] for place, path in enumerate(staged.originals)}
    tuned = tune(staged, round_plan(staged, Nearest(), widths), lesson_of(staged, WINDOWS, 8, codes=True))
    for path, item in tuned.packed.items():
        assert item.width == widths[path]
        assert item.scale.shape[1] == item.shape[1] // widths[path].group_size
        assert widths[path].lowest <= int(item.codes.min())
        assert int(item.codes.max()) <= widths[path].highest


@pytest.mark.parametrize("vocabulary_bytes", [1, 1 << 30])
def test_the_loss_and_its_gradient_are_those_of_the_whole_model(checkpoint, monkeypatch, vocabulary_bytes):
    """In parts of one token and in one: as autograd through the model's own forward pass has it."""
    monkeypatch.setitem(distil.LOGIT_BYTES, "cpu", vocabulary_bytes)
    staged = load_staged(str(checkpoint("gemma2")), place("cpu", "float32"))
    windows, teacher = WINDOWS[:2], staged.last_hidden(WINDOWS[:2]).clone()
    path = next(iter(staged.originals))
    changed = staged.own_weight(path) * 0.5
    ours, theirs = (changed.clone().requires_grad_() for _ in range(2))
    loss = distil.predictions_gradient(staged, {path: ours}, *staged.begin(windows), teacher, 0.25)
    labels = staged.logits(teacher[:, :-1]).clone().softmax(-1)
    logits = functional_call(staged.model, {f"{path}.weight": theirs}, (windows,)).logits[:, :-1]
    wanted = -(labels * logits.log_softmax(-1)).sum(-1).mean() * 0.25
    wanted.backward()
    assert torch.allclose(loss, wanted, rtol=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("codes", "gain_rate"), [(False, 0.01), (True, 0.01), (True, 4.0)])
def test_a_killed_run_goes_on_from_its_last_look_to_the_same_weights(
    checkpoint, tmp_path, monkeypatch, codes, gain_rate
):
    monkeypatch.setattr("apportion.bits.rounding.latent.GAIN_RATE", gain_rate)
    if gain_rate > 1:  # far too fast: goes back
        monkeypatch.setattr("apportion.bits.rounding.descent.WARM_STEPS", 1)
    monkeypatch.setattr(looks, "KEEP_BYTES_S", math.inf)  # a very fast machine would keep the last look alone
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 2), lesson_of(staged, WINDOWS, 8, codes=codes)
    whole = tune(staged, rounded, lesson)
    taken = []

    def dies(descent: Descent, *given):
        taken.append(descent.done)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return step(descent, *given)

    step = Descent.step
    monkeypatch.setattr(Descent, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(staged, rounded, lesson, tmp_path)
    again = tune(staged, rounded, lesson, tmp_path)
    assert taken == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert same_weights(whole.packed, again.packed)
    assert (whole.before, whole.after, whole.steps) == (again.before, again.after, again.steps)
    assert [number for number, _ in whole.looks] == [1, 2, 4, 6, 8]
    assert min(whole.before, *(loss for _, loss in whole.looks)) == whole.after
    assert again.looks == whole.looks
    assert again.slowed == whole.slowed
    assert bool(whole.slowed) == (gain_rate > 1)


def test_a_state_that_takes_too_long_to_keep_is_kept_at_the_end_alone(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "KEEP_BYTES_S", 1.0)
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 2), lesson_of(staged, WINDOWS, 8, codes=True)
    whole = tune(staged, rounded, lesson)
    taken, packed, pack = steps_of(monkeypatch, dies_at=7), [], looks.packed_tensors
    monkeypatch.setattr(looks, "packed_tensors", lambda given: packed.append(given) or pack(given))
    with pytest.raises(KeyboardInterrupt):
        tune(staged, rounded, lesson, tmp_path)
    assert not packed  # what is not kept is not packed either
    assert same_weights(whole.packed, tune(staged, rounded, lesson, tmp_path).packed)
    assert taken == [*range(7), *range(8)]  # from the beginning
    again = tune(staged, rounded, lesson, tmp_path)
    assert len(taken) == 15
    assert same_weights(whole.packed, again.packed)
    assert (again.steps, again.after) == (whole.steps, whole.after)


def test_a_killed_run_goes_on_where_other_memory_is_free_and_the_model_writes_other_words(
    checkpoint, tmp_path, monkeypatch
):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 2), lesson_of(staged, WINDOWS, 8, codes=True)
    tune(staged, rounded, lesson, tmp_path)
    words = torch.cat([lesson.windows[: -lesson.own], lesson.windows[-lesson.own :].flip(0)])
    taken = steps_of(monkeypatch)
    again = tune(staged, rounded, replace(lesson, windows=words), tmp_path)
    assert (again.own, taken) == (lesson.own, [])
    other = torch.cat([lesson.windows[: -lesson.own].flip(0), lesson.windows[-lesson.own :]])
    tune(staged, rounded, replace(lesson, windows=other), tmp_path)
    assert len(taken) == 8


def test_scales_for_want_of_memory_go_on_where_another_amount_is_free(checkpoint, tmp_path, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 2), lesson_of(staged, WINDOWS, 4, codes=True)
    monkeypatch.setattr(tuning, "free_bytes", lambda device: 1000)
    tune(staged, rounded, lesson, tmp_path)
    monkeypatch.setattr(tuning, "free_bytes", lambda device: 2000)
    taken = steps_of(monkeypatch)
    assert tune(staged, rounded, lesson, tmp_path).learned.endswith(" 1,200 may be taken")
    assert taken == []


def test_what_was_kept_for_other_weights_is_not_gone_on_from(checkpoint, tmp_path):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    lesson = lesson_of(staged, WINDOWS, 4)
    tune(staged, rounded_to(staged, 2), lesson, tmp_path)
    kept = tune(staged, rounded_to(staged, 3), lesson, tmp_path)
    assert same_weights(kept.packed, tune(staged, rounded_to(staged, 3), lesson).packed)


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing_else(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 2), lesson_of(staged, WINDOWS, 3)
    whole = tune(staged, rounded, lesson)

    def small(staged, weights, windows, *given):
        if len(windows) > 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient(staged, weights, windows, *given)

    gradient = distil.predictions_gradient
    monkeypatch.setattr(distil, "predictions_gradient", small)
    halved = tune(staged, rounded, lesson)
    assert whole.batch == len(lesson.windows)
    assert halved.batch <= 24
    assert halved.after == pytest.approx(whole.after, rel=1e-4)


def test_a_device_too_small_for_one_window_is_a_clear_error(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))

    def none(*given):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(distil, "predictions_gradient", none)
    with pytest.raises(OutOfMemoryError, match="one window at a time"):
        tune(staged, rounded_to(staged, 2), lesson_of(staged, WINDOWS, 2))


def test_tuning_that_diverges_ends_with_the_best_state_and_says_where(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    rounded, lesson = rounded_to(staged, 2), lesson_of(staged, WINDOWS, 8)
    steps = []

    def diverges(*given):
        steps.append(gradient(*given))
        return steps[-1] * (math.nan if len(steps) > 5 else 1.0)

    gradient = distil.predictions_gradient
    monkeypatch.setattr(distil, "predictions_gradient", diverges)
    tuned = tune(staged, rounded, lesson)
    assert tuned.slowed == (6,)  # back to the best, from which it learns nothing either
    assert tuned.diverged == 8 == len(steps)
    assert tuned.steps in (1, 2, 4)
    assert tuned.after < tuned.before


def test_without_the_memory_for_codes_scales_are_tuned_and_the_result_says_so(checkpoint, monkeypatch):
    staged = load_staged(str(checkpoint("llama")), place("cpu", "float32"))
    monkeypatch.setattr(tuning, "free_bytes", lambda device: 1000)
    tuned = tune(staged, rounded_to(staged, 2), lesson_of(staged, WINDOWS, 2, codes=True))
    assert tuned.learned.startswith("scales: learning codes needs ")
    assert tuned.moved == 0


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
