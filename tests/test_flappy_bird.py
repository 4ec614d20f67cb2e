"""Flappy Bird with the deck's rewards, and its fixed pipes."""


import numpy as np

from mpi_rl.config import Config
from mpi_rl.envs.flappy_bird import LOSS
from mpi_rl.envs.make import env_spec, make_envs
from mpi_rl.envs.spec import env_spec_from_json


def spec(**settings):
    return env_spec(Config(env="FlappyBird-v0", **settings))


def steer(observation):
    """Flap when the bird, 24 pixels high, comes near the next gap's lower edge: passes many."""
    return int(observation[4] < 24 + 12)


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


def test_an_observation_is_the_bird_and_the_two_next_pipes_in_pixels():
    envs = make_envs(spec(), 1)
    seen = envs.reset(np.array([1]))[0].copy()
    game = envs.envs[0]._game
    (first, second, third), middle = game._lower_pipes, 26 - 57
    near, far = first["x"] + middle, second["x"] + middle
    assert seen.tolist() == [
        *(244, -9),  # half-way up, and rising
        *(near, first["y"] - 100 - 244, first["y"] - 244),
        *(far, second["y"] - 100 - 244, second["y"] - 244),
    ]
    for step in range(1, 75):
        seen = envs.step(np.array([steer(seen)])).observations[0].copy()
        assert seen[0] == game._player_y and seen[1] == game._player_vel_y
        if near > 4 * step:
            assert (seen[2], seen[5]) == (near - 4 * step, far - 4 * step)
            assert seen[3] + seen[0] + 100 == first["y"] == seen[4] + seen[0]
        else:  # its middle is behind the bird's left edge
            assert (seen[2], seen[5]) == (far - 4 * step, third["x"] + middle)
            assert seen[4] + seen[0] == second["y"] and seen[7] + seen[0] == third["y"]
    assert near < 4 * step


def test_leaving_the_screen_at_the_top_is_the_end():
    envs = make_envs(spec(), 1)
    height, steps = float(envs.reset(np.array([1]))[0, 0]), 0
    while not (result := envs.step(np.array([1]))).terminated[0]:
        assert (height := float(result.observations[0, 0])) > 0
        steps += 1
    assert result.rewards[0] == LOSS and result.final_observations[0, 0] <= 0 and steps > 10
    assert height < 50


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
    assert spec().observation_shape == (8,) and spec().num_actions == 2


def test_it_can_be_watched():
    envs = make_envs(spec(), 1, "rgb_array")
    envs.reset(np.array([1]))
    assert envs.render().shape == (512, 288, 3) and envs.steps_per_s == 30
