"""What a run still has before it, judged by how long its first stages took; bars show the sum (`core.progress`)."""

import time
from collections.abc import Callable

import torch

from apportion.bits.finalists import JUDGES, WRITTEN
from apportion.bits.game import COALITIONS
from apportion.bits.quantizer import Quantizer
from apportion.bits.rounding import BATCH_TOKENS, FULL_PRECISION, IN_SEQUENCE, TUNING, step_seconds
from apportion.core.progress import clock, expect, note, spent_s
from apportion.models.structure import expert_of, experts_of, head_weights

SHARED = 0.5  # of a coalition's blocks that another has been through already, about; its head's work is never shared
BACKWARD = 3.0  # a step of learning beside a pass forward
ENOUGH = 10  # coalitions, to tell how long one takes
ONE_WIDTH = 0.5  # of rounding every linear at every width: moments are gathered once, however many widths
PASSES = 3.3  # of its text through the blocks that rounding at every width is worth: two streams and their moments
COLUMNS = 165  # operations for each row and pair of columns, at every width; with PASSES from two runs (LOG.md)
SHARE = 0.7  # of a product's speed that a pass comes to; .5 (bfloat16) to 1 (float32) on SmolLM2 and Qwen2.5-Coder-0.5B
ROWS = 512  # tokens in that product
HEAD_TOKENS = 64  # whose loss tells how long the head takes
LONG_S = 3600  # beyond which a run is told of before it begins
WORTH_TELLING = 1.3  # times as fast in another dtype


def foretell(quantizer: Quantizer, *, evaluations: int, finalists: int, measured: int = 0) -> float:
    """Tell the bars what is to come before anything was measured, and people where that is more than an hour.

    On a CPU alone, where it may be hours: a pass through the blocks is judged by the speed of one product, the head by
    the loss of a few tokens. On a GPU, where passes wait for launches and the whole takes minutes, nothing is told
    before a stage was timed.

    Args:
        evaluations, finalists: as in `foresee`, which tells better once coalitions are measured.
        measured: coalitions that an earlier part of the run measured.

    Returns:
        Seconds of all; 0 where nothing was told. A guess, by what the machine is free for just now (LOG.md).
    """
    recipe, staged = quantizer.recipe, quantizer.staged
    if staged.placement.device.split(":")[0] != "cpu":
        return 0.0
    blocks, _ = weights_of_a_token(quantizer)
    product = product_speed(quantizer)
    speed = SHARE * product
    block_s, head_s = 2 * blocks / speed, head_seconds(quantizer)
    tokens = recipe.windows * recipe.window_tokens
    text_s = tokens * (block_s + head_s)
    coalitions_s = max(0, evaluations - measured) * tokens * (SHARED * block_s + head_s)
    times = quantizer.rounding.needs_hessian + ONE_WIDTH * finalists * quantizer.applied.needs_hessian
    pairs = sum(item.numel() * item.shape[1] for item in staged.originals.values())
    most = recipe.windows if recipe.calibration is None else quantizer.mixture.most
    seen = min(recipe.rounding_windows, most) * recipe.window_tokens
    rounding_s = times * (PASSES * block_s * seen + COLUMNS * pairs / speed)
    expect(IN_SEQUENCE, rounding_s, round(times * len(staged.originals)))
    total_s = rounding_s + expect_texts(quantizer, coalitions_s, finalists, text_s)
    if total_s > LONG_S:
        fewer = "fewer --evaluations and --windows" + (", --rounding-windows or --fast," if times else "")
        guess = f"about {clock(total_s)} in all on this CPU, guessed by the speed of one product"
        note(f"{guess}; {fewer} into another --out take less{narrower(quantizer, product)}")
    return total_s


def expect_texts(quantizer: Quantizer, coalitions_s: float, finalists: int, text_s: float) -> float:
    """Tell the bars of coalitions and, where plans are rewritten, of measuring and learning them; their sum."""
    expect(COALITIONS, coalitions_s)
    if not quantizer.rewrites:
        return coalitions_s
    written_s = text_s * texts_of(quantizer, finalists)
    steps = min(finalists, 2) * (quantizer.recipe.tune or 0)
    tuning_s = steps * tuning_step_s(quantizer, text_s)
    expect(WRITTEN, written_s)
    expect(TUNING, tuning_s, steps)
    return coalitions_s + written_s + tuning_s


def foresee_the_end() -> None:
    """Say that all plans are written and judged, whatever was expected of that."""
    for label in (COALITIONS, IN_SEQUENCE, TUNING, WRITTEN):
        expect(label, 0)


def weights_of_a_token(quantizer: Quantizer) -> tuple[float, float]:
    """Weights that a token meets in all blocks, of experts as many as are asked at once, and in heads.

    Where full precision's predictions are the labels, there are two heads: the plan's and its own.
    """
    staged, config = quantizer.staged, quantizer.staged.model.config.get_text_config()
    experts: dict[str, set[str]] = {}
    for path in staged.originals:
        experts.setdefault(experts_of(path), set()).add(expert_of(path))
    asked = vars(config).get("num_experts_per_tok") or 0
    met = 0.0
    for path, weight in staged.originals.items():
        group = experts_of(path)
        met += weight.numel() * (min(1.0, asked / len(experts[group])) if group and asked else 1.0)
    heads = 1 + (quantizer.recipe.labels == "predictions")
    return met, heads * head_weights(staged.model, staged.layout.head)


def texts_of(quantizer: Quantizer, finalists: int) -> int:
    """How often the game's text is gone through for all finalists, and as many other windows as they are judged on."""
    judges = 1 if quantizer.recipe.calibration is None else JUDGES
    return finalists * (1 + judges * (finalists > 1))


def narrower(quantizer: Quantizer, own: float) -> str:
    """What bfloat16 would bring on this CPU, in words; nothing where it is used already or no faster.

    Args:
        own: operations a second in the dtype of the run.
    """
    if quantizer.staged.compute_dtype == torch.bfloat16:
        return ""
    times = product_speed(quantizer, torch.bfloat16) / own
    return f"; products are {times:.1f} times as fast with --dtype bfloat16 here" if times >= WORTH_TELLING else ""


def product_speed(quantizer: Quantizer, dtype: torch.dtype | None = None) -> float:
    """Operations a second in a product with the largest linear; the best of three.

    Args:
        dtype: None for what the run computes in.
    """
    weight = max(quantizer.staged.originals.values(), key=torch.Tensor.numel)
    weight = weight.to(dtype or quantizer.staged.compute_dtype)
    rows = torch.ones(ROWS, weight.shape[1], dtype=weight.dtype)
    return 2 * ROWS * weight.numel() / fastest(lambda: torch.nn.functional.linear(rows, weight))


def head_seconds(quantizer: Quantizer) -> float:
    """Seconds that the loss of a token takes after the blocks; 0 for a model without a head."""
    staged = quantizer.staged
    if not staged.layout.head:
        return 0.0
    size = int(staged.model.config.get_text_config().hidden_size)
    hidden = torch.ones(1, HEAD_TOKENS + 1, size, dtype=staged.compute_dtype)
    ids = torch.zeros(1, HEAD_TOKENS + 1, dtype=torch.long)
    teacher = hidden if quantizer.recipe.labels == "predictions" else None
    return fastest(lambda: staged.device_nll(hidden, ids, teacher)) / HEAD_TOKENS


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the best of three, after one in which libraries set themselves up."""
    work()
    took = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return max(min(took), 1e-9)


def foresee(quantizer: Quantizer, *, evaluations: int, finalists: int, measured: int = 0) -> None:
    """Tell the bars what is to come, once full precision was measured, and again after the search.

    What nothing was measured of stays as it was told. On a CPU what full precision took tells nothing: where its
    predictions are the labels, it was asked without a head.

    Args:
        evaluations: coalitions yet to be measured. finalists: plans that are written and judged; 1 where there is no
            choice among written plans.
        measured: coalitions that this run has measured: they tell how long a text takes better than the first pass of
            all does, in which a GPU's libraries set themselves up.
    """
    blocks, heads = weights_of_a_token(quantizer)
    alone = (SHARED * blocks + heads) / (blocks + heads)  # of a text that a coalition is worth
    if measured >= ENOUGH:
        text_s = spent_s(COALITIONS) / measured / alone
    else:
        text_s = spent_s(FULL_PRECISION) if quantizer.staged.placement.device.startswith("cuda") else 0.0
    if text_s:
        expect_texts(quantizer, evaluations * text_s * alone, finalists, text_s)
    elif not evaluations:
        expect(COALITIONS, 0)
    if quantizer.rewrites and (rounded_s := spent_s(IN_SEQUENCE)):
        expect(IN_SEQUENCE, finalists * ONE_WIDTH * rounded_s)


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
