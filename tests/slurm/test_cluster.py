"""Runs under real Slurm daemons: arrays, interruptions of every kind, collection."""

import re
import subprocess
import sys

import pytest

from mpi_rl.commands.inspect import verify_run
from mpi_rl.records.runfile import KILLED, RESUMED, read_run, read_runs
from tests.ranks import ROOT
from tests.slurm.conftest import Project

pytestmark = pytest.mark.slurm
TWO_NODES = ("--nodes=2", "--ntasks=3", "--array=0")
OFTEN = ("--checkpoint-period-s", 0.5)
SMALL = ("--total-steps", 6000, "--interval-period-steps", 500, *OFTEN)
LONGER = ("--total-steps", 10_000, *SMALL[2:])  # than three interruptions on a fast machine take
SMOKE = dict(JOB="jobs/smoke.toml")
SMOKE_RUN = dict(**SMOKE, OUTPUT="results/run.h5")
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
    # The last task of an array has the array's own id: stopping it must not touch the other.
    project.wait(lambda: project.saved_step("space_invaders/1.h5") > 0, "saved", f"{job}_1")
    project.run("scancel", "--batch", "--signal=USR1", f"{job}_1")
    project.wait_for_end(job)
    for index in (0, 1):
        run = project.complete_run(f"space_invaders/{index}.h5", num_nodes=2)
        assert run.config.seed == index + 1 and run.attributes["restart_count"] == index
    assert verify_run(project.path("space_invaders.h5")) == []
    runs = read_runs(project.path("space_invaders.h5"))
    assert [run.config.seed for run in runs] == [1, 2]
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
    job = project.sbatch(*TWO_NODES, SCRIPT, *LONGER, OUTPUT="results/run.h5")
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


def test_kills_go_on_from_the_last_checkpoint(project, request):
    job = project.sbatch(*TWO_NODES, SCRIPT, *LONGER, OUTPUT="results/run.h5")
    run = project.run

    def kill_a_node() -> None:
        nodes = run("squeue", "--noheader", "--format=%N", f"--job={job}")
        node = run("scontrol", "show", "hostnames", nodes).split()[-1]
        request.addfinalizer(lambda: project.cluster.start_node(node))
        project.cluster.kill_node(node)

    def kill_the_step() -> None:
        steps = run("squeue", "--steps", "--noheader", "--format=%i", f"--job={job}").split()
        step = next(step for step in steps if step.endswith(".0"))
        run("scancel", "--signal=KILL", step)

    kills = {
        "step": kill_the_step,
        "requeue": lambda: run("scontrol", "requeue", f"{job}_0"),
        "node": kill_a_node,
    }
    for count, (name, kill) in enumerate(kills.items(), start=1):
        last = project.saved_step("run.h5")
        project.wait(lambda: project.saved_step("run.h5") > last, "saved further", job)
        kill()
        resumed = f"resumed after the {name}'s end"
        project.wait(lambda: events(project, "run.h5").count(RESUMED) == count, resumed, job)
    project.wait_for_end(job)
    ended = project.complete_run("run.h5", num_nodes=2)
    assert ended.attributes["restart_count"] == 3
    assert 1 <= ended.tables["events"]["kind"].tolist().count(KILLED) <= 3


@pytest.mark.mpi
def test_an_evaluation_that_runs_out_of_time_goes_on_and_is_collected(project):
    words = ("--array=0-1", "--ntasks=3", "slurm/lunar_lander.sh", *SMALL)
    project.wait_for_end(project.sbatch(*words, "--snapshot-period-steps", 1000, **SMOKE))
    words = ("--nodes=2", "--ntasks=3", "slurm/evaluate.sh", "--episodes", 2000)
    job = project.sbatch(*words, **SMOKE)
    project.wait(lambda: "to play" in project.log(job), "begun", job)
    project.run("scancel", "--batch", "--signal=USR1", job)
    project.wait_for_end(job)
    log = project.log(job)
    first, second = map(int, re.findall(r"(\d+) snapshot\(s\) of 2 run\(s\) to play", log))
    assert log.count("queued again") == 1 and 0 < second <= first
    runs = read_runs(project.path("smoke.h5"))
    played = [run.evaluations["sampled"]["lengths"] for run in runs]
    assert len(played) == 2 and sum(map(len, played)) == first
    assert all(lengths.shape[1] == 2000 and (lengths > 0).all() for lengths in played)


def test_a_killed_run_starts_again_on_the_node_where_it_left_its_memory(project):
    script, steps = "slurm/lunar_lander.sh", ("--total-steps", 400_000)
    job = project.sbatch("--array=0", "--ntasks=3", script, *steps, *OFTEN, **SMOKE_RUN)
    project.wait(lambda: project.saved_step("run.h5") > 0, "saved", job)
    project.run("scancel", "--signal=KILL", f"{job}.0")
    project.wait_for_end(job)
    run = project.complete_run("run.h5", num_nodes=1)
    assert run.tables["events"]["kind"].tolist().count(KILLED) == 1
    assert set(run.tables["workers"]["transport"]) == {"window"}


def test_preempted_runs_go_on_requeued_or_resubmitted(project):
    runs = {
        "work": project.sbatch(*TWO_NODES, SCRIPT, *LONGER, OUTPUT="results/work.h5"),
        "scavenge": project.sbatch(
            *TWO_NODES,
            "--partition=scavenge",
            SCRIPT,
            *LONGER,
            OUTPUT="results/scavenge.h5",
            GO_ON="resubmit",
        ),
    }
    for name in runs:
        project.wait(lambda: project.saved_step(f"{name}.h5") > 0, f"{name}.h5 saved")
    urgent = project.sbatch(
        "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"
    )
    project.wait_for_end(urgent)
    successor = re.search(
        r"job (\d+) goes on if this one ends", project.log(f"{runs['scavenge']}_0")
    )
    assert successor
    for name, job in {**runs, "successor": successor[1]}.items():
        project.wait_for_end(job)
    for name in runs:
        run = project.complete_run(f"{name}.h5", num_nodes=2)
        assert run.attributes["restart_count"] == 1
    assert "restart 1" in project.log(f"{runs['scavenge']}_0")  # the successor appends to it
    assert not project.run("squeue", "--noheader")  # the last successor was withdrawn


def test_starts_that_save_nothing_are_bounded(project):
    script = ("--array=0", "--ntasks=3", "slurm/lunar_lander.sh")
    broken = dict(**SMOKE, SRUN_OPTIONS="--mpi=nonsense")
    jobs = {
        "3 starts in a row have saved no step": project.sbatch(
            *script, **broken, OUTPUT="results/stuck.h5"
        ),
        "MAX_RESTARTS=1 reached": project.sbatch(
            *script, **broken, OUTPUT="results/often.h5", MAX_RESTARTS=1
        ),
    }
    for (reason, job), requeues in zip(jobs.items(), (2, 1)):
        project.wait_for_end(job)
        log = project.log(f"{job}_0")
        assert log.count("queued again\n") == requeues and f"not queued again: {reason}" in log
        assert project.cluster.state(f"{job}_0") == "FAILED"
    assert [path.name for path in project.path("").iterdir()] == ["logs"]


def test_a_run_cancelled_by_hand_does_not_come_back(project):
    options = ("--array=0", "--ntasks=3", "slurm/lunar_lander.sh", "--total-steps", 10**8)
    job = project.sbatch(*options, *OFTEN, **SMOKE_RUN, GO_ON="resubmit")
    project.wait(lambda: project.saved_step("run.h5") > 0, "saved", job)
    project.run("scancel", job)
    project.wait(lambda: not project.run("squeue", "--noheader"), "all ended")
    log = project.log(f"{job}_0")
    assert f"job {job}_0 was cancelled by hand: not going on" in log and "restart 1" not in log
    assert verify_run(project.path("run.h5")) == []
    assert read_run(project.path("run.h5")).attributes["status"] in ("checkpointed", "running")


def test_a_start_takes_over_from_ranks_whose_slurmd_died(project, request):
    length = ("--total-steps", 35_000, *SMALL[2:])
    job = project.sbatch(*TWO_NODES, SCRIPT, *length, OUTPUT="results/run.h5")
    project.wait(lambda: project.saved_step("run.h5") > 0, "saved", job)
    node = project.run("squeue", "--noheader", "--format=%B", f"--job={job}")
    request.addfinalizer(lambda: project.cluster.start_node(node))
    project.cluster.kill_daemon(node)  # where the batch shell and rank 0 are: they live on
    project.wait_for_end(job)
    run = project.complete_run("run.h5", num_nodes=2)
    assert run.attributes["restart_count"] == 1
    ends = {"stopped by its own next start", KILLED}  # if MPI missed the dead node's ranks first
    assert ends & set(run.tables["events"]["kind"])
    assert node not in run.tables["workers"]["node"]


def test_two_tasks_with_one_file_do_not_write_it_both(project):
    job = project.sbatch(
        "--array=0-1", *TWO_NODES[:2], SCRIPT, *SMALL, "--seed", 1, OUTPUT="results/run.h5"
    )
    project.wait_for_end(job)
    logs = {index: project.log(f"{job}_{index}") for index in (0, 1)}
    refused = next(index for index, log in logs.items() if "being written by" in log)
    writer = 1 - refused
    assert "Done: results/run.h5" in logs[writer]
    assert "not queued again" in logs[refused]
    other_id = f"{job}_{writer}"
    assert f"Slurm job {other_id};" in logs[refused]
    project.complete_run("run.h5", num_nodes=2)
    assert project.cluster.state(f"{job}_{refused}") == "FAILED"


def test_a_full_disk_is_one_clear_line_and_the_checkpoint_stands(project):
    small = project.path("small")
    small.mkdir()
    project.run("mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small)
    try:
        job = project.sbatch(
            "--array=0",
            "--ntasks=3",
            "slurm/lunar_lander.sh",
            *("--total-steps", 10**7, "--checkpoint-period-s", 1, "--hidden-sizes", "16"),
            **SMOKE,
            OUTPUT="results/small/run.h5",
        )
        project.wait_for_end(job)
        log = project.log(f"{job}_0")
        assert "run.h5: cannot be written (No space left on device); what it held is kept" in log
        assert "Traceback" not in log and "not queued again" in log
        assert verify_run(small / "run.h5") == [] and project.saved_step("small/run.h5") > 0
        assert [path.name for path in small.iterdir()] == ["run.h5"]
    finally:
        project.run("umount", small)


def test_an_unwritable_folder_is_one_clear_line(project):
    job = project.sbatch(
        "--array=0", "--ntasks=3", "slurm/lunar_lander.sh", **SMOKE, OUTPUT="/sys/kernel/run.h5"
    )
    project.wait_for_end(job)
    log = project.log(f"{job}_0")
    assert "mpi_rl: /sys/kernel/run.h5: cannot be written (" in log and "Traceback" not in log
    assert project.cluster.state(f"{job}_0") == "FAILED"


def test_a_launcher_that_does_not_fit_the_library_is_one_line(project):
    command = (sys.executable, "-m", "mpi_rl", "train", "jobs/smoke.toml")
    done = subprocess.run(
        ["srun", "--mpi=none", "--ntasks=3", *command],
        cwd=project.folder,
        env=project.cluster.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("mpi_rl:")]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert "srun started 3 rank(s) (SLURM_STEP_NUM_TASKS), but MPI (MPICH) sees 1" in lines[0]
    assert not project.path("smoke").exists()


def test_groups_are_on_one_node_each_and_never_on_two(project):
    words = ("jobs/lunar_lander_thesis_genkidama.toml", "--num-workers=4", "--group-size=2")
    words = ("-m", "mpi_rl", "train", *words, "--total-episodes=40", "--output=results/run.h5")

    def srun(on_first: int) -> subprocess.CompletedProcess:
        placed = ("--exclusive", "--nodes=2", "--ntasks=5", f"--distribution=plane={on_first}")
        return subprocess.run(
            ["srun", "--mpi=pmi2", *placed, sys.executable, *words],
            cwd=project.folder,
            env=project.cluster.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = srun(4)
    lines = [line for line in done.stderr.splitlines() if line.startswith("mpi_rl:")]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert re.search(r"node n\d \(rank 0 and more\) has 3 worker\(s\), no multiple", lines[0])
    done = srun(3)
    assert done.returncode == 0, done.stderr
    assert verify_run(project.path("run.h5")) == []
    workers = read_run(project.path("run.h5")).tables["workers"]
    assert workers["group_id"].tolist() == [0, 0, 1, 1]
    assert workers["transport"].tolist() == ["window"] * 2 + ["message"] * 2
    assert len(set(workers["node"][:2])) == len(set(workers["node"][2:])) == 1
    assert (workers["num_pushes"] > 0).tolist() == [True, False, True, False]


def test_submit_queues_what_is_left_in_arrays_of_the_right_size(project):
    (project.folder / "jobs" / "scaling.toml").write_text(
        (ROOT / "jobs" / "smoke.toml").read_text() + "num_workers = [2, 3]\n"
    )
    first = project.mpi_rl("submit", "jobs/scaling.toml", "--sbatch=--nodes=2")
    assert first.returncode == 0, first.stderr
    assert "--array=0,2 --ntasks=3" in first.stdout and "--array=1,3 --ntasks=4" in first.stdout
    again = project.mpi_rl("submit", "jobs/scaling.toml")
    assert "0 complete, 4 in the queue, 0 to submit" in again.stdout
    project.wait(lambda: not project.run("squeue", "--noheader"), "all ended")
    for index, workers in enumerate((2, 3, 2, 3)):
        run = project.complete_run(f"scaling/{index}.h5", num_nodes=2)
        assert run.attributes["num_workers"] == workers
    assert len(read_runs(project.path("scaling.h5"))) == 4
    collected = project.log("*")
    assert "results/scaling.h5: 4 of 4 run(s)" in collected
    project.path("scaling/2.h5").unlink()
    project.path("scaling.h5").unlink()
    rest = project.mpi_rl("submit", "jobs/scaling.toml")
    assert "3 complete, 0 in the queue, 1 to submit" in rest.stdout
    assert "--array=2 --ntasks=3" in rest.stdout
    project.wait(lambda: not project.run("squeue", "--noheader"), "all ended")
    assert len(read_runs(project.path("scaling.h5"))) == 4


@pytest.mark.parametrize(
    "script", sorted({path.name for path in (ROOT / "slurm").glob("*.sh")} - {"lib.sh"})
)
def test_slurm_accepts_every_script(project, script):
    project.run("sbatch", "--test-only", f"slurm/{script}")
