"""Exchange groups' parameters with a server: mpirun ... mixing.py TRANSPORT ORDER SETTINGS ...

SETTINGS are a run's, in JSON; one pair may follow another. The server takes the groups' exchanges
in that ORDER, like 0,1,1. A group of one adds its rank to all of its parameters in an episode, and
the server prints its own value and each group's. Members of larger groups add different numbers to
each, and the server prints whether its parameters are the groups', bit for bit.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from mpi_rl.algorithms import genkidama
from mpi_rl.algorithms.worker import Worker
from mpi_rl.config import NUM_BYTES, Config
from mpi_rl.learning.losses import Losses
from mpi_rl.server.base_rule import Push
from mpi_rl.transport.links import ServerLink, WorkerLink
from mpi_rl.transport.messages import Command, Kind
from mpi_rl.transport.waiting import wait_until

NUM_PARAMS = 50_001
SETTINGS = dict(
    algorithm="genkidama",
    update_rule="sgd",
    learning_rate=1.0,
    learning_rate_schedule="constant",
    max_grad_norm=0.0,
)


class Agent:
    """One whose gradients are all -1 times its rank, or random."""

    def __init__(self, params, grads, rng, rank, is_alone) -> None:
        self._params, self._grads, self._rng, self._is_alone = params, grads, rng, is_alone
        grads[:] = -rank

    def reset(self) -> None:
        pass

    close = reset

    def collect(self) -> SimpleNamespace:
        if not self._is_alone:
            self._rng.standard_normal(out=self._grads, dtype=np.float32)
        else:
            assert (self._params == self._params[0]).all(), "a torn pull"
        return SimpleNamespace(
            actions=np.zeros((1, 1)), env_s=0, act_s=0, episode_returns=[0.0], episode_lengths=[1]
        )

    def learn(self, rollout: SimpleNamespace) -> tuple[Losses, float]:
        return Losses(0, 0, 0), 1.0


class Member(Worker):
    """A worker with such an agent; ``found`` is what its group has at the end."""

    def make_agent(self, pairs):
        is_alone = self.config.group_size == 1
        return Agent(*pairs[0], self.rng, world.rank, is_alone)

    def meet_group(self):
        self.group = super().meet_group()
        close = self.group.close

        def close_and_tell():
            self.found = self.group.params.copy()
            close()

        self.group.close = close_and_tell
        return self.group


def work(comm: MPI.Intracomm, by_message: bool, config: Config) -> None:
    room = NUM_PARAMS, config.exchange_period
    link = WorkerLink(comm, *room, by_message, dtype=config.exchange_dtype)
    groups = [worker // config.group_size for worker in range(comm.size - 1)]
    member = Member(comm, link, config, None, None, groups)
    genkidama.work(member)
    is_leader = member.group.is_leader
    assert (link._report is None) == (is_leader or not by_message)  # reports are short
    assert link.params.itemsize == NUM_BYTES[config.exchange_dtype]
    comm.gather(member.found)
    link.close()


def serve(comm: MPI.Intracomm, by_message: bool, order: list[int], config: Config) -> None:
    room = NUM_PARAMS, config.exchange_period
    link = ServerLink(comm, *room, by_message, dtype=config.exchange_dtype)
    params, arrived = np.zeros(NUM_PARAMS, np.float32), set()
    groups = [worker // config.group_size for worker in range(link.num_workers)]
    rule = genkidama.GENKIDAMA.rule(config, params, link.slots, groups)

    def wait_for(worker: int) -> None:
        wait_until(lambda: arrived.update(link.poll()) or worker in arrived)
        arrived.remove(worker)

    for worker in range(link.num_workers):
        wait_for(worker)
        assert link.slots[worker].header["kind"] == Kind.JOIN
        np.copyto(link.slots[worker].answer, rule.start(worker))
        link.reply(worker, 0, 0, Command.CONTINUE)
    for turn, group in enumerate(order):
        is_last = group not in order[turn + 1 :]
        leader, *others = np.flatnonzero(np.equal(groups, group)).tolist()
        for worker in (*others, leader):
            wait_for(worker)
            header = link.slots[worker].header
            assert header["kind"] == (Kind.PUSH if worker == leader else Kind.REPORT)
            assert header["num_updates"] == header["num_episodes"] == config.exchange_period
            assert len(header["episode_returns"]) == config.exchange_period
            if worker == leader:
                rule.push(Push(worker, header, 0, 0.0, set()))
            link.reply(worker, turn + 1, 0, Command.STOP if is_last else Command.CONTINUE)
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
