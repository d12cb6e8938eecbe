"""The `quantization_config` of a checkpoint: which module has which width, in words that its readers map.

Targets are plain module paths as transformers' class calls them, of experts also as the files do. transformers matches
them as they are; vLLM maps them through the same table that renames a wrapped model's modules, which patterns (`re:`)
are not put through.
"""

from collections.abc import Collection, Mapping

from torch import nn

from apportion.bits.vocabulary import UNTOUCHED, Vocabulary, format_of
from apportion.core.artifact import Json
from apportion.formats import COMPRESSED_TENSORS, INT_QUANTIZED, Format, Width, rising
from apportion.models.staged import StagedModel
from apportion.models.structure import experts_of


def quantization_config(
    staged: StagedModel, widths: Mapping[str, Width], form: Format, vocabulary: Vocabulary = UNTOUCHED
) -> Json:
    """What `config.json` says of a plan's weights: compressed-tensors' own words, or what `load` reads.

    Transformers refuses to load the other formats instead of filling in random weights.
    """
    if form is not COMPRESSED_TENSORS:
        linears = {
            staged.origin.paths[path]: {"width": width.name, "shape": list(staged.originals[path].shape)}
            for path, width in widths.items()
        }
        own = {"made_by": "apportion", "linears": linears}
        return {"quant_method": form.name, "weights": "mixed", **own}  # transformers knows no "mixed" and refuses
    bytewise = {matrix: width for matrix, width in vocabulary.items() if format_of(matrix, width) is INT_QUANTIZED}
    packed = {**widths, **{matrix.path: width for matrix, width in vocabulary.items() if matrix not in bytewise}}
    groups = {
        width.name: group(
            width, [name for path, own in packed.items() if own == width for name in names_of(path, staged)]
        )
        for width in rising(packed.values())
    }
    for matrix, width in bytewise.items():
        modules = [path for path in (matrix.path, matrix.twin) if path]
        groups[matrix.name] = {**group(width, modules), "format": INT_QUANTIZED.name}
    targets = {path for item in groups.values() for path in item["targets"]}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignored(staged, targets),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "config_groups": groups,
    }


def names_of(path: str, staged: StagedModel) -> list[str]:
    """What a module is called by transformers, and an expert also by the checkpoint's files.

    vLLM knows Mixtral's experts by their names in the files (`block_sparse_moe.experts`) alone; what it renames of
    wrapped models it renames in targets too.
    """
    return [*dict.fromkeys((path, staged.origin.paths.get(path, path)))] if experts_of(path) else [path]


def group(width: Width, paths: list[str]) -> Json:
    """One config group: modules of one width."""
    return {
        "targets": paths,
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


def ignored(staged: StagedModel, targets: Collection[str]) -> list[str]:
    """Modules that servers would look up and that have no width: other linears, and the routers of experts."""
    return [
        name
        for name, module in staged.model.named_modules()
        if name not in targets and (isinstance(module, nn.Linear) or type(module).__name__.endswith("Router"))
    ]
