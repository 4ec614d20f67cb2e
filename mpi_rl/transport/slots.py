"""A worker's slot: one stretch of memory with all that it exchanges with the server.

    reply | half 0 | header | half 1

The halves are vectors, (P,), of float32 or, to be sent at half the size, of float16 or bfloat16.
One of them has the parameters, the other the gradient; ``half`` says which one has the parameters.

* Where memory is shared, the server writes the new parameters over the gradient, which its caches
  have by then. So with each reply the halves change places: at both ends, which count alike.
* Elsewhere both ends own a copy; half 0 has the parameters throughout.
"""

from typing import Any

import numpy as np

from mpi_rl.compiled.kernels import PAGE
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
    ) -> None:
        header, vector = header_dtype(max_episodes), exchange_dtype(dtype)
        num_bytes = vector.itemsize * num_params
        # A message is a record and, right behind it, its vector.
        sizes, begins, end = (REPLY.itemsize, header.itemsize), [], 0
        for size in sizes:
            begins.append(end + (_PLACE - size - end) % PAGE)
            end = begins[-1] + size + num_bytes
        self.num_bytes = -(-end // PAGE) * PAGE
        if memory is None:
            memory = np.zeros(self.num_bytes, np.uint8)
        down, up = (memory[a : a + size + num_bytes] for a, size in zip(begins, sizes))
        self._whole, self._small = (down, up), (down[: sizes[0]], up[: sizes[1]])
        self._reply = self._small[0].view(REPLY)
        # As scalars, the records write through to the memory.
        self.reply: np.void = self._reply[0]
        self.header: np.void = self._small[1].view(header)[0]
        self.halves = down[sizes[0] :].view(vector), up[sizes[1] :].view(vector)
        self.is_shared, self.half = False, 0

    def share(self, halves: tuple[np.ndarray, np.ndarray]) -> None:
        """Have these halves, in memory that the other end has, too."""
        self.halves, self.is_shared = halves, True

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
        """The half that has, or is to have, the gradient, (P,)."""
        return self.halves[1 - self.half]

    @property
    def answer(self) -> np.ndarray:
        """Where the server writes what its next reply brings, (P,), once grads have been read."""
        return self.grads if self.is_shared else self.params

    @property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Params and grads for each ``half``."""
        first, second = self.halves
        return [(first, second), (second, first)] if self.is_shared else [(first, second)]

    @property
    def exchanges(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Grads and answer for each ``half``."""
        first, second = self.halves
        return [(second, second), (first, first)] if self.is_shared else [(second, first)]

    def say(self, *fields: Any) -> None:
        """Write the reply, all fields of REPLY."""
        self._reply[0] = fields

    def turn(self) -> None:
        """Let the halves change places if they do so with a reply."""
        self.half = 1 - self.half if self.is_shared else 0

    def messages(self, near: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes that travel down and up: with shared memory the records alone."""
        return self._small if near else self._whole
