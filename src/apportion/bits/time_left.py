"""What a run still has before it, judged by how long its first stages took; bars show the sum (`core.progress`)."""

from apportion.bits.finalists import JUDGES, WRITTEN
from apportion.bits.game import COALITIONS
from apportion.bits.quantizer import Quantizer
from apportion.bits.rounding import BATCH_TOKENS, FULL_PRECISION, IN_SEQUENCE, TUNING, step_seconds
from apportion.core.progress import expect, spent_s
from apportion.models.structure import head_weights

SHARED = 0.5  # of a coalition's blocks that another has been through already, about
BACKWARD = 3.0  # a step of learning beside a pass forward
ENOUGH = 10  # coalitions, to tell how long one takes
ONE_WIDTH = 0.5  # of rounding every linear at every width: moments are gathered once, however many widths


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
