"""Whole runs on real ranks: sizes, transports, repeatability, interruptions, failures."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mpi_rl.commands.inspect import verify_run
from mpi_rl.records.runfile import read_run
from mpi_rl.server.recorder import RESUMED
from tests.ranks import MPIRUN, ROOT, environment, finish, kill, mpirun, rank, start, wait_for

pytestmark = pytest.mark.mpi
SMOKE = ROOT / "jobs" / "smoke.toml"
LONG = ("train", SMOKE, "--total-steps", 10**9, "--checkpoint-period-s", 0.2, "--output", "run.h5")


def last_params(path):
    return read_run(path).snapshot_params[-1]


@pytest.mark.parametrize(
    "num_ranks, transport",
    [(2, "window"), (2, "message"), (3, "message"), (9, "window"), (9, "message"), (41, "window")],
)
def test_runs_of_every_size_end_cleanly(tmp_path, num_ranks, transport):
    result = mpirun(
        num_ranks, "train", SMOKE, "--transport", transport, "--output", "run.h5", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no request left behind, no rank that complains
    assert "Done: run.h5" in result.stdout
    assert verify_run(tmp_path / "run.h5") == []
    run = read_run(tmp_path / "run.h5")
    workers = run.tables["workers"]
    assert run.attributes["status"] == "complete" and run.attributes["world_size"] == num_ranks
    assert 4000 <= run.attributes["step"] < 4000 + 20 * num_ranks
    assert set(workers["transport"]) == {transport} and len(workers["transport"]) == num_ranks - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.h5"]


def test_one_worker_repeats_bit_for_bit_over_runs_and_transports(tmp_path):
    for name, extra in (
        ("a", ()),
        ("b", ()),
        ("c", ("--transport", "message")),
        ("d", ("--spin",)),
    ):
        assert (
            mpirun(2, "train", SMOKE, "--output", f"{name}.h5", *extra, cwd=tmp_path).returncode
            == 0
        )
    first = last_params(tmp_path / "a.h5")
    for name in "bcd":
        np.testing.assert_array_equal(last_params(tmp_path / f"{name}.h5"), first)
    mpirun(2, "train", SMOKE, "--index", 1, "--output", "e.h5", cwd=tmp_path)
    assert not np.array_equal(last_params(tmp_path / "e.h5"), first)


def test_with_a_delayed_pull_every_gradient_but_the_first_is_one_update_older(tmp_path):
    mpirun(2, "train", SMOKE, "--delayed-pull", "--output", "run.h5", cwd=tmp_path)
    run = read_run(tmp_path / "run.h5")
    assert run.attributes["version"] > 10
    assert run.staleness[0, :2].tolist() == [1, run.attributes["version"] - 1]
    assert run.staleness.sum() == run.attributes["version"]


@pytest.mark.parametrize("num_envs", [1, 4])  # factors, of 5 rows, and gradients
def test_one_atari_worker_repeats_bit_for_bit_over_transports_and_threads(tmp_path, num_envs):
    job = ("train", ROOT / "jobs/space_invaders.toml", "--envs-per-worker", num_envs)
    found = []
    for how in (("transport", "window"), ("transport", "message"), ("server-threads", 2)):
        output = tmp_path / f"{how[1]}.h5"
        done = mpirun(
            2, *job, f"--{how[0]}", how[1], "--total-steps", 900, "--output", output, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        found.append(last_params(output))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_factors_and_gradients_make_the_same_run_but_for_rounding(tmp_path):
    job = ("train", ROOT / "jobs/space_invaders.toml", "--total-steps", 100)
    runs = []
    for push in ("gradient", "factors"):
        output = tmp_path / f"{push}.h5"
        done = mpirun(2, *job, "--push", push, "--output", output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        runs.append(read_run(output))
    first, second = runs
    assert first.attributes["version"] == second.attributes["version"] > 10
    np.testing.assert_allclose(last_params(output), first.snapshot_params[-1], atol=1e-6)
    for name in ("grad_norm", "value_loss", "entropy"):
        one, other = (run.tables["intervals"][name] for run in runs)
        np.testing.assert_allclose(one, other, rtol=1e-3)


def test_atari_runs_end_cleanly(tmp_path):
    result = mpirun(
        3,
        "train",
        ROOT / "jobs/space_invaders.toml",
        "--envs-per-worker",
        4,
        "--total-steps",
        2000,
        "--interval-period-steps",
        500,
        "--max-episode-frames",
        400,
        "--output",
        "run.h5",
        cwd=tmp_path,
    )
    assert result.returncode == 0 and result.stderr == ""
    assert verify_run(tmp_path / "run.h5") == []
    assert (read_run(tmp_path / "run.h5").episodes["episode_length"] <= 100).all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_checkpoints_and_the_same_command_resumes(tmp_path, number):
    arguments = (
        "train",
        SMOKE,
        "--total-steps",
        60_000,
        "--interval-period-steps",
        1000,
        "--output",
        "run.h5",
    )
    process = start(3, *arguments, cwd=tmp_path)
    wait_for(tmp_path / "run.h5", process)
    time.sleep(0.3)
    # To rank 0 itself: launchers differ in how they pass signals on.
    os.kill(rank(process, 0), number)
    result = finish(process)
    assert result.returncode == 0, result.stderr
    assert "the same command resumes run.h5" in result.stdout
    stopped = read_run(tmp_path / "run.h5")
    assert (
        stopped.attributes["status"] == "checkpointed" and 0 < stopped.attributes["step"] < 60_000
    )
    assert verify_run(tmp_path / "run.h5") == []
    result = mpirun(3, *arguments, cwd=tmp_path)
    assert (
        result.returncode == 0
        and f"resumed at step {stopped.attributes['step']:,}" in result.stdout
    )
    run = read_run(tmp_path / "run.h5")
    assert run.attributes["status"] == "complete" and run.attributes["restart_count"] == 1
    assert RESUMED in run.tables["events"]["kind"]
    assert verify_run(tmp_path / "run.h5") == []


def test_ctrl_c_at_the_launcher_saves_the_run(tmp_path):
    process = start(3, *LONG, cwd=tmp_path)
    wait_for(tmp_path / "run.h5", process)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    result = finish(process)
    run = read_run(tmp_path / "run.h5")
    assert run.attributes["status"] == "checkpointed"
    if "Open MPI" not in run.attributes["mpi_library"]:  # which shows nothing more after Ctrl-C
        assert result.returncode == 0 and "the same command resumes run.h5" in result.stdout
    assert verify_run(tmp_path / "run.h5") == []


def test_ten_kills_lose_nothing_that_was_saved(tmp_path):
    rng, path = random.Random(0), tmp_path / "run.h5"
    arguments = (
        "train",
        SMOKE,
        "--n-steps",
        5,
        "--total-steps",
        250_000,
        "--checkpoint-period-s",
        0.1,
        "--output",
        "run.h5",
    )
    saved, previous = 0, None
    for _ in range(10):
        process = start(3, *arguments, cwd=tmp_path)
        wait_for(path, process)
        written = path.stat().st_mtime_ns if saved else 0
        deadline = time.monotonic() + 60
        if rng.random() < 0.3:  # somewhere in setting up
            time.sleep(rng.uniform(0, 2.5))
        else:  # somewhere in training
            while path.stat().st_mtime_ns == written and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.6))
        kill(process)
        assert verify_run(path) == []
        run = read_run(path, with_state=True)
        assert run.state["update_rule/num_updates"][0] == run.attributes["version"]
        assert run.attributes["status"] == "running" and run.attributes["step"] >= saved
        if previous:
            for name in ("episodes", "intervals"):  # what was saved stands, what is new comes after
                for key, column in previous.tables[name].items():
                    np.testing.assert_array_equal(run.tables[name][key][: len(column)], column)
        saved, previous = run.attributes["step"], run
    assert mpirun(3, *arguments, cwd=tmp_path).returncode == 0
    run = read_run(path)
    assert verify_run(path) == [] and run.attributes["status"] == "complete"
    assert 250_000 <= run.attributes["step"] < 250_000 + 2 * 5
    assert (run.tables["events"]["kind"] == RESUMED).sum() == run.attributes["restart_count"] <= 10
    assert run.attributes["step"] > saved > 0


def test_two_resumptions_of_one_file_are_bit_identical(tmp_path):
    arguments = ("train", SMOKE, "--total-steps", 40_000, "--checkpoint-period-s", 0.2, "--output")
    process = start(2, *arguments, "run.h5", cwd=tmp_path)
    wait_for(tmp_path / "run.h5", process)
    while read_run(tmp_path / "run.h5").attributes["step"] == 0:
        time.sleep(0.02)
    kill(process)
    (tmp_path / "run.h5.lock").unlink(missing_ok=True)
    for name in ("a.h5", "b.h5"):
        shutil.copy(tmp_path / "run.h5", tmp_path / name)
        assert mpirun(2, *arguments, name, cwd=tmp_path).returncode == 0
        assert read_run(tmp_path / name).attributes["restart_count"] == 1
    np.testing.assert_array_equal(last_params(tmp_path / "a.h5"), last_params(tmp_path / "b.h5"))


def fails(tmp_path, num_ranks, *arguments, program=("-m", "mpi_rl")):
    """Run into the failure and return what it left."""
    result = mpirun(num_ranks, *arguments, cwd=tmp_path, program=program, timeout_s=60)
    assert result.returncode not in (0, 2)
    return result


@pytest.mark.parametrize("transport", ["window", "message"])
def test_a_crashing_environment_ends_all_ranks_with_its_traceback(tmp_path, transport):
    # A network so large that a message moves only while both ends call MPI.
    arguments = (*LONG, "--hidden-sizes", "512,512", "--transport", transport)
    result = fails(tmp_path, 4, "environment", *arguments, program=(ROOT / "tests" / "faults.py",))
    assert "rank 2: RuntimeError: the lander's engine fell off" in result.stderr
    assert "in faulty" in result.stderr
    assert read_run(tmp_path / "run.h5").attributes["status"] == "failed"
    assert verify_run(tmp_path / "run.h5") == []
    again = mpirun(4, *arguments, "--seed", 2, cwd=tmp_path)
    assert again.returncode == 2 and "seed: 1 -> 2" in again.stderr
    process = start(4, *arguments, cwd=tmp_path)  # a failed run is unfinished: it resumes
    assert "resumed at step" in process.stdout.readline()
    deadline = time.monotonic() + 20
    while read_run(tmp_path / "run.h5").attributes["restart_count"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill(process)


def test_a_worker_that_fails_before_it_joins_ends_all_ranks(tmp_path):
    began = time.monotonic()
    result = fails(tmp_path, 3, "import", *LONG, program=(ROOT / "tests" / "faults.py",))
    assert "rank 1: RuntimeError: no such rocket" in result.stderr
    assert (
        time.monotonic() - began < 40
        and read_run(tmp_path / "run.h5").attributes["status"] == "failed"
    )


def test_ranks_with_another_network_are_refused_with_both_shapes(tmp_path):
    program = (ROOT / "tests" / "faults.py",)
    result = mpirun(4, "network", "train", SMOKE, cwd=tmp_path, program=program)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("mpi_rl: rank 2's network is policy (17, 4); policy (3, 16);")
    assert "but the server's is policy (16, 4); policy (2, 16);" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_gradient_that_is_not_finite_ends_all_ranks(tmp_path):
    result = fails(tmp_path, 3, *LONG, "--update-rule", "sgd", "--learning-rate", 1e30)
    assert "FloatingPointError: the gradient's norm is" in result.stderr
    assert read_run(tmp_path / "run.h5").attributes["status"] == "failed"
    assert verify_run(tmp_path / "run.h5") == []


def test_a_full_disk_ends_all_ranks_and_the_saved_run_stands(tmp_path):
    result = fails(tmp_path, 3, "disk", *LONG, program=(ROOT / "tests" / "faults.py",))
    assert result.returncode == os.EX_IOERR
    line = "run.h5: cannot be written (No space left on device); what it held is kept"
    assert line in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
    assert verify_run(tmp_path / "run.h5") == []


def test_ranks_end_within_five_seconds_of_a_failure(tmp_path):
    process = start(4, "environment", *LONG, cwd=tmp_path, program=(ROOT / "tests" / "faults.py",))
    assert process.stderr is not None
    for line in process.stderr:
        if "engine fell off" in line:
            break
    else:
        raise AssertionError("the fault was not printed")
    seen = time.monotonic()
    assert process.wait(timeout=30) != 0
    assert time.monotonic() - seen < 5
    finish(process)


def test_a_killed_rank_ends_all_others(tmp_path):
    process = start(4, *LONG, cwd=tmp_path)
    wait_for(tmp_path / "run.h5", process)
    time.sleep(0.5)
    os.kill(rank(process, 2), signal.SIGKILL)
    result = finish(process, timeout_s=30)
    assert result.returncode != 0 and verify_run(tmp_path / "run.h5") == []


def test_two_writers_of_one_file_are_refused(tmp_path):
    first = start(3, *LONG, cwd=tmp_path)
    wait_for(tmp_path / "run.h5", first)
    second = mpirun(3, *LONG, cwd=tmp_path)
    assert second.returncode == 75 and "run.h5: being written by process" in second.stderr
    third = mpirun(3, *LONG, "--overwrite", cwd=tmp_path)
    assert third.returncode == 75 and "being written by" in third.stderr
    assert first.poll() is None
    kill(first)
    assert verify_run(tmp_path / "run.h5") == []


def test_a_terminal_gets_the_live_view(tmp_path):
    arguments = ("-m", "mpi_rl", "train", SMOKE, "--total-steps", 100_000)
    plain = mpirun(3, *arguments[2:], cwd=tmp_path).stdout
    assert "\x1b[" not in plain and "steps/s" in plain
    command = (MPIRUN, "-n", 3, sys.executable, *arguments, "--output", "live.h5")
    live = subprocess.run(
        ["script", "-qec", " ".join(map(str, command)), "/dev/null"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment(), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
    )
    assert live.returncode == 0 and "\x1b[" in live.stdout
    for word in ("steps/s", "left", "return", "staleness", "workers", "Done:"):
        assert word in live.stdout
