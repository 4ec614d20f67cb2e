"""Genkidama's exchange as a study of its own: strengths, groups, periods, rules, precisions.

    python -m analysis.genkidama_exchange [FILE...] [--output results/genkidama]

FILEs are runs of jobs/lunar_lander_exchange_strengths.toml and lunar_lander_exchange.toml, single
or collected, after ``mpi_rl evaluate``. A run's return is the mean over its last snapshot's
episodes; without any exchange, over those of the group whose own last episodes were best. The
tables go into exchange.md, with every seed and intervals as in ``genkidama_tables``.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import click
import matplotlib
import numpy as np

from analysis.cells import (
    CONFIDENCE,
    HEADER,
    Cell,
    best_group,
    evaluated,
    improvement,
    markdown,
    mean_interval,
)
from mpi_rl.config import NUM_BYTES, Config, config_from_json
from mpi_rl.runfile import Run, read_runs

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

JOBS = "lunar_lander_exchange_strengths", "lunar_lander_exchange"
FILES = tuple(Path("results", f"{job}.h5") for job in JOBS)


def label(config: Config) -> str:
    """Return what is special to a setting, in words."""
    if config.algorithm == "a3c":
        return f"A3C, {config.num_workers} workers"
    groups, strengths = config.num_workers // config.group_size, f"{config.alpha:g}/{config.beta:g}"
    words = [f"{groups} group{'s' * (groups > 1)} of {config.group_size}, {strengths}"]
    words += ["elastic"] if config.elastic else []
    words += [f"every {config.exchange_period} episodes"] if config.exchange_period > 1 else []
    words += [config.exchange_dtype] if config.exchange_dtype != "float32" else []
    return ", ".join(words)


def by_setting(runs: list[Run]) -> dict[Config, list[Run]]:
    """Return runs in the order of their seeds, by their settings with seed 0."""
    found: dict[Config, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        config = config_from_json(run.attributes["config"])
        found.setdefault(dataclasses.replace(config, seed=0), []).append(run)
    return found


def cells(runs: list[Run], row: Callable[[Run], int] = lambda run: -1) -> dict[Config, Cell]:
    """Return what the runs' last snapshots got, or those in a ``row``, by the runs' settings."""
    return {
        config: Cell(label(config), None, np.stack([evaluated(run, row(run)) for run in of]))
        for config, of in by_setting(runs).items()
    }


def megabytes(runs: list[Run]) -> float:
    """Return what the server and groups, or A3C's workers, send each other in a run, on average."""
    pushes = np.mean([run.tables["workers"]["num_pushes"].sum() for run in runs])
    dtype = config_from_json(runs[0].attributes["config"]).exchange_dtype
    return float(2 * pushes * NUM_BYTES[dtype] * runs[0].snapshot_params.shape[1] / 1e6)


def report(strengths: list[Run], others: list[Run]) -> str:
    """Return all tables in Markdown."""
    header = (HEADER[0], *HEADER[2:])
    grid, variants = cells(strengths), cells(others)
    parts = ["# Genkidama's exchange by itself", "## Strengths, alpha/beta"]
    parts += [markdown(header, [_without_thesis(one) for one in grid.values()])]
    alone = [run for run in strengths if run.config["beta"] == 0]
    if alone:
        chosen = cells(alone, best_group)
        rows = [
            [f"{one.label}: {what}", *_without_thesis(one)[1:]]
            for what, found in (("the server", cells(alone)), ("best group", chosen))
            for one in found.values()
        ]
        parts += ["## Nothing is ever received: averaging or choosing", markdown(header, rows)]
    if variants:
        reference = next(iter(variants.values()))
        likely = f"probability of improvement [{CONFIDENCE:.0%}]"
        rows = [
            [
                *_without_thesis(one),
                f"{megabytes(by_setting(others)[config]):.1f}",
                improvement(one, reference)[2],
            ]
            for config, one in variants.items()
        ]
        parts += [f"## Other exchanges, against {reference.label}"]
        parts += [markdown((*header, "MB sent", likely), rows)]
    return "\n\n".join(parts) + "\n"


def _without_thesis(one: Cell) -> list[str]:
    row = one.row()
    return [row[0], *row[2:]]


def draw_strengths(axes: Axes, grid: dict[Config, Cell]) -> None:
    """Draw a map of the mean return over alpha and beta."""
    alphas = sorted({config.alpha for config in grid})
    betas = sorted({config.beta for config in grid})
    means = np.full((len(betas), len(alphas)), np.nan)
    for config, one in grid.items():
        place = betas.index(config.beta), alphas.index(config.alpha)
        means[place] = one.returns.mean()
        low, high = mean_interval(one.returns) or (np.nan, np.nan)
        text = f"{means[place]:.0f}\n[{low:.0f}, {high:.0f}]"
        axes.text(*place[::-1], text, ha="center", va="center", fontsize=8)
    axes.imshow(means, origin="lower", cmap="viridis", alpha=0.6, aspect="auto")
    axes.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_xlabel("alpha: the group's share in the server's parameters")
    axes.set_ylabel("beta: the server's share in the group's")


def draw_variants(axes: Axes, shown: list[Cell]) -> None:
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


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write exchange.md and exchange.png into ``folder``; return their paths."""
    of = {job: [run for run in runs if run.attributes["job"] == job] for job in JOBS}
    strengths, others = of.values()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "exchange.md", folder / "exchange.png"]
    paths[0].write_text(report(strengths, others), encoding="utf-8")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    draw_strengths(left, cells(strengths))
    shown = [*cells(others).values()]
    alone = [run for run in strengths if run.config["beta"] == 0]
    for one in cells(alone, best_group).values():
        shown.append(Cell(f"{one.label}: best group", None, one.episodes))
    draw_variants(right, shown)
    steps = {run.config["total_steps"] for run in runs}
    left.set_title(f"LunarLander, {max(steps, default=0):,} steps, 2 groups of 4: mean return")
    right.set_title(f"Other exchanges (alpha/beta): runs, mean, {CONFIDENCE:.0%} interval")
    figure.savefig(paths[1], dpi=130)
    pyplot.close(figure)
    return paths


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("results", "genkidama"),
    show_default=True,
)
def main(files: tuple[Path, ...], output: Path) -> None:
    """Compare Genkidama's exchanges, from evaluated run FILES.

    Without FILES the two collected ones in results/.
    """
    try:
        runs = [run for path in files or FILES for run in read_runs(path)]
        for path in write(runs, output):
            print(path)
    except (ValueError, OSError) as error:
        print(f"genkidama_exchange: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
