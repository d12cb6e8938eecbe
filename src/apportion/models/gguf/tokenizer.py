"""A tokenizer as GGUF metadata: tokens, kinds, merges or scores, and which of llama.cpp's splitters it needs.

llama.cpp has its splitters (pre-tokenizers) compiled in and picks one by name. The converter finds the name by a
hash of what a tokenizer makes of one text, a table of known vocabularies. Here it is found by the splitting rule
itself, so that a fine-tune with tokens of its own is as good as the original; an unknown rule is refused.
"""

import json
from collections.abc import Mapping
from typing import Any

from apportion.core.errors import InputError
from apportion.formats.gguf_file import Field

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
CONTROL_SCORE = -1000.0
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{WORDS}|\p{{N}}|{REST}", "bytes"): "qwen2",
    (rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{WORDS}|\p{{N}}{{1,3}}|{REST}", "bytes"): "llama-bpe",
}
"""Steps of a byte-level tokenizer -> name of the same in llama.cpp."""

Saved = Mapping[str, Any]


def tokenizer_fields(tokenizer: Any, rows: int, where: str) -> dict[str, Field]:
    """`tokenizer.*` of a Hugging Face tokenizer.

    Args:
        rows: of the embedding; tokens are filled up to them.

    Raises:
        InputError: no fast tokenizer, more tokens than rows, or a kind that GGUF cannot express; by name.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"MODEL {where}: its tokenizer has no tokenizer.json", "save it with a fast tokenizer")
    saved = json.loads(backend.to_str())
    if saved["model"]["type"] != "BPE":
        raise InputError(f"MODEL {where}: a {saved['model']['type']} tokenizer", "GGUF files are written for BPE here")
    tokens, kinds = numbered(saved, rows, where)
    fields = (sentence_pieces if saved["model"].get("byte_fallback") else byte_level)(saved, tokens, kinds, where)
    fields |= special_fields(tokenizer)
    return fields | template_fields(getattr(tokenizer, "chat_template", None))


def template_fields(template: str | Mapping[str, str] | None) -> dict[str, Field]:
    """The chat template; of several, each under its name and the default one as such.

    >>> sorted(template_fields({"default": "a", "rag": "b"}))
    ['tokenizer.chat_template', 'tokenizer.chat_template.rag', 'tokenizer.chat_templates']
    """
    if not template:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": Field("STRING", template)}
    others = {name: text for name, text in template.items() if name != "default"}
    fields = {f"tokenizer.chat_template.{name}": Field("STRING", text) for name, text in others.items()}
    if others:
        fields["tokenizer.chat_templates"] = Field("ARRAY", list(others), "STRING")
    return fields | template_fields(template.get("default"))


def numbered(saved: Saved, rows: int, where: str) -> tuple[list[str], list[int]]:
    """Text and kind of every token by number; numbers that no token has are filled.

    Raises:
        InputError: a number beyond the embedding's rows.
    """
    texts = {index: text for text, index in saved["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, NORMAL)
    for token in saved["added_tokens"]:
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if max(texts) >= rows:
        raise InputError(
            f"MODEL {where}: its tokenizer has a token number {max(texts)} and its embedding {rows} rows",
            "resize the embedding, or use the tokenizer that the model was trained with",
        )
    filled = [texts.get(i, filler(i)) for i in range(rows)]
    return filled, [UNUSED if text == filler(i) else kinds[i] for i, text in enumerate(filled)]


def filler(index: int) -> str:
    """The text of a number that no token has, as the converter writes it (and tokenizers read from GGUF have it)."""
    return f"[PAD{index}]"


def byte_level(saved: Saved, tokens: list[str], kinds: list[int], where: str) -> dict[str, Field]:
    """As GPT-2: every byte is a character of the tokens."""
    return {
        "tokenizer.ggml.model": Field("STRING", "gpt2"),
        "tokenizer.ggml.pre": Field("STRING", splitter_of(saved, where)),
        "tokenizer.ggml.tokens": Field("ARRAY", tokens, "STRING"),
        "tokenizer.ggml.token_type": Field("ARRAY", kinds, "INT32"),
        "tokenizer.ggml.merges": Field("ARRAY", merges_of(saved), "STRING"),
    }


def splitter_of(saved: Saved, where: str) -> str:
    """llama.cpp's name of the rule by which text is split before merging.

    Raises:
        InputError: none of its splitters does this.
    """
    steps = saved["pre_tokenizer"] or {}
    listed = steps.get("pretokenizers", [steps])
    signature = tuple(step_of(step, alone=len(listed) == 1 or "Digits" in str(listed)) for step in listed)
    if signature not in SPLITTERS:
        raise InputError(
            f"MODEL {where}: its tokenizer splits text by {signature}, which is none of the rules known here "
            f"({', '.join(SPLITTERS.values())})",
            "convert it with llama.cpp's convert_hf_to_gguf.py to f16 and give that file as MODEL",
        )
    return SPLITTERS[signature]


def step_of(step: Saved, *, alone: bool) -> str:
    """What tells a step of splitting from others."""
    if step.get("type") == "Split":
        return str(step["pattern"].get("Regex", step["pattern"]))
    if step.get("type") == "ByteLevel" and not step.get("use_regex", True):
        return "bytes"
    if step.get("type") == "Digits" and not step.get("individual_digits"):
        return "Digits together"
    return str(step.get("type")) if alone else f"{step.get('type')} after others"


def merges_of(saved: Saved) -> list[str]:
    """Merges as GGUF has them: two tokens and a space."""
    return [item if isinstance(item, str) else " ".join(item) for item in saved["model"]["merges"]]


def sentence_pieces(saved: Saved, tokens: list[str], kinds: list[int], where: str) -> dict[str, Field]:
    """As SentencePiece's BPE (Llama 2, Gemma): tokens merge by score; spaces are `▁`, unknown text falls to bytes.

    `tokenizer.json` has no scores. A SentencePiece vocabulary is numbered by falling score, and only their order
    matters to merging, so the score of a token is minus its place among normal tokens.
    """
    texts, scores = list(tokens), [CONTROL_SCORE] * len(tokens)
    place = 0
    for index, (text, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == USER_DEFINED:
            texts[index] = text.replace("▁", " ")
        elif kind == NORMAL and len(text) == 6 and text.startswith("<0x"):
            kinds[index], scores[index] = BYTE, 0.0
        elif kind == NORMAL:
            scores[index], place = -float(place), place + 1
    return {
        "tokenizer.ggml.model": Field("STRING", "llama"),
        "tokenizer.ggml.pre": Field("STRING", "default"),
        "tokenizer.ggml.tokens": Field("ARRAY", texts, "STRING"),
        "tokenizer.ggml.scores": Field("ARRAY", scores, "FLOAT32"),
        "tokenizer.ggml.token_type": Field("ARRAY", kinds, "INT32"),
        "tokenizer.ggml.add_space_prefix": Field("BOOL", prepends(saved)),
    }


def prepends(saved: Saved) -> bool:
    """Whether a space is put before a text."""
    normalizer = saved["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    before = (saved["pre_tokenizer"] or {}).get("prepend_scheme", "never")
    return any(step.get("type") == "Prepend" for step in steps) or before in ("first", "always")


def special_fields(tokenizer: Any) -> dict[str, Field]:
    """Numbers of the special tokens, and which of them are put around a text."""
    kinds = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    numbers = {theirs: getattr(tokenizer, f"{own}_token_id", None) for theirs, own in kinds.items()}
    fields = {
        f"tokenizer.ggml.{name}_token_id": Field("UINT32", int(number))
        for name, number in numbers.items()
        if number is not None
    }
    around = list(tokenizer("").input_ids)
    for name in ("bos", "eos"):
        own = numbers[name]
        fields[f"tokenizer.ggml.add_{name}_token"] = Field("BOOL", own is not None and own in around)
    return fields
