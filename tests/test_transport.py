"""Pushes and replies between real ranks, and the memory they go through."""

import numpy as np
import pytest

from mpi_rl.transport.slots import Slot
from mpi_rl.transport.waiting import BELL_S, LOOKS, wait_until
from tests.ranks import ROOT, mpirun


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["window", "message"])
@pytest.mark.parametrize("num_ranks, pushed", [(2, ()), (4, ()), (3, (1003,))])
def test_every_vector_arrives_whole_and_in_order(tmp_path, num_ranks, pushed, transport):
    program = (ROOT / "tests" / "exchange.py",)
    result = mpirun(num_ranks, transport, 300, *pushed, cwd=tmp_path, program=program)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    workers = num_ranks - 1
    assert result.stdout.strip() == f"{[transport] * workers} {[300] * workers}"


@pytest.mark.mpi
def test_workers_on_two_nodes_use_both_transports(tmp_path):
    program = (ROOT / "tests" / "exchange.py",)
    result = mpirun(6, "mixed", 100, cwd=tmp_path, program=program)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    transports = ["message", "window", "message", "window", "message"]
    assert result.stdout.strip() == f"{transports} {[100] * 5}"


def test_a_slots_views_share_its_memory_and_nothing_overlaps():
    memory = np.zeros(Slot(5, 2).num_bytes, np.uint8)
    slot = Slot(5, 2, memory)
    reply, params, header, grads = slot.reply, slot.params, slot.header, slot.grads
    places = [(each.ctypes.data - memory.ctypes.data) % 4096 for each in (params, grads)]
    assert places == [3072, 3072]  # the server's own vectors are in the other quarters
    reply["rng_state"], header["episode_lengths"] = 2**64 - 1, -1
    params[:], grads[:] = 1, 2
    again = Slot(5, 2, memory)
    assert (again.params == 1).all() and (again.grads == 2).all()
    assert (again.reply["rng_state"] == 2**64 - 1).all() and again.reply["version"] == 0
    assert (again.header["episode_lengths"] == -1).all() and again.header["kind"] == 0


@pytest.mark.parametrize("is_shared", [False, True])
def test_halves_change_places_with_a_reply_where_memory_is_shared(is_shared):
    slot = Slot(5, 2)
    if is_shared:
        slot.share(slot.halves)
    for half in (0, 1, 0) if is_shared else (0, 0, 0):
        assert slot.half == half
        params, grads = slot.pairs[half]
        assert params is slot.params and grads is slot.grads is not params
        written = slot.answer
        assert written is (grads if is_shared else params)
        slot.turn()
        assert slot.params is written  # what the server has written are the parameters now


def test_a_smaller_push_is_answered_in_the_parameters_place():
    slot = Slot(500, 2, num_pushed=20)
    assert (slot.params.size, slot.grads.size) == (500, 20)
    assert [len(message) > 2000 for message in slot.messages(near=False)] == [True, False]
    slot.share(slot.halves)
    for _ in range(2):
        ((params, grads),) = slot.pairs
        assert grads is slot.grads and params is slot.params is slot.answer
        slot.turn()


def test_with_shared_memory_only_the_records_travel():
    slot = Slot(1000, 2)
    assert all(len(message) < 300 for message in slot.messages(near=True))
    assert all(len(message) > 4000 for message in slot.messages(near=False))


def test_waiting_sleeps_longer_and_longer_up_to_a_limit(monkeypatch):
    pauses, answers = [], iter([False] * (LOOKS + 9) + [True])
    monkeypatch.setattr("time.sleep", pauses.append)
    wait_until(lambda: next(answers))
    assert pauses[:3] == [20e-6, 40e-6, 80e-6] and pauses[-2:] == [1e-3, 1e-3]
    wait_until(lambda: next(iter([True])))
    assert len(pauses) == 9


@pytest.mark.parametrize("is_long", [False, True])
def test_until_it_is_sent_and_after_a_ring_what_is_long_is_looked_at_often(is_long):
    class Rung:
        is_trusted, pauses = True, []

        def wait(self, seconds):
            self.pauses.append(seconds)
            return len(self.pauses) == 2

    bell, answers, sent = Rung(), iter([False] * 14 + [True]), iter([False] + [True] * 13)
    wait_until(lambda: next(answers), bell=bell, sent=(lambda: next(sent)) if is_long else None)
    assert bell.pauses[:4] == [1e-3 if is_long else BELL_S, BELL_S, 20e-6, 40e-6]
    assert bell.pauses[-1] == (1e-3 if is_long else BELL_S)
    Rung.pauses.clear()


def test_an_answer_is_written_to_what_is_lent_until_it_is_sent():
    slot, first, second = Slot(5, 2), Slot(5, 0), Slot(5, 0)
    lent = iter([first, second])
    slot.lend = lambda: next(lent)
    assert slot.answer is first.params is slot.answer
    assert slot.send() is first and slot.answer is second.params
