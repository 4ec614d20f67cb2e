"""Does more parallelism hurt learning, and does it help to add workers later?

    python -m analysis.worker_scaling [FILE...] [--output results/worker_scaling]

FILEs are runs of jobs/flappy_scaling.toml and flappy_growth.toml (the slide deck "A3C parallelism
vs learning efficiency", digitised beside ours) and of jobs/space_invaders_scaling.toml, single or
collected. Each game has a figure and tables: scores against episodes, steps, updates and time, with
the steps at which workers joined; who reached a score and when; and every two numbers of workers
compared, each with a p.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import figures, statistics, tables
from analysis.runs import (
    CERTAIN,
    GRID_POINTS,
    MIN_EPISODES,
    binned,
    check_complete,
    command,
    curves_of_means,
    ends,
    in_order_of_seeds,
    joins,
    mean_staleness,
    reached,
    reference,
)
from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.records.curves import CONFIDENCE, by_setting
from mpi_rl.records.runfile import Run

Pools = dict[str, list[Run]]  # runs by number of workers, as ``label`` writes it

JOBS = "flappy_scaling", "flappy_growth", "space_invaders_scaling"
EPISODES, UPDATES = (1e3, "episodes (thousands)"), (1e3, "updates (thousands)")
STEPS, MINUTES = (1e6, "steps (millions)"), (60.0, "minutes of training")


@dataclass(frozen=True)
class Game:
    """What a study asks of a game's runs."""

    title: str
    decay: float  # of the running average
    scores: tuple[float, ...]  # that runs may reach
    is_linear: bool  # axis of scores
    last_episodes: int  # whose mean is a run's final score
    units: dict[str, tuple[float, str]]  # of the axes of runs.along, and labels; the budget's first

    @property
    def budget_axis(self) -> str:
        """The axis along which runs are compared first."""
        return next(iter(self.units))


# The deck's own moving average has weight 0.04. Its best is about 200 by 100,000 episodes.
FLAPPY_BIRD = Game(
    title="Flappy Bird",
    decay=0.96,
    scores=(0, 10, 50),
    is_linear=False,
    last_episodes=1000,
    units={"episode": EPISODES, "step": STEPS, "wall_time_s": MINUTES},
)
SPACE_INVADERS = Game(
    title="Space Invaders",
    decay=0.98,
    scores=(200, 250),
    is_linear=True,
    last_episodes=100,
    units={"step": STEPS, "version": UPDATES, "wall_time_s": MINUTES},
)
GAMES = {"FlappyBird-v0": FLAPPY_BIRD, "space_invaders": SPACE_INVADERS}


def label(config: Config) -> str:
    """Return a setting's numbers of workers, as the deck writes them."""
    if config.growth == "none":
        return f"{config.num_workers} workers"
    return f"{config.initial_workers} to {config.num_workers}"


def final_score(game: Game, run: Run, episodes: int | None = None) -> float:
    """Return the mean of the last of a run's first ``episodes``, or of all."""
    return float(run.episodes["episode_return"][:episodes][-game.last_episodes :].mean())


def summary(game: Game, pools: Pools) -> str:
    """Return a row per number of workers: final scores, shares that reached a score, speed."""
    header = ["workers", f"last {game.last_episodes:,} episodes: mean [{CONFIDENCE:.0%}]", "seeds"]
    header += [f"reach {score:g}" for score in game.scores]
    header += ["steps/s", "episodes", "staleness", "certain"]
    rows = []
    for name, runs in pools.items():
        scores = np.array([final_score(game, run) for run in runs])
        row = [name, tables.mean_with_interval(scores, ".1f")]
        row.append(", ".join(f"{score:.1f}" for score in scores))
        for score in game.scores:
            at = [reached(run, score, "step", game.decay) for run in runs]
            row.append(tables.share_with_interval(np.isfinite(at)))
        rates = [run.attributes["step"] / run.attributes["wall_time_s"] for run in runs]
        row += [f"{np.mean(rates):,.0f}", f"{np.mean([ends(run, 'episode') for run in runs]):,.0f}"]
        row.append(f"{np.mean([mean_staleness(run) for run in runs]):.1f}")
        certain = [np.mean(run.tables["intervals"]["entropy"] < CERTAIN) for run in runs]
        row.append(", ".join(f"{100 * share:.0f} %" for share in certain))
        rows.append(row)
    return tables.markdown(header, rows)


def scores_compared(game: Game, pools: Pools) -> str:
    """Return every two numbers of workers: final scores compared at the smaller budget's end."""
    header = ["", "higher, of pairs of runs", "difference of means", "p"]
    rows = []
    for one, other in itertools.combinations(pools, 2):
        both = [*pools[one], *pools[other]]
        seen = min((n for run in both if (n := run.config.total_episodes)), default=None)
        first, second = (
            np.array([final_score(game, run, seen) for run in pools[name]]) for name in (one, other)
        )
        share, difference = statistics.probability_of_improvement, statistics.difference_of_means
        row = [f"{one} over {other}", tables.with_interval(share, first, second, ".2f")]
        row.append(tables.with_interval(difference, first, second, "+.1f"))
        has_test = min(len(first), len(second)) > 1
        rows.append([*row, f"{statistics.chance(first, second):.3f}" if has_test else ""])
    text = tables.markdown(header, rows)
    if fixed := fixed_numbers(pools):
        scores = [[final_score(game, run) for run in pools[name]] for name in fixed]
        p = statistics.chance_of_all(scores)
        text += f"\n\nThat all fixed numbers of workers do the same: p {p:.4f} (Friedman's test)."
    return text


def fixed_numbers(pools: Pools) -> list[str]:
    """Return the fixed numbers of workers if all have the same seeds, else none.

    There are at least two of them, and two seeds.
    """
    names = [name for name, runs in pools.items() if runs[0].config.growth == "none"]
    seeds = {tuple(run.config.seed for run in pools[name]) for name in names}
    return names if len(names) > 1 and len(seeds) == 1 and len(*seeds) > 1 else []


def times(game: Game, pools: Pools, score: float) -> str:
    """Return when each run reached ``score``, and who did so sooner of every two numbers."""
    places = {
        (name, axis): np.array([reached(run, score, axis, game.decay) for run in runs])
        for name, runs in pools.items()
        for axis in game.units
    }
    rows = []
    for name in pools:
        row = [name]
        for axis, (unit, _) in game.units.items():
            found = places[name, axis] / unit
            row.append(", ".join("never" if np.isinf(at) else f"{at:.3g}" for at in found))
        rows.append(row)
    header = ["workers", *(text for _, text in game.units.values())]
    parts = [tables.markdown(header, rows), _times_compared(game, pools, places)]
    if fixed := fixed_numbers(pools):
        orders = [[places[name, axis] for name in fixed] for axis in game.units]
        trends = [statistics.chance_of_trend(order) for order in orders]
        parts.append(
            "That fixed numbers of workers, in their order, get there neither sooner and sooner nor"
            f" later and later: p {', '.join(f'{p:.4f}' for p in trends)} (Page's test)."
        )
    return "\n\n".join(parts)


def _times_compared(game: Game, pools: Pools, places: dict[tuple[str, str], np.ndarray]) -> str:
    """Return who was sooner of every two numbers, by ``places`` of name and axis.

    Nothing after the end of the first of their runs counts.
    """
    last = {(name, axis): min(ends(run, axis) for run in pools[name]) for name, axis in places}
    rows = []
    for one, other in itertools.combinations(pools, 2):
        row = [f"{one} before {other}"]
        for axis in game.units:
            seen = min(last[one, axis], last[other, axis])  # of every run
            first, second = (
                np.where(at <= seen, at, np.inf) for at in (places[one, axis], places[other, axis])
            )
            text = tables.with_interval(statistics.sooner, first, second, ".2f")
            if min(len(first), len(second)) > 1:
                text += f", p {statistics.chance(first, second):.3f}"
            row.append(text)
        rows.append(row)
    header = ["", *(f"sooner in {text.split(' (')[0]}" for _, text in game.units.values())]
    return tables.markdown(header, rows)


def report(game: Game, pools: Pools) -> str:
    """Return a game's tables in Markdown."""
    note = (
        f"Runs end after {tables.budgets(pools)}. A score is reached when the running average of"
        f" returns (decay {game.decay:g}) gets there. Sooner: the share of pairs of runs in which"
        " the first is sooner, ties as halves; what happened after the first of these runs had"
        " ended does not count, and a run that had not got there by then is later than any that"
        " had. p is of the exact permutation test by ranks, not corrected for the number of"
        " comparisons. Means, differences and shares of pairs have percentile bootstraps over"
        " runs, too narrow for so few and without a doubt where every run of one is above every"
        " run of the other;"
        f" shares of runs have Clopper-Pearson intervals. Certain: the share of a run's intervals"
        f" whose mean entropy is below {CERTAIN:g} nats. Runs of one seed begin with the same"
        " parameters: what holds, holds of these. But for Friedman's and Page's, whose permutations"
        " are within seeds, the tests do not use that."
    )
    parts = [f"# {game.title}: numbers of workers", note, summary(game, pools)]
    parts += [
        f"## Scores\n\nMeans of the last {game.last_episodes:,} episodes, where the smaller of two"
        f" budgets of episodes ends, or the run; pairs and differences with {CONFIDENCE:.0%}"
        " intervals.",
        scores_compared(game, pools),
    ]
    for score in game.scores:
        parts += [f"## A score of {score:g}", times(game, pools, score)]
    return "\n\n".join(parts) + "\n"


def draw(game: Game, pools: Pools, path: Path) -> None:
    """Draw a game's figure: a panel for each number of workers, and below what compares them."""
    figure, above, below = figures.panels(len(pools))
    colours = {name: f"C{number}" for number, name in enumerate(pools)}
    for axes, (name, runs) in zip(above, pools.items()):
        draw_runs(axes, game, name, runs, colours[name])
    _, *others = game.units
    for axes, axis in zip(below, others):
        for name, runs in pools.items():
            grid, levels = curves_of_means(runs, axis)
            at = grid / game.units[axis][0]
            figures.draw_mean(axes, at, levels, colours[name], has_band=False)
        _score_axis(axes, game, axis)
        axes.set_title("means", fontsize=10)
    unit, text = game.units[game.budget_axis]
    last = [max(ends(run, game.budget_axis) for run in runs) / unit for runs in pools.values()]
    for axes, score in zip(below[len(others) :], game.scores[-2:]):
        places = [
            [reached(run, score, game.budget_axis, game.decay) / unit for run in runs]
            for runs in pools.values()
        ]
        figures.draw_shares(axes, places, last)
        axes.set_xlabel(text)
        axes.set_title(f"share of all runs that have reached {score:g}", fontsize=9)
    for axes in (*above[:: len(below)], below[0]):
        axes.set_ylabel("return")
    handles = [Line2D([], [], color=colours[name], label=name) for name in pools]
    below[-1].legend(handles=handles, fontsize=7, loc="upper left")
    figure.suptitle(
        f"{game.title}: returns of {sum(map(len, pools.values()))} runs, thin, means of"
        f" 1/{GRID_POINTS} of a run's episodes, {MIN_EPISODES} or more; mean over runs (one that"
        f" has ended stands where it ended) with its {CONFIDENCE:.0%} bootstrap interval; ticks:"
        " workers that joined",
        fontsize=10,
    )
    figures.save(figure, path, dpi=110)


def draw_runs(axes: Axes, game: Game, name: str, runs: list[Run], colour: str) -> None:
    """Draw a setting's runs, their mean and its interval, who joined, and the deck's run."""
    axis = game.budget_axis
    unit = game.units[axis][0]
    for run in runs:
        at, curve = binned(run, axis)
        axes.plot(at / unit, curve, color=colour, alpha=0.5, linewidth=0.7)
        late = joins(run, axis)
        axes.plot(late / unit, np.interp(late, at, curve), "|", color="black", markersize=5)
    grid, levels = curves_of_means(runs, axis)
    figures.draw_mean(axes, grid / unit, levels, colour)
    if game is FLAPPY_BIRD and (points := deck().get(name)) is not None:
        axes.plot(*points.T, "k--o", markersize=3, linewidth=0.9, label="the deck (digitised)")
        axes.legend(fontsize=7, loc="upper left")
    axes.set_title(name, fontsize=10)
    _score_axis(axes, game, axis)


def _score_axis(axes: Axes, game: Game, axis: str) -> None:
    if not game.is_linear:
        axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel(game.units[axis][1])
    axes.grid(alpha=0.3)


def deck() -> dict[str, np.ndarray]:
    """Return the deck's curves by ``label``: thousands of episodes and scores, (N, 2)."""
    found: dict[str, list[list[float]]] = {}
    for row in reference("flappy_worker_scaling"):
        point = [float(row["episodes"]) / 1e3, float(row["mean_score"])]
        name = row["series"].replace("->", " to ")
        found.setdefault(name if "to" in name else f"{name} workers", []).append(point)
    return {name: np.array(points) for name, points in found.items()}


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write <game>.md and <game>.png for each game in ``folder``; return their paths."""
    paths = []
    for env, game in GAMES.items():
        chosen = [run for run in runs if run.config.env == env]
        if not chosen:
            continue
        pools = _pools(chosen)
        path = folder / f"{env.lower().removesuffix('-v0')}.md"
        tables.save(path, report(game, pools))
        draw(game, pools, path.with_suffix(".png"))
        paths += [path, path.with_suffix(".png")]
    return paths


def _pools(runs: Sequence[Run]) -> Pools:
    """Return runs by number of workers, growing ones last, each in the order of its seeds.

    Raises UserError for a run that is not complete, and if other settings differ, too.
    """
    for run in runs:
        check_complete(run)
    pools = by_setting(in_order_of_seeds(runs))
    order = sorted(pools, key=lambda one: (one.growth != "none", one.num_workers))
    found: Pools = {}
    for config in order:
        if label(config) in found:
            raise UserError(
                f"{label(config)}: runs of different settings: give those of one job alone, without"
                " settings of their own"
            )
        found[label(config)] = pools[config]
    return found


main = command(
    "worker_scaling",
    "Compare numbers of workers, and workers added while running.",
    JOBS,
    write,
    "worker_scaling",
)

if __name__ == "__main__":
    main()
