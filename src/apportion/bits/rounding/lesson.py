"""What a plan is tuned on: text, full precision's answers to it, and windows aside on which states are compared."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from apportion.core.device import free_bytes
from apportion.core.errors import InputError
from apportion.core.progress import progress
from apportion.formats import GridWeight
from apportion.models.staged import StagedModel
from apportion.models.text import continue_windows

BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
KEPT_SHARE = 8  # one window of so many is kept aside
OFTEN = 4  # a window is met so often, and the model writes more of them
OWN_MOST = 8192  # windows that it writes, but for runs so long that each would be met oftener than OFTENEST
OFTENEST = 8
BEGINNING = 16  # tokens that it goes on from
SPREAD = (5**0.5 - 1) / 2  # of a window, from where it was gone on from to where next: spread evenly, however often
AT_ONCE = {"cpu": 64, "cuda": 2048}  # windows that it writes side by side, while they take less than WRITING_SHARE
WRITING_SHARE = 0.25  # of the memory that is free
LOGIT_COPIES = 4  # of a token's logits in float32, while the next one is drawn
HIDDEN_SHARE = 0.1  # of the memory that is free on the device, for full precision's hidden states
RAM_SHARE = 0.5  # of the computer's memory, for those that the device has no room for
PART = 256  # windows whose hidden states are on the device at once, where they are kept on the CPU
FULL_PRECISION = "full precision"  # what bars say


@dataclass(frozen=True)
class Lesson:
    """What a plan is tuned on: the same for every plan of a model.

    Attributes:
        windows, teacher: text to learn from, and full precision's hidden states after the last block on it; None
            where there is no room for them: they are made anew at every step.
        kept, kept_teacher: the same of the windows kept aside. steps, seed: how long, and in what order.
        codes: whether codes are learned too. own: how many of the windows the model wrote itself.
    """

    windows: Int[Tensor, "windows tokens"]
    teacher: Float[Tensor, "windows tokens hidden"] | None
    kept: Int[Tensor, "kept tokens"]
    kept_teacher: Float[Tensor, "kept tokens hidden"]
    steps: int
    seed: int
    codes: bool = False
    own: int = 0


def lesson_of(
    staged: StagedModel, windows: Int[Tensor, "windows tokens"], steps: int, seed: int = 0, *, codes: bool = False
) -> Lesson:
    """Part a calibration text and ask full precision about it.

    Codes need many steps. Where a text would be met more than OFTEN times, the model writes more text itself: it goes
    on from a few tokens of the windows given. What is kept aside is of the text alone.

    Args:
        codes: learn codes too, not scales alone.

    Raises:
        InputError: fewer than two windows.
    """
    require_windows(windows)
    batch = batch_of(staged, windows)
    kept, taught = parted(windows, steps, seed, batch)
    own = own_windows(steps * batch, len(taught)) if codes else 0
    if own:
        staged.restore()
        taught = torch.cat([taught, written_by(staged, taught, own, seed)])
    teacher = full_precision_hidden(staged, taught) if has_room(staged, taught) else None
    return Lesson(taught, teacher, kept, full_precision_hidden(staged, kept), steps, seed, codes, own)


def own_windows(met: int, given: int) -> int:
    """How many windows the model writes itself.

    Evidence: SmolLM2-135M, 2 bits: of two runs of 2,400 steps that with 32,768 windows was behind that with 8,192 when
    it was cut off at their half; 7,749 steps with 2,048 came to perplexity 54.8, 15,731 with 32,768 (and gptq on more
    text, and beginnings from anywhere) to 46.7.

    Args:
        met: windows that all steps meet together. given: windows of the text.

    >>> own_windows(100, 50), own_windows(16 * 2_400, 850), own_windows(16 * 16_000, 850)
    (0, 8192, 32000)
    """
    return min(max(OWN_MOST, met // OFTENEST), max(0, met // OFTEN - given))


def has_room(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> bool:
    """Whether full precision's hidden states on these windows can be kept, on the device or beside it."""
    size, device = hidden_bytes(staged, windows), staged.placement.device
    return size <= HIDDEN_SHARE * free_bytes(device) or size <= RAM_SHARE * free_bytes("cpu")


def hidden_bytes(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> int:
    """Of one hidden state for every token."""
    hidden = int(staged.model.config.get_text_config().hidden_size)
    return windows.numel() * hidden * staged.compute_dtype.itemsize


def full_precision_hidden(
    staged: StagedModel, windows: Int[Tensor, "windows tokens"]
) -> Float[Tensor, "windows tokens hidden"]:
    """The checkpoint's own hidden states after the last block, of which its predictions are made; on the CPU where they
    would crowd the device.

    Cost: a forward pass over the windows.
    """
    staged.restore()
    with progress(FULL_PRECISION, len(windows), "windows") as advance:
        if hidden_bytes(staged, windows) <= HIDDEN_SHARE * free_bytes(staged.placement.device):
            return staged.last_hidden(windows, advance)
        found: Tensor | None = None
        for part, rows in zip(windows.split(PART), torch.arange(len(windows)).split(PART), strict=True):
            hidden = staged.last_hidden(part, advance)
            if found is None:  # filled part by part: to join the parts would take twice the room
                found = hidden.new_empty(len(windows), *hidden.shape[1:], device="cpu")
            found[rows] = hidden.cpu()
        assert found is not None, "full precision was asked about no text"
        return found


def written_by(
    staged: StagedModel, windows: Int[Tensor, "windows tokens"], count: int, seed: int, beginning: int = BEGINNING
) -> Int[Tensor, "count tokens"]:
    """So many windows that the model writes, each from a few tokens of those given."""
    tokens = windows.shape[1]
    beginnings = beginnings_of(windows, count, max(1, min(beginning, tokens // 2)))
    kind = torch.device(staged.placement.device).type
    drawing = 4 * LOGIT_COPIES * int(staged.model.config.get_text_config().vocab_size)
    fit = int(WRITING_SHARE * free_bytes(staged.placement.device)) // (tokens * cache_bytes(staged) + drawing)
    return continue_windows(staged, beginnings, tokens, seed, max(1, min(AT_ONCE[kind], fit)))


def beginnings_of(windows: Int[Tensor, "windows tokens"], count: int, size: int) -> Int[Tensor, "count size"]:
    """So many pieces of text: the beginnings of the windows, then, each time all have given one, tokens further in.

    A first token that all windows share (beginning-of-text) stays the first.

    >>> beginnings_of(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), 4, 2)
    tensor([[1, 2],
            [5, 6],
            [2, 3],
            [6, 7]])
    """
    turns, rows = torch.arange(count) // len(windows), torch.arange(count) % len(windows)
    starts = (turns * SPREAD % 1.0 * (windows.shape[1] - size + 1)).long()
    found = windows[rows[:, None], starts[:, None] + torch.arange(size)]
    if len(windows) > 1 and bool((windows[:, 0] == windows[0, 0]).all()):
        found[:, 0] = windows[0, 0]
    return found


def cache_bytes(staged: StagedModel) -> int:
    """What attention keeps of a token, at most: keys and values of every layer."""
    config = staged.model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * staged.compute_dtype.itemsize * config.num_hidden_layers * kept * size)


def require_windows(windows: Int[Tensor, "windows tokens"]) -> None:
    """Refuse a text of which nothing could be kept aside.

    Raises:
        InputError: fewer than two windows.
    """
    if len(windows) < 2:
        raise InputError(
            "--tune: the calibration text has fewer than two windows",
            "give a longer text or a smaller --window-tokens (or raise --windows where the model samples its own)",
        )


def batch_of(staged: StagedModel, windows: Int[Tensor, "windows tokens"]) -> int:
    """Windows of a step."""
    return max(1, BATCH_TOKENS[torch.device(staged.placement.device).type] // windows.shape[1])


def parted(
    windows: Int[Tensor, "windows tokens"], steps: int, seed: int, batch: int
) -> tuple[Int[Tensor, "kept tokens"], Int[Tensor, "taught tokens"]]:
    """Every KEPT_SHARE-th window, at least one; and of the others as many as the steps can see."""
    aside = torch.arange(len(windows)) % KEPT_SHARE == KEPT_SHARE - 1
    aside[-1] |= not aside.any()
    left = windows[~aside]
    needed = min(len(left), steps * batch)
    chosen = torch.randperm(len(left), generator=torch.Generator().manual_seed(seed))[:needed]
    return windows[aside], left[chosen.sort().values]


def loss_of(
    staged: StagedModel,
    weights: Mapping[str, GridWeight],
    windows: Int[Tensor, "windows tokens"],
    teacher: Float[Tensor, "windows tokens hidden"],
) -> float:
    """Mean cross-entropy to the teacher with these weights in place, nats per token."""
    with staged.in_place(weights):
        return float(staged.window_nll(windows, teacher=teacher).mean())
