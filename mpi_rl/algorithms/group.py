"""Groups: workers of one node that share parameters, and meet asleep (unless they may spin)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.learning.update_rules import clipping, make_update_rule
from mpi_rl.transport.messages import Kind
from mpi_rl.transport.waiting import sleeping_barrier

_LINE = 64  # bytes: members' flags are so far apart


def groups_of(nodes: Sequence[str], size: int) -> tuple[int, ...]:
    """Return the group of each worker, whose nodes are given: ``size`` neighbours of one node.

    Raises UserError where a group would have to straddle nodes.
    """
    for node, count in Counter(nodes).items():
        if count % size:
            raise UserError(
                f"group_size = {size}: node {node} has {count} worker(s), no multiple of it, and a"
                " group cannot straddle nodes: place the ranks otherwise (srun --exclusive"
                " --distribution=plane=..., mpirun with a host file; the server is a rank too), or"
                " choose a group_size that divides every node's workers"
            )
    by_node = sorted(range(len(nodes)), key=lambda worker: (nodes.index(nodes[worker]), worker))
    groups = [0] * len(nodes)
    for place, worker in enumerate(by_node):
        groups[worker] = place // size
    return tuple(groups)


class Group:
    """A member's end of its group.

    All members change ``params``, (P,), without a lock (Hogwild), each by gradients of its own and
    an update rule with statistics of its own. ``pairs`` are its own parameters and gradients.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        ranks: Sequence[int],
        num_params: int,
        config: Config,
        spin: bool = False,
    ) -> None:
        """Meet the group's members, which have these ``ranks`` in ``comm``."""
        self._spin, self._config = spin, config
        everyone = comm.Get_group()
        members = everyone.Incl(ranks)
        self._comm = comm.Create_group(members, tag=ranks[0])
        members.Free()
        everyone.Free()
        self.is_leader = self._comm.rank == 0
        self.kind = Kind.PUSH if self.is_leader else Kind.REPORT  # of its messages to the server
        flags = _LINE * len(ranks)
        room = flags + 4 * num_params if self.is_leader else 0
        self._window = MPI.Win.Allocate_shared(room, 1, comm=self._comm)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        buffer: Any = self._window.Shared_query(0)[0]
        memory = np.frombuffer(buffer, np.uint8)
        # 1 while that member is changing params; there are no locks, so this only says roughly.
        self._at_work = memory[:flags].view(np.int64)[:: _LINE // 8]
        self._at_work[self._comm.rank] = 0
        self.params = memory[flags : flags + 4 * num_params].view(np.float32)
        self._own, grads, self.scratch = np.zeros((3, num_params), np.float32)
        self.pairs = [(self._own, grads)]
        self._update = make_update_rule(config, self.params, 1).bind(grads, self.scratch, 0)

    def begin(self, params: np.ndarray) -> None:
        """Let the group have the leader's ``params``, (P,)."""
        if self.is_leader:
            np.copyto(self.params, params)
        self.meet()

    def meet(self) -> None:
        """Wait for all members; what they wrote before is seen by all."""
        self._window.Sync()
        sleeping_barrier(self._comm, self._spin)
        self._window.Sync()

    def update(self, grad_norm: float) -> bool:
        """Apply this member's gradient; say whether another member did so at the same time.

        Then some of either's changes may be lost.
        """
        me, at_work, config = self._comm.rank, self._at_work, self._config
        at_work[me] = 1
        met = at_work.sum() > 1
        self._update(config.learning_rate, clipping(grad_norm, config.max_grad_norm))
        met |= at_work.sum() > 1
        at_work[me] = 0
        return bool(met)

    def pull(self) -> bool:
        """Take the group's parameters as this member's; say whether any was changed meanwhile.

        Then some of them may be older than others.
        """
        met = self._at_work.any()
        np.copyto(self._own, self.params)
        return bool(met or self._at_work.any())

    def close(self) -> None:
        """Leave together with all members."""
        self.meet()
        self._window.Unlock_all()
        self._window.Free()
        self._comm.Free()
