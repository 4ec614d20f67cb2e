"""Tables 5.2 to 5.6 and figures 5.2 to 5.4 of the Genkidama thesis beside ours, with intervals.

    python -m analysis.genkidama_tables [FILE...] [--output results/genkidama]

FILEs are runs of jobs/lunar_lander_thesis_a3c.toml and lunar_lander_thesis_genkidama.toml, single
or collected, after ``mpi_rl evaluate``. A run's return is the mean of its snapshot's episodes. A
setting has one run per seed. Its row has the mean over runs with a bootstrap interval, how many
runs solve the game with a binomial interval, and each run's return. The thesis has one run per
setting; its deviation is that of episodes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import gaussian_kde

from analysis import figures, tables
from analysis.figures import pyplot
from analysis.runs import SOLVED, Cell, best_group, cell, command, last, reference
from analysis.tables import HEADER, NOTE, improvement, markdown, row
from mpi_rl.records.curves import CONFIDENCE
from mpi_rl.records.runfile import Run

JOBS = "lunar_lander_thesis_a3c", "lunar_lander_thesis_genkidama"
EXCHANGES_PER_UPDATE = 2  # the thesis counts one of each of its two groups as one update
EPISODES_PER_WORKER = 2000  # the thesis' budget
BEST = 0.9, 0.0  # alpha and beta of the thesis' best Genkidama


def where(column: str, value: int | str) -> Callable[[Run], int | None]:
    """Return what finds the row of a run's first snapshot with a value; None if it has none."""

    def found(run: Run) -> int | None:
        rows = np.flatnonzero(run.tables["snapshots"][column] == value)
        return rows[0] if len(rows) else None

    return found


def a3c_cells(runs: list[Run]) -> list[Cell]:
    """Return table 5.2's rows, then four that the thesis lacks.

    Two have gamma as it is printed. One has 4 workers and the episodes of 8. In one, 8 workers
    also learn an episode's last step, which in the thesis only Genkidama does.
    """
    runs = [run for run in runs if run.config.algorithm == "a3c"]
    found = []
    for line in reference("genkidama_thesis_tables_5_2_and_5_6"):
        if line["table"] == "5.2":
            workers = int(line["num_workers"])
            settings: dict[str, Any] = dict(
                num_workers=workers,
                gamma=float(line["gamma"]),
                n_steps=int(line["batch_size"]),
                total_episodes=EPISODES_PER_WORKER * workers,
                learn_last_step=False,
            )
            found.append(cell(f"A3C, {line['label']}", _thesis(line), runs, **settings))
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
    runs = [run for run in runs if run.config.algorithm == "genkidama"]
    found = {}
    for line in reference("genkidama_thesis_tables_5_3_to_5_5"):
        alpha, beta, updates = float(line["alpha"]), float(line["beta"]), int(line["num_updates"])
        label = f"Genkidama, alpha {alpha:g}, beta {beta:g}"
        then = where("version", EXCHANGES_PER_UPDATE * updates)
        found[alpha, beta, updates] = cell(label, _thesis(line), runs, then, alpha=alpha, beta=beta)
    return found


def choices(runs: list[Run]) -> list[Cell]:
    """Return the last snapshots of server and groups, of runs whose groups never receive.

    Alpha has no influence on a group there, and runs of every alpha have the same seeds. The best
    group is the one whose last episodes in training were best.
    """
    runs = [run for run in runs if run.config.algorithm == "genkidama"]
    rows = {
        "the server": last,
        "group 0": where("kind", "group 0"),
        "group 1": where("kind", "group 1"),
        "the best group": best_group,
    }
    return [
        cell(f"alpha {alpha:g}: {name}", None, runs, chosen, alpha=alpha, beta=0.0)
        for alpha in sorted({run.config.alpha for run in runs if run.config.beta == 0})
        for name, chosen in rows.items()
    ]


def _thesis(line: dict[str, str]) -> tuple[float, float]:
    return float(line["return_mean"]), float(line["return_std"])


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
    parts += ["## Table 5.2: A3C", markdown(HEADER, [row(one) for one in a3c])]
    for number, alpha in zip(("5.3", "5.4", "5.5"), sorted({alpha for alpha, _ in ends})):
        rows = [
            [str(updates), *row(one)[1:], f"{beta:g}"]
            for (own, beta, updates), one in sorted(genkidama.items())
            if own == alpha
        ]
        header = ("updates", *HEADER[1:], "beta")
        parts += [f"## Table {number}: Genkidama, alpha {alpha:g}", markdown(header, rows)]
    parts += ["## Genkidama, at the end", markdown(HEADER, [row(one) for one in ends.values()])]
    rows = [row(one) for one in chosen]
    parts += ["## Groups that never receive: averaging or choosing", markdown(HEADER, rows)]
    best, *others = compared(a3c, ends)
    parts += ["## Table 5.6", markdown(HEADER, [row(one) for one in (best, *others)])]
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
        if count:  # only updates that all runs have reached: a line is one run's
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
    paths = [folder / "tables.md"]
    tables.save(paths[0], report(a3c, genkidama, choices(runs)))
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
        figures.save(figure, paths[-1])
    figure, panels = pyplot.subplots(
        3, 3, figsize=(9, 7.5), sharex=True, sharey=True, layout="constrained"
    )
    draw_curves(panels, genkidama)
    paths.append(folder / "tables_5_3_to_5_5.png")
    figures.save(figure, paths[-1])
    return paths


main = command(
    "genkidama_tables",
    "Write the thesis' tables and figures, with ours beside, from evaluated run FILES.",
    JOBS,
    write,
)

if __name__ == "__main__":
    main()
