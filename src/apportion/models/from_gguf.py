"""A GGUF file as a model to quantize: tensors dequantized, tokenizer and configuration as transformers reads them.

Only files of high precision are taken: rounding what was rounded before adds both errors, and nobody would see why.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from apportion.core.errors import InputError, MissingExtraError
from apportion.models.dense import Dense, reading

GGUF = "gguf"
HIGH = ("F64", "F32", "F16", "BF16", "Q8_0")


def is_gguf(model: str) -> bool:
    """Whether a MODEL is a GGUF file."""
    path = Path(model).expanduser()
    return path.suffix == ".gguf" and path.is_file()


def read_gguf_model(model: str) -> Dense:
    """Load a GGUF file.

    Raises:
        InputError: it is no GGUF file, holds weights below 8 bits (they are counted by type), or is of an architecture
            that transformers does not read from GGUF.
        MissingExtraError: the gguf package is not installed.
    """
    require_high_precision(model)
    path = Path(model).expanduser()
    with reading(model):
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype="auto")
    return Dense(loaded, None, GGUF)


def require_high_precision(model: str) -> None:
    """Refuse what was quantized before.

    Raises:
        InputError: with the types that its matrices have.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf") from error
    try:
        tensors = GGUFReader(Path(model).expanduser()).tensors
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"MODEL {model}: is no GGUF file that can be read: {error}", "download it again") from error
    kinds = Counter(tensor.tensor_type.name for tensor in tensors)
    low = {kind: count for kind, count in kinds.items() if kind not in HIGH}
    if low:
        listed = ", ".join(f"{count} x {kind}" for kind, count in sorted(low.items()))
        raise InputError(
            f"MODEL {model}: holds tensors below 8 bits ({listed})",
            "give a file in F16, BF16, F32 or Q8_0, or the Hugging Face folder that it was made from",
        )
