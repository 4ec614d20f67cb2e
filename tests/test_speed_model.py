"""The queueing model against hand numbers, a simulation and made-up runs."""

import heapq

import numpy as np
import pytest

from analysis.speed_model import (
    Times,
    measured,
    off_core_s,
    paper_speed_ups,
    predict,
    times_of,
    write,
)
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import read_run
from tests.records import header, recorder


def times(alone_s=3.0, server_s=1.0, steps=5.0):
    return Times({"env": alone_s}, 0.0, server_s, steps)


def test_mean_value_analysis_of_hand_numbers():
    # S = 1, Z = 3. n = 1: R = 1, X = 1/4, Q = 1/4. n = 2: R = 5/4, X = 2/(17/4) = 8/17, Q = 10/17.
    # n = 3: R = 27/17, X = 3/(78/17) = 51/78.
    for number, rate in ((1, 1 / 4), (2, 8 / 17), (3, 51 / 78)):
        assert predict(times(), number) == pytest.approx((5 * rate, rate))
    assert times().saturating == 4
    rate, load = predict(times(), 60)
    assert rate == pytest.approx(5.0, rel=1e-6) and load == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("number", [2, 5, 12])
def test_it_agrees_with_a_simulation(number):
    """Exponential service, any time alone: product form makes mean value analysis exact."""
    rng, served, free_at, count = np.random.default_rng(number), 0.0, 0.0, 200_000
    arrivals = [(rng.exponential(3.0), worker) for worker in range(number)]
    heapq.heapify(arrivals)
    for _ in range(count):
        now, worker = heapq.heappop(arrivals)
        free_at = max(now, free_at) + rng.exponential(1.0)
        served = free_at
        heapq.heappush(arrivals, (free_at + rng.uniform(0, 6), worker))
    assert 5 * count / served == pytest.approx(predict(times(), number)[0], rel=0.02)


def test_two_and_more_share_what_slows_them():
    slowed = Times({"env": 3.0}, 0.0, 1.0, 5.0, stretch=1.25)
    assert predict(slowed, 1) == predict(times(), 1)
    for number in (2, 3):
        rate, load = predict(times(), number)
        assert predict(slowed, number) == pytest.approx((rate / 1.25, load))


def made(path, workers, env_s=0.008, seed=1, cpu_s=0.008):
    """A run whose pushes, of 50 steps, take 10 ms with one worker."""
    record = recorder(path, workers, seed=seed, num_workers=workers, total_steps=10_000)
    record.join(0, np.zeros(6, np.uint64))
    for number in range(200):
        phases = dict(env=env_s, act=0.0, learn=0.001, push=0.0, wait=0.001, cpu=cpu_s)
        record.push(number % workers, header(version=number, **phases), 0.1)
        record.serve_time("update", 0.0005)
    record.finish("complete")
    return read_run(path)


def test_times_come_from_runs_with_one_worker(tmp_path):
    found = times_of([made(tmp_path / "1.h5", 1), made(tmp_path / "2.h5", 1, env_s=0.006)])
    assert found.phases == pytest.approx({"env": 0.007, "act": 0, "learn": 0.001, "push": 0})
    assert found.server_s == pytest.approx(0.0005) and found.latency_s == pytest.approx(0.0005)
    assert found.steps == 50 and found.stretch == 1
    both = made(tmp_path / "4.h5", 1), made(tmp_path / "5.h5", 2, cpu_s=0.010)
    assert times_of(both[:1], both[1:]).stretch == pytest.approx(1.25)
    with pytest.raises(UserError, match=r"test\[0\]: 2 workers: the model's times come from"):
        times_of([made(tmp_path / "3.h5", 2)])


def test_time_without_a_core_is_told_beside_the_model(tmp_path):
    runs = [made(tmp_path / "1.h5", 1), made(tmp_path / "2.h5", 2, env_s=0.0105)]
    assert [off_core_s(run) for run in runs] == pytest.approx([0.001, 0.0035])
    assert " workers | x 1.00 | 3,500 |\n" in write(runs, tmp_path / "out")[0].read_text()
    assert " workers |  |  |\n" in write(runs[:1], tmp_path / "out")[0].read_text()


def test_the_report_has_predictions_beside_measurements(tmp_path):
    runs = [made(tmp_path / f"{n}{s}.h5", n, seed=s) for n in (1, 2) for s in (1, 2)]
    for run, rate in zip(runs, (5000, 4000, 7980, 10500)):
        run.tables["intervals"]["wall_time_s"] = run.tables["intervals"]["step"] / rate
    markdown, picture = write(runs, tmp_path / "out")
    text = markdown.read_text()
    assert "20.0 workers" in text and "| 64 |" in text and picture.stat().st_size > 10_000
    assert "| 1 | 4,500 [4,000, 5,000] | 1.00, 1.25 | 1.12 [1.00, 1.25] |" in text
    # two are predicted 9,975 steps/s
    assert "| 2 | 9,240 [7,980, 10,500] | 1.25, 0.95 | 1.10 [0.95, 1.25] |" in text
    speed_up = predict(times_of(runs[:1]), 2)[0] / predict(times_of(runs[:1]), 1)[0]
    modelled = f"{speed_up:.2f} [{speed_up:.2f}, {speed_up:.2f}], {50 * speed_up:.0f} %"
    (row,) = [line for line in text.splitlines() if line.endswith("| 2.10, 105 % |")]
    cells = row.split(" | ")
    assert cells[1] == modelled and cells[2].endswith(" %") and "6.90, 86 %" in text
    with pytest.raises(UserError, match="no run with one worker"):
        write(runs[2:], tmp_path / "out")


def test_a_run_too_short_to_measure_is_refused_in_words(tmp_path):
    run = made(tmp_path / "1.h5", 1)
    run.tables["intervals"] = {key: column[:2] for key, column in run.tables["intervals"].items()}
    with pytest.raises(UserError, match=r"test\[0\]: 2 interval\(s\): too short"):
        measured(run)


def test_table_2_of_the_paper():
    assert paper_speed_ups() == {1: 1.0, 2: 2.1, 4: 3.7, 8: 6.9, 16: 12.5}
