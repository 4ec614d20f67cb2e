"""How ranks wait: they test and sleep, because a blocking MPI call spins.

With more ranks than cores it would eat the cores that should compute.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress

from mpi4py import MPI

from mpi_rl.transport.bell import Bell

LOOKS = 10  # before the first sleep, without a bell: a message moves only while its ends call MPI
SLEEP_FIRST_S, SLEEP_LAST_S = 20e-6, 1e-3
BELL_S = 20e-3  # between two looks of who relies on a bell
PARKED_S, PARKED_BELL_S = 50e-3, 0.5  # likewise of who is parked, without and with a bell


class Backoff:
    """Ever longer sleeps, SLEEP_FIRST_S to SLEEP_LAST_S, after LOOKS without; none with ``spin``.

    A ``bell`` makes those looks needless, and ends sleeps early. If it can be trusted, they last
    BELL_S; but what has rung may take another look or two to arrive, so after a ring they are short
    again, and stay so if it ``is_long``. Who ``parks`` has all the time in the world.
    """

    def __init__(
        self,
        spin: bool = False,
        bell: Bell | None = None,
        parks: bool = False,
        is_long: bool = False,
    ) -> None:
        self._spin, self._bell = spin and not parks, bell
        self._looks = 0 if parks else LOOKS
        self._first, self._last = SLEEP_FIRST_S, PARKED_S if parks else SLEEP_LAST_S
        if bell is not None and bell.is_trusted:
            self._last = PARKED_BELL_S if parks else BELL_S
            self._first = BELL_S
        self._pause, self._is_long = self._first, is_long

    def sleep(self, is_brief: bool = False) -> None:
        """Sleep, twice as long as the time before; after LOOKS calls, where there is no bell.

        If it ``is_brief``, it is SLEEP_LAST_S at most.
        """
        if self._spin:
            return
        if self._bell is None and self._looks:
            self._looks -= 1
            return
        pause = min(self._pause, SLEEP_LAST_S) if is_brief else self._pause
        if self._bell and self._bell.wait(pause):
            self._pause = SLEEP_FIRST_S
            if self._is_long:
                self._last = SLEEP_LAST_S
            return
        if not self._bell:
            time.sleep(pause)
        self._pause = min(2 * self._pause, self._last)

    def reset(self) -> None:
        """Start again from the first look."""
        self._pause, self._looks = self._first, LOOKS


def wait_until(
    done: Callable[[], object],
    spin: bool = False,
    bell: Bell | None = None,
    parks: bool = False,
    sent: Callable[[], bool] | None = None,
) -> None:
    """Call ``done`` until it is true, with a ``Backoff`` in between.

    ``sent`` says whether a long message of ours is done with: it, and a long one that is rung for,
    move only while both their ends call MPI.
    """
    backoff = Backoff(spin, bell, parks, is_long=sent is not None)
    while not done():
        backoff.sleep(is_brief=sent is not None and not sent())


def sleeping_barrier(comm: MPI.Comm, spin: bool = False) -> None:
    """Wait for all ranks of ``comm`` without using a core, unless it is to ``spin``."""
    wait_until(comm.Ibarrier().Test, spin)


def give_way() -> None:
    """Let this rank, which wakes often, not interrupt another that is at work on its core.

    A worker that is answered would interrupt the server, though another core may be idle.
    """
    with suppress(AttributeError, OSError):  # not every system has it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
