"""Exchange groups' parameters with a server: mpirun ... mixing.py TRANSPORT ORDER SETTINGS ...

SETTINGS are a run's, in JSON; one pair may follow another. The server takes the groups' exchanges
in that ORDER, like 0,1,1. A group of one adds its rank to all of its parameters in an episode, and
the server prints its own value and each group's. Members of larger groups add different numbers to
each, and the server prints whether its parameters are the groups', bit for bit.
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
    """One whose gradients are all -1 times its rank, or random."""

    def __init__(self, rank: int, is_alone: bool) -> None:
        self.rng, self.params = make_rng(1, rank), np.zeros(NUM_PARAMS, np.float32)
        self.grads = np.full(NUM_PARAMS, -rank, np.float32)
        self._is_alone = is_alone

    def reset(self) -> None:
        pass

    def collect(self) -> SimpleNamespace:
        if not self._is_alone:
            self.rng.standard_normal(out=self.grads, dtype=np.float32)
        else:
            assert (self.params == self.params[0]).all(), "a torn pull"
        return SimpleNamespace(
            actions=np.zeros((1, 1)), env_s=0, act_s=0, episode_returns=[0.0], episode_lengths=[1]
        )

    def learn(self, rollout: SimpleNamespace) -> tuple[Losses, float]:
        return Losses(0, 0, 0), 1.0


def work(comm: MPI.Intracomm, by_message: bool, config: Config) -> None:
    room = NUM_PARAMS, config.exchange_period
    link = WorkerLink(comm, *room, by_message, dtype=config.exchange_dtype)
    of, size = (comm.rank - 1) // config.group_size, config.group_size
    group = Group(comm, range(of * size + 1, (of + 1) * size + 1), NUM_PARAMS)
    rule, agent = make_update_rule(SGD, group.params, 1), Agent(comm.rank, size == 1)
    genkidama.work(link, group, agent, rule, config, 1)
    assert (link._report is None) == (group.is_leader or not by_message)  # reports are short
    assert link.params.itemsize == NUM_BYTES[config.exchange_dtype]
    comm.gather(group.params)
    group.close()
    link.close()


def serve(comm: MPI.Intracomm, by_message: bool, order: list[int], config: Config) -> None:
    room = NUM_PARAMS, config.exchange_period
    link = ServerLink(comm, *room, by_message, config.exchange_dtype)
    params, arrived = np.zeros(NUM_PARAMS, np.float32), set()
    groups = [worker // config.group_size for worker in range(link.num_workers)]
    rule = server_rule(dataclasses.asdict(config), params, groups)

    def wait_for(worker: int) -> None:
        wait_until(lambda: arrived.update(link.poll()) or worker in arrived)
        arrived.remove(worker)

    for worker in range(link.num_workers):
        wait_for(worker)
        assert link.header(worker)["kind"] == Kind.JOIN
        np.copyto(link.params(worker), rule.start(worker))
        link.reply(worker, 0, Command.CONTINUE)
    for turn, group in enumerate(order):
        is_last = group not in order[turn + 1 :]
        leader, *others = np.flatnonzero(np.equal(groups, group)).tolist()
        for worker in (*others, leader):
            wait_for(worker)
            header = link.header(worker)
            assert header["kind"] == (Kind.PUSH if worker == leader else Kind.REPORT)
            assert header["num_updates"] == header["num_episodes"] == config.exchange_period
            assert len(header["episode_returns"]) == config.exchange_period
            if worker == leader:
                rule(link.grads(worker), link.params(worker), 0.0, 1.0, worker)
            link.reply(worker, turn + 1, Command.STOP if is_last else Command.CONTINUE)
    _, *of_workers = comm.gather(None)
    for worker, theirs in enumerate(of_workers):
        np.testing.assert_array_equal(theirs, rule.start(worker))
    if config.group_size == 1:
        assert all((own == own[0]).all() for own in (params, *of_workers))
        print(repr([params[0].item(), *(own[0].item() for own in of_workers)]))
    else:
        print(
            len(set(params)) > NUM_PARAMS // 2, *(np.array_equal(params, own) for own in of_workers)
        )
    link.close()


if __name__ == "__main__":
    world, message = MPI.COMM_WORLD, sys.argv[1] == "message"
    try:
        for order, settings in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
            config = Config(**(SETTINGS | json.loads(settings)))
            if world.rank == 0:
                serve(world, message, [int(word) for word in order.split(",")], config)
            else:
                work(world, message, config)
    except BaseException:
        import traceback

        traceback.print_exc()
        world.Abort(1)
