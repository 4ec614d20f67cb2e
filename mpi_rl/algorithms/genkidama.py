"""Genkidama: groups average parameters with the server (thesis at github.com/niko047/Genkidama).

Members change their group's parameters without a lock. Where their episodes end they meet, and one
of them exchanges for all:

    server <- (1 - alpha) server + alpha group,    then    group <- (1 - beta) group + beta server
"""

import numpy as np

from mpi_rl.algorithms.algorithm import Algorithm
from mpi_rl.algorithms.worker import Worker
from mpi_rl.learning.update_rules import copy, mix
from mpi_rl.server.base_rule import GroupRule, Outcome, Push


def work(worker: Worker) -> None:
    """Work until the server tells this worker to stop or to park."""
    link, group, config = worker.link, worker.meet_group(), worker.config
    agent = worker.make_agent(group.pairs)
    worker.join(agent)
    group.begin(link.params)
    while worker.goes_on:
        if worker.age % config.pull_period == 0:
            worker.add(num_torn_pulls=group.pull())
        rollout = agent.collect()  # until the episode ends, or n_steps are played
        worker.played(rollout)
        losses, grad_norm = agent.learn(rollout)  # R, then the gradient d theta
        worker.add(num_conflicts=group.update(grad_norm))
        worker.learned(losses, grad_norm)
        if worker.num_episodes < config.exchange_period and not link.is_hurried():
            continue
        worker.meet(group)
        if group.is_leader:
            np.copyto(link.grads, group.params)
        worker.exchange(group.kind)
        if group.is_leader:
            mix(group.params, link.params, config.beta, group.scratch)
        worker.meet(group)
    group.close()
    agent.close()


class Server(GroupRule):
    """The server's half: a group's parameters are mixed in as they come, and it is answered."""

    def push(self, push: Push) -> Outcome:
        """Take in what a worker has pushed."""
        worker, config = push.worker, self.config
        group, answer = self.start(worker), self.slots[worker].answer
        copy(group, self.slots[worker].grads)
        if config.elastic:  # with alpha = beta: Zhang et al. 2015 (1412.6651), equations 5 and 6
            copy(answer, self.params)
        mix(self.params, group, config.alpha, self.scratch)
        if not config.elastic:
            copy(answer, self.params)
        mix(group, answer, config.beta, self.scratch)
        return Outcome([worker])


GENKIDAMA = Algorithm(
    work,
    Server,
    pushes_gradients=False,
    has_groups=True,
    max_episodes=lambda config: config.exchange_period,
    unfit=(
        ("growth", "none", "groups are made at the start"),
        ("envs_per_worker", 1, "a group meets at the end of its members' episodes"),
        ("learning_rate_schedule", "constant", "groups do not anneal their rate"),
    ),
)
