"""Policies of growth on recorded sequences: no MPI, no clock."""

import numpy as np
import pytest

from mpi_rl.config import Config
from mpi_rl.server.growth import EpisodeDuration, Observed, Schedule, Throughput, growth


def push(step=0, wall_time_s=0.0, num_active=1, learned_steps=10, staleness=0, durations=()):
    return Observed(step, wall_time_s, num_active, learned_steps, staleness, durations)


def test_without_a_policy_all_workers_are_wanted():
    policy = growth(Config(), 8)
    policy.observe(push(durations=[1000.0]))
    assert policy.wanted == 8 and policy.state.tolist() == [8]


def test_a_schedule_wants_what_it_says_from_its_steps_on():
    policy = Schedule(2, [100, 200, 300], [5, 9, 3])
    found = []
    for step in (10, 99, 100, 150, 200, 299, 300, 10**6):
        policy.observe(push(step))
        found.append(policy.wanted)
    assert found == [2, 2, 5, 5, 9, 9, 3, 3]


def test_longer_episodes_add_more_workers_a_window_at_a_time():
    policy = EpisodeDuration(6, 12, (20, 40, 60), window=3)
    found = []
    for durations in (
        [10, 20, 30],  # 20 is not above 20
        [21, 21],
        [20, 100],  # the window ends within a push: its mean is 20.67; 100 begins the next
        [10, 30],  # 46.7
        [61, 61, 61],
        [61, 61, 61],
    ):
        policy.observe(push(durations=durations))
        found.append(policy.wanted)
    assert found == [6, 6, 7, 9, 12, 12]  # and never more than there are


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_policy_goes_on_from_its_state(cut):
    durations = [[30.0], [50.0], [10.0], [70.0], [70.0], [90.0], [5.0], [45.0], [45.0]]
    whole = EpisodeDuration(1, 30, (20, 40, 60), window=2)
    for one in durations:
        whole.observe(push(durations=one))
    first = EpisodeDuration(1, 30, (20, 40, 60), window=2)
    for one in durations[:cut]:
        first.observe(push(durations=one))
    second = EpisodeDuration(1, 30, (20, 40, 60), window=2)
    second.state[:] = first.state
    for one in durations[cut:]:
        second.observe(push(durations=one))
    assert second.wanted == whole.wanted == 1 + 1 + 1 + 3 + 1  # means 40, 40, 80, 25: 40 adds 1


def play(policy, speed, noise=0.0, staleness=lambda workers: 0.0, dropped=0.0, seed=0):
    """Let a run have ``speed(workers)`` steps/s until the policy has settled; return its course."""
    rng, now, step, course = np.random.default_rng(seed), 0.0, 0, [policy.wanted]
    factor = 1.0
    for _ in range(20_000):
        workers = policy.wanted
        factor = 1 + noise * rng.standard_normal() if step % 100 == 0 else factor
        now += 10 / (speed(workers) * max(factor, 0.1))
        step += 10
        learned = 0 if rng.random() < dropped * (workers > 6) else 10
        policy.observe(push(step, now, workers, learned, staleness(workers)))
        if policy.wanted != course[-1]:
            course.append(policy.wanted)
    return course


def throughput(initial=4, most=40, max_staleness=0):
    return Throughput(initial, most, 0.5, 5, max_staleness, period_steps=100)


def test_throughput_adds_workers_while_that_pays():
    assert play(throughput(), lambda n: 100 * n) == [4, 6, 9, 14, 21, 32, 40]
    saturated = play(throughput(), lambda n: 100 * min(n, 12))
    # 14 of 9 bring .6 of their ideal gain; 21 of 14 bring none, and are parked again.
    assert saturated == [4, 6, 9, 14, 21, 14]
    assert play(throughput(), lambda n: 100.0) == [4, 6, 4]


def test_throughput_waits_until_noise_cannot_decide():
    ends = [play(throughput(), lambda n: 100 * n, 0.05, seed=seed)[-1] for seed in range(20)]
    assert ends.count(40) >= 18
    ends = [play(throughput(), lambda n: 100.0, 0.05, seed=seed)[-1] for seed in range(20)]
    assert ends.count(4) >= 18


def test_throughput_minds_staleness_and_dropped_gradients():
    course = play(throughput(max_staleness=10), lambda n: 100 * n, staleness=lambda n: n - 1)
    assert course == [4, 6, 9, 14, 9]
    # Steps come as fast as ever, but half of them teach nothing.
    assert play(throughput(), lambda n: 100 * n, dropped=0.5)[-1] == 6


def test_throughput_does_not_judge_while_workers_are_on_their_way():
    policy = throughput(initial=2)
    for number in range(1000):
        policy.observe(push(10 * number, 0.1 * number, num_active=1))
    assert policy.wanted == 2
    for number in range(1000, 1000 + 10 * 5 + 2):
        policy.observe(push(10 * number, 0.1 * number, num_active=2))
    assert policy.wanted == 3
    policy.observe(push(10**6, 10**6, num_active=2))  # the third is still importing
    assert policy.state[3] == 0  # no interval counts yet
