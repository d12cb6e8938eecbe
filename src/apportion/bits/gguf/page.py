"""The report of a file, as Markdown."""

from collections import defaultdict

from apportion.core.artifact import Json
from apportion.models.text import told


def page(result: Json, plan: Json) -> str:
    """One page: size, divergence, types by kind of matrix, where the time went."""
    found = result["divergence"]
    kl, same = found["kl_mean"], found["same_top"]
    lines = [
        f"# {result['bytes']:,} bytes, {result['bits_per_weight']:.2f} bits per weight",
        "",
        f"Asked for at most {result['max_bytes']:,} bytes for the whole file. Divergence from the original on "
        f"{result['judged_on']} ({result['calibration']}{told(result.get('bos'))}):",
        "",
        "| mean KL | median | 99 % | 99.9 % | same top | change of right token | perplexity (original) |",
        "|---|---|---|---|---|---|---|",
        f"| {kl['mean']:.5f} [{kl['low']:.5f}, {kl['high']:.5f}] | {found['kl_median']:.5f} | {found['kl_99']:.4f} | "
        f"{found['kl_999']:.4f} | {same['mean']:.2%} | {found['change_rms']['mean']:.2%} | {found['perplexity']:.3f} "
        f"({found['reference_perplexity']:.3f}) |",
        "",
        how_found(result),
        "",
        "## Types",
        "",
        "| matrices | types |",
        "|---|---|",
        *by_kind(plan),
        "",
        *replaced(result),
        "## Seconds",
        "",
        ", ".join(f"{step} {seconds:.0f}" for step, seconds in result["seconds"].items()),
        "",
    ]
    return "\n".join(lines)


def by_kind(plan: Json) -> list[str]:
    """Types of each kind of matrix, in the model's order."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, kind in plan["types"].items():
        if kind != "F32":
            kinds[name.split(".", 2)[-1] if name.startswith("blk.") else name].append(kind)
    return [f"| {name} | {' '.join(types)} |" for name, types in kinds.items()]


def replaced(result: Json) -> list[str]:
    """What columns did not allow."""
    if not result["fallbacks"]:
        return []
    pairs = sorted({f"{asked} by {own}" for names in result["fallbacks"].values() for asked, own in names.items()})
    return [
        f"{len(result['fallbacks'])} matrices have columns that 256 does not divide; there llama.cpp's replacements "
        f"were used: {', '.join(pairs)}.",
        "",
    ]


def how_found(result: Json) -> str:
    """What vouches for the plan."""
    if result["reused"]:
        return f"Planned by what {result['reused']} measured; predicted mean KL {result['kl_predicted']:.5f}."
    error = "" if result["costs_error"] is None else f" (relative standard error {result['costs_error']:.0%})"
    text = (
        "text that the search did not see"
        if result["finals_apart"]
        else ("the search's own text in part, which is too short for more")
    )
    return "\n".join(
        [
            f"By the costs alone{error} the plan's mean KL is {result['kl_predicted']:.5f}. The first of these was "
            f"kept, of {result['evaluations']} measured; they were judged on {text}:",
            "",
            "| plan | measured | judged |",
            "|---|---|---|",
            *(f"| {row['source']} | {row['measured']:.5f} | {row['judged']:.5f} |" for row in result["finalists"]),
        ]
    )
