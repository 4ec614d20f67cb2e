"""A worker's link that renews parameters later than it could: two studies' workers do so."""

import numpy as np

from mpi_rl.transport.links import WorkerLink
from mpi_rl.transport.messages import Kind


class HeldLink:
    """A ``WorkerLink`` with ``params`` of its own.

    They are renewed by every ``period``-th pull only, and where an episode has ended; if
    ``is_delayed``, by what the renewal before has brought. ``version`` is that of what is held.
    """

    def __init__(self, link: WorkerLink, period: int, is_delayed: bool) -> None:
        self._link, self._period, self._is_delayed = link, period, is_delayed
        self.header, self.reply = link.header, link.reply
        self.params, self._next = np.zeros((2, link.params.size), np.float32)
        self.version = self._next_version = 0
        self._age = 0  # pulls since the last renewal

    @property
    def half(self) -> int:
        """See ``WorkerLink``."""
        return self._link.half

    @property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """See ``WorkerLink``."""
        return [(self.params, grads) for _, grads in self._link.pairs]

    def push(self) -> None:
        """See ``WorkerLink``."""
        self._link.push()

    def pull(self) -> np.void:
        """Wait for the answer to the push, and return the reply."""
        reply, is_start = self._link.pull(), int(self.header["kind"]) == Kind.JOIN
        if is_start:
            self._receive()
        self._age = 0 if is_start or self.header["num_episodes"] else self._age + 1
        if self._age % self._period == 0:
            self._renew()
        return reply

    def _renew(self) -> None:
        if self._is_delayed:
            np.copyto(self.params, self._next)
            self.version = self._next_version
            self._receive()
        else:
            np.copyto(self.params, self._link.params)
            self.version = self._link.version

    def _receive(self) -> None:
        np.copyto(self._next, self._link.params)
        self._next_version = self._link.version
