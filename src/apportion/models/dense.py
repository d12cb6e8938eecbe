"""A checkpoint of any format that is read -> a transformers model with plain weights.

safetensors only, nothing unpickled, no tensor filled in at random. Quantized weights are decoded once: what is decoded
in every forward pass runs at a fiftieth of the speed.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from apportion.core.device import Placement
from apportion.core.errors import InputError, first_few
from apportion.formats.packed import Packed
from apportion.models.bare import WHOLE, plain_source
from apportion.models.blockwise import FP8, decoded_source, is_blockwise
from apportion.models.experts import take_apart
from apportion.models.names import Names, names_of
from apportion.models.origin import Origin, origin_of_folder
from apportion.models.own import is_own, is_packed_grid, require_as_written, take_grid, take_packed
from apportion.models.parameters import round_computed
from apportion.models.pretrained import (
    attention_for,
    local_folder,
    model_class,
    own_code,
    quiet,
    refusals,
    told,
    wrong_config,
)
from apportion.models.source import Source, open_source


@dataclass(frozen=True, slots=True)
class Dense:
    """A loaded model with plain weights, on the CPU.

    Attributes:
        origin: its tensors as the files have them; None where they are stored in another form than plain.
        format: that the weights were stored in; empty for plain ones.
        packed: what was decoded from a format of our own, by module path.
    """

    model: Any
    origin: Origin | None = None
    format: str = ""
    packed: Mapping[str, Packed] = field(default_factory=dict)


def read_dense(model: str, placement: Placement, *, trust_remote_code: bool = False, apart: bool = False) -> Dense:
    """Read a checkpoint, decoding what is quantized.

    Args:
        model: a local folder or a hub name.
        placement: quantized weights are decoded in its dtype; plain ones keep the checkpoint's.
        apart: take fused experts apart, for whoever quantizes; they run faster together.

    Raises:
        InputError: no such model, no causal LM, weights that are missing, broken or in a format that is not read.
        ArtifactCorruptError: a file of a folder of ours is not as written.
        MissingExtraError: the format's package is not installed.
    """
    folder = local_folder(model)
    require_as_written(folder)
    source = open_source(folder)
    saved = source.config.get("quantization_config") or {}
    if not isinstance(saved, dict):
        raise InputError(
            f"MODEL {model}: quantization_config {saved!r}: expected an object that says how weights are decoded",
            "bring the config.json that belongs to its weights",
        )
    with reading(model):
        asked = Asked(model, source, read_config(source, trust_remote_code), trust_remote_code)
        compute = getattr(torch, placement.dtype)
        if not saved:
            plain = plain_source(model, source)
            loaded = asked.whole(dtype="auto") if plain is source else asked.filled(dict(plain.read()), dtype="auto")
            return Dense(loaded, origin_of(loaded, plain, apart=apart))
        if is_own(saved) or is_packed_grid(saved):
            state, packed = take_packed(saved, source) if is_own(saved) else take_grid(saved, source)
            loaded = asked.rounded(asked.filled({**state, **dense_weights(packed, compute)}, dtype=compute))
            return Dense(loaded, None, saved["quant_method"], by_module(loaded, packed) if is_own(saved) else {})
        if is_blockwise(saved):
            plain = decoded_source(saved, source)
            loaded = asked.filled(dict(plain.read()), dtype="auto")
            return Dense(loaded, origin_of(loaded, plain, apart=apart), FP8)
        if saved.get("quant_method") == "compressed-tensors":
            # in a narrower dtype than the compute dtype, code times scale would be rounded
            return Dense(asked.rounded(decompressed(asked.whole(dtype=compute))), None, "compressed-tensors")
    raise InputError(
        f"MODEL {model}: is quantized as {saved.get('quant_method') or saved}, which is not read",
        "give full precision, compressed-tensors, block-wise fp8, or a folder of ours",
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to transformers: which class, with what."""

    model: str
    source: Source
    config: Any
    trust_remote_code: bool

    def whole(self, *, dtype: Any) -> Any:
        """The model as transformers reads the folder itself."""
        return self._load(str(self.source.folder), use_safetensors=True, dtype=dtype)

    def filled(self, state: Mapping[str, Tensor], *, dtype: Any) -> Any:
        """The model filled with tensors that were decoded here, under the names of its files."""
        from transformers import GenerationConfig

        if hasattr(self.config, "quantization_config"):
            del self.config.quantization_config
        if dtype == "auto":
            own = self.config.dtype if self.config.dtype in WHOLE else None
            dtype = own or next(t.dtype for t in state.values() if t.is_floating_point())
        loaded = self._load(None, state_dict=dict(state), config=self.config, dtype=dtype)
        if "generation_config.json" in self.source.companions:
            loaded.generation_config = GenerationConfig.from_pretrained(str(self.source.folder))
        return loaded

    def rounded(self, loaded: Any) -> Any:
        """The model with what its class computes rounded as in the checkpoint's own dtype, see `round_computed`."""
        own = self.source.config.get("dtype") or self.source.config.get("torch_dtype")
        if isinstance(own, str) and getattr(torch, own).itemsize < loaded.dtype.itemsize:
            with torch.device("meta"):
                round_computed(loaded, type(loaded)._from_config(deepcopy(loaded.config), dtype=getattr(torch, own)))
        return loaded

    def _load(self, where: str | None, **how: Any) -> Any:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        kind = model_class(self.model, self.config, self.source.config.get("architectures") or [])
        code = (getattr(self.config, "auto_map", None) or {}).get("AutoModelForCausalLM")
        if where is None and code:  # without a folder the automatic class does not look for the code
            require_trust(self.model, self.trust_remote_code)
            kind = get_class_from_dynamic_module(code, str(self.source.folder))
        how |= attention_for(self.config)
        if kind.__name__.startswith("Auto"):
            how["trust_remote_code"] = self.trust_remote_code
        # what does not fit is told with both shapes here, not drawn at random
        loaded, info = kind.from_pretrained(where, output_loading_info=True, ignore_mismatched_sizes=True, **how)
        require_fitting(self.model, info["mismatched_keys"])
        require_whole(self.model, info["missing_keys"])
        return loaded


def require_trust(model: str, trusted: bool) -> None:
    """Refuse code that comes with a checkpoint, unless the user trusts it.

    Raises:
        InputError: saying how.
    """
    if not trusted:
        raise InputError(f"MODEL {model}: contains custom code", "use --trust-remote-code if you trust its code")


def read_config(source: Source, trust_remote_code: bool) -> Any:
    """The configuration of a folder; ours is no format that transformers would know."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(source.folder), trust_remote_code=trust_remote_code)


@contextmanager
def reading(model: str) -> Iterator[None]:
    """Say what transformers refuses in one line, with the model's name."""
    from safetensors import SafetensorError

    refused: tuple[type[Exception], ...] = (*refusals(), RuntimeError, SafetensorError)
    try:
        with quiet():
            yield
    except refused as error:
        raise InputError(
            f"MODEL {model}: transformers cannot load a causal LM from it: {told(error)}",
            own_code(error)
            or wrong_config(error)
            or "give a folder (or hub name) with config.json and safetensors weights of a causal LM",
        ) from error


def require_fitting(model: str, mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse tensors of other shapes than the configuration asks for: transformers would fill them in at random.

    Args:
        mismatched: name, shape in the files, shape in the model.

    Raises:
        InputError: naming the first of them with both shapes.
    """
    if mismatched:
        named = [f"{name} {list(found)}, expected {list(asked)}" for name, found, asked in sorted(mismatched)]
        raise InputError(
            f"MODEL {model}: its weights have other shapes than its config.json says: {first_few(named, 4, '; ')}",
            "bring config.json and weights of the same checkpoint",
        )


def require_whole(model: str, missing: Collection[str]) -> None:
    """Refuse weight files that lack tensors: transformers would fill them in at random, and only warn.

    Raises:
        InputError: naming the first of them.
    """
    if missing:
        listed = first_few(sorted(missing))
        raise InputError(f"MODEL {model}: its weight files lack {listed}", "download or save the checkpoint again")


def decompressed(model: Any) -> Any:
    """A compressed-tensors model with its weights decoded for good, and torch's own forward in every module.

    CompressedTensorsConfig(dequantize=True) would decode while loading, but reads every width with one group's bits
    (transformers 5.23); left alone, the library quantizes and decodes each weight again in every forward pass.

    Raises:
        InputError: activations are quantized as well: without that, the model would not be the one that was saved.
    """
    from compressed_tensors.compressors.base import decompress_module

    compressor = model.hf_quantizer.compressor
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        if scheme.input_activations is not None or scheme.output_activations is not None:
            raise InputError(
                f"{model.config.name_or_path}: {name} quantizes activations too, which is not read",
                "give a checkpoint with quantized weights only",
            )
        decompress_module(module, compressor.force_compression_format, leave_decompressed=False)
    compressor.remove_decompression_hook(model)
    return model


def dense_weights(packed: Mapping[str, Packed], dtype: torch.dtype) -> dict[str, Tensor]:
    """Decoded weights under the names that plain ones would have."""
    return {f"{path}.weight": weight.dequantize(dtype) for path, weight in packed.items()}


def origin_of(model: Any, source: Source, *, apart: bool) -> Origin:
    """Where the model's tensors lie; `apart`: with its experts as linears of their own."""
    names = names_of(model, source.tensors)
    widen(model, source, names)
    experts, source = take_apart(model, source, names) if apart else ({}, source)
    found = origin_of_folder(source, names)
    return replace(found, paths={**found.paths, **experts})


def widen(model: Any, source: Source, names: Names) -> None:
    """Give parameters that the files have in a wider dtype than the model was loaded in their own values again.

    A checkpoint in bfloat16 may keep its norms in float32, and transformers loads all in one dtype.
    """
    for name, parameter in model.named_parameters():
        stored = names.single.get(name)
        if stored and parameter.dtype.itemsize < source.tensors[stored].dtype.itemsize:
            parameter.data = source.tensor(stored)


def by_module(model: Any, packed: Mapping[str, Packed]) -> dict[str, Packed]:
    """Packed weights by module path, as the loaded class calls them."""
    single = names_of(model, [f"{path}.weight" for path in packed]).single
    return {own.removesuffix(".weight"): packed[stored.removesuffix(".weight")] for own, stored in single.items()}
