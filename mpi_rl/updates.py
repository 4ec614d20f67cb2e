"""Update rules: how the server applies one gradient to the flat parameter vector.

Every rule is called as ``rule(grads, reply, learning_rate, scale, worker)``. It changes its
parameters in place by ``scale`` times the gradient, writes the new ones to ``reply`` as well, which
may be ``grads`` itself, and keeps its statistics in ``statistics``, a dict of arrays that the run
file saves and restores. Nothing of size P is allocated in a call.

A rule is written twice: in NumPy, to be read, and in ``fused.c``, which does all of it in one pass
over memory and is used where it has been built.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mpi_rl import fused
from mpi_rl.fused import PAGE

ADAM_BETAS = (0.9, 0.999)  # Kingma & Ba 2015


class UpdateRule(Protocol):
    """What the server needs of an update rule."""

    statistics: dict[str, np.ndarray]

    def __call__(
        self, grads: np.ndarray, reply: np.ndarray, learning_rate: float, scale: float, worker: int
    ) -> None:
        """Change the parameters by one gradient of ``worker`` (0-based) and copy them."""

    def start(self, worker: int) -> np.ndarray:
        """Return the parameters that ``worker`` starts, or goes on, with."""


class _Shared:
    """What rules have in common whose parameters are all workers'."""

    _params: np.ndarray

    def start(self, worker: int) -> np.ndarray:
        """Return the parameters."""
        return self._params


class SharedRMSProp(_Shared):
    """g <- decay g + (1 - decay) d^2; params <- params - learning_rate d / sqrt(g + epsilon).

    Mnih et al. 2016, equations S2 and S3: one g for all workers, and epsilon **inside** the root,
    where torch has it outside.
    """

    def __init__(self, params: np.ndarray, decay: float, epsilon: float) -> None:
        self.statistics = {"mean_square": _statistic(params, 1)}
        self._params, self._decay, self._epsilon = params, decay, epsilon
        self._fused = _Fused("rmsprop", params, *self.statistics.values())
        self._d, self._scratch = _Scratch(params), _Scratch(params)

    def __call__(
        self, grads: np.ndarray, reply: np.ndarray, learning_rate: float, scale: float, worker: int
    ) -> None:
        params, g = self._params, self.statistics["mean_square"]
        if fused.AVAILABLE:
            return self._fused(grads, reply, scale, self._decay, self._epsilon, learning_rate)
        d = np.multiply(grads, np.float32(scale), out=self._d())
        square = np.multiply(d, d, out=self._scratch())
        g *= np.float32(self._decay)
        g += np.multiply(square, np.float32(1 - self._decay), out=square)
        root = np.sqrt(np.add(g, np.float32(self._epsilon), out=square), out=square)
        params -= np.multiply(np.divide(d, root, out=d), np.float32(learning_rate), out=d)
        np.copyto(reply, params)


class SharedAdam(_Shared):
    """Adam (Kingma & Ba 2015, algorithm 1) with one set of moments for all workers."""

    def __init__(self, params: np.ndarray, epsilon: float) -> None:
        self.statistics = {
            "first_moment": _statistic(params, 1),
            "second_moment": _statistic(params, 2),
            "num_updates": np.zeros(1),
        }
        self._params, self._epsilon = params, epsilon
        self._fused = _Fused("adam", params, *list(self.statistics.values())[:2])
        self._d, self._scratch = _Scratch(params), _Scratch(params)

    def __call__(
        self, grads: np.ndarray, reply: np.ndarray, learning_rate: float, scale: float, worker: int
    ) -> None:
        params, m, v = self._params, *list(self.statistics.values())[:2]
        self.statistics["num_updates"] += 1
        t = float(self.statistics["num_updates"][0])
        beta1, beta2 = ADAM_BETAS
        rate, correction = learning_rate / (1 - beta1**t), math.sqrt(1 - beta2**t)
        if fused.AVAILABLE:
            numbers = beta1, beta2, correction, self._epsilon
            return self._fused(grads, reply, scale, *numbers, rate)
        d = np.multiply(grads, np.float32(scale), out=self._d())
        square = np.multiply(d, d, out=self._scratch())
        m *= np.float32(beta1)
        m += np.multiply(d, np.float32(1 - beta1), out=d)
        v *= np.float32(beta2)
        v += np.multiply(square, np.float32(1 - beta2), out=square)
        root = np.divide(np.sqrt(v, out=square), np.float32(correction), out=square)
        root += np.float32(self._epsilon)
        params -= np.multiply(np.divide(m, root, out=d), np.float32(rate), out=d)
        np.copyto(reply, params)


class MomentumSGD(_Shared):
    """v_w <- momentum v_w + d + weight_decay params; params <- params - learning_rate v_w.

    torch.optim.SGD's rule, with one velocity per worker w as in the Genkidama code, whose
    optimizers are private to each process while the parameters are shared.
    """

    def __init__(
        self, params: np.ndarray, momentum: float, weight_decay: float, num_workers: int
    ) -> None:
        velocities = np.zeros((num_workers if momentum else 0, params.size), np.float32)
        self.statistics = {"velocity": velocities}
        self._params, self._momentum, self._weight_decay = params, momentum, weight_decay
        self._fused = [_Fused("momentum_sgd", params, velocity) for velocity in velocities]
        self._fused = self._fused or [_Fused("sgd", params)] * num_workers
        self._d, self._scratch = _Scratch(params), _Scratch(params)

    def __call__(
        self, grads: np.ndarray, reply: np.ndarray, learning_rate: float, scale: float, worker: int
    ) -> None:
        params = self._params
        velocity = self.statistics["velocity"][worker : worker + 1]
        if fused.AVAILABLE:
            numbers = self._weight_decay, *([self._momentum] if self._momentum else [])
            return self._fused[worker](grads, reply, scale, *numbers, learning_rate)
        d = np.multiply(grads, np.float32(scale), out=self._d())
        d += np.multiply(params, np.float32(self._weight_decay), out=self._scratch())
        if self._momentum:
            velocity *= np.float32(self._momentum)
            velocity += d
            np.copyto(d, velocity[0])
        params -= np.multiply(d, np.float32(learning_rate), out=d)
        np.copyto(reply, params)


def _statistic(params: np.ndarray, place: int) -> np.ndarray:
    """Return zeros like ``params``, ``place`` quarters of a memory page, 1 to 3, further in theirs.

    A processor that writes to one vector and then reads from another at the same place of a page
    first has to find out that they are not the same: that would cost a fifth of an update's time.
    """
    room = np.zeros(params.size + PAGE // params.itemsize, params.dtype)
    begin = (params.ctypes.data - room.ctypes.data + place * PAGE // 4) % PAGE // params.itemsize
    return room[begin : begin + params.size]


class _Fused:
    """A rule's function in ``fused.c``, bound only once to each slot's grads and reply."""

    def __init__(self, name: str, *vectors: np.ndarray) -> None:
        """Take the rule's own vectors, the parameters first."""
        self._name, self._vectors = name, vectors
        self._calls: dict[tuple[int, int], Callable[..., None]] = {}

    def __call__(self, grads: np.ndarray, reply: np.ndarray, *numbers: float) -> None:
        slot = id(grads), id(reply)  # nobody else's: what is bound stays alive
        if slot not in self._calls:
            vectors = *self._vectors, grads, reply
            self._calls[slot] = fused.bound(self._name, grads.size, *vectors)
        self._calls[slot](*numbers)


class Mixing:
    """params <- (1 - alpha) params + alpha x: Genkidama's exchange, the server's half.

    x are the parameters of a worker's group, which come as ``grads``; rate and scale are not used.
    What the group has after its own half, (1 - beta) x + beta params, is kept as a statistic, so
    that a run that is resumed gives each group its own parameters back. (As far as the server can
    tell: if x comes in half precision, what is kept was rounded once, the group itself was not.)

    If it is ``elastic``, a group mixes with the server's parameters from before the exchange: with
    alpha = beta both move by the same, as in Zhang, Choromanska & LeCun 2015, equations 5 and 6.
    """

    def __init__(
        self,
        params: np.ndarray,
        alpha: float,
        beta: float,
        groups: Sequence[int],
        elastic: bool = False,
    ) -> None:
        """Take each worker's group, and both strengths, from 0 to 1."""
        self.statistics = {"group_params": np.tile(params, (len(set(groups)), 1))}
        self._params, self._alpha, self._beta, self._groups = params, alpha, beta, groups
        self._elastic = elastic
        self._scratch = _Scratch(params)

    def __call__(
        self, grads: np.ndarray, reply: np.ndarray, learning_rate: float, scale: float, worker: int
    ) -> None:
        group = self.start(worker)
        np.copyto(group, grads)
        if self._elastic:
            np.copyto(reply, self._params)
        mix(self._params, group, self._alpha, self._scratch())
        if not self._elastic:
            np.copyto(reply, self._params)
        mix(group, reply, self._beta, self._scratch())

    def start(self, worker: int) -> np.ndarray:
        """Return the parameters of the worker's group."""
        return self.statistics["group_params"][self._groups[worker]]


def mix(params: np.ndarray, others: np.ndarray, share: float, scratch: np.ndarray) -> None:
    """params <- (1 - share) params + share others, in place; ``scratch`` is another such vector.

    With share 0 and 1 it is exactly the one or the other. ``others`` may be of half precision.
    """
    if not share:
        return
    params *= np.float32(1 - share)
    params += np.multiply(others, np.float32(share), out=scratch)


class _Scratch:
    """A vector like ``params`` that is made when it is first asked for."""

    def __init__(self, params: np.ndarray) -> None:
        self._params, self._vector = params, np.empty(0, np.float32)

    def __call__(self) -> np.ndarray:
        if not self._vector.size:
            self._vector = np.empty_like(self._params)
        return self._vector


def make_update_rule(
    settings: Mapping[str, Any], params: np.ndarray, num_workers: int
) -> UpdateRule:
    """Return the rule that a run's ``settings`` ask for; it changes ``params``, (P,), in place."""
    if settings["update_rule"] == "rmsprop":
        return SharedRMSProp(params, settings["rmsprop_decay"], settings["epsilon"])
    if settings["update_rule"] == "adam":
        return SharedAdam(params, settings["epsilon"])
    return MomentumSGD(params, settings["momentum"], settings["weight_decay"], num_workers)


def server_rule(
    settings: Mapping[str, Any], params: np.ndarray, groups: Sequence[int]
) -> UpdateRule:
    """Return what the server does with pushes by workers of these ``groups``."""
    if settings["algorithm"] == "genkidama":
        strengths = settings["alpha"], settings["beta"]
        return Mixing(params, *strengths, groups, settings["elastic"])
    return make_update_rule(settings, params, len(groups))


def clipping(grad_norm: float, max_grad_norm: float) -> float:
    """Return what scales a gradient down from ``grad_norm`` to ``max_grad_norm`` (0: never)."""
    return max_grad_norm / grad_norm if 0 < max_grad_norm < grad_norm else 1.0


def learning_rate_at(step: int, learning_rate: float, schedule: str, total_steps: int) -> float:
    """Return the rate at ``step``: constant, or annealed linearly to 0 at total_steps.

    The annealing is that of Mnih et al. 2016.
    """
    if schedule == "constant":
        return learning_rate
    return learning_rate * max(0.0, 1 - step / total_steps)
