"""Train the demonstration model: `python tools/train_demo_model.py --out FOLDER --seconds 480` on one GPU.

Worker processes make packed examples without end (nothing is seen twice but the known facts themselves); the
rate follows the clock, so the run ends on time on any machine. Writes a Hugging Face folder in bf16 and
`training.json`.
"""

import argparse
import json
import multiprocessing
import os
import queue
import sys
import time
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from demo_examples import MIXTURE, examples, packed
from demo_network import Network, Shape
from demo_optimizer import Muon
from safetensors.torch import load_file

from apportion.demo import DEFAULT_SEED, world
from apportion.demo.dialogues import END, PAD

WARMUP_STEPS = 150
DECAY_FROM = 0.45  # share of the time after which the rate falls linearly to zero
MUON_RATE, ADAM_RATE, WEIGHT_DECAY = 4e-3, 3e-3, 0.1
LARGEST_SHARD = "20MB"  # one file


def produce(seed: int, tokenizer_file: str, count: int, length: int, chunks: Any) -> None:
    """A worker: chunks of packed rows into the queue until it is terminated."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)
    stream = examples(world(), Random(seed))
    pad = tokenizer.token_to_id(PAD)
    for chunk in packed(stream, tokenizer, count, length, pad):
        chunks.put(chunk)


class Batches:
    """Batches on the device, the next one already on its way."""

    def __init__(self, args: argparse.Namespace, length: int) -> None:
        context = multiprocessing.get_context("fork")
        self.chunks = context.Queue(maxsize=args.workers * 3)
        tokenizer_file = str(args.tokenizer / "tokenizer.json")
        self.workers = [
            context.Process(
                target=produce,
                args=(1000 * args.seed + number, tokenizer_file, args.rows, length, self.chunks),
                daemon=True,
            )
            for number in range(args.workers)
        ]
        for worker in self.workers:
            worker.start()
        self.waited_seconds = 0.0

    def next(self, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        started = time.monotonic()
        while True:
            try:
                tokens, weights = self.chunks.get(timeout=30)
                break
            except queue.Empty:
                if not any(worker.is_alive() for worker in self.workers):
                    sys.exit("all workers died")
        self.waited_seconds += time.monotonic() - started
        whole = torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(weights)
        if device == "cuda":
            return whole[0].pin_memory().cuda(non_blocking=True), whole[1].pin_memory().cuda(non_blocking=True)
        return whole

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()


def rate_at(step: int, elapsed: float) -> float:
    """The factor of the learning rates: warm-up by steps, then flat, then falling by the clock."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * min(1.0, max(0.0, (1 - elapsed) / (1 - DECAY_FROM)))


def train(args: argparse.Namespace, shape: Shape, batches: Batches) -> tuple[Network, dict[str, Any]]:
    """Train until the time is up; returns the network and what was done."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    network = Network(shape)
    if args.start_from:
        start(network, args.start_from)
    network.to(device)
    matrices = [p for n, p in network.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in network.named_parameters() if p.dim() != 2 or "embed" in n]
    muon = Muon(matrices, WEIGHT_DECAY)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    loss_of = torch.compile(network, dynamic=False) if args.compile else network
    ends, step, log, tokens_seen = args.started + args.seconds, 0, [], 0
    first = last = time.monotonic()
    while step < args.steps:
        now = time.monotonic()
        elapsed = (now - first) / max(1e-9, ends - first)
        if elapsed >= 1:
            break
        tokens, weights = batches.next(device)
        factor = args.peak * rate_at(step, elapsed)
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(tokens, weights)
        loss.backward()
        muon.step(MUON_RATE * factor)
        adam.param_groups[0]["lr"] = ADAM_RATE * factor
        adam.step()
        network.zero_grad(set_to_none=True)
        step += 1
        tokens_seen += tokens.numel()
        if step % args.log_every == 0 or step == 1:
            log.append({"step": step, "seconds": round(time.monotonic() - first, 1), "loss_nats": loss.item()})
            print(log[-1], f"rate {factor:.3f} {time.monotonic() - last:.1f} s", flush=True)
            last = time.monotonic()
            if step <= 3:
                first = time.monotonic()  # compilation is not part of the schedule
    report = {
        "steps": step,
        "tokens": tokens_seen,
        "seconds_training": round(time.monotonic() - first, 1),
        "seconds_total": round(time.monotonic() - args.started, 1),
        "seconds_waiting_for_data": round(batches.waited_seconds, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "log": log,
    }
    return network, report


def start(network: Network, folder: Path) -> None:
    """Begin with the weights of an earlier run."""
    for file in sorted(folder.glob("*.safetensors")):
        _, unexpected = network.load_state_dict(load_file(file), strict=False)
        assert not unexpected, unexpected


def save(network: Network, args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Write the model as transformers does, after checking that it computes the same."""
    from transformers import AutoTokenizer, GenerationConfig, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    pad, end = tokenizer.convert_tokens_to_ids([PAD, END])
    model = Qwen3ForCausalLM(network.s.hugging_face(pad, end)).float().eval()
    own = {name: value.float().cpu() for name, value in network.state_dict().items()}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing  # tied to the embedding
    model.tie_weights()
    network = network.float().cpu().eval()
    tokens = torch.arange(10, 60)[None]
    with torch.no_grad():
        difference = (model(tokens).logits - network.logits(tokens)).abs().max().item()
    report["largest_logit_difference_from_transformers"] = difference
    assert difference < 1e-2, f"transformers computes other logits, by up to {difference}"
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=pad)
    model.to(torch.bfloat16).save_pretrained(args.out, max_shard_size=LARGEST_SHARD)
    tokenizer.save_pretrained(args.out)
    (args.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder made by demo_tokenizer.py")
    parser.add_argument("--seconds", type=float, default=480, help="until the last step")
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--start-from", type=Path, help="folder of an earlier run to continue")
    parser.add_argument("--peak", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--rows", type=int, default=128, help="rows of 768 tokens in a step")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 3))
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    args.started = time.monotonic()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    shape = Shape(layers=args.layers)
    batches = Batches(args, shape.context)
    network, report = train(args, shape, batches)
    batches.stop()
    report |= {
        "seed": args.seed,
        "shape": asdict(shape),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "settings": {"muon_rate": MUON_RATE, "adam_rate": ADAM_RATE, "weight_decay": WEIGHT_DECAY}
        | {"rows": args.rows, "warmup_steps": WARMUP_STEPS, "decay_from": DECAY_FROM},
        "mixture": MIXTURE,
    }
    save(network, args, report)
    print({key: value for key, value in report.items() if key not in ("log", "mixture")})


if __name__ == "__main__":
    main()
