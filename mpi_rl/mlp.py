"""Fully connected actor-critic networks in NumPy."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mpi_rl.networks import NetworkSpec, layers, views


class _Layer(NamedTuple):
    """A layer at work; arrays are views of the vectors, or reused."""

    weight: np.ndarray  # (out, in)
    bias: np.ndarray  # (out,)
    weight_grad: np.ndarray
    bias_grad: np.ndarray
    outputs: np.ndarray  # (times, E, out)


class Mlp:
    """A ``networks.Network`` of fully connected layers."""

    def __init__(
        self,
        spec: NetworkSpec,
        params: np.ndarray,
        grads: np.ndarray,
        num_times: int,
        num_envs: int,
    ) -> None:
        self._spec, rows = spec, (num_times, num_envs)
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
        """See ``networks.Network``."""
        spec, parts = self._spec, dict[str, list[_Layer]](trunk=[], policy=[], value=[])
        vectors = views(spec, params), views(spec, grads)
        for layer, ours, theirs, outputs in zip(layers(spec), *vectors, self._outputs):
            parts[layer.part].append(_Layer(*ours, *theirs, outputs))
        self._trunk, self._policy, self._value = parts.values()
        self._features = self._trunk[-1].outputs if self._trunk else self._inputs
        acting = [*self._trunk, *self._policy]
        *self._hidden, self._last = [(layer.weight.T, layer.bias) for layer in acting]

    def logits(self, time: int, observations: np.ndarray) -> np.ndarray:
        """See ``networks.Network``."""
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
        """See ``networks.Network``."""
        inputs = self._features[start:stop]
        for layer in self._value:
            outputs = layer.outputs[start:stop]
            np.matmul(inputs, layer.weight.T, out=outputs)
            outputs += layer.bias
            if layer is not self._value[-1]:
                self._squash(outputs, out=outputs)
            inputs = outputs
        return inputs[:, :, 0]

    def backward(self, logits_grad: np.ndarray, values_grad: np.ndarray) -> None:
        """See ``networks.Network``."""
        count = len(logits_grad)
        features = self._features[:count]
        by_policy = self._backward(self._policy, features, logits_grad, bool(self._trunk))
        by_value = self._backward(self._value, features, values_grad[:, :, None], bool(self._trunk))
        if self._trunk:
            slope = self._slope(_flat(features))
            self._backward(self._trunk, self._inputs[:count], (by_policy + by_value) * slope, False)

    def _backward(
        self, stack: Sequence[_Layer], inputs: np.ndarray, grad: np.ndarray, to_inputs: bool
    ) -> np.ndarray:
        """Write the gradients of a stack of layers; return the one by its inputs, if wanted."""
        grad = grad.reshape(-1, grad.shape[-1])
        below = [inputs, *(layer.outputs[: len(inputs)] for layer in stack)]
        for i in reversed(range(len(stack))):
            layer, x = stack[i], _flat(below[i])
            np.matmul(grad.T, x, out=layer.weight_grad)
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
