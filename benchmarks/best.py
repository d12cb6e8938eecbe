"""`auto` with more widths and finer players on a reference model, judged on held-out text, over six budgets.

One search serves all budgets. For roundings that write other weights than they sample (gptq), the finalists of
each budget and the uniform plans are written by worker processes and measured on calibration text; the best
there, on windows that the search has not seen, is kept, and its perplexity on the held-out text is reported. Nothing is
chosen on the held-out text.

    python benchmarks/best.py llama-mini --rounding gptq --calibration c4-sample.jsonl --text wikitext2.txt
        --work /tmp/best --out docs/results
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from apportion.bits.auto import default_widths, finalists, judging_text, searched_plans
from apportion.bits.budget import budget_from_bits
from apportion.bits.checkpoint import widths_by_path
from apportion.bits.evaluate import first_windows
from apportion.bits.game import decode, encode, teacher_for
from apportion.bits.plan import average_bits, spent
from apportion.bits.players import uniform
from apportion.bits.quantize import Quantization, open_table
from apportion.bits.rounding import rounding_named
from apportion.bits.sample import Sampling, Table, take_samples
from apportion.bits.weights import bank_of
from apportion.core.artifact import write_json
from apportion.core.bootstrap import Bootstrap

BUDGETS = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounding", default="nearest")
    parser.add_argument("--players", default="linears")
    parser.add_argument("--widths", default=None, help="with commas; 2,3,4 as far as the rounding has them")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--rounding-windows", type=int, default=128)
    parser.add_argument("--evaluations", type=int, default=3000)
    parser.add_argument("--finalists", type=int, default=2)
    parser.add_argument("--labels", default="soft")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--written", type=Path, help="worker: measure the plans that this file lists")
    return parser.parse_args()


def table_of(asked: argparse.Namespace) -> Table:
    own = default_widths(rounding_named(asked.rounding).bits)
    widths = tuple(map(int, asked.widths.split(","))) if asked.widths else own
    sampling = Sampling(
        widths=widths,
        players=asked.players,
        rounding=asked.rounding,
        group_size=asked.group_size,
        calibration=asked.calibration,
        windows=asked.windows,
        window_tokens=asked.window_tokens,
        permutations=0,
        rounding_windows=asked.rounding_windows,
        labels=asked.labels,
    )
    return open_table(asked.model, sampling, Quantization(dtype=asked.dtype))


def main() -> None:
    asked = options()
    if asked.written is not None:
        work_off(asked)
        return
    began = time.monotonic()
    name = f"{Path(asked.model).name}_{asked.rounding}"
    folder = asked.work / name
    table = table_of(asked)
    samples = take_samples(table, folder / "samples", resume=True)
    budgets = [budget_from_bits(samples, bits) for bits in BUDGETS]
    samples, found = searched_plans(table, samples, folder / "samples", budgets, evaluations=asked.evaluations)
    searched_s = time.monotonic() - began
    print(f"{name}: searched in {searched_s:.0f} s", flush=True)
    levels = [uniform(samples.players, bits) for bits in samples.widths]
    if table.rewrites:
        plans = sorted({item for one in found for item in finalists(one, samples, asked.finalists)} | set(levels))
        calibration_nll, text_nll = written(asked, folder, [encode(item) for item in plans])
    else:
        plans = sorted({one.assignment for one in found} | set(levels))
        calibration_nll = {encode(item): samples.values[item].mean() for item in plans}
        text_nll = sampled(asked, table, plans)
    rows = []
    for bits, budget in zip(BUDGETS, budgets, strict=True):
        fits = [item for item in plans if spent(samples, item) <= budget.player_bytes]
        kept = min(fits, key=lambda item: calibration_nll[encode(item)])
        nll = np.asarray(text_nll[encode(kept)])
        around = Bootstrap(len(nll), 0).interval(nll)
        rows.append(
            {
                "budget": bits,
                "avg_bits": average_bits(kept, samples.player_parameters),
                "perplexity": math.exp(nll.mean()),
                "interval": [math.exp(around.low), math.exp(around.high)],
                "calibration_nll": float(calibration_nll[encode(kept)]),
                "uniform": len(set(kept)) == 1,
                "widths": encode(kept),
            }
        )
        print(f"  {bits}: {rows[-1]['perplexity']:.2f} {'uniform' if rows[-1]['uniform'] else ''}", flush=True)
    high_nll = float(np.mean(text_nll[encode(levels[-1])]))
    result = {
        "command": " ".join(["python", *sys.argv]),
        "model": Path(asked.model).name,
        "rounding": asked.rounding,
        "settings": samples.settings,
        "evaluations": asked.evaluations,
        "finalists": asked.finalists if table.rewrites else None,
        "budgets": rows,
        "uniform": {str(item[0]): math.exp(np.mean(text_nll[encode(item)])) for item in levels},
        "excess_over_six": float(np.mean([math.log(row["perplexity"]) for row in rows]) - high_nll),
        "search_seconds": searched_s,
        "seconds": time.monotonic() - began,
    }
    write_json(asked.out / f"best_{name}.json", result)
    print(f"{name}: uniform {result['uniform']}, excess {result['excess_over_six']:.4f}", flush=True)


def sampled(asked: argparse.Namespace, table: Table, plans: list[tuple[int, ...]]) -> dict[str, list[float]]:
    """NLL per held-out window of plans on the weights that were sampled."""
    bank, windows = table.bank(), held_out(asked, table)
    found = {}
    for plan in plans:
        bank.put_all(plan)
        found[encode(plan)] = table.staged.window_nll(windows).tolist()
    table.staged.restore()
    return found


def held_out(asked: argparse.Namespace, table: Table):
    return first_windows(table.tokenizer, asked.text, window_tokens=asked.window_tokens, windows=asked.text_windows)


def written(
    asked: argparse.Namespace, folder: Path, plans: list[str]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Calibration NLL and held-out NLL per window of plans as written, by worker processes."""
    shares = [plans[start :: asked.workers] for start in range(asked.workers)]
    processes = []
    for index, share in enumerate(share for share in shares if share):
        job = folder / f"written{index}.json"
        write_json(job, {"plans": share})
        processes.append((job, subprocess.Popen([sys.executable, *sys.argv, "--written", str(job)])))
    calibration: dict[str, float] = {}
    text: dict[str, list[float]] = {}
    for job, process in processes:
        if process.wait() != 0:
            raise SystemExit(f"the worker of {job} failed")
        found = json.loads(job.read_text())["found"]
        calibration |= {plan: item["calibration"] for plan, item in found.items()}
        text |= {plan: item["text"] for plan, item in found.items()}
    return calibration, text


def work_off(asked: argparse.Namespace) -> None:
    """Write and measure the plans of one job file, saving after each."""
    table = table_of(asked)
    folder = asked.work / f"{Path(asked.model).name}_{asked.rounding}"
    judge, _ = judging_text(table, folder / "samples")
    text = held_out(asked, table)
    job = json.loads(asked.written.read_text())
    found = job.get("found", {})
    for plan in (plan for plan in job["plans"] if plan not in found):
        assignment = decode(plan)
        rounded = table.written(assignment)
        widths = widths_by_path(table.staged, table.players, assignment)
        bank = bank_of(table.staged, table.players, {(path, bits): rounded[path] for path, bits in widths.items()})
        teacher = teacher_for(table.staged, judge.windows, asked.labels)
        bank.put_all(assignment)
        found[plan] = {
            "calibration": float(table.staged.window_nll(judge.windows, teacher=teacher).mean()),
            "text": table.staged.window_nll(text).tolist(),
        }
        table.staged.restore()
        write_json(asked.written, {"plans": job["plans"], "found": found})


if __name__ == "__main__":
    main()
