"""Our GPTQ beside llm-compressor's: same model, bits, group size, calibration windows and test windows.

    python -m venv peer-venv && peer-venv/bin/pip install llmcompressor   # pins transformers: not our venv
    python benchmarks/gptq_peer.py windows MODEL --calibration TEXT --text TEXT --folder peer
    peer-venv/bin/python benchmarks/gptq_peer.py peer MODEL --bits 3 --folder peer
    python benchmarks/gptq_peer.py ours MODEL --bits 3 --folder peer --out docs/results/gptq_peer.json

The first step cuts the token windows once, so that both see the same. The peer's model is measured as it stands in
its memory after `oneshot` (rounded weights, decoded).
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from command_line import own_command

TOKENS, GROUP = 512, 64


def perplexity(model: Any, windows: torch.Tensor) -> float:
    """exp of the mean next-token NLL over windows, float32."""
    total = 0.0
    with torch.inference_mode():
        for part in windows.split(4):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())) * len(part)
    return math.exp(total / len(windows))


def cut_windows(asked: argparse.Namespace) -> None:
    from apportion.models.mixture import read_mixture
    from apportion.models.pretrained import load_tokenizer
    from apportion.models.text import windows_of

    tokenizer = load_tokenizer(asked.model)
    found = read_mixture(asked.calibration, tokenizer, TOKENS).draw(asked.windows, seed=0)
    test = windows_of(asked.text, tokenizer, TOKENS)[: asked.text_windows]
    asked.folder.mkdir(parents=True, exist_ok=True)
    torch.save({"calibration": found.windows, "test": test}, asked.folder / "windows.pt")


def peer(asked: argparse.Namespace, windows: dict[str, torch.Tensor]) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32)
    args = QuantizationArgs(num_bits=asked.bits, symmetric=True, strategy="group", group_size=GROUP)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    recipe = GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"])
    ids = windows["calibration"].tolist()
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * TOKENS for _ in ids]})
    began = time.monotonic()
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=TOKENS, num_calibration_samples=len(ids))
    seconds = time.monotonic() - began
    return {"peer": perplexity(model, windows["test"]), "peer_seconds": round(seconds, 1)}


def ours(asked: argparse.Namespace, windows: dict[str, torch.Tensor]) -> dict[str, Any]:
    from apportion.bits.rounding import round_plan, rounding_named
    from apportion.core.device import place
    from apportion.formats import grid_width
    from apportion.models.load import load_staged

    staged = load_staged(asked.model, place("cpu", "float32"))
    began = time.monotonic()
    widths = dict.fromkeys(staged.originals, grid_width(asked.bits, GROUP))
    packed = round_plan(staged, rounding_named("gptq"), widths, windows["calibration"])
    seconds = time.monotonic() - began
    for path, item in packed.items():
        staged.model.get_submodule(path).weight.data = item.dequantize(torch.float32)
    return {"ours": perplexity(staged.model, windows["test"]), "ours_seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["windows", "peer", "ours"])
    parser.add_argument("model")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.step == "windows":
        cut_windows(asked)
        return
    windows = torch.load(asked.folder / "windows.pt", weights_only=True)
    found = (peer if asked.step == "peer" else ours)(asked, windows)
    saved = asked.folder / f"{asked.bits}.json"
    row = {**(json.loads(saved.read_text()) if saved.exists() else {"bits": asked.bits}), **found}
    row |= {"calibration_windows": len(windows["calibration"]), "test_windows": len(windows["test"])}
    saved.write_text(json.dumps(row))
    print(row)
    if asked.out:
        rows = [json.loads(path.read_text()) for path in sorted(asked.folder.glob("[0-9].json"))]
        title = "Our GPTQ beside llm-compressor's: all linears at one width, WikiText-2 perplexity"
        content = {"title": title, "command": own_command(), "rows": rows}
        asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
