import numpy as np
import pytest

from mpi_rl.commands.inspect import summary, verify_run
from mpi_rl.records.runfile import read_run
from mpi_rl.server.recorder import RESUMED
from tests.records import header, recorder


def push(record, count, first=0):
    for number in range(first, first + count):
        record.push(
            number % 2,
            header(
                version=record.version,
                num_steps=30,
                returns=[number],
                lengths=[20],
                policy_loss=number,
                rng_state=np.arange(6) + number,
            ),
            0.1,
        )


def test_intervals_hold_means_over_their_updates(tmp_path):
    record = recorder(tmp_path / "run.h5")
    push(record, 8)  # 30 steps each: one interval ends at step 120, the next at step 210
    record.write()
    intervals = read_run(record.path).tables["intervals"]
    assert intervals["step"].tolist() == [120, 210] and intervals["version"].tolist() == [4, 7]
    assert intervals["policy_loss"].tolist() == [np.mean([0, 1, 2, 3]), np.mean([4, 5, 6])]
    np.testing.assert_allclose(intervals["steps_per_s"] / intervals["updates_per_s"], 30)


def test_an_interval_may_have_reports_only(tmp_path):
    record = recorder(tmp_path / "run.h5")
    for _ in range(4):
        record.push(0, header(num_steps=30, policy_loss=5), 0.1, is_update=False)
    record.write()
    intervals = read_run(record.path).tables["intervals"]
    assert intervals["step"].tolist() == [120] and intervals["version"].tolist() == [0]
    assert intervals["policy_loss"].tolist() == [5] and np.isnan(intervals["staleness_mean"])[0]


def test_staleness_is_the_version_at_application_less_the_version_pulled(tmp_path):
    record = recorder(tmp_path / "run.h5", workers=3)
    for worker, pulled in (
        (0, 0),
        (1, 0),
        (2, 0),
        (0, 1),
        (1, 2),
    ):  # versions when applied: 0, 1, 2, 3, 4
        record.push(worker, header(version=pulled), 0.1)
    record.write()
    assert read_run(record.path).staleness.tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 1]]
    assert record.tallies.mean_staleness() == (0 + 1 + 2 + 2 + 2) / 5


def test_a_resumed_record_equals_an_uninterrupted_one(tmp_path):
    def statistics():
        return {"moment": np.zeros(3, np.float32)}

    whole = recorder(tmp_path / "whole.h5", statistics=statistics())
    whole.join(1, np.zeros(6, np.uint64))
    push(whole, 20)
    whole.write()
    half_statistics = statistics()
    half = recorder(tmp_path / "half.h5", statistics=half_statistics, growth_state=np.ones(2))
    half.join(1, np.zeros(6, np.uint64))
    push(half, 11)  # in mid-interval
    half_statistics["moment"][:] = 7
    half.write("checkpointed")
    params, restored = np.zeros(3, np.float32), statistics()
    wanted = np.zeros(2)
    again = recorder(half.path, params=params, statistics=restored, growth_state=wanted)
    again.resume()
    assert wanted.tolist() == [1, 1]
    assert params.tolist() == [0, 1, 2] and restored["moment"].tolist() == [7, 7, 7]
    np.testing.assert_array_equal(again.join(1, np.zeros(6, np.uint64)), np.arange(6) + 9)
    push(again, 9, first=11)
    again.write()
    one, other = read_run(whole.path), read_run(half.path)
    for table in ("episodes", "intervals", "workers"):
        for key, column in one.tables[table].items():
            if not key.endswith("_s"):
                np.testing.assert_array_equal(
                    column, other.tables[table][key], err_msg=f"{table}/{key}"
                )
    np.testing.assert_array_equal(one.staleness, other.staleness)
    for name in ("timing/worker",):
        np.testing.assert_allclose(one.tables[name]["learn"], other.tables[name]["learn"])
    assert other.attributes["restart_count"] == 1
    assert other.tables["events"]["kind"].tolist() == ["join", RESUMED, "join"]
    assert verify_run(half.path) == []


def test_wall_time_goes_on_and_never_back(tmp_path):
    record = recorder(tmp_path / "run.h5")
    record._elapsed_s = 50.0
    record.write()
    again = recorder(record.path)
    again.resume()
    assert again.wall_time_s() >= 50


def test_best_and_last_snapshots_are_kept(tmp_path):
    params = np.zeros(3, np.float32)
    record = recorder(
        tmp_path / "run.h5", params=params, snapshot_period_steps=3000, total_steps=10_000
    )
    for number in range(200):
        params[:] = number
        value = 100 - abs(number - 120)
        record.push(0, header(version=number, returns=[value], lengths=[20]), 0.1)
    record.finish("complete")
    run = read_run(record.path)
    snapshots = run.tables["snapshots"]
    assert snapshots["kind"].tolist() == ["periodic"] * 3 + ["best", "last"]
    assert snapshots["step"].tolist()[:3] == [3000, 6000, 9000]
    best = run.snapshot_params[3, 0]
    assert abs(best - 170) <= 2 and snapshots["mean_return"][3] == pytest.approx(100 - 25, abs=1)
    assert run.snapshot_params[4, 0] == 199
    assert verify_run(record.path) == [] and "complete" in summary(record.path)


def test_a_complete_run_ends_with_a_short_interval_and_without_state(tmp_path):
    record = recorder(tmp_path / "run.h5", total_steps=230)
    push(record, 8)
    record.finish("complete")
    run = read_run(record.path, with_state=True)
    assert run.tables["intervals"]["step"].tolist() == [120, 210, 240] and not run.state
    assert verify_run(record.path) == []
