"""Lower the error that a linear's rounding makes in its outputs, codes and scales in turn.

The error of one row is (t - q) H (t - q)', with t the target weight, q = codes * scale and H the second
moments of the inputs. Rows are independent, so every step is vectorised over them.

For fixed codes the best scales of a row solve a small linear system. For fixed scales, the best code of one
column, all others kept, is the one nearest to the column's own optimum (the error is a parabola in it); going
through the columns again and again is coordinate descent, which never raises the error.
Source: the quadratic objective is GPTQ's (arXiv 2210.17323); both refinements of its result are ours (the
second is known for other starts, for example in QuantEase, arXiv 2309.01885).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from apportion.bits.rounding.loops import BLOCK, Loops, loops_for
from apportion.formats import Width

RIDGE = 1e-6
SYSTEM_BYTES = 1 << 30  # of the scales' equations in flight


def row_error(
    target: Float[Tensor, "rows columns"],
    weight: Float[Tensor, "rows columns"],
    hessian: Float[Tensor, "columns columns"],
) -> Float[Tensor, " rows"]:
    """(t - q) H (t - q)' of every row."""
    difference = target - weight
    return ((difference @ hessian) * difference).sum(1)


def spread(scale: Float[Tensor, "rows groups"], columns: int) -> Float[Tensor, "rows columns"]:
    """Each column's scale."""
    return scale.repeat_interleave(columns // scale.shape[1], dim=1)


def descend(
    target: Float[Tensor, "rows columns"],
    codes: Float[Tensor, "rows columns"],
    scale: Float[Tensor, "rows groups"],
    hessian: Float[Tensor, "columns columns"],
    width: Width,
    sweeps: int,
    loops: Loops | None = None,
) -> Float[Tensor, "rows columns"]:
    """Codes after cyclic coordinate descent; stops early when no code changes.

    Args:
        loops: how a block of columns is gone through; the fastest of the weight's device if None.

    Cost: `sweeps` * rows * columns^2 multiply-adds.
    """
    settle = (loops or loops_for(target.device)).settle
    codes, scales = codes.clone(), spread(scale, codes.shape[1])
    curvature = hessian.diagonal().clamp_min(1e-30)
    slope = (target - codes * scales) @ hessian  # half of the negative gradient
    for _ in range(sweeps):
        changed = torch.zeros((), dtype=torch.bool, device=codes.device)
        for start in range(0, codes.shape[1], BLOCK):
            part = slice(start, min(start + BLOCK, codes.shape[1]))
            codes[:, part], moved = settle(
                codes[:, part], scales[:, part], slope[:, part], hessian[part, part], curvature[part], width
            )
            slope.addmm_(moved, hessian[part], alpha=-1)
            changed |= moved.any()
        if not changed:  # asked once a sweep: a GPU waits for the answer
            break
    return codes


def fit_scales(
    target: Float[Tensor, "rows columns"],
    codes: Float[Tensor, "rows columns"],
    scale: Float[Tensor, "rows groups"],
    hessian: Float[Tensor, "columns columns"],
    dtype: torch.dtype,
) -> Float[Tensor, "rows groups"]:
    """The scales of least error for these codes, as `dtype` stores them, in rows where that lowers the error.

    Minimise (t - sum_g s_g c_g) H (t - sum_g s_g c_g)' over s: A s = b with A_gh = c_g H c_h', b_g = c_g H t'.
    """
    rows, columns, groups = *codes.shape, scale.shape[1]
    step = max(1, SYSTEM_BYTES // (8 * groups**2))
    if rows > step:
        parts = zip(target.split(step), codes.split(step), scale.split(step), strict=True)
        return torch.cat([fit_scales(*part, hessian, dtype) for part in parts])
    grouped = codes.view(rows, groups, -1)
    size = grouped.shape[2]
    right = (grouped * (target @ hessian).view(rows, groups, size)).sum(-1)
    left = torch.empty(rows, groups, groups, device=codes.device, dtype=codes.dtype)
    for group in range(groups):
        through = grouped[:, group] @ hessian[group * size : (group + 1) * size]
        left[:, group] = (through.view(rows, groups, size) * grouped).sum(-1)
    change = (right - (left @ scale[..., None])[..., 0]).double()  # from the present scales: unused groups keep theirs
    ridge = RIDGE * left.diagonal(dim1=1, dim2=2).mean(-1).clamp_min(1e-30).double()
    eye = torch.eye(groups, device=codes.device, dtype=torch.float64)
    solved = torch.linalg.solve(left.double() + ridge[:, None, None] * eye, change)
    fitted = (scale + solved.to(scale.dtype)).to(dtype).to(scale.dtype)
    before = row_error(target, codes * spread(scale, columns), hessian)
    after = row_error(target, codes * spread(fitted, columns), hessian)
    return torch.where((after < before)[:, None], fitted, scale)
