"""The networks and the loss once more, with torch's modules and autograd: what ours must equal."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mpi_rl.networks import layers, views

torch.set_num_threads(1)


class Reference:
    """A network on a copy of ``params``, (P,); ``gradient`` differentiates a rollout's loss."""

    def __init__(self, spec, params):
        self.spec = spec
        self.tensors = [
            tuple(torch.from_numpy(array.copy()).requires_grad_() for array in pair)
            for pair in views(spec, params)
        ]

    def __call__(self, observations):
        """Return logits (B, num_actions) and values (B,) of observations (B, *shape)."""
        x = torch.from_numpy(np.ascontiguousarray(observations))
        if self.spec.network != "mlp":
            x = x.float() / 255
        features, heads = {"trunk": x, "policy": None, "value": None}, []
        stack = layers(self.spec)
        for i, (layer, (weight, bias)) in enumerate(zip(stack, self.tensors)):
            x = features[layer.part]
            x = features["trunk"] if x is None else x
            if layer.stride:
                x = functional.conv2d(x, weight, bias, layer.stride)
            else:
                if x.ndim == 4:  # the hidden layer sees rows, columns, channels
                    x = x.permute(0, 2, 3, 1).flatten(1)
                x = functional.linear(x, weight, bias)
            if layer.part != "trunk" and (i + 1 == len(stack) or stack[i + 1].part != layer.part):
                heads.append(x)
            else:
                tanh = self.spec.network == "mlp" and self.spec.activation == "tanh"
                x = torch.tanh(x) if tanh else torch.relu(x)
            features[layer.part] = x
        return heads[0], heads[1].squeeze(-1)

    def gradient(self, observations, actions, returns, entropy_coef, value_coef):
        """Return the loss of T steps of E environments and its gradient, (P,)."""
        logits, values = self(observations.reshape(-1, *self.spec.observation_shape))
        log_pi = nn.LogSoftmax(-1)(logits)
        chosen = log_pi.gather(1, torch.from_numpy(actions).view(-1, 1)).squeeze(1)
        errors = torch.from_numpy(returns).view(-1) - values
        entropy = -(log_pi.exp() * log_pi).sum()
        loss = -(chosen * errors.detach()).sum() - entropy_coef * entropy
        loss = (loss + value_coef * errors.square().sum()) / actions.shape[1]
        loss.backward()
        grads = [tensor.grad.numpy().ravel() for pair in self.tensors for tensor in pair]
        return loss.item(), np.concatenate(grads)
