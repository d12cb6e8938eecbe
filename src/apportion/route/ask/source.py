"""What answers were made with: enough to tell whether two sets of them can be compared."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProfileSource:
    """What a profile was made from; empty strings where a recorded file does not say.

    Attributes:
        model, corpus, prompts: identity of the weights or the server's name, and digests. k: passages in a prompt.
        latency: what the latencies mean: how they were measured, or from what they were estimated.
    """

    model: str = ""
    corpus: str = ""
    prompts: str = ""
    k: int = 0
    created: str = ""
    latency: str = ""

    @property
    def identity(self) -> dict[str, str | int]:
        """What answers must share to be compared.

        >>> ProfileSource("tiny", "c0ffee", "beef", 5).identity
        {'model': 'tiny', 'corpus': 'c0ffee', 'prompts': 'beef', 'k': 5}
        """
        return {"model": self.model, "corpus": self.corpus, "prompts": self.prompts, "k": self.k}
