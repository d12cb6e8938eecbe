"""What answers were made with: enough to tell whether two sets of them can be compared."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProfileSource:
    """What a profile was made from; empty strings where a recorded file does not say."""

    model: str = ""
    corpus: str = ""
    prompts: str = ""
    k: int = 0
    created: str = ""
