"""What a conversation asks: the question to judge and to search for, and what is no question at all.

A follow-up ("and 2023?") means nothing alone, so it is judged and searched for together with the user's turns
before it. Rules of words only, since asking a model for a stand-alone question costs as much as a draft. [ours]
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from apportion.serve.chat_request import Message, text_of

Kind = Literal["question", "follow-up", "greeting", "task"]
TASK = "### Task:"  # how Open WebUI's title, tag and search-query calls begin
EARLIER_TURNS = 2
MAX_EARLIER_CHARS = 600
SHORT_WORDS, SHORT_CHARS = 3, 12

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
            before it come first.
        kind: "question", "follow-up", "greeting" (thanks and farewells too: never retrieved for) or "task"
            (a chat interface's own call).
    """

    question: str
    judged: str
    kind: Kind


def read_conversation(messages: Sequence[Message]) -> Asked:
    """What the last user message asks, in its conversation.

    >>> turns = [{"role": "user", "content": "Who won the Tour in 2022?"},
    ...          {"role": "assistant", "content": "Vingegaard."}, {"role": "user", "content": "And 2023?"}]
    >>> read_conversation(turns)
    Asked(question='And 2023?', judged='Who won the Tour in 2022?\\nAnd 2023?', kind='follow-up')
    >>> read_conversation(turns[:1]).kind, read_conversation([{"role": "user", "content": "Thanks a lot!"}]).kind
    ('question', 'greeting')
    """
    turns = [text_of(message).strip() for message in messages if message["role"] == "user"]
    question = turns[-1]
    if question.startswith(TASK):
        return Asked(question, question, "task")
    if is_greeting(question):
        return Asked(question, question, "greeting")
    earlier = [turn for turn in turns[:-1] if not is_greeting(turn)][-EARLIER_TURNS:]
    if earlier and leans_on_others(question):
        before = "\n".join(earlier)[-MAX_EARLIER_CHARS:]
        return Asked(question, f"{before}\n{question}", "follow-up")
    return Asked(question, question, "question")


def is_greeting(text: str) -> bool:
    """Whether a text only greets, thanks or says goodbye.

    >>> is_greeting("Good morning!"), is_greeting("ok thanks, you too"), is_greeting("Hi, who founded Bern?")
    (True, True, False)
    """
    words = [word.lower() for word in _WORD.findall(text)]
    return (
        0 < len(words) <= 10
        and any(word in _GREETING for word in words)
        and all(word in _GREETING or word in _FILLER for word in words)
        and not (text.rstrip().endswith("?") and len(words) > 3)
    )


def leans_on_others(question: str) -> bool:
    """Whether a question needs the turns before it: very short, or with a word that points back.

    >>> leans_on_others("And 2023?"), leans_on_others("Where was she born?"), leans_on_others("Who founded Bern?")
    (True, True, False)
    """
    words = _WORD.findall(question)
    short = len(words) < SHORT_WORDS if question.isascii() else len(question) <= SHORT_CHARS
    return short or bool(_LEANS.search(question))
