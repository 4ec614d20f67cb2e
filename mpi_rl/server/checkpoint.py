"""What a resumed run goes on with, besides its record."""

from collections.abc import Mapping

import numpy as np


class Checkpoint:
    """Arrays that belong to others and change while a run goes on: ``restore`` is in place."""

    def __init__(
        self,
        params: np.ndarray,
        statistics: Mapping[str, np.ndarray],
        growth: np.ndarray,
        rng_states: np.ndarray,
    ) -> None:
        """Take parameters, the rule's statistics, growth's numbers, and workers' random states."""
        self._arrays = {"params": params, "rng_states": rng_states, "growth": growth}
        self._arrays |= {f"update_rule/{name}": values for name, values in statistics.items()}

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays by their names in the run file."""
        return self._arrays.copy()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Give the arrays the values that they had."""
        for name, values in self._arrays.items():
            if name in state or name != "growth":  # which the first run files lack
                values[:] = state[name]
