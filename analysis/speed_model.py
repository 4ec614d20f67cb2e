"""How fast more workers would be, each on a core of its own: an exact model of their queue.

    python -m analysis.speed_model [FILE...] [--output results/worker_scaling]

A worker spends a while on its own (environment, network, push and the way of the messages), then
queues at the server for one update and its reply: a closed network of one delay and one queue,
which mean value analysis (Reiser & Lavenberg 1980) solves exactly for any number of workers, if
the server's times are taken as exponential. What both take is measured in runs with one worker.
Cores that share caches and memory slow each other down: with two workers a push takes more
processor time, and for two and more all times are stretched by as much. FILEs are runs of
jobs/speed.toml, single or collected; the steps/s of those with two workers check the model, if
there are cores for these and the server; the report tells for how long they had none. The figure
has the speed-ups beside table 2 of the A3C paper.

Server threads share out a part of the server's time. Runs with one worker and one or two threads
give that part, and so the time with more threads (analysis/queue_model.py). Tables mark with an
asterisk, and the figure with dashes, what no run has measured.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from analysis import figures, tables
from analysis.figures import pyplot
from analysis.queue_model import (
    Pools,
    Times,
    by_task,
    cpu_s,
    is_extrapolated,
    measured,
    off_core_s,
    pairs_of,
    parts_s,
    predict,
    threads_of,
    times_of,
)
from analysis.runs import command, reference
from analysis.statistics import Interval, bootstrapped, mean_interval, ratio_of_means
from analysis.tables import in_brackets, markdown, mean_with_interval, with_interval
from mpi_rl.errors import UserError
from mpi_rl.records.curves import CONFIDENCE
from mpi_rl.records.runfile import Run
from mpi_rl.records.timing import PHASES

JOBS = ("speed",)
NUMBERS = 1, 2, 4, 8, 16, 32, 64  # of workers
MARK = r" \*"  # of what is extrapolated
FOOTNOTE = (
    r"\* Extrapolated: no run in these files has as many workers with as many server threads."
)


def compared(name: str, pools: Pools) -> list[list[str]]:
    """Return rows: what was measured, and what is predicted from other runs.

    The speed of one worker is predicted from the other seeds' runs. The speed of more workers, or
    of more server threads, is predicted from the run with one of each and their own seed, which was
    made next to it. The stretch, and what threads share out, are of the other seeds' runs.
    """
    rows, pairs = [], pairs_of(pools)
    for (number, threads), runs in sorted(pools.items()):
        if threads > 1 and not pairs:
            continue
        rates, ratios = np.array([measured(run) for run in runs]), []
        for run, rate in zip(runs, rates):
            seed = run.config.seed
            ones, twos = (
                [one for one in pool if one.config.seed != seed] or pool
                for pool in (pools[1, 1], pools.get((2, 1), []))
            )
            others = [pair for pair in pairs if pair[0].config.seed != seed] or pairs
            theirs = times_of(ones, twos, others)
            own = [one for one in pools[1, 1] if one.config.seed == seed and one is not run]
            times = dataclasses.replace(
                times_of(own or ones), stretch=theirs.stretch, shared=theirs.shared
            )
            ratios.append(predict(times.with_threads(threads), number)[0] / rate)
        rows.append(
            [
                name,
                str(number),
                str(threads),
                mean_with_interval(rates, ",.0f"),
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
                mean_with_interval(ratios, ".2f"),
            ]
        )
    return rows


def report(tasks: dict[str, Pools]) -> str:
    """Return all tables in Markdown."""
    parts = ["# A model of speed"]
    header = ["task", "workers", "server threads", f"measured steps/s [{CONFIDENCE:.0%}]"]
    rows = [row for name, pools in tasks.items() for row in compared(name, pools)]
    parts += ["## Measured and predicted"]
    parts += [
        "One worker with one server thread is predicted from the other seeds' runs. Two of either"
        " are predicted from the run with one of each and the same seed, which was made next to"
        " theirs: the machine's speed drifts. How much two busy workers slow each other down, and"
        " how much threads share out, is from the other seeds' runs."
    ]
    parts += [markdown([*header, "predicted / measured", f"mean [{CONFIDENCE:.0%}]"], rows)]
    parts += ["## What a push takes with one worker, in microseconds", times_table(tasks)]
    parts += [
        "With more workers than the saturation point some are always in the queue. Two workers: by"
        " how much more processor time a push takes, and for how long, at least, its worker has"
        " work and no core, as both share cores with the server if there are only two. The model"
        " gives each a core, and so predicts too much there."
    ]
    header, rows = ["workers, a core each", *tasks], []
    for number in NUMBERS:
        rows.append([str(number), *(_rate(pools, number) for pools in tasks.values())])
    parts += ["## Predicted steps/s and load of the server", markdown(header, rows), FOOTNOTE]
    parts += [f"## Speed-up [{CONFIDENCE:.0%}] and efficiency", speed_up_table(tasks), FOOTNOTE]
    parts += [
        "Both tables are with one server thread. Intervals are percentile bootstraps over runs, of"
        " which the model takes each by itself: too narrow for so few. They know what differs"
        " between runs, not what the model leaves out. The paper's are of the time to a score, over"
        " seven games."
    ]
    return "\n\n".join(parts + threads_report(tasks)) + "\n"


def threads_report(tasks: dict[str, Pools]) -> list[str]:
    """Return the parts of the report that are about several server threads."""
    most, paper = max(paper_speed_ups().items())
    parts = [f"## Server threads, {most} workers", threads_table(tasks, most), FOOTNOTE]
    parts += [
        "The workers and the server threads have a core each."
        f" The paper's {most} threads have no server; their speed-up is {paper:.1f}."
    ]
    without = [name for name, pools in tasks.items() if not pairs_of(pools)]
    if without:
        parts += [
            "No runs with one worker and two server threads, and so a model for one server thread"
            f" only: {'; '.join(without)}."
        ]
    if len(without) < len(tasks):
        parts += ["## What server threads share out, in ms per push", parts_table(tasks)]
        parts += [
            "What is shared out is twice the difference between one thread and two. The rest is"
            " Python, the header and the record. A seed's part may be below 0, as the machine's"
            " speed drifts. The model takes the mean of the seeds and keeps both parts at 0 or"
            " above. Waking a thread takes time, which one thread does without. The model counts"
            " it twice in the rest, and so predicts too low a speed for four threads and more. That"
            " threads compete for caches and memory is left out; there it predicts too high a one."
        ]
    return parts


def times_table(tasks: dict[str, Pools]) -> str:
    """Return what a push takes with one worker, and what changes with two, as a table."""
    header = ["task", *PHASES[:-1], "latency", "server", "saturation point"]
    header += ["two workers: processor time", "two workers: without a core"]
    rows = []
    for name, pools in tasks.items():
        times = _times(pools)
        seconds = [*times.phases.values(), times.latency_s, times.server_s]
        row = [name, *(f"{1e6 * s:,.0f}" for s in seconds), f"{times.saturating:.1f} workers"]
        if (2, 1) in pools:
            two, one = (np.array([cpu_s(run) for run in pools[n, 1]]) for n in (2, 1))
            row.append(f"x {with_interval(ratio_of_means, two, one, '.2f')}")
            off = [1e6 * off_core_s(run) for run in pools[2, 1]]
            row.append(mean_with_interval(off, ",.0f"))
        rows.append(row + [""] * (len(header) - len(row)))
    return markdown(header, rows)


def speed_up_table(tasks: dict[str, Pools]) -> str:
    """Return modelled and measured speed-ups, and the paper's, as a table in Markdown."""
    paper = paper_speed_ups()
    rows = []
    for number in NUMBERS:
        row = [str(number)]
        for pools in tasks.values():
            model = _speed_ups(pools, number)
            text = _efficiency(float(model.mean()), number, mean_interval(model))
            row += [text + _mark(pools, number), ""]
            if number != 1 and (number, 1) in pools:
                rates = [np.array([measured(run) for run in pools[n, 1]]) for n in (number, 1)]
                interval = bootstrapped(ratio_of_means, *rates)
                row[-1] = _efficiency(ratio_of_means(*rates), number, interval)
        row.append(_efficiency(paper[number], number) if number in paper else "")
        rows.append(row)
    header = [f"{name}: {what}" for name in tasks for what in ("model, a core each", "measured")]
    return markdown(["workers", *header, "A3C paper, table 2"], rows)


def threads_table(tasks: dict[str, Pools], num_workers: int) -> str:
    """Return what is modelled for so many workers by number of server threads, as a table."""
    paper = f"{paper_speed_ups()[num_workers]:.2f}"
    header = ["task", "server threads", "server, ms per push", "saturation point", "steps/s"]
    over = f"speed-up [{CONFIDENCE:.0%}] over one worker with"
    header += [f"{over} one server thread", f"{over} as many server threads"]
    rows = []
    for name, pools in tasks.items():
        for threads in threads_of(pools):
            times = _times(pools).with_threads(threads)
            row = [name, str(threads), f"{1e3 * times.server_s:.3f}{_mark(pools, 1, threads)}"]
            mark = _mark(pools, num_workers, threads)
            row += [f"{times.saturating:.1f} workers{_mark(pools, 1, threads)}"]
            row += [_rate(pools, num_workers, threads)]
            for base in (1, threads):
                found = _speed_ups(pools, num_workers, threads, base)
                row.append(f"{mean_with_interval(found, '.2f')}{mark}")
            rows.append([*row, paper])
    return markdown([*header, "A3C paper, table 2"], rows)


def parts_table(tasks: dict[str, Pools]) -> str:
    """Return the server's time per push and its two parts, in ms, of each seed, as a table."""
    names = "one thread", "two threads", "shared out", "not shared out"
    rows = []
    for task, pools in tasks.items():
        found = 1e3 * np.array([parts_s(*pair) for pair in pairs_of(pools)])
        for name, of_seeds in zip(names, found.T):
            each = ", ".join(f"{part:.3f}" for part in of_seeds)
            rows.append([task, name, mean_with_interval(of_seeds, ".3f"), each])
    return markdown(["task", "server", f"mean [{CONFIDENCE:.0%}]", "seeds"], rows)


def _times(pools: Pools) -> Times:
    return times_of(pools[1, 1], pools.get((2, 1), []), pairs_of(pools))


def _rate(pools: Pools, num_workers: int, threads: int = 1) -> str:
    rate, load = predict(_times(pools).with_threads(threads), num_workers)
    return f"{rate:,.0f} (server {100 * load:.0f} %){_mark(pools, num_workers, threads)}"


def _mark(pools: Pools, num_workers: int, threads: int = 1) -> str:
    return MARK if is_extrapolated(pools, num_workers, threads) else ""


def _speed_ups(pools: Pools, num_workers: int, threads: int = 1, base: int = 1) -> np.ndarray:
    """Return the model's speed-up over one worker whose server has ``base`` threads.

    From each run with one worker, in order: with one with two workers, and one with two threads.
    """
    found, pairs, twos = [], pairs_of(pools), pools.get((2, 1), [])
    for one, two in itertools.zip_longest(pools[1, 1], twos[: len(pools[1, 1])]):
        own = [pair for pair in pairs if pair[0] is one]
        times = times_of([one], twos if two is None else [two], own or pairs)
        rates = (times.with_threads(threads), num_workers), (times.with_threads(base), 1)
        found.append(predict(*rates[0])[0] / predict(*rates[1])[0])
    return np.array(found)


def _efficiency(speed_up: float, num_workers: int, interval: Interval | None = None) -> str:
    share = speed_up / num_workers
    return f"{speed_up:.2f}{in_brackets(interval, '.2f')}, {100 * share:.0f} %"


def paper_speed_ups() -> dict[int, float]:
    """Return table 2 of the A3C paper: the speed-up by number of threads."""
    row = next(row for row in reference("a3c_paper_speedups") if row["method"] == "A3C")
    return {int(threads): float(text) for threads, text in row.items() if threads != "method"}


def draw(axes: Axes, tasks: dict[str, Pools]) -> None:
    """Draw modelled speed-ups by task and number of server threads, and the paper's."""
    curves = [(name, n) for name, pools in tasks.items() for n in threads_of(pools)]
    for colour, (name, threads) in enumerate(curves):
        draw_curve(axes, name, tasks[name], threads, f"C{colour}")
    paper = paper_speed_ups()
    axes.plot([*paper], [*paper.values()], "k-s", label="A3C paper, table 2 (time to a score)")
    axes.plot(NUMBERS, NUMBERS, color="grey", linewidth=0.8, linestyle=":", label="ideal")
    axes.plot([], [], color="grey", linestyle="--", label="dashed: extrapolated")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(NUMBERS, [str(number) for number in NUMBERS])
    axes.set_yticks(NUMBERS, [str(number) for number in NUMBERS])
    axes.set_xlabel("workers, or the paper's threads (model: a core each)")
    axes.set_ylabel("speed-up in steps/s over one worker and one server thread\n(points: measured)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def draw_curve(axes: Axes, name: str, pools: Pools, threads: int, colour: str) -> None:
    """Draw the modelled speed-up with so many server threads, dashed where extrapolated."""
    numbers = np.arange(1, NUMBERS[-1] + 1)
    speed_ups = np.array([_speed_ups(pools, n, threads).mean() for n in numbers.tolist()])
    inside = sum(not is_extrapolated(pools, n, threads) for n in numbers.tolist())
    label = f"{name}, {threads} server thread{'s'[: threads > 1]}:"
    label += f" saturation point {_times(pools).with_threads(threads).saturating:.1f} workers"
    axes.plot(numbers[:inside], speed_ups[:inside], color=colour, label=label)
    beyond = max(0, inside - 1)
    axes.plot(numbers[beyond:], speed_ups[beyond:], color=colour, linestyle="--")
    base = np.mean([measured(run) for run in pools[1, 1]])
    for (number, of_them), runs in pools.items():
        if of_them == threads:
            points = np.array([measured(run) for run in runs]) / base
            axes.plot([number] * len(points), points, "o", color=colour, alpha=0.6)


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write speed_model.md and speed_model.png into ``folder``; return their paths."""
    tasks = by_task(runs)
    for name, pools in tasks.items():
        if (1, 1) not in pools:
            raise UserError(
                f"{name}: no run with one worker and one server thread, which the model's times"
                " come from"
            )
    paths = [folder / "speed_model.md", folder / "speed_model.png"]
    tables.save(paths[0], report(tasks))
    figure, axes = pyplot.subplots(figsize=(7.5, 6), layout="constrained")
    draw(axes, tasks)
    figures.save(figure, paths[1])
    return paths


main = command(
    "speed_model",
    "Predict the speed of many workers from runs with one.",
    JOBS,
    write,
    "worker_scaling",
)

if __name__ == "__main__":
    main()
