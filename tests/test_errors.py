"""What a person can mend is answered in one line; everything else keeps its traceback."""

import os

import click
import pytest

from mpi_rl.commands.cli import answer
from mpi_rl.errors import BeingWritten, CannotWrite, UserError, reading, writing


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    "error, status",
    [
        (UserError("seed = -1:\n must be at least 0"), 2),
        (click.UsageError("seed = -1: must be at least 0"), 2),
        (BeingWritten("seed = -1: must be at least 0"), 75),
        (CannotWrite("seed = -1: must be at least 0"), 74),
    ],
)
def test_what_a_person_can_mend_is_one_line_with_its_status(error, status, capsys):
    assert answer(raising(error)) == (None, status)
    assert capsys.readouterr().err == "mpi_rl: seed = -1: must be at least 0\n"


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError])
def test_what_is_no_persons_is_not_answered(kind, capsys):
    with pytest.raises(kind, match="ours"):
        answer(raising(kind("ours")))
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_answered_without_words(capsys):
    assert answer(raising(KeyboardInterrupt())) == (None, 130)
    assert answer(lambda: 5) == (5, 0) and capsys.readouterr().err == ""


def test_files_that_fail_are_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_bytes(b"\xff")
    path = tmp_path / "file" / "below"
    with pytest.raises(CannotWrite, match=f"{path}: cannot be written .Not a directory"):
        with writing(path):
            path.write_text("")
    with pytest.raises(UserError, match=f"{path}: cannot be read .Not a directory") as caught:
        with reading(path):
            path.read_text()
    assert caught.value.status == 2 and CannotWrite.status == os.EX_IOERR
    with pytest.raises(UserError, match="file: not a text in UTF-8"):
        with reading(tmp_path / "file"):
            (tmp_path / "file").read_text(encoding="utf-8")
    for manager in (reading, writing):
        with pytest.raises(ValueError, match="ours"):
            with manager(path):
                raise ValueError("ours")
