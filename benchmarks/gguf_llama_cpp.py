"""Our GGUF file in real llama.cpp: perplexity and KL on the same tokens as ours, and greedy continuations to read."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from apportion.bits.divergence import divergence_of, reference_of, summarize
from apportion.core.device import place
from apportion.models.gguf.load import is_gguf, load_gguf
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.text import windows_of
from tests.llama_cpp import LlamaCpp

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was a",
    "def add(a, b):\n    return",
    "The three primary colours are",
    "My favourite season is summer because",
    "In 1969 the first man",
    "To bake bread you need",
    "The opposite of hot is",
    "2 + 2 =",
)


def continued(runner: LlamaCpp, tokenizer: object, prompt: str, count: int) -> str:
    """Greedy, a token at a time."""
    ids = tokenizer(prompt).input_ids  # type: ignore[operator]
    for _ in range(count):
        ids = [*ids, int(runner.logits(ids)[-1].argmax())]
    return str(tokenizer.decode(ids))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", help="folder of the original")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=256)
    parser.add_argument("--continue-tokens", type=int, default=16)
    asked = parser.parse_args()
    cpu = place("cpu", "float32")
    tokenizer = load_tokenizer(asked.reference)
    windows = windows_of(asked.text, tokenizer, asked.window_tokens)[: asked.windows]
    original = load_gguf(Path(asked.reference), cpu) if is_gguf(asked.reference) else load_staged(asked.reference, cpu)
    own = summarize(divergence_of(reference_of(original, windows), load_gguf(asked.gguf, cpu)))
    runner = LlamaCpp(asked.gguf, asked.window_tokens)
    kl, nll = [], []
    for row in windows:
        theirs = torch.from_numpy(runner.logits(row.tolist())).log_softmax(-1)[:-1]
        with torch.inference_mode():
            p = original.model(input_ids=row[None]).logits[0, :-1].float().log_softmax(-1)
        kl.append(float((p.exp() * (p - theirs)).sum(-1).mean()))
        nll.append(float(-theirs.gather(-1, row[1:, None]).mean()))
    found = {
        "tokens": own.tokens,
        "kl": {"ours": own.kl_mean.mean, "llama.cpp": float(np.mean(kl))},
        "perplexity": {"ours": own.perplexity, "llama.cpp": float(np.exp(np.mean(nll)))},
        "original_perplexity": own.reference_perplexity,
    }
    print(json.dumps(found, indent=1))
    for prompt in PROMPTS:
        print(repr(continued(runner, tokenizer, prompt, asked.continue_tokens)))


if __name__ == "__main__":
    main()
