"""Block-wise FP8 checkpoints (DeepSeek's layout) as dense bfloat16: each tile of a weight times its own scale.

name.weight            float8_e4m3fn  [rows, columns]
name.weight_scale_inv  float32        [ceil(rows / tile), ceil(columns / tile)]     what each tile is multiplied by
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.core.artifact import Json
from apportion.core.errors import InputError
from apportion.formats.safetensors import Entry
from apportion.models.source import Source

FP8 = "fp8"
SCALE = "_scale_inv"
EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)


def is_blockwise(saved: Json) -> bool:
    """Whether a `quantization_config` says block-wise FP8."""
    return saved.get("quant_method") == FP8 and bool(saved.get("weight_block_size"))


def decoded_source(saved: Json, source: Source) -> Source:
    """The same folder as if its weights lay there in bfloat16: each is decoded when it is read.

    Raises:
        InputError: a weight lies there in FP8 without its scales, or their number does not fit; all are named.
    """
    tile = tuple(saved["weight_block_size"])
    coded = {name: own for name, own in source.tensors.items() if own.dtype in EIGHT}
    wrong = [
        f"{name} (scales {found}, expected {fits})"
        for name, own in coded.items()
        if (found := shape_of(source, name))
        != (fits := tuple(-(-n // t) for n, t in zip(own.shape, tile, strict=True)))
    ]
    if wrong:
        raise InputError(
            f"MODEL {source.folder}: FP8 weights without fitting scales: " + ", ".join(wrong[:8]),
            "download the checkpoint again",
        )

    def tensor(name: str) -> Tensor:
        found = source.tensor(name)
        return decode(found, source.tensor(f"{name}{SCALE}"), tile) if name in coded else found

    kept = {name: own for name, own in source.tensors.items() if not name.endswith(SCALE)}
    plain = {name: Entry(torch.bfloat16, own.shape) if name in coded else own for name, own in kept.items()}
    config = {key: value for key, value in source.config.items() if key != "quantization_config"}
    return replace(source, config=config, tensors=plain, files={n: source.files[n] for n in plain}, decode=tensor)


def shape_of(source: Source, name: str) -> tuple[int, ...] | None:
    """Shape of a weight's scales; None where there are none."""
    scale = source.tensors.get(f"{name}{SCALE}")
    return scale.shape if scale else None


def decode(
    codes: Tensor, scale: Float[Tensor, "tile_rows tile_columns"], tile: tuple[int, ...]
) -> Float[Tensor, "rows columns"]:
    """Each tile of codes times its scale, computed in float32.

    >>> decode(torch.ones(2, 3).to(torch.float8_e4m3fn), torch.tensor([[2.0, 4.0]]), (2, 2)).tolist()
    [[2.0, 2.0, 4.0], [2.0, 2.0, 4.0]]
    """
    rows, columns = codes.shape
    spread = scale.float().repeat_interleave(tile[0], 0)[:rows].repeat_interleave(tile[1], 1)[:, :columns]
    return (codes.float() * spread).to(torch.bfloat16)
