"""Prompts as files, requests made from them, and answers read out of completions."""

import dataclasses
from pathlib import Path

import pytest

from apportion.core.errors import ArtifactError, InputError
from apportion.route.ask.extraction import extract
from apportion.route.ask.pipelines import asked_as, build_request
from apportion.route.ask.prompts import DEFAULT_PATH, Prompt, Prompts, load_prompts
from apportion.route.index.corpus import Passage
from apportion.route.llm.protocol import Completion

ONE = Passage("1", "A {title}", "text with {question} in it")


def test_the_shipped_prompts_make_four_requests() -> None:
    prompts = load_prompts()
    for strategy in ("direct", "rag", "cot", "rag+cot"):
        request = build_request(prompts, strategy, "Who?", [ONE], logprobs=True)
        assert "Who?" in request.user.splitlines()[-3 if "cot" in strategy else -1]
        assert [answer.splitlines()[-1][:8] for _, answer in request.examples] == ["Answer: "] * (
            2 * ("cot" in strategy)
        )
        assert all(user.count("[1] ") == ("rag" in strategy) for user, _ in request.examples)
        assert ("text with" in request.user) == ("rag" in strategy)
        assert request.logprobs
        assert request.temperature == 0


def test_braces_in_questions_and_passages_mean_nothing() -> None:
    request = build_request(load_prompts(), "rag", "Why {passages}?", [ONE])
    assert "[1] A {title}: text with {question} in it\n" in request.user
    assert request.user.endswith("Question: Why {passages}?")


def test_the_expendable_span_is_the_passages() -> None:
    request = build_request(load_prompts(), "rag", "Who?", [ONE, ONE])
    start, end = request.expendable
    assert request.user[start:end].count("text with") == 2
    assert "text with" not in request.user[:start] + request.user[end:]
    assert build_request(load_prompts(), "rag", "Who?", []).expendable == (0, 0)


def test_every_problem_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        '[direct]\nuser = "no placeholder"\nthinking = "yes"\n[rag]\nuser = "{question}"\ntemperature = 1\n'
        '[cot]\nmax_tokens = true\n[other]\nx = 1\n[passage]\ntemplate = "{text}"\n'
    )
    with pytest.raises(InputError) as caught:
        load_prompts(path)
    for part in (
        "thinking: is 'yes'",
        "[rag] temperature",
        "[cot] max_tokens: is True",
        "[cot] user: is missing",
    ):
        assert part in str(caught.value)
    for part in ("[rag+cot]: is missing", "[other]: is no section"):
        assert part in str(caught.value)


def test_prompts_made_in_python_are_checked_too() -> None:
    good = load_prompts()
    with pytest.raises(InputError) as caught:
        Prompts(
            passage="{title}",
            direct=Prompt("{question} {passages}"),
            rag=Prompt("{question}"),
            cot=Prompt("{question}", answer_pattern="no group"),
            rag_cot=Prompt("{question}{passages}", answer_pattern="(", max_tokens=0),
        )
    for part in (
        "no {text}",
        "only rag",
        "{passages} 0 times",
        "no group 1",
        "max_tokens: is 0",
        "no regular",
    ):
        assert part in str(caught.value)
    changed = dataclasses.replace(good, cot=dataclasses.replace(good.cot, max_tokens=99))
    assert changed.digest != good.digest == load_prompts(DEFAULT_PATH).digest


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_prompts(tmp_path / "absent.toml")
    (tmp_path / "p.toml").write_text("= 1")
    with pytest.raises(InputError, match="is not TOML"):
        load_prompts(tmp_path / "p.toml")


@pytest.mark.parametrize(
    ("strategy", "text", "answer", "matched"),
    [
        ("direct", " Paris \n", "Paris", True),
        ("direct", "", "", False),
        ("direct", "The answer is Paris\n\nParis is", "Paris", True),
        ("cot", "First, 2+2.\nAnswer: 4", "4", True),
        ("cot", "Answer: 3\nNo, wait.\n**Answer:** 4**", "4", True),
        ("cot", "Final answer: **Rome**\n", "Rome", True),
        ("cot", "So it is\nRome", "Rome", False),
        ("cot", "An answer: hmm. It must be\nAnswer: Rome.", "Rome", True),
    ],
)
def test_answers(strategy: str, text: str, answer: str, matched: bool) -> None:
    found = extract(load_prompts().of(strategy), Completion(text, 1, 1, 0.0))
    assert (found.answer, found.matched) == (answer, matched)


def test_a_pattern_may_look_for_the_end_of_thinking() -> None:
    prompt = Prompt("{question}", answer_pattern=r"(?s)</think>\s*(.+)")
    assert extract(prompt, Completion("4", 1, 1, 0.0, thinking_text="2+2")).matched
    assert extract(prompt, Completion("4", 1, 1, 0.0, thinking_text="2+2")).answer == "4"
    assert not extract(prompt, Completion("", 1, 1, 0.0, thinking_text="2+2 is")).matched


def test_prompts_for_kinds_take_from_their_strategy_what_they_do_not_say(tmp_path: Path) -> None:
    prompts = load_prompts()
    number = prompts.of("cot", "Ann has 3 pens. Bo has 4. How many pens are there?")
    assert (number.kind, number.max_tokens, number.stop) == ("number", 400, prompts.cot.stop)
    assert number.answer_pattern == prompts.cot.answer_pattern
    assert prompts.of("cot").kind == prompts.of("cot", "Who?").kind == "short"
    path = tmp_path / "p.toml"
    text = DEFAULT_PATH.read_text()
    path.write_text(text.replace("[direct.yes_no]", "[direct.yes]"))
    with pytest.raises(InputError, match=r"\[direct\] yes: is no key"):
        load_prompts(path)
    path.write_text(
        text.replace("max_tokens = 8", "max_tokens = 0", 1).replace('question = "Would', 'query = "Would', 1)
    )
    with pytest.raises(InputError, match=r"\[cot.yes_no\] examples, number 1: is no table of the texts"):
        load_prompts(path)


def test_digests_of_prompts_without_kinds_and_examples_stay() -> None:
    """The digest that a router of an earlier version has recorded for the demonstration's prompts."""
    from apportion.demo import prompts_path

    assert load_prompts(prompts_path()).digest == "87cc4b21c31775ba"


def test_without_a_passage_rag_is_direct() -> None:
    for strategy, other in (("rag", "direct"), ("rag+cot", "cot")):
        assert asked_as(strategy, []) == other
        assert asked_as(strategy, [ONE]) == strategy
        assert build_request(load_prompts(), strategy, "Who?") == build_request(load_prompts(), other, "Who?")
