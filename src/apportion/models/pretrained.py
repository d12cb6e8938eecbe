"""Checkpoints as they come, read through transformers: safetensors only, and whole."""

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from apportion.core.device import Placement
from apportion.core.errors import InputError
from apportion.models.staged import StagedModel


def load_model(model: str, placement: Placement, *, trust_remote_code: bool = False) -> StagedModel:
    """Load a local folder or a hub name through transformers, safetensors only.

    Raises:
        InputError: no such folder, no causal LM, no readable weights, or some of them missing.
        ModelStructureError: blocks of unknown structure.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    require_model(model)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        extra: dict[str, Any] = {"dtype": "auto"}
        if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
            extra["attn_implementation"] = "eager"  # scaled_dot_product_attention has no soft-capping
        if is_quantized(config):
            require_readable(model, config)
            # decode in the compute dtype: in a narrower one, code times scale would be rounded
            extra["dtype"] = getattr(torch, placement.dtype)
        with quiet():
            loaded, info = AutoModelForCausalLM.from_pretrained(
                model, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True, **extra
            )
            require_whole(model, info["missing_keys"])
            if is_quantized(config):
                # compressed-tensors decodes on the first forward pass; CompressedTensorsConfig(dequantize=True)
                # would decode while loading, but reads every width with one group's bits (transformers 5.23)
                loaded(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"MODEL {model}: transformers cannot load a causal LM from it: {first_line(error)}",
            own_code(error) or "give a folder (or hub name) with config.json and safetensors weights of a causal LM",
        ) from error
    return StagedModel(loaded, placement, source=model)


def require_whole(model: str, missing: Collection[str]) -> None:
    """Refuse weight files that lack tensors: transformers would fill them in at random, and only warn.

    Raises:
        InputError: naming the first of them.
    """
    if missing:
        listed = ", ".join(sorted(missing)[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise InputError(f"MODEL {model}: its weight files lack {listed}", "download or save the checkpoint again")


def is_quantized(config: Any) -> bool:
    """Whether a checkpoint's config says that it is already quantized."""
    return getattr(config, "quantization_config", None) is not None


def require_readable(model: str, config: Any) -> None:
    """Refuse a checkpoint that is quantized in a format that this program does not read.

    Raises:
        InputError: naming the format.
    """
    saved = config.quantization_config
    method = saved.get("quant_method") if isinstance(saved, dict) else getattr(saved, "quant_method", None)
    name = str(getattr(method, "value", method))
    if name != "compressed-tensors":
        raise InputError(f"MODEL {model}: is quantized as {name}, expected full precision or compressed-tensors")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no notices of transformers: our own progress and errors say what matters."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def require_model(model: str) -> None:
    """Refuse a path that is not there before transformers takes it for a hub name."""
    path = Path(model)
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"MODEL {model}: the folder has no config.json", "give a Hugging Face checkpoint folder")
    elif path.is_file():
        raise InputError(f"MODEL {model}: is a file, expected a folder", "give the Hugging Face folder it lies in")
    elif looks_local:
        raise InputError(f"MODEL {model}: no such folder", "give a local checkpoint folder or a hub name owner/name")


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside a model."""
    from transformers import AutoTokenizer

    require_model(model)
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"MODEL {model}: no tokenizer: {first_line(error)}", own_code(error) or "add tokenizer.json to it"
        ) from error


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def own_code(error: BaseException) -> str:
    """The remedy where transformers asks for consent to run a checkpoint's own code; empty for other errors."""
    return "use --trust-remote-code if you trust its code" if "trust_remote_code" in str(error) else ""
