"""The figures of the house, by the import graph that `make check` uses: house.py [--src DIR] [--json]

For every package: its files and lines, the arrows between its own files, the floors they stand on (a file stands above
all that it imports), and how often other packages reach past its `__init__`. For the whole: arrows between packages that
run upwards against the order of pyproject.toml, and circles of files that import each other.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp

ROOT = "apportion"


def packages_of(graph: grimp.ImportGraph) -> dict[str, list[str]]:
    """Files by their package, the whole path; files of the root by the root."""
    found: dict[str, list[str]] = {}
    for module in sorted(graph.modules):
        is_package = bool(graph.find_children(module))
        home = module if is_package else module.rpartition(".")[0]
        found.setdefault(home, []).append(module)
    return found


def arrows_within(graph: grimp.ImportGraph, modules: list[str]) -> list[tuple[str, str]]:
    """Imports between these files; those through a package's face count for the face."""
    own = set(modules)
    return [(one, other) for one in modules for other in graph.find_modules_directly_imported_by(one) if other in own]


def floors(modules: list[str], arrows: list[tuple[str, str]]) -> int:
    """The longest chain of imports, in files; circles count as one file."""
    below: dict[str, list[str]] = {}
    for one, other in arrows:
        below.setdefault(one, []).append(other)
    known: dict[str, int] = {}

    def height(module: str, path: frozenset[str]) -> int:
        if module in path:
            return 0
        if module not in known:
            known[module] = 1 + max((height(item, path | {module}) for item in below.get(module, [])), default=0)
        return known[module]

    return max((height(module, frozenset()) for module in modules), default=0)


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Groups of files that import each other: strongly connected components of more than one file (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in graph.find_modules_directly_imported_by(module):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for module in sorted(graph.modules):
        if module not in order:
            visit(module)
    return found


def ranks(contract: list[str]) -> dict[str, int]:
    """Height of every package of a layers contract; the lowest is 0."""
    rows = [[part.strip() for part in row.replace(":", "|").split("|")] for row in reversed(contract)]
    return {name: height for height, row in enumerate(rows) for name in row}


def upward(graph: grimp.ImportGraph, contract: list[str]) -> list[tuple[str, str]]:
    """Imports from a lower package of a contract into a higher one."""
    rank = ranks(contract)

    def home(module: str) -> str | None:
        return next((name for name in rank if module == name or module.startswith(f"{name}.")), None)

    found = []
    for one in sorted(graph.modules):
        for other in sorted(graph.find_modules_directly_imported_by(one)):
            here, there = home(one), home(other)
            if here and there and here != there and rank[here] < rank[there]:
                found.append((one, other))
    return found


def figures(source: Path, contracts: list[list[str]]) -> dict[str, Any]:
    """All figures of the package that lies in a folder."""
    sys.path.insert(0, str(source))
    graph = grimp.build_graph(ROOT, cache_dir=None)
    rows = {}
    for package, modules in packages_of(graph).items():
        arrows = arrows_within(graph, modules)
        files = [module for module in modules if module != package]
        lines = [len(path_of(source, module).read_text().splitlines()) for module in modules]
        rows[package] = {
            "files": len(files), "lines": sum(lines), "arrows": len(arrows), "floors": floors(modules, arrows),
        }  # fmt: skip
    return {
        "packages": rows,
        "files": len(graph.modules),
        "arrows": sum(len(graph.find_modules_directly_imported_by(module)) for module in graph.modules),
        "contracts": len(contracts),
        "contract_lines": sum(map(len, contracts)),
        "upward": [list(pair) for contract in contracts for pair in upward(graph, contract)],
        "circles": circles(graph),
    }


def path_of(source: Path, module: str) -> Path:
    """The file of a module."""
    path = source.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def page(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    head = ["| package | files | lines | arrows inside | floors |", "|---|---|---|---|---|"]
    rows = [
        f"| {name} | {row['files']} | {row['lines']:,} | {row['arrows']} | {row['floors']} |"
        for name, row in found["packages"].items()
    ]
    told = (
        f"{found['files']} modules, {found['arrows']} arrows, {len(found['upward'])} upward, {len(found['circles'])} "
        f"circles; {found['contracts']} contracts of {found['contract_lines']} lines."
    )
    return "\n".join([*head, *rows, "", told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--src", type=Path, default=Path("src"), help="folder that holds the package")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    settings = tomllib.loads((asked.src.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found = figures(asked.src.resolve(), [one["layers"] for one in settings if one["type"] == "layers"])
    print(json.dumps(found, indent=1) if asked.json else page(found))


if __name__ == "__main__":
    main()
