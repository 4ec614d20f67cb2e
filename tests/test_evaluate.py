"""Episodes with the snapshots of finished runs."""

import os
import shutil
import signal
import time

import numpy as np
import pytest

from mpi_rl.commands.evaluate import NUM_ENVS, Request, play
from mpi_rl.commands.inspect import verify_run
from mpi_rl.envs.make import make_envs
from mpi_rl.envs.spec import env_spec_from_json
from mpi_rl.learning.agent import draw
from mpi_rl.networks.make import make_network
from mpi_rl.networks.network import network_spec
from mpi_rl.records.runfile import read_run, write_run
from tests.ranks import ROOT, finish, mpirun, rank, start

SMOKE = ROOT / "jobs" / "smoke.toml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small finished run of CartPole, with four snapshots."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ("train", SMOKE, "--snapshot-period-steps", 1500, "--output", "run.h5")
    assert mpirun(3, *arguments, cwd=folder).returncode == 0
    return folder / "run.h5"


def evaluations(path, mode="sampled"):
    return read_run(path).evaluations[mode]


@pytest.mark.mpi
def test_every_snapshot_is_played_and_the_number_of_ranks_does_not_matter(tmp_path, trained):
    for name, num_ranks in (("one.h5", 1), ("four.h5", 4)):
        shutil.copy(trained, tmp_path / name)
        result = mpirun(num_ranks, "evaluate", name, "--episodes", 30, cwd=tmp_path)
        assert result.returncode == 0 and result.stderr == "", result.stderr
        assert f"{name}: last snapshot" in result.stdout and result.stdout.count(" to play") == 1
        assert verify_run(tmp_path / name) == []
    one, four = (evaluations(tmp_path / name) for name in ("one.h5", "four.h5"))
    assert one["returns"].shape == (len(read_run(trained).snapshot_params), 30)
    np.testing.assert_array_equal(one["returns"], one["lengths"])  # CartPole pays 1 per step
    assert one["lengths"].min() > 5 and one["seed"].tolist() == [0]
    for name, values in one.items():
        np.testing.assert_array_equal(values, four[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four.h5", "one.h5"]


@pytest.mark.mpi
def test_what_is_missing_is_played_and_nothing_else(tmp_path, trained):
    path = tmp_path / "run.h5"
    shutil.copy(trained, path)
    assert mpirun(2, "evaluate", path, "--episodes", 25, cwd=tmp_path).returncode == 0
    whole, run = evaluations(path), read_run(path)
    run.evaluations["sampled"]["returns"][1] = np.nan  # as if interrupted before
    run.evaluations["sampled"]["returns"][0] = -7
    write_run(path, run)
    result = mpirun(2, "evaluate", path, "--episodes", 25, cwd=tmp_path)
    assert "1 snapshot(s) of 1 run(s) to play" in result.stdout
    again = evaluations(path)["returns"]
    assert (again[0] == -7).all()
    np.testing.assert_array_equal(again[1:], whole["returns"][1:])
    # Greedy ones stand beside the sampled ones.
    assert mpirun(1, "evaluate", path, "--greedy", "--episodes", 20, cwd=tmp_path).returncode == 0
    assert evaluations(path, "greedy")["returns"].shape == (len(again), 20)
    np.testing.assert_array_equal(evaluations(path)["returns"], again)


@pytest.mark.mpi
def test_other_episodes_and_unfinished_runs_are_refused_in_one_line(tmp_path, trained):
    path = tmp_path / "run.h5"
    shutil.copy(trained, path)
    assert mpirun(1, "evaluate", path, "--episodes", 3, cwd=tmp_path).returncode == 0
    before = path.read_bytes()
    run = read_run(path)
    run.attributes["status"] = "checkpointed"
    write_run(tmp_path / "half.h5", run)
    for words, message in (
        ((path, "--episodes", 4), "has 3 episodes of seed 0 per snapshot"),
        ((path, "--episodes", 3, "--seed", 1), "has 3 episodes of seed 0 per snapshot"),
        ((tmp_path / "half.h5",), "checkpointed: only complete runs are evaluated"),
        ((tmp_path / "none.h5",), "no such run file"),
        ((tmp_path / "no folder" / "none.h5",), "none.h5: no such run file"),
    ):
        result = mpirun(3, "evaluate", *words, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr
        assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert path.read_bytes() == before
    again = (path, "run.h5", "--episodes", 4, "--overwrite")  # the same file twice
    assert mpirun(3, "evaluate", *again, cwd=tmp_path).returncode == 0
    assert evaluations(path)["returns"].shape[1] == 4


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_is_at_play_and_the_same_command_goes_on(tmp_path, trained, number):
    path = tmp_path / "run.h5"
    shutil.copy(trained, path)
    command = ("evaluate", path, "--episodes", 2000)
    process = start(2, *command, cwd=tmp_path)
    first = process.stdout.readline()
    time.sleep(0.3)
    os.kill(rank(process, 0), number)
    result = finish(process)
    num_snapshots = len(evaluations(path)["returns"])
    assert first == f"{num_snapshots} snapshot(s) of 1 run(s) to play\n"
    assert "stopping after the snapshots now at play; the same command goes on" in result.stdout
    assert result.returncode == 130 and "Traceback" not in result.stderr
    missing = int(np.isnan(evaluations(path)["returns"]).any(axis=1).sum())
    assert 0 < missing < num_snapshots and verify_run(path) == []
    result = mpirun(2, *command, cwd=tmp_path)
    assert result.returncode == 0 and f"{missing} snapshot(s) of 1 run(s)" in result.stdout
    assert (evaluations(path)["lengths"] > 0).all()


def test_the_first_episodes_to_begin_count_however_long_they_take(trained):
    """Every environment's episodes, played on until the longest has ended, put in order by hand."""
    run, num_episodes, seed = read_run(trained), 3 * NUM_ENVS + 7, 5
    spec = env_spec_from_json(run.attributes["env_spec"])
    shape = network_spec(run.config, spec.observation_shape, spec.num_actions)
    params = run.snapshot_params[-1].astype(np.float32)
    network = make_network(shape, params, np.zeros_like(params), 1, NUM_ENVS)
    envs = make_envs(spec, NUM_ENVS)
    first, second = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.Generator(np.random.SFC64(second))
    seeds = np.random.default_rng(first).integers(2**31 - 1, size=NUM_ENVS)
    observations, since, ended = envs.reset(seeds), [0] * NUM_ENVS, []
    for t in range(1, 8001):
        result = envs.step(draw(network.logits(0, observations), rng, greedy=False))
        observations = result.observations
        for e in np.flatnonzero(result.terminated | result.truncated):
            ended.append((since[e], e, t - since[e]))
            since[e] = t
    first_lengths = [length for _, _, length in sorted(ended)][:num_episodes]
    assert sorted(ended)[num_episodes][0] < 7000  # all of them have ended, at 500 steps at most
    assert first_lengths != [length for _, _, length in ended][:num_episodes]
    task = run.attributes["env_spec"], run.config, run.snapshot_params[-1]
    assert play(*task, Request(num_episodes, False, seed))[1].tolist() == first_lengths


def test_episodes_are_as_many_as_asked_and_the_same_each_time(trained):
    run = read_run(trained)
    task = run.attributes["env_spec"], run.config, run.snapshot_params[-1]
    for count in (1, NUM_ENVS - 1, NUM_ENVS + 3, 2 * NUM_ENVS):
        returns, lengths = play(*task, Request(count, greedy=False, seed=3))
        assert len(returns) == len(lengths) == count and (returns > 0).all()
        np.testing.assert_array_equal(play(*task, Request(count, False, 3))[0], returns)
        assert count == 1 or not np.array_equal(play(*task, Request(count, False, 4))[0], returns)
