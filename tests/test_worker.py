"""What every worker does: join, tally, push, stop."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from mpi_rl.algorithms.worker import Worker
from mpi_rl.config import Config
from mpi_rl.learning.agent import make_rng, rng_state
from mpi_rl.learning.losses import Losses
from mpi_rl.transport.messages import Command, Kind
from mpi_rl.transport.slots import Slot


class Link:
    """A server that answers at once, with these replies, and keeps what it is sent."""

    version = 5

    def __init__(self, *replies):
        slot = Slot(2, 4)
        self.reply, self.header, self._slot = slot.reply, slot.header, slot
        self._replies, self.sent = iter(replies), []

    def push(self):
        self.sent.append(self.header.copy())

    def pull(self):
        self._slot.say(*next(self._replies))
        return self.reply


def worker(*replies, **settings):
    link = Link(*replies)
    return Worker(SimpleNamespace(rank=1), link, Config(**settings), None, None, [0]), link


def rollout(steps, returns=(), env_s=0.5, act_s=0.25):
    played = dict(actions=np.zeros((steps, 1)), episode_returns=[*returns])
    return SimpleNamespace(
        **played, episode_lengths=[7] * len(returns), env_s=env_s, act_s=act_s
    )


GO_ON = (5, 100, Command.CONTINUE, False, 0)
AGENT = SimpleNamespace(reset=lambda: None)


def test_sums_and_means_over_updates_are_pushed_and_begin_anew():
    one, link = worker(GO_ON, GO_ON, GO_ON)
    one.join(AGENT)
    for losses, returns in ((Losses(1, 2, 3), [10.0]), (Losses(3, 2, 1), [20.0, 30.0])):
        one.played(rollout(50, returns))
        one.learned(losses, 4.0)
    one.add(num_conflicts=3)
    one.exchange()
    one.played(rollout(20))
    one.learned(Losses(7, 7, 7), 1.0)
    one.exchange(Kind.REPORT)
    join, first, second = link.sent
    assert join["kind"] == Kind.JOIN
    assert first["kind"] == Kind.PUSH and first["version"] == 5
    assert (first["num_steps"], first["num_updates"], first["num_conflicts"]) == (100, 2, 3)
    assert (first["policy_loss"], first["entropy"], first["grad_norm"]) == (2, 2, 4)
    assert first["num_episodes"] == 3 and first["episode_lengths"][:3].tolist() == [7, 7, 7]
    assert first["episode_returns"][:3].tolist() == [10, 20, 30]
    assert first["env"] == 1.0 and first["act"] == 0.5 and first["learn"] > 0
    assert second["kind"] == Kind.REPORT and second["num_steps"] == 20
    assert second["policy_loss"] == 7 and second["num_episodes"] == second["num_conflicts"] == 0
    assert second["push"] > 0 and second["wait"] > 0  # of the push before


def test_what_is_not_reported_is_nan_or_0():
    one, link = worker(GO_ON, GO_ON)
    one.join(AGENT)
    one.exchange()
    assert math.isnan(link.sent[1]["policy_loss"]) and link.sent[1]["num_steps"] == 0


def test_a_metric_that_was_not_declared_is_our_mistake():
    one, _ = worker()
    with pytest.raises(AssertionError, match="num_conflict is not declared"):
        one.add(num_conflict=1)


def test_a_saved_random_stream_goes_on():
    saved = make_rng(9, 9)
    one, _ = worker((5, 100, Command.CONTINUE, True, rng_state(saved)))
    one.join(AGENT)
    assert one.rng.random() == saved.random()


def test_age_counts_updates_since_a_push_or_an_episodes_end():
    one, _ = worker(GO_ON, GO_ON)
    one.join(AGENT)
    ages = []
    for returns in ((), (), (1.0,), ()):
        one.played(rollout(5, returns))
        one.learned(Losses(0, 0, 0), 1.0)
        ages.append(one.age)
    one.exchange()
    assert ages == [1, 2, 0, 1] and one.age == 0


@pytest.mark.parametrize("command", Command)
def test_only_to_go_on_is_to_go_on(command):
    one, _ = worker((5, 100, command, False, 0))
    one.join(AGENT)
    assert one.goes_on == (command == Command.CONTINUE)
