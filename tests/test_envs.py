import ale_py
import gymnasium
import numpy as np
import pytest

from mpi_rl.compiled import kernels
from mpi_rl.config import Config
from mpi_rl.envs.make import env_spec, make_envs
from mpi_rl.envs.spec import env_spec_from_json
from mpi_rl.errors import UserError


def spec(**changes):
    return env_spec(Config(**{"env": "CartPole-v1", **changes}))


def play(this, num_envs, steps, seed=0):
    """Random play: yields (actions, result) per step."""
    envs, rng = make_envs(this, num_envs), np.random.default_rng(seed)
    envs.reset(np.arange(num_envs) + seed)
    for _ in range(steps):
        actions = rng.integers(this.num_actions, size=num_envs)
        yield actions, envs.step(actions)
    envs.close()


@pytest.mark.parametrize(
    "env, shape, num_actions",
    [
        ("CartPole-v1", (4,), 2),
        ("LunarLander-v3", (8,), 4),
        ("space_invaders", (4, 84, 84), 6),
        ("pong", (4, 84, 84), 6),
    ],
)
def test_spec_describes_the_task(env, shape, num_actions):
    this = spec(env=env)
    assert (this.observation_shape, this.num_actions) == (shape, num_actions)
    assert env_spec_from_json(this.to_json()) == this
    assert make_envs(this, 2).reset(np.array([1, 2])).shape == (2, *shape)


def test_spec_hash_changes_with_every_setting():
    changes = [
        {},
        dict(sticky_action_prob=0.25),
        dict(noop_max=1),
        dict(fire_reset=True),
        dict(env="breakout"),
        dict(life_loss_terminates=True),
        dict(max_episode_frames=400),
    ]
    hashes = {spec(**{"env": "space_invaders", **change}).hash() for change in changes}
    assert len(hashes) == len(changes)


def test_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="nearest: space_invaders"):
        spec(env="SpaceInvaders")
    with pytest.raises(UserError, match="nearest: .*LunarLander-v3"):
        spec(env="LunarLander-v2")


def test_a_rom_for_two_players_is_refused():
    with pytest.raises(UserError, match="env = 'combat': a ROM that ale_py cannot play"):
        spec(env="combat")  # loading it would end the process


@pytest.mark.parametrize("env", ["CartPole-v1", "space_invaders"])
def test_same_seeds_same_episodes(env):
    def tape(seed):
        return [
            (result.observations.sum(), result.rewards.sum())
            for _, result in play(spec(env=env), 2, 150, seed)
        ]

    assert tape(1) == tape(1) != tape(2)


def test_ended_episodes_restart_within_the_step():
    ended = 0
    for _, result in play(spec(), 3, 200):
        over = result.terminated | result.truncated
        assert (result.final_observations is not None) == over.any()
        assert [episode.env for episode in result.episodes] == np.flatnonzero(over).tolist()
        for i in np.flatnonzero(over):
            ended += 1
            assert abs(result.observations[i]).max() <= 0.05  # CartPole starts here
            assert abs(result.final_observations[i]).max() > 0.1
    assert ended > 10


def test_ale_scores_are_raw_and_frames_are_capped():
    ends = rewards = 0
    best = 0
    for t, (_, result) in enumerate(
        play(spec(env="space_invaders", max_episode_frames=1200, noop_max=0), 2, 600)
    ):
        rewards += result.rewards.sum()
        best = max(best, result.rewards.max())
        if result.final_observations is not None:
            ends += 1
            assert (t + 1) % 300 == 0 and result.truncated.all() and not result.terminated.any()
    assert ends == 2 and best >= 5 and rewards % 5 == 0  # points come in fives, unclipped


def test_a_lost_life_ends_the_learners_episode_but_not_the_recorded_one():
    lives, games = 0, 0
    for _, result in play(spec(env="space_invaders", life_loss_terminates=True), 4, 1500):
        lives += result.terminated.sum()
        games += len(result.episodes)
        ended = result.terminated | result.truncated
        assert ended[[episode.env for episode in result.episodes]].all()
    assert games >= 3 and 2 * games < lives <= 3 * (games + 4)


@pytest.mark.parametrize(
    "settings, num_envs, steps, fewest",
    [
        (dict(env="CartPole-v1"), 3, 300, 20),
        (dict(env="LunarLander-v3"), 2, 600, 8),
        (dict(env="FlappyBird-v0"), 2, 300, 6),
        (dict(env="space_invaders", life_loss_terminates=True), 2, 900, 2),
        (dict(env="breakout", max_episode_frames=1200), 2, 700, 4),  # some are cut
    ],
    ids=lambda settings: settings["env"] if isinstance(settings, dict) else "",
)
def test_returns_and_lengths_are_sums_over_each_environments_episodes(
    settings, num_envs, steps, fewest
):
    this, rng = spec(**settings), np.random.default_rng(3)
    envs, count = make_envs(this, num_envs), 0
    for seed in (1, 2):  # a reset in the midst of episodes starts them afresh
        envs.reset(np.arange(num_envs) + seed)
        returns, lengths = [0.0] * num_envs, [0] * num_envs
        for _ in range(steps):
            result = envs.step(rng.integers(this.num_actions, size=num_envs))
            over = {episode.env: episode for episode in result.episodes}
            assert [*over] == sorted(over) and len(over) == len(result.episodes)
            for e in range(num_envs):
                returns[e] += float(result.rewards[e])
                lengths[e] += 1
                seen = over.get(e, envs.episode_so_far(e))
                assert seen == (e, returns[e], lengths[e])
                assert type(seen.episode_return) is float and type(seen.episode_length) is int
                if e in over:
                    returns[e], lengths[e] = 0.0, 0
                    count += 1
                    assert envs.episode_so_far(e) == (e, 0.0, 0)
    assert count >= fewest


@pytest.fixture(params=["compiled", "plain"])
def both_ways(request, monkeypatch):
    """Shrink pictures with the compiled function, then in NumPy."""
    assert kernels.AVAILABLE, "screens.c was not built when the package was installed"
    monkeypatch.setattr(kernels, "AVAILABLE", request.param == "compiled")


@pytest.mark.parametrize("env", ["space_invaders", "breakout", "pong"])
@pytest.mark.parametrize(
    "changes", [dict(life_loss_terminates=True), dict(max_episode_frames=1202, fire_reset=True)]
)
def test_games_are_those_of_ales_own_vector_environment(env, changes, both_ways):
    this = spec(env=env, noop_max=0, **changes)
    theirs = ale_py.AtariVectorEnv(
        env,
        3,
        num_threads=1,
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
        reward_clipping=False,
        noop_max=1,
        use_fire_reset=this.fire_reset,
        life_loss_info=this.life_loss_terminates,
        max_num_frames_per_episode=this.max_episode_frames,
    )
    theirs.reset(seed=np.arange(3))
    differing, ends = [], 0
    for actions, result in play(this, 3, 1100):
        observations, rewards, terminated, truncated, _ = theirs.step(actions)
        np.testing.assert_array_equal(result.rewards, rewards)
        np.testing.assert_array_equal(result.terminated, terminated)
        np.testing.assert_array_equal(result.truncated, truncated)
        ends += int((terminated | truncated).sum())
        difference = np.abs(result.observations.astype(int) - observations)
        assert difference.max() <= 1  # an average of exactly a half, rounded the other way
        differing.append((difference > 0).mean())
    assert np.mean(differing) < 1e-3 and ends >= 3


def test_noops_vary_the_start_up_to_the_maximum():
    envs = make_envs(spec(env="space_invaders", noop_max=2), 1)
    frames = set()
    for seed in range(60):
        envs.reset(np.array([seed]))
        frames.add(envs._games[0].getEpisodeFrameNumber())
    assert frames == {0, 1, 2}


def test_sticky_actions_change_the_game():
    def score(prob):
        tape = play(spec(env="space_invaders", sticky_action_prob=prob, noop_max=0), 1, 400, seed=3)
        return [result.rewards.sum() for _, result in tape]

    assert score(0.0) == score(0.0) != score(0.9)


def test_pictures_are_in_colour_and_follow_the_game():
    envs = make_envs(spec(env="space_invaders"), 1, render_mode="rgb_array")
    envs.reset(np.array([5]))
    first = envs.render()
    for _ in range(40):
        observations = envs.step(np.array([1])).observations
    last = envs.render()
    assert last.shape == (210, 160, 3) and last.dtype == np.uint8
    assert not np.array_equal(first, last) and (last[..., 0] != last[..., 2]).any()
    grey = last.mean(axis=2)[::5, ::4][:42, :40]
    small = observations[0, -1][::2, ::2][:42, :40]
    # The same moment.
    assert np.corrcoef(grey.ravel(), small.ravel())[0, 1] > 0.5
