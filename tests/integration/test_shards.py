"""A checkpoint too large for one file is written as several and loads again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import apportion
from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.bits.recipe import Recipe
from apportion.core.artifact import read_manifest

IDS = torch.arange(2, 22)[None]


@pytest.mark.parametrize("rounding", ["nearest", "hqq"])
def test_several_files_hold_what_one_does(
    rounding: str, checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(
        calibration=text_file, windows=2, window_tokens=24, permutations=1, group_size=32, rounding=rounding
    )
    ask, model = QuantizeRequest(avg_bits=3.0, method="shapley"), str(checkpoint(blocks=3))
    quantize(model, tmp_path / "one", ask, recipe)
    monkeypatch.setattr("apportion.bits.checkpoint.SHARD_BYTES", 9_000)  # smaller than the embedding alone
    result = quantize(model, tmp_path / "several", ask, recipe)
    parts = sorted((tmp_path / "several").glob("model-*.safetensors"))
    assert len(parts) > 5
    assert result["bytes"] == sum(part.stat().st_size for part in parts)
    listed = read_manifest(tmp_path / "several")["files"]
    assert {"model.safetensors.index.json", *(part.name for part in parts)} <= set(listed)
    one, several = (apportion.load(tmp_path / name)(IDS).logits for name in ("one", "several"))
    assert torch.equal(one, several)
