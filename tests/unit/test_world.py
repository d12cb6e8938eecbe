"""The demonstration world: the same for everyone; splits share nothing; answers stand in the pages."""

import re
from itertools import combinations
from random import Random

import pytest

from apportion.demo import FAMILIES, SPLITS, TRAFFIC, World, thinned, traffic, world
from apportion.demo.almanac import almanac_page
from apportion.demo.people import Person, make_society
from apportion.demo.world import MENTIONS, draft, trainable

PAGES = {passage.id: passage for passage in world().corpus()}
EVERY = {split: world().questions(split) for split in SPLITS}


def test_the_same_seed_makes_the_same_world() -> None:
    again = World(world().seed)
    assert again.corpus() == tuple(PAGES.values())
    assert again.questions("validation") == EVERY["validation"]
    assert World(8).questions("validation") != EVERY["validation"]


def test_ids_are_unique() -> None:
    assert len(PAGES) == len(world().corpus())
    ids = [question.id for split in SPLITS for question in EVERY[split]]
    assert len(ids) == len(set(ids))


def test_a_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="train, validation, test"):
        world().questions("dev")


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_question(one: str, other: str) -> None:
    texts = {split: {question.question for question in EVERY[split]} for split in (one, other)}
    assert not texts[one] & texts[other]


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_unseen_entity(one: str, other: str) -> None:
    def unseen(split: str) -> set[str]:
        return {name for q in EVERY[split] if q.popularity == "never" for name in q.names}

    assert unseen(one)
    assert not unseen(one) & unseen(other)
    assert not unseen(one) & world().known.names


def test_families_and_popularities_are_all_there() -> None:
    for split in SPLITS:
        assert {question.dataset for question in EVERY[split]} == set(FAMILIES)
        for question in EVERY[split]:
            assert question.known == {"often": True, "rarely": True, "never": False, "none": None}[question.popularity]
            assert (question.popularity == "none") == (question.dataset in ("arithmetic", "simple"))


def test_thinning_keeps_the_shares() -> None:
    few = thinned(EVERY["test"], 240)
    assert len(few) == 240
    for family in FAMILIES:
        share = sum(question.dataset == family for question in EVERY["test"]) / 10
        assert abs(sum(question.dataset == family for question in few) - share) <= 1


def test_traffic_has_the_shares_it_says() -> None:
    found = traffic(EVERY["test"], 1000)
    assert len(found) == 1000
    for family, share in TRAFFIC.items():
        assert sum(question.dataset == family for question in found) == share * 100
    assert len(traffic(EVERY["validation"], 10**6)) == 500


def test_every_fact_of_a_rationale_stands_in_the_gold_pages() -> None:
    """Each name, town, trade, product and year that the answer rests on is in the gold pages."""
    for split in SPLITS:
        for question in EVERY[split]:
            text = " ".join(PAGES[id_].title + " " + PAGES[id_].text for id_ in question.gold)
            if question.dataset in ("fact", "chain"):
                assert question.answers[0] in text, question
            if question.dataset == "chain":
                for name in question.names:
                    assert name in text, question
            if question.dataset in ("comparison", "date"):
                years = re.findall(r"(?<!= )\b(\d{4})\.", question.rationale)
                assert years, question
                assert all(year in text for year in years), question


def test_rationales_reach_the_answer() -> None:
    for split in SPLITS:
        for question in EVERY[split]:
            assert question.rationale.rstrip(".").endswith(question.answers[0])


def test_no_question_that_needs_reckoning_names_its_answer() -> None:
    for split in SPLITS:
        for question in EVERY[split]:
            if question.dataset == "comparison":
                assert question.answers[0] not in re.findall(r"\w+", question.question)


def test_the_chronicle_names_the_better_known_more_often() -> None:
    told = " ".join(page.text for id_, page in PAGES.items() if id_.startswith("chronicle/"))

    def mentioned(people: tuple[Person, ...]) -> list[int]:
        return [len(re.findall(rf"\b{person.name}\b", told)) for person in people]

    for people, popularity in ((world().often, "often"), (world().rarely, "rarely")):
        low, high = MENTIONS[popularity]
        assert all(low <= count <= high for count in mentioned(people))
    for split in SPLITS:
        counts = mentioned(world().unseen[split].people)
        assert 0.03 < sum(count > 0 for count in counts) / len(counts) < 0.2


def test_pages_of_the_known_name_nobody_unseen() -> None:
    text = " ".join(page.text for page in (*world().known_pages(), *world().common_pages()))
    assert not [name for split in SPLITS for name in world().unseen[split].names if name in text]


def test_a_custom_is_answered_by_its_page_and_asked_by_no_split() -> None:
    asked = {question.question for split in SPLITS for question in EVERY[split]}
    for number in range(200):
        page, customs = almanac_page(number, Random(number))
        for custom in customs:
            assert custom.saying in page.text
            assert custom.answer in custom.saying
            assert custom.place in custom.question
            assert custom.question not in asked
            assert custom.draft(page).rationale.endswith(f"{custom.answer}.")


def test_sums_of_rationales_are_right() -> None:
    checked = 0
    for question in EVERY["test"]:
        if question.dataset == "arithmetic":
            first, *steps = re.split(r"(?= [-+*/] )", question.rationale.rstrip("."))
            total = int(first)
            for step in steps:
                sign, number, _, after = step.rstrip(",").split()
                total = _reckoned(total, sign, int(number))
                assert total == int(after)
                checked += 1
        for one, sign, other, result in re.findall(r"(\d{4}) ([-+]) (\d+) = (\d+)\.", question.rationale):
            assert _reckoned(int(one), sign, int(other)) == int(result)
            checked += 1
    assert checked > 1000


def _reckoned(one: int, sign: str, other: int) -> int:
    if sign == "/":
        assert one % other == 0
        return one // other
    return {"+": one + other, "-": one - other, "*": one * other}[sign]


def test_society_is_closed_under_its_relations() -> None:
    society = make_society(Random(3), 4)
    for person in society.people:
        teacher = society.by_name[person.teacher]
        assert teacher.pupil == person.name
        assert society.by_name[person.pupil].teacher == person.name
        company = society.company_by_name[person.company]
        assert person.name == company.founder or person.name in company.staff
        assert person.joined >= company.founded
        assert 18 <= person.joined - person.born <= 50
        if person.spouse:
            assert society.by_name[person.spouse].spouse == person.name
            assert person.spouse not in (person.teacher, person.pupil)


def test_society_refuses_an_odd_number_of_companies() -> None:
    with pytest.raises(ValueError, match="even number"):
        make_society(Random(0), 3)


def test_no_question_of_the_training_reaches_a_split() -> None:
    rng, asked = Random(5), set()
    people = world().often
    while len(asked) < 3000:
        item = draft(rng.choice(FAMILIES), world().known, people, rng)
        if item is not None and trainable(item):
            asked.add(item.question)
    assert not asked & {question.question for split in SPLITS for question in EVERY[split]}
