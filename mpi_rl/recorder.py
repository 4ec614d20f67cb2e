"""What a running server writes down: counters, tables and everything that resuming needs."""

import json
import os
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from mpi_rl.runfile import SCHEMA, SCHEMA_VERSION, TABLES, Run, Table, read_run, utc_now, write_run

RECENT_EPISODES = 100  # episodes that a run's current mean return is taken over
RESUMED = "resumed with fresh episodes: emulator states are not saved"
_SUMS = ("policy_loss", "value_loss", "entropy", "grad_norm", "staleness")


class Recorder:
    """The record of one run, kept in memory and written whole by ``write``.

    ``params``, (P,), and the arrays of ``statistics`` are the server's own, changing while it learns; on resuming they are
    set to what the file holds.
    """

    def __init__(self, path: Path, attributes: dict[str, Any], settings: dict[str, Any], nodes: list[str],
                 transports: list[str], params: np.ndarray, statistics: dict[str, np.ndarray]) -> None:
        num_workers = len(nodes)
        self.path, self.attributes = path, {
            "schema": SCHEMA, "schema_version": SCHEMA_VERSION, **attributes, "config": json.dumps(settings),
            "num_workers": num_workers, "node_names": json.dumps(sorted(set(nodes))), "restart_count": 0,
            "started": utc_now()}
        self.step = self.version = 0
        self._settings, self._params, self._statistics = settings, params, statistics
        self._nodes, self._transports = nodes, transports
        self._tables = {name: Table(name) for name in ("episodes", "intervals", "events")}
        self._counts = np.zeros((3, num_workers), np.int64)  # steps, updates, episodes of each worker
        self._worker_s, self._server_s = np.zeros((num_workers, 4)), np.zeros(3)
        self._staleness = np.zeros((num_workers, 1), np.int64)
        self._snapshots = Table("snapshots")
        self._snapshot_params: list[np.ndarray] = []
        self._best: tuple[int, int, float, np.ndarray] | None = None  # step, version, mean return, parameters
        # Sums over the current interval's updates; then where it began: step, version, seconds; then largest staleness.
        self._interval = np.zeros(len(_SUMS) + 4)
        self._rng_states = np.zeros((num_workers, 6), np.uint64)
        self._elapsed_s, self._clock_started = 0.0, monotonic()
        self._last_write = monotonic()
        self._joined: set[int] = set()

    # --- Time

    def start_clock(self) -> None:
        """Training begins now: time before this is set-up."""
        self._clock_started = monotonic()

    def wall_time_s(self) -> float:
        """Return the seconds of training so far, those before a resumption included."""
        return self._elapsed_s + monotonic() - self._clock_started

    # --- What happens

    def event(self, kind: str, worker: int = -1) -> None:
        """Note ``kind`` now; worker is -1 for the server's own."""
        self._tables["events"].append(wall_time_s=self.wall_time_s(), step=self.step, worker_id=worker, kind=kind)

    def join(self, worker: int, rng_state: np.ndarray) -> np.ndarray | None:
        """Note that ``worker`` starts with a fresh random stream; return the saved one that it is to go on with, if any."""
        if not self._joined:
            self.start_clock()
        self._joined.add(worker)
        self.event("join", worker)
        if self._rng_states[worker].any():
            return self._rng_states[worker]
        self._rng_states[worker] = rng_state
        return None

    def push(self, worker: int, header: np.void, learning_rate: float, num_active_workers: int) -> None:
        """Record one applied gradient; ``header`` is what its worker sent."""
        staleness = self.version - int(header["version"])
        steps, count = int(header["num_steps"]), int(header["num_episodes"])
        self.step += steps
        self.version += 1
        self._counts[:, worker] += steps, 1, count
        self._worker_s[worker] += header["phase_s"]
        self._rng_states[worker] = header["rng_state"]
        self._count_staleness(worker, staleness)
        wall_time_s = self.wall_time_s()
        for episode in range(count):
            self._tables["episodes"].append(
                worker_id=worker, step=self.step, version=self.version, wall_time_s=wall_time_s,
                episode_return=header["episode_returns"][episode], episode_length=header["episode_lengths"][episode])
        self._interval[:len(_SUMS)] += *(header[name] for name in _SUMS[:4]), staleness
        self._interval[-1] = max(self._interval[-1], staleness)
        period = self._settings["interval_period_steps"]
        if self.step // period > (self.step - steps) // period:
            self._end_interval(learning_rate, num_active_workers)
        period = self._settings["snapshot_period_steps"]
        if period and self.step // period > (self.step - steps) // period:
            self._add_snapshot("periodic", self.step, self.version, self.mean_return(), self._params.copy())

    def serve_time(self, update_s: float, reply_s: float, idle_s: float) -> None:
        """Add to the seconds that the server has spent in each of its phases."""
        self._server_s += update_s, reply_s, idle_s

    def _count_staleness(self, worker: int, staleness: int) -> None:
        missing = staleness + 1 - self._staleness.shape[1]
        if missing > 0:
            self._staleness = np.pad(self._staleness, ((0, 0), (0, missing)))
        self._staleness[worker, staleness] += 1

    def _end_interval(self, learning_rate: float, num_active_workers: int) -> None:
        *sums, step, version, began_s, staleness_max = self._interval.tolist()
        count, seconds = self.version - version, max(self.wall_time_s() - began_s, 1e-9)
        means = dict(zip(_SUMS, (value / count for value in sums)))
        self._tables["intervals"].append(
            step=self.step, version=self.version, wall_time_s=self.wall_time_s(), learning_rate=learning_rate,
            staleness_mean=means.pop("staleness"), staleness_max=int(staleness_max),
            num_active_workers=num_active_workers, updates_per_s=count / seconds,
            steps_per_s=(self.step - step) / seconds, **means)
        self._interval[:] = 0
        self._interval[-4:-1] = self.step, self.version, self.wall_time_s()
        mean_return = self.mean_return()
        if len(self._tables["episodes"]) >= RECENT_EPISODES and (self._best is None or mean_return > self._best[2]):
            self._best = (self.step, self.version, mean_return, self._params.copy())

    def _add_snapshot(self, kind: str, step: int, version: int, mean_return: float, params: np.ndarray) -> None:
        self._snapshots.append(step=step, version=version, mean_return=mean_return, kind=kind)
        self._snapshot_params.append(params)

    # --- What is known now

    @property
    def num_episodes(self) -> int:
        """Episodes finished so far."""
        return len(self._tables["episodes"])

    def mean_return(self) -> float:
        """Return the mean of the last RECENT_EPISODES episode returns; nan before the first."""
        return self._tables["episodes"].mean_of_last("episode_return", RECENT_EPISODES)

    def mean_staleness(self) -> float:
        """Return the mean staleness of all updates so far, in updates."""
        counts = self._staleness.sum(axis=0)
        return float(np.arange(len(counts)) @ counts / max(1, counts.sum()))

    def is_due(self) -> bool:
        """Say whether the checkpoint period has passed since the last write."""
        return monotonic() - self._last_write >= self._settings["checkpoint_period_s"]

    # --- The file

    def finish(self, status: str, learning_rate: float) -> None:
        """Close the record with ``status`` and write it; a complete run's last interval may be a short one."""
        if status == "complete" and self.version > self._interval[-3]:
            self._end_interval(learning_rate, len(self._nodes))
        self.event(status)
        self.write(status)

    def write(self, status: str = "running") -> None:
        """Write the whole record to the run file, atomically. Raises OSError if the disk will not take it."""
        now_s = self.wall_time_s()
        best = [("best", *self._best)] if self._best else []
        extra = [*best, ("last", self.step, self.version, self.mean_return(), self._params)]
        snapshots = Table("snapshots").extend(self._snapshots.columns())
        for kind, step, version, mean_return, _ in extra:
            snapshots.append(step=step, version=version, mean_return=mean_return, kind=kind)
        columns = {name: table.columns() for name, table in self._tables.items()}
        columns["snapshots"] = snapshots.columns()
        columns["workers"] = dict(zip(TABLES["workers"], (
            np.arange(len(self._nodes)), np.array(self._nodes, object), np.array(self._transports, object),
            *self._counts)))
        columns["timing/worker"] = dict(zip(TABLES["timing/worker"], self._worker_s.T))
        columns["timing/server"] = dict(zip(TABLES["timing/server"], self._server_s[:, None]))
        attributes = {**self.attributes, "status": status, "step": self.step, "version": self.version,
                      "wall_time_s": now_s, "ended": utc_now()}
        params = np.stack([*self._snapshot_params, *(snapshot[-1] for snapshot in extra)])
        state = {} if status == "complete" else self._state()
        write_run(self.path, Run(attributes, columns, self._staleness, params, state))
        self._last_write = monotonic()

    def _state(self) -> dict[str, np.ndarray]:
        return {"params": self._params, "rng_states": self._rng_states, "interval": self._interval,
                **{f"update_rule/{name}": values for name, values in self._statistics.items()}}

    def resume(self) -> None:
        """Go on from the run file: counters, tables, parameters, optimizer statistics and random states."""
        run = read_run(self.path, with_state=True)
        old, workers, timing = run.attributes, run.tables["workers"], run.tables
        self.attributes.update(started=old["started"], restart_count=old["restart_count"] + 1)
        self.step, self.version, self._elapsed_s = old["step"], old["version"], old["wall_time_s"]
        for name, table in self._tables.items():
            table.extend(run.tables[name])
        self._counts[:] = workers["num_steps"], workers["num_updates"], workers["num_episodes"]
        self._worker_s[:] = np.stack(list(timing["timing/worker"].values()), axis=1)
        self._server_s[:] = np.concatenate(list(timing["timing/server"].values()))
        self._staleness = run.staleness
        for row, params in enumerate(run.snapshot_params):
            kind, step, version, mean_return = (run.tables["snapshots"][key][row].item() if key != "kind" else
                                                run.tables["snapshots"][key][row]
                                                for key in ("kind", "step", "version", "mean_return"))
            if kind == "periodic":
                self._add_snapshot(kind, step, version, mean_return, params)
            elif kind == "best":
                self._best = (step, version, mean_return, params)
        self._params[:] = run.state["params"]
        self._rng_states[:] = run.state["rng_states"]
        self._interval[:] = run.state["interval"]
        for name, values in self._statistics.items():
            values[:] = run.state[f"update_rule/{name}"]
        self.start_clock()
        self.event(RESUMED)
