"""Thinking that a model writes into its answer, kept apart while the answer streams."""

from typing import Any, Literal


class Thinking:
    """Moves `<think>...</think>` at the start of a streamed answer into `reasoning_content`.

    `over` is true once the rest needs no more looking at: after the end mark, or when the answer begins otherwise.

    >>> thinking = Thinking()
    >>> deltas = [{"content": "<thi"}, {"content": "nk>2+"}, {"content": "2</thi"}, {"content": "nk>4"}]
    >>> [thinking.moved({"choices": [{"delta": one}]})["choices"][0]["delta"] for one in deltas]
    [{}, {'reasoning_content': '2+'}, {'reasoning_content': '2'}, {'content': '4'}]
    """

    START, END = "<think>", "</think>"

    def __init__(self) -> None:
        self.over = False
        self._held = ""
        self._place: Literal["before", "inside", "after"] = "before"

    def moved(self, found: dict[str, Any]) -> dict[str, Any]:
        """A chunk with its thinking apart; what may be half a mark is held back until the next."""
        for choice in found.get("choices") or ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict) and (isinstance(delta.get("content"), str) or choice.get("finish_reason")):
                thought, said = self._split(delta.pop("content", None) or "", last=bool(choice.get("finish_reason")))
                if thought:
                    delta["reasoning_content"] = thought
                if said:
                    delta["content"] = said
        return found

    def _split(self, text: str, *, last: bool) -> tuple[str, str]:
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
                self._held = thought[len(thought) - cut :]
                return thought[: len(thought) - cut], ""
            self._place = "after"
        said = text.lstrip("\n")
        self.over = bool(said) or last
        return thought, said


def _half_mark(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of the mark."""
    return next((length for length in range(len(mark) - 1, 0, -1) if text.endswith(mark[:length])), 0)
