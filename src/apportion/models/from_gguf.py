"""A GGUF file as a model to quantize: its tensors dequantized, its tokenizer and configuration made from its metadata.

Only files of high precision are taken: rounding what was rounded before adds both errors, and nobody would see why.
"""

from collections import Counter
from pathlib import Path

from apportion.core.errors import InputError
from apportion.models.gguf.source import HIGH, GgufFile

GGUF = "gguf"


def is_gguf(model: str) -> bool:
    """Whether a MODEL is a GGUF file."""
    path = Path(model).expanduser()
    return path.suffix == ".gguf" and path.is_file()


def require_high_precision(file: GgufFile) -> None:
    """Refuse what was quantized before.

    Raises:
        InputError: with the types that its matrices have.
    """
    kinds = Counter(file.types.values())
    low = {kind: count for kind, count in kinds.items() if kind not in HIGH}
    if low:
        listed = ", ".join(f"{count} x {kind}" for kind, count in sorted(low.items()))
        raise InputError(
            f"MODEL {file.path}: holds tensors below 8 bits ({listed})",
            "give a file in F16, BF16, F32 or Q8_0, or the Hugging Face folder that it was made from",
        )
