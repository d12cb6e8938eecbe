"""Commands of the router: train-router, evaluate-router."""

from pathlib import Path
from typing import Annotated, Any

import typer

from apportion.cli.base import app, emit
from apportion.cli.options import AsJson
from apportion.core.errors import InputError

ProfileFile = Annotated[Path, typer.Argument(help="A profile: Parquet, one row per question and strategy.")]
Index = Annotated[
    Path | None,
    typer.Option(help="Index whose retrieval features are computed from the questions of a recorded profile."),
]
Out = Annotated[Path, typer.Option(help="New folder for the result.")]
Quality = Annotated[str, typer.Option(help="Column that is the quality: f1 or em.")]
Seed = Annotated[int, typer.Option(help="Seed of splits, initial weights and draws.")]


@app.command(
    "train-router",
    epilog="Example: apportion train-router out/profile.parquet --out out/router",
)
def train(
    profile: ProfileFile,
    out: Out,
    index: Index = None,
    quality: Quality = "f1",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Learn from a profile which questions need retrieval and which need reasoning, at any cost weights."""
    from apportion.route.router.file import save_router
    from apportion.route.router.report import training_record, training_text
    from apportion.route.router.train import train_router

    trained = train_router(_read(profile, index, quality), seed=seed)
    record = {**training_record(trained), "quality": quality}
    save_router(out, trained.router, record)
    emit({"out": str(out), **record}, as_json=as_json, text=training_text(trained, out))


@app.command(
    "evaluate-router",
    epilog="Example: apportion evaluate-router out/test.parquet --router out/router --out out/evaluation",
)
def evaluate(
    profile: ProfileFile,
    out: Out,
    index: Index = None,
    router: Annotated[
        Path | None, typer.Option(help="A trained router; without it one is trained for each fold.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Profile that baselines (and a missing router) are fitted on.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds when nothing else says how to split.")] = 5,
    quality: Quality = "f1",
    seed: Seed = 0,
    ablations: Annotated[bool, typer.Option(help="Also train routers with a part taken away.")] = True,
    leave_out: Annotated[bool, typer.Option(help="Also leave each dataset out once.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare a router with every static pipeline, the oracle and baselines on questions it has not seen."""
    from apportion.core.artifact import claim_folder
    from apportion.route.evaluation.evaluate import evaluate as compare
    from apportion.route.evaluation.field import EvaluationPlan
    from apportion.route.evaluation.file import write_evaluation
    from apportion.route.router.file import load_router

    claim_folder(out, resume=False)
    tested = _read(profile, index, quality)
    seen = _read(train, index, quality) if train else None
    loaded = load_router(router, _expected(tested)) if router else None
    plan = EvaluationPlan(folds=folds, seed=seed, ablations=ablations, leave_out=leave_out)
    saved = write_evaluation(out, compare(tested, plan, train=seen, router=loaded))
    emit({"out": str(out), **saved}, as_json=as_json, text=_text(saved, out))


def _read(path: Path, index: Path | None, quality: str) -> Any:
    from apportion.route.profile.add_probes import add_probes
    from apportion.route.profile.file import read_profile

    if index is not None and not index.exists():
        raise InputError(f"--index {index}: no such folder", "make it with `apportion index CORPUS --out DIR`")
    return add_probes(read_profile(path, quality=quality), index)


def _expected(profile: Any) -> dict[str, str | int]:
    """What the router must have been trained on, as far as the profile says."""
    source = profile.source
    said = {"model": source.model, "corpus": source.corpus, "prompts": source.prompts, "k": source.k}
    return {key: value for key, value in said.items() if value}


def _text(saved: dict[str, Any], out: Path) -> str:
    lines = [saved["summary"]["first_line"], ""]
    if saved["trained_on_these"]:
        lines.insert(1, f"{saved['trained_on_these']} of the questions were training questions: too good.")
    lines += [f"{'token w':>8} {'lat. w':>7} {'best static':>12} {'router':>8} {'oracle':>8}  gain [95 %]"]
    for row in saved["weights"]:
        interval = row["gain"]["interval"]
        lines.append(
            f"{row['token_weight']:8g} {row['latency_weight']:7g} {row['best_static']['utility']:12.4f} "
            f"{row['router']['utility']:8.4f} {row['oracle']['utility']:8.4f}  "
            f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"
        )
    return "\n".join([*lines, "", f"{out}/report.md  {out}/evaluation.json  {out}/frontier.png"])
