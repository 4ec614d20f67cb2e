"""Exchange groups' parameters with a server: mpirun ... mixing.py TRANSPORT ORDER SETTINGS.

Each worker is a group, and adds its rank to all of its parameters in an episode. The server takes
their exchanges in the ORDER given, like 0,1,1, and prints its own value and each group's. SETTINGS
are a run's, in JSON.
"""

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from mpi_rl import genkidama
from mpi_rl.agent import make_rng
from mpi_rl.config import NUM_BYTES, Config
from mpi_rl.group import Group
from mpi_rl.losses import Losses
from mpi_rl.transport import Command, Kind, ServerLink, WorkerLink, wait_until
from mpi_rl.updates import make_update_rule, server_rule

NUM_PARAMS = 50_001
SGD = dict(update_rule="sgd", momentum=0.0, weight_decay=0.0)
SETTINGS = dict(
    algorithm="genkidama",
    learning_rate=1.0,
    learning_rate_schedule="constant",
    max_grad_norm=0.0,
)


class Agent:
    """One whose gradients are all -1 times its rank."""

    def __init__(self, rank: int) -> None:
        self.rng, self.params = make_rng(1, rank), np.zeros(NUM_PARAMS, np.float32)
        self.grads = np.full(NUM_PARAMS, -rank, np.float32)

    def reset(self) -> None:
        pass

    def collect(self) -> SimpleNamespace:
        assert (self.params == self.params[0]).all(), "a torn pull"
        return SimpleNamespace(
            actions=np.zeros((1, 1)), env_s=0, act_s=0, episode_returns=[0.0], episode_lengths=[1]
        )

    def learn(self, rollout: SimpleNamespace) -> tuple[Losses, float]:
        return Losses(0, 0, 0), 1.0


def work(comm: MPI.Intracomm, by_message: bool, config: Config) -> None:
    room = NUM_PARAMS, config.exchange_period
    link = WorkerLink(comm, *room, by_message, dtype=config.exchange_dtype)
    group = Group(comm, [comm.rank], NUM_PARAMS)
    genkidama.work(link, group, Agent(comm.rank), make_update_rule(SGD, group.params, 1), config, 1)
    assert (group.params == group.params[0]).all()
    assert link.params.itemsize == NUM_BYTES[config.exchange_dtype]
    comm.gather(group.params[0].item())
    group.close()
    link.close()


def serve(comm: MPI.Intracomm, by_message: bool, order: list[int], config: Config) -> None:
    room = NUM_PARAMS, config.exchange_period
    link = ServerLink(comm, *room, by_message, config.exchange_dtype)
    params, arrived = np.zeros(NUM_PARAMS, np.float32), set()
    rule = server_rule(dataclasses.asdict(config), params, range(link.num_workers))

    def wait_for(worker: int) -> None:
        wait_until(lambda: arrived.update(link.poll()) or worker in arrived)
        arrived.remove(worker)

    for worker in range(link.num_workers):
        wait_for(worker)
        assert link.header(worker)["kind"] == Kind.JOIN
        np.copyto(link.params(worker), rule.start(worker))
        link.reply(worker, 0, Command.CONTINUE)
    for turn, worker in enumerate(order):
        wait_for(worker)
        header = link.header(worker)
        assert header["kind"] == Kind.PUSH and header["num_updates"] == config.exchange_period
        assert header["num_episodes"] == len(header["episode_returns"]) == config.exchange_period
        rule(link.grads(worker), link.params(worker), 0.0, 1.0, worker)
        is_last = worker not in order[turn + 1 :]
        link.reply(worker, turn + 1, Command.STOP if is_last else Command.CONTINUE)
    assert (params == params[0]).all()
    _, *groups = comm.gather(None)
    assert groups == rule.statistics["group_params"][:, 0].tolist()
    print(repr([params[0].item(), *groups]))
    link.close()


if __name__ == "__main__":
    world, message = MPI.COMM_WORLD, sys.argv[1] == "message"
    config = Config(**(SETTINGS | json.loads(sys.argv[3])))
    try:
        if world.rank == 0:
            serve(world, message, [int(word) for word in sys.argv[2].split(",")], config)
        else:
            work(world, message, config)
    except BaseException:
        import traceback

        traceback.print_exc()
        world.Abort(1)
