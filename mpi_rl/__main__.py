"""Command line: ``mpirun -n 9 python -m mpi_rl`` trains LunarLander with one server and eight workers, about two minutes.

    mpirun -n 9 python -m mpi_rl [train] [JOB] [--index I] [--any-field value]   results/<job>/<index>.h5
    python -m mpi_rl list JOB          the job's runs with their indices
    python -m mpi_rl inspect FILE...   what run files hold; --verify checks them
    python -m mpi_rl record FILE       a GIF of the trained policy playing

Exit status: 0 done (or checkpointed, when told to stop), 1 a rank failed, 2 bad input: nothing was written.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per rank: before anything that computes is imported

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpi_rl import __version__
from mpi_rl.config import Config, differences, config_from_json, load_job

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_rl.envs import EnvSpec
    from mpi_rl.networks import NetworkSpec

LIBRARIES = ("mpi_rl", "mpi4py", "torch", "numpy", "gymnasium", "ale-py", "h5py")
SLURM_NAMES = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_NODELIST", "SLURM_CLUSTER_NAME")


@dataclass(frozen=True)
class TrainOptions:
    """What ``train`` was asked to do: the run's settings, and how to carry it out."""

    job: str
    index: int
    config: Config
    output: Path
    overwrite: bool
    by_message: bool
    spin: bool


def _setting_options(command: click.Command) -> click.Command:
    """Give ``command`` one option per setting; those left out are None."""
    for item in dataclasses.fields(Config):
        name = "--" + item.name.replace("_", "-")
        flags = [f"{name}/--no-{name[2:]}"] if item.type is bool else [name]
        default = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
        kind = {int: int, float: float}.get(item.type, str) if item.type is not bool else bool  # type: ignore
        command.params.append(click.Option(flags, type=kind, default=None,
                                           help=f"{item.metadata['help']}  [default: {default}]"))
    return command


@click.group(context_settings=dict(help_option_names=["-h", "--help"], max_content_width=100),
             help=__doc__.partition("\n\n")[0] if __doc__ else None)
@click.version_option(__version__)
def cli() -> None:
    pass


@cli.command()
@click.argument("job", required=False)
@click.option("--index", type=int, default=0, show_default=True, help="which run of the job's sweep: see list")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="run file  "
              "[default: results/<job>/<index>.h5]")
@click.option("--overwrite", is_flag=True, help="start afresh even if the run file exists")
@click.option("--transport", type=click.Choice(["window", "message"]), default="window", show_default=True,
              help="window: shared memory on the server's node, messages elsewhere; message: messages everywhere")
@click.option("--spin", is_flag=True, help="wait busily: for machines with a core for every rank")
def train(job: str | None, index: int, output: Path | None, overwrite: bool, transport: str, spin: bool,
          **settings: Any) -> TrainOptions:
    """Train: rank 0 serves, all other ranks work. Run it under mpirun or srun.

    JOB is a job file like jobs/cartpole.toml; without one, LunarLander-v3 is trained. An unfinished run file is resumed.
    """
    overrides = {name: value for name, value in settings.items() if value is not None}
    if "hidden_sizes" in overrides:
        try:
            overrides["hidden_sizes"] = [int(size) for size in overrides["hidden_sizes"].split(",")]
        except ValueError:
            raise ValueError(f"hidden_sizes = {overrides['hidden_sizes']!r}: must be whole numbers with commas between, "
                             "like 128,128") from None
    loaded = load_job(job)
    config = loaded.config(index, overrides)
    return TrainOptions(loaded.name, index, config, output or Path("results", loaded.name, f"{index}.h5"), overwrite,
                        transport == "message", spin)


_setting_options(train)


@cli.command("list")
@click.argument("job")
def list_runs(job: str) -> None:
    """Print the runs of JOB's sweep with their indices."""
    loaded = load_job(job)
    for index, run in enumerate(loaded.sweep):
        loaded.config(index, {})
        print(f"{index:>4}  " + ("  ".join(f"{name}={value}" for name, value in run.items()) or "(no sweep: one run)"))


@cli.command("inspect")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="check checksums, lengths and sums; exit status 1 if anything is wrong")
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
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: FILE with .gif]")
@click.option("--snapshot", default="best", show_default=True, help="best, last, or the step of a snapshot")
@click.option("--episodes", default=1, show_default=True, type=click.IntRange(1), help="episodes to show")
@click.option("--max-steps", default=3000, show_default=True, type=click.IntRange(1), help="longest episode shown")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="of the episodes and the actions")
@click.option("--greedy", is_flag=True, help="take the likeliest action instead of sampling as in training")
def record_run(file: Path, output: Path | None, snapshot: str, episodes: int, max_steps: int, seed: int,
               greedy: bool) -> None:
    """Write a GIF of FILE's trained policy playing."""
    from mpi_rl.record import record
    print(record(file, output or file.with_suffix(".gif"), snapshot, episodes, max_steps, seed, greedy))


def main() -> None:
    """Run the command line; ``train`` is what is meant when no command is named."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in (*cli.commands, "-h", "--help", "--version"):
        arguments = ["train", *arguments]
    if arguments[0] == "train":
        sys.exit(_train_on_every_rank(arguments))
    result, status = _answer(lambda: _parse(arguments))
    sys.exit(status or result or 0)


def _parse(arguments: list[str]) -> Any:
    return cli.main(arguments, prog_name="mpi_rl", standalone_mode=False)


def _answer(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what ``work`` returns and status 0; the user's mistakes become one line and status 2."""
    try:
        return work(), 0
    except (click.ClickException, ValueError, OSError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        print(f"mpi_rl: {' '.join(message.split())}", file=sys.stderr, flush=True)
        return None, 2
    except (click.Abort, KeyboardInterrupt):
        return None, 130


@dataclass(frozen=True)
class Plan:
    """What rank 0 tells all ranks before they start."""

    options: TrainOptions
    env: "EnvSpec"
    network: "NetworkSpec"


def _train_on_every_rank(arguments: list[str]) -> int:
    """Train as server or worker, by rank; return the exit status."""
    commit = _git_commit() if _launcher_rank() == "0" else {}  # before MPI starts: it does not bear a fork
    import mpi4py.run
    from mpi4py import MPI

    from mpi_rl.transport import sleeping_barrier
    comm = MPI.COMM_WORLD
    logging.basicConfig(level=logging.WARNING, format=f"rank {comm.rank}: %(message)s")
    with ExitStack() as stack:
        plan, status = _answer(lambda: _plan(arguments, comm.size, stack)) if comm.rank == 0 else (None, 0)
        sleeping_barrier(comm)
        plan, status = comm.bcast((plan, status))
        if plan is None:
            return status
        try:
            if comm.rank == 0:
                _serve(comm, plan, commit)
            else:
                _work(comm, plan)
        except BaseException:
            mpi4py.run.set_abort_status(1)
            _print_traceback(comm.rank)
            comm.Abort(1)
    return 0


def _plan(arguments: list[str], num_ranks: int, stack: ExitStack) -> Plan | None:
    """Check everything that can be wrong with the request, and lock the run file for as long as ``stack`` lives."""
    options = _parse(arguments)
    if not isinstance(options, TrainOptions):  # --help has been answered
        return None
    from mpi_rl.envs import env_spec
    from mpi_rl.networks import network_spec
    from mpi_rl.runfile import read_run, writer_lock
    config, path = options.config, options.output
    if num_ranks < 2:
        raise ValueError("1 rank only: train needs a server and at least one worker, like mpirun -n 9 python -m mpi_rl")
    wanted = config.num_workers or num_ranks - 1
    if wanted != num_ranks - 1:
        raise ValueError(f"{num_ranks} ranks give {num_ranks - 1} worker(s), but job {options.job} has num_workers = "
                         f"{wanted}: start it with mpirun -n {wanted + 1}, or give --num-workers {num_ranks - 1}")
    options = dataclasses.replace(options, config=dataclasses.replace(config, num_workers=wanted))
    settings = dataclasses.asdict(options.config)
    spec = env_spec(settings)
    _make_folder(path.parent)
    stack.enter_context(writer_lock(path))
    if path.exists() and not options.overwrite:
        run = read_run(path)
        if run.attributes["status"] == "complete":
            raise ValueError(f"{path}: this run is complete; --overwrite trains it again, --output keeps both")
        changed = differences(config_from_json(run.attributes["config"]), options.config)
        if changed:
            raise ValueError(f"{path}: unfinished, and of another configuration ({'; '.join(changed)}); give the old "
                             "settings to resume it, --overwrite to start afresh, or another --output")
        if run.attributes["env_spec_hash"] != spec.hash():
            raise ValueError(f"{path}: unfinished, and of another environment: {run.attributes['env_spec']}")
    return Plan(options, spec, network_spec(settings, spec.observation_shape, spec.num_actions))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output folder {str(folder)!r} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"output folder {str(folder)!r} is not writable: choose another --output")


def _serve(comm: "MPI.Comm", plan: Plan, commit: dict[str, Any]) -> None:
    """Rank 0's part of a run."""
    import torch

    from mpi_rl.networks import initial_params
    from mpi_rl.progress import Progress
    from mpi_rl.recorder import Recorder
    from mpi_rl.server import serve
    from mpi_rl.transport import ServerLink, sleeping_barrier
    from mpi_rl.updates import make_update_rule
    torch.set_num_threads(1)
    options, config = plan.options, plan.options.config
    params = initial_params(plan.network, config.seed)
    rule = make_update_rule(config.update_rule, params, comm.size - 1, rmsprop_decay=config.rmsprop_decay,
                            epsilon=config.epsilon, momentum=config.momentum, weight_decay=config.weight_decay)
    sleeping_barrier(comm)
    link = ServerLink(comm, params.size, config.n_steps * config.envs_per_worker, options.by_message)
    recorder = Recorder(options.output, _attributes(comm, plan, commit), dataclasses.asdict(config), link.node_names,
                        link.transports, params, rule.statistics)
    if options.output.exists() and not options.overwrite:
        recorder.resume()
    recorder.write()
    signals = _catch_signals()
    title = f"{options.job}[{options.index}]: {config.env}, {link.num_workers} workers -> {options.output}"
    print(title + (f", resumed at step {recorder.step:,}" if recorder.step else ""), flush=True)
    try:
        with Progress(title) as progress:
            serve(link, params, rule, recorder, progress, config, lambda: bool(signals), options.spin)
    except BaseException:
        recorder.finish("failed", 0.0)
        raise
    link.close()
    if recorder.step < config.total_steps:
        print(f"Stopped at step {recorder.step:,} and saved: the same command resumes {options.output}", flush=True)
    else:
        print(f"Done: {options.output}. Plot it with: python -m analysis.learning_curves {options.output}", flush=True)


def _work(comm: "MPI.Comm", plan: Plan) -> None:
    """A worker's part of a run."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server hears them and tells its workers to stop
        signal.signal(number, signal.SIG_IGN)
    import torch

    from mpi_rl.a3c import work
    from mpi_rl.agent import Agent, make_rng
    from mpi_rl.networks import num_params
    from mpi_rl.transport import WorkerLink, sleeping_barrier
    torch.set_num_threads(1)
    options, config = plan.options, plan.options.config
    sleeping_barrier(comm)
    link = WorkerLink(comm, num_params(plan.network), config.n_steps * config.envs_per_worker,
                      options.by_message, options.spin)
    try:
        agent = Agent(config, plan.env, plan.network, link.params, link.grads, make_rng(config.seed, comm.rank - 1))
        work(link, agent)
    except Exception:
        _print_traceback(comm.rank)
        link.fail()
        comm.Abort(1)
    agent.close()
    link.close()


def _catch_signals() -> list[int]:
    """Collect Ctrl-C and SIGTERM in the list returned; a second one ends the run at once, unsaved."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return caught


def _print_traceback(rank: int) -> None:
    print("".join(f"rank {rank}: {line}\n" for line in traceback.format_exc().splitlines()), end="", file=sys.stderr,
          flush=True)


def _attributes(comm: "MPI.Comm", plan: Plan, commit: dict[str, Any]) -> dict[str, Any]:
    """Return what the run file says about where the run comes from."""
    from importlib.metadata import version

    from mpi4py import MPI
    config = plan.options.config
    return {"job": plan.options.job, "index": plan.options.index, "seed": config.seed, "env_spec": plan.env.to_json(),
            "env_spec_hash": plan.env.hash(), "world_size": comm.size,
            "git_commit": commit.get("commit", "unknown"), "git_dirty": commit.get("dirty", False),
            "versions": json.dumps({"python": sys.version.split()[0], **{name: version(name) for name in LIBRARIES}}),
            "mpi_library": MPI.Get_library_version().strip().splitlines()[0].strip("\0"),
            "slurm": json.dumps({name: os.environ[name] for name in SLURM_NAMES if name in os.environ})}


def _launcher_rank() -> str:
    """Return this process's rank as its launcher tells it, before MPI starts."""
    return next((os.environ[name] for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
                 if name in os.environ), "0")


def _git_commit() -> dict[str, Any]:
    """Return the commit of this code and whether it was changed since; nothing where there is no repository."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


if __name__ == "__main__":
    main()
