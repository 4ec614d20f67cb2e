"""Rank 0: collect pushes, let the rule decide, reply, record."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from mpi_rl.errors import CannotWrite
from mpi_rl.learning.update_rules import learning_rate_at
from mpi_rl.records.timing import PHASES
from mpi_rl.server.base_rule import Outcome, Push, Rule
from mpi_rl.server.growth import Growth, Observed
from mpi_rl.server.progress import Progress
from mpi_rl.server.recorder import Recorder
from mpi_rl.transport.links import ServerLink
from mpi_rl.transport.messages import Command, Kind

SHOW_PERIOD_S = 1.0  # between two looks at the progress
STOP_PATIENCE_S = 20.0  # for the pushes of workers that are to stop; Slurm kills 30 s after SIGTERM


class WorkersSilent(RuntimeError):
    """Workers on a node that is gone, or in a very long rollout, have not let themselves stop."""


class WorkerFailed(RuntimeError):
    """A worker has ended with an exception, which it prints itself."""


def serve(
    link: ServerLink,
    rule: Rule,
    recorder: Recorder,
    progress: Progress,
    growth: Growth,
    stop_requested: Callable[[], str],
) -> None:
    """Serve until the budget is spent or a stop is requested, and every worker has been told.

    Workers that ``growth`` does not want are parked: they have said that they are ready, and are
    answered once it does. ``stop_requested`` returns the reason for a stop, '' while there is none.
    Raises WorkerFailed when a worker reports an exception, and once every worker has been told to
    stop, or was waited for, what ``_Stop.end`` raises.
    """
    stop, roster = _Stop(stop_requested, recorder), _Roster(recorder.groups, growth)
    server = _Server(link, rule, recorder, growth, roster, stop)
    backoff, shown = link.backoff(), perf_counter()
    stop.save()
    progress.show(recorder.moment())  # speed is measured from here on
    while roster.serving:
        began = perf_counter()
        if stop.look(began):
            link.hurry()
        arrived = link.poll()
        for worker in arrived:
            for other in server.take_in(worker):
                began = server.answer(other, began)
        server.release()
        if arrived:
            backoff.reset()
        else:
            backoff.sleep()
        now = perf_counter()
        recorder.serve_time("idle", now - began)
        if now - shown >= SHOW_PERIOD_S:
            shown = now
            progress.show(recorder.moment())
        if now - stop.since > STOP_PATIENCE_S:
            break
        if recorder.is_due():
            stop.save()
            recorder.serve_time("write", perf_counter() - now)
    stop.end(roster.serving)
    recorder.finish("complete" if recorder.spent() >= 1 else "checkpointed")
    progress.show(recorder.moment(), last=True)


class _Server:
    """Takes in what workers send, and answers them."""

    def __init__(
        self,
        link: ServerLink,
        rule: Rule,
        recorder: Recorder,
        growth: Growth,
        roster: "_Roster",
        stop: "_Stop",
    ) -> None:
        self._link, self._rule, self._recorder, self._growth = link, rule, recorder, growth
        self._roster, self._stop, self._config = roster, stop, recorder.config

    def _is_over(self) -> bool:
        return bool(self._stop.reason) or self._recorder.spent() >= 1

    def take_in(self, worker: int) -> Sequence[int]:
        """Take in what ``worker`` has sent; return who is to be answered now."""
        kind = self._link.slots[worker].kind
        if kind == Kind.FAILED:
            raise WorkerFailed(f"worker {worker} (rank {worker + 1}) failed")
        if kind == Kind.READY:
            self._roster.parked.add(worker)
            return ()
        return (worker,) if kind == Kind.JOIN else self._push(worker, kind == Kind.REPORT)

    def _push(self, worker: int, is_report: bool) -> Sequence[int]:
        """Let the rule take in a push, and record it; a report changes nothing."""
        config, recorder, header = self._config, self._recorder, self._link.slots[worker].header
        learning_rate = learning_rate_at(
            recorder.step, config.learning_rate, config.learning_rate_schedule, config.total_steps
        )
        staleness = 0 if is_report else recorder.staleness(header)
        outcome = Outcome((worker,), is_update=False)
        if not is_report:
            push = Push(worker, header, staleness, learning_rate, self._roster.active)
            outcome = self._rule.push(push)
        recorder.push(worker, header, learning_rate, outcome.is_update, outcome.is_dropped)
        if config.growth != "none":
            self._growth.observe(_observed(recorder, header, staleness, outcome.is_dropped))
        return outcome.answered

    def answer(self, worker: int, began: float) -> float:
        """Answer ``worker``, whose push was seen at ``began``; return when that was done."""
        link, recorder, rng_state = self._link, self._recorder, None
        slot, command = link.slots[worker], self._roster.tell(worker, self._is_over())
        if slot.kind == Kind.JOIN and command != Command.STOP:
            np.copyto(slot.answer, self._rule.start(worker))
            rng_state = recorder.join(worker, slot.header["rng_state"])
            self._roster.active.add(worker)
        if command == Command.PARK:
            recorder.leave(worker)
        if command != Command.CONTINUE:
            self._roster.active.discard(worker)
        updated = perf_counter()
        link.reply(worker, recorder.version, recorder.step, command, rng_state)
        replied = perf_counter()
        recorder.serve_time("update", updated - began)
        recorder.serve_time("reply", replied - updated)
        return replied

    def release(self) -> None:
        """Answer those who are parked no longer."""
        for worker in self._roster.released(self._is_over):
            command = self._roster.tell(worker, self._is_over())
            if command != Command.STOP and self._config.growth != "none":
                self._recorder.event("admit", worker)
            self._link.reply(worker, self._recorder.version, self._recorder.step, command)


class _Roster:
    """Who is ``serving``, not told to stop yet, ``parked`` or ``active``; and what to tell them.

    Members of a group, who all push once per meeting, are told the same.
    """

    def __init__(self, groups: Sequence[int], growth: Growth) -> None:
        self.serving, self.parked = set(range(len(groups))), set[int]()
        self.active: set[int] = set()  # have joined, and were not parked again nor told to stop
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


def _observed(
    recorder: Recorder, header: np.void, staleness: int, is_dropped: bool
) -> Observed:
    """Return what a policy of growth is told of a push."""
    config, steps, unit = recorder.config, int(header["num_steps"]), 1.0
    if config.growth_unit == "seconds":  # that a step of one environment took its worker
        phases = sum(float(header[name]) for name in PHASES)
        unit = phases * config.envs_per_worker / steps
    durations = unit * header["episode_lengths"][: header["num_episodes"]]
    learned, active = 0 if is_dropped else steps, len(recorder.active)
    wall_time_s = recorder.wall_time_s()
    return Observed(recorder.step, wall_time_s, active, learned, staleness, durations)
