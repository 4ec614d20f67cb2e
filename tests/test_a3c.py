"""An A3C worker's loop against a scripted server: no MPI."""

from types import SimpleNamespace

import numpy as np
import pytest

from mpi_rl.algorithms import a3c
from mpi_rl.algorithms.worker import Worker
from mpi_rl.config import Config
from mpi_rl.envs.make import env_spec
from mpi_rl.jobs import load_job
from mpi_rl.learning.losses import Losses
from mpi_rl.learning.update_rules import make_update_rule
from mpi_rl.networks.layers import initial_params, views
from mpi_rl.networks.network import network_spec
from mpi_rl.transport.messages import Command
from mpi_rl.transport.slots import Slot
from tests.ranks import ROOT

NUM_PUSHES = 12


class Link:
    """A server whose parameters are the number of pushes it has had, from 10 workers at once."""

    def __init__(self, num_params=3, is_near=False):
        self._slot, self.pushed = Slot(num_params, 1), []
        if is_near:  # params and grads change places
            self._slot.share(self._slot.halves)
        self.reply, self.header, self.pairs = self._slot.reply, self._slot.header, self._slot.pairs

    @property
    def half(self):
        return self._slot.half

    @property
    def params(self):
        return self._slot.params

    @property
    def version(self):
        return int(self.reply["version"])

    def push(self):
        self.pushed.append(int(self.header["version"]))

    def pull(self):
        count = len(self.pushed)
        self.reply["version"] = self.params[:] = 10 * count
        self.reply["command"] = Command.STOP if count > NUM_PUSHES else Command.CONTINUE
        return self.reply


class Agent:
    """One whose every fifth rollout ends an episode; it notes the parameters that it plays with."""

    def __init__(self):
        self.pairs, self.played = [], []

    def reset(self):
        pass

    close = reset

    def use(self, half):
        self.params, _ = self.pairs[half]

    def collect(self):
        self.played.append(int(self.params[0]))
        returns = [1.0] if len(self.played) % 5 == 0 else []
        actions = np.zeros((1, 1))
        return SimpleNamespace(
            actions=actions, env_s=0, act_s=0, episode_returns=returns, episode_lengths=returns
        )

    def learn(self, rollout):
        return Losses(0, 0, 0), 1.0


class Scripted(Worker):
    """The first of a run's workers, with this agent, or what ``change`` makes of its own."""

    def __init__(self, link, config, player=None, task=None, network=None, change=None):
        super().__init__(SimpleNamespace(rank=1), link, config, task, network, [0])
        self._player, self._change = player, change

    def make_agent(self, pairs):
        if self._player is None:
            player = super().make_agent(pairs)
            if self._change is not None:
                self._change(player)
            return player
        self._player.pairs = pairs
        return self._player


def played(config):
    """Play NUM_PUSHES rollouts; return the agent's parameters and its gradients' versions."""
    link, player = Link(), Agent()
    a3c.work(Scripted(link, config, player))
    return player.played, link.pushed[1:]


@pytest.mark.parametrize(
    "pull_period, pulled_at",
    # Pushes before which parameters are pulled: each, every third, and after an episode.
    [(1, range(1, 13)), (3, [1, 4, 6, 9, 11]), (100, [1, 6, 11])],
)
def test_parameters_are_pulled_every_so_often_and_where_an_episode_ends(pull_period, pulled_at):
    expected = [10 * max(at for at in pulled_at if at <= push) for push in range(1, 13)]
    # The parameters are those of the version that the gradient was taken at.
    assert played(Config(pull_period=pull_period)) == (expected, expected)


def test_delayed_parameters_are_those_of_the_pull_before():
    expected = [10 * max(push - 1, 1) for push in range(1, 13)]
    assert played(Config(delayed_pull=True)) == (expected, expected)
    pulled_at = [1, 1, 4, 6, 9]  # of the pulls at 1, 4, 6, 9 and 11
    expected = [10 * pulled_at[sum(push >= at for at in (4, 6, 9, 11))] for push in range(1, 13)]
    assert played(Config(delayed_pull=True, pull_period=3)) == (expected, expected)


class Updating(Link):
    """A server of one worker that applies its gradients, and keeps what has come of each."""

    def __init__(self, config, params, num_pushes, is_near=False):
        super().__init__(params.size, is_near)
        rule = make_update_rule(config, params, 1)
        self._updates = [
            rule.bind(grads, grads if is_near else params, 0) for params, grads in self._slot.pairs
        ]
        self._server, self._num_pushes, self.changed = params, num_pushes, []
        self._rate = config.learning_rate

    def pull(self):
        slot = self._slot
        if len(self.pushed) > 1:  # the first push is the worker's JOIN
            self._updates[slot.half](self._rate, 1.0)
            self.changed.append(slot.answer.copy())
        else:
            slot.answer[:] = self._server
        slot.turn()
        is_over = len(self.changed) == self._num_pushes
        self.reply["command"] = Command.STOP if is_over else Command.CONTINUE
        return self.reply


class Taped:
    """Environments, with every step that was played in the first: (observation, action, ...)."""

    def __init__(self, envs):
        self._envs, self.steps = envs, []

    def close(self):
        self._envs.close()

    def reset(self, seeds):
        observations = self._envs.reset(seeds)
        self._observation = observations[0].copy()
        return observations

    def step(self, actions):
        result = self._envs.step(actions)
        played = self._observation, int(actions[0]), float(result.rewards[0])
        self.steps.append((*played, bool(result.episodes)))
        self._observation = result.observations[0].copy()
        return result


def plain_updates(steps, spec, first, config):
    """Return what the thesis' code makes of one worker's ``steps``: parameters after each update.

    As its a3c_single_machine.py does, episode by episode: an update every n_steps steps and at the
    end, without the step that ends the episode; a pull every other update's time and at the end.
    """
    import torch

    def network():
        trunks = [
            torch.nn.Sequential(
                torch.nn.Linear(8, 128), torch.nn.Tanh(), torch.nn.Linear(128, outputs)
            )
            for outputs in (4, 1)
        ]
        net = torch.nn.ModuleList(trunks)
        for tensor, array in zip(net.parameters(), sum(views(spec, first.copy()), ())):
            tensor.data = torch.from_numpy(array)
        return net

    local, server = network(), network()
    policy, value = local
    rates = dict(lr=config.learning_rate, momentum=0.9, weight_decay=1e-3)
    optimizer = torch.optim.SGD(server.parameters(), **rates)
    changed, episode, n = [], [], config.n_steps
    for step in steps:
        episode.append(step)
        count, is_over = len(episode), step[-1]
        if count % n and not is_over:
            continue
        batch = episode[(count - 1) // n * n : count - is_over]
        optimizer.zero_grad()
        if batch:
            observations = torch.from_numpy(np.stack([played[0] for played in batch]))
            following = 0.0 if is_over else value(observations[-1]).item()
            returns = []
            for played in reversed(batch):
                following = played[2] + config.gamma * following
                returns.insert(0, following)
            errors = torch.tensor(returns) - value(observations)[:, 0]
            chosen = torch.distributions.Categorical(logits=policy(observations)).log_prob(
                torch.tensor([played[1] for played in batch])
            )
            local.zero_grad()
            (errors**2 - chosen * errors.detach()).mean().backward()
        for mine, servers in zip(local.parameters(), server.parameters()):
            servers.grad = mine.grad.clone() if batch else torch.zeros_like(mine)
        optimizer.step()
        changed.append(np.concatenate([p.detach().numpy().ravel() for p in server.parameters()]))
        if is_over or count % (2 * n) == 0:
            local.load_state_dict(server.state_dict())
        episode = [] if is_over else episode
    return changed


def test_one_worker_of_the_thesis_learns_as_the_thesis_code_does():
    job = load_job(str(ROOT / "jobs" / "lunar_lander_thesis_a3c.toml"))
    config = job.config(0, dict(n_steps=20))  # so that episodes have several updates and pulls
    task = env_spec(config)
    spec = network_spec(config, task.observation_shape, task.num_actions)
    first = initial_params(spec, 1)
    link = Updating(config, first.copy(), num_pushes=150)
    tapes = []

    def tape(player):
        player._envs = Taped(player._envs)
        tapes.append(player._envs)

    a3c.work(Scripted(link, config, task=task, network=spec, change=tape))
    (taped,) = tapes
    plain = plain_updates(taped.steps, spec, first, config)
    ends = sum(step[-1] for step in taped.steps)
    assert 20 < ends < 50 and len(plain) == len(link.changed) == 150
    assert np.abs(link.changed[-1] - first).max() > 0.5
    np.testing.assert_allclose(link.changed, plain, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, {"pull_period": 3}, {"delayed_pull": True}])
@pytest.mark.parametrize("env, network", [("CartPole-v1", "mlp"), ("breakout", "atari_2013")])
def test_a_worker_learns_the_same_where_params_and_grads_change_places(env, network, changes):
    config = Config(env=env, network=network, n_steps=7, learning_rate=1e-3, **changes)
    task = env_spec(config)
    spec = network_spec(config, task.observation_shape, task.num_actions)
    first, found = initial_params(spec, 1), []
    for is_near in (False, True):
        link = Updating(config, first.copy(), num_pushes=20, is_near=is_near)
        a3c.work(Scripted(link, config, task=task, network=spec))
        found.append(link.changed)
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0][-1] - first).max() > 1e-3
