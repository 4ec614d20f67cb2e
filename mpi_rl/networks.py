"""Actor-critic networks as views of two flat float32 vectors, (P,): parameters and gradients.

The vectors belong to the caller (a worker's slot): backward writes the gradient where the server
reads it, and the server's reply changes the network without a copy.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
GAINS = {
    "tanh": 2**0.5,
    "relu": 2**0.5,
    "policy": 0.01,
    "value": 1.0,
}  # orthogonal: as in the PPO code of OpenAI
NORMAL_DEVIATION = 0.1  # Genkidama's first weights; its biases start at 0


@dataclass(frozen=True)
class NetworkSpec:
    """What decides a network's shape and its first parameters."""

    network: str  # "mlp", "atari_2013" or "atari_2015"
    hidden_sizes: tuple[int, ...]
    activation: str
    separate_trunks: bool
    initialization: str
    observation_shape: tuple[int, ...]
    num_actions: int


def network_spec(
    settings: Mapping[str, Any], observation_shape: tuple[int, ...], num_actions: int
) -> NetworkSpec:
    """Return the network that a run's ``settings`` (its config, by name) ask for on such a task."""
    return NetworkSpec(
        settings["network"],
        tuple(settings["hidden_sizes"]),
        settings["activation"],
        settings["separate_trunks"],
        settings["initialization"],
        observation_shape,
        num_actions,
    )


class _Pixels(nn.Module):
    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():  # the convolutions' backward is a quarter faster in this layout
            observations = observations.contiguous(memory_format=torch.channels_last)
        return observations.to(torch.float32).mul_(1 / 255)


class ActorCritic(nn.Module):
    """A policy and a value function, perhaps with a common trunk; ``bind`` gives it memory."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        with torch.device("meta"):
            if spec.network == "mlp":
                width = spec.observation_shape[0]
                if spec.separate_trunks:
                    self.trunk = nn.Sequential()
                    self.policy = nn.Sequential(
                        *_mlp(width, spec), nn.Linear(spec.hidden_sizes[-1], spec.num_actions)
                    )
                    self.value = nn.Sequential(
                        *_mlp(width, spec), nn.Linear(spec.hidden_sizes[-1], 1)
                    )
                    return
                self.trunk, features = nn.Sequential(*_mlp(width, spec)), spec.hidden_sizes[-1]
            elif spec.network == "atari_2013":
                self.trunk, features = _atari_2013(spec.observation_shape[0]), 256
            else:
                self.trunk, features = _atari_2015(spec.observation_shape[0]), 512
            self.policy = nn.Sequential(nn.Linear(features, spec.num_actions))
            self.value = nn.Sequential(nn.Linear(features, 1))

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, num_actions) and values (B,) of observations (B, *shape)."""
        features = self.trunk(observations)
        return self.policy(features), self.value(features).squeeze(-1)


def _mlp(width: int, spec: NetworkSpec) -> Iterator[nn.Module]:
    for hidden in spec.hidden_sizes:
        yield nn.Linear(width, hidden)
        yield ACTIVATIONS[spec.activation]()
        width = hidden


def _atari_2013(channels: int) -> nn.Sequential:
    """Mnih et al. 2013, which the A3C paper uses."""
    return nn.Sequential(
        _Pixels(),
        nn.Conv2d(channels, 16, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 9 * 9, 256),
        nn.ReLU(),
    )


def _atari_2015(channels: int) -> nn.Sequential:
    """Mnih et al. 2015."""
    return nn.Sequential(
        _Pixels(),
        nn.Conv2d(channels, 32, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
    )


def use_one_thread() -> None:
    """Keep torch to one thread: every rank has one core."""
    torch.set_num_threads(1)


def num_params(spec: NetworkSpec) -> int:
    """Return P, the size of the flat parameter vector."""
    return sum(parameter.numel() for parameter in ActorCritic(spec).parameters())


def bind(network: ActorCritic, params: np.ndarray, grads: np.ndarray | None = None) -> ActorCritic:
    """Make the parameters (and gradients) views of ``params`` (``grads``), (P,) float32."""
    offset = 0
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            end = offset + parameter.numel()
            view = nn.Parameter(
                torch.from_numpy(params[offset:end]).view(parameter.shape),
                requires_grad=grads is not None,
            )
            if grads is not None:
                view.grad = torch.from_numpy(grads[offset:end]).view(parameter.shape)
            setattr(module, name, view)
            assert view.data_ptr() == params[offset:end].ctypes.data
            offset = end
    assert offset == params.size, f"{params.size} parameters given, {offset} needed"
    return network


def initial_params(spec: NetworkSpec, seed: int) -> np.ndarray:
    """Return the first parameters, (P,) float32, drawn from ``seed``."""
    params = np.zeros(num_params(spec), np.float32)
    network = bind(ActorCritic(spec), params)
    generator = torch.Generator().manual_seed(seed)
    for head, part in (
        ("trunk", network.trunk),
        ("policy", network.policy),
        ("value", network.value),
    ):
        layers = [layer for layer in part if isinstance(layer, (nn.Linear, nn.Conv2d))]
        for layer in layers:
            bound = layer.weight[0].numel() ** -0.5
            if spec.initialization == "normal":
                nn.init.normal_(layer.weight, 0, NORMAL_DEVIATION, generator=generator)
            elif spec.initialization == "uniform":
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                assert layer.bias is not None
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
            else:
                last = layer is layers[-1] and head != "trunk"
                nn.init.orthogonal_(
                    layer.weight, GAINS[head if last else spec.activation], generator=generator
                )
    return params


# Observations (E, *shape) -> logits (E, num_actions), a reused array.
Policy = Callable[[np.ndarray], np.ndarray]


def make_policy(network: ActorCritic, num_envs: int) -> Policy:
    """Return the fastest way to act: NumPy on the same vector for an mlp, torch for images."""
    if any(isinstance(layer, nn.Conv2d) for layer in network.trunk):
        return _torch_policy(network)
    return _numpy_policy([*network.trunk, *network.policy], num_envs)


def _torch_policy(network: ActorCritic) -> Policy:
    actor = nn.Sequential(network.trunk, network.policy)

    def policy(observations: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return actor(torch.from_numpy(observations)).numpy()

    return policy


def _numpy_policy(modules: list[nn.Module], num_envs: int) -> Policy:
    layers = [
        (
            layer.weight.detach().numpy().T,
            layer.bias.detach().numpy(),
            np.zeros((num_envs, layer.out_features), np.float32),
        )
        for layer in modules
        if isinstance(layer, nn.Linear)
    ]
    squash = np.tanh if any(isinstance(module, nn.Tanh) for module in modules) else _relu
    *hidden, (last_weight, last_bias, logits) = layers

    def policy(observations: np.ndarray) -> np.ndarray:
        features = observations
        for weight, bias, out in hidden:
            np.matmul(features, weight, out=out)
            np.add(out, bias, out=out)
            features = squash(out, out=out)
        np.matmul(features, last_weight, out=logits)
        return np.add(logits, last_bias, out=logits)

    return policy


def _relu(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0, out=out)
