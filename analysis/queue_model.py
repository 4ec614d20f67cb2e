"""What a push takes, and the queue at the server: the model that speed_model draws.

Workers and their server are a closed network of one delay and one queue. Of the server's time for a
push a share is shared out over its threads. The rest is not: Python, the header, the record. With t
threads it is S (1 - p + p / t) (Amdahl 1967); runs with one thread and with two give the share p.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.runs import name_of
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import Run
from mpi_rl.records.timing import PHASES, busy_s

THREADS = 1, 2, 4, 8  # of the server

Pools = dict[tuple[int, int], list[Run]]  # runs by their numbers of workers and server threads
Pair = tuple[Run, Run]  # with one worker and one seed: one server thread, and two


@dataclass(frozen=True)
class Times:
    """What one push takes, in seconds, and how many steps it brings."""

    phases: dict[str, float]  # of the worker alone: env, act, learn, push
    latency_s: float  # of the wait, what is not the server's work
    server_s: float  # with one thread
    steps: float
    stretch: float = 1.0  # of all times, where two workers or more are busy
    shared: float = 0.0  # share of server_s that threads share out

    @property
    def alone_s(self) -> float:
        """The time between a reply and the arrival of the next push."""
        return sum(self.phases.values()) + self.latency_s

    @property
    def saturating(self) -> float:
        """The saturation point: with more workers than that some are always in the queue."""
        return (self.alone_s + self.server_s) / self.server_s

    def with_threads(self, threads: int) -> "Times":
        """Return the times with so many server threads: S_t = S (1 - p + p / t)."""
        server_s = self.server_s * (1 - self.shared + self.shared / threads)
        return dataclasses.replace(self, server_s=server_s, shared=0.0)


def times_of(
    runs: Sequence[Run], runs_of_two: Sequence[Run] = (), pairs: Sequence[Pair] = ()
) -> Times:
    """Return the mean times of runs with one worker and one server thread.

    They are stretched as in ``runs_of_two``, which have two workers, and threads share out as much
    as in ``pairs``. Raises UserError for ``runs`` with more workers.
    """
    found = []
    for run in runs:
        workers, seconds = run.tables["workers"], run.tables["timing/worker"]
        if len(workers["worker_id"]) != 1:
            raise UserError(
                f"{name_of(run)}: {len(workers['worker_id'])} workers: the model's times come from"
                " runs with one"
            )
        own = [seconds[name][0] / _pushes(run) for name in PHASES if name != "wait"]
        served = server_s(run)
        latency_s = max(0.0, seconds["wait"][0] / _pushes(run) - served)
        found.append([*own, latency_s, served, workers["num_steps"][0] / _pushes(run)])
    *own, latency_s, served, steps = np.mean(found, axis=0).tolist()
    alone, together = (
        np.mean([cpu_s(run) for run in some]) for some in (runs, runs_of_two or runs)
    )
    stretch = float(together / alone)
    return Times(dict(zip(PHASES, own)), latency_s, served, steps, stretch, shared_of(pairs))


def shared_of(pairs: Sequence[Pair]) -> float:
    """Return the share p of the server's time that threads share out, 0 without ``pairs``.

    S_2 / S_1 = 1 - p / 2. Outside of 0 to 1, where noise may put it, the nearer of the two.
    """
    if not pairs:
        return 0.0
    one, two = np.mean([parts_s(*pair)[:2] for pair in pairs], axis=0)
    return float(np.clip(2 * (1 - two / one), 0, 1))


def parts_s(one: Run, two: Run) -> tuple[float, float, float, float]:
    """Return the server's time with one thread and two, what is shared out, and what is not.

    As one pair of runs has them, in seconds; noise may make a part negative.
    """
    first, second = server_s(one), server_s(two)
    return first, second, 2 * (first - second), 2 * second - first


def server_s(run: Run) -> float:
    """Return the server's time for a push and its reply."""
    server = run.tables["timing/server"]
    return float((server["update"][0] + server["reply"][0]) / _pushes(run))


def off_core_s(run: Run) -> float:
    """Return how long workers had work but no core, per push: a lower bound.

    That is the time of all phases but the wait, less all processor time, the wait's included. A
    value below 0 says nothing.
    """
    return busy_s(run.tables["timing/worker"]) / _pushes(run) - cpu_s(run)


def cpu_s(run: Run) -> float:
    """Return the processor time that a worker spends on a push."""
    return float(run.tables["timing/worker"]["cpu"].sum() / _pushes(run))


def _pushes(run: Run) -> int:
    workers = run.tables["workers"]
    return int(workers["num_pushes"].sum() + workers["num_dropped"].sum())


def predict(times: Times, num_workers: int) -> tuple[float, float]:
    """Return the steps/s of so many workers, each on its own core, and the server's load.

    Mean value analysis: an arriving push finds the queue as it is on average with one worker less,
    R_n = S (1 + Q_{n-1}); then X_n = n / (Z + R_n) pushes are served per second, and Q_n = X_n R_n.
    """
    stretch = times.stretch if num_workers > 1 else 1.0
    alone_s, served_s = stretch * times.alone_s, stretch * times.server_s
    queue = pushes_per_s = 0.0
    for n in range(1, num_workers + 1):
        response_s = served_s * (1 + queue)
        pushes_per_s = n / (alone_s + response_s)
        queue = pushes_per_s * response_s
    return pushes_per_s * times.steps, pushes_per_s * served_s


def measured(run: Run) -> float:
    """Return a run's steps/s without its first interval and its last, which may be a short one.

    Raises UserError if that leaves none.
    """
    steps, seconds = (run.tables["intervals"][key] for key in ("step", "wall_time_s"))
    if len(steps) < 3:
        raise UserError(f"{name_of(run)}: {len(steps)} interval(s): too short to tell its speed")
    return float((steps[-2] - steps[0]) / (seconds[-2] - seconds[0]))


def by_task(runs: Sequence[Run]) -> dict[str, Pools]:
    """Return runs by a name of their task, and then by workers and server threads."""
    found: dict[str, Pools] = {}
    for run in runs:
        config = run.config
        pools = found.setdefault(f"{config.env}, n_steps {config.n_steps}", {})
        pools.setdefault((config.num_workers, config.server_threads), []).append(run)
    return found


def pairs_of(pools: Pools) -> list[Pair]:
    """Return the pairs of runs that tell what threads share out."""
    seeds = {run.config.seed: run for run in pools.get((1, 2), [])}
    ones = [run for run in pools[1, 1] if run.config.seed in seeds]
    return [(run, seeds[run.config.seed]) for run in ones]


def threads_of(pools: Pools) -> tuple[int, ...]:
    """Return the numbers of server threads that can be modelled."""
    return THREADS if pairs_of(pools) else THREADS[:1]


def is_extrapolated(pools: Pools, num_workers: int, threads: int) -> bool:
    """Say whether no run has as many workers, or more, with as many server threads, or more."""
    return not any(num_workers <= most and threads <= of_them for most, of_them in pools)
