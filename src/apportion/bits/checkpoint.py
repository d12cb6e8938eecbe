"""A plan's checkpoint, in the format of the rounding that made its weights; safetensors only.

`compressed-tensors` (nearest, gptq): pack-quantized, one config group per width. Stock transformers loads
it; vLLM's source dispatches these widths. Negative scales are legal there: the sign of a group's scale is free.
Zero points are not used: they fail to reload in transformers 5.23.
`quanto`, `hqq`: their own packed tensors under the names that these libraries give them; read by `load`.
"""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from apportion.bits.game.players import tied
from apportion.core.artifact import Json, disk_error, write_bytes, write_json
from apportion.core.errors import InputError
from apportion.formats import COMPRESSED_TENSORS, QUANTO, Format, Packed, Width, rising
from apportion.formats.safetensors import INDEX, WEIGHTS, Entry, entry_of, file_bytes, write_tensors
from apportion.models.staged import StagedModel

SHARD_BYTES = 5_000_000_000
QMAP = "quanto_qmap.json"  # what quanto's own loader asks for: written only where it would guess our group size


def require_fusable(widths: Mapping[str, Width], form: Format) -> None:
    """Refuse, in the format that servers load, other widths within q/k/v or gate/up: they are fused there.

    Raises:
        InputError: naming the first of them.
    """
    if form is not COMPRESSED_TENSORS:
        return
    split = [group for group in tied(tuple(widths)) if len({widths[path] for path in group}) > 1]
    if split:
        listed = "; ".join(", ".join(f"{path} {widths[path].name}" for path in group) for group in split[:4])
        raise InputError(
            f"plan: gives linears that servers fuse other widths ({listed}), and {form.name} is the format of servers",
            "write it with --apply-rounding quanto or hqq (read by apportion.load), or plan without --untie",
        )


def unquantized(staged: StagedModel) -> dict[str, Tensor]:
    """The checkpoint's tensors that stay as they are: all but the blocks' linear weights."""
    quantized = {f"{path}.weight" for path in staged.originals}
    return {name: tensor for name, tensor in staged.checkpoint.items() if name not in quantized}


def packed_entries(staged: StagedModel, widths: Mapping[str, Width], form: Format) -> dict[str, Entry]:
    """Names, dtypes and shapes of every tensor of a plan's weight files, known before rounding."""
    found = {name: entry_of(tensor) for name, tensor in unquantized(staged).items()}
    for path, width in widths.items():
        weight = staged.originals[path]
        rows, columns = weight.shape
        for suffix, (dtype, shape) in form.shapes(width, rows, columns, weight.dtype).items():
            found[f"{path}.{suffix}"] = Entry(dtype, shape)
    return found


def fixed_bytes(staged: StagedModel, form: Format, widths: tuple[Width, ...]) -> int:
    """Upper bound, within a few header bytes, of what every plan's weight files hold besides the players.

    The header is longest with all players at the highest width: every offset has its most digits there.
    """
    entries = packed_entries(staged, dict.fromkeys(staged.originals, widths[-1]), form)
    tensors = sum(entry.nbytes for entry in entries.values())
    shards = 1 + tensors // SHARD_BYTES
    rest = sum(entry_of(tensor).nbytes for tensor in unquantized(staged).values())
    return rest + file_bytes(entries) - tensors + (shards - 1) * 128


def config_groups(staged: StagedModel, widths: Mapping[str, Width]) -> Json:
    """One group per width, whose targets match exactly its linears."""
    groups: Json = {}
    for width in rising(widths.values()):
        by_block: dict[int, list[str]] = {}
        for path in (path for path, own in widths.items() if own == width):
            block, _, linear = path.removeprefix(staged.layout.prefix + ".").partition(".")
            by_block.setdefault(int(block), []).append(re.escape(linear))
        prefix = re.escape(staged.layout.prefix)
        groups[width.name] = {
            "targets": [f"re:^{prefix}\\.{block}\\.({'|'.join(names)})$" for block, names in by_block.items()],
            "weights": {
                "num_bits": width.code_bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": width.group_size,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
    return groups


def quantization_config(staged: StagedModel, widths: Mapping[str, Width], form: Format) -> Json:
    """The `quantization_config` of config.json: compressed-tensors' own, or what `load` reads.

    Transformers refuses to load the other formats instead of filling in random weights.
    """
    if form is not COMPRESSED_TENSORS:
        shapes = {path: list(staged.originals[path].shape) for path in widths}
        linears = {path: {"width": width.name, "shape": shapes[path]} for path, width in widths.items()}
        own = {"made_by": "apportion", "linears": linears}
        return {"quant_method": form.name, "weights": "mixed", **own}  # transformers knows no "mixed" and refuses
    ignored = [
        name
        for name, module in staged.model.named_modules()
        if type(module).__name__ == "Linear" and name not in staged.originals
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "config_groups": config_groups(staged, widths),
    }


def write_checkpoint(
    folder: Path,
    staged: StagedModel,
    widths: Mapping[str, Width],
    packed: Mapping[str, Packed],
    tokenizer: Any,
    form: Format,
) -> tuple[int, list[str]]:
    """Write a loadable checkpoint; `config.json` comes last, so that a half-written one does not load.

    Args:
        widths: of every linear, by module path. packed: its weight at that width.
        form: the format of the rounding that made them.

    Returns:
        Bytes of the weight file(s), and the names of all files written.
    """
    tensors = dict(unquantized(staged))
    for path in widths:
        for suffix, tensor in packed[path].tensors().items():
            tensors[f"{path}.{suffix}"] = tensor
    made = {name: entry_of(tensor) for name, tensor in tensors.items()}
    assert made == packed_entries(staged, widths, form), "tensors differ from the prediction"
    names = write_shards(folder, tensors)
    weight_bytes = sum((folder / name).stat().st_size for name in names if name.endswith(".safetensors"))
    names += [*save_companions(folder, staged, tokenizer), *save_code(folder, staged.model)]
    if form is QUANTO and all(
        quanto_guess(staged.originals[path].shape[1]) == width.group_size for path, width in widths.items()
    ):
        qmap = {path: {"weights": f"qint{width.code_bits}", "activations": "none"} for path, width in widths.items()}
        write_json(folder / QMAP, qmap)
        names.append(QMAP)
    config = json.loads(staged.model.config.to_json_string(use_diff=False))
    config["dtype"] = str(staged.dtype).removeprefix("torch.")
    config["quantization_config"] = quantization_config(staged, widths, form)
    write_json(folder / "config.json", config)
    return weight_bytes, [*names, "config.json"]


def quanto_guess(columns: int) -> int | None:
    """The group size that quanto's QLinear assumes when it loads; it saves none."""
    sizes = [size for size in (128, 96, 64, 32) if columns % size == 0]
    return sizes[0] if columns > 128 and sizes else None


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> list[str]:
    """Write one file, or several of at most SHARD_BYTES with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, tensors)
        return [WEIGHTS]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard)
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    write_json(
        folder / INDEX, {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    )
    return [*names, INDEX]


def save_companions(folder: Path, staged: StagedModel, tokenizer: Any) -> list[str]:
    """Tokenizer and generation settings.

    Raises:
        ArtifactError: the disk is full or refuses.
    """
    try:
        written = tokenizer.save_pretrained(str(folder))
    except OSError as error:
        raise disk_error(folder, error) from error
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises bare exceptions for what the system refuses
            raise
        raise disk_error(folder, OSError(str(error))) from error
    saved = [Path(name).name for name in written if Path(name).is_file()]
    generation = getattr(staged.model, "generation_config", None)
    if generation is not None:
        write_bytes(folder / "generation_config.json", generation.to_json_string().encode())
        saved.append("generation_config.json")
    return saved


def save_code(folder: Path, model: Any) -> list[str]:
    """Code that came with the checkpoint, without which its config names what the new folder lacks.

    Raises:
        ArtifactError: the disk is full or refuses.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    own = [kind for kind in (type(model), type(model.config)) if kind.__module__.startswith("transformers_modules.")]
    homes = [inspect.getfile(kind) for kind in own]
    files = {Path(file) for home in homes for file in (home, *get_relative_import_files(home))}
    for file in sorted(files):
        write_bytes(folder / file.name, file.read_bytes())
    return sorted(file.name for file in files)
