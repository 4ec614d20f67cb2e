"""Start the ranks of a measurement, and look into their processes."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import Run, read_run

STARTED_PERIOD_S = 0.5  # between two looks at a starting run
START_PATIENCE_S = 600.0
RANK_NAMES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


@dataclass(frozen=True)
class Request:
    """What is to be measured, and how ranks are started."""

    job: str  # a job file
    config: Config
    words: list[str]  # options of train that say what was given beside the job
    workers: tuple[int, ...]
    envs: tuple[int, ...]
    num_params: tuple[int, ...]
    push: tuple[str, ...]  # of gradient and factors
    threads: tuple[int, ...]  # of the server
    ranks: tuple[int, ...]
    members: tuple[int, ...]
    seconds: float  # per figure
    launcher: str  # with {ranks} where their number goes


def train_words(request: Request, path: Path, options: dict[str, Any]) -> list[str]:
    """Return the words that start a run as requested, with ``options``, into ``path``."""
    words = ["mpi_rl", "train", request.job, "--output", str(path), *request.words]
    return words + [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def _command(request: Request, ranks: int) -> list[str]:
    """Return the words that start ``ranks`` ranks of this Python, up to the module's name."""
    try:
        launcher = shlex.split(request.launcher.replace("{ranks}", str(ranks)))
    except ValueError as error:
        raise UserError(f"launcher = {request.launcher!r}: {error}") from None
    if not launcher or not shutil.which(launcher[0]):
        raise UserError(f"launcher = {request.launcher!r}: must begin with a program that is here")
    return [*launcher, sys.executable, "-m"]


def measured(request: Request, ranks: int, kind: str, settings: str) -> Any:
    """Start ``mpi_rl.bench.ranks`` and return what it measures."""
    words = ["mpi4py", "-m", "mpi_rl.bench.ranks", kind, str(request.seconds), settings]
    return printed(request, ranks, words)


def printed(request: Request, ranks: int, words: list[str]) -> Any:
    """Start ranks and return, from JSON, the last line that they print."""
    return json.loads(run_ranks(request, ranks, words).splitlines()[-1])


def run_ranks(request: Request, ranks: int, words: list[str]) -> str:
    """Start ranks, wait for them and return what they print.

    Raises UserError with their last words if they fail.
    """
    command = _command(request, ranks) + words
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{shlex.join(command)}: status {done.returncode}: {' '.join(last)}")
    return done.stdout


@contextlib.contextmanager
def running(
    request: Request, ranks: int, options: dict[str, Any], is_ready: Callable[[Run], bool]
) -> Iterator[tuple[Run, dict[int, int]]]:
    """Start a run and wait until it ``is_ready``; give its record and its processes by rank.

    Raises UserError if it ends before, or is not ready in START_PATIENCE_S.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, began = Path(folder, "run.h5"), time.time()
        options = {"total_steps": 10**9, "checkpoint_period_s": STARTED_PERIOD_S, **options}
        command = _command(request, ranks) + train_words(request, path, options)
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            while True:
                time.sleep(STARTED_PERIOD_S)
                if run.poll() is not None or time.time() - began > START_PATIENCE_S:
                    raise UserError(f"{shlex.join(command)}: not started, status {run.poll()}")
                if path.exists() and is_ready(read_run(path)):
                    break
            pids = [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]
            ours = [pid for pid in pids if str(path) in _command_line(pid) and _is_rank(pid)]
            yield read_run(path), {_rank_of(pid): pid for pid in ours}
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGINT)
                run.wait()


def cpu_s(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rank_of(pid: int) -> int:
    """Return a process's rank, as its launcher told it."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    values = dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries)
    return int(next(values[name] for name in RANK_NAMES if name in values))


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _is_rank(pid: int) -> bool:
    return "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
