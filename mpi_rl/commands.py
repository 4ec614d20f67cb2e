"""The command line's words: subcommands, options, and how a user's mistake is answered."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mpi_rl import __version__
from mpi_rl.config import Config, load_job

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


def _setting_options(command: click.Command) -> click.Command:
    """Give ``command`` one option per setting; those left out are None."""
    for item in dataclasses.fields(Config):
        name = "--" + item.name.replace("_", "-")
        flags = [f"{name}/--no-{name[2:]}"] if item.type is bool else [name]
        default = (
            ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
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
def train(
    job: str | None,
    index: int,
    output: Path | None,
    overwrite: bool,
    transport: str,
    spin: bool,
    **settings: Any,
) -> TrainOptions:
    """Train: rank 0 serves, all other ranks work. Run it under mpirun or srun.

    JOB is a job file like jobs/cartpole.toml; without one, LunarLander-v3 is trained. An unfinished
    run file is resumed.
    """
    overrides = {name: value for name, value in settings.items() if value is not None}
    if "hidden_sizes" in overrides:
        try:
            overrides["hidden_sizes"] = [int(size) for size in overrides["hidden_sizes"].split(",")]
        except ValueError:
            raise ValueError(
                f"hidden_sizes = {overrides['hidden_sizes']!r}: must be whole numbers with commas"
                " between, like 128,128"
            ) from None
    loaded = load_job(job)
    config = loaded.config(index, overrides)
    return TrainOptions(
        loaded.name,
        index,
        config,
        output or Path("results", loaded.name, f"{index}.h5"),
        overwrite,
        transport == "message",
        spin,
    )


_setting_options(train)


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


@cli.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--verify",
    is_flag=True,
    help="check checksums, lengths and sums; exit status 1 if anything is wrong",
)
def inspect_runs(files: tuple[Path, ...], verify: bool) -> int:
    """Print what run files hold."""
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


@cli.command("record")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: FILE with .gif]"
)
@click.option(
    "--snapshot", default="best", show_default=True, help="best, last, or the step of a snapshot"
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
@click.option(
    "--greedy", is_flag=True, help="take the likeliest action instead of sampling as in training"
)
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


def parse(arguments: list[str]) -> Any:
    """Carry out the command in ``arguments`` and return its result; for train, its TrainOptions."""
    return cli.main(arguments, prog_name="mpi_rl", standalone_mode=False)


def answer(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what ``work`` returns, and 0; a user's mistake becomes one line, None and 2."""
    try:
        return work(), 0
    except (click.ClickException, ValueError, OSError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"mpi_rl: {' '.join(message.split())}", file=sys.stderr, flush=True)
        return None, 2
    except (click.Abort, KeyboardInterrupt):
        return None, 130
