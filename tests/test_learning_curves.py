import numpy as np
import pytest
from PIL import Image

from analysis.learning_curves import (
    interval_of_mean,
    on_grid,
    plot,
    pool,
    random_play,
    running_average,
)
from mpi_rl.runfile import read_run
from tests.ranks import mpi_rl
from tests.records import header, recorder


def make_run(path, seed=1, slope=1.0, **settings):
    record = recorder(path, seed=seed, **settings)
    record.attributes["seed"] = seed
    rng = np.random.default_rng(seed)
    for number in range(40):
        record.push(
            number % 2,
            header(version=number, returns=[slope * number + rng.normal()], lengths=[50]),
            0.1,
        )
    record.write("checkpointed")
    return read_run(path)


def test_running_average_has_the_reproductions_decay():
    assert running_average(np.array([10.0, 20.0, 0.0])).tolist() == pytest.approx([10, 10.5, 9.975])


def test_runs_are_pooled_over_seeds_and_named_by_what_differs(tmp_path):
    runs = [
        make_run(tmp_path / f"{seed}{rate}.h5", seed, learning_rate=rate)
        for rate in (0.1, 0.2)
        for seed in (1, 2)
    ]
    groups = pool(runs)
    assert {name: [run.attributes["seed"] for run in group] for name, group in groups.items()} == {
        "learning_rate 0.1": [1, 2],
        "learning_rate 0.2": [1, 2],
    }
    assert list(pool(runs[:2])) == ["2 workers"]


def test_curves_share_a_grid_within_all_runs(tmp_path):
    runs = [make_run(tmp_path / f"{seed}.h5", seed) for seed in (1, 2, 3)]
    grid, curves = on_grid(runs, "step")
    assert curves.shape == (3, len(grid)) and grid[0] == 50 and grid[-1] == 2000
    expected = running_average(runs[1].episodes["episode_return"])
    np.testing.assert_allclose(curves[1][[0, -1]], expected[[0, -1]])


def test_interval_covers_the_mean_and_shrinks_with_agreement():
    curves = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    low, high = interval_of_mean(curves)
    assert low[0] < 2 < high[0] and low[0] >= 0 and high[0] <= 4
    assert low[1] == high[1] == 5


def test_the_command_writes_the_same_picture_each_time(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / f"{seed}.h5", seed, env="space_invaders", network="atari_2013")
    files = [tmp_path / f"{seed}.h5" for seed in (1, 2, 3)]
    result = mpi_rl(*files, module="analysis.learning_curves", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.strip() == str(
        tmp_path / "learning_curves.png"
    ), result.stderr
    again = mpi_rl(*files, "--output", "x.png", module="analysis.learning_curves", cwd=tmp_path)
    assert again.returncode == 0
    with Image.open(tmp_path / "x.png") as one, Image.open(
        tmp_path / "learning_curves.png"
    ) as other:
        assert one.width > 1000 and np.array_equal(np.asarray(one), np.asarray(other))
    single = mpi_rl(files[0], module="analysis.learning_curves", cwd=tmp_path)
    assert single.stdout.strip() == str(tmp_path / "1.png")


def test_what_cannot_be_drawn_is_refused(tmp_path):
    run = make_run(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="different tasks"):
        plot([run, make_run(tmp_path / "b.h5", env="LunarLander-v3")], tmp_path / "x.png")
    empty = recorder(tmp_path / "c.h5")
    empty.write()
    result = mpi_rl(tmp_path / "c.h5", module="analysis.learning_curves", cwd=tmp_path)
    assert result.returncode == 2 and "nothing to draw yet" in result.stderr
    assert mpi_rl("none.h5", module="analysis.learning_curves", cwd=tmp_path).returncode == 2


def test_random_play_is_the_published_score():
    assert random_play() == 148


def test_space_invaders_is_drawn_beside_the_paper_and_random_play(tmp_path):
    run = make_run(tmp_path / "a.h5", env="space_invaders")
    run.episodes["step"] *= 1000  # as if it had gone on for two million steps
    left, right = plot([run], tmp_path / "x.png").axes
    lines = {line.get_label(): line for panel in (left, right) for line in panel.get_lines()}
    paper = lines["A3C paper, figure 3, 16 threads (digitised)"]
    np.testing.assert_allclose(paper.get_xdata(), [0, 1, 2], atol=0.01)  # no further than the run
    assert paper.get_ydata().tolist() == [161.9, 187.6, 211.5]
    assert lines["random play"].get_ydata()[0] == 148
    other = plot([make_run(tmp_path / "b.h5")], tmp_path / "y.png")
    assert "random play" not in {line.get_label() for line in other.axes[0].get_lines()}
