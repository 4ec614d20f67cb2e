"""Sums over pushes: of each worker, and of the interval under way."""

from collections.abc import Mapping, Sequence
from time import time
from typing import Any

import numpy as np

from mpi_rl.records.tables import INTERVAL
from mpi_rl.transport.metrics import METRICS, summaries

_SUMMED = [place for place, metric in enumerate(METRICS) if metric.table]
_SUMMARIES = [
    (place, how, column)
    for place, metric in enumerate(METRICS)
    for how, column in summaries(metric)
]


class Tallies:
    """What each worker has done in all: /workers, /timing/worker and /staleness."""

    def __init__(self, num_workers: int) -> None:
        self._sums: list[list[float]] = [[0] * len(METRICS) for _ in range(num_workers)]
        self.first_push_s = np.zeros(num_workers)  # of this start
        self.staleness = np.zeros((num_workers, 1), np.int64)  # how often it was 0, 1, 2, ...

    def add(self, worker: int, values: Sequence[float]) -> None:
        """Add a push, whose numbers are given in the order of METRICS."""
        sums = self._sums[worker]
        for place in _SUMMED:
            sums[place] += values[place]
        self.first_push_s[worker] = self.first_push_s[worker] or time()

    def count_staleness(self, worker: int, staleness: int) -> None:
        """Count an update that was so stale."""
        missing = staleness + 1 - self.staleness.shape[1]
        if missing > 0:
            self.staleness = np.pad(self.staleness, ((0, 0), (0, missing)))
        self.staleness[worker, staleness] += 1

    def mean_staleness(self) -> float:
        """Return the mean staleness of all updates so far, in updates."""
        counts = self.staleness.sum(axis=0)
        return float(np.arange(len(counts)) @ counts / max(1, counts.sum()))

    def columns(self, table: str) -> dict[str, np.ndarray]:
        """Return the sums that a table holds, each (workers,)."""
        by_metric = zip(METRICS, zip(*self._sums))
        return {
            metric.name: np.array(sums, metric.kind)
            for metric, sums in by_metric
            if metric.table == table
        }

    def restore(
        self, tables: Mapping[str, Mapping[str, np.ndarray]], staleness: np.ndarray
    ) -> None:
        """Go on from a run file's."""
        for place in _SUMMED:
            for sums, value in zip(self._sums, tables[METRICS[place].table][METRICS[place].name]):
                sums[place] = value.item()
        self.staleness = staleness


class Interval:
    """The interval under way: where it began, and what its pushes say, as METRICS sum it up."""

    def __init__(self, step: int = 0, version: int = 0, wall_time_s: float = 0.0) -> None:
        self.step, self.version, self.wall_time_s, self.num_pushes = step, version, wall_time_s, 0
        # By column, a number and how many there were: the sum for a mean, the largest, or the last.
        self._found = {column.name: [0.0, 0] for _, _, column in _SUMMARIES}

    def add(self, values: Sequence[float]) -> None:
        """Add a push, whose numbers are given in the order of METRICS; nan: not reported."""
        self.num_pushes += 1
        for place, how, column in _SUMMARIES:
            value = values[place]
            if value != value:
                continue
            found = self._found[column.name]
            if how == "mean":
                found[0] += value
            elif how == "last" or not found[1] or value > found[0]:
                found[0] = value
            found[1] += 1

    def columns(self) -> dict[str, Any]:
        """Return each column's number; of nothing it is nan, or 0 where that is a whole one."""
        found = {}
        for _, how, column in _SUMMARIES:
            number, count = self._found[column.name]
            if how == "mean" and count:
                number /= count
            elif not count:
                number = column.absent
            found[column.name] = int(number) if column.kind == "i8" else number
        return found

    def state(self) -> np.ndarray:
        """Return all of it as a record of INTERVAL, (1,), for ``restore``."""
        began = self.step, self.version, self.wall_time_s, self.num_pushes
        return np.array([(*began, *map(tuple, self._found.values()))], INTERVAL)

    def restore(self, state: np.ndarray) -> None:
        """Undo ``state``; what an older record lacks has not been found yet."""
        (record,) = state
        self.step, self.version = record["step"].item(), record["version"].item()
        self.wall_time_s = record["wall_time_s"].item()
        self.num_pushes = record["num_pushes"].item()
        for name in self._found.keys() & set(state.dtype.names or ()):
            self._found[name] = record[name].tolist()
