"""A worker with old parameters, against a loop that keeps all of them."""

import dataclasses
import itertools

import numpy as np

from analysis.flappy_delay import measured, read_rows, report, simulate, simulate_all, updates
from mpi_rl.agent import Agent, make_rng
from mpi_rl.config import load_job
from mpi_rl.envs import env_spec
from mpi_rl.networks import initial_params, network_spec
from mpi_rl.runfile import read_run
from mpi_rl.updates import make_update_rule
from tests.records import header, recorder

CONFIG = load_job("jobs/flappy_scaling.toml").config(0, {"num_workers": 2})


def test_parameters_are_exactly_so_old():
    settings = dataclasses.asdict(CONFIG)
    env = env_spec(settings)
    network = network_spec(settings, env.observation_shape, env.num_actions)
    params = initial_params(network, CONFIG.seed)
    every, held, grads = [params.copy()], params.copy(), np.zeros_like(params)
    agent = Agent(CONFIG, env, network, held, grads, make_rng(CONFIG.seed, 0))
    rule = make_update_rule(settings, params, 1)
    agent.reset()
    for number, losses in enumerate(itertools.islice(updates(CONFIG, 3), 20)):
        held[:] = every[max(0, number - 3)]
        assert agent.learn(agent.collect())[0] == losses
        rule(grads, np.zeros_like(params), CONFIG.learning_rate, 1.0, 0)
        every.append(params.copy())


def test_what_is_done_is_kept_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.flappy_delay.MAX_UPDATES", 40)
    monkeypatch.setattr("analysis.flappy_delay.BLOCK", 10)
    monkeypatch.setattr("analysis.flappy_delay.EARLY", 20)
    path = tmp_path / "d.csv"
    found = simulate(CONFIG)
    assert found["freed_at"] == np.inf and found["value_loss"] > 1
    rows = simulate_all([CONFIG], path)
    assert rows == [found] and read_rows(path)[0]["freed_at"] == np.inf
    path.write_text(path.read_text().replace("inf", "30"))
    assert simulate_all([CONFIG], path)[0]["freed_at"] == 30  # not simulated again


def test_runs_stand_beside(tmp_path):
    record = recorder(tmp_path / "1.h5", 2, num_workers=2, interval_period_steps=100)
    record.join(0, np.zeros(6, np.uint64))
    for number in range(8):
        entropy = 0.0 if number < 5 else 1.0
        record.push(0, header(version=number, entropy=entropy, value_loss=number), 0.1)
    record.write("complete")
    run = read_run(record.path)
    table = run.tables["intervals"]
    loss, freed_at = measured(run)
    first = int(np.flatnonzero(table["entropy"] >= 0.01)[0])
    assert loss == table["value_loss"][-1]
    assert freed_at == (run.episodes["step"] < table["step"][first]).sum()
    rows = [{"num_workers": 2.0, "seed": 1.0, "value_loss": 3.25, "freed_at": np.inf}]
    assert f"| 2 | 3 | 3.2 | {loss:.1f} | never | {freed_at / 1000:.0f} |" in report(rows, [run])
