"""``mpi_rl evaluate``: episodes with every snapshot of finished runs, over all ranks.

A snapshot's episodes are one rank's work, in NUM_ENVS environments at once. They depend on the seed
alone, not on the number of ranks. It is the same for all snapshots, and so is the start of each
environment's first episode; later starts depend on what was played before.
"""

import signal
import time
from concurrent.futures import Future, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from mpi4py.futures import MPICommExecutor

from mpi_rl.agent import draw, make_network
from mpi_rl.envs import env_spec_from_json, make_envs
from mpi_rl.lock import writer_lock
from mpi_rl.networks import network_spec
from mpi_rl.runfile import read_run, write_run

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


def evaluate(paths: list[Path], request: Request, overwrite: bool) -> int:
    """Play what is missing, and write it into the files; return rank 0's exit status.

    Raises ValueError on rank 0 if a file is not that of a finished run, or holds evaluations of
    other episodes, unless ``overwrite``.
    """
    paths = [*{path.resolve(): path for path in paths}.values()]  # a file may be given twice
    if MPI.COMM_WORLD.rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 hears it
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor, ExitStack() as stack:
        if executor is None:
            return 0
        for path in paths:
            stack.enter_context(writer_lock(path))
        _play_all([_File(path, request, overwrite) for path in paths], request, executor)
    return 0


class _File:
    """A run file and its evaluations, as far as they are known."""

    def __init__(self, path: Path, request: Request, overwrite: bool) -> None:
        self.path, self.run = path, read_run(path)
        if (status := self.run.attributes["status"]) != "complete":
            raise ValueError(f"{path}: {status}: only complete runs are evaluated")
        shape = len(self.run.snapshot_params), request.num_episodes
        old = self.run.evaluations.get(request.mode)
        if not old or overwrite:
            returns, lengths = np.full(shape, np.nan), np.zeros(shape, np.int64)
            old = {"returns": returns, "lengths": lengths, "seed": np.array([request.seed])}
        if old["returns"].shape != shape or old["seed"][0] != request.seed:
            raise ValueError(
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
    places: dict[Future, tuple[_File, int]] = {}
    try:
        for file, row in todo:
            run = file.run
            task = run.attributes["env_spec"], run.config, run.snapshot_params[row]
            places[executor.submit(play, *task, request)] = file, row
        for done, future in enumerate(as_completed(places), start=1):
            file, row = places[future]
            file.take(row, *future.result())
            now = time.monotonic()
            if now - shown > SHOW_PERIOD_S or done == len(todo):
                shown, left = now, round((now - began) / done * (len(todo) - done))
                print(f"{done:>6,} of {len(todo):,}  {left // 60}:{left % 60:02d} left", flush=True)
    finally:
        for future in places:
            future.cancel()
        for file in files:
            file.save()
    for file in files:
        last = file.arrays["returns"][-1]
        print(f"{file.path}: last snapshot {last.mean():.1f}, deviation {last.std():.1f}")


def play(
    env_json: str, config: dict[str, Any], params: np.ndarray, request: Request
) -> tuple[np.ndarray, np.ndarray]:
    """Return raw returns and lengths, (M,), of a policy's episodes, in the order of their seeds."""
    spec = env_spec_from_json(env_json)
    count = min(NUM_ENVS, request.num_episodes)
    shape = network_spec(config, spec.observation_shape, spec.num_actions)
    params = params.astype(np.float32)
    network = make_network(shape, params, np.zeros_like(params), 1, count)
    envs = make_envs(spec, count)
    streams = np.random.SeedSequence(request.seed).spawn(2)
    rng = np.random.Generator(np.random.SFC64(streams[1]))
    observations = envs.reset(np.random.default_rng(streams[0]).integers(2**31 - 1, size=count))
    # Environment e plays episodes e, e + count, ...: as many of the quick ones as of the long ones.
    returns, lengths = np.zeros((2, -(-request.num_episodes // count), count))
    turn, everyone = np.zeros(count, int), np.arange(count)
    wanted = -(-(request.num_episodes - everyone) // count)
    while (turn < wanted).any():
        logits = network.logits(0, observations)
        result = envs.step(draw(logits, rng, request.greedy))
        observations = result.observations
        playing = turn < wanted
        at = turn[playing], everyone[playing]
        returns[at] += result.rewards[playing]
        lengths[at] += 1
        turn += result.episode_over
    envs.close()
    flat = slice(request.num_episodes)
    return returns.reshape(-1)[flat], lengths.reshape(-1)[flat].astype(np.int64)
