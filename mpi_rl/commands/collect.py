"""``mpi_rl collect``: the runs of a sweep, checked and merged into one file."""

import dataclasses
import json
import sys
from collections.abc import Collection
from pathlib import Path

import click

from mpi_rl.commands.inspect import problems_of
from mpi_rl.config import Config, budget, differences
from mpi_rl.errors import UserError, reading, writing
from mpi_rl.jobs import Job, load_job
from mpi_rl.records.lock import writer_lock
from mpi_rl.records.runfile import Run, is_collection, read_run, read_runs, write_collection

PATIENCE_S = 120.0  # for another collection that writes the same file


@click.command("collect")
@click.argument("job")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="where the run files are  [default: results/<job>]",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="collected file  [default: results/<job>.h5]",
)
@click.option(
    "--small",
    is_flag=True,
    help="only the best and the last snapshot keep their parameters; times and returns are rounded"
    " to 2^-10",
)
@click.option("--no-params", is_flag=True, help="as --small, and no snapshot keeps its parameters")
def collect_runs(
    job: str, folder: Path | None, output: Path | None, small: bool, no_params: bool
) -> int:
    """Merge the complete runs of JOB's sweep into one file; exit status 1 if any is missing.

    Every run is checked: complete, sound, and of the same configuration but for the sweep. The same
    command can be given again: runs that the file holds already stay in it.
    """
    loaded = load_job(job)
    output = output or Path("results", f"{loaded.name}.h5")
    keep = () if no_params else ("best", "last") if small else None
    problems = collect(loaded, folder or Path("results", loaded.name), output, keep)
    print(f"{output}: {len(loaded.sweep) - len(problems)} of {len(loaded.sweep)} run(s)")
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if problems else 0


def collect(job: Job, folder: Path, output: Path, keep: Collection[str] | None = None) -> list[str]:
    """Merge the complete runs of ``job`` in ``folder`` into ``output``; return what is wrong.

    That is one line for each index whose run is missing, unfinished, damaged, or of a configuration
    that differs from the others in more than the sweep: those are left out. A run that ``output``
    holds already stays when its file is gone or begun anew; UserError if it cannot. What ``keep``
    leaves out, ``write_collection`` says.
    """
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with writer_lock(output, PATIENCE_S):
        held = _held(job, output)
        runs: dict[int, Run] = {}
        sources: dict[int, Path] = {}
        problems: list[str] = []
        for index in range(len(job.sweep)):
            source, first = folder / f"{index}.h5", next(iter(runs.values()), None)
            run, wrong = _examine(job, index, source, first)
            if wrong and index in held and not _wrong(job, index, held[index], first):
                run, source, wrong = held[index], output, ""
            if run is None or wrong:
                problems.append(f"index {index}: {wrong}")
            else:
                runs[index], sources[index] = run, source
        if lost := sorted(held.keys() - runs.keys()):
            raise UserError(
                f"{output}: its run(s) {', '.join(map(str, lost))} do not go with those of"
                f" {folder} and would be lost: move {output} away first ({'; '.join(problems)})"
            )
        if runs:
            missing = [index for index in range(len(job.sweep)) if index not in runs]
            attributes = {"job": job.name, "missing": json.dumps(missing)}
            attributes["sweep_axes"] = json.dumps([*job.sweep[0]])
            write_collection(output, attributes, sources, _settings(runs), keep)
    return problems


def _held(job: Job, output: Path) -> dict[int, Run]:
    """Return the runs that ``output`` holds already, by index."""
    with reading(output):
        if not output.exists():
            return {}
    if not is_collection(output):
        raise UserError(f"{output}: a run file, not a collection: give another --output")
    held = {run.attributes["index"]: run for run in read_runs(output)}
    names = {run.attributes["job"] for run in held.values()}
    if names != {job.name}:
        raise UserError(f"{output}: holds runs of {', '.join(sorted(names))}, not of {job.name}")
    return held


def _examine(job: Job, index: int, path: Path, first: Run | None) -> tuple[Run | None, str]:
    """Return the run of ``path`` and what is wrong with it."""
    try:
        run = read_run(path, with_state=True)
    except UserError as error:
        return None, str(error)
    wrong = _wrong(job, index, run, first)
    return run, wrong and f"{path}: {wrong}"


def _wrong(job: Job, index: int, run: Run, first: Run | None) -> str:
    """Say what keeps ``run`` from being the job's run ``index``, like ``first``; '' if nothing."""
    attributes = run.attributes
    if attributes["status"] != "complete":
        return f"{attributes['status']} at step {attributes['step']:,} of {budget(run.config)}"
    if problems := problems_of(run):
        return "; ".join(problems)
    if (attributes["job"], attributes["index"]) != (job.name, index):
        return f"holds run {attributes['index']} of job {attributes['job']}"
    config = run.config
    if unlike := differences(dataclasses.replace(config, **job.sweep[index]), config):
        return f"not what the job's sweep says ({'; '.join(unlike)})"
    if first is None:
        return ""
    unlike = differences(
        dataclasses.replace(first.config, **job.sweep[index]),
        config,
    )
    old, new = (json.loads(one.attributes["env_spec"]) for one in (first, run))
    if "env" not in job.sweep[index] and not unlike:
        unlike = [
            f"environment's {name}: {old[name]!r} -> {new.get(name)!r}"
            for name in old
            if old[name] != new.get(name) and name not in job.sweep[index]
        ]
    if not unlike:
        return ""
    number = first.attributes["index"]
    return f"differs from run {number} in more than the sweep ({'; '.join(unlike)})"


def _settings(runs: dict[int, Run]) -> dict[str, list]:
    """Return the table of settings: a row per run, lists as JSON."""
    table: dict[str, list] = {"index": list(runs)}
    # Files from before a setting was introduced do not have it: it had its default.
    configs = [
        dataclasses.asdict(run.config) for run in runs.values()
    ]
    for name in dataclasses.asdict(Config()):
        values = [config[name] for config in configs]
        table[name] = [json.dumps(value) if isinstance(value, tuple) else value for value in values]
    return table
