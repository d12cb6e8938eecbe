"""What the shipped model answered in all four pipelines, recorded: a profile of the train and the test split.

The model was trained on neither split: `train` is for routers, who learn on it and are judged on `test`.
Made by `benchmarks/demo_route.py`; the model card says how.
"""

from pathlib import Path

import numpy as np

from apportion.core.errors import InputError
from apportion.demo import DEFAULT_SEED, Question, thinned, world
from apportion.route.profile.file import read_profile
from apportion.route.profile.profile import Profile

RECORDED = ("train", "test")


def profile_path() -> Path:
    """The profile that ships with the package: both splits in one file."""
    return Path(__file__).parent / "profile.parquet"


def recorded(split: str) -> Profile:
    """The recorded questions of a split.

    Raises:
        InputError: no such split was recorded.
    """
    if split not in RECORDED:
        raise InputError(f"split {split!r}: was not recorded", f"choose from {', '.join(RECORDED)}")
    profile = read_profile(profile_path())
    return profile.select(np.array([name.startswith(f"{split}/") for name in profile.ids]))


def fresh_questions(count: int) -> tuple[Question, ...]:
    """Test questions that are not in the profile, in the mixture of the split."""
    known = set(recorded("test").ids)
    return thinned(tuple(one for one in world(DEFAULT_SEED).questions("test") if one.id not in known), count)
