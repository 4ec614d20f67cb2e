"""The command ``plot`` and its picture of learning curves."""

import numpy as np
import pytest
from PIL import Image

from mpi_rl.commands.learning_curves import on_grid, plot, pool, random_play
from mpi_rl.errors import UserError
from mpi_rl.records.curves import running_average
from mpi_rl.records.runfile import read_run
from tests.ranks import ROOT, mpi_rl
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


def test_the_command_writes_the_same_picture_each_time(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / f"{seed}.h5", seed, env="space_invaders", network="atari_2013")
    files = [tmp_path / f"{seed}.h5" for seed in (1, 2, 3)]
    result = mpi_rl("plot", *files, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.strip() == str(
        tmp_path / "learning_curves.png"
    ), result.stderr
    again = mpi_rl("plot", *files, "--output", "x.png", cwd=tmp_path)
    assert again.returncode == 0
    with Image.open(tmp_path / "x.png") as one, Image.open(
        tmp_path / "learning_curves.png"
    ) as other:
        assert one.width > 1000 and np.array_equal(np.asarray(one), np.asarray(other))
    single = mpi_rl("plot", files[0], cwd=tmp_path)
    assert single.stdout.strip() == str(tmp_path / "1.png")


def test_analysis_learning_curves_is_the_same_thing(tmp_path):
    files = [make_run(tmp_path / f"{seed}.h5", seed) and tmp_path / f"{seed}.h5" for seed in (1, 2)]
    pictures = tmp_path / "here.png", tmp_path / "there.png"
    assert mpi_rl("plot", *files, "--output", pictures[0], cwd=tmp_path).returncode == 0
    words = *files, "--output", pictures[1]
    result = mpi_rl(*words, module="analysis.learning_curves", cwd=ROOT)
    assert (result.returncode, result.stdout) == (0, f"{pictures[1]}\n"), result.stderr
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    result = mpi_rl("none.h5", module="analysis.learning_curves", cwd=ROOT)
    assert (result.returncode, result.stderr) == (2, "mpi_rl: none.h5: no such run file\n")


def test_plot_works_outside_the_repository_beside_another_analysis(tmp_path):
    folder = tmp_path / "elsewhere"
    (folder / "analysis").mkdir(parents=True)
    (folder / "analysis" / "__init__.py").write_text("raise SystemExit('not ours')\n")
    make_run(tmp_path / "a.h5", env="space_invaders", network="atari_2013")
    result = mpi_rl("plot", tmp_path / "a.h5", "--output", "a.png", cwd=folder)
    assert (result.returncode, result.stdout) == (0, "a.png\n"), result.stderr
    assert (folder / "a.png").stat().st_size > 10_000


def test_the_command_line_starts_without_what_only_plot_needs(tmp_path):
    program = (
        "import sys, mpi_rl.__main__; print({'matplotlib', 'scipy', 'numpy'} & {*sys.modules})"
    )
    (tmp_path / "started.py").write_text(program)
    assert mpi_rl(module="started", cwd=tmp_path).stdout == "set()\n"


@pytest.mark.parametrize("name", ["missing/x.png", "a.h5/x.png"])
def test_a_picture_that_cannot_be_written_is_one_line_and_status_74(tmp_path, name):
    make_run(tmp_path / "a.h5")
    before = sorted(tmp_path.iterdir())
    result = mpi_rl("plot", "a.h5", "--output", name, cwd=tmp_path)
    assert result.returncode == 74 and sorted(tmp_path.iterdir()) == before
    assert result.stderr.startswith(f"mpi_rl: {name}: cannot be written (")
    assert result.stderr.count("\n") == 1 and not result.stdout


def test_a_name_without_a_known_kind_of_picture_is_refused(tmp_path):
    make_run(tmp_path / "a.h5")
    for name in ("x", "x.doc"):
        result = mpi_rl("plot", "a.h5", "--output", name, cwd=tmp_path)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert f"{name}: its name must end in one of" in result.stderr and ".png" in result.stderr


def test_what_cannot_be_drawn_is_refused(tmp_path):
    run = make_run(tmp_path / "a.h5")
    with pytest.raises(UserError, match="different tasks"):
        plot([run, make_run(tmp_path / "b.h5", env="LunarLander-v3")], tmp_path / "x.png")
    empty = recorder(tmp_path / "c.h5")
    empty.write()
    result = mpi_rl("plot", tmp_path / "c.h5", cwd=tmp_path)
    assert result.returncode == 2 and "nothing to draw yet" in result.stderr
    assert mpi_rl("plot", "none.h5", cwd=tmp_path).returncode == 2
    (tmp_path / "text.h5").write_text("no run file")
    for wrong in (("text.h5",), (".",), (), ("c.h5", "--output", ".")):
        result = mpi_rl("plot", *wrong, cwd=tmp_path)
        assert result.returncode == 2 and result.stderr.startswith("mpi_rl: "), wrong
        assert result.stderr.count("\n") == 1 and not result.stdout


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
