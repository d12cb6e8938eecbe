"""`apportion compare`, the exhaustive optimum included, for several models and roundings on one GPU.

For every model and rounding: 32 x 512 calibration tokens, M = 100, all methods, six budgets and the curve, 128
held-out windows. As each job ends, OUT gets `compare_<model>_<rounding>.json` (what `make results` reads) and
`values_<model>_<rounding>.npz` (the NLL of all 65,536 coalitions on every window, float32: what
`benchmarks/ablations.py` reads). A job that was cut off goes on where it was when the same WORK is given.

    python benchmarks/gpu_compare.py --models llama-mini=FOLDER,qwen3-mini=FOLDER --roundings nearest,gptq
        --calibration c4-sample.jsonl --text wikitext2-test-raw.txt --work work --out $OUT --job-limit-s 280
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from command_line import shown

ALL = "auto,coopq,regression,shapley,one-at-a-time,greedy,llm-mq,lim,zd,zd-two-sided,activation,random,optimum"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True, help="name=folder, with commas")
    parser.add_argument("--roundings", default="nearest")
    parser.add_argument("--methods", default=ALL)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--text-windows", type=int, default=128)
    parser.add_argument("--permutations", type=int, default=100)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--widths", default="2,4")
    parser.add_argument("--players", default="blocks")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--apply-rounding", default=None)
    parser.add_argument("--job-limit-s", type=float, default=280.0)
    parser.add_argument("--total-limit-s", type=float, default=560.0)
    parser.add_argument("--profile", action="store_true", help="time block, head and coalition instead")
    return parser.parse_args()


def main() -> None:
    asked = options()
    asked.out.mkdir(parents=True, exist_ok=True)
    models = dict(item.split("=", 1) for item in asked.models.split(","))
    began = time.monotonic()
    if asked.profile:
        profile(asked, next(iter(models.values())))
        return
    for model, folder in models.items():
        for rounding in asked.roundings.split(","):
            left = asked.total_limit_s - (time.monotonic() - began)
            if left < 20:
                print(f"{model} {rounding}: no time left; run again with the same --work", flush=True)
                continue
            run_job(asked, model, folder, rounding, min(asked.job_limit_s, left))


def run_job(asked: argparse.Namespace, model: str, folder: str, rounding: str, limit_s: float) -> None:
    """One compare in its own process, so that a failure or a time limit costs this job alone."""
    applied = f"_on_{asked.apply_rounding}" if asked.apply_rounding else ""
    finer = "" if asked.widths == "2,4" else "_w" + asked.widths.replace(",", "")
    finer += "" if asked.players == "blocks" else f"_{asked.players}"
    name = f"{model}_{rounding}{applied}{finer}"
    work = asked.work / name
    command = [
        sys.executable, "-m", "apportion", "compare", folder, "--out", str(work), "--resume",
        "--text", str(asked.text), "--calibration", str(asked.calibration), "--methods", asked.methods,
        "--rounding", rounding, "--windows", str(asked.windows), "--window-tokens", str(asked.window_tokens),
        "--text-windows", str(asked.text_windows), "--permutations", str(asked.permutations),
        "--group-size", str(asked.group_size), "--dtype", asked.dtype, "--widths", asked.widths,
        "--players", asked.players,
    ]  # fmt: skip
    command += ["--apply-rounding", asked.apply_rounding] if asked.apply_rounding else []
    began = time.monotonic()
    try:
        done = subprocess.run(command, timeout=limit_s, stdout=subprocess.DEVNULL)
        status = f"exit {done.returncode}"
    except subprocess.TimeoutExpired:
        status = f"stopped at its limit of {limit_s:.0f} s"
    print(f"{name}: {status} after {time.monotonic() - began:.0f} s", flush=True)
    if (work / "result.json").exists():
        collect(work, asked.out, model, name, command)


def collect(work: Path, out: Path, model: str, name: str, command: list[str]) -> None:
    """Copy the result with the model's name and its command, and every coalition's values."""
    result = json.loads((work / "result.json").read_text()) | {"model": model}
    result["command"] = shown(["apportion", *command[3:]])
    (out / f"compare_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    for row_name, row in result["methods"].items():
        cells = " ".join(f"{cell['perplexity']:.2f}" for cell in row["budgets"])
        excess, regret = row["excess"]["mean"], (row["regret"] or {"mean": float("nan")})["mean"]
        print(f"  {row_name:14} {cells}  excess {excess:.4f}  regret {regret:.4f}", flush=True)
    if result["optimum"] is not None:
        save_values(work, out / f"values_{name}.npz", result)


def save_values(work: Path, path: Path, result: dict[str, object]) -> None:
    """[coalitions, windows] in the index order of `apportion.bits.compare.optimum`, and what they were measured on."""
    from apportion.bits.compare.optimum import index_of
    from apportion.bits.game import decode, load_samples
    from apportion.core.log import read_log

    samples = load_samples(work / "samples")
    values = np.full((2 ** len(samples.costs.players), len(samples.nll_fp)), np.nan, dtype=np.float32)
    for assignment, nll in samples.values.items():
        values[index_of(assignment)] = nll
    for log in ("calibration.log", "optimum.log"):
        for record in read_log(work / log)[1] if (work / log).exists() else []:
            values[index_of(decode(record["assignment"]))] = record["nll"]
    np.savez_compressed(path, values=values, settings=json.dumps(result["settings"]), model=str(result["model"]))


def profile(asked: argparse.Namespace, folder: str) -> None:
    """What a coalition costs: one block, the head, and both together as the game runs them."""
    import torch

    from apportion.bits.compare.optimum import assignment_at
    from apportion.bits.game import MeasuredGame
    from apportion.bits.game.engine import PlainEngine, engine_for
    from apportion.bits.game.game import block_states, trie_edges
    from apportion.bits.quantize import QuantizeRequest, open_model
    from apportion.bits.recipe import Recipe
    from apportion.models.mixture import read_mixture

    length, count = asked.window_tokens, asked.windows
    recipe = Recipe(windows=count, window_tokens=length, rounding=asked.roundings)
    quantizer = open_model(folder, recipe, QuantizeRequest(dtype=asked.dtype))
    staged, costs = quantizer.staged, quantizer.costs
    windows = read_mixture(asked.calibration, quantizer.tokenizer, length).draw(count, seed=0)
    began = time.monotonic()
    bank = quantizer.bank
    print(f"rounding: {time.monotonic() - began:.1f} s")
    bank.choose_cache(windows.windows.numel())
    ids = windows.windows.to(staged.placement.device)
    embedded = staged.embed(ids)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def each(work: object, times: int = 30) -> float:
        for _ in range(3):
            work()  # type: ignore[operator]
        wait()
        start = time.monotonic()
        for _ in range(times):
            work()  # type: ignore[operator]
        wait()
        return (time.monotonic() - start) / times * 1e3

    for engine in (PlainEngine(bank, embedded, ids), engine_for(bank, embedded, ids)):
        hidden = engine.start
        for block in range(staged.layout.block_count):
            hidden = engine.block(block, (costs.high,), hidden)
        block_ms = each(lambda engine=engine: engine.block(0, (costs.high,), engine.start))
        head_ms = each(lambda engine=engine, hidden=hidden: engine.nll(hidden))
        print(f"{type(engine).__name__}: block {block_ms:.3f} ms, head {head_ms:.3f} ms", flush=True)
    blocks = staged.layout.block_count
    chunk = [assignment_at(place, blocks) for place in range(1024 if torch.cuda.is_available() else 16)]
    game = MeasuredGame(bank, windows)
    game.values(chunk[:4])
    began = time.monotonic()
    game.values(chunk)
    seconds = time.monotonic() - began
    edges = trie_edges(block_states(costs.players, blocks, item) for item in chunk)
    print(
        f"game: {len(chunk)} coalitions, {edges} block forwards in {seconds:.2f} s; "
        f"{seconds / len(chunk) * 1e3:.3f} ms each; 65,536 in {65536 * seconds / len(chunk):.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
