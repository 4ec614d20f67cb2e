"""Games, and who gets to a score when: runs that never do are later than all that do."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import permutation_test, rankdata

from analysis.cells import probability_of_improvement
from analysis.learning_curves import running_average
from mpi_rl.runfile import Run

AXES = ("episode", "step", "wall_time_s")
EPISODES, STEPS = (1e3, "episodes (thousands)"), (1e6, "steps (millions)")
MINUTES, HOURS = (60.0, "minutes of training"), (3600.0, "hours of training")


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


def along(run: Run, axis: str) -> np.ndarray:
    """Return where on one of AXES each episode ended, (N,); its own number for 'episode'."""
    count = len(run.episodes["step"])
    return np.arange(1, count + 1) if axis == "episode" else run.episodes[axis]


def reached(run: Run, score: float, axis: str, decay: float) -> float:
    """Return where on ``axis`` the running average of returns first is ``score``; inf if never."""
    average = running_average(run.episodes["episode_return"], decay)
    above = np.flatnonzero(average >= score)
    return float(along(run, axis)[above[0]]) if len(above) else np.inf


def ends(run: Run, axis: str) -> float:
    """Return where on ``axis`` a run ended."""
    return float(along(run, axis)[-1])


def sooner(one: ArrayLike, other: ArrayLike) -> float:
    """Return how likely a run of ``one`` is sooner than one of ``other``.

    Ties, also of those that never get there, count half.
    """
    return probability_of_improvement(np.asarray(other, float), np.asarray(one, float))


def chance(one: ArrayLike, other: ArrayLike) -> float:
    """Return the two-sided p of the exact permutation test of the sum of ranks.

    Of all ways to deal the runs into two groups of these sizes, that is the share which differs at
    least as much.
    """
    first, second = np.asarray(one, float), np.asarray(other, float)
    ranks = rankdata(np.concatenate([first, second]))
    middle = len(first) * (len(ranks) + 1) / 2
    off = abs(ranks[: len(first)].sum() - middle)
    deals = itertools.combinations(ranks.tolist(), len(first))
    as_far = [abs(sum(deal) - middle) >= off - 1e-9 for deal in deals]
    return float(np.mean(as_far))


def chance_of_all(scores: ArrayLike) -> float:
    """Return the p of Friedman's test, by permutations within seeds, of scores (settings, seeds).

    Of random orders of the settings within each seed, that is the share in which the settings' mean
    ranks are at least as far apart.
    """
    return _within_seeds(scores, lambda ranks: np.var(ranks, axis=0))


def chance_of_trend(places: ArrayLike) -> float:
    """Return the two-sided p of Page's test, likewise, of places (settings, seeds).

    That is the share in which mean ranks rise or fall with the settings' order at least as much.
    """
    order = np.arange(len(np.asarray(places)))
    return _within_seeds(
        places, lambda ranks: abs(np.tensordot(order - order.mean(), ranks, axes=1)).round(9)
    )


def _within_seeds(values: ArrayLike, statistic: Callable[[Any], Any]) -> float:
    found = permutation_test(
        tuple(rankdata(values, axis=0)),
        lambda *settings, axis: statistic(np.mean(settings, axis=axis)),
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)
