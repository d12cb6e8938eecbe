"""Whole files: embedding and head as players beside the same file size reached with both at 16 bits.

    python benchmarks/whole_files.py smollm2-135m=/models/smollm2-135m/hf --calibration c4-sample.jsonl
        --text wikitext2-test-raw.txt --work WORK --out docs/results

Per model and share of its original file size: `players` (embedding at 8 or 16 bits, head at 4, 8 or 16), `4 bits too`
(the embedding may have 4, which stock transformers does not load) and `kept` (`--keep embedding,head`). All rows of a
model play one game (blocks as players, values on calibration text), so that each measures only what is new to it; what
is written is what `apportion quantize --max-bytes` writes. Each folder is loaded from the disk and judged on held-out
text. A row is saved as it comes, and not made again.
"""

import argparse
import gc
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import own_command
from vllm_rules import outside_blocks, unread

from apportion.bits.checkpoint import write_checkpoint
from apportion.bits.chosen import Chosen, by_search
from apportion.bits.divergence import Reference, divergence_of, reference_of, summarize
from apportion.bits.game import widths_by_path
from apportion.bits.offers import offers_for
from apportion.bits.perplexity import first_windows
from apportion.bits.quantize import QuantizeRequest, open_model
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.bits.vocabulary import told
from apportion.bits.written import proven
from apportion.core.artifact import Json, plain, read_json, write_json
from apportion.core.device import peak_memory
from apportion.core.errors import BudgetError
from apportion.models.load import load_staged
from apportion.models.vocabulary import names_of

TITLE = "Whole files: embedding and head as players, beside both kept at 16 bits"
WAYS = {
    "players": QuantizeRequest(),
    "kept": QuantizeRequest(keep=("embedding", "head")),
    "4 bits too": QuantizeRequest(embedding_bits=(4, 8)),
}


@dataclass(frozen=True)
class Bench:
    """One model set up: its game's texts, and full precision's answers on the held-out text."""

    name: str
    quantizer: Quantizer
    reference: Reference
    asked: argparse.Namespace

    @property
    def original(self) -> int:
        """Bytes of the model's own weight files."""
        origin = self.quantizer.staged.origin
        assert origin.folder is not None
        return sum(path.stat().st_size for path in origin.folder.glob("*.safetensors"))

    def row(self, way: str, share: float) -> Json:
        """One file: chosen, written, loaded and judged; or why there is none."""
        ask = replace(WAYS[way], max_bytes=int(share * self.original), evaluations=self.asked.evaluations, finalists=1)
        try:
            offers = offers_for(self.quantizer, ask)
        except BudgetError as error:
            return {"impossible": error.problem}
        folder = self.asked.work / self.name / "samples"
        with self.quantizer.game(folder, resume=True) as game:
            before = len(game.known)
            chosen = by_search(self.quantizer, game, ask, offers, folder)
            measured = len(game.known) - before
        return {"measured": measured, **self.written(chosen), "kept": dict(offers.kept)}

    def written(self, chosen: Chosen) -> Json:
        """The folder, what it takes, and how it predicts."""
        quantizer, vocabulary = self.quantizer, chosen.offer.vocabulary
        staged, form, out = quantizer.staged, quantizer.applied.format, self.asked.work / self.name / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        widths = widths_by_path(staged, quantizer.costs, chosen.plan.assignment)
        size, _ = write_checkpoint(out, staged, widths, chosen.weights.packed, quantizer.tokenizer, form, vocabulary)
        proof = proven(out, staged, chosen.weights.packed, form, vocabulary)
        config = read_json(out / "config.json")
        quantization, names = config["quantization_config"], names_of(staged)
        placement = staged.placement
        found = divergence_of(self.reference, load_staged(str(out), placement))
        return {
            "bytes": size,
            "bits_per_weight": 8 * size / quantizer.parameters,
            "blocks_bits": chosen.plan.avg_bits,
            "vocabulary": told(names, vocabulary, {}, chosen.offer.costs),
            "loads_in": proof["loads_in"],
            "reload_difference": proof["reload_difference"],
            "vllm": [*unread(quantization), *outside_blocks(quantization, tied="head" not in names)],
            "judged_on": chosen.plan.judged_on,
            "nll_predicted": chosen.plan.predicted_nll,
            "nll_measured": chosen.plan.measured_nll,
            "held_out": plain(summarize(found)),
        }


def bench(name: str, folder: str, asked: argparse.Namespace) -> Bench:
    """Load a model and keep full precision's answers."""
    recipe = Recipe(
        widths=asked.widths,
        players="blocks",
        rounding=asked.rounding,
        apply_rounding=asked.apply_rounding,
        calibration=asked.calibration,
        windows=asked.windows,
        window_tokens=asked.window_tokens,
        rounding_windows=asked.rounding_windows,
    ).for_method("auto")
    quantizer = open_model(folder, recipe, QuantizeRequest(device=asked.device, dtype=asked.dtype))
    text = first_windows(quantizer.tokenizer, asked.text, window_tokens=asked.window_tokens, windows=asked.text_windows)
    return Bench(name, quantizer, reference_of(quantizer.staged, text), asked)


def run(name: str, folder: str, asked: argparse.Namespace) -> None:
    """The rows of a model that are not there yet."""
    path = asked.out / "whole_files.json"
    saved: Json = read_json(path) if path.exists() else {"title": TITLE, "commands": {}, "models": {}}
    own = saved["models"].setdefault(name, [])
    wanted = [(share, way) for way in WAYS for share in asked.shares]
    missing = [pair for pair in wanted if pair not in [(row["share"], row["way"]) for row in own]]
    if not missing:
        return
    ready = bench(name, folder, asked)
    for share, way in missing:
        began = time.monotonic()
        row = {"share": share, "way": way, "original": ready.original, **ready.row(way, share)}
        own.append({**row, "seconds": round(time.monotonic() - began), "peak_memory_bytes": peak_memory()})
        saved["commands"][name] = own_command()
        print(own[-1], flush=True)
        write_json(path, saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="name=folder")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shares", type=lambda text: [float(part) for part in text.split(",")], default=[0.6, 0.4])
    parser.add_argument("--widths", type=lambda text: tuple(text.split(",")), default=("2", "3", "4", "8"))
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--apply-rounding")
    parser.add_argument("--rounding-windows", type=int, default=32)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=256)
    parser.add_argument("--text-windows", type=int, default=16)
    parser.add_argument("--evaluations", type=int, default=44)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for item in asked.models:
        run(*item.split("=", 1), asked)
        gc.collect()


if __name__ == "__main__":
    main()
