"""Metrics: declared once, and found in headers, sums, intervals and files."""

import math

import h5py
import numpy as np
import pytest

from mpi_rl.commands.inspect import verify_run
from mpi_rl.records import tables
from mpi_rl.records.runfile import read_run
from mpi_rl.server.tallies import Interval, Tallies
from mpi_rl.transport.messages import header_dtype, reported
from mpi_rl.transport.metrics import (
    METRICS,
    NOTED,
    REPORTED,
    Column,
    Metric,
    columns_of,
    summaries,
)
from tests.records import header, recorder


def push(**numbers):
    """The numbers of a push, in the order of METRICS."""
    return [numbers.get(metric.name, math.nan if metric.interval else 0) for metric in METRICS]


def test_every_metric_has_its_field_and_its_columns():
    names = header_dtype(1).names
    ours = [metric.name for metric in REPORTED]
    assert ours == [name for name in names if name in ours]
    assert not {metric.name for metric in NOTED} & {*names}
    for metric in METRICS:
        assert bool(metric.table) != bool(metric.interval), f"{metric.name}: a sum or a summary"
        if metric in REPORTED and metric.interval:
            assert metric.kind == "f8", f"{metric.name} must be nan where it is not reported"
        for _, column in summaries(metric):
            assert tables.TABLES["intervals"][column.name] == column
    for table in ("workers", "timing/worker"):
        for column in columns_of(table):
            assert tables.TABLES[table][column.name] == column


def test_a_metric_that_is_younger_than_the_first_says_so():
    """Else files that lack it would be taken for damaged ones."""
    first = """num_steps num_episodes num_updates num_conflicts num_torn_pulls num_pushes
    policy_loss value_loss entropy grad_norm learning_rate staleness
    env act learn push wait cpu"""
    assert {metric.name for metric in METRICS if not metric.since} == {*first.split()}


def test_every_way_to_sum_up_fits_its_column(monkeypatch):
    made = [
        Metric("loss", "f8", "1", ("mean", "max", "last")),
        Metric("count", "i8", "1", ("mean", "max", "last")),
    ]
    kept = [(place, *each) for place, one in enumerate(made) for each in summaries(one)]
    monkeypatch.setattr("mpi_rl.server.tallies._SUMMARIES", kept)
    monkeypatch.setitem(tables.TABLES, "made", {column.name: column for *_, column in kept})
    table, interval = tables.Table("made"), Interval()
    table.append(**interval.columns())  # of nothing
    for loss, count in ((-3.5, 4), (math.nan, 2), (-0.5, 3)):
        interval.add([loss, count])
    table.append(**interval.columns())
    found = {name: column.tolist() for name, column in table.columns().items()}
    assert found["loss_max"][1] == found["loss_last"][1] == -0.5 and found["loss_mean"][1] == -2
    assert np.isnan([found[f"loss_{how}"][0] for how in ("mean", "max", "last")]).all()
    assert found["count_mean"][1] == 3 and found["count_max"] == [0, 4]
    assert found["count_last"] == [0, 3]


def test_a_headers_numbers_come_in_their_order():
    numbers = {metric.name: number for number, metric in enumerate(REPORTED, start=1)}
    assert reported(header(returns=[1.0], lengths=[5], **numbers)) == (*numbers.values(),)


def test_an_interval_sums_up_as_declared_over_the_pushes_that_report():
    interval = Interval(step=100, version=7, wall_time_s=3.0)
    interval.add(push(policy_loss=1.0, staleness=4, learning_rate=0.2))
    interval.add(push(policy_loss=2.0, learning_rate=0.1))  # a report, say: no update
    interval.add(push(staleness=1, learning_rate=0.05))
    found = interval.columns()
    assert found["policy_loss"] == 1.5 and math.isnan(found["value_loss"])
    assert found["staleness_mean"] == 2.5 and found["staleness_max"] == 4
    assert found["learning_rate"] == 0.05 and interval.num_pushes == 3
    again = Interval()
    again.restore(interval.state())
    np.testing.assert_equal(again.columns(), found)
    assert (again.step, again.version, again.wall_time_s, again.num_pushes) == (100, 7, 3.0, 3)


def test_sums_are_of_each_worker():
    tallies = Tallies(2)
    tallies.add(0, push(num_steps=5, env=0.5, num_pushes=1))
    tallies.add(1, push(num_steps=7, env=0.25, num_dropped=1))
    tallies.add(0, push(num_steps=5, env=1.0, num_pushes=1))
    workers, times = tallies.columns("workers"), tallies.columns("timing/worker")
    assert workers["num_steps"].tolist() == [10, 7] and workers["num_steps"].dtype == np.int64
    assert workers["num_pushes"].tolist() == [2, 0] and workers["num_dropped"].tolist() == [0, 1]
    assert times["env"].tolist() == [1.5, 0.25] and times["act"].tolist() == [0, 0]
    again = Tallies(2)
    again.restore({"workers": workers, "timing/worker": times}, tallies.staleness)
    np.testing.assert_equal(again.columns("workers"), workers)


def test_an_interval_of_a_file_before_version_6_goes_on(tmp_path):
    path = tmp_path / "run.h5"
    record = recorder(path)
    for number in range(4):  # an interval of three pushes, and one push beyond
        record.push(number % 2, header(version=number, num_steps=40, policy_loss=number), 0.1)
    record.write("checkpointed")
    with h5py.File(path, "a") as file:  # sums, pushes, where it began, largest, rate
        file.attrs["schema_version"] = 5
        del file["state/interval"]
        file["state/interval"] = [3.0, 0.5, 0.0, 0.0, 2.0, 1, 120, 3, 1.5, 2, 0.1]
    assert verify_run(path) == []
    again = recorder(path)
    again.resume()
    again.push(0, header(version=4, num_steps=50, policy_loss=5.0, value_loss=1.5), 0.05)
    again.write()
    last = {name: column[-1] for name, column in read_run(path).tables["intervals"].items()}
    assert last["step"] == 210 and last["version"] == 5 and last["learning_rate"] == 0.05
    assert last["policy_loss"] == 4.0 and last["value_loss"] == 1.0  # means of two pushes
    assert last["staleness_mean"] == 1.0 and last["staleness_max"] == 2


def test_a_file_that_is_older_than_a_metric_reads_nan_or_0(tmp_path, monkeypatch):
    record = recorder(tmp_path / "run.h5")
    for number in range(4):
        record.push(0, header(version=number, num_steps=40), 0.1)
    record.write()
    future = record.attributes["schema_version"] + 1
    new = Metric("clip_fraction", "f8", "1", ("mean",), since=future)
    ((_, mean),) = summaries(new)
    total = Column("num_clipped", "i8", "updates", future)
    monkeypatch.setitem(tables.TABLES["intervals"], mean.name, mean)
    monkeypatch.setitem(tables.TABLES["workers"], total.name, total)
    run = read_run(tmp_path / "run.h5")
    assert np.isnan(run.tables["intervals"]["clip_fraction"]).all()
    assert run.tables["workers"]["num_clipped"].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["policy_loss", "steps_per_s"])
def test_any_other_column_is_missed(tmp_path, name):
    record = recorder(tmp_path / "run.h5")
    record.write()
    with h5py.File(tmp_path / "run.h5", "a") as file:
        del file[f"intervals/{name}"]
    assert "not a readable run file" in "".join(verify_run(tmp_path / "run.h5"))
