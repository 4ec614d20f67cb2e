"""Genkidama's exchanges compared, from made-up evaluations."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from analysis.genkidama_exchange import JOBS, cells, label, main, megabytes, write
from analysis.runs import best_group, evaluated
from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import Run

GROUPS = dict(algorithm="genkidama", num_workers=8, group_size=4, learning_rate_schedule="constant")
KINDS = ["periodic", "group 0", "group 1", "last"]


def run(seed, returns, trained=(0.0, 0.0), job=JOBS[1], **settings):
    """A run of 2 groups, whose snapshots got ``returns``, (4, episodes), and ``trained`` before."""
    config = json.dumps(dataclasses.asdict(Config(**{**GROUPS, "seed": seed, **settings})))
    snapshots = {"kind": np.array(KINDS, object), "mean_return": np.array([9e9, *trained, 9e9])}
    tables = {"snapshots": snapshots, "workers": {"num_pushes": np.array([30, 0, 0, 70])}}
    played = {"sampled": {"returns": np.array(returns, float)}}
    attributes = dict(config=config, job=job, index=seed)
    return Run(attributes, tables, np.zeros((1, 1)), np.zeros((4, 10_000)), {}, played)


def test_the_best_group_is_the_one_that_was_best_in_training():
    one = run(1, [[5, 5], [10, 20], [70, 80], [1, 3]], trained=(200, 150))
    assert evaluated(one, best_group(one)).tolist() == [10, 20]  # though the other does better now
    assert evaluated(one).tolist() == [1, 3]


def test_settings_are_pooled_over_seeds_in_their_order():
    runs = [run(2, [[6]] + 3 * [[0]]), run(1, [[5]] + 3 * [[0]]), run(1, [[0]] * 4, elastic=True)]
    found = cells(runs)
    assert [one.returns.tolist() for one in found.values()] == [[5, 6], [0]]
    assert [one.label for one in found.values()] == [
        "2 groups of 4, 0.9/0",
        "2 groups of 4, 0.9/0, elastic",
    ]


def test_seeds_belong_together_whatever_may_change_within_a_run():
    runs = [run(1, [[5]] * 4), run(2, [[6]] * 4, checkpoint_period_s=60.0)]
    assert [one.returns.tolist() for one in cells(runs).values()] == [[5, 6]]


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(group_size=8, alpha=1.0), "1 group of 8, 1/0"),
        (dict(exchange_period=4), "2 groups of 4, 0.9/0, every 4 episodes"),
        (dict(exchange_dtype="bfloat16"), "2 groups of 4, 0.9/0, bfloat16"),
        (dict(algorithm="a3c", group_size=1), "A3C, 8 workers"),
    ],
)
def test_labels_say_what_is_special(settings, words):
    assert label(Config(**{**GROUPS, **settings})) == words


def test_megabytes_are_both_ways_of_every_exchange():
    settings = dict(returns=[[0]] * 4, seed=1)
    assert megabytes([run(**settings)]) == pytest.approx(2 * 100 * 4 * 10_000 / 1e6)
    assert megabytes([run(**settings, exchange_dtype="float16")]) == pytest.approx(4)


def test_tables_and_a_picture_are_written(tmp_path):
    rng = np.random.default_rng(0)
    runs = [
        run(seed, rng.normal(100, 9, (4, 20)), job=JOBS[0], alpha=alpha, beta=beta)
        for seed in (1, 2)
        for alpha in (0.1, 0.9)
        for beta in (0.0, 1.0)
    ]
    runs += [run(seed, rng.normal(100, 9, (4, 20)), alpha=0.5, beta=0.5) for seed in (1, 2)]
    runs += [
        run(seed, rng.normal(500, 9, (4, 20)), alpha=0.5, beta=0.5, elastic=True) for seed in (1, 2)
    ]
    text, picture = write(runs, tmp_path)
    assert picture.stat().st_size > 10_000
    text = text.read_text()
    assert "more than the average, over all 4 runs." in text
    assert "against 2 groups of 4, 0.5/0.5, of which both jobs have 2 runs" in text
    best = [line for line in text.splitlines() if line.startswith("| 0.1/0: the best group |")]
    assert best[0].count(",") == 1 + 2 and len(best) == 1  # 2 runs, and two intervals
    assert "## Other exchanges" in text
    # The elastic runs are better; of the ways to choose two of four runs two are as far apart.
    assert "| 8.0 | 1.00 [1.00, 1.00] (p 0.333) |" in text
    assert "| 8.0 |  |" in text  # than the first, which is not compared with itself


def test_what_is_not_evaluated_is_said_in_one_line(tmp_path):
    unplayed = run(1, [[1]] * 4)
    unplayed.evaluations.clear()
    with pytest.raises(UserError, match=r"exchange\[1\]: not evaluated: python -m mpi_rl"):
        evaluated(unplayed)
    result = CliRunner().invoke(main, [str(tmp_path / "none.h5")])
    assert result.exit_code == 2 and "no such run file" in result.output
