"""What the ranks of ``mpi_rl bench`` do; rank 0 prints what was measured as one line of JSON.

    mpirun -n 2 python -m mpi4py -m mpi_rl.bench.ranks env SECONDS CONFIG_AS_JSON
    mpirun -n 41 python -m mpi4py -m mpi_rl.bench.ranks server SECONDS '{"num_params": 677943, ...}'

``-m mpi4py`` ends all ranks when one raises.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpi_rl.algorithms.a3c import A3C
from mpi_rl.algorithms.group import Group
from mpi_rl.compiled import kernels
from mpi_rl.config import Config, config_from_json
from mpi_rl.envs.ale import emulator
from mpi_rl.envs.make import VECTOR_TASKS, env_spec, make_envs
from mpi_rl.envs.spec import EnvSpec
from mpi_rl.envs.tasks import VectorTask
from mpi_rl.networks.factors import Layout
from mpi_rl.networks.layers import Layer
from mpi_rl.server.growth import Observed
from mpi_rl.server.loop import serve
from mpi_rl.server.progress import Progress
from mpi_rl.server.recorder import Recorder
from mpi_rl.transport.links import ServerLink, WorkerLink
from mpi_rl.transport.messages import REPLY, Command, Kind, header_dtype
from mpi_rl.transport.waiting import sleeping_barrier

BLOCKS = 4  # a figure and its limit are measured in turns, each so many times
PERCENTILES = (50, 95, 99)
SETTLE_S = 1.0  # until workers that have met are asleep
TURN_SETTLE_S = 0.1  # with as many workers as a turn wants, before it counts
# Of all gradients and parameters: where memory is shared a reply is what the next push but one
# pushes. So they stay, and no statistic becomes denormal, and slow.
VALUE, LEARNING_RATE = 1e-3, 1e-12
LAYER_OUTPUTS = 256  # of the layer that a push may have the factors of
ADDING = Config(update_rule="sgd", learning_rate=1.0, max_grad_norm=0.0)  # -1 times gradients


def main() -> None:
    """Run one measurement on all ranks."""
    kind, seconds, settings = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    comm = MPI.COMM_WORLD
    measured = {"env": _env, "server": _server, "group": _group}[kind](comm, seconds, settings)
    if comm.rank == 0:
        print(json.dumps(measured), flush=True)


def _env(comm: MPI.Intracomm, seconds: float, settings: str) -> dict[str, float]:
    """Step environments on every rank, in turns as a worker does and as bare as can be."""
    config = config_from_json(settings)
    spec, count = env_spec(config), config.envs_per_worker
    actions = np.random.default_rng(comm.rank).integers(spec.num_actions, size=(1024, count))
    envs, turn = make_envs(spec, count), 0
    envs.reset(np.arange(count) + comm.rank * count)

    def step() -> int:
        nonlocal turn
        turn += 1
        envs.step(actions[turn % 1024])
        return count

    bare = (_bare_task if spec.env in VECTOR_TASKS else _bare_game)(spec, comm.rank)
    rates = np.zeros((BLOCKS, 2))
    for block in range(BLOCKS):
        for i, play in enumerate((bare, step)):
            sleeping_barrier(comm)
            rates[block, i] = _rate(play, seconds / BLOCKS / 2)
    total = comm.reduce(rates)
    if total is None:
        return {}
    ratios = total[:, 1] / total[:, 0]
    limit, ours = np.median(total, axis=0)
    return {"steps_per_s": ours, "limit": limit, "ratio": float(np.median(ratios))}


def _rate(play: Callable[[], int], seconds: float) -> float:
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        count += sum(play() for _ in range(8))
    return count / elapsed


def _bare_task(spec: EnvSpec, seed: int) -> Callable[[], int]:
    """Return what steps the Gymnasium task alone, with random actions."""
    (env,) = VectorTask(spec, 1).envs
    env.reset(seed=seed)
    actions, turn = np.random.default_rng(seed).integers(spec.num_actions, size=1024).tolist(), 0

    def step() -> int:
        nonlocal turn
        turn += 1
        _, _, terminated, truncated, _ = env.step(actions[turn % 1024])
        if terminated or truncated:
            env.reset()
        return 1

    return step


def _bare_game(spec: EnvSpec, seed: int) -> Callable[[], int]:
    """Return what emulates a step's frames of an ALE game, and does nothing else."""
    game, turn = emulator(spec, seed), 0
    moves = game.getMinimalActionSet()
    actions = np.random.default_rng(seed).integers(len(moves), size=1024).tolist()

    def step() -> int:
        nonlocal turn
        for _ in range(spec.frame_skip):  # a new action in each frame, as the emulator's limit
            turn += 1
            game.act(moves[actions[turn % 1024]])
            if game.game_over():
                game.reset_game()
        return 1

    return step


def _server(comm: MPI.Intracomm, seconds: float, settings: str) -> list[dict[str, float]]:
    """Push as fast as the server takes it, or every ``pause_s``, with ever so many ``workers``.

    They take turns in one run, the others being parked, so that a machine whose speed drifts is as
    slow for each.
    """
    values: dict[str, Any] = json.loads(settings)
    config = dataclasses.replace(config_from_json(values["config"]), learning_rate=LEARNING_RATE)
    layout, by_message = _layout(values, config), values["transport"] == "message"
    room: Any = dict(by_message=by_message, num_pushed=layout.size)
    if comm.rank > 0:
        link = WorkerLink(comm, layout.num_params, 1, **room)
        link.params[:] = link.grads[:] = VALUE
        sleeping_barrier(comm)
        pushes = _push_until_told(link, values["pause_s"])
        link.close()
        comm.gather(pushes)
        return []
    kernels.start_threads(values["threads"])
    params = np.full(layout.num_params, VALUE, np.float32)
    server = ServerLink(comm, layout.num_params, 1, **room)
    rule = A3C.rule(config, params, server.slots, range(comm.size - 1), layout)
    sleeping_barrier(comm)
    time.sleep(SETTLE_S)
    turns = _Turns(values["workers"], seconds / BLOCKS)
    limits = [1 / _traffic(server, count, params, rule.statistics) for count in turns.counts]
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        path, origin = Path(folder, "run.h5"), {"job": "bench"}
        record = Recorder(path, origin, config, server.places, rule, turns)
        with redirect_stdout(nowhere):
            serve(server, rule, record, Progress("bench"), turns, partial(turns.look, record))
    server.close()
    pushes = np.concatenate((comm.gather(np.zeros((0, 2))) or [])[1:])
    return [turns.found(turn, pushes, limit, layout) for turn, limit in enumerate(limits)]


def _layout(values: dict[str, Any], config: Config) -> Layout:
    """Return a push for so many parameters: all but a few are of one dense layer."""
    outputs = min(LAYER_OUTPUTS, values["num_params"] // 4)
    rest = values["num_params"] - outputs * (inputs := values["num_params"] // outputs - 2)
    stack = [Layer("trunk", inputs, outputs), Layer("value", rest - outputs - 1, 1)]
    rows = config.n_steps * config.envs_per_worker if values["push"] == "factors" else 0
    return Layout(stack, rows, always=True)


class _Turns:
    """A policy of growth that wants each of ``counts`` workers in turns, BLOCKS times."""

    def __init__(self, counts: Sequence[int], seconds: float) -> None:
        self.counts, self.state = counts, np.zeros(1)
        self._seconds, self._turn, self._unsettled = seconds, 0, 0.0
        self._marks: list[tuple[float, int, float]] = []  # at begin and end: time, updates, CPU

    @property
    def wanted(self) -> int:
        """Workers wanted now."""
        return self.counts[self._turn % len(self.counts)]

    def observe(self, push: Observed) -> None:
        """Want the same, whatever is pushed."""

    def look(self, record: Recorder) -> str:
        """Note where turns begin, once all have joined or left, and end; return why to stop."""
        now = time.perf_counter()
        if len(self._marks) == 2 * self._turn:
            if len(record.active) != self.wanted:
                self._unsettled = now
            if now - self._unsettled < TURN_SETTLE_S:
                return ""
        elif now - self._marks[-1][0] < self._seconds:
            return ""
        self._marks.append((now, record.version, time.process_time()))
        if len(self._marks) % 2 == 0:
            self._turn += 1
        return "time" if self._turn == BLOCKS * len(self.counts) else ""

    def found(
        self, turn: int, pushes: np.ndarray, limit: float, layout: Layout
    ) -> dict[str, float]:
        """Return the figures of one of ``counts``; ``pushes``, (N, 2), are ends and waits in s."""
        marks = np.array(self._marks).reshape(BLOCKS, len(self.counts), 2, 3)
        seconds, updates, cpu = np.moveaxis(marks[:, :, 1] - marks[:, :, 0], -1, 0)
        rates = updates / seconds
        rate = float(np.median(rates[:, turn]))
        ends, times = pushes[:, 0], marks[:, turn, :, 0]
        within = ((times[:, :1] <= ends) & (ends <= times[:, 1:])).any(axis=0)
        waits = pushes[within, 1]
        found = {f"p{q}": float(np.percentile(waits, q)) for q in PERCENTILES} if len(waits) else {}
        return {
            "pushes_per_s": rate,
            "up_bytes": header_dtype(1).itemsize + 4 * layout.size,
            "down_bytes": REPLY.itemsize + 4 * layout.num_params,
            "bytes_per_s": rate * 4 * (layout.size + layout.num_params),
            "limit": limit,
            "ratio": rate / limit,
            "cpu": float(cpu[:, turn].sum() / seconds[:, turn].sum()),
            **found,
            "of_first": float(np.median(rates[:, turn] / np.maximum(rates[:, 0], 1e-9))),
        }


def _group(comm: MPI.Intracomm, seconds: float, settings: str) -> dict[str, float]:
    """Add 1 to all parameters of a group, each member every ``pause_s``, and count what is lost."""
    values: dict[str, Any] = json.loads(settings)
    num_params, met, count, began = values["num_params"], 0, 0, 0.0
    if comm.rank:
        group = Group(comm, range(1, comm.size), num_params, ADDING)
        group.pairs[0][1][:] = -1
        group.meet()
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            met += group.update(grad_norm=0.0)
            count += 1
            time.sleep(values["pause_s"])
        group.meet()
        kept = float(group.params.mean()) if group.is_leader else 0.0
        group.close()
        sleeping_barrier(comm)
        comm.gather((count, met, kept))
        return {}
    sleeping_barrier(comm)
    counts, conflicts, kept = np.sum((comm.gather(None) or [])[1:], axis=0)
    return {
        "updates_per_s": counts / seconds,
        "conflicts_per_s": conflicts / seconds,
        "conflicts": conflicts / counts,
        "lost": 1 - kept / counts,
    }


def _push_until_told(link: WorkerLink, pause_s: float) -> np.ndarray:
    """Push again and again, ``pause_s`` apart; return each push's end and duration in s, (N, 2)."""
    pushes: list[tuple[float, float]] = []
    while link.is_admitted():
        link.header["kind"], link.header["rng_state"] = Kind.JOIN, 1
        link.push()
        reply = link.pull()
        link.header["kind"], link.header["num_steps"] = Kind.PUSH, 1
        while int(reply["command"]) == Command.CONTINUE:
            if pause_s:
                time.sleep(pause_s)
            link.header["version"] = reply["version"]
            began = time.perf_counter()
            link.push()
            reply = link.pull()
            ended = time.perf_counter()
            pushes.append((ended, ended - began))
    return np.array(pushes).reshape(-1, 2)


def _traffic(
    link: ServerLink, count: int, params: np.ndarray, statistics: dict[str, np.ndarray]
) -> float:
    """Return the seconds for one update's memory traffic alone, ``count`` workers in turns.

    An update reads what was pushed and writes the reply (over a gradient, where memory is shared),
    and reads and writes, in place, the parameters and each statistic of their size.
    """
    vectors = [params, *(array.reshape(-1)[: params.size] for array in statistics.values())]
    one, times, began = np.float32(1), [], time.perf_counter()
    while time.perf_counter() - began < SETTLE_S:
        for worker in [*range(count), *range(count)]:  # each slot's vectors in turns, too
            before = time.perf_counter()
            slot = link.slots[worker]
            if slot.turns:
                np.multiply(slot.grads, one, out=slot.answer)
            else:
                np.multiply(slot.grads, one, out=slot.grads)
                np.copyto(slot.answer, params)
            for vector in vectors:
                if vector.size == params.size:
                    np.multiply(vector, one, out=vector)
            times.append(time.perf_counter() - before)
            slot.turn()
    return float(np.median(times))


if __name__ == "__main__":
    main()
