"""Bells: ranks of one node wake one another, so that none has to look again and again.

A rank's bell is a pipe, which the others of its node open through /proc: nothing is left behind,
whatever dies. What a bell says is only "look again", so a lost or a superfluous ring does no harm.
"""

import os
import select
from typing import NamedTuple

_MANY = 65536  # bytes: all that a pipe holds, usually


class Address(NamedTuple):
    """A bell's path, and the device and inode that tell it from another process's pipe."""

    path: str
    device: int
    inode: int


class Bell:
    """A rank's bell, and the bells that it has found of others."""

    # Whether all who may ring have found this bell; containers may have processes of their own.
    is_trusted = False

    def __init__(self) -> None:
        self._reads, self._writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._others: dict[int, int] = {}

    @property
    def address(self) -> Address:
        """Return what others find the bell by."""
        there = os.fstat(self._writes)
        return Address(f"/proc/{os.getpid()}/fd/{self._writes}", there.st_dev, there.st_ino)

    def find(self, rank: int, address: Address) -> bool:
        """Look for the bell of ``rank``; say whether it is there."""
        try:
            there = os.stat(address.path)
            if (there.st_dev, there.st_ino) != address[1:]:
                return False
            self._others[rank] = os.open(address.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        return True

    def ring(self, rank: int) -> bool:
        """Wake ``rank``, now or when it next waits; say whether its bell was found and is there."""
        try:
            os.write(self._others[rank], b"!")
        except BlockingIOError:  # it has not heard the last rings yet: they will do
            pass
        except (KeyError, OSError):
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Sleep until somebody rings, or for so long; say whether somebody did."""
        if not select.select([self._reads], [], [], seconds)[0]:  # poll has whole milliseconds
            return False
        os.read(self._reads, _MANY)
        return True

    def close(self) -> None:
        """Take the bell down."""
        for pipe in self._reads, self._writes, *self._others.values():
            os.close(pipe)
        self._others.clear()
