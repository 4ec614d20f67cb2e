"""Genkidama's exchange as a study of its own: strengths, groups, periods, rules, precisions.

    python -m analysis.genkidama_exchange [FILE...] [--output results/genkidama]

FILEs are runs of jobs/lunar_lander_exchange_strengths.toml and lunar_lander_exchange.toml, single
or collected, after ``mpi_rl evaluate``. A run's return is the mean over the episodes of the
snapshot at its budget; without any exchange, of the group whose own last episodes were best. The
tables go into exchange.md, with every seed and intervals as in ``genkidama_tables``.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from analysis import figures, tables
from analysis.figures import draw_cells, pyplot
from analysis.runs import Cell, best_group, cell, command, evaluated, in_order_of_seeds
from analysis.statistics import chance, mean_interval
from analysis.tables import HEADER, NOTE, improvement, markdown, mean_with_interval, row
from mpi_rl.config import NUM_BYTES, Config
from mpi_rl.records.curves import CONFIDENCE, by_setting
from mpi_rl.records.runfile import Run

JOBS = "lunar_lander_exchange_strengths", "lunar_lander_exchange"


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


def at_budget(run: Run) -> int:
    """Return the row of the snapshot that was taken when the budget was spent.

    It is not the last: workers finish the episodes that they have begun, and those that exchange
    rarely have more of them.
    """
    return run.tables["snapshots"]["kind"].tolist().index("periodic")


def cells(runs: list[Run]) -> dict[Config, Cell]:
    """Return by settings what the snapshots at the budget got, in the order of seeds."""
    return {
        config: Cell(label(config), None, np.stack([evaluated(run, at_budget(run)) for run in of]))
        for config, of in by_setting(in_order_of_seeds(runs)).items()
    }


def megabytes(runs: list[Run]) -> float:
    """Return a run's payload: parameters and gradients, both ways, on average.

    Nothing is sent where the server shares its node's memory.
    """
    pushes = np.mean([run.tables["workers"]["num_pushes"].sum() for run in runs])
    dtype = runs[0].config.exchange_dtype
    return float(2 * pushes * NUM_BYTES[dtype] * runs[0].snapshot_params.shape[1] / 1e6)


def report(
    grid: dict[Config, Cell],
    best: list[Cell],
    variants: dict[Config, Cell],
    payloads: list[float],
    reference: Cell,
) -> str:
    """Return all tables in Markdown.

    ``payloads`` are the variants', in MB; all are compared with ``reference``.
    """
    header, likely = (HEADER[0], *HEADER[2:]), f"probability of improvement [{CONFIDENCE:.0%}] (p)"
    compared = (
        f"Probabilities of improvement are against {reference.label}, of which both jobs have"
        f" {len(reference.returns)} runs: {row(reference)[2]}. p is of the exact permutation test"
        " by ranks, not corrected for the number of comparisons."
    )
    rows = [[*_without_thesis(one), _against(one, reference)] for one in grid.values()]
    parts = ["# Genkidama's exchange by itself", NOTE, compared]
    parts += ["## Strengths, alpha/beta", markdown((*header, likely), rows)]
    if best:
        averaged = [one for config, one in grid.items() if config.beta == 0]
        rows = [_without_thesis(one) for one in (*averaged, *best)]
        parts += ["## Nothing is ever received: averaging or choosing", markdown(header, rows)]
        pairs = zip(best, averaged)
        gains = np.concatenate([chosen.returns - mean.returns for chosen, mean in pairs])
        parts += [
            f"Within a run the best group gets {mean_with_interval(gains, '.1f')} more than the"
            f" average, over all {len(gains)} runs."
        ]
    if variants:
        rows = [
            [*_without_thesis(one), f"{payload:.1f}", _against(one, reference)]
            for one, payload in zip(variants.values(), payloads)
        ]
        parts += ["## Other exchanges", markdown((*header, "MB of payload", likely), rows)]
    return "\n\n".join(parts) + "\n"


def _against(one: Cell, other: Cell) -> str:
    """Return how likely a run of ``one`` is better than one of ``other``, and its p."""
    if one.label == other.label:
        return ""
    p = chance(one.returns, other.returns)
    return f"{improvement(one, other)[2]} (p {p:.3f})"


def _without_thesis(one: Cell) -> list[str]:
    label, _, *cells = row(one)
    return [label, *cells]


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


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write exchange.md and exchange.png into ``folder``; return their paths."""
    of = {job: [run for run in runs if run.attributes["job"] == job] for job in JOBS}
    strengths, others = of.values()
    grid, variants = cells(strengths), cells(others)
    best = [
        cell(f"{alpha:g}/0: the best group", None, strengths, best_group, alpha=alpha, beta=0.0)
        for alpha in sorted({config.alpha for config in grid if config.beta == 0})
    ]
    pools, both = by_setting(others), cells(runs)
    reference = both[next(iter(variants or both))]
    payloads = [megabytes(pools[config]) for config in variants]
    paths = [folder / "exchange.md", folder / "exchange.png"]
    tables.save(paths[0], report(grid, best, variants, payloads, reference))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    draw_strengths(left, grid)
    draw_cells(right, [*variants.values(), *best])
    steps = {run.config.total_steps for run in runs}
    left.set_title(f"LunarLander, {max(steps, default=0):,} steps, 2 groups of 4: mean return")
    right.set_title(f"Other exchanges (alpha/beta): runs, mean, {CONFIDENCE:.0%} interval")
    figures.save(figure, paths[1])
    return paths


main = command(
    "genkidama_exchange", "Compare Genkidama's exchanges, from evaluated run FILES.", JOBS, write
)

if __name__ == "__main__":
    main()
