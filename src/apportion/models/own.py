"""Folders in the formats that this program writes, read back as packed weights.

All of them are decoded into plain linears. Those of quanto and hqq, which no other program reads, may instead be
replaced by the library's own modules over the packed tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apportion.core.artifact import CHECKPOINT, MANIFEST, Json, begun_as, kind_of, read_manifest
from apportion.core.device import Placement
from apportion.core.errors import ArtifactCorruptError
from apportion.formats import (
    COMPRESSED_TENSORS,
    FORMATS,
    HQQ,
    INT_QUANTIZED,
    QUANTO,
    HqqWeight,
    Packed,
    QuantoWeight,
    grid_width,
    width_named,
)
from apportion.models.source import Source

OWN = (HQQ.name, QUANTO.name)
WRITERS = ("quantize", "apply")  # runs that write a checkpoint, as their records call them


def require_as_written(folder: Path) -> None:
    """Check every file of a folder that this program finished against its manifest; no other folder.

    A folder that is only being written has no manifest yet; another program's manifest says nothing here.

    Raises:
        ArtifactCorruptError: a file, or the manifest, is not as written. ArtifactMismatchError: of another schema.

    Cost: one read of the files.
    """
    if (folder / MANIFEST).is_file() and (kind_of(folder) == CHECKPOINT or begun_as(folder) in WRITERS):
        read_manifest(folder)


def is_own(saved: Json) -> bool:
    """Whether a `quantization_config` says that this program wrote the folder in a format of quanto or hqq."""
    return saved.get("made_by") == "apportion" and saved.get("quant_method") in OWN


def runs_kernels_of_quanto(model: nn.Module) -> bool:
    """Whether a model keeps quanto's packed weights.

    Its kernels for CUDA run on the default stream, whatever the current one is: what they do is in no recorded step.
    """
    return any(type(weight).__name__.endswith("QBitsTensor") for weight in model.parameters())


def take_packed(saved: Json, source: Source) -> tuple[dict[str, Tensor], dict[str, Packed]]:
    """The plain tensors of such a folder, and its packed weights by their path in the files.

    Raises:
        ArtifactCorruptError: a tensor is missing or has another shape than its width says.
        MissingExtraError: the format's package is not installed.
    """
    tensors, found = dict(source.read()), {}
    form = FORMATS[saved["quant_method"]]
    for path, own in saved["linears"].items():
        # folders of before widths had names say their bits, and one group size for all
        width, (rows, columns) = width_named(own.get("width") or own["bits"], saved.get("group_size", 0)), own["shape"]
        parts = {}
        for suffix, (_, shape) in form.shapes(width, rows, columns, torch.float32).items():
            part = tensors.pop(f"{path}.{suffix}", None)
            if part is None or tuple(part.shape) != shape:
                raise ArtifactCorruptError(
                    f"{source.folder}: {path}.{suffix}: expected a tensor of shape {shape}, found "
                    f"{None if part is None else tuple(part.shape)}",
                    "make the checkpoint again",
                )
            parts[suffix] = part
        found[path] = form.unpack(parts, (rows, columns), width)
    return tensors, found


def is_packed_grid(saved: Json) -> bool:
    """Whether a `quantization_config` says symmetric packed integers in groups: what `quantize` writes for servers.

    Each matrix then says its own width, by its tensors' shapes.
    """
    groups = saved.get("config_groups", {}).values()
    plain = all(
        (own := item.get("weights") or {}).get("type") == "int"
        and own.get("symmetric")
        and own.get("strategy") in ("group", "channel")
        and not own.get("actorder")
        and not item.get("input_activations")
        and not item.get("output_activations")
        for item in groups
    )
    return saved.get("quant_method") == "compressed-tensors" and saved.get("format") == "pack-quantized" and plain


def take_grid(saved: Json, source: Source) -> tuple[dict[str, Tensor], dict[str, Packed]]:
    """The plain tensors of such a folder, and its packed weights by their path in the files.

    Raises:
        ArtifactCorruptError: a packed weight lacks its scales or its shape, or is of no width of the configuration.
    """
    tensors, found = dict(source.read()), {}
    known = sorted({int(item["weights"]["num_bits"]) for item in saved["config_groups"].values()})
    for name in [name for name in tensors if name.endswith(".weight_packed")]:
        path = name.removesuffix(".weight_packed")
        lacking = [part for part in ("weight_scale", "weight_shape") if f"{path}.{part}" not in tensors]
        if lacking:
            raise ArtifactCorruptError(
                f"{source.folder}: {path} lacks {', '.join(lacking)}", "make the checkpoint again"
            )
        parts = {part: tensors.pop(f"{path}.{part}") for part in ("weight_packed", "weight_scale", "weight_shape")}
        rows, columns = map(int, parts["weight_shape"].tolist())
        words = parts["weight_packed"].shape[1]
        fitting = [bits for bits in known if -(-columns * bits // 32) == words]
        if len(fitting) != 1:
            raise ArtifactCorruptError(
                f"{source.folder}: {path} has {words} words for {columns} columns, which is none of {known} bits",
                "make the checkpoint again",
            )
        width = grid_width(fitting[0], columns // parts["weight_scale"].shape[1])
        found[path] = COMPRESSED_TENSORS.unpack(parts, (rows, columns), width)
    return tensors, {**found, **take_bytes(tensors)}


def take_bytes(tensors: dict[str, Tensor]) -> dict[str, Packed]:
    """Weights of eight bits that are stored one code in a byte, taken out of the tensors: embeddings.

    The head that is tied to one has a scale of its own and no codes: it is dropped, the tie fills the head.
    """
    found: dict[str, Packed] = {}
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        path = name.removesuffix(".weight_scale")
        weight = tensors.get(f"{path}.weight")
        if weight is None:
            del tensors[name]
        elif weight.dtype == torch.int8:
            rows, columns = weight.shape
            parts = {"weight": tensors.pop(f"{path}.weight"), "weight_scale": tensors.pop(name)}
            width = grid_width(8, columns // parts["weight_scale"].shape[1])
            found[path] = INT_QUANTIZED.unpack(parts, (rows, columns), width)
    return found


def pack(model: Any, packed: Mapping[str, Packed], placement: Placement) -> Any:
    """Replace linears by the library's own modules over the packed weights."""
    dtype = getattr(torch, placement.dtype)
    for path, weight in packed.items():
        parent, _, name = path.rpartition(".")
        linear = model.get_submodule(path)
        if isinstance(weight, QuantoWeight):
            module = quanto_module(weight, linear, dtype)
        else:
            assert isinstance(weight, HqqWeight), "only quanto and hqq have modules of their own"
            module = hqq_module(weight, linear, dtype, placement.device)
        setattr(model.get_submodule(parent), name, module.to(placement.device))
    return model


def quanto_module(weight: QuantoWeight, linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """A frozen QLinear."""
    from optimum.quanto import QLinear

    found = QLinear(linear.in_features, linear.out_features, linear.bias is not None, dtype=dtype, device="meta")
    found.weight_group_size = weight.width.group_size
    found.weight_qtype = weight.packed.qtype
    found.input_scale, found.output_scale = torch.ones((), dtype=dtype), torch.ones((), dtype=dtype)
    found.weight = nn.Parameter(weight.cast(dtype), requires_grad=False)
    found.bias = linear.bias
    module: nn.Module = found.eval()
    return module


def hqq_module(weight: HqqWeight, linear: nn.Linear, dtype: torch.dtype, device: str) -> nn.Module:
    """An HQQLinear, filled field by field: its own loader would evaluate text from the file."""
    from hqq.core.quantize import HQQLinear

    found = HQQLinear(None, None, compute_dtype=dtype, device=device, initialize=False)
    found.W_q = nn.Parameter(weight.codes.to(device), requires_grad=False)
    found.meta = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in weight.meta(dtype).items()
    }
    found.bias = linear.bias
    found.in_features, found.out_features = linear.in_features, linear.out_features
    found.axis, found.ready = 1, True
    module: nn.Module = found.eval()
    return module
