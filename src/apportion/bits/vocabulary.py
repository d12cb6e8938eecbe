"""Embedding and head at a width: their tensors in the files, and their rounded weights.

Both are rounded to nearest, without a text. An embedding of eight bits is written as `int-quantized`, which stock
transformers loads; everything else packed, as the blocks' linears are (a packed head loads there, a packed embedding
does not, see `formats.int_quantized`).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from apportion.bits.rounding.nearest import Nearest
from apportion.core.artifact import Json
from apportion.core.errors import ArtifactMismatchError
from apportion.formats import (
    COMPRESSED_TENSORS,
    INT_QUANTIZED,
    Format,
    IntWeight,
    Packed,
    Width,
    width_named,
)
from apportion.formats.safetensors import Entry
from apportion.models.staged import StagedModel
from apportion.models.vocabulary import VocabularyMatrix, vocabulary_of

Vocabulary = Mapping[VocabularyMatrix, Width]
"""The width of embedding and head; a matrix that is not in it stays as the files have it."""

UNTOUCHED: Vocabulary = MappingProxyType({})
WIDTHS = {"embedding": (8,), "head": (4, 8)}
"""Bits that each may have besides its own 16, so that stock transformers loads what is written."""


def format_of(matrix: VocabularyMatrix, width: Width) -> Format:
    """The layout in which a matrix is written at a width."""
    return INT_QUANTIZED if matrix.name == "embedding" and width.code_bits == 8 else COMPRESSED_TENSORS


def entries_of(vocabulary: Vocabulary) -> dict[str, Entry]:
    """Names, dtypes and shapes of its tensors in the files."""
    found: dict[str, Entry] = {}
    for matrix, width in vocabulary.items():
        form = format_of(matrix, width)
        for suffix, (dtype, shape) in form.shapes(width, *matrix.shape, matrix.dtype).items():
            found[f"{matrix.stored}.{suffix}"] = Entry(dtype, shape)
            if second_scale(matrix, form, suffix):
                found[f"{matrix.twin_stored}.{suffix}"] = Entry(dtype, shape)
    return found


def second_scale(matrix: VocabularyMatrix, form: Format, suffix: str) -> bool:
    """Whether a tensor is saved for the tied head too: transformers ties the codes, and each module has its scale."""
    return bool(matrix.twin) and form is INT_QUANTIZED and suffix == "weight_scale"


def bytes_of(vocabulary: Vocabulary) -> int:
    """Bytes of its tensors in the files."""
    return sum(entry.nbytes for entry in entries_of(vocabulary).values())


def rounded(staged: StagedModel, vocabulary: Vocabulary) -> dict[str, Packed]:
    """The rounded weights by module path.

    Cost: one search of scales over each matrix.
    """
    nearest = Nearest()
    found: dict[str, Packed] = {}
    for matrix, width in vocabulary.items():
        weight = staged.origin.read(f"{matrix.stored}.weight").to(staged.placement.device)
        grid = nearest.round(weight, width)
        found[matrix.path] = IntWeight(grid) if format_of(matrix, width) is INT_QUANTIZED else grid
    return found


def owners_of(vocabulary: Vocabulary) -> dict[str, tuple[str, str]]:
    """Module path and suffix of every tensor of the files that is its own, by name."""
    found: dict[str, tuple[str, str]] = {}
    for matrix, width in vocabulary.items():
        form = format_of(matrix, width)
        for suffix in form.shapes(width, *matrix.shape, matrix.dtype):
            found[f"{matrix.stored}.{suffix}"] = (matrix.path, suffix)
            if second_scale(matrix, form, suffix):
                found[f"{matrix.twin_stored}.{suffix}"] = (matrix.path, suffix)
    return found


def by_name(vocabulary: Vocabulary) -> dict[str, str]:
    """Names of widths by the matrix's name, as plans keep them."""
    return {matrix.name: width.name for matrix, width in vocabulary.items()}


def named(staged: StagedModel, widths: Mapping[str, str]) -> Vocabulary:
    """What a plan kept, for the model that it was made for.

    Raises:
        ArtifactMismatchError: the model has no such matrix.
    """
    if not widths:
        return UNTOUCHED
    found = {matrix.name: matrix for matrix in vocabulary_of(staged)[0]}
    if lacking := sorted(widths.keys() - found.keys()):
        raise ArtifactMismatchError(
            f"plan: gives {', '.join(lacking)} a width, and this model's cannot be quantized",
            "apply it to the checkpoint that it was made for",
        )
    return {found[name]: width_named(width, 0) for name, width in widths.items()}


def servers_of(form: Format, vocabulary: Vocabulary) -> list[str]:
    """Who loads a plan's folder; vLLM packed heads, and by its source packed embeddings that are not tied."""
    embeddings = [(matrix, format_of(matrix, width)) for matrix, width in vocabulary.items() if matrix.name != "head"]
    if not embeddings:
        return list(form.servers)
    ((matrix, own),) = embeddings
    if own is INT_QUANTIZED:
        return list(own.servers)
    return ["apportion.load"] if matrix.twin else ["apportion.load", "vLLM (2, 3, 8 bit: CUDA only)"]


def told(names: Sequence[str], vocabulary: Vocabulary, kept: Mapping[str, str], costs: Mapping[str, float]) -> Json:
    """For the result.

    Args:
        names: what the model has of embedding and head; a tied head is the embedding.
        kept: why a matrix has no width, by name. costs: of each at its width alone, nats per token.
    """
    return {
        "names": list(names),
        "widths": by_name(vocabulary),
        "bytes": bytes_of(vocabulary),
        "cost_nats": dict(costs),
        "kept": dict(kept),
    }
