"""What is said of a setting: of its runs, one per seed, with intervals, and of two settings."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, bootstrap

from mpi_rl.config import OPERATIONAL_FIELDS, Config, config_from_json
from mpi_rl.runfile import Run, read_runs

SOLVED = 200.0  # mean return of LunarLander
CONFIDENCE = 0.95
_RESAMPLES = 10_000
NOTE = (
    "Intervals of means and probabilities are percentile bootstraps over runs. Over five runs they"
    f" are too narrow: {CONFIDENCE:.0%} cover 84 % if scores are normal. Where every run of a"
    " setting is better than every run of another, resampling knows no doubt, but with five and"
    " five runs chance alone does that in 1 of 252 cases. Shares that solve have Clopper-Pearson"
    " intervals."
)
HEADER = ("setting", "thesis", f"mean over seeds [{CONFIDENCE:.0%}]", "solved", "seeds")


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

    def row(self) -> list[str]:
        """Return the cell as a row of a table with HEADER."""
        thesis = "" if self.thesis is None else "{:.1f} ± {:.1f}".format(*self.thesis)
        if not len(self.episodes):
            return [self.label, thesis, "", "", ""]
        return [
            self.label,
            thesis,
            mean_with_interval(self.returns, ".1f"),
            share_with_interval(self.returns >= SOLVED),
            ", ".join(f"{value:.0f}" for value in self.returns),
        ]


def read(files: Iterable[Path], jobs: Sequence[str]) -> list[Run]:
    """Return the runs of ``jobs`` in ``files``, single or collected.

    Raises ValueError if there are none, or one twice, or evaluations of different lengths.
    """
    found: dict[str, Run] = {}
    for path in files:
        for run in read_runs(path):
            name = f"{run.attributes['job']}[{run.attributes['index']}]"
            if run.attributes["job"] not in jobs:
                continue
            if name in found:
                raise ValueError(f"{path}: {name} is in another file, too: give one of them")
            found[name] = run
    if not found:
        raise ValueError(f"no run of {' or '.join(jobs)} in these files")
    counts = {
        run.evaluations["sampled"]["returns"].shape[1]: name
        for name, run in found.items()
        if "sampled" in run.evaluations
    }
    if len(counts) > 1:
        of = ", ".join(f"{name} {count}" for count, name in counts.items())
        raise ValueError(f"evaluations of different numbers of episodes ({of}): must be equal")
    return [*found.values()]


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
        except (ValueError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            sys.exit(2)

    return run


def evaluated(run: Run, row: int = -1) -> np.ndarray:
    """Return the episodes, (M,), that ``mpi_rl evaluate`` has played with the snapshot in a row.

    Raises ValueError if it has not, or not to the end.
    """
    name = f"{run.attributes['job']}[{run.attributes['index']}]"
    if "sampled" not in run.evaluations:
        raise ValueError(
            f"{name}: not evaluated: python -m mpi_rl evaluate does it; then collect again"
        )
    returns = run.evaluations["sampled"]["returns"][row]
    if np.isnan(returns).any():
        raise ValueError(f"{name}: evaluated in part: the same evaluate command goes on")
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
    """Return the cell of ``runs`` with these ``settings``, and with a snapshot in that ``row``.

    Raises ValueError if one of them was not evaluated.
    """
    chosen = []
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        config = config_from_json(run.attributes["config"])  # an old file's lacks settings
        if all(getattr(config, name) == value for name, value in settings.items()):
            if (found := row(run)) is not None:
                chosen.append(evaluated(run, found))
    return Cell(label, thesis, np.stack(chosen) if chosen else np.zeros((0, 1)))


def by_setting(runs: list[Run]) -> dict[Config, list[Run]]:
    """Return runs by what was learned and how, in the order in which they come.

    That is their settings, but the seed and those that may change within a run are the defaults.
    """
    same = {name: getattr(Config(), name) for name in ("seed", *OPERATIONAL_FIELDS)}
    found: dict[Config, list[Run]] = {}
    for run in runs:
        config = config_from_json(run.attributes["config"])
        found.setdefault(dataclasses.replace(config, **same), []).append(run)
    return found


def mean_interval(returns: np.ndarray) -> tuple[float, float] | None:
    """Return the bootstrap interval of a mean over runs; None for fewer than two."""
    if len(returns) < 2:
        return None
    found = bootstrap((returns,), np.mean, **_bootstrapping()).confidence_interval
    return float(found.low), float(found.high)


def mean_with_interval(values: ArrayLike, form: str) -> str:
    """Return the mean over runs and its interval as text, each number in this ``form``."""
    values = np.asarray(values)
    return f"{values.mean():{form}}{in_brackets(mean_interval(values), form)}"


def share_with_interval(found: np.ndarray) -> str:
    """Return how many runs are true in ``found``, and their share's Clopper-Pearson interval."""
    there, count = int(found.sum()), len(found)
    share = binomtest(there, count).proportion_ci(CONFIDENCE)
    return f"{there} of {count}{in_brackets((share.low, share.high), '.2f')}"


def probability_of_improvement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pairs of runs in which ``one`` is better; ties count half.

    Agarwal et al. 2021, section 4.3.
    """
    above = one[:, None] > other
    return float((above + 0.5 * (one[:, None] == other)).mean())


def bootstrapped(
    statistic: Callable[[np.ndarray, np.ndarray], float], one: np.ndarray, other: np.ndarray
) -> tuple[float, float] | None:
    """Return the bootstrap interval of a statistic of two settings' runs; None for fewer than 2."""
    if min(len(one), len(other)) < 2:
        return None
    found = bootstrap((one, other), statistic, vectorized=False, **_bootstrapping(2000))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def improvement(one: Cell, other: Cell) -> list[str]:
    """Return how likely a run of ``one`` beats a run of ``other``, as a row of a table."""
    label = f"{one.label} over {other.label}"
    if one is other or min(len(one.returns), len(other.returns)) < 2:
        return [label, "", ""]
    found = bootstrapped(probability_of_improvement, one.returns, other.returns)
    between = (
        None if one.thesis is None or other.thesis is None else one.thesis[0] - other.thesis[0]
    )
    return [
        label,
        "" if between is None else f"{between:+.1f}",
        f"{probability_of_improvement(one.returns, other.returns):.2f}" + in_brackets(found, ".2f"),
    ]


def _bootstrapping(resamples: int = _RESAMPLES) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return dict(
        confidence_level=CONFIDENCE,
        method="percentile",
        n_resamples=resamples,
        rng=rng,
        paired=False,
    )


def in_brackets(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def markdown(header: Sequence[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
