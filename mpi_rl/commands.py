"""The command line's words: subcommands, options, and how a user's mistake is answered."""

import dataclasses
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mpi_rl import __version__
from mpi_rl.config import Config, Job, budget, load_job
from mpi_rl.lock import BeingWritten

BENCH_PARTS = ("env", "train", "server", "start", "park", "group")
GROUP_OPTIONS = ("-h", "--help", "--version")  # before any command


@dataclass(frozen=True)
class TrainOptions:
    """What ``train`` was asked to do: the run's settings, and how to carry it out."""

    job: str  # its name
    index: int
    config: Config
    output: Path
    overwrite: bool
    by_message: bool  # no shared window, not even on the server's node
    spin: bool
    stop_file: Path | None  # stop when this appears


def _setting_options(command: click.Command) -> click.Command:
    """Give ``command`` one option per setting; those left out are None."""
    for item in dataclasses.fields(Config):
        name = "--" + item.name.replace("_", "-")
        flags = [f"{name}/--no-{name[2:]}"] if item.type is bool else [name]
        default = (
            ",".join(map(str, item.default)) or "none"
            if isinstance(item.default, tuple)
            else item.default
        )
        kind = item.type if item.type in (int, float, bool) else str
        help = f"{item.metadata['help']}  [default: {default}]"
        command.params.append(click.Option(flags, type=kind, default=None, help=help))
    return command


@click.group(
    context_settings=dict(help_option_names=["-h", "--help"], max_content_width=100),
    epilog="Without a command, train is meant: mpirun -n 9 python -m mpi_rl trains LunarLander-v3.",
)
@click.version_option(__version__)
def cli() -> None:
    """Asynchronous deep reinforcement learning over MPI, recorded in HDF5."""


@cli.command()
@click.argument("job", required=False)
@click.option(
    "--index", type=int, default=0, show_default=True, help="which run of the job's sweep: see list"
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="run file  [default: results/<job>/<index>.h5]",
)
@click.option("--overwrite", is_flag=True, help="start afresh even if the run file exists")
@click.option(
    "--transport",
    type=click.Choice(["window", "message"]),
    default="window",
    show_default=True,
    help=(
        "window: shared memory on the server's node, messages elsewhere; message: messages"
        " everywhere"
    ),
)
@click.option("--spin", is_flag=True, help="wait busily: for machines with a core for every rank")
@click.option(
    "--stop-file",
    type=click.Path(path_type=Path),
    help="save and stop, as after Ctrl-C, once this file exists",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="check the request and say where its run stands, without starting it (or MPI)",
)
def train(
    job: str | None,
    index: int,
    output: Path | None,
    overwrite: bool,
    transport: str,
    spin: bool,
    stop_file: Path | None,
    dry_run: bool,
    **settings: Any,
) -> TrainOptions | None:
    """Train: rank 0 serves, all other ranks work. Run it under mpirun or srun.

    JOB is a job file like jobs/cartpole.toml; without one, LunarLander-v3 is trained. An unfinished
    run file is resumed.
    """
    loaded = load_job(job)
    config = loaded.config(index, _overrides(settings))
    output = output or _run_path(loaded, index)
    if dry_run:
        from mpi_rl.standing import standing, task_of

        task = task_of(config)
        state, step = ("new", 0) if overwrite else standing(output, config, task)
        print(f"{state}: {output}, step {step:,} of {budget(dataclasses.asdict(config))}")
        return None
    return TrainOptions(
        loaded.name, index, config, output, overwrite, transport == "message", spin, stop_file
    )


_setting_options(train)


def _run_path(job: Job, index: int) -> Path:
    return Path("results", job.name, f"{index}.h5")


def _overrides(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were given on the command line."""
    given = {name: value for name, value in settings.items() if value is not None}
    lists = [item.name for item in dataclasses.fields(Config) if item.type == tuple[int, ...]]
    for name in given.keys() & {*lists}:
        try:
            given[name] = [int(number) for number in given[name].split(",")]
        except ValueError:
            raise ValueError(
                f"{name} = {given[name]!r}: must be whole numbers with commas between, like 128,128"
            ) from None
    return given


@cli.command("list")
@click.argument("job")
def list_runs(job: str) -> None:
    """Print the runs of JOB's sweep with their indices."""
    loaded = load_job(job)
    for index, run in enumerate(loaded.sweep):
        loaded.config(index, {})
        print(
            f"{index:>4}  "
            + ("  ".join(f"{name}={value}" for name, value in run.items()) or "(no sweep: one run)")
        )


@cli.command("submit")
@click.argument("job")
@click.option("--dry-run", is_flag=True, help="print the sbatch lines; submit nothing")
@click.option(
    "--ntasks", type=click.IntRange(2), help="ranks per run, where the job leaves that open"
)
@click.option(
    "--throttle",
    type=click.IntRange(1),
    help="most runs at once  [default: the profile's THROTTLE, else all]",
)
@click.option("--profile", envvar="PROFILE", help="settings of a site: slurm/profiles/<this>.env")
@click.option(
    "--sbatch",
    multiple=True,
    help=(
        "one more option for the arrays' sbatch, like --sbatch=--time=8:00:00; a profile's"
        " SBATCH_OPTIONS are for the collecting job too"
    ),
)
def submit_job(
    job: str,
    dry_run: bool,
    ntasks: int | None,
    throttle: int | None,
    profile: str | None,
    sbatch: tuple[str, ...],
    **settings: Any,
) -> None:
    """Queue what is left of JOB's sweep in Slurm: job arrays, then a job that collects.

    Runs that are complete, or in the queue already, are left out: after a failure the same command
    submits the rest. Settings given here hold for all runs. Without a num_workers in the job, runs
    have the number of ranks that the script in slurm/ asks for. Groups get one node, unless
    --sbatch says otherwise.
    """
    from mpi_rl.submit import batches, collect_batch, left_to_run, queued, send, site

    at, loaded = site(profile), load_job(job)
    try:
        waiting = queued(loaded.name)
    except ValueError as error:
        if not dry_run:
            raise
        waiting = set()
        print(f"# the queue is not known: {str(error).splitlines()[0]}")
    configs = [loaded.config(index, _overrides(settings)) for index in range(len(loaded.sweep))]
    if any(config.group_size > 1 for config in configs):  # a group may not straddle nodes
        at = dataclasses.replace(at, options=["--nodes=1", *at.options])
    paths = [_run_path(loaded, index) for index in range(len(loaded.sweep))]
    left = left_to_run(configs, paths, ntasks)
    num_ranks = {index: count for index, count in left.items() if index not in waiting}
    print(
        f"# {loaded.name}: {len(configs)} run(s), {len(configs) - len(left)} complete,"
        f" {len(waiting)} in the queue, {len(num_ranks)} to submit",
        flush=True,
    )
    if not left:
        print(f"python -m mpi_rl collect {job}    # merges them, should that not be done yet")
    if not num_ranks:
        return
    words = _as_options(settings)
    arrays = batches(job, loaded.name, num_ranks, words, at, throttle, list(sbatch))
    ids = []
    for number, batch in enumerate(arrays):
        if dry_run:
            print(f"array{number}=$({batch.line()})")
            ids.append(f"$array{number}")
        else:
            ids.append(send(batch))
            print(f"{batch.line()}    # job {ids[-1]}", flush=True)
    last = collect_batch(job, loaded.name, ids, at)
    print(last.line() if dry_run else f"{last.line()}    # job {send(last)}")


_setting_options(submit_job)


def _as_options(settings: dict[str, Any]) -> list[str]:
    """Return the words that gave the settings on the command line."""
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", str(value)]
    return words


@cli.command("collect")
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
    from mpi_rl.collect import collect

    loaded = load_job(job)
    output = output or Path("results", f"{loaded.name}.h5")
    keep = () if no_params else ("best", "last") if small else None
    problems = collect(loaded, folder or Path("results", loaded.name), output, keep)
    print(f"{output}: {len(loaded.sweep) - len(problems)} of {len(loaded.sweep)} run(s)")
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if problems else 0


@cli.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--verify",
    is_flag=True,
    help="check checksums, lengths and sums; exit status 1 if anything is wrong",
)
def inspect_runs(files: tuple[Path, ...], verify: bool) -> int:
    """Print what run files, single or collected, hold."""
    from mpi_rl.inspect import summary, verify_run

    problems = []
    for path in files:
        if verify:
            found = verify_run(path)
            problems += found
            print("\n".join(found) if found else f"{path}: verified")
        else:
            print(summary(path))
    return 1 if problems else 0


GREEDY = click.option(
    "--greedy",
    is_flag=True,
    help="take the likeliest action instead of drawing one from the policy",
)


@cli.command("evaluate")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--episodes",
    default=500,
    show_default=True,
    type=click.IntRange(1),
    help="episodes of each snapshot",
)
@GREEDY
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="of episodes and actions"
)
@click.option("--overwrite", is_flag=True, help="replace evaluations of other episodes")
def evaluate_runs(
    files: tuple[Path, ...], episodes: int, greedy: bool, seed: int, overwrite: bool
) -> int:
    """Play every snapshot of complete runs; the returns go into the run FILES.

    Under mpirun or srun all ranks but the first play. Snapshots that have been played already are
    left out: after an interruption the same command goes on.
    """
    from mpi_rl.evaluate import Request, evaluate

    return evaluate(list(files), Request(episodes, greedy, seed), overwrite)


@cli.command("record")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: FILE with .gif]"
)
@click.option(
    "--snapshot",
    default="best",
    show_default=True,
    help="best, last, group 0 (with groups), or the step of a snapshot",
)
@click.option(
    "--episodes", default=1, show_default=True, type=click.IntRange(1), help="episodes to show"
)
@click.option(
    "--max-steps",
    default=3000,
    show_default=True,
    type=click.IntRange(1),
    help="longest episode shown",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="of the episodes and the actions",
)
@GREEDY
def record_run(
    file: Path,
    output: Path | None,
    snapshot: str,
    episodes: int,
    max_steps: int,
    seed: int,
    greedy: bool,
) -> None:
    """Write a GIF of FILE's trained policy playing."""
    from mpi_rl.record import record

    print(
        record(
            file, output or file.with_suffix(".gif"), snapshot, episodes, max_steps, seed, greedy
        )
    )


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    """Return a list like 1,4,16 as whole numbers above 0."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(number >= 1 and number.is_integer() for number in numbers):
        raise click.BadParameter(f"{text!r}: must be whole numbers with commas between, like 1,4")
    return tuple(map(int, numbers))


@cli.command("bench")
@click.argument("parts", nargs=-1, type=click.Choice(BENCH_PARTS))
@click.option("--job", default="jobs/space_invaders.toml", show_default=True, help="job file")
@click.option("--workers", default="1,2", show_default=True, callback=_numbers, help="env, train")
@click.option(
    "--envs",
    default="1,4,16,32",
    show_default=True,
    callback=_numbers,
    help="env, train: environments per worker",
)
@click.option(
    "--ranks",
    default="3,9,41",
    show_default=True,
    callback=_numbers,
    help="server, start, park (the most): ranks, the server included",
)
@click.option(
    "--members",
    default="2,4,8",
    show_default=True,
    callback=_numbers,
    help="group: members of one",
)
@click.option(
    "--num-params",
    default="1e4,677943,1e7",
    show_default=True,
    callback=_numbers,
    help="server, group: sizes P of the parameter vector",
)
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="per figure, roughly",
)
@click.option(
    "--launcher",
    help="how ranks are started  [default: mpirun -n {ranks}, of this Python's environment]",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("results/bench.h5"),
    show_default=True,
)
def bench_parts(
    parts: tuple[str, ...],
    job: str,
    workers: tuple[int, ...],
    envs: tuple[int, ...],
    ranks: tuple[int, ...],
    members: tuple[int, ...],
    num_params: tuple[int, ...],
    seconds: float,
    launcher: str | None,
    output: Path,
    **settings: Any,
) -> None:
    """Measure this machine: every figure beside its limit, which is measured in the same run.

    env: the environments against the emulator alone. train: a whole run against the same, and where
    its time goes. server: pushes against moving as many bytes, and against those with the first of
    --ranks; the idle server. start: the time to every worker's first push against the imports
    alone, and memory. park: cores and memory of workers that are parked, and the seconds that one
    takes to join. group: how many of a group's updates, made without a lock, meet another's and are
    lost. Without a name, all that the job allows. Nothing else should run meanwhile.
    """
    from mpi_rl import bench

    launcher = launcher or _mpirun()
    if "{ranks}" not in launcher:
        raise ValueError(f"launcher = {launcher!r}: must have {{ranks}} where their number goes")
    config, words = load_job(job).config(0, _overrides(settings)), _as_options(settings)
    sizes = workers, envs, num_params, ranks, members
    request = bench.Request(job, config, words, *sizes, seconds, launcher)
    output.parent.mkdir(parents=True, exist_ok=True)
    fit = [part for part in BENCH_PARTS if part != "park" or bench.can_park(request)]
    bench.run(request, parts or tuple(fit), output)


_setting_options(bench_parts)


def _mpirun() -> str:
    """Return the launcher that was installed with this Python, else the one in the path."""
    beside = Path(sys.executable).with_name("mpirun")
    return f"{beside if beside.exists() else 'mpirun'} -n {{ranks}}"


def parse(arguments: list[str]) -> Any:
    """Carry out the command in ``arguments`` and return its result; for train, its TrainOptions."""
    return cli.main(arguments, prog_name="mpi_rl", standalone_mode=False)


def answer(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what ``work`` returns, and 0.

    A user's mistake becomes one line, None and 2; a file that another process writes 75 instead.
    """
    try:
        return work(), 0
    except (click.ClickException, ValueError, OSError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"mpi_rl: {' '.join(message.split())}", file=sys.stderr, flush=True)
        return None, os.EX_TEMPFAIL if isinstance(error, BeingWritten) else 2
    except (click.Abort, KeyboardInterrupt):
        return None, 130
