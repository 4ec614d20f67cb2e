"""Every network once more, in torch's words and with its autograd: what the others must equal.

It also plays Atari where ``convnet.c`` could not be compiled.
"""

import numpy as np
import torch
from torch.nn import functional

from mpi_rl.networks.factors import Layout
from mpi_rl.networks.layers import layers, views
from mpi_rl.networks.network import NetworkSpec, Rows


class TorchNet:
    """A ``Network`` of any spec."""

    def __init__(
        self,
        spec: NetworkSpec,
        params: np.ndarray,
        grads: np.ndarray,
        num_times: int,
        num_envs: int,
        layout: Layout,
    ) -> None:
        assert not layout.has_factors, "torch has whole gradients only"
        torch.set_num_threads(1)  # every rank has one core
        self._spec, self._layers = spec, layers(spec)
        self.bind(params, grads)
        dtype = torch.float32 if spec.network == "mlp" else torch.uint8
        self._inputs = torch.zeros(num_times, num_envs, *spec.observation_shape, dtype=dtype)
        self._values = np.zeros((num_times, num_envs), np.float32)

    def bind(self, params: np.ndarray, grads: np.ndarray) -> None:
        """See ``Network``."""
        self._grads = [array for pair in views(self._spec, grads) for array in pair]
        self.tensors = [
            torch.from_numpy(array).requires_grad_()
            for pair in views(self._spec, params)
            for array in pair
        ]

    def outputs(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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

    @property
    def observations(self) -> np.ndarray:
        """See ``Network``."""
        return self._inputs.numpy()

    @torch.no_grad()
    def logits(self, time: int, observations: np.ndarray) -> np.ndarray:
        """See ``Network``."""
        self._inputs[time] = torch.from_numpy(np.ascontiguousarray(observations))
        logits, values = self.outputs(self._inputs[time])
        self._values[time] = values.numpy()
        return logits.numpy()

    def values(self, start: int, stop: int) -> np.ndarray:
        """See ``Network``."""
        return self._values[start:stop]

    @torch.no_grad()
    def forward(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """See ``Network``."""
        logits, values = self.outputs(self._inputs.flatten(0, 1)[rows])
        self._values.reshape(-1)[rows] = values.numpy()
        return logits.numpy(), values.numpy()

    def backward(self, rows: Rows, logits_grad: np.ndarray, values_grad: np.ndarray) -> None:
        """See ``Network``."""
        outputs, above = self.outputs(self._inputs.flatten(0, 1)[rows]), (logits_grad, values_grad)
        by_outputs = [torch.from_numpy(np.ascontiguousarray(grad)) for grad in above]
        for array, grad in zip(self._grads, torch.autograd.grad(outputs, self.tensors, by_outputs)):
            np.copyto(array, grad.numpy())
