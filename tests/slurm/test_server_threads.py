"""The server's threads under real Slurm daemons: which cores rank 0 has for them."""

import os
import re
import sys
from collections import Counter

import pytest

from mpi_rl.records.runfile import read_run
from tests.slurm.conftest import Project

pytestmark = pytest.mark.slurm
PYTHON = f"""\
#!/bin/sh
# Python; as a rank it first says where it is, what it may use, and what its job and its step have.
rank=${{PMI_RANK:-$OMPI_COMM_WORLD_RANK}}
if [ "$rank" ]; then
    usable=$(env -u OMP_NUM_THREADS nproc)
    step=$(scontrol --oneliner show step "$SLURM_JOB_ID.$SLURM_STEP_ID")
    echo "$SLURMD_NODENAME $usable $SLURM_JOB_CPUS_PER_NODE ${{step#* CPUs=}}" >"ranks/$rank"
fi
exec {sys.executable} "$@"
"""


def run(project: Project, num_workers: int, threads: int, *sbatch: str, **site: str) -> list[tuple]:
    """Train a run as ``submit`` queues it.

    Return each rank's node, the cores that the job has on each node, and those of the rank's step.
    """
    python, ranks = project.folder / "python", project.folder / "ranks"
    python.write_text(PYTHON)
    python.chmod(0o755)
    ranks.mkdir()
    project.variables |= {"PYTHON": str(python), "MPIRUN_OPTIONS": "", **site}
    words = ("--num-workers", num_workers, "--server-threads", threads, "--total-steps", 2000)
    options = [f"--sbatch={option}" for option in ("--array=0", *sbatch)]
    done = project.mpi_rl("submit", "jobs/smoke.toml", *words, *options)
    assert done.returncode == 0, done.stderr
    assert f"--ntasks={num_workers + threads} " in done.stdout
    project.wait(lambda: not project.run("squeue", "--noheader"), "all ended")
    found = [(ranks / f"{rank}").read_text().split() for rank in range(num_workers + 1)]
    assert len(list(ranks.iterdir())) == num_workers + 1, project.log("*")
    machine = str(len(os.sched_getaffinity(0)))
    assert {usable for _, usable, *_ in found} == {machine}  # nothing is bound
    return [(node, cores, of_step) for node, _, cores, of_step, *_ in found]


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", ["auto", "mpirun"])
def test_on_one_node_the_step_has_a_core_for_every_worker_and_thread(project, launcher):
    found = run(project, 2, 3, "--nodes=1", LAUNCHER=launcher)
    assert {(cores, of_step) for _, cores, of_step in found} == {("5", "5")}
    project.complete_run("smoke/0.h5", num_nodes=1)


@pytest.mark.mpi
def test_on_three_nodes_the_free_core_is_on_rank_0s(project):
    found = run(project, 7, 2, "--nodes=3", "--ntasks-per-node=3")
    assert {(cores, of_step) for _, cores, of_step in found} == {("3(x3)", "9")}
    nodes = [node for node, _, _ in found]
    assert Counter(nodes) == {nodes[0]: 2, nodes[2]: 3, nodes[-1]: 3}
    ended = project.complete_run("smoke/0.h5", num_nodes=3)
    assert ended.tables["workers"]["transport"].tolist() == ["window"] + ["message"] * 6


def test_srun_places_ranks_likewise_but_pmi2_then_shares_no_memory(project):
    found = run(project, 7, 2, "--nodes=3", "--ntasks-per-node=3", LAUNCHER="srun")
    assert {(cores, of_step) for _, cores, of_step in found} == {("3(x3)", "9")}
    nodes = [node for node, _, _ in found]
    assert Counter(nodes) == {nodes[0]: 2, nodes[2]: 3, nodes[-1]: 3}


def test_a_first_node_with_too_few_tasks_is_said_and_the_run_goes_on(project):
    run(project, 2, 4, "--nodes=3", "--ntasks-per-node=2")
    assert "4 server threads, but rank 0's node has 2 of the tasks" in project.log("*")
    assert read_run(project.path("smoke/0.h5")).attributes["status"] == "complete"


def test_too_few_tasks_for_the_threads_are_refused_in_one_line(project):
    words = ("--array=0", "--ntasks=3", "slurm/lunar_lander.sh", "--server-threads", 3)
    job = project.sbatch(*words, JOB="jobs/smoke.toml")
    project.wait_for_end(job)
    line = "--ntasks=3: must be server_threads = 3 plus the workers"
    assert line in project.log(f"{job}_0") and project.cluster.state(f"{job}_0") == "FAILED"


@pytest.mark.mpi
def test_a_run_that_is_stopped_and_killed_goes_on_with_its_cores(project):
    words = ("--array=0", "--nodes=2", "--ntasks-per-node=2", "--ntasks=4", "slurm/lunar_lander.sh")
    budget = ("--total-steps", 200_000, "--checkpoint-period-s", 0.5, "--server-threads", 2)
    site = dict(JOB="jobs/smoke.toml", OUTPUT="results/run.h5", MPIRUN_OPTIONS="")
    job = project.sbatch(*words, *budget, **site)
    project.wait(lambda: project.saved_step("run.h5") > 0, "saved", job)
    project.run("scancel", "--batch", "--signal=USR1", f"{job}_0")
    project.wait(lambda: "restart 1" in project.log(f"{job}_0"), "restarted", job)
    stopped = project.saved_step("run.h5")
    project.wait(lambda: project.saved_step("run.h5") > stopped, "saved further", job)
    project.run("scancel", "--signal=KILL", f"{job}.0")
    project.wait_for_end(job)
    run = read_run(project.path("run.h5"))
    assert run.attributes["status"] == "complete" and run.attributes["restart_count"] == 2
    placed = re.findall(r"restart (\d), \S+ \S+mpirun -n 3 --bind-to none --host", project.log("*"))
    assert placed == ["0", "1", "2"]
