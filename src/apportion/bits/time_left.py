"""What a run still has before it, judged by how long its first stages took; bars show the sum (`core.progress`)."""

import time

import torch

from apportion.bits.finalists import JUDGES, WRITTEN
from apportion.bits.game import COALITIONS
from apportion.bits.quantizer import Quantizer
from apportion.bits.rounding import BATCH_TOKENS, FULL_PRECISION, IN_SEQUENCE, TUNING, step_seconds
from apportion.core.progress import clock, expect, note, spent_s
from apportion.models.structure import head_weights

SHARED = 0.5  # of a coalition's blocks that another has been through already, about
BACKWARD = 3.0  # a step of learning beside a pass forward
ENOUGH = 10  # coalitions, to tell how long one takes
ONE_WIDTH = 0.5  # of rounding every linear at every width: moments are gathered once, however many widths
PASSES = 2.5  # of its text that rounding in sequence at every width is worth: two streams and their moments
COLUMNS = 165  # operations for each row and pair of columns, at every width; with PASSES from two runs (LOG.md)
SHARE = 0.7  # of a product's speed that a pass comes to; .5 (bfloat16) to 1 (float32) on SmolLM2 and Qwen2.5-Coder-0.5B
ROWS = 512  # tokens in that product
LONG_S = 3600  # beyond which a run is told of before it begins


def foretell(quantizer: Quantizer, *, evaluations: int, finalists: int) -> float:
    """Tell the bars what is to come before anything was measured, and people where that is more than an hour.

    On a CPU alone, where it may be hours: a pass over a text is judged by the speed of one product. On a GPU, where
    passes wait for launches and the whole takes minutes, nothing is told before a stage was timed.

    Args:
        evaluations, finalists: as in `foresee`, which tells better once the first stages are over.

    Returns:
        Seconds of all; 0 where nothing was told. Within a factor of two.
    """
    recipe, staged = quantizer.recipe, quantizer.staged
    if staged.placement.device != "cpu":
        return 0.0
    linears = sum(item.numel() for item in staged.originals.values())
    speed = SHARE * product_speed(quantizer)
    token_s = 2 * (linears + head_weights(staged.model, staged.layout.head)) / speed
    text_s = token_s * recipe.windows * recipe.window_tokens
    told = {COALITIONS: evaluations * text_s * SHARED}
    if quantizer.rewrites:
        told[WRITTEN] = finalists * text_s * (1 + JUDGES * (finalists > 1))
        told[TUNING] = min(finalists, 2) * recipe.tune * tuning_step_s(quantizer, text_s) if recipe.tune else 0.0
    times = quantizer.rounding.needs_hessian + ONE_WIDTH * finalists * quantizer.applied.needs_hessian
    pairs = sum(item.numel() * item.shape[1] for item in staged.originals.values())
    once_s = PASSES * token_s * recipe.rounding_windows * recipe.window_tokens + COLUMNS * pairs / speed
    for label, seconds in told.items():
        expect(label, seconds, min(finalists, 2) * (recipe.tune or 0) if label == TUNING else 0)
    expect(IN_SEQUENCE, times * once_s, round(times * len(staged.originals)))
    total_s = sum(told.values()) + times * once_s
    if total_s > LONG_S:
        less = "--fast, or fewer --evaluations, --windows and --rounding-windows"
        note(f"about {clock(total_s)} in all on this CPU, by the speed of one product; {less} take less")
    return total_s


def product_speed(quantizer: Quantizer) -> float:
    """Operations a second in a product with the largest linear, as it is computed in; the second of two."""
    weight = max(quantizer.staged.originals.values(), key=torch.Tensor.numel)
    weight = weight.to(quantizer.staged.compute_dtype)
    rows, took = torch.ones(ROWS, weight.shape[1], dtype=weight.dtype), 0.0
    for _ in range(2):
        began = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        took = time.perf_counter() - began
    return 2 * ROWS * weight.numel() / max(took, 1e-9)


def foresee(quantizer: Quantizer, *, evaluations: int, finalists: int, measured: int = 0) -> None:
    """Tell the bars what is to come, once full precision was measured, and again after the search.

    Args:
        evaluations: coalitions yet to be measured. finalists: plans that are written and judged; 1 where there is no
            choice among written plans.
        measured: coalitions that this run has measured: they tell how long a text takes better than the first pass of
            all does, in which a GPU's libraries set themselves up.
    """
    recipe = quantizer.recipe
    text_s = spent_s(COALITIONS) / measured / SHARED if measured >= ENOUGH else spent_s(FULL_PRECISION)
    expect(COALITIONS, evaluations * text_s * SHARED)
    if not quantizer.rewrites:
        return
    expect(IN_SEQUENCE, finalists * ONE_WIDTH * spent_s(IN_SEQUENCE))
    expect(WRITTEN, finalists * text_s * (1 + JUDGES * (finalists > 1)))
    if recipe.tune:
        steps = min(finalists, 2) * recipe.tune
        expect(TUNING, steps * tuning_step_s(quantizer, text_s), steps)


def tuning_step_s(quantizer: Quantizer, text_s: float) -> float:
    """Seconds of a step of learning, until steps themselves tell.

    On a CPU as long as passes over as many tokens; on a GPU, where passes of the game wait for launches and recorded
    steps do not, what an H200 takes.
    """
    recipe, staged = quantizer.recipe, quantizer.staged
    kind = staged.placement.device.split(":")[0]
    if kind == "cuda":
        weights = sum(item.numel() for item in staged.originals.values())
        return step_seconds(weights, head_weights(staged.model, staged.layout.head))
    return BACKWARD * text_s * BATCH_TOKENS[kind] / (recipe.windows * recipe.window_tokens)
