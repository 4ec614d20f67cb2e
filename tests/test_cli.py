"""Commands are found by name, and only what a command needs is imported for it."""

import subprocess
import sys

import click
import pytest

from mpi_rl.commands.cli import COMMANDS, cli, complete
from tests.ranks import ROOT, environment, mpirun


def imported(statements):
    """The modules that a fresh Python has imported after ``statements``."""
    words = [sys.executable, "-c", f"{statements}; import sys; print(*sys.modules)"]
    done = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    return {*done.stdout.split()}


def test_every_command_of_the_table_is_there_under_its_name():
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert isinstance(command, click.Command) and command.name == name and command.help
    assert cli.get_command(context, "nothing") is None


def test_a_rank_that_trains_imports_no_other_command_and_no_library_before_mpi():
    modules = imported("import mpi_rl.__main__, mpi_rl.commands.train")
    assert not modules & {"numpy", "h5py", "torch", "PIL", "matplotlib", "mpi4py"}
    others = {place.partition(":")[0] for place in COMMANDS.values()} - {"mpi_rl.commands.train"}
    assert not modules & others


def test_no_command_starts_mpi_by_being_imported():
    names = {place.partition(":")[0] for place in COMMANDS.values()}
    assert "mpi4py.MPI" not in imported(f"import {', '.join(sorted(names))}")


@pytest.mark.parametrize(
    "given, whole",
    [
        ([], ["train"]),
        (["jobs/x.toml", "--seed", "2"], ["train", "jobs/x.toml", "--seed", "2"]),
        (["--seed", "2"], ["train", "--seed", "2"]),
        (["--help"], ["--help"]),
        (["--version"], ["--version"]),
        (["list", "x.toml"], ["list", "x.toml"]),
    ],
)
def test_options_or_a_job_file_alone_mean_train(given, whole):
    assert complete(given) == whole


def test_a_reader_that_has_seen_enough_is_no_error():
    words = [sys.executable, "-m", "mpi_rl", "list", "jobs/space_invaders.toml"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(words, cwd=ROOT, env=environment(), **pipes) as process:
        process.stdout.close()  # as ``| head`` does
        told = process.stderr.read()
    assert (process.returncode, told) == (1, "")


@pytest.mark.mpi
def test_a_broken_pipe_of_a_rank_ends_all_ranks(tmp_path):
    words = ("--env", "CartPole-v1", "--total-steps", 10**8, "--output", "run.h5")
    program = (ROOT / "tests" / "faults.py",)
    result = mpirun(3, "pipe", *words, cwd=tmp_path, program=program, timeout_s=60)
    assert result.returncode != 0 and "BrokenPipeError" in result.stderr
