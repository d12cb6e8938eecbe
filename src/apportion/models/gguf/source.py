"""Where a GGUF file's contents come from: a Hugging Face folder or another GGUF file, seen alike.

Both are checked for everything that could stop a conversion before any work is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from apportion.core.errors import ArtifactCorruptError, InputError
from apportion.formats.ggml import PLAIN, gguf
from apportion.formats.gguf_file import Field
from apportion.models.gguf.architectures import Architecture, architecture_named, architecture_of
from apportion.models.gguf.metadata import config_from, model_fields
from apportion.models.gguf.tensors import ROPE_FACTORS, from_gguf, gguf_names, rope_factors, to_gguf
from apportion.models.gguf.tokenizer import tokenizer_fields
from apportion.models.staged import StagedModel

EMBEDDING = "token_embd.weight"
HIGH = (*PLAIN, "Q8_0")  # types that a source may have
# of a source, since the file that is written has its own
DROPPED = ("general.alignment", "general.file_type", "general.quantization_version", "quantize.imatrix")


@runtime_checkable
class Source(Protocol):
    """What is quantized to a GGUF file.

    Attributes:
        fields: metadata by key. shapes: of every tensor by GGUF name, in the order in which they are written.
        modules: module path of the weight that a GGUF matrix is, for those that a model here has.
    """

    @property
    def fields(self) -> Mapping[str, Field]: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def modules(self) -> Mapping[str, str]: ...
    def weight(self, name: str) -> Tensor:
        """A tensor as the file will hold it, before quantization."""
        ...

    def restored(self, tensor: Tensor, name: str) -> Tensor:
        """A tensor of the file as the model here has it."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """A Hugging Face checkpoint, as it was loaded."""

    staged: StagedModel
    architecture: Architecture
    fields: Mapping[str, Field]
    names: Mapping[str, str]

    @cached_property
    def extra(self) -> dict[str, Tensor]:
        """Tensors that the checkpoint does not have as such."""
        factors = rope_factors(self.staged.model.config)
        return {} if factors is None else {ROPE_FACTORS: factors}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        found = {own: self.staged.origin.tensors[name].shape for own, name in self.names.items()}
        return {**{name: tuple(tensor.shape) for name, tensor in self.extra.items()}, **found}

    @cached_property
    def modules(self) -> Mapping[str, str]:
        return {own: name.removesuffix(".weight") for own, name in self.names.items() if name.endswith(".weight")}

    def weight(self, name: str) -> Tensor:
        if name in self.extra:
            return self.extra[name]
        return to_gguf(self.staged.origin.read(self.names[name]), name, self.architecture, self.staged.model.config)

    def restored(self, tensor: Tensor, name: str) -> Tensor:
        return from_gguf(tensor, name, self.architecture, self.staged.model.config)


def folder_source(staged: StagedModel, tokenizer: Any, where: str) -> FolderSource:
    """A loaded checkpoint as a source.

    Raises:
        InputError: its architecture, a tensor or its tokenizer has no counterpart in GGUF.
    """
    config = staged.model.config
    architecture = architecture_of(config, where)
    names = gguf_names(architecture, list(staged.origin.tensors), config.num_hidden_layers, where)
    fields = model_fields(config, architecture, Path(where).name) | tokenizer_fields(
        tokenizer, config.vocab_size, where
    )
    return FolderSource(staged, architecture, fields, {own: name for name, own in names.items()})


class GgufFile:
    """A GGUF file that can be read: whole, not split, of a language model.

    Attributes:
        path: the file. fields: metadata by key. types: ggml type of every tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = opened(path)
        self.fields: dict[str, Field] = {
            name: field_of(field) for name, field in self.reader.fields.items() if not name.startswith("GGUF.")
        }
        self.plain: dict[str, Any] = {name: field.value for name, field in self.fields.items()}
        self._tensors: dict[str, Any] = {tensor.name: tensor for tensor in self.reader.tensors}
        self.types: dict[str, str] = {name: tensor.tensor_type.name for name, tensor in self._tensors.items()}
        self._refuse()
        self.architecture = architecture_named(self.plain["general.architecture"], str(path))

    def _refuse(self) -> None:
        """What cannot be used, by name."""
        if self.plain.get("split.count", 1) > 1:
            raise InputError(
                f"MODEL {self.path}: is part {self.plain.get('split.no', 0) + 1} of {self.plain['split.count']} of a "
                "split file",
                "join the parts with llama.cpp's llama-gguf-split --merge",
            )
        if not self._tensors:
            raise InputError(f"MODEL {self.path}: holds a vocabulary and no weights", "give the file of the model")
        if "general.architecture" not in self.plain:
            raise ArtifactCorruptError(f"MODEL {self.path}: has no general.architecture", "download it again")
        kind = self.plain.get("general.type", "model")
        odd = [] if kind == "model" else [f"general.type is {kind!r}, expected 'model'"]
        if EMBEDDING not in self._tensors:
            odd.append(f"has no {EMBEDDING}")
        if odd:
            raise InputError(
                f"MODEL {self.path}: is no language model: {', '.join(odd)}",
                "give the file of the model; an adapter is merged into it first (llama.cpp's llama-export-lora)",
            )

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Rows first, as torch has them."""
        return {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def weight(self, name: str) -> Tensor:
        """A tensor, decoded: float32 unless it is stored in a plain type."""
        tensor, kind = self._tensors[name], self.types[name]
        if kind in PLAIN:
            data = np.array(tensor.data)  # a copy: what is read lazily may go away
            found = (
                torch.from_numpy(data.view(np.int16)).view(torch.bfloat16) if kind == "BF16" else torch.from_numpy(data)
            )
        else:
            found = torch.from_numpy(gguf().quants.dequantize(tensor.data, tensor.tensor_type))
        return found.reshape(self.shapes[name])

    @cached_property
    def tied(self) -> bool:
        """Whether the embedding is the output head too."""
        return "output.weight" not in self._tensors

    @cached_property
    def config(self) -> Any:
        """The model's configuration for transformers.

        Raises:
            InputError: a rotary scaling that is not run here.
        """
        rows = self.shapes[EMBEDDING][0]
        biased = "blk.0.attn_q.bias" in self._tensors
        return config_from(
            self.plain, self.architecture, str(self.path), vocabulary=rows, tied=self.tied, biased=biased
        )

    def state(self) -> dict[str, Tensor]:
        """All weights under the names that transformers has, float32 where they were decoded."""
        found = {}
        for name, own in self.parameter_names.items():
            found[own] = from_gguf(self.weight(name), name, self.architecture, self.config)
        return found

    @cached_property
    def parameter_names(self) -> dict[str, str]:
        """Transformers' name of every tensor, by GGUF name.

        Raises:
            InputError: tensors that transformers' model does not have, all of them listed.
        """
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            own = AutoModelForCausalLM.from_config(self.config)
        names, blocks = [name for name, _ in own.named_parameters()], self.config.num_hidden_layers
        reverse = {gguf: name for name, gguf in gguf_names(self.architecture, names, blocks, str(self.path)).items()}
        unknown = sorted(set(self._tensors) - set(reverse) - {ROPE_FACTORS})
        missing = sorted(set(reverse) - set(self._tensors))
        if unknown or missing:
            raise InputError(
                f"MODEL {self.path}: tensors unknown to transformers: {unknown[:8]}; missing: {missing[:8]}",
                "this file cannot be run here",
            )
        return {name: reverse[name] for name in self._tensors if name in reverse}


@dataclass(frozen=True)
class FileSource:
    """A GGUF file of high precision; its metadata is kept as it is."""

    file: GgufFile

    @property
    def fields(self) -> Mapping[str, Field]:
        return {name: field for name, field in self.file.fields.items() if not name.startswith(DROPPED)}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.file.shapes

    @cached_property
    def modules(self) -> Mapping[str, str]:
        names = self.file.parameter_names
        return {name: own.removesuffix(".weight") for name, own in names.items() if own.endswith(".weight")}

    def weight(self, name: str) -> Tensor:
        return self.file.weight(name)

    def restored(self, tensor: Tensor, name: str) -> Tensor:
        return from_gguf(tensor, name, self.file.architecture, self.file.config)


def file_source(path: Path, *, allow_requantize: bool = False) -> FileSource:
    """A GGUF file as a source.

    Raises:
        InputError: split, without weights, no language model, of an unknown architecture, or of low precision (unless
            allowed).
    """
    file = GgufFile(path)
    low = sorted({kind for kind in file.types.values() if kind not in HIGH})
    if low and not allow_requantize:
        count = sum(kind in low for kind in file.types.values())
        raise InputError(
            f"MODEL {path}: {count} of its tensors are quantized already ({', '.join(low)})",
            f"give a file of {', '.join(HIGH)}, or --allow-requantize to lose precision twice",
        )
    return FileSource(file)


def opened(path: Path) -> Any:
    """gguf's reader of a file.

    Raises:
        InputError: no such file, or of another byte order. ArtifactCorruptError: not a whole GGUF file.
    """
    if not path.is_file():
        raise InputError(f"MODEL {path}: no such file", "give a .gguf file")
    try:
        reader = gguf().GGUFReader(path)
        last = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        raise ArtifactCorruptError(f"MODEL {path}: cannot be read as GGUF: {error}", "download it again") from error
    if reader.byte_order != "I":
        raise InputError(
            f"MODEL {path}: is of the other byte order than this machine",
            f"turn it round: gguf-convert-endian {path} native",
        )
    if last > path.stat().st_size:
        raise ArtifactCorruptError(
            f"MODEL {path}: ends after {path.stat().st_size:,} of {last:,} bytes", "download it again"
        )
    return reader


def field_of(field: Any) -> Field:
    """A metadata value of gguf's reader."""
    kinds = [kind.name for kind in field.types]
    return Field(kinds[0], field.contents(), kinds[-1] if kinds[0] == "ARRAY" else "")
