"""Answers read out of completions as real models write them; the rule that found each; and how they are scored."""

import re
from typing import Any

import pytest

from apportion.route.ask.extraction import MARKS_CHARS, SEARCHED_CHARS, extract, tidy
from apportion.route.ask.kinds import kind_of
from apportion.route.ask.prompts import load_prompts
from apportion.route.llm.protocol import Completion, Finish
from apportion.route.profile.scoring import Score, score

QUESTIONS = {
    "short": "Who wrote it?",
    "yes_no": "Are both of them British?",
    "number": "Ann has 3 pens. Bo has 4. How many pens are there?",
}


@pytest.mark.parametrize(
    ("kind", "text", "answer", "rule"),
    [
        ("short", "He was born in Ulm.\nAnswer: Albert Einstein.", "Albert Einstein", "pattern"),
        ("short", "**Answer:** *Rome*", "Rome", "pattern"),
        ("short", "Answer: The answer is Rome", "Rome", "pattern"),
        ("short", "Answer: Washington, D.C.", "Washington, D.C.", "pattern"),
        ("number", "so\n\\[ 20 + 6 = \\boxed{26} \\]", "26", "boxed"),
        ("number", "\\boxed{\\text{26 dollars}}", "26 dollars", "boxed"),
        ("number", "They have 3 + 4 = 7 pens in all, 7 of 1,250.5.", "1,250.5", "number"),
        ("yes_no", "Yes, because both were born in London.", "yes", "yes or no"),
        ("yes_no", "One is British. The other is not.\nSo, no: they differ.", "no", "yes or no"),
        ("yes_no", "Both are Swiss. No, they are not British.", "no", "yes or no"),
        ("short", "It was long ago. The author is Mary Shelley.", "Mary Shelley", "is"),
        ("short", "The capital: Bern", "Bern", "is"),
        ("short", "Mary Shelley", "Mary Shelley", "last line"),
        ("short", "", "", "empty"),
    ],
)
def test_the_chain_of_rules(kind: str, text: str, answer: str, rule: str) -> None:
    assert kind_of(QUESTIONS[kind]) == kind
    found = extract(load_prompts().of("cot", QUESTIONS[kind]), Completion(text, 1, 1, 0.0))
    assert (found.answer, found.rule) == (answer, rule)
    assert found.matched == (rule not in ("last line", "cut", "empty"))


@pytest.mark.parametrize("finish", ["length", "filter"])
def test_reasoning_that_was_cut_off_is_no_answer(finish: Finish) -> None:
    prompt = load_prompts().of("cot", QUESTIONS["number"])
    found = extract(prompt, Completion("First, 3 + 4 = 7. Then 7", 1, 1, 0.0, finish=finish))
    assert (found.answer, found.rule, found.matched) == ("", "cut", False)
    found = extract(prompt, Completion("First.\nAnswer: 7\nTo check, we", 1, 1, 0.0, finish=finish))
    assert (found.answer, found.rule) == ("7", "pattern")


RULE = "-" * 70


@pytest.mark.parametrize(
    ("strategy", "text", "answer"),
    [
        ("cot", f"It is so.\n\n{RULE}\n\nAnswer: Bern\n\n{RULE}", "Bern"),
        ("cot", f"It is so {'.' * 70}\n**Answer:** Bern", "Bern"),
        ("cot", f"It is so {'.' * 50}\n{'.' * 50} answer: Bern", "Bern"),
        ("cot", f"Answer: Ulm\n{' ' * 70}{RULE}\nFinal answer: Bern\n{RULE}\nThat is all.", "Bern"),
        ("cot", f"Answer:{' ' * 70}Bern", "Bern"),
        ("cot", "First of all. " * SEARCHED_CHARS + "\nAnswer: Bern", "Bern"),
        ("direct", "\n" * 70 + "Bern\n" + "And more of it.\n" * SEARCHED_CHARS, "Bern"),
    ],
)
def test_an_answer_is_found_among_many_marks_and_in_long_texts(strategy: str, text: str, answer: str) -> None:
    found = extract(load_prompts().of(strategy, QUESTIONS["short"]), Completion(text, 1, 1, 0.0))
    assert (found.answer, found.rule) == (answer, "pattern")


@pytest.mark.parametrize("thought", [False, True])
@pytest.mark.parametrize("piece", ["\n", "* ", "a\n", "answer: ", "\n" * 60 + "a"])
def test_patterns_of_quadratic_time_search_little(monkeypatch: pytest.MonkeyPatch, piece: str, thought: bool) -> None:
    searched, finditer = list[str](), re.finditer

    def noted(pattern: Any, text: str) -> Any:
        searched.append(text)
        return finditer(pattern, text)

    monkeypatch.setattr(re, "finditer", noted)
    text = piece * SEARCHED_CHARS
    said = Completion("" if thought else text, 1, 1, 0.0, thinking_text=text if thought else "")
    extract(load_prompts().of("cot", QUESTIONS["short"]), said)
    assert searched
    for one in searched:
        assert len(one) <= SEARCHED_CHARS + 1
        assert max(map(len, re.findall(r"\W+", one)), default=0) <= MARKS_CHARS + 1


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Were Scott Derrickson and Ed Wood of the same nationality?", "yes_no"),
        ("Would a pear sink in water?", "yes_no"),
        ("In 1990 the wall had fallen. Didn't it?", "yes_no"),
        ("Did Ann or Bo win?", "short"),
        ("how many episodes are in season 2 of 13 reasons why", "short"),
        ("How many points did the Panthers defense surrender?", "short"),
        (
            "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?",
            "number",
        ),
        ("If there are 3 cars in the lot and 2 more arrive, how many cars are in the lot?", "number"),
        ("What is the area of land under the Thames barrier?", "short"),
        ("", "short"),
    ],
)
def test_kinds_of_questions(question: str, kind: str) -> None:
    assert kind_of(question) == kind


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("Yes, both are British", "yes", 1.0),
        ("yes-man", "yes", 0.0),
        ("No.", "no", 1.0),
        ("nobody", "no", 0.0),
        ("The answer is 2 * 1.5 = 3 bolts.", "3", 1.0),
        ("\u221212", "-12", 1.0),
        ("The answer is: 3.5", "3.5", 1.0),
        ("1990", "June 5, 1990", 0.5),
        ("June 5, 1990", "1990", 0.5),
        ("in 1991", "1990", 0.0),
        ("1,990", "1990", 1.0),
        ("B", "b", 1.0),
        ("12", "120", 0.0),
    ],
)
def test_scores_of_answers_as_models_give_them(answer: str, gold: str, f1: float) -> None:
    assert score(answer, [gold]).f1 == pytest.approx(f1)
    assert score(tidy(answer), [gold]).f1 == pytest.approx(f1)


def test_the_best_gold_counts() -> None:
    assert score("Tour Eiffel", ["Eiffel tower", "Tour Eiffel"]) == Score(1.0, 1.0)
