"""Bells: ranks of one node wake one another, so that none has to look again and again.

A rank's bell is a datagram socket with a name of its own, in Linux's abstract namespace: nothing is
left behind, whatever dies. What a bell says is only "look again", so a lost or a superfluous ring
does no harm.
"""

import select
import socket


class Bell:
    """The bell of ``rank``; those who know the ``token`` may ring it."""

    # Whether all who may ring have found this bell; containers may have networks of their own.
    is_trusted = False

    def __init__(self, token: str, rank: int) -> None:
        self._token = token
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._name(rank))

    def ring(self, rank: int) -> bool:
        """Wake ``rank``, now or when it next waits; say whether it has a bell."""
        try:
            self._socket.sendto(b"!", self._name(rank))
        except BlockingIOError:  # it has not heard the last rings yet: they will do
            pass
        except OSError:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Sleep until somebody rings, or for so long; say whether somebody did."""
        if not select.select([self._socket], [], [], seconds)[0]:  # poll has whole milliseconds
            return False
        try:
            while self._socket.recv(1):
                pass
        except BlockingIOError:
            pass
        return True

    def close(self) -> None:
        """Take the bell down."""
        self._socket.close()

    def _name(self, rank: int) -> str:
        return f"\0mpi_rl-{self._token}-{rank}"
