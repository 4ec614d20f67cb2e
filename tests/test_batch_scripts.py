"""The batch scripts without Slurm: their style, their headers, and running them here."""

import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mpi_rl.jobs import load_job
from mpi_rl.records.runfile import read_run
from tests.ranks import ROOT, environment

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
JOB_SCRIPTS = [script for script in SCRIPTS if "\ntrain " in script.read_text()]


@pytest.fixture
def project(tmp_path):
    """A folder with the scripts and the jobs."""
    for name in ("slurm", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def start(project, *words, **variables):
    return subprocess.Popen(
        ["bash", *map(str, words)],
        cwd=project,
        env={**environment(), "PYTHON": sys.executable, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A background job ignores SIGINT, and its children could not even trap it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    command = ["shellcheck", "--external-sources", f"slurm/{script.name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", JOB_SCRIPTS, ids=lambda path: path.name)
def test_array_bounds_are_the_sweep_and_ranks_are_the_jobs(script):
    text = script.read_text()
    job = load_job(str(ROOT / re.search(r"JOB:-(\S+)}", text)[1]))
    last = int(re.search(r"#SBATCH --array=(?:0-)?(\d+)\n", text)[1])
    assert last == len(job.sweep) - 1
    config = job.config(0, {})
    num_workers = int(re.search(r"#SBATCH --ntasks=(\d+)\n", text)[1]) - config.server_threads
    assert config.num_workers in (0, num_workers)
    assert f"#SBATCH --job-name={job.name}\n" in text and job.name == script.stem


@pytest.mark.mpi
def test_without_slurm_the_script_trains_here_and_a_signal_saves(project):
    job = dict(JOB="jobs/smoke.toml", RANKS="3", OUTPUT="results/run.h5")
    arguments = ("slurm/lunar_lander.sh", "--total-steps", 10**7)
    process = start(project, *arguments, **job)
    while not (project / "results" / "run.h5").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped: the same command goes on" in output, output
    run = read_run(project / "results" / "run.h5")
    assert run.attributes["status"] == "checkpointed"
    assert "stopped by SIGINT" in run.tables["events"]["kind"]
    arguments = ("slurm/lunar_lander.sh", "--total-steps", 4000)
    output, _ = start(project, *arguments, **{**job, "OUTPUT": "results/short.h5"}).communicate()
    assert "Done: results/short.h5" in output
    again = start(project, *arguments, **{**job, "OUTPUT": "results/short.h5"})
    assert ": nothing to train" in again.communicate()[0] and again.returncode == 0


@pytest.mark.parametrize(
    "words, variables, message",
    [
        (["--output", "x.h5"], {}, "set OUTPUT"),
        (["--n-stepz", "5"], {}, "No such option"),
        ([], {"PROFILE": "nowhere"}, "no slurm/profiles/nowhere.env"),
        ([], {"LAUNCHER": "mpiexec"}, "must be auto, srun or mpirun"),
        ([], {"GO_ON": "requeu"}, "must be requeue, resubmit or stop"),
        ([], {"INDEX": "5"}, "job smoke has 2 run(s)"),
    ],
)
def test_bad_input_is_one_line_and_status_2(project, words, variables, message):
    process = start(
        project, "slurm/lunar_lander.sh", *words, **{"JOB": "jobs/smoke.toml", **variables}
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and message in output and len(output.splitlines()) == 1, output


@pytest.mark.parametrize(
    "status, restarts, says",
    [
        (1, 0, "scontrol requeue 7"),
        (2, 1, "not queued again: it would fail again"),
        (75, 0, "not queued again: it would fail again"),
        (75, 1, "scontrol requeue 7"),  # the lock may be held by its own last start
    ],
)
def test_what_comes_after_an_end_depends_on_how_it_was(project, status, restarts, says):
    script = f"""
        . slurm/lib.sh
        field() {{ [[ $2 == Restarts ]] && echo {restarts} || echo RUNNING; }}
        scontrol() {{ echo "scontrol $*"; }}
        output=run.h5 where=unfinished: status={status} successor=
        go_on
    """
    variables = dict(SLURM_JOB_ID="7", SLURM_RESTART_COUNT=str(restarts))
    process = start(project, "-c", script, **variables)
    output, _ = process.communicate(timeout=60)
    assert says in output and process.returncode == status, output


def test_environment_beats_profile_beats_default(project):
    (project / "slurm/profiles/here.env").write_text("THROTTLE=3\nMAX_RESTARTS=7")
    script = '. slurm/lib.sh; echo "$MAX_RESTARTS $THROTTLE $LAUNCHER"'
    output, _ = start(project, "-c", script, PROFILE="here", THROTTLE="5").communicate()
    assert output.split() == ["7", "5", "auto"]


@pytest.mark.parametrize("launcher, cpus_per_task", [("srun", "2"), ("mpirun", "unset")])
def test_only_ranks_that_srun_starts_are_held_to_their_own_cores(project, launcher, cpus_per_task):
    script = ". slurm/lib.sh; find_launcher; echo ${SRUN_CPUS_PER_TASK-unset}"
    variables = dict(LAUNCHER=launcher, SLURM_CPUS_PER_TASK="2")
    output, _ = start(project, "-c", script, **variables).communicate(timeout=60)
    assert output.split() == [cpus_per_task]


@pytest.mark.parametrize(
    "launcher, tasks, words",
    [
        ("srun", "9", "srun --kill-on-bad-exit=1 --wait=60 --mpi=pmi2 --ntasks=6 --cpu-bind=none"),
        ("mpirun", "9", "mpirun -n 6 --bind-to none"),
        ("auto", "4(x2),1", "mpirun -n 6 --bind-to none --host n1:1,n2:4,n3:1"),
        ("auto", "2,6,1", "mpirun -n 6 --bind-to none --host n1:1,n2:5"),
        (
            "srun",
            "5,2(x2)",
            "srun --kill-on-bad-exit=1 --wait=60 --mpi=pmi2 --ntasks=6 --cpu-bind=none"
            " --distribution=arbitrary --nodelist=n1,n1,n2,n2,n3,n3",
        ),
    ],
)
def test_ranks_leave_cores_on_the_first_node_to_the_servers_threads(
    project, launcher, tasks, words
):
    script = """
        . slurm/lib.sh
        scontrol() { printf "%s\n" n1 n2 n3; }
        where="new: results/x/0.h5, step 0 of 9 steps, 4 server threads"
        count_ranks
        find_launcher
        echo "${launcher[*]} ${SRUN_CPUS_PER_TASK-unset}"
    """
    slurm = dict(SLURM_JOB_ID="7", SLURM_NTASKS="9", SLURM_JOB_NODELIST="n[1-3]")
    slurm |= dict(SLURM_TASKS_PER_NODE=tasks, SLURM_JOB_NUM_NODES="1" if tasks == "9" else "3")
    output, _ = start(project, "-c", script, LAUNCHER=launcher, **slurm).communicate(timeout=60)
    said, line = output.splitlines()[:-1], output.splitlines()[-1]
    assert line.endswith(f"{words} unset") and len(said) == tasks.startswith("2"), output


def test_without_slurm_ranks_are_as_many_as_before_and_not_bound(project):
    script = """
        . slurm/lib.sh
        where="new: results/x/0.h5, step 0 of 9 steps, 4 server threads"
        count_ranks
        find_launcher
        echo "${launcher[*]}"
    """
    output, _ = start(project, "-c", script, RANKS="3").communicate(timeout=60)
    assert output.endswith("mpirun -n 3 --bind-to none\n")
