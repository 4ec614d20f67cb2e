"""``mpi_rl submit``: the sbatch commands that run what is left of a job."""

import dataclasses
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mpi_rl.commands.cli import as_options, configured, setting_options
from mpi_rl.config import Config
from mpi_rl.errors import UserError, reading
from mpi_rl.jobs import load_job
from mpi_rl.records.standing import standing, task_of

PROFILES = Path("slurm", "profiles")
DEFAULT_SCRIPT = Path("slurm", "space_invaders.sh")  # for jobs without one of their own


@click.command("submit")
@click.argument("job")
@click.option("--dry-run", is_flag=True, help="print the sbatch lines; submit nothing")
@click.option(
    "--ntasks",
    type=click.IntRange(2),
    help="ranks per run, the server's and its workers', where the job leaves that open",
)
@click.option(
    "--throttle",
    type=click.IntRange(1),
    help="most runs at once  [default: the profile's THROTTLE, else all]",
)
@click.option("--profile", envvar="PROFILE", help="settings of a site: slurm/profiles/<this>.env")
@click.option(
    "--sbatch",
    multiple=True,
    help=(
        "one more option for the arrays' sbatch, like --sbatch=--time=8:00:00; a profile's"
        " SBATCH_OPTIONS are for the collecting job too"
    ),
)
def submit_job(
    job: str,
    dry_run: bool,
    ntasks: int | None,
    throttle: int | None,
    profile: str | None,
    sbatch: tuple[str, ...],
    **settings: Any,
) -> None:
    """Queue what is left of JOB's sweep in Slurm: job arrays, then a job that collects.

    Runs that are complete, or in the queue already, are left out: after a failure the same command
    submits the rest. Settings given here hold for all runs. Without a num_workers in the job, runs
    have the number of ranks that the script in slurm/ asks for. Beside its ranks, a run gets a core
    for each of the server_threads but the first. Groups get one node, unless --sbatch says
    otherwise.
    """
    at, loaded = site(profile), load_job(job)
    try:
        waiting = queued(loaded.name)
    except UserError as error:
        if not dry_run:
            raise
        waiting = set()
        print(f"# the queue is not known: {str(error).splitlines()[0]}")
    configs = [configured(loaded, index, settings) for index in range(len(loaded.sweep))]
    if any(config.group_size > 1 for config in configs):  # a group may not straddle nodes
        at = dataclasses.replace(at, options=["--nodes=1", *at.options])
    paths = [loaded.output(index) for index in range(len(loaded.sweep))]
    left = left_to_run(configs, paths, ntasks, script_of(loaded.name))
    num_tasks = {index: count for index, count in left.items() if index not in waiting}
    print(
        f"# {loaded.name}: {len(configs)} run(s), {len(configs) - len(left)} complete,"
        f" {len(waiting)} in the queue, {len(num_tasks)} to submit",
        flush=True,
    )
    if not left:
        print(f"python -m mpi_rl collect {job}    # merges them, should that not be done yet")
    if not num_tasks:
        return
    words = as_options(settings)
    arrays = batches(job, loaded.name, num_tasks, words, at, throttle, list(sbatch))
    ids = []
    for number, batch in enumerate(arrays):
        if dry_run:
            print(f"array{number}=$({batch.line()})")
            ids.append(f"$array{number}")
        else:
            ids.append(send(batch))
            print(f"{batch.line()}    # job {ids[-1]}", flush=True)
    last = collect_batch(job, loaded.name, ids, at)
    print(last.line() if dry_run else f"{last.line()}    # job {send(last)}")


setting_options(submit_job)


@dataclass(frozen=True)
class Site:
    """A profile's settings for sbatch, and what selects them on the nodes."""

    variables: dict[str, str]
    options: list[str]
    throttle: int | None


def site(profile: str | None) -> Site:
    """Return what slurm/profiles/<profile>.env, else default.env, says; the environment wins.

    Raises UserError for an unknown profile, and for what sbatch could not be given.
    """
    settings = read_profile("default") | (read_profile(profile) if profile else {})
    settings |= {key: os.environ[key] for key in settings.keys() & os.environ.keys()}
    throttle = settings["THROTTLE"]
    if throttle and not throttle.isdecimal():
        raise UserError(f"THROTTLE = {throttle!r}: must be a whole number, or empty")
    try:
        options = shlex.split(settings["SBATCH_OPTIONS"])
    except ValueError as error:
        text = settings["SBATCH_OPTIONS"]
        raise UserError(f"SBATCH_OPTIONS = {text!r}: must be words for a shell ({error})") from None
    return Site(
        {"PROFILE": profile} if profile else {},
        options,
        int(throttle) if throttle else None,
    )


@dataclass(frozen=True)
class Batch:
    """One sbatch command: what it needs in the environment, sbatch's words, the script's."""

    variables: dict[str, str]
    options: list[str]
    script: list[str]

    @property
    def words(self) -> list[str]:
        """The command itself."""
        return ["sbatch", "--parsable", *self.options, *self.script]

    def line(self, command: list[str] | None = None) -> str:
        """Return the command, or another with its environment, as a line for a shell.

        Only a job's id in it may be a variable.
        """
        variables = [f"{name}={shlex.quote(text)}" for name, text in self.variables.items()]
        words = [word if "$" in word else shlex.quote(word) for word in command or self.words]
        return " ".join([*variables, *words])


def left_to_run(
    configs: list[Config], paths: list[Path], ntasks: int | None, script: Path
) -> dict[int, int]:
    """Return the number of Slurm's tasks of each run that is not complete, by index.

    0 is the number that ``script`` asks for. ``ntasks`` is the number of ranks of runs without
    num_workers. Raises UserError where it does not fit the others, or a file does not fit its run.
    """
    num_tasks = {}
    for index, (config, path) in enumerate(zip(configs, paths)):
        ranks = config.num_workers + 1 if config.num_workers else ntasks or 0
        if ntasks not in (None, ranks):
            raise UserError(
                f"ntasks = {ntasks}: run {index} has num_workers = {config.num_workers}, which"
                f" takes {ranks}"
            )
        config = dataclasses.replace(config, num_workers=max(0, ranks - 1))
        if standing(path, config, task_of(config))[0] != "complete":
            num_tasks[index] = tasks_of(ranks, config.server_threads, script)
    return num_tasks


def script_of(name: str) -> Path:
    """Return the script in slurm/ that runs job ``name``."""
    script = Path("slurm", f"{name}.sh")
    return script if script.exists() else DEFAULT_SCRIPT


def tasks_of(num_ranks: int, server_threads: int, script: Path) -> int:
    """Return the number of tasks, each a core, to ask Slurm for; 0: as many as ``script`` asks for.

    Each of the server's threads but the first needs a task without a rank: slurm/lib.sh starts so
    many ranks fewer. ``num_ranks`` = 0 is the number of tasks in ``script``; UserError if it has
    none.
    """
    if server_threads == 1:
        return num_ranks
    if not num_ranks:
        with reading(script):
            text = script.read_text(encoding="utf-8")
        found = re.search(r"^#SBATCH --ntasks=(\d+)$", text, re.MULTILINE)
        if not found:
            raise UserError(f"{script}: no line #SBATCH --ntasks=...: give --ntasks to submit")
        num_ranks = int(found[1])
    return num_ranks + server_threads - 1


def batches(
    job_file: str,
    name: str,
    num_tasks: dict[int, int],
    arguments: list[str],
    at: Site,
    throttle: int | None,
    sbatch_options: list[str],
) -> list[Batch]:
    """Return an array for each number of tasks in ``num_tasks``, by index (0: the script's own).

    ``arguments`` go to train, ``sbatch_options`` to sbatch, after those of the site.
    """
    most = throttle or at.throttle
    options = [*at.options, *sbatch_options]
    found = []
    for tasks in sorted(set(num_tasks.values())):
        indices = [index for index, count in num_tasks.items() if count == tasks]
        array = f"--array={ranges(indices)}{f'%{most}' if most else ''}"
        ntasks = [f"--ntasks={tasks}"] if tasks else []
        words = [f"--job-name={name}", array, *ntasks, *options]
        script = [str(script_of(name)), *arguments]
        found.append(Batch({"JOB": job_file, **at.variables}, words, script))
    return found


def collect_batch(job_file: str, name: str, after: Iterable[str], at: Site) -> Batch:
    """Return the collection that follows the jobs ``after``."""
    dependency = f"--dependency=afterany:{':'.join(after)}"
    words = [f"--job-name={name}-collect", dependency, *at.options]
    return Batch({"JOB": job_file, **at.variables}, words, [str(Path("slurm", "collect.sh"))])


def read_profile(name: str) -> dict[str, str]:
    """Return the settings of slurm/profiles/<name>.env, as slurm/lib.sh reads them."""
    path = PROFILES / f"{name}.env"
    if not PROFILES.exists():
        raise UserError(f"no {PROFILES} here: submit from the project's root")
    if not path.exists():
        known = ", ".join(sorted(other.stem for other in PROFILES.glob("*.env")))
        raise UserError(f"profile {name!r}: no {path}; there are {known}")
    with reading(path):
        text = path.read_text(encoding="utf-8")
    lines = (line.partition("=") for line in text.splitlines())
    return {key: value for key, equals, value in lines if equals and not key.startswith("#")}


def ranges(indices: Iterable[int]) -> str:
    """Return indices as sbatch's --array has them: 0-3,7."""
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def queued(name: str) -> set[int]:
    """Return the indices of job ``name`` that this folder's jobs in Slurm's queue are to run."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%K|%j|%Z"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return set()
    except subprocess.CalledProcessError as error:
        raise UserError(f"squeue: {error.stderr.strip()}") from None
    rows = (line.split("|", 2) for line in done.stdout.splitlines())
    here = os.getcwd()
    return {
        int(index)
        for index, job, folder in rows
        if index.isdigit() and job in (name, f"{name}-{index}") and folder == here
    }


def send(batch: Batch) -> str:
    """Run one sbatch command and return its job's id. Raises UserError with Slurm's complaint."""
    try:
        done = subprocess.run(
            batch.words, env={**os.environ, **batch.variables}, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise UserError(
            f"no sbatch here: {batch.line(['bash', *batch.script])} runs without Slurm, one INDEX"
            " at a time; --dry-run shows sbatch's lines"
        ) from None
    if done.returncode:
        raise UserError(done.stderr.strip() or f"sbatch: exit status {done.returncode}")
    return done.stdout.strip().partition(";")[0]  # without the cluster's name
