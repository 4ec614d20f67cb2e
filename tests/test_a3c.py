"""An A3C worker's loop against a scripted server: no MPI."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from mpi_rl import a3c, agent
from mpi_rl.config import Config, load_job
from mpi_rl.envs import env_spec
from mpi_rl.losses import Losses
from mpi_rl.networks import initial_params, network_spec, views
from mpi_rl.transport import REPLY, Command, header_dtype
from mpi_rl.updates import make_update_rule
from tests.ranks import ROOT

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
        self.params, self.grads, self.rng, self.played = params, None, agent.make_rng(1, 0), []

    def reset(self):
        pass

    def use(self, params, grads):
        self.params, self.grads = params, grads

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
    player = Agent(link.params if pull_period == 1 else np.zeros(3, np.float32))
    a3c.work(link, player, Config(pull_period=pull_period))
    expected = [10 * max(at for at in pulled_at if at <= push) for push in range(1, 13)]
    assert player.played == expected
    assert link.pushed[1:] == expected  # the version that the gradient was taken at


def test_delayed_parameters_are_those_of_the_pull_before():
    link = Link()
    a3c.work(link, player := Agent(np.zeros(3, np.float32)), Config(delayed_pull=True))
    expected = [10 * max(push - 1, 1) for push in range(1, 13)]
    assert player.played == link.pushed[1:] == expected
    link = Link()
    held = Config(delayed_pull=True, pull_period=3)
    a3c.work(link, player := Agent(np.zeros(3, np.float32)), held)
    pulled_at = [1, 1, 4, 6, 9]  # of the pulls at 1, 4, 6, 9 and 11
    expected = [10 * pulled_at[sum(push >= at for at in (4, 6, 9, 11))] for push in range(1, 13)]
    assert player.played == link.pushed[1:] == expected


class Updating(Link):
    """A server of one worker that applies its gradients, and keeps what has come of each."""

    def __init__(self, config, params, num_pushes, is_near=False):
        super().__init__()
        self.params, self.grads = np.zeros((2, params.size), np.float32)
        self._is_near = is_near
        self._server, self._num_pushes, self.changed = params, num_pushes, []
        self._rule = make_update_rule(dataclasses.asdict(config), params, 1)
        self._rate = config.learning_rate

    def pull(self):
        pushed = self.grads
        if self._is_near:  # params and grads change places
            self.params, self.grads = self.grads, self.params
        if len(self.pushed) > 1:  # the first push is the worker's JOIN
            self._rule(pushed, self.params, self._rate, 1.0, 0)
            self.changed.append(self.params.copy())
        else:
            self.params[:] = self._server
        is_over = len(self.changed) == self._num_pushes
        self.reply["command"] = Command.STOP if is_over else Command.CONTINUE
        return self.reply


class Taped:
    """Environments, with every step that was played in the first: (observation, action, ...)."""

    def __init__(self, envs):
        self._envs, self.steps = envs, []

    def reset(self, seeds):
        observations = self._envs.reset(seeds)
        self._observation = observations[0].copy()
        return observations

    def step(self, actions):
        result = self._envs.step(actions)
        played = self._observation, int(actions[0]), float(result.rewards[0])
        self.steps.append((*played, bool(result.episode_over[0])))
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
    settings = dataclasses.asdict(config)
    task = env_spec(settings)
    spec = network_spec(settings, task.observation_shape, task.num_actions)
    first = initial_params(spec, 1)
    link = Updating(config, first.copy(), num_pushes=150)
    own = np.zeros((2, first.size), np.float32)
    player = agent.Agent(config, task, spec, own[0], link.grads, agent.make_rng(1, 0))
    player._envs = taped = Taped(player._envs)
    a3c.work(link, player, config)
    plain = plain_updates(taped.steps, spec, first, config)
    ends = sum(step[-1] for step in taped.steps)
    assert 20 < ends < 50 and len(plain) == len(link.changed) == 150
    assert np.abs(link.changed[-1] - first).max() > 0.5
    np.testing.assert_allclose(link.changed, plain, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, {"pull_period": 3}, {"delayed_pull": True}])
@pytest.mark.parametrize("env, network", [("CartPole-v1", "mlp"), ("breakout", "atari_2013")])
def test_a_worker_learns_the_same_where_params_and_grads_change_places(env, network, changes):
    config = Config(env=env, network=network, n_steps=7, learning_rate=1e-3, **changes)
    settings = dataclasses.asdict(config)
    task = env_spec(settings)
    spec = network_spec(settings, task.observation_shape, task.num_actions)
    first, found = initial_params(spec, 1), []
    for is_near in (False, True):
        link = Updating(config, first.copy(), num_pushes=20, is_near=is_near)
        params = np.zeros_like(first) if changes else link.params
        player = agent.Agent(config, task, spec, params, link.grads, agent.make_rng(1, 0))
        a3c.work(link, player, config)
        found.append(link.changed)
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0][-1] - first).max() > 1e-3
