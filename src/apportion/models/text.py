"""Text to token windows: from a file, or sampled from the model itself."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from apportion.core.device import free_memory, within_memory
from apportion.core.errors import ArtifactError, InputError, OutOfMemoryError
from apportion.core.progress import progress
from apportion.core.seeds import derived_seed, stream
from apportion.models.decoding import GROWING
from apportion.models.documents import Conversation, join, read_documents
from apportion.models.staged import StagedModel


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


def read_text(path: Path, tokenizer: Any = None) -> str:
    """A file's documents as one text, with blank lines between plain ones; see `documents` for the forms that are read.

    Args:
        tokenizer: whose chat template conversations are put through.

    Raises:
        InputError: missing, unreadable, too large, not UTF-8, places without a text (all of them named), or
            conversations and no template.
    """
    return join(read_documents(path), lambda messages: rendered(messages, tokenizer, path))


def rendered(messages: Conversation, tokenizer: Any, path: Path) -> str:
    """A conversation as the model is given it.

    Raises:
        InputError: the tokenizer has no chat template, or its template refuses these messages.
    """
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"text {path}: holds conversations, and the model's tokenizer has no chat template",
            "give plain text, or add chat_template.jinja to the model's folder",
        )
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except TemplateError as error:
        raise InputError(
            f"text {path}: the chat template refuses a conversation of {', '.join(m['role'] for m in messages[:6])}: "
            f"{error}",
            "leave such conversations out: most templates want user and assistant in turn",
        ) from error


def encode(
    text: str, tokenizer: Any, window_tokens: int, where: str, bos: bool | None = None
) -> tuple[list[int], Int[Tensor, " stream"]]:
    """The special tokens that every window begins with, and the text's own token ids.

    Args:
        bos: see `prefix_of`.

    Raises:
        InputError: shorter than one window.
    """
    if window_tokens < 2:
        raise InputError(f"--window-tokens {window_tokens}: expected at least 2")
    prefix = prefix_of(tokenizer, bos)
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if prefix and ids[:1] == prefix:  # a chat template wrote it
        ids = ids[1:]
    if len(ids) + len(prefix) < window_tokens:
        raise InputError(
            f"text {where}: {len(ids)} tokens, shorter than one window of {window_tokens}",
            "give a longer text or a smaller --window-tokens",
        )
    return prefix, torch.tensor(ids, dtype=torch.long)


def prefix_of(tokenizer: Any, bos: bool | None = None) -> list[int]:
    """What every window begins with: the beginning-of-text token, or nothing.

    Args:
        bos: whether it does; None: where the tokenizer itself puts one before a text (Gemma and Llama do, Qwen not).

    Raises:
        InputError: it is asked for, and the tokenizer has none.
    """
    if bos and tokenizer.bos_token_id is None:
        raise InputError("--bos always: the tokenizer has no beginning-of-text token", "use --bos auto or never")
    if bos is None:
        own = list(tokenizer("").input_ids)
        bos = bool(own) and own[0] == tokenizer.bos_token_id
    return [int(tokenizer.bos_token_id)] if bos else []


def told(bos: bool | None) -> str:
    """What windows begin with, as people read it; empty where nobody said.

    >>> told(True), told(None)
    (', each after a beginning-of-text token', '')
    """
    if bos is None:
        return ""
    return ", each after a beginning-of-text token" if bos else ", without a beginning-of-text token"


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


def windows_of(
    path: Path, tokenizer: Any, window_tokens: int, *, bos: bool | None = None
) -> Int[Tensor, "windows tokens"]:
    """All windows of a text in reading order; conversations as the model's chat template writes them.

    Args:
        bos: whether each begins with the beginning-of-text token; None: as the tokenizer does.

    Raises:
        InputError: the text cannot be read or is shorter than one window.
    """
    return cut(*encode(read_text(path, tokenizer), tokenizer, window_tokens, str(path), bos), window_tokens)


def choose(available: Int[Tensor, "all tokens"], count: int, seed: int) -> Int[Tensor, "count tokens"]:
    """So many windows at random, in reading order; the same for the same seed."""
    chosen = stream(seed, "calibration").choice(len(available), size=count, replace=False)
    return available[sorted(chosen.tolist())].contiguous()


def unseen_rows(available: Int[Tensor, "all tokens"], used: Int[Tensor, "used tokens"]) -> list[int]:
    """Which windows are not among those used."""
    seen = set(map(tuple, used.tolist()))
    return [index for index, row in enumerate(available.tolist()) if tuple(row) not in seen]


def some(rows: list[int], count: int, seed: int) -> list[int]:
    """So many of some rows, at random, in reading order."""
    chosen = stream(seed, "unseen").choice(rows, size=count, replace=False) if rows else ()
    return sorted(map(int, chosen))


@torch.inference_mode()
def sample_calibration(
    staged: StagedModel, tokenizer: Any, *, windows: int, window_tokens: int, seed: int, bos: bool | None = None
) -> Windows:
    """Windows that the model writes itself: temperature 1, from its own beginning-of-text.

    Args:
        bos: False leaves the token that it began from out of the windows.

    Raises:
        InputError: the tokenizer has neither a beginning- nor an end-of-text token to start from; or `bos`, and it
            has no beginning-of-text token.
    """
    prefix_of(tokenizer, bos)
    hidden = int(bos is False)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise InputError("--calibration: missing, and the tokenizer has no beginning-of-text to sample from")
    prompt = torch.full((windows, 1), start, dtype=torch.long)
    remedy = "give a calibration text, or use smaller --window-tokens or --device cpu"
    seeds = (seed if part == 0 else derived_seed(seed, "part", part) for part in count())
    ids = in_parts(staged, prompt, window_tokens + hidden, start, seeds, windows, remedy)
    begun = not hidden and start == tokenizer.bos_token_id
    return Windows(ids[:, hidden:].contiguous(), "sampled from the model itself", bos=begun)


@torch.inference_mode()
def continue_windows(
    staged: StagedModel, beginnings: Int[Tensor, "windows beginning"], window_tokens: int, seed: int, at_once: int
) -> Int[Tensor, "windows tokens"]:
    """Windows that begin as given and that the model goes on with itself: temperature 1.

    Args:
        beginnings: token ids, the same number of each. window_tokens: of a whole window, the beginning included.
        at_once: windows that are written side by side, half as many whenever memory runs out.

    Raises:
        OutOfMemoryError: one window does not fit.

    Cost: for every `at_once` windows a forward pass of one token each, `window_tokens` times.
    """
    remedy = "use smaller --window-tokens, fewer steps of --tune, --tune-scales, or --device cpu"
    seeds = (derived_seed(seed, "part", part) for part in count())
    return in_parts(staged, beginnings, window_tokens, 0, seeds, at_once, remedy)


def in_parts(
    staged: StagedModel,
    prompts: Int[Tensor, "windows beginning"],
    window_tokens: int,
    pad: int,
    seeds: Iterator[int],
    at_once: int,
    remedy: str,
) -> Int[Tensor, "windows tokens"]:
    """`written_on` for so many windows at once, half as many whenever memory runs out.

    Args:
        seeds: one for each part, the same of a part that is tried again with fewer windows.
        remedy: what the error says where one window does not fit.
    """
    found, left = [prompts.new_empty(0, window_tokens)], prompts

    def part_written(seed: int) -> Tensor:
        return written_on(staged, left[:at_once], window_tokens, pad, seed)

    def shrink() -> None:
        nonlocal at_once
        at_once = min(at_once, len(left)) // 2
        if not at_once:
            raise OutOfMemoryError(
                f"a window of {window_tokens} tokens does not fit into memory while the model writes it", remedy
            )
        free_memory(staged.placement.device)

    while len(left):
        seed = next(seeds)
        found.append(within_memory(partial(part_written, seed), shrink))
        left = left[len(found[-1]) :]
    return torch.cat(found)


def written_on(
    staged: StagedModel, prompt: Int[Tensor, "windows beginning"], window_tokens: int, pad: int, seed: int
) -> Int[Tensor, "windows tokens"]:
    """Prompts and what the model makes of them, on the CPU."""
    device = staged.placement.device
    prompt = prompt.to(device)
    new = window_tokens - prompt.shape[1]
    with (
        torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []),
        progress("sampling text", new, "tokens of each window") as advance,
        sdpa_kernel(GROWING),
    ):
        torch.manual_seed(derived_seed(seed, "self-sampling"))
        ids = staged.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=new,
            max_new_tokens=new,
            pad_token_id=pad,
            stopping_criteria=[watching(advance)],
        )
    found: Tensor = ids.cpu().contiguous()
    return found


def watching(advance: Callable[[int], object]) -> Callable[..., Tensor]:
    """A stopping criterion that never stops: it is asked after every token."""

    def criterion(ids: Tensor, scores: Tensor | None, **_: Any) -> Tensor:
        advance(1)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return criterion


def save_calibration(calibration: Windows, path: Path) -> None:
    """Write windows as safetensors, with their source and digest as metadata."""
    from safetensors.torch import save

    from apportion.core.artifact import without_folders, write_bytes

    metadata = {"source": without_folders(calibration.source), "digest": calibration.digest}
    metadata |= {} if calibration.bos is None else {"bos": str(int(calibration.bos))}
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
            bos = bool(int(metadata["bos"])) if "bos" in metadata else None
            loaded = Windows(file.get_tensor("windows").long(), metadata.get("source", ""), bos)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: no readable windows: {error}", "run the samples step again") from error
    if loaded.digest != metadata.get("digest"):
        raise ArtifactError(f"{path}: windows differ from their digest", "run the samples step again")
    return loaded
