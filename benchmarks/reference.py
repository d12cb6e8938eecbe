"""The main job on the reference models: perplexities, and llama-mini quantized to 3.00 bits by each method.

Every step is a command line run in its own process, as a user would run it; the commands and what they printed are
saved.

    python benchmarks/reference.py --llama llama-mini --qwen qwen3-mini --text wikitext2-test-raw.txt
        --calibration c4-sample.jsonl --work reference --out docs/results
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from command_line import own_command, shown

from apportion.core.artifact import Json, write_json

QUANTIZE = ("--avg-bits", "3", "--rounding", "nearest", "--windows", "8", "--window-tokens", "256")
METHODS = {
    "coopq": ("--method", "coopq", "--permutations", "20"),
    "regression": ("--method", "regression", "--permutations", "20"),
    "auto": ("--method", "auto", "--evaluations", "300"),
    "auto --tune 60": ("--method", "auto", "--evaluations", "300", "--finalists", "1", "--tune", "60"),
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--llama", "--qwen", "--text", "--calibration", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    return parser.parse_args()


def run(*words: object) -> tuple[str, Json, float]:
    """The command as typed, files by name, the object that it printed, and its wall time in seconds."""
    command = [str(word) for word in words]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "apportion", *command, "--json"], stdout=subprocess.PIPE, check=True)
    return shown(["apportion", *command]), json.loads(done.stdout), time.monotonic() - began


def perplexity(model: Path, text: Path) -> Json:
    command, found, seconds = run("perplexity", model, "--text", text, "--window-tokens", 512, "--windows", 128)
    return {"command": command, "model": model.name, "perplexity": found["perplexity"], "seconds": seconds}


def quantized(asked: argparse.Namespace, method: str) -> Json:
    out = asked.work / method.replace(" ", "")
    command, found, seconds = run(
        "quantize", asked.llama, *QUANTIZE, *METHODS[method], "--calibration", asked.calibration, "--out", out
    )
    kept = ("avg_bits", "bytes", "nll_fp", "nll_high", "nll_plan", "evaluations", "block_forwards", "plan")
    after = perplexity(out, asked.text)
    return {
        "command": command,
        "method": method,
        **{key: found[key] for key in kept},
        "naive_block_forwards": found["naive_block_forwards"],
        "peak_memory_bytes": found["peak_memory_bytes"],
        "seconds": seconds,
        "perplexity": after["perplexity"],
        "perplexity_command": after["command"],
    }


def main() -> None:
    asked = options()
    result: Json = {
        "command": own_command(),
        "full_precision": [perplexity(model, asked.text) for model in (asked.llama, asked.qwen)],
        "quantized": [],
    }
    for method in asked.methods.split(","):
        result["quantized"].append(quantized(asked, method))
        write_json(asked.out / "reference.json", result)
        last = result["quantized"][-1]
        print(f"{method}: {last['perplexity']:.2f} after {last['seconds']:.0f} s", flush=True)
    for item in result["full_precision"]:
        print(f"{item['model']}: {item['perplexity']:.2f}")


if __name__ == "__main__":
    main()
