"""A rank's part of a run, once all have agreed on it: rank 0 serves, the others work."""

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_rl.commands.launch import circumstances, print_traceback
from mpi_rl.config import Config
from mpi_rl.errors import CannotWrite

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_rl.algorithms.algorithm import Algorithm
    from mpi_rl.envs.spec import EnvSpec
    from mpi_rl.networks.factors import Layout
    from mpi_rl.networks.network import NetworkSpec
    from mpi_rl.server.recorder import Recorder

STOP_FILE_PERIOD_S = 1.0  # between two looks


@dataclass(frozen=True)
class TrainOptions:
    """What ``train`` was asked to do: the run's settings, and how to carry it out."""

    job: str  # its name
    index: int
    config: Config
    output: Path
    overwrite: bool
    by_message: bool  # no shared window, not even on the server's node
    spin: bool
    stop_file: Path | None  # stop when this appears


@dataclass(frozen=True)
class Plan:
    """What rank 0 tells all ranks before they start."""

    options: TrainOptions
    env: "EnvSpec"
    groups: tuple[int, ...] = ()  # of each worker

    @property
    def algorithm(self) -> "Algorithm":
        """The run's algorithm."""
        from mpi_rl.algorithms.choice import algorithm_of

        return algorithm_of(self.options.config)

    @property
    def network(self) -> "NetworkSpec":
        """The run's network, as the code on this rank has it."""
        from mpi_rl.networks.network import network_spec

        return network_spec(self.options.config, self.env.observation_shape, self.env.num_actions)

    @property
    def layout(self) -> "Layout":
        """What a worker pushes."""
        from mpi_rl.networks.factors import Layout, layout_of
        from mpi_rl.networks.layers import layers

        if not self.algorithm.pushes_gradients:
            return Layout(layers(self.network))
        return layout_of(self.options.config, self.network)

    def link(self, layout: "Layout") -> dict[str, Any]:
        """Return what both ends of a link are to be made with."""
        options, config = self.options, self.options.config
        return dict(
            num_params=layout.num_params,
            max_episodes=self.algorithm.max_episodes(config),
            by_message=options.by_message,
            spin=options.spin,
            dtype=config.exchange_dtype,
            num_pushed=layout.size,
        )


def serve_run(comm: "MPI.Intracomm", plan: Plan, commit: dict[str, Any]) -> int:
    """Rank 0's part of a run; return its exit status."""
    from mpi4py import MPI

    from mpi_rl.compiled import kernels
    from mpi_rl.compiled.memory import vector
    from mpi_rl.networks.layers import initial_params
    from mpi_rl.server.growth import growth
    from mpi_rl.server.loop import WorkersSilent, serve
    from mpi_rl.server.progress import Progress
    from mpi_rl.server.recorder import Recorder
    from mpi_rl.transport.links import ServerLink
    from mpi_rl.transport.waiting import sleeping_barrier

    options, config = plan.options, plan.options.config
    kernels.start_threads(config.server_threads)
    layout = plan.layout
    params = vector(layout.num_params)
    params[:] = layout.from_file(initial_params(plan.network, config.seed))
    policy = growth(config, comm.size - 1)
    sleeping_barrier(comm)
    link = ServerLink(comm, **plan.link(layout))
    rule = plan.algorithm.rule(config, params, link.slots, plan.groups, layout)
    origin = _origin(comm, plan, commit)
    recorder = Recorder(options.output, origin, config, link.places, rule, policy)
    if options.output.exists() and not options.overwrite:
        recorder.resume()
    stop_requested = _stop_requests(options.stop_file)
    title = f"{options.job}[{options.index}]: {config.env}, {link.num_workers} workers"
    title += f" -> {options.output}"
    print(title + (f", resumed at step {recorder.step:,}" if recorder.step else ""), flush=True)
    try:
        with Progress(title) as progress:
            serve(link, rule, recorder, progress, policy, stop_requested)
    except CannotWrite as error:
        print(f"mpi_rl: {error}", file=sys.stderr, flush=True)
        link.close()
        return error.status
    except (MPI.Exception, WorkersSilent) as error:  # a node that is gone is no fault of the run
        recorder.event(f"stopped by an error: {error}")
        with suppress(CannotWrite):  # that may be why workers had to stop, and is told then
            recorder.finish("checkpointed")
        raise
    except BaseException:
        recorder.finish("failed")
        raise
    link.close()
    _print_end(recorder, plan)
    return 0


def _origin(comm: "MPI.Intracomm", plan: Plan, commit: dict[str, Any]) -> dict[str, Any]:
    """Return what the run file says about where the run comes from."""
    return {
        "job": plan.options.job,
        "index": plan.options.index,
        "seed": plan.options.config.seed,
        "env_spec": plan.env.to_json(),
        "env_spec_hash": plan.env.hash(),
        **circumstances(comm.size, commit),
    }


def _print_end(recorder: "Recorder", plan: Plan) -> None:
    """Say how a run ended, and what can be done with its file."""
    from mpi_rl.records.timing import advice

    config, output = plan.options.config, plan.options.output
    times = recorder.worker_times(), recorder.server_times()
    if hint := advice(*times, config, plan.algorithm.has_groups):
        print(f"{hint}.", flush=True)
    if recorder.spent() < 1:
        stopped = f"Stopped at step {recorder.step:,} and saved"
        print(f"{stopped}: the same command resumes {output}", flush=True)
    else:
        python = os.path.relpath(sys.executable)
        python = python if len(python) < len(sys.executable) else sys.executable
        plot = f"{python} -m mpi_rl plot {shlex.quote(str(output))}"
        print(f"Done: {output}. Plot it with: {plot}", flush=True)


def work_run(comm: "MPI.Intracomm", plan: Plan) -> None:
    """A worker's part of a run."""
    # The server hears these and tells its workers to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from mpi4py import MPI

    from mpi_rl.algorithms.worker import Worker
    from mpi_rl.transport.links import WorkerLink
    from mpi_rl.transport.waiting import sleeping_barrier

    options, config = plan.options, plan.options.config
    sleeping_barrier(comm)
    layout = plan.layout
    link = WorkerLink(comm, **plan.link(layout))
    try:
        while link.is_admitted():
            run = plan.env, plan.network, plan.groups, options.spin, layout
            plan.algorithm.work(Worker(comm, link, config, *run))
    except MPI.Exception:
        raise
    except Exception:
        print_traceback(comm.rank)
        link.fail()  # the server saves the run and ends all ranks; should it not, we do
        comm.Abort(1)
    link.close()


def _stop_requests(stop_file: Path | None) -> Callable[[], str]:
    """Return a function that says what asks for a stop, '' while nothing does.

    That is Ctrl-C, of which a second one ends us at once, SIGTERM, of which Slurm may send several,
    or the stop file.
    """
    caught: list[str] = []
    looked_s = -math.inf

    def note(number: int, frame: object) -> None:
        caught.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def requested() -> str:
        nonlocal looked_s
        if stop_file is not None and time.monotonic() - looked_s >= STOP_FILE_PERIOD_S:
            looked_s = time.monotonic()
            with suppress(OSError):  # absent, as a rule; a script may write the reason in it
                caught.append(stop_file.read_text().strip() or "the stop file")
        return caught[0] if caught else ""

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return requested
