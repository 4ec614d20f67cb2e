"""Figures: matplotlib without a display, what several studies draw, and how a figure is saved."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.runs import Cell
from analysis.statistics import mean_interval
from mpi_rl.errors import writing
from mpi_rl.records.curves import interval_of_mean

matplotlib.use("Agg")  # files only: no display is needed

PANELS = 4  # side by side


def save(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write a figure, whose folder exists, and forget it."""
    with writing(path):
        figure.savefig(path, dpi=dpi)
    pyplot.close(figure)


def panels(count: int) -> tuple[Figure, np.ndarray, np.ndarray]:
    """Return a figure, its upper panels and its lowest row, PANELS side by side.

    The first ``count`` upper panels share their axes; the rest of their last row stays empty.
    """
    rows = -(-count // PANELS)
    size = 4 * PANELS, 3.3 * (rows + 1)
    figure, every = pyplot.subplots(rows + 1, PANELS, figsize=size, layout="constrained")
    above, below = every[:-1].ravel(), every[-1]
    for axes in above[1:count]:
        axes.sharex(above[0])
        axes.sharey(above[0])
    for axes in above[count:]:
        axes.set_axis_off()
    return figure, above, below


def draw_mean(
    axes: Axes, at: np.ndarray, curves: np.ndarray, colour: str, has_band: bool = True
) -> None:
    """Draw the mean over runs of curves, (runs, G), at (G,), and its interval."""
    axes.plot(at, curves.mean(axis=0), color=colour, linewidth=1.8)
    if has_band and len(curves) > 1:
        axes.fill_between(at, *interval_of_mean(curves), color=colour, alpha=0.2, linewidth=0)


def draw_cells(axes: Axes, shown: list[Cell]) -> None:
    """Draw each setting's runs, their mean and its interval."""
    for place, one in enumerate(shown):
        axes.plot(one.returns, [place] * len(one.returns), "o", color="C0", alpha=0.5, markersize=4)
        mean = one.returns.mean()
        low, high = mean_interval(one.returns) or (mean, mean)
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="k|", capsize=3)
    axes.set_yticks(range(len(shown)), [one.label for one in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean return of a run's evaluated episodes")
    axes.grid(axis="x", alpha=0.3)


def draw_shares(axes: Axes, places: list[list[float]], ends: list[float]) -> None:
    """Draw for each setting the share of all its runs that have got there.

    ``places`` tells where each run of a setting did (inf: never), ``ends`` where its last run
    ended. A run that has ended counts as one that never gets there. The estimate of Kaplan and
    Meier would be wrong here: it assumes that a run's end has nothing to do with its success.
    """
    for number, (found, end) in enumerate(zip(places, ends)):
        there = np.sort([at for at in found if np.isfinite(at)])
        shares = np.arange(len(there) + 1) / len(found)
        levels = np.r_[shares, shares[-1]] + 0.006 * number  # apart where they are the same
        axes.step(np.r_[0, there, end], levels, where="post", color=f"C{number}")
    axes.set_ylim(-0.03, 1.08)
    axes.grid(alpha=0.3)
