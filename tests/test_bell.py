import os
import time

import pytest

from mpi_rl.transport.bell import Bell

LONG_S = 60.0  # the test would take so long if a ring were not heard


@pytest.fixture
def bells():
    """Three ranks' bells, each of which has found the others."""
    made = [Bell() for _ in range(3)]
    for bell in made:
        assert all(bell.find(rank, other.address) for rank, other in enumerate(made))
    yield made
    for bell in made:
        bell.close()


def test_a_ring_ends_a_wait_also_when_it_came_before(bells):
    server, first, _ = bells
    first.ring(0)
    assert server.wait(LONG_S)
    server.ring(1)
    assert first.wait(LONG_S)


def test_all_rings_until_now_are_one(bells):
    server, first, second = bells
    for bell in (first, second, first):
        bell.ring(0)
    assert server.wait(LONG_S)
    assert not server.wait(0.01)


def test_a_wait_may_be_shorter_than_a_millisecond(bells):
    waits = []
    for _ in range(50):
        began = time.perf_counter()
        bells[0].wait(20e-6)
        waits.append(time.perf_counter() - began)
    assert min(waits) < 0.9e-3


def test_ringing_never_waits_and_tells_whose_bell_is_there(bells):
    _, first, second = bells
    assert not first.ring(7)
    assert all(first.ring(2) for _ in range(100_000))  # more than a pipe holds
    assert second.wait(LONG_S)


def test_a_bell_that_is_gone_is_told():
    here, there = Bell(), Bell()
    address = there.address
    assert here.find(1, address) and here.ring(1)
    there.close()
    assert not here.ring(1)
    assert not here.find(1, address)  # no file of that name, or another one
    here.close()


def test_the_pipe_of_another_process_is_not_rung(bells):
    """Where containers have processes of their own, one number stands for several."""
    address = bells[0].address
    reads, writes = os.pipe()
    assert not bells[1].find(7, address._replace(path=f"/proc/{os.getpid()}/fd/{writes}"))
    assert not bells[1].find(7, address._replace(path="/proc/self/fd/no such"))
    assert not bells[1].ring(7)
    os.close(reads)
    os.close(writes)
