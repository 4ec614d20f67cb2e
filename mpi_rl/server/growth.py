"""Growth: how many workers a run wants, as pure functions of what its pushes say.

All ranks start together; workers beyond the number wanted are parked. A policy is told of every
push by ``observe`` and says by ``wanted`` how many workers it wants from then on: those with the
lowest numbers. What it knows lies in ``state``, (S,) float64, which the run file saves and restores
in place.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mpi_rl.config import Config

MORE = 1.5  # throughput tries so many times the workers,
KNOWN = 0.05  # a speed is known once its standard error is this share of it,
PATIENCE = 8  # and after so many times growth_intervals as well as it will be


class Observed(NamedTuple):
    """What a policy is told of a push."""

    step: int  # of the run, after the push
    wall_time_s: float
    num_active: int  # workers that have joined and were not parked again
    learned_steps: int  # steps of the push; 0 if its gradient was dropped
    staleness: int  # updates
    durations: Sequence[float]  # of the episodes that it ended, in the policy's unit


class Growth(Protocol):
    """What the server needs of a policy."""

    state: np.ndarray

    @property
    def wanted(self) -> int:
        """Workers wanted now."""

    def observe(self, push: Observed) -> None:
        """Take note of a push."""


class _Policy:
    """A policy's numbers by name, the workers wanted first."""

    def __init__(self, wanted: int, names: Sequence[str] = ()) -> None:
        dtype = np.dtype([(name, "f8") for name in ("wanted", *names)])
        numbers = np.zeros(1, dtype)
        self.state, self._known = numbers.view("f8"), numbers[0]
        self._known["wanted"] = wanted

    @property
    def wanted(self) -> int:
        """Workers wanted now."""
        return int(self._known["wanted"])

    def observe(self, push: Observed) -> None:
        """Want the same ever after."""


class Schedule(_Policy):
    """``workers[i]`` are wanted from ``steps[i]`` on."""

    def __init__(self, initial: int, steps: Sequence[int], workers: Sequence[int]) -> None:
        super().__init__(initial)
        self._steps, self._workers = steps, (initial, *workers)

    def observe(self, push: Observed) -> None:
        """Look the step up."""
        self._known["wanted"] = self._workers[bisect_right(self._steps, push.step)]


class EpisodeDuration(_Policy):
    """The policy of the Flappy Bird deck: the longer episodes get, the more workers are added.

    Each time ``window`` episodes have ended, their mean duration adds as many workers as it exceeds
    ``thresholds`` (the deck's, 20, 40 and 60 s, add 1, 2 or 3), until there are ``most``.
    """

    def __init__(self, initial: int, most: int, thresholds: Sequence[float], window: int) -> None:
        super().__init__(initial, ("count", "total"))
        self._most, self._thresholds, self._window = most, thresholds, window

    def observe(self, push: Observed) -> None:
        """Add the durations; a full window decides."""
        known = self._known
        for duration in push.durations:
            known["count"] += 1
            known["total"] += duration
            if known["count"] == self._window:
                mean = known["total"] / self._window
                more = sum(mean > threshold for threshold in self._thresholds)
                known["wanted"] = min(self._most, known["wanted"] + more)
                known["count"] = known["total"] = 0


class Throughput(_Policy):
    """Half as many workers more, again and again, while each time that makes the run faster.

    n' instead of n workers must bring ``min_gain`` of the ideal gain, n' / n - 1, in learned steps
    per second, or the run goes back to n and stays there; so it does where the mean staleness of
    an interval exceeds ``max_staleness`` (0: never). Speed is taken over intervals of
    ``period_steps`` in which all wanted workers were at work: over ``num_intervals`` of them, and
    twice, four times, ... as many, until it is KNOWN and two standard errors of the gain decide, or
    PATIENCE is over.
    """

    def __init__(
        self,
        initial: int,
        most: int,
        min_gain: float,
        num_intervals: int,
        max_staleness: float,
        period_steps: int,
    ) -> None:
        names = "settled enough count mean squares before before_mean before_error".split()
        super().__init__(initial, names)
        self._most, self._min_gain, self._num_intervals = most, min_gain, num_intervals
        self._max_staleness, self._period_steps = max_staleness, period_steps
        self._known["enough"], self._known["settled"] = num_intervals, initial == most
        self._forget()

    def _forget(self) -> None:
        self._step, self._began_s, self._learned = -1, 0.0, 0
        self._pushes = self._staleness = 0

    def observe(self, push: Observed) -> None:
        """Add to the interval; its end may decide."""
        if self._known["settled"]:
            return
        if push.num_active != self.wanted:  # somebody is on the way
            self._forget()
        elif self._step < 0:
            self._step, self._began_s = push.step, push.wall_time_s
        else:
            self._learned += push.learned_steps
            self._pushes += 1
            self._staleness += push.staleness
            if push.step - self._step >= self._period_steps:
                self._end_interval(push)

    def _end_interval(self, push: Observed) -> None:
        known, staleness = self._known, self._staleness / self._pushes
        rate = self._learned / max(push.wall_time_s - self._began_s, 1e-9)
        self._forget()
        self._step, self._began_s = push.step, push.wall_time_s
        known["count"] += 1
        off = rate - known["mean"]
        known["mean"] += off / known["count"]
        known["squares"] += off * (rate - known["mean"])
        if 0 < self._max_staleness < staleness:
            self._settle()
        elif known["count"] >= known["enough"]:
            self._judge()

    def _judge(self) -> None:
        known, mean = self._known, self._known["mean"]
        error = math.sqrt(known["squares"] / (known["count"] - 1) / known["count"])
        is_last = known["count"] >= PATIENCE * self._num_intervals
        is_known, gain, needed = error <= KNOWN * mean, 0.0, 0.0
        if known["before"] and known["before_mean"] > 0:
            ratio = mean / known["before_mean"]
            gain, needed = ratio - 1, self._min_gain * (self.wanted / known["before"] - 1)
            relative = math.hypot(error / max(mean, 1e-9), known["before_error"])
            is_known &= abs(gain - needed) >= 2 * ratio * relative
        if not is_known and not is_last:
            known["enough"] *= 2
        elif gain < needed:
            self._settle()
        elif self.wanted == self._most:
            known["settled"] = 1
        else:
            known["before"], known["before_mean"] = self.wanted, mean
            known["before_error"] = error / max(mean, 1e-9)
            known["wanted"] = min(self._most, math.ceil(MORE * self.wanted))
            known["count"] = known["mean"] = known["squares"] = 0
            known["enough"] = self._num_intervals

    def _settle(self) -> None:
        """Go back to where more workers did not pay."""
        self._known["wanted"] = self._known["before"] or self.wanted
        self._known["settled"] = 1


def growth(config: Config, num_workers: int) -> Growth:
    """Return the policy that a run's ``config`` asks for; without one all workers are wanted."""
    initial = config.initial_workers
    if config.growth == "schedule":
        return Schedule(initial, config.growth_steps, config.growth_workers)
    if config.growth == "episode_duration":
        thresholds, window = config.growth_durations, config.growth_window
        return EpisodeDuration(initial, num_workers, thresholds, window)
    if config.growth == "throughput":
        return Throughput(
            initial,
            num_workers,
            config.growth_min_gain,
            config.growth_intervals,
            config.growth_max_staleness,
            config.interval_period_steps,
        )
    return _Policy(num_workers)
