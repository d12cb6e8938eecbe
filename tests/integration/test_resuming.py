"""What an earlier run left behind is used only where it is what this run would have made."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from apportion.bits.apply import apply
from apportion.bits.game.samples import WINDOWS
from apportion.bits.game.sampling import calibration_for, measure, take_samples
from apportion.bits.plan.allocate import allocate
from apportion.bits.plan.budget import budget_from_bits
from apportion.bits.plan.sensitivity import estimate
from apportion.bits.quantize import open_table
from apportion.bits.recipe import Sampling
from apportion.core.artifact import claim_folder
from apportion.core.errors import ArtifactCorruptError, InputError
from apportion.models.text import load_calibration, read_text

Make = Callable[..., Path]


def small(text: Path | None, **changes: int) -> Sampling:
    given = {"windows": 2, "window_tokens": 24, "permutations": 2, "group_size": 32}
    return Sampling(calibration=text, **{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("own_text", [False, True])
def test_windows_of_a_run_that_measured_nothing_are_made_anew(
    own_text: bool, checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("some other words, " * 500)
    claim_folder(tmp_path / "s", kind="samples")
    ended = open_table(str(checkpoint("qwen3", blocks=2)), small(None if own_text else other))
    calibration_for(ended, tmp_path / "s")  # and there it was refused, or killed
    table = open_table(str(checkpoint(blocks=2)), small(None if own_text else text_file))
    samples = take_samples(table, tmp_path / "s", resume=True)
    assert load_calibration(tmp_path / "s" / WINDOWS).digest == samples.settings["calibration"]
    anew = take_samples(table, tmp_path / "anew")
    assert anew.settings == samples.settings
    plan = [(2, 4)]
    one, two = (measure(table, samples, tmp_path / name, plan).values[2, 4] for name in ("s", "anew"))
    assert one.tolist() == two.tolist()


def test_samples_that_stopped_early_are_continued_where_all_are_asked_for(
    checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    table = open_table(str(checkpoint(blocks=3)), small(text_file, permutations=12))
    stopped = take_samples(table, tmp_path / "s", stop=lambda samples: True)
    assert len(stopped.orders) == 5
    again = take_samples(table, tmp_path / "s", resume=True, stop=lambda samples: True)
    assert again.counts == stopped.counts
    assert len(take_samples(table, tmp_path / "s", resume=True).orders) == 12


def test_a_plan_that_does_not_say_what_it_is_for_is_refused(checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    table = open_table(str(checkpoint(blocks=2)), small(text_file))
    found = estimate(take_samples(table, tmp_path / "s"))
    plan = allocate(found, budget_from_bits(found, 3.0))
    with pytest.raises(ArtifactCorruptError, match="its settings lack model, apply_rounding, group_size"):
        apply(table.staged, table.tokenizer, replace(plan, settings={}), tmp_path / "out")


def test_a_text_that_cannot_be_read_is_an_error(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read_text(text_file)


def test_what_an_earlier_run_measured_beyond_the_samples_is_counted_as_resumed(
    checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    table = open_table(str(checkpoint(blocks=3)), small(text_file))
    samples = take_samples(table, tmp_path / "s")
    plans = [item for item in product((2, 4), repeat=3) if item not in samples.values]
    first = measure(table, samples, tmp_path / "s", plans).counts
    again = measure(table, take_samples(table, tmp_path / "s", resume=True), tmp_path / "s", plans).counts
    assert len(plans) > 0
    assert (first["evaluations"], first["resumed_evaluations"]) == (8, 0)
    assert (again["evaluations"], again["resumed_evaluations"]) == (8 - len(plans), len(plans))


def test_what_the_log_held_counts_neither_as_computed_nor_as_naive(checkpoint, text_file, tmp_path):
    table = open_table(str(checkpoint(blocks=3)), small(text_file, permutations=6))
    whole = take_samples(table, tmp_path / "s")
    assert whole.counts["naive_block_forwards"] == 3 * (1 + 6 * 3)
    (tmp_path / "s" / "samples.json").unlink()
    again = take_samples(table, tmp_path / "s", resume=True)
    assert again.counts["resumed_evaluations"] == whole.counts["evaluations"]
    assert (again.counts["block_forwards"], again.counts["naive_block_forwards"]) == (0, 0)
    more = measure(table, again, tmp_path / "s", [(2, 2, 2), (4, 4, 4)])
    assert more.counts["naive_block_forwards"] == 0
