"""Pictures and tables of worker-scaling studies, from made-up runs."""

import numpy as np
import pytest

from analysis.runs import MIN_EPISODES, binned
from analysis.worker_scaling import deck, write
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import read_run
from tests.records import header, recorder

LEVELS = {4: 10.0, 10: 300.0, 40: -5.0}


def made(path, env, workers, seed, level, **settings):
    """A run whose returns rise from -5 to ``level`` in 200 episodes of 50 steps."""
    record = recorder(path, workers, seed=seed, env=env, num_workers=workers, **settings)
    record.join(0, np.zeros(6, np.uint64))
    rng = np.random.default_rng(seed)
    for number in range(200):
        if number == 100 and "growth" in settings:
            record.join(workers - 1, np.zeros(6, np.uint64))
        value = -5 + (level + 5) * number / 100 + rng.normal()
        record.push(number % workers, header(version=number, returns=[value], lengths=[50]), 0.1)
    record.attributes["index"] = workers * 10 + seed
    record.write("complete")
    return read_run(path)


@pytest.fixture(scope="module")
def flappy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        made(folder / f"{workers}.{seed}.h5", "FlappyBird-v0", workers, seed, level)
        for workers, level in LEVELS.items()
        for seed in (1, 2, 3, 4, 5)
    ]
    grown = dict(growth="episode_duration", initial_workers=10)
    runs += [
        made(folder / f"g{seed}.h5", "FlappyBird-v0", 20, seed, 400.0, **grown) for seed in (1, 2)
    ]
    return runs


def test_tables_say_who_reached_what_and_when(flappy, tmp_path):
    table, picture = write(flappy, tmp_path)
    text = table.read_text()
    assert table.name == "flappybird.md" and picture.stat().st_size > 50_000
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert list(rows)[2:6] == ["4 workers", "10 workers", "40 workers", "10 to 20"]
    first = text.splitlines().index(next(one for one in text.splitlines() if "reach 50" in one))
    lines = {line.split(" | ")[0][2:]: line for line in text.splitlines()[first:][:6]}
    assert "5 of 5" in lines["10 workers"] and "0 of 5" in lines["40 workers"]
    assert "| 10 workers over 40 workers | 1.00 [1.00, 1.00] | +30" in text
    assert "| 10 workers over 10 to 20 | " in text and "p 0.0008 (Friedman's test)" in text
    never = [line for line in text.splitlines() if line.startswith("| 40 workers | never, never")]
    assert len(never) == 3  # for each score
    assert "| 4 workers before 10 workers | 0.00 [0.00, 0.00], p 0.008" in text
    # neither gets to 50
    assert "| 4 workers before 40 workers | 0.50 [0.50, 0.50], p 1.000" in text


def test_one_seed_has_no_intervals_and_no_tests(flappy, tmp_path):
    runs = [run for run in flappy if run.config.seed == 1]
    text = write(runs, tmp_path)[0].read_text()
    assert "| 10 workers over 40 workers | 1.00 | +30" in text
    assert "Friedman" not in text.split("## Scores")[1] and "Page" not in text.split("##")[-1]


def test_what_a_longer_budget_saw_does_not_count(tmp_path):
    """A run that gets to 50 only after the others have ended was not sooner than they."""
    late = dict(growth="episode_duration", initial_workers=1)
    runs = [made(tmp_path / f"s{seed}.h5", "FlappyBird-v0", 4, seed, 45.0) for seed in (1, 2)]
    for seed in (1, 2):
        run = made(tmp_path / f"l{seed}.h5", "FlappyBird-v0", 6, seed, 120.0, **late)
        rows = slice(0, 60)  # what there is of the others: the first 60 episodes
        runs.append(run)
        short = runs[seed - 1].tables["episodes"]
        runs[seed - 1].tables["episodes"] = {key: column[rows] for key, column in short.items()}
    text = write(runs, tmp_path / "out")[0].read_text()
    section = text.split("## A score of 50")[1].split("##")[0]
    same = "0.50 [0.50, 0.50], p 1.000"
    assert f"| 4 workers before 1 to 6 | {same} | {same}" in section


def test_scores_are_compared_where_the_smaller_budget_ends(tmp_path):
    budget = dict(total_episodes=1000)
    runs = [
        made(tmp_path / f"s{seed}.h5", "FlappyBird-v0", 4, seed, 45.0, **budget) for seed in (1, 2)
    ]
    grown = dict(growth="episode_duration", initial_workers=1, total_episodes=1100)
    for seed in (1, 2):
        run = made(tmp_path / f"l{seed}.h5", "FlappyBird-v0", 6, seed, 120.0, **grown)
        returns = np.r_[np.full(1000, 5.0 * seed), np.full(100, 1e6)]  # the last are beyond it
        run.tables["episodes"]["episode_return"] = returns
        run.tables["episodes"]["step"] = run.tables["episodes"]["wall_time_s"] = np.arange(1100)
        runs[seed - 1].tables["episodes"]["episode_return"] = np.full(200, 4.0 * seed)
        runs.append(run)
    text = write(runs, tmp_path / "out")[0].read_text()
    assert "| 4 workers over 1 to 6 | 0.25 [0.00, 1.00] | -1.5 [" in text


def test_runs_that_are_not_complete_are_refused(flappy, tmp_path):
    record = recorder(tmp_path / "u.h5", 4, seed=9, env="FlappyBird-v0", num_workers=4)
    record.push(0, header(version=0, returns=[1.0, 2.0], lengths=[5, 5]), 0.1)
    record.write("checkpointed")
    with pytest.raises(UserError, match="checkpointed with 2 episodes: must be complete"):
        write([*flappy, read_run(record.path)], tmp_path)


def test_runs_of_other_settings_are_not_dropped_silently(flappy, tmp_path):
    other = made(tmp_path / "o.h5", "FlappyBird-v0", 4, 9, 10.0, learning_rate=0.5)
    with pytest.raises(UserError, match="4 workers: runs of different settings"):
        write([*flappy, other], tmp_path)


def test_the_decks_curves_are_beside_ours():
    found = deck()
    assert set(found) == {*(f"{n} workers" for n in (4, 6, 10, 20, 40)), "10 to 20", "10 to 32"}
    assert found["10 workers"][-1].tolist() == [100, 203] and found["40 workers"].tolist() == [
        [100, -5]
    ]


def test_space_invaders_has_a_picture_of_its_own(tmp_path):
    runs = [
        made(tmp_path / f"{workers}.{seed}.h5", "space_invaders", workers, seed, 300.0)
        for workers in (4, 10)
        for seed in (1, 2)
    ]
    table, picture = write(runs, tmp_path / "out")
    assert [table.name, picture.name] == ["space_invaders.md", "space_invaders.png"]
    text = table.read_text()
    assert "Runs end after 2,000 steps. A score" in text
    last = [np.mean(run.episodes["episode_return"][-100:]) for run in runs[:2]]
    assert f"| {last[0]:.1f}, {last[1]:.1f} |" in text
    assert "| workers | steps (millions) | updates (thousands) | minutes of training |" in text
    assert "| sooner in steps | sooner in updates | sooner in minutes of training |" in text
    first = next(
        line for line in text.split("## A score of 200")[1].splitlines() if "| 4 w" in line
    )
    updates = []
    for run in runs[:2]:
        average = run.episodes["episode_return"][0]
        for value, version in zip(run.episodes["episode_return"], run.episodes["version"]):
            average += 0.02 * (value - average)
            if average >= 200:
                updates.append(f"{version / 1e3:.3g}")
                break
    assert first.split(" | ")[2] == ", ".join(updates) and len(updates) == 2


def test_points_of_a_picture_are_means_of_enough_episodes(tmp_path):
    run = made(tmp_path / "1.h5", "space_invaders", 4, 1, 300.0)
    at, means = binned(run, "episode")
    assert len(at) == 200 // MIN_EPISODES and at[-1] == 200
    assert means[0] == pytest.approx(run.episodes["episode_return"][: at[0]].mean())
