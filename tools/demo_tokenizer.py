"""Make the demonstration model's tokenizer: byte-level BPE, every digit a token of its own.

Learnt on pages and dialogues of societies made for it alone, so no token is the name of a known person.
"""

import argparse
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from apportion.demo import dialogues, documents, world
from apportion.demo.dialogues import CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS, THINKING_TOKENS
from apportion.demo.people import make_society
from apportion.demo.world import FAMILIES, draft

VOCABULARY = 2048
CONTEXT = 768
SOCIETIES = 40


def sample_texts() -> list[str]:
    """Pages and dialogues of societies that no other step uses."""
    rng, taken, found = Random(11), world().names, list[str]()
    for _ in range(SOCIETIES):
        society = make_society(rng, 20, taken)
        found += [f"{page.title}: {page.text}" for page in documents.pages(society, rng)]
        for family in FAMILIES * 60:
            item = draft(family, society, society.people, rng)
            if item is not None:
                found += [item.question, item.rationale, item.answer]
    found += [f"{page.title}: {page.text}" for page in world().common_pages()]
    return found


def learn(texts: list[str]) -> Any:
    """A tokenizer that other programs load as any fast tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(THINKING_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(THINKING_TOKENS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    texts = sample_texts()
    fast = learn(texts)
    fast.save_pretrained(out)
    text = dialogues.prompt_text("cot", texts[0])
    print(f"{len(fast)} tokens in {out}; {len(texts)} texts; e.g. {fast.tokenize(text)}")


if __name__ == "__main__":
    main()
