"""Checkpoints that come with code: run only where it is trusted, by every step, and carried along when quantized."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import apportion
from apportion.bits.apply import apply
from apportion.bits.perplexity import perplexity
from apportion.bits.plan import plan_from
from apportion.bits.quantize import QuantizeRequest, quantize
from apportion.bits.recipe import Recipe
from apportion.core.artifact import read_json, read_manifest
from apportion.core.errors import InputError

CODE = {
    "configuration_own.py": """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own"
""",
    "modeling_own.py": """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
""",
}


def small(text: Path) -> Recipe:
    return Recipe(calibration=text, windows=2, window_tokens=24, permutations=2, group_size=32, rounding="nearest")


@pytest.fixture
def own(checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Llama whose classes are its own."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)  # an earlier test's, found in a folder of its own
    folder = Path(shutil.copytree(checkpoint(blocks=2), tmp_path / "own"))
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own", "architectures": ["OwnModel"], "loss_type": "ForCausalLM"}
                   | {"auto_map": classes})
    )  # fmt: skip
    for name, code in CODE.items():
        (folder / name).write_text(code)
    return str(folder)


@pytest.mark.parametrize("rounding", ["nearest", "hqq"])
def test_every_step_runs_code_where_it_is_trusted_and_carries_it_along(
    rounding: str, own: str, text_file: Path, tmp_path: Path
) -> None:
    recipe = Recipe(
        calibration=text_file, windows=2, window_tokens=24, permutations=2, group_size=32, rounding=rounding
    )
    ask = QuantizeRequest(avg_bits=3.0, method="coopq", trust_remote_code=True)
    out = tmp_path / "out"
    quantize(own, out, ask, recipe)
    assert set(CODE) <= set(read_manifest(out)["files"])
    shutil.rmtree(own)
    with pytest.raises(InputError, match="custom code"):
        apportion.load(out)
    with pytest.raises(InputError, match="custom code"):
        perplexity(str(out), text_file, window_tokens=24, windows=1)
    model = apportion.load(out, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert model(torch.arange(2, 42).view(2, 20)).logits.isfinite().all()
    found = perplexity(str(out), text_file, window_tokens=24, windows=1, trust_remote_code=True)
    assert found.perplexity > 1


def test_apply_runs_code_where_it_is_trusted(own: str, text_file: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        calibration=text_file, windows=2, window_tokens=24, permutations=2, group_size=32, rounding="nearest"
    )
    quantize(own, tmp_path / "out", QuantizeRequest(3.0, method="coopq", trust_remote_code=True), recipe)
    plan = plan_from(read_json(tmp_path / "out" / "plan.json"))
    with pytest.raises(InputError, match="custom code"):
        apply(own, plan, tmp_path / "again")
    apply(own, plan, tmp_path / "again", trust_remote_code=True)
    one, other = (read_manifest(tmp_path / name)["files"]["model.safetensors"] for name in ("out", "again"))
    assert one == other


def test_bars_of_other_packages_stay_off_standard_error(
    checkpoint: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("apportion.core.progress.SHOW_AFTER_S", math.inf)  # a slow machine would show our own
    recipe = Recipe(
        calibration=text_file, windows=2, window_tokens=24, permutations=2, group_size=32, rounding="nearest"
    )
    quantize(str(checkpoint(blocks=2)), tmp_path / "out", QuantizeRequest(3.0, method="coopq"), recipe)
    apportion.load(tmp_path / "out")
    perplexity(str(tmp_path / "out"), text_file, window_tokens=24, windows=1)
    assert capfd.readouterr().err == ""
    from tqdm import tqdm

    list(tqdm(range(2)))
    assert "2/2" in capfd.readouterr().err  # bars of others are hidden while we load, and no longer
