"""pytest itself never becomes an MPI rank: transport's records are used with MPI not started."""

import tempfile
from collections.abc import Iterator

import mpi4py
import pytest

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory) -> Iterator[None]:
    """What launchers leave when they are killed goes where pytest will remove it."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("tmp"))
    yield
    tempfile.tempdir = before
