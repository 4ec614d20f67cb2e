"""A worker's slot: one stretch of memory with all that it exchanges with the server.

    reply | half 0 | header | half 1

The halves are vectors of float32 or, to be sent at half the size, of float16 or bfloat16. One of
them has the parameters, (P,), the other the gradient, (P,), or what it is made of, (F,): see
``networks/factors``. ``half`` says which one has the parameters.

* Where memory is shared and both are as long, the server writes the new parameters over the
  gradient, which its caches have by then. So with each reply the halves change places: at both
  ends, which count alike.
* Elsewhere half 0 has the parameters throughout. Where memory is not shared, both ends own a copy,
  and the server lends reply and half 0 to whom it answers (see ``links``).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mpi_rl.compiled.memory import PAGE
from mpi_rl.transport.messages import REPLY, header_dtype

_PLACE = 3 * PAGE // 4  # of a slot's halves in their page: the server's own vectors are in the rest


def exchange_dtype(name: str) -> np.dtype:
    """Return a slot's type of number by its name: float32, float16 or bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Slot:
    """Views of a worker's memory, or of the server's end of it."""

    def __init__(
        self,
        num_params: int,
        max_episodes: int,
        memory: np.ndarray | None = None,
        dtype: str = "float32",
        num_pushed: int | None = None,
    ) -> None:
        """Lay out ``memory``, new if None; what is pushed are ``num_pushed`` numbers, or P."""
        header, vector = header_dtype(max_episodes), exchange_dtype(dtype)
        num_pushed = num_params if num_pushed is None else num_pushed
        num_bytes = vector.itemsize * num_params, vector.itemsize * num_pushed
        # A message is a record and, right behind it, its vector.
        sizes, begins, end = (REPLY.itemsize, header.itemsize), [], 0
        for size, of_vector in zip(sizes, num_bytes):
            begins.append(end + (_PLACE - size - end) % PAGE)
            end = begins[-1] + size + of_vector
        self.num_bytes = -(-end // PAGE) * PAGE
        if memory is None:
            memory = np.zeros(self.num_bytes, np.uint8)
        down, up = (memory[a : a + b + c] for a, b, c in zip(begins, sizes, num_bytes))
        self._whole, self._small = (down, up), (down[: sizes[0]], up[: sizes[1]])
        self._reply = self._small[0].view(REPLY)
        # As scalars, the records write through to the memory.
        self.reply: np.void = self._reply[0]
        self.header: np.void = self._small[1].view(header)[0]
        self.halves = down[sizes[0] :].view(vector), up[sizes[1] :].view(vector)
        self.is_shared, self.turns, self.half = False, False, 0  # turns: halves change places
        self.lend: Callable[[], Slot] = lambda: self
        self._outbox: Slot | None = None

    def share(self, halves: tuple[np.ndarray, np.ndarray]) -> None:
        """Have these halves, in memory that the other end has, too."""
        self.halves, self.is_shared = halves, True
        self.turns = halves[0].size == halves[1].size

    @property
    def kind(self) -> int:
        """The header's kind, as a plain number: NumPy's take long to be compared with an enum."""
        return int(self.header["kind"])

    @property
    def params(self) -> np.ndarray:
        """The half that has the parameters, (P,)."""
        return self.halves[self.half]

    @property
    def grads(self) -> np.ndarray:
        """The half that has, or is to have, the gradient or what it is made of, (F,)."""
        return self.halves[1 - self.half]

    @property
    def answer(self) -> np.ndarray:
        """Where the server writes what its next reply brings, (P,), once grads have been read."""
        return self.grads if self.turns else self.outbox.params

    @property
    def outbox(self) -> "Slot":
        """The slot whose reply and half 0 bring the next answer: what ``lend`` returns."""
        if self._outbox is None:
            self._outbox = self.lend()
        return self._outbox

    def send(self) -> "Slot":
        """Return the outbox, which is another from now on."""
        outbox, self._outbox = self.outbox, None
        return outbox

    @property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Params and grads for each ``half``."""
        first, second = self.halves
        return [(first, second), (second, first)] if self.turns else [(first, second)]

    def say(self, *fields: Any) -> None:
        """Write the reply, all fields of REPLY."""
        self._reply[0] = fields

    def turn(self) -> None:
        """Let the halves change places if they do so with a reply."""
        self.half = 1 - self.half if self.turns else 0

    def messages(self, near: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes that travel down and up: with shared memory the records alone."""
        return self._small if near else self._whole
