"""Bells: ranks of one node wake one another, so that none has to look again and again.

A rank's bell is a datagram socket with a name of its own, in Linux's abstract namespace: nothing is
left behind, whatever dies. What a bell says is only "look again", so a lost or a superfluous ring
does no harm; and where no ring can be heard (containers with networks of their own) a bell is
merely a sleep.
"""

import select
import socket
from collections.abc import Iterable

MOST_BYTES = 32  # of a ring: the ringer's rank in decimal


class Bell:
    """The bell of ``rank``; those who share ``token`` may ring it."""

    def __init__(self, token: str, rank: int, ringers: Iterable[int]) -> None:
        self._token, self._rank, self._unheard = token, rank, set(ringers)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._name(rank))
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    @property
    def is_trusted(self) -> bool:
        """Whether every one of the ``ringers`` has been heard once."""
        return not self._unheard

    def ring(self, rank: int) -> None:
        """Wake ``rank``, if it has a bell; it need not wait for it."""
        try:
            self._socket.sendto(b"%d" % self._rank, self._name(rank))
        except OSError:  # unheard rings enough (it has not looked yet), or no such bell
            pass

    def wait(self, seconds: float) -> None:
        """Sleep until somebody rings, or for so long."""
        if not self._poll.poll(1e3 * seconds):
            return
        try:
            while True:
                self._unheard.discard(int(self._socket.recv(MOST_BYTES)))
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Take the bell down."""
        self._socket.close()

    def _name(self, rank: int) -> str:
        return f"\0mpi_rl-{self._token}-{rank}"
