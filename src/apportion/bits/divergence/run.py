"""The command: a reference and candidates, folders or GGUF files alike, compared on a text and on conversations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from apportion.bits.divergence.chat import chat_windows
from apportion.bits.divergence.measure import Reference, divergence_of, reference_of
from apportion.bits.divergence.page import draw, tables
from apportion.bits.divergence.summary import summarize
from apportion.core.artifact import Json, digest_of, plain, versions, write_bytes, write_json
from apportion.core.device import Placement, place
from apportion.core.errors import ArtifactExistsError, InputError, require_all
from apportion.core.output import require_apart
from apportion.models.gguf.load import is_gguf
from apportion.models.gguf.source import GgufFile
from apportion.models.load import load_staged
from apportion.models.pretrained import load_tokenizer, local_folder, require_model
from apportion.models.staged import StagedModel
from apportion.models.text import prefix_of, windows_of

WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What candidates are compared on, and how.

    Attributes:
        text, chat: files; at least one. window_tokens: tokens per window. windows: at most so many of each, None: all.
        bos: whether every window begins with the beginning-of-text token; None: as the reference's tokenizer does.
    """

    text: Path | None = None
    chat: Path | None = None
    window_tokens: int = 512
    windows: int | None = None
    bos: bool | None = None
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    seed: int = 0

    def checks(self) -> list[Callable[[], None]]:
        """What can be refused without a model; each raises InputError for one value."""
        few, short = self.windows is not None and self.windows < 1, self.window_tokens < 2
        return [
            lambda: require(self.text or self.chat, "--text: missing", "give --text FILE, --chat FILE or both"),
            partial(require_file, "--text", self.text),
            partial(require_file, "--chat", self.chat),
            lambda: require(not short, f"--window-tokens {self.window_tokens}: expected at least 2", "e.g. 512"),
            lambda: require(
                not few, f"--windows {self.windows}: expected at least 1", "leave it out for all of a text"
            ),
        ]


def require(condition: object, problem: str, remedy: str) -> None:
    if not condition:
        raise InputError(problem, remedy)


def require_file(option: str, path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise InputError(f"{option} {path}: no such file", "give a .txt or .jsonl file")


def compare(reference: str, candidates: Sequence[str], ask: Measurement, out: Path | None = None) -> Json:
    """Compare candidates with a reference.

    Args:
        reference: folder or GGUF file of the model in full precision. candidates: likewise, of any precision.
        out: a folder for `divergence.json`, `divergence.md` and a plot for each text; none is written if left out.

    Returns:
        What is written as `divergence.json`: `candidates` with their bytes and, by text, every field of `Divergence`.

    Raises:
        InputError: unusable options, models or texts, or a candidate of another vocabulary.
        ArtifactExistsError: `out` is a file, or lies in a model's folder.

    Cost: one forward pass of the reference and of every candidate over the texts; the reference's hidden states
    (tokens x hidden) stay in memory.

    Example:
        >>> ask = Measurement(text=TEXT, window_tokens=32, windows=4, device="cpu")
        >>> found = compare(MODEL, [MODEL], ask)["candidates"][0]["texts"]["text"]
        >>> round(found["kl_mean"]["mean"], 6) == 0, found["same_top"]["mean"], found["tokens"]
        (True, 1.0, 124)
    """
    require_folder(out, [reference, *candidates])
    require_all(*ask.checks(), *(partial(require_readable, name) for name in (reference, *candidates)))
    placement = place(ask.device, ask.dtype)
    staged, tokenizer = opened(reference, placement, ask)
    texts = {name: first(windows, ask.windows) for name, windows in texts_of(ask, tokenizer).items()}
    references = {name: reference_of(staged, windows) for name, windows in texts.items()}
    found = [measured(name, references, tokenizer, placement, ask) for name in candidates]
    begun = bool(prefix_of(tokenizer, ask.bos))
    result: Json = {
        "reference": reference,
        "exact": "all of the vocabulary, from the reference's hidden states after its last block",
        "texts": {name: {**described(name, windows, found, ask), "bos": begun} for name, windows in texts.items()},
        "candidates": found,
        "placement": placement,
        "versions": versions("torch", "transformers", "gguf"),
    }
    saved: Json = plain(result)
    if out is not None:
        write(saved, out)
    return saved


def require_folder(out: Path | None, models: Sequence[str]) -> None:
    """Refuse, before anything is measured, what cannot be written to, and folders that are only read.

    Raises:
        ArtifactExistsError: saying which.
    """
    if out is None:
        return
    require_apart(out, models)
    if out.exists() and not out.is_dir():
        raise ArtifactExistsError(f"--out {out}: is a file, expected a folder", "choose another --out")


def measured(
    name: str, references: Mapping[str, Reference], tokenizer: Any, placement: Placement, ask: Measurement
) -> Json:
    """One candidate on every text."""
    staged, own = opened(name, placement, ask)
    require_same_tokens(name, tokenizer, own)
    return {
        "name": shown(name),
        "path": name,
        "bytes": weight_bytes(Path(name) if is_gguf(name) else local_folder(name)),
        "texts": {text: summarize(divergence_of(kept, staged), seed=ask.seed) for text, kept in references.items()},
    }


def opened(name: str, placement: Placement, ask: Measurement) -> tuple[StagedModel, Any]:
    """Model and tokenizer of a folder or a GGUF file."""
    remote = ask.trust_remote_code
    return load_staged(name, placement, trust_remote_code=remote), load_tokenizer(name, trust_remote_code=remote)


def require_readable(name: str) -> None:
    """Refuse what is no model, before any is read."""
    if is_gguf(name):
        GgufFile(Path(name))
    else:
        require_model(name)


def texts_of(ask: Measurement, tokenizer: Any) -> dict[str, Int[Tensor, "windows tokens"]]:
    """Windows of the texts asked for, by name."""
    found = {}
    if ask.text is not None:
        found["text"] = windows_of(ask.text, tokenizer, ask.window_tokens, bos=ask.bos)
    if ask.chat is not None:
        found["chat"] = chat_windows(ask.chat, tokenizer, ask.window_tokens, ask.bos)
    return found


def first(windows: Int[Tensor, "all tokens"], count: int | None) -> Int[Tensor, "windows tokens"]:
    """The first so many windows.

    Raises:
        InputError: there are fewer.
    """
    if count is not None and count > len(windows):
        raise InputError(
            f"--windows {count}: the text has {len(windows)} windows of {windows.shape[1]} tokens",
            f"give a number from 1 to {len(windows)}",
        )
    return windows[:count]


def require_same_tokens(name: str, reference: Any, candidate: Any) -> None:
    """Refuse a candidate whose tokenizer numbers its tokens in another way: its logits would mean something else.

    Raises:
        InputError: naming the first token that differs.
    """
    theirs, own = reference.get_vocab(), candidate.get_vocab()
    differing = [token for token, index in theirs.items() if own.get(token, index) != index]
    if differing:
        token = min(differing, key=theirs.__getitem__)
        raise InputError(
            f"CANDIDATE {name}: token {token!r} is number {own[token]} and the reference's {theirs[token]}",
            "compare models of one vocabulary",
        )


def weight_bytes(path: Path) -> int:
    """Bytes of the weight files: of a GGUF file all of it."""
    files = [path] if path.is_file() else [item for item in path.iterdir() if item.suffix in WEIGHTS]
    return sum(item.stat().st_size for item in files)


def shown(name: str) -> str:
    """A path's last part, and the one before it where that says more.

    >>> shown("models/smol/hf"), shown("out/model-q4.gguf")
    ('smol/hf', 'model-q4.gguf')
    """
    path = Path(name)
    return path.name if path.suffix == ".gguf" or not path.parent.name else f"{path.parent.name}/{path.name}"


def described(name: str, windows: Int[Tensor, "windows tokens"], found: Sequence[Json], ask: Measurement) -> Json:
    """What a text was."""
    path = ask.text if name == "text" else ask.chat
    assert path is not None
    return {
        "source": path.name,
        "windows": len(windows),
        "window_tokens": windows.shape[1],
        "tokens": len(windows) * (windows.shape[1] - 1),
        "digest": digest_of(windows.tolist()),
        "reference_perplexity": found[0]["texts"][name].reference_perplexity,
    }


def write(result: Json, out: Path) -> None:
    """The comparison as JSON, Markdown and plots."""
    write_json(out / "divergence.json", result)
    write_bytes(out / "divergence.md", "\n".join(tables(result)).encode())
    for text in result["texts"]:
        write_bytes(out / f"divergence-{text}.png", draw(result["candidates"], text))
