"""GGUF files beside llama.cpp's standard mixes at the same bytes, from `gguf_<model>.json` of benchmarks/gguf_evidence.py.

For docs/results.md with intervals, for docs/gguf.md in short; and the same files in llama.cpp, from `gguf_llama_cpp*.json`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tables import markdown

Json = dict[str, Any]
TEXTS = {"text": "WikiText-2, held out", "chat": "conversations in the model's chat template"}
OFF_GRID = (
    "No finer weights of this model were at hand than a file of 4 to 8 bits, whose grid other types hold exactly. The "
    "reference is that file with each weight moved by uniform noise within its step: another, worse model, with no grid."
)
SHORT = {"text": "WikiText-2", "chat": "conversations"}
GOAL = 0.2  # mean KL below the mix's by at least that share
NEAR = 0.01  # of our figures, llama.cpp's
HEAD = ["size of", "bytes", "mix: mean KL", "ours: mean KL", "change", "99.9 %: mix, ours", "same top: mix, ours"]


def gguf_part(files: Mapping[str, Json]) -> list[str]:
    """A table for every model and text that was measured."""
    tables = [line for name, item in evidence(files).items() for line in model_part(name, item)]
    return ["## GGUF files at the sizes of llama.cpp's mixes", "", *tables] if tables else []


def evidence(files: Mapping[str, Json]) -> dict[str, Json]:
    """The files with sizes of mixes, whose command is known; the IQ mixes' last. Sizes rise."""
    names = [name for name, one in files.items() if name.startswith("gguf_") and "command" in one and "sizes" in one]
    names.sort(key=lambda name: (name.startswith("gguf_iq_"), name))
    return {name: files[name] | {"sizes": rising(files[name]["sizes"])} for name in names}


def rising(sizes: Mapping[str, Json]) -> dict[str, Json]:
    """Sizes in the order of their mixes' bytes, whichever was run first."""
    return dict(sorted(sizes.items(), key=lambda item: item[1]["bytes"]["mix"]))


def model_part(name: str, result: Json) -> list[str]:
    """One model."""
    lines = [f"### {result['model']}", ""]
    if "--off-grid" in result["command"]:
        lines += [OFF_GRID, ""]
    for text, called in TEXTS.items():
        sizes = {mix: one for mix, one in result["sizes"].items() if text in one["found"]["mix"]}
        if sizes:
            tokens = next(iter(sizes.values()))["found"]["mix"][text]["tokens"]
            lines += [f"{called} ({tokens:,} tokens; 95 % interval over windows):", ""]
            lines += [*markdown(HEAD, [row(mix, one, text) for mix, one in sizes.items()]), ""]
    if result.get("uniform"):
        lines += ["One type for all matrices, as far as their columns allow (WikiText-2):", "", *alike(result), ""]
    return [*lines, f"Made by `{result['command']}` (`docs/results/{name}.json`).", ""]


def row(mix: str, one: Json, text: str) -> list[str]:
    """A mix and our file of its size."""
    theirs, own = one["found"]["mix"][text], one["found"]["ours"][text]
    a, b = theirs["kl_mean"], own["kl_mean"]
    size = f"{one['bytes']['mix']:,}"
    if one["bytes"]["ours"] != one["bytes"]["mix"]:
        size += f" (ours {one['bytes']['ours']:,})"
    return [
        mix,
        size,
        f"{a['mean']:.4f} [{a['low']:.4f}, {a['high']:.4f}]",
        f"**{b['mean']:.4f}** [{b['low']:.4f}, {b['high']:.4f}]",
        f"{b['mean'] / a['mean'] - 1:+.0%}",
        f"{theirs['kl_999']:.2f}, {own['kl_999']:.2f}",
        f"{theirs['same_top']['mean']:.1%}, {own['same_top']['mean']:.1%}",
    ]


def alike(result: Json) -> list[str]:
    """A type for all matrices."""
    rows = [
        [kind, f"{one['bytes']:,}", f"{one['found']['text']['kl_mean']['mean']:.4f}"]
        for kind, one in sorted(result["uniform"].items(), key=lambda item: item[1]["bytes"])
    ]
    return markdown(["type", "bytes", "mean KL"], rows)


def gains(files: Mapping[str, Json]) -> list[str]:
    """Mean KL of mixes and of ours, a row for every model and text; then what was asked for and came of it."""
    found = evidence(files)
    if not found:
        return ["*not run*"]
    mixes = list(dict.fromkeys(mix for one in found.values() for mix in one["sizes"]))
    lines = []
    for group in ([mix for mix in mixes if mix[0] == "Q"], [mix for mix in mixes if mix[0] == "I"]):
        rows = [
            [f"{one['model']}, {SHORT[text]}", *(gain(one["sizes"].get(mix), text) for mix in group)]
            for one in found.values()
            for text in SHORT
            if any(text in size["found"]["mix"] for mix, size in one["sizes"].items() if mix in group)
        ]
        lines += [*markdown(["model, text", *group], rows), ""] if rows else []
    return [*lines, verdict(found)]


def gain(size: Json | None, text: str) -> str:
    """A cell."""
    if size is None or text not in size["found"]["mix"]:
        return "not run"
    mix, ours = (size["found"][name][text]["kl_mean"]["mean"] for name in ("mix", "ours"))
    return f"{mix:.4f} → **{ours:.4f}** ({ours / mix - 1:+.0%})"


def measured(found: Mapping[str, Json]) -> Iterator[tuple[str, Json, Json]]:
    """Every model, size and text, with both files' figures."""
    for one in found.values():
        for mix, size in one["sizes"].items():
            for text, theirs in size["found"]["mix"].items():
                yield f"{one['model']} at {mix} ({SHORT[text]})", theirs, size["found"]["ours"][text]


def below(mix: Json, ours: Json) -> bool:
    """Whether a file is as far below its mix as was asked for."""
    return bool(ours["kl_mean"]["mean"] <= (1 - GOAL) * mix["kl_mean"]["mean"])


def reach(one: Json, text: str) -> str:
    """How many of a model's sizes reach the goal on a text."""
    pairs = [(size["found"]["mix"][text], size["found"]["ours"][text]) for size in one["sizes"].values()]
    return f"{one['model']} {sum(below(*pair) for pair in pairs)} of {len(pairs)}"


def verdict(found: Mapping[str, Json]) -> str:
    """How many sizes reach the goal, and all that do not do as well as the mix."""
    every = list(measured(found))
    reached = sum(below(mix, ours) for _, mix, ours in every)
    apart = [
        change for one in found.values() for size in one["sizes"].values() for change in size["difference"].values()
    ]
    worse = [name for name, mix, ours in every if ours["kl_mean"]["mean"] > mix["kl_mean"]["mean"]]
    high = [
        f"{name}: {mix['kl_999']:.2f}, ours {ours['kl_999']:.2f}, {mix['tokens']:,} tokens"
        for name, mix, ours in every
        if ours["kl_999"] > mix["kl_999"]
    ]
    top = [name for name, mix, ours in every if ours["same_top"]["mean"] < mix["same_top"]["mean"]]
    return (
        f"Of {len(every)} pairs of files, ours has a mean KL at least {GOAL:.0%} lower in {reached} (sizes on WikiText-2: "
        f"{'; '.join(reach(one, 'text') for one in found.values())}); higher: {', '.join(worse) or 'none'}. The 95 % "
        f"interval of the difference, over the same windows, is all below zero in {sum(one['high'] < 0 for one in apart)}, "
        f"all above in {sum(one['low'] > 0 for one in apart)}. 99.9 % KL higher: {'; '.join(high) or 'none'}. Same most likely token less often: "
        f"{', '.join(top) or 'none'}."
    )


def against_alike(files: Mapping[str, Json]) -> list[str]:
    """One type for all matrices beside ours at the same bytes, where ours has a smaller and a larger file."""
    rows = []
    for one in evidence(files).values():
        ours = sorted(
            (size["bytes"]["ours"], size["found"]["ours"]["text"]["kl_mean"]["mean"]) for size in one["sizes"].values()
        )
        for kind, other in sorted(one.get("uniform", {}).items(), key=lambda item: item[1]["bytes"]):
            if ours[0][0] <= other["bytes"] <= ours[-1][0]:
                kl, own = other["found"]["text"]["kl_mean"]["mean"], between(ours, other["bytes"])
                rows.append(
                    [one["model"], kind, f"{other['bytes']:,}", f"{kl:.4f}", f"{own:.4f}", f"{own / kl - 1:+.0%}"]
                )
    return markdown(["model", "type", "bytes", "mean KL", "ours", "change"], rows) if rows else ["*not run*"]


def between(points: Sequence[tuple[int, float]], size: int) -> float:
    """KL at a size between two of rising sizes: its logarithm falls in a straight line.

    >>> round(between([(100, 0.4), (200, 0.1)], 150), 9)
    0.2
    """
    sizes, kls = zip(*points, strict=True)
    return float(np.exp(np.interp(size, sizes, np.log(kls))))


def agreement(files: Mapping[str, Json]) -> list[str]:
    """Our figures of a file, and those of llama.cpp running it on the same tokens."""
    found = [one for name, one in sorted(files.items()) if name.startswith("gguf_llama_cpp")]
    if not found:
        return ["*not run*"]
    names = ("ours", "llama.cpp", "llama.cpp, weights decoded to f32")
    rows = [
        [one.get("file", "smol-q5"), f"{one['tokens']:,}", f"{one['original_perplexity']:.3f}"]
        + [f"{one['perplexity'][name]:.3f}, {one['kl'][name]:.5f}{beside(one, name)}" for name in names]
        for one in found
    ]
    head = ["file", "tokens", "perplexity of the original", *(f"{name}: perplexity, mean KL" for name in names)]
    near = "; ".join(f"{name}: {agreeing(found, name)}" for name in names[1:])
    asked = f"Within {NEAR:.0%} of ours, as asked for, of {len(found)} files: {near}."
    return [*markdown(head, rows), "", asked, "", *(f"Made by `{one['command']}`.  " for one in found)]


def agreeing(found: Sequence[Json], name: str) -> str:
    """How many files have the perplexity, and how many the KL, that ours have."""
    near = {
        figure: sum(abs(one[figure][name] / one[figure]["ours"] - 1) <= NEAR for one in found)
        for figure in ("perplexity", "kl")
    }
    return f"perplexity {near['perplexity']}, mean KL {near['kl']}"


def beside(one: Json, name: str) -> str:
    """How far perplexity and KL are from ours."""
    if name == "ours":
        return ""
    parts = (one[figure][name] / one[figure]["ours"] - 1 for figure in ("perplexity", "kl"))
    return " ({:+.2%}, {:+.2%})".format(*parts)
