"""``mpi_rl bench``: how fast this machine is, every figure beside the limit of the same minute.

Each measurement starts its own ranks with the launcher. The limit of ``env`` and ``train`` is what
the emulator (or the Gymnasium task) does alone on as many processes; of ``server``, moving as many
bytes as an update does; of ``start``, the imports that ranks of an Atari run cannot do without.
"""

import dataclasses
import itertools
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mpi_rl.algorithms.choice import algorithm_of
from mpi_rl.bench.imports import pss_bytes
from mpi_rl.bench.processes import (
    Request,
    cpu_s,
    measured,
    printed,
    run_ranks,
    running,
    train_words,
)
from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.records.runfile import Run, read_run, write_bench
from mpi_rl.records.timing import server_load, shares

TRANSPORTS = ("window", "message")
SETTLE_S = 1.0  # until parked ranks are asleep
PARK_ACTIVE, PARK_EVENTS = 4, ("admit", "join")  # workers at work; events of one that joins them
GROUP_PAUSES_S = (0.0, 5e-3)  # the latter is what a rollout of 120 steps takes


Row = dict[str, Any]  # by column; rows of one part may lack some


def run(request: Request, parts: tuple[str, ...], output: Path) -> None:
    """Measure, print a Markdown table per part, and write all of them to ``output``.

    Raises UserError with the ranks' last words if they fail.
    """
    here = machine()
    print(f"{here['processor']}, {here['cores']} cores, {here['system']}; {request.job}")
    tables: dict[str, dict[str, list[Any]]] = {}
    for part in parts:
        rows: list[Row] = []
        for row in {
            "env": _env,
            "train": _train,
            "server": _server,
            "start": _start,
            "park": _park,
            "group": _group,
        }[part](request):
            rows.append(row)
            print(
                f"  {part}: {', '.join(f'{k} {_cell(k, v)}' for k, v in row.items())}", flush=True
            )
        tables[part] = columns(rows)
        print(f"\n{table(tables[part])}\n", flush=True)
        attributes = {**here, "job": request.job, "config": _json(request.config)}
        write_bench(output, attributes, tables)
    print(f"Written: {output}")


def columns(rows: list[Row]) -> dict[str, list[Any]]:
    """Return rows as columns: what a row lacks is '' among texts and nan among numbers."""
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        absent = "" if any(isinstance(value, str) for value in values) else math.nan
        found[name] = [absent if value is None else value for value in values]
    return found


def _env(request: Request) -> Iterator[Row]:
    for count in sorted({min(workers, _cores()) for workers in request.workers}):
        for envs in request.envs:
            config = dataclasses.replace(request.config, envs_per_worker=envs)
            found = measured(request, count, "env", _json(config))
            yield {"processes": count, "envs": envs, **found}


def _train(request: Request) -> Iterator[Row]:
    for workers in request.workers:
        for envs in request.envs:
            config = dataclasses.replace(request.config, envs_per_worker=envs)
            limits = [_limit(request, workers)]
            # A guess from the limit makes it last about as long as was asked for.
            steps = int(limits[0] * 0.3 * request.seconds)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "run.h5")
                options = {"total_steps": max(steps, 4 * workers * config.n_steps * envs)}
                options |= {"envs_per_worker": envs, "interval_period_steps": max(1, steps // 50)}
                run_ranks(request, workers + 1, train_words(request, path, options))
                run = read_run(path)
            limits.append(_limit(request, workers))
            rate, limit = _steady_rate(run.tables), float(np.mean(limits))
            worker, server = run.tables["timing/worker"], run.tables["timing/server"]
            yield {
                "workers": workers,
                "envs": envs,
                "steps_per_s": rate,
                "limit": limit,
                "ratio": rate / limit,
                **shares(worker),
                "server": server_load(server),
            }


def _limit(request: Request, workers: int) -> float:
    """Return the steps/s of the environment alone on the cores that so many workers can use."""
    config = dataclasses.replace(request.config, envs_per_worker=1)
    short = dataclasses.replace(request, seconds=request.seconds / 2)
    return float(measured(short, min(workers, _cores()), "env", _json(config))["limit"])


def _steady_rate(tables: dict[str, dict[str, np.ndarray]]) -> float:
    """Return the steps/s from when all workers had joined to the end of a run."""
    intervals, events = tables["intervals"], tables["events"]
    joined = events["wall_time_s"][events["kind"] == "join"].max()
    steps, times = intervals["step"], intervals["wall_time_s"]
    first = min(int(np.searchsorted(times, joined)), len(times) - 2)
    return float((steps[-1] - steps[first]) / (times[-1] - times[first]))


def _server(request: Request) -> Iterator[Row]:
    workers = [ranks - 1 for ranks in request.ranks]
    names = "transport", "params", "push", "threads"
    for case in itertools.product(
        TRANSPORTS, request.num_params, request.push, request.threads
    ):
        for count, row in zip(workers, _push(request, workers, *case)):
            yield {**dict(zip(names, case)), "workers": count, **row}
    case = "window", min(request.num_params), request.push[0], max(request.threads)
    (idle,) = _push(request, [max(workers)], *case, pause_s=request.seconds)
    yield {**dict(zip(names, case)), "workers": max(workers), "idle_cpu": idle["cpu"]}


def _push(
    request: Request,
    workers: list[int],
    transport: str,
    num_params: int,
    push: str,
    threads: int,
    pause_s: float = 0.0,
) -> list[dict[str, float]]:
    most = max(workers)
    config = dataclasses.replace(
        request.config, num_workers=most, total_steps=10**9, interval_period_steps=10**9
    )
    settings = {"num_params": num_params, "transport": transport, "pause_s": pause_s}
    settings |= {"push": push, "threads": threads}
    values = {**settings, "workers": workers, "config": _json(config)}
    return measured(request, most + 1, "server", json.dumps(values))


def _start(request: Request) -> Iterator[Row]:
    for ranks in request.ranks:
        began = time.time()
        imports = printed(request, ranks, ["mpi_rl.bench.imports"])
        pushed_s, pss = _first_pushes(request, ranks)
        limit = imports["ended"] - began
        yield {
            "ranks": ranks,
            "seconds": pushed_s,
            "limit": limit,
            "ratio": pushed_s / limit,
            "pss_mb": pss / 1e6,
            "imports_pss_mb": imports["pss_bytes"] / 1e6,
        }


def _group(request: Request) -> Iterator[Row]:
    for num_params in request.num_params:
        for members in request.members:
            for pause_s in GROUP_PAUSES_S:
                settings = {"num_params": num_params, "pause_s": pause_s}
                found = measured(request, members + 1, "group", json.dumps(settings))
                yield {"params": num_params, "members": members, "pause_s": pause_s, **found}


def _first_pushes(request: Request, ranks: int) -> tuple[float, int]:
    """Return how long a run takes to every worker's first push, and a rank's largest memory."""

    def have_pushed(run: Run) -> bool:
        return bool((run.tables["workers"]["first_push_s"] > 0).all())

    began = time.time()
    with running(request, ranks, {}, have_pushed) as (run, pids):
        pushed = run.tables["workers"]["first_push_s"].max()
        return float(pushed - began), max(pss_bytes(pid) for pid in pids.values())


def can_park(request: Request) -> bool:
    """Say whether the job is one whose workers can be parked, and has any to park."""
    config = request.config
    grows = "growth" not in [name for name, *_ in algorithm_of(config).unfit]
    return max(request.ranks) > 2 and grows and config.growth == "none"


def _park(request: Request) -> Iterator[Row]:
    """Measure a run most of whose workers are parked, then how long it takes one to join."""
    ranks, config = max(request.ranks), request.config
    if not can_park(request):
        raise UserError(
            f"park: {ranks} ranks, algorithm = {config.algorithm!r}, growth = {config.growth!r}:"
            " must be at least 3, one that can grow, and 'none'"
        )
    initial = min(PARK_ACTIVE, ranks - 2)
    growth = {"growth": "schedule", "initial_workers": initial, "growth_workers": initial + 1}

    def has_begun(run: Run) -> bool:
        return bool((run.tables["workers"]["first_push_s"][:initial] > 0).all())

    with running(request, ranks, {**growth, "growth_steps": 10**9}, has_begun) as (_, pids):
        parked = [pid for rank, pid in pids.items() if rank > initial]
        time.sleep(SETTLE_S)
        began, before = time.perf_counter(), sum(map(cpu_s, parked))
        time.sleep(request.seconds)
        cpu = (sum(map(cpu_s, parked)) - before) / (time.perf_counter() - began)
        memory = sum(map(pss_bytes, parked))

    def has_grown(run: Run) -> bool:
        return initial in run.tables["events"]["worker_id"][run.tables["events"]["kind"] == "join"]

    with running(request, ranks, {**growth, "growth_steps": 1000}, has_grown) as (run, _):
        events = run.tables["events"]
        of = events["worker_id"] == initial
        admit, join = (events["wall_time_s"][of & (events["kind"] == k)][0] for k in PARK_EVENTS)
    yield {
        "ranks": ranks,
        "parked": len(parked),
        "parked_cpu": cpu,
        "parked_mb": memory / 1e6,
        "join_s": float(join - admit),
    }


def _json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Return what a reader needs to know of this machine."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"processor": model, "cores": _cores(), "system": platform.platform()}


def table(found: dict[str, list[Any]]) -> str:
    """Return columns as a Markdown table."""
    cells = [list(found), ["---:"] * len(found)]
    cells += [[_cell(*pair) for pair in zip(found, row)] for row in zip(*found.values())]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return ""
    if name == "bytes_per_s":
        return f"{value / 1e9:.2f}e9"
    if name.startswith("p") and name[1:].isdigit():
        return f"{1e3 * value:.2f} ms"
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}"
