"""What the server costs, for docs/serving.md, from the JSON files in docs/results/; `make results` fills it in."""

from collections.abc import Mapping
from typing import Any

from tables import markdown

Json = dict[str, Any]
SERVERS = {"stub": "stub alone", "apportion": "apportion", "litellm": "LiteLLM's proxy"}
NOT_RUN = ["*not run*", ""]


def serving(files: Mapping[str, Json]) -> list[str]:
    """Load, memory, first token, the demonstration served, soak."""
    parts = (load, first_token, demonstration, soak)
    return [line for part in parts for line in part(files)]


def load(files: Mapping[str, Json]) -> list[str]:
    """Rates and times beside the stub's own."""
    found = files.get("serve_load")
    if not found:
        return NOT_RUN
    kinds = list(dict.fromkeys(row["asked"] for row in found["rows"]))
    cells = [[kind, *(load_cell(row) for row in (row_of(found, kind, server) for server in SERVERS))] for kind in kinds]
    lines = [
        "Forced `direct` before a stub that answers 50 tokens, 32 clients at once, load by `hey`; two cores shared by "
        "server, stub and load tool. Paced: a token every 20 ms; staggered: clients that begin at different times, as "
        "people do (32 that begin together stay in step, and their first bytes queue for a core).",
        "",
        *markdown(["asked (answers a second; ms at 50 %, 99 %; processor ms)", *SERVERS.values()], cells),
        "",
    ]
    added = [added_by(found, kind) for kind in kinds if kind.startswith("paced")]
    memory = found.get("memory")
    if memory:
        added.append(
            f"Memory over {memory['requests']:,} answers: {memory['resident_mb'][0]} to {memory['resident_mb'][-1]} MB."
        )
    return [*lines, " ".join(added), "", made(found), ""]


def row_of(found: Json, kind: str, server: str) -> Json | None:
    """What was measured of one server."""
    rows = (row for row in found["rows"] if row["asked"] == kind and row["server"] == server)
    return next(rows, None)


def load_cell(row: Json | None) -> str:
    """One server under one load."""
    if row is None:
        return "–"
    last = "–" if row["p99_ms"] is None else f"{row['p99_ms']:,.0f}"
    cpu = f"; {row['cpu_ms_an_answer']:.2f}" if row.get("cpu_ms_an_answer") else ""
    return f"{row['requests_per_s']:,.1f}; {row['p50_ms']:,.0f}, {last}{cpu}"


def added_by(found: Json, kind: str) -> str:
    """Our time above the stub's own."""
    own, stub = row_of(found, kind, "apportion"), row_of(found, kind, "stub")
    if not own or not stub or own["p99_ms"] is None or stub["p99_ms"] is None:
        return ""
    middle, last = (own[name] - stub[name] for name in ("p50_ms", "p99_ms"))
    return f"Added to a {kind}: {middle:+.1f} ms at the median, {last:+.1f} ms at 99 %."


def first_token(files: Mapping[str, Json]) -> list[str]:
    """Time to the first and last token beside the upstream's own."""
    found = files.get("serve_llamacpp")
    if not found:
        return NOT_RUN
    rows = {row["asked"]: row for row in found["rows"]}
    direct, draft = rows["direct"], rows["draft"]
    return [
        f"{found['title']}, each asked of both in turn without a prompt cache: forced `direct` gives its first token at "
        f"{direct['first_token_of_upstreams']:.2f} of llama.cpp's own time and its last at "
        f"{direct['last_token_of_upstreams']:.2f}. Where a router drafts and the draft is the answer, the last token comes at "
        f"{draft['last_token_of_upstreams']:.2f} and the first with it, {draft['first_token_of_upstreams']:.1f} times llama.cpp's "
        "first: a draft is shown when it is decided, not before.",
        "",
        made(found),
        "",
    ]


def demonstration(files: Mapping[str, Json]) -> list[str]:
    """What the demonstration's model did when it was served, beside its recording."""
    found = files.get("serve_demo")
    if not found:
        return NOT_RUN
    names = ("quality", "tokens", "latency_ms")
    rows = [
        [
            f"{row['token_weight']:g}, {row['latency_weight']:g}",
            f"{row['same_route']:.0%}",
            *(f"{row[f'{name}_served']:.4g} / {row[f'{name}_recorded']:.4g}" for name in names),
        ]
        for row in found["rows"]
    ]
    head = ["weights (tokens, latency)", "same route", "quality, served / recorded", "tokens", "latency, ms"]
    return [
        f"{found['title']}; latencies of a recording are those of the machine that it was made on:",
        "",
        *markdown(head, rows),
        "",
        made(found),
        "",
    ]


def soak(files: Mapping[str, Json]) -> list[str]:
    """What came of every request."""
    found = files.get("serve_soak")
    if not found:
        return NOT_RUN
    said = [
        f"{row['what']}: {row['requests']:,} requests, "
        + ", ".join(f"{row[name]:,} {name}" for name in row if name not in ("what", "requests"))
        for row in found["rows"]
    ]
    return [f"{found['title']}. {'; '.join(said)}.".replace("..", "."), "", made(found)]


def made(found: Json) -> str:
    """The command beside a figure."""
    return f"Made by `{found['command']}`."
