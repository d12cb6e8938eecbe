"""Commands of apportion.route that meet a corpus or a language model: index, prompts, profile, ask."""

import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apportion.cli.base import app, emit, printable
from apportion.cli.options import AsJson
from apportion.core.errors import InputError

if TYPE_CHECKING:
    from apportion.route.answer import Answer
    from apportion.route.llm import LLM, LLMSettings
    from apportion.route.profile.preflight import Preflight
    from apportion.route.profile.report import ProfileReport

Index = Annotated[Path, typer.Option("--index", help="Index folder made by `apportion index`.")]
Llm = Annotated[
    str,
    typer.Option(
        "--llm",
        help="A server (http://host:port/v1; its key from APPORTION_API_KEY or OPENAI_API_KEY), a model folder, "
        "or a model on the Hub.",
    ),
]
ServerModel = Annotated[
    str | None, typer.Option("--model", help="The server's name for the model, where it serves several.")
]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="TOML file with prompts; the shipped ones without it.")]
Dense = Annotated[
    str | None,
    typer.Option("--dense", help="Sentence-transformers model (folder or Hub name) for a dense index."),
]
Passages = Annotated[int, typer.Option("--k", min=1, max=1000, help="Passages in a prompt.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds that one call to a server may take.")]
Retries = Annotated[int, typer.Option("--retries", help="Further calls after one that failed.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint, in this process.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda, for a model in this process.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16, likewise.")]


@app.command(epilog="Example: apportion index corpus.jsonl --out index")
def index(
    out: Annotated[Path, typer.Option("--out", help="Folder of the index.")],
    corpus: Annotated[
        Path | None, typer.Argument(help="A .jsonl, .json, .csv, .parquet, .md or .txt file, or a folder of them.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add CORPUS to the index that --out holds.")] = False,
    delete: Annotated[
        list[str] | None, typer.Option("--delete", help="Delete the passage of this id; may be repeated.")
    ] = None,
    max_chars: Annotated[
        int, typer.Option("--max-chars", help="Longer texts are split, at paragraphs where possible.")
    ] = 2000,
    dense: Dense = None,
    json: AsJson = False,
) -> None:
    """Make a BM25 index of a corpus, or change one: additions and deletions are all or nothing."""
    from apportion.route.index import (
        Bm25Index,
        add_passages,
        build_index,
        delete_passages,
        index_size_bytes,
        read_corpus,
    )
    from apportion.route.index.corpus import Skipped

    if corpus is None and not delete and not dense:
        raise InputError("index: no CORPUS was given", "give a CORPUS, --delete ID, or --dense MODEL")
    if add and corpus is None:
        raise InputError("index --add: no CORPUS was given", "name the passages to add")
    skipped = Skipped()
    if corpus is not None:
        passages = read_corpus(corpus, max_chars=max_chars, skipped=skipped)
        made = add_passages(out, passages) if add else build_index(passages, out)
    else:
        made = Bm25Index.open(out)
    if delete:
        made = delete_passages(out, delete)
    if dense:
        from apportion.route.index.dense import SentenceEncoder, sync_dense

        sync_dense(out, SentenceEncoder(dense))
    stats = made.collection
    value = {
        "out": str(out),
        **stats.to_json(),
        "dense": dense,
        "skipped": skipped.count,
        "bytes": index_size_bytes(out),
    }
    text = (
        f"{out}: {stats.passages} passages, {stats.tokens} words, {value['bytes'] / 1e6:.1f} MB, "
        f"corpus {stats.digest[:16]}"
    )
    if skipped.count:
        text += f"\n  {skipped.count} passages without text were left out, first: {'; '.join(skipped.places)}"
    if stats.without_terms:
        text += f"\n  {stats.without_terms} passages hold no word that can be searched for; they are never found"
    emit(value, as_json=json, text=text)


@app.command(name="prompts", epilog="Example: apportion prompts > mine.toml")
def show_prompts() -> None:
    """Print the shipped prompts with their schema, to be changed and given with --prompts."""
    from apportion.route.ask.prompts import DEFAULT_PATH

    print(DEFAULT_PATH.read_text(encoding="utf-8"), end="")


@app.command(
    epilog="Example: apportion profile questions.jsonl --index index --llm http://localhost:8000/v1 --out p.parquet"
)
def profile(
    questions: Annotated[
        Path, typer.Argument(help="JSON lines, JSON or CSV: id, dataset, question, answers (or golden_answers).")
    ],
    index: Index,
    llm: Llm,
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write; its log lies beside it.")],
    k: Passages = 5,
    prompts: Prompts = None,
    model: ServerModel = None,
    dense: Dense = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first N questions only.")] = None,
    unloaded: Annotated[
        int,
        typer.Option("--unloaded", min=0, help="Questions also timed one at a time; latency of the rest follows them."),
    ] = 8,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue; answers in the log are not asked for again.")
    ] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Calls to a server at once.")] = 8,
    batch: Annotated[int, typer.Option("--batch", help="Questions decoded together by a model in this process.")] = 16,
    timeout: Timeout = 120.0,
    retries: Retries = 3,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustCode = False,
    json: AsJson = False,
) -> None:
    """Answer questions by all four pipelines and record quality, tokens, latency and features."""
    from apportion.route.ask.prompts import load_prompts
    from apportion.route.ask.setup import Setup
    from apportion.route.index import open_retriever
    from apportion.route.llm import LLMSettings
    from apportion.route.profile.questions import read_questions
    from apportion.route.profile.run import run_profile

    asked = read_questions(questions, limit=limit)
    loaded = load_prompts(prompts)
    retriever = open_retriever(index, dense)
    settings = LLMSettings(llm, model, concurrency, timeout, retries, batch, device, dtype, trust_remote_code)
    with closing(_connect(settings)) as connected:
        setup = Setup(connected, retriever, loaded, k)
        report = run_profile(asked, setup, out, resume=resume, unloaded=unloaded, on_preflight=_say_preflight)
    emit(asdict(report), as_json=json, text="\n".join(_profile_lines(report)))


def _say_preflight(found: "Preflight") -> None:
    """What the first questions show, before the long run goes on."""
    lines = [f"first {found.questions} questions: {warning}" for warning in found.warnings]
    lines += [f"  sample: {sample}" for sample in found.samples]
    if lines:
        print(printable("\n".join(lines)), file=sys.stderr)


def _profile_lines(report: "ProfileReport") -> list[str]:
    lines = [
        f"{report.path}: {report.rows} rows of {report.questions} questions, {report.resumed} from before, "
        f"{report.failed} failed, in {report.seconds:.0f} s"
    ]
    lines += [f"  failed: {failure}" for failure in report.failures]
    if report.failed:
        lines.append("  run the same command with --resume to try the failed rows again")
    for name, one in report.pipelines.items():
        lines.append(
            f"  {name:8}quality {one.quality:.3f}, {one.tokens:.0f} tokens, {one.latency_ms:.0f} ms; of "
            f"{one.answers} answers {one.asked_again} asked for again, {one.not_extracted} not extracted, {one.cut} "
            f"ended by max_tokens, "
            f"{one.no_passage} without a passage, {one.prompt_cut} prompts cut to the context"
        )
    lines.append(f"  latency: {report.latency}")
    if not report.has_logprobs:
        lines.append(f"  no draft features: {report.logprobs}")
    missing = sum(one.no_logprobs for one in report.pipelines.values())
    for count, what in (
        (missing, "answers came back without log-probabilities"),
        (report.estimated_tokens, "rows have estimated tokens, since the server reports none"),
    ):
        if count:
            lines.append(f"  {count} {what}")
    return [*lines, *(f"  {said}" for said in report.weaker)]


def _connect(settings: "LLMSettings") -> "LLM":
    """Open the model or the server; transformers' own bars and notices stay silent."""
    from apportion.route.llm import connect

    if not settings.spec.startswith(("http://", "https://")):
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
    return connect(settings)


@app.command(
    epilog='Example: apportion ask "Who founded Bern?" --router router --index index --llm http://localhost:8000/v1'
)
def ask(
    question: Annotated[str, typer.Argument(help="The question, in quotes.")],
    router: Annotated[Path, typer.Option("--router", help="Folder made by `apportion train-router`.")],
    index: Index,
    llm: Llm,
    token_weight: Annotated[
        float, typer.Option("--token-weight", help="What always-on tokens are worth, in points of quality.")
    ] = 0.1,
    latency_weight: Annotated[
        float, typer.Option("--latency-weight", help="What always-on latency is worth, likewise.")
    ] = 0.0,
    explain: Annotated[bool, typer.Option("--explain", help="Show features, decision and costs.")] = False,
    prompts: Prompts = None,
    model: ServerModel = None,
    dense: Dense = None,
    k: Annotated[int | None, typer.Option("--k", help="Passages in a prompt; the router's without it.")] = None,
    timeout: Timeout = 120.0,
    retries: Retries = 3,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustCode = False,
    json: AsJson = False,
) -> None:
    """Answer one question by the pipeline that is worth its cost."""
    from apportion.core.artifact import plain
    from apportion.route.answer import answer
    from apportion.route.ask.prompts import load_prompts
    from apportion.route.ask.setup import DEFAULT_K, Setup, require_trained_on
    from apportion.route.index import open_retriever
    from apportion.route.llm import LLMSettings
    from apportion.route.router.file import load_router
    from apportion.route.router.utility import Weights

    weights = Weights(token_weight, latency_weight)
    loaded = load_router(router)
    passages = k if k is not None else int(loaded.source.get("k") or DEFAULT_K)
    retriever = open_retriever(index, dense)
    settings = LLMSettings(
        llm,
        model,
        timeout_s=timeout,
        retries=retries,
        batch_size=1,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    with closing(_connect(settings)) as connected:
        setup = Setup(connected, retriever, load_prompts(prompts), passages)
        unknown = require_trained_on(loaded.source, setup)
        found = answer(question, loaded, setup, weights)
    if unknown and not json:
        said = f"the router does not record its {', '.join(unknown)}, so that was not compared with this setup"
        print(f"note: {said}", file=sys.stderr)
    value = {**plain(found), "not_compared": list(unknown)}
    emit(value, as_json=json, text=_explained(found) if explain else found.text)


def _explained(found: "Answer") -> str:
    decision = found.decision
    heads = "" if decision.p_rag is None else f", need RAG {decision.p_rag:.2f}, need CoT {decision.p_cot:.2f}"
    lines = [found.text, f"  strategy  {found.strategy} (tier {decision.tier}{heads})"]
    lines += [f"  feature   {name} {value:.4g}" for name, value in found.features.items()]
    lines += [
        f"  call      {call.purpose} ({call.strategy}): "
        f"{call.prompt_tokens} + {call.completion_tokens} tokens, {call.latency_ms:.0f} ms"
        for call in found.calls
    ]
    lines.append(f"  cost      {found.tokens} tokens, {found.latency_ms:.0f} ms")
    if found.passages:
        lines.append(f"  passages  {', '.join(found.passages)}")
    lines += [f"  weaker    {reason}" for reason in found.weaker]
    return "\n".join(lines)
