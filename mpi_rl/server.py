"""Rank 0: collect pushes, apply the update rule, reply, record."""

import time
from collections.abc import Callable
from time import perf_counter

import numpy as np

from mpi_rl.config import Config
from mpi_rl.progress import Progress, Snapshot
from mpi_rl.recorder import Recorder
from mpi_rl.transport import SLEEP_FIRST_S, SLEEP_LAST_S, Command, Kind, ServerLink
from mpi_rl.updates import UpdateRule, clip_by_norm, learning_rate_at

LOOK_PERIOD_S = 1.0  # between looks at the clock: progress, checkpoints


class WorkerFailed(RuntimeError):
    """A worker has ended with an exception, which it prints itself."""


def serve(link: ServerLink, params: np.ndarray, update_rule: UpdateRule, recorder: Recorder, progress: Progress,
          config: Config, stop_requested: Callable[[], bool], spin: bool = False) -> None:
    """Serve all workers until the budget is spent or a stop is requested, and every worker has been told so.

    ``params``, (P,), is changed in place by ``update_rule``. Raises WorkerFailed when a worker reports an exception.
    """
    active, pause = set(range(link.num_workers)), SLEEP_FIRST_S
    looked = now = perf_counter()
    while active:
        arrived = link.poll()
        for worker in arrived:
            serving = perf_counter()
            header = link.header(worker).copy()  # the next push may overwrite the original once we have replied
            rng_state = None
            learning_rate = _learning_rate(config, recorder.step)
            if header["kind"] == Kind.FAILED:
                raise WorkerFailed(f"worker {worker} (rank {worker + 1}) failed")
            if header["kind"] == Kind.JOIN:
                rng_state = recorder.join(worker, header["rng_state"])
            else:
                grads = link.grads(worker)
                clip_by_norm(grads, float(header["grad_norm"]), config.max_grad_norm)
                update_rule(grads, learning_rate, worker)
                recorder.push(worker, header, learning_rate, len(active))
            updated = perf_counter()
            stop = recorder.step >= config.total_steps or stop_requested()
            if stop:
                active.remove(worker)
            link.reply(worker, params, recorder.version, Command.STOP if stop else Command.CONTINUE, rng_state)
            recorder.serve_time(updated - serving, perf_counter() - updated, 0.0)
        if arrived:
            pause = SLEEP_FIRST_S
        elif not spin:
            time.sleep(pause)
            pause = min(2 * pause, SLEEP_LAST_S)
        before, now = now, perf_counter()
        if not arrived:
            recorder.serve_time(0.0, 0.0, now - before)
        if now - looked >= LOOK_PERIOD_S:
            looked = now
            progress.show(snapshot(recorder, config, len(active), link.num_workers))
            if recorder.is_due():
                recorder.write()
    complete = recorder.step >= config.total_steps
    recorder.finish("complete" if complete else "checkpointed", _learning_rate(config, recorder.step))
    progress.show(snapshot(recorder, config, 0, link.num_workers), last=True)


def _learning_rate(config: Config, step: int) -> float:
    return learning_rate_at(step, config.learning_rate, config.learning_rate_schedule, config.total_steps)


def snapshot(recorder: Recorder, config: Config, num_active_workers: int, num_workers: int) -> Snapshot:
    """Return what progress shows of the run as it stands."""
    return Snapshot(recorder.step, config.total_steps, recorder.version, recorder.num_episodes, recorder.mean_return(),
                    recorder.mean_staleness(), num_active_workers, num_workers)
