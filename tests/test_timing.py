import numpy as np
import pytest

from mpi_rl.config import Config
from mpi_rl.records.timing import advice, in_words, server_load, shares


def worker(cpu=None, **seconds):
    times = {name: np.zeros(2) for name in ("env", "act", "learn", "push", "wait")}
    times.update({name: np.array([value, value]) for name, value in seconds.items()})
    busy = sum(value for name, value in seconds.items() if name != "wait")
    return {**times, "cpu": np.full(2, busy if cpu is None else cpu)}


def server(busy, idle):
    return dict(
        update=np.array([busy]), reply=np.zeros(1), write=np.zeros(1), idle=np.array([idle])
    )


def test_shares_are_of_all_workers_wall_time():
    found = shares(worker(env=6.0, act=1.0, learn=2.0, wait=1.0))
    assert found == dict(env=0.6, act=0.1, learn=0.2, push=0.0, wait=0.1)
    assert server_load(server(1.0, 3.0)) == 0.25
    words = in_words(found, 0.25)
    assert words == "env 60 %, act 10 %, learn 20 %, push 0 %, wait 10 %; server 25 % busy"


def test_before_anything_is_measured_nothing_is_said():
    assert set(shares(worker()).values()) == {0.0} and server_load(server(0.0, 0.0)) == 0.0
    assert advice(worker(), server(0.0, 0.0), Config(), has_groups=False) == ""


def test_members_of_a_group_wait_for_one_another():
    times = worker(env=5.0, wait=5.0)
    assert advice(times, server(0.1, 0.9), Config(), has_groups=True) == ""
    assert advice(times, server(0.1, 0.9), Config(), has_groups=False)


@pytest.mark.parametrize(
    "times, load, envs, network, words",
    [
        (worker(env=8.0, cpu=2.0), 0.1, 1, "mlp", "had one 25 % of the time"),
        (worker(env=5.0, wait=5.0), 0.9, 1, "mlp", "server is busy 90 %"),
        (worker(env=5.0, wait=5.0), 0.9, 1, "atari_2013", "--server-threads 2"),
        (worker(env=5.0, wait=5.0), 0.1, 1, "mlp", "Workers wait 50 %"),
        (worker(env=5.0, learn=5.0), 0.1, 1, "atari_2013", "--envs-per-worker 16"),
        (worker(env=5.0, learn=5.0), 0.1, 16, "atari_2013", ""),
        (worker(env=5.0, learn=5.0), 0.1, 1, "mlp", ""),
    ],
)
def test_advice_names_what_dominates(times, load, envs, network, words):
    config = Config(envs_per_worker=envs, network=network)
    said = advice(times, server(load, 1 - load), config, has_groups=False)
    assert words in said and bool(said) == bool(words)
