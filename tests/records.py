"""Small recorders and headers for tests."""

import json

import numpy as np

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
    from mpi_rl.transport import Kind, header_dtype

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
    record["phase_s"] = 1, 2, 3, 0, 4, 6
    for name, value in values.items():
        record[name] = value
    return record


def recorder(
    path, workers=2, params=None, statistics=None, groups=None, growth_state=None, **settings
):
    """A recorder of a made-up run."""
    from mpi_rl.recorder import Recorder

    attributes = dict(
        job="test",
        index=0,
        seed=5,
        git_commit="0" * 40,
        git_dirty=False,
        env_spec_hash="",
        versions="{}",
        mpi_library="none",
        world_size=workers + 1,
        env_spec=json.dumps({}),
    )
    params = np.arange(3, dtype=np.float32) if params is None else params
    places = [("here", "window")] * workers
    settings = {**SETTINGS, **settings}
    groups = groups or range(workers)
    state = np.zeros(1) if growth_state is None else growth_state
    return Recorder(path, attributes, settings, groups, places, params, statistics or {}, state)
