"""Pushes and replies between server and workers: one message each way, sleeping waits.

A worker's slot is one stretch of memory, ``reply | params[P] | header | grads[P]``, whose vectors
are of float32 or, to be sent at half the size, of float16 or bfloat16:

* on the server's node it lies in a shared window that both ends map, and a message carries only the
  small header or reply. The server writes the new parameters over the gradient, which its caches
  have by then, and with that reply params and grads change places, at both ends;
* elsewhere both ends own a copy, and a message carries header and grads, or reply and params.

Between its push and the reply a worker waits, so the server reads and writes the slot undisturbed:
nothing is torn, and the version that a worker holds is exact. Waits test and sleep, because a
blocking MPI call spins, and with more ranks than cores it would eat the cores that should compute.
Ranks on the server's node are woken by a bell; others look again after ever longer sleeps.
"""

import enum
import itertools
import os
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from mpi_rl.bell import Bell
from mpi_rl.fused import PAGE

SERVER = 0  # its rank; worker w (0-based) is rank w + 1
SLEEP_FIRST_S, SLEEP_LAST_S = 20e-6, 1e-3
BELL_S = 20e-3  # between two looks of who relies on a bell
PARKED_S, PARKED_BELL_S = 50e-3, 0.5  # likewise of who is parked, without and with a bell
FAILURE_WAIT_S = 4.0  # a failed worker gives the server this long to save the run and end all ranks
_PLACE = 3 * PAGE // 4  # of a slot's vectors in their page: the server's own are in the rest


class Tag(enum.IntEnum):
    """Message tags: each has one sender, one receiver and one payload."""

    # worker -> server: header, and unless it goes WITHOUT_PARAMS, grads if memory is not shared
    PUSH = 1
    REPLY = 2  # server -> worker: reply, and likewise params
    HURRY = 3  # server -> worker, once at most before the last reply: nothing


class Kind(enum.IntEnum):
    """What a worker's header announces."""

    JOIN = 0  # ready to start: send parameters
    PUSH = 1  # here is a gradient, or a group's parameters
    REPORT = 3  # here is only what was done; no parameters are wanted
    READY = 4  # parked until the server answers; no parameters are wanted
    FAILED = 2  # an exception ended this worker


WITHOUT_PARAMS = (Kind.REPORT, Kind.READY)  # and without their reply's


class Command(enum.IntEnum):
    """What the server's reply tells a worker to do."""

    CONTINUE = 0
    STOP = 1
    PARK = 2  # leave, and be ready again


REPLY = np.dtype(
    [
        ("version", "i8"),  # updates applied to the parameters sent along
        ("command", "i8"),
        ("resumed", "i8"),  # 1: rng_state is where the worker's random stream goes on
        ("rng_state", "u8", 6),
    ]
)


def header_dtype(max_episodes: int) -> np.dtype:
    """Return the record that a worker sends, with room for ``max_episodes`` finished episodes."""
    return np.dtype(
        [
            ("kind", "i8"),
            ("worker", "i8"),  # 0-based
            ("version", "i8"),  # of the parameters that the gradient was taken at
            # Since the last push: steps played, updates made of their gradients, and how many of
            # those and of the pulls met another member's update of the group's parameters.
            ("num_steps", "i8"),
            ("num_updates", "i8"),
            ("num_conflicts", "i8"),
            ("num_torn_pulls", "i8"),
            ("policy_loss", "f8"),
            ("value_loss", "f8"),
            ("entropy", "f8"),
            ("grad_norm", "f8"),
            ("phase_s", "f8", 6),  # seconds since the last push: env, act, learn, push, wait; cpu
            ("rng_state", "u8", 6),  # the worker's random stream after this rollout
            ("num_episodes", "i8"),
            ("episode_returns", "f8", max_episodes),
            ("episode_lengths", "i8", max_episodes),
        ]
    )


def exchange_dtype(name: str) -> np.dtype:
    """Return a slot's type of number by its name: float32, float16 or bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Backoff:
    """Ever longer sleeps, SLEEP_FIRST_S to SLEEP_LAST_S; none at all with ``spin``.

    A ``bell`` ends them early. If it can be trusted, they last BELL_S; but what has rung may take
    another look or two to arrive, so after a ring they are short again. Who ``parks`` has all the
    time in the world.
    """

    def __init__(self, spin: bool = False, bell: Bell | None = None, parks: bool = False) -> None:
        self._spin, self._bell = spin and not parks, bell
        self._first, self._last = SLEEP_FIRST_S, PARKED_S if parks else SLEEP_LAST_S
        if bell is not None and bell.is_trusted:
            self._last = PARKED_BELL_S if parks else BELL_S
            self._first = BELL_S
        self._pause = self._first

    def sleep(self) -> None:
        """Sleep, twice as long as the time before."""
        if self._spin:
            return
        if self._bell and self._bell.wait(self._pause):
            self._pause = SLEEP_FIRST_S
            return
        if not self._bell:
            time.sleep(self._pause)
        self._pause = min(2 * self._pause, self._last)

    def reset(self) -> None:
        """Start again from the first sleep."""
        self._pause = self._first


def wait_until(
    done: Callable[[], object], spin: bool = False, bell: Bell | None = None, parks: bool = False
) -> None:
    """Call ``done`` until it is true, with a ``Backoff`` in between."""
    backoff = Backoff(spin, bell, parks)
    while not done():
        backoff.sleep()


def sleeping_barrier(comm: MPI.Comm, spin: bool = False) -> None:
    """Wait for all ranks of ``comm`` without using a core, unless it is to ``spin``."""
    wait_until(comm.Ibarrier().Test, spin)


class Slot:
    """Views of a worker's memory, or of the server's end of it."""

    def __init__(
        self,
        num_params: int,
        max_episodes: int,
        memory: np.ndarray | None = None,
        dtype: str = "float32",
    ) -> None:
        header, vector = header_dtype(max_episodes), exchange_dtype(dtype)
        num_bytes = vector.itemsize * num_params
        # A message is a record and, right behind it, its vector.
        sizes, begins, end = (REPLY.itemsize, header.itemsize), [], 0
        for size in sizes:
            begins.append(end + (_PLACE - size - end) % PAGE)
            end = begins[-1] + size + num_bytes
        self.num_bytes = -(-end // PAGE) * PAGE
        if memory is None:
            memory = np.zeros(self.num_bytes, np.uint8)
        down, up = (memory[a : a + size + num_bytes] for a, size in zip(begins, sizes))
        self._whole, self._small = (down, up), (down[: sizes[0]], up[: sizes[1]])
        self.reply, self.params = self._small[0].view(REPLY), down[sizes[0] :].view(vector)
        self.header, self.grads = self._small[1].view(header), up[sizes[1] :].view(vector)

    def views(self) -> tuple[np.void, np.ndarray, np.void, np.ndarray]:
        """Return reply, params, header and grads; the records as scalars that write through."""
        return self.reply[0], self.params, self.header[0], self.grads

    def messages(self, near: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes that travel down and up: with shared memory the records alone."""
        return self._small if near else self._whole


class _Link:
    """What both ends share: the window, where one is used, and how to leave without leftovers."""

    def __init__(self, comm: MPI.Intracomm, slot_bytes: int, by_message: bool) -> None:
        self._comm = comm
        self._node = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank))
        self._near = not by_message and self._node.allreduce(comm.rank, MPI.MIN) == SERVER
        self._window: MPI.Win | None = None
        self.bell = Bell() if self._near else None
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

    ``params`` and ``grads``, (P,), may be each other's after a ``pull``, and no others ever.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        num_params: int,
        max_episodes: int,
        by_message: bool = False,
        spin: bool = False,
        dtype: str = "float32",
    ) -> None:
        num_bytes = Slot(num_params, max_episodes, dtype=dtype).num_bytes
        super().__init__(comm, num_bytes, by_message)
        memory = self._memory(self._node.rank) if self._near else None
        slot = Slot(num_params, max_episodes, memory, dtype)
        self.reply, self.params, self.header, self.grads = slot.views()
        self._spin, self.header["worker"] = spin, comm.rank - 1
        self.reply["command"] = Command.CONTINUE
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

    def push(self) -> None:
        """Send the header (and grads); both belong to the link until ``pull`` returns.

        A REPORT or READY is the header alone, and its reply brings no params.
        """
        if not self._near:
            is_small = self.header["kind"] in WITHOUT_PARAMS
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
        wait_until(lambda: MPI.Request.Testall(self._requests), self._spin, self.bell, parks)
        self._sync()
        if self._near and self.header["kind"] not in WITHOUT_PARAMS:
            self.params, self.grads = self.grads, self.params
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
    """The server's end: ``poll``, read header and grads, write params, ``reply``."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        num_params: int,
        max_episodes: int,
        by_message: bool = False,
        dtype: str = "float32",
    ) -> None:
        super().__init__(comm, 0, by_message)
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
            self.bell.is_trusted = all(rings for _, _, rings, _ in gathered)
        self._slots, self._receives, self._replies = [], [], []
        self._is_near = [near for near, *_ in gathered]
        node_ranks = itertools.count(1)  # of the workers in the window, which keep their order
        for rank, (near, *_) in enumerate(gathered, start=1):
            slot = Slot(0 if near else num_params, max_episodes, dtype=dtype)
            if near:  # the vectors are the worker's own; header and reply, being sent, are not
                memory = self._memory(next(node_ranks))
                shared = Slot(num_params, max_episodes, memory, dtype)
                slot.params, slot.grads = shared.params, shared.grads
            down, up = slot.messages(near)
            self._slots.append(slot)
            self._receives.append(comm.Recv_init([up, MPI.BYTE], rank, Tag.PUSH))
            self._replies.append(comm.Send_init([down, MPI.BYTE], rank, Tag.REPLY))
        self._sends = self._replies.copy()  # each worker's last one
        self._answers: dict[int, MPI.Prequest] = {}  # to reports: without params
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

    def header(self, worker: int) -> np.void:
        """Return the record that ``worker`` sent: see ``header_dtype``."""
        return self._slots[worker].header[0]

    def grads(self, worker: int) -> np.ndarray:
        """Return the gradient that ``worker`` pushed, (P,)."""
        return self._slots[worker].grads

    def params(self, worker: int) -> np.ndarray:
        """Return where the server writes what ``worker``'s next reply brings, (P,).

        It may be written from the worker's push to the reply, and once ``grads`` have been read:
        where memory is shared, that is where they lie.
        """
        slot = self._slots[worker]
        return slot.grads if self._is_near[worker] else slot.params

    def swap(self, worker: int) -> None:
        """Let ``worker``'s params and grads change places if memory is shared, as a reply does."""
        if self._is_near[worker]:
            slot = self._slots[worker]
            slot.params, slot.grads = slot.grads, slot.params

    def reply(
        self, worker: int, version: int, command: Command, rng_state: np.ndarray | None = None
    ) -> None:
        """Answer the worker's push with its ``params``; STOP is a worker's last answer."""
        slot, resumed = self._slots[worker], rng_state is not None
        slot.reply[0] = (version, command, resumed, rng_state if resumed else 0)
        if slot.header["kind"][0] in WITHOUT_PARAMS:
            self._sends[worker] = self._answering(worker)
        else:
            self._sends[worker] = self._replies[worker]
            self.swap(worker)
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

    def _answering(self, worker: int) -> MPI.Prequest:
        if worker not in self._answers:
            reply = self._slots[worker].messages(near=True)[0]
            self._answers[worker] = self._comm.Send_init([reply, MPI.BYTE], worker + 1, Tag.REPLY)
        return self._answers[worker]

    def close(self) -> None:
        """Leave together with all ranks, once every worker has been told to stop."""
        self.hurry()  # for those who still listen
        wait_until(lambda: MPI.Request.Testall([*self._sends, *self._hurries]))
        self._close([*self._receives, *self._replies, *self._answers.values()])


def node_name() -> str:
    """Return this rank's node: Slurm's name for it, where Slurm runs, else the host's."""
    return os.environ.get("SLURMD_NODENAME") or MPI.Get_processor_name()


def shared_memory(comm: MPI.Intracomm) -> str:
    """Return the name of this rank's node, and the first rank that it shares memory with there."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    first = node.allreduce(comm.rank, MPI.MIN)
    node.Free()
    return f"{node_name()} (rank {first} and more)"
