"""Every network once more, in torch's words and with its autograd: what the others must equal.

It also plays Atari where ``conv.c`` could not be compiled.
"""

import numpy as np
import torch
from torch.nn import functional

from mpi_rl.networks import NetworkSpec, layers, views


class TorchNet:
    """A ``networks.Network`` of any spec."""

    def __init__(
        self,
        spec: NetworkSpec,
        params: np.ndarray,
        grads: np.ndarray,
        num_times: int,
        num_envs: int,
    ) -> None:
        torch.set_num_threads(1)  # every rank has one core
        self._spec, self._layers = spec, layers(spec)
        self.bind(params, grads)
        dtype = torch.float32 if spec.network == "mlp" else torch.uint8
        self._inputs = torch.zeros(num_times, num_envs, *spec.observation_shape, dtype=dtype)
        self._values = np.zeros((num_times, num_envs), np.float32)

    def bind(self, params: np.ndarray, grads: np.ndarray) -> None:
        """See ``networks.Network``."""
        self._grads = [array for pair in views(self._spec, grads) for array in pair]
        self.tensors = [
            torch.from_numpy(array).requires_grad_()
            for pair in views(self._spec, params)
            for array in pair
        ]

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, num_actions) and values (B,) of observations (B, *shape)."""
        outputs = {"trunk": observations if self._spec.network == "mlp" else observations / 255}
        pairs = zip(self.tensors[::2], self.tensors[1::2])
        for i, (layer, (weight, bias)) in enumerate(zip(self._layers, pairs)):
            x = outputs.get(layer.part, outputs["trunk"])
            if layer.side:
                x = functional.conv2d(x, weight.permute(3, 2, 0, 1), bias, layer.stride)
            else:
                if x.ndim == 4:  # the hidden layer sees rows, columns, channels
                    x = x.permute(0, 2, 3, 1).flatten(1)
                x = functional.linear(x, weight, bias)
            is_head = layer.part not in [other.part for other in self._layers[i + 1 :]]
            if layer.part == "trunk" or not is_head:
                tanh = self._spec.network == "mlp" and self._spec.activation == "tanh"
                x = torch.tanh(x) if tanh else torch.relu(x)
            outputs[layer.part] = x
        return outputs["policy"], outputs["value"].squeeze(-1)

    @torch.no_grad()
    def logits(self, time: int, observations: np.ndarray) -> np.ndarray:
        """See ``networks.Network``."""
        self._inputs[time] = torch.from_numpy(np.ascontiguousarray(observations))
        logits, values = self.forward(self._inputs[time])
        self._values[time] = values.numpy()
        return logits.numpy()

    def values(self, start: int, stop: int) -> np.ndarray:
        """See ``networks.Network``."""
        return self._values[start:stop]

    def backward(self, logits_grad: np.ndarray, values_grad: np.ndarray) -> None:
        """See ``networks.Network``."""
        outputs = self.forward(self._inputs[: len(values_grad)].flatten(0, 1))
        above = logits_grad.reshape(-1, logits_grad.shape[-1]), values_grad.ravel()
        by_outputs = [torch.from_numpy(np.ascontiguousarray(grad)) for grad in above]
        for array, grad in zip(self._grads, torch.autograd.grad(outputs, self.tensors, by_outputs)):
            np.copyto(array, grad.numpy())
