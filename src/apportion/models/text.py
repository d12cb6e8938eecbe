"""Text to token windows: from a file, or sampled from the model itself."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from apportion.core.errors import ArtifactError, InputError
from apportion.core.progress import progress
from apportion.core.seeds import derived_seed, stream
from apportion.models.staged import StagedModel

MAX_TEXT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Windows:
    """Token windows of one length, and where they came from.

    Attributes:
        windows: token ids, one window a row.
        source: the file they were cut from, or that the model sampled them itself.
        bos: whether every window begins with the beginning-of-text token of the model: Gemma's perplexity explodes
            without it. None where nobody said.
    """

    windows: Int[Tensor, "windows tokens"]
    source: str
    bos: bool | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of shape and token ids."""
        header = f"{tuple(self.windows.shape)}\n".encode()
        return hashlib.sha256(header + self.windows.long().contiguous().numpy().tobytes()).hexdigest()


def read_text(path: Path) -> str:
    """A `.jsonl` file's `text` fields joined by blank lines; any other file as one string.

    Raises:
        InputError: missing, unreadable, too large, not UTF-8, or lines without a text (all of them named).
    """
    if not path.is_file():
        raise InputError(f"text {path}: no such file", "give a .txt file, or a .jsonl file with a 'text' field")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(f"text {path}: {path.stat().st_size:,} bytes, at most {MAX_TEXT_BYTES:,} are read")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"text {path}: is not UTF-8 text ({error.reason})", "convert it to UTF-8") from error
    except OSError as error:
        raise InputError(f"text {path}: cannot be read: {error.strerror}", "check its permissions") from error
    return join_jsonl(content, path) if path.suffix == ".jsonl" else content


def join_jsonl(content: str, path: Path) -> str:
    texts, bad = [], []
    # not splitlines: it also cuts at U+2028 and others, which JSON allows inside a string
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            texts.append(json.loads(line)["text"])
            if not isinstance(texts[-1], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            bad.append(number)
    if bad:
        listed = ", ".join(map(str, bad[:10])) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise InputError(f"text {path}: no string field 'text' on line {listed}", "one JSON object per line")
    return "\n\n".join(texts)


def encode(text: str, tokenizer: Any, window_tokens: int, where: str) -> tuple[list[int], Int[Tensor, " stream"]]:
    """The special tokens that this tokenizer puts before a text, and the text's own token ids.

    Raises:
        InputError: shorter than one window.
    """
    if window_tokens < 2:
        raise InputError(f"--window-tokens {window_tokens}: expected at least 2")
    prefix = list(tokenizer("").input_ids)
    prefix = prefix[:1] if prefix and prefix[0] == tokenizer.bos_token_id else []
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) + len(prefix) < window_tokens:
        raise InputError(
            f"text {where}: {len(ids)} tokens, shorter than one window of {window_tokens}",
            "give a longer text or a smaller --window-tokens",
        )
    return prefix, torch.tensor(ids, dtype=torch.long)


def cut(prefix: list[int], ids: Int[Tensor, " stream"], window_tokens: int) -> Int[Tensor, "windows tokens"]:
    """Non-overlapping windows in reading order, each beginning with the prefix (Gemma needs its bos)."""
    body = window_tokens - len(prefix)
    count = len(ids) // body
    windows = ids[: count * body].view(count, body)
    return torch.cat([torch.tensor(prefix, dtype=torch.long).expand(count, -1), windows], dim=1)


def require_windows(available: Int[Tensor, "all tokens"], windows: int, path: Path) -> None:
    """Refuse a text with fewer windows than asked for.

    Raises:
        InputError: saying how many there are.
    """
    if len(available) < windows:
        raise InputError(
            f"--windows {windows}: {path} has only {len(available)} windows of {available.shape[1]} tokens",
            "give a longer text, fewer --windows or a smaller --window-tokens",
        )


def calibrate(path: Path, tokenizer: Any, *, windows: int, window_tokens: int, seed: int) -> Windows:
    """Choose windows of a text at random, without overlap, in reading order; the same for the same seed.

    Raises:
        InputError: the text has fewer windows than asked for.
    """
    available = windows_of(path, tokenizer, window_tokens)
    require_windows(available, windows, path)
    return Windows(choose(available, windows, seed), str(path))


def windows_of(path: Path, tokenizer: Any, window_tokens: int) -> Int[Tensor, "windows tokens"]:
    """All windows of a text in reading order.

    Raises:
        InputError: the text cannot be read or is shorter than one window.
    """
    return cut(*encode(read_text(path), tokenizer, window_tokens, str(path)), window_tokens)


def choose(available: Int[Tensor, "all tokens"], count: int, seed: int) -> Int[Tensor, "count tokens"]:
    """So many windows at random, in reading order; the same for the same seed."""
    chosen = stream(seed, "calibration").choice(len(available), size=count, replace=False)
    return available[sorted(chosen.tolist())].contiguous()


def unseen_windows(
    available: Int[Tensor, "all tokens"], used: Int[Tensor, "used tokens"], *, windows: int, seed: int
) -> Int[Tensor, "unseen tokens"]:
    """At most so many windows, at random, that are not among those used; none if there are none."""
    seen = set(map(tuple, used.tolist()))
    left = [index for index, row in enumerate(available.tolist()) if tuple(row) not in seen]
    chosen = stream(seed, "unseen").choice(left, size=min(windows, len(left)), replace=False) if left else np.zeros(0)
    return available[sorted(map(int, chosen))].contiguous()


@torch.inference_mode()
def sample_calibration(staged: StagedModel, tokenizer: Any, *, windows: int, window_tokens: int, seed: int) -> Windows:
    """Windows that the model writes itself: temperature 1, from its own beginning-of-text.

    Raises:
        InputError: the tokenizer has neither a beginning- nor an end-of-text token to start from.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise InputError("--calibration: missing, and the tokenizer has no beginning-of-text to sample from")
    device = staged.placement.device
    prompt = torch.full((windows, 1), start, dtype=torch.long, device=device)
    with (
        torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []),
        progress("sampling text", window_tokens - 1, "tokens of each window") as advance,
    ):
        torch.manual_seed(derived_seed(seed, "self-sampling"))
        ids = staged.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=window_tokens - 1,
            max_new_tokens=window_tokens - 1,
            pad_token_id=start,
            stopping_criteria=[watching(advance)],
        )
    return Windows(ids.cpu().contiguous(), "sampled from the model itself")


def watching(advance: Callable[[int], object]) -> Callable[..., Tensor]:
    """A stopping criterion that never stops: it is asked after every token."""

    def criterion(ids: Tensor, scores: Tensor | None, **_: Any) -> Tensor:
        advance(1)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return criterion


def save_calibration(calibration: Windows, path: Path) -> None:
    """Write windows as safetensors, with their source and digest as metadata."""
    from safetensors.torch import save

    from apportion.core.artifact import write_bytes

    metadata = {"source": calibration.source, "digest": calibration.digest}
    write_bytes(path, save({"windows": calibration.windows.to(torch.int32)}, metadata=metadata))


def load_calibration(path: Path) -> Windows:
    """Read windows back.

    Raises:
        ArtifactError: missing, unreadable, or not what was saved.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            loaded = Windows(file.get_tensor("windows").long(), metadata.get("source", ""))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: no readable windows: {error}", "run the samples step again") from error
    if loaded.digest != metadata.get("digest"):
        raise ArtifactError(f"{path}: windows differ from their digest", "run the samples step again")
    return loaded
