"""Our GGUF files beside llama.cpp's standard mixes at the same bytes: mean KL on held-out text and on conversations.

    prepare   tokenized text and the mixes' types (by `llama-quantize --dry-run`), on a machine with the tools
    run       everything measured: no tokenizer and no network needed; goes on where it was cut off

`make results` makes the tables from the saved JSON.

The mixes' types are those that `llama-quantize` (ik-llama-cpp-python's binary, with an importance matrix) chooses for
the very file; its types that llama.cpp does not have are replaced by what llama.cpp has in their place (`THEIRS`).
Weights of mixes and of ours are encoded by the same ggml with the same importance, so a mix here is the file that
llama.cpp would write.
"""

import argparse
import json
import re
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import own_command
from torch import Tensor

from apportion.bits.divergence import Reference, TokenDivergence, divergence_of, summarize
from apportion.bits.divergence.summary import kl_difference
from apportion.bits.gguf.bank import GgufBank, encode_all
from apportion.bits.gguf.finals import judged
from apportion.bits.gguf.fisher import Fisher
from apportion.bits.gguf.game import FileGame
from apportion.bits.gguf.ladders import DEFAULT_TYPES
from apportion.bits.gguf.mixes import assignment_of
from apportion.bits.gguf.plan import FilePlan, described_plan, write_file
from apportion.bits.gguf.recipe import FileRequest
from apportion.bits.gguf.search import falling, search_file
from apportion.bits.gguf.workshop import FINALS, Text, Workshop
from apportion.bits.plan.search import relaxed
from apportion.bits.rounding.ggml import quantize
from apportion.core.artifact import digest_of, plain
from apportion.core.device import place
from apportion.formats.ggml import GgmlWeight, ggml_width, resolve
from apportion.formats.gguf_file import TensorEntry, file_bytes
from apportion.models.gguf.load import staged_file
from apportion.models.gguf.source import FileSource, GgufFile
from apportion.models.text import Windows

MIXES = ("Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M")
IQ_MIXES = ("IQ2_XS", "IQ2_M", "IQ3_XXS", "IQ3_M", "IQ4_XS")
THEIRS = {"Q6_0": "Q5_1", "IQ4_K": "Q4_K", "IQ5_K": "Q5_K"}
ALIKE = ("Q3_K", "IQ4_NL", "Q4_K", "Q5_K", "Q6_K", "Q8_0")  # of all matrices, as their columns allow
WINDOW = 512


def prepare(arguments: argparse.Namespace) -> None:
    """Write tokens.npz and mixes.json for a model."""
    from apportion.bits.divergence.chat import chat_windows
    from apportion.models.pretrained import load_tokenizer
    from apportion.models.text import windows_of

    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(str(arguments.hf))
    texts = {
        "calibration": windows_of(arguments.calibration, tokenizer, WINDOW)[:448],
        "text": windows_of(arguments.text, tokenizer, WINDOW)[: arguments.windows],
    }
    if getattr(tokenizer, "chat_template", None):
        texts["chat"] = chat_windows(arguments.chat, tokenizer, WINDOW)[: arguments.windows]
    np.savez_compressed(
        out / "tokens.npz", **{name: windows.numpy().astype(np.int32) for name, windows in texts.items()}
    )
    (out / "mixes.json").write_text(json.dumps({name: mix_types(arguments, name) for name in MIXES + IQ_MIXES}))
    print({name: tuple(windows.shape) for name, windows in texts.items()})


def mix_types(arguments: argparse.Namespace, mix: str) -> dict[str, str]:
    """Type of every matrix in a standard mix."""
    command = [
        arguments.llama_quantize,
        "--imatrix",
        arguments.imatrix,
        "--dry-run",
        "--allow-requantize",
        arguments.bf16,
        "x.gguf",
        mix,
        "1",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", check=False)
    own = GgufFile(arguments.bf16)  # a matrix that has its type already is not converted, nor named
    found, name = {name: own.types[name] for name, shape in own.shapes.items() if len(shape) > 1}, ""
    for line in (done.stdout + done.stderr).splitlines():
        if match := re.match(r"\[ *\d+/ *\d+\]\s+(\S+) - ", line):
            name = match[1]
        if match := re.search(r"converting to (\w+)", line):
            kind = match[1].upper()
            found[name] = THEIRS.get(kind, kind)
    assert name, "llama-quantize named no types"
    return found


class Held(GgufFile):
    """A file whose tensors may all be decoded at once and kept."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.held: dict[str, Tensor] = {}

    def hold(self, threads: int | None) -> None:
        with ThreadPoolExecutor(threads) as pool:
            self.held = dict(zip(self.types, pool.map(self.decoded, self.types), strict=True))

    def weight(self, name: str) -> Tensor:
        return self.held[name] if name in self.held else self.decoded(name)

    def decoded(self, name: str) -> Tensor:
        return super().weight(name)


class RoundedFile(Held):
    """A quantized file's weights as a bfloat16 checkpoint has them: the reference of every figure here."""

    def decoded(self, name: str) -> Tensor:
        found = super().decoded(name)
        return found.to(torch.bfloat16) if found.dim() > 1 else found


class OffGrid(Held):
    """A quantized file's weights, each moved by uniform noise within its step: a reference of no grid.

    Weights of a file in Q4_1 or Q5_0 lie on grids that other ggml types hold exactly, mixes and ours alike; a model
    that was trained has no such grid.
    """

    def decoded(self, name: str) -> Tensor:
        found = super().decoded(name).float()
        levels = 2 ** int(match[1]) - 1 if (match := re.match(r"I?Q(\d)", self.types[name])) else 0
        if not levels:
            return found
        groups = found.reshape(-1, 32)
        step = (groups.amax(1) - groups.amin(1))[:, None] / levels
        noise = torch.rand(groups.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        return (groups + step * (noise - 0.5)).view(found.shape)


def opened(path: Path, request: FileRequest, *, off_grid: bool = False, in_memory: bool = False) -> Workshop:
    """The model in bfloat16, as the Hugging Face folder made of this file has it; or moved off its grid."""
    file = OffGrid(path) if off_grid else RoundedFile(path)
    if in_memory:
        file.hold(request.threads)
    return Workshop(staged_file(file, place(request.device, request.dtype)), None, FileSource(file), request)


class Bench:
    """One model: its plans and mixes, and their divergence on the held-out texts."""

    def __init__(self, shop: Workshop, texts: Mapping[str, Tensor]) -> None:
        self.shop, self.bank = shop, shop.bank
        self.bank.restore()
        shop.staged.forget_texts()
        self.references = {
            name: Reference(windows, shop.staged.last_hidden(windows), self.bank.original_logits)
            for name, windows in texts.items()
        }

    def measured(
        self, types: Mapping[str, str], texts: Collection[str] = ("text", "chat")
    ) -> dict[str, TokenDivergence]:
        """Divergence with every matrix in a named type, on some of the texts."""
        for name in self.shop.ladders.names:
            self.put(name, types[name])
        self.shop.staged.forget_texts()
        found = {
            name: divergence_of(reference, self.shop.staged)
            for name, reference in self.references.items()
            if name in texts
        }
        self.bank.restore()
        self.shop.staged.forget_texts()
        return found

    def put(self, name: str, kind: str) -> None:
        encoded: dict[tuple[str, str], GgmlWeight] = self.bank.encoded  # type: ignore[assignment]
        if (name, kind) not in encoded:
            weight = self.shop.source.weight(name).float()
            threads = self.shop.request.threads
            encoded[name, kind] = quantize(weight, ggml_width(kind), self.shop.importance.get(name), threads=threads)
        self.bank.parameters[name].data = self.bank.decoded(name, kind).to(self.shop.staged.compute_dtype)

    def bytes_of(self, types: Mapping[str, str]) -> int:
        """Of the whole file."""
        shapes, fixed = self.shop.source.shapes, self.shop.ladders.fixed
        entries = {name: TensorEntry(types[name] if name in types else fixed[name], s) for name, s in shapes.items()}
        return file_bytes(self.shop.fields, entries)


def run(arguments: argparse.Namespace) -> None:
    """Measure one model at the sizes of all mixes; sizes that the result holds already are not measured again."""
    began = time.monotonic()
    tokens = {name: torch.from_numpy(a.astype(np.int64)) for name, a in np.load(arguments.work / "tokens.npz").items()}
    mixes = json.loads((arguments.work / "mixes.json").read_text())
    shop = workshop(arguments, tokens.pop("calibration"))
    marks = {"loading": time.monotonic() - began}
    log("loaded", marks)
    kept(shop, arguments)
    marks["encoding"] = shop.bank.seconds
    log("encoded", marks)
    at = time.monotonic()
    fisher = kept_costs(shop, arguments)
    marks["costs alone"] = time.monotonic() - at
    log("costs alone", marks)
    asked = [name for name in arguments.texts.split(",") if name in tokens]
    bench = Bench(shop, {name: tokens[name][: arguments.text_windows, : arguments.tokens] for name in asked})
    result: dict[str, Any] = {
        "model": arguments.name, "command": own_command(), "types": shop.request.types, "seconds": marks,
        "costs_error": fisher.error, "sizes": {},
    }  # fmt: skip
    if arguments.out.exists():
        earlier = json.loads(arguments.out.read_text())
        result["sizes"] = earlier["sizes"]
        marks |= earlier["seconds"]  # of the run that did the work
    games = shop.game(), FileGame(shop.bank, shop.text.finals)
    for mix in arguments.mixes.split(","):
        if mix in result["sizes"] or over(began, arguments):
            continue
        types = {name: mixes[mix][name] for name in shop.ladders.names}
        if bench.bytes_of(types) < shop.ladders.costs.smallest():
            print(f"{mix}: {bench.bytes_of(types):,} bytes, less than the smallest file of these types", flush=True)
            continue
        one, plan = one_size(bench, games, mix, types)
        result["sizes"][mix] = plain(one)
        if arguments.write:
            assert write_file(shop, plan, arguments.write / f"{arguments.name}-{mix}.gguf") <= plan.max_bytes
        log(mix, {k: v["text"]["kl_mean"]["mean"] for k, v in result["sizes"][mix]["found"].items()})
        save(arguments, result)
    result["uniform"] = {}
    for kind in ALIKE if arguments.uniform and not over(began, arguments) else ():
        result["uniform"][kind] = uniform_type(bench, kind)
        save(arguments, result)
    result["costs"] = {"tensors": shop.ladders.names, "types": shop.ladders.types, "kl": np.round(fisher.costs, 8)}
    marks["all"] = time.monotonic() - began
    save(arguments, result)
    log("done", marks)


def over(began: float, arguments: argparse.Namespace) -> bool:
    """Whether no more is begun."""
    return time.monotonic() - began > 60 * arguments.minutes


def workshop(arguments: argparse.Namespace, calibration: Tensor) -> Workshop:
    """The model, with its calibration text divided: plans, finals, importance and costs share no window."""
    request = FileRequest(
        max_bytes=1,
        types=tuple(arguments.types.split(",")),
        windows=arguments.search_windows,
        window_tokens=WINDOW,
        sequences=arguments.sequences,
        sequence_tokens=arguments.sequence_tokens,
        evaluations=arguments.evaluations,
        threads=arguments.threads,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    shop = opened(arguments.gguf, request, off_grid=arguments.off_grid, in_memory=arguments.in_memory)
    split, length = arguments.search_windows, arguments.tokens
    rest = calibration[split + FINALS * split :]
    costs = rest[arguments.importance :][: -(-arguments.sequences // (WINDOW // arguments.sequence_tokens))]
    shop.__dict__["text"] = Text(
        Windows(calibration[:split, :length].contiguous(), "C4"),
        Windows(calibration[split : split + FINALS * split, :length].contiguous(), "C4"),
        rest[: arguments.importance],
        costs,
        calibration[-8:],
    )
    return shop


def kept(shop: Workshop, arguments: argparse.Namespace) -> None:
    """Importance and encoded matrices, made once for the same model, types and text."""
    asked = [shop.staged.digest, *shop.request.types, str(arguments.importance), str(arguments.search_windows)]
    path = arguments.work / f"encoded-{digest_of(asked)[:12]}.pt"
    if path.exists():
        shop.__dict__["importance"], encoded, seconds = torch.load(path, weights_only=False)
    else:
        encoded, seconds = encode_all(shop.source, shop.ladders, shop.importance, arguments.threads)
        if not arguments.in_memory:
            torch.save((shop.importance, encoded, seconds), path)
    shop.__dict__["bank"] = GgufBank(
        shop.staged, shop.source, shop.ladders, encoded, seconds, arguments.decoded_gb << 30
    )
    shop.bank.decode_all(arguments.threads)


def kept_costs(shop: Workshop, arguments: argparse.Namespace) -> Fisher:
    """The costs alone, made once."""
    asked = [shop.staged.digest, *shop.request.types, *map(str, shop.text.costs.shape), str(shop.request.sequences)]
    path = arguments.work / f"costs-{digest_of(asked)[:12]}.pt"
    if path.exists():
        shop.__dict__["fisher"] = torch.load(path, weights_only=False)
    torch.save(shop.fisher, path)
    return shop.fisher


def one_size(
    bench: Bench, games: tuple[FileGame, FileGame], name: str, mix: Mapping[str, str]
) -> tuple[dict[str, Any], FilePlan]:
    """A mix, our plan at its bytes, and our plan by the costs alone."""
    shop, ladders = bench.shop, bench.shop.ladders
    began, size = time.monotonic(), bench.bytes_of(mix)
    budget = min(size, ladders.costs.largest()) - ladders.costs.fixed_bytes
    rival = assignment_of(ladders, mix)
    state = search_file(
        games[0], ladders.costs, shop.fisher.costs, budget, evaluations=shop.request.evaluations,
        seed=shop.request.seed, rivals={} if rival is None else {rival: f"standard mix {name}"},
    )  # fmt: skip
    met = judged(state, games[1])
    seconds = time.monotonic() - began
    plan = described_plan(shop, state, met[0].assignment, size, met[0].source)
    alone = relaxed(falling(shop.fisher.costs), ladders.costs.bytes, budget)
    plans = {"mix": mix, "ours": ladders.chosen(plan.assignment), "costs alone": ladders.chosen(alone)}
    figures: dict[str, dict[str, TokenDivergence]] = {}
    for own, types in plans.items():
        same = next((found for other, found in figures.items() if plans[other] == types), None)
        figures[own] = same or bench.measured(types, ("text",) if own == "costs alone" else ("text", "chat"))
    found = {
        "bytes": {name: bench.bytes_of(types) for name, types in plans.items()},
        "found": {name: {text: summarize(one) for text, one in by.items()} for name, by in figures.items()},
        "difference": {text: kl_difference(figures["ours"][text], figures["mix"][text]) for text in figures["mix"]},
        "types": {name: dict(Counter(types.values())) for name, types in plans.items()},
        "ends": {own: {k: t for k, t in types.items() if not k.startswith("blk.")} for own, types in plans.items()},
        "plan": plans["ours"],
        "finalists": [{"source": one.source, "measured": one.measured, "judged": one.judged} for one in met],
        "search": {"seconds": seconds, "source": plan.source, "evaluations": len(state.seen), "misfit": state.misfit},
    }  # fmt: skip
    return found, plan


def uniform_type(bench: Bench, kind: str) -> dict[str, Any]:
    """A type for all matrices alike, as far as their columns allow."""
    types = {name: resolve(kind, bench.shop.source.shapes[name][1]) for name in bench.shop.ladders.names}
    found = {text: summarize(one) for text, one in bench.measured(types, ("text",)).items()}
    log(f"all {kind}", {text: one.kl_mean.mean for text, one in found.items()})
    return {"bytes": bench.bytes_of(types), "types": dict(Counter(types.values())), "found": found}


def log(what: str, values: Mapping[str, float]) -> None:
    print(what, {key: round(value, 5) for key, value in values.items()}, flush=True)


def save(arguments: argparse.Namespace, result: Mapping[str, Any]) -> None:
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(plain(result), indent=1))


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = root.add_subparsers(required=True)
    one = steps.add_parser("prepare")
    for name in ("--hf", "--bf16", "--imatrix", "--llama-quantize", "--calibration", "--text", "--chat", "--out"):
        one.add_argument(name, type=Path, required=True)
    one.add_argument("--windows", type=int, default=64)
    one.set_defaults(step=prepare)
    two = steps.add_parser("run")
    for name in ("--gguf", "--work", "--out"):
        two.add_argument(name, type=Path, required=True)
    two.add_argument("--name", required=True)
    two.add_argument("--types", default=",".join(DEFAULT_TYPES))
    two.add_argument("--device", default="auto")
    two.add_argument("--dtype", default="auto")
    two.add_argument("--write", type=Path, help="folder for our files")
    two.add_argument("--texts", default="text,chat", help="that files are measured on")
    two.add_argument("--text-windows", type=int, default=64)
    two.add_argument("--tokens", type=int, default=WINDOW, help="of each window that plans and files are measured on")
    two.add_argument("--off-grid", action="store_true", help="the GGUF is quantized: move its weights off their grid")
    two.add_argument("--threads", type=int, help="of ggml's quantizer")
    two.add_argument("--decoded-gb", type=int, default=8, help="decoded weights that are kept")
    two.add_argument("--uniform", action="store_true", help="a type for all matrices alike, too")
    two.add_argument("--sequence-tokens", type=int, default=128)
    two.add_argument("--mixes", default=",".join(MIXES))
    two.add_argument("--in-memory", action="store_true", help="decode the file once; encoded matrices are not saved")
    two.add_argument("--minutes", type=float, default=1e9, help="after which no more is begun")
    for name, default in (("search-windows", 16), ("importance", 128), ("sequences", 32), ("evaluations", 24)):
        two.add_argument(f"--{name}", type=int, default=default)
    two.set_defaults(step=run)
    return root


if __name__ == "__main__":
    asked = parser().parse_args()
    asked.step(asked)
