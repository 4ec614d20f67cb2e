"""Every metric of a push: a number that its worker reports, or that the server notes of it.

A metric is declared here and nowhere else. The header's field, the sums in /workers and
/timing/worker, the columns of /intervals and their reader follow from its line in ``REPORTED`` or
``NOTED``. Who reports it calls ``Worker.add``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Metric(NamedTuple):
    """A number of each push, and what the run file keeps of it."""

    name: str
    kind: str  # NumPy's type: "i8" or "f8"
    units: str
    # How /intervals sum it up, over the pushes that report it: mean, max or last. Where a push does
    # not report it, it is nan; so a worker's must be "f8".
    interval: tuple[str, ...] = ()
    table: str = ""  # where each worker's sum over all pushes is
    since: int = 0  # the schema version that it came with: a new metric makes a new one


class Column(NamedTuple):
    """A column of a table in the run file."""

    name: str
    kind: str  # NumPy's type, or "text"
    units: str
    since: int = 0  # schema version: files of older ones lack it
    absent: float = 0  # what it reads as there


REPORTED = (  # by workers, in their headers, since the last push
    Metric("num_steps", "i8", "steps", table="workers"),
    Metric("num_episodes", "i8", "1", table="workers"),  # that have ended
    Metric("num_updates", "i8", "updates", table="workers"),  # made of the worker's gradients
    # Updates of a group's parameters while another member made one; pulls likewise.
    Metric("num_conflicts", "i8", "updates", table="workers"),
    Metric("num_torn_pulls", "i8", "1", table="workers"),
    # Means over the push's updates
    Metric("policy_loss", "f8", "1", ("mean",)),
    Metric("value_loss", "f8", "1", ("mean",)),
    Metric("entropy", "f8", "nat", ("mean",)),
    Metric("grad_norm", "f8", "1", ("mean",)),
    # Where the time went: phases in wall time, then processor time
    Metric("env", "f8", "s", table="timing/worker"),
    Metric("act", "f8", "s", table="timing/worker"),
    Metric("learn", "f8", "s", table="timing/worker"),
    Metric("push", "f8", "s", table="timing/worker"),
    Metric("wait", "f8", "s", table="timing/worker"),
    Metric("cpu", "f8", "s", table="timing/worker"),
)
NOTED = (  # by the server
    Metric("num_pushes", "i8", "updates", table="workers"),  # that changed its parameters
    Metric("num_dropped", "i8", "updates", table="workers", since=5),  # that were too stale
    Metric("learning_rate", "f8", "1", ("last",)),
    # Version when applied less the version pulled, of pushes that changed the parameters
    Metric("staleness", "i8", "updates", ("mean", "max")),
)
METRICS = (*REPORTED, *NOTED)


def columns_of(table: str) -> Iterator[Column]:
    """Yield the columns of ``table`` that hold sums over a worker's pushes."""
    for metric in METRICS:
        if metric.table == table:
            yield Column(metric.name, metric.kind, metric.units, metric.since)


def summaries(metric: Metric) -> Iterator[tuple[str, Column]]:
    """Yield how /intervals sum a metric up, and each one's column; several are told apart.

    A mean is a float; the largest, and the last, are of the metric's own kind.
    """
    for how in metric.interval:
        name = metric.name if len(metric.interval) == 1 else f"{metric.name}_{how}"
        kind = "f8" if how == "mean" else metric.kind
        yield how, Column(name, kind, metric.units, metric.since, np.nan if kind == "f8" else 0)
