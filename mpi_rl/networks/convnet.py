"""The Atari networks: what is costly in C (``convnet.c``), the rest in NumPy, the gradient by hand.

What acting computes is kept, so that the gradient of a rollout costs a backward pass only, and is
written where the server reads it. There are few and short calls: on one environment at a time, the
paper's arrangement, a library's way to its kernels takes longer than the kernels do.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from mpi_rl.compiled import kernels
from mpi_rl.networks.factors import Factors, Layout, write_weight_grad
from mpi_rl.networks.layers import Layer, layers
from mpi_rl.networks.network import NetworkSpec, Rows

COLUMNS = 16  # convnet.c's tiles are so wide
PIXELS = 84  # and its rows of bytes so long


class _Arrays(NamedTuple):
    """A layer's parameters and their gradients, views of the vectors."""

    weight: np.ndarray  # (out, in) or, of a convolution, (side, side, in, out)
    bias: np.ndarray  # (out,)
    weight_grad: np.ndarray | Factors
    bias_grad: np.ndarray


class _Conv(NamedTuple):
    """A convolution at work; rows are times x environments, images (height, width, channels)."""

    shape: np.ndarray  # convnet.c's Shape
    inputs: np.ndarray  # (rows, *image); bytes, (rows, channels, height, width), of the first layer
    outputs: np.ndarray  # (rows, *image)
    above: np.ndarray  # likewise: the gradient by the outputs
    turned: np.ndarray  # (side, out, side x in): the weight, each row of it transposed


class _Time(NamedTuple):
    """What acting at one time reads and writes; n is the number of environments."""

    observations: np.ndarray  # (n, *shape) uint8
    layers: list[Callable[[], None]]
    hidden: np.ndarray  # (n, hidden units): what the last of them writes
    logits: np.ndarray  # (n, num_actions)


class ConvNet:
    """A ``Network`` of convolutions, a hidden layer, and two heads on it."""

    def __init__(
        self,
        spec: NetworkSpec,
        params: np.ndarray,
        grads: np.ndarray,
        num_times: int,
        num_envs: int,
        layout: Layout,
    ) -> None:
        rows, (*convolutions, hidden, _, _) = num_times * num_envs, layers(spec)
        self._spec, self._convs = spec, list[_Conv]()
        self._layout = layout
        images = np.zeros((rows, *spec.observation_shape), np.uint8)
        for layer in convolutions:
            self._convs.append(_conv(layer, images))
            images = self._convs[-1].outputs
        self._flat = images.reshape(rows, -1)
        assert self._flat.shape[1] == hidden.inputs, "a network for other observations"
        self._features = np.zeros((num_times, num_envs, hidden.outputs), np.float32)
        self._logits = np.zeros((num_times, num_envs, spec.num_actions), np.float32)
        self.bind(params, grads)

    def bind(self, params: np.ndarray, grads: np.ndarray) -> None:
        """See ``Network``."""
        pairs = zip(self._layout.weights(params), self._layout.views(grads))
        stack = [_Arrays(*ours, *theirs) for ours, theirs in pairs]
        *self._kernels, self._hidden, self._policy, self._value = stack
        num_times, num_envs, _ = self._features.shape
        self._backs = dict[tuple[int | None, ...] | None, list[Callable[..., object]]]()
        self._times = [self._at(time, num_envs) for time in range(num_times)]

    def _at(self, time: int, num_envs: int) -> _Time:
        rows = slice(time * num_envs, (time + 1) * num_envs)
        forwards = [
            kernels.bound(
                "conv_forward",
                *(num_envs, conv.shape, conv.inputs[rows]),
                *(kernel.weight, kernel.bias, conv.outputs[rows]),
            )
            for conv, kernel in zip(self._convs, self._kernels)
        ]
        features = self._features[time]
        forwards.append(self._dense_forward(self._flat[rows], features, backwards=time % 2))
        return _Time(self._convs[0].inputs[rows], forwards, features, self._logits[time])

    def _dense_forward(
        self, flat: np.ndarray, features: np.ndarray, backwards: int = 0
    ) -> Callable[[], None]:
        """Return what writes ``features``, (M, out), of the hidden layer's inputs, (M, in)."""
        weight, bias, *_ = self._hidden
        outputs, inputs = weight.shape
        assert inputs % COLUMNS == outputs % COLUMNS == 0, "convnet.c has no such tiles"
        sizes, kept = (len(flat), inputs, outputs), (bias, features)
        if self._is_sparse:
            return kernels.bound("sparse_forward", *sizes, flat, weight.T, *kept)
        return kernels.bound("dense_forward", *sizes, backwards, flat, weight, *kept)

    @property
    def _is_sparse(self) -> bool:
        """Whether the hidden layer's weight is in memory as (in, out): see ``Layout``."""
        return self._hidden.weight.T.flags.c_contiguous

    @property
    def observations(self) -> np.ndarray:
        """See ``Network``."""
        seen = self._convs[0].inputs
        return seen.reshape(*self._features.shape[:2], *seen.shape[1:])

    def logits(self, time: int, observations: np.ndarray) -> np.ndarray:
        """See ``Network``."""
        at = self._times[time]
        np.copyto(at.observations, observations)
        for forward in at.layers:
            forward()
        weight, bias, *_ = self._policy
        return np.add(at.hidden.dot(weight.T, at.logits), bias, at.logits)

    def values(self, start: int, stop: int) -> np.ndarray:
        """See ``Network``."""
        weight, bias, *_ = self._value
        return self._features[start:stop] @ weight[0] + bias

    def forward(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``Network``."""
        images, features = self._convs[0].inputs[rows], self._by_row(self._features)[rows]
        count = len(features)
        for conv, kernel in zip(self._convs, self._kernels):
            found = conv.outputs[rows]  # a view of a slice, else a copy to be put back
            run = count, conv.shape, images, kernel.weight, kernel.bias, found
            kernels.bound("conv_forward", *run)()
            conv.outputs[rows] = images = found
        self._dense_forward(images.reshape(count, -1), features)()
        self._by_row(self._features)[rows] = features
        heads = [features @ head.weight.T + head.bias for head in (self._policy, self._value)]
        return heads[0], heads[1][:, 0]

    def _by_row(self, array: np.ndarray) -> np.ndarray:
        """Return an array (times, E, ...) by rows."""
        return array.reshape(-1, *array.shape[2:])

    def backward(self, rows: Rows, logits_grad: np.ndarray, values_grad: np.ndarray) -> None:
        """See ``Network``."""
        by_values = values_grad[:, None]
        features, flat = self._by_row(self._features)[rows], self._flat[rows]
        by_features = logits_grad @ self._policy.weight + by_values * self._value.weight
        by_features *= features > 0
        for (_, _, weight_grad, bias_grad), above, inputs in (
            (self._policy, logits_grad, features),
            (self._value, by_values, features),
            (self._hidden, by_features, flat),
        ):
            write_weight_grad(weight_grad, inputs, above)
            above.sum(axis=0, out=bias_grad)
        self._to_images(by_features, flat)
        for run in self._back(rows):
            run()

    def _back(self, rows: Rows) -> list[Callable[..., object]]:
        """Return what goes back through the convolutions; for a slice it is made once."""
        key = (rows.start, rows.stop, rows.step) if isinstance(rows, slice) else None
        if key in self._backs:
            return self._backs[key]
        runs = list[Callable[..., object]]()
        below_each = [*reversed(self._convs[:-1]), None]
        for conv, kernel, below in zip(self._convs[::-1], self._kernels[::-1], below_each):
            weight_grad = kernel.weight_grad
            assert isinstance(weight_grad, np.ndarray), "convolutions have no factors"
            images = conv.inputs[rows]
            seen = len(images), conv.shape, images
            found = weight_grad, kernel.bias_grad
            runs.append(kernels.bound("conv_weight_grads", *seen, conv.above, *found))
            if below:
                side, out, run = conv.turned.shape
                turned = kernel.weight.reshape(side, run, out).transpose(0, 2, 1)
                runs.append(partial(np.copyto, conv.turned, turned))
                arrays = conv.turned, conv.above, below.above
                runs.append(kernels.bound("conv_image_grads", *seen, *arrays))
        if key:
            self._backs[key] = runs
        return runs

    def _to_images(self, by_features: np.ndarray, flat: np.ndarray) -> None:
        """Go on from the gradient by the hidden layer's outputs to that by ``flat``, (M, in).

        That is the one before the ReLU that made these inputs.
        """
        weight, (outputs, inputs) = self._hidden.weight, self._hidden.weight.shape
        above = self._convs[-1].above.reshape(self._flat.shape)[: len(flat)]
        if self._is_sparse:
            sizes = len(flat), inputs, outputs
            kernels.bound("sparse_image_grads", *sizes, weight.T, flat, by_features, above)()
        else:
            np.matmul(by_features, weight, out=above)
            kernels.bound("relu_grads", flat.size, flat, above)()


def _conv(layer: Layer, images: np.ndarray) -> _Conv:
    """Return a convolution of ``images``."""
    are_bytes = images.dtype == np.uint8
    rows, *size = images.shape
    planes, height, width, channels = (*size, 1) if are_bytes else (1, *size)
    side, out, run = layer.side, layer.outputs, layer.side * channels
    assert out % COLUMNS == 0 and (are_bytes or run % COLUMNS == 0), "convnet.c has no such tiles"
    assert not are_bytes or width == PIXELS, "convnet.c knows no such pictures"
    shape = planes, height, width, channels, side, layer.stride, out, are_bytes
    results = [(length - side) // layer.stride + 1 for length in (height, width)]
    outputs, above = np.zeros((2, rows, *results, out), np.float32)
    turned = np.zeros((side, out, run), np.float32)
    return _Conv(np.array(shape, np.uintp), images, outputs, above, turned)
