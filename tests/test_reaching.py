"""Times to a score, with runs that never get there."""

import numpy as np
import pytest

from analysis.reaching import along, chance, chance_of_all, chance_of_trend, ends, reached, sooner
from mpi_rl.runfile import read_run
from tests.records import header, recorder


@pytest.fixture
def run(tmp_path):
    record = recorder(tmp_path / "run.h5")
    for number in range(20):
        record.push(0, header(version=number, returns=[10.0 * number], lengths=[50]), 0.1)
    record.write("checkpointed")
    return read_run(record.path)


def test_a_score_is_reached_by_the_running_average(run):
    assert along(run, "episode").tolist() == list(range(1, 21))
    assert reached(run, 50, "episode", decay=0.0) == 6 and reached(run, 50, "step", 0.0) == 300
    # a_n = .5 a + .5 r: 0, 5, 12.5, 21.25, 30.6, 40.3, 50.2
    assert reached(run, 50, "episode", decay=0.5) == 7
    assert reached(run, 1000, "step", decay=0.5) == np.inf and ends(run, "step") == 1000


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
