"""``mpi_rl list``: the runs of a job's sweep."""

import click

from mpi_rl.commands.cli import configured
from mpi_rl.jobs import load_job


@click.command("list")
@click.argument("job")
def list_runs(job: str) -> None:
    """Print the runs of JOB's sweep with their indices."""
    loaded = load_job(job)
    for index, run in enumerate(loaded.sweep):
        configured(loaded, index, {})
        print(
            f"{index:>4}  "
            + ("  ".join(f"{name}={value}" for name, value in run.items()) or "(no sweep: one run)")
        )
