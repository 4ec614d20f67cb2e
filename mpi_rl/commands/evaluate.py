"""``mpi_rl evaluate``: episodes with every snapshot of finished runs, over all ranks.

A snapshot's episodes are one rank's work, in NUM_ENVS environments at once. They depend on the seed
alone, not on the number of ranks. It is the same for all snapshots, and so is the start of each
environment's first episode; later starts depend on what was played before.

Ctrl-C and SIGTERM save what has been played, let the snapshots now at play end, and save again.
"""

import os
import signal
import time
from concurrent.futures import Future, as_completed
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from mpi_rl.commands.cli import answer, greedy_option, parse
from mpi_rl.commands.launch import is_mislaunched, leave
from mpi_rl.compiled import kernels
from mpi_rl.config import Config
from mpi_rl.envs.make import make_envs
from mpi_rl.envs.spec import env_spec_from_json
from mpi_rl.errors import UserError, reading
from mpi_rl.learning.agent import draw
from mpi_rl.networks.make import make_network
from mpi_rl.networks.network import network_spec
from mpi_rl.records.lock import writer_lock
from mpi_rl.records.runfile import read_run, write_run

NUM_ENVS = 20
SAVE_PERIOD_S = SHOW_PERIOD_S = 10.0


@dataclass(frozen=True)
class Request:
    """How snapshots are to be played."""

    num_episodes: int
    greedy: bool
    seed: int

    @property
    def mode(self) -> str:
        """Where a run file keeps such evaluations."""
        return "greedy" if self.greedy else "sampled"


@click.command("evaluate")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--episodes",
    default=500,
    show_default=True,
    type=click.IntRange(1),
    help="episodes of each snapshot",
)
@greedy_option
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="of episodes and actions"
)
@click.option("--overwrite", is_flag=True, help="replace evaluations of other episodes")
def evaluate_runs(
    files: tuple[Path, ...], episodes: int, greedy: bool, seed: int, overwrite: bool
) -> int:
    """Play every snapshot of complete runs; the returns go into the run FILES.

    Under mpirun or srun all ranks but the first play. Snapshots that have been played already are
    left out: after an interruption the same command goes on.
    """
    return evaluate(list(files), Request(episodes, greedy, seed), overwrite)


def take_part(arguments: list[str]) -> int | None:
    """Let this rank evaluate; return its exit status. What all are answered rank 0 says."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if is_mislaunched(comm.size, MPI.Get_library_version()):
        return 2
    with ExitStack() as stack:
        if comm.rank:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        result, status = answer(lambda: parse(arguments))
    return 0 if comm.rank else leave(status or result)


def evaluate(paths: list[Path], request: Request, overwrite: bool) -> int:
    """Play what is missing, and write it into the files; return rank 0's exit status.

    Raises UserError on all ranks if their compiled kernels differ or are stale; on rank 0 if a file
    is not that of a finished run, or holds evaluations of other episodes, unless ``overwrite``.
    """
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    paths = [*{path.resolve(): path for path in paths}.values()]  # a file may be given twice
    kernels.compare(MPI.COMM_WORLD.allgather(kernels.KERNELS))
    kernels.check()
    rank = MPI.COMM_WORLD.rank
    for number in signal.SIGINT, signal.SIGTERM:  # KeyboardInterrupt, on rank 0 only
        signal.signal(number, signal.SIG_IGN if rank else signal.default_int_handler)
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor, ExitStack() as stack:
        if executor is None:
            return 0
        for path in paths:
            with reading(path):
                is_there = path.exists()
            if not is_there:  # nor, perhaps, a folder for its lock
                raise UserError(f"{path}: no such run file")
            stack.enter_context(writer_lock(path))
        _play_all([_File(path, request, overwrite) for path in paths], request, executor)
    return 0


class _File:
    """A run file and its evaluations, as far as they are known."""

    def __init__(self, path: Path, request: Request, overwrite: bool) -> None:
        self.path, self.run = path, read_run(path)
        if (status := self.run.attributes["status"]) != "complete":
            raise UserError(f"{path}: {status}: only complete runs are evaluated")
        shape = len(self.run.snapshot_params), request.num_episodes
        old = self.run.evaluations.get(request.mode)
        if not old or overwrite:
            returns, lengths = np.full(shape, np.nan), np.zeros(shape, np.int64)
            old = {"returns": returns, "lengths": lengths, "seed": np.array([request.seed])}
        if old["returns"].shape != shape or old["seed"][0] != request.seed:
            raise UserError(
                f"{path}: has {old['returns'].shape[1]} episodes of seed {old['seed'][0]} per"
                f" snapshot, {request.mode}: --episodes and --seed must be those, or give"
                " --overwrite"
            )
        self.arrays = self.run.evaluations[request.mode] = old
        self._unsaved, self._saved_s = False, time.monotonic()

    def missing(self) -> list[int]:
        """Return the rows of snapshots that have not been played."""
        return np.flatnonzero(np.isnan(self.arrays["returns"]).any(axis=1)).tolist()

    def take(self, row: int, returns: np.ndarray, lengths: np.ndarray) -> None:
        """Keep a snapshot's episodes."""
        self.arrays["returns"][row], self.arrays["lengths"][row] = returns, lengths
        self._unsaved = True
        if not self.missing() or time.monotonic() - self._saved_s > SAVE_PERIOD_S:
            self.save()

    def save(self) -> None:
        """Write the file, if it has changed."""
        if self._unsaved:
            write_run(self.path, self.run)
            self._unsaved, self._saved_s = False, time.monotonic()


def _play_all(files: list[_File], request: Request, executor: Any) -> None:
    todo = [(file, row) for file in files for row in file.missing()]
    began = shown = time.monotonic()
    print(f"{len(todo)} snapshot(s) of {len(files)} run(s) to play", flush=True)
    places: dict[Future, tuple[_File, int]] = {}  # of what has not been taken

    def take(future: Future) -> None:
        file, row = places[future]
        file.take(row, *future.result())
        del places[future]

    try:
        for file, row in todo:
            run = file.run
            task = run.attributes["env_spec"], run.config, run.snapshot_params[row]
            places[executor.submit(play, *task, request)] = file, row
        for done, future in enumerate(as_completed(places), start=1):
            take(future)
            now = time.monotonic()
            if now - shown > SHOW_PERIOD_S or done == len(todo):
                shown, left = now, round((now - began) / done * (len(todo) - done))
                print(f"{done:>6,} of {len(todo):,}  {left // 60}:{left % 60:02d} left", flush=True)
    except KeyboardInterrupt:
        print("stopping after the snapshots now at play; the same command goes on", flush=True)
        for file in files:
            file.save()
        for future in as_completed([future for future in places if not future.cancel()]):
            take(future)
        raise
    finally:
        for future in places:
            future.cancel()
        for file in files:
            file.save()
    for file in files:
        last = file.arrays["returns"][-1]
        print(f"{file.path}: last snapshot {last.mean():.1f}, deviation {last.std():.1f}")


def play(
    env_json: str, config: Config, params: np.ndarray, request: Request
) -> tuple[np.ndarray, np.ndarray]:
    """Return raw returns and lengths, (M,), of a policy's episodes, in the order they began.

    An environment whose episode ends takes the next. All that were begun are played to their ends,
    so that short episodes are not more likely to be among them than long ones.
    """
    spec = env_spec_from_json(env_json)
    count = min(NUM_ENVS, request.num_episodes)
    shape = network_spec(config, spec.observation_shape, spec.num_actions)
    params = params.astype(np.float32)
    network = make_network(shape, params, np.zeros_like(params), 1, count)
    envs = make_envs(spec, count)
    streams = np.random.SeedSequence(request.seed).spawn(2)
    rng = np.random.Generator(np.random.SFC64(streams[1]))
    observations = envs.reset(np.random.default_rng(streams[0]).integers(2**31 - 1, size=count))
    returns, lengths = np.zeros(request.num_episodes), np.zeros(request.num_episodes, np.int64)
    numbers, begun, left = list(range(count)), count, request.num_episodes
    while left:
        logits = network.logits(0, observations)
        result = envs.step(draw(logits, rng, request.greedy))
        observations = result.observations
        for env, episode_return, episode_length in result.episodes:
            if (number := numbers[env]) < request.num_episodes:
                returns[number], lengths[number] = episode_return, episode_length
                left -= 1
            numbers[env], begun = begun, begun + 1
    envs.close()
    return returns, lengths
