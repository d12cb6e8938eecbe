"""Several texts with shares: every draw has each file's part, one file is drawn from as ever."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.errors import InputError, require_all
from apportion.models.mixture import Calibration, Mixture, Share, checks_of, fitting, parted, read_mixture, spread
from apportion.models.text import choose, windows_of
from tests.tiny_models import make_text, make_tokenizer

SHARES = st.lists(st.sampled_from([0.01, 0.5, 1.0, 2.0, 3.0, 10.0]), min_size=1, max_size=4)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A long text and one of other words, which is a third as long."""
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text(make_text(600))
    second.write_text("another text of other words, " * 80 + "and more of other kinds. " * 60)
    return first, second


def mixture_of(*shares: Share) -> Mixture:
    return read_mixture(shares, make_tokenizer(), 24)


def owners(mixture: Mixture, windows: torch.Tensor) -> list[int]:
    """How many of the windows are each file's."""
    pools = [set(map(tuple, pool.tolist())) for pool in mixture.pools]
    return [sum(tuple(row) in pool for row in windows.tolist()) for pool in pools]


def test_every_draw_has_every_files_share(files: tuple[Path, Path]) -> None:
    found = mixture_of(Share(files[0], 3), Share(files[1]))
    drawn = found.draw(8, seed=0)
    assert drawn.windows.shape == (8, 24)
    assert drawn.source == "6 of a.txt, 2 of b.txt"
    assert drawn.bos is False
    assert owners(found, drawn.windows) == [6, 2]
    assert torch.equal(drawn.windows, found.draw(8, seed=0).windows)
    assert not torch.equal(drawn.windows, found.draw(8, seed=1).windows)
    with pytest.raises(InputError, match="1 windows of 2 texts: expected at least one of each"):
        found.draw(1, seed=0)


def test_what_is_left_has_the_shares_too_and_nothing_of_what_was_used(files: tuple[Path, Path]) -> None:
    found = mixture_of(Share(files[0], 3), Share(files[1]))
    used = found.draw(8, seed=0).windows
    fresh = found.unseen(used, 12, seed=0)
    assert owners(found, fresh) == [9, 3]
    assert not set(map(tuple, fresh.tolist())) & set(map(tuple, used.tolist()))
    assert len(found.unseen(found.pools[1], 12, seed=0)) == 0  # nothing of one file is left: no share can be kept


def test_one_file_is_drawn_from_as_before(files: tuple[Path, Path]) -> None:
    own = make_tokenizer()
    found = read_mixture(files[0], own, 24)
    assert found.most == len(windows_of(files[0], own, 24))
    drawn = found.draw(8, seed=3)
    assert torch.equal(drawn.windows, choose(windows_of(files[0], own, 24), 8, seed=3))
    assert drawn.source == str(files[0])
    fresh = found.unseen(drawn.windows, 5, seed=3)
    assert (len(fresh), owners(found, fresh)) == (5, [5])
    seen = set(map(tuple, drawn.windows.tolist()))
    left = [row for row in found.pools[0].tolist() if tuple(row) not in seen]  # the text repeats itself
    assert found.unseen(drawn.windows, 10**6, seed=3).tolist() == left
    rows = np.random.default_rng(5).permutation(40).tolist()
    assert spread([40], np.random.default_rng(5)) == rows


def test_a_file_too_short_for_its_share_is_named(files: tuple[Path, Path]) -> None:
    found = mixture_of(Share(files[0]), Share(files[1], 9))
    with pytest.raises(InputError, match=r"b\.txt has only \d+ windows of 24 tokens"):
        found.draw(found.most + 1, seed=0)
    assert sum(owners(found, found.draw(found.most, seed=0).windows)) >= found.most


@given(shares=SHARES, data=st.data())
def test_the_most_that_fits_fits_and_one_more_does_not(shares: list[float], data: st.DataObject) -> None:
    rooms = data.draw(st.lists(st.integers(1, 40), min_size=len(shares), max_size=len(shares)))
    fits = [
        count
        for count in range(len(shares), sum(rooms) + 1)
        if all(part <= room for part, room in zip(parted(shares, count), rooms, strict=True))
    ]
    assert fitting(shares, rooms) == max(fits)


@given(shares=SHARES, more=st.integers(0, 60))
def test_parts_sum_to_the_whole_and_none_is_empty(shares: list[float], more: int) -> None:
    whole = len(shares) + more
    parts = parted(shares, whole)
    assert sum(parts) == whole
    assert all(part >= 1 for part in parts)
    assert all(abs(part - 1 - more * share / sum(shares)) < 1 for part, share in zip(parts, shares, strict=True))


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_every_run_of_a_spread_order_has_the_shares(counts: list[int], seed: int) -> None:
    order = spread(counts, np.random.default_rng(seed))
    assert sorted(order) == list(range(sum(counts)))
    ends = np.cumsum(counts)
    taken = np.searchsorted(ends, order, side="right")
    for length in range(1, len(order) + 1):
        for file, count in enumerate(counts):
            ideal = length * count / sum(counts)
            assert abs((taken[:length] == file).sum() - ideal) <= len(counts)


def test_everything_wrong_with_texts_is_said_at_once(files: tuple[Path, Path]) -> None:
    first, second = files
    several = (Share(first, 0), Share(second, math.nan), Share(first.parent / "none.txt"), Share(first))
    with pytest.raises(InputError, match=r"^5 values") as raised:
        require_all(*checks_of(several, {"--windows": 3, "--tune-windows": 4}))
    for part in ("a.txt=0: expected a share above 0", "b.txt=nan", "none.txt: no such file", "a.txt: is given twice",
                 "--windows 3: expected at least 4, one of each --calibration"):  # fmt: skip
        assert part in str(raised.value)


def test_no_files_at_all_are_not_taken_for_text_of_the_models_own() -> None:
    with pytest.raises(InputError, match="--calibration: no file in it"):
        require_all(*checks_of((), {"--windows": 3}))


@pytest.mark.parametrize("calibration", [None, Path(__file__), (Share(Path(__file__), 2.0),)])
def test_what_is_right_is_let_through(calibration: Calibration) -> None:
    require_all(*checks_of(calibration, {"--windows": 1}))
