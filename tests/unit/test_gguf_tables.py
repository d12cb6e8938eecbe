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


def sized(mix: float, ours: float, texts: tuple[str, ...] = ("text",)) -> dict[str, Any]:
    found = {name: {text: figures(kl) for text in texts} for name, kl in (("mix", mix), ("ours", ours))}
    change = {"mean": ours - mix, "low": ours - mix - 0.02, "high": ours - mix + 0.02}
    return {"bytes": {"mix": 1234, "ours": 1234}, "found": found, "difference": dict.fromkeys(texts, change)}


def evidence(texts: tuple[str, ...], *options: str, ours: int = 1234) -> dict[str, Any]:
    sizes = {"Q2_K": sized(0.2, 0.05, texts) | {"bytes": {"mix": 1234, "ours": ours}}}
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


def test_a_type_for_all_is_listed_by_bytes(tables: ModuleType) -> None:
    one = evidence(("text",))
    kinds = {"Q8_0": (900, 0.001), "Q4_K": (500, 0.02)}
    one["uniform"] = {kind: {"bytes": size, "found": {"text": figures(kl)}} for kind, (size, kl) in kinds.items()}
    page = "\n".join(tables.gguf_part({"gguf_tiny": one}))
    assert page.index("| Q4_K | 500 | 0.0200 |") < page.index("| Q8_0 | 900 | 0.0010 |")


def test_gains_have_a_row_for_every_model_and_text_and_a_table_for_iq_mixes(tables: ModuleType) -> None:
    tiny = evidence(("text", "chat"))
    iq = {"model": "tiny, IQ", "command": "python x.py", "sizes": {"IQ3_M": sized(0.1, 0.09)}}
    lines = tables.gains({"gguf_tiny": tiny, "gguf_iq_tiny": iq})
    assert "| tiny, WikiText-2 | 0.2000 → **0.0500** (-75%) |" in lines
    assert "| tiny, conversations | 0.2000 → **0.0500** (-75%) |" in lines
    assert "| model, text | IQ3_M |" in lines
    assert "| tiny, IQ, WikiText-2 | 0.1000 → **0.0900** (-10%) |" in lines
    assert "at least 20% lower in 2 (sizes on WikiText-2: tiny 1 of 1; tiny, IQ 0 of 1); higher: none." in lines[-1]
    assert "is all below zero in 2, all above in 0." in lines[-1]  # 0.09 is below 0.1, but not beyond its interval
    assert lines[-1].startswith("Of 3 pairs")


def test_sizes_rise_whichever_was_run_first(tables: ModuleType) -> None:
    sizes = {
        mix: sized(0.2, 0.1) | {"bytes": {"mix": size, "ours": size}} for mix, size in (("IQ3_M", 90), ("IQ2_M", 80))
    }
    one = {"model": "tiny", "command": "python x.py", "sizes": sizes}
    assert tables.gains({"gguf_iq_tiny": one})[0] == "| model, text | IQ2_M | IQ3_M |"
    page = "\n".join(tables.gguf_part({"gguf_iq_tiny": one}))
    assert page.index("| IQ2_M | 80 |") < page.index("| IQ3_M | 90 |")


def test_a_file_behind_its_mix_is_named(tables: ModuleType) -> None:
    one = {"model": "tiny", "command": "python x.py", "sizes": {"Q2_K": sized(0.1, 0.2)}}
    said = tables.gains({"gguf_tiny": one})[-1]
    assert "higher: tiny at Q2_K (WikiText-2)." in said
    assert "all below zero in 0, all above in 1." in said
    assert "99.9 % KL higher: tiny at Q2_K (WikiText-2): 1.00, ours 2.00, 510 tokens." in said
    assert tables.gains({}) == ["*not run*"]


def test_a_size_that_one_model_lacks_is_said(tables: ModuleType) -> None:
    other = {"model": "other", "command": "python x.py", "sizes": {"Q4_K_M": sized(0.1, 0.05)}}
    lines = tables.gains({"gguf_a": evidence(("text",)), "gguf_b": other})
    assert "| other, WikiText-2 | not run | 0.1000 → **0.0500** (-50%) |" in lines


def test_a_type_for_all_stands_beside_ours_of_its_size(tables: ModuleType) -> None:
    sizes = {
        mix: sized(0.9, kl) | {"bytes": {"mix": size, "ours": size}}
        for mix, size, kl in (("a", 100, 0.4), ("b", 200, 0.1))
    }
    kinds = {"Q3_K": 90, "Q4_K": 150, "Q8_0": 201}  # the first and the last are beyond our sizes
    uniform = {kind: {"bytes": size, "found": {"text": figures(0.25)}} for kind, size in kinds.items()}
    one = {"model": "tiny", "command": "python x.py", "sizes": sizes, "uniform": uniform}
    assert tables.against_alike({"gguf_tiny": one})[2:] == ["| tiny | Q4_K | 150 | 0.2500 | 0.2000 | -20% |"]
    assert tables.against_alike({}) == ["*not run*"]


def test_llama_cpp_stands_beside_our_figures(tables: ModuleType) -> None:
    figure = {"ours": 1.0, "llama.cpp": 1.05, "llama.cpp, weights decoded to f32": 1.001}
    one = {"command": "python y.py", "file": "tiny-Q2_K", "tokens": 510, "original_perplexity": 30.0}
    lines = tables.agreement({"gguf_llama_cpp_tiny": {**one, "kl": figure, "perplexity": figure}})
    assert any(line.startswith("| tiny-Q2_K | 510 | 30.000 | 1.000, 1.00000 |") for line in lines)
    assert "(+5.00%, +5.00%)" in lines[2]
    assert "(+0.10%, +0.10%)" in lines[2]
    near = "llama.cpp: perplexity 0, mean KL 0; llama.cpp, weights decoded to f32: perplexity 1, mean KL 1."
    assert lines[4] == f"Within 1% of ours, as asked for, of 1 files: {near}"
    assert tables.agreement({}) == ["*not run*"]
