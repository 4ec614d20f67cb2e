"""Runs under real Slurm daemons: arrays, interruptions of every kind, collection."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpi_rl.inspect import verify_run
from mpi_rl.runfile import KILLED, RESUMED, read_run, read_runs
from tests.ranks import ROOT
from tests.slurm.conftest import Project

pytestmark = pytest.mark.slurm
TWO_NODES = ("--nodes=2", "--ntasks=5", "--array=0")
SMALL = ("--total-steps", 6000, "--interval-period-steps", 500, "--checkpoint-period-s", 1)
SMOKE = dict(JOB="jobs/smoke.toml")
SCRIPT = "slurm/space_invaders.sh"


def two_seeds(project: Project) -> None:
    """Cut the Space Invaders sweep down to two runs."""
    job = project.folder / "jobs" / "space_invaders.toml"
    text = re.sub(r"(?m)^learning_rate = \[.*\n", "", job.read_text())
    job.write_text(text.replace("seed = [1, 2, 3]", "seed = [1, 2]"))


def events(project: Project, name: str) -> list[str]:
    return read_run(project.path(name)).tables["events"]["kind"].tolist()


@pytest.mark.mpi
def test_the_sweep_spans_nodes_and_ends_collected_and_drawn(project):
    two_seeds(project)
    job = project.sbatch("--array=0-1", *TWO_NODES[:2], SCRIPT, *SMALL)
    project.wait_for_end(job)
    for index in (0, 1):
        run = project.complete_run(f"space_invaders/{index}.h5", num_nodes=2)
        assert run.config["seed"] == index + 1
    assert verify_run(project.path("space_invaders.h5")) == []
    runs = read_runs(project.path("space_invaders.h5"))
    assert [run.config["seed"] for run in runs] == [1, 2]
    assert project.path("space_invaders/learning_curves.png").stat().st_size > 10_000
    log = project.log(f"{job}_0")
    assert log.count("\x1b") == 0 and "Done: results/space_invaders/0.h5" in log
    assert sorted(path.name for path in project.path("space_invaders").iterdir()) == [
        "0.h5",
        "1.h5",
        "learning_curves.png",
    ]


@pytest.mark.mpi
def test_three_signals_are_three_requeues_and_nothing_is_lost_or_repeated(project):
    job = project.sbatch(*TWO_NODES, SCRIPT, *SMALL, OUTPUT="results/run.h5")
    for count, signal in enumerate(("USR1", "TERM", "USR1"), start=1):
        last = project.saved_step("run.h5")
        project.wait(lambda: project.saved_step("run.h5") > last, "saved further", job)
        project.run("scancel", "--batch", f"--signal={signal}", f"{job}_0")
        project.wait(lambda: events(project, "run.h5").count(RESUMED) == count, "resumed", job)
    project.wait_for_end(job)
    run = project.complete_run("run.h5", num_nodes=2)
    kinds = run.tables["events"]["kind"].tolist()
    stops = [kind for kind in kinds if kind.startswith("stopped")]
    assert stops == ["stopped by SIGUSR1", "stopped by SIGTERM", "stopped by SIGUSR1"]
    assert run.attributes["restart_count"] == kinds.count("checkpointed") == 3
    log = project.log(f"{job}_0")  # one log that was appended to
    assert log.count("queued again") == 3 and "restart 0" in log and "restart 3" in log


def test_kills_go_on_from_the_last_checkpoint(project):
    job = project.sbatch(*TWO_NODES, SCRIPT, *SMALL, OUTPUT="results/run.h5")
    node = project.run

    def kill_a_node() -> None:
        nodes = node("squeue", "--noheader", "--format=%N", f"--job={job}")
        last = node("scontrol", "show", "hostnames", nodes).split()[-1]
        project.cluster.kill_node(last)

    def kill_the_step() -> None:
        steps = node("squeue", "--steps", "--noheader", "--format=%i", f"--job={job}").split()
        step = next(step for step in steps if step.endswith(".0"))
        node("scancel", "--signal=KILL", step)

    kills = {
        "step": kill_the_step,
        "requeue": lambda: node("scontrol", "requeue", f"{job}_0"),
        "node": kill_a_node,
    }
    for count, (name, kill) in enumerate(kills.items(), start=1):
        last = project.saved_step("run.h5")
        project.wait(lambda: project.saved_step("run.h5") > last, "saved further", job)
        kill()
        resumed = f"resumed after the {name}'s end"
        project.wait(lambda: events(project, "run.h5").count(RESUMED) == count, resumed, job)
    project.wait_for_end(job)
    run = project.complete_run("run.h5", num_nodes=2)
    assert run.attributes["restart_count"] == 3
    assert 1 <= run.tables["events"]["kind"].tolist().count(KILLED) <= 3
