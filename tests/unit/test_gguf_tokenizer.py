"""Tokenizers as GGUF metadata: kinds, filled numbers, splitting rules, and what cannot be expressed."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from apportion.core.errors import InputError
from apportion.models.gguf.tokenizer import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, tokenizer_fields
from tests.tiny_gguf_models import tokenizer_of


def made(model: Any, splitter: Any = None, **special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    if splitter is not None:
        backend.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def letters() -> models.BPE:
    return models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")])


def test_kinds_and_filled_numbers() -> None:
    tokenizer = made(letters(), pre_tokenizers.ByteLevel(add_prefix_space=False), eos_token="<eos>")
    tokenizer.add_tokens(["word"])
    found = tokenizer_fields(tokenizer, 7, "m")
    assert found["tokenizer.ggml.tokens"].value == ["a", "b", "ab", "<eos>", "word", "[PAD5]", "[PAD6]"]
    kinds = [NORMAL, NORMAL, NORMAL, CONTROL, USER_DEFINED, UNUSED, UNUSED]
    assert found["tokenizer.ggml.token_type"].value == kinds
    assert found["tokenizer.ggml.merges"].value == ["a b"]
    assert found["tokenizer.ggml.pre"].value == "gpt-2"
    assert found["tokenizer.ggml.eos_token_id"].value == 3
    assert not found["tokenizer.ggml.add_eos_token"].value


def test_splitting_is_known_by_its_rule() -> None:
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert tokenizer_fields(made(letters(), digits), 9, "m")["tokenizer.ggml.pre"].value == "smollm"
    assert tokenizer_fields(tokenizer_of("qwen2"), 999, "m")["tokenizer.ggml.pre"].value == "qwen2"


@pytest.mark.parametrize(
    ("splitter", "named"),
    [
        (pre_tokenizers.Whitespace(), "Whitespace"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(False), pre_tokenizers.ByteLevel()]), "Digits together"),
        (None, "None"),
    ],
)
def test_unknown_rules_are_refused_by_name(splitter: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"splits text by .*{named}"):
        tokenizer_fields(made(letters(), splitter), 9, "m")


def test_what_gguf_does_not_hold_is_refused() -> None:
    words = made(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="m: a WordPiece tokenizer"):
        tokenizer_fields(words, 9, "m")
    with pytest.raises(InputError, match="a token number 2 and its embedding 2 rows"):
        tokenizer_fields(made(letters(), pre_tokenizers.ByteLevel()), 2, "m")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        tokenizer_fields(object(), 9, "m")


def test_sentence_pieces_have_scores_in_their_order() -> None:
    tokenizer = tokenizer_of("gemma3")
    tokenizer.add_tokens(["▁▁"])
    found = tokenizer_fields(tokenizer, len(tokenizer), "m")
    tokens, kinds, scores = (found[f"tokenizer.ggml.{name}"].value for name in ("tokens", "token_type", "scores"))
    assert tokens[-1] == "  ", "llama.cpp compares tokens that users defined with the text as it is"
    assert kinds[tokens.index("<0x0A>")] == BYTE
    normal = [score for score, kind in zip(scores, kinds, strict=True) if kind == NORMAL]
    assert normal == sorted(normal, reverse=True)
    assert found["tokenizer.ggml.add_bos_token"].value
