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
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from analysis import figures, tables
from analysis.figures import pyplot
from analysis.runs import command, name_of, reference
from analysis.statistics import Interval, bootstrapped, mean_interval, ratio_of_means
from analysis.tables import in_brackets, markdown, mean_with_interval, with_interval
from mpi_rl.errors import UserError
from mpi_rl.records.curves import CONFIDENCE, by_setting
from mpi_rl.records.runfile import Run
from mpi_rl.records.timing import PHASES, busy_s

JOBS = ("speed",)
NUMBERS = 1, 2, 4, 8, 16, 32, 64  # of workers


@dataclass(frozen=True)
class Times:
    """What one push takes, in seconds, and how many steps it brings."""

    phases: dict[str, float]  # of the worker alone: env, act, learn, push
    latency_s: float  # of the wait, what is not the server's work
    server_s: float
    steps: float
    stretch: float = 1.0  # of all times, where two workers or more are busy

    @property
    def alone_s(self) -> float:
        """The time between a reply and the arrival of the next push."""
        return sum(self.phases.values()) + self.latency_s

    @property
    def saturating(self) -> float:
        """The saturation point: with more workers than that some are always in the queue."""
        return (self.alone_s + self.server_s) / self.server_s


def times_of(runs: Sequence[Run], runs_of_two: Sequence[Run] = ()) -> Times:
    """Return the mean times of runs with one worker, stretched as in ``runs_of_two``.

    Raises UserError for ``runs`` with more workers.
    """
    found = []
    for run in runs:
        workers, seconds = run.tables["workers"], run.tables["timing/worker"]
        if len(workers["worker_id"]) != 1:
            raise UserError(
                f"{name_of(run)}: {len(workers['worker_id'])} workers: the model's times come from"
                " runs with one"
            )
        server = run.tables["timing/server"]
        served = server["update"][0] + server["reply"][0]
        own = [seconds[name][0] for name in PHASES if name != "wait"]
        waited = max(0.0, seconds["wait"][0] - served)
        found.append(np.array([*own, waited, served, workers["num_steps"][0]]) / _pushes(run))
    *own, latency_s, server_s, steps = np.mean(found, axis=0).tolist()
    alone, together = (
        np.mean([_cpu_s(run) for run in some]) for some in (runs, runs_of_two or runs)
    )
    return Times(dict(zip(PHASES, own)), latency_s, server_s, steps, float(together / alone))


def off_core_s(run: Run) -> float:
    """Return how long workers had work but no core, per push: a lower bound.

    That is the time of all phases but the wait, less all processor time, the wait's included. A
    value below 0 says nothing.
    """
    return busy_s(run.tables["timing/worker"]) / _pushes(run) - _cpu_s(run)


def _cpu_s(run: Run) -> float:
    """Return the processor time that a worker spends on a push."""
    return float(run.tables["timing/worker"]["cpu"].sum() / _pushes(run))


def _pushes(run: Run) -> int:
    workers = run.tables["workers"]
    return int(workers["num_pushes"].sum() + workers["num_dropped"].sum())


def predict(times: Times, num_workers: int) -> tuple[float, float]:
    """Return the steps/s of so many workers, each on its own core, and the server's load.

    Mean value analysis: an arriving push finds the queue as it is on average with one worker less,
    R_n = S (1 + Q_{n-1}); then X_n = n / (Z + R_n) pushes are served per second, and Q_n = X_n R_n.
    """
    stretch = times.stretch if num_workers > 1 else 1.0
    alone_s, server_s = stretch * times.alone_s, stretch * times.server_s
    queue = pushes_per_s = 0.0
    for n in range(1, num_workers + 1):
        response_s = server_s * (1 + queue)
        pushes_per_s = n / (alone_s + response_s)
        queue = pushes_per_s * response_s
    return pushes_per_s * times.steps, pushes_per_s * server_s


def measured(run: Run) -> float:
    """Return a run's steps/s without its first interval and its last, which may be a short one.

    Raises UserError if that leaves none.
    """
    steps, seconds = (run.tables["intervals"][key] for key in ("step", "wall_time_s"))
    if len(steps) < 3:
        raise UserError(f"{name_of(run)}: {len(steps)} interval(s): too short to tell its speed")
    return float((steps[-2] - steps[0]) / (seconds[-2] - seconds[0]))


def by_task(runs: list[Run]) -> dict[str, dict[int, list[Run]]]:
    """Return runs by a name of their task and by their number of workers."""
    found: dict[str, dict[int, list[Run]]] = {}
    for config, pool in by_setting(runs).items():
        name = f"{config.env}, n_steps {config.n_steps}"
        found.setdefault(name, {}).setdefault(config.num_workers, []).extend(pool)
    return found


def compared(name: str, pools: dict[int, list[Run]]) -> list[list[str]]:
    """Return rows: what was measured, and what is predicted from other runs.

    The speed of one worker is predicted from the other seeds' runs. The speed of more is predicted
    from the run with one worker of their own seed, which was made just before, with the stretch of
    the other seeds' runs.
    """
    rows = []
    for number, runs in sorted(pools.items()):
        rates, ratios = np.array([measured(run) for run in runs]), []
        for run, rate in zip(runs, rates):
            seed = run.config.seed
            ones, twos = (
                [one for one in pool if one.config.seed != seed] or pool
                for pool in (pools[1], pools.get(2, []))
            )
            nearest = [one for one in pools[1] if one.config.seed == seed and number > 1]
            stretch = times_of(ones, twos).stretch
            times = dataclasses.replace(times_of(nearest or ones), stretch=stretch)
            ratios.append(predict(times, number)[0] / rate)
        rows.append(
            [
                name,
                str(number),
                mean_with_interval(rates, ",.0f"),
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
                mean_with_interval(ratios, ".2f"),
            ]
        )
    return rows


def report(tasks: dict[str, dict[int, list[Run]]]) -> str:
    """Return all tables in Markdown."""
    parts = ["# A model of speed"]
    header = ["task", "workers", f"measured steps/s [{CONFIDENCE:.0%}]"]
    rows = [row for name, pools in tasks.items() for row in compared(name, pools)]
    parts += ["## Measured and predicted"]
    parts += [
        "One worker is predicted from the other seeds' runs, two from the run with one of their own"
        " seed, which was made just before: the machine's speed drifts. How much two busy workers"
        " slow each other down is from the other seeds' runs."
    ]
    parts += [markdown([*header, "predicted / measured", f"mean [{CONFIDENCE:.0%}]"], rows)]
    parts += ["## What a push takes with one worker, in microseconds", times_table(tasks)]
    parts += [
        "With more workers than the saturation point some are always in the queue. Two workers: by"
        " how much more processor time a push takes, and for how long, at least, its worker has"
        " work and no core, as both share cores with the server if there are only two. The model"
        " gives each a core, and so predicts too much there."
    ]
    predictions = [times_of(pools[1], pools.get(2, [])) for pools in tasks.values()]
    header, rows = ["workers, a core each", *tasks], []
    for number in NUMBERS:
        cells = [predict(times, number) for times in predictions]
        rows.append(
            [str(number), *(f"{rate:,.0f} (server {100 * load:.0f} %)" for rate, load in cells)]
        )
    parts += ["## Predicted steps/s and load of the server", markdown(header, rows)]
    parts += [f"## Speed-up [{CONFIDENCE:.0%}] and efficiency", speed_up_table(tasks)]
    parts += [
        "Intervals are percentile bootstraps over runs, of which the model takes each by itself:"
        " too narrow for so few. They know what differs between runs, not what the model leaves"
        " out. The paper's are of the time to a score, over seven games."
    ]
    return "\n\n".join(parts) + "\n"


def times_table(tasks: dict[str, dict[int, list[Run]]]) -> str:
    """Return what a push takes with one worker, and what changes with two, as a table."""
    header = ["task", *PHASES[:-1], "latency", "server", "saturation point"]
    header += ["two workers: processor time", "two workers: without a core"]
    rows = []
    for name, pools in tasks.items():
        times = times_of(pools[1], pools.get(2, []))
        seconds = [*times.phases.values(), times.latency_s, times.server_s]
        row = [name, *(f"{1e6 * s:,.0f}" for s in seconds), f"{times.saturating:.1f} workers"]
        if 2 in pools:
            two, one = (np.array([_cpu_s(run) for run in pools[n]]) for n in (2, 1))
            row.append(f"x {with_interval(ratio_of_means, two, one, '.2f')}")
            off = [1e6 * off_core_s(run) for run in pools[2]]
            row.append(mean_with_interval(off, ",.0f"))
        rows.append(row + [""] * (len(header) - len(row)))
    return markdown(header, rows)


def speed_up_table(tasks: dict[str, dict[int, list[Run]]]) -> str:
    """Return modelled and measured speed-ups, and the paper's, as a table in Markdown."""
    paper = paper_speed_ups()
    rows = []
    for number in NUMBERS:
        row = [str(number)]
        for pools in tasks.values():
            model = _speed_ups(pools, number)
            row.append(_efficiency(float(model.mean()), number, mean_interval(model)))
            row.append("")
            if number != 1 and number in pools:
                rates = [np.array([measured(run) for run in pools[n]]) for n in (number, 1)]
                interval = bootstrapped(ratio_of_means, *rates)
                row[-1] = _efficiency(ratio_of_means(*rates), number, interval)
        row.append(_efficiency(paper[number], number) if number in paper else "")
        rows.append(row)
    header = [f"{name}: {what}" for name in tasks for what in ("model, a core each", "measured")]
    return markdown(["workers", *header, "A3C paper, table 2"], rows)


def _speed_ups(pools: dict[int, list[Run]], num_workers: int) -> np.ndarray:
    """Return the model's speed-up from each run with one worker and a run with two, in order."""
    found = []
    for one, two in itertools.zip_longest(pools[1], pools.get(2, [])[: len(pools[1])]):
        times = times_of([one], [two] if two is not None else pools.get(2, []))
        found.append(predict(times, num_workers)[0] / predict(times, 1)[0])
    return np.array(found)


def _efficiency(speed_up: float, num_workers: int, interval: Interval | None = None) -> str:
    share = speed_up / num_workers
    return f"{speed_up:.2f}{in_brackets(interval, '.2f')}, {100 * share:.0f} %"


def paper_speed_ups() -> dict[int, float]:
    """Return table 2 of the A3C paper: the speed-up by number of threads."""
    row = next(row for row in reference("a3c_paper_speedups") if row["method"] == "A3C")
    return {int(threads): float(text) for threads, text in row.items() if threads != "method"}


def draw(axes: Axes, tasks: dict[str, dict[int, list[Run]]]) -> None:
    """Draw modelled speed-ups, and the paper's."""
    numbers = np.arange(1, NUMBERS[-1] + 1)
    for colour, (name, pools) in enumerate(tasks.items()):
        times = times_of(pools[1], pools.get(2, []))
        speed_ups = [_speed_ups(pools, number).mean() for number in numbers.tolist()]
        label = f"{name}: model, saturation point {times.saturating:.1f} workers"
        axes.plot(numbers, speed_ups, color=f"C{colour}", label=label)
        rates = {number: [measured(run) for run in runs] for number, runs in pools.items()}
        for number in sorted(rates):
            points = np.array(rates[number]) / np.mean(rates[1])
            axes.plot([number] * len(points), points, "o", color=f"C{colour}", alpha=0.6)
    paper = paper_speed_ups()
    axes.plot([*paper], [*paper.values()], "k--s", label="A3C paper, table 2 (time to a score)")
    axes.plot(numbers, numbers, color="grey", linewidth=0.8, linestyle=":", label="ideal")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(NUMBERS, [str(number) for number in NUMBERS])
    axes.set_yticks(NUMBERS, [str(number) for number in NUMBERS])
    axes.set_xlabel("workers or threads (model: a core each)")
    axes.set_ylabel("speed-up in steps/s (points: measured)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write speed_model.md and speed_model.png into ``folder``; return their paths."""
    tasks = by_task(runs)
    for name, pools in tasks.items():
        if 1 not in pools:
            raise UserError(f"{name}: no run with one worker, which the model's times come from")
    paths = [folder / "speed_model.md", folder / "speed_model.png"]
    tables.save(paths[0], report(tasks))
    figure, axes = pyplot.subplots(figsize=(7, 5.5), layout="constrained")
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
