"""What a resumed run goes on with, besides its record."""

from collections.abc import Mapping

import numpy as np

from mpi_rl.server.base_rule import Rule


class Checkpoint:
    """Arrays that belong to others and change while a run goes on: ``restore`` is in place."""

    def __init__(self, rule: Rule, growth: np.ndarray, rng_states: np.ndarray) -> None:
        """Take the rule, growth's numbers, and workers' random states."""
        self._rule, self._arrays = rule, {"rng_states": rng_states, "growth": growth}

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays by their names in the run file."""
        return self._rule.state() | self._arrays

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Give the arrays the values that they had."""
        self._rule.restore(state)
        for name, values in self._arrays.items():
            if name in state or name != "growth":  # which the first run files lack
                values[:] = state[name]
