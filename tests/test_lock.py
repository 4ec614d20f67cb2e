"""The lock file: one writer, who is named, and who may die."""

import errno
import fcntl
import os

import pytest

from mpi_rl.errors import BeingWritten, CannotWrite
from mpi_rl.records.lock import is_locked, writer_lock


def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path):
    path = tmp_path / "run.h5"
    with writer_lock(path):
        assert is_locked(path)
        with pytest.raises(BeingWritten, match=f"being written by process {os.getpid()} on"):
            with writer_lock(path):
                pass
        assert is_locked(path)
    assert not is_locked(path) and list(tmp_path.iterdir()) == []


def test_a_dead_writers_lock_file_is_taken_over(tmp_path):
    (tmp_path / "run.h5.lock").write_text(
        "process 1 on elsewhere, long dead and with a longer name than ours"
    )
    with writer_lock(tmp_path / "run.h5"):
        assert (tmp_path / "run.h5.lock").read_text().startswith(f"process {os.getpid()} on")
        assert "dead" not in (tmp_path / "run.h5.lock").read_text()


def test_a_lock_file_that_cannot_be_made_or_written_is_named_by_its_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CannotWrite, match=r"file/run.h5: cannot be written \(Not a directory\)"):
        with writer_lock(tmp_path / "file" / "run.h5"):
            pass

    def full(handle, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CannotWrite, match=r"run.h5: cannot be written \(No space left"):
        with writer_lock(tmp_path / "run.h5"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_fails_under_the_lock_is_no_failure_of_the_lock(tmp_path):
    with pytest.raises(FileNotFoundError):
        with writer_lock(tmp_path / "run.h5"):
            raise FileNotFoundError("something else")
    assert not is_locked(tmp_path / "run.h5")


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def no_locks(handle, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with writer_lock(tmp_path / "run.h5"):
        pass
    assert "no locks on this file system" in caplog.text
