"""Thinking that a model writes into its answer, kept apart while the answer streams."""

from typing import Any, Literal


class Thinking:
    """Moves `<think>...</think>` at the start of a streamed answer into `reasoning_content`, in each choice by itself.

    `over` is true once the rest needs no more looking at: every choice is after its end mark, or began otherwise.

    Args:
        choices: how many were asked for; their chunks come in any order.

    >>> thinking = Thinking()
    >>> deltas = [{"content": "<thi"}, {"content": "nk>2+"}, {"content": "2</thi"}, {"content": "nk>4"}]
    >>> [thinking.moved({"choices": [{"delta": one}]})["choices"][0]["delta"] for one in deltas]
    [{}, {'reasoning_content': '2+'}, {'reasoning_content': '2'}, {'content': '4'}]
    """

    def __init__(self, choices: int = 1) -> None:
        self._choices = choices
        self._splits: dict[int, _Split] = {}

    @property
    def over(self) -> bool:
        """Whether nothing more is to be moved."""
        return len(self._splits) >= self._choices and all(one.over for one in self._splits.values())

    def moved(self, found: dict[str, Any]) -> dict[str, Any]:
        """A chunk with its thinking apart; what may be half a mark is held back until the next of its choice."""
        for choice in found.get("choices") or ():
            delta, ended = choice.get("delta") or {}, bool(choice.get("finish_reason"))
            if not ended and not isinstance(delta.get("content"), str):
                continue
            split = self._splits.setdefault(choice.get("index") or 0, _Split())
            if split.over:
                continue
            thought, said = split.taken(delta.pop("content", None) or "", last=ended)
            if thought:
                delta["reasoning_content"] = thought
            if said:
                delta["content"] = said
            choice["delta"] = delta
        return found


class _Split:
    """Where one choice stands."""

    START, END = "<think>", "</think>"

    def __init__(self) -> None:
        self.over = False
        self._held = ""
        self._place: Literal["before", "inside", "after"] = "before"

    def taken(self, text: str, *, last: bool) -> tuple[str, str]:
        """(thought, said) of what has come, by where the answer stands."""
        text, self._held = self._held + text, ""
        if self._place == "before":
            begun = text.lstrip()
            if self.START.startswith(begun) and begun != self.START and not last:
                self._held = text
                return "", ""
            if not begun.startswith(self.START):
                self.over = True
                return "", text
            text, self._place = begun.removeprefix(self.START).lstrip("\n"), "inside"
        thought = ""
        if self._place == "inside":
            thought, mark, text = text.partition(self.END)
            if not mark:
                cut = 0 if last else _half_mark(thought, self.END)
                self._held, self.over = thought[len(thought) - cut :], last
                return thought[: len(thought) - cut], ""
            self._place = "after"
        said = text.lstrip("\n")
        self.over = bool(said) or last
        return thought, said


def _half_mark(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of the mark."""
    return next((length for length in range(len(mark) - 1, 0, -1) if text.endswith(mark[:length])), 0)
