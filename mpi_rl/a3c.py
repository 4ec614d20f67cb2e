"""A3C's worker: pull parameters, play a rollout, push its gradient.

This is algorithm S3 of Mnih et al. 2016. Where the paper's threads change shared parameters
themselves, here the server applies each gradient and answers with the newest parameters, so one
message each way is both push and pull.
"""

from time import perf_counter, process_time

import numpy as np

from mpi_rl.agent import Agent, Rollout, rng_state, set_rng_state
from mpi_rl.config import Config
from mpi_rl.losses import Losses
from mpi_rl.transport import Command, Kind, WorkerLink


def work(link: WorkerLink, agent: Agent, config: Config) -> None:
    """Run one worker until the server says stop, or park.

    With a pull_period above 1 the agent's parameters are not the link's but a copy, renewed only so
    often, and where an episode ends; with delayed_pull, a copy of what the pull before brought.
    """
    has_copy = config.pull_period > 1 or config.delayed_pull
    own = np.empty_like(link.params) if has_copy else None
    link.header["kind"] = Kind.JOIN
    link.header["rng_state"] = rng_state(agent.rng)
    link.push()
    reply = link.pull()
    if reply["resumed"]:
        set_rng_state(agent.rng, reply["rng_state"])
    agent.reset()
    push_s = wait_s = 0.0
    cpu, age = process_time(), 0  # pushes since the last pull
    if config.delayed_pull:
        held, held_version = link.params.copy(), reply["version"].item()
    while reply["command"] == Command.CONTINUE:
        agent.use(link.params if own is None else own, link.grads)
        if age % config.pull_period == 0:
            version, age = reply["version"].item(), 0
            if config.delayed_pull:
                np.copyto(agent.params, held)
                np.copyto(held, link.params)
                version, held_version = held_version, version
            elif own is not None:
                np.copyto(own, link.params)
        rollout = agent.collect()
        started = perf_counter()
        losses, grad_norm = agent.learn(rollout)
        learned = perf_counter()
        before, cpu = cpu, process_time()
        phases = rollout.env_s, rollout.act_s, learned - started, push_s, wait_s, cpu - before
        _write_header(link, agent, rollout, losses, grad_norm, version, phases)
        link.push()
        pushed = perf_counter()
        reply = link.pull()
        push_s, wait_s = pushed - learned, perf_counter() - pushed
        age = 0 if rollout.episode_returns else age + 1


def _write_header(
    link: WorkerLink,
    agent: Agent,
    rollout: Rollout,
    losses: Losses,
    grad_norm: float,
    version: int,
    phases: tuple[float, ...],
) -> None:
    header, count = link.header, len(rollout.episode_returns)
    header["kind"] = Kind.PUSH
    header["version"] = version
    header["num_steps"], header["num_updates"] = rollout.actions.size, 1
    header["policy_loss"], header["value_loss"] = losses.policy_loss, losses.value_loss
    header["entropy"], header["grad_norm"] = losses.entropy, grad_norm
    header["phase_s"] = phases
    header["rng_state"] = rng_state(agent.rng)
    header["num_episodes"] = count
    header["episode_returns"][:count] = rollout.episode_returns
    header["episode_lengths"][:count] = rollout.episode_lengths
