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
from analysis.learning_curves import interval_of_mean, running_average
from analysis.reaching import (
    AXES,
    along,
    chance,
    chance_of_all,
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

JOBS = "flappy_scaling", "flappy_growth", "space_invaders_scaling"
REFERENCE = Path(__file__).parent / "reference"
EPISODES, STEPS = (1e3, "episodes (thousands)"), (1e6, "steps (millions)")
MINUTES, HOURS = (60.0, "minutes of training"), (3600.0, "hours of training")
GRID_POINTS = 300
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


GAMES = {
    # The deck's own moving average has weight .04. Its best is about 200 by 100,000 episodes.
    "FlappyBird-v0": Game("Flappy Bird", 0.96, (0, 10, 50), False, "episode", MINUTES),
    "space_invaders": Game("Space Invaders", 0.98, (200, 250), True, "step", HOURS),
}


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
    fixed = [runs for runs in pools.values() if runs[0].config.get("growth", "none") == "none"]
    text = markdown(header, rows)
    if len(fixed) > 1 and len({tuple(run.config["seed"] for run in runs) for runs in fixed}) == 1:
        p = chance_of_all([[final_score(run) for run in runs] for runs in fixed])
        text += f"\n\nThat all fixed numbers of workers do the same: p {p:.4f} (Friedman's test)."
    return text


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
    return "\n\n".join([*parts, markdown(header, rows)])


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


def draw_scores(axes: Axes, game: Game, pools: dict[str, list[Run]], axis: str) -> None:
    """Draw runs, thin, and their mean with its interval as far as all of a setting's got."""
    unit = game.units[axis][0]
    for colour, (name, runs) in enumerate(pools.items()):
        curves = [running_average(run.episodes["episode_return"], game.decay) for run in runs]
        places = [along(run, axis) / unit for run in runs]
        for at, curve in zip(places, curves):
            points = np.linspace(0, len(at) - 1, GRID_POINTS).astype(int)
            axes.plot(at[points], curve[points], color=f"C{colour}", alpha=0.3, linewidth=0.6)
        grid = np.linspace(max(at[0] for at in places), min(at[-1] for at in places), GRID_POINTS)
        levels = np.stack([np.interp(grid, at, curve) for at, curve in zip(places, curves)])
        axes.plot(grid, levels.mean(axis=0), color=f"C{colour}", linewidth=1.8, label=name)
        if len(runs) > 1:
            band = interval_of_mean(levels)
            axes.fill_between(grid, *band, color=f"C{colour}", alpha=0.15, linewidth=0)
        for run in runs:
            joins = _joins(run, axis) / unit
            axes.plot(joins, np.interp(joins, *_line(run, game, axis)), "|", color=f"C{colour}")
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


def _line(run: Run, game: Game, axis: str) -> tuple[np.ndarray, np.ndarray]:
    average = running_average(run.episodes["episode_return"], game.decay)
    return along(run, axis) / game.units[axis][0], average


def deck() -> dict[str, np.ndarray]:
    """Return the deck's curves by ``label``: thousands of episodes and scores, (N, 2)."""
    lines = (REFERENCE / "flappy_worker_scaling.csv").read_text(encoding="utf-8").splitlines()
    found: dict[str, list[list[float]]] = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        point = [float(row["episodes"]) / 1e3, float(row["mean_score"])]
        name = row["series"].replace("->", " to ")
        found.setdefault(name if "to" in name else f"{name} workers", []).append(point)
    return {name: np.array(points) for name, points in found.items()}


def draw_deck(axes: Axes, names: Sequence[str]) -> None:
    """Draw the deck's curves, one run each, in the colours of those ``names``."""
    curves = deck()
    for colour, name in enumerate(names):
        if (points := curves.get(name)) is not None:
            style = "o" if len(points) == 1 else "-o"
            axes.plot(*points.T, style, color=f"C{colour}", markersize=4, linewidth=1, label=name)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_title("the deck (digitised; one run a curve)", fontsize=9)
    axes.set_xlabel(EPISODES[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


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
    """Draw a game's picture."""
    figure, panels = pyplot.subplots(2, 3, figsize=(15, 8.5), layout="constrained")
    for axes, axis in zip(panels[0], AXES):
        draw_scores(axes, game, pools, axis)
    panels[0][0].set_ylabel(f"episode return (running average, decay {game.decay:g})")
    panels[0][0].legend(fontsize=7)
    own = [*panels[1]]
    if game is GAMES["FlappyBird-v0"]:
        draw_deck(own.pop(0), [*pools])
    for axes, score in zip(own, game.scores[-len(own) :]):
        draw_shares(axes, game, pools, score)
    for axes in own[len(game.scores) :]:
        axes.set_axis_off()
    count = sum(map(len, pools.values()))
    figure.suptitle(
        f"{game.title}: {count} runs; band: {CONFIDENCE:.0%} bootstrap interval of the mean over"
        " runs; ticks: workers that joined",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
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
