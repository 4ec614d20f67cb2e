"""Pictures of a game's runs with different numbers of workers: see worker_scaling."""

import csv
from pathlib import Path

import matplotlib
import numpy as np

from analysis.cells import CONFIDENCE
from analysis.learning_curves import interval_of_mean
from analysis.reaching import FLAPPY_BIRD, Game, along, ends, reached
from mpi_rl.inspect import moves
from mpi_rl.runfile import Run

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

REFERENCE = Path(__file__).parent / "reference"
GRID_POINTS = 150
MIN_EPISODES = 30  # in the mean that a point is
COLUMNS = 4


def draw_all(game: Game, pools: dict[str, list[Run]], path: Path) -> None:
    """Draw a game's picture: a panel for each setting, and below what compares them."""
    rows = -(-len(pools) // COLUMNS)
    size = 4 * COLUMNS, 3.3 * (rows + 1)
    figure, panels = pyplot.subplots(rows + 1, COLUMNS, figsize=size, layout="constrained")
    colours = {name: f"C{number}" for number, name in enumerate(pools)}
    above, below = panels[:-1].ravel(), panels[-1]
    for axes, (name, runs) in zip(above, pools.items()):
        if axes is not above[0]:
            axes.sharex(above[0])
            axes.sharey(above[0])
        draw_runs(axes, game, name, runs, colours[name])
    for axes in above[len(pools) :]:
        axes.set_axis_off()
    others = [axis for axis in game.units if axis != game.budget_axis]
    for axes, axis in zip(below, others):
        for name, runs in pools.items():
            draw_mean(axes, game, runs, axis, colours[name], has_band=False)
        _score_axis(axes, game, axis)
        axes.set_title("means", fontsize=10)
    for axes, score in zip(below[len(others) :], game.scores[-2:]):
        draw_shares(axes, game, pools, score)
    for axes in panels[:, 0]:
        axes.set_ylabel("return")
    handles = [Line2D([], [], color=colours[name], label=name) for name in pools]
    below[-1].legend(handles=handles, fontsize=7, loc="upper left")
    count = sum(map(len, pools.values()))
    figure.suptitle(
        f"{game.title}: returns of {count} runs, thin, means of 1/{GRID_POINTS} of a run's"
        f" episodes, {MIN_EPISODES} or more; mean over runs (one that has ended stands where it"
        f" ended) with its {CONFIDENCE:.0%} bootstrap interval; ticks: workers that joined",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def binned(run: Run, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of equal parts of a run's episodes, GRID_POINTS at most, and mean scores."""
    returns = run.episodes["episode_return"]
    parts = min(GRID_POINTS, max(1, len(returns) // MIN_EPISODES))
    ends_of_parts = np.linspace(0, len(returns), parts + 1).astype(int)
    means = np.add.reduceat(returns, ends_of_parts[:-1]) / np.diff(ends_of_parts)
    return along(run, axis)[ends_of_parts[1:] - 1], means


def mean_curve(runs: list[Run], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return places on ``axis`` and each run's score there, (runs, GRID_POINTS).

    A run that has ended stands where it ended.
    """
    curves = [binned(run, axis) for run in runs]
    grid = np.linspace(max(at[0] for at, _ in curves), max(at[-1] for at, _ in curves), GRID_POINTS)
    return grid, np.stack([np.interp(grid, at, curve) for at, curve in curves])


def draw_runs(axes: Axes, game: Game, name: str, runs: list[Run], colour: str) -> None:
    """Draw a setting's runs, their mean and its interval, who joined, and the deck's run."""
    axis = game.budget_axis
    unit = game.units[axis][0]
    for run in runs:
        at, curve = binned(run, axis)
        axes.plot(at / unit, curve, color=colour, alpha=0.5, linewidth=0.7)
        joins = _joins(run, axis)
        axes.plot(joins / unit, np.interp(joins, at, curve), "|", color="black", markersize=5)
    draw_mean(axes, game, runs, axis, colour)
    if game is FLAPPY_BIRD and (points := deck().get(name)) is not None:
        axes.plot(*points.T, "k--o", markersize=3, linewidth=0.9, label="the deck (digitised)")
        axes.legend(fontsize=7, loc="upper left")
    axes.set_title(name, fontsize=10)
    _score_axis(axes, game, axis)


def draw_mean(
    axes: Axes, game: Game, runs: list[Run], axis: str, colour: str, has_band: bool = True
) -> None:
    """Draw the mean over runs along ``axis``, and its interval."""
    grid, levels = mean_curve(runs, axis)
    at = grid / game.units[axis][0]
    axes.plot(at, levels.mean(axis=0), color=colour, linewidth=1.8)
    if has_band and len(runs) > 1:
        axes.fill_between(at, *interval_of_mean(levels), color=colour, alpha=0.2, linewidth=0)


def _score_axis(axes: Axes, game: Game, axis: str) -> None:
    if not game.is_linear:
        axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel(game.units[axis][1])
    axes.grid(alpha=0.3)


def _joins(run: Run, axis: str) -> np.ndarray:
    """Return where on ``axis`` workers were added."""
    events = run.tables["events"]
    late = [row for row in moves(run) if events["kind"][row] == "join"]
    if axis == "episode":
        return np.searchsorted(run.episodes["step"], events["step"][late])
    return events[axis][late]


def deck() -> dict[str, np.ndarray]:
    """Return the deck's curves by ``label``: thousands of episodes and scores, (N, 2)."""
    lines = (REFERENCE / "flappy_worker_scaling.csv").read_text(encoding="utf-8").splitlines()
    found: dict[str, list[list[float]]] = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        point = [float(row["episodes"]) / 1e3, float(row["mean_score"])]
        name = row["series"].replace("->", " to ")
        found.setdefault(name if "to" in name else f"{name} workers", []).append(point)
    return {name: np.array(points) for name, points in found.items()}


def draw_shares(axes: Axes, game: Game, pools: dict[str, list[Run]], score: float) -> None:
    """Draw the share of all runs that have reached ``score``.

    One that has ended has not. What Kaplan and Meier assume does not hold here: a bird that learns
    spends its steps, one that does not its episodes, so whose budget ends first is no chance.
    """
    unit, text = game.units[game.budget_axis]
    for colour, (name, runs) in enumerate(pools.items()):
        places = np.sort([reached(run, score, game.budget_axis, game.decay) for run in runs])
        there = places[np.isfinite(places)]
        last = max(ends(run, game.budget_axis) for run in runs)
        shares = np.arange(len(there) + 1) / len(runs)
        levels = np.r_[shares, shares[-1]] + 0.006 * colour  # apart where they are the same
        axes.step(np.r_[0, there, last] / unit, levels, where="post", color=f"C{colour}")
    axes.set_ylim(-0.03, 1.08)
    axes.set_xlabel(text)
    axes.set_title(f"share of all runs that have reached {score:g}", fontsize=9)
    axes.grid(alpha=0.3)
