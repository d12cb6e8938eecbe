"""The house before and after: the same plans and losses, how long, how much memory, how often a text was embedded.

    git worktree add ../before 385362f
    python benchmarks/house.py MODEL --before ../before/src --calibration c4-sample.jsonl --work WORK --out docs/results

Both versions run the same commands in processes of their own, in turn, on one thread. Plans and losses must agree to
the last digit; times are a ratio within this run (of processor seconds too, which a busy machine changes little), and
memory is the peak of each process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line import own_command

from apportion.core.artifact import write_json

SAME = ("avg_bits", "bytes", "nll_fp", "nll_high", "nll_low", "nll_plan", "nll_judged", "nll_predicted", "evaluations",
        "block_forwards", "naive_block_forwards", "source", "judged_on")  # fmt: skip
JOBS = {
    "coopq": ["--method", "coopq"],
    "regression": ["--method", "regression"],
    "auto": ["--method", "auto"],
    "auto, gptq": ["--method", "auto", "--rounding", "gptq", "--rounding-windows", "16", "--finalists", "2"],
}


def run(source: Path, model: str, words: list[str], out: Path) -> dict[str, Any]:
    """One command in a process of its own; its result."""
    environment = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "apportion", "quantize", model, "--out", str(out), "--json", *words]
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "processor_seconds": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - spent}


def bits_of(plan: dict[str, Any]) -> dict[str, int]:
    """Bits of every player, of a plan that says bits or names of widths."""
    return {name: int(str(width).lstrip("w").partition("g")[0]) for name, width in plan.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--name", default="")
    parser.add_argument("--before", type=Path, required=True, help="src folder of the version to compare with")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--windows", default="4")
    parser.add_argument("--window-tokens", default="128")
    parser.add_argument("--permutations", default="6")
    parser.add_argument("--evaluations", default="160")
    parser.add_argument("--jobs", default="coopq;regression;auto", help="names with semicolons: " + "; ".join(JOBS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    common = ["--avg-bits", "3", "--calibration", asked.calibration, "--windows", asked.windows]
    common += ["--window-tokens", asked.window_tokens, "--permutations", asked.permutations]
    common += ["--evaluations", asked.evaluations, "--device", "cpu"]
    rows = []
    name = asked.name or Path(asked.model).name
    for job in map(str.strip, asked.jobs.split(";")):
        found = {}
        for version, source in (("before", asked.before), ("after", Path("src"))):
            words = [*common, *JOBS[job]]
            words += ["--fast"] if version == "after" and "--rounding" not in words else []
            words += ["--labels", "text"] if version == "after" else []  # as before there was a choice
            found[version] = run(source, asked.model, words, asked.work / f"{name}-{job.replace(', ', '-')}-{version}")
        before, after = found["before"], found["after"]
        differing = [key for key in SAME if before[key] != after[key]]
        rows.append(
            {
                "job": job,
                "same_plan": bits_of(before["plan"]) == bits_of(after["plan"]),
                "differing": {key: [before[key], after[key]] for key in differing},
                "nll_plan": after["nll_plan"],
                "seconds": [before["seconds"], after["seconds"]],
                "ratio": after["seconds"] / before["seconds"],
                "processor_seconds": [before["processor_seconds"], after["processor_seconds"]],
                "processor_ratio": after["processor_seconds"] / before["processor_seconds"],
                "peak_memory_bytes": [before["peak_memory_bytes"], after["peak_memory_bytes"]],
                "execution": after["execution"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        title = f"{name}: before (385362f) and after the house, one thread, the same commands"
        path = asked.out / f"house_{name}_{asked.windows}x{asked.window_tokens}.json"
        write_json(path, {"title": title, "command": own_command(), "rows": rows})


if __name__ == "__main__":
    main()
