"""Start real MPI ranks from tests, and look after them."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MPIRUN = Path(sys.executable).with_name("mpirun")
TIMEOUT_S = 240
MARK = "MPI_RL_TEST_LAUNCH"  # in the environment of all that one launch starts: its process id


@dataclass
class Result:
    """What a finished command left."""

    returncode: int
    stdout: str
    stderr: str


def environment() -> dict[str, str]:
    """The environment without an outer MPI's or Slurm's settings, with what Open MPI needs.

    Temporary files are each launch's own: Open MPI does not start where one that was killed has
    left some for the same process id.
    """
    outside = ("OMPI_", "PRTE_", "PMI", "SLURM", "HYDRA", "MPIEXEC", "PYTEST")
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(outside)}
    return {
        **inherited,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_osc": "^ucx",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "TMPDIR": tempfile.mkdtemp(),
    }


def start(
    num_ranks: int, *arguments: object, cwd: Path, program: tuple[object, ...] = ("-m", "mpi_rl")
) -> subprocess.Popen:
    """Start ``python -m mpi_rl ARGUMENTS`` on ``num_ranks`` ranks."""
    command = [MPIRUN, "-n", num_ranks, sys.executable, *program, *arguments]
    words = ["sh", "-c", f'{MARK}=$$ exec "$@"', "sh", *map(str, command)]
    return subprocess.Popen(
        words,
        cwd=cwd,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout_s: float = TIMEOUT_S) -> Result:
    """Wait for ``process``; nothing of its session may be left."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    deadline = time.monotonic() + 5
    while family(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    orphans = family(process)
    assert not orphans, f"left behind: {orphans}"
    return Result(process.returncode, stdout, stderr)


def mpirun(
    num_ranks: int,
    *arguments: object,
    cwd: Path,
    timeout_s: float = TIMEOUT_S,
    program: tuple[object, ...] = ("-m", "mpi_rl"),
) -> Result:
    """Run to the end."""
    return finish(start(num_ranks, *arguments, cwd=cwd, program=program), timeout_s)


def mpi_rl(
    *arguments: object,
    cwd: Path,
    module: str = "mpi_rl",
    variables: dict[str, str] | None = None,
) -> Result:
    """Run a subcommand without mpirun, with ``variables`` added to its environment."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**environment(), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def kill(process: subprocess.Popen) -> None:
    """kill -9 everything that the launcher has started, at once."""
    for pid in family(process):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate(timeout=20)


def family(process: subprocess.Popen) -> list[int]:
    """The living processes of a launch, wherever the launcher has put them."""
    mark = f"{MARK}={process.pid}".encode()
    found = [process.pid] if process.poll() is None else []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(set(found))


def rank_of(pid: int) -> int | None:
    """The rank of a process, None if it has none."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    values = dict(entry.partition(b"=")[::2] for entry in entries)
    names = (b"OMPI_COMM_WORLD_RANK", b"PMI_RANK")
    return next((int(values[name]) for name in names if name in values), None)


def rank(process: subprocess.Popen, number: int) -> int:
    """The process of one rank of a launch."""
    return next(pid for pid in family(process) if rank_of(pid) == number)


def wait_for(path: Path, process: subprocess.Popen, timeout_s: float = 60) -> None:
    """Wait until ``path`` exists; the process must live on meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} has not appeared"
        time.sleep(0.01)
