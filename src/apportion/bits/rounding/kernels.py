"""`loops` and the search for scales on a GPU, in Triton. Imported only where Triton is.

A program holds a few rows and 128 columns in registers and goes through the columns. At each one it does the
arithmetic for all 128 and keeps that of the one column: more operations (128 times too many of a few), but one
reduction per column instead of three, and no memory in between.

Count, 4,096 x 4,096, one sweep: 4096^2 * 128 * 10 = 21 GFLOP in registers (.4 ms at 60 TFLOP/s), 5 passes over 67 MB
(.1 ms), and the products between blocks 137 GFLOP in float32 (2.6 ms at 52 TFLOP/s). So the products are the floor,
and the eight launches a column of the plain loop (4,096 * 8 * 5 us = 160 ms) are what is saved.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from apportion.core.launch import on_its_device
from apportion.formats import Width

COLUMNS = 128
ROWS = 8
GROUPS = 16
NEAREST_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and taking it away rounds half to even, as torch.round


@triton.jit
def to_code(value, lowest, highest):  # type: ignore[no-untyped-def]
    limited = tl.minimum(tl.maximum(value, lowest), highest)
    return (limited + NEAREST_EVEN) - NEAREST_EVEN


@triton.jit  # type: ignore[untyped-decorator]
def tile(rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    here = (row[:, None] < rows) & (column[None, :] < width)
    return column, row[:, None] * width + column[None, :], here


@triton.jit  # type: ignore[untyped-decorator]
def feed_back_kernel(  # type: ignore[no-untyped-def]
    work, scales, factor, codes, errors, rows, width, lowest, highest, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column, place, here = tile(rows, width, ROWS, COLUMNS)
    left = tl.load(work + place, mask=here, other=0.0)
    scale = tl.load(scales + place, mask=here, other=1.0)
    divisor = tl.where(scale == 0.0, 1.0, scale)
    code = tl.zeros_like(left)
    error = tl.zeros_like(left)
    for index in range(width):
        spread = tl.load(factor + index * width + column, mask=column < width, other=0.0)
        diagonal = tl.load(factor + index * width + index)
        now = (column == index)[None, :]
        rounded = to_code(tl.div_rn(left, divisor), lowest, highest)
        made = tl.where(now, (left - rounded * scale) / diagonal, 0.0)
        left -= tl.sum(made, axis=1)[:, None] * spread[None, :]  # the factor is upper: what is done stays
        code = tl.where(now, rounded, code)
        error += made
    tl.store(codes + place, code, mask=here)
    tl.store(errors + place, error, mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def settle_kernel(  # type: ignore[no-untyped-def]
    codes, scales, slopes, inside, curvature, moved, rows, width, lowest, highest,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column, place, here = tile(rows, width, ROWS, COLUMNS)
    code = tl.load(codes + place, mask=here, other=0.0)
    scale = tl.load(scales + place, mask=here, other=1.0)
    slope = tl.load(slopes + place, mask=here, other=0.0)
    curve = tl.load(curvature + column, mask=column < width, other=1.0)
    divisor = curve[None, :] * tl.where(scale == 0.0, 1.0, scale)
    total = tl.zeros_like(slope)
    for index in range(width):
        spread = tl.load(inside + index * width + column, mask=column < width, other=0.0)
        now = (column == index)[None, :]
        best = to_code(code + tl.div_rn(slope, divisor), lowest, highest)
        step = tl.where(now, (best - code) * scale, 0.0)
        slope -= tl.sum(step, axis=1)[:, None] * spread[None, :]
        code = tl.where(now, best, code)
        total += step
    tl.store(codes + place, code, mask=here)
    tl.store(moved + place, total, mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def better_scale(weight, importance, scale, best, error, lowest, highest, STORED: tl.constexpr):  # type: ignore[no-untyped-def]
    stored = scale.to(STORED).to(tl.float32)
    divisor = tl.where(stored == 0.0, 1.0, stored)
    code = to_code(tl.div_rn(weight, tl.broadcast_to(divisor[:, None], weight.shape)), lowest, highest)
    gap = code * stored[:, None] - weight
    found = tl.sum(importance * gap * gap, axis=1)
    return tl.where(found < error, stored, best), tl.where(found < error, found, error)


@triton.jit  # type: ignore[untyped-decorator]
def search_kernel(  # type: ignore[no-untyped-def]
    weights, importances, factors, scales, groups, groups_of_row, size, lowest, highest, FACTORS: tl.constexpr,
    REFINEMENTS: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    column = tl.arange(0, SIZE)
    here = (group[:, None] < groups) & (column[None, :] < size)
    weight = tl.load(weights + group[:, None] * size + column[None, :], mask=here, other=0.0)
    importance = tl.load(importances + (group % groups_of_row)[:, None] * size + column[None, :], mask=here, other=0.0)
    largest = tl.max(tl.abs(weight), axis=1) / -lowest
    best = tl.zeros_like(largest)
    error = tl.sum(importance * weight * weight, axis=1)
    for index in range(FACTORS):
        scale = largest * tl.load(factors + index)
        best, error = better_scale(weight, importance, scale, best, error, lowest, highest, STORED)
        best, error = better_scale(weight, importance, -scale, best, error, lowest, highest, STORED)
    for _ in range(REFINEMENTS):
        divisor = tl.where(best == 0.0, 1.0, best)
        code = to_code(tl.div_rn(weight, tl.broadcast_to(divisor[:, None], weight.shape)), lowest, highest)
        code = tl.where(here, code, 0.0)
        norm = tl.maximum(tl.sum(importance * code * code, axis=1), 1e-30)
        scale = tl.sum(importance * code * weight, axis=1) / norm
        best, error = better_scale(weight, importance, scale, best, error, lowest, highest, STORED)
    tl.store(scales + group, best, mask=group < groups)


@on_its_device
def feed_back(
    work: Float[Tensor, "rows block"],
    scales: Float[Tensor, "rows block"],
    factor: Float[Tensor, "block block"],
    width: Width,
) -> tuple[Float[Tensor, "rows block"], Float[Tensor, "rows block"]]:
    """`loops.feed_back` in one launch."""
    work, scales, factor = work.contiguous(), scales.contiguous(), factor.contiguous()
    codes, errors = torch.empty_like(work), torch.empty_like(work)
    rows, columns = work.shape
    feed_back_kernel[(triton.cdiv(rows, ROWS),)](
        work, scales, factor, codes, errors, rows, columns, width.lowest, width.highest,
        ROWS=ROWS, COLUMNS=COLUMNS, num_warps=2,
    )  # fmt: skip
    return codes, errors


@on_its_device
def settle(
    codes: Float[Tensor, "rows block"],
    scales: Float[Tensor, "rows block"],
    slope: Float[Tensor, "rows block"],
    inside: Float[Tensor, "block block"],
    curvature: Float[Tensor, " block"],
    width: Width,
) -> tuple[Float[Tensor, "rows block"], Float[Tensor, "rows block"]]:
    """`loops.settle` in one launch."""
    codes = codes.clone(memory_format=torch.contiguous_format)
    moved = torch.empty_like(codes)
    rows, columns = codes.shape
    settle_kernel[(triton.cdiv(rows, ROWS),)](
        codes, scales.contiguous(), slope.contiguous(), inside.contiguous(), curvature.contiguous(), moved,
        rows, columns, width.lowest, width.highest, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=2,
    )  # fmt: skip
    return codes, moved


@on_its_device
def search_scale(
    grouped: Float[Tensor, "rows groups size"],
    importance: Float[Tensor, "1 groups size"],
    width: Width,
    dtype: torch.dtype,
    factors: list[float],
    refinements: int,
) -> Float[Tensor, "rows groups"]:
    """`nearest.search_scale` in one launch: one pass over the weights instead of some hundreds."""
    rows, groups, size = grouped.shape
    weights = grouped.contiguous()
    wide = importance.expand(1, groups, size).contiguous()
    scales = torch.empty(rows, groups, device=grouped.device, dtype=torch.float32)
    search_kernel[(triton.cdiv(rows * groups, GROUPS),)](
        weights, wide, torch.tensor(factors, device=grouped.device), scales, rows * groups, groups, size,
        width.lowest, width.highest, FACTORS=len(factors), REFINEMENTS=refinements, GROUPS=GROUPS,
        SIZE=triton.next_power_of_2(size), STORED=STORED[dtype],
    )  # fmt: skip
    return scales.to(dtype)


STORED = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
