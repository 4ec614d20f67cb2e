"""What every network is and does: its spec, and the interface that acting and learning use."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mpi_rl.config import Config


@dataclass(frozen=True)
class NetworkSpec:
    """What decides a network's shape and its first parameters."""

    network: str  # "mlp", "atari_2013" or "atari_2015"
    hidden_sizes: tuple[int, ...]
    activation: str
    separate_trunks: bool
    initialization: str
    observation_shape: tuple[int, ...]
    num_actions: int


Rows = slice | np.ndarray  # some of what was seen: row time x E + environment; or their indices


class Network(Protocol):
    """A network at work on a rollout: E environments at each of the times 0, 1, 2, ...

    Its layers are views of the caller's vector, whose values may change between rollouts. What
    ``logits`` sees and computes is kept by rows, one per time and environment, so that the gradient
    of a rollout needs no second forward pass. For minibatches, ``forward`` computes any rows anew.
    """

    @property
    def observations(self) -> np.ndarray:
        """What was seen, (times, E, *shape); a view."""

    def bind(self, params: np.ndarray, grads: np.ndarray) -> None:
        """Compute with other vectors, (P,) and what gradients are written to, from now on.

        A copy.copy that is bound to others shares all but those.
        """

    def logits(self, time: int, observations: np.ndarray) -> np.ndarray:
        """Return the policy's (E, num_actions) for observations (E, *shape); a reused array."""

    def values(self, start: int, stop: int) -> np.ndarray:
        """Return V, (stop - start, E), of the observations that ``logits`` saw at those times."""

    def forward(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Return logits, (M, num_actions), and V, (M,), of M rows by the parameters as they are."""

    def backward(self, rows: Rows, logits_grad: np.ndarray, values_grad: np.ndarray) -> None:
        """Write the gradient of a loss by the parameters, or its factors, over ``grads``.

        The arguments are its gradients by the logits, (M, num_actions), and by V, (M,), of M rows,
        as ``logits`` and ``values``, or ``forward``, last computed them.
        """


def network_spec(
    config: Config, observation_shape: tuple[int, ...], num_actions: int
) -> NetworkSpec:
    """Return the network that a run's ``config`` asks for on such a task."""
    return NetworkSpec(
        config.network,
        config.hidden_sizes,
        config.activation,
        config.separate_trunks,
        config.initialization,
        observation_shape,
        num_actions,
    )
