"""Choosing a study's runs, and what is read off them."""

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import pyplot

from analysis import figures, tables
from analysis.runs import along, command, ends, joins, mean_staleness, reached, read
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import read_run, write_run
from tests.records import header, recorder


@pytest.fixture
def run(tmp_path):
    record = recorder(tmp_path / "run.h5")
    for number in range(20):
        record.push(0, header(version=number, returns=[10.0 * number], lengths=[50]), 0.1)
    record.write("checkpointed")
    return read_run(record.path)


def test_a_score_is_reached_by_the_running_average(run):
    assert along(run, "episode").tolist() == list(range(1, 21))
    assert reached(run, 50, "episode", decay=0.0) == 6 and reached(run, 50, "step", 0.0) == 300
    # a_n = .5 a + .5 r: 0, 5, 12.5, 21.25, 30.6, 40.3, 50.2
    assert reached(run, 50, "episode", decay=0.5) == 7
    assert reached(run, 1000, "step", decay=0.5) == np.inf and ends(run, "step") == 1000


def test_workers_that_join_late_are_told_apart_from_the_first(tmp_path):
    grown = dict(growth="episode_duration", initial_workers=1)
    record = recorder(tmp_path / "j.h5", num_workers=2, **grown)
    record.join(0, np.zeros(6, np.uint64))
    for number in range(4):
        if number == 2:
            record.join(1, np.zeros(6, np.uint64))
        record.push(0, header(version=max(0, number - 1), returns=[0.0], lengths=[50]), 0.1)
    record.write("checkpointed")
    run = read_run(record.path)
    assert joins(run, "step").tolist() == [100] and joins(run, "episode").tolist() == [1]
    assert mean_staleness(run) == 3 / 4


@pytest.mark.parametrize(
    "save",
    [
        lambda path: tables.save(path, "text"),
        lambda path: figures.save(pyplot.figure(), path),
    ],
    ids=["table", "figure"],
)
def test_what_a_study_cannot_write_is_one_line_and_status_74(tmp_path, run, save):
    def write(runs, folder):
        save(folder / "x.png")
        return [folder / "x.png"]

    words = [str(tmp_path / "run.h5"), "--output"]
    study = command("study", "", ["test"], write)
    result = CliRunner().invoke(study, [*words, str(tmp_path / "run.h5" / "out")])
    assert result.exit_code == 74 and result.output.count("\n") == 1
    assert result.output.startswith("study: ") and "x.png: cannot be written (" in result.output
    result = CliRunner().invoke(study, [*words, str(tmp_path)])
    assert (result.exit_code, result.output) == (0, f"{tmp_path / 'x.png'}\n")


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    recorder(tmp_path / "a.h5").finish("complete")
    with pytest.raises(UserError, match="no run of other in these files"):
        read([tmp_path / "a.h5"], ["other"])
    assert len(read([tmp_path / "a.h5"], ["test"])) == 1
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes())
    with pytest.raises(UserError, match=r"b.h5: test\[0\] is in another file, too"):
        read([tmp_path / "a.h5", tmp_path / "b.h5"], ["test"])
    one = read_run(tmp_path / "a.h5")
    one.attributes["index"] = 1
    for count, name, run in ((5, "b.h5", one), (6, "a.h5", read_run(tmp_path / "a.h5"))):
        shape = len(run.snapshot_params), count
        played = {"returns": np.zeros(shape), "lengths": np.zeros(shape, int), "seed": np.zeros(1)}
        run.evaluations["sampled"] = played
        write_run(tmp_path / name, run)
    with pytest.raises(UserError, match=r"\(test\[0\] 6, test\[1\] 5\): must be equal"):
        read([tmp_path / "a.h5", tmp_path / "b.h5"], ["test"])
