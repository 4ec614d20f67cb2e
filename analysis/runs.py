"""The runs of a study: which files they come from, what they got, and the command around it."""

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from mpi_rl.errors import UserError
from mpi_rl.records.curves import running_average
from mpi_rl.records.moves import moves
from mpi_rl.records.runfile import Run, read_runs

REFERENCE = Path(__file__).parent / "reference"
SOLVED = 200.0  # mean return of LunarLander
CERTAIN = 0.01  # mean entropy, in nats, below which a policy is as good as deterministic
GRID_POINTS = 150  # of a curve of means
MIN_EPISODES = 30  # in each of these means


@dataclass(frozen=True)
class Cell:
    """One setting, in the thesis and here."""

    label: str
    thesis: tuple[float, float] | None  # mean and deviation
    episodes: np.ndarray  # (runs, M) raw returns, in the order of the seeds

    @property
    def returns(self) -> np.ndarray:
        """Each run's return, (runs,)."""
        return self.episodes.mean(axis=1)


def command(
    name: str,
    help: str,
    jobs: Sequence[str],
    write: Callable[[list[Run], Path], list[Path]],
    folder: str = "genkidama",
) -> click.Command:
    """Return a command line that lets ``write`` make tables and figures of runs of ``jobs``."""

    @click.command(name, help=f"{help}\n\nWithout FILES the collected ones in results/.")
    @click.argument("files", nargs=-1, type=click.Path(path_type=Path))
    @click.option(
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("results", folder),
        show_default=True,
    )
    def run(files: tuple[Path, ...], output: Path) -> None:
        collected = [Path("results", f"{job}.h5") for job in jobs]
        try:
            for path in write(read(files or collected, jobs), output):
                print(path)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            sys.exit(error.status)

    return run


def name_of(run: Run) -> str:
    """Return a run's job and index, as errors call it."""
    return f"{run.attributes['job']}[{run.attributes['index']}]"


def read(files: Iterable[Path], jobs: Sequence[str]) -> list[Run]:
    """Return the runs of ``jobs`` in ``files``, single or collected.

    Raises UserError if there are none, or one twice, or evaluations of different lengths.
    """
    found: dict[str, Run] = {}
    for path in files:
        for run in read_runs(path):
            name = name_of(run)
            if run.attributes["job"] not in jobs:
                continue
            if name in found:
                raise UserError(f"{path}: {name} is in another file, too: give one of them")
            found[name] = run
    if not found:
        raise UserError(f"no run of {' or '.join(jobs)} in these files")
    counts = {
        run.evaluations["sampled"]["returns"].shape[1]: name
        for name, run in found.items()
        if "sampled" in run.evaluations
    }
    if len(counts) > 1:
        of = ", ".join(f"{name} {count}" for count, name in counts.items())
        raise UserError(f"evaluations of different numbers of episodes ({of}): must be equal")
    return [*found.values()]


def check_complete(run: Run) -> None:
    """Raise UserError unless a run is complete and has two episodes."""
    status, count = run.attributes["status"], len(run.episodes["step"])
    if status != "complete" or count < 2:
        raise UserError(
            f"{name_of(run)}: {status} with {count} episodes: must be complete, with two"
        )


def in_order_of_seeds(runs: Iterable[Run]) -> list[Run]:
    """Return ``runs`` sorted by seed."""
    return sorted(runs, key=lambda run: run.config.seed)


def reference(name: str) -> list[dict[str, str]]:
    """Return the rows of a published table, reference/<name>.csv."""
    lines = (REFERENCE / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def evaluated(run: Run, row: int = -1) -> np.ndarray:
    """Return the returns, (M,), of the episodes that ``mpi_rl evaluate`` played with a snapshot.

    ``row`` is the snapshot's. Raises UserError if it was not evaluated, or not to the end.
    """
    if "sampled" not in run.evaluations:
        raise UserError(
            f"{name_of(run)}: not evaluated: python -m mpi_rl evaluate does it; then collect again"
        )
    returns = run.evaluations["sampled"]["returns"][row]
    if np.isnan(returns).any():
        raise UserError(f"{name_of(run)}: evaluated in part: the same evaluate command goes on")
    return returns


def best_group(run: Run) -> int:
    """Return the row of the snapshot of the group whose last episodes in training were best."""
    table = run.tables["snapshots"]
    groups = [row for row, kind in enumerate(table["kind"]) if kind.startswith("group ")]
    return max(groups, key=lambda row: table["mean_return"][row])


def last(run: Run) -> int:
    """Return the row of a run's last snapshot."""
    return -1


def cell(
    label: str,
    thesis: tuple[float, float] | None,
    runs: list[Run],
    row: Callable[[Run], int | None] = last,
    **settings: Any,
) -> Cell:
    """Return the cell of the ``runs`` with these ``settings`` and with a snapshot in that ``row``.

    Raises UserError if one of them was not evaluated.
    """
    chosen = []
    for run in in_order_of_seeds(runs):
        if all(getattr(run.config, name) == value for name, value in settings.items()):
            if (found := row(run)) is not None:
                chosen.append(evaluated(run, found))
    return Cell(label, thesis, np.stack(chosen) if chosen else np.zeros((0, 1)))


def along(run: Run, axis: str) -> np.ndarray:
    """Return where on ``axis`` each episode ended, (N,); its own number for 'episode'."""
    count = len(run.episodes["step"])
    return np.arange(1, count + 1) if axis == "episode" else run.episodes[axis]


def reached(run: Run, score: float, axis: str, decay: float) -> float:
    """Return where on ``axis`` the running average of returns first is ``score``; inf if never."""
    average = running_average(run.episodes["episode_return"], decay)
    above = np.flatnonzero(average >= score)
    return float(along(run, axis)[above[0]]) if len(above) else np.inf


def ends(run: Run, axis: str) -> float:
    """Return where on ``axis`` a run ended."""
    return float(along(run, axis)[-1])


def mean_staleness(run: Run) -> float:
    """Return the mean staleness of a run's updates."""
    counts = run.staleness.sum(axis=0)
    return float(np.arange(len(counts)) @ counts / max(1, counts.sum()))


def joins(run: Run, axis: str) -> np.ndarray:
    """Return where on ``axis`` workers were added."""
    events = run.tables["events"]
    late = [row for row in moves(run) if events["kind"][row] == "join"]
    if axis == "episode":
        return np.searchsorted(run.episodes["step"], events["step"][late])
    return events[axis][late]


def binned(run: Run, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return where on ``axis`` equal parts of a run's episodes end, and each part's mean return.

    There are GRID_POINTS parts, or fewer: each has MIN_EPISODES or more.
    """
    returns = run.episodes["episode_return"]
    parts = min(GRID_POINTS, max(1, len(returns) // MIN_EPISODES))
    ends_of_parts = np.linspace(0, len(returns), parts + 1).astype(int)
    means = np.add.reduceat(returns, ends_of_parts[:-1]) / np.diff(ends_of_parts)
    return along(run, axis)[ends_of_parts[1:] - 1], means


def curves_of_means(runs: list[Run], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return places on ``axis``, (GRID_POINTS,), and ``binned`` there, (runs, GRID_POINTS).

    After a run's end its curve keeps its last value.
    """
    curves = [binned(run, axis) for run in runs]
    grid = np.linspace(max(at[0] for at, _ in curves), max(at[-1] for at, _ in curves), GRID_POINTS)
    return grid, np.stack([np.interp(grid, at, curve) for at, curve in curves])
