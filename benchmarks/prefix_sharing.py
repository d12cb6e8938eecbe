"""Prefix sharing against naive whole-model evaluation, on the same machine in one run: `make bench`.

Without --model, a 16-block model of random weights is made: speed does not depend on the weights. Naive
evaluation runs the model's own forward for every coalition that SPQE asks for; it is timed on a random share of
them and scaled up, because all of them would take long.

    python benchmarks/prefix_sharing.py [--model llama-mini] [--permutations 100] --out out/bench
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from command_line import shown

from apportion.bits.game import MeasuredGame, naive_values
from apportion.bits.game.game import block_states, trie_edges
from apportion.bits.game.spqe import coalitions, draw_permutations
from apportion.bits.quantizer import Quantizer
from apportion.bits.recipe import Recipe
from apportion.core.artifact import Json, write_json
from apportion.core.device import place
from apportion.models.load import load_staged
from apportion.models.staged import StagedModel
from apportion.models.text import Windows


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--permutations", type=int, default=100)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=128)
    parser.add_argument("--naive-share", type=float, default=0.025, help="share of the coalitions timed naively")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def random_model(folder: Path) -> Path:
    """A 16-block Llama of the reference models' size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1152, num_hidden_layers=16, num_attention_heads=6,
        num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main() -> None:
    asked = options()
    with tempfile.TemporaryDirectory() as folder:
        path = asked.model or random_model(Path(folder))
        staged = load_staged(str(path), place())
        result = compare(staged, asked)
    result["model"] = str(asked.model.name if asked.model else "random weights, 16 blocks, hidden 384")
    write_json(asked.out / "prefix_sharing.json", result)
    print(
        f"{result['model']}: {result['block_forwards']:,} block forwards for {result['evaluations']:,} coalitions; "
        f"naive {result['naive_block_forwards']:,}: {result['fewer']:.2f} x fewer\n"
        f"wall time {result['seconds']:.1f} s; naive {result['naive_seconds']:.1f} s (timed on "
        f"{result['naive_timed']} coalitions): {result['faster']:.2f} x faster\n"
        f"largest relative difference of the values: {result['largest_relative_difference']:.1e}"
    )


def compare(staged: StagedModel, asked: argparse.Namespace) -> Json:
    """Counts, times and differences; naive and shared evaluation are timed in alternating slices."""
    quantizer = Quantizer(staged, None, Recipe())  # no text is read, so no tokenizer is needed
    costs, bank = quantizer.costs, quantizer.bank
    vocabulary = staged.model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (asked.windows, asked.window_tokens), generator=torch.Generator().manual_seed(0))
    text = Windows(ids, "random tokens")
    wanted = coalitions(draw_permutations(len(costs.players), asked.permutations, seed=0), 0, costs.high)
    timed = np.random.default_rng(0).choice(len(wanted), max(8, round(asked.naive_share * len(wanted))), replace=False)
    sample = [wanted[index] for index in sorted(timed.tolist())]
    MeasuredGame(bank, text).values(wanted[:1])  # warm up; chooses how much is kept decoded, for both
    naive_values(bank, text, sample[:2])
    game = MeasuredGame(bank, text)
    slices = 4
    naive, naive_seconds = [], 0.0
    for part in np.array_split(np.arange(len(sample)), slices):
        began = time.perf_counter()
        naive.extend(naive_values(bank, text, [sample[index] for index in part]))
        naive_seconds += time.perf_counter() - began
    began = time.perf_counter()
    game.values(wanted)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    again = naive_values(bank, text, sample)
    naive_seconds = (naive_seconds + time.perf_counter() - began) / 2
    shared = np.asarray([game.known[item].mean() for item in sample])
    edges = trie_edges(block_states(costs.players, staged.layout.block_count, item) for item in wanted)
    assert game.counts.block_forwards == edges, "the game ran other block forwards than the trie has edges"
    return {
        "command": command(asked),
        "evaluations": game.counts.evaluations,
        "block_forwards": game.counts.block_forwards,
        "naive_block_forwards": len(wanted) * staged.layout.block_count,
        "fewer": len(wanted) * staged.layout.block_count / game.counts.block_forwards,
        "seconds": seconds,
        "naive_seconds": naive_seconds * len(wanted) / len(sample),
        "naive_timed": len(sample),
        "faster": naive_seconds * len(wanted) / len(sample) / seconds,
        "largest_relative_difference": float(np.max(np.abs(shared / np.asarray(naive) - 1))),
        "naive_repeats": float(np.max(np.abs(np.asarray(again) / np.asarray(naive) - 1))),
        "threads": torch.get_num_threads(),
        "decoded_cache": bank.cache.reason,
    }


def command(asked: argparse.Namespace) -> str:
    """With the defaults that were used, and without where the result went."""
    words: list[object] = ["python", "benchmarks/prefix_sharing.py", "--permutations", asked.permutations]
    words += ["--windows", asked.windows, "--window-tokens", asked.window_tokens]
    return shown([*words, *(["--model", asked.model.name] if asked.model else [])])


if __name__ == "__main__":
    main()
