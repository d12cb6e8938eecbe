"""Questions that need no document: arithmetic stories of four to six steps, and simple questions.

A story keeps a running total; its steps are done in the order told. Totals stay between 2 and 999.
"""

from random import Random
from typing import Final

from apportion.demo.questions import Draft
from apportion.demo.words import COLORS, DAYS, KINDS, MONTHS, OPPOSITES, THINGS

PEOPLE: Final = ("Ben", "Kim", "Lea", "Max", "Pam", "Ron", "Sue", "Tim", "Zoe", "Amy")
START: Final = ("{p} has {k} {t}.", "{p} starts with {k} {t}.", "In the morning {p} counts {k} {t}.")
ADD: Final = (
    "{p} buys {k} more.",
    "A friend gives {p} {k} more.",
    "{p} finds {k} more.",
    "Then {k} more arrive.",
)
TAKE: Final = ("{p} loses {k} of them.", "{p} gives away {k}.", "{p} sells {k}.", "Then {k} of them break.")
TIMES: Final = (
    "A trade leaves {p} with {k} times as many.",
    "Then the number of {t} grows to {k} times as many.",
)
SHARE: Final = (
    "{p} shares them equally among {k} boxes and keeps one box.",
    "{p} makes {k} equal heaps and keeps one heap.",
)
ASK: Final = (
    "How many {t} does {p} have now?",
    "How many {t} are left?",
    "How many {t} are there at the end?",
)
# Thinking is thorough where it need not be, as it is in models that think before every answer.
THOUGHT: Final = (
    "This question needs no documents and no steps. {why} Could it be meant in another way? "
    "No, the words mean what they say. Is anything left out? No, nothing is left out. "
    "Once more, to be sure: {why} So the answer is {v}."
)
NEXT: Final = (
    "Which {what} comes {gap} {side} {given}?",
    "Name the {what} {gap} {side} {given}.",
    "What is the {what} that lies {gap} {side} {given}?",
    "{given} is given: which {what} is {gap} {side} it?",
)


def arithmetic(rng: Random) -> Draft:
    """A story of four to six steps on two-digit numbers."""
    person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    total = rng.randrange(12, 99)
    told = [rng.choice(START).format(p=person, k=total, t=thing)]
    steps, count = str(total), rng.randrange(4, 7)
    for _ in range(count):
        sentence, sign, number, after = _step(rng, total)
        told.append(sentence.format(p=person, k=number, t=thing))
        steps += f" {sign} {number} = {after},"
        total = after
    told.append(rng.choice(ASK).format(p=person, t=thing))
    question = " ".join(told)
    return Draft("arithmetic", question, str(total), steps[:-1] + ".", f"arithmetic/{question}", 0)


def _step(rng: Random, total: int) -> tuple[str, str, int, int]:
    """One step that keeps the total in range: sentence, sign, operand, new total."""
    while True:
        kind = rng.choice(("add", "add", "take", "take", "times", "share"))
        if kind == "add":
            number = rng.randrange(11, 99)
            if total + number <= 999:
                return rng.choice(ADD), "+", number, total + number
        elif kind == "take" and total > 14:
            number = rng.randrange(11, min(99, total - 2))
            return rng.choice(TAKE), "-", number, total - number
        elif kind == "times" and total <= 120:
            number = rng.randrange(2, 5)
            return rng.choice(TIMES), "*", number, total * number
        elif kind == "share":
            divisors = [k for k in (2, 3, 4, 5) if total % k == 0 and total // k >= 2]
            if divisors:
                number = rng.choice(divisors)
                return rng.choice(SHARE), "/", number, total // number


def simple(rng: Random) -> Draft:
    """A question that needs neither documents nor steps."""
    ask = rng.choice((_sum, _larger, _opposite, _next, _kind, _last, _repeat))
    question, answer, why = ask(rng)
    return Draft("simple", question, answer, THOUGHT.format(why=why, v=answer), f"simple/{question}", 0)


def _sum(rng: Random) -> tuple[str, str, str]:
    one, other = rng.randrange(2, 60), rng.randrange(2, 30)
    if rng.random() < 0.5:
        asked = rng.choice(("What is {a} plus {b}?", "How much is {a} + {b}?"))
        return asked.format(a=one, b=other), str(one + other), f"{one} + {other} = {one + other}."
    one = max(one, other + 1)
    asked = rng.choice(("What is {a} minus {b}?", "How much is {a} - {b}?"))
    return asked.format(a=one, b=other), str(one - other), f"{one} - {other} = {one - other}."


def _larger(rng: Random) -> tuple[str, str, str]:
    one, other = rng.sample(range(10, 1000), 2)
    large = rng.random() < 0.5
    answer = max(one, other) if large else min(one, other)
    asked = f"Which is {'larger' if large else 'smaller'}, {one} or {other}?"
    return asked, str(answer), f"{max(one, other)} is larger than {min(one, other)}."


def _opposite(rng: Random) -> tuple[str, str, str]:
    place = rng.randrange(0, len(OPPOSITES), 2)
    one, other = rng.sample(OPPOSITES[place : place + 2], 2)
    asked = rng.choice(
        (
            "What is the opposite of {w}?",
            "Which word means the opposite of {w}?",
            "Name the opposite of the word {w}.",
            "If something is not {w} but the opposite, what is it?",
        )
    )
    return asked.format(w=one), other, f"The opposite of {one} is {other}."


def _next(rng: Random) -> tuple[str, str, str]:
    row, what = rng.choice(((DAYS, "day"), (MONTHS, "month")))
    place, gap = rng.randrange(len(row)), rng.choice((1, 2, -1, -2))
    answer = row[(place + gap) % len(row)]
    many = f"{what}s" if abs(gap) > 1 else what
    side = "after" if gap > 0 else "before"
    asked = rng.choice(NEXT).format(what=what, gap=f"{abs(gap)} {many}", side=side, given=row[place])
    return asked, answer, f"It is {answer}."


def _kind(rng: Random) -> tuple[str, str, str]:
    kind = rng.choice(list(KINDS))
    other = rng.choice([name for name in KINDS if name != kind])
    word = rng.choice(KINDS[kind])
    shown = rng.sample([kind, other], 2)
    return f"Is {word} a kind of {shown[0]} or {shown[1]}?", kind, f"{word} is a kind of {kind}."


def _last(rng: Random) -> tuple[str, str, str]:
    row = rng.sample([*THINGS, *COLORS], rng.randrange(3, 6))
    place = rng.choice((0, 1, len(row) - 1))
    name = "last" if place == len(row) - 1 else ("first", "second")[place]
    return f"Which word comes {name} in this row: {', '.join(row)}?", row[place], f"It is {row[place]}."


def _repeat(rng: Random) -> tuple[str, str, str]:
    row = rng.sample([*THINGS, *COLORS], 2)
    asked = rng.choice(("Repeat these words: {w}", "Say again: {w}", "Copy this: {w}"))
    text = " ".join(row)
    return asked.format(w=text), text, f"The words are {text}."
