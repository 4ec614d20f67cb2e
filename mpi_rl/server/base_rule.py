"""What the server asks of an algorithm: what to do with a push, and whom to answer."""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from mpi_rl.config import Config
from mpi_rl.learning.update_rules import Update, clipping, make_update_rule
from mpi_rl.networks.factors import Layout
from mpi_rl.transport.slots import Slot


class Push(NamedTuple):
    """What a rule is told of a push; what was pushed lies in the worker's slot."""

    worker: int
    header: np.void
    staleness: int  # updates since the worker's parameters were pulled
    learning_rate: float  # of the run's step
    active: Set[int]  # workers that have joined, and were not parked again nor told to stop


class Outcome(NamedTuple):
    """What a rule has done with a push."""

    answered: Sequence[int]  # who is answered now: asynchronous rules name the sender
    is_update: bool = True  # the parameters have changed: the version rises by one
    is_dropped: bool = False  # what was pushed was not used, and never will be


class Rule:
    """The server's half of an algorithm.

    It changes ``params``, (P,), in place, and writes to the slots of those whom it answers what
    they are to go on with. Others' pushes stay in their slots. ``statistics`` are arrays that the
    run file saves and restores in place; ``group_params``, (groups, P), is what groups have of
    their own, if any.
    """

    statistics: dict[str, np.ndarray]

    def __init__(
        self,
        config: Config,
        params: np.ndarray,
        slots: Sequence[Slot],
        groups: Sequence[int],
        layout: Layout | None = None,
    ) -> None:
        """Take the run's settings, the server's parameters, each worker's slot, and its group.

        A ``layout`` says where everything is in what is pushed, if that is no vector, (P,).
        """
        self.config, self.params, self.slots, self.groups = config, params, slots, groups
        self._layout = layout
        self.statistics, self.group_params = {}, np.zeros((0, params.size), np.float32)
        self.prepare(layout)

    def prepare(self, layout: Layout | None) -> None:
        """Make what the rule has beside the parameters, if anything."""

    def start(self, worker: int) -> np.ndarray:
        """Return the parameters that ``worker`` starts, or goes on, with."""
        return self.params

    def settle(self) -> None:
        """Have in ``statistics`` all that pushes so far do to them."""

    def state(self) -> dict[str, np.ndarray]:
        """Return parameters and statistics by their names in a run file, and in its order."""
        self.settle()
        return {name: self.to_file(values) for name, values in self._arrays().items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Give parameters and statistics, in place, the values of an earlier ``state``."""
        for name, values in self._arrays().items():
            saved, layout = state[name], self._layout_of(values)
            values[:] = layout.from_file(saved) if layout else saved

    def to_file(self, values: np.ndarray) -> np.ndarray:
        """Return parameters, or a statistic, in the order of run files."""
        layout = self._layout_of(values)
        return layout.to_file(values) if layout else values

    def _arrays(self) -> dict[str, np.ndarray]:
        statistics = {f"update_rule/{name}": values for name, values in self.statistics.items()}
        return {"params": self.params, **statistics}

    def _layout_of(self, values: np.ndarray) -> Layout | None:
        return self._layout if values.shape[-1:] == self.params.shape else None

    def push(self, push: Push) -> Outcome:
        """Take in what a worker has pushed."""
        raise AssertionError("algorithms say how")


class GradientRule(Rule):
    """A rule whose workers push gradients, to be applied by the run's update rule."""

    def prepare(self, layout: Layout | None) -> None:
        """See ``Rule``."""
        rule = make_update_rule(self.config, self.params, len(self.slots), layout)
        self.statistics, self._rule = rule.statistics, rule
        self._updates: dict[tuple[int, int, Slot], Update] = {}  # of worker, half and outbox

    def settle(self) -> None:
        """See ``Rule``."""
        self._rule.settle()

    def apply(self, worker: int, learning_rate: float) -> None:
        """Apply the gradient in a worker's slot, clipped, and make the parameters its answer."""
        slot = self.slots[worker]
        scale = clipping(float(slot.header["grad_norm"]), self.config.max_grad_norm)
        key = worker, slot.half, slot.outbox
        if key not in self._updates:
            self._updates[key] = self._rule.bind(slot.grads, slot.answer, worker)
        self._updates[key](learning_rate, scale)


class GroupRule(Rule):
    """A rule whose groups have parameters of their own.

    What a group has after an exchange is kept, so that a run that is resumed gives it back. (As far
    as the server can tell: if it is exchanged in half precision, what is kept was rounded once, the
    group itself was not.)
    """

    def prepare(self, layout: Layout | None) -> None:
        """See ``Rule``."""
        self.group_params = np.tile(self.params, (len(set(self.groups)), 1))
        self.statistics = {"group_params": self.group_params}
        self.scratch = np.empty_like(self.params)

    def start(self, worker: int) -> np.ndarray:
        """Return the parameters of the worker's group."""
        return self.group_params[self.groups[worker]]
