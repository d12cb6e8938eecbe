"""A completion -> the answer in it, by the first rule of a chain that finds one; the rule is named in the result.

pattern      the last match of the prompt's pattern, as a rule the line `Answer: ...`
thinking     the same in what was thought, where nothing visible matches
boxed        the last \\boxed{...}
number       the last number, for questions of the kind `number`
yes or no    a leading yes or no of the last line or of the first, for questions of the kind `yes_no`
asked again  reasoning ended without an answer, and it was found in a second turn (`answered`)
is           what follows the last "is" (or "are", "was", "were", ":") of the last sentence
last line    nothing was found: the last line of the visible text
cut          nothing was found and max_tokens ended the text: no answer, since reasoning is none
empty        no visible text
"""

import re
from dataclasses import dataclass
from typing import Literal

from apportion.route.ask.prompts import Prompt
from apportion.route.llm.protocol import Completion

Rule = Literal["pattern", "thinking", "boxed", "number", "yes or no", "is", "last line", "cut", "empty", "asked again"]
FAILED: frozenset[Rule] = frozenset(["last line", "cut", "empty"])

NUMBER = re.compile(r"[-+−]?[$€£]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?%?")
_YES_NO = re.compile(r"\W*+(?:so,?\s+|therefore,?\s+|thus,?\s+)?(yes|no)\b", re.I)
_IS = re.compile(r"(?i)(?:\b(?:is|are|was|were)\b|:)\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“(])")
_LEAD = re.compile(r"(?i)^(?:the |my |so the )?(?:final |correct |short )?answer(?: is| was|:)[:\s]+")
_MARKS = "*_`\"“”'‘’ \t"
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}")
SEARCHED_CHARS = 20_000  # of a text, which bounds what a pattern of quadratic time can cost; reasoning is shorter
MARKS_CHARS = 40  # of marks and blanks in a row; no answer has more
_MANY_MARKS = re.compile(rf"\W{{{MARKS_CHARS + 1},}}")


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer and the rule that found it."""

    answer: str
    rule: Rule

    @property
    def matched(self) -> bool:
        """Whether a rule found the answer, rather than none."""
        return self.rule not in FAILED


def extract(prompt: Prompt, completion: Completion) -> Extracted:
    """The answer in a completion.

    Args:
        prompt: of the strategy and of the question's kind (`Prompts.of(strategy, question)`).

    Returns:
        The answer of the first rule (see above) that finds one.

    Source: the line `Answer: ...` and the box are what instruction-tuned models are trained to end with; the last
    number is how GSM8K is commonly read (Cobbe et al., arXiv 2110.14168, read "####"; zero-shot readers the last
    number). The chain is ours.

    >>> extract(Prompt("{question}", answer_pattern="= *(.*)"), Completion("1+1 = 2\\n2+2 = 4", 1, 1, 0.0))
    Extracted(answer='4', rule='pattern')
    >>> extract(Prompt("{question}", answer_pattern="A: (.*)"), Completion(r"So it is \\boxed{26}.", 1, 1, 0.0))
    Extracted(answer='26', rule='boxed')
    """
    if found := last_match(prompt.answer_pattern, completion.text):
        return Extracted(tidy(found), "pattern")
    if completion.thinking_text:
        shown = f"</think>\n\n{completion.text}" if completion.text else ""
        if found := last_match(prompt.answer_pattern, f"<think>\n{completion.thinking_text}\n{shown}"):
            return Extracted(tidy(found), "thinking")
    if found := boxed(completion.text):
        return Extracted(tidy(found), "boxed")
    lines = [line.strip() for line in completion.text.splitlines() if line.strip()]
    if completion.finish != "stop":
        return Extracted("", "cut")
    if not lines:
        return Extracted("", "empty")
    return _by_kind(prompt, lines) or _by_is(lines) or Extracted(tidy(lines[-1]), "last line")


def _by_kind(prompt: Prompt, lines: list[str]) -> Extracted | None:
    if prompt.kind == "number" and (numbers := NUMBER.findall(" ".join(lines))):
        return Extracted(numbers[-1], "number")
    if prompt.kind == "yes_no":
        for line in (_SENTENCE_END.split(lines[-1])[-1], lines[-1], lines[0]):
            if match := _YES_NO.match(line):
                return Extracted(match[1].lower(), "yes or no")
    return None


def _by_is(lines: list[str]) -> Extracted | None:
    sentence = _SENTENCE_END.split(lines[-1])[-1]
    ends = [match.end() for match in _IS.finditer(sentence)]
    after = tidy(sentence[ends[-1] :]) if ends else ""
    return Extracted(after, "is") if after else None


def last_match(pattern: str, text: str) -> str:
    """Group 1 of the last match that is not empty, stripped.

    A pattern such as `^\\W*answer` reads a run of line ends once from each of them: in quadratic time. So of a run of
    more than MARKS_CHARS characters that are of no word, and of a text of more than SEARCHED_CHARS, only both ends are
    searched, and a line end between them where one was left out.
    """
    text = _MANY_MARKS.sub(lambda run: _both_ends(run[0], MARKS_CHARS), _both_ends(text, SEARCHED_CHARS))
    found = ""
    for match in re.finditer(pattern, text):
        found = (match[1] or "").strip() or found
    return found


def _both_ends(text: str, characters: int) -> str:
    """A text without its middle where it has more characters; what were different lines stay so.

    >>> _both_ends("abcdefg", 4), _both_ends("abc\\nefg", 4), _both_ends("abcd", 4)
    ('abfg', 'ab\\nfg', 'abcd')
    """
    if len(text) <= characters:
        return text
    half = characters // 2
    return text[:half] + ("\n" if "\n" in text[half:-half] else "") + text[-half:]


def boxed(text: str) -> str:
    """The content of the last \\boxed{...}, braces balanced; empty where there is none.

    >>> boxed(r"first \\boxed{1}, then \\boxed{\\frac{1}{2}}")
    '\\\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth, begin = 0, start + len("\\boxed{")
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth < 0:
            return text[begin:at].strip()
    return ""


def tidy(answer: str) -> str:
    """An answer without what only marks it up: stars, quotes, a box, "the answer is", a closing full stop.

    >>> tidy("**The answer is: 3.5**."), tidy(r"\\( \\boxed{26} \\)"), tidy("Washington, D.C.")
    ('3.5', '26', 'Washington, D.C.')
    """
    inside = boxed(answer)
    answer = _TEXT.sub(r"\1", inside or answer)
    for mark in ("\\(", "\\)", "\\[", "\\]", "\\$"):
        answer = answer.replace(mark, "$" if mark == "\\$" else "")
    answer = _bare(answer)
    return _bare(_LEAD.sub("", answer)) or answer


def _bare(answer: str) -> str:
    """Without marks around it and without the full stop of a sentence; that of an abbreviation stays."""
    answer = answer.strip(_MARKS)
    if answer.endswith(".") and not re.search(r"(?:\b\w\.|\.\w+\.)$", answer):
        answer = answer[:-1]
    return answer.strip(_MARKS)
