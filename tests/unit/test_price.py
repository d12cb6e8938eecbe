"""Prices by kind of token: parsed, charged and weighed as a bill would."""

from dataclasses import replace

import numpy as np
import pytest

from apportion.core.errors import InputError
from apportion.route.router import Price, parse_price
from apportion.route.router.spending import Done, spent
from apportion.route.router.utility import Weights, cost, scale_of, utility
from tests.synthetic_profiles import needs_profile

PRICE = Price(input=1.0, cached=0.5, output=4.0)


def priced_profile(n: int = 4):  # type: ignore[no-untyped-def]
    profile = needs_profile(n, seed=1)
    return replace(profile, completion_tokens=profile.tokens / 10, cached_tokens=profile.tokens / 2)


def test_an_answer_costs_what_its_bill_says() -> None:
    profile = priced_profile()
    by_hand = 1.0 * 0.4 * profile.tokens + 0.5 * 0.5 * profile.tokens + 4.0 * 0.1 * profile.tokens
    np.testing.assert_allclose(PRICE.of_profile(profile), by_hand)
    drafted = spent(profile, Done.for_all(4, draft=True), PRICE)
    np.testing.assert_allclose(drafted.charged[:, 3], by_hand[:, 3] + by_hand[:, 0])
    np.testing.assert_allclose(drafted.tokens[:, 3], profile.tokens[:, 3] + profile.tokens[:, 0])


def test_utility_weighs_the_price_against_that_of_always_rag_and_cot() -> None:
    profile = priced_profile()
    scale = scale_of(profile, PRICE)
    assert scale.tokens == pytest.approx(PRICE.of_profile(profile)[:, 3].mean())
    values = utility(cost(profile, scale), Weights(0.5))
    np.testing.assert_allclose(values, profile.quality - 0.5 * PRICE.of_profile(profile) / scale.tokens)


def test_output_that_costs_more_makes_reasoning_dearer_than_retrieval() -> None:
    profile = needs_profile(50, seed=1)
    thinking = np.array([0.1, 0.05, 0.9, 0.5]) * profile.tokens
    profile = replace(profile, completion_tokens=thinking)
    dear = scale_of(profile, Price(1.0, 1.0, 10.0))
    counted, charged = cost(profile, scale_of(profile)).tokens, cost(profile, dear).tokens
    assert (charged[:, 2] / charged[:, 1]).mean() > 2 * (counted[:, 2] / counted[:, 1]).mean()


def test_without_cached_its_price_is_that_of_input() -> None:
    assert parse_price("in=2, out=3") == Price(2.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.15", "'0.15'"),
        ("in=.15", "no out"),
        ("in=.15,out=cheap", "'out=cheap'"),
        ("in=.15,out=.6,seconds=3", "'seconds=3'"),
        ("in=1,in=2,out=3", "'in=2'"),
        ("in=-1,out=1", "in=-1.0"),
        ("in=0,out=0", "every price is 0"),
    ],
)
def test_a_price_that_says_no_kind_or_no_number_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_price(text)
    assert said in caught.value.problem
    assert "--price in=0.15" in caught.value.remedy


def test_a_profile_without_kinds_of_tokens_has_no_price() -> None:
    with pytest.raises(InputError, match="prompt and completion tokens apart"):
        scale_of(needs_profile(4), PRICE)
