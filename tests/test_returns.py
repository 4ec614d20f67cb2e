import numpy as np
import pytest

from mpi_rl.learning.returns import n_step_returns, standardized


def returns(
    rewards, terminated=(), truncated=(), final_values=None, bootstrap_value=0.0, gamma=0.5
):
    """One environment; terminated and truncated name the steps where the episode ends."""
    steps = len(rewards)
    flags = np.zeros((2, steps, 1), bool)
    flags[0, list(terminated), 0], flags[1, list(truncated), 0] = True, True
    values = np.zeros((steps, 1), np.float32)
    for t, value in (final_values or {}).items():
        values[t, 0] = value
    return n_step_returns(
        np.array(rewards, np.float32)[:, None],
        *flags,
        values,
        np.array([bootstrap_value], np.float32),
        gamma
    )[:, 0].tolist()


def test_bootstraps_at_the_rollouts_end():
    assert returns([1, 2, 4], bootstrap_value=8) == [1 + 1 + 1 + 1, 2 + 2 + 2, 4 + 4]


def test_bootstrap_is_zero_after_termination():
    assert returns([1, 2, 4], terminated=[2], bootstrap_value=8) == [1 + 1 + 1, 2 + 2, 4]


def test_truncation_bootstraps_with_the_final_observations_value():
    assert returns([1, 2, 4], truncated=[2], final_values={2: 16}, bootstrap_value=8) == [
        1 + 1 + 3,
        2 + 6,
        4 + 8,
    ]


def test_nothing_flows_over_an_episodes_end_within_the_rollout():
    assert returns([1, 2, 4], terminated=[0], bootstrap_value=8) == [1, 2 + 4, 4 + 4]
    assert returns([1, 2, 4], truncated=[0], final_values={0: 6}, bootstrap_value=8) == [
        1 + 3,
        2 + 4,
        4 + 4,
    ]


def test_termination_wins_over_truncation_in_the_same_step():
    assert returns([1], terminated=[0], truncated=[0], final_values={0: 16}, bootstrap_value=8) == [
        1
    ]


def test_agrees_with_the_papers_sum_for_many_environments():
    rng = np.random.default_rng(0)
    steps, envs, gamma = 7, 5, 0.9
    rewards, final_values = rng.normal(size=(2, steps, envs)).astype(np.float32)
    terminated, truncated = rng.random((2, steps, envs)) < 0.2
    bootstrap = rng.normal(size=envs).astype(np.float32)
    expected = np.zeros((steps, envs))
    for e in range(envs):
        for t in range(steps):
            for k in range(
                t, steps
            ):  # R_t = sum_k gamma^(k-t) r_k, up to the episode's end, plus the bootstrap there
                expected[t, e] += gamma ** (k - t) * rewards[k, e]
                if terminated[k, e]:
                    break
                if truncated[k, e]:
                    expected[t, e] += gamma ** (k + 1 - t) * final_values[k, e]
                    break
            else:
                expected[t, e] += gamma ** (steps - t) * bootstrap[e]
    result = n_step_returns(rewards, terminated, truncated, final_values, bootstrap, gamma)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert result.dtype == np.float32


def test_refuses_shapes_that_disagree():
    with pytest.raises(ValueError, match="shapes disagree"):
        n_step_returns(
            np.zeros((2, 1), np.float32),
            np.zeros((2, 1), bool),
            np.zeros((2, 2), bool),
            np.zeros((2, 1), np.float32),
            np.zeros(1, np.float32),
            0.9,
        )


def test_standardized_returns_have_mean_0_and_deviation_1():
    returns = standardized(np.array([[1], [2], [3], [6]], np.float32))
    # mean 3, deviation sqrt((4 + 1 + 0 + 9) / 4)
    np.testing.assert_allclose(returns.ravel(), np.array([-2, -1, 0, 3]) / 3.5**0.5, rtol=1e-6)
    assert returns.dtype == np.float32
    assert standardized(np.full((7, 2), 0.1, np.float32)).tolist() == [[0, 0]] * 7
