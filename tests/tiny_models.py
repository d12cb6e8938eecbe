"""Small local checkpoints made by the tests: three architectures, one tokenizer, one text."""

from pathlib import Path
from typing import Any

import torch

KINDS = ("llama", "gemma2", "qwen3")
VOCABULARY = 160
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.12,
}


def tiny_config(kind: str, blocks: int) -> Any:
    from transformers import Gemma2Config, LlamaConfig, Qwen3Config

    settings = {**COMMON, "num_hidden_layers": blocks}
    if kind == "llama":
        return LlamaConfig(**settings, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    if kind == "qwen3":
        return Qwen3Config(**settings, tie_word_embeddings=True)
    return Gemma2Config(
        **settings,
        sliding_window=8,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
        hidden_activation="gelu_pytorch_tanh",
    )


def make_tokenizer() -> Any:
    """Byte-level BPE over the tests' own text, with a beginning-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<bos>", "<eos>"], show_progress=False)
    tokenizer.train_from_iterator([make_text(200)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def make_text(sentences: int) -> str:
    """Deterministic text with some structure."""
    subjects = ("the smith", "a miller", "our ferryman", "her cousin")
    verbs = ("mends", "counts", "carries", "paints")
    things = ("nets", "coins", "bells", "stones", "maps")
    return " ".join(
        f"{subjects[i % 4]} {verbs[(i * 7) % 4]} {3 + i % 9} {things[(i * 3) % 5]}." for i in range(sentences)
    )


def make_checkpoint(
    folder: Path, kind: str = "llama", *, blocks: int = 4, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Path:
    """Write a random checkpoint with tokenizer; returns its folder."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(kind, blocks))
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.normal_(parameter, 0.0 if kind == "gemma2" else 1.0, 0.1)
    model.to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
