"""Run the command line with a fault planted: python faults.py FAULT ARGUMENTS..., under mpirun.

FAULT is environment (rank 2's environment raises at its 100th step), import (rank 1 raises before
it joins), disk (rank 0's second write finds no space), full (no write does), mistake (job files
cannot be loaded for a reason that is no person's), pipe (who reads what rank 0 shows is gone),
network (rank 2's is wider) or kernels (rank 2 has none).
"""

import errno
import os
import sys

import mpi_rl.__main__ as command_line
from mpi_rl import jobs
from mpi_rl.envs import tasks


def environment_raises_on_rank_2():
    from mpi4py import MPI

    step, count = tasks.VectorTask.step, 0

    def faulty(self, actions):
        nonlocal count
        count += 1
        if MPI.COMM_WORLD.rank == 2 and count == 100:
            raise RuntimeError("the lander's engine fell off")
        return step(self, actions)

    tasks.VectorTask.step = faulty


def worker_1_raises_before_it_joins():
    from mpi4py import MPI

    make = tasks.VectorTask.__init__

    def faulty(self, *arguments):
        if MPI.COMM_WORLD.rank == 1:
            raise RuntimeError("no such rocket")
        make(self, *arguments)

    tasks.VectorTask.__init__ = faulty


def disk_is_full_at_the_second_write(most=1):
    replace, count = os.replace, 0

    def faulty(source, target):
        nonlocal count
        count += 1
        if count > most:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    os.replace = faulty


def disk_is_full():
    disk_is_full_at_the_second_write(most=0)


def job_files_are_mistaken():
    def faulty(path):
        raise ValueError("a mistake of our own")

    jobs.load_job = faulty


def pipe_breaks_as_the_server_shows_where_it_is():
    from mpi_rl.server.progress import Progress

    def faulty(self, moment, last=False):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    Progress.show = faulty


def network_is_wider_on_rank_2():
    from mpi4py import MPI

    from mpi_rl.networks import layers as networks

    layers = networks.layers

    def faulty(spec):
        wider = [layer._replace(outputs=layer.outputs + 1) for layer in layers(spec)]
        return wider if MPI.COMM_WORLD.rank == 2 else layers(spec)

    networks.layers = faulty


def kernels_are_missing_on_rank_2():
    from mpi4py import MPI

    from mpi_rl.compiled import kernels

    if MPI.COMM_WORLD.rank == 2:
        kernels.KERNELS = kernels.NONE


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    {
        "environment": environment_raises_on_rank_2,
        "import": worker_1_raises_before_it_joins,
        "disk": disk_is_full_at_the_second_write,
        "full": disk_is_full,
        "mistake": job_files_are_mistaken,
        "pipe": pipe_breaks_as_the_server_shows_where_it_is,
        "network": network_is_wider_on_rank_2,
        "kernels": kernels_are_missing_on_rank_2,
    }[fault]()
    command_line.main()
