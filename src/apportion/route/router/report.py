"""How a router came about, for its manifest and for people."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from apportion.route.router.router import Tier
from apportion.route.router.train import TierRecord, Trained


def training_record(trained: Trained) -> dict[str, Any]:
    """Everything about the training that the manifest keeps."""
    return {
        "questions": trained.questions,
        "repeated_texts": trained.repeated_texts,
        "seed": trained.seed,
        "plan": asdict(trained.plan),
        "loss": "expected regret of the joint policy + regret-weighted cross-entropy of each head [ours]",
        "tiers": [asdict(tier) for tier in trained.tiers],
        "second": asdict(trained.second) if trained.second else None,
        "dropped": list(trained.dropped),
    }


def training_text(trained: Trained, out: Path) -> str:
    """A few lines for people."""
    guard, repeated = trained.router.guard, trained.repeated_texts
    lines = [f"router of {trained.questions} questions in {out}"]
    if repeated:
        lines.append(f"  {repeated} of them repeat the text of another: equal texts share a fold and count as one")
    if guard:
        lines.append(
            f"  decides at {guard.any.open_share:.0%} of the weights, the best static strategy at the others "
            f"(without log-probabilities: {guard.undrafted.open_share:.0%})"
        )
    lines += [_tier_text(record, tier) for record, tier in zip(trained.tiers, trained.router.tiers, strict=True)]
    if trained.second:
        lines.append(
            f"  second decision: {len(trained.second.features)} features; squared error {trained.second.error:.4f} "
            f"of a variance of {trained.second.variance:.4f}; offered at {trained.second.offered_share:.0%} of the "
            "weights"
        )
    return "\n".join([*lines, *(f"  dropped: {reason}" for reason in trained.dropped)])


def _tier_text(record: TierRecord, tier: Tier) -> str:
    fitted = {
        "network": f", stop at step {record.fit.stopped_at}, held-out regret {min(record.fit.regret, default=0):.4f}",
        "linear": f", penalty {record.fit.penalty}",
    }.get(record.kind, "")
    heads = "".join(f", {head.head} ECE {head.ece:.3f}" for head in record.calibration if not tier.looks)
    return (
        f"  {tier.name}: {record.kind} of {len(tier.names)} features{fitted}; alone better at "
        f"{tier.gate.open_share:.0%} of the weights{heads}"
    )
