"""Command of the server: serve."""

import os
import sys
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apportion.cli.base import app, emit
from apportion.cli.options import AsJson, with_groups
from apportion.core.errors import InputError, MissingExtraError, at_least, require_all

if TYPE_CHECKING:
    from apportion.serve import Routing, Settings
    from apportion.serve.backend import Backend


@dataclass(frozen=True, slots=True)
class WhatOptions:
    """What answers and what decides."""

    llm: Annotated[
        str | None,
        typer.Option(
            "--llm",
            help="A server (http://host:port/v1; its key from APPORTION_API_KEY or OPENAI_API_KEY), or a model to "
            "run here.",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option("--model", help="With a server: its name for the model. Without --llm: a model to run here."),
    ] = None
    demo: Annotated[
        bool, typer.Option("--demo", help="The shipped model, its passages and a router, made in --work.")
    ] = False
    index: Annotated[Path | None, typer.Option("--index", help="Folder made by `apportion index`.")] = None
    router: Annotated[Path | None, typer.Option("--router", help="Folder made by `apportion train-router`.")] = None
    prompts: Annotated[Path | None, typer.Option("--prompts", help="TOML file with prompts.")] = None
    dense: Annotated[str | None, typer.Option("--dense", help="Sentence-transformers model of a dense index.")] = None
    work: Annotated[Path, typer.Option("--work", help="Folder of --demo.")] = Path("out/serve-demo")
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda, for a model run here.")] = "auto"
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16, likewise.")] = "auto"
    batch: Annotated[int, typer.Option("--batch", help="Requests decoded together by a model run here.")] = 16

    def check(self) -> None:
        """Refuse what is missing, and what the demonstration would leave unused.

        Raises:
            InputError: naming all of it.
        """
        if self.demo:
            brought = ("llm", "model", "index", "router", "prompts", "dense", "device", "dtype", "batch")
            unused = [f"--{one.name}" for one in fields(self) if one.name in brought and self._given(one)]
            if unused:
                raise InputError(
                    f"--demo: brings its own model, passages and router, so {', '.join(unused)} would mean nothing",
                    "leave out either",
                )
            return
        missing = [f"--{name}" for name in ("index", "router") if getattr(self, name) is None]
        if self.llm is None and self.model is None:
            missing.insert(0, "--llm or --model")
        if missing:
            raise InputError(f"serve: {', '.join(missing)} not given", "give them, or try --demo")

    def _given(self, option: "Field[Any]") -> bool:
        return bool(getattr(self, option.name) != option.default)


@dataclass(frozen=True, slots=True)
class HowOptions:
    """How requests are answered."""

    token_weight: Annotated[
        float, typer.Option("--token-weight", help="What always-on tokens are worth, in points of quality.")
    ] = 0.1
    latency_weight: Annotated[
        float, typer.Option("--latency-weight", help="What always-on latency is worth, likewise.")
    ] = 0.0
    concurrency: Annotated[int, typer.Option("--concurrency", help="Answers in work at once.")] = 64
    queue: Annotated[int, typer.Option("--queue", help="Requests that may wait beside them; more get 429.")] = 256
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", help="New tokens of an answer without a limit of the client's (the pipelines')."),
    ] = None
    max_body: Annotated[int, typer.Option("--max-body", help="Bytes of a request's body.")] = 8 << 20
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that the server may take for an answer.")] = 300.0
    draft_timeout: Annotated[float, typer.Option(help="Seconds for a draft; then it is decided without.")] = 30.0
    search_timeout: Annotated[float, typer.Option(help="Seconds for a search; then it is answered without.")] = 2.0
    shutdown: Annotated[float, typer.Option(help="Seconds that running answers get after SIGTERM.")] = 60.0
    api_key_file: Annotated[Path | None, typer.Option(help="Keys that clients may use, one a line.")] = None
    decisions: Annotated[Path | None, typer.Option(help="SQLite file of the decision log.")] = None
    keep_prompts: Annotated[bool, typer.Option("--keep-prompts", help="Log questions and answers too.")] = False
    shadow: Annotated[bool, typer.Option("--shadow", help="Decide and log, but pass requests on unrouted.")] = False

    def settings(self, router: Path | None, keys: tuple[str, ...]) -> "Settings":
        """The server's settings.

        Args:
            router: followed for a better one. keys: that clients may use.
        """
        from apportion.serve import Settings, Timeouts
        from apportion.serve.controls import Controls

        return Settings(
            default=Controls(token_weight=self.token_weight, latency_weight=self.latency_weight),
            concurrency=self.concurrency,
            queue=self.queue,
            max_body_bytes=self.max_body,
            max_tokens=self.max_tokens,
            keys=keys,
            decisions=self.decisions,
            keep_prompts=self.keep_prompts,
            shadow=self.shadow,
            router=router,
            timeouts=Timeouts(search_s=self.search_timeout, draft_s=self.draft_timeout, shutdown_s=self.shutdown),
        )


@app.command(epilog="Example: apportion serve --llm http://127.0.0.1:8000/v1 --index index --router router")
@with_groups
def serve(
    what: WhatOptions,
    how: HowOptions,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 8080,
    require_upstream: Annotated[
        bool, typer.Option("--require-upstream", help="Refuse to start while the server of --llm does not answer.")
    ] = False,
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")] = "info",
) -> None:
    """Answer OpenAI-compatible requests, each by the pipeline that is worth its cost."""
    _require_extra()
    from apportion.serve import create_app
    from apportion.serve.run import listen, log_to_stderr, run

    settings = _checked(what, how, log_level)
    with listen(host, port) as listening:
        routing, backend = _demo(what.work) if what.demo else _opened(what, how.timeout, require_upstream)
        if how.latency_weight and not routing.timed:
            raise InputError(f"--latency-weight {how.latency_weight}: the router was trained without latencies")
        found = create_app(routing, backend, settings)
        log_to_stderr(log_level)
        shown = listening.getsockname()
        url = f"http://[{shown[0]}]:{shown[1]}" if ":" in shown[0] else f"http://{shown[0]}:{shown[1]}"
        print(f"apportion serves at {url}/v1; dashboard at {url}/", file=sys.stderr)
        if backend.trouble:
            print(f"not ready yet: --llm {what.llm}: {backend.trouble}; requests get 503 until then", file=sys.stderr)
        run(found, [listening])


@app.command(epilog="Example: apportion refit --decisions decisions.sqlite --profile p.parquet --router router")
def refit(
    decisions: Annotated[Path, typer.Option("--decisions", help="Decision log of `apportion serve`, with feedback.")],
    profile: Annotated[Path, typer.Option("--profile", help="The profile that the router in use was trained on.")],
    router: Annotated[Path, typer.Option("--router", help="The router in use; it becomes a link to the better one.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of training and of the interval.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Compare only; replace nothing.")] = False,
    json: AsJson = False,
) -> None:
    """Learn from feedback too, and replace the router in use where the new one is better on decisions kept aside."""
    _require_extra()
    from apportion.serve.decision_log import read_decisions
    from apportion.serve.following import exchange, successor
    from apportion.serve.relearning import relearn, save

    found = relearn(read_decisions(decisions), profile, router, seed=seed)
    value = {
        "learned_from": found.learned_from,
        "judged_on": found.judged_on,
        "gain": found.gain,
        "better": found.better,
        "bias": found.bias,
        "unrecognised": found.unrecognised,
        "unmeasured": found.unmeasured,
        "refused": found.refused,
    }
    replaced = found.better and not keep
    if replaced:
        new = successor(router)
        save(new, found)
        before = exchange(router, new)
        value |= {"router": str(new), "before": str(before)}
    gain = f"{found.gain.mean:+.4f} [{found.gain.low:+.4f}, {found.gain.high:+.4f}]"
    said = f"{found.learned_from} decisions learned from, {found.judged_on} judged on: utility {gain}; "
    said += f"scores lie {found.bias:+.4f} from what the profile expects, by which other routes' estimates are moved; "
    if found.unrecognised:
        said += f"{found.unrecognised} questions were not kept, so one asked again may be in both parts; "
    if found.unmeasured:
        said += f"{found.unmeasured} decisions came without tokens, so the profile's are taken; "
    said += f"{found.refused}; " if found.refused else ""
    said += f"{router} is now {value.get('router')}" if replaced else "the router in use stays"
    emit({**value, "replaced": replaced, "agreeing": found.agreeing}, as_json=json, text=said)


def _require_extra() -> None:
    """Refuse where what the server stands on is not installed.

    Raises:
        MissingExtraError: naming it.
    """
    try:
        import aiohttp  # noqa: F401
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "serve") from error


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Keys of a file, one a line; empty lines and lines that begin with # mean nothing."""
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file {path}: cannot be read: {error}", "name a text file") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InputError(f"--api-key-file {path}: holds no key, expected one a line", "write one, or leave it out")
    return keys


def _checked(what: WhatOptions, how: HowOptions, log_level: str) -> "Settings":
    """The settings, once nothing is left that cannot be; before anything is opened.

    Raises:
        InputError: naming every value that cannot be used.
    """
    from apportion.serve.settings import seconds

    def known_level() -> None:
        if log_level not in ("debug", "info", "warning", "error"):
            raise InputError(f"--log-level {log_level}: expected debug, info, warning or error")

    keys: list[str] = []
    settings: list[Settings] = []
    require_all(
        what.check,
        known_level,
        lambda: at_least("--batch", what.batch, 1),
        lambda: seconds("--timeout", how.timeout),
        lambda: keys.extend(read_keys(how.api_key_file)),
        lambda: settings.append(how.settings(what.router, tuple(keys))),
    )
    return settings[0]


def _opened(what: WhatOptions, timeout_s: float, require_upstream: bool) -> "tuple[Routing, Backend]":
    """What decides and what answers, checked against each other as far as they can be before the server runs."""
    from apportion.route.llm.openai import KEY_VARIABLES
    from apportion.serve.opening import Opening, expect, open_backend
    from apportion.serve.routing_files import open_routing

    assert what.index is not None  # `check` has seen to both
    assert what.router is not None
    opening = Opening(
        llm=what.llm,
        model=what.model,
        key=next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), ""),
        timeout_s=timeout_s,
        require_upstream=require_upstream,
        batch=what.batch,
        device=what.device,
        dtype=what.dtype,
    )
    backend = open_backend(opening)
    routing = open_routing(what.router, what.index, what.prompts, what.dense, opening.identity(backend))
    expect(backend, routing)
    return routing, backend


def _demo(work: Path) -> "tuple[Routing, Backend]":
    """The shipped model with its world's passages and a router learned from its recorded answers."""
    from apportion.demo import model_path, prompts_path, write_corpus
    from apportion.demo.recorded import recorded
    from apportion.serve.opening import Opening, open_backend
    from apportion.serve.routing_files import learn, open_routing, write_index

    if not (work / "index" / "manifest.json").exists():
        print("indexing the passages of the demonstration ...", file=sys.stderr)
        work.mkdir(parents=True, exist_ok=True)
        write_corpus(work / "corpus.jsonl")
        write_index(work / "corpus.jsonl", work / "index")
    if not (work / "router" / "manifest.json").exists():
        print("learning a router from recorded answers (about a minute, once) ...", file=sys.stderr)
        learn(recorded("train"), work / "router")
    backend = open_backend(Opening(model=str(model_path()), device="cpu", dtype="float32"))
    return open_routing(work / "router", work / "index", prompts_path(), None, None), backend
