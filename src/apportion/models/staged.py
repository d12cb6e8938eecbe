"""A causal LM cut into embed -> blocks -> head, run with the model's own code.

The cut needs no knowledge of any architecture. To embed, the model's own forward runs with every block
replaced by a recorder that passes its input through: what reaches block 0 is the embedded text (Gemma's scale
included), and what each block is called with besides (masks by layer type, rotary embeddings) is kept.
To get logits from hidden states, the same forward runs with the last block replaced by one that returns
those states: final norm, output embedding and soft-capping are the model's own.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from apportion.core.device import Placement, free_memory, where_not_finite, within_memory
from apportion.core.errors import ModelStructureError, NumericError, OutOfMemoryError
from apportion.core.progress import Advance, counted, ignored
from apportion.formats import Packed
from apportion.models.calls import (
    Call,
    Rest,
    forward_options,
    require_causal,
    require_same_calls,
    require_tokens,
    returns_of,
    without_masks,
)
from apportion.models.embedded import KEPT_BYTES, Embedded, EmbeddedTexts, in_place
from apportion.models.loss import mean_nll
from apportion.models.origin import Origin, foreign, origin_of_model, own_weights
from apportion.models.parameters import cast_parameters, parameter_digest, swapped
from apportion.models.structure import Layout, find_layout

# logits in flight: a CPU reads the whole head for every handful of tokens (at 32 MiB Qwen2.5-Coder-0.5B's took twice as
# long, LOG.md); a GPU waits for launches, and may hold several processes
HEAD_BYTES = 512 << 20
BLOCK_TOKENS = {"cpu": 2048, "cuda": 32768}
LEAST_HEAD_BYTES = 16 << 20
Made = TypeVar("Made")
VERIFY_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


class StagedModel:
    """A causal LM whose blocks can be run one at a time.

    Attributes:
        model: the transformers model, in the compute dtype, on the compute device, in eval mode.
        layout: where its blocks and their linears are.
        dtype: the dtype that the model was loaded in.
        origin: the checkpoint's tensors as its files have them, in the format `stored_as` (empty: plain).
        originals: the weights of its blocks' linears by module path, as the files have them.
        digest: SHA-256 over names, shapes, dtypes and bytes of all parameters.
        block_tokens, head_bytes: tokens that a block, and bytes of logits that the head, is given at once; `shrink`
            halves both where memory runs out.
        untaught: linears that no calibration text reached (experts), rounded as without one.
        embeddings: how often a text was embedded. given_up: what was given up where memory ran out, in order.
    """

    def __init__(
        self,
        model: nn.Module,
        placement: Placement,
        *,
        source: str = "",
        origin: Origin | None = None,
        stored_as: str = "",
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.source = source
        self.placement = placement
        found = find_layout(model)
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.digest = parameter_digest(model)
        self.compute_dtype: torch.dtype = getattr(torch, placement.dtype)
        self.origin: Origin = origin or origin_of_model(model)
        self.stored_as = stored_as
        self.layout: Layout = found.without(foreign(model, self.origin, found.paths()), "no tensor of its own")
        self.originals: dict[str, Tensor] = own_weights(model, self.origin, self.layout.paths())
        cast_parameters(self.model.to(device=placement.device), self.compute_dtype)
        self._full: dict[str, Tensor] = {
            path: self.model.get_parameter(f"{path}.weight").data for path in self.originals
        }
        kind = torch.device(placement.device).type
        self.block_tokens, self.head_bytes = BLOCK_TOKENS.get(kind, 2048), HEAD_BYTES
        self.embeddings = 0
        self.untaught: set[str] = set()
        self.given_up: list[str] = []
        self._outside: dict[str, Tensor] = {}  # own weights of embedding and head, while others are in place
        self._embedded = EmbeddedTexts()

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.get_submodule(self.layout.prefix))

    def linear(self, block: int, linear: str) -> nn.Linear:
        module = self.model.get_submodule(self.layout.path(block, linear))
        assert isinstance(module, nn.Linear)
        return module

    def restore(self) -> None:
        """Put the checkpoint's own weights back into every linear."""
        for path, weight in self._full.items():
            self.model.get_submodule(path).weight.data = weight

    def keep(self, paths: Collection[str], reason: str) -> None:
        """Never quantize some linears: they are no longer among `layout.linears` and `originals`."""
        self.layout = self.layout.without(paths, reason)
        self.originals = {path: weight for path, weight in self.originals.items() if path not in paths}

    def forget_texts(self) -> None:
        """Embed texts anew: what was embedded before was so with another embedding."""
        self._embedded.clear()

    def embed_anew(self, windows: Int[Tensor, "windows tokens"]) -> Embedded:
        """As `embed`, with the embedding that is in place now, and nothing kept."""
        return self._embed(windows)

    def own_weight(self, path: str) -> Tensor:
        """A linear's weight as the checkpoint has it, in the compute dtype on the compute device."""
        return self._full[path]

    @contextmanager
    def in_place(self, packed: Mapping[str, Packed]) -> Iterator[None]:
        """The model with other weights, by module path, decoded; with the checkpoint's own again afterwards.

        Tied modules are one: what is given to the embedding is the head's too.
        """
        weights = {path: item.dequantize(self.compute_dtype).to(self.placement.device) for path, item in packed.items()}
        try:
            with swapped(self.model, weights) as own:
                self._outside = {path: weight for path, weight in own.items() if path not in self._full}
                yield
        finally:
            self._outside = {}
            self.restore()

    def shrink(self, windows: Int[Tensor, "windows tokens"]) -> None:
        """Run half as much at once from now on, since memory ran out.

        Raises:
            OutOfMemoryError: a single window is run already.
        """
        step = min(self._step(windows), len(windows))
        if step <= 1 and self.head_bytes <= LEAST_HEAD_BYTES:
            before = "; ".join(self.given_up) or "nothing"
            raise OutOfMemoryError(
                f"memory of {self.placement.device} ran out with one window of {windows.shape[1]} tokens at a time "
                f"(given up before: {before})",
                "use smaller --window-tokens, a smaller --dtype, or --device cpu",
            )
        self.block_tokens = max(1, step // 2) * windows.shape[1]
        self.head_bytes //= 2
        self.given_up.append(f"{self.block_tokens:,} tokens at once")
        self._embedded.clear()
        free_memory(self.placement.device)

    @contextmanager
    def replaced(self, functions: Sequence[Any]) -> Iterator[None]:
        """Run with each block's forward replaced."""
        blocks = self.blocks
        for block, function in zip(blocks, functions, strict=True):
            block.forward = function  # an instance attribute shadows the method
        try:
            yield
        finally:
            for block in blocks:
                del block.forward

    @torch.no_grad()
    def begin(
        self, windows: Int[Tensor, "windows tokens"]
    ) -> tuple[Float[Tensor, "windows tokens hidden"], tuple[Call, ...]]:
        """Hidden states before block 0, and the call of every block, for all these windows at once.

        Unlike those of `embed` they may take part in a backward pass, and nothing is kept or looked at.
        """
        return self._record(windows.to(self.placement.device))

    def _record(self, ids: Int[Tensor, "batch tokens"]) -> tuple[Tensor, tuple[Call, ...]]:
        seen: list[tuple[Tensor, Call]] = []

        def recorder(rest: Rest) -> Callable[..., Any]:
            def record(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                seen.append((hidden_states, (args, kwargs)))
                return hidden_states if rest is None else (hidden_states, *rest)

            return record

        with self.replaced([recorder(rest) for rest in self._returns]):
            self.model(input_ids=ids, **forward_options(self.model))
        if seen[0][0].shape[:2] != ids.shape:
            shape = f"hidden states are {tuple(seen[0][0].shape)} for {tuple(ids.shape)} tokens"
            raise ModelStructureError(shape, "this model cannot be run block by block")
        return seen[0][0], tuple(call for _, call in seen)

    @cached_property
    def _maskless(self) -> bool:
        """Whether the model's own forward pass can do without a mask for sequences of one token."""
        size = int(self.model.config.get_text_config().hidden_size)
        nothing = torch.zeros((1, 1, size), dtype=self.compute_dtype, device=self.placement.device)
        self._returns  # noqa: B018 - asked of a pass through the blocks, which need their masks
        try:
            with without_masks(self.model.config):
                self._head(nothing)
        except (AttributeError, TypeError):
            return False
        return True

    @cached_property
    def _returns(self) -> tuple[Rest, ...]:
        """What each block returns besides hidden states."""
        ids = torch.zeros((1, 2), dtype=torch.long, device=self.placement.device)
        return returns_of(self.blocks, lambda: self.model(input_ids=ids, **forward_options(self.model)))

    def embed(self, windows: Int[Tensor, "windows tokens"]) -> Embedded:
        """Hidden states before block 0, and the calls of every block, for batches of at most `block_tokens`.

        The latest texts are kept, up to KEPT_BYTES, so that a text is embedded once however often it is run; with
        other weights outside of the blocks (an embedding that is rounded, say) it is embedded anew.
        """
        inside = f"{self.layout.prefix}."
        weights = in_place(item for name, item in self.model.named_parameters() if not name.startswith(inside))
        found = self._embedded.find(windows, weights, self._step(windows))
        if found is None:
            found = self._embed(windows)
            self._embedded.keep(windows, weights, found)
        return found

    def _embed_bytes(self, windows: Int[Tensor, "windows tokens"]) -> int:
        return windows.numel() * int(self.model.config.get_text_config().hidden_size) * self.compute_dtype.itemsize

    @torch.inference_mode()
    def _embed(self, windows: Int[Tensor, "windows tokens"]) -> Embedded:
        self.embeddings += 1
        require_tokens(self.model, windows)
        windows = windows.to(self.placement.device)
        batch = self._step(windows)
        parts: list[Tensor] = []
        calls: dict[int, tuple[Call, ...]] = {}
        for part in windows.split(batch):
            hidden, call = self._record(part)
            parts.append(hidden)
            require_same_calls(calls.setdefault(part.shape[0], call), call)
        return Embedded(torch.cat(parts), calls, batch)

    @torch.inference_mode()
    def run_block(
        self, block: int, hidden: Float[Tensor, "windows tokens hidden"], embedded: Embedded
    ) -> Float[Tensor, "windows tokens hidden"]:
        """One block over all windows, in the same batches every time, so that values repeat to the bit."""
        module = self.blocks[block]
        parts = []
        for part in hidden.split(embedded.batch):
            args, kwargs = embedded.calls[part.shape[0]][block]
            out = module(part, *args, **kwargs)
            parts.append(out[0] if isinstance(out, tuple) else out)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """`head` without a gradient."""
        return self.head(hidden)

    def head(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """Final norm, output embedding and whatever else the model does after its last block.

        It treats tokens one by one, so they are given as sequences of length one: no attention mask is made.
        """
        tokens = hidden.flatten(0, 1)[:, None]
        with without_masks(self.model.config) if self._maskless else nullcontext():
            return self._head(tokens).view(*hidden.shape[:2], -1)

    def _head(self, tokens: Float[Tensor, "tokens one hidden"]) -> Tensor:
        """The model's own forward pass with these states after the last block."""
        outs = [tokens if rest is None else (tokens, *rest) for rest in self._returns]
        ids = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        with self.replaced([lambda *_, out=out, **__: out for out in outs]):
            out: Tensor = self.model(input_ids=ids, **forward_options(self.model)).logits  # of the last token: the one
        return out

    @torch.inference_mode()
    def device_nll(
        self,
        hidden: Float[Tensor, "windows tokens hidden"],
        windows: Int[Tensor, "windows tokens"],
        teacher: Float[Tensor, "windows tokens hidden"] | None = None,
    ) -> Float[Tensor, " windows"]:
        """Mean next-token negative log-likelihood of each window, in nats per token, left on the device.

        With a teacher (full precision's hidden states after the last block) the next tokens are not the text's own but
        all of the vocabulary, each with the probability that its own head gives: the cross-entropy to that, which is
        least for itself.

        Logits are made in chunks of at most HEAD_BYTES, so that the vocabulary never sets the peak.
        """
        row_bytes = 4 * int(self.model.config.get_text_config().vocab_size)
        return mean_nll(self.logits, hidden, windows, self.head_bytes // row_bytes, teacher, self.own_logits)

    def own_logits(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens vocabulary"]:
        """`logits` with the checkpoint's own head, whatever is in place of it now."""
        with swapped(self.model, self._outside):
            return self.logits(hidden)

    def window_nll(
        self,
        windows: Int[Tensor, "windows tokens"],
        advance: Advance = ignored,
        *,
        teacher: Float[Tensor, "windows tokens hidden"] | None = None,
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """NLL per window with the weights that are in place now; memory bounded by a few windows.

        Args:
            teacher: see `device_nll`.

        Raises:
            OutOfMemoryError: a single window does not fit the device.
        """
        return self.within_memory(windows, lambda: self._window_nll(windows, advance, teacher))

    def _window_nll(
        self,
        windows: Int[Tensor, "windows tokens"],
        advance: Advance,
        teacher: Float[Tensor, "windows tokens hidden"] | None,
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        step = self._step(windows)
        teachers = teacher.split(step) if teacher is not None else repeat(None)
        found = []
        parts = zip(windows.split(step), self._last(windows), teachers)  # noqa: B905 - repeat has no end
        for part, hidden, theirs in parts:
            found.append(self.device_nll(hidden, part, theirs).cpu().numpy())
            advance(len(part))
        return np.concatenate(found)

    def last_hidden(self, windows: Int[Tensor, "windows tokens"], advance: Advance = ignored) -> Tensor:
        """Hidden states after the last block with the weights that are in place now: what a teacher is made of."""
        return self.within_memory(windows, lambda: self.run_blocks(windows, advance))

    def run_blocks(self, windows: Int[Tensor, "windows tokens"], advance: Advance = ignored) -> Tensor:
        """`last_hidden`, tried once."""
        return torch.cat(list(counted(self._last(windows), advance)))

    def within_memory(self, windows: Int[Tensor, "windows tokens"], work: Callable[[], Made]) -> Made:
        """Try with ever fewer windows at once, as memory has it."""
        return within_memory(work, lambda: self.shrink(windows))

    def _step(self, windows: Int[Tensor, "windows tokens"]) -> int:
        """Windows that are run at once."""
        return max(1, self.block_tokens // windows.shape[1])

    def _last(self, windows: Int[Tensor, "windows tokens"]) -> Iterator[Float[Tensor, "batch tokens hidden"]]:
        """Hidden states after the last block, batch by batch; a text too large to keep is embedded likewise."""
        step = self._step(windows)
        keep = self._embed_bytes(windows) <= KEPT_BYTES
        whole = self.embed(windows) if keep else None
        for start in range(0, len(windows), step):
            stop = start + step
            embedded = whole or self._embed(windows[start:stop])
            hidden = whole.hidden[start:stop] if whole else embedded.hidden
            for block in range(self.layout.block_count):
                hidden = self.run_block(block, hidden, embedded)
            yield hidden

    @torch.inference_mode()
    def verify(self, windows: Int[Tensor, "windows tokens"]) -> float:
        """Relative difference between the staged loss and the model's own on one window.

        Raises:
            NumericError: the model's own loss is not finite.
            ModelStructureError: they differ, so the structure is not what it seems.
        """
        part = windows[:1].to(self.placement.device)
        require_tokens(self.model, part)
        require_causal(self.model, part, self._record(part)[1], self._record(part.flip(1))[1])
        own = float(self.model(input_ids=part, labels=part, use_cache=False).loss)
        if not np.isfinite(own):
            raise NumericError(
                f"the checkpoint's own loss on the first window is {own}, not finite",
                where_not_finite(self.placement.dtype),
            )
        staged = float(self.window_nll(part).mean())
        difference = abs(staged - own) / max(abs(own), 1e-12)
        if not difference <= VERIFY_TOLERANCE.get(self.compute_dtype, 1e-2):
            raise ModelStructureError(
                f"block by block the loss is {staged:.6f}, the model's own is {own:.6f}",
                "this model does more between its blocks than can be run one by one",
            )
        return difference
