"""Commands of the router: train-router, evaluate-router."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apportion.cli.base import app, emit
from apportion.cli.options import AsJson, Resume
from apportion.core.errors import ArtifactExistsError, InputError

if TYPE_CHECKING:
    from apportion.route.profile.profile import Profile
    from apportion.route.router import Price

ProfileFile = Annotated[Path, typer.Argument(help="A profile: Parquet, one row per question and strategy.")]
Index = Annotated[
    Path | None,
    typer.Option(help="Index whose retrieval features are computed from the questions of a recorded profile."),
]
Out = Annotated[Path, typer.Option(help="New folder for the result.")]
Quality = Annotated[str, typer.Option(help="Column that is the quality: f1 or em.")]
Seed = Annotated[int, typer.Option(help="Seed of splits, initial weights and draws.")]
Stages = Annotated[
    int, typer.Option(min=1, max=2, help="2: decide on reasoning after a retrieved answer, where folds show a gain.")
]
Priced = Annotated[
    str | None,
    typer.Option("--price", help="Price per million tokens, as in=0.15,cached=0.08,out=0.60; then weights weigh it."),
]


@app.command(
    "train-router",
    epilog="Example: apportion train-router out/profile.parquet --out out/router",
)
def train(
    profile: ProfileFile,
    out: Out,
    index: Index = None,
    quality: Quality = "f1",
    stages: Stages = 1,
    price: Priced = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Learn from a profile which questions need retrieval and which need reasoning, at any cost weights."""
    from apportion.core.artifact import claim_folder
    from apportion.core.lock import sole_writer
    from apportion.route.router import save_router, train_router, training_record, training_text

    _refuse_occupied(out)
    charged = _price(price)
    asked = _read(profile, index, quality)
    claim_folder(out, resume=False)
    with sole_writer(out):
        trained = train_router(asked, seed=seed, stages=stages, price=charged)
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
    repeat: Annotated[
        Path | None, typer.Option(help="Profile of the same questions run again: how much of the best is luck.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds when nothing else says how to split.")] = 5,
    quality: Quality = "f1",
    stages: Stages = 1,
    price: Priced = None,
    seed: Seed = 0,
    ablations: Annotated[bool, typer.Option(help="Also train routers with a part taken away.")] = True,
    leave_out: Annotated[bool, typer.Option(help="Also leave each dataset out once.")] = True,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Compare a router with every static pipeline, the oracle and baselines on questions it has not seen."""
    from apportion.core.artifact import finished, require_free, sha256_file, start
    from apportion.core.lock import sole_writer
    from apportion.route.evaluation import EvaluationPlan, Parts, evaluate_router, write_evaluation
    from apportion.route.router import load_router

    kind = "evaluate-router"
    require_free(out, resume=resume, kind=kind)
    files = {"profile": profile, "router": router and router / "manifest.json", "train": train, "repeat": repeat}
    files["index"] = index and index / "manifest.json"
    plan = EvaluationPlan(folds=folds, seed=seed, ablations=ablations, leave_out=leave_out, stages=stages)
    charged = _price(price)
    tested = _read(profile, index, quality)
    loaded = load_router(router, _expected(tested)) if router else None
    seen, again = (_read(path, index, quality) if path else None for path in (train, repeat))
    digests = {name: sha256_file(path) for name, path in files.items() if path}
    asked = {
        "kind": kind,
        **digests,
        "quality": quality,
        "price": price,
        "plan": plan,
    }
    if finished(out, asked, resume=resume):
        raise ArtifactExistsError(f"--out {out}: is complete already", "choose another --out")
    start(out, asked)
    with sole_writer(out):
        parts = Parts(out / "splits")
        found = evaluate_router(tested, plan, train=seen, router=loaded, repeat=again, price=charged, parts=parts)
        saved = write_evaluation(out, found)
        parts.clear()
    emit({"out": str(out), **saved}, as_json=as_json, text=_text(saved, out))


def _refuse_occupied(out: Path) -> None:
    """Before any work; the remedies are those that the command has."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactExistsError(
            f"--out {out}: exists and is not an empty folder", "choose another --out or delete it"
        )


def _price(text: str | None) -> "Price | None":
    from apportion.route.router import parse_price

    return None if text is None else parse_price(text)


def _read(path: Path, index: Path | None, quality: str) -> "Profile":
    from apportion.route.profile.add_probes import add_probes
    from apportion.route.profile.file import read_profile

    if index is not None and not index.exists():
        raise InputError(f"--index {index}: no such folder", "make it with `apportion index CORPUS --out DIR`")
    return add_probes(read_profile(path, quality=quality), index)


def _expected(profile: "Profile") -> dict[str, str | int]:
    """What the router must have been trained on, as far as the profile says."""
    return {key: value for key, value in profile.source.identity.items() if value}


def _text(saved: dict[str, Any], out: Path) -> str:
    from apportion.route.evaluation.report import signals_text

    lines = [saved["summary"]["first_line"], ""]
    if saved["trained_on_these"]:
        lines.insert(1, f"{saved['trained_on_these']} of the questions were training questions: too good.")
    if saved.get("repeated_texts"):  # evaluations of before do not say
        lines.append(f"{saved['repeated_texts']} of the questions repeat a text: kept in one fold, one in intervals")
    lines += [f"NOT JUDGED: {reason}" for reason in saved["failed"]]
    unsaid = [key for key in ("model", "corpus", "prompts") if not saved["source"][key]]
    if unsaid and saved["protocol"]["router"] == "given":
        lines.append(f"the profile does not say its {', '.join(unsaid)}: not compared with the router's")
    lines += [f"{'token w':>8} {'lat. w':>7} {'best static':>12} {'router':>8} {'oracle':>8}  gain [95 %]"]
    for row in saved["weights"]:
        interval = row["gain"]["interval"]
        lines.append(
            f"{row['token_weight']:8g} {row['latency_weight']:7g} {row['best_static']['utility']:12.4f} "
            f"{row['router']['utility']:8.4f} {row['oracle']['utility']:8.4f}  "
            f"{interval['mean']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]  {row['reach']['verdict']}"
        )
    lines += ["", *signals_text(saved["signals"])]
    return "\n".join([*lines, "", f"{out}/report.md  {out}/evaluation.json  {out}/frontier.png"])
