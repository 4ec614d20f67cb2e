"""The compiled kernels say of which sources they are, and what is wrong is told in one line."""

import shutil
from runpy import run_path

import pytest

from mpi_rl.commands.inspect import summary
from mpi_rl.compiled import kernels, sources
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import read_run, write_run
from tests.ranks import ROOT, mpi_rl, mpirun

SMOKE = ROOT / "jobs" / "smoke.toml"
STALE = "mpi_rl: the compiled kernels are of other sources than compiled/*.c: build them anew"
NONE = "mpi_rl: there are no compiled kernels; NumPy and torch do the same, more slowly."


@pytest.fixture
def package(tmp_path):
    """A copy of the package, its compiled library included, which Python prefers in tmp_path."""
    shutil.copytree(ROOT / "mpi_rl", tmp_path / "mpi_rl")
    return tmp_path / "mpi_rl"


@pytest.fixture
def stale(package):
    """The folder of a package one of whose C files has changed since it was compiled."""
    with open(package / "compiled" / "screens.c", "a") as file:
        file.write("/* changed */\n")
    return package.parent


@pytest.fixture
def missing(package):
    """The folder of a package that was installed without a compiler."""
    for library in (package / "compiled").glob("*.so"):
        library.unlink()
    return package.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    result = mpirun(2, "train", SMOKE, "--output", "run.h5", cwd=folder)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return folder / "run.h5"


def test_the_library_is_of_the_sources_beside_it():
    assert kernels.AVAILABLE, "the kernels were not built when the package was installed"
    assert kernels.KERNELS == sources.version() and len(kernels.KERNELS) == 12
    assert {path.name for path in sources.sources()} >= {"convnet.c", "screens.c"}
    kernels.check()


def test_the_version_changes_with_every_source(package):
    versions = {sources.version()}
    for path in sources.sources():
        changed = package / "compiled" / path.name
        changed.write_text(path.read_text() + "\n")
        copy = run_path(str(package / "compiled" / "sources.py"))
        versions.add(copy["version"]())
    assert len(versions) == 1 + len(sources.sources())


@pytest.mark.mpi
def test_a_stale_library_stops_a_run_in_one_line(stale):
    result = mpirun(3, "train", SMOKE, "--output", "run.h5", cwd=stale)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(STALE) and result.stderr.count("\n") == 1
    assert not (stale / "run.h5").exists()


@pytest.mark.mpi
@pytest.mark.parametrize("command", ["evaluate", "record", "bench"])
def test_a_stale_library_stops_other_commands_in_one_line(stale, trained, command):
    words = ["--job", SMOKE] if command == "bench" else [trained]
    result = mpi_rl(command, *words, cwd=stale)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(STALE) and result.stderr.count("\n") == 1


@pytest.mark.mpi
def test_a_stale_library_ends_all_ranks_of_an_evaluation(stale, trained):
    result = mpirun(3, "evaluate", trained, cwd=stale)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(STALE) and result.stderr.count("\n") == 1


@pytest.mark.mpi
def test_without_a_library_one_line_says_so_and_the_run_goes_on(missing):
    result = mpirun(3, "train", SMOKE, "--output", "run.h5", cwd=missing)
    assert result.returncode == 0 and "Done: run.h5" in result.stdout
    assert result.stderr.startswith(NONE) and result.stderr.count("\n") == 1
    run = read_run(missing / "run.h5")
    assert run.attributes["status"] == "complete" and run.attributes["kernels"] == "none"
    result = mpirun(3, "evaluate", "run.h5", "--episodes", 2, cwd=missing)
    assert result.returncode == 0 and "last snapshot" in result.stdout
    assert result.stderr.startswith(NONE) and result.stderr.count("\n") == 1


@pytest.mark.mpi
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_ranks_with_other_kernels_are_refused_with_both_versions(tmp_path, trained, command):
    program, words = (ROOT / "tests" / "faults.py",), (SMOKE if command == "train" else trained,)
    result = mpirun(4, "kernels", command, *words, cwd=tmp_path, program=program)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == (
        f"mpi_rl: rank 2's compiled kernels are none, but the server's are {kernels.KERNELS}: nodes"
        " have different builds of mpi_rl; install the same on all\n"
    )


@pytest.mark.mpi
def test_the_run_file_says_which_kernels_were_used_and_older_ones_need_not(tmp_path, trained):
    run = read_run(trained)
    assert run.attributes["kernels"] == kernels.KERNELS
    assert f"compiled kernels {kernels.KERNELS}" in summary(trained)
    del run.attributes["kernels"]
    write_run(tmp_path / "old.h5", run)
    assert "kernels" not in read_run(tmp_path / "old.h5").attributes
    assert "kernels" not in summary(tmp_path / "old.h5")


def test_what_is_wrong_is_told_once(monkeypatch, capsys):
    kernels.check.cache_clear()
    monkeypatch.setattr(kernels, "KERNELS", kernels.NONE)
    for _ in range(2):
        kernels.check()
    assert capsys.readouterr().err.count("no compiled kernels") == 1
    kernels.check.cache_clear()
    monkeypatch.setattr(kernels, "KERNELS", kernels.STALE)
    for _ in range(2):
        with pytest.raises(UserError, match=r"other sources than compiled/\*\.c"):
            kernels.check()
