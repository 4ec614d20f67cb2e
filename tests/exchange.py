"""Exchange recognisable vectors over a link, under mpirun: exchange.py TRANSPORT PUSHES [SIZE].

TRANSPORT mixed puts the odd ranks on a second node. A push has SIZE numbers, or as many as there
are parameters: then the halves of a slot in shared memory change places. Worker w's n-th gradient
is all 1000 w + n, the server's answer is all n + w / 10. All workers are parked until all are, at
the start and after half their pushes. Either end raises if a single element is another, and the
server prints what it has seen.
"""

import os
import sys

import numpy as np
from mpi4py import MPI

from mpi_rl.transport.links import ServerLink, WorkerLink
from mpi_rl.transport.messages import Command, Kind, Tag
from mpi_rl.transport.waiting import wait_until

NUM_PARAMS, MAX_EPISODES = 50_001, 3  # an odd size, for the alignment
JOINED = 0.5  # added to what a worker starts, or goes on, with


def is_near(rank: int) -> bool:
    return sys.argv[1] == "window" or sys.argv[1] == "mixed" and rank % 2 == 0


def work(comm: MPI.Intracomm, by_message: bool, num_pushed: int) -> None:
    worker, sent = comm.rank - 1, 0
    link = WorkerLink(comm, NUM_PARAMS, MAX_EPISODES, by_message, num_pushed=num_pushed)
    turns = is_near(comm.rank) and num_pushed == NUM_PARAMS
    assert os.sched_getscheduler(0) == os.SCHED_BATCH  # it does not interrupt the server
    while link.is_admitted():
        link.header["kind"] = Kind.JOIN
        link.push()
        reply, extra = link.pull(), JOINED
        while reply["command"] == Command.CONTINUE:
            expected = np.float32(sent + worker / 10 + extra)
            assert reply["version"] == sent and (link.params == expected).all()
            sent, extra = sent + 1, 0
            link.header["kind"], link.header["num_steps"] = Kind.PUSH, sent
            link.header["episode_lengths"][:] = sent, sent + 1, sent + 2
            link.grads[:] = 1000 * worker + sent
            link.push()
            half = link.half
            reply = link.pull()
            assert link.half == (1 - half if turns else 0)  # written over
            assert reply["step"] == 7 * reply["version"]
    assert not link.is_admitted()  # and does not ask again
    link.close()


def serve(comm: MPI.Intracomm, by_message: bool, num_pushes: int, num_pushed: int) -> None:
    link = ServerLink(comm, NUM_PARAMS, MAX_EPISODES, by_message, num_pushed=num_pushed)
    seen, active = np.zeros(link.num_workers, int), set(range(link.num_workers))
    parked: list[int] = []
    while active:
        arrived: list[int] = []
        wait_until(lambda: arrived.extend(link.poll()) or arrived)
        for worker in arrived:
            slot = link.slots[worker]
            header = slot.header
            if header["kind"] == Kind.PUSH:
                seen[worker] += 1
                assert header["num_steps"] == seen[worker]
                assert header["episode_lengths"].tolist() == [seen[worker] + i for i in range(3)]
                assert slot.grads.size == num_pushed
                assert (slot.grads == 1000 * worker + seen[worker]).all()
            if header["kind"] == Kind.READY:
                parked.append(worker)
                continue
            assert slot.is_shared == (link.places[worker][1] == "window")
            assert slot.turns == (slot.is_shared and num_pushed == NUM_PARAMS)
            extra = JOINED if header["kind"] == Kind.JOIN else 0
            slot.answer[:] = seen[worker] + worker / 10 + extra
            command = Command.STOP if seen[worker] == num_pushes else Command.CONTINUE
            if command == Command.STOP:
                active.remove(worker)
            elif header["kind"] == Kind.PUSH and seen[worker] == num_pushes // 2:
                command = Command.PARK
            link.reply(worker, seen[worker], 7 * seen[worker], command)
        if len(parked) == link.num_workers:
            while parked:
                link.reply(parked.pop(), 0, 0, Command.CONTINUE)
    link.close()
    print([transport for _, transport in link.places], seen.tolist())


class Counted(MPI.Intracomm):
    """A world that counts the persistent requests made on it, and knows no others but HURRY."""

    sends, receives = 0, 0

    def Send_init(self, *arguments):
        Counted.sends += 1
        return super().Send_init(*arguments)

    def Recv_init(self, *arguments):
        Counted.receives += 1
        return super().Recv_init(*arguments)

    def _refuse(self, *arguments, **named):
        raise AssertionError("pushes and replies are persistent requests")

    def Isend(self, buffer, rank, tag):
        assert tag == Tag.HURRY and buffer[0] is None
        return super().Isend(buffer, rank, tag)

    def Irecv(self, buffer, rank, tag):
        assert tag == Tag.HURRY and buffer[0] is None
        return super().Irecv(buffer, rank, tag)

    Send = Recv = send = isend = recv = irecv = Sendrecv = Put = _refuse


class TwoNodes(Counted):
    """A world whose even ranks are on one node and whose odd ranks are on another."""

    def Split_type(self, split_type, key=0, info=MPI.INFO_NULL):
        return self.Split(self.rank % 2, key)


if __name__ == "__main__":
    world, message = Counted(MPI.COMM_WORLD), sys.argv[1] == "message"
    num_pushed = int([*sys.argv, NUM_PARAMS][3])
    if sys.argv[1] == "mixed":
        world = TwoNodes(world)
    try:
        if world.rank == 0:
            serve(world, message, int(sys.argv[2]), num_pushed)
        else:
            work(world, message, num_pushed)
    except BaseException:
        import traceback

        traceback.print_exc()
        world.Abort(1)
    # One request each way and worker, started once per push, and another to send without vectors.
    # The server has more: for each of its outboxes (one per worker at most) and worker.
    per_end = 1 if world.rank else world.size - 1
    sends = per_end if is_near(world.rank or 2) else 2 * per_end
    most = sends if world.rank else per_end * (1 + per_end)
    assert Counted.receives == per_end and sends <= Counted.sends <= most
