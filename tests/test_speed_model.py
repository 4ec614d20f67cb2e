"""The queueing model against hand numbers, a simulation and made-up runs."""

import heapq

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.queue_model import (
    Times,
    by_task,
    is_extrapolated,
    measured,
    off_core_s,
    parts_s,
    predict,
    times_of,
)
from analysis.speed_model import draw, paper_speed_ups, write
from mpi_rl.errors import UserError
from mpi_rl.jobs import load_job
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


def test_threads_share_out_a_part_of_the_servers_time():
    # S = 1, of which .8 is shared out: 1, .2 + .4, .2 + .2, .2 + .1. Z = 3.
    shared = Times({"env": 3.0}, 0.0, 1.0, 5.0, shared=0.8)
    for threads, server_s in ((1, 1.0), (2, 0.6), (4, 0.4), (8, 0.3)):
        found = shared.with_threads(threads)
        assert found.server_s == pytest.approx(server_s)
        assert found.saturating == pytest.approx((3 + server_s) / server_s)
        assert predict(found, 1)[0] == pytest.approx(5 / (3 + server_s))
        assert predict(found, 99)[0] == pytest.approx(5 / server_s)
    assert times().with_threads(8) == times()  # nothing is shared out


def made(path, workers, env_s=0.008, seed=1, cpu_s=0.008, threads=1, server_s=0.0005):
    """A run whose pushes, of 50 steps, take 10 ms with one worker."""
    settings = dict(num_workers=workers, server_threads=threads, total_steps=10_000)
    record = recorder(path, workers, seed=seed, **settings)
    record.join(0, np.zeros(6, np.uint64))
    for number in range(200):
        phases = dict(env=env_s, act=0.0, learn=0.001, push=0.0, wait=0.001, cpu=cpu_s)
        record.push(number % workers, header(version=number, **phases), 0.1)
        record.serve_time("update", server_s - 0.0001)
        record.serve_time("reply", 0.0001)
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
    assert "| 1 | 1 | 4,500 [4,000, 5,000] | 1.00, 1.25 | 1.12 [1.00, 1.25] |" in text
    # two are predicted 9,975 steps/s
    assert "| 2 | 1 | 9,240 [7,980, 10,500] | 1.25, 0.95 | 1.10 [0.95, 1.25] |" in text
    speed_up = predict(times_of(runs[:1]), 2)[0] / predict(times_of(runs[:1]), 1)[0]
    modelled = f"{speed_up:.2f} [{speed_up:.2f}, {speed_up:.2f}], {50 * speed_up:.0f} %"
    (row,) = [line for line in text.splitlines() if line.endswith("| 2.10, 105 % |")]
    cells = row.split(" | ")
    assert cells[1] == modelled and cells[2].endswith(" %") and "6.90, 86 %" in text
    with pytest.raises(UserError, match="no run with one worker"):
        write(runs[2:], tmp_path / "out")


def test_runs_with_one_thread_and_two_give_the_parts(tmp_path):
    one, other = made(tmp_path / "1.h5", 1), made(tmp_path / "2.h5", 1, server_s=0.0007)
    two, slow, fast = (
        made(tmp_path / f"{ms}.h5", 1, threads=2, server_s=ms / 1000) for ms in (0.3, 0.6, 0.2)
    )
    assert parts_s(one, two) == pytest.approx((0.0005, 0.0003, 0.0004, 0.0001))
    assert times_of([one], [], [(one, two)]).shared == pytest.approx(0.8)
    # the mean of pairs: .6 ms with one thread, .45 ms with two
    assert times_of([one], [], [(one, two), (other, slow)]).shared == pytest.approx(0.5)
    assert times_of([one], [], [(one, slow)]).shared == 0  # two threads are slower
    assert times_of([one], [], [(one, fast)]).shared == 1  # and here faster than twice as fast
    assert times_of([one]).shared == 0


def made_with_threads(folder):
    """Runs of two seeds, which threads help by .4 of .5 ms, and by .32 of .5 ms."""
    runs = [made(folder / f"{n}{seed}.h5", n, seed=seed) for n in (1, 2) for seed in (1, 2)]
    for seed, server_s in ((1, 0.0003), (2, 0.00034)):
        runs.append(made(folder / f"t{seed}.h5", 1, seed=seed, threads=2, server_s=server_s))
    for run in runs:
        run.tables["intervals"]["wall_time_s"] = run.tables["intervals"]["step"] / 5000
    return runs


def test_the_report_has_server_threads(tmp_path):
    runs = made_with_threads(tmp_path)
    text = write(runs, tmp_path / "out")[0].read_text()
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    task = "CartPole-v1, n_steps 50"
    assert [task, "one thread", "0.500 [0.500, 0.500]", "0.500, 0.500"] in rows
    assert [task, "shared out", "0.360 [0.320, 0.400]", "0.400, 0.320"] in rows
    assert [task, "not shared out", "0.140 [0.100, 0.180]", "0.100, 0.180"] in rows
    found = {row[1]: row[2:] for row in rows if row[0] == task and row[-1] == "12.50"}
    assert [*found] == ["1", "2", "4", "8"]
    # .14 ms and a part of .36 ms; alone 9.5 ms
    served = {"1": "0.500", "2": "0.320", "4": r"0.230 \*", "8": r"0.185 \*"}
    assert {threads: row[0] for threads, row in found.items()} == served
    assert found["2"][1] == "30.7 workers" and found["4"][1] == r"42.3 workers \*"
    assert all(cell.endswith(r" \*") for row in found.values() for cell in row[2:5])
    both = [Times({"env": 0.0095}, 0.0, 0.0005, 50, shared=shared) for shared in (0.8, 0.64)]
    for base, cell in ((1, found["4"][3]), (4, found["4"][4])):
        rates = [
            predict(one.with_threads(4), 16)[0] / predict(one.with_threads(base), 1)[0]
            for one in both
        ]
        low, high = min(rates), max(rates)
        assert cell == rf"{np.mean(rates):.2f} [{low:.2f}, {high:.2f}] \*"
    # predicted by the other seed's share: 10 ms less .16 ms, and less .2 ms; each took 10 ms
    (row,) = [row for row in rows if row[:3] == [task, "1", "2"]]
    assert row[4] == "1.02, 1.02" and "model for one server thread only" not in text


def test_what_no_run_has_measured_is_dashed_and_marked(tmp_path):
    runs = made_with_threads(tmp_path)
    (pools,) = by_task(runs).values()
    inside = {(n, t) for n in (1, 2, 3) for t in (1, 2, 4) if not is_extrapolated(pools, n, t)}
    assert inside == {(1, 1), (2, 1), (1, 2)}
    axes = Figure().subplots()
    draw(axes, by_task(runs))
    curves = [line for line in axes.lines if line.get_color() == "C0"]  # one server thread
    ends = [(line.get_linestyle(), *line.get_xdata()[[0, -1]]) for line in curves[:2]]
    assert ends == [("-", 1, 2), ("--", 2, 64)]
    fourth = [line for line in axes.lines if line.get_color() == "C3"]  # eight
    ends = [(line.get_linestyle(), len(line.get_xdata())) for line in fourth]
    assert ends == [("-", 0), ("--", 64)]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "dashed: extrapolated" in labels and len(labels) == 4 + 3
    assert labels[1] == "CartPole-v1, n_steps 50, 2 server threads: saturation point 30.7 workers"


def test_without_runs_with_two_threads_one_is_modelled(tmp_path):
    runs = made_with_threads(tmp_path)[:4]
    text = write(runs, tmp_path / "out")[0].read_text()
    assert text.endswith("a model for one server thread only: CartPole-v1, n_steps 50.\n")
    assert text.count("| 12.50 |\n") == 1 and "shared out" not in text.partition("## Server")[2]
    assert text.count(r"\* Extrapolated: no run in these files has") == 3
    axes = Figure().subplots()
    draw(axes, by_task(runs))
    assert len(axes.get_legend().get_texts()) == 1 + 3


def test_the_jobs_rows_differ_in_workers_and_threads_only():
    job = load_job("jobs/speed.toml")
    rows = [job.sweep[first : first + 8] for first in range(0, len(job.sweep), 8)]
    assert len(rows) == 5 and all([run["seed"] for run in row] == [*range(1, 9)] for row in rows)
    one, two, lander, landers, threads = (row[0] for row in rows)
    assert two == {**one, "num_workers": 2} and threads == {**one, "server_threads": 2}
    assert landers == {**lander, "num_workers": 2} and lander["env"] == "LunarLander-v3"
    assert one["num_workers"] == one["server_threads"] == lander["server_threads"] == 1


def test_a_run_too_short_to_measure_is_refused_in_words(tmp_path):
    run = made(tmp_path / "1.h5", 1)
    run.tables["intervals"] = {key: column[:2] for key, column in run.tables["intervals"].items()}
    with pytest.raises(UserError, match=r"test\[0\]: 2 interval\(s\): too short"):
        measured(run)


def test_table_2_of_the_paper():
    assert paper_speed_ups() == {1: 1.0, 2: 2.1, 4: 3.7, 8: 6.9, 16: 12.5}
