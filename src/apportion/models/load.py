"""A folder written by this program -> a transformers model, whatever its format. Never unpickles anything.

`compressed-tensors` is loaded by transformers alone. For `quanto` and `hqq` the model is built from decoded
weights, and its linears are then replaced by the library's own modules over the packed tensors, unless `dense`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apportion.core.artifact import MANIFEST, read_json, read_manifest
from apportion.core.device import Placement, place
from apportion.core.errors import ArtifactCorruptError, InputError
from apportion.core.progress import without_tqdm
from apportion.formats import FORMATS, HQQ, QUANTO, HqqWeight, Packed, QuantoWeight, width_named
from apportion.formats.safetensors import INDEX, WEIGHTS
from apportion.models.pretrained import first_line, is_quantized, load_model, load_tokenizer, quiet, require_model
from apportion.models.staged import StagedModel

OWN = (HQQ.name, QUANTO.name)


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
        path: the folder; if it has a manifest, every file is checked against its digest first.
        dtype: what the model computes in.
        dense: decode quanto and hqq weights once into plain linears, instead of keeping them packed.
        trust_remote_code: run code that comes with the checkpoint.

    Returns:
        A transformers causal LM in eval mode.

    Raises:
        InputError: no such folder, or a format that is not read. ArtifactCorruptError: a file is not as written.
        MissingExtraError: the format's package is not installed.

    Cost: the weights in memory once; quanto and hqq ones twice while they are decoded.

    >>> model = load(MODEL)
    >>> model(torch.arange(2, 12)[None]).logits.shape[:2]
    torch.Size([1, 10])
    """
    folder, placement = Path(path), place(device, dtype)
    if (folder / MANIFEST).is_file():
        read_manifest(folder)
    if own_format(folder) is None:
        return load_quietly(str(path), placement, trust_remote_code=trust_remote_code).model
    model, packed = read_own(folder, placement, trust_remote_code=trust_remote_code)
    return model if dense else pack(model, packed, placement)


def load_staged(model: str, placement: Placement, *, trust_remote_code: bool = False) -> StagedModel:
    """`load_model`, also for folders in quanto's and hqq's formats (decoded once into plain linears)."""
    require_model(model)
    if own_format(Path(model)) is None:
        return load_quietly(model, placement, trust_remote_code=trust_remote_code)
    found, _ = read_own(Path(model), placement, trust_remote_code=trust_remote_code)
    return StagedModel(found, placement, source=model)


def load_full(model: str, placement: Placement, *, trust_remote_code: bool = False) -> tuple[StagedModel, Any]:
    """Model and tokenizer of a checkpoint that is to be quantized.

    Raises:
        InputError: it cannot be loaded, or is quantized already.
    """
    staged = load_quietly(model, placement, trust_remote_code=trust_remote_code)
    if is_quantized(staged.model.config):
        raise InputError(f"MODEL {model}: is quantized already", "give the full-precision checkpoint it was made from")
    return staged, load_tokenizer(model, trust_remote_code=trust_remote_code)


def load_quietly(model: str, placement: Placement, *, trust_remote_code: bool) -> StagedModel:
    """`load_model` without the bars of compressed-tensors."""
    with without_tqdm():
        return load_model(model, placement, trust_remote_code=trust_remote_code)


def own_format(folder: Path) -> str | None:
    """`quanto` or `hqq` for a folder that this program wrote in that format."""
    if not (folder / "config.json").is_file():
        return None
    saved = read_json(folder / "config.json").get("quantization_config") or {}
    return saved["quant_method"] if saved.get("made_by") == "apportion" and saved.get("quant_method") in OWN else None


def read_own(folder: Path, placement: Placement, *, trust_remote_code: bool) -> tuple[Any, dict[str, Packed]]:
    """The model with decoded weights, and its packed weights by module path."""
    from transformers import AutoConfig, AutoModelForCausalLM

    saved = read_json(folder / "config.json")["quantization_config"]
    tensors = read_tensors(folder)
    packed = unpack(saved, tensors, folder)
    dtype = getattr(torch, placement.dtype)
    dense = {f"{path}.weight": weight.dequantize(dtype) for path, weight in packed.items()}
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        if is_quantized(config):
            del config.quantization_config
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        extra = {"attn_implementation": "eager"} if capped else {}
        with quiet():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"MODEL {folder}: transformers cannot build it: {first_line(error)}") from error
    fill(model, {**tensors, **dense}, folder)
    return model.eval().requires_grad_(False).to(placement.device), packed


def fill(model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Load all tensors; only parameters tied to a loaded one may be missing.

    Raises:
        ArtifactCorruptError: naming what is missing or left over.
    """
    found = model.load_state_dict(state, strict=False)
    model.tie_weights()
    own = model.state_dict(keep_vars=True)
    loaded = {own[name].data_ptr() for name in state if name in own}
    missing = [name for name in found.missing_keys if own[name].data_ptr() not in loaded]
    if missing or found.unexpected_keys:
        raise ArtifactCorruptError(
            f"{folder}: missing tensors {missing[:8]}, unknown tensors {found.unexpected_keys[:8]}",
            "make the checkpoint again",
        )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the weight files.

    Raises:
        ArtifactCorruptError: missing or unreadable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        names = sorted({Path(name).name for name in read_json(folder / INDEX)["weight_map"].values()})
    try:
        return {key: value for name in names for key, value in load_file(folder / name).items()}
    except (OSError, SafetensorError) as error:
        raise ArtifactCorruptError(f"{folder}: weights cannot be read: {error}", "make the checkpoint again") from error


def unpack(saved: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path) -> dict[str, Packed]:
    """Take the packed tensors out of a state dict.

    Raises:
        ArtifactCorruptError: a tensor is missing or has another shape than its width says.
    """
    form = FORMATS[saved["quant_method"]]
    found: dict[str, Packed] = {}
    for path, own in saved["linears"].items():
        # folders of before widths had names say their bits, and one group size for all
        width, (rows, columns) = width_named(own.get("width") or own["bits"], saved.get("group_size", 0)), own["shape"]
        parts = {}
        for suffix, (_, shape) in form.shapes(width, rows, columns, torch.float32).items():
            part = tensors.pop(f"{path}.{suffix}", None)
            if part is None or tuple(part.shape) != shape:
                raise ArtifactCorruptError(
                    f"{folder}: {path}.{suffix}: expected a tensor of shape {shape}, found "
                    f"{None if part is None else tuple(part.shape)}",
                    "make the checkpoint again",
                )
            parts[suffix] = part
        found[path] = form.unpack(parts, (rows, columns), width)
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
