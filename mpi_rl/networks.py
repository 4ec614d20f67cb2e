"""Actor-critic networks: their layers in one flat float32 vector, (P,), and its first values.

The vector belongs to the caller (the server's parameters, a worker's slot). ``mlp`` and ``convnet``
compute with it, and write gradients into another such vector.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

GAINS = {
    "tanh": 2**0.5,
    "relu": 2**0.5,
    "policy": 0.01,
    "value": 1.0,
}  # orthogonal: as in the PPO code of OpenAI
NORMAL_DEVIATION = 0.1  # Genkidama's first weights; its biases start at 0


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


class Layer(NamedTuple):
    """One layer: its place in the vector is its place in ``layers``, the weight before the bias."""

    part: str  # "trunk", "policy" or "value"
    shape: tuple[int, ...]  # of the weight: (out, in) or, of a convolution, (out, in, side, side)
    stride: int  # of a convolution, else 0

    @property
    def fan_in(self) -> int:
        """How many numbers go into one of the layer's outputs."""
        return math.prod(self.shape[1:])


class Network(Protocol):
    """A network at work on a rollout: E environments at each of the times 0, 1, 2, ...

    What ``logits`` computes at a time is kept until that time comes again, so that the gradient of
    a rollout needs no second forward pass.
    """

    def refresh(self) -> None:
        """Take note that the parameters have changed."""

    def logits(self, time: int, observations: np.ndarray) -> np.ndarray:
        """Return the policy's (E, num_actions) for observations (E, *shape); a reused array."""

    def values(self, start: int, stop: int) -> np.ndarray:
        """Return V, (stop - start, E), of the observations that ``logits`` saw at those times."""

    def backward(self, logits_grad: np.ndarray, values_grad: np.ndarray) -> None:
        """Write the gradient of a loss by the parameters over ``grads``.

        The arguments are its gradients by the logits, (T, E, num_actions), and by the values, (T,
        E), of times 0 to T - 1.
        """


def network_spec(
    settings: Mapping[str, Any], observation_shape: tuple[int, ...], num_actions: int
) -> NetworkSpec:
    """Return the network that a run's ``settings`` (its config, by name) ask for on such a task."""
    return NetworkSpec(
        settings["network"],
        tuple(settings["hidden_sizes"]),
        settings["activation"],
        settings["separate_trunks"],
        settings["initialization"],
        observation_shape,
        num_actions,
    )


def layers(spec: NetworkSpec) -> list[Layer]:
    """Return the layers of a network, in the order in which the vector holds them."""
    if spec.network != "mlp":
        trunk = list((_atari_2013 if spec.network == "atari_2013" else _atari_2015)(spec))
        features = trunk[-1].shape[0]
        heads = [
            Layer(part, (size, features), 0)
            for part, size in (("policy", spec.num_actions), ("value", 1))
        ]
        return trunk + heads
    widths = [*spec.observation_shape, *spec.hidden_sizes]
    hidden = list(zip(widths[1:], widths[:-1]))
    trunk = [] if spec.separate_trunks else [Layer("trunk", shape, 0) for shape in hidden]
    for part, size in (("policy", spec.num_actions), ("value", 1)):
        own = hidden if spec.separate_trunks else []
        trunk += [Layer(part, shape, 0) for shape in [*own, (size, widths[-1])]]
    return trunk


def _atari_2013(spec: NetworkSpec) -> Iterator[Layer]:
    """Mnih et al. 2013, which the A3C paper uses: images of 84 x 84 become 9 x 9."""
    yield Layer("trunk", (16, spec.observation_shape[0], 8, 8), 4)
    yield Layer("trunk", (32, 16, 4, 4), 2)
    yield Layer("trunk", (256, 9 * 9 * 32), 0)


def _atari_2015(spec: NetworkSpec) -> Iterator[Layer]:
    """Mnih et al. 2015: images of 84 x 84 become 7 x 7."""
    yield Layer("trunk", (32, spec.observation_shape[0], 8, 8), 4)
    yield Layer("trunk", (64, 32, 4, 4), 2)
    yield Layer("trunk", (64, 64, 3, 3), 1)
    yield Layer("trunk", (512, 7 * 7 * 64), 0)


def num_params(spec: NetworkSpec) -> int:
    """Return P, the size of the flat parameter vector."""
    return sum(layer.shape[0] * (layer.fan_in + 1) for layer in layers(spec))


def views(spec: NetworkSpec, vector: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each layer's weight and bias as views of ``vector``, (P,)."""
    found, offset = [], 0
    for layer in layers(spec):
        end = offset + layer.shape[0] * layer.fan_in
        weight, bias = vector[offset:end].reshape(layer.shape), vector[end : end + layer.shape[0]]
        assert np.shares_memory(weight, vector)
        found.append((weight, bias))
        offset = end + layer.shape[0]
    assert offset == vector.size, f"{vector.size} parameters given, {offset} needed"
    return found


def initial_params(spec: NetworkSpec, seed: int) -> np.ndarray:
    """Return the first parameters, (P,) float32, drawn from ``seed``."""
    params = np.zeros(num_params(spec), np.float32)
    rng = np.random.default_rng(seed)
    stack = layers(spec)
    for i, (layer, (weight, bias)) in enumerate(zip(stack, views(spec, params))):
        bound = layer.fan_in**-0.5
        if spec.initialization == "normal":
            weight[:] = rng.normal(0, NORMAL_DEVIATION, layer.shape)
        elif spec.initialization == "uniform":
            weight[:] = rng.uniform(-bound, bound, layer.shape)
            bias[:] = rng.uniform(-bound, bound, bias.shape)
        else:
            is_last = [other.part for other in stack[i + 1 : i + 2]] != [layer.part]
            head = layer.part != "trunk" and is_last
            gain = GAINS[layer.part if head else spec.activation]
            weight[:] = gain * _orthogonal(rng, layer.shape[0], layer.fan_in).reshape(layer.shape)
    return params


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return a matrix with orthonormal rows (or columns, whichever are fewer), drawn uniformly."""
    tall = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    matrix = tall.Q * np.sign(np.diag(tall.R))
    return matrix if rows >= columns else matrix.T
