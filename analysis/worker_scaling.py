"""Does more parallelism hurt learning, and does it help to add workers later?

    python -m analysis.worker_scaling [FILE...] [--output results/worker_scaling]

FILEs are runs of jobs/flappy_scaling.toml and flappy_growth.toml (the deck "A3C parallelism vs
learning efficiency", digitised beside ours) and of jobs/space_invaders_scaling.toml, single or
collected. A picture and tables for each game: scores against episodes, steps, updates and time,
with the steps at which workers joined; who reached a score and when; and every two numbers of
workers compared, with the share of chance.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.cells import (
    CONFIDENCE,
    bootstrapped,
    by_setting,
    command,
    in_brackets,
    markdown,
    mean_with_interval,
    probability_of_improvement,
    share_with_interval,
)
from analysis.reaching import (
    GAMES,
    Game,
    chance,
    chance_of_all,
    chance_of_trend,
    ends,
    reached,
    sooner,
)
from analysis.scaling_pictures import draw_all
from mpi_rl.config import Config, budget
from mpi_rl.runfile import Run

JOBS = "flappy_scaling", "flappy_growth", "space_invaders_scaling"
CERTAIN = 0.01  # mean entropy, in nats, below which a policy hardly ever tries anything else


def label(config: Config) -> str:
    """Return a setting's numbers of workers, as the deck writes them."""
    if config.growth == "none":
        return f"{config.num_workers} workers"
    return f"{config.initial_workers} to {config.num_workers}"


def final_score(game: Game, run: Run, episodes: int | None = None) -> float:
    """Return the mean of the last of a run's first ``episodes``, or of all."""
    return float(run.episodes["episode_return"][:episodes][-game.last_episodes :].mean())


def summary(game: Game, pools: dict[str, list[Run]]) -> str:
    """Return a row per number of workers: final scores, who reached which score, speed."""
    header = ["workers", f"last {game.last_episodes:,} episodes: mean [{CONFIDENCE:.0%}]", "seeds"]
    header += [f"reach {score:g}" for score in game.scores]
    header += ["steps/s", "episodes", "staleness", "certain"]
    rows = []
    for name, runs in pools.items():
        scores = np.array([final_score(game, run) for run in runs])
        row = [name, mean_with_interval(scores, ".1f")]
        row.append(", ".join(f"{score:.1f}" for score in scores))
        for score in game.scores:
            at = [reached(run, score, "step", game.decay) for run in runs]
            row.append(share_with_interval(np.isfinite(at)))
        rates = [run.attributes["step"] / run.attributes["wall_time_s"] for run in runs]
        row += [f"{np.mean(rates):,.0f}", f"{np.mean([ends(run, 'episode') for run in runs]):,.0f}"]
        row.append(f"{np.mean([mean_staleness(run) for run in runs]):.1f}")
        certain = [np.mean(run.tables["intervals"]["entropy"] < CERTAIN) for run in runs]
        row.append(", ".join(f"{100 * share:.0f} %" for share in certain))
        rows.append(row)
    return markdown(header, rows)


def scores_compared(game: Game, pools: dict[str, list[Run]]) -> str:
    """Return every two numbers of workers: whose scores are higher by the smaller budget's end."""
    header = ["", "higher, of pairs of runs", "difference of means", "p"]
    rows = []
    for one, other in itertools.combinations(pools, 2):
        both = [*pools[one], *pools[other]]
        seen = min((n for run in both if (n := run.config.get("total_episodes"))), default=None)
        first, second = (
            np.array([final_score(game, run, seen) for run in pools[name]]) for name in (one, other)
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
        p = chance_of_all([[final_score(game, run) for run in pools[name]] for name in fixed])
        text += f"\n\nThat all fixed numbers of workers do the same: p {p:.4f} (Friedman's test)."
    return text


def fixed_numbers(pools: dict[str, list[Run]]) -> list[str]:
    """Return fixed numbers of workers that have the same seeds, or none: two of both at least."""
    names = [name for name, runs in pools.items() if runs[0].config.get("growth", "none") == "none"]
    seeds = {tuple(run.config["seed"] for run in pools[name]) for name in names}
    return names if len(names) > 1 and len(seeds) == 1 and len(*seeds) > 1 else []


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(one.mean() - other.mean())


def mean_staleness(run: Run) -> float:
    """Return the mean over a run's updates."""
    counts = run.staleness.sum(axis=0)
    return float(np.arange(len(counts)) @ counts / max(1, counts.sum()))


def times(game: Game, pools: dict[str, list[Run]], score: float) -> str:
    """Return when each run reached ``score``, and who did so sooner of every two numbers."""
    header = ["workers", *(text for _, text in game.units.values())]
    places = {
        (name, axis): np.array([reached(run, score, axis, game.decay) for run in runs])
        for name, runs in pools.items()
        for axis in game.units
    }
    last = {(name, axis): min(ends(run, axis) for run in pools[name]) for name, axis in places}
    rows = []
    for name in pools:
        row = [name]
        for axis in game.units:
            found = places[name, axis] / game.units[axis][0]
            row.append(", ".join("never" if np.isinf(at) else f"{at:.3g}" for at in found))
        rows.append(row)
    parts = [markdown(header, rows)]

    header = ["", *(f"sooner in {text.split(' (')[0]}" for _, text in game.units.values())]
    rows = []
    for one, other in itertools.combinations(pools, 2):
        row = [f"{one} before {other}"]
        for axis in game.units:
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
        trends = [chance_of_trend([places[name, axis] for name in fixed]) for axis in game.units]
        parts.append(
            "That fixed numbers of workers, in their order, get there neither sooner and sooner nor"
            f" later and later: p {', '.join(f'{p:.4f}' for p in trends)} (Page's test)."
        )
    return "\n\n".join(parts)


def report(game: Game, pools: dict[str, list[Run]]) -> str:
    """Return a game's tables in Markdown."""
    note = (
        f"Runs end after {_budgets(pools)}. A score is reached when the running average of"
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


def _budgets(pools: dict[str, list[Run]]) -> str:
    """Return budgets in words, and whose they are if there are several."""
    found: dict[str, list[str]] = {}
    for name, (run, *_) in pools.items():  # the runs of one setting
        text = budget(run.config)
        text += ", whichever is first" if " or " in text else ""
        found.setdefault(text, []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())


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


main = command(
    "worker_scaling",
    "Compare numbers of workers, and workers added while running.",
    JOBS,
    write,
    "worker_scaling",
)

if __name__ == "__main__":
    main()
