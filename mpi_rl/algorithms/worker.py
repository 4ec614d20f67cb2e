"""What every worker does, whatever the algorithm: join, tally, push, stop."""

import time
from collections import defaultdict
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import numpy as np

from mpi_rl.config import Config
from mpi_rl.envs.spec import EnvSpec
from mpi_rl.learning.agent import Agent, Rollout, make_rng, rng_state, set_rng_state
from mpi_rl.learning.losses import Losses
from mpi_rl.networks.factors import Layout
from mpi_rl.networks.network import NetworkSpec
from mpi_rl.transport.messages import Command, Kind
from mpi_rl.transport.metrics import REPORTED

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_rl.algorithms.group import Group
    from mpi_rl.transport.held import HeldLink
    from mpi_rl.transport.links import WorkerLink

_NAMES = {metric.name for metric in REPORTED}


class Worker:
    """A worker's link and random stream, and what it has done since its last push."""

    def __init__(
        self,
        comm: "MPI.Intracomm",
        link: "WorkerLink",
        config: Config,
        env: EnvSpec,
        network: NetworkSpec,
        groups: Sequence[int],
        spin: bool = False,
        layout: Layout | None = None,
    ) -> None:
        """Take the run's settings, task and network, each worker's group, and what is pushed."""
        self.config, self.link = config, link
        self._through: "WorkerLink | HeldLink" = link  # which pushes and pulls go
        self._comm, self._env, self._network, self._groups = comm, env, network, groups
        self._layout = layout
        self._me, self._spin, self.rng = comm.rank - 1, spin, make_rng(config.seed, comm.rank - 1)
        is_slow = groups[self._me] == max(groups)
        self._slowdown = config.group_slowdown if is_slow else 1.0
        self.age = 0  # updates since the last push, or since an episode has ended
        self._lapped_s = perf_counter()
        self._begin()

    # --- What it learns with

    def make_agent(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Agent:
        """Return what plays, and learns, with these pairs of parameters and gradients."""
        return Agent(self.config, self._env, self._network, pairs, self.rng, self._layout)

    def meet_group(self) -> "Group":
        """Return this worker's end of its group, once all its members are there."""
        from mpi_rl.algorithms.group import Group  # starts MPI, which not every command may

        mine = self._groups[self._me]
        ranks = [worker + 1 for worker, group in enumerate(self._groups) if group == mine]
        return Group(self._comm, ranks, self.link.params.size, self.config, self._spin)

    def hold_params(self) -> "WorkerLink | HeldLink":
        """Return the link, whose parameters are renewed as rarely, or late, as settings ask for."""
        from mpi_rl.transport.held import HeldLink  # likewise

        if self.config.pull_period > 1 or self.config.delayed_pull:
            self._through = HeldLink(self.link, self.config.pull_period, self.config.delayed_pull)
        return self._through

    # --- What it tells the server

    def join(self, agent: Agent) -> None:
        """Say that the worker is ready; start fresh episodes from its random stream.

        That goes on where it was saved, if it was.
        """
        self.link.header["kind"], self.link.header["rng_state"] = Kind.JOIN, rng_state(self.rng)
        self._through.push()
        reply = self._through.pull()
        if reply["resumed"]:
            set_rng_state(self.rng, reply["rng_state"])
        agent.reset()
        self._cpu_s = process_time()

    @property
    def goes_on(self) -> bool:
        """Whether the server's last reply was to go on, not to stop or to park."""
        return int(self.link.reply["command"]) == Command.CONTINUE

    def exchange(self, kind: Kind = Kind.PUSH) -> None:
        """Push what the link has, and the tally; wait for the reply, and begin a new tally."""
        header, before, version = self.link.header, self._cpu_s, self._through.version
        self._cpu_s = process_time()
        self.add(cpu=self._cpu_s - before)
        header["kind"], header["version"], header["rng_state"] = kind, version, rng_state(self.rng)
        self._write()
        self._through.push()
        pushed_s = self._lap_s()
        self._through.pull()
        self._begin()
        self.add(push=pushed_s, wait=self._lap_s())

    # --- What it has done

    def add(self, **numbers: float) -> None:
        """Add to what the next push reports: REPORTED metrics by name."""
        for name, number in numbers.items():
            assert name in _NAMES, f"{name} is not declared in transport/metrics"
            self._sums[name] += number

    def played(self, rollout: Rollout) -> None:
        """Tally what was played."""
        self.add(num_steps=rollout.actions.size, num_episodes=len(rollout.episode_returns))
        self.add(env=rollout.env_s, act=rollout.act_s)
        self._returns += rollout.episode_returns
        self._lengths += rollout.episode_lengths
        self._has_ended = bool(rollout.episode_returns)
        self._played_s = rollout.env_s + rollout.act_s
        self._lap_s()

    def learned(self, losses: Losses, grad_norm: float) -> None:
        """Tally an update; then rest, where this worker is to be slower than it could."""
        learn_s = self._lap_s()
        self.add(num_updates=1, grad_norm=grad_norm, learn=learn_s, **losses._asdict())
        self.age = 0 if self._has_ended else self.age + 1
        if self._slowdown > 1:
            time.sleep((self._slowdown - 1) * (self._played_s + learn_s))
            self._lap_s()

    def meet(self, group: "Group") -> None:
        """Wait for all members of the group, and tally that."""
        group.meet()
        self.add(wait=self._lap_s())

    @property
    def num_episodes(self) -> int:
        """Episodes that have ended since the last push."""
        return len(self._returns)

    def _begin(self) -> None:
        self.age = 0
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._returns: list[float] = []
        self._lengths: list[int] = []

    def _lap_s(self) -> float:
        """Return the seconds since the last call."""
        before, self._lapped_s = self._lapped_s, perf_counter()
        return self._lapped_s - before

    def _write(self) -> None:
        """Write the tally to the header: sums, or means over updates."""
        header, sums, count = self.link.header, self._sums, len(self._returns)
        for metric in REPORTED:
            name = metric.name
            if not metric.interval:
                header[name] = sums[name]
            else:
                header[name] = sums[name] / sums["num_updates"] if name in sums else np.nan
        header["episode_returns"][:count] = self._returns
        header["episode_lengths"][:count] = self._lengths
