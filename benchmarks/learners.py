"""Ways to learn codes at one uniform width, side by side: what `rounding.latent` is, and what lost to it.

    python benchmarks/learners.py MODEL --text TEXT --calibration TEXT --bits 2 --out docs/results/learners_NAME.json

Every row starts from the same gptq codes (unless it says otherwise) and learns from the same windows; the windows kept
aside choose the state, the test text's perplexity stands beside it and decides nothing. Rows are written as they come.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from blockwise import Blockwise
from command_line import own_command
from judging import Judge
from torch import Tensor

from apportion.bits.rounding import round_plan, rounding_named, tuning
from apportion.bits.rounding.descent import Descent, Micro, batches
from apportion.bits.rounding.latent import Latents, Make, Start, StraightThrough
from apportion.bits.rounding.lesson import batch_of, lesson_of
from apportion.bits.rounding.looks import Looks
from apportion.core.artifact import Json, write_json
from apportion.core.device import place
from apportion.formats import GridWeight, grid_width
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.staged import StagedModel
from apportion.models.text import choose, sample_calibration, windows_of

GROUP = 64
TITLE = "Ways to learn codes and scales of all linears at one width, side by side"
SHOWN = ("variant", "after", "perplexity", "kl", "moved", "best_step", "seconds")


class Centred(StraightThrough):
    """Positions begin in the middle of their codes."""

    def __init__(self, start: Start, position_rate: float, gain_rate: float = 0.01) -> None:
        super().__init__(start, position_rate, gain_rate)
        self.position = start.codes.float().requires_grad_()


class SignSgd(torch.optim.Optimizer):
    """Each step moves every value by the rate, in the direction of its gradient's sign."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for value in group["params"]:
                value.sub_(value.grad.sign_(), alpha=group["lr"])


class Signed(StraightThrough):
    """AutoRound's: offsets of at most half a code from the checkpoint's own weights, moved by signs of gradients."""

    def __init__(self, start: Start, rate: float = 0.005, gain_rate: float = 0.0005, own: bool = True) -> None:
        super().__init__(start)
        self.rates = (rate, gain_rate)
        self.middle = start.wanted.float().clamp(start.lowest - 0.49, start.highest + 0.49) if own else start.codes
        self.reach = 0.5 if own else 0.75
        self.position = self.middle.detach().float().clone().requires_grad_()

    def optimizer(self) -> torch.optim.Optimizer:
        rate, gain_rate = self.rates
        return SignSgd([{"params": [self.position], "lr": rate}, {"params": [self.gain], "lr": gain_rate}])

    @torch.no_grad()
    def confine(self) -> None:
        self.position.copy_(
            torch.minimum(torch.maximum(self.position, self.middle - self.reach), self.middle + self.reach)
        )


class Relaxed:
    """GSQ's: each code a distribution over itself and its neighbours, sampled by Gumbel noise, ever colder."""

    def __init__(self, start: Start, rate: float = 0.05, gain_rate: float = 0.01, sure: float = 3.0) -> None:
        self.start, self.rates = start, (rate, gain_rate)
        self.logits = torch.zeros(3, *start.codes.shape, device=start.codes.device)
        self.logits[1] += sure
        self.logits[0][start.codes == start.lowest] = -1e4
        self.logits[2][start.codes == start.highest] = -1e4
        self.logits.requires_grad_()
        self.gain = torch.zeros_like(start.scale).requires_grad_()

    def optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": [self.logits], "lr": self.rates[0]}, {"params": [self.gain], "lr": self.rates[1]}]
        return torch.optim.Adam(groups, betas=(0.9, 0.95), fused=self.gain.is_cuda)

    def decode(self, dtype: torch.dtype, progress: float) -> Tensor:
        heat = 1.0 * 0.05**progress
        noise = -torch.empty_like(self.logits).exponential_().log()
        share = torch.softmax((self.logits + noise) / heat, dim=0)
        position = self.start.codes + (share[2] - share[0])
        return (position * (self.start.scale * self.gain.exp())).to(dtype)

    def confine(self) -> None:
        pass

    @torch.no_grad()
    def found(self) -> tuple[Tensor, Tensor]:
        codes = self.start.codes + self.logits.argmax(0).to(torch.int8) - 1
        return codes, self.start.scale * self.gain.exp()


def straight(position: float = 0.01, gain: float = 0.01) -> Make:
    return lambda start: StraightThrough(start, position, gain)


@dataclass(frozen=True)
class Variant:
    """One row: steps of each block, steps end to end, and how codes are learned in each."""

    name: str
    blocks: int = 0
    steps: int = 200
    make: Make = tuning.scales_alone
    block_make: Make | None = None
    rounding: str = "gptq"
    own_text: bool = False


VARIANTS = [
    Variant("scales alone", steps=400),
    Variant("straight-through, rate .03", make=straight(0.03), steps=1600),
    Variant("straight-through, rate .1", make=straight(0.1), steps=1600),
    Variant("straight-through, rate .03, own text too", make=straight(0.03), steps=1600, own_text=True),
    Variant(
        "blocks at .05, then end to end at .03", blocks=128, make=straight(0.03), block_make=straight(0.05), steps=1600
    ),
    Variant("from the middle of the codes, rate .01", make=lambda start: Centred(start, 0.01), steps=400),
    Variant("from the middle of the codes, rate .03", make=lambda start: Centred(start, 0.03), steps=400),
    Variant("straight-through, rate .03, 400 steps", make=straight(0.03), steps=400),
    Variant("straight-through from nearest", make=straight(0.03), rounding="nearest", steps=1600),
    Variant("signed offsets of own weights, blocks", blocks=200, steps=0, make=Signed, rounding="nearest"),
    Variant("signed offsets of gptq's codes", make=lambda start: Signed(start, own=False), steps=400),
    Variant("relaxed codes", make=Relaxed, steps=400),
    Variant("relaxed codes, rate .2", make=lambda start: Relaxed(start, 0.2), steps=400),
]


@dataclass
class Bench:
    """What all rows share."""

    staged: StagedModel
    judge: Judge
    text: Tensor
    own_text: Callable[[], Tensor]
    starts: Callable[[str], dict[str, GridWeight]]

    def row(self, variant: Variant) -> Json:
        """Learn as a variant says, and measure what came of it."""
        torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
        staged, start = self.staged, self.starts(variant.rounding)
        text = torch.cat([self.text, self.own_text()]) if variant.own_text else self.text
        lesson = lesson_of(staged, text, max(variant.steps, 200))
        lesson = replace(lesson, kept=self.text[7::8], steps=variant.steps)
        staged.restore()
        lesson = replace(lesson, kept_teacher=staged.last_hidden(lesson.kept))
        began = time.monotonic()
        size = min(batch_of(staged, text), len(lesson.windows))
        state = start
        if variant.blocks:
            walk = Blockwise(staged, variant.blocks, size, 0, variant.block_make or variant.make)
            state = walk.learn(start, lesson.windows)
        latents = Latents(state, staged.originals, staged.placement.device, variant.make)
        descent = Descent(latents, max(1, variant.steps), staged.compute_dtype, Micro(size))
        looks = Looks(staged, lesson, start, descent, None)
        if variant.blocks:
            looks.take(0)
        gradient = tuning.gradient_of(staged, lesson)
        for step, batch in enumerate(batches(len(lesson.windows), size, variant.steps, 0), start=1):
            descent.step(gradient, batch)
            if step in looks.steps:
                looks.take(step)
                print(
                    f"  {variant.name}: step {step}, {time.monotonic() - began:.0f} s, {looks.best.after:.4f}",
                    flush=True,
                )
        best = looks.best
        seconds = time.monotonic() - began
        with staged.in_place(best.packed):
            judged = self.judge.judge()
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        return {
            "variant": variant.name, "start": variant.rounding, "block_steps": variant.blocks, "steps": variant.steps,
            "best_step": best.steps, "before": best.before, "after": best.after, **judged,
            "moved": tuning.moved_share(start, best.packed), "seconds": round(seconds, 1), "memory_bytes": memory,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="numbers of variants, with commas")
    parser.add_argument("--windows", type=int, default=1024)
    parser.add_argument("--own-windows", type=int, default=1024)
    parser.add_argument("--limit-s", type=float, default=1e9)
    asked = parser.parse_args()
    began = time.monotonic()
    bench = bench_of(asked)
    staged = bench.staged
    rows: list[Json] = [{"variant": "full precision", **bench.judge.judge()}]
    with staged.in_place(bench.starts("gptq")):
        rows.append({"variant": "untuned gptq", **bench.judge.judge()})
    print(rows, f"{time.monotonic() - began:.1f} s", flush=True)
    chosen = [VARIANTS[int(item)] for item in asked.only.split(",")] if asked.only else VARIANTS
    for variant in chosen:
        if time.monotonic() - began > asked.limit_s:
            print(f"{variant.name}: no time left", flush=True)
            continue
        rows.append(bench.row(variant))
        print({name: rows[-1][name] for name in SHOWN}, flush=True)
        write_json(asked.out, {"title": TITLE, "command": own_command(), "bits": asked.bits, "rows": rows})


def bench_of(asked: argparse.Namespace) -> Bench:
    staged, tokenizer = load_staged(asked.model, place("auto", "auto")), load_tokenizer(asked.model)
    available = windows_of(asked.calibration, tokenizer, 512)
    text = choose(available, min(asked.windows, len(available)), 0)
    kept: dict[str, Any] = {}

    def starts(name: str) -> dict[str, GridWeight]:
        if name not in kept:
            began = time.monotonic()
            widths = dict.fromkeys(staged.originals, grid_width(asked.bits, GROUP))
            kept[name] = round_plan(staged, rounding_named(name), widths, text[:128])
            print(f"{name}: {len(widths)} linears rounded in {time.monotonic() - began:.1f} s", flush=True)
        found: dict[str, GridWeight] = kept[name]
        return found

    def own_text() -> Tensor:
        if "own" not in kept:
            began = time.monotonic()
            kept["own"] = sample_calibration(
                staged, tokenizer, windows=asked.own_windows, window_tokens=512, seed=1
            ).windows
            print(f"own text sampled in {time.monotonic() - began:.1f} s", flush=True)
        found: Tensor = kept["own"]
        return found

    return Bench(staged, Judge(staged, windows_of(asked.text, tokenizer, 512)[:128]), text, own_text, starts)


if __name__ == "__main__":
    main()
