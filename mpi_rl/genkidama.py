"""Genkidama's worker: play episodes, learn into the group's parameters, average with the server.

Asynchronous weight averaging, from the thesis at github.com/niko047/Genkidama. Members of a group
change its parameters without a lock, as A3C's threads do. At an episode's end, or that of every
``exchange_period``-th, they meet, and one of them, the leader, exchanges for all:

    server <- (1 - alpha) server + alpha group,    then    group <- (1 - beta) group + beta server

Groups never wait for one another. (The thesis draws the member that exchanges; as all have the same
parameters then, that changes nothing.)
"""

import time
from time import perf_counter, process_time

import numpy as np

from mpi_rl.agent import Agent, Rollout, rng_state, set_rng_state
from mpi_rl.config import Config
from mpi_rl.group import Group
from mpi_rl.losses import Losses
from mpi_rl.transport import Command, Kind, WorkerLink
from mpi_rl.updates import UpdateRule, clipping, mix


def work(
    link: WorkerLink,
    group: Group,
    agent: Agent,
    update_rule: UpdateRule,
    config: Config,
    slowdown: float,
) -> None:
    """Run one worker until the server says stop.

    ``update_rule`` changes ``group.params``, and keeps this worker's own statistics. With a
    ``slowdown`` s > 1 the worker sleeps s - 1 times as long as it works.
    """
    link.header["kind"] = Kind.JOIN
    link.header["rng_state"] = rng_state(agent.rng)
    link.push()
    reply = link.pull()
    if reply["resumed"]:
        set_rng_state(agent.rng, reply["rng_state"])
    if group.is_leader:
        np.copyto(group.params, link.params)
    group.meet()
    agent.reset()
    scratch, push_s, wait_s, cpu = np.zeros_like(group.params), 0.0, 0.0, process_time()
    while reply["command"] == Command.CONTINUE:
        version, played = reply["version"], _Played()
        while True:
            if played.updates_of_episode % config.pull_period == 0:
                played.num_torn_pulls += group.pull(agent.params)
            began = perf_counter()
            rollout = agent.collect()
            collected = perf_counter()
            losses, grad_norm = agent.learn(rollout)
            scale = clipping(grad_norm, config.max_grad_norm)
            met = group.update(update_rule, agent.grads, config.learning_rate, scale)
            played.add(rollout, losses, grad_norm, met, perf_counter() - collected)
            time.sleep((slowdown - 1) * (perf_counter() - began))
            if played.num_episodes == config.exchange_period or link.is_hurried():
                break
        ended = perf_counter()
        group.meet()
        met_s = perf_counter() - ended
        if group.is_leader:
            np.copyto(link.grads, group.params)
        before, cpu = cpu, process_time()
        kind = Kind.PUSH if group.is_leader else Kind.REPORT
        phases = *played.phases(), push_s, wait_s + met_s, cpu - before
        link.header["kind"], link.header["version"] = kind, version
        link.header["phase_s"], link.header["rng_state"] = phases, rng_state(agent.rng)
        played.write(link.header)
        started = perf_counter()
        link.push()
        pushed = perf_counter()
        reply = link.pull()
        if group.is_leader:
            mix(group.params, link.params, config.beta, scratch)
        group.meet()
        push_s, wait_s = pushed - started, perf_counter() - pushed


class _Played:
    """What a worker did from one exchange to the next, for its header."""

    def __init__(self) -> None:
        self.num_steps = self.num_updates = self.num_conflicts = self.num_torn_pulls = 0
        self._terms = np.zeros(4)  # the losses and the gradient's norm, summed over updates
        self._seconds = np.zeros(3)  # env, act, learn
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self.updates_of_episode = 0

    @property
    def num_episodes(self) -> int:
        """How many episodes have been played to their end."""
        return len(self._returns)

    def add(
        self, rollout: Rollout, losses: Losses, grad_norm: float, met: bool, learn_s: float
    ) -> None:
        """Count an update; ``met``: while another member made one."""
        self.num_steps += rollout.actions.size
        self.num_updates += 1
        self.num_conflicts += met
        self._terms += (*losses, grad_norm)
        self._seconds += (rollout.env_s, rollout.act_s, learn_s)
        self.updates_of_episode = 0 if rollout.episode_returns else self.updates_of_episode + 1
        self._returns += rollout.episode_returns
        self._lengths += rollout.episode_lengths

    def phases(self) -> tuple[float, ...]:
        """Return the seconds in the environment, acting and learning."""
        return tuple(self._seconds)

    def write(self, header: np.void) -> None:
        """Write what was counted, and the means of the losses."""
        header["num_steps"], header["num_updates"] = self.num_steps, self.num_updates
        header["num_conflicts"] = self.num_conflicts
        header["num_torn_pulls"] = self.num_torn_pulls
        means = self._terms / self.num_updates
        header["policy_loss"], header["value_loss"], header["entropy"], header["grad_norm"] = means
        header["num_episodes"] = count = len(self._returns)
        header["episode_returns"][:count] = self._returns
        header["episode_lengths"][:count] = self._lengths
