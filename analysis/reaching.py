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

EPISODES, UPDATES = (1e3, "episodes (thousands)"), (1e3, "updates (thousands)")
STEPS, MINUTES = (1e6, "steps (millions)"), (60.0, "minutes of training")


@dataclass(frozen=True)
class Game:
    """What is asked of a game's runs."""

    title: str
    decay: float  # of the running average
    scores: tuple[float, ...]  # that runs may reach
    is_linear: bool  # axis of scores
    last_episodes: int  # that a run's final score is the mean of
    units: dict[str, tuple[float, str]]  # of ``along``'s axes, and labels; the budget's is first

    @property
    def budget_axis(self) -> str:
        """Return the axis along which runs are to be compared first."""
        return next(iter(self.units))


# The deck's own moving average has weight .04. Its best is about 200 by 100,000 episodes.
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


def along(run: Run, axis: str) -> np.ndarray:
    """Return where on ``axis`` each episode ended, (N,); its own number for 'episode'."""
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
