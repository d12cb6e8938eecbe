"""A plan's checkpoint, in the format of the rounding that made its weights; safetensors only.

Everything that is not quantized is copied from the checkpoint's own files, under their names, byte for byte: tensors
that the loaded class has no place for, norms in a wider dtype, processor, template, licence. `config.json` is the
source's with a `quantization_config`.

`compressed-tensors` (nearest, gptq): pack-quantized, one config group per width. Stock transformers loads
it; vLLM's source dispatches these widths. Negative scales are legal there: the sign of a group's scale is free.
Zero points are not used: they fail to reload in transformers 5.23.
Embedding and head may have widths too (`bits.vocabulary`), in this format only.
`quanto`, `hqq`: their own packed tensors under the names that these libraries give them; read by `load`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from apportion.bits.companions import copy_companions, save_code, save_tokenizer
from apportion.bits.targets import quantization_config
from apportion.bits.vocabulary import UNTOUCHED, Vocabulary, entries_of, owners_of
from apportion.core.artifact import Json, write_json
from apportion.core.errors import InputError
from apportion.formats import COMPRESSED_TENSORS, QUANTO, Format, Packed, Width
from apportion.formats.safetensors import INDEX, WEIGHTS, Entry, file_bytes, write_tensors
from apportion.models.staged import StagedModel
from apportion.models.structure import fused

SHARD_BYTES = 5_000_000_000
QMAP = "quanto_qmap.json"  # what quanto's own loader asks for: written only where it would guess our group size


def require_fusable(widths: Mapping[str, Width], form: Format) -> None:
    """Refuse, in the format that servers load, other widths within q/k/v or gate/up: they are fused there.

    Raises:
        InputError: naming the first of them.
    """
    if form is not COMPRESSED_TENSORS:
        return
    split = [group for group in fused(tuple(widths)) if len({widths[path] for path in group}) > 1]
    if split:
        listed = "; ".join(", ".join(f"{path} {widths[path].name}" for path in group) for group in split[:4])
        raise InputError(
            f"plan: gives linears that servers fuse other widths ({listed}), and {form.name} is the format of servers",
            "write it with --apply-rounding quanto or hqq (read by apportion.load), or plan without --untie",
        )


def unquantized(staged: StagedModel, vocabulary: Vocabulary = UNTOUCHED) -> dict[str, Entry]:
    """The checkpoint's tensors that stay as they are: all but the blocks' linear weights, embedding and head."""
    quantized = {f"{staged.origin.paths[path]}.weight" for path in staged.originals}
    quantized |= {name for matrix in vocabulary for name in matrix.weight_names}
    return {name: entry for name, entry in staged.origin.tensors.items() if name not in quantized}


def packed_entries(
    staged: StagedModel, widths: Mapping[str, Width], form: Format, vocabulary: Vocabulary = UNTOUCHED
) -> dict[str, Entry]:
    """Names, dtypes and shapes of every tensor of a plan's weight files, known before rounding."""
    found = unquantized(staged, vocabulary) | entries_of(vocabulary)
    for path, width in widths.items():
        weight = staged.originals[path]
        rows, columns = weight.shape
        for suffix, (dtype, shape) in form.shapes(width, rows, columns, weight.dtype).items():
            found[f"{staged.origin.paths[path]}.{suffix}"] = Entry(dtype, shape)
    return found


def fixed_bytes(
    staged: StagedModel, form: Format, widths: tuple[Width, ...], vocabulary: Vocabulary = UNTOUCHED
) -> int:
    """Upper bound, within a few header bytes, of what every plan's weight files hold besides the players.

    The header is longest where every shape and every offset has the most digits that any width gives it. A format
    whose codes have another dtype at another width (hqq) orders its tensors by the plan: there every offset counts as
    the last.
    """
    files = [packed_entries(staged, dict.fromkeys(staged.originals, width), form, vocabulary) for width in widths]
    entries = widest(files)
    tensors = sum(entry.nbytes for entry in entries.values())
    shards = 1 + tensors // SHARD_BYTES
    outside = unquantized(staged, vocabulary) | entries_of(vocabulary)
    rest = sum(entry.nbytes for entry in outside.values())
    ordered = all(file[name].dtype == entry.dtype for file in files for name, entry in entries.items())
    offsets = 0 if ordered else 2 * len(str(tensors)) * len(entries)
    return rest + file_bytes(entries) - tensors + (shards - 1) * 128 + offsets


def widest(files: Sequence[Mapping[str, Entry]]) -> dict[str, Entry]:
    """Tensors of the same names in several files, each as large as the largest, dimension by dimension.

    >>> import torch
    >>> one, other = ({"scale": Entry(torch.int8, shape)} for shape in ((64, 2), (8, 16)))
    >>> widest([one, other])["scale"].shape
    (64, 16)
    """
    found = {}
    for name in files[0]:
        own = [file[name] for file in files]
        dtype = max((entry.dtype for entry in own), key=lambda dtype: dtype.itemsize)
        found[name] = Entry(dtype, tuple(map(max, *(entry.shape for entry in own))))
    return found


def write_checkpoint(
    folder: Path,
    staged: StagedModel,
    widths: Mapping[str, Width],
    packed: Mapping[str, Packed],
    tokenizer: Any,
    form: Format,
    vocabulary: Vocabulary = UNTOUCHED,
) -> tuple[int, list[str]]:
    """Write a loadable checkpoint; `config.json` comes last, so that a half-written one does not load.

    Args:
        widths: of every linear, by module path. packed: its weight at that width, and those of embedding and head.
        form: the format of the rounding that made them.
        vocabulary: widths of embedding and head.

    Returns:
        Bytes of the weight file(s), and the names of all files written.

    Raises:
        ArtifactError: the disk is full or refuses.
    """
    entries = packed_entries(staged, widths, form, vocabulary)
    names = write_shards(folder, entries, reading(staged, widths, packed, form, vocabulary))
    weight_bytes = sum((folder / name).stat().st_size for name in names if name.endswith(".safetensors"))
    if staged.origin.folder is not None:
        names += copy_companions(staged.origin.folder, staged.origin.companions, folder)
    else:
        names += [*save_tokenizer(folder, staged.model, tokenizer), *save_code(folder, staged.model)]
    if form is QUANTO and all(
        quanto_guess(staged.originals[path].shape[1]) == width.group_size for path, width in widths.items()
    ):
        qmap = {path: {"weights": f"qint{width.code_bits}", "activations": "none"} for path, width in widths.items()}
        write_json(folder / QMAP, qmap)
        names.append(QMAP)
    quantization = quantization_config(staged, widths, form, vocabulary)
    write_json(folder / "config.json", {**config_of(staged), "quantization_config": quantization})
    return weight_bytes, [*names, "config.json"]


def config_of(staged: StagedModel) -> Json:
    """The source's configuration as it stands there; the loaded model's own where it came from no folder."""
    if staged.origin.config is not None:
        return dict(staged.origin.config)
    found: Json = json.loads(staged.model.config.to_json_string(use_diff=False))
    return {**found, "dtype": str(staged.dtype).removeprefix("torch.")}


def reading(
    staged: StagedModel,
    widths: Mapping[str, Width],
    packed: Mapping[str, Packed],
    form: Format,
    vocabulary: Vocabulary = UNTOUCHED,
) -> Callable[[str], Tensor]:
    """How each tensor of the new files is had: packed, one linear at a time, or copied from the source."""
    owner = owners_of(vocabulary)
    for path, width in widths.items():
        rows, columns = staged.originals[path].shape
        for suffix in form.shapes(width, rows, columns, staged.originals[path].dtype):
            owner[f"{staged.origin.paths[path]}.{suffix}"] = (path, suffix)

    @lru_cache(maxsize=1)
    def made(path: str) -> Mapping[str, Tensor]:
        return packed[path].tensors()

    def read(name: str) -> Tensor:
        if name not in owner:
            return staged.origin.read(name)
        path, suffix = owner[name]
        found = made(path)[suffix]
        return found if name.startswith(f"{staged.origin.paths[path]}.") else found.clone()  # no file holds one twice

    return read


def quanto_guess(columns: int) -> int | None:
    """The group size that quanto's QLinear assumes when it loads; it saves none."""
    sizes = [size for size in (128, 96, 64, 32) if columns % size == 0]
    return sizes[0] if columns > 128 and sizes else None


def write_shards(folder: Path, entries: Mapping[str, Entry], read: Callable[[str], Tensor]) -> list[str]:
    """Write one file, or several of at most SHARD_BYTES with an index; one file's tensors are in memory at a time."""
    shards = sharded(entries)
    single = [WEIGHTS]
    names = (
        single
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, {tensor: checked(read(tensor), entries[tensor], tensor) for tensor in shard})
    if names is single:
        return single
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total = sum(entry.nbytes for entry in entries.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return [*names, INDEX]


def sharded(entries: Mapping[str, Entry]) -> Sequence[Sequence[str]]:
    """Names of tensors by file, in order, each of at most SHARD_BYTES or of one tensor."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in entries.items():
        if size + entry.nbytes > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entry.nbytes
    return shards


def checked(tensor: Tensor, entry: Entry, name: str) -> Tensor:
    """A tensor that is what was counted: sizes are promised before anything is rounded."""
    assert (tensor.dtype, tuple(tensor.shape)) == (entry.dtype, entry.shape), f"{name} differs from the prediction"
    return tensor
