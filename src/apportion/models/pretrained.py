"""What is asked of transformers before and beside loading weights: where a model is, its class, its tokenizer."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from apportion.core.artifact import read_json
from apportion.core.errors import InputError, first_line
from apportion.core.progress import without_tqdm
from apportion.models.source import OTHER_WEIGHTS

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
NO_TOKENIZER = ("no tokenizer", "add tokenizer.json to it")
GENERATES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
NEVER = tuple(f"*{suffix}" for suffix in OTHER_WEIGHTS if suffix != ".safetensors")


def attention_for(config: Any) -> dict[str, str]:
    """Eager attention where logits are soft-capped: scaled_dot_product_attention has no soft-capping."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return {"attn_implementation": "eager"} if capped else {}


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no notices of transformers: our own progress and errors say what matters."""
    from transformers.utils import logging

    other = getLogger("compressed_tensors")
    before = other.level
    other.setLevel(ERROR)
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), without_tqdm():
            warnings.simplefilter("ignore")
            yield
    finally:
        other.setLevel(before)
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def require_model(model: str) -> None:
    """Refuse a path that is not there before transformers takes it for a hub name.

    Raises:
        InputError: saying what it is instead.
    """
    path = Path(model).expanduser()
    looks_local = path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"MODEL {model}: the folder has no config.json", "give a Hugging Face checkpoint folder")
    elif path.is_file():
        if path.suffix != ".gguf":
            raise InputError(
                f"MODEL {model}: is a file, expected a folder or a .gguf file",
                "give the Hugging Face folder it lies in",
            )
    elif looks_local:
        raise InputError(f"MODEL {model}: no such folder", "give a local checkpoint folder or a hub name owner/name")


def local_folder(model: str) -> Path:
    """The folder that a model lies in; a hub name's files are brought here first, all but other forms of its weights.

    Raises:
        InputError: no such folder, or it cannot be brought.
    """
    require_model(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(model, ignore_patterns=list(NEVER)))
    except refusals() as error:
        raise InputError(
            f"MODEL {model}: is no local folder, and the hub gave none: {first_line(error)}",
            "give a local checkpoint folder or a hub name owner/name",
        ) from error


def model_class(model: str, config: Any, architectures: list[str]) -> Any:
    """The class of transformers that a checkpoint names, or the one that its kind has for causal language models.

    A vision-language checkpoint names its whole model: the text tower inside is quantized in place.

    Raises:
        InputError: it names a model that does not predict the next token (an encoder, an encoder with a decoder).
    """
    import transformers

    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"MODEL {model}: is an encoder with a decoder ({config.model_type})", "give a decoder-only language model"
        )
    masked = [name for name in architectures if "MaskedLM" in name or "PreTraining" in name]
    if masked and not getattr(config, "is_decoder", False):
        raise InputError(
            f"MODEL {model}: is a {masked[0]}: it fills in masked words and cannot predict the next one",
            "give a decoder-only language model",
        )
    for name in architectures:
        if name.endswith(GENERATES) and not getattr(config, "auto_map", None) and hasattr(transformers, name):
            return getattr(transformers, name)
    return transformers.AutoModelForCausalLM


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside a model.

    Raises:
        InputError: there is none, or it comes with code that is not trusted.
    """
    from transformers import AutoTokenizer

    require_model(model)
    path = Path(model).expanduser()
    if path.is_file():
        from apportion.models.gguf.load import load_gguf_tokenizer

        return load_gguf_tokenizer(path)
    folder = local_folder(model)
    if (folder / CONFIG).is_file():
        read_json(folder / CONFIG)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except refusals() as error:
        remedy = own_code(error) or wrong_config(error)
        there = [name for name in TOKENIZERS if (folder / name).is_file()]
        said, otherwise = ("its tokenizer cannot be read", f"bring {there[0]} again") if there else NO_TOKENIZER
        if there == ["tokenizer_config.json"]:
            said, otherwise = ("its tokenizer cannot be read", "tokenizer.json (or tokenizer.model) is missing: add it")
        raise InputError(f"MODEL {model}: {said}: {told(error)}", remedy or otherwise) from error


def refusals() -> tuple[type[Exception], ...]:
    """What transformers and the hub raise for files that they will not have."""
    from huggingface_hub.errors import StrictDataclassError

    return OSError, ValueError, KeyError, StrictDataclassError


def told(error: BaseException) -> str:
    """What an error says, in one line; a refused configuration's reason stands in its second."""
    return " ".join(str(error).split()) if wrong_config(error) else first_line(error)


def wrong_config(error: BaseException) -> str:
    """The remedy where transformers refuses a configuration's values; empty for other errors."""
    from huggingface_hub.errors import StrictDataclassError

    return f"mend its {CONFIG}, or bring it again" if isinstance(error, StrictDataclassError) else ""


def own_code(error: BaseException) -> str:
    """The remedy where transformers asks for consent to run a checkpoint's own code; empty for other errors."""
    return "use --trust-remote-code if you trust its code" if "trust_remote_code" in str(error) else ""
