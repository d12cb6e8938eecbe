"""Every linear rounded once per width, as codes and scales; decoded when it is put in its place.

Rounding an already rounded weight again is what this avoids: it is slow, and in some libraries silently does nothing.
Decoding every width of every linear beforehand is what limits how large a model can be, so only as many decoded weights
are kept as the device has room for, and none where a text is so long that decoding costs next to nothing.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from apportion.bits.game.costs import Costs
from apportion.bits.game.players import Assignment
from apportion.formats import Packed, Width
from apportion.models.staged import StagedModel

GPU_SHARE = 0.5  # of the free memory that decoded weights may take
CHEAP_TOKENS = 1024  # decoding reads a weight a few times, a block multiplies it with each token
CPU_BYTES = 256 << 20  # of decoded weights, for texts shorter than that
Key = tuple[str, Width]


@dataclass
class DecodedCache:
    """Decoded weights, the latest used ones.

    Attributes:
        limit: bytes that they may take. reason: why so many.
        whole: everything fits, so that a weight's place in memory never changes (what a CUDA graph needs).
        decodings: how often a weight was decoded. drops: how often all were let go, with what graphs point to.
    """

    limit: int
    whole: bool
    reason: str
    decodings: int = 0
    drops: int = 0
    held: int = 0
    weights: OrderedDict[Key, Tensor] = field(default_factory=OrderedDict)

    def get(self, key: Key, packed: Packed, staged: StagedModel) -> Tensor:
        """The weight in the compute dtype, on the compute device."""
        if key in self.weights:
            self.weights.move_to_end(key)
            return self.weights[key]
        self.decodings += 1
        weight = packed.dequantize(staged.compute_dtype).to(staged.placement.device)
        if weight.nbytes <= self.limit:
            self.weights[key] = weight
            self.held += weight.nbytes
            while self.held > self.limit:
                self.held -= self.weights.popitem(last=False)[1].nbytes
        return weight

    def drop(self, reason: str) -> None:
        """Keep nothing from now on."""
        self.weights.clear()
        self.drops += 1
        self.limit, self.held, self.whole, self.reason = 0, 0, False, reason


@dataclass(frozen=True)
class WeightBank:
    """A model with its linears rounded to every width.

    Attributes:
        rounded: by (linear path, width).
        cache: what of it is kept decoded; see `choose_cache`.
    """

    staged: StagedModel
    costs: Costs
    rounded: Mapping[Key, Packed]
    cache: DecodedCache = field(default_factory=lambda: DecodedCache(0, False, "nothing is kept decoded"))

    @cached_property
    def parameters(self) -> tuple[tuple[tuple[str, nn.Parameter], ...], ...]:
        """Path and weight of every player's linears: looking them up by name costs more than a swap."""
        layout, model = self.staged.layout, self.staged.model
        return tuple(
            tuple((path, model.get_submodule(path).weight) for path in player.paths(layout))
            for player in self.costs.players
        )

    def weight(self, path: str, column: int) -> Tensor:
        """A linear's decoded weight at a width."""
        key = (path, self.costs.widths[column])
        return self.cache.get(key, self.rounded[key], self.staged)

    def put(self, player: int, column: int) -> None:
        """Give one player's linears their weights at this width."""
        for path, parameter in self.parameters[player]:
            parameter.data = self.weight(path, column)

    def put_all(self, assignment: Assignment) -> None:
        """Give every player its width."""
        for player, column in enumerate(assignment):
            self.put(player, column)

    @cached_property
    def inside(self) -> tuple[tuple[int, ...], ...]:
        """Players of every block."""
        blocks = range(self.staged.layout.block_count)
        players = self.costs.players
        return tuple(tuple(i for i, player in enumerate(players) if player.block == block) for block in blocks)

    def put_block(self, block: int, columns: Assignment) -> None:
        """Give one block's players their widths, in the players' order."""
        for player, column in zip(self.inside[block], columns, strict=True):
            self.put(player, column)

    def clear_block(self, block: int) -> None:
        """Take the checkpoint's own weights back, so that nothing decoded outlives its use; free where all is kept."""
        if not self.cache.whole:
            for player in self.inside[block]:
                for path, parameter in self.parameters[player]:
                    parameter.data = self.staged.own_weight(path)

    def choose_cache(self, tokens: int) -> None:
        """Decide how much is kept decoded for a text of so many tokens; where all is, graphs point there: it stays."""
        if self.cache.whole:
            return
        needed = (
            sum(self.staged.originals[path].numel() for path, _ in self.rounded) * self.staged.compute_dtype.itemsize
        )
        self.cache.limit, self.cache.whole, self.cache.reason = cache_room(self.staged.placement.device, needed, tokens)


def cache_room(device: str, needed: int, tokens: int) -> tuple[int, bool, str]:
    """Bytes for decoded weights, whether that is all of them, and why."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        limit = int(GPU_SHARE * free)
        if needed <= limit:
            return needed, True, f"all {needed:,} bytes of decoded weights fit in half of the GPU's {free:,} free bytes"
        return limit, False, f"of {needed:,} bytes of decoded weights the GPU holds half of its {free:,} free bytes"
    if tokens >= CHEAP_TOKENS:
        return 0, False, f"decoding costs next to nothing beside {tokens:,} tokens, so nothing is kept decoded"
    limit = min(needed, CPU_BYTES)
    return limit, limit == needed, f"the text has only {tokens:,} tokens, so up to {limit:,} bytes are kept decoded"
