"""How long gptq takes for one linear, loop by loop: fused (one launch a block of columns) against plain.

    python benchmarks/gptq_speed.py --out docs/results/gptq_speed.json

Random weights, second moments of correlated inputs. Each shape is rounded as three linears of one input, as q, k and v
are. `same_codes` is the share of codes on which fused and plain agree, and both error shares stand beside it.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from command_line import own_command
from torch import Tensor

from apportion.bits.rounding import gptq, loops, refine
from apportion.bits.rounding.gptq import Gptq
from apportion.bits.rounding.moments import Moments
from apportion.bits.rounding.nearest import search_scale
from apportion.core.artifact import Json, write_json
from apportion.formats import Width, grid_width

TITLE = "gptq, one launch a block of columns against operation by operation: w2g64, three linears of one input"
SHAPES = ((576, 576), (576, 1536), (4096, 4096), (4096, 14336))
PLAIN_COLUMNS = 4096  # the plain loops are not timed beyond


def moments_of(columns: int, device: str) -> Moments:
    generator = torch.Generator(device).manual_seed(columns)
    tokens = 4 * columns
    mix = torch.randn(columns, columns, generator=generator, device=device) / columns**0.5
    full = torch.randn(tokens, columns, generator=generator, device=device)
    full += full @ mix * 2
    noisy = full + 0.3 * torch.randn(tokens, columns, generator=generator, device=device)
    return Moments(noisy.T @ noisy / tokens, full.T @ noisy / tokens, tokens)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    torch.cuda.synchronize()
    began = time.perf_counter()
    found = work()
    torch.cuda.synchronize()
    return time.perf_counter() - began, found


def fresh(moments: Moments) -> Moments:
    return Moments(moments.hessian, moments.cross, moments.tokens)


def row(rows: int, columns: int, bits: int) -> Json:
    """Seconds of a linear, fused and plain, and of the steps of the fused one."""
    moments, width = moments_of(columns, "cuda"), grid_width(bits, 64)
    generator = torch.Generator("cuda").manual_seed(1)
    weights = [torch.randn(rows, columns, generator=generator, device="cuda").bfloat16() for _ in range(3)]
    rounding = Gptq()
    rounding.round(weights[0], width, fresh(moments))  # compiles
    shared = fresh(moments)
    seconds, (first, *_) = timed(lambda: [rounding.round(weight, width, shared) for weight in weights])
    alone, _ = timed(lambda: rounding.round(weights[0], width, fresh(moments)))
    found: Json = {
        "rows": rows,
        "columns": columns,
        "bits": bits,
        "linears_per_s": 3 / seconds,
        "first_linear_s": alone,
    }
    found |= steps(weights[0].float(), moments, width)
    if columns <= PLAIN_COLUMNS:
        plain = loops.Loops(loops.feed_back, loops.settle)
        kept = loops.fused
        loops.fused = lambda: plain  # type: ignore[assignment]
        one, other = timed(lambda: rounding.round(weights[0], width, fresh(moments)))
        loops.fused = kept
        found |= {"plain_linears_per_s": 1 / one, "same_codes": float((first.codes == other.codes).float().mean())}
        found |= {"error_share": first.evidence["error_share"], "plain_error_share": other.evidence["error_share"]}
    return found


def steps(target: Tensor, moments: Moments, width: Width) -> Json:
    hessian = moments.hessian
    grouped = target.view(len(target), -1, width.group_size)
    importance = hessian.diagonal().view(1, -1, width.group_size)
    order = gptq.column_order(hessian, True)
    search_s, scale = timed(lambda: search_scale(grouped, importance, width, torch.bfloat16).float())
    factor_s, factor = timed(lambda: gptq.error_factor(hessian, 0.01, order))
    loop_s, codes = timed(lambda: gptq.feed_back(target, scale, factor, width, order))
    descend_s, codes = timed(lambda: refine.descend(target, codes, scale, hessian, width, 1))
    fit_s, _ = timed(lambda: refine.fit_scales(target, codes, scale, hessian, torch.bfloat16))
    correct_s, _ = timed(lambda: gptq.corrected(target, fresh(moments), 0.5, 0.03))
    return {
        "search_s": search_s,
        "factor_s": factor_s,
        "loop_s": loop_s,
        "sweep_s": descend_s,
        "fit_scales_s": fit_s,
        "correct_s": correct_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    found: list[Json] = []
    for rows, columns in SHAPES:
        found.append(row(rows, columns, 2))
        print({name: round(value, 4) for name, value in found[-1].items()}, flush=True)
        card = torch.cuda.get_device_name()
        write_json(asked.out, {"title": TITLE, "command": own_command(), "device": card, "rows": found})


if __name__ == "__main__":
    main()
