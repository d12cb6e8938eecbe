"""How long a step of tuning takes, plain and recorded as a CUDA graph; and how much of it the device works.

    python benchmarks/tuning_steps.py MODEL --calibration c4-sample.jsonl --out docs/results/tuning_steps.json

Codes and scales of all linears at 2 bits and group 64 (rounded to nearest; what they are changes no time), steps of
8,192 tokens. Needs a CUDA device, alone.
"""

import argparse
import time
from pathlib import Path

import torch
from command_line import own_command
from torch.profiler import ProfilerActivity, profile

from apportion.bits.rounding import round_plan, rounding_named
from apportion.bits.rounding.descent import Descent, Micro, batches
from apportion.bits.rounding.distil import Predictions
from apportion.bits.rounding.latent import Latents, StraightThrough
from apportion.bits.rounding.lesson import Lesson
from apportion.core.artifact import Json, write_json
from apportion.core.device import place
from apportion.formats import grid_width
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.text import windows_of

WARM, STEPS, PROFILED, WINDOWS, BATCH = 3, 30, 2, 256, 16


def steps(descent: Descent, task: Predictions, count: int) -> tuple[float, float]:
    """Milliseconds a step: until the last launch returned, and until the device was done."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for batch in batches(WINDOWS, BATCH, count, 0):
        descent.step(task, batch)
    host = time.perf_counter() - began
    torch.cuda.synchronize()
    return 1000 * host / count, 1000 * (time.perf_counter() - began) / count


def row(descent: Descent, task: Predictions) -> Json:
    """One way to run steps."""
    torch.cuda.reset_peak_memory_stats()
    steps(descent, task, WARM)
    host, wall = steps(descent, task, STEPS)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        steps(descent, task, PROFILED)
    device = sum(event.self_device_time_total for event in seen.key_averages()) / 1000 / PROFILED
    return {
        "steps": descent.execution, "ms": round(wall, 1), "ms_host": round(host, 1), "ms_device": round(device, 1),
        "memory_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    staged = load_staged(asked.model, place("cuda", "auto"))
    windows = windows_of(asked.calibration, load_tokenizer(asked.model), 512)[:WINDOWS]
    rounded = round_plan(staged, rounding_named("nearest"), dict.fromkeys(staged.originals, grid_width(2, 64)))
    staged.restore()
    kept = windows[:BATCH]
    lesson = Lesson(windows, staged.last_hidden(windows), kept, staged.last_hidden(kept), 1000, 0, codes=True)
    rows = []
    for recorded in (False, True):
        latents = Latents(rounded, staged.originals, "cuda", lambda start: StraightThrough(start, 0.003))
        descent = Descent(latents, lesson.steps, staged.compute_dtype, Micro(BATCH))
        descent.recorder = descent.recorder if recorded else None
        rows.append(row(descent, Predictions(staged, lesson)))
        print(rows[-1], flush=True)
    title = f"A step of tuning on {Path(asked.model).name}, plain and recorded as a CUDA graph"
    write_json(asked.out, {"title": title, "command": own_command(), "rows": rows})


if __name__ == "__main__":
    main()
