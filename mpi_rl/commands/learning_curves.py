"""The picture that ``plot`` makes of runs: episode returns against steps and hours."""

import dataclasses
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from mpi_rl.errors import UserError, writing
from mpi_rl.records.curves import CONFIDENCE, DECAY, by_setting, interval_of_mean, running_average
from mpi_rl.records.runfile import Run

matplotlib.use("Agg")  # files only: no display is needed

GRID_POINTS = 400  # at which the runs of one setting are averaged
MOST_DOTS = 4000  # single episodes drawn for a lone run
REFERENCE = Path(__file__).parent / "reference"
AXES = {"step": (1e6, "steps (millions)"), "wall_time_s": (3600.0, "hours of training")}


def plot(runs: list[Run], output: Path) -> Figure:
    """Write the picture of ``runs`` to ``output`` and return it.

    Raises UserError for runs of several tasks, for a run with fewer than two episodes, and for an
    ``output`` whose kind of picture is unknown; CannotWrite if it cannot be written.
    """
    task = _task_of(runs)
    groups = pool(runs)
    _check_name(output)
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for panel, axis in zip(panels, AXES):
        draw(panel, groups, axis)
    if task == "space_invaders":
        draw_references(panels[0])
        for panel in panels:
            panel.axhline(
                random_play(), color="grey", linestyle=":", linewidth=1.2, label="random play"
            )
    panels[0].set_ylabel(f"episode return (running average, decay {DECAY})")
    panels[0].legend(fontsize=8)
    several = any(len(group) > 1 for group in groups.values())
    interval = (
        f"; band: {CONFIDENCE:.0%} bootstrap interval of the mean over runs" if several else ""
    )
    figure.suptitle(f"{task}: {len(runs)} run{'s' * (len(runs) > 1)}{interval}", fontsize=10)
    with writing(output):
        figure.savefig(output, dpi=130)
    pyplot.close(figure)
    return figure


def _task_of(runs: list[Run]) -> str:
    """Return the task of all ``runs``; UserError if they cannot share a picture."""
    task, *others = sorted({run.config.env for run in runs})
    if others:
        tasks = ", ".join([task, *others])
        raise UserError(f"runs of different tasks ({tasks}) do not share a figure")
    for run in runs:
        if len(run.episodes["step"]) < 2:
            raise UserError(
                f"{run.attributes['job']}[{run.attributes['index']}], seed"
                f" {run.attributes['seed']}: fewer than two finished episodes: nothing to draw yet"
            )
    return task


def _check_name(output: Path) -> None:
    """Raise UserError unless the name of ``output`` tells the picture's kind."""
    kinds = FigureCanvasBase.get_supported_filetypes()
    if output.suffix[1:].lower() not in kinds:
        raise UserError(f"{output}: its name must end in one of .{', .'.join(sorted(kinds))}")


def pool(runs: list[Run]) -> dict[str, list[Run]]:
    """Return runs by setting; the key names the settings that differ between the groups."""
    pools = by_setting(runs)
    settings = [dataclasses.asdict(config) for config in pools]
    varying = [key for key in settings[0] if len({one[key] for one in settings}) > 1]
    labels = [
        ", ".join(f"{key} {one[key]}" for key in varying) or f"{one['num_workers']} workers"
        for one in settings
    ]
    return dict(zip(labels, pools.values()))


def on_grid(runs: list[Run], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return points of ``axis`` that all runs cover, (G,), and their averages there, (runs, G)."""
    columns = [run.episodes[axis] for run in runs]
    grid = np.linspace(
        max(column[0] for column in columns), min(column[-1] for column in columns), GRID_POINTS
    )
    curves = [
        np.interp(grid, column, running_average(run.episodes["episode_return"]))
        for column, run in zip(columns, runs)
    ]
    return grid, np.stack(curves)


def draw(axes: Axes, groups: dict[str, list[Run]], axis: str) -> None:
    """Draw every group's curves against ``axis``, 'step' or 'wall_time_s'."""
    unit, label = AXES[axis]
    for number, (name, runs) in enumerate(groups.items()):
        colour = f"C{number}"
        grid, curves = on_grid(runs, axis)
        seeds = ", ".join(str(run.attributes["seed"]) for run in runs)
        if len(runs) == 1:
            episodes = runs[0].episodes
            every = -(-len(episodes["step"]) // MOST_DOTS)
            axes.plot(
                episodes[axis][::every] / unit,
                episodes["episode_return"][::every],
                ".",
                color=colour,
                alpha=0.15,
                markersize=3,
                markeredgewidth=0,
            )
        else:
            axes.plot(grid / unit, curves.T, color=colour, alpha=0.35, linewidth=0.7)
            axes.fill_between(
                grid / unit, *interval_of_mean(curves), color=colour, alpha=0.2, linewidth=0
            )
        axes.plot(
            grid / unit,
            curves.mean(axis=0),
            color=colour,
            linewidth=1.8,
            label=f"{name} ({len(runs)} run{'s' * (len(runs) > 1)}, seed {seeds})",
        )
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def draw_references(axes: Axes) -> None:
    """Draw figure 3 of the A3C paper, 16 threads, as far as the runs in ``axes`` go."""
    name = REFERENCE / "a3c_paper_fig3_space_invaders.csv"
    paper = np.genfromtxt(name, delimiter=",", names=True, skip_header=1)
    paper = paper[(paper["num_threads"] == 16) & (paper["epoch"] <= axes.get_xlim()[1])]
    label = "A3C paper, figure 3, 16 threads (digitised)"
    if not len(paper):
        return  # runs shorter than its first epoch
    axes.plot(paper["epoch"], paper["score"], "k--o", linewidth=1.2, markersize=3, label=label)


def random_play() -> float:
    """Return the published mean score of random play on Space Invaders."""
    lines = (REFERENCE / "space_invaders_published.csv").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith("random play")).split(",")[4])
