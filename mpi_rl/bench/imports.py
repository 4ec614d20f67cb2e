"""The least that the ranks of an Atari run import, and a barrier: the limit of ``bench start``."""

import json
import os
import time
from pathlib import Path


def main() -> None:
    """Import on all ranks; rank 0 prints when all had, and the largest memory, as JSON."""
    import ale_py  # noqa: F401
    from mpi4py import MPI

    from mpi_rl.transport.waiting import sleeping_barrier

    sleeping_barrier(MPI.COMM_WORLD)
    ended, found = time.time(), MPI.COMM_WORLD.gather(pss_bytes(os.getpid()))
    if found:
        print(json.dumps({"ended": ended, "pss_bytes": max(found)}), flush=True)


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size: a page that k processes share counts 1/k."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
