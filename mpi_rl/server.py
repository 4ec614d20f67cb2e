"""Rank 0: collect pushes, apply the update rule, reply, record."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from mpi_rl.config import Config
from mpi_rl.growth import Growth, Observed
from mpi_rl.progress import Progress
from mpi_rl.recorder import Recorder
from mpi_rl.runfile import CannotWrite
from mpi_rl.transport import Backoff, Command, Kind, ServerLink
from mpi_rl.updates import UpdateRule, clipping, learning_rate_at

SHOW_PERIOD_S = 1.0  # between two looks at the progress
STOP_PATIENCE_S = 20.0  # for the pushes of workers that are to stop; Slurm kills 30 s after SIGTERM


class WorkersSilent(RuntimeError):
    """Workers on a node that is gone, or in a very long rollout, have not let themselves stop."""


class WorkerFailed(RuntimeError):
    """A worker has ended with an exception, which it prints itself."""


def serve(
    link: ServerLink,
    update_rule: UpdateRule,
    recorder: Recorder,
    progress: Progress,
    config: Config,
    growth: Growth,
    groups: Sequence[int],
    stop_requested: Callable[[], str],
    spin: bool = False,
) -> None:
    """Serve until the budget is spent or a stop is requested, and every worker has been told.

    Workers that ``growth`` does not want are parked: they have said that they are ready, and are
    answered once it does. ``groups`` has each worker's group; ``stop_requested`` returns the reason
    for a stop, '' while there is none. Raises WorkerFailed when a worker reports an exception, and
    once every worker has been told to stop, or was waited for, what ``_Stop.end`` raises.
    """

    def show(last: bool = False) -> None:
        progress.show(recorder.moment(), last)

    def is_over() -> bool:
        return bool(stop.reason) or recorder.spent() >= 1

    backoff, shown = Backoff(spin, link.bell), perf_counter()
    stop, roster = _Stop(stop_requested, recorder), _Roster(groups, growth)
    stop.save()
    show()  # speed is measured from here on
    while roster.serving:
        began = perf_counter()
        if stop.look(began):
            link.hurry()
        arrived = link.poll()
        for worker in arrived:
            kind, rng_state = link.header(worker)["kind"], None
            if kind == Kind.READY:
                roster.parked.add(worker)
                continue
            if kind == Kind.JOIN:
                command = roster.tell(worker, is_over())
                if command != Command.STOP:
                    np.copyto(link.params(worker), update_rule.start(worker))
                    rng_state = recorder.join(worker, link.header(worker)["rng_state"])
            else:
                _take_in(link, worker, update_rule, recorder, config, growth)
                command = roster.tell(worker, is_over())
            if command == Command.PARK:
                recorder.leave(worker)
            updated = perf_counter()
            link.reply(worker, recorder.version, command, rng_state)
            replied = perf_counter()
            recorder.serve_time("update", updated - began)
            recorder.serve_time("reply", replied - updated)
            began = replied
        for worker in roster.released(is_over):
            command = roster.tell(worker, is_over())
            if command != Command.STOP and config.growth != "none":
                recorder.event("admit", worker)
            link.reply(worker, recorder.version, command)
        if arrived:
            backoff.reset()
        else:
            backoff.sleep()
        now = perf_counter()
        recorder.serve_time("idle", now - began)
        if now - shown >= SHOW_PERIOD_S:
            shown = now
            show()
        if now - stop.since > STOP_PATIENCE_S:
            break
        if recorder.is_due():
            stop.save()
            recorder.serve_time("write", perf_counter() - now)
    stop.end(roster.serving)
    recorder.finish("complete" if recorder.spent() >= 1 else "checkpointed")
    show(last=True)


class _Roster:
    """Who is ``serving``, not told to stop yet; who of them is ``parked``; and what to tell them.

    Members of a group, who all push once per meeting, are told the same.
    """

    def __init__(self, groups: Sequence[int], growth: Growth) -> None:
        self.serving, self.parked = set(range(len(groups))), set[int]()
        self._groups, self._sizes, self._growth = groups, Counter(groups), growth
        self._asked: Counter[int] = Counter()
        self._commands: dict[int, Command] = {}

    def tell(self, worker: int, is_over: bool) -> Command:
        """Return what to answer ``worker``: STOP if it ``is_over`` for the first of its group."""
        group = self._groups[worker]
        if self._asked[group] % self._sizes[group] == 0:
            self._commands[group] = Command.STOP if is_over else Command.CONTINUE
        self._asked[group] += 1
        if self._commands[group] == Command.STOP:
            self.serving.remove(worker)
        elif worker >= self._growth.wanted:
            return Command.PARK
        return self._commands[group]

    def released(self, is_over: Callable[[], bool]) -> list[int]:
        """Return who is parked no longer: those who are wanted, or all where it ``is_over``."""
        if not self.parked:
            return []
        wanted = math.inf if is_over() else self._growth.wanted
        found = [worker for worker in sorted(self.parked) if worker < wanted]
        self.parked.difference_update(found)
        return found


class _Stop:
    """Why and since when workers are told to stop before the budget is spent."""

    def __init__(self, requested: Callable[[], str], recorder: Recorder) -> None:
        self._requested, self._recorder = requested, recorder
        self._unsaved: CannotWrite | None = None
        self.reason, self.since = "", math.inf

    def look(self, now: float) -> bool:
        """Note a request, and when (s) the first reason was seen; say whether there is one."""
        if not self.reason and (reason := self._requested()):
            self.reason = reason
            self._recorder.event(f"stopped by {reason}")
        if self.reason:
            self.since = min(self.since, now)
        return bool(self.reason)

    def save(self) -> None:
        """Write the record; that it cannot be written is a reason to stop."""
        if not self._unsaved:
            try:
                self._recorder.write()
            except CannotWrite as error:
                self._unsaved, self.reason = error, str(error)

    def end(self, silent: set[int]) -> None:
        """Raise WorkersSilent if any are still ``silent``, else CannotWrite; return if fine."""
        if silent:
            ranks = ", ".join(str(worker + 1) for worker in sorted(silent))
            text = f"no answer from rank(s) {ranks} in {STOP_PATIENCE_S:.0f} s"
            raise WorkersSilent(text) from self._unsaved
        if self._unsaved:
            raise self._unsaved


def _take_in(
    link: ServerLink,
    worker: int,
    update_rule: UpdateRule,
    recorder: Recorder,
    config: Config,
    growth: Growth,
) -> None:
    """Apply and record what ``worker`` pushed, and make the newest parameters its reply."""
    header = link.header(worker)
    if header["kind"] == Kind.FAILED:
        raise WorkerFailed(f"worker {worker} (rank {worker + 1}) failed")
    learning_rate = learning_rate_at(
        recorder.step, config.learning_rate, config.learning_rate_schedule, config.total_steps
    )
    is_report = header["kind"] == Kind.REPORT
    staleness = 0 if is_report else recorder.version - int(header["version"])
    is_dropped = 0 < config.max_staleness < staleness
    if is_dropped:
        np.copyto(link.params(worker), update_rule.start(worker))
    elif not is_report:
        own_rate = learning_rate / max(1, staleness if config.staleness_scaled_rate else 1)
        scale = clipping(float(header["grad_norm"]), config.max_grad_norm)
        update_rule(link.grads(worker), link.params(worker), own_rate, scale, worker)
    recorder.push(worker, header, learning_rate, not is_report, is_dropped)
    if config.growth != "none":
        growth.observe(_observed(recorder, header, config, staleness, is_dropped))


def _observed(
    recorder: Recorder, header: np.void, config: Config, staleness: int, is_dropped: bool
) -> Observed:
    """Return what a policy of growth is told of a push."""
    steps = int(header["num_steps"])
    unit = 1.0
    if config.growth_unit == "seconds":  # that a step of one environment took its worker
        unit = float(header["phase_s"][:-1].sum()) * config.envs_per_worker / steps
    durations = unit * header["episode_lengths"][: header["num_episodes"]]
    learned = 0 if is_dropped else steps
    active, wall_time_s = recorder.num_active_workers, recorder.wall_time_s()
    return Observed(recorder.step, wall_time_s, active, learned, staleness, durations)
