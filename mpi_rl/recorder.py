"""What a running server writes down: counters, tables and everything that resuming needs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, time
from typing import Any, NamedTuple

import numpy as np

from mpi_rl.config import budget, spent
from mpi_rl.progress import Moment
from mpi_rl.runfile import (
    KILLED,
    RESUMED,
    SCHEMA,
    SCHEMA_VERSION,
    TABLES,
    Run,
    Table,
    read_run,
    utc_now,
    write_run,
)
from mpi_rl.timing import advice, server_load, shares

RECENT_EPISODES = 100  # episodes that a run's current mean return is taken over
_SUMS = ("policy_loss", "value_loss", "entropy", "grad_norm", "staleness")
_COUNTS = (
    "num_steps",
    "num_episodes",
    "num_updates",
    "num_pushes",
    "num_dropped",
    "num_conflicts",
    "num_torn_pulls",
)


class Snapshot(NamedTuple):
    """Parameters worth keeping, and when they were."""

    kind: str  # "periodic", "group 0" and so on: a group's own, "best" or "last"
    step: int
    version: int
    mean_return: float
    params: np.ndarray


class Recorder:
    """The record of one run, kept in memory and written whole by ``write``.

    ``params``, (P,), ``statistics``, the update rule's, and ``growth_state``, the policy's, are the
    server's own and change while it learns; ``resume`` sets them to what the file holds.
    """

    def __init__(
        self,
        path: Path,
        origin: dict[str, Any],
        settings: dict[str, Any],
        groups: Sequence[int],
        places: list[tuple[str, str]],
        params: np.ndarray,
        statistics: dict[str, np.ndarray],
        growth_state: np.ndarray,
    ) -> None:
        """Start an empty record; of each worker, its group, and its place: node and transport."""
        num_workers = len(places)
        self.path, self._settings, self._groups, self._places = path, settings, groups, places
        self.attributes = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            **origin,
            "config": json.dumps(settings),
            "num_workers": num_workers,
            "node_names": json.dumps(sorted({node for node, _ in places})),
            "restart_count": 0,
            "started": utc_now(),
        }
        self.step = self.version = 0
        self._params, self._statistics, self._growth_state = params, statistics, growth_state
        self._tables = {name: Table(name) for name in ("episodes", "intervals", "events")}
        self._counts = [[0] * len(_COUNTS) for _ in places]
        self._first_push = np.zeros(num_workers)
        self._worker_s = np.zeros((num_workers, len(TABLES["timing/worker"])))
        self._server_s = dict.fromkeys(TABLES["timing/server"], 0.0)
        self._staleness = np.zeros((num_workers, 1), np.int64)
        self._periodic: list[Snapshot] = []
        self._best: Snapshot | None = None
        # Sums over what was pushed in the interval, and its number; where it began (step, version,
        # seconds); its largest staleness; its last learning rate.
        self._interval = [0.0] * (len(_SUMS) + 6)
        self._rng_states = np.zeros((num_workers, 6), np.uint64)
        self._elapsed_s = 0.0  # before this start
        self._began_s: float | None = None  # when its first worker joined
        self._last_write = monotonic()
        self._active: set[int] = set()  # have joined, and were not parked again

    # --- Time

    def wall_time_s(self) -> float:
        """Return the seconds of training so far, those before a resumption included."""
        if self._began_s is None:  # ranks are starting
            return self._elapsed_s
        return self._elapsed_s + monotonic() - self._began_s

    # --- What happens

    def event(self, kind: str, worker: int = -1) -> None:
        """Note ``kind`` now; worker is -1 for the server's own."""
        self._tables["events"].append(
            wall_time_s=self.wall_time_s(), step=self.step, worker_id=worker, kind=kind
        )

    def join(self, worker: int, rng_state: np.ndarray) -> np.ndarray | None:
        """Note that ``worker`` starts, with a fresh random stream; return the saved one, if any."""
        if self._began_s is None:
            self._began_s = monotonic()
        self._active.add(worker)
        self.event("join", worker)
        if self._rng_states[worker].any():
            return self._rng_states[worker]
        self._rng_states[worker] = rng_state
        return None

    def leave(self, worker: int) -> None:
        """Note that ``worker`` is parked; the episode that it was at is not recorded."""
        self._active.remove(worker)
        self.event("leave", worker)

    def push(
        self,
        worker: int,
        header: np.void,
        learning_rate: float,
        is_gradient: bool = True,
        is_dropped: bool = False,
    ) -> None:
        """Record what ``worker`` has done and sent as ``header``.

        Unless it is no gradient (nor parameters), or was dropped, the parameters have changed.
        """
        is_update = is_gradient and not is_dropped
        staleness = self.version - int(header["version"]) if is_update else 0
        steps, count = int(header["num_steps"]), int(header["num_episodes"])
        self.step += steps
        counts = self._counts[worker]
        more = steps, count, 0 if is_dropped else header["num_updates"], is_update, is_dropped
        for i, number in enumerate((*more, header["num_conflicts"], header["num_torn_pulls"])):
            counts[i] += int(number)
        self._first_push[worker] = self._first_push[worker] or time()
        self._worker_s[worker] += header["phase_s"]
        self._rng_states[worker] = header["rng_state"]
        if is_update:
            self.version += 1
            self._count_staleness(worker, staleness)
        wall_time_s = self.wall_time_s()
        for episode in range(count):
            self._tables["episodes"].append(
                worker_id=worker,
                step=self.step,
                version=self.version,
                wall_time_s=wall_time_s,
                episode_return=header["episode_returns"][episode],
                episode_length=header["episode_lengths"][episode],
            )
        interval = self._interval
        for i, value in enumerate((*map(header.__getitem__, _SUMS[:-1]), staleness, 1)):
            interval[i] += float(value)
        interval[-2:] = max(interval[-2], staleness), learning_rate
        period = self._settings["interval_period_steps"]
        if self.step // period > (self.step - steps) // period:
            self._end_interval()
        period = self._settings["snapshot_period_steps"]
        updates = self._settings["snapshot_period_updates"]
        if (period and self.step // period > (self.step - steps) // period) or (
            updates and is_update and self.version % updates == 0
        ):
            self._periodic.append(self._snapshot("periodic"))

    def serve_time(self, phase: str, seconds: float) -> None:
        """Add to the seconds that the server has spent in a phase of /timing/server."""
        if self._began_s is not None:
            self._server_s[phase] += seconds

    def _count_staleness(self, worker: int, staleness: int) -> None:
        missing = staleness + 1 - self._staleness.shape[1]
        if missing > 0:
            self._staleness = np.pad(self._staleness, ((0, 0), (0, missing)))
        self._staleness[worker, staleness] += 1

    def _end_interval(self) -> None:
        *sums, pushes, step, version, began_s, staleness_max, learning_rate = self._interval
        wall_time_s, count = self.wall_time_s(), self.version - version
        seconds = max(wall_time_s - began_s, 1e-9)
        means = {name: value / pushes for name, value in zip(_SUMS, sums)}
        staleness = means.pop("staleness") * pushes
        self._tables["intervals"].append(
            step=self.step,
            version=self.version,
            wall_time_s=wall_time_s,
            learning_rate=learning_rate,
            staleness_mean=staleness / count if count else math.nan,
            staleness_max=int(staleness_max),
            num_active_workers=self.num_active_workers,
            updates_per_s=count / seconds,
            steps_per_s=(self.step - step) / seconds,
            **means,
        )
        self._interval = [0.0] * (len(_SUMS) + 1) + [self.step, self.version, wall_time_s, 0, 0]
        if self.num_episodes >= RECENT_EPISODES:
            if self._best is None or self.mean_return() > self._best.mean_return:
                self._best = self._snapshot("best")

    def _snapshot(self, kind: str) -> Snapshot:
        return Snapshot(kind, self.step, self.version, self.mean_return(), self._params.copy())

    def _groups_snapshots(self) -> list[Snapshot]:
        """Return what each group has since its last exchange, with its own members' return."""
        if "group_params" not in self._statistics:
            return []
        episodes = self._tables["episodes"].columns()
        played_by = np.array(self._groups)[episodes["worker_id"]]
        snapshots = []
        for group, params in enumerate(self._statistics["group_params"]):
            recent = episodes["episode_return"][played_by == group][-RECENT_EPISODES:]
            mean = recent.mean() if len(recent) else math.nan
            snapshots.append(Snapshot(f"group {group}", self.step, self.version, mean, params))
        return snapshots

    # --- What is known now

    @property
    def num_episodes(self) -> int:
        """Episodes finished so far."""
        return len(self._tables["episodes"])

    @property
    def num_active_workers(self) -> int:
        """Workers that have joined and were not parked again."""
        return len(self._active)

    def spent(self) -> float:
        """Return the share of the budget that is spent; 1 or more: all of it."""
        return spent(self._settings, self.step, self.num_episodes)

    def mean_return(self) -> float:
        """Return the mean of the last RECENT_EPISODES episode returns; nan before the first."""
        return self._tables["episodes"].mean_of_last("episode_return", RECENT_EPISODES)

    def mean_staleness(self) -> float:
        """Return the mean staleness of all updates so far, in updates."""
        counts = self._staleness.sum(axis=0)
        return float(np.arange(len(counts)) @ counts / max(1, counts.sum()))

    def moment(self) -> Moment:
        """Return what a person is shown of the run as it stands."""
        return Moment(
            self.step,
            budget(self._settings),
            self.spent(),
            self.version,
            self.num_episodes,
            self.mean_return(),
            self.mean_staleness(),
            self.num_active_workers,
            len(self._places),
            shares(self._worker_times()),
            server_load(self._server_times()),
        )

    def advice(self) -> str:
        """Return what would make a run like this one faster; '' if nothing stands out."""
        return advice(self._worker_times(), self._server_times(), self._settings)

    def _worker_times(self) -> dict[str, np.ndarray]:
        return dict(zip(TABLES["timing/worker"], self._worker_s.T))

    def _server_times(self) -> dict[str, np.ndarray]:
        return {phase: np.array([seconds]) for phase, seconds in self._server_s.items()}

    def is_due(self) -> bool:
        """Say whether the checkpoint period has passed since the last write."""
        return monotonic() - self._last_write >= self._settings["checkpoint_period_s"]

    # --- The file

    def finish(self, status: str) -> None:
        """Write the record with its final ``status``; a complete run may end in mid-interval."""
        if status == "complete" and self._interval[-6]:
            self._end_interval()
        self.event(status)
        self.write(status)

    def write(self, status: str = "running") -> None:
        """Write the whole record, atomically. Raises CannotWrite if the disk will not take it."""
        attributes = {
            **self.attributes,
            "status": status,
            "step": self.step,
            "version": self.version,
            "wall_time_s": self.wall_time_s(),
            "ended": utc_now(),
        }
        snapshots = [*self._periodic, *self._groups_snapshots()]
        snapshots += [*filter(None, [self._best]), self._snapshot("last")]
        table = Table("snapshots")
        for snapshot in snapshots:
            row = snapshot._asdict()
            del row["params"]
            table.append(**row)
        tables = {name: table.columns() for name, table in self._tables.items()}
        tables["snapshots"] = table.columns()
        nodes, transports = np.array(self._places, object).T
        counts = *np.array(self._counts, np.int64).T, self._first_push
        workers = np.arange(len(nodes)), np.array(self._groups), nodes, transports, *counts
        tables["workers"] = dict(zip(TABLES["workers"], workers))
        tables["timing/worker"] = self._worker_times()
        tables["timing/server"] = self._server_times()
        params = np.stack([snapshot.params for snapshot in snapshots])
        state = {} if status == "complete" else self._state()
        write_run(self.path, Run(attributes, tables, self._staleness, params, state))
        self._last_write = monotonic()

    def _state(self) -> dict[str, np.ndarray]:
        return {
            "params": self._params,
            "rng_states": self._rng_states,
            "interval": np.array(self._interval),
            "growth": self._growth_state,
            **{f"update_rule/{name}": values for name, values in self._statistics.items()},
        }

    def resume(self) -> None:
        """Go on from the run file: record, parameters, optimizer statistics and random states."""
        run = read_run(self.path, with_state=True)
        old, tables, state = run.attributes, run.tables, run.state
        self.attributes.update(started=old["started"], restart_count=old["restart_count"] + 1)
        self.step, self.version, self._elapsed_s = old["step"], old["version"], old["wall_time_s"]
        for name, table in self._tables.items():
            table.extend(tables[name])
        workers = tables["workers"]
        self._counts = np.stack([workers[name] for name in _COUNTS], axis=1).tolist()
        self._worker_s[:] = np.stack([*tables["timing/worker"].values()], axis=1)
        self._server_s = {name: column.item() for name, column in tables["timing/server"].items()}
        self._staleness = run.staleness
        columns = (tables["snapshots"][name] for name in Snapshot._fields[:-1])
        for snapshot in map(Snapshot, *columns, run.snapshot_params):
            if snapshot.kind == "periodic":
                self._periodic.append(snapshot)
            elif snapshot.kind == "best":
                self._best = snapshot
        self._params[:] = state["params"]
        self._rng_states[:], self._interval = state["rng_states"], state["interval"].tolist()
        if "growth" in state:
            self._growth_state[:] = state["growth"]
        for name, values in self._statistics.items():
            values[:] = state[f"update_rule/{name}"]
        if old["status"] == "running":
            self.event(KILLED)
        self.event(RESUMED)
