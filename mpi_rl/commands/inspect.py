"""``mpi_rl inspect``: what run files hold, and whether they agree with themselves."""

from pathlib import Path
from typing import Any

import click
import numpy as np

from mpi_rl.algorithms.choice import algorithm_of
from mpi_rl.config import NUM_BYTES, budget, spent
from mpi_rl.errors import UserError
from mpi_rl.records.lock import is_locked
from mpi_rl.records.moves import moves
from mpi_rl.records.runfile import STATUSES, Run, read_runs
from mpi_rl.records.timing import advice, in_words, server_load, shares


@click.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--verify",
    is_flag=True,
    help="check checksums, lengths and sums; exit status 1 if anything is wrong",
)
def inspect_runs(files: tuple[Path, ...], verify: bool) -> int:
    """Print what run files, single or collected, hold."""
    problems = []
    for path in files:
        if verify:
            found = verify_run(path)
            problems += found
            print("\n".join(found) if found else f"{path}: verified")
        else:
            print(summary(path))
    return 1 if problems else 0


def verify_run(path: str | Path) -> list[str]:
    """Return what is wrong with a run file or a collected one, its checksums included."""
    try:
        runs = read_runs(path, with_state=True)
    except UserError as error:
        return [str(error)]
    names = [f"{path}"] if len(runs) == 1 else [f"{path}: run {_index(run)}" for run in runs]
    return [f"{name}: {problem}" for name, run in zip(names, runs) for problem in problems_of(run)]


def problems_of(run: Run) -> list[str]:
    """Return what disagrees in a run: lengths, sums, orders."""
    if problems := _problems_of_lengths(run):
        return problems
    attributes, tables, config = run.attributes, run.tables, run.config
    workers, episodes, intervals = tables["workers"], tables["episodes"], tables["intervals"]
    num_workers = len(workers["worker_id"])
    counts = np.bincount(episodes["worker_id"], minlength=num_workers)
    lengths = np.bincount(episodes["worker_id"], episodes["episode_length"], num_workers)
    period, most = config.interval_period_steps, config.n_steps * config.envs_per_worker
    fewest = 0 if config.max_staleness else 1  # updates per interval
    if algorithm_of(config).has_groups:  # whose members push at the ends of episodes
        longest, cut = max(episodes["episode_length"], default=0), workers["num_steps"] - lengths
        most, fewest = config.exchange_period * longest + cut.max(), 0
    step, version = attributes["step"], attributes["version"]
    complete = attributes["status"] == "complete"
    ends = intervals["step"] // period
    if complete and len(ends) and ends[-1] == (ends[-2] if len(ends) > 1 else 0):
        ends = ends[:-1]  # a complete run's last interval may be a short one
    checks = {
        f"status {attributes['status']!r} is none of {', '.join(STATUSES)}": (
            attributes["status"] in STATUSES
        ),
        "workers' steps do not add up to the step counter": workers["num_steps"].sum() == step,
        "workers' pushes do not add up to the version": workers["num_pushes"].sum() == version,
        "staleness does not count every push of every worker once": np.array_equal(
            run.staleness.sum(axis=1), workers["num_pushes"]
        ),
        "episodes do not agree with the workers' counts": np.array_equal(
            counts, workers["num_episodes"]
        ),
        "a worker's episodes are longer than its steps": bool(
            (lengths <= workers["num_steps"]).all()
        ),
        "episodes are out of order": bool((np.diff(episodes["step"]) >= 0).all()),
        "intervals are repeated or out of order": bool(
            (np.diff(intervals["version"]) >= fewest).all()
            and (np.diff(intervals["step"]) > 0).all()
        ),
        "an interval is missing": (
            most > period or np.array_equal(ends, np.arange(1, step // period + 1))
        ),
        "complete, but short of its budget": (
            not complete or spent(config, step, len(episodes["step"])) >= 1
        ),
        "complete, but its last interval does not end at its last step": (
            not complete or (len(intervals["step"]) > 0 and intervals["step"][-1] == step)
        ),
        "snapshots and their parameters do not pair up": (
            len(tables["snapshots"]["step"]) == len(run.snapshot_params)
        ),
        "evaluations are not of its snapshots": all(
            len(arrays["returns"]) == len(arrays["lengths"]) == len(run.snapshot_params)
            for arrays in run.evaluations.values()
        ),
        "unfinished, but without the state that resuming needs": complete or "params" in run.state,
    }
    return [problem for problem, fine in checks.items() if not fine]


def _problems_of_lengths(run: Run) -> list[str]:
    """Return which tables have uneven columns, or rows that belong to no worker."""
    problems = [
        f"/{name}: columns of different lengths"
        for name, columns in run.tables.items()
        if len({len(column) for column in columns.values()}) > 1
    ]
    num_workers = len(run.tables["workers"]["worker_id"])
    if not np.isin(run.episodes["worker_id"], np.arange(num_workers)).all():
        problems.append("episodes of workers that do not exist")
    if run.staleness.shape[0] != num_workers:
        problems.append(f"/staleness has {run.staleness.shape[0]} rows, not {num_workers}")
    return problems


def summary(path: str | Path) -> str:
    """Return a paragraph for a person, or one per run of a collected file."""
    runs = read_runs(path)
    if len(runs) == 1:
        return _paragraph(runs[0], f"{path}", is_locked(Path(path)))
    return "\n".join(_paragraph(run, f"{path}: run {_index(run)}", False) for run in runs)


def _index(run: Run) -> int:
    return run.attributes["index"]


def _paragraph(run: Run, name: str, locked: bool) -> str:
    attributes, config, returns = run.attributes, run.config, run.episodes["episode_return"]
    status = attributes["status"]
    if status == "running" and not locked:
        status = "interrupted (the same command resumes it)"
    seconds = attributes["wall_time_s"]
    counts = run.staleness.sum(axis=0)
    staleness = np.arange(len(counts)) @ counts / max(1, counts.sum())
    mean = (
        f"{returns[-100:].mean():.1f} over the last {min(100, len(returns))}"
        if len(returns)
        else "none finished"
    )
    worker_s, server_s = run.tables["timing/worker"], run.tables["timing/server"]
    hint = advice(worker_s, server_s, config, algorithm_of(config).has_groups)
    workers = run.tables["workers"]
    transports = ", ".join(
        f"{(workers['transport'] == kind).sum()} by {kind}"
        for kind in sorted(set(workers["transport"]))
    )
    return "\n".join(
        [
            name,
            (
                f"  status     {status}, job {attributes['job']}[{attributes['index']}], seed"
                f" {config.seed}, restarted {attributes['restart_count']} times"
            ),
            (
                f"  task       {config.env}, {config.network} network,"
                f" {config.update_rule} {config.learning_rate:g}"
            ),
            (
                f"  progress   {attributes['step']:,} steps of {budget(config)},"
                f" {attributes['version']:,} updates, {len(returns):,} episodes in {seconds:.0f} s"
                f" ({attributes['step'] / max(seconds, 1e-9):,.0f} steps/s)"
            ),
            f"  return     {mean}",
            (
                f"  workers    {len(workers['worker_id'])} ({transports}) on"
                f" {', '.join(sorted(set(workers['node'])))}; mean staleness {staleness:.2f}"
                " updates"
            ),
            *_growth(run),
            *_groups(run),
            *_evaluations(run),
            f"  time       {in_words(shares(worker_s), server_load(server_s))}",
            *([f"             {hint}"] if hint else []),
            (
                f"  started    {attributes['started']}, last written {attributes['ended']}, commit"
                f" {attributes['git_commit'][:12]}"
                f"{' with changes' if attributes['git_dirty'] else ''}"
                f"{_kernels(attributes)}"
            ),
        ]
    )


def _kernels(attributes: dict[str, Any]) -> str:
    """Return which compiled kernels a run used; older files do not say."""
    return f", compiled kernels {attributes['kernels']}" if "kernels" in attributes else ""


def _growth(run: Run) -> list[str]:
    """Return when workers came and went, and what was too stale, if any."""
    config, events = run.config, run.tables["events"]
    lines = []
    if config.growth != "none":
        columns = (events[key][moves(run)] for key in ("kind", "worker_id", "step"))
        told = [f"{kind} {worker} at step {step:,}" for kind, worker, step in zip(*columns)]
        shown = told if len(told) <= 6 else [*told[:3], f"{len(told) - 6} more", *told[-3:]]
        lines.append(
            f"  growth     {config.growth}, {config.initial_workers} workers at first;"
            f" {', '.join(shown) or 'nobody came or left'}"
        )
    if dropped := run.tables["workers"]["num_dropped"].sum():
        pushes = dropped + run.attributes["version"]
        lines.append(
            f"  dropped    {dropped:,} of {pushes:,} gradients, more than {config.max_staleness}"
            " updates old"
        )
    return lines


def _groups(run: Run) -> list[str]:
    """Return what the groups of a Genkidama run did, a line each."""
    config, workers = run.config, run.tables["workers"]
    if not algorithm_of(config).has_groups:
        return []
    num_bytes = run.snapshot_params.shape[1] * NUM_BYTES[config.exchange_dtype]
    count = config.exchange_period
    period = f"every {count} episodes" if count > 1 else "each episode"
    lines = [
        f"  exchange   server <- {1 - config.alpha:g} server + {config.alpha:g} group,"
        f" {'and' if config.elastic else 'then'} group <- {1 - config.beta:g} group +"
        f" {config.beta:g} server",
        f"             after {period}, {num_bytes:,} bytes each way ({config.exchange_dtype})",
    ]
    for group in np.unique(workers["group_id"]):
        of = workers["group_id"] == group
        did = {name: column[of].sum() for name, column in workers.items() if name[:4] == "num_"}
        lines.append(
            f"  group {group:<4} workers {', '.join(map(str, np.flatnonzero(of)))}:"
            f" {did['num_pushes']:,} exchanges, {did['num_episodes']:,} episodes,"
            f" {did['num_updates']:,} updates ({did['num_conflicts']:,} while another was made)"
        )
    return lines


def _evaluations(run: Run) -> list[str]:
    """Return what the last snapshot got, a line for each mode."""
    return [
        f"  evaluated  last snapshot {arrays['returns'][-1].mean():.1f}, deviation"
        f" {arrays['returns'][-1].std():.1f} ({arrays['returns'].shape[1]:,} episodes, {mode}, seed"
        f" {arrays['seed'][0]})"
        for mode, arrays in run.evaluations.items()
    ]
