"""What a worker pushes: its gradient, or what the gradient is made of.

The gradient of a dense layer's weight over a rollout of R rows is delta^T x: of what the layer was
given, x, (R, in), and the loss's gradient by what it computed, delta, (R, out). With few rows these
factors are far smaller than their product, (out, in). Pushing them instead is known from supervised
learning (sufficient factor broadcasting, Xie et al. 2014, arXiv 1511.08486; Poseidon, Zhang et al.
2017, arXiv 1706.03292). The server forms the product while it updates (``update_rules.c``).

After a ReLU most of x is 0, in all rows of a rollout alike. So such a layer's weight lies in memory
as (in, out): what is multiplied by 0 are whole rows of it, which need not be read, nor changed.
Run files have it as (out, in).
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mpi_rl.compiled import kernels
from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.networks.layers import Layer, layers, taker, weights_and_biases
from mpi_rl.networks.network import NetworkSpec

# Where factors pay. An update of 677,943 parameters takes 320 us from their gradient, and 350, 380,
# 520 and 800 us from factors of 1, 5, 16 and 32 rows (an Intel Xeon with AVX-512).
MOST_ROWS = 16  # with more, forming the product takes the server longer than reading it
LEAST_PRODUCT = 2**16  # numbers of a product, which a core's cache would hold
LEAST_SHARE = 4  # a product is at least so many times as large as its factors


class Part(NamedTuple):
    """Some of the parameters, and where their gradients, or factors of these, are in a push."""

    begin: int  # of these parameters
    end: int
    at: int  # in the push
    inputs: int = 0  # of a weight, (in, out), whose factors are pushed: x, then delta; else 0


class Factors(NamedTuple):
    """What a weight's gradient is the product of, delta^T x; in rows not used delta is 0."""

    x: np.ndarray  # (R, in)
    delta: np.ndarray  # (R, out)


def write_weight_grad(weight_grad: np.ndarray | Factors, x: np.ndarray, delta: np.ndarray) -> None:
    """Write the gradient, or its factors, of a layer given x, (M, in), by deltas, (M, out)."""
    if isinstance(weight_grad, Factors):
        count = len(delta)
        weight_grad.x[:count], weight_grad.delta[:count], weight_grad.delta[count:] = x, delta, 0
    else:
        np.matmul(delta.T, x, out=weight_grad)


class Layout:
    """Where everything is in a push, a vector of ``size`` numbers, (F,), for P parameters."""

    def __init__(self, stack: Sequence[Layer], num_rows: int = 0, always: bool = False) -> None:
        """Have factors of ``num_rows`` rows where they pay, or are smaller and ``always`` wanted.

        With no rows, a push is the gradient, (P,).
        """
        self.num_rows, self._stack, self.parts = num_rows, stack, list[Part]()
        self.num_params = self.size = 0
        self._are_factored = [_pays(layer, num_rows, always) for layer in stack]
        for layer, is_factored in zip(stack, self._are_factored):
            product = layer.outputs * layer.fan_in
            if is_factored:
                self._add(product, num_rows * (layer.inputs + layer.outputs), layer.inputs)
            else:
                self._add(product, product)
            self._add(layer.outputs, layer.outputs)

    def _add(self, count: int, size: int, inputs: int = 0) -> None:
        """Add a part of ``count`` parameters, ``size`` numbers of the push."""
        part = Part(self.num_params, self.num_params + count, self.size, inputs)
        if self.parts and not inputs and not self.parts[-1].inputs:
            part = self.parts.pop()._replace(end=part.end)
        self.parts.append(part)
        self.num_params, self.size = part.end, self.size + size

    @property
    def has_factors(self) -> bool:
        """Whether any weight's gradient is pushed as factors."""
        return any(self._are_factored)

    def views(self, push: np.ndarray) -> list[tuple[np.ndarray | Factors, np.ndarray]]:
        """Return each layer's place in a ``push``, (F,): of its weight and its bias."""
        assert push.size == self.size, f"{push.size} numbers given, {self.size} needed"
        take = taker(push)
        found = list[tuple[np.ndarray | Factors, np.ndarray]]()
        for layer, is_factored in zip(self._stack, self._are_factored):
            if is_factored:
                factors = self._take_factors(take, layer.inputs, layer.outputs)
                found.append((factors, take(layer.outputs)))
            else:
                found.append((take(*layer.shape), take(layer.outputs)))
        return found

    def _take_factors(
        self, take: Callable[..., np.ndarray], inputs: int, outputs: int
    ) -> Factors:
        return Factors(take(self.num_rows, inputs), take(self.num_rows, outputs))

    def weights(self, params: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return each layer's weight and bias in ``params``, (P,), as ``Layer`` has their shapes.

        One whose factors are pushed is a transposed view.
        """
        return weights_and_biases(self._stack, params, self._are_factored)

    def to_file(self, vectors: np.ndarray) -> np.ndarray:
        """Return parameters, (..., P), in the order in which run files have them."""
        return self._reordered(vectors, lambda part: (part.inputs, -1))

    def from_file(self, vectors: np.ndarray) -> np.ndarray:
        """Undo ``to_file``."""
        return self._reordered(vectors, lambda part: (-1, part.inputs))

    def _reordered(
        self, vectors: np.ndarray, shape_of: Callable[[Part], tuple[int, int]]
    ) -> np.ndarray:
        """Return vectors, or copies with the weights that have factors, of a shape, transposed."""
        others, found = vectors.shape[:-1], vectors.copy() if self.has_factors else vectors
        for part in self.parts:
            if part.inputs:
                weights = vectors[..., part.begin : part.end].reshape(*others, *shape_of(part))
                turned = weights.swapaxes(-1, -2).reshape(*others, part.end - part.begin)
                found[..., part.begin : part.end] = turned
        return found

    def _factors(self, push: np.ndarray, part: Part) -> Factors:
        outputs = (part.end - part.begin) // part.inputs
        return self._take_factors(taker(push[part.at :]), part.inputs, outputs)

    def gradient(self, push: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write the gradient, (P,), that a ``push``, (F,), stands for, to ``out``; return that."""
        for part in self.parts:
            place = out[part.begin : part.end]
            if part.inputs:
                x, delta = self._factors(push, part)
                np.matmul(x.T, delta, out=place.reshape(part.inputs, -1))
            else:
                np.copyto(place, push[part.at : part.at + place.size])
        return out

    def norm(self, push: np.ndarray) -> float:
        """Return the gradient's norm.

        |delta^T x|^2 is the sum of (x x^T) (delta delta^T), element by element: both are (R, R).
        """
        square = 0.0
        for part in self.parts:
            if part.inputs:
                x, delta = self._factors(push, part)
                square += float(np.vdot(x @ x.T, delta @ delta.T))
            else:
                whole = push[part.at : part.at + part.end - part.begin]
                square += float(np.dot(whole, whole))
        return math.sqrt(max(square, 0.0))  # a rounded sum may be below 0


def _pays(layer: Layer, num_rows: int, always: bool) -> bool:
    """Say whether to push the factors of a layer's weight."""
    product, factors = layer.outputs * layer.inputs, num_rows * (layer.inputs + layer.outputs)
    if layer.side or not num_rows:
        return False
    if always:
        return factors < product
    return (
        num_rows <= MOST_ROWS and product >= LEAST_PRODUCT and product >= LEAST_SHARE * factors
    )


def layout_of(config: Config, spec: NetworkSpec) -> Layout:
    """Return what is pushed by a run whose workers push gradients.

    Raises UserError if factors are asked for where there are none.
    """
    stack, rows = layers(spec), config.n_steps * config.envs_per_worker
    if config.push == "gradient" or (config.push == "auto" and not kernels.AVAILABLE):
        return Layout(stack)
    layout = Layout(stack, rows, always=config.push == "factors")
    if config.push == "factors" and not layout.has_factors:
        raise UserError(
            f"push = 'factors' with n_steps x envs_per_worker = {rows}: must be auto or gradient,"
            " or have a dense layer whose factors are smaller than their product"
        )
    if config.push == "factors" and not kernels.AVAILABLE and spec.network != "mlp":
        raise UserError("push = 'factors': must be gradient where there are no compiled kernels")
    return layout
