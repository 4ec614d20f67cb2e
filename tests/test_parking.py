"""Workers that are parked, join and leave while a run goes on, on real ranks."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mpi_rl.commands.inspect import summary, verify_run
from mpi_rl.records.moves import moves as workers_moves
from mpi_rl.records.runfile import KILLED, read_run
from tests.ranks import family, finish, kill, mpirun, rank, start, wait_for

pytestmark = pytest.mark.mpi
RUN = (
    "train --output run.h5 --env CartPole-v1 --num-workers 5 --n-steps 10 --seed 3"
    " --interval-period-steps 500 --checkpoint-period-s 0.2 --growth schedule --initial-workers 2"
).split()
SCHEDULE = "--growth-steps 3000,9000,12000 --growth-workers 5,1,3 --total-steps 20000".split()
BOTH = pytest.mark.parametrize("transport", ["window", "message"])


def moves(run):
    """Return the workers that joined or left, in order."""
    events = run.tables["events"]
    chosen = np.isin(events["kind"], ("join", "leave"))
    return list(zip(events["kind"][chosen], events["worker_id"][chosen].tolist()))


@BOTH
def test_workers_join_leave_and_join_again(tmp_path, transport):
    result = mpirun(6, *RUN, *SCHEDULE, "--transport", transport, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    run = read_run(tmp_path / "run.h5")
    found = moves(run)
    assert sorted(found[:2]) == [("join", 0), ("join", 1)]
    assert sorted(found[2:5]) == [("join", 2), ("join", 3), ("join", 4)]
    assert sorted(found[5:9]) == [("leave", 1), ("leave", 2), ("leave", 3), ("leave", 4)]
    assert sorted(found[9:]) == [("join", 1), ("join", 2)]
    assert verify_run(tmp_path / "run.h5") == []
    steps, active = (run.tables["intervals"][key] for key in ("step", "num_active_workers"))
    assert set(active[steps < 3000]) == {2} and active.max() == 5 and active[-1] == 3
    assert 1 in active[(steps > 9000) & (steps < 12000)]
    told = summary(tmp_path / "run.h5")
    assert "schedule, 2 workers at first; join" in told and "more, leave" in told
    changed = [kind for kind in run.tables["events"]["kind"][workers_moves(run)]]
    assert changed == ["join"] * 3 + ["leave"] * 4 + ["join"] * 2


def test_a_killed_run_goes_on_with_who_was_active(tmp_path):
    """Steps, episodes and joins are neither lost nor repeated, killed as workers join or leave."""
    path, words = tmp_path / "run.h5", [*RUN, *SCHEDULE[:-1], 60_000]
    words[words.index("0.2")] = 0.02
    for least in (3_000, 9_000, 15_000):
        process = start(6, *words, cwd=tmp_path)
        wait_for(path, process)
        while read_run(path).attributes["step"] < least:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        kill(process)
        assert verify_run(path) == []
    before = read_run(path, with_state=True)
    wanted = int(before.state["growth"][0])
    result = mpirun(6, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = read_run(path)
    assert verify_run(path) == [] and run.attributes["restart_count"] == 3
    assert run.tables["events"]["kind"].tolist().count(KILLED) == 3
    last = before.tables["events"]["kind"].size
    joined = [worker for kind, worker in moves(run)[-wanted:]]
    assert len(run.tables["events"]["kind"]) > last and sorted(joined) == list(range(wanted))
    for key, column in before.episodes.items():  # what was saved is there once
        np.testing.assert_array_equal(run.episodes[key][: len(column)], column)
    assert (np.diff(run.tables["intervals"]["step"]) > 0).all()


def test_parked_ranks_have_imported_nothing_of_what_learning_needs(tmp_path):
    words = [*RUN, "--growth-steps", 10**8, "--growth-workers", 5, "--total-steps", 10**9]
    words[words.index("CartPole-v1")] = "LunarLander-v3"
    process = start(6, *words, cwd=tmp_path)
    try:
        wait_for(tmp_path / "run.h5", process)
        while not read_run(tmp_path / "run.h5").attributes["step"]:
            time.sleep(0.05)
        maps = [Path(f"/proc/{rank(process, n)}/maps").read_text() for n in range(1, 6)]
        assert ["Box2D" in text for text in maps] == [True, True, False, False, False]
        os.kill(rank(process, 0), signal.SIGINT)
        assert finish(process).returncode == 0  # parked ranks are told to stop, too
    finally:
        if family(process):
            kill(process)
    assert read_run(tmp_path / "run.h5").attributes["status"] == "checkpointed"


def test_episodes_that_get_longer_bring_workers(tmp_path):
    words = RUN[: RUN.index("--growth")]
    words += "--growth episode_duration --initial-workers 1 --growth-unit steps".split()
    words += "--growth-durations 15,30 --growth-window 20 --total-steps 15000".split()
    result = mpirun(6, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = read_run(tmp_path / "run.h5")
    assert sorted(moves(run)) == [("join", worker) for worker in range(5)]
    assert verify_run(tmp_path / "run.h5") == []


def test_more_workers_than_ranks_are_refused(tmp_path):
    words = [*RUN, "--growth-steps", 100, "--growth-workers", 6]
    result = mpirun(6, *words, cwd=tmp_path)
    assert result.returncode == 2 and "must be at most that many" in result.stderr
