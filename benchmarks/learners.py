"""Ways to learn codes at one uniform width, side by side: what `rounding.latent` is, and what lost to it.

    python benchmarks/learners.py MODEL --text TEXT --calibration TEXT --bits 2 --out docs/results/learners_NAME.json

Every row starts from the same gptq codes (unless it says otherwise) and learns from the same windows; the windows kept
aside choose the state, the test text's perplexity stands beside it and decides nothing. Rows are written as they come.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from blockwise import Blockwise
from command_line import own_command
from judging import Judge
from tasks import Resampled, WithOutside, WithStates
from torch import Tensor
from ways import Centred, Norms, Outside, Relaxed, Signed, Slow, With, scales_alone, straight

from apportion.bits.game import own_nll
from apportion.bits.rounding import full_precision_hidden, round_plan, rounding_named, tuning
from apportion.bits.rounding.descent import Descent, Micro, batches
from apportion.bits.rounding.distil import Predictions
from apportion.bits.rounding.latent import Latents, Make
from apportion.bits.rounding.lesson import BEGINNING, Lesson, batch_of, loss_of, parted, written_by
from apportion.bits.rounding.looks import Looks
from apportion.core.artifact import Json, write_json
from apportion.core.device import place
from apportion.formats import GridWeight, grid_width
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.staged import StagedModel
from apportion.models.text import choose, windows_of

LUCK = 0.002  # nats aside that a row may be better by luck
GROUP, MET = 64, 64  # columns that share a scale; windows that were learned from and are looked at again
TITLE = "Ways to learn codes and scales of all linears at one width, side by side"
SHOWN = ("variant", "after", "perplexity", "kl", "moved", "best_step", "seconds")


class Timed(Descent):
    """A descent that is over after so many seconds, if its steps are not before."""

    def __init__(self, *given: Any, seconds: float) -> None:
        super().__init__(*given)
        self.seconds, self.began = seconds or math.inf, time.monotonic()

    @property
    def progress(self) -> float:
        return min(1.0, max(self.done / self.steps, (time.monotonic() - self.began) / self.seconds))


@dataclass(frozen=True)
class Variant:
    """One row: steps of each block, steps end to end, and how codes are learned in each."""

    name: str
    blocks: int = 0
    steps: int = 200
    make: Make = scales_alone
    block_make: Make | None = None
    rounding: str = "gptq"
    own: int = 2048
    beginnings: tuple[int, ...] = (BEGINNING,)  # tokens of text that its windows go on from, in turn
    halves: bool = False  # half of each batch is the text's, however much the model wrote
    norms: float = 0.0
    outside: float = 0.0  # embedding and head too
    batch_share: float = 1.0
    task: Callable[[StagedModel, Lesson], Predictions] = Predictions


LONG = 6000
VARIANTS = [
    Variant("scales alone", steps=LONG),
    Variant("straight-through, rate .003, the text alone", make=straight(0.003), steps=LONG, own=0),
    Variant("straight-through, rate .001", make=straight(0.001), steps=LONG),
    Variant("straight-through, rate .003", make=straight(0.003), steps=LONG),
    Variant("straight-through, rate .01", make=straight(0.01), steps=LONG),
    Variant("straight-through, rate .003, norms too", make=straight(0.003), steps=LONG, norms=0.003),
    Variant("straight-through, rate .003, gains at .003", make=straight(0.003, 0.003), steps=LONG),
    Variant("straight-through, rate .003, half the batch", make=straight(0.003), steps=2 * LONG, batch_share=0.5),
    Variant("straight-through, rate .003, from nearest", make=straight(0.003), rounding="nearest", steps=LONG),
    Variant("blocks at .03, then end to end at .003", 128, LONG, straight(0.003), straight(0.03)),
    Variant("from the middle of the codes, rate .003", make=lambda start: Centred(start, 0.003), steps=LONG),
    Variant("signed offsets of own weights, blocks", blocks=200, steps=0, make=Signed, rounding="nearest"),
    Variant("signed offsets of gptq's codes", make=lambda start: Signed(start, own=False), steps=LONG),
    Variant("relaxed codes", make=Relaxed, steps=LONG),
    Variant("straight-through, rate .002", make=straight(0.002), steps=2 * LONG),
    Variant("relaxed codes, rate .2", make=lambda start: Relaxed(start, 0.2), steps=LONG),
    Variant("rate .002, tokens drawn anew", make=straight(0.002), steps=2 * LONG, task=Resampled),
    Variant("rate .002, hidden states too", make=straight(0.002), steps=2 * LONG, task=WithStates),
    Variant("rate .002, more own text", make=straight(0.002), steps=2 * LONG, own=8192),
    Variant("rate .003, more own text", make=straight(0.003), steps=LONG, own=8192),
    Variant("rate .003, from words too", make=straight(0.003), steps=LONG, own=8192, beginnings=(BEGINNING, 1)),
    Variant("rate .003, most own text", make=straight(0.003), steps=LONG, own=32768),
    Variant("rate .002, most own text", make=straight(0.002), steps=2 * LONG, own=32768),
    Variant("rate .003, half of each batch the text's", make=straight(0.003), steps=LONG, own=8192, halves=True),
    Variant("rate .003, from half windows", make=straight(0.003), steps=LONG, own=8192, beginnings=(256,)),
    Variant("rate .003, both", make=straight(0.003), steps=LONG, own=8192, beginnings=(256,), halves=True),
    Variant("rate .003, norms too, more own text", make=straight(0.003), steps=LONG, own=8192, norms=0.001),
    Variant(
        "rate .003, norms, embedding and head too",
        make=straight(0.003),
        steps=LONG,
        own=8192,
        norms=0.001,
        outside=0.0003,
        task=WithOutside,
    ),
    Variant("rate .003, a slower scale", make=lambda start: Slow(start, 0.003), steps=LONG, own=8192),
    Variant("rate .003, gains at .003, more own text", make=straight(0.003, 0.003), steps=LONG, own=8192),
    Variant("rate .01, gains at .01, the text alone", make=straight(0.01, 0.01), steps=LONG, own=0),
    Variant("rate .01, gains at .0025, the text alone", make=straight(0.01, 0.0025), steps=LONG, own=0),
    Variant("rate .005, gains at .01", make=straight(0.005, 0.01), steps=LONG),
    Variant("rate .0015, gains at .002", make=straight(0.0015, 0.002), steps=LONG),
    Variant("rate .005, gains at .002", make=straight(0.005, 0.002), steps=LONG),
    Variant("rate .0005, gains at .0005", make=straight(0.0005, 0.0005), steps=LONG),
    Variant("rate .0015, gains at .01", make=straight(0.0015, 0.01), steps=LONG),
    Variant("rate .005, gains at .001", make=straight(0.005, 0.001), steps=LONG),
    Variant("rate .01, gains at .002, the text alone", make=straight(0.01, 0.002), steps=LONG, own=0),
]
LOOKS = (0.1, 0.25, 0.5, 0.75, 1.0)  # of a row's steps or seconds, whichever are over first


@dataclass
class Bench:
    """What all rows share."""

    staged: StagedModel
    judge: Judge
    text: Tensor
    own_text: Callable[[tuple[int, ...], int], Tensor]
    starts: Callable[[str], dict[str, GridWeight]]
    seconds: float
    taught: int | None = None

    def row(self, variant: Variant, tell: Callable[[Json], None]) -> Json:
        """Learn as a variant says, and measure what came of it; told at every look."""
        staged, start = self.staged, self.starts(variant.rounding)
        lesson = self.lesson(variant)
        torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
        size = max(1, int(min(batch_of(staged, self.text), len(lesson.windows)) * variant.batch_share))
        state, began = start, time.monotonic()
        if variant.blocks:
            walk = Blockwise(staged, variant.blocks, size, 0, variant.block_make or variant.make)
            state = walk.learn(start, lesson.windows)
        latents: Any = Latents(state, staged.originals, staged.placement.device, variant.make)
        others: list[Norms | Outside] = [Norms(staged, variant.norms)] if variant.norms else []
        others += [Outside(staged, variant.outside)] if variant.outside else []
        latents = With(latents, others) if others else latents
        left = max(1.0, self.seconds - (time.monotonic() - began)) if self.seconds else 0.0
        descent = Timed(latents, max(1, variant.steps), staged.compute_dtype, Micro(size), seconds=left)
        looks, seen = Looks(staged, lesson, start, descent, None), []
        looks.goes_back = False
        if variant.blocks:
            looks.take(0)
        row = {
            "variant": variant.name, "start": variant.rounding, "block_steps": variant.blocks,
            "text_windows": len(lesson.windows) - lesson.own, "own_windows": lesson.own,
            "batch_tokens": size * self.text.shape[1],
        }  # fmt: skip
        task, waiting = variant.task(staged, lesson), [*LOOKS]
        descent.began = time.monotonic()
        for step, batch in enumerate(batches_of(lesson, size, variant), start=1):
            loss = descent.step(task, batch)
            over = descent.progress
            if over < waiting[0]:
                continue
            while waiting and over >= waiting[0]:
                waiting.pop(0)
            asked = time.monotonic()
            spent = asked - began
            looks.take(step)
            seen.append({"step": step, "seconds": round(spent, 1), "loss": float(loss), "after": looks.best.after})
            tell({**row, "unfinished": True, "looks": seen})
            pause = time.monotonic() - asked
            descent.began, began = descent.began + pause, began + pause
            if not waiting:
                break
        return {
            **row,
            **self.found(looks, start, time.monotonic() - began),
            "looks": seen,
            "steps": descent.done,
            "execution": descent.execution,
        }

    def found(self, looks: Looks, start: Mapping[str, GridWeight], seconds: float) -> Json:
        """The state that was best on the windows kept aside, judged."""
        best = looks.best
        with self.staged.in_place(best.packed):
            judged = self.judge.judge()
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        return {
            "best_step": best.steps, "before": best.before, "after": best.after, **judged,
            **self.met(best.packed, looks.lesson),
            "moved": tuning.moved_share(start, best.packed), "seconds": round(seconds, 1), "memory_bytes": memory,
        }  # fmt: skip

    def met(self, packed: Mapping[str, GridWeight], lesson: Lesson) -> Json:
        """Mean KL on windows that were learned from (of the text, of the model's own) and on those kept aside."""
        given = len(lesson.windows) - lesson.own
        places = {"kl_text": slice(0, min(given, MET)), "kl_own": slice(given, given + min(lesson.own, MET))}
        texts = {name: (lesson.windows[place], lesson.teacher[place]) for name, place in places.items()}
        texts["kl_aside"] = (lesson.kept, lesson.kept_teacher)
        return {
            name: loss_of(self.staged, packed, *text) - float(own_nll(self.staged, text[1], text[0]).mean())
            for name, text in texts.items()
            if len(text[0])
        }

    def lesson(self, variant: Variant) -> Lesson:
        """The text, and what the model wrote; aside is the same for all variants."""
        staged = self.staged
        kept, taught = parted(self.text, LONG, 0, batch_of(staged, self.text))
        own = self.own_text(variant.beginnings, variant.own)[: variant.own] if variant.own else taught[:0]
        windows = torch.cat([taught[: self.taught], own])
        staged.restore()
        hidden, kept_hidden = (full_precision_hidden(staged, item) for item in (windows, kept))
        return Lesson(windows, hidden, kept, kept_hidden, LONG, 0, True, len(own))


def batches_of(lesson: Lesson, size: int, variant: Variant) -> Iterator[Tensor]:
    """What each step learns from: all windows alike, or half of it the text's and half the model's own."""
    given, half = len(lesson.windows) - lesson.own, size // 2
    if not variant.halves:
        return batches(len(lesson.windows), size, variant.steps, 0)
    pairs = zip(batches(given, half, variant.steps, 0), batches(lesson.own, size - half, variant.steps, 1), strict=True)
    return (torch.cat([text, own + given]) for text, own in pairs)


def main() -> None:
    asked = arguments()
    began = time.monotonic()
    chosen = [VARIANTS[int(item)] for item in asked.only.split(",")] if asked.only else VARIANTS
    chosen = [
        replace(item, steps=asked.steps or item.steps, own=(asked.own or item.own) if item.own else 0)
        for item in chosen
    ]
    bench = bench_of(asked, chosen)
    rows: list[Json] = [{"variant": "full precision", **bench.judge.judge()}]
    with bench.staged.in_place(bench.starts("gptq")):
        rows.append({"variant": "untuned gptq", **bench.judge.judge()})
    rows[-1] |= bench.met(bench.starts("gptq"), bench.lesson(Variant("the text alone", own=0)))
    print(rows, f"{time.monotonic() - began:.1f} s", flush=True)

    def tell(row: Json) -> None:
        write_json(asked.out, {"title": TITLE, "command": own_command(), "bits": asked.bits, "rows": [*rows, row]})
        told = row["looks"][-1] if "unfinished" in row else {name: row[name] for name in SHOWN}
        print(row["variant"], told, flush=True)

    for variant in chosen:
        if time.monotonic() - began > asked.limit_s:
            print(f"{variant.name}: no time left", flush=True)
            continue
        row = bench.row(variant, tell)
        tell(row)
        rows.append(row)
    if asked.longer:
        learned = dict(zip(chosen, (row["after"] for row in rows[2:]), strict=False))
        bench.seconds = asked.longer_seconds
        rows.append(bench.row(longer(learned, asked.longer, asked.longer_own), tell))
        tell(rows[-1])


def longer(learned: Mapping[Variant, float], steps: int, own: int) -> Variant:
    """The first variant with all that made another one better on the windows kept aside, for more steps."""
    first, *others = learned
    better = sorted((one for one in others if learned[one] < learned[first] - LUCK), key=learned.__getitem__)
    found = replace(first, steps=steps, own=own, make=straight(0.002))
    for names in (("halves",), ("beginnings",), ("norms", "outside", "task")):
        fields = [{name: getattr(one, name) for name in names} for one in better]
        unlike = [one for one in fields if any(value != getattr(first, name) for name, value in one.items())]
        found = replace(found, **unlike[0]) if unlike else found
    return replace(found, name=f"longer: {first.name}; " + "; ".join(one.name for one in better))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="numbers of variants, with commas")
    parser.add_argument("--windows", type=int, default=1024)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--judged", type=int, default=128, help="windows of the test text")
    parser.add_argument("--rounding-windows", type=int, default=128, help="of the text, that gptq is calibrated on")
    parser.add_argument("--taught", type=int, help="windows of the text that are learned from, at most")
    parser.add_argument("--own", type=int, default=0, help="windows that the model writes; 0: the variant's own")
    parser.add_argument("--seconds", type=float, default=0.0, help="of learning in each row; 0: all steps")
    parser.add_argument("--steps", type=int, default=0, help="of learning in each row; 0: the variant's own")
    parser.add_argument("--longer", type=int, default=0, help="steps of a last row: all that was better than the first")
    parser.add_argument("--longer-seconds", type=float, default=0.0, help="at most; 0: all steps")
    parser.add_argument("--longer-own", type=int, default=8192, help="windows that the model writes for it")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limit-s", type=float, default=1e9, help="no row begins later")
    return parser.parse_args()


def bench_of(asked: argparse.Namespace, variants: list[Variant]) -> Bench:
    staged, tokenizer = load_staged(asked.model, place("auto", asked.dtype)), load_tokenizer(asked.model)
    available = windows_of(asked.calibration, tokenizer, asked.window_tokens)
    text = choose(available, min(asked.windows, len(available)), 0)
    kept: dict[str, Any] = {}

    def starts(name: str) -> dict[str, GridWeight]:
        if name not in kept:
            began = time.monotonic()
            widths = dict.fromkeys(staged.originals, grid_width(asked.bits, GROUP))
            kept[name] = round_plan(staged, rounding_named(name), widths, text[: asked.rounding_windows])
            print(f"{name}: {len(widths)} linears rounded in {time.monotonic() - began:.1f} s", flush=True)
        found: dict[str, GridWeight] = kept[name]
        return found

    def own_text(beginnings: tuple[int, ...], least: int) -> Tensor:
        name = f"own text from {', '.join(map(str, beginnings))} tokens"
        if len(kept.get(name, ())) < least:
            began = time.monotonic()
            staged.restore()
            taught = parted(text, LONG, 0, batch_of(staged, text))[1]
            first = asked.longer_own if asked.longer and beginnings == variants[0].beginnings else 0
            each = max(first, least, *(one.own for one in variants if one.beginnings == beginnings)) // len(beginnings)
            found = [written_by(staged, taught, each, part, tokens) for part, tokens in enumerate(beginnings)]
            kept[name] = torch.stack(found, 1).flatten(0, 1)
            print(f"{name}: written in {time.monotonic() - began:.1f} s", flush=True)
        own: Tensor = kept[name]
        return own

    judge = Judge(staged, windows_of(asked.text, tokenizer, asked.window_tokens)[: asked.judged])
    return Bench(staged, judge, text, own_text, starts, asked.seconds, asked.taught)


if __name__ == "__main__":
    main()
