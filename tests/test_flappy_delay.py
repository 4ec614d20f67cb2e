"""A worker with old parameters, against a loop that keeps all of them."""

import itertools

import numpy as np

from analysis.flappy_delay import (
    measured,
    read_rows,
    report,
    simulate,
    simulate_all,
    take_off,
    updates,
)
from mpi_rl.envs.make import env_spec
from mpi_rl.jobs import load_job
from mpi_rl.learning.agent import Agent, make_rng
from mpi_rl.learning.update_rules import make_update_rule
from mpi_rl.networks.layers import initial_params
from mpi_rl.networks.network import network_spec
from mpi_rl.records.runfile import read_run
from tests.records import header, recorder

CONFIG = load_job("jobs/flappy_scaling.toml").config(0, {"num_workers": 2})


def test_parameters_are_exactly_so_old():
    env = env_spec(CONFIG)
    network = network_spec(CONFIG, env.observation_shape, env.num_actions)
    params = initial_params(network, CONFIG.seed)
    every, held, grads = [params.copy()], params.copy(), np.zeros_like(params)
    agent = Agent(CONFIG, env, network, [(held, grads)], make_rng(CONFIG.seed, 0))
    update = make_update_rule(CONFIG, params, 1).bind(grads, np.zeros_like(params), 0)
    agent.reset()
    for number, found in enumerate(itertools.islice(updates(CONFIG, 3), 20)):
        held[:] = every[max(0, number - 3)]
        rollout = agent.collect()
        assert (agent.learn(rollout)[0], *rollout.episode_returns) == found
        update(CONFIG.learning_rate, 1.0)
        every.append(params.copy())


def test_what_is_done_is_kept_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.flappy_delay.MAX_UPDATES", 40)
    monkeypatch.setattr("analysis.flappy_delay.BLOCK", 10)
    monkeypatch.setattr("analysis.flappy_delay.EARLY", 20)
    path = tmp_path / "d.csv"
    found = simulate(CONFIG)
    assert found["taken_off"] == np.inf and found["value_loss"] > 1 and found["certain"] == 1
    rows = simulate_all([CONFIG], path)
    assert rows == [found] and read_rows(path)[0]["taken_off"] == np.inf
    path.write_text(path.read_text().replace("inf", "30"))
    assert simulate_all([CONFIG], path)[0]["taken_off"] == 30  # not simulated again


def test_take_off_is_where_a_block_first_has_a_pipe_per_episode(monkeypatch):
    monkeypatch.setattr("analysis.flappy_delay.BLOCK", 2)
    assert take_off([-5, -4, -4, -4, 9, 9]) == 4
    assert take_off([-5, -5, 9]) == np.inf  # half a block says nothing


def test_runs_stand_beside(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.flappy_delay.BLOCK", 2)
    monkeypatch.setattr("analysis.flappy_delay.EARLY", 3)
    record = recorder(tmp_path / "1.h5", 2, num_workers=2, interval_period_steps=100)
    record.join(0, np.zeros(6, np.uint64))
    for number in range(8):
        learned = number >= 4
        values = dict(entropy=float(learned), value_loss=number, lengths=[50])
        values["returns"] = [0.0 if learned else -5.0]
        record.push(0, header(version=number, **values), 0.1)
    record.write("complete")
    run = read_run(record.path)
    # intervals of two pushes: losses .5, 2.5, ...; two of the three until take-off were certain
    assert measured(run) == (2.5, 2 / 3, 6)
    names = "num_workers", "seed", "value_loss", "certain", "taken_off"
    row = dict(zip(names, (2.0, 1.0, 3.25, 0.5, np.inf)))
    assert "| 2 | 3 | 3.2 | 2.5 | 50 | 67 | never | 0 |" in report([row], [run])
