"""Pretrained models by rounding and budget, ours beside AutoRound's, and the ways to learn codes, from docs/results/."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tables import markdown

Json = dict[str, Any]
LEARNED = "gptq, codes and scales learned"
EQUAL = 0.01  # average bits that differ by no more are called equal
NOT_RUN = "*not run*"
ABOUT = (
    "Average bits are those of the codes; both store one scale of 16 bits for 64 weights, so 0.25 more. Both read the same file of C4 and "
    "share widths alike; ours learns from more of it and from text that the model wrote (below). WikiText-2, 128 windows of 512 tokens, never used for a "
    "choice; judged by the same code with the model's own head. One run each. Seconds do not compare: cards were shared, and "
    "AutoRound's hold its search while ours hold none. The command learns both the plan that it found and the best uniform one, and keeps "
    "what is nearer to full precision on windows aside."
)


def named(files: Mapping[str, Json], prefix: str) -> dict[str, Json]:
    """Files of one kind by model."""
    return {name.removeprefix(prefix): item for name, item in sorted(files.items()) if name.startswith(prefix)}


def told(name: str, item: Json) -> list[str]:
    """Conditions and command."""
    conditions = f"{item['conditions']} " if item.get("conditions") else ""
    return [f"`docs/results/{name}.json`: {conditions}Made by `{item['command']}`.", ""]


def budget_of(plan: str) -> str | None:
    """The budget in a plan's name.

    >>> budget_of("auto, 2.5 bits of 2,3,4,8"), budget_of("AutoScheme, 4 bits"), budget_of("uniform w3g64")
    ('2.5', '4', None)
    """
    found = re.search(r", ([\d.]+) bits", plan)
    return found[1] if found else None


def by_budget(item: Json, written: str | None) -> dict[str, Json]:
    """Searched plans by budget; those of a rounding, where rows have one, and of the present search before others."""
    rows = [row for row in item.get("rows", ()) if written is None or row.get("written") == written]
    rows.sort(key=lambda row: row.get("labels") == "predictions")
    return {bits: row for row in rows if (bits := budget_of(row["plan"])) and "kl" in row}


def peer_part(files: Mapping[str, Json]) -> list[str]:
    """Ours against AutoRound with AutoScheme."""
    peers = named(files, "autoround_")
    lines = ["### Ours against AutoRound at equal bits", ""]
    if not peers:
        return [*lines, NOT_RUN, ""]
    rows = []
    for model, item in peers.items():
        ours = by_budget(files.get(f"real_{model}", {}), LEARNED)
        theirs = by_budget(item, None)
        budgets = sorted(set(theirs) | set(ours), key=float)
        plain, command = one_width(files.get(f"real_{model}", {})), command_of(files.get(f"main_job_{model}"))
        rows += [
            pair(model, bits, theirs.get(bits), ours.get(bits), plain.get(bits), command.get(bits)) for bits in budgets
        ]
    head = [
        "model", "average bits", "mean KL: AutoRound", "ours", "change", "ours, one width for all", "the command", "change", "same top token: AutoRound", "ours",
        "perplexity: AutoRound", "ours", "AutoScheme's widths", "seconds: AutoRound, ours",
    ]  # fmt: skip
    lines += [ABOUT, "", *markdown(head, rows), ""]
    for model, item in peers.items():
        lines += told(f"autoround_{model}", item)
    return lines


def beside_autoround(files: Mapping[str, Json]) -> tuple[list[str], list[str]]:
    """The README's table, mean KL at equal bits of all models that both were run on; and the commands behind it."""
    peers = {model: item for model, item in named(files, "autoround_").items() if f"real_{model}" in files}
    if not peers:
        return [], []
    rows, commands = [], []
    for model, peer in peers.items():
        own = files[f"real_{model}"]
        searched, plain, theirs = by_budget(own, LEARNED), one_width(own), by_budget(peer, None)
        command = command_of(files.get(f"main_job_{model}"))
        for bits in sorted(set(theirs) & set(searched), key=float):
            cells = [row.get(bits) for row in (theirs, searched, plain, command)]
            least = min(row["kl"] for row in cells if row)
            rows.append([model, bits, *(marked(row, least) for row in cells)])
        commands += [f"- {model}: `{peer['command']}`; `{own['command']}`"]
    made = {program(item) for item in peers.values()}
    head = ["model", "average bits", "AutoRound", "ours, searched", "ours, one width for all", "the command"]
    told = (
        f"**Beside {', '.join(sorted(made))}** at equal bits: mean KL from full precision on WikiText-2, least in bold. Ours learns "
        "from more of the same file of C4 and from text that the model wrote. The two columns before the last are runs of fewer steps; the "
        "command learns for about three minutes a plan, and keeps the better of a mixed plan and one width for all."
    )
    return [told, "", *markdown(head, rows), ""], commands


def marked(row: Json | None, least: float) -> str:
    """A mean KL, bold where it is the least; a dash where there is none."""
    if row is None:
        return "–"
    found = figure(row, "kl:.3f")
    return f"**{found}**" if row["kl"] == least else found


def program(peer: Json) -> str:
    """What a peer's rows were made with.

    >>> program({"title": "m: AutoRound 1 with AutoScheme: WikiText-2", "command": "python peer.py --iterations 9"})
    'AutoRound 1 with AutoScheme (9 steps)'
    """
    steps = re.search(r"--iterations (\d+)", peer["command"])
    return peer["title"].split(": ")[1] + (f" ({steps[1]} steps)" if steps else "")


def one_width(item: Json) -> dict[str, Json]:
    """Learned plans of one width for all, by budget."""
    rows = [row for row in item.get("rows", ()) if row.get("written") == LEARNED and "kl" in row]
    named = [(re.fullmatch(r"uniform w(\d+)g\d+", row["plan"]), row) for row in rows]
    return {found[1]: row for found, row in named if found}


def auto_row(job: Json) -> Json:
    """What the command itself wrote, of a main job's rows."""
    (found,) = [row for row in job["rows"] if row["plan"] == "auto"]
    return dict(found)


def kept_level(result: Json) -> str:
    """The width that was kept for all; empty where it was a mixed plan."""
    level = [row["width"] for row in result["uniform"] if row["nll_judged"] == result["nll_judged"]]
    return f"{level[0]} for all" if level and result["nll_judged"] is not None else ""


def command_of(job: Json | None) -> dict[str, Json]:
    """What the command without options wrote, by budget."""
    if job is None:
        return {}
    row = auto_row(job)
    text = next(iter(row["texts"].values()))
    found = {"kl": text["kl_mean"]["mean"], "same_top": text["same_top"]["mean"], "perplexity": text["perplexity"]}
    return {f"{round(job['result']['avg_bits'], 2):g}": found}


def pair(
    model: str, budget: str, peer: Json | None, own: Json | None, plain: Json | None, command: Json | None
) -> list[str]:
    """One budget."""
    cells = [
        [figure(row, form) for row in (peer, own)]
        for form in ("kl:.3f", "same_top:.1%", "perplexity:.2f", "seconds:.0f")
    ]
    kl, top, perplexity, seconds = cells
    widths = peer["widths"] if peer else "–"
    alone, whole = (figure(row, "kl:.3f") if row else "–" for row in (plain, command))
    changes = [f"**{row['kl'] / peer['kl'] - 1:+.0%}**" if peer and row else "–" for row in (own, command)]
    bits = bits_of(budget, peer, own)
    return [model, bits, *kl, changes[0], alone, whole, changes[1], *top, *perplexity, widths, ", ".join(seconds)]


def bits_of(budget: str, peer: Json | None, own: Json | None) -> str:
    """The budget, and the true bits where they are not equal."""
    if peer and own and abs(peer["avg_bits"] - own["avg_bits"]) > EQUAL:
        return f"{budget} (not equal: {peer['avg_bits']:.3f}, {own['avg_bits']:.3f})"
    return budget


def figure(row: Json | None, form: str) -> str:
    name, spec = form.split(":")
    earlier = " (searched by NLL)" if name == "kl" and row and row.get("labels") == "text" else ""
    return NOT_RUN if row is None else format(row[name], spec) + earlier


def rows_part(files: Mapping[str, Json]) -> list[str]:
    """What roundings and plans come to on pretrained models."""
    lines = []
    for model, item in named(files, "real_").items():
        head = [
            "plan",
            "searched by",
            "written with",
            "bits with scales",
            "mean KL",
            "99 % KL",
            "same top token",
            "perplexity",
            "seconds",
        ]
        lines += [
            f"### {model}, by rounding and budget",
            "",
            *markdown(head, [real_row(row) for row in item["rows"]]),
            "",
        ]
        lines += told(f"real_{model}", item)
    return lines


def real_row(row: Json) -> list[str]:
    """One plan as it is written; what failed says so."""
    if "failed" in row:
        return [row["plan"], row.get("labels", "–"), row.get("written", "–"), row["failed"], *["–"] * 5]
    bits = f"{row['bits_with_scales']:.2f}" if "bits_with_scales" in row else "16"
    figures = [f"{row['kl']:.3f}", f"{row['kl_99']:.2f}", f"{row['same_top']:.1%}", f"{row['perplexity']:.2f}"]
    return [row["plan"], row.get("labels", "–"), row.get("written", "–"), bits, *figures, f"{row['seconds']:.0f}"]


def learners_part(files: Mapping[str, Json]) -> list[str]:
    """Ways to learn codes, what lost included."""
    lines = []
    for name, item in sorted(files.items()):
        if name.startswith("learners_"):
            lines += [f"### {item['title']}", "", *learner_table(item["rows"]), "", *told(name, item)]
    return lines


def learner_table(rows: Sequence[Json]) -> list[str]:
    """All rows, and the seconds whatever the company."""
    head = [
        "variant",
        "steps",
        "cross-entropy on windows aside",
        "perplexity",
        "mean KL",
        "codes changed",
        "seconds",
        "memory",
    ]
    told = any("kl_own" in row for row in rows)
    head += ["mean KL on windows learned from: the text's", "the model's own", "on windows aside"] if told else []
    return markdown(head, [learner_row(row) + (met(row) if told else []) for row in rows])


def met(row: Json) -> list[str]:
    """How near to full precision on what was learned from, and on what was not."""
    return [f"{row[name]:.3f}" if name in row else "–" for name in ("kl_text", "kl_own", "kl_aside")]


def learner_row(row: Json) -> list[str]:
    blocks = f"{row['block_steps']} a block" if row.get("block_steps") else ""
    steps = " + ".join(part for part in (blocks, str(row.get("steps") or "")) if part)
    company = {
        "seconds_beside_two_jobs": "beside two jobs",
        "seconds_beside_one_job": "beside one",
        "seconds_alone": "alone",
    }
    seconds = [f"{row[key]:.0f} {said}" for key, said in company.items() if key in row]
    before = (
        f"{row['cross_entropy_before']:.3f} to {row['cross_entropy_after']:.3f}"
        if "cross_entropy_before" in row
        else "–"
    )
    return [
        row["variant"],
        steps or "–",
        before,
        f"{row['perplexity']:,.1f}",
        f"{row['kl']:.3f}" if "kl" in row else "–",
        f"{row['codes_changed']:.2%}" if "codes_changed" in row else "–",
        *(seconds or ["–"]),
        f"{row['memory_bytes'] / 1e9:.1f} GB" if "memory_bytes" in row else "–",
    ]
