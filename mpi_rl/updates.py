"""Update rules: how the server applies one gradient to the flat parameter vector.

Every rule is called as ``rule(grads, learning_rate, worker)``, changes its parameters in place and
keeps its statistics in ``statistics``, a dict of arrays that the run file saves and restores.
Nothing of size P is allocated in a call.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

ADAM_BETAS = (0.9, 0.999)  # Kingma & Ba 2015


class UpdateRule(Protocol):
    """What the server needs of an update rule."""

    statistics: dict[str, np.ndarray]

    def __call__(self, grads: np.ndarray, learning_rate: float, worker: int) -> None:
        """Change the parameters by one gradient of ``worker`` (0-based)."""


class SharedRMSProp:
    """g <- decay g + (1 - decay) d^2; params <- params - learning_rate d / sqrt(g + epsilon).

    Mnih et al. 2016, equations S2 and S3: one g for all workers, and epsilon **inside** the root,
    where torch has it outside.
    """

    def __init__(self, params: np.ndarray, decay: float, epsilon: float) -> None:
        self.statistics = {"mean_square": np.zeros_like(params)}
        self._params = torch.from_numpy(params)
        self._mean_square = torch.from_numpy(self.statistics["mean_square"])
        self._root = torch.empty_like(self._params)
        self._decay, self._epsilon = decay, epsilon

    def __call__(self, grads: np.ndarray, learning_rate: float, worker: int) -> None:
        d = torch.from_numpy(grads)
        self._mean_square.mul_(self._decay).addcmul_(d, d, value=1 - self._decay)
        torch.add(self._mean_square, self._epsilon, out=self._root).sqrt_()
        self._params.addcdiv_(d, self._root, value=-learning_rate)


class SharedAdam:
    """Adam (Kingma & Ba 2015, algorithm 1) with one set of moments for all workers."""

    def __init__(self, params: np.ndarray, epsilon: float) -> None:
        self.statistics = {
            "first_moment": np.zeros_like(params),
            "second_moment": np.zeros_like(params),
            "num_updates": np.zeros(1),
        }
        self._params = torch.from_numpy(params)
        self._m = torch.from_numpy(self.statistics["first_moment"])
        self._v = torch.from_numpy(self.statistics["second_moment"])
        self._denominator = torch.empty_like(self._params)
        self._epsilon = epsilon

    def __call__(self, grads: np.ndarray, learning_rate: float, worker: int) -> None:
        self.statistics["num_updates"] += 1
        t = float(self.statistics["num_updates"][0])
        beta1, beta2 = ADAM_BETAS
        d = torch.from_numpy(grads)
        self._m.mul_(beta1).add_(d, alpha=1 - beta1)
        self._v.mul_(beta2).addcmul_(d, d, value=1 - beta2)
        torch.sqrt(self._v, out=self._denominator).div_(math.sqrt(1 - beta2**t)).add_(self._epsilon)
        self._params.addcdiv_(self._m, self._denominator, value=-learning_rate / (1 - beta1**t))


class MomentumSGD:
    """v_w <- momentum v_w + d + weight_decay params; params <- params - learning_rate v_w.

    torch.optim.SGD's rule, with one velocity per worker w as in the Genkidama code, whose
    optimizers are private to each process while the parameters are shared.
    """

    def __init__(
        self, params: np.ndarray, momentum: float, weight_decay: float, num_workers: int
    ) -> None:
        velocities = np.zeros((num_workers if momentum else 0, params.size), np.float32)
        self.statistics = {"velocity": velocities}
        self._velocities = torch.from_numpy(velocities)
        self._params = torch.from_numpy(params)
        self._momentum, self._weight_decay = momentum, weight_decay

    def __call__(self, grads: np.ndarray, learning_rate: float, worker: int) -> None:
        d = torch.from_numpy(grads)
        if self._weight_decay:
            d.add_(self._params, alpha=self._weight_decay)
        if self._momentum:
            d = self._velocities[worker].mul_(self._momentum).add_(d)
        self._params.add_(d, alpha=-learning_rate)


def make_update_rule(
    settings: Mapping[str, Any], params: np.ndarray, num_workers: int
) -> UpdateRule:
    """Return the rule that a run's ``settings`` ask for; it changes ``params``, (P,), in place."""
    if settings["update_rule"] == "rmsprop":
        return SharedRMSProp(params, settings["rmsprop_decay"], settings["epsilon"])
    if settings["update_rule"] == "adam":
        return SharedAdam(params, settings["epsilon"])
    return MomentumSGD(params, settings["momentum"], settings["weight_decay"], num_workers)


def clip_by_norm(grads: np.ndarray, grad_norm: float, max_grad_norm: float) -> None:
    """Scale ``grads`` down in place from ``grad_norm`` to ``max_grad_norm`` (0: never)."""
    if 0 < max_grad_norm < grad_norm:
        grads *= np.float32(max_grad_norm / grad_norm)


def learning_rate_at(step: int, learning_rate: float, schedule: str, total_steps: int) -> float:
    """Return the rate at ``step``: constant, or annealed linearly to 0 at total_steps.

    The annealing is that of Mnih et al. 2016.
    """
    if schedule == "constant":
        return learning_rate
    return learning_rate * max(0.0, 1 - step / total_steps)
