"""Small recorders and headers for tests."""

import json
from types import SimpleNamespace

import numpy as np

from mpi_rl.config import Config
from mpi_rl.server.base_rule import Rule
from mpi_rl.server.recorder import Recorder
from mpi_rl.transport.messages import Kind, header_dtype

SETTINGS = dict(
    n_steps=50,
    envs_per_worker=1,
    interval_period_steps=100,
    snapshot_period_steps=0,
    total_steps=2000,
    total_episodes=0,
    snapshot_period_updates=0,
    algorithm="a3c",
    checkpoint_period_s=1000.0,
    seed=5,
    env="CartPole-v1",
    network="mlp",
    update_rule="adam",
    learning_rate=0.1,
    num_workers=2,
)


def header(version=0, num_steps=50, returns=(), lengths=(), **values):
    """What a worker sends with a push, with as many episodes as are given."""
    record = np.zeros(1, header_dtype(8))[0]
    record["kind"], record["version"], record["num_steps"], record["num_episodes"] = (
        Kind.PUSH,
        version,
        num_steps,
        len(returns),
    )
    record["episode_returns"][: len(returns)], record["episode_lengths"][: len(lengths)] = (
        returns,
        lengths,
    )
    record["num_updates"] = 1
    for name, seconds in dict(env=1, act=2, learn=3, wait=4, cpu=6).items():
        record[name] = seconds
    for name, value in values.items():
        record[name] = value
    return record


def recorder(
    path, workers=2, params=None, statistics=None, groups=None, growth_state=None, **settings
):
    """A recorder of a made-up run."""
    config = Config(**{**SETTINGS, **settings})
    params = np.arange(3, dtype=np.float32) if params is None else params
    rule = Rule(config, params, [], groups or range(workers))
    rule.statistics = statistics or {}
    state = np.zeros(1) if growth_state is None else growth_state
    return recorder_of(path, rule, SimpleNamespace(state=state))


def recorder_of(path, rule, growth):
    """A recorder of a run with this rule and policy of growth."""
    attributes = dict(
        job="test",
        index=0,
        seed=5,
        git_commit="0" * 40,
        git_dirty=False,
        env_spec_hash="",
        versions="{}",
        mpi_library="none",
        world_size=len(rule.groups) + 1,
        env_spec=json.dumps({}),
    )
    places = [("here", "window")] * len(rule.groups)
    return Recorder(path, attributes, rule.config, places, rule, growth)
