"""Actor-critic networks: their layers in one flat float32 vector, (P,), and its first values.

The vector belongs to the caller (the server's parameters, a worker's slot). ``mlp`` and ``convnet``
compute with it, and write gradients into another such vector.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mpi_rl.networks.network import NetworkSpec

GAINS = {
    "tanh": 2**0.5,
    "relu": 2**0.5,
    "policy": 0.01,
    "value": 1.0,
}  # orthogonal: as in the PPO code of OpenAI
NORMAL_DEVIATION = 0.1  # Genkidama's first weights; its biases start at 0


class Layer(NamedTuple):
    """One layer: its place in the vector is its place in ``layers``, the weight before the bias."""

    part: str  # "trunk", "policy" or "value"
    inputs: int  # numbers or, of a convolution, channels
    outputs: int  # likewise
    side: int = 0  # of a convolution's kernel, else 0
    stride: int = 0  # likewise

    @property
    def fan_in(self) -> int:
        """How many numbers go into one of the layer's outputs."""
        return self.inputs * (self.side**2 or 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape: (out, in) or, of a convolution, (side, side, in, out)."""
        if self.side:
            return self.side, self.side, self.inputs, self.outputs
        return self.outputs, self.inputs


def layers(spec: NetworkSpec) -> list[Layer]:
    """Return the layers of a network, in the order in which the vector holds them."""
    if spec.network != "mlp":
        trunk = list((_atari_2013 if spec.network == "atari_2013" else _atari_2015)(spec))
        features = trunk[-1].outputs
        return trunk + [Layer("policy", features, spec.num_actions), Layer("value", features, 1)]
    widths = [*spec.observation_shape, *spec.hidden_sizes]
    hidden = list(zip(widths[:-1], widths[1:]))
    trunk = [] if spec.separate_trunks else [Layer("trunk", *sizes) for sizes in hidden]
    for part, outputs in (("policy", spec.num_actions), ("value", 1)):
        own = hidden if spec.separate_trunks else []
        trunk += [Layer(part, *sizes) for sizes in [*own, (widths[-1], outputs)]]
    return trunk


def _atari_2013(spec: NetworkSpec) -> Iterator[Layer]:
    """Mnih et al. 2013, which the A3C paper uses: images of 84 x 84 become 9 x 9."""
    yield Layer("trunk", spec.observation_shape[0], 16, side=8, stride=4)
    yield Layer("trunk", 16, 32, side=4, stride=2)
    yield Layer("trunk", 9 * 9 * 32, 256)


def _atari_2015(spec: NetworkSpec) -> Iterator[Layer]:
    """Mnih et al. 2015: images of 84 x 84 become 7 x 7."""
    yield Layer("trunk", spec.observation_shape[0], 32, side=8, stride=4)
    yield Layer("trunk", 32, 64, side=4, stride=2)
    yield Layer("trunk", 64, 64, side=3, stride=1)
    yield Layer("trunk", 7 * 7 * 64, 512)


def num_params(spec: NetworkSpec) -> int:
    """Return P, the size of the flat parameter vector."""
    return sum(layer.outputs * (layer.fan_in + 1) for layer in layers(spec))


def views(spec: NetworkSpec, vector: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each layer's weight and bias as views of ``vector``, (P,)."""
    return weights_and_biases(layers(spec), vector, itertools.repeat(False))


def weights_and_biases(
    stack: Sequence[Layer], vector: np.ndarray, are_turned: Iterable[bool]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each layer's weight, of its shape, and bias as views of ``vector``, (P,).

    Those that ``are_turned`` lie there transposed.
    """
    needed = sum(layer.outputs * (layer.fan_in + 1) for layer in stack)
    assert needed == vector.size, f"{vector.size} parameters given, {needed} needed"
    take, found = taker(vector), list[tuple[np.ndarray, np.ndarray]]()
    for layer, is_turned in zip(stack, are_turned):
        weight = take(*layer.shape[::-1]).T if is_turned else take(*layer.shape)
        found.append((weight, take(layer.outputs)))
    return found


def taker(vector: np.ndarray) -> Callable[..., np.ndarray]:
    """Return a function that takes views of a shape off a vector, one behind the other."""
    end = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal end
        begin, end = end, end + math.prod(shape)
        return vector[begin:end].reshape(shape)

    return take


def initial_params(spec: NetworkSpec, seed: int) -> np.ndarray:
    """Return the first parameters, (P,) float32, drawn from ``seed``."""
    params = np.zeros(num_params(spec), np.float32)
    rng = np.random.default_rng(seed)
    stack = layers(spec)
    for i, (layer, (weight, bias)) in enumerate(zip(stack, views(spec, params))):
        if spec.initialization == "normal":
            weight[:] = rng.normal(0, NORMAL_DEVIATION, layer.shape)
        elif spec.initialization == "glorot":  # Glorot and Bengio 2010, equation 16; Keras's own
            fan_out = layer.outputs * (layer.side**2 or 1)
            bound = (6 / (layer.fan_in + fan_out)) ** 0.5
            weight[:] = rng.uniform(-bound, bound, layer.shape)
        elif spec.initialization == "uniform":
            bound = layer.fan_in**-0.5
            weight[:] = rng.uniform(-bound, bound, layer.shape)
            bias[:] = rng.uniform(-bound, bound, bias.shape)
        else:
            is_last = [other.part for other in stack[i + 1 : i + 2]] != [layer.part]
            head = layer.part != "trunk" and is_last
            gain = GAINS[layer.part if head else spec.activation]
            matrix = gain * _orthogonal(rng, layer.outputs, layer.fan_in)
            weight[:] = (matrix.T if layer.side else matrix).reshape(layer.shape)
    return params


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return a matrix with orthonormal rows (or columns, whichever are fewer), drawn uniformly."""
    tall = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    matrix = tall.Q * np.sign(np.diag(tall.R))
    return matrix if rows >= columns else matrix.T
