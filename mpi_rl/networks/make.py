"""Which implementation plays a network."""

import numpy as np

from mpi_rl.compiled import kernels
from mpi_rl.networks.convnet import ConvNet
from mpi_rl.networks.mlp import Mlp
from mpi_rl.networks.network import Network, NetworkSpec


def make_network(
    spec: NetworkSpec, params: np.ndarray, grads: np.ndarray, num_times: int, num_envs: int
) -> Network:
    """Return a network on ``params`` and ``grads``, (P,), for rollouts of ``num_times`` times.

    Torch is imported only where ``convnet.c`` was not compiled.
    """
    if spec.network == "mlp":
        return Mlp(spec, params, grads, num_times, num_envs)
    if kernels.AVAILABLE:
        return ConvNet(spec, params, grads, num_times, num_envs)
    from mpi_rl.networks.torchnet import TorchNet

    return TorchNet(spec, params, grads, num_times, num_envs)
