"""The shipped model: its size, its template, and questions that it must get right."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from apportion.demo import model_path, world
from apportion.demo.dialogues import PIPELINES, prompt_text, prompts
from apportion.demo.search import Search

LIMIT_BYTES = 20_000_000


@pytest.fixture(scope="module")
def shipped() -> Iterator[tuple[Any, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    yield tokenizer, AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
    torch.set_num_threads(threads)


def test_the_model_is_small_and_has_a_card() -> None:
    assert sum(file.stat().st_size for file in model_path().iterdir()) <= LIMIT_BYTES
    card = (model_path() / "MODEL_CARD.md").read_text()
    assert "Apache-2.0" in card


def test_its_linears_can_be_quantized_in_groups_of_64(shipped: tuple[Any, Any]) -> None:
    _, model = shipped
    linears = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    assert len(model.model.layers) >= 10
    assert all(linear.in_features % 64 == 0 for linear in linears)


def test_the_chat_template_writes_the_prompts_of_training(shipped: tuple[Any, Any]) -> None:
    tokenizer, _ = shipped
    passages = world().corpus()[:2]
    for name in PIPELINES:
        ours = prompt_text(name, "Where?", passages)
        content = ours.removeprefix("<|user|>").split("<|assistant|>")[0]
        theirs = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=prompts()[name].thinking,
        )
        assert theirs == ours


def test_text_survives_the_tokenizer(shipped: tuple[Any, Any]) -> None:
    tokenizer, _ = shipped
    text = "Zoë’s 1,234 apples <think>1 + 2 = 3.</think> Mira Velkan"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def answers(shipped: tuple[Any, Any], pipeline: str, questions: list[Any]) -> list[str]:
    tokenizer, model = shipped
    search = Search(world().corpus())
    texts = [
        prompt_text(pipeline, question.question, [page for _, page in search.find(question.question, 5)])
        for question in questions
    ]
    given = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = model.generate(**given, max_new_tokens=prompts()[pipeline].max_tokens, do_sample=False)
    written = tokenizer.batch_decode(output[:, given.input_ids.shape[1] :], skip_special_tokens=True)
    found = [re.findall(prompts()[pipeline].answer_pattern, text) for text in written]
    return [each[-1].strip() if each else "" for each in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipeline", "family", "popularity"),
    [
        ("direct", "fact", "often"),
        ("rag", "fact", "never"),
        ("cot", "arithmetic", "none"),
        ("rag+cot", "comparison", "never"),
        ("rag+cot", "chain", "never"),
    ],
)
def test_each_pipeline_answers_what_it_is_for(
    shipped: tuple[Any, Any], pipeline: str, family: str, popularity: str
) -> None:
    """Eight validation questions each; at least six right. The full figures are the benchmark's."""
    asked = [
        question
        for question in world().questions("validation")
        if (question.dataset, question.popularity) == (family, popularity)
    ][:8]
    right = [
        answer in question.answers for answer, question in zip(answers(shipped, pipeline, asked), asked, strict=True)
    ]
    assert sum(right) >= 6


@pytest.mark.slow
def test_direct_does_not_know_unseen_people(shipped: tuple[Any, Any]) -> None:
    asked = [
        question
        for question in world().questions("validation")
        if (question.dataset, question.popularity) == ("fact", "never")
    ][:16]
    found = answers(shipped, "direct", asked)
    assert sum(answer in question.answers for answer, question in zip(found, asked, strict=True)) <= 4
