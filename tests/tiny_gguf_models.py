"""Tiny checkpoints of every architecture that is written as GGUF, with the tokenizers those models have."""

from pathlib import Path
from typing import Any

import torch

from tests.tiny_models import make_text

KINDS = ("llama", "llama3", "qwen2", "qwen3", "gemma2", "gemma3")
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def configuration(kind: str, **more: Any) -> Any:
    """The architecture's configuration, with what makes it different."""
    import transformers

    plain = {"rope_type": "default", "rope_theta": 10000.0}
    own: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("LlamaConfig", {"rope_parameters": plain}),
        "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
        "qwen2": ("Qwen2Config", {"rope_parameters": plain}),
        "qwen3": ("Qwen3Config", {"rope_parameters": plain, "tie_word_embeddings": True}),
        "gemma2": ("Gemma2Config", {"sliding_window": 8, "query_pre_attn_scalar": 16}),
        "gemma3": ("Gemma3TextConfig", {"sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 6}),
        "olmo2": ("Olmo2Config", {}),
        "mistral": ("MistralConfig", {}),
    }
    name, settings = own[kind]
    return getattr(transformers, name)(**{**COMMON, **settings, **more})


def tokenizer_of(kind: str) -> Any:
    """Byte-level BPE, or SentencePiece-like BPE for Gemma."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    gemma = kind.startswith("gemma")
    tokenizer = Tokenizer(models.BPE(byte_fallback=gemma, unk_token="<unk>" if gemma else None, fuse_unk=gemma))
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if kind.startswith("qwen"):
            split = pre_tokenizers.Split(Regex(QWEN), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
            )
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = [] if gemma else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + (80 if gemma else 320), special_tokens=special[:4], show_progress=False,
        initial_alphabet=alphabet,
    )  # fmt: skip
    tokenizer.train_from_iterator([make_text(200).split(".")[0:1][0], *make_text(200).split(".")], trainer)
    if gemma:
        tokenizer = with_bytes(tokenizer)
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def with_bytes(tokenizer: Any) -> Any:
    """The same with a token for each byte, numbered between the special ones and the words, as Gemma has them."""
    import json

    from tokenizers import Tokenizer

    saved = json.loads(tokenizer.to_str())
    words = sorted(saved["model"]["vocab"], key=saved["model"]["vocab"].__getitem__)
    pieces = [*words[:4], *(f"<0x{byte:02X}>" for byte in range(256))]
    # numbered by falling score: what is merged earliest first, single characters last
    merged = ["".join(pair) for pair in saved["model"]["merges"]]
    pieces += merged + [word for word in words[4:] if word not in merged]
    saved["model"]["vocab"] = {piece: index for index, piece in enumerate(pieces)}
    return Tokenizer.from_str(json.dumps(saved))


def make_kind(folder: Path, kind: str, **more: Any) -> Path:
    """Write a random checkpoint with its tokenizer; returns its folder."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = tokenizer_of(kind)
    config = configuration(kind, vocab_size=len(tokenizer) + 3, bos_token_id=2, eos_token_id=1, pad_token_id=0, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, 0.0 if kind.startswith("gemma") else 1.0, 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
