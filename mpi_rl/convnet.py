"""The Atari networks on torch's convolutions, in float32 or bfloat16, with a gradient by hand.

What acting computes is kept, so that the gradient of a rollout costs a backward pass only, and is
written where the server reads it. A convolution with stride s works on blocks of s x s places,
whose numbers count as channels: its stride is 1 then, and it has enough channels for the
processor's vectors. With bfloat16, parameters, gradients and the two heads stay in float32.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import conv2d

from mpi_rl.networks import Layer, NetworkSpec, layers, views

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Conv(NamedTuple):
    """A convolution at work, in blocks of its stride; rows are times x environments."""

    params: tuple[torch.Tensor, torch.Tensor]  # weight, in the order of ``memory``, and bias
    grads: tuple[torch.Tensor, torch.Tensor]  # likewise
    memory: torch.Tensor  # of ``weight``: (out, side, side, *block)
    weight: torch.Tensor  # (out, in, side, side), channels last: a copy of the parameters'
    bias: torch.Tensor  # (out,), likewise
    blocks: torch.Tensor  # (rows, height, width, *block), the layer's inputs
    inputs: torch.Tensor  # (rows, in, height, width), channels last: the same memory


class _Time(NamedTuple):
    """What acting at one time reads and writes; n is the number of environments."""

    pixels: np.ndarray  # (n, channel, row of blocks, row in it, block), 4 pixels in each uint32
    blocks: tuple[torch.Tensor, torch.Tensor]  # the same as uint8 blocks, and as network's inputs
    # Of each convolution: inputs, weight, bias; where its outputs go, (n, height / side, side,
    # width / side, side, channels) in the blocks of the next layer.
    convs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]
    flat: torch.Tensor  # (n, features of the last convolution)
    features: torch.Tensor  # (n, hidden units)
    seen: torch.Tensor  # the same in float32
    seen_array: np.ndarray  # the same memory
    logits: np.ndarray  # (n, num_actions)


class ConvNet:
    """A ``networks.Network`` of convolutions, a hidden layer, and two heads on it."""

    def __init__(
        self,
        spec: NetworkSpec,
        params: np.ndarray,
        grads: np.ndarray,
        num_times: int,
        num_envs: int,
        precision: str,
    ) -> None:
        torch.set_num_threads(1)  # every rank has one core
        self._dtype, rows = DTYPES[precision], num_times * num_envs
        stack = list(zip(layers(spec), views(spec, params), views(spec, grads)))
        self._convs: list[_Conv] = []
        channels, *size = spec.observation_shape
        for layer, ours, theirs in stack[:-3]:
            self._convs.append(self._conv(layer, ours, theirs, rows, size))
            size = [(n - layer.shape[2]) // layer.stride + 1 for n in size]
        first = stack[0][0].stride
        assert first == np.dtype(np.uint32).itemsize, "a block's row of pixels is one uint32"
        _, height, width, *block = self._convs[0].blocks.shape
        self._pixels = np.zeros((num_times, num_envs, height, width, channels, first), np.uint32)
        self._blocks = torch.from_numpy(self._pixels.view(np.uint8)).view(
            rows, height, width, *block
        )
        (hidden, ours, theirs), *heads = stack[-3:]
        # The last convolution's outputs, and the same memory as the hidden layer's inputs.
        self._top = torch.zeros(rows, *size, stack[-4][0].shape[0], dtype=self._dtype)
        self._flat = self._top.flatten(1)
        assert self._flat.shape[1] == hidden.fan_in, f"no network for {spec.observation_shape}"
        self._hidden, self._hidden_grads = _tensors(*ours), _tensors(*theirs)
        self._hidden_weight, self._hidden_bias = (t.to(self._dtype) for t in self._hidden)
        self._by_hidden = self._hidden_grads[0].to(self._dtype)
        self._features = torch.zeros(rows, hidden.shape[0], dtype=self._dtype)
        # What the heads see, in float32: the same memory where that is the precision.
        self._seen = self._features.float()
        self._seen_array = self._seen.numpy().reshape(num_times, num_envs, -1)
        (_, self._policy, self._policy_grads), (_, self._value, self._value_grads) = heads
        self._logits = np.zeros((num_times, num_envs, spec.num_actions), np.float32)
        self._times = [self._at(time) for time in range(num_times)]

    def _conv(
        self,
        layer: Layer,
        params: tuple[np.ndarray, np.ndarray],
        grads: tuple[np.ndarray, np.ndarray],
        rows: int,
        size: list[int],
    ) -> _Conv:
        """Return a convolution of images of this (height, width)."""
        order = _IMAGE_ORDER if not self._convs else _ORDER
        (weight, bias), (weight_grad, bias_grad) = _tensors(*params), _tensors(*grads)
        weight, weight_grad = (_split(w, layer.stride, order) for w in (weight, weight_grad))
        memory = torch.zeros(weight.shape, dtype=self._dtype)
        grid = [n // layer.stride for n in size]
        blocks = torch.zeros(rows, *grid, *weight.shape[3:], dtype=self._dtype)
        return _Conv(
            (weight, bias),
            (weight_grad, bias_grad),
            memory,
            memory.flatten(3).permute(0, 3, 1, 2),
            bias.to(self._dtype),
            blocks,
            blocks.flatten(3).permute(0, 3, 1, 2),
        )

    @torch.inference_mode()
    def refresh(self) -> None:
        """See ``networks.Network``."""
        for conv in self._convs:
            conv.memory.copy_(conv.params[0])
            conv.bias.copy_(conv.params[1])
        self._convs[0].memory.mul_(1 / 255)  # pixels are 0 to 255; the network's inputs 0 to 1
        if self._dtype != torch.float32:
            self._hidden_weight.copy_(self._hidden[0])
            self._hidden_bias.copy_(self._hidden[1])

    def _at(self, time: int) -> _Time:
        """Return the views that acting at ``time`` needs; making them costs more than one use."""
        num_envs = self._pixels.shape[1]
        rows = slice(time * num_envs, (time + 1) * num_envs)
        above = [*(conv.blocks for conv in self._convs[1:]), self._top[:, :, :, None, None]]
        return _Time(
            self._pixels[time].transpose(0, 3, 1, 4, 2),
            (self._blocks[rows], self._convs[0].blocks[rows]),
            [
                (conv.inputs[rows], conv.weight, conv.bias, blocks[rows].transpose(2, 3))
                for conv, blocks in zip(self._convs, above)
            ],
            self._flat[rows],
            self._features[rows],
            self._seen[rows],
            self._seen_array[time],
            self._logits[time],
        )

    @torch.inference_mode()
    def logits(self, time: int, observations: np.ndarray) -> np.ndarray:
        """See ``networks.Network``."""
        at = self._times[time]
        np.copyto(at.pixels, observations.view(np.uint32).reshape(at.pixels.shape))
        blocks, images = at.blocks
        images.copy_(blocks)
        for inputs, weight, bias, rows in at.convs:
            outputs = conv2d(inputs, weight, bias).relu_()
            rows.copy_(outputs.permute(0, 2, 3, 1).reshape(rows.shape))
        torch.addmm(self._hidden_bias, at.flat, self._hidden_weight.t(), out=at.features)
        at.features.relu_()
        if self._dtype != torch.float32:
            at.seen.copy_(at.features)
        head, offset = self._policy
        at.seen_array.dot(head.T, at.logits)
        return np.add(at.logits, offset, at.logits)

    def values(self, start: int, stop: int) -> np.ndarray:
        """See ``networks.Network``."""
        weight, bias = self._value
        return self._seen_array[start:stop] @ weight[0] + bias

    @torch.inference_mode()
    def backward(self, logits_grad: np.ndarray, values_grad: np.ndarray) -> None:
        """See ``networks.Network``."""
        by_logits, by_values = logits_grad.reshape(-1, logits_grad.shape[-1]), values_grad.ravel()
        count = len(by_values)
        seen = self._seen.numpy()[:count]
        for above, (weight_grad, bias_grad) in (
            (by_logits, self._policy_grads),
            (by_values[:, None], self._value_grads),
        ):
            np.matmul(above.T, seen, out=weight_grad)
            above.sum(axis=0, out=bias_grad)
        by_seen = by_logits @ self._policy[0] + by_values[:, None] * self._value[0]
        by_seen *= seen > 0
        grad = torch.from_numpy(by_seen).to(self._dtype)
        torch.mm(grad.t(), self._flat[:count], out=self._by_hidden)
        if self._dtype != torch.float32:
            self._hidden_grads[0].copy_(self._by_hidden)
        torch.sum(grad, 0, dtype=torch.float32, out=self._hidden_grads[1])
        grad = _where_positive(self._top[:count], (grad @ self._hidden_weight))
        grad = grad.permute(0, 3, 1, 2)
        for i in reversed(range(len(self._convs))):
            conv = self._convs[i]
            grad, by_weight, by_bias = torch.ops.aten.convolution_backward(
                grad,
                conv.inputs[:count],
                conv.weight,
                conv.bias.shape,
                *((1, 1), (0, 0), (1, 1)),  # stride, padding, dilation
                *(False, (0, 0), 1),  # transposed, output padding, groups
                (i > 0, True, True),  # gradients by inputs, weight, bias
            )
            conv.grads[0].copy_(by_weight.permute(0, 2, 3, 1).reshape(conv.memory.shape))
            conv.grads[1].copy_(by_bias)
            if i:
                blocks = conv.blocks[:count]
                grad = _join(_where_positive(blocks, grad.permute(0, 2, 3, 1)))
        self._convs[0].grads[0].mul_(1 / 255)


# The order of a block's numbers: row, column, channel; in the observations channel, row, column.
_ORDER, _IMAGE_ORDER = (0, 2, 4, 3, 5, 1), (0, 2, 4, 1, 3, 5)


def _split(weight: torch.Tensor, side: int, order: tuple[int, ...]) -> torch.Tensor:
    """View (out, in, width, width) as (out, width / side, width / side, *block)."""
    return weight.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(order)


def _join(blocks: torch.Tensor) -> torch.Tensor:
    """Return blocks, (n, height, width, side, side, channels), as images, channels last."""
    rows = blocks.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return rows.permute(0, 3, 1, 2)


def _where_positive(outputs: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Return the gradient by what a ReLU was given, from its outputs and the gradient by them."""
    return torch.ops.aten.threshold_backward(grad.reshape(outputs.shape), outputs, 0)


def _tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)
