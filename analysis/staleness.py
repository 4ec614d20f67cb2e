"""How stale gradients are, per worker and over time, and whether remedies improve learning.

    python -m analysis.staleness [FILE...] [--output results/worker_scaling]

FILEs are runs of jobs/staleness.toml, single or collected. Staleness is the version at which a
gradient was applied less the version that it was taken at: exact, and counted for every push.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from analysis import figures, tables
from analysis.figures import draw_cells, pyplot
from analysis.runs import Cell, command
from analysis.statistics import chance, probability_of_improvement
from analysis.tables import markdown, mean_with_interval
from mpi_rl.config import Config
from mpi_rl.records.curves import CONFIDENCE, by_setting
from mpi_rl.records.runfile import Run

JOBS = ("staleness",)
LAST_EPISODES = 100  # whose mean is a run's return


def label(config: Config) -> str:
    """Return a setting in words."""
    words = [f"{config.num_workers} workers"]
    words += ["step size / staleness"] if config.staleness_scaled_rate else []
    words += [f"none older than {config.max_staleness}"] if config.max_staleness else []
    rate = config.learning_rate
    words += [f"step size {rate:g}"] if rate != Config().learning_rate else []
    return ", ".join(words)


def is_treated(config: Config) -> bool:
    """Say whether a setting does anything about staleness."""
    other = config.learning_rate != Config().learning_rate
    return config.staleness_scaled_rate or config.max_staleness > 0 or other


def cell(config: Config, runs: list[Run]) -> Cell:
    """Return the returns of the last episodes of a setting's runs."""
    returns = [run.episodes["episode_return"][-LAST_EPISODES:] for run in runs]
    return Cell(label(config), None, np.stack(returns))


def distribution(runs: list[Run]) -> np.ndarray:
    """Return how often a gradient that was applied was 0, 1, 2, ... versions old, (K,)."""
    counts = np.zeros(max(run.staleness.shape[1] for run in runs))
    for run in runs:
        counts[: run.staleness.shape[1]] += run.staleness.sum(axis=0)
    return counts


def report(pools: dict[Config, list[Run]]) -> str:
    """Return the table in Markdown."""
    header = ["setting", "mean staleness", "99 % at most", "most", "workers' means", "dropped"]
    header += [f"last {LAST_EPISODES} episodes [{CONFIDENCE:.0%}]", "seeds"]
    header += ["probability of improvement on the same workers untreated (p)"]
    untreated = {config.num_workers: config for config in pools if not is_treated(config)}
    rows = []
    for config, runs in pools.items():
        counts, ages = distribution(runs), np.arange(len(distribution(runs)))
        below = int(np.searchsorted(counts.cumsum(), 0.99 * counts.sum()))
        pushes = [row for run in runs for row in run.staleness if row.any()]
        means = np.array([row @ np.arange(len(row)) / row.sum() for row in pushes])
        dropped = sum(run.tables["workers"]["num_dropped"].sum() for run in runs)
        returns = cell(config, runs).returns
        row = [label(config), f"{counts @ ages / counts.sum():.1f}", f"{below}"]
        row += [f"{ages[counts > 0].max()}", f"{means.min():.1f} to {means.max():.1f}"]
        row += [f"{100 * dropped / (dropped + counts.sum()):.1f} %"]
        row += [mean_with_interval(returns, ".1f")]
        row += [", ".join(f"{value:.0f}" for value in returns), ""]
        same = untreated.get(config.num_workers)
        if same is not None and same is not config:
            others = cell(same, pools[same]).returns
            likely = probability_of_improvement(returns, others)
            row[-1] = f"{likely:.2f} ({chance(returns, others):.3f})"
        rows.append(row)
    note = (
        "Staleness in updates, of all gradients of all runs that were applied. Intervals are"
        " percentile bootstraps over runs; p is of the exact permutation test by ranks, not"
        " corrected for their number."
    )
    return "\n\n".join(["# Staleness", note, markdown(header, rows)]) + "\n"


def draw_distributions(axes: Axes, pools: dict[Config, list[Run]]) -> None:
    """Draw the share of pushes by staleness: of all, and, thin, of each worker of the first run."""
    for colour, (config, runs) in enumerate(pools.items()):
        counts = distribution(runs)
        axes.plot(counts / counts.sum(), color=f"C{colour}", linewidth=1.8, label=label(config))
        for row in runs[0].staleness:
            axes.plot(row / max(1, row.sum()), color=f"C{colour}", alpha=0.2, linewidth=0.5)
    axes.set_xlim(0, 2.5 * max(config.num_workers for config in pools))
    axes.set_xlabel("staleness (updates); thin: single workers of one run")
    axes.set_ylabel("share of pushes")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def draw_over_time(axes: Axes, pools: dict[Config, list[Run]]) -> None:
    """Draw the mean staleness of each interval, and its largest as points."""
    for colour, (config, runs) in enumerate(pools.items()):
        for run in runs:
            intervals = run.tables["intervals"]
            steps = intervals["step"] / 1e6
            axes.plot(steps, intervals["staleness_mean"], color=f"C{colour}", linewidth=0.8)
            axes.plot(steps, intervals["staleness_max"], ".", color=f"C{colour}", alpha=0.2)
    axes.set_yscale("log")
    axes.set_xlabel("steps (millions)")
    axes.set_ylabel("staleness: mean (line) and largest (points) of an interval")
    axes.grid(alpha=0.3)


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write staleness.md and staleness.png into ``folder``; return their paths."""
    pools = by_setting(sorted(runs, key=lambda run: run.attributes["index"]))
    paths = [folder / "staleness.md", folder / "staleness.png"]
    tables.save(paths[0], report(pools))
    plain = {config: pool for config, pool in pools.items() if not is_treated(config)}
    figure, panels = pyplot.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    if plain:
        draw_distributions(panels[0], plain)
        draw_over_time(panels[1], plain)
    draw_cells(panels[2], [cell(*pair) for pair in pools.items()])
    panels[2].set_xlabel(f"mean return of the last {LAST_EPISODES} episodes")
    steps = max(run.config.total_steps for run in runs)
    panels[2].set_title(f"{steps:,} steps: runs, mean, {CONFIDENCE:.0%} interval", fontsize=9)
    figures.save(figure, paths[1])
    return paths


main = command(
    "staleness",
    "Show how stale gradients were, and whether remedies improved learning.",
    JOBS,
    write,
    "worker_scaling",
)

if __name__ == "__main__":
    main()
