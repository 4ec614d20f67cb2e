"""Does more parallelism hurt learning, and does it help to add workers later?

    python -m analysis.worker_scaling [FILE...] [--output results/worker_scaling]

FILEs are runs of jobs/flappy_scaling.toml and flappy_growth.toml (the deck "A3C parallelism vs
learning efficiency", digitised beside ours) and of jobs/space_invaders_scaling.toml, single or
collected. A picture and tables for each game: scores against episodes, steps and hours, with the
steps at which workers joined; who reached a score and when; and every two numbers of workers
compared, with the share of chance.
"""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import binomtest

from analysis.cells import (
    CONFIDENCE,
    bootstrapped,
    by_setting,
    command,
    in_brackets,
    markdown,
    mean_interval,
    probability_of_improvement,
)
from analysis.learning_curves import interval_of_mean
from analysis.reaching import (
    AXES,
    along,
    chance,
    chance_of_all,
    chance_of_trend,
    ends,
    reached,
    sooner,
)
from mpi_rl.config import Config, budget
from mpi_rl.inspect import moves
from mpi_rl.runfile import Run

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

JOBS = "flappy_scaling", "flappy_growth", "space_invaders_scaling"
REFERENCE = Path(__file__).parent / "reference"
EPISODES, STEPS = (1e3, "episodes (thousands)"), (1e6, "steps (millions)")
MINUTES, HOURS = (60.0, "minutes of training"), (3600.0, "hours of training")
GRID_POINTS = 150
COLUMNS = 4  # of a picture
LAST_EPISODES = 1000  # that a run's final score is the mean of
CERTAIN = 0.01  # mean entropy, in nats, below which a policy hardly ever tries anything else


@dataclass(frozen=True)
class Game:
    """What is asked of a game's runs."""

    title: str
    decay: float  # of the running average
    scores: tuple[float, ...]  # that runs may reach
    is_linear: bool  # axis of scores
    budget_axis: str  # of AXES, along which runs are to be compared first
    time: tuple[float, str]  # unit of training's, in seconds

    @property
    def units(self) -> dict[str, tuple[float, str]]:
        """Return the unit and the label of each of AXES."""
        return dict(zip(AXES, (EPISODES, STEPS, self.time)))


# The deck's own moving average has weight .04. Its best is about 200 by 100,000 episodes.
FLAPPY_BIRD = Game("Flappy Bird", 0.96, (0, 10, 50), False, "episode", MINUTES)
SPACE_INVADERS = Game("Space Invaders", 0.98, (200, 250), True, "step", HOURS)
GAMES = {"FlappyBird-v0": FLAPPY_BIRD, "space_invaders": SPACE_INVADERS}


def label(config: Config) -> str:
    """Return a setting's numbers of workers, as the deck writes them."""
    if config.growth == "none":
        return f"{config.num_workers} workers"
    return f"{config.initial_workers} to {config.num_workers}"


def final_score(run: Run, episodes: int | None = None) -> float:
    """Return the mean of the last of a run's first ``episodes``, or of all."""
    return float(run.episodes["episode_return"][:episodes][-LAST_EPISODES:].mean())


def summary(game: Game, pools: dict[str, list[Run]]) -> str:
    """Return a row per number of workers: final scores, who reached which score, speed."""
    header = ["workers", f"last {LAST_EPISODES:,} episodes: mean [{CONFIDENCE:.0%}]", "seeds"]
    header += [f"reach {score:g}" for score in game.scores]
    header += ["steps/s", "episodes", "staleness", "certain"]
    rows = []
    for name, runs in pools.items():
        scores = np.array([final_score(run) for run in runs])
        row = [name, f"{scores.mean():.1f}{in_brackets(mean_interval(scores), '.1f')}"]
        row.append(", ".join(f"{score:.1f}" for score in scores))
        for score in game.scores:
            there = sum(np.isfinite(reached(run, score, "step", game.decay)) for run in runs)
            share = binomtest(there, len(runs)).proportion_ci(CONFIDENCE)
            row.append(f"{there} of {len(runs)}{in_brackets((share.low, share.high), '.2f')}")
        rates = [run.attributes["step"] / run.attributes["wall_time_s"] for run in runs]
        row += [f"{np.mean(rates):,.0f}", f"{np.mean([ends(run, 'episode') for run in runs]):,.0f}"]
        row.append(f"{np.mean([mean_staleness(run) for run in runs]):.1f}")
        certain = [np.mean(run.tables["intervals"]["entropy"] < CERTAIN) for run in runs]
        row.append(", ".join(f"{100 * share:.0f} %" for share in certain))
        rows.append(row)
    return markdown(header, rows)


def scores_compared(pools: dict[str, list[Run]]) -> str:
    """Return every two numbers of workers: whose scores are higher by the smaller budget's end."""
    header = ["", "higher, of pairs of runs", "difference of means", "p"]
    rows = []
    for one, other in itertools.combinations(pools, 2):
        both = [*pools[one], *pools[other]]
        seen = min((n for run in both if (n := run.config.get("total_episodes"))), default=None)
        first, second = (
            np.array([final_score(run, seen) for run in pools[name]]) for name in (one, other)
        )
        share = probability_of_improvement(first, second)
        row = [f"{one} over {other}", f"{share:.2f}", f"{_difference(first, second):+.1f}", ""]
        if min(len(first), len(second)) > 1:
            row[1] += in_brackets(bootstrapped(probability_of_improvement, first, second), ".2f")
            row[2] += in_brackets(bootstrapped(_difference, first, second), "+.1f")
            row[3] = f"{chance(first, second):.3f}"
        rows.append(row)
    text = markdown(header, rows)
    if fixed := fixed_numbers(pools):
        p = chance_of_all([[final_score(run) for run in pools[name]] for name in fixed])
        text += f"\n\nThat all fixed numbers of workers do the same: p {p:.4f} (Friedman's test)."
    return text


def fixed_numbers(pools: dict[str, list[Run]]) -> list[str]:
    """Return those of fixed numbers of workers; none if they are one or have different seeds."""
    names = [name for name, runs in pools.items() if runs[0].config.get("growth", "none") == "none"]
    seeds = {tuple(run.config["seed"] for run in pools[name]) for name in names}
    return names if len(names) > 1 and len(seeds) == 1 else []


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(one.mean() - other.mean())


def mean_staleness(run: Run) -> float:
    """Return the mean over a run's updates."""
    counts = run.staleness.sum(axis=0)
    return float(np.arange(len(counts)) @ counts / max(1, counts.sum()))


def times(game: Game, pools: dict[str, list[Run]], score: float) -> str:
    """Return when each run reached ``score``, and who did so sooner of every two numbers."""
    header = ["workers", *(game.units[axis][1] for axis in AXES)]
    places = {
        (name, axis): np.array([reached(run, score, axis, game.decay) for run in runs])
        for name, runs in pools.items()
        for axis in AXES
    }
    last = {(name, axis): min(ends(run, axis) for run in pools[name]) for name, axis in places}
    rows = []
    for name in pools:
        row = [name]
        for axis in AXES:
            found = places[name, axis] / game.units[axis][0]
            row.append(", ".join("never" if np.isinf(at) else f"{at:.3g}" for at in found))
        rows.append(row)
    parts = [markdown(header, rows)]

    header = ["", *(f"sooner in {axis.removesuffix('_s').replace('_', ' ')}s" for axis in AXES)]
    rows = []
    for one, other in itertools.combinations(pools, 2):
        row = [f"{one} before {other}"]
        for axis in AXES:
            seen = min(last[one, axis], last[other, axis])  # of every run
            first, second = (
                np.where(at <= seen, at, np.inf) for at in (places[one, axis], places[other, axis])
            )
            text = f"{sooner(first, second):.2f}"
            if min(len(first), len(second)) > 1:
                text += in_brackets(bootstrapped(sooner, first, second), ".2f")
                text += f", p {chance(first, second):.3f}"
            row.append(text)
        rows.append(row)
    parts.append(markdown(header, rows))
    if fixed := fixed_numbers(pools):
        trends = [chance_of_trend([places[name, axis] for name in fixed]) for axis in AXES]
        parts.append(
            "That fixed numbers of workers, in their order, get there neither sooner and sooner nor"
            f" later and later: p {', '.join(f'{p:.4f}' for p in trends)} (Page's test)."
        )
    return "\n\n".join(parts)


def report(game: Game, pools: dict[str, list[Run]]) -> str:
    """Return a game's tables in Markdown."""
    budgets = dict.fromkeys(budget(run.config) for runs in pools.values() for run in runs)
    note = (
        f"Runs end after {'; '.join(budgets)}, whichever comes first (growing ones have the most"
        " episodes). A score is reached when the running average of returns (decay"
        f" {game.decay:g}) gets there. Sooner: the share of pairs of runs in which the first is"
        " sooner, ties as halves; what happened after the first of these runs had ended does not"
        " count, and a run that had not got there by then is later than any that had. p is of the"
        " exact permutation test by ranks, not corrected for the number of comparisons. Means,"
        " differences and shares of pairs have percentile bootstraps over runs, too narrow for so"
        " few and without a doubt where every run of one is above every run of the other;"
        f" shares of runs have Clopper-Pearson intervals. Certain: the share of a run's intervals"
        f" whose mean entropy is below {CERTAIN:g} nats. Runs of one seed begin with the same"
        " parameters: what holds, holds of these. But for Friedman's, whose permutations are within"
        " seeds, the tests do not use that."
    )
    parts = [f"# {game.title}: numbers of workers", note, summary(game, pools)]
    parts += [
        f"## Scores\n\nMeans of the last {LAST_EPISODES:,} episodes, where the smaller of two"
        f" budgets of episodes ends, or the run; pairs and differences with {CONFIDENCE:.0%}"
        " intervals.",
        scores_compared(pools),
    ]
    for score in game.scores:
        parts += [f"## A score of {score:g}", times(game, pools, score)]
    return "\n\n".join(parts) + "\n"


def binned(run: Run, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of GRID_POINTS equal parts of a run's episodes, and each one's mean score."""
    returns = run.episodes["episode_return"]
    ends_of_parts = np.linspace(0, len(returns), min(GRID_POINTS, len(returns)) + 1).astype(int)
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


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write <game>.md and <game>.png for each game in ``folder``; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for env, game in GAMES.items():
        chosen = [run for run in runs if run.config["env"] == env]
        if not chosen:
            continue
        pools = _pools(chosen)
        path = folder / f"{env.lower().removesuffix('-v0')}.md"
        path.write_text(report(game, pools), encoding="utf-8")
        draw_all(game, pools, path.with_suffix(".png"))
        paths += [path, path.with_suffix(".png")]
    return paths


def _pools(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs by number of workers, growing ones last, each in the order of its seeds.

    Raises ValueError for a run that is not complete, or where settings differ otherwise.
    """
    for run in runs:
        name, status = (
            f"{run.attributes['job']}[{run.attributes['index']}]",
            run.attributes["status"],
        )
        if status != "complete" or len(run.episodes["step"]) < 2:
            count = len(run.episodes["step"])
            raise ValueError(f"{name}: {status} with {count} episodes: must be complete, with two")
    pools = by_setting(sorted(runs, key=lambda run: run.config["seed"]))
    order = sorted(pools, key=lambda one: (one.growth != "none", one.num_workers))
    found: dict[str, list[Run]] = {}
    for config in order:
        if label(config) in found:
            raise ValueError(
                f"{label(config)}: runs of different settings: give those of one job alone, without"
                " settings of their own"
            )
        found[label(config)] = pools[config]
    return found


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
    others = [axis for axis in AXES if axis != game.budget_axis]
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
        f"{game.title}: returns of {count} runs, thin, of 1/{GRID_POINTS} of their episodes each;"
        f" mean over runs (one that has ended stands where it ended) with its {CONFIDENCE:.0%}"
        " bootstrap interval; ticks: workers that joined",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


main = command(
    "worker_scaling",
    "Compare numbers of workers, and workers added while running.",
    JOBS,
    write,
    "worker_scaling",
)

if __name__ == "__main__":
    main()
