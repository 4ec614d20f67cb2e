"""Fully connected actor-critic networks in NumPy."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mpi_rl.networks.factors import Factors, Layout, write_weight_grad
from mpi_rl.networks.layers import layers
from mpi_rl.networks.network import NetworkSpec, Rows


class _Layer(NamedTuple):
    """A layer at work; arrays are views of the vectors, or reused."""

    weight: np.ndarray  # (out, in)
    bias: np.ndarray  # (out,)
    weight_grad: np.ndarray | Factors
    bias_grad: np.ndarray
    outputs: np.ndarray  # (times, E, out)


class Mlp:
    """A ``Network`` of fully connected layers."""

    def __init__(
        self,
        spec: NetworkSpec,
        params: np.ndarray,
        grads: np.ndarray,
        num_times: int,
        num_envs: int,
        layout: Layout,
    ) -> None:
        self._spec, rows = spec, (num_times, num_envs)
        self._layout = layout
        self._inputs = np.zeros((*rows, *spec.observation_shape), np.float32)
        self._outputs = [np.zeros((*rows, layer.outputs), np.float32) for layer in layers(spec)]
        tanh = spec.activation == "tanh"
        self._squash: Callable[..., np.ndarray] = np.tanh if tanh else _relu
        self._slope = _tanh_slope if tanh else _relu_slope
        acting = [x for x, layer in zip(self._outputs, layers(spec)) if layer.part != "value"]
        pairs = list(zip([self._inputs, *acting], acting))
        # For each time: what every layer reads and writes; a single environment's as vectors.
        one = 0 if num_envs == 1 else slice(None)
        self._steps = [[(x[t, one], y[t, one]) for x, y in pairs] for t in range(num_times)]
        self.bind(params, grads)

    def bind(self, params: np.ndarray, grads: np.ndarray) -> None:
        """See ``Network``."""
        spec, parts = self._spec, dict[str, list[_Layer]](trunk=[], policy=[], value=[])
        vectors = self._layout.weights(params), self._layout.views(grads)
        for layer, ours, theirs, outputs in zip(layers(spec), *vectors, self._outputs):
            parts[layer.part].append(_Layer(*ours, *theirs, outputs))
        self._trunk, self._policy, self._value = parts.values()
        self._features = self._trunk[-1].outputs if self._trunk else self._inputs
        acting = [*self._trunk, *self._policy]
        *self._hidden, self._last = [(layer.weight.T, layer.bias) for layer in acting]

    @property
    def observations(self) -> np.ndarray:
        """See ``Network``."""
        return self._inputs

    def logits(self, time: int, observations: np.ndarray) -> np.ndarray:
        """See ``Network``."""
        self._inputs[time] = observations
        *hidden, (features, logits) = self._steps[time]
        for (inputs, outputs), (weight, bias) in zip(hidden, self._hidden):
            inputs.dot(weight, outputs)
            np.add(outputs, bias, outputs)
            self._squash(outputs, outputs)
        weight, bias = self._last
        features.dot(weight, logits)
        np.add(logits, bias, logits)
        return self._policy[-1].outputs[time]

    def values(self, start: int, stop: int) -> np.ndarray:
        """See ``Network``."""
        inputs = self._features[start:stop]
        for layer in self._value:
            outputs = layer.outputs[start:stop]
            np.matmul(inputs, layer.weight.T, out=outputs)
            outputs += layer.bias
            if layer is not self._value[-1]:
                self._squash(outputs, out=outputs)
            inputs = outputs
        return inputs[:, :, 0]

    def forward(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``Network``."""
        features = self._forward(self._trunk, _flat(self._inputs)[rows], rows)
        logits = self._forward(self._policy, features, rows)
        return logits, self._forward(self._value, features, rows)[:, 0]

    def _forward(self, stack: Sequence[_Layer], x: np.ndarray, rows: Rows) -> np.ndarray:
        """Return, and keep, what a stack of layers makes of inputs x."""
        for layer in stack:
            x = x @ layer.weight.T + layer.bias
            if layer is not self._policy[-1] and layer is not self._value[-1]:
                self._squash(x, out=x)
            _flat(layer.outputs)[rows] = x
        return x

    def backward(self, rows: Rows, logits_grad: np.ndarray, values_grad: np.ndarray) -> None:
        """See ``Network``."""
        features, has_trunk = _flat(self._features)[rows], bool(self._trunk)
        by_policy = self._backward(self._policy, features, rows, logits_grad, has_trunk)
        by_value = self._backward(self._value, features, rows, values_grad[:, None], has_trunk)
        if has_trunk:
            by_features = (by_policy + by_value) * self._slope(features)
            self._backward(self._trunk, _flat(self._inputs)[rows], rows, by_features, False)

    def _backward(
        self,
        stack: Sequence[_Layer],
        inputs: np.ndarray,
        rows: Rows,
        grad: np.ndarray,
        to_inputs: bool,
    ) -> np.ndarray:
        """Write the gradients of a stack of layers; return the one by its inputs, if wanted."""
        below = [inputs, *(_flat(layer.outputs)[rows] for layer in stack[:-1])]
        for i in reversed(range(len(stack))):
            layer, x = stack[i], below[i]
            write_weight_grad(layer.weight_grad, x, grad)
            grad.sum(axis=0, out=layer.bias_grad)
            if i or to_inputs:
                grad = grad @ layer.weight
            if i:
                grad *= self._slope(x)
        return grad


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, rows.shape[-1])


def _relu(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0, out=out)


def _relu_slope(outputs: np.ndarray) -> np.ndarray:
    return outputs > 0


def _tanh_slope(outputs: np.ndarray) -> np.ndarray:
    return 1 - outputs * outputs
