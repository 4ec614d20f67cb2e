"""A3C: workers push gradients (Mnih et al. 2016, arXiv 1602.01783, algorithm S3).

The paper's threads change the shared parameters themselves; here the server does it for them.
"""

import numpy as np

from mpi_rl.algorithms.algorithm import Algorithm
from mpi_rl.algorithms.worker import Worker
from mpi_rl.server.base_rule import GradientRule, Outcome, Push


def work(worker: Worker) -> None:
    """Work until the server tells this worker to stop or to park."""
    link = worker.hold_params()
    agent = worker.make_agent(link.pairs)
    worker.join(agent)
    while worker.goes_on:
        agent.use(link.half)  # theta' = theta
        rollout = agent.collect()  # until the episode ends, or n_steps are played
        worker.played(rollout)
        losses, grad_norm = agent.learn(rollout)  # R, then the gradient d theta
        worker.learned(losses, grad_norm)
        worker.exchange()  # the server updates theta by d theta
    agent.close()


class Server(GradientRule):
    """The server's half: every gradient is applied as it comes, and its sender answered."""

    def push(self, push: Push) -> Outcome:
        """Take in what a worker has pushed."""
        worker, config = push.worker, self.config
        if 0 < config.max_staleness < push.staleness:
            np.copyto(self.slots[worker].answer, self.params)
            return Outcome([worker], is_update=False, is_dropped=True)
        age = push.staleness if config.staleness_scaled_rate else 1  # Zhang et al. 2016
        self.apply(worker, push.learning_rate / max(1, age))
        return Outcome([worker])


A3C = Algorithm(work, Server)
