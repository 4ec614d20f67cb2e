"""A3C's worker: pull parameters, play a rollout, push its gradient.

This is algorithm S3 of Mnih et al. 2016. Where the paper's threads change shared parameters
themselves, here the server applies each gradient and answers with the newest parameters, so one
message each way is both push and pull.
"""

from time import perf_counter, process_time

from mpi_rl.agent import Agent, Rollout, rng_state, set_rng_state
from mpi_rl.losses import Losses
from mpi_rl.transport import Command, Kind, WorkerLink


def work(link: WorkerLink, agent: Agent) -> None:
    """Run one worker until the server says stop."""
    link.header["kind"] = Kind.JOIN
    link.header["rng_state"] = rng_state(agent.rng)
    link.push()
    reply = link.pull()
    if reply["resumed"]:
        set_rng_state(agent.rng, reply["rng_state"])
    agent.reset()
    push_s = wait_s = 0.0
    cpu = process_time()
    while reply["command"] != Command.STOP:
        rollout = agent.collect()
        started = perf_counter()
        losses, grad_norm = agent.learn(rollout)
        learned = perf_counter()
        before, cpu = cpu, process_time()
        phases = rollout.env_s, rollout.act_s, learned - started, push_s, wait_s, cpu - before
        _write_header(link, agent, rollout, losses, grad_norm, phases)
        link.push()
        pushed = perf_counter()
        reply = link.pull()
        push_s, wait_s = pushed - learned, perf_counter() - pushed


def _write_header(
    link: WorkerLink,
    agent: Agent,
    rollout: Rollout,
    losses: Losses,
    grad_norm: float,
    phases: tuple[float, ...],
) -> None:
    header, count = link.header, len(rollout.episode_returns)
    header["kind"] = Kind.PUSH
    header["version"] = link.reply["version"]
    header["num_steps"] = rollout.actions.size
    header["policy_loss"], header["value_loss"] = losses.policy_loss, losses.value_loss
    header["entropy"], header["grad_norm"] = losses.entropy, grad_norm
    header["phase_s"] = phases
    header["rng_state"] = rng_state(agent.rng)
    header["num_episodes"] = count
    header["episode_returns"][:count] = rollout.episode_returns
    header["episode_lengths"][:count] = rollout.episode_lengths
