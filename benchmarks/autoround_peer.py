"""AutoRound with AutoScheme as a peer: the same checkpoint, text, group size, players and average bits, judged alike.

    python benchmarks/autoround_peer.py MODEL --calibration c4-sample.jsonl --text wikitext2-test-raw.txt
        --avg-bits 2.25,2.5,3 --uniform 2,3,4 --iterations 200 --out docs/results/autoround_NAME.json

Runs in an environment of its own (`pip install auto-round==0.16.1` beside this package); it is no dependency.
Average bits count codes alone, as ours do; each row has the true ones, counted from the widths it gave. The players are
ours: q, k and v, and gate and up, share a width. Calibration is the same file, read by AutoRound itself (documents of
at least the window's tokens, cut to it). Its weights are read back decoded and judged with the model's own head. Rows
that are there are not made again.
"""

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from command_line import own_command
from judging import Judge

from apportion.bits.perplexity import first_windows
from apportion.core.artifact import Json, read_json, write_json
from apportion.core.device import peak_memory, place
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.staged import StagedModel

SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # players, as ours
TITLE = "{}: AutoRound 0.16.1 with AutoScheme: WikiText-2 and divergence from full precision"


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")] if text else []


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--avg-bits", type=numbers, default=[2.25, 2.5, 3.0])
    parser.add_argument("--uniform", type=numbers, default=[2.0, 3.0, 4.0])
    parser.add_argument("--widths", type=numbers, default=[2.0, 3.0, 4.0])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--no-compile", action="store_true", help="do not compile its blocks")
    parser.add_argument("--name", default="", help="what the model is called; the folder's name without it")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def rounded(asked: argparse.Namespace, scheme: Any) -> tuple[Any, dict[str, int]]:
    """AutoRound's model, its linears decoded, and the bits of each."""
    from auto_round import AutoRound

    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = AutoRound(
        asked.model, scheme=scheme, tokenizer=load_tokenizer(asked.model), dataset=str(asked.calibration),
        iters=asked.iterations, nsamples=asked.samples, seqlen=asked.window_tokens, device_map=device,
        **({"enable_torch_compile": False} if asked.no_compile else {}),
    )  # fmt: skip
    model, config = peer.quantize()
    return model, {path: int(one["bits"]) for path, one in config.items() if one.get("bits")}


def schemes(asked: argparse.Namespace) -> list[tuple[str, Any]]:
    """What is asked of it: uniform widths, and mixtures of average bits."""
    from auto_round import AutoScheme
    from auto_round.schemes import QuantizationScheme

    def width(bits: float) -> Any:
        return QuantizationScheme(bits=int(bits), group_size=asked.group_size, sym=True, data_type="int", act_bits=16)

    uniform = [(f"uniform w{bits:.0f}g{asked.group_size}", width(bits)) for bits in asked.uniform]
    choices = tuple(width(bits) for bits in asked.widths)
    mixed = [
        (
            f"AutoScheme, {bits:g} bits",
            AutoScheme(avg_bits=bits, options=choices, shared_layers=SHARED, ignore_scale_zp_bits=True),
        )
        for bits in asked.avg_bits
    ]
    return uniform + mixed


def judged(asked: argparse.Namespace, judge: Judge, scheme: Any) -> Json:
    """One row: what it rounded, in place of our model's linears, judged."""
    staged, began = judge.staged, time.monotonic()
    peer, bits = rounded(asked, scheme)
    seconds = round(time.monotonic() - began, 1)
    for path in staged.originals:
        weight = peer.get_submodule(path).weight.detach()
        staged.model.get_submodule(path).weight.data = weight.to(staged.own_weight(path))
    changed = sum(not torch.equal(staged.model.get_submodule(p).weight, staged.own_weight(p)) for p in staged.originals)
    found = judge.judge()
    staged.restore()
    told = {"linears_changed": changed, "linears": len(staged.originals), "seconds": seconds}
    return {**found, **true_bits(staged, bits, asked.group_size), **told, "peak_memory_bytes": peak_memory()}


def true_bits(staged: StagedModel, bits: dict[str, int], group_size: int) -> Json:
    """Average bits of the codes, and with 16 bits of scale a group, over our players' weights; linears by width."""
    sizes = {path: weight.numel() for path, weight in staged.originals.items()}
    average = sum(bits[path] * size for path, size in sizes.items()) / sum(sizes.values())
    counts = Counter(bits[path] for path in sizes)
    told = ", ".join(f"{counts[width]} x {width}" for width in sorted(counts))
    return {"avg_bits": average, "bits_with_scales": average + 16 / group_size, "widths": told}


def main() -> None:
    asked = options()
    staged, tokenizer = load_staged(asked.model, place("auto", "auto")), load_tokenizer(asked.model)
    test = first_windows(tokenizer, asked.text, window_tokens=asked.window_tokens, windows=asked.text_windows)
    judge = Judge(staged, test)
    rows: list[Json] = read_json(asked.out)["rows"] if asked.out.exists() else []
    rows = rows or [{"plan": "full precision", **judge.judge()}]
    title = TITLE.format(asked.name or Path(asked.model).name)
    for name, scheme in schemes(asked):
        if any(row["plan"] == name for row in rows):
            continue
        rows.append({"plan": name, **judged(asked, judge, scheme)})
        print(rows[-1], flush=True)
        write_json(asked.out, {"title": title, "command": own_command(), "rows": rows})


if __name__ == "__main__":
    main()
