"""Tables of main jobs, and of the house before and after, from the JSON files in docs/results/."""

from collections.abc import Container, Mapping
from typing import Any

from claim_tables import REAL
from peer_tables import auto_row, beside_autoround, kept_level
from tables import markdown

Json = dict[str, Any]
FIRST = "smollm2-135m"  # the model of the README's first screen
SECOND = "qwen25-coder-05b"
CALLED = {"smollm2-135m": "SmolLM2-135M-Instruct"}


def main_jobs(files: Mapping[str, Json], models: Container[str] | None = None) -> dict[str, Json]:
    """Saved main jobs by model; those of some models alone."""
    jobs = {item["model"]: item for name, item in sorted(files.items()) if name.startswith("main_job_")}
    return {model: job for model, job in jobs.items() if models is None or model in models}


def figures(row: Json) -> list[str]:
    """One folder: its plan, size, bits, and how far it predicts from full precision."""
    text = next(iter(row["texts"].values()))
    kl = text["kl_mean"]
    return [
        row["plan"],
        f"{row['file_bytes'] / 1e6:.1f} MB",
        f"{row['bits_with_scales']:.2f}",
        f"{kl['mean']:.3f} ({kl['low']:.3f} to {kl['high']:.3f})",
        f"{text['same_top']['mean']:.1%}",
        f"{text['perplexity']:.2f}",
    ]


def job_table(job: Json) -> list[str]:
    """The plain alternative first, then the plan that was kept."""
    rows = sorted(job["rows"], key=lambda row: (row["plan"] == "auto", row["bits_with_scales"]))
    full = next(iter(rows[0]["texts"].values()))["reference_perplexity"]
    head = [
        "plan",
        "weights on disk",
        "bits with scales",
        "mean KL from full precision",
        "same top token",
        "perplexity",
    ]
    rows = [{**row, "plan": row["plan"] + kept_width(job["result"])} if row["plan"] == "auto" else row for row in rows]
    cells = [
        [f"**{cell}**" for cell in figures(row)] if row["plan"].startswith("auto") else figures(row) for row in rows
    ]
    return markdown(
        head, [*cells, ["full precision", f"{job['model_bytes'] / 1e6:.1f} MB", "16", "0", "100 %", f"{full:.2f}"]]
    )


def every_job(jobs: Mapping[str, Json]) -> list[str]:
    """What the command wrote of each model, and what it took."""
    head = [
        "model", "weights, bf16", "written", "mean KL from full precision", "same top token", "perplexity (full precision)", "kept",
        "minutes", "GPU memory",
    ]  # fmt: skip
    rows = []
    for model, job in jobs.items():
        row = auto_row(job)
        _, size, _, kl, top, perplexity = figures(row)
        full = next(iter(row["texts"].values()))["reference_perplexity"]
        result = job["result"]
        rows.append(
            [
                CALLED.get(model, model), f"{job['model_bytes'] / 1e6:.1f} MB", f"**{size}**", f"**{kl}**", top,
                f"{perplexity} ({full:.2f})", kept_level(result) or "a mixed plan",
                f"{result['seconds'] / 60:.0f}", f"{result['peak_memory_bytes'] / 1e9:.0f} GB",
            ]
        )  # fmt: skip
    return markdown(head, rows)


def shared_by(jobs: Mapping[str, Json]) -> str:
    """Of which models the minutes are too many.

    >>> shared_by({"a": {"conditions": "One H200 of its own."}, "b": {"conditions": "One H200, shared with another."}})
    ', shared with other jobs for b'
    """
    found = [CALLED.get(model, model) for model, job in jobs.items() if "shared with" in job.get("conditions", "")]
    return f", shared with other jobs for {', '.join(found)}" if found else ""


def earlier(jobs: Mapping[str, Json]) -> str:
    """Which models the command of today would treat otherwise.

    >>> earlier({"a": {}, "b": {"earlier_state": "fewer steps"}, "c": {"earlier_state": "fewer steps"}})
    ' Of an earlier state of the command: b, c (fewer steps).'
    """
    states: dict[str, list[str]] = {}
    for model, job in jobs.items():
        if "earlier_state" in job:
            states.setdefault(job["earlier_state"], []).append(CALLED.get(model, model))
    told = [f"{', '.join(models)} ({state})" for state, models in states.items()]
    return f" Of an earlier state of the command: {'; '.join(told)}." if told else ""


def kept_width(result: Json) -> str:
    """What the command kept, where that was one width for all.

    >>> kept_width({"nll_judged": 3.0, "uniform": [{"width": "w3g64", "nll_judged": 3.0}]})
    ' (kept: w3g64 for all)'
    """
    level = kept_level(result)
    return f" (kept: {level})" if level else ""


def job_part(job: Json) -> list[str]:
    """One main job with all that vouches for it."""
    result = job["result"]
    choice = f" {result['choice']['reason']};" if result.get("choice") else ""
    return [
        f"### {CALLED.get(job['model'], job['model'])}",
        "",
        f"`{job['quantize']}` ({result['seconds'] / 60:.0f} minutes; peak memory {result['peak_memory_bytes'] / 1e9:.1f} GB; full precision "
        f"{job['model_bytes'] / 1e6:.0f} MB). Written with {result['apply_rounding']};{choice} kept: {result['source']}"
        + (f", judged on {result['judged_on']}." if result["judged_on"] else ".")
        + (f" {job['conditions']}" if "conditions" in job else "")
        + (f" An earlier state of the command: {job['earlier_state']}." if "earlier_state" in job else ""),
        "",
        *job_table(job),
        "",
        f"Made by `{job['command']}`.",
        "",
    ]


def real_part(jobs: Mapping[str, Json]) -> list[str]:
    """Main jobs, each with its table."""
    if not jobs:
        return []
    told = (
        "What one command writes, loaded from its folder, beside one width for all linears at the same rounding where such folders were written. KL and perplexity on "
        "WikiText-2 (windows as the command says), intervals over windows."
    )
    return [told, "", *(line for job in jobs.values() for line in job_part(job))]


LEARNERS = f"learners_{FIRST}_w2g64"
OPTIONS = {
    "nearest": "nearest (`--fast`)",
    "gptq": "gptq",
    "scales alone": "gptq, scales learned (`--tune-scales`)",
    "straight-through from the own weights' place in the code, rate .003, by time: C4 and 2,048 windows that the model "
    "wrote (two jobs on the card)": "gptq, codes and scales learned (1,797 steps, 2,048 windows of the model's own text)",
    "straight-through from the own weights' place in the code, rate .003, 2,400 recorded steps, losses in one launch: C4 and "
    "8,192 windows that the model wrote": "gptq, codes and scales learned (2,400 steps, 8,192 windows; four minutes beside another job)",
    "straight-through from the own weights' place in the code, rate .002, 15,731 recorded steps from gptq on 896 windows: C4 and "
    "32,768 windows that the model wrote on from 16 tokens anywhere in C4's": "gptq on seven times as much text, codes and scales learned "
    "(15,731 steps, 32,768 windows; 13 minutes on an H200, and 5 before; the like of `--tune 16000 --rounding-windows 896`)",
    "full precision": "full precision",
}


FALLS_BACK = "Most of its rows have 576 columns, which no K-quant holds, so the mixes fall back to other types there."


def best_files(found: Json | None) -> list[str]:
    """GGUF files of one size: llama.cpp's standard mix and ours."""
    if found is None:
        return []
    rows = []
    for mix, one in found["sizes"].items():
        theirs, own = (one["found"][name]["text"] for name in ("mix", "ours"))
        kl, same = ([item[name]["mean"] for item in (theirs, own)] for name in ("kl_mean", "same_top"))
        size = f"{one['bytes']['mix'] / 1e6:.1f} MB"
        rows.append(
            [
                f"{mix}, {size}",
                f"{kl[0]:.3f}",
                f"**{kl[1]:.3f}** ({kl[1] / kl[0] - 1:+.0%})",
                f"{same[0]:.1%}",
                f"{same[1]:.1%}",
            ]
        )
    head = ["file of the size of", "mean KL: llama.cpp's mix", "ours", "same top token: mix", "ours"]
    noise = (
        "The model is not the released one: its weights were moved off the grid of the 4-bit file in which they came. "
        if "--off-grid" in found["command"]
        else ""
    )
    return [
        f"**Beside llama.cpp's mixes**, `--format gguf`, {CALLED[FIRST]}: divergence from full precision on held-out WikiText-2, both "
        f"files with importance data. {noise}{FALLS_BACK}",
        "",
        *markdown(head, rows),
        "",
    ]


def first(files: Mapping[str, Json]) -> list[str]:
    """The README's first tables: what the command writes, peers at equal bits, files of llama.cpp's sizes, a rounding's worth."""
    job, found = main_jobs(files).get(FIRST), files.get(f"gguf_{FIRST}")
    learned = files.get(LEARNERS)
    lines = [] if job is None else [*commands_worth(main_jobs(files, REAL)), ""]
    beside, made = beside_autoround(files)
    lines += beside + best_files(found)
    if learned is not None:
        lines += [*roundings_worth(learned), *second(files), ""]
    if not lines:
        return ["*not run*"]
    commands = [
        *([] if job is None else [f"- the command: `{job['command']}` (and the others' names)"]),
        *made,
        *([] if found is None else [f"- GGUF files: `{found['command']}`"]),
        *([] if learned is None else [f"- roundings: `{learned['command']}`"]),
        *second_made(files),
    ]
    more = "More, and where goals were missed, in [docs/results.md](docs/results.md)."
    return [*lines, more, "", "<details><summary>Made by</summary>", "", *commands, "", "</details>"]


def commands_worth(jobs: Mapping[str, Json]) -> list[str]:
    """What the command wrote of each model."""
    return [
        "**What the command writes** with `--avg-bits 3` and a text to calibrate on, judged on WikiText-2 (KL in nats a token, its 95 % "
        "interval in brackets). Embedding and head stay in bf16. `kept` is what was nearer to full precision on windows aside: a mixed "
        "plan, or one width for all (w3g64: 3 bits, a scale for 64 weights). Full precision is the bf16 folder of a dequantized 4 to 8 "
        f"bit file, since that is how these models came here. Minutes on an H200{shared_by(jobs)}.{earlier(jobs)}",
        "",
        *every_job(jobs),
    ]


def roundings_worth(learned: Json) -> list[str]:
    """What a rounding is worth where all linears have 2 bits."""
    found = {row["variant"]: row["perplexity"] for row in learned["rows"]}
    rows = [[OPTIONS[name], f"{found[name]:,.1f}"] for name in OPTIONS if name in found]
    told = (
        f"**What the rounding is worth**, {CALLED[FIRST]} with all linears at 2 bits (one width for all, groups of 64):"
    )
    return [told, "", *markdown(["rounding", "WikiText-2 perplexity"], rows)]


def second(files: Mapping[str, Json]) -> list[str]:
    """What learning is worth on another model."""
    learned = files.get(f"learners_{SECOND}_w2g64")
    if learned is None:
        return []
    rows = {row["variant"]: row for row in learned["rows"]}
    best = min((row for row in rows.values() if row.get("codes_changed")), key=lambda row: row["perplexity"])
    more = next(row for name, row in rows.items() if name.startswith("gptq on "))
    cost = f"{best['steps']:,} steps, {best['own_windows']:,} windows, {best['seconds_alone'] / 60:.0f} minutes and 5 before"
    said = {
        "gptq": rows["gptq"],
        "scales learned from that": rows["scales alone"],
        "gptq on seven times as much text": more,
        f"codes and scales learned from that ({cost})": best,
        "full precision": rows["full precision"],
    }
    cells = [f"{name} {row['perplexity']:.1f}" for name, row in said.items()]
    return ["", f"The same on {SECOND}: {', '.join(cells)}."]


def second_made(files: Mapping[str, Json]) -> list[str]:
    """The command behind `second`."""
    learned = files.get(f"learners_{SECOND}_w2g64")
    return [] if learned is None else [f"- roundings, {SECOND}: `{learned['command']}`"]


def house_part(files: Mapping[str, Json]) -> list[str]:
    """The same plans before and after the files were moved and one game per run was played."""
    lines = []
    for item in (item for name, item in sorted(files.items()) if name.startswith("house_")):
        head = ["job", "same plan and losses", "processor seconds, ratio", "peak memory, MB", "embeddings", "tokenised"]
        rows = [
            [
                row["job"],
                "yes" if row["same_plan"] and not row["differing"] else f"no: {', '.join(row['differing'])}",
                "{:.0f} -> {:.0f}, ".format(*row["processor_seconds"]) + f"{row['processor_ratio']:.2f}",
                "{:,.0f} -> {:,.0f}".format(*(value / 2**20 for value in row["peak_memory_bytes"])),
                str(row["execution"]["embeddings"]),
                str(row["execution"]["tokenised"]),
            ]
            for row in item["rows"]
        ]
        lines += [f"### {item['title']}", "", *markdown(head, rows), "", f"Made by `{item['command']}`.", ""]
    return ["## The house before and after", "", *lines] if lines else []
