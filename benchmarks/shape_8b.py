"""The 8B shape: one random block of Llama-3-8B rounded and run, and what 32 of them would take.

    python benchmarks/shape_8b.py --out docs/results/shape_8b.json

Measured: gptq of one block as it is done in sequence (moments, stage by stage), and one forward of the block. The
whole model's figures are these times its 32 blocks: extrapolated, embedding, head and tuning not counted.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from command_line import own_command
from transformers import LlamaConfig, LlamaForCausalLM

from apportion.bits.rounding import round_plan, rounding_named
from apportion.core.artifact import Json, write_json
from apportion.core.device import peak_memory, place
from apportion.formats import grid_width
from apportion.models.load import load_staged

TITLE = "The 8B shape: one random block measured, 32 extrapolated"
BLOCKS, VOCABULARY = 32, 1024


def timed(work: Callable[[], object]) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def make(folder: str, hidden: int) -> None:
    """A checkpoint of one block with 8B's proportions (hidden 4,096, 14,336 between, 32 heads over 8)."""
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 7 // 2, num_hidden_layers=1, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=VOCABULARY, max_position_embeddings=4096, rope_theta=500000.0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window-tokens", type=int, default=2048)
    parser.add_argument("--bits", type=lambda text: [int(part) for part in text.split(",")], default=[2, 4])
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(folder, asked.hidden)
        staged = load_staged(folder, place("auto", "auto"))
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(VOCABULARY, (asked.windows, asked.window_tokens), generator=generator)
    embedded, rounding, rows = staged.embed(windows), rounding_named("gptq"), list[Json]()

    def add(what: str, work: Callable[[], object]) -> None:
        first, seconds = timed(work), timed(work)
        row = {"what": what, "block_s": seconds, "first_block_s": first, "whole_s_extrapolated": BLOCKS * seconds}
        rows.append({**row, "peak_memory_bytes_one_block": peak_memory()})
        print(rows[-1], flush=True)
        write_json(asked.out, {"title": TITLE, "command": own_command(), "rows": rows})

    add(f"forward, {windows.numel():,} tokens", lambda: staged.run_block(0, embedded.hidden, embedded))
    for bits in asked.bits:
        widths = dict.fromkeys(staged.originals, grid_width(bits, 64))
        add(f"gptq w{bits}g64", lambda widths=widths: round_plan(staged, rounding, widths, windows))


if __name__ == "__main__":
    main()
