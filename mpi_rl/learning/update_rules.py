"""Update rules: how what a worker pushes is applied to the flat parameter vector.

Every rule is bound to a worker's gradient, or to the factors that it is made of, before it is used:
``update = rule.bind(grads, reply, worker)``. Then ``update(learning_rate, scale)`` changes the
rule's parameters in place by ``scale`` times that gradient, and writes the new ones to ``reply`` as
well, which may be ``grads`` itself. Statistics lie in ``statistics``, arrays that the run file
saves and restores in place. An update allocates nothing of size P.

A rule is written twice: in NumPy, to be read, and in C, which does all of it in one pass over
memory, forms products there, and is used where it has been built. Where a gradient of 0 leaves a
parameter as it is, that one leaves out the rows of a weight whose inputs were 0: it does not write
to ``reply`` what that has already, and decays statistics when a row is next changed, to the bits
that they would have (``settle``: now).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mpi_rl.compiled import kernels
from mpi_rl.compiled.memory import vector
from mpi_rl.config import Config
from mpi_rl.networks.factors import Layout, Part

ADAM_BETAS = (0.9, 0.999)  # Kingma & Ba 2015
_RULES = ("rmsprop", "adam", "sgd", "momentum_sgd")  # as update_rules.c numbers them
_NUMBERS = ("scale", "learning_rate", "decay", "decay2", "epsilon", "correction", "weight_decay")

Update = Callable[[float, float], None]  # of a learning rate and a scale


class UpdateRule:
    """What changes ``params``, (P,), in place, by gradients as a ``layout`` of pushes has them."""

    def __init__(
        self, name: str, params: np.ndarray, layout: Layout | None, **numbers: float
    ) -> None:
        """Take update_rules.c's name for the rule, and those of its numbers that never change."""
        self.params, self.statistics = params, dict[str, np.ndarray]()
        self._name, self._layout = name, layout
        self._d, self._scratch = _Scratch(params), _Scratch(params)
        inputs = [part.inputs for part in layout.parts] if layout else [0]
        self._count, self._touched = np.ones(1, np.uintp), np.ones(sum(inputs), np.uintp)
        self._held = dict[int, tuple[np.ndarray, np.ndarray]]()  # by reply's address
        self._numbers: np.void = np.zeros(1, [(each, "f4") for each in _NUMBERS])[0]
        for each, number in numbers.items():
            self._numbers[each] = number

    def bind(self, grads: np.ndarray, reply: np.ndarray, worker: int) -> Update:
        """Return what applies the gradient that ``worker`` (0-based) will have in ``grads``."""
        vectors = self._vectors(worker)
        if kernels.AVAILABLE:
            return self._compiled(grads, reply, vectors)
        factored = self._layout if self._layout and self._layout.has_factors else None

        def update(learning_rate: float, scale: float) -> None:
            rate, correction = self._corrected(learning_rate)
            d = factored.gradient(grads, out=self._d()) if factored else grads
            d = np.multiply(d, np.float32(scale), out=self._d())
            self._step(d, vectors, np.float32(rate), np.float32(correction))
            np.copyto(reply, self.params)

        return update

    def _compiled(
        self, grads: np.ndarray, reply: np.ndarray, vectors: Sequence[np.ndarray]
    ) -> Update:
        numbers = self._numbers
        run = self._bound("update", grads, reply, vectors)

        def update(learning_rate: float, scale: float) -> None:
            numbers["scale"] = scale
            numbers["learning_rate"], numbers["correction"] = self._corrected(learning_rate)
            run()

        return update

    def _bound(
        self, name: str, grads: np.ndarray, reply: np.ndarray, vectors: Sequence[np.ndarray]
    ) -> Callable[[], None]:
        """Return a function of update_rules.c that takes an Update, with these arrays."""
        layout, params = self._layout, self.params
        parts = np.array(layout.parts if layout else [Part(0, params.size, 0)], np.uintp)
        _, held = self._held.setdefault(reply.ctypes.data, (reply, np.zeros(1, np.uintp)))
        arrays = parts, self._numbers, params, *[*vectors, params, params][:2], grads, reply
        arrays += self._count, self._touched, held
        num_rows = layout.num_rows if layout else 0
        sizes = _RULES.index(self._name), len(parts), num_rows, self._is_sparse
        addresses = [array.__array_interface__["data"][0] for array in arrays]
        run = kernels.bound(name, np.array([*sizes, *addresses], np.uintp))

        def call() -> None:
            assert arrays  # alive, as long as their addresses are in use
            run()

        return call

    def settle(self) -> None:
        """Have in ``statistics`` all that updates so far do to them."""
        if kernels.AVAILABLE and self._is_sparse and self._touched.size:
            self._bound("settle", self.params, self.params, self._vectors(0))()

    @property
    def _is_sparse(self) -> bool:
        """Whether a parameter stays as it is where the gradient is 0."""
        return self._name == "rmsprop" or (
            self._name == "sgd" and not self._numbers["weight_decay"]
        )

    def _vectors(self, worker: int) -> Sequence[np.ndarray]:
        """Return the statistics, (P,), that a worker's gradients change."""
        raise AssertionError("rules say which")

    def _corrected(self, learning_rate: float) -> tuple[float, float]:
        """Return an update's learning rate, and Adam's correction."""
        return learning_rate, 1.0

    def _step(
        self, d: np.ndarray, vectors: Sequence[np.ndarray], rate: np.float32, correction: np.float32
    ) -> None:
        """Change the parameters by a gradient d, (P,), which may be overwritten."""
        raise AssertionError("rules say how")


class SharedRMSProp(UpdateRule):
    """g <- decay g + (1 - decay) d^2; params <- params - learning_rate d / sqrt(g + epsilon).

    Mnih et al. 2016, equations S2 and S3: one g for all workers, and epsilon **inside** the root,
    where torch has it outside.
    """

    def __init__(
        self, params: np.ndarray, layout: Layout | None, decay: float, epsilon: float
    ) -> None:
        super().__init__("rmsprop", params, layout, decay=decay, epsilon=epsilon)
        self.statistics = {"mean_square": vector(params.size, 1)}
        self._decay, self._epsilon = decay, epsilon

    def _vectors(self, worker: int) -> Sequence[np.ndarray]:
        return [self.statistics["mean_square"]]

    def _step(
        self, d: np.ndarray, vectors: Sequence[np.ndarray], rate: np.float32, correction: np.float32
    ) -> None:
        (g,) = vectors
        square = np.multiply(d, d, out=self._scratch())
        g *= np.float32(self._decay)
        g += np.multiply(square, np.float32(1 - self._decay), out=square)
        root = np.sqrt(np.add(g, np.float32(self._epsilon), out=square), out=square)
        self.params -= np.multiply(np.divide(d, root, out=d), rate, out=d)


class SharedAdam(UpdateRule):
    """Adam (Kingma & Ba 2015, algorithm 1) with one set of moments for all workers."""

    def __init__(self, params: np.ndarray, layout: Layout | None, epsilon: float) -> None:
        decay, decay2 = ADAM_BETAS
        super().__init__("adam", params, layout, decay=decay, decay2=decay2, epsilon=epsilon)
        self.statistics = {
            "first_moment": vector(params.size, 1),
            "second_moment": vector(params.size, 2),
            "num_updates": np.zeros(1),
        }
        self._epsilon = epsilon

    def _vectors(self, worker: int) -> Sequence[np.ndarray]:
        return [self.statistics["first_moment"], self.statistics["second_moment"]]

    def _corrected(self, learning_rate: float) -> tuple[float, float]:
        """Count an update; return its rate, and what divides the root of the second moment."""
        self.statistics["num_updates"] += 1
        t, (beta1, beta2) = float(self.statistics["num_updates"][0]), ADAM_BETAS
        return learning_rate / (1 - beta1**t), math.sqrt(1 - beta2**t)

    def _step(
        self, d: np.ndarray, vectors: Sequence[np.ndarray], rate: np.float32, correction: np.float32
    ) -> None:
        (m, v), (beta1, beta2) = vectors, ADAM_BETAS
        square = np.multiply(d, d, out=self._scratch())
        m *= np.float32(beta1)
        m += np.multiply(d, np.float32(1 - beta1), out=d)
        v *= np.float32(beta2)
        v += np.multiply(square, np.float32(1 - beta2), out=square)
        root = np.divide(np.sqrt(v, out=square), correction, out=square)
        root += np.float32(self._epsilon)
        self.params -= np.multiply(np.divide(m, root, out=d), rate, out=d)


class MomentumSGD(UpdateRule):
    """v_w <- momentum v_w + d + weight_decay params; params <- params - learning_rate v_w.

    torch.optim.SGD's rule, with one velocity per worker w as in the Genkidama code, whose
    optimizers are private to each process while the parameters are shared.
    """

    def __init__(
        self,
        params: np.ndarray,
        layout: Layout | None,
        momentum: float,
        weight_decay: float,
        num_workers: int,
    ) -> None:
        name, numbers = "momentum_sgd" if momentum else "sgd", {"weight_decay": weight_decay}
        super().__init__(name, params, layout, decay=momentum, **numbers)
        velocities = np.zeros((num_workers if momentum else 0, params.size), np.float32)
        self.statistics = {"velocity": velocities}
        self._momentum, self._weight_decay = momentum, weight_decay

    def _vectors(self, worker: int) -> Sequence[np.ndarray]:
        return [*self.statistics["velocity"][worker : worker + 1]]  # none without momentum

    def _step(
        self, d: np.ndarray, vectors: Sequence[np.ndarray], rate: np.float32, correction: np.float32
    ) -> None:
        d += np.multiply(self.params, np.float32(self._weight_decay), out=self._scratch())
        for v in vectors:
            v *= np.float32(self._momentum)
            v += d
            np.copyto(d, v)
        self.params -= np.multiply(d, rate, out=d)


class _Scratch:
    """A vector like ``params`` that is made when it is first asked for."""

    def __init__(self, params: np.ndarray) -> None:
        self._params, self._vector = params, np.empty(0, np.float32)

    def __call__(self) -> np.ndarray:
        if not self._vector.size:
            self._vector = np.empty_like(self._params)
        return self._vector


def make_update_rule(
    config: Config, params: np.ndarray, num_workers: int, layout: Layout | None = None
) -> UpdateRule:
    """Return the rule that a run's ``config`` asks for; it changes ``params``, (P,), in place.

    Gradients are pushed as a ``layout`` has them; None: whole, (P,).
    """
    if config.update_rule == "rmsprop":
        return SharedRMSProp(params, layout, config.rmsprop_decay, config.epsilon)
    if config.update_rule == "adam":
        return SharedAdam(params, layout, config.epsilon)
    return MomentumSGD(params, layout, config.momentum, config.weight_decay, num_workers)


def mix(params: np.ndarray, others: np.ndarray, share: float, scratch: np.ndarray) -> None:
    """params <- (1 - share) params + share others, in place; ``scratch`` is another such vector.

    With share 0 and 1 it is exactly the one or the other. ``others`` may be of half precision.
    """
    if not share:
        return
    if kernels.AVAILABLE and others.dtype == np.float32:
        kernels.bound("mix", params.size, params, others)(1 - share, share)
        return
    params *= np.float32(1 - share)
    params += np.multiply(others, np.float32(share), out=scratch)


def copy(params: np.ndarray, others: np.ndarray) -> None:
    """params <- others, (P,), shared out over the server's threads if neither is rounded."""
    if kernels.AVAILABLE and params.dtype == others.dtype == np.float32:
        kernels.bound("copy", params.size, params, others)()
    else:
        np.copyto(params, others)


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
