"""The loss once more, with torch's words and autograd: what ours and its gradient must equal."""

import numpy as np
import torch
from torch import nn

from mpi_rl.networks.factors import Layout
from mpi_rl.networks.layers import layers
from mpi_rl.networks.torchnet import TorchNet


class Reference:
    """A network on a copy of ``params``, (P,); ``gradient`` differentiates a rollout's loss."""

    def __init__(self, spec, params):
        self.spec = spec
        self.network = TorchNet(
            spec, params.copy(), np.zeros_like(params), 1, 1, Layout(layers(spec))
        )

    def __call__(self, observations):
        """Return logits (B, num_actions) and values (B,) of observations (B, *shape)."""
        return self.network.outputs(torch.from_numpy(np.ascontiguousarray(observations)))

    def gradient(self, observations, actions, returns, entropy_coef, value_coef):
        """Return the loss of T steps of E environments and its gradient, (P,)."""
        logits, values = self(observations.reshape(-1, *self.spec.observation_shape))
        log_pi = nn.LogSoftmax(-1)(logits)
        chosen = log_pi.gather(1, torch.from_numpy(actions).view(-1, 1)).squeeze(1)
        errors = torch.from_numpy(returns).view(-1) - values
        entropy = -(log_pi.exp() * log_pi).sum()
        loss = -(chosen * errors.detach()).sum() - entropy_coef * entropy
        loss = (loss + value_coef * errors.square().sum()) / actions.shape[1]
        grads = torch.autograd.grad(loss, self.network.tensors)
        return loss.item(), np.concatenate([grad.numpy().ravel() for grad in grads])
