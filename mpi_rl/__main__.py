"""Every rank's way to a command.

    mpirun -n 9 python -m mpi_rl [train] [JOB] [--index I] [--any-field value]
    python -m mpi_rl list|submit|collect JOB
    python -m mpi_rl inspect [--verify] FILE...
    python -m mpi_rl plot FILE...
    python -m mpi_rl record FILE
    mpirun -n 3 python -m mpi_rl evaluate FILE...

Without arguments LunarLander-v3 is trained, in a minute or two, into results/lunar_lander/0.h5.
Exit status of every command: 0 done (or checkpointed, when told to stop), 1 an exception on any
rank, or a run missing or damaged (collect, inspect --verify), 2 bad input: nothing was written,
74 a file cannot be written, 75 another process is writing it, 130 Ctrl-C.
"""

import os
import sys

from mpi_rl.commands.cli import answer, complete, parse
from mpi_rl.commands.launch import end_every_rank, leave


def main() -> None:
    """Run the command line; an exception that no command answers ends every rank."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per rank, before NumPy is imported
    try:
        status = _run(complete(sys.argv[1:]))
    except BaseException:
        end_every_rank()
        raise
    sys.exit(status)


def _run(arguments: list[str]) -> int | None:
    """Run the command in ``arguments``; return this rank's exit status."""
    if arguments[0] == "train" and "--dry-run" not in arguments:
        from mpi_rl.commands import train

        return train.take_part(arguments)
    if arguments[0] == "evaluate" and not {"-h", "--help"} & {*arguments}:
        from mpi_rl.commands import evaluate

        return evaluate.take_part(arguments)
    try:
        result, status = answer(lambda: parse(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # of one process alone: who reads what it prints has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return leave(status or result)


if __name__ == "__main__":
    main()
