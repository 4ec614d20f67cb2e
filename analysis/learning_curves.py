"""Draw episode returns against steps and hours from run files, single or collected.

    python -m analysis.learning_curves FILE... [--output x.png]

Runs whose settings differ only in the seed are pooled: the thick line is their mean with a
bootstrap interval, the thin lines are the runs. A run's curve is the running average of its episode
returns with decay .95, as in the Space Invaders reproduction of clorenz7/rl_ex. Space Invaders is
drawn beside figure 3 of the A3C paper and random play. Without --output the picture lies beside the
first file.
"""

import dataclasses
import sys
from pathlib import Path

import click
import matplotlib
import numpy as np
from scipy.signal import lfilter
from scipy.stats import bootstrap

from analysis.cells import by_setting
from mpi_rl.runfile import Run, read_runs

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

DECAY = 0.95  # of the running average, per episode
GRID_POINTS = 400  # at which the runs of one setting are averaged
MOST_DOTS = 4000  # single episodes drawn for a lone run
CONFIDENCE = 0.95
REFERENCE = Path(__file__).parent / "reference"
AXES = {"step": (1e6, "steps (millions)"), "wall_time_s": (3600.0, "hours of training")}


def running_average(returns: np.ndarray, decay: float = DECAY) -> np.ndarray:
    """Return a_n = decay a_{n-1} + (1 - decay) r_n, a_0 = r_0, of returns r, (N,), in order."""
    if not len(returns):
        return np.empty(0)
    return lfilter([1 - decay], [1, -decay], returns, zi=[decay * returns[0]])[0]


def pool(runs: list[Run]) -> dict[str, list[Run]]:
    """Group runs by their settings but the seed; the key says what is special to a group."""
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


def interval_of_mean(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bootstrap interval, two (G,) arrays, of the mean over runs of curves (runs, G)."""
    result = bootstrap(
        (curves,),
        np.mean,
        axis=0,
        confidence_level=CONFIDENCE,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval.low, result.confidence_interval.high


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
    lines = (REFERENCE / "space_invaders_published.csv").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("random play")).split(",")[4])


def plot(runs: list[Run], output: Path) -> Figure:
    """Write the figure of ``runs`` to ``output`` and return it.

    Raises ValueError for runs of several tasks, or with fewer than two episodes.
    """
    tasks = {run.config["env"] for run in runs}
    if len(tasks) > 1:
        raise ValueError(
            f"runs of different tasks ({', '.join(sorted(tasks))}) do not share a figure"
        )
    for run in runs:
        if len(run.episodes["step"]) < 2:
            raise ValueError(
                f"{run.attributes['job']}[{run.attributes['index']}], seed"
                f" {run.attributes['seed']}: fewer than two finished episodes: nothing to draw yet"
            )
    groups = pool(runs)
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for panel, axis in zip(panels, AXES):
        draw(panel, groups, axis)
    if tasks == {"space_invaders"}:
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
    figure.suptitle(f"{tasks.pop()}: {len(runs)} run{'s' * (len(runs) > 1)}{interval}", fontsize=10)
    figure.savefig(output, dpi=130)
    pyplot.close(figure)
    return figure


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="picture  [default: beside the first file]",
)
def main(files: tuple[Path, ...], output: Path | None) -> None:
    """Draw episode returns of run FILES against steps and hours."""
    if output is None:
        output = (
            files[0].with_suffix(".png")
            if len(files) == 1
            else files[0].with_name("learning_curves.png")
        )
    try:
        plot([run for path in files for run in read_runs(path)], output)
    except (ValueError, OSError) as error:
        print(f"learning_curves: {error}", file=sys.stderr)
        sys.exit(2)
    print(output)


if __name__ == "__main__":
    main()
