"""What a conversation asks: the question to judge and to search for, and what is no question at all.

A follow-up ("and 2023?") means nothing alone, so it is judged and searched for together with the user's turns
before it. Rules of words only, since asking a model for a stand-alone question costs as much as a draft. [ours]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from apportion.serve.chat_request import Message, text_of
from apportion.serve.routing import MAX_QUESTION_CHARS

Kind = Literal["question", "follow-up", "greeting", "task"]
TASK = "### Task:"  # how Open WebUI's title, tag and search-query calls begin
EARLIER_TURNS = 2
MAX_EARLIER_CHARS = 600
MAX_LOOKED_BACK = 100  # turns, greetings included
SHORT_WORDS, SHORT_CHARS = 3, 12
MAX_GREETING_WORDS = 10

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LEANS = re.compile(
    r"^\W*(why|when|where|how|who|continue|more|go on)\W*$"
    r"|^\W*(and|or|but|also|so|then|what about|how about|what else|who else)\b"
    r"|\b(he|she|it|they|him|her|them|his|hers|its|their|theirs|those|former|latter|same|instead)\b",
    re.IGNORECASE,
)
_GREETING_WORDS = """
hi hello hey hiya yo howdy greetings morning afternoon evening night bye goodbye cya thanks
thank thx ty cheers ok okay cool great perfect nice awesome lovely wonderful excellent sure
alright welcome sorry please hola gracias adios bonjour salut merci hallo danke tschüss ciao
grazie olá obrigado obrigada привет спасибо 你好 谢谢 您好 こんにちは ありがとう
ありがとうございます 안녕하세요 감사합니다
"""
_GREETING = frozenset(_GREETING_WORDS.split())
_FILLER_WORDS = """
there all everyone again you very so much a lot for the your help that is was it good day to
see and my friend i am just wanted say really many too then now see later one mr mrs assistant
bot
"""
_FILLER = frozenset(_FILLER_WORDS.split())


@dataclass(frozen=True, slots=True)
class Asked:
    """What the last message of the user asks.

    Attributes:
        question: its text.
        judged: the text whose features are measured and that is searched for; of a follow-up the user's turns
            before it come first, of a text of more than MAX_QUESTION_CHARS it is the last ones.
        kind: "question", "follow-up", "greeting" (thanks and farewells too: never retrieved for) or "task"
            (a chat interface's own call).
    """

    question: str
    judged: str
    kind: Kind

    @property
    def weaker(self) -> tuple[str, ...]:
        """What was left out of what is judged."""
        if len(self.question) <= MAX_QUESTION_CHARS:
            return ()
        return (f"judged by the last {MAX_QUESTION_CHARS} of the question's {len(self.question)} characters",)


def read_conversation(messages: Sequence[Message]) -> Asked:
    """What the last user message asks, in its conversation.

    >>> turns = [{"role": "user", "content": "Who won the Tour in 2022?"},
    ...          {"role": "assistant", "content": "Vingegaard."}, {"role": "user", "content": "And 2023?"}]
    >>> read_conversation(turns)
    Asked(question='And 2023?', judged='Who won the Tour in 2022?\\nAnd 2023?', kind='follow-up')
    >>> read_conversation(turns[:1]).kind, read_conversation([{"role": "user", "content": "Thanks a lot!"}]).kind
    ('question', 'greeting')
    """
    turns = [message for message in messages if message["role"] == "user"]
    question = text_of(turns.pop()).strip()
    judged = question[-MAX_QUESTION_CHARS:]
    if question.startswith(TASK):
        return Asked(question, judged, "task")
    if is_greeting(judged):
        return Asked(question, judged, "greeting")
    if leans_on_others(judged) and (earlier := _earlier(turns)):
        before = "\n".join(earlier)[-MAX_EARLIER_CHARS:]
        return Asked(question, f"{before}\n{judged}"[-MAX_QUESTION_CHARS:], "follow-up")
    return Asked(question, judged, "question")


def _earlier(turns: Sequence[Message]) -> list[str]:
    """What the user asked before, the last turns that are no greetings; of long ones no more than may be shown."""
    lately = (text_of(turn).strip()[-MAX_EARLIER_CHARS:] for turn in reversed(turns[-MAX_LOOKED_BACK:]))
    found = list(islice((text for text in lately if not is_greeting(text)), EARLIER_TURNS))
    return found[::-1]


def is_greeting(text: str) -> bool:
    """Whether a text only greets, thanks or says goodbye.

    >>> is_greeting("Good morning!"), is_greeting("ok thanks, you too"), is_greeting("Hi, who founded Bern?")
    (True, True, False)
    """
    words = [word.lower() for word in _first_words(text, MAX_GREETING_WORDS + 1)]
    return (
        0 < len(words) <= MAX_GREETING_WORDS
        and any(word in _GREETING for word in words)
        and all(word in _GREETING or word in _FILLER for word in words)
        and not (text.rstrip().endswith("?") and len(words) > 3)
    )


def leans_on_others(question: str) -> bool:
    """Whether a question needs the turns before it: very short, or with a word that points back.

    >>> leans_on_others("And 2023?"), leans_on_others("Where was she born?"), leans_on_others("Who founded Bern?")
    (True, True, False)
    """
    words = _first_words(question, SHORT_WORDS)
    short = len(words) < SHORT_WORDS if question.isascii() else len(question) <= SHORT_CHARS
    return short or bool(_LEANS.search(question))


def _first_words(text: str, count: int) -> list[str]:
    return [found[0] for found in islice(_WORD.finditer(text), count)]
