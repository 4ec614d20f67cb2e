import time
import uuid

import pytest

from mpi_rl.bell import Bell

LONG_S = 60.0  # the test would take so long if a ring were not heard


@pytest.fixture
def bells():
    token = uuid.uuid4().hex
    made = [Bell(token, rank) for rank in range(3)]
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


def test_ringing_never_waits_and_tells_who_has_a_bell(bells):
    server, first, _ = bells
    assert not first.ring(7)
    assert all(first.ring(0) for _ in range(10_000))  # more than a socket holds
    server.wait(LONG_S)
    server.close()
    assert not first.ring(0)


def test_two_bells_of_one_name_are_refused(bells):
    with pytest.raises(OSError):
        Bell(bells[0]._token, 0)
