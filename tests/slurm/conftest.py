"""One cluster for all tests, and a copy of the project's scripts and jobs for each."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpi_rl.commands.inspect import verify_run
from mpi_rl.records.runfile import Run, read_run
from tests.ranks import ROOT, Result, mpi_rl
from tests.slurm import testbed
from tests.slurm.testbed import Testbed

PATIENCE_S = 150  # for one thing to happen, on two busy cores


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Testbed]:
    """Four nodes of 16 CPUs, while the tests last."""
    if reason := testbed.missing():
        pytest.skip(reason)
    with testbed.start(tmp_path_factory.mktemp("cluster")) as started:
        yield started


class Project:
    """A user's folder, from which jobs are submitted."""

    def __init__(self, cluster: Testbed, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        for name in ("slurm", "jobs", "results/logs"):
            shutil.copytree(ROOT / name, folder / name)
        self.variables = {"PYTHON": sys.executable, "PROFILE": "testbed"}

    def run(self, *command: object, **variables: object) -> str:
        """Run a command here; it must succeed."""
        return self.cluster.run(*command, cwd=self.folder, **self.variables, **variables)

    def mpi_rl(self, *arguments: object) -> Result:
        """Run a subcommand here, without MPI."""
        variables = {**self.cluster.environment, **self.variables}
        return mpi_rl(*arguments, cwd=self.folder, variables=variables)

    def sbatch(self, *words: object, **variables: object) -> str:
        """Submit, and return the job's id."""
        return self.run("sbatch", "--parsable", *words, **variables)

    def path(self, name: str) -> Path:
        """Return the path of a run file in results/."""
        return self.folder / "results" / name

    def saved_step(self, name: str) -> int:
        """Return the step that a run file holds; 0 before there is one."""
        path = self.path(name)
        return read_run(path).attributes["step"] if path.exists() else 0

    def log(self, job: str) -> str:
        """Return what a job has written."""
        paths = [*(self.folder / "results" / "logs").glob(f"*-{job}.log")]
        return "\n".join(path.read_text() for path in paths)

    def wait(self, condition: Callable[[], object], what: str, job: str = "*") -> None:
        """Wait until ``condition`` holds; show the logs if it never does."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            queue = "" if time.monotonic() < deadline else self.run("squeue", "--all")
            assert time.monotonic() < deadline, f"not {what}:\n{queue}\n{self.log(job)}"
            time.sleep(0.2)

    def wait_for_end(self, job: str) -> None:
        """Wait until nothing of a job is left in the queue."""

        def ended() -> bool:
            return not self.run("squeue", "--noheader", "--format=%i", f"--job={job}")

        self.wait(ended, f"ended: job {job}")

    def complete_run(self, name: str, num_nodes: int) -> Run:
        """Return a run, which must be sound, complete, within its budget and on several nodes."""
        run = read_run(self.path(name))
        assert verify_run(self.path(name)) == [] and run.attributes["status"] == "complete"
        workers, config = run.tables["workers"], run.config
        rollouts = len(workers["node"]) * config.n_steps * config.envs_per_worker
        assert 0 <= run.attributes["step"] - config.total_steps < rollouts
        assert len(set(workers["node"])) >= num_nodes
        if num_nodes > 1:
            assert set(workers["transport"]) == {"window", "message"}
        return run


@pytest.fixture
def project(cluster: Testbed, tmp_path: Path) -> Project:
    """A fresh folder, with a space in its name, with the scripts and the jobs."""
    return Project(cluster, tmp_path / "my project")
