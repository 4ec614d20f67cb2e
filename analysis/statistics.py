"""Statistics over runs: intervals by bootstrap, probabilities of improvement, exact tests."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, bootstrap, permutation_test, rankdata

from mpi_rl.records.curves import CONFIDENCE

Interval = tuple[float, float]


def mean_interval(returns: np.ndarray) -> Interval | None:
    """Return the bootstrap interval of a mean over runs; None for fewer than two."""
    if len(returns) < 2:
        return None
    found = bootstrap((returns,), np.mean, **_bootstrapping(10_000)).confidence_interval
    return float(found.low), float(found.high)


def share_interval(there: int, count: int) -> Interval:
    """Return the Clopper-Pearson interval of a share of ``there`` in ``count`` runs."""
    share = binomtest(there, count).proportion_ci(CONFIDENCE)
    return share.low, share.high


def bootstrapped(
    statistic: Callable[[np.ndarray, np.ndarray], float], one: np.ndarray, other: np.ndarray
) -> Interval | None:
    """Return the bootstrap interval of a statistic of two settings' runs; None for fewer than 2."""
    if min(len(one), len(other)) < 2:
        return None
    found = bootstrap((one, other), statistic, vectorized=False, **_bootstrapping(2000))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _bootstrapping(resamples: int) -> dict[str, Any]:
    return dict(
        confidence_level=CONFIDENCE,
        method="percentile",
        n_resamples=resamples,
        rng=np.random.default_rng(0),
        paired=False,
    )


def difference_of_means(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean of ``one`` less that of ``other``."""
    return float(one.mean() - other.mean())


def ratio_of_means(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean of ``one`` divided by that of ``other``."""
    return float(one.mean() / other.mean())


def probability_of_improvement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pairs of runs in which ``one`` is better; ties count half.

    Agarwal et al. 2021, section 4.3.
    """
    above = one[:, None] > other
    return float((above + 0.5 * (one[:, None] == other)).mean())


def sooner(one: ArrayLike, other: ArrayLike) -> float:
    """Return the share of pairs of runs in which ``one`` is sooner; ties count half.

    A run that never gets there is at inf: later than all that do, and a tie with its like.
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
