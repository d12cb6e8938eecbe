"""Fixtures for all tests. Shapes in annotations are checked at run time here and nowhere else.

`tests/gpu` must also run on a machine that has torch, transformers, jaxtyping and pyscipopt but not all that `dev`
installs: without beartype shapes are not checked there.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

try:
    import tests.checked  # noqa: F401  the hook below names it
except ModuleNotFoundError as error:
    if error.name != "beartype":
        raise
else:
    ROOMS = ("llm", "index", "ask", "profile", "router", "evaluation")
    BITS = Path(__file__).parents[1] / "src/apportion/bits"
    names = [path.stem for path in BITS.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    checked = [f"apportion.bits.{name}" for name in names if name not in ("__init__", "rounding")]
    # not the kernels: what the hook makes of them Triton cannot compile
    checked += [f"apportion.bits.rounding.{path.stem}" for path in BITS.glob("rounding/*.py") if path.stem != "kernels"]
    install_import_hook([*checked, *(f"apportion.route.{room}" for room in ROOMS)], "tests.checked.checked")

import torch

from tests.tiny_models import make_checkpoint, make_text

torch.set_num_threads(1)
# a loaded machine is no failure, and a commit is not refused for an example that it did not bring;
# to look for new ones: pytest tests/property --hypothesis-profile=fresh
settings.register_profile("apportion", deadline=None, derandomize=True)
settings.register_profile("fresh", deadline=None, max_examples=1000)
settings.load_profile("apportion")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function (kind, blocks, dtype) -> folder of a tiny checkpoint, made once per session."""
    made: dict[tuple[object, ...], Path] = {}

    def make(kind: str = "llama", *, blocks: int = 4, dtype: torch.dtype = torch.bfloat16) -> Path:
        key = (kind, blocks, dtype)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{kind}-{blocks}")
            made[key] = make_checkpoint(folder, kind, blocks=blocks, dtype=dtype)
        return made[key]

    return make


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of some thousands of tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text(1500))
    return path
