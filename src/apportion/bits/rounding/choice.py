"""What a plan is written with where nothing was asked: the best that the machine affords, and why.

Evidence: SmolLM2-135M-Instruct, all linears at 2 bits and group 64, WikiText-2 (full precision 30.5), one H100: nearest
65,800, gptq 140.0 (210 linears in 7 to 15 s), scales tuned 75.9, codes and scales 70.2 (200 steps), 56.7 (1,797) and
46.7 (15,731 steps, 781 s of recorded ones on an H200, text that the model wrote before). At 4 bits nearest is at
43.7, where 3 bits of tuned gptq are at 39.6. No allocation makes up for the rounding: so gptq always, and tuning
wherever it takes minutes and not hours. Without a GPU a model of 30 million weights takes ten minutes to an hour for 60
steps on two cores; scales need few steps, codes many: scales alone there.
"""

from dataclasses import dataclass

from apportion.bits.rounding.distil import WEIGHT_BYTES

STEPS = {"cuda": 200, "cpu": 60}  # of scales alone; of codes at least, and more as long as GPU_S seconds last
GPU_S = 180
# Seconds of a recorded step of 8,192 tokens on an H200 of its own: whatever the size, for each weight of the linears,
# and for each of the head, whose logits cost too. Measured: .0483 at 106 and 28 million (SmolLM2-135M), .0818 at 100
# and 168 (Gemma-3-270M), .256 at 1,310 and 233 (Qwen2.5-Coder-1.5B).
STEP_S, WEIGHT_S, HEAD_S = 0.0275, 1.31e-10, 2.45e-10
SMALL_WEIGHTS = 40_000_000  # that two cores tune in less than an hour
MEMORY_SHARE = 0.6  # of what is free may go to learning; the rest is for activations


@dataclass(frozen=True, slots=True)
class Choice:
    """An automatic choice.

    Attributes:
        rounding: that plans are written with. tune: steps; 0 is not at all. codes: learn codes too, not scales alone.
        reason: one sentence for the result.
    """

    rounding: str
    tune: int
    codes: bool
    reason: str


def step_seconds(weights: int, head: int) -> float:
    """Seconds of a recorded step of learning on an H200 of its own, by weights of the linears and of the head.

    >>> round(step_seconds(106_000_000, 28_000_000), 3), round(step_seconds(1_310_000_000, 233_000_000), 3)
    (0.048, 0.256)
    """
    return STEP_S + WEIGHT_S * weights + HEAD_S * head


def best_affordable(device: str, weights: int, free_bytes: int, *, head: int = 0, fast: bool = False) -> Choice:
    """The rounding and tuning that a machine affords.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        weights: number of weights of the linears that are quantized.
        free_bytes: memory that is free on the device, the model loaded.
        head: number of weights of the output embedding, which every token passes too.
        fast: as quick as can be instead.

    Returns:
        The choice, with its reason.

    Example:
        >>> best_affordable("cuda", 106_000_000, 70 << 30, head=28_000_000).tune
        3730
        >>> best_affordable("cuda", 1_300_000_000, 70 << 30, head=233_000_000)
        Choice(rounding='gptq', tune=710, codes=True, reason='a GPU: 3 minutes a plan on an H200 alone, estimated')
        >>> best_affordable("cuda", 7_000_000_000, 60 << 30).reason
        'a GPU; learning 7,000,000,000 codes needs 224,000,000,000 bytes, 38,654,705,664 may be taken'
        >>> best_affordable("cpu", 500_000_000, 16 << 30).reason
        'no GPU, and more than 40,000,000 weights: tuning takes hours'
        >>> best_affordable("cpu", 500_000_000, 16 << 30, fast=True).rounding
        'nearest'
    """
    if fast:
        return Choice("nearest", 0, False, "as quick as can be was asked for")
    if device.startswith("cuda"):
        needed, room = WEIGHT_BYTES * weights, int(MEMORY_SHARE * free_bytes)
        if needed <= room:
            step_s = step_seconds(weights, head)
            steps = max(STEPS["cuda"], 10 * round(GPU_S / step_s / 10))
            took = f"{steps * step_s / 60:.0f} minutes a plan on an H200 alone"
            return Choice("gptq", steps, True, f"a GPU: {took}, estimated")
        reason = f"a GPU; learning {weights:,} codes needs {needed:,} bytes, {room:,} may be taken"
        return Choice("gptq", STEPS["cuda"], False, reason)
    if weights <= SMALL_WEIGHTS:
        return Choice("gptq", STEPS["cpu"], False, f"no GPU, and a small model: {weights:,} weights")
    return Choice("gptq", 0, False, f"no GPU, and more than {SMALL_WEIGHTS:,} weights: tuning takes hours")
