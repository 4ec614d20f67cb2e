"""Statistics of learning curves: returns averaged, runs by setting, the interval of a mean."""

import dataclasses

import numpy as np
from scipy.signal import lfilter
from scipy.stats import bootstrap

from mpi_rl.config import OPERATIONAL_FIELDS, Config
from mpi_rl.records.runfile import Run

CONFIDENCE = 0.95  # of every interval
DECAY = 0.95  # of the running average, per episode, as in clorenz7/rl_ex


def running_average(returns: np.ndarray, decay: float = DECAY) -> np.ndarray:
    """Return a_n = decay a_{n-1} + (1 - decay) r_n, a_0 = r_0, of returns r, (N,), in order."""
    if not len(returns):
        return np.empty(0)
    return lfilter([1 - decay], [1, -decay], returns, zi=[decay * returns[0]])[0]


def by_setting(runs: list[Run]) -> dict[Config, list[Run]]:
    """Return runs by their settings, in the order in which they come.

    The seed, and settings that may change within a run, do not separate runs: in the keys they
    have their defaults.
    """
    same = {name: getattr(Config(), name) for name in ("seed", *OPERATIONAL_FIELDS)}
    found: dict[Config, list[Run]] = {}
    for run in runs:
        found.setdefault(dataclasses.replace(run.config, **same), []).append(run)
    return found


def interval_of_mean(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bootstrap interval, two (G,) arrays, of the mean over runs of curves (runs, G)."""
    result = bootstrap(
        (curves,),
        np.mean,
        axis=0,
        confidence_level=CONFIDENCE,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval.low, result.confidence_interval.high
