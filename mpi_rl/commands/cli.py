"""The command line's words: commands by name, options, and how a person's mistake is answered."""

import dataclasses
import importlib
import sys
from collections.abc import Callable
from typing import Any

import click

from mpi_rl import __version__
from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.jobs import Job

GROUP_OPTIONS = ("-h", "--help", "--version")  # before any command
COMMANDS = {  # name -> module:attribute, imported when the name is given
    "bench": "mpi_rl.commands.bench:bench_parts",
    "collect": "mpi_rl.commands.collect:collect_runs",
    "evaluate": "mpi_rl.commands.evaluate:evaluate_runs",
    "inspect": "mpi_rl.commands.inspect:inspect_runs",
    "list": "mpi_rl.commands.list_runs:list_runs",
    "plot": "mpi_rl.commands.plot:plot_runs",
    "record": "mpi_rl.commands.record:record_run",
    "submit": "mpi_rl.commands.submit:submit_job",
    "train": "mpi_rl.commands.train:train",
}


class Commands(click.Group):
    """The commands of COMMANDS. One is imported when it is asked for; a group's help asks all."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names, in alphabetical order."""
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return the command called ``name``, None if there is none."""
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


@click.group(
    cls=Commands,
    context_settings=dict(help_option_names=["-h", "--help"], max_content_width=100),
    epilog="Without a command, train is meant: mpirun -n 9 python -m mpi_rl trains LunarLander-v3.",
)
@click.version_option(__version__)
def cli() -> None:
    """Asynchronous deep reinforcement learning over MPI, recorded in HDF5."""


def complete(arguments: list[str]) -> list[str]:
    """Return the arguments with their command; options or a job file without one mean ``train``."""
    first = arguments[0] if arguments else "--train"
    if first.endswith(".toml") or first.startswith("-") and first not in GROUP_OPTIONS:
        return ["train", *arguments]
    return arguments


def parse(arguments: list[str]) -> Any:
    """Carry out the command in ``arguments`` and return its result; for train, its TrainOptions."""
    return cli.main(arguments, prog_name="mpi_rl", standalone_mode=False)


def answer(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what ``work`` returns, and 0.

    What a person can mend becomes one line, None and its exit status; Ctrl-C becomes None and 130.
    """
    try:
        return work(), 0
    except click.ClickException as error:
        return _told(error.format_message(), UserError.status)
    except UserError as error:
        return _told(str(error), error.status)
    except (click.Abort, KeyboardInterrupt):
        return None, 130


def _told(message: str, status: int) -> tuple[None, int]:
    print(f"mpi_rl: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return None, status


# --- Options that several commands have


def configured(job: Job, index: int, settings: dict[str, Any]) -> Config:
    """Return the settings of a job's run, with those given as options; UserError for misfits."""
    from mpi_rl.algorithms.choice import check

    return check(job.config(index, overrides(settings)))


greedy_option = click.option(
    "--greedy",
    is_flag=True,
    help="take the likeliest action instead of drawing one from the policy",
)


def setting_options(command: click.Command) -> click.Command:
    """Give ``command`` an option for each setting that it has none for; left out, it is None."""
    own = {parameter.name for parameter in command.params}
    for item in dataclasses.fields(Config):
        if item.name in own:
            continue
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


def overrides(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were given on the command line."""
    given = {name: value for name, value in settings.items() if value is not None}
    lists = [item.name for item in dataclasses.fields(Config) if item.type == tuple[int, ...]]
    for name in given.keys() & {*lists}:
        try:
            given[name] = [int(number) for number in given[name].split(",")]
        except ValueError:
            raise UserError(
                f"{name} = {given[name]!r}: must be whole numbers with commas between, like 128,128"
            ) from None
    return given


def as_options(settings: dict[str, Any]) -> list[str]:
    """Return the words that gave the settings on the command line."""
    words = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words += [f"--{option}", str(value)]
    return words
