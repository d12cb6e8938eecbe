"""Every example in a docstring runs and gives what it shows; what they need is handed to them by name.

MODEL     a tiny checkpoint's folder        TEXT   a text of some thousands of tokens
HELD_OUT  another text                      OUT    an empty folder
"""

import doctest
import importlib
import pkgutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import apportion.bits
import apportion.core
import apportion.formats
import apportion.models
from tests.tiny_models import make_text

PACKAGES = (apportion.core, apportion.formats, apportion.models, apportion.bits)
GPU_ONLY = {"apportion.bits.rounding.kernels", "apportion.models.loss_kernels"}  # import triton
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if module.name not in GPU_ONLY or find_spec("triton")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(
    name: str, checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text(make_text(300))
    given = {"MODEL": str(checkpoint(blocks=2)), "TEXT": text_file, "HELD_OUT": held_out, "OUT": tmp_path / "out"}
    found = doctest.testmod(importlib.import_module(name), extraglobs=given)
    assert found.failed == 0


def test_every_public_function_of_the_bits_half_says_all_that_its_user_needs() -> None:
    """Args or none to give, what comes back, what is refused, what it costs, and an example that runs."""
    functions = ("allocate", "apply", "budget_from_bits", "budget_from_bytes", "compare", "estimate", "load")
    functions += ("open_model", "perplexity", "quantize", "take_samples")
    lacking = {
        name: [part for part in ("Args:", "Returns:", "Raises:", "Cost:", ">>> ") if part not in text]
        for name in functions
        for text in [getattr(apportion, name).__doc__ or ""]
    }
    assert not {name: parts for name, parts in lacking.items() if parts}


def test_public_names_are_the_documented_ones():
    assert all(getattr(apportion, name) is not None for name in apportion.__all__)
    assert 12 <= len(apportion.__all__) <= 50
    with pytest.raises(AttributeError, match="public names"):
        _ = apportion.nothing
