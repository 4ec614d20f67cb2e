"""Parameters worth keeping, and when they were."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpi_rl.records.runfile import Run
from mpi_rl.records.tables import Table

RECENT_EPISODES = 100  # episodes that a run's current mean return is taken over


class Snapshot(NamedTuple):
    """A moment's parameters, and the mean of the returns just before."""

    kind: str  # "periodic", "group 0" and so on: a group's own, "best" or "last"
    step: int
    version: int
    mean_return: float
    params: np.ndarray


class Snapshots:
    """The periodic snapshots of a run, and the best so far."""

    def __init__(self) -> None:
        self.periodic: list[Snapshot] = []
        self.best: Snapshot | None = None

    def restore(self, run: Run) -> None:
        """Go on from a run file's."""
        columns = (run.tables["snapshots"][name] for name in Snapshot._fields[:-1])
        for snapshot in map(Snapshot, *columns, run.snapshot_params):
            if snapshot.kind == "periodic":
                self.periodic.append(snapshot)
            elif snapshot.kind == "best":
                self.best = snapshot


def of_groups(
    group_params: np.ndarray, groups: Sequence[int], episodes: dict[str, np.ndarray], last: Snapshot
) -> list[Snapshot]:
    """Return what each group has now, (groups, P), with its own members' mean return."""
    played_by, found = np.array(groups)[episodes["worker_id"]], []
    for group, params in enumerate(group_params):
        recent = episodes["episode_return"][played_by == group][-RECENT_EPISODES:]
        mean = recent.mean() if len(recent) else math.nan
        found.append(last._replace(kind=f"group {group}", mean_return=mean, params=params))
    return found


def as_columns(snapshots: Sequence[Snapshot]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the table of snapshots, and their parameters, (N, P)."""
    table = Table("snapshots")
    for kind, step, version, mean_return, _ in snapshots:
        table.append(kind=kind, step=step, version=version, mean_return=mean_return)
    return table.columns(), np.stack([snapshot.params for snapshot in snapshots])
