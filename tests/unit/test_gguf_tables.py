"""The tables of GGUF evidence: one for each model and text that was measured, with the reference that was used."""

import importlib
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def tables() -> ModuleType:
    return importlib.import_module("gguf_tables")


def figures(kl: float) -> dict[str, Any]:
    interval = {"mean": kl, "low": 0.9 * kl, "high": 1.1 * kl}
    return {"tokens": 510, "kl_mean": interval, "kl_999": 10 * kl, "same_top": {"mean": 0.9}}


def evidence(texts: tuple[str, ...], *options: str, ours: int = 1234) -> dict[str, Any]:
    found = {name: {text: figures(kl) for text in texts} for name, kl in (("mix", 0.2), ("ours", 0.05))}
    sizes = {"Q2_K": {"bytes": {"mix": 1234, "ours": ours}, "found": found}}
    return {"model": "tiny", "command": " ".join(["python x.py", *options]), "sizes": sizes}


def test_every_text_has_its_table(tables: ModuleType) -> None:
    page = "\n".join(tables.gguf_part({"gguf_tiny": evidence(("text", "chat")), "gguf_other": {"rows": []}}))
    assert page.count("| Q2_K | 1,234 | 0.2000 [0.1800, 0.2200] | **0.0500** [0.0450, 0.0550] | -75% |") == 2
    assert "WikiText-2" in page
    assert "chat template" in page
    assert "docs/results/gguf_tiny.json" in page
    assert "noise" not in page
    assert "chat template" not in "\n".join(tables.gguf_part({"gguf_tiny": evidence(("text",))}))


def test_a_reference_off_its_grid_is_said(tables: ModuleType) -> None:
    page = "\n".join(tables.gguf_part({"gguf_tiny": evidence(("text",), "--off-grid")}))
    assert "moved by uniform noise within its step" in page
    assert tables.gguf_part({}) == []


def test_a_file_that_is_smaller_than_the_mix_says_so(tables: ModuleType) -> None:
    assert "| 1,234 (ours 1,000) |" in "\n".join(tables.gguf_part({"gguf_tiny": evidence(("text",), ours=1000)}))
