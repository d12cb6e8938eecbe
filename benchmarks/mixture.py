"""A small mixture of experts, trained by us: something whose experts do different things, for plans that treat them so.

    python benchmarks/mixture.py QWEN3_MODEL --text c4-sample.jsonl --out mixture --steps 120

Every second block's MLP of a pretrained Qwen3 model becomes four experts of which two answer: copies, half of whose
neurons are drawn anew, differently in each (after drop-upcycling). All weights are then trained on the first part of
the text; `calibration.jsonl` beside the model is the rest, which it has not seen. `mixture.json` says what came of it.
`benchmarks/main_job.py` then quantizes it and puts one width for all at the same bytes beside that.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from command_line import own_command
from torch import Tensor

from apportion.core.artifact import write_json

EXPERTS, ACTIVE, NEW_SHARE = 4, 2, 0.5
KEPT_FOR_CALIBRATION = 0.25
WINDOW, BATCH = 256, 8


def main() -> None:
    """Make, train, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    from transformers import AutoTokenizer

    torch.manual_seed(asked.seed)
    lines = asked.text.read_text(encoding="utf-8").splitlines()
    seen = int(len(lines) * (1 - KEPT_FOR_CALIBRATION))
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    model = upcycled(asked.model).to(asked.device)
    train, aside = (windows(tokenizer, part).to(asked.device) for part in (lines[:seen], lines[seen:]))
    before, start = loss_of(model, aside[:16]), time.monotonic()
    trained = descend(model, train, asked.steps, asked.rate)
    row = {
        "experts": EXPERTS,
        "active": ACTIVE,
        "tokens": trained,
        "seconds": round(time.monotonic() - start),
        "nll_unseen_before": before,
        "nll_unseen": loss_of(model, aside[:16]),
        "agreement": agreement(model),
    }
    model.to(torch.bfloat16).save_pretrained(asked.out)
    tokenizer.save_pretrained(asked.out)
    (asked.out / "calibration.jsonl").write_text("\n".join(lines[seen:]) + "\n", encoding="utf-8")
    title = f"A small mixture of experts, made of {asked.model.name} and trained"
    write_json(asked.out / "mixture.json", {"title": title, "command": own_command(), "rows": [row]})
    print(json.dumps(row, indent=1))


def upcycled(source: Path) -> Any:
    """The Qwen3 model with experts in every second block."""
    from transformers import Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    dense = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32)
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "bos_token_id",
            "tie_word_embeddings", "eos_token_id")  # fmt: skip
    config = Qwen3MoeConfig(
        **{name: getattr(dense.config, name) for name in same},
        moe_intermediate_size=dense.config.intermediate_size,
        num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
        decoder_sparse_step=2,
        norm_topk_prob=True,
        router_aux_loss_coef=0.01,
    )
    model = Qwen3MoeForCausalLM(config).float()
    held = dense.state_dict()
    missing, unknown = model.load_state_dict(held, strict=False)
    assert all(".mlp." in name or name == "lm_head.weight" for name in [*missing, *unknown]), (missing, unknown)
    for block in range(1, config.num_hidden_layers, 2):
        experts, prefix = model.model.layers[block].mlp.experts, f"model.layers.{block}.mlp"
        gate, up, down = (held[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        for expert in range(EXPERTS):
            made = [gate.clone(), up.clone(), down.clone()]
            neurons = torch.randperm(len(gate))[: int(NEW_SHARE * len(gate))]
            for at, axis in ((0, 0), (1, 0), (2, 1)):
                made[at] = drawn_anew(made[at], neurons, axis)
            experts.gate_up_proj.data[expert] = torch.cat(made[:2])
            experts.down_proj.data[expert] = made[2]
    return model


def drawn_anew(weight: Tensor, neurons: Tensor, axis: int) -> Tensor:
    """The weights of these neurons from a normal distribution of the others' spread."""
    index: list[Any] = [slice(None), slice(None)]
    index[axis] = neurons
    weight[tuple(index)] = torch.randn_like(weight[tuple(index)]) * weight.std()
    return weight


def windows(tokenizer: Any, lines: list[str]) -> Tensor:
    """[windows, tokens] of the texts one after the other."""
    texts = [json.loads(line)["text"] for line in lines]
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    count = len(ids) // WINDOW
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def descend(model: Any, train: Tensor, steps: int, rate: float) -> int:
    """Train by AdamW with a warm start and a cosine's end; the number of tokens seen."""
    decays = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(decays, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    order = torch.randperm(len(train))
    model.train()
    start = time.monotonic()
    for step in range(steps):
        warm = min(1.0, (step + 1) / 10)
        optimizer.param_groups[0]["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = train[order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]]
        loss = model(input_ids=batch, labels=batch, output_router_logits=True, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decays, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}: {loss.item():.3f}, {time.monotonic() - start:.0f} s", flush=True)
    model.eval()
    return steps * BATCH * WINDOW


@torch.no_grad()
def loss_of(model: Any, text: Tensor) -> float:
    """Mean loss in nats a token."""
    model.eval()
    return float(sum(model(input_ids=row, labels=row).loss.item() for row in text.split(4)) / len(text.split(4)))


def agreement(model: Any) -> float:
    """Mean cosine between two experts' weights: 1 for copies, 0 for strangers."""
    found = []
    for block in model.model.layers[1::2]:
        flat = block.mlp.experts.down_proj.detach().flatten(1)
        flat = flat / flat.norm(dim=1, keepdim=True)
        products = flat @ flat.T
        found.append(float(products[~torch.eye(EXPERTS, dtype=torch.bool)].mean()))
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
