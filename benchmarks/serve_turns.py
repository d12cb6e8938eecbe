"""What a change of the server costs: those of several checkouts before one stub, each asked for a second in turn.

Other jobs on the machine hit all of them alike, so differences of a few per cent show that two runs of `serve_load.py`
one after the other do not. The first checkout is what the others are compared with: medians of the ratios within a
round.

    python benchmarks/serve_turns.py --checkouts before after --router DIR --index DIR --out turns.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line import own_command
from serve_load import child, free_port, load, wait_for

FIELDS = ("requests_per_s", "p50_ms", "p99_ms", "cpu_ms_an_answer")
Taken = dict[str, list[dict[str, float | None]]]


def main() -> None:
    """Start the servers and ask them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkouts", type=Path, nargs="+", required=True, help="folders; each is named by its last part"
    )
    parser.add_argument("--router", type=Path, required=True)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=["plain", "stream"], default=["plain", "stream"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    port = free_port()
    running = [child("stub", "--port", str(port))]
    wait_for(f"http://127.0.0.1:{port}/v1/models")
    places: dict[str, tuple[str, int]] = {}
    try:
        for folder in given.checkouts:
            own = free_port()
            where = ["--port", str(own), "--upstream", f"http://127.0.0.1:{port}/v1"]
            running.append(server(folder, *where, "--router", str(given.router), "--index", str(given.index)))
            wait_for(f"http://127.0.0.1:{own}/ready")
            places[folder.name] = (f"http://127.0.0.1:{own}/v1", running[-1].pid)
        rows = [row for kind in given.only for row in compared(kind, in_turn(places, kind, given.rounds))]
    finally:
        for one in running:
            one.terminate()
    print(json.dumps(rows, indent=1))
    if given.out:
        given.out.write_text(json.dumps({"command": own_command(), "rows": rows}, indent=1) + "\n")


def server(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The server of a checkout, by its own benchmark."""
    code = folder.resolve()
    command = [sys.executable, str(code / "benchmarks" / "serve_load.py"), "--child", "proxy", *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(code / "src")})


def in_turn(places: dict[str, tuple[str, int]], kind: str, rounds: int) -> Taken:
    """What was measured of each server, round by round; who comes first changes."""
    names, taken = list(places), Taken({name: [] for name in places})
    for url, _ in places.values():
        load(url, kind, 2, None)
    for number in range(rounds):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            taken[name].append(load(places[name][0], kind, 1, places[name][1]))
    return taken


def compared(kind: str, taken: Taken) -> list[dict[str, Any]]:
    """A row for each checkout: medians, and medians of the ratios to the first."""
    first = next(iter(taken))
    rows = []
    for name, found in taken.items():
        row: dict[str, Any] = {"code": name, "asked": kind, "server": "apportion"}
        row |= {field: round(statistics.median(one[field] or 0.0 for one in found), 3) for field in FIELDS}
        for field in ("requests_per_s", "cpu_ms_an_answer"):
            pairs = zip(found, taken[first], strict=True)
            row[f"{field}_ratio"] = round(statistics.median((a[field] or 0.0) / (b[field] or 1.0) for a, b in pairs), 3)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
