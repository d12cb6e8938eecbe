"""Pretrained models: what roundings, tuning and plans come to, by perplexity and by divergence from full precision.

    python benchmarks/real_models.py smollm2-135m=/models/smollm2-135m/hf --calibration c4-sample.jsonl
        --text wikitext2-test-raw.txt --work /tmp/work --out docs/results

Uniform plans at every width, and for every budget the plan of each method (`auto`: players linears, widths as asked),
written with nearest, gptq, gptq with scales tuned and gptq with codes and scales learned. With --bank-steps plans are
searched with weights that have been learned already, uniformly at each width. One file a model,
`real_<model>.json`, written after every row; rows that are there are not made again. The paper's own comparison
(blocks, widths 2 and 4, M = 100) on the same models is benchmarks/gpu_compare.py.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from command_line import own_command
from judging import Judge

from apportion.bits.game import Assignment, WeightBank, sample, widths_by_path
from apportion.bits.perplexity import first_windows
from apportion.bits.plan import budget_from_bits, search
from apportion.bits.quantize import QuantizeRequest, open_model
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.rounding import Lesson, lesson_of, round_plan, rounding_named, tune
from apportion.core.artifact import Json, read_json, write_json
from apportion.core.device import peak_memory, reset_peak_memory
from apportion.core.errors import ApportionError
from apportion.formats import GridWeight, Packed, Width, grid_width

TITLE = "{}: WikiText-2 and divergence from full precision, by rounding, budget and method"


WIDTHS = [2, 3, 4]
BUDGETS = [2.25, 2.5, 3.0, 3.5]


@dataclass(frozen=True)
class Writing:
    """How a plan is written: its rounding, steps of tuning, and whether codes are learned."""

    name: str
    rounding: str
    steps: int = 0
    codes: bool = False
    banked: bool = False  # begins with the weights that the plan was searched with


WRITINGS = (
    Writing("nearest", "nearest"),
    Writing("gptq", "gptq"),
    Writing("gptq, scales tuned", "gptq", 200),
    Writing("gptq, codes and scales learned", "gptq", 200, codes=True),
    Writing("learned at each width, then together", "gptq", 200, codes=True, banked=True),
)


class Model:
    """One model, its texts, and the file of its rows."""

    def __init__(self, name: str, folder: str, asked: argparse.Namespace) -> None:
        self.name, self.asked, self.path = name, asked, asked.out / f"real_{name}.json"
        self.lessons: dict[Writing, Lesson] = {}
        recipe = Recipe(
            calibration=asked.calibration,
            players="linears",
            permutations=0,
            windows=asked.windows,
            window_tokens=asked.window_tokens,
            group_size=asked.group_size,
            widths=tuple(asked.widths),
            rounding=asked.measured,
            labels=asked.labels,
        )
        self.quantizer: Quantizer = open_model(folder, recipe, QuantizeRequest(avg_bits=3.0))
        staged = self.quantizer.staged
        test = first_windows(
            self.quantizer.tokenizer, asked.text, window_tokens=asked.window_tokens, windows=asked.text_windows
        )
        self.judge = Judge(staged, test)
        self.rows: list[Json] = read_json(self.path)["rows"] if self.path.exists() else []

    def add(self, key: Json, make: Callable[[], Json]) -> None:
        """One row, if it is not there yet; what fails is a row that says so."""
        if any(all(row.get(name) == value for name, value in key.items()) for row in self.rows):
            return
        began = time.monotonic()
        reset_peak_memory()
        try:
            found = make()
        except ApportionError as error:
            found = {"failed": str(error)}
        row = {**key, **found, "seconds": round(time.monotonic() - began, 1), "peak_memory_bytes": peak_memory()}
        self.rows.append(row)
        print(row, flush=True)
        write_json(self.path, {"title": TITLE.format(self.name), "command": own_command(), "rows": self.rows})

    def write(self, widths: dict[str, Width], writing: Writing) -> Json:
        """A plan's weights as they are written, judged."""
        quantizer, staged = self.quantizer, self.quantizer.staged
        rounding = rounding_named(writing.rounding)
        text = quantizer.rounding_text if rounding.needs_hessian else None
        if writing.banked:
            packed: dict[str, Packed] = {path: quantizer.bank.rounded[path, width] for path, width in widths.items()}
        else:
            packed = round_plan(staged, rounding, widths, text)
        told: Json = {}
        if writing.steps:
            tuned = tune(staged, packed, self.lesson(writing))
            packed = dict(tuned.packed)
            told = {"learned": tuned.learned, "best_step": tuned.steps, "codes_changed": tuned.moved}
            told |= {
                "steps": writing.steps,
                "own_windows": tuned.own,
                "execution": tuned.execution,
                "aside": tuned.after,
            }
        with staged.in_place(packed):
            bits = average_bits(staged.originals, widths)
            return {**self.judge.judge(), "avg_bits": bits, "bits_with_scales": stored_bits(packed), **told}

    def lesson(self, writing: Writing) -> Lesson:
        """What a writing learns from: the same for every plan, so the model writes its own text once."""
        if writing not in self.lessons:
            text = self.quantizer.tuning_text
            self.lessons[writing] = lesson_of(self.quantizer.staged, text, writing.steps, codes=writing.codes)
        return self.lessons[writing]

    def learn_bank(self) -> None:
        """Weights to search with: all linears learned at each width."""
        quantizer, paths = self.quantizer, self.quantizer.staged.originals
        lesson = self.lesson(Writing("bank", "gptq", self.asked.bank_steps, codes=True))
        found: dict[tuple[str, Width], Packed] = {}
        for width in quantizer.costs.widths:
            began = time.monotonic()
            widths = dict.fromkeys(paths, width)
            tuned = tune(
                quantizer.staged,
                round_plan(quantizer.staged, rounding_named("gptq"), widths, quantizer.rounding_text),
                lesson,
            )
            found |= {(path, width): item for path, item in tuned.packed.items()}
            print(
                f"{width.name}: {tuned.before:.3f} to {tuned.after:.3f} in {time.monotonic() - began:.0f} s", flush=True
            )
        quantizer.bank = WeightBank(quantizer.staged, quantizer.costs, found)

    def uniform(self) -> None:
        """All linears at one width."""
        for bits in self.asked.bits:
            width = grid_width(bits, self.asked.group_size)
            widths = dict.fromkeys(self.quantizer.staged.originals, width)
            for writing in self.asked.writings:
                key = {"plan": f"uniform {width.name}", "written": writing.name}
                self.add(key, lambda widths=widths, writing=writing: self.write(widths, writing))

    def searched(self) -> None:
        """The best measured plan for each budget."""
        for bits, assignment in self.plans():
            widths = widths_by_path(self.quantizer.staged, self.quantizer.costs, assignment)
            for writing in self.asked.writings:
                plan = f"auto, {bits:g} bits{self.other_widths()}"
                bank = f", learned in {self.asked.bank_steps} steps" if self.asked.bank_steps else ""
                key = {"plan": plan, "labels": f"{self.asked.labels}{bank}", "written": writing.name}
                self.add(key, lambda widths=widths, writing=writing: self.write(widths, writing))

    def other_widths(self) -> str:
        """What the row says of widths that are not the usual ones."""
        return "" if self.asked.widths == WIDTHS else f" of {','.join(map(str, self.asked.widths))}"

    def plans(self) -> Iterator[tuple[float, Assignment]]:
        """The plan that a search with one rounding finds for each budget: one game serves all."""
        quantizer, folder = self.quantizer, self.asked.work / f"{self.name}{self.asked.bank_steps or ''}"
        with quantizer.game(folder, resume=True) as game:
            samples = sample(game, folder, quantizer.orders())
            budgets = [budget_from_bits(quantizer.costs, bits) for bits in self.asked.avg_bits]
            found, _ = search(game, samples, budgets, evaluations=self.asked.evaluations, seed=quantizer.recipe.seed)
        yield from ((bits, one.assignment) for bits, one in zip(self.asked.avg_bits, found, strict=True))


def average_bits(originals: Mapping[str, torch.Tensor], widths: Mapping[str, Width]) -> float:
    """Bits of a code, by weight."""
    sizes = {path: weight.numel() for path, weight in originals.items()}
    return sum(widths[path].bits * size for path, size in sizes.items()) / sum(sizes.values())


def stored_bits(packed: dict[str, Packed]) -> float:
    """Bits per quantized weight, scales included."""
    grid = [item for item in packed.values() if isinstance(item, GridWeight)]
    weights = sum(item.shape[0] * item.shape[1] for item in grid)
    held = sum(tensor.nbytes for item in grid for name, tensor in item.tensors().items() if name != "weight_shape")
    return 8 * held / weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="name=folder")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--bits", type=lambda text: [int(part) for part in text.split(",") if part], default=[2, 3, 4])
    parser.add_argument("--labels", default="predictions", help="what plans are searched by: predictions or text")
    parser.add_argument("--widths", type=lambda text: [int(part) for part in text.split(",")], default=WIDTHS)
    parser.add_argument("--avg-bits", type=lambda text: [float(part) for part in text.split(",")], default=BUDGETS)
    parser.add_argument("--steps", type=int, default=200, help="of tuning")
    parser.add_argument("--measured", default="gptq", help="the rounding that plans are searched with")
    parser.add_argument("--evaluations", type=int, default=1000, help="0: uniform plans alone")
    parser.add_argument("--bank-steps", type=int, default=0, help="of learning each width before plans are searched")
    parser.add_argument("--only", default="", help="names of writings, separated by semicolons")
    asked = parser.parse_args()
    offered = [one for one in WRITINGS if asked.bank_steps or not one.banked]
    chosen = [one for one in offered if not asked.only or one.name in asked.only.split(";")]
    asked.writings = [replace(one, steps=asked.steps) if one.steps else one for one in chosen]
    for item in asked.models:
        name, folder = item.split("=", 1)
        model = Model(name, folder, asked)
        model.add({"plan": "full precision"}, model.judge.judge)
        if asked.evaluations:
            if asked.bank_steps:
                model.learn_bank()
            model.searched()
        model.uniform()
        del model
        torch.cuda.empty_cache() if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()
