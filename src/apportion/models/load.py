"""The ways in: a model for whoever runs it, cut into stages for whoever quantizes it, and what `quantize` wrote.

All of them read through `dense`: one set of rules for every half of the program.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apportion.core.device import Placement, place
from apportion.core.errors import InputError
from apportion.models.blockwise import FP8
from apportion.models.dense import Dense, read_dense
from apportion.models.from_gguf import GGUF, is_gguf, require_high_precision
from apportion.models.gguf.load import model_of
from apportion.models.gguf.source import GgufFile
from apportion.models.identity import source_identity
from apportion.models.own import pack
from apportion.models.parameters import cast_parameters
from apportion.models.pretrained import load_tokenizer, require_model
from apportion.models.staged import StagedModel
from apportion.models.structure import require_linears


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run.

    Attributes:
        model: a transformers causal LM with plain weights, in eval mode, in the compute dtype on the compute device.
        identity: which model it is, see `models.identity`. format: that its weights were stored in; empty for plain.
    """

    model: Any
    tokenizer: Any
    identity: str
    format: str = ""


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    dense: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """Load a checkpoint written by `quantize` or `apply`, or any full-precision one.

    Args:
        path: the folder; if this program wrote it, every file is checked against its digest first.
        dtype: what the model computes in.
        dense: decode quanto and hqq weights once into plain linears, instead of keeping them packed.
        trust_remote_code: run code that comes with the checkpoint.

    Returns:
        A transformers causal LM in eval mode.

    Raises:
        InputError: no such folder, or a format that is not read. ArtifactCorruptError: a file is not as written.
        MissingExtraError: the format's package is not installed.

    Cost: the weights in memory once; quanto and hqq ones twice while they are decoded.

    >>> import torch
    >>> model = load(MODEL)
    >>> model(torch.arange(2, 12)[None]).logits.shape[:2]
    torch.Size([1, 10])
    """
    placement = place(device, dtype)
    found = read(str(path), placement, trust_remote_code=trust_remote_code)
    model = placed(found.model, placement)
    return model if dense else pack(model, found.packed, placement)


def load_model(model: str, placement: Placement, *, trust_remote_code: bool = False) -> Loaded:
    """Model and tokenizer for whoever runs it: full precision, compressed-tensors, FP8, GGUF, or a folder of ours.

    Args:
        model: local folder, `.gguf` file or hub name.

    Raises:
        InputError: no such model, no causal LM, weights or tokenizer that cannot be read.
        ArtifactCorruptError: a file of a folder of ours is not as written.
        MissingExtraError: its format's package is not installed.

    Cost: one read of the weights; quantized ones are decoded once and take the memory of plain ones.
    """
    found = read(model, placement, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    return Loaded(placed(found.model, placement), tokenizer, source_identity(model), found.format)


def load_staged(
    model: str, placement: Placement, *, trust_remote_code: bool = False, to_quantize: bool = False
) -> StagedModel:
    """The same model cut into embed, blocks and head.

    Args:
        to_quantize: refuse a GGUF file of low precision before it is decoded.

    Raises:
        InputError: as `load_model`. ModelStructureError: blocks of unknown structure.
    """
    found = read(model, placement, trust_remote_code=trust_remote_code, apart=True, to_quantize=to_quantize)
    return StagedModel(found.model, placement, source=model, origin=found.origin, stored_as=found.format)


def load_full(model: str, placement: Placement, *, trust_remote_code: bool = False) -> tuple[StagedModel, Any]:
    """Model and tokenizer of a checkpoint that is to be quantized.

    Raises:
        InputError: it cannot be loaded, or is quantized already (FP8 and GGUF at 8 bits or more are not refused).
        ModelStructureError: blocks of unknown structure, or whose weights mostly lie outside of linears.
    """
    staged = load_staged(model, placement, trust_remote_code=trust_remote_code, to_quantize=True)
    if staged.stored_as not in ("", FP8, GGUF):
        raise InputError(f"MODEL {model}: is quantized already", "give the full-precision checkpoint it was made from")
    require_linears(staged.layout.prefix, staged.blocks)
    return staged, load_tokenizer(model, trust_remote_code=trust_remote_code)


def read(
    model: str, placement: Placement, *, trust_remote_code: bool, apart: bool = False, to_quantize: bool = False
) -> Dense:
    """The plain weights of a folder or of a GGUF file; `apart`: as whoever runs them block by block needs them."""
    require_model(model)
    if is_gguf(model):
        file = GgufFile(Path(model).expanduser())
        if to_quantize:
            require_high_precision(file)
        return Dense(model_of(file), None, GGUF)
    return read_dense(model, placement, trust_remote_code=trust_remote_code, apart=apart)


def placed(model: Any, placement: Placement) -> Any:
    """In eval mode, in the compute dtype, on the device."""
    import torch

    model = model.eval().requires_grad_(False).to(placement.device)
    cast_parameters(model, getattr(torch, placement.dtype))
    return model
