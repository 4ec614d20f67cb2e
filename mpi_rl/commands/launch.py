"""How ranks are started and ended, and what the run file says of that: launchers, Slurm, commit."""

import json
import os
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

LIBRARIES = ("mpi_rl", "mpi4py", "torch", "numpy", "gymnasium", "Box2D", "ale-py", "h5py")
OPTIONAL_LIBRARIES = ("flappy-bird-gymnasium", "pygame-ce")
SLURM_NAMES = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_CLUSTER_NAME",
    "SLURM_RESTART_COUNT",
)
RANK_NAMES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
# What says how many ranks a launcher has started; the first one present is the innermost launcher.
PROMISES = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "mpirun or srun --mpi=pmi2",
    "SLURM_STEP_NUM_TASKS": "srun",
}
LEAVE_LAST_S = 1.0  # that rank 0 takes longer than the others to end with an error
CARRIED_S = 0.3  # until the launcher, which an abort ends, too, has carried on what was printed


def launcher_rank() -> str:
    """Return this process's rank as its launcher tells it, before MPI starts."""
    return next((os.environ[name] for name in RANK_NAMES if name in os.environ), "0")


def is_mislaunched(num_ranks: int, library: str) -> bool:
    """Say, on the first rank also in words, whether the launcher's number of ranks is not MPI's."""
    mismatch = _launch_mismatch(num_ranks, library)
    if mismatch and launcher_rank() == "0":
        print(f"mpi_rl: {mismatch}", file=sys.stderr, flush=True)
    return bool(mismatch)


def _launch_mismatch(num_ranks: int, library: str) -> str:
    """Say how the launcher's number of ranks and MPI's differ; '' if they agree."""
    name = next((name for name in PROMISES if name in os.environ), None)
    if name is None or int(os.environ[name]) == num_ranks:
        return ""
    family = "Open MPI" if "Open MPI" in library else library.split(maxsplit=1)[0]
    right = "its own mpirun" if family == "Open MPI" else "its own mpirun, or srun --mpi=pmi2"
    return (
        f"{PROMISES[name]} started {os.environ[name]} rank(s) ({name}), but MPI ({family}) sees"
        f" {num_ranks}: launcher and library do not match; {family} needs {right}"
    )


def warn_of_few_cores(server_threads: int) -> None:
    """Say on stderr if this process, rank 0, may use fewer cores than the server has threads."""
    num_cores = len(os.sched_getaffinity(0))
    if num_cores < server_threads:
        print(
            f"mpi_rl: server_threads = {server_threads}, but rank 0 may use {num_cores} core(s):"
            " threads that share a core slow every update down; give rank 0 more cores (README,"
            " 'Several cores for the server'), or the server fewer threads",
            file=sys.stderr,
            flush=True,
        )


def leave(status: int | None) -> int | None:
    """Return rank 0's exit status; with an error after all other ranks have ended, if there are.

    srun's --kill-on-bad-exit would make 137 of it for ranks that are still leaving.
    """
    if status and "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].Finalize()
        time.sleep(LEAVE_LAST_S)
    return status


def end_every_rank() -> None:
    """End all ranks with the traceback of the exception at hand; return if MPI does not run.

    An exception that leaves one rank would hang the others.
    """
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is not None and not MPI.Is_finalized():
        print_traceback(MPI.COMM_WORLD.rank)
        time.sleep(CARRIED_S)
        MPI.COMM_WORLD.Abort(1)


def print_traceback(rank: int) -> None:
    """Print the traceback of the exception at hand, each line with the rank."""
    lines = traceback.format_exc().splitlines()
    print("\n".join(f"rank {rank}: {line}" for line in lines), file=sys.stderr, flush=True)


def git_commit() -> dict[str, Any]:
    """Return the commit of this code and whether it was changed since; {} without a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = bool(git("status", "--porcelain", "-uno"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.CalledProcessError):
        return {}


def circumstances(num_ranks: int, commit: dict[str, Any]) -> dict[str, Any]:
    """Return what the run file says of the code, the libraries, the ranks and Slurm."""
    from importlib.metadata import PackageNotFoundError, version

    from mpi4py import MPI

    from mpi_rl.compiled.kernels import KERNELS

    versions = {name: version(name) for name in LIBRARIES}
    for name in OPTIONAL_LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    slurm = {name: value for name, value in os.environ.items() if name in SLURM_NAMES}
    return {
        "world_size": num_ranks,
        "kernels": KERNELS,
        "git_commit": commit.get("commit", "unknown"),
        "git_dirty": commit.get("dirty", False),
        "versions": json.dumps({"python": sys.version.split()[0], **versions}),
        "mpi_library": MPI.Get_library_version().splitlines()[0].strip(" \t\0"),
        "slurm": json.dumps(slurm),
    }
