"""Writes an evaluation's folder: evaluation.json, report.md, frontier.png, and the manifest last."""

from pathlib import Path
from typing import Any

from apportion.core.artifact import claim_folder, plain, read_json, write_bytes, write_json, write_manifest
from apportion.route.evaluation.evaluation import Evaluation
from apportion.route.evaluation.plot import draw_frontier
from apportion.route.evaluation.report import report

KIND = "apportion.evaluation"
FILES = ("evaluation.json", "report.md", "frontier.png")


def write_evaluation(folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Write all files into an empty folder, the plot from the saved JSON.

    Returns:
        The object in evaluation.json.

    Raises:
        ArtifactExistsError: the folder holds something.
    """
    claim_folder(folder, resume=False)
    saved: dict[str, Any] = {"kind": KIND, **plain(evaluation)}
    write_json(folder / "evaluation.json", saved)
    write_bytes(folder / "report.md", report(evaluation).encode())
    draw_frontier(read_json(folder / "evaluation.json"), folder / "frontier.png")
    write_manifest(folder, {"kind": KIND}, FILES)
    return saved
