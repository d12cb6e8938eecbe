"""Our GGUF file in real llama.cpp: perplexity and KL on the same tokens as ours, and greedy continuations to read.

llama.cpp rounds the activations that a quantized matrix is multiplied with to 8 bit. The same weights, decoded to
float32 and written as such, are run by it too: there they stay as they are, and what is left is all other difference.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from command_line import own_command
from gguf_evidence import OffGrid
from jaxtyping import Int
from torch import Tensor

from apportion.bits.divergence import divergence_of, reference_of, summarize
from apportion.core.device import Placement, place
from apportion.formats.gguf_file import Field, TensorEntry, write
from apportion.models.gguf.load import is_gguf, load_gguf, staged_file
from apportion.models.gguf.source import GgufFile
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer
from apportion.models.staged import StagedModel
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


def decoded(path: Path, out: Path) -> Path:
    """The same file with every tensor in float32."""
    file = GgufFile(path)
    entries = {name: TensorEntry("F32", shape) for name, shape in file.shapes.items()}
    fields = {**file.fields, "general.file_type": Field("UINT32", 0)}
    write(out, fields, entries, lambda name: file.weight(name).float().contiguous().numpy().tobytes())
    return out


def in_llama_cpp(
    path: Path, original: StagedModel, windows: Int[Tensor, "windows tokens"]
) -> tuple[LlamaCpp, float, float]:
    """A file that is running, its mean KL from the original and its perplexity."""
    runner = LlamaCpp(path, windows.shape[1])
    kl, nll = [], []
    for row in windows:
        theirs = torch.from_numpy(runner.logits(row.tolist())).log_softmax(-1)[:-1]
        with torch.inference_mode():
            there = row[None].to(original.placement.device)
            p = original.model(input_ids=there).logits[0, :-1].float().log_softmax(-1).cpu()
        kl.append(float((p.exp() * (p - theirs)).sum(-1).mean()))
        nll.append(float(-theirs.gather(-1, row[1:, None]).mean()))
    return runner, float(np.mean(kl)), float(np.exp(np.mean(nll)))


def continued(runner: LlamaCpp, tokenizer: object, prompt: str, count: int) -> str:
    """Greedy, a token at a time."""
    ids = tokenizer(prompt).input_ids  # type: ignore[operator]
    for _ in range(count):
        ids = [*ids, int(runner.logits(ids)[-1].argmax())]
    return str(tokenizer.decode(ids))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", help="folder of the original (with --off-grid: only its tokenizer is used)")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, help="where the figures are saved")
    parser.add_argument("--continue-tokens", type=int, default=16)
    parser.add_argument("--off-grid", type=Path, help="the original: this quantized file, moved off its grid")
    parser.add_argument("--device", default="cpu", help="of the original and of our figures")
    asked = parser.parse_args()
    placement = place(asked.device, "float32")
    tokenizer = load_tokenizer(asked.reference)
    windows = windows_of(asked.text, tokenizer, asked.window_tokens)[: asked.windows]
    original = opened(asked, placement)
    own = summarize(divergence_of(reference_of(original, windows), load_gguf(asked.gguf, placement)))
    runner, kl, perplexity = in_llama_cpp(asked.gguf, original, windows)
    with TemporaryDirectory() as folder:
        other, decoded_kl, decoded_perplexity = in_llama_cpp(
            decoded(asked.gguf, Path(folder) / "f32.gguf"), original, windows
        )
        other.close()
    found = {
        "command": own_command(),
        "file": asked.gguf.stem,
        "tokens": own.tokens,
        "kl": {"ours": own.kl_mean.mean, "llama.cpp": kl, "llama.cpp, weights decoded to f32": decoded_kl},
        "perplexity": {
            "ours": own.perplexity, "llama.cpp": perplexity, "llama.cpp, weights decoded to f32": decoded_perplexity
        },
        "original_perplexity": own.reference_perplexity,
        "continuations": [],
    }  # fmt: skip
    save(found, asked.out)
    print(json.dumps(found, indent=1), flush=True)
    for prompt in PROMPTS:
        found["continuations"].append(continued(runner, tokenizer, prompt, asked.continue_tokens))
        print(repr(found["continuations"][-1]), flush=True)
    save(found, asked.out)


def opened(asked: argparse.Namespace, placement: Placement) -> StagedModel:
    """The original."""
    if asked.off_grid:
        return staged_file(OffGrid(asked.off_grid), placement)
    path = Path(asked.reference)
    return load_gguf(path, placement) if is_gguf(asked.reference) else load_staged(asked.reference, placement)


def save(found: dict[str, Any], out: Path | None) -> None:
    if out:
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
