"""Tables 5.2 to 5.6 and figures 5.2 to 5.4 of the Genkidama thesis beside ours, with intervals.

    python -m analysis.genkidama_tables [FILE...] [--output results/genkidama]

FILEs are runs of jobs/lunar_lander_thesis_a3c.toml and lunar_lander_thesis_genkidama.toml, single
or collected, after ``mpi_rl evaluate``. A run's return is the mean of its snapshot's episodes. What
is said of a setting is said of its runs, one per seed: their mean with a bootstrap interval, how
many solve the game with a binomial interval, and each of them. The thesis has one run per setting;
its deviation is that of episodes.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import gaussian_kde

from analysis.cells import (
    CONFIDENCE,
    HEADER,
    NOTE,
    SOLVED,
    Cell,
    best_group,
    cell,
    command,
    improvement,
    last,
    markdown,
)
from mpi_rl.runfile import Run

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

JOBS = "lunar_lander_thesis_a3c", "lunar_lander_thesis_genkidama"
REFERENCE = Path(__file__).parent / "reference"
EXCHANGES_PER_UPDATE = 2  # the thesis counts one of each of its two groups as one update
EPISODES_PER_WORKER = 2000  # the thesis' budget
BEST = 0.9, 0.0  # alpha and beta of the thesis' best Genkidama


def where(column: str, value: int | str) -> Callable[[Run], int | None]:
    """Return what finds the row of a run's first snapshot with a value; None if it has none."""

    def row(run: Run) -> int | None:
        rows = np.flatnonzero(run.tables["snapshots"][column] == value)
        return rows[0] if len(rows) else None

    return row


def a3c_cells(runs: list[Run]) -> list[Cell]:
    """Return table 5.2's rows, then those that the thesis lacks.

    They are those with gamma as printed, 4 workers with 8's episodes, and 8 that learn an episode's
    last step, too, which in the thesis only Genkidama does.
    """
    runs = [run for run in runs if run.config["algorithm"] == "a3c"]
    found = []
    for row in _reference("tables_5_2_and_5_6"):
        if row["table"] == "5.2":
            workers = int(row["num_workers"])
            settings: dict[str, Any] = dict(
                num_workers=workers,
                gamma=float(row["gamma"]),
                n_steps=int(row["batch_size"]),
                total_episodes=EPISODES_PER_WORKER * workers,
                learn_last_step=False,
            )
            found.append(cell(f"A3C, {row['label']}", _thesis(row), runs, **settings))
    whole: dict[str, Any] = dict(total_episodes=8 * EPISODES_PER_WORKER, learn_last_step=False)
    return [
        *found,
        cell("A3C, 8 cores, batch 60, gamma .99", None, runs, gamma=0.99, n_steps=60, **whole),
        cell("A3C, 8 cores, batch 30, gamma .99", None, runs, gamma=0.99, n_steps=30, **whole),
        cell("A3C, 4 cores, episodes of 8", None, runs, num_workers=4, **whole),
        cell("A3C, 8 cores, last step learned", None, runs, learn_last_step=True),
    ]


def genkidama_cells(runs: list[Run]) -> dict[tuple[float, float, int], Cell]:
    """Return the cells of tables 5.3 to 5.5 by alpha, beta and the thesis' number of updates."""
    runs = [run for run in runs if run.config["algorithm"] == "genkidama"]
    found = {}
    for row in _reference("tables_5_3_to_5_5"):
        alpha, beta, updates = float(row["alpha"]), float(row["beta"]), int(row["num_updates"])
        label = f"Genkidama, alpha {alpha:g}, beta {beta:g}"
        then = where("version", EXCHANGES_PER_UPDATE * updates)
        found[alpha, beta, updates] = cell(label, _thesis(row), runs, then, alpha=alpha, beta=beta)
    return found


def choices(runs: list[Run]) -> list[Cell]:
    """Return, of runs whose groups never received anything, the ends of the server and of groups.

    Alpha has no influence on a group, but its runs have the same seeds as those of other alphas.
    The best is so by its last episodes in training.
    """
    runs = [run for run in runs if run.config["algorithm"] == "genkidama"]
    rows = {
        "the server": last,
        "group 0": where("kind", "group 0"),
        "group 1": where("kind", "group 1"),
        "the best group": best_group,
    }
    return [
        cell(f"alpha {alpha:g}: {name}", None, runs, row, alpha=alpha, beta=0.0)
        for alpha in sorted({run.config["alpha"] for run in runs if run.config["beta"] == 0})
        for name, row in rows.items()
    ]


def _reference(name: str) -> list[dict[str, str]]:
    lines = (REFERENCE / f"genkidama_thesis_{name}.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _thesis(row: dict[str, str]) -> tuple[float, float]:
    return float(row["return_mean"]), float(row["return_std"])


def at_the_end(genkidama: dict[tuple[float, float, int], Cell]) -> dict[tuple[float, float], Cell]:
    """Return, by alpha and beta, the cells of the tables' last updates."""
    most = max(updates for *_, updates in genkidama)
    return {key[:2]: value for key, value in genkidama.items() if key[2] == most}


def compared(a3c: list[Cell], ends: dict[tuple[float, float], Cell]) -> list[Cell]:
    """Return table 5.6's rows, the best Genkidama first, then A3C's two that the thesis lacks."""
    return [ends[BEST], a3c[0], a3c[3], *a3c[-2:]]


def report(
    a3c: list[Cell], genkidama: dict[tuple[float, float, int], Cell], chosen: list[Cell]
) -> str:
    """Return all tables in Markdown."""
    ends = at_the_end(genkidama)
    parts = ["# LunarLander: the Genkidama thesis, and here", NOTE]
    parts += ["## Table 5.2: A3C", markdown(HEADER, [one.row() for one in a3c])]
    for number, alpha in zip(("5.3", "5.4", "5.5"), sorted({alpha for alpha, _ in ends})):
        rows = [
            [str(updates), *one.row()[1:], f"{beta:g}"]
            for (own, beta, updates), one in sorted(genkidama.items())
            if own == alpha
        ]
        header = ("updates", *HEADER[1:], "beta")
        parts += [f"## Table {number}: Genkidama, alpha {alpha:g}", markdown(header, rows)]
    parts += ["## Genkidama, at the end", markdown(HEADER, [one.row() for one in ends.values()])]
    rows = [one.row() for one in chosen]
    parts += ["## Groups that never receive: averaging or choosing", markdown(HEADER, rows)]
    best, *others = compared(a3c, ends)
    parts += ["## Table 5.6", markdown(HEADER, [one.row() for one in (best, *others)])]
    pairs = [
        *((best, other) for other in others),
        *((a3c[0], other) for other in a3c[1:]),
        *((best, other) for other in ends.values() if other is not best),
    ]
    likely = f"probability that a run is better [{CONFIDENCE:.0%}]"
    rows = [improvement(one, other) for one, other in pairs]
    parts += ["## Probabilities of improvement", markdown(("", "thesis' difference", likely), rows)]
    return "\n\n".join(parts) + "\n"


def draw_boxes(axes: Axes, shown: list[Cell]) -> None:
    """Draw a box of all runs' episodes per setting, each run's mean, and the thesis' mean."""
    boxed = [one.episodes.ravel() for one in shown]
    axes.boxplot(boxed, whis=(5, 95), showfliers=False, medianprops={"color": "C0"})
    for place, one in enumerate(shown, start=1):
        axes.plot([place - 0.3] * len(one.returns), one.returns, "o", color="C0", markersize=4)
        if one.thesis:
            mean, deviation = one.thesis
            axes.errorbar(place + 0.35, mean, deviation, fmt="D", color="C1", markersize=4)
    axes.axhline(SOLVED, color="grey", linestyle=":", linewidth=1)
    labels = [one.label.partition(", ")[2] for one in shown]
    axes.set_xticks(range(1, len(shown) + 1), labels, rotation=20, ha="right", fontsize=8)
    axes.set_ylabel("episode return")
    axes.grid(axis="y", alpha=0.3)


def draw_densities(axes: Axes, shown: list[Cell]) -> None:
    """Draw the density of each setting's episode returns, all runs together."""
    grid = np.linspace(-400, 350, 400)
    for one in shown:
        if one.episodes.size:
            label = f"{one.label} ({len(one.returns)} runs)"
            axes.plot(grid, gaussian_kde(one.episodes.ravel())(grid), label=label)
    axes.set_xlabel("episode return")
    axes.set_ylabel("density")
    if axes.lines:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def draw_curves(panels: np.ndarray, genkidama: dict[tuple[float, float, int], Cell]) -> None:
    """Draw tables 5.3 to 5.5, a row of ``panels`` each: every run, their mean, and the thesis."""
    for axes, own in zip(panels.flat, sorted({key[:2] for key in genkidama})):
        shown = {updates: one for (*pair, updates), one in genkidama.items() if (*pair,) == own}
        count = max(len(one.returns) for one in shown.values())
        if count:  # only where all of them have got: a line is one run's
            played = {at: one.returns for at, one in shown.items() if len(one.returns) == count}
            lines = np.stack([*played.values()])
            axes.plot([*played], lines, color="C0", alpha=0.4, linewidth=1)
            axes.plot([*played], lines.mean(axis=1), color="C0", label=f"{count} runs, mean")
        thesis = [one.thesis[0] for one in shown.values() if one.thesis]
        axes.plot([*shown], thesis, color="C1", label="thesis, one run")
        axes.axhline(SOLVED, color="grey", linestyle=":", linewidth=1)
        axes.set_title("alpha {:g}, beta {:g}".format(*own), fontsize=9)
        axes.grid(alpha=0.3)
    panels.flat[0].legend(fontsize=8)
    panels[-1, 1].set_xlabel("updates (two exchanges each)")
    panels[1, 0].set_ylabel("mean return of a snapshot's episodes")


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write tables.md and the figures into ``folder``; return their paths."""
    a3c, genkidama = a3c_cells(runs), genkidama_cells(runs)
    ends = at_the_end(genkidama)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "tables.md"]
    paths[0].write_text(report(a3c, genkidama, choices(runs)), encoding="utf-8")
    for name, title, draw, shown in (
        ("figure_5_2", "A3C", draw_boxes, a3c),
        ("figure_5_3", "Genkidama, 2 groups of 4", draw_boxes, [*ends.values()]),
        ("figure_5_4", "all episodes", draw_densities, compared(a3c, ends)),
    ):
        figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
        draw(axes, shown)
        about = "; dots: runs, diamonds: thesis" if draw is draw_boxes else ""
        axes.set_title(f"LunarLander, {title}{about}", fontsize=10)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=130)
        pyplot.close(figure)
    figure, panels = pyplot.subplots(
        3, 3, figsize=(9, 7.5), sharex=True, sharey=True, layout="constrained"
    )
    draw_curves(panels, genkidama)
    paths.append(folder / "tables_5_3_to_5_5.png")
    figure.savefig(paths[-1], dpi=130)
    pyplot.close(figure)
    return paths


main = command(
    "genkidama_tables",
    "Write the thesis' tables and figures, with ours beside, from evaluated run FILES.",
    JOBS,
    write,
)

if __name__ == "__main__":
    main()
