"""Statistics over runs, against hand numbers."""

import numpy as np
import pytest

from analysis.statistics import (
    chance,
    chance_of_all,
    chance_of_trend,
    probability_of_improvement,
    sooner,
)


def test_probability_of_improvement_equals_hand_numbers():
    one, other = np.array([3.0, 5.0]), np.array([1.0, 3.0, 6.0])
    assert probability_of_improvement(one, other) == (1 + 0.5 + 0 + 1 + 1 + 0) / 6


def test_sooner_is_exact():
    never = np.inf
    low, high = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]
    assert sooner(low, high) == 1 and sooner(high, low) == 0
    assert chance(low, high) == chance(high, low) == pytest.approx(2 / 252)
    # {1, 2} and {1, 3} of the six pairs' sums 3, 4, 5, 5, 6, 7 around 5: off by 2 or more are two.
    assert chance([1, 2], [3, 4]) == pytest.approx(2 / 6)
    assert sooner([never] * 5, [never] * 5) == 0.5 and chance([never] * 5, [never] * 5) == 1
    first, second = [1, 2, never], [never, never, never]
    assert sooner(first, second) == pytest.approx((6 + 1.5) / 9)
    assert chance(first, second) == pytest.approx(8 / 20)


def test_friedmans_test_is_within_seeds():
    # Of the 3!^2 orders of two seeds 6 agree, and have mean ranks as far apart as here.
    assert chance_of_all([[1, 10], [2, 20], [3, 30]]) == pytest.approx(6 / 36)
    assert chance_of_all([[1, 10], [1, 10], [1, 10]]) == 1
    # Two settings, four seeds: the first is lower in each, or the second.
    assert chance_of_all([[1, 2, 3, 4], [5, 6, 7, 8]]) == pytest.approx(2 / 16)


def test_pages_test_asks_for_an_order():
    never = np.inf
    # Of the 3!^2 orders of two seeds one rises as much, and one falls as much.
    assert chance_of_trend([[1, 10], [2, 20], [3, never]]) == pytest.approx(2 / 36)
    assert chance_of_trend([[1, 1], [3, 3], [2, 2]]) > chance_of_trend([[1, 1], [2, 2], [3, 3]])
    # Best in the middle: neither up nor down, though Friedman's test sees a difference.
    middle = [[2, 3, 2, 3], [1, 1, 1, 1], [3, 2, 3, 2]]
    assert chance_of_trend(middle) == 1 and chance_of_all(middle) < 0.1
