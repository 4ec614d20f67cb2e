"""An A3C worker's loop against a scripted server: no MPI."""

from types import SimpleNamespace

import numpy as np
import pytest

from mpi_rl import a3c
from mpi_rl.agent import make_rng
from mpi_rl.config import Config
from mpi_rl.losses import Losses
from mpi_rl.transport import REPLY, Command, header_dtype

NUM_PUSHES = 12


class Link:
    """A server whose parameters are the number of pushes it has had, from 10 workers at once."""

    def __init__(self):
        self.reply, self.header = np.zeros(1, REPLY)[0], np.zeros(1, header_dtype(1))[0]
        self.params, self.grads, self.pushed = np.zeros(3, np.float32), None, []

    def push(self):
        self.pushed.append(int(self.header["version"]))

    def pull(self):
        count = len(self.pushed)
        self.reply["version"] = self.params[:] = 10 * count
        self.reply["command"] = Command.STOP if count > NUM_PUSHES else Command.CONTINUE
        return self.reply


class Agent:
    """One whose every fifth rollout ends an episode; it notes the parameters that it plays with."""

    def __init__(self, params):
        self.params, self.grads, self.rng, self.played = params, None, make_rng(1, 0), []

    def reset(self):
        pass

    def collect(self):
        self.played.append(int(self.params[0]))
        returns = [1.0] if len(self.played) % 5 == 0 else []
        actions = np.zeros((1, 1))
        return SimpleNamespace(
            actions=actions, env_s=0, act_s=0, episode_returns=returns, episode_lengths=returns
        )

    def learn(self, rollout):
        return Losses(0, 0, 0), 1.0


@pytest.mark.parametrize(
    "pull_period, pulled_at",
    # Pushes before which parameters are pulled: each, every third, and after an episode.
    [(1, range(1, 13)), (3, [1, 4, 6, 9, 11]), (100, [1, 6, 11])],
)
def test_parameters_are_pulled_every_so_often_and_where_an_episode_ends(pull_period, pulled_at):
    link = Link()
    agent = Agent(link.params if pull_period == 1 else np.zeros(3, np.float32))
    a3c.work(link, agent, Config(pull_period=pull_period))
    expected = [10 * max(at for at in pulled_at if at <= push) for push in range(1, 13)]
    assert agent.played == expected
    assert link.pushed[1:] == expected  # the version that the gradient was taken at
