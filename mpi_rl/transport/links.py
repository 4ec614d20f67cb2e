"""Pushes and replies between server and workers: one message each way, sleeping waits.

A worker's slot (see ``slots``) lies in a shared window on the server's node: both ends map it, and
a message carries only the small header or reply. Elsewhere both ends own a copy, and a message
carries header and grads, or reply and params.

Between its push and the reply a worker waits, so the server reads and writes the slot undisturbed:
nothing is torn, and the version that a worker holds is exact. Ranks on the server's node are woken
by a bell, also where they exchange by message; others look again after ever longer sleeps (see
``waiting``).
"""

import itertools
import os
import time
from functools import partial
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from mpi_rl.transport.bell import Bell
from mpi_rl.transport.messages import SERVER, WITHOUT_PARAMS, Command, Kind, Tag
from mpi_rl.transport.slots import Slot
from mpi_rl.transport.waiting import SLEEP_LAST_S, Backoff, give_way, sleeping_barrier, wait_until

FAILURE_WAIT_S = 4.0  # a failed worker gives the server this long to save the run and end all ranks


class _Link:
    """What both ends share: the window, where one is used, and how to leave without leftovers."""

    def __init__(
        self, comm: MPI.Intracomm, slot_bytes: int, by_message: bool, spin: bool
    ) -> None:
        self._comm, self._spin = comm, spin
        self._node = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank))
        is_beside = self._node.allreduce(comm.rank, MPI.MIN) == SERVER
        self._near = is_beside and not by_message
        self._window: MPI.Win | None = None
        self.bell = Bell() if is_beside else None
        address = comm.bcast(self.bell and self.bell.address)  # the server's
        if self.bell and comm.rank != SERVER:
            self.bell.is_trusted = self.bell.find(SERVER, address)  # so far
        if self._near:
            self._window = MPI.Win.Allocate_shared(
                0 if comm.rank == SERVER else slot_bytes, 1, comm=self._node
            )
            self._window.Lock_all(MPI.MODE_NOCHECK)

    def _memory(self, node_rank: int) -> np.ndarray:
        assert self._window is not None
        buffer: Any = self._window.Shared_query(node_rank)[0]
        return np.frombuffer(buffer, np.uint8)

    def _sync(self) -> None:
        if self._window is not None:
            self._window.Sync()

    def _close(self, requests: list[MPI.Prequest]) -> None:
        sleeping_barrier(self._comm)
        for request in requests:
            request.Free()
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()
        if self.bell:
            self.bell.close()
        self._node.Free()


class WorkerLink(_Link):
    """A worker's end: fill header and grads, ``push``, ``pull``, find reply and params.

    ``params``, (P,), and ``grads``, (P,) or ``num_pushed`` numbers of what it is made of, are the
    halves of its slot: ``half`` says which is which, and may be another after a ``pull``.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        num_params: int,
        max_episodes: int,
        by_message: bool = False,
        spin: bool = False,
        dtype: str = "float32",
        num_pushed: int | None = None,
    ) -> None:
        give_way()
        num_bytes = Slot(num_params, max_episodes, None, dtype, num_pushed).num_bytes
        super().__init__(comm, num_bytes, by_message, spin)
        memory = self._memory(self._node.rank) if self._near else None
        self._slot = slot = Slot(num_params, max_episodes, memory, dtype, num_pushed)
        if self._near:
            slot.share(slot.halves)
        slot.grads[:] = 0  # rows of factors that no rollout has used are multiplied, by 0
        self.reply, self.header = slot.reply, slot.header
        self.header["worker"], self.reply["command"] = comm.rank - 1, Command.CONTINUE
        down, up = slot.messages(self._near)
        self._push = comm.Send_init([up, MPI.BYTE], SERVER, Tag.PUSH)
        self._report: MPI.Prequest | None = None
        self._header_alone = slot.messages(near=True)[1]
        self._requests = [self._push, comm.Recv_init([down, MPI.BYTE], SERVER, Tag.REPLY)]
        self._hurry = comm.Irecv([None, MPI.BYTE], SERVER, Tag.HURRY)
        address = self.bell and self.bell.address
        rings = self.bell and self.bell.is_trusted
        comm.gather((self._near, node_name(), rings, address), root=SERVER)
        is_found = comm.scatter(None, root=SERVER)
        if self.bell:
            self.bell.is_trusted &= is_found

    @property
    def half(self) -> int:
        """Which half has the parameters: the place of (params, grads) in ``pairs``."""
        return self._slot.half

    @property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Params and grads for each ``half`` that there may be."""
        return self._slot.pairs

    @property
    def params(self) -> np.ndarray:
        """The parameters that the last reply has brought, (P,)."""
        return self._slot.params

    @property
    def grads(self) -> np.ndarray:
        """What the next push takes along."""
        return self._slot.grads

    @property
    def version(self) -> int:
        """The version of ``params``, in updates."""
        return int(self.reply["version"])

    def push(self) -> None:
        """Send the header (and grads); both belong to the link until ``pull`` returns.

        A REPORT or READY is the header alone, and its reply brings no params.
        """
        if not self._near:
            is_small = self._slot.kind in WITHOUT_PARAMS
            self._requests[0] = self._reporting() if is_small else self._push
        self._sync()
        MPI.Prequest.Startall(self._requests)
        if self.bell:
            self.bell.ring(SERVER)

    def _reporting(self) -> MPI.Prequest:
        if self._report is None:
            message = [self._header_alone, MPI.BYTE]
            self._report = self._comm.Send_init(message, SERVER, Tag.PUSH)
        return self._report

    def pull(self, parks: bool = False) -> np.void:
        """Wait for the answer to the push, the reply (and params), and return the reply."""
        everything = partial(MPI.Request.Testall, self._requests)
        sent = None if self._near else self._requests[0].Test
        wait_until(everything, self._spin, self.bell, parks, sent)
        self._sync()
        if self._slot.kind not in WITHOUT_PARAMS:
            self._slot.turn()
        return self.reply

    def is_admitted(self) -> bool:
        """Say, parked until then, whether the server wants this worker to work, or to stop."""
        if self.reply["command"] != Command.STOP:
            self.header["kind"] = Kind.READY
            self.push()
            self.pull(parks=True)
        return bool(self.reply["command"] == Command.CONTINUE)

    def is_hurried(self) -> bool:
        """Say whether the server wants a push now, not only when it is due."""
        return self._hurry.Test()

    def fail(self) -> None:
        """Tell the server that this worker has failed, for it to end all ranks; return if not."""
        self.header["kind"] = Kind.FAILED
        deadline = time.monotonic() + FAILURE_WAIT_S

        def is_over() -> bool:
            return time.monotonic() > deadline

        wait_until(lambda: MPI.Request.Testall(self._requests) or is_over())
        self._requests[0].Start()
        while not is_over():
            self._requests[0].Test()  # a long message moves only while its sender calls MPI
            time.sleep(SLEEP_LAST_S)

    def close(self) -> None:
        """Leave together with all ranks."""
        reports = [self._report] if self._report is not None else []
        wait_until(self._hurry.Test)
        self._close([self._push, self._requests[1], *reports])


class ServerLink(_Link):
    """The server's end: ``poll``, read a worker's slot, write its answer, ``reply``."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        num_params: int,
        max_episodes: int,
        by_message: bool = False,
        spin: bool = False,
        dtype: str = "float32",
        num_pushed: int | None = None,
    ) -> None:
        num_pushed = num_params if num_pushed is None else num_pushed
        super().__init__(comm, 0, by_message, spin)
        self.num_workers = comm.size - 1
        _, *gathered = comm.gather(None) or [None]
        # Each worker's node and transport, as the run file has them.
        self.places = [(node, "window" if near else "message") for near, node, _, _ in gathered]
        found = [False] + [
            bool(self.bell and address and self.bell.find(rank, address))
            for rank, (*_, address) in enumerate(gathered, start=1)
        ]
        comm.scatter(found)
        if self.bell:
            # It must look at messages again and again: its end, too, moves them.
            self.bell.is_trusted = all(near and rings for near, _, rings, _ in gathered)
        self.slots: list[Slot] = []  # of each worker: its header is the last one that it has sent
        self._receives: list[MPI.Prequest] = []
        # Of each worker and whose reply it is sent: its slot's (without params), or an outbox's.
        self._replies: dict[tuple[int, Slot], MPI.Prequest] = {}
        self._free: list[Slot] = []  # outboxes: the last one has been used last, caches have it
        self._lent: dict[int, Slot] = {}  # those being sent, to whom
        self._make = partial(Slot, num_params, 0, None, dtype, 0)
        node_ranks = itertools.count(1)  # of the workers in the window, which keep their order
        for rank, (near, *_) in enumerate(gathered, start=1):
            slot = Slot(0, max_episodes, None, dtype, 0 if near else num_pushed)
            if near:  # the halves are the worker's own; header and reply, being sent, are not
                memory = self._memory(next(node_ranks))
                theirs = Slot(num_params, max_episodes, memory, dtype, num_pushed)
                slot.share(theirs.halves)
            else:
                slot.lend = self._lend
            self.slots.append(slot)
            up = slot.messages(near)[1]
            self._receives.append(comm.Recv_init([up, MPI.BYTE], rank, Tag.PUSH))
        self._sends = [self._request(*each) for each in enumerate(self.slots)]  # the last ones
        self._hurries: list[MPI.Request] = []
        MPI.Prequest.Startall(self._receives)

    def poll(self) -> list[int]:
        """Return the workers whose push has arrived since the last call, without waiting."""
        arrived = MPI.Request.Testsome(self._receives) or []
        for worker in arrived:
            wait_until(self._sends[worker].Test)  # long done: it has pushed again since
        if arrived:
            self._sync()
        return arrived

    def backoff(self) -> Backoff:
        """Return the pauses between two calls of ``poll``."""
        return Backoff(self._spin, self.bell)

    def reply(
        self,
        worker: int,
        version: int,
        step: int,
        command: Command,
        rng_state: np.ndarray | None = None,
    ) -> None:
        """Answer the worker's push with its slot's ``answer``; STOP is a worker's last answer."""
        sent = slot = self.slots[worker]
        if slot.kind not in WITHOUT_PARAMS:
            slot.turn()
            if not slot.is_shared:
                sent = self._lent[worker] = slot.send()
        resumed = rng_state is not None
        sent.say(version, step, command, resumed, rng_state if resumed else 0)
        self._sends[worker] = self._request(worker, sent)
        if command != Command.STOP:
            self._receives[worker].Start()
        self._sync()
        self._sends[worker].Start()
        if self.bell:
            self.bell.ring(worker + 1)

    def hurry(self) -> None:
        """Ask all workers for what they have; later calls do nothing."""
        if not self._hurries:
            ranks = range(1, self.num_workers + 1)
            self._hurries = [self._comm.Isend([None, MPI.BYTE], rank, Tag.HURRY) for rank in ranks]

    def _request(self, worker: int, sent: Slot) -> MPI.Prequest:
        if (worker, sent) not in self._replies:
            message = [sent.messages(near=sent is self.slots[worker])[0], MPI.BYTE]
            self._replies[worker, sent] = self._comm.Send_init(message, worker + 1, Tag.REPLY)
        return self._replies[worker, sent]

    def _lend(self) -> Slot:
        """Return an outbox that no reply is being sent from: as few as can be are in use."""
        for worker in [worker for worker in self._lent if self._sends[worker].Test()]:
            self._free.append(self._lent.pop(worker))
        return self._free.pop() if self._free else self._make()

    def close(self) -> None:
        """Leave together with all ranks, once every worker has been told to stop."""
        self.hurry()  # for those who still listen
        wait_until(lambda: MPI.Request.Testall([*self._sends, *self._hurries]))
        self._close([*self._receives, *self._replies.values()])


def node_name() -> str:
    """Return this rank's node: Slurm's name for it, where Slurm runs, else the host's."""
    return os.environ.get("SLURMD_NODENAME") or MPI.Get_processor_name()


def shared_memory(comm: MPI.Intracomm) -> str:
    """Return the name of this rank's node, and the first rank that it shares memory with there."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    first = node.allreduce(comm.rank, MPI.MIN)
    node.Free()
    return f"{node_name()} (rank {first} and more)"
