"""The thesis' tables beside ours, from made-up evaluations."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from analysis.genkidama_tables import a3c_cells, choices, genkidama_cells, main, write
from analysis.runs import cell
from analysis.tables import row
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import Run


def run(seed, returns, versions=(4000,), kinds=("group 0",), **settings):
    """A run whose snapshots, of these versions, got ``returns``, (versions, episodes).

    Groups with higher numbers were better in training.
    """
    config = dict(algorithm="a3c", seed=seed, num_workers=8, gamma=0.999, n_steps=120)
    config |= {"total_episodes": 16_000, "learn_last_step": False, **settings}
    if config["algorithm"] == "genkidama":
        config |= {"group_size": 4, "learning_rate_schedule": "constant"}
    attributes = dict(config=json.dumps(config), job="thesis", index=seed)
    table = {"snapshots": {"version": np.array(versions), "kind": np.array(kinds, object)}}
    table["snapshots"]["mean_return"] = np.arange(len(kinds))
    played = {"sampled": {"returns": np.array(returns, float)}}
    return Run(attributes, table, np.zeros((1, 1)), np.zeros((1, 1)), {}, played)


def test_cells_hold_the_runs_of_their_setting_in_the_order_of_seeds():
    runs = [
        run(2, [[0, 0], [250, 270]], versions=(9, 99)),  # the last snapshot counts
        run(1, [[100, 120]]),
        run(1, [[7, 9]], gamma=0.99),
        run(1, [[1, 1]], algorithm="genkidama", alpha=0.9, beta=0.0),
    ]
    first, second, *others = a3c_cells(runs)
    assert first.returns.tolist() == [110, 260] and first.thesis == (255.9, 36.9)
    assert second.returns.tolist() == [8] and not any(len(other.returns) for other in others)
    label, thesis, mean, solved, seeds = row(first)
    assert (label, thesis, seeds) == (
        "A3C, 8 cores, gamma .999, batch 120",
        "255.9 ± 36.9",
        "110, 260",
    )
    assert mean == "185.0 [110.0, 260.0]"  # of two runs any resampled mean lies between them
    assert solved == "1 of 2 [0.01, 0.99]"  # 1 - sqrt(.975), sqrt(.975)


def test_four_workers_with_the_episodes_of_eight_are_a_row_of_their_own():
    less = run(2, [[6]], num_workers=4, total_episodes=8000)
    *table, extra, _ = a3c_cells([run(1, [[5]], num_workers=4), less])
    (four,) = [one for one in table if len(one.returns)]
    assert "4 cores" in four.label and four.returns.tolist() == [6] and four.thesis == (230.0, 87.1)
    assert extra.returns.tolist() == [5] and extra.thesis is None


def test_learning_the_last_step_is_a_row_of_its_own():
    *table, extra = a3c_cells([run(1, [[5]]), run(2, [[6]], learn_last_step=True)])
    assert [one.returns.tolist() for one in table if len(one.returns)] == [[5]]
    assert extra.returns.tolist() == [6] and extra.thesis is None


def test_genkidamas_cells_are_at_twice_as_many_exchanges():
    settings = dict(algorithm="genkidama", alpha=0.5, beta=0.9)
    found = genkidama_cells([run(1, [[1, 3], [10, 20]], versions=(200, 4000), **settings)])
    assert len(found) == 9 * 20
    assert found[0.5, 0.9, 100].returns.tolist() == [2]
    assert found[0.5, 0.9, 2000].returns.tolist() == [15]
    assert found[0.5, 0.9, 2000].thesis == (209.8, 94.7)
    assert sum(len(one.returns) for one in found.values()) == 2


def test_without_reception_the_server_stands_beside_the_best_group():
    settings = dict(
        algorithm="genkidama", alpha=0.9, beta=0.0, kinds=("group 0", "group 1", "last")
    )
    runs = [run(1, [[90], [50], [70]], versions=(9, 9, 9), **settings), run(1, [[1]])]
    runs.append(run(2, [[0]], algorithm="genkidama", alpha=0.9, beta=0.5))
    server, first, second, best = choices(runs)
    assert server.returns.tolist() == [70] and best.returns.tolist() == [50]
    assert first.returns.tolist() == [90] and second.returns.tolist() == [50]
    assert best.label == "alpha 0.9: the best group"


def test_a_file_from_before_a_setting_was_introduced_had_its_default():
    one = run(1, [[5]])
    config = json.loads(one.attributes["config"])
    del config["learn_last_step"]
    one.attributes["config"] = json.dumps(config)
    *_, learnt = a3c_cells([one])
    assert learnt.returns.tolist() == [5]  # the default


def test_tables_and_figures_are_written_with_and_without_runs(tmp_path):
    rng = np.random.default_rng(0)
    runs = [run(seed, rng.normal(200 + seed, 30, (1, 50))) for seed in (1, 2, 3)]
    settings = dict(algorithm="genkidama", alpha=0.9, beta=0.0)
    runs += [run(seed, rng.normal(100, 30, (1, 50)), **settings) for seed in (1, 2)]
    for name, some in (("some", runs), ("none", [])):
        tables, *figures = write(some, tmp_path / name)
        assert len(figures) == 4 and all(path.stat().st_size > 1000 for path in figures)
        text = tables.read_text()
        for number in ("5.2", "5.3", "5.4", "5.5", "5.6"):
            assert f"## Table {number}" in text
    text = (tmp_path / "some" / "tables.md").read_text()
    over = "| Genkidama, alpha 0.9, beta 0 over A3C, 8 cores, gamma .999, batch 120 | +1.3 | 0.00 ["
    assert over in text


def test_what_is_not_evaluated_is_said_in_one_line(tmp_path):
    unplayed = run(1, [[1]])
    unplayed.evaluations.clear()
    with pytest.raises(UserError, match=r"thesis\[1\]: not evaluated: python -m mpi_rl evaluate"):
        cell("", None, [unplayed])
    with pytest.raises(UserError, match="evaluated in part"):
        cell("", None, [run(1, [[1, np.nan]])])
    result = CliRunner().invoke(main, [str(tmp_path / "none.h5")])
    assert result.exit_code == 2 and "no such run file" in result.output
