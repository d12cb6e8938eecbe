"""A GGUF file -> a model that runs here, and its tokenizer."""

import struct
from pathlib import Path
from typing import Any

from apportion.core.device import Placement
from apportion.core.errors import InputError, first_line
from apportion.formats.ggml import gguf
from apportion.models.gguf.source import GgufFile
from apportion.models.gguf.tensors import ROPE_FACTORS
from apportion.models.pretrained import attention_for, quiet
from apportion.models.staged import StagedModel

SUFFIX = ".gguf"


def is_gguf(model: str) -> bool:
    """Whether a MODEL is a GGUF file and not a folder.

    >>> is_gguf("model.gguf"), is_gguf("folder")
    (True, False)
    """
    return model.endswith(SUFFIX) and not Path(model).is_dir()


def load_gguf(path: Path, placement: Placement) -> StagedModel:
    """The model of a GGUF file, its weights decoded.

    Raises:
        InputError: split, without weights, or not of an architecture that is known here.
        ArtifactCorruptError: not a whole GGUF file.
    """
    return staged_file(GgufFile(path), placement)


def staged_file(file: GgufFile, placement: Placement) -> StagedModel:
    """As `load_gguf`, of a file that is open."""
    return StagedModel(model_of(file), placement, source=str(file.path))


def model_of(file: GgufFile) -> Any:
    """The transformers model of a file, its weights decoded.

    Raises:
        InputError: tensors are missing or unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_config(file.config, dtype=torch.float32, **attention_for(file.config))
    state = file.state()
    found = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    left = set(found.missing_keys) - {"lm_head.weight"}
    if left or found.unexpected_keys:
        raise InputError(f"MODEL {file.path}: lacks {sorted(left)[:8]}", "this file cannot be run here")
    if ROPE_FACTORS in file.types:
        rotary = model.model.rotary_emb
        rotary.inv_freq /= file.weight(ROPE_FACTORS).float()
        rotary.original_inv_freq = rotary.inv_freq.clone()
    return model


def load_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file, through transformers.

    Raises:
        InputError: transformers cannot make it. ArtifactCorruptError: not a whole GGUF file.
    """
    from transformers import AutoTokenizer

    gguf()
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        GgufFile(path)  # says so where the file was cut; opened here alone, since it takes seconds
        raise InputError(
            f"MODEL {path}: transformers cannot read its tokenizer: {first_line(error)}",
            "give the Hugging Face folder that it was converted from",
        ) from error
