"""Tables in Markdown: numbers with their intervals, rows of settings, and how a page is saved."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from analysis.runs import SOLVED, Cell
from analysis.statistics import (
    Interval,
    bootstrapped,
    mean_interval,
    probability_of_improvement,
    share_interval,
)
from mpi_rl.config import budget
from mpi_rl.errors import writing
from mpi_rl.records.curves import CONFIDENCE
from mpi_rl.records.runfile import Run

NOTE = (
    "Intervals of means and probabilities are percentile bootstraps over runs. Over five runs they"
    f" are too narrow: {CONFIDENCE:.0%} cover 84 % if scores are normal. Where every run of a"
    " setting is better than every run of another, resampling knows no doubt, but with five and"
    " five runs chance alone does that in 1 of 252 cases. Shares that solve have Clopper-Pearson"
    " intervals."
)
HEADER = ("setting", "thesis", f"mean over seeds [{CONFIDENCE:.0%}]", "solved", "seeds")


def save(path: Path, text: str) -> None:
    """Write a page, and make its folder."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def markdown(header: Sequence[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_brackets(interval: Interval | None, form: str) -> str:
    """Return an interval as text after a number, each of its ends in this ``form``."""
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def mean_with_interval(values: ArrayLike, form: str) -> str:
    """Return the mean over runs and its interval as text, each number in this ``form``."""
    values = np.asarray(values)
    return f"{values.mean():{form}}{in_brackets(mean_interval(values), form)}"


def with_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    one: np.ndarray,
    other: np.ndarray,
    form: str,
) -> str:
    """Return a statistic of two settings' runs and its interval as text."""
    found = bootstrapped(statistic, one, other)
    return f"{statistic(one, other):{form}}{in_brackets(found, form)}"


def share_with_interval(found: np.ndarray) -> str:
    """Return how many runs are true in ``found``, and their share's Clopper-Pearson interval."""
    there, count = int(found.sum()), len(found)
    return f"{there} of {count}{in_brackets(share_interval(there, count), '.2f')}"


def budgets(pools: dict[str, list[Run]]) -> str:
    """Return the budgets of runs by setting in words; with the settings, if they differ."""
    found: dict[str, list[str]] = {}
    for name, (run, *_) in pools.items():  # the runs of one setting
        text = budget(run.config)
        text += ", whichever is first" if " or " in text else ""
        found.setdefault(text, []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())


def row(cell: Cell) -> list[str]:
    """Return a setting as a row of a table with HEADER."""
    thesis = "" if cell.thesis is None else "{:.1f} ± {:.1f}".format(*cell.thesis)
    if not len(cell.episodes):
        return [cell.label, thesis, "", "", ""]
    return [
        cell.label,
        thesis,
        mean_with_interval(cell.returns, ".1f"),
        share_with_interval(cell.returns >= SOLVED),
        ", ".join(f"{value:.0f}" for value in cell.returns),
    ]


def improvement(one: Cell, other: Cell) -> list[str]:
    """Return how likely a run of ``one`` beats a run of ``other``, as a row of a table."""
    label = f"{one.label} over {other.label}"
    if one is other or min(len(one.returns), len(other.returns)) < 2:
        return [label, "", ""]
    between = (
        None if one.thesis is None or other.thesis is None else one.thesis[0] - other.thesis[0]
    )
    return [
        label,
        "" if between is None else f"{between:+.1f}",
        with_interval(probability_of_improvement, one.returns, other.returns, ".2f"),
    ]
