import errno
import os

import h5py
import numpy as np
import pytest

from mpi_rl.commands.inspect import verify_run
from mpi_rl.errors import CannotWrite, UserError
from mpi_rl.records.runfile import read_run, write_run
from tests.records import header, recorder


@pytest.fixture
def path(tmp_path):
    made = recorder(tmp_path / "run.h5", workers=2)
    for push in range(30):
        made.push(
            push % 2,
            header(
                version=max(0, push - push % 2), num_steps=50, returns=[push, -push], lengths=[5, 7]
            ),
            0.1,
        )
    made.write("checkpointed")
    return made.path


def test_a_column_that_an_older_file_lacks_is_zeros_and_any_other_is_missed(path):
    with h5py.File(path, "a") as file:
        del file["workers/num_dropped"]
        file.attrs["schema_version"] = 4
    run = read_run(path, with_state=True)
    assert run.tables["workers"]["num_dropped"].tolist() == [0, 0] and verify_run(path) == []
    with h5py.File(path, "a") as file:
        del file["workers/num_pushes"]
    with pytest.raises(UserError, match="not a readable run file"):
        read_run(path)


def test_a_written_run_reads_back_and_verifies(path):
    run = read_run(path, with_state=True)
    assert run.attributes["status"] == "checkpointed" and run.attributes["step"] == 1500
    assert run.attributes["version"] == 30
    assert run.episodes["episode_return"].tolist() == [
        value for push in range(30) for value in (push, -push)
    ]
    assert run.episodes["episode_length"].tolist() == [5, 7] * 30
    assert run.tables["intervals"]["step"].tolist() == list(range(100, 1501, 100))
    assert run.staleness.tolist() == [[15, 0], [0, 15]]  # every second push was one update late
    assert run.config.n_steps == 50 and run.state["params"].shape == (3,)
    assert verify_run(path) == []


def test_every_dataset_has_units_and_a_checksum(path):
    with h5py.File(path) as file:
        datasets = []
        file.visititems(
            lambda name, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None
        )
        assert len(datasets) > 30
        for dataset in datasets:
            assert dataset.attrs["units"]
            assert dataset.fletcher32 or not dataset.size, dataset.name


def test_a_flipped_byte_in_a_column_is_noticed(path):
    with h5py.File(path) as file:
        chunk = file["episodes/episode_return"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + chunk.size // 2] ^= 0x10
    path.write_bytes(data)
    assert len(verify_run(path)) == 1


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda file: file.attrs.modify("step", 1499), "steps do not add up"),
        (lambda file: file.attrs.modify("version", 31), "pushes do not add up"),
        (
            lambda file: file["workers/num_episodes"].write_direct(np.array([30, 29])),
            "episodes do not agree",
        ),
        (
            lambda file: file["staleness"].write_direct(np.array([[15, 1], [0, 15]])),
            "staleness does not count",
        ),
        (
            lambda file: file["intervals/version"].write_direct(np.array([2, 2, *range(6, 31, 2)])),
            "repeated",
        ),
        (
            lambda file: file["intervals/step"].write_direct(
                np.array([100, 150, *range(300, 1501, 100)])
            ),
            "missing",
        ),
        (lambda file: file.attrs.modify("status", "complete"), "short of its budget"),
        (lambda file: file.__delitem__("state"), "without the state"),
    ],
)
def test_verify_finds_what_does_not_add_up(path, change, problem):
    with h5py.File(path, "r+") as file:
        change(file)
    assert any(problem in found for found in verify_run(path))


def test_columns_of_different_lengths_are_found(path):
    with h5py.File(path, "r+") as file:
        del file["episodes/step"]
        file["episodes/step"] = np.arange(3)
    assert verify_run(path) == [f"{path}: /episodes: columns of different lengths"]


def test_unreadable_files_are_named(tmp_path, path):
    truncated, text, other = tmp_path / "truncated.h5", tmp_path / "text.h5", tmp_path / "other.h5"
    truncated.write_bytes(path.read_bytes()[:5000])
    text.write_text("hello")
    h5py.File(other, "w").close()
    for bad, message in (
        (truncated, "truncated"),
        (text, "not a readable run file"),
        (other, "its schema is None"),
        (tmp_path / "none.h5", "no such run file"),
    ):
        with pytest.raises(UserError, match=message):
            read_run(bad)
        assert len(verify_run(bad)) == 1
    for version, message in ((99, "version 99 is newer"), (1, "version 1 is older")):
        with h5py.File(path, "r+") as file:
            file.attrs["schema_version"] = version
        with pytest.raises(UserError, match=message):
            read_run(path)


def test_a_file_that_cannot_be_replaced_is_named_and_stands(path, monkeypatch):
    before, run = path.read_bytes(), read_run(path)

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CannotWrite, match=r"run.h5: cannot be written \(No space .* is kept"):
        write_run(path, run)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_failing_write_leaves_the_old_file_whole(path, monkeypatch):
    before = path.read_bytes()
    run = read_run(path)
    run.attributes["unwritable"] = object()
    with pytest.raises(TypeError):
        write_run(path, run)
    assert path.read_bytes() == before
