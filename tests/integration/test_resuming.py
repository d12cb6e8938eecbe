"""What an earlier run left behind is used only where it is what this run would have made."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from apportion.bits.apply import apply
from apportion.bits.game import measure
from apportion.bits.game.samples import WINDOWS
from apportion.bits.plan import allocate, budget_from_bits, estimate
from apportion.bits.quantize import QuantizeRequest, open_model, quantize
from apportion.bits.quantizer import take_samples
from apportion.bits.recipe import Recipe
from apportion.core.artifact import claim_folder
from apportion.core.errors import ArtifactCorruptError, ArtifactMismatchError, InputError
from apportion.models.text import load_calibration, read_text

Make = Callable[..., Path]


def small(text: Path | None, **changes: int | str) -> Recipe:
    given = {"windows": 2, "window_tokens": 24, "permutations": 2, "group_size": 32, "rounding": "nearest"}
    return Recipe(calibration=text, **{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("own_text", [False, True])
def test_windows_of_a_run_that_measured_nothing_are_made_anew(
    own_text: bool, checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("some other words, " * 500)
    claim_folder(tmp_path / "s", kind="samples")
    ended = open_model(str(checkpoint("qwen3", blocks=2)), small(None if own_text else other))
    ended.text_for(tmp_path / "s")  # and there it was refused, or killed
    table = open_model(str(checkpoint(blocks=2)), small(None if own_text else text_file))
    samples = take_samples(table, tmp_path / "s", resume=True)
    assert load_calibration(tmp_path / "s" / WINDOWS).digest == samples.settings["calibration"]
    anew = take_samples(table, tmp_path / "anew")
    assert anew.settings == samples.settings
    found = []
    for name in ("s", "anew"):
        with table.game(tmp_path / name, resume=True) as game:
            found.append(measure(game, samples, [(0, 1)]).values[0, 1])
    assert found[0].tolist() == found[1].tolist()


def test_samples_that_stopped_early_are_continued_where_all_are_asked_for(
    checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    table = open_model(str(checkpoint(blocks=3)), small(text_file, permutations=12))
    stopped = take_samples(table, tmp_path / "s", stop=lambda samples: True)
    assert len(stopped.orders) == 5
    again = take_samples(table, tmp_path / "s", resume=True, stop=lambda samples: True)
    assert again.counts == stopped.counts
    assert len(take_samples(table, tmp_path / "s", resume=True).orders) == 12


def test_a_plan_that_does_not_say_what_it_is_for_is_refused(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    table = open_model(str(checkpoint(blocks=2)), small(text_file))
    found = estimate(take_samples(table, tmp_path / "s"))
    plan = allocate(found, budget_from_bits(found.costs, 3.0))
    with pytest.raises(ArtifactCorruptError, match="its settings lack model, apply_rounding, players"):
        apply(str(checkpoint(blocks=2)), replace(plan, settings={}), tmp_path / "out")


def test_a_text_that_cannot_be_read_is_an_error(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read_text(text_file)


def test_what_an_earlier_run_measured_beyond_the_samples_is_counted_as_resumed(
    checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    table = open_model(str(checkpoint(blocks=3)), small(text_file))
    samples = take_samples(table, tmp_path / "s")
    plans = [item for item in product((0, 1), repeat=3) if item not in samples.values]
    counts = []
    for _ in range(2):
        samples = take_samples(table, tmp_path / "s", resume=True)
        with table.game(tmp_path / "s", resume=True) as game:
            counts.append(measure(game, samples, plans).counts)
    first, again = counts
    assert len(plans) > 0
    assert (first["evaluations"], first["resumed_evaluations"]) == (8, 0)
    assert (again["evaluations"], again["resumed_evaluations"]) == (8 - len(plans), len(plans))


def test_what_the_log_held_counts_neither_as_computed_nor_as_naive(checkpoint, text_file, tmp_path):
    table = open_model(str(checkpoint(blocks=3)), small(text_file, permutations=6))
    whole = take_samples(table, tmp_path / "s")
    assert whole.counts["naive_block_forwards"] == 3 * (1 + 6 * 3)
    (tmp_path / "s" / "samples.json").unlink()
    again = take_samples(table, tmp_path / "s", resume=True)
    assert again.counts["resumed_evaluations"] == whole.counts["evaluations"]
    assert (again.counts["block_forwards"], again.counts["naive_block_forwards"]) == (0, 0)
    with table.game(tmp_path / "s", resume=True) as game:
        more = measure(game, again, [(0, 0, 0), (1, 1, 1)])
    assert more.counts["naive_block_forwards"] == 0


def test_a_resumed_search_may_measure_more_and_never_less(
    checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is used; the plan is that of a run which was allowed as many from the start."""
    model, recipe = str(checkpoint(blocks=4)), small(text_file, players="blocks")
    fewer, more = (QuantizeRequest(avg_bits=3.0, evaluations=count, fast=True) for count in (12, 24))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("apportion.bits.quantize.finish", killed)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "out", fewer, recipe)
    monkeypatch.undo()
    resumed = quantize(model, tmp_path / "out", more, recipe, resume=True)
    assert resumed["resumed_evaluations"] > 5
    assert resumed["nll_plan"] == quantize(model, tmp_path / "whole", more, recipe)["nll_plan"]
    with pytest.raises(ArtifactMismatchError, match="another evaluations"):
        quantize(model, tmp_path / "out", fewer, recipe, resume=True)
