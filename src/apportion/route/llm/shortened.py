"""Prompts that a server shortens without a word, noticed by how few tokens it counts."""

import threading
from dataclasses import dataclass, field

from apportion.route.llm.protocol import Completion, Request

SHORT_CHARS = 4000  # prompts that no server shortens
ENOUGH_CHARS = 200  # in all, before their rate is relied upon
FACTOR = 1.6  # so many times more characters a token than usual is no longer text of another kind
LEAST_RATE = 8.0  # characters a token that no tokenizer reaches on text, while no rate is known


@dataclass(slots=True)
class Shortened:
    """Characters a token over short prompts, and what long ones lack at that rate; for many threads.

    >>> counts = Shortened()
    >>> counts.tokens(Request("x" * 400), Completion("", 100, 1, 0.0))
    0
    >>> counts.tokens(Request("x" * 40_000), Completion("", 2048, 1, 0.0))
    7952
    """

    characters: int = 0
    counted: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tokens(self, request: Request, completion: Completion) -> int:
        """Prompt tokens that seem to be missing; 0 where the count is plausible or an estimate."""
        size = len(request.system) + sum(len(text) for _, text in request.turns)
        if not completion.tokens_measured or not completion.prompt_tokens:
            return 0
        with self.lock:
            if size <= SHORT_CHARS:
                self.characters += size
                self.counted += completion.prompt_tokens
                return 0
            known = self.characters >= ENOUGH_CHARS and self.counted > 0
            rate = self.characters / self.counted if known else LEAST_RATE / FACTOR
        expected = size / rate
        return round(expected - completion.prompt_tokens) if expected > FACTOR * completion.prompt_tokens else 0
