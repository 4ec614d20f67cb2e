import dataclasses
import math

import numpy as np
import pytest

from mpi_rl.config import Config
from mpi_rl.envs.make import env_spec
from mpi_rl.envs.spec import StepResult
from mpi_rl.learning.agent import Agent, make_rng, rng_state, set_rng_state
from mpi_rl.networks.layers import initial_params
from mpi_rl.networks.network import network_spec

STEPS, ENVS, OBSERVATIONS, ACTIONS = 4, 3, 8, 4
CONFIG = Config(
    gamma=0.9,
    entropy_coef=0.05,
    value_coef=0.25,
    n_steps=STEPS,
    envs_per_worker=ENVS,
    hidden_sizes=(6,),
    separate_trunks=False,
    initialization="uniform",
    reward_scale=1.0,
)


class Tape:
    """Environments whose steps are drawn beforehand: one ends in a terminal state, one is cut."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.observations = rng.normal(size=(STEPS + 1, ENVS, OBSERVATIONS)).astype(np.float32)
        self.rewards = rng.normal(size=(STEPS, ENVS)).astype(np.float32)
        self.terminated, self.truncated = np.zeros((2, STEPS, ENVS), bool)
        self.terminated[1, 0], self.truncated[2, 1] = True, True
        self.final = rng.normal(size=(ENVS, OBSERVATIONS)).astype(np.float32)
        self._t = 0

    def reset(self, seeds):
        return self.observations[0]

    def step(self, actions):
        t, self._t = self._t, self._t + 1
        over = self.terminated[t] | self.truncated[t]
        final = self.final if over.any() else None
        ends = self.terminated[t], self.truncated[t], final, ()
        return StepResult(self.observations[t + 1], self.rewards[t], *ends)


# What the thesis' code has that the paper has not.
THESIS = dict(bootstrap="last", time_limit_terminates=True, mean_loss=True)
HUBER = dict(huber_delta=0.5)
VARIANTS = [{}, THESIS, HUBER, *({name: value} for name, value in THESIS.items())]


def paper_loss(params, tape, actions, advantages_at, variant={}):
    """Algorithm S3 in slow loops, in double; advantages are constants, of ``advantages_at``."""

    def forward(vector, observation):
        sizes = [48, 6, 24, 4, 6, 1]
        w1, b1, w2, b2, w3, b3 = np.split(np.asarray(vector, np.float64), np.cumsum(sizes)[:-1])
        hidden = np.tanh(w1.reshape(6, OBSERVATIONS) @ observation + b1)
        logits = w2.reshape(ACTIONS, 6) @ hidden + b2
        return np.exp(logits) / np.exp(logits).sum(), w3 @ hidden + b3[0]

    total = 0.0
    for e in range(ENVS):
        last = STEPS - 1 if "bootstrap" in variant else STEPS
        _, following = forward(advantages_at, tape.observations[last, e])
        for t in reversed(range(STEPS)):
            if tape.truncated[t, e]:
                _, following = forward(advantages_at, tape.final[e])
            if tape.truncated[t, e] and "time_limit_terminates" in variant:
                following = 0.0
            if tape.terminated[t, e]:
                following = 0.0
            following = tape.rewards[t, e] + CONFIG.gamma * following
            probabilities, value = forward(params, tape.observations[t, e])
            advantage = following - forward(advantages_at, tape.observations[t, e])[1]
            entropy = -sum(p * math.log(p) for p in probabilities)
            total += -math.log(probabilities[actions[t, e]]) * advantage
            size, most = abs(following - value), variant.get("huber_delta", math.inf)
            error = size**2 if size <= most else 2 * most * (size - most / 2)
            total += CONFIG.value_coef * error - CONFIG.entropy_coef * entropy
    return total / ENVS / (STEPS if "mean_loss" in variant else 1)


def learned(variant):
    """Play and learn from a tape; return it with actions, parameters, gradient and losses."""
    config = dataclasses.replace(CONFIG, **variant)
    spec = env_spec(config)
    network = network_spec(config, spec.observation_shape, spec.num_actions)
    params = initial_params(network, 1)
    grads, tape = np.full_like(params, np.nan), Tape()
    player = Agent(config, spec, network, [(params, grads)], make_rng(1, 0))
    player._envs = tape
    player.reset()
    played = player.collect()
    losses, grad_norm = player.learn(played)
    assert grad_norm == pytest.approx(np.linalg.norm(grads), rel=1e-5)
    return tape, played.actions, params, grads, losses


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_are_the_papers_in_slow_loops(variant):
    tape, actions, params, _, losses = learned(variant)
    parts = (
        losses.policy_loss
        + CONFIG.value_coef * losses.value_loss
        - CONFIG.entropy_coef * losses.entropy
    )
    # Parts are means per step; the paper's loss sums over the steps.
    count = 1 if "mean_loss" in variant else STEPS
    loss = paper_loss(params, tape, actions, params, variant)
    assert parts * count == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_gradient_equals_finite_differences_of_the_papers_loss(variant):
    tape, actions, params, grads, _ = learned(variant)
    centre, step = params.astype(np.float64), 1e-6
    expected = np.zeros(params.size)
    for i in range(params.size):
        shift = np.zeros(params.size)
        shift[i] = step
        above = paper_loss(centre + shift, tape, actions, centre, variant)
        below = paper_loss(centre - shift, tape, actions, centre, variant)
        expected[i] = (above - below) / (2 * step)
    np.testing.assert_allclose(grads, expected, rtol=2e-4, atol=2e-5)


def agent(**changes):
    config = Config(**{"env": "CartPole-v1", "hidden_sizes": (8,), "n_steps": 30, **changes})
    spec = env_spec(config)
    network = network_spec(config, spec.observation_shape, spec.num_actions)
    params = initial_params(network, 0)
    made = Agent(config, spec, network, [(params, np.zeros_like(params))], make_rng(1, 0))
    made.reset()
    return made


def test_a_single_environments_rollout_ends_with_its_episode():
    player, left = agent(), 0
    for _ in range(20):
        played = player.collect()
        steps = len(played.actions)
        ends = played.terminated[:, 0] | played.truncated[:, 0]
        assert not ends[:-1].any()
        assert ends[-1] or steps == 30
        left += steps
        if ends[-1]:
            assert played.episode_lengths == [left] and played.episode_returns == [float(left)]
            left = 0
        else:
            assert not played.episode_lengths


def test_several_environments_play_n_steps_each_over_episode_ends():
    player = agent(envs_per_worker=4, n_steps=50)
    lengths, ended, steps = [], 0, 0
    for _ in range(10):
        played = player.collect()
        assert played.actions.shape == (50, 4) and played.logits.shape == (50, 4, 2)
        ended += int((played.terminated | played.truncated).sum())
        lengths += played.episode_lengths
        steps += played.actions.size
    assert ended == len(lengths) > 20 and sum(lengths) <= steps


def acting(player, choose):
    """Let ``choose`` (observations -> logits) act in place of the network, which still computes."""
    computed = player._network.logits

    def logits(time, observations):
        return np.asarray(choose(observations), computed(time, observations).dtype)

    player._network.logits = logits


def test_rollouts_follow_one_another_without_a_gap():
    player, seen = agent(envs_per_worker=2), []
    acting(player, lambda observations: seen.append(observations.copy()) or np.zeros((2, 2)))
    last = player.collect().last_observations.copy()
    seen.clear()
    player.collect()
    np.testing.assert_array_equal(seen[0], last)


def test_truncation_hands_over_the_final_observation():
    player = agent(n_steps=500, envs_per_worker=1)
    # This much of position, speed, angle and its rate says where to push: balances.
    lean = np.array([0, 0.05, 1, 0.5])
    acting(player, lambda seen: [[0, 1e9]] if seen[0] @ lean > 0 else [[1e9, 0]])
    for _ in range(50):
        played = player.collect()
        if played.truncated.any():
            ((t, e, observation),) = played.final_observations
            assert (t, e) == (len(played.actions) - 1, 0)
            # Which starts the next episode.
            assert not np.array_equal(observation, played.last_observations[0])
            return
        assert not played.final_observations
    raise AssertionError("the hand-made policy never lasted 500 steps")


def test_rewards_are_scaled_and_clipped_in_learning_but_recorded_raw():
    played = agent(reward_scale=0.25).collect()
    assert (played.rewards == 0.25).all()
    played = agent(reward_scale=3.0, clip_rewards=True).collect()
    assert (played.rewards == 1.0).all() and all(
        value == length for value, length in zip(played.episode_returns, played.episode_lengths)
    )


def test_a_gradient_that_is_not_finite_raises():
    player = agent()
    played = player.collect()
    played.rewards[0] = np.nan
    with pytest.raises(FloatingPointError, match="gradient's norm is nan"):
        player.learn(played)


def test_actions_are_drawn_from_the_policys_distribution():
    player = agent(envs_per_worker=8, n_steps=500)
    acting(player, lambda observations: np.tile(np.log([0.2, 0.8]), (8, 1)))
    share = np.mean([player.collect().actions.mean() for _ in range(3)])
    assert share == pytest.approx(0.8, abs=0.02)  # 12,000 draws: 5 standard deviations


def test_a_share_of_actions_is_drawn_uniformly():
    player = agent(envs_per_worker=8, n_steps=500, uniform_action_prob=0.4)
    acting(player, lambda observations: np.tile([50.0, -50.0], (8, 1)))
    share = np.mean([player.collect().actions.mean() for _ in range(3)])
    assert share == pytest.approx(0.2, abs=0.02)  # half of the uniform ones


def test_the_step_that_ends_an_episode_can_be_left_out():
    player, cut = agent(learn_last_step=False), agent()
    played = player.collect()
    while not played.episode_returns:
        played = player.collect()
    assert len(played.actions) > 1 and played.terminated[-1]
    player.learn(played)
    expected = player.grads.copy()
    parts = ("logits", "actions", "rewards", "terminated", "truncated")
    shorter = {name: getattr(played, name)[:-1].copy() for name in parts}
    shorter["terminated"][-1] = True  # nothing follows
    player._config = cut._config
    player.learn(dataclasses.replace(played, **shorter))
    np.testing.assert_allclose(player.grads, expected, rtol=1e-6)
    player._config = dataclasses.replace(cut._config, learn_last_step=False)
    only = {name: getattr(played, name)[-1:].copy() for name in parts}
    assert player.learn(dataclasses.replace(played, **only))[1] == 0 and not player.grads.any()


def test_random_streams_differ_by_worker_and_seed_and_can_be_restored():
    draws = [make_rng(seed, worker).random() for seed, worker in ((1, 0), (1, 1), (2, 0))]
    assert len(set(draws)) == 3
    rng = make_rng(1, 0)
    rng.integers(10, size=3, dtype=np.uint32)
    state = rng_state(rng)
    expected = rng.gumbel(size=5), rng.integers(100)
    other = make_rng(9, 9)
    set_rng_state(other, state)
    np.testing.assert_array_equal(other.gumbel(size=5), expected[0])
    assert other.integers(100) == expected[1]
