"""Which implementation plays a network."""

import numpy as np

from mpi_rl.compiled import kernels
from mpi_rl.networks.convnet import ConvNet
from mpi_rl.networks.factors import Layout
from mpi_rl.networks.layers import layers
from mpi_rl.networks.mlp import Mlp
from mpi_rl.networks.network import Network, NetworkSpec


def make_network(
    spec: NetworkSpec,
    params: np.ndarray,
    grads: np.ndarray,
    num_times: int,
    num_envs: int,
    layout: Layout | None = None,
) -> Network:
    """Return a network on ``params``, (P,), and ``grads``, for rollouts of ``num_times`` times.

    It writes gradients as a ``layout`` of pushes has them, (F,), or whole, (P,).

    Torch is imported only where ``convnet.c`` was not compiled.
    """
    layout = layout or Layout(layers(spec))
    if spec.network == "mlp":
        return Mlp(spec, params, grads, num_times, num_envs, layout)
    if kernels.AVAILABLE:
        return ConvNet(spec, params, grads, num_times, num_envs, layout)
    from mpi_rl.networks.torchnet import TorchNet

    return TorchNet(spec, params, grads, num_times, num_envs, layout)
