"""Flappy Bird with the deck's rewards, and its fixed pipes."""

import dataclasses

import numpy as np

from mpi_rl.config import Config
from mpi_rl.envs import env_spec, env_spec_from_json, make_envs
from mpi_rl.flappy_bird import LOSS


def spec(**settings):
    return env_spec(dataclasses.asdict(Config(env="FlappyBird-v0", **settings)))


def steer(observation):
    """Flap when the bird, 24 pixels high, comes near the next gap's lower edge: passes many."""
    x, _, bottom = next(pipe for pipe in observation[:9].reshape(3, 3) if pipe[0] > 0.02)
    return int(observation[9] + 24 / 512 > (bottom - 12 / 512 if x < 1 else 0.5))


def play(envs, seed, steps):
    observation, rewards, over = envs.reset(np.array([seed]))[0].copy(), [], []
    for _ in range(steps):
        result = envs.step(np.array([steer(observation)]))
        observation = result.observations[0].copy()
        rewards.append(result.rewards[0])
        over.append((bool(result.terminated[0]), bool(result.truncated[0])))
    return rewards, over


def test_a_pipe_pays_one_the_end_costs_five_and_staying_alive_nothing():
    envs = make_envs(spec(), 1)
    rewards, over = play(envs, 1, 3000)
    assert set(rewards) <= {0.0, 1.0, LOSS} and rewards.count(1.0) > 20
    assert [reward == LOSS for reward in rewards] == [terminated for terminated, _ in over]
    envs.reset(np.array([1]))
    falls = [envs.step(np.array([0])).rewards[0] for _ in range(60)]
    assert falls.count(LOSS) >= 1 and falls.count(1.0) == 0


def test_leaving_the_screen_at_the_top_is_the_end():
    envs = make_envs(spec(), 1)
    height, steps = float(envs.reset(np.array([1]))[0, 9]), 0
    while not (result := envs.step(np.array([1]))).terminated[0]:
        assert (height := float(result.observations[0, 9])) > 0
        steps += 1
    assert result.rewards[0] == LOSS and result.final_observations[0, 9] <= 0 and steps > 10
    assert height < 0.1


def test_an_episode_is_cut_after_max_episode_frames():
    envs = make_envs(spec(max_episode_frames=100), 1)
    _, over = play(envs, 1, 100)
    assert over == [(False, False)] * 99 + [(False, True)]


def pipes(envs, seed):
    envs.reset(np.array([seed]))
    return [pipe["y"] for pipe in envs.envs[0]._game._upper_pipes]


def test_fixed_pipes_are_the_same_in_every_episode_and_others_are_not():
    fixed, free = make_envs(spec(fixed_pipes=True), 1), make_envs(spec(), 1)
    assert pipes(fixed, 1) == pipes(fixed, 2)
    assert len({tuple(pipes(free, seed)) for seed in range(5)}) > 1
    one, other = ([play(fixed, seed, 400)[0]] for seed in (1, 2))
    assert one == other


def test_the_spec_has_fixed_pipes_only_where_they_are_on():
    """Run files from before there were any keep their hash."""
    assert (
        "fixed_pipes" not in spec().to_json() and "fixed_pipes" in spec(fixed_pipes=True).to_json()
    )
    for one in spec(), spec(fixed_pipes=True):
        assert env_spec_from_json(one.to_json()) == one
    assert spec().observation_shape == (12,) and spec().num_actions == 2


def test_it_can_be_watched():
    envs = make_envs(spec(), 1, "rgb_array")
    envs.reset(np.array([1]))
    assert envs.render().shape == (512, 288, 3) and envs.steps_per_s == 30
