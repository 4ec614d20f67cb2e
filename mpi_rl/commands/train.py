"""``mpi_rl train``: the request, what can be wrong with it, and that all ranks agree on it."""

import dataclasses
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpi_rl.commands.cli import answer, configured, parse, setting_options
from mpi_rl.commands.launch import (
    git_commit,
    is_mislaunched,
    launcher_rank,
    leave,
    warn_of_few_cores,
)
from mpi_rl.commands.run import Plan, TrainOptions, serve_run, work_run
from mpi_rl.config import budget
from mpi_rl.errors import UserError, writing
from mpi_rl.jobs import load_job

if TYPE_CHECKING:
    from mpi4py import MPI

REQUEUED_PATIENCE_S = 60.0  # for the lock of the run file


@click.command()
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
    config = configured(loaded, index, settings)
    output = output or loaded.output(index)
    if dry_run:
        from mpi_rl.records.standing import standing, task_of

        task = task_of(config)
        state, step = ("new", 0) if overwrite else standing(output, config, task)
        threads = config.server_threads
        wide = f", {threads} server threads" if threads > 1 else ""  # slurm/lib.sh reads this
        print(f"{state}: {output}, step {step:,} of {budget(config)}{wide}")
        return None
    return TrainOptions(
        loaded.name, index, config, output, overwrite, transport == "message", spin, stop_file
    )


setting_options(train)


def take_part(arguments: list[str]) -> int | None:
    """Take this rank's part in a run; return its exit status."""
    commit = git_commit() if launcher_rank() == "0" else {}  # MPI, once started, bears no fork
    from mpi4py import MPI

    from mpi_rl.transport.waiting import sleeping_barrier

    comm = MPI.COMM_WORLD
    if is_mislaunched(comm.size, MPI.Get_library_version()):
        return 2
    logging.basicConfig(level=logging.WARNING, format=f"rank {comm.rank}: %(message)s")
    _import_together(comm.rank)
    with ExitStack() as stack:
        plan, status = None, 0
        if comm.rank == 0:
            plan, status = answer(lambda: _plan(arguments, comm.size, stack))
        sleeping_barrier(comm)
        plan, status = _agree(comm, plan, status)
        if plan is not None and comm.rank == 0:
            status = serve_run(comm, plan, commit)
        elif plan is not None:
            work_run(comm, plan)
    return 0 if comm.rank else leave(status)


def _import_together(rank: int) -> None:
    """Import what a rank needs before it learns.

    That is done before ranks meet: in MPI's own waits they spin, and who still imports would have
    to share the cores with them.
    """
    import mpi_rl.algorithms.choice
    import mpi_rl.algorithms.group
    import mpi_rl.transport.links  # noqa: F401

    if rank == 0:
        import mpi_rl.server.loop  # noqa: F401


def _plan(arguments: list[str], num_ranks: int, stack: ExitStack) -> Plan | None:
    """Check all that can be wrong with a request; lock the run file for the life of ``stack``."""
    options = parse(arguments)
    if not isinstance(options, TrainOptions):  # --help has been answered
        return None
    from mpi_rl.compiled import kernels
    from mpi_rl.records.lock import writer_lock
    from mpi_rl.records.standing import standing, task_of

    num_workers = options.config.num_workers or num_ranks - 1
    if num_ranks < 2:
        raise UserError(
            "1 rank only: train needs a server and at least one worker, like mpirun -n 9 python -m"
            " mpi_rl"
        )
    kernels.check()
    if num_workers != num_ranks - 1:
        raise UserError(
            f"{num_ranks} ranks give {num_ranks - 1} worker(s), but job {options.job} has"
            f" num_workers = {num_workers}: start it with mpirun -n {num_workers + 1}, or give"
            f" --num-workers {num_ranks - 1}"
        )
    config = dataclasses.replace(options.config, num_workers=num_workers)
    plan = Plan(dataclasses.replace(options, config=config), task_of(config))
    _ = plan.layout  # there may be none as the settings ask for
    with writing(options.output):
        options.output.parent.mkdir(parents=True, exist_ok=True)
    again = any(name in os.environ for name in ("SLURM_RESTART_COUNT", "RESUBMISSIONS"))
    patience_s = REQUEUED_PATIENCE_S if again else 0  # for ranks of its last start to end
    stack.enter_context(writer_lock(options.output, patience_s))
    if not options.overwrite and standing(options.output, config, plan.env)[0] == "complete":
        raise UserError(
            f"{options.output}: this run is complete; --overwrite trains it again, --output keeps"
            " both"
        )
    warn_of_few_cores(config.server_threads)
    return plan


def _agree(comm: "MPI.Intracomm", plan: Plan | None, status: int) -> tuple[Plan | None, int]:
    """Return rank 0's plan and status on all ranks, the plan with the workers' groups.

    There is no plan any more if a group would straddle nodes, or networks or compiled kernels
    differ: rank 0 says so.
    """
    from mpi_rl.algorithms.group import groups_of
    from mpi_rl.compiled.kernels import KERNELS
    from mpi_rl.networks.layers import layers
    from mpi_rl.transport.links import shared_memory

    _, *nodes = comm.gather(shared_memory(comm)) or [None]
    if comm.rank == 0 and plan is not None:
        size = plan.options.config.group_size
        groups, status = answer(lambda: groups_of(nodes, size))
        plan = None if status else dataclasses.replace(plan, groups=groups)
    plan, status = comm.bcast((plan, status))
    if plan is None:
        return None, status
    shapes = "; ".join(f"{layer.part} {layer.shape}" for layer in layers(plan.network))
    everyones = comm.gather((shapes, KERNELS))
    _, status = comm.bcast(answer(lambda: _compare(everyones)) if everyones else None)
    return (None if status else plan), status


def _compare(everyones: list[tuple[str, str]]) -> None:
    """Raise UserError if the ranks' networks or compiled kernels differ."""
    from mpi_rl.compiled.kernels import compare

    networks, kernels = zip(*everyones)
    compare(kernels)
    for rank, network in enumerate(networks):
        if network != networks[0]:
            raise UserError(
                f"rank {rank}'s network is {network}, but the server's is {networks[0]}: nodes have"
                " different versions of mpi_rl; install the same on all"
            )
