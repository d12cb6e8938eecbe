"""How a router came about, for its manifest and for people."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from apportion.route.router.train import Trained


def training_record(trained: Trained) -> dict[str, Any]:
    """Everything about the training that the manifest keeps."""
    return {
        "questions": trained.questions,
        "seed": trained.seed,
        "plan": asdict(trained.plan),
        "loss": "expected regret of the joint policy + regret-weighted cross-entropy of each head [ours]",
        "tiers": [asdict(tier) for tier in trained.tiers],
        "dropped": list(trained.dropped),
    }


def training_text(trained: Trained, out: Path) -> str:
    """A few lines for people."""
    lines = [f"router of {trained.questions} questions in {out}"]
    for record, tier in zip(trained.tiers, trained.router.tiers, strict=True):
        opened = float((tier.gate.gain > tier.gate.caution * tier.gate.error).mean())
        heads = ", ".join(f"{head.head} ECE {head.ece:.3f}" for head in record.calibration)
        lines.append(
            f"  {tier.name}: {len(tier.policy.names)} features, stop at step {record.stopped_at}, held-out "
            f"regret {min(record.regret):.4f}; decides at {opened:.0%} of the weights, the best static "
            f"strategy at the others; {heads}"
        )
    return "\n".join([*lines, *(f"  dropped: {reason}" for reason in trained.dropped)])
