"""``mpi_rl submit``: the sbatch commands that run what is left of a job."""

import dataclasses
import os
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mpi_rl.config import Config
from mpi_rl.standing import standing, task_of

PROFILES = Path("slurm", "profiles")
DEFAULT_SCRIPT = Path("slurm", "space_invaders.sh")  # for jobs without one of their own


@dataclass(frozen=True)
class Site:
    """A profile's settings for sbatch, and what selects them on the nodes."""

    variables: dict[str, str]
    options: list[str]
    throttle: int | None


def site(profile: str | None) -> Site:
    """Return what slurm/profiles/<profile>.env, else default.env, says; the environment wins.

    Raises ValueError for an unknown profile.
    """
    settings = read_profile("default") | (read_profile(profile) if profile else {})
    settings |= {key: os.environ[key] for key in settings.keys() & os.environ.keys()}
    throttle = settings["THROTTLE"]
    if throttle and not throttle.isdecimal():
        raise ValueError(f"THROTTLE = {throttle!r}: must be a whole number, or empty")
    return Site(
        {"PROFILE": profile} if profile else {},
        shlex.split(settings["SBATCH_OPTIONS"]),
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


def left_to_run(configs: list[Config], paths: list[Path], ntasks: int | None) -> dict[int, int]:
    """Return the number of ranks of each run that is not complete, by index; 0: not yet said.

    ``ntasks`` is for runs without num_workers. Raises ValueError where it does not fit the others,
    or a file does not fit its run.
    """
    num_ranks = {}
    for index, (config, path) in enumerate(zip(configs, paths)):
        ranks = config.num_workers + 1 if config.num_workers else ntasks or 0
        if ntasks not in (None, ranks):
            raise ValueError(
                f"ntasks = {ntasks}: run {index} has num_workers = {config.num_workers}, which"
                f" takes {ranks}"
            )
        config = dataclasses.replace(config, num_workers=max(0, ranks - 1))
        if standing(path, config, task_of(config))[0] != "complete":
            num_ranks[index] = ranks
    return num_ranks


def batches(
    job_file: str,
    name: str,
    num_ranks: dict[int, int],
    arguments: list[str],
    at: Site,
    throttle: int | None,
    sbatch_options: list[str],
) -> list[Batch]:
    """Return an array for each number of ranks in ``num_ranks``, by index (0: the script's own).

    ``arguments`` go to train, ``sbatch_options`` to sbatch, after those of the site.
    """
    script = Path("slurm", f"{name}.sh")
    script = script if script.exists() else DEFAULT_SCRIPT
    most = throttle or at.throttle
    options = [*at.options, *sbatch_options]
    found = []
    for ranks in sorted(set(num_ranks.values())):
        indices = [index for index, count in num_ranks.items() if count == ranks]
        array = f"--array={ranges(indices)}{f'%{most}' if most else ''}"
        ntasks = [f"--ntasks={ranks}"] if ranks else []
        words = [f"--job-name={name}", array, *ntasks, *options]
        found.append(Batch({"JOB": job_file, **at.variables}, words, [str(script), *arguments]))
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
        raise ValueError(f"no {PROFILES} here: submit from the project's root")
    if not path.exists():
        known = ", ".join(sorted(other.stem for other in PROFILES.glob("*.env")))
        raise ValueError(f"profile {name!r}: no {path}; there are {known}")
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines())
    return {key: text for key, equals, text in lines if equals and not key.startswith("#")}


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
        raise ValueError(f"squeue: {error.stderr.strip()}") from None
    rows = (line.split("|", 2) for line in done.stdout.splitlines())
    here = os.getcwd()
    return {
        int(index)
        for index, job, folder in rows
        if index.isdigit() and job in (name, f"{name}-{index}") and folder == here
    }


def send(batch: Batch) -> str:
    """Run one sbatch command and return its job's id. Raises ValueError with Slurm's complaint."""
    try:
        done = subprocess.run(
            batch.words, env={**os.environ, **batch.variables}, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise ValueError(
            f"no sbatch here: {batch.line(['bash', *batch.script])} runs without Slurm, one INDEX"
            " at a time; --dry-run shows sbatch's lines"
        ) from None
    if done.returncode:
        raise ValueError(done.stderr.strip() or f"sbatch: exit status {done.returncode}")
    return done.stdout.strip().partition(";")[0]  # without the cluster's name
