"""``mpi_rl bench``: what is to be measured, and by which launcher."""

import math
import sys
from pathlib import Path
from typing import Any

import click

from mpi_rl.commands.cli import as_options, configured, setting_options
from mpi_rl.errors import UserError, writing
from mpi_rl.jobs import load_job

BENCH_PARTS = ("env", "train", "server", "start", "park", "group")
PUSHES = ("gradient", "factors")


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    """Return a list like 1,4,16 as whole numbers above 0."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(number >= 1 and number.is_integer() for number in numbers):
        raise click.BadParameter(f"{text!r}: must be whole numbers with commas between, like 1,4")
    return tuple(map(int, numbers))


def _pushes(context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    """Return a list of PUSHES."""
    pushes = tuple(text.split(","))
    if not {*pushes} <= {*PUSHES}:
        raise click.BadParameter(f"{text!r}: must be {' or '.join(PUSHES)}, or both")
    return pushes


@click.command("bench")
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
    "--push",
    default=",".join(PUSHES),
    show_default=True,
    callback=_pushes,
    help="server: what workers push; factors as of one dense layer and the job's rollouts",
)
@click.option(
    "--threads", default="1", show_default=True, callback=_numbers, help="server: its threads"
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
    push: tuple[str, ...],
    threads: tuple[int, ...],
    seconds: float,
    launcher: str | None,
    output: Path,
    **settings: Any,
) -> None:
    """Measure this machine: every figure beside its limit, which is measured in the same run.

    env: the environments against the emulator alone. train: a whole run against the same, and where
    its time goes. server: pushes against moving as many bytes, and against those with the first of
    --ranks; bytes of a push and its reply; the idle server. start: the time to every worker's first
    push against the imports alone, and memory. park: cores and memory of workers that are
    parked, and the seconds that one takes to join. group: how many of a group's updates, made
    without a lock, meet another's and are lost. Without a name, all that the job allows. Nothing
    else should run meanwhile.
    """
    from mpi_rl.bench import measure
    from mpi_rl.compiled import kernels

    kernels.check()
    launcher = launcher or _mpirun()
    if "{ranks}" not in launcher:
        raise UserError(f"launcher = {launcher!r}: must have {{ranks}} where their number goes")
    config, words = configured(load_job(job), 0, settings), as_options(settings)
    sizes = workers, envs, num_params, push, threads, ranks, members
    request = measure.Request(job, config, words, *sizes, seconds, launcher)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    fit = [part for part in BENCH_PARTS if part != "park" or measure.can_park(request)]
    measure.run(request, parts or tuple(fit), output)


setting_options(bench_parts)


def _mpirun() -> str:
    """Return the launcher that was installed with this Python, else the one in the path."""
    beside = Path(sys.executable).with_name("mpirun")
    return f"{beside if beside.exists() else 'mpirun'} -n {{ranks}}"
