"""Every rank's way through a command: rank 0 checks and serves, the others work.

    mpirun -n 9 python -m mpi_rl [train] [JOB] [--index I] [--any-field value]
    python -m mpi_rl list|submit|collect JOB
    python -m mpi_rl inspect [--verify] FILE...
    python -m mpi_rl record FILE
    mpirun -n 3 python -m mpi_rl evaluate FILE...

Without arguments LunarLander-v3 is trained, in a minute or two, into results/lunar_lander/0.h5.
Exit status: 0 done (or checkpointed, when told to stop), 1 a rank failed, 2 bad input: nothing was
written, 74 the run file cannot be written, 75 another process is writing it.
"""

import dataclasses
import json
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpi_rl.commands import GROUP_OPTIONS, TrainOptions, answer, parse

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpi_rl.envs import EnvSpec
    from mpi_rl.networks import NetworkSpec
    from mpi_rl.transport import WorkerLink

LIBRARIES = ("mpi_rl", "mpi4py", "torch", "numpy", "gymnasium", "Box2D", "ale-py", "h5py")
OPTIONAL_LIBRARIES = ("flappy-bird-gymnasium", "pygame-ce")
SLURM_NAMES = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_CLUSTER_NAME",
    "SLURM_RESTART_COUNT",
)
# What says how many ranks a launcher has started; the first one present is the innermost launcher.
PROMISES = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "mpirun or srun --mpi=pmi2",
    "SLURM_STEP_NUM_TASKS": "srun",
}
STOP_FILE_PERIOD_S = 1.0  # between two looks
REQUEUED_PATIENCE_S = 60.0  # for the lock of the run file
LEAVE_LAST_S = 1.0  # that rank 0 takes longer than the others to end with an error


def main() -> None:
    """Run the command line; options or a job file without a command mean ``train``."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread per rank, before NumPy is imported
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else "--train"
    if first.endswith(".toml") or first.startswith("-") and first not in GROUP_OPTIONS:
        arguments = ["train", *arguments]
    if arguments[0] == "train" and "--dry-run" not in arguments:
        sys.exit(_train(arguments))
    if arguments[0] == "evaluate" and not {"-h", "--help"} & {*arguments}:
        sys.exit(_evaluate(arguments))
    result, status = answer(lambda: parse(arguments))
    sys.exit(_leave(status or result))


@dataclass(frozen=True)
class Plan:
    """What rank 0 tells all ranks before they start."""

    options: TrainOptions
    env: "EnvSpec"
    groups: tuple[int, ...] = ()  # of each worker

    @property
    def max_episodes(self) -> int:
        """The most episodes of a push: a single environment's ends a rollout; or an exchange's."""
        config = self.options.config
        if config.algorithm == "genkidama":
            return config.exchange_period
        return config.n_steps * config.envs_per_worker if config.envs_per_worker > 1 else 1

    @property
    def network(self) -> "NetworkSpec":
        """The run's network, as the code on this rank has it."""
        from mpi_rl.networks import network_spec

        settings = dataclasses.asdict(self.options.config)
        return network_spec(settings, self.env.observation_shape, self.env.num_actions)


def _train(arguments: list[str]) -> int | None:
    """Take this rank's part in a run; return its exit status."""
    commit = _git_commit() if _launcher_rank() == "0" else {}  # MPI, once started, bears no fork
    from mpi4py import MPI

    from mpi_rl.transport import sleeping_barrier

    comm = MPI.COMM_WORLD
    if _is_mislaunched(comm.size, MPI.Get_library_version()):
        return 2
    logging.basicConfig(level=logging.WARNING, format=f"rank {comm.rank}: %(message)s")
    with ExitStack() as stack:
        try:
            plan, status = None, 0
            if comm.rank == 0:
                plan, status = answer(lambda: _plan(arguments, comm.size, stack))
            sleeping_barrier(comm)
            plan, status = _agree(comm, plan, status)
            if plan is not None and comm.rank == 0:
                status = _serve(comm, plan, commit)
            elif plan is not None:
                _work(comm, plan)
        except BaseException:
            _print_traceback(comm.rank)
            stack.close()
            comm.Abort(1)  # an exception that leaves one rank would hang the others
            raise
    return 0 if comm.rank else _leave(status)


def _evaluate(arguments: list[str]) -> int | None:
    """Let this rank evaluate; return its exit status. What all are answered rank 0 says."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if _is_mislaunched(comm.size, MPI.Get_library_version()):
        return 2
    try:
        with ExitStack() as stack:
            if comm.rank:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            result, status = answer(lambda: parse(arguments))
    except BaseException:
        _print_traceback(comm.rank)
        comm.Abort(1)
        raise
    return 0 if comm.rank else _leave(status or result)


def _leave(status: int | None) -> int | None:
    """Return rank 0's exit status; with an error after all other ranks have ended, if there are.

    srun's --kill-on-bad-exit would make 137 of it for ranks that are still leaving.
    """
    if status and "mpi4py.MPI" in sys.modules:
        sys.modules["mpi4py.MPI"].Finalize()
        time.sleep(LEAVE_LAST_S)
    return status


def _plan(arguments: list[str], num_ranks: int, stack: ExitStack) -> Plan | None:
    """Check all that can be wrong with a request; lock the run file for the life of ``stack``."""
    options = parse(arguments)
    if not isinstance(options, TrainOptions):  # --help has been answered
        return None
    from mpi_rl.lock import writer_lock
    from mpi_rl.standing import standing, task_of

    num_workers = options.config.num_workers or num_ranks - 1
    if num_ranks < 2:
        raise ValueError(
            "1 rank only: train needs a server and at least one worker, like mpirun -n 9 python -m"
            " mpi_rl"
        )
    if num_workers != num_ranks - 1:
        raise ValueError(
            f"{num_ranks} ranks give {num_ranks - 1} worker(s), but job {options.job} has"
            f" num_workers = {num_workers}: start it with mpirun -n {num_workers + 1}, or give"
            f" --num-workers {num_ranks - 1}"
        )
    config = dataclasses.replace(options.config, num_workers=num_workers)
    plan = Plan(dataclasses.replace(options, config=config), task_of(config))
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        again = any(name in os.environ for name in ("SLURM_RESTART_COUNT", "RESUBMISSIONS"))
        patience_s = REQUEUED_PATIENCE_S if again else 0  # for ranks of its last start to end
        stack.enter_context(writer_lock(options.output, patience_s))
    except OSError as error:
        folder = str(options.output.parent)
        raise ValueError(
            f"output folder {folder!r} is not writable ({error.strerror}): choose another --output"
        ) from None
    if not options.overwrite and standing(options.output, config, plan.env)[0] == "complete":
        raise ValueError(
            f"{options.output}: this run is complete; --overwrite trains it again, --output keeps"
            " both"
        )
    return plan


def _agree(comm: "MPI.Intracomm", plan: Plan | None, status: int) -> tuple[Plan | None, int]:
    """Return rank 0's plan and status on all ranks, the plan with the workers' groups.

    There is no plan any more if a group would straddle nodes, or networks differ: rank 0 says so.
    """
    from mpi_rl.group import groups_of
    from mpi_rl.networks import layers
    from mpi_rl.transport import shared_memory

    _, *nodes = comm.gather(shared_memory(comm)) or [None]
    if comm.rank == 0 and plan is not None:
        size = plan.options.config.group_size
        groups, status = answer(lambda: groups_of(nodes, size))
        plan = None if status else dataclasses.replace(plan, groups=groups)
    plan, status = comm.bcast((plan, status))
    if plan is None:
        return None, status
    shapes = "; ".join(f"{layer.part} {layer.shape}" for layer in layers(plan.network))
    everyones = comm.gather(shapes)
    _, status = comm.bcast(answer(lambda: _compare(everyones)) if everyones else None)
    return (None if status else plan), status


def _compare(networks: list[str]) -> None:
    """Raise ValueError if the ranks' networks differ."""
    for rank, network in enumerate(networks):
        if network != networks[0]:
            raise ValueError(
                f"rank {rank}'s network is {network}, but the server's is {networks[0]}: nodes have"
                " different versions of mpi_rl; install the same on all"
            )


def _serve(comm: "MPI.Intracomm", plan: Plan, commit: dict[str, Any]) -> int:
    """Rank 0's part of a run; return its exit status."""
    from mpi4py import MPI

    from mpi_rl.growth import growth
    from mpi_rl.networks import initial_params
    from mpi_rl.progress import Progress
    from mpi_rl.recorder import Recorder
    from mpi_rl.runfile import CannotWrite
    from mpi_rl.server import WorkersSilent, serve
    from mpi_rl.transport import ServerLink, sleeping_barrier
    from mpi_rl.updates import server_rule

    options, config = plan.options, plan.options.config
    settings = dataclasses.asdict(config)
    params = initial_params(plan.network, config.seed)
    update_rule = server_rule(settings, params, plan.groups)
    policy = growth(settings, comm.size - 1)
    sleeping_barrier(comm)
    link = ServerLink(
        comm, params.size, plan.max_episodes, options.by_message, config.exchange_dtype
    )
    origin = _origin(comm, plan, commit)
    recorder = Recorder(
        options.output,
        origin,
        settings,
        plan.groups,
        link.places,
        params,
        update_rule.statistics,
        policy.state,
    )
    if options.output.exists() and not options.overwrite:
        recorder.resume()
    stop_requested = _stop_requests(options.stop_file)
    title = f"{options.job}[{options.index}]: {config.env}, {link.num_workers} workers"
    title += f" -> {options.output}"
    print(title + (f", resumed at step {recorder.step:,}" if recorder.step else ""), flush=True)
    try:
        with Progress(title) as progress:
            serve(
                *(link, update_rule, recorder, progress, config, policy),
                *(plan.groups, stop_requested, options.spin),
            )
    except CannotWrite as error:
        print(f"mpi_rl: {error}", file=sys.stderr, flush=True)
        link.close()
        return os.EX_IOERR
    except (MPI.Exception, WorkersSilent) as error:  # a node that is gone is no fault of the run
        recorder.event(f"stopped by an error: {error}")
        with suppress(CannotWrite):  # that may be why workers had to stop, and is told then
            recorder.finish("checkpointed")
        raise
    except BaseException:
        recorder.finish("failed")
        raise
    link.close()
    if advice := recorder.advice():
        print(f"{advice}.", flush=True)
    if recorder.spent() < 1:
        stopped = f"Stopped at step {recorder.step:,} and saved"
        print(f"{stopped}: the same command resumes {options.output}", flush=True)
    else:
        python = os.path.relpath(sys.executable)
        python = python if len(python) < len(sys.executable) else sys.executable
        plot = f"{python} -m analysis.learning_curves {shlex.quote(str(options.output))}"
        print(f"Done: {options.output}. Plot it with: {plot}", flush=True)
    return 0


def _work(comm: "MPI.Intracomm", plan: Plan) -> None:
    """A worker's part of a run."""
    # The server hears these and tells its workers to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from mpi4py import MPI

    from mpi_rl.networks import num_params
    from mpi_rl.transport import WorkerLink, sleeping_barrier

    options, size = plan.options, num_params(plan.network)
    sleeping_barrier(comm)
    dtype = options.config.exchange_dtype
    link = WorkerLink(comm, size, plan.max_episodes, options.by_message, options.spin, dtype)
    try:
        while link.is_admitted():  # what learning needs is not even imported before
            _learn(comm, plan, link)
    except MPI.Exception:
        raise
    except Exception:
        _print_traceback(comm.rank)
        link.fail()  # the server saves the run and ends all ranks; should it not, we do
        comm.Abort(1)
    link.close()


def _learn(comm: "MPI.Intracomm", plan: Plan, link: "WorkerLink") -> None:
    """Make a worker's agent, and let it work by the run's algorithm."""
    import numpy as np

    from mpi_rl import a3c, genkidama
    from mpi_rl.agent import Agent, make_rng
    from mpi_rl.group import Group
    from mpi_rl.updates import make_update_rule

    config, me = plan.options.config, comm.rank - 1
    rng = make_rng(config.seed, me)
    if config.algorithm == "a3c":
        agent = Agent(config, plan.env, plan.network, link.params, link.grads, rng)
        a3c.work(link, agent, config)
    else:
        members = [worker + 1 for worker, of in enumerate(plan.groups) if of == plan.groups[me]]
        group = Group(comm, members, link.params.size, plan.options.spin)
        rule = make_update_rule(dataclasses.asdict(config), group.params, 1)
        slowdown = config.group_slowdown if plan.groups[me] == max(plan.groups) else 1.0
        own = np.zeros((2, link.params.size), np.float32)
        agent = Agent(config, plan.env, plan.network, own[0], own[1], rng)
        genkidama.work(link, group, agent, rule, config, slowdown)
        group.close()
    agent.close()


def _stop_requests(stop_file: Path | None) -> Callable[[], str]:
    """Return a function that says what asks for a stop, '' while nothing does.

    That is Ctrl-C, of which a second one ends us at once, SIGTERM, of which Slurm may send several,
    or the stop file.
    """
    caught: list[str] = []
    looked_s = -math.inf

    def note(number: int, frame: object) -> None:
        caught.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def requested() -> str:
        nonlocal looked_s
        if stop_file is not None and time.monotonic() - looked_s >= STOP_FILE_PERIOD_S:
            looked_s = time.monotonic()
            with suppress(OSError):  # absent, as a rule; a script may write the reason in it
                caught.append(stop_file.read_text().strip() or "the stop file")
        return caught[0] if caught else ""

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return requested


def _print_traceback(rank: int) -> None:
    lines = traceback.format_exc().splitlines()
    print("\n".join(f"rank {rank}: {line}" for line in lines), file=sys.stderr, flush=True)


def _origin(comm: "MPI.Intracomm", plan: Plan, commit: dict[str, Any]) -> dict[str, Any]:
    """Return what the run file says about where the run comes from."""
    from importlib.metadata import PackageNotFoundError, version

    from mpi4py import MPI

    versions = {name: version(name) for name in LIBRARIES}
    for name in OPTIONAL_LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    slurm = {name: value for name, value in os.environ.items() if name in SLURM_NAMES}
    return {
        "job": plan.options.job,
        "index": plan.options.index,
        "seed": plan.options.config.seed,
        "env_spec": plan.env.to_json(),
        "env_spec_hash": plan.env.hash(),
        "world_size": comm.size,
        "git_commit": commit.get("commit", "unknown"),
        "git_dirty": commit.get("dirty", False),
        "versions": json.dumps({"python": sys.version.split()[0], **versions}),
        "mpi_library": MPI.Get_library_version().splitlines()[0].strip(" \t\0"),
        "slurm": json.dumps(slurm),
    }


def _launcher_rank() -> str:
    """Return this process's rank as its launcher tells it, before MPI starts."""
    names = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0")


def _is_mislaunched(num_ranks: int, library: str) -> bool:
    """Say, on the first rank also in words, whether the launcher's number of ranks is not MPI's."""
    mismatch = _launch_mismatch(num_ranks, library)
    if mismatch and _launcher_rank() == "0":
        print(f"mpi_rl: {mismatch}", file=sys.stderr, flush=True)
    return bool(mismatch)


def _launch_mismatch(num_ranks: int, library: str) -> str:
    """Say how the launcher's number of ranks and MPI's differ; '' if they agree."""
    name = next((name for name in PROMISES if name in os.environ), None)
    if name is None or int(os.environ[name]) == num_ranks:
        return ""
    family = "Open MPI" if "Open MPI" in library else library.split(maxsplit=1)[0]
    right = "its own mpirun" if family == "Open MPI" else "its own mpirun, or srun --mpi=pmi2"
    return (
        f"{PROMISES[name]} started {os.environ[name]} rank(s) ({name}), but MPI ({family}) sees"
        f" {num_ranks}: launcher and library do not match; {family} needs {right}"
    )


def _git_commit() -> dict[str, Any]:
    """Return the commit of this code and whether it was changed since; {} without a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = bool(git("status", "--porcelain", "-uno"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.CalledProcessError):
        return {}


if __name__ == "__main__":
    main()
