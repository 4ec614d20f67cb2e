"""What a running server writes down: the record of a run, and everything that resuming needs."""

import dataclasses
import json
import math
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from mpi_rl.config import Config, budget, spent
from mpi_rl.records.runfile import (
    KILLED,
    RESUMED,
    SCHEMA,
    SCHEMA_VERSION,
    Run,
    read_run,
    utc_now,
    write_run,
)
from mpi_rl.records.tables import TABLES, Table
from mpi_rl.records.timing import server_load, shares
from mpi_rl.server.base_rule import Rule
from mpi_rl.server.checkpoint import Checkpoint
from mpi_rl.server.growth import Growth
from mpi_rl.server.progress import Moment
from mpi_rl.server.snapshots import RECENT_EPISODES, Snapshot, Snapshots, as_columns, of_groups
from mpi_rl.server.tallies import Interval, Tallies
from mpi_rl.transport.messages import reported
from mpi_rl.transport.metrics import NOTED, REPORTED

_NUM_STEPS, _NUM_EPISODES, _NUM_UPDATES = (
    [metric.name for metric in REPORTED].index(name)
    for name in ("num_steps", "num_episodes", "num_updates")
)


class Recorder:
    """The record of one run, kept in memory and written whole by ``write``.

    The rule's parameters and statistics, and growth's numbers, change while a run goes on;
    ``resume`` sets them to what the file holds.
    """

    def __init__(
        self,
        path: Path,
        origin: dict[str, Any],
        config: Config,
        places: list[tuple[str, str]],
        rule: Rule,
        growth: Growth,
    ) -> None:
        """Start an empty record; a worker's place is its node and its transport."""
        num_workers = len(places)
        self.path, self.config, self.groups, self._places = path, config, rule.groups, places
        self.attributes = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            **origin,
            "config": json.dumps(dataclasses.asdict(config)),
            "num_workers": num_workers,
            "node_names": json.dumps(sorted({node for node, _ in places})),
            "restart_count": 0,
            "started": utc_now(),
        }
        self.step = self.version = 0
        self.active: set[int] = set()  # workers that have joined and were not parked again
        self.tallies, self.snapshots, self._interval = Tallies(num_workers), Snapshots(), Interval()
        self._tables = {name: Table(name) for name in ("episodes", "intervals", "events")}
        self._server_s = dict.fromkeys(TABLES["timing/server"], 0.0)
        self._rule = rule
        self._rng_states = np.zeros((num_workers, 6), np.uint64)
        self._checkpoint = Checkpoint(rule, growth.state, self._rng_states)
        self._elapsed_s = 0.0  # before this start
        self._began_s: float | None = None  # when its first worker joined
        self._last_write = monotonic()

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
        self.active.add(worker)
        self.event("join", worker)
        if self._rng_states[worker].any():
            return self._rng_states[worker]
        self._rng_states[worker] = rng_state
        return None

    def leave(self, worker: int) -> None:
        """Note that ``worker`` is parked; the episode that it was at is not recorded."""
        self.active.remove(worker)
        self.event("leave", worker)

    def staleness(self, header: np.void) -> int:
        """Return how many updates there were since the parameters of a push were pulled."""
        return self.version - int(header["version"])

    def push(
        self,
        worker: int,
        header: np.void,
        learning_rate: float,
        is_update: bool = True,
        is_dropped: bool = False,
    ) -> None:
        """Record what ``worker`` has done and sent as ``header``.

        The version rises by one if the parameters have changed: ``is_update``.
        """
        values, noted = [*reported(header)], {"learning_rate": learning_rate, "staleness": math.nan}
        noted |= {"num_pushes": is_update, "num_dropped": is_dropped}
        if is_update:
            noted["staleness"] = staleness = self.staleness(header)
            self.tallies.count_staleness(worker, staleness)
            self.version += 1
        elif is_dropped:
            values[_NUM_UPDATES] = 0
        values += [noted[metric.name] for metric in NOTED]
        num_episodes = values[_NUM_EPISODES]
        before, self.step = self.step, self.step + int(values[_NUM_STEPS])
        self.tallies.add(worker, values)
        self._interval.add(values)
        self._rng_states[worker] = header["rng_state"]
        if num_episodes:
            self._add_episodes(worker, header, int(num_episodes))
        self._keep_times(before, is_update)

    def _add_episodes(self, worker: int, header: np.void, count: int) -> None:
        wall_time_s = self.wall_time_s()
        returns, lengths = header["episode_returns"].tolist(), header["episode_lengths"].tolist()
        for episode_return, episode_length in zip(returns[:count], lengths[:count]):
            self._tables["episodes"].append(
                worker_id=worker,
                step=self.step,
                version=self.version,
                wall_time_s=wall_time_s,
                episode_return=episode_return,
                episode_length=episode_length,
            )

    def _keep_times(self, before: int, is_update: bool) -> None:
        """End intervals and take snapshots that are due, after steps from ``before`` on."""
        config = self.config
        if _passed(before, self.step, config.interval_period_steps):
            self._end_interval()
        updates = config.snapshot_period_updates
        if _passed(before, self.step, config.snapshot_period_steps) or (
            updates and is_update and self.version % updates == 0
        ):
            self.snapshots.periodic.append(self._snapshot("periodic"))

    def serve_time(self, phase: str, seconds: float) -> None:
        """Add to the seconds that the server has spent in a phase of /timing/server."""
        if self._began_s is not None:
            self._server_s[phase] += seconds

    def _end_interval(self) -> None:
        interval, wall_time_s = self._interval, self.wall_time_s()
        seconds = max(wall_time_s - interval.wall_time_s, 1e-9)
        self._tables["intervals"].append(
            step=self.step,
            version=self.version,
            wall_time_s=wall_time_s,
            num_active_workers=len(self.active),
            updates_per_s=(self.version - interval.version) / seconds,
            steps_per_s=(self.step - interval.step) / seconds,
            **interval.columns(),
        )
        self._interval = Interval(self.step, self.version, wall_time_s)
        best = self.snapshots.best
        if self.num_episodes >= RECENT_EPISODES:
            if best is None or self.mean_return() > best.mean_return:
                self.snapshots.best = self._snapshot("best")

    def _snapshot(self, kind: str) -> Snapshot:
        params = self._rule.to_file(self._rule.params).copy()
        return Snapshot(kind, self.step, self.version, self.mean_return(), params)

    # --- What is known now

    @property
    def num_episodes(self) -> int:
        """Episodes finished so far."""
        return len(self._tables["episodes"])

    def spent(self) -> float:
        """Return the share of the budget that is spent; 1 or more: all of it."""
        return spent(self.config, self.step, self.num_episodes)

    def mean_return(self) -> float:
        """Return the mean of the last RECENT_EPISODES episode returns; nan before the first."""
        return self._tables["episodes"].mean_of_last("episode_return", RECENT_EPISODES)

    def moment(self) -> Moment:
        """Return what a person is shown of the run as it stands."""
        return Moment(
            self.step,
            budget(self.config),
            self.spent(),
            self.version,
            self.num_episodes,
            self.mean_return(),
            self.tallies.mean_staleness(),
            len(self.active),
            len(self._places),
            shares(self.worker_times()),
            server_load(self.server_times()),
        )

    def worker_times(self) -> dict[str, np.ndarray]:
        """Return /timing/worker."""
        return self.tallies.columns("timing/worker")

    def server_times(self) -> dict[str, np.ndarray]:
        """Return /timing/server."""
        return {phase: np.array([seconds]) for phase, seconds in self._server_s.items()}

    def is_due(self) -> bool:
        """Say whether the checkpoint period has passed since the last write."""
        return monotonic() - self._last_write >= self.config.checkpoint_period_s

    # --- The file

    def finish(self, status: str) -> None:
        """Write the record with its final ``status``; a complete run may end in mid-interval."""
        if status == "complete" and self._interval.num_pushes:
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
        tables = {name: table.columns() for name, table in self._tables.items()}
        last = self._snapshot("last")
        groups = of_groups(self._rule.group_params, self.groups, tables["episodes"], last)
        best = [] if self.snapshots.best is None else [self.snapshots.best]
        kept = [*self.snapshots.periodic, *groups, *best, last]
        tables["snapshots"], params = as_columns(kept)
        tables["workers"] = self._workers()
        tables["timing/worker"], tables["timing/server"] = self.worker_times(), self.server_times()
        state = {} if status == "complete" else self._checkpoint.state()
        if state:
            state["interval"] = self._interval.state()
        write_run(self.path, Run(attributes, tables, self.tallies.staleness, params, state))
        self._last_write = monotonic()

    def _workers(self) -> dict[str, np.ndarray]:
        nodes, transports = np.array(self._places, object).T
        return {
            "worker_id": np.arange(len(nodes)),
            "group_id": np.array(self.groups),
            "node": nodes,
            "transport": transports,
            **self.tallies.columns("workers"),
            "first_push_s": self.tallies.first_push_s,
        }

    def resume(self) -> None:
        """Go on from the run file: record, parameters, optimizer statistics and random states."""
        run = read_run(self.path, with_state=True)
        old = run.attributes
        self.attributes.update(started=old["started"], restart_count=old["restart_count"] + 1)
        self.step, self.version, self._elapsed_s = old["step"], old["version"], old["wall_time_s"]
        for name, table in self._tables.items():
            table.extend(run.tables[name])
        times = run.tables["timing/server"].items()
        self._server_s = {name: column.item() for name, column in times}
        self.tallies.restore(run.tables, run.staleness)
        self.snapshots.restore(run)
        self._checkpoint.restore(run.state)
        self._interval.restore(run.state["interval"])
        if old["status"] == "running":
            self.event(KILLED)
        self.event(RESUMED)


def _passed(before: int, after: int, period: int) -> bool:
    """Say whether a multiple of ``period`` lies in before + 1 to after; 0: never."""
    return bool(period) and after // period > before // period
