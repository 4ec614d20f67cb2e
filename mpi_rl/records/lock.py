"""The lock file beside an HDF5 file: it keeps a second writer out while the first lives."""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mpi_rl.errors import BeingWritten, writing


@contextlib.contextmanager
def writer_lock(path: Path, patience_s: float = 0) -> Iterator[None]:
    """Hold the lock of ``path``.

    Raises BeingWritten naming a writer that keeps it for longer than ``patience_s``, CannotWrite
    where no lock file can be made.
    The kernel frees the lock when its holder dies, so a killed run leaves nothing to clean up. A
    file system without locks (some Lustre mounts) cannot refuse a second writer; a warning says so.
    """
    lock = path.with_name(path.name + ".lock")
    with writing(path):
        handle = _lock(lock, path, time.monotonic() + patience_s)
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format(**os.environ)
    writer = f"process {os.getpid()} on {socket.gethostname()}{f', Slurm job {job}' if job else ''}"
    try:
        with writing(path):
            os.truncate(handle, 0)
            os.write(handle, writer.encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _lock(lock: Path, path: Path, deadline_s: float) -> int:
    """Open and lock ``lock``; again until the deadline, or if its holder was just removing it."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            writer = os.read(handle, 200).decode().strip()
            os.close(handle)
            if time.monotonic() < deadline_s:
                time.sleep(0.2)
                continue
            raise BeingWritten(
                f"{path}: being written by {writer or 'another run'}; wait for it, or choose"
                " another --output"
            ) from None
        except OSError as error:
            logging.getLogger(__name__).warning(
                "%s: no locks on this file system (%s): two writers would not be noticed",
                lock,
                error,
            )
            return handle
        if lock.exists() and os.stat(lock).st_ino == os.fstat(handle).st_ino:
            return handle
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Say whether a living writer holds the run file, or may: not every file system can tell."""
    try:
        with open(path.with_name(path.name + ".lock"), "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:  # held, or not for us to know
        return True
