"""Update rules: how one gradient is applied to the flat parameter vector.

Every rule is bound to a worker's gradient before it is used, ``update = rule.bind(grads, reply,
worker)``. Then ``update(learning_rate, scale)`` changes the rule's parameters in place by ``scale``
times that gradient, and writes the new ones to ``reply`` as well, which may be ``grads`` itself.
Statistics lie in ``statistics``, arrays that the run file saves and restores in place. An update
allocates nothing of size P.

A rule is written twice: in NumPy, to be read, and in C, which does all of it in one pass over
memory and is used where it has been built.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from mpi_rl.compiled import kernels
from mpi_rl.compiled.kernels import PAGE
from mpi_rl.config import Config

ADAM_BETAS = (0.9, 0.999)  # Kingma & Ba 2015

Update = Callable[[float, float], None]  # of a learning rate and a scale


class UpdateRule(Protocol):
    """What changes parameters."""

    statistics: dict[str, np.ndarray]

    def bind(self, grads: np.ndarray, reply: np.ndarray, worker: int) -> Update:
        """Return what applies the gradient that ``worker`` (0-based) will have in ``grads``."""


class SharedRMSProp:
    """g <- decay g + (1 - decay) d^2; params <- params - learning_rate d / sqrt(g + epsilon).

    Mnih et al. 2016, equations S2 and S3: one g for all workers, and epsilon **inside** the root,
    where torch has it outside.
    """

    def __init__(self, params: np.ndarray, decay: float, epsilon: float) -> None:
        self.statistics = {"mean_square": _statistic(params, 1)}
        self._params, self._decay, self._epsilon = params, decay, epsilon
        self._d, self._scratch = _Scratch(params), _Scratch(params)

    def bind(self, grads: np.ndarray, reply: np.ndarray, worker: int) -> Update:
        """See ``UpdateRule``."""
        if not kernels.AVAILABLE:
            return partial(self._update, grads, reply)
        vectors = self._params, self.statistics["mean_square"], grads, reply
        run, numbers = kernels.bound("rmsprop", grads.size, *vectors), (self._decay, self._epsilon)
        return lambda learning_rate, scale: run(scale, *numbers, learning_rate)

    def _update(
        self, grads: np.ndarray, reply: np.ndarray, learning_rate: float, scale: float
    ) -> None:
        params, g = self._params, self.statistics["mean_square"]
        d = np.multiply(grads, np.float32(scale), out=self._d())
        square = np.multiply(d, d, out=self._scratch())
        g *= np.float32(self._decay)
        g += np.multiply(square, np.float32(1 - self._decay), out=square)
        root = np.sqrt(np.add(g, np.float32(self._epsilon), out=square), out=square)
        params -= np.multiply(np.divide(d, root, out=d), np.float32(learning_rate), out=d)
        np.copyto(reply, params)


class SharedAdam:
    """Adam (Kingma & Ba 2015, algorithm 1) with one set of moments for all workers."""

    def __init__(self, params: np.ndarray, epsilon: float) -> None:
        self.statistics = {
            "first_moment": _statistic(params, 1),
            "second_moment": _statistic(params, 2),
            "num_updates": np.zeros(1),
        }
        self._params, self._epsilon = params, epsilon
        self._d, self._scratch = _Scratch(params), _Scratch(params)

    def bind(self, grads: np.ndarray, reply: np.ndarray, worker: int) -> Update:
        """See ``UpdateRule``."""
        if not kernels.AVAILABLE:
            return partial(self._update, grads, reply)
        m, v = self.statistics["first_moment"], self.statistics["second_moment"]
        run = kernels.bound("adam", grads.size, self._params, m, v, grads, reply)

        def update(learning_rate: float, scale: float) -> None:
            rate, correction = self._corrected(learning_rate)
            run(scale, *ADAM_BETAS, correction, self._epsilon, rate)

        return update

    def _corrected(self, learning_rate: float) -> tuple[float, float]:
        """Count an update; return its rate, and what divides the root of the second moment."""
        self.statistics["num_updates"] += 1
        t, (beta1, beta2) = float(self.statistics["num_updates"][0]), ADAM_BETAS
        return learning_rate / (1 - beta1**t), math.sqrt(1 - beta2**t)

    def _update(
        self, grads: np.ndarray, reply: np.ndarray, learning_rate: float, scale: float
    ) -> None:
        (rate, correction), (beta1, beta2) = self._corrected(learning_rate), ADAM_BETAS
        params, m, v = self._params, *list(self.statistics.values())[:2]
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
        self._params, self._momentum, self._weight_decay = params, momentum, weight_decay
        self._d, self._scratch = _Scratch(params), _Scratch(params)

    def bind(self, grads: np.ndarray, reply: np.ndarray, worker: int) -> Update:
        """See ``UpdateRule``."""
        velocity = [*self.statistics["velocity"][worker : worker + 1]]  # none without momentum
        if not kernels.AVAILABLE:
            return partial(self._update, grads, reply, velocity)
        name, numbers = "sgd", [self._weight_decay]
        if velocity:
            name, numbers = "momentum_sgd", [self._weight_decay, self._momentum]
        run = kernels.bound(name, grads.size, self._params, *velocity, grads, reply)
        return lambda learning_rate, scale: run(scale, *numbers, learning_rate)

    def _update(
        self,
        grads: np.ndarray,
        reply: np.ndarray,
        velocity: list[np.ndarray],
        learning_rate: float,
        scale: float,
    ) -> None:
        params = self._params
        d = np.multiply(grads, np.float32(scale), out=self._d())
        d += np.multiply(params, np.float32(self._weight_decay), out=self._scratch())
        for v in velocity:
            v *= np.float32(self._momentum)
            v += d
            np.copyto(d, v)
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


class _Scratch:
    """A vector like ``params`` that is made when it is first asked for."""

    def __init__(self, params: np.ndarray) -> None:
        self._params, self._vector = params, np.empty(0, np.float32)

    def __call__(self) -> np.ndarray:
        if not self._vector.size:
            self._vector = np.empty_like(self._params)
        return self._vector


def make_update_rule(config: Config, params: np.ndarray, num_workers: int) -> UpdateRule:
    """Return the rule that a run's ``config`` asks for; it changes ``params``, (P,), in place."""
    if config.update_rule == "rmsprop":
        return SharedRMSProp(params, config.rmsprop_decay, config.epsilon)
    if config.update_rule == "adam":
        return SharedAdam(params, config.epsilon)
    return MomentumSGD(params, config.momentum, config.weight_decay, num_workers)


def mix(params: np.ndarray, others: np.ndarray, share: float, scratch: np.ndarray) -> None:
    """params <- (1 - share) params + share others, in place; ``scratch`` is another such vector.

    With share 0 and 1 it is exactly the one or the other. ``others`` may be of half precision.
    """
    if not share:
        return
    params *= np.float32(1 - share)
    params += np.multiply(others, np.float32(share), out=scratch)


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
