"""A Slurm cluster of four nodes with 16 CPUs each on this machine, in a folder of its own.

    python -m tests.slurm.testbed FOLDER    # start it, say how to use it, stop it at Ctrl-C

Real daemons (munged, slurmctld, four slurmd), as root. The nodes share this machine's cores, file
system and host name; SLURMD_NODENAME tells them apart. Partitions: ``work`` (the default; jobs that
are preempted are requeued), ``scavenge`` (cancelled when preempted, after a grace time) and
``urgent``, which preempts both.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.ranks import environment

NODES = ("n1", "n2", "n3", "n4")
DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_min_interval=0,requeue_delay=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=5
SlurmctldTimeout=8
InactiveLimit=0
KillWait=10
FirstJobId={first_job}
MinJobAge=300
MessageTimeout=5
NodeName=DEFAULT CPUs=16 SocketsPerBoard=1 CoresPerSocket=16 RealMemory=20000
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=work Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=scavenge PriorityTier=1 PreemptMode=CANCEL GraceTime=20
PartitionName=urgent PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Say why no testbed can run here; None if it can."""
    absent = [name for name in DAEMONS if not shutil.which(name, path=_path())]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Testbed:
    """A running cluster; ``start`` makes one."""

    __test__ = False  # not a test, says pytest's naming rule otherwise

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **environment(),
            "PATH": f"{Path(sys.executable).parent}:{_path()}",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: dict[str, subprocess.Popen] = {}

    def run(self, *command: object, cwd: Path | None = None, **variables: object) -> str:
        """Run a command of the cluster's user and return its output; it must succeed."""
        done = subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env={**self.environment, **{name: str(text) for name, text in variables.items()}},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start_node(self, node: str) -> None:
        """Start the daemon of ``node``."""
        self._start(node, "slurmd", "-D", "-N", node, "-f", self.folder / "slurm.conf")

    def kill_node(self, node: str) -> None:
        """kill -9 the daemon of ``node`` and all that it has started, as a power failure does."""
        self._kill(f"TESTBED_NODE={node}", f"SLURMD_NODENAME={node}")
        self._daemons.pop(node).wait()

    def kill_daemon(self, node: str) -> None:
        """kill -9 the daemon of ``node`` alone: what it has started lives on."""
        self._daemons[node].kill()
        self._daemons.pop(node).wait()

    def _kill(self, *marks: str) -> None:
        """kill -9 this cluster's processes with one of ``marks``, or all, in their environment."""
        ours = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        wanted = {mark.encode() for mark in marks}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    variables = set((entry / "environ").read_bytes().split(b"\0"))
                    if ours in variables and (not wanted or wanted & variables):
                        os.kill(int(entry.name), signal.SIGKILL)

    def state(self, job: str) -> str:
        """Return a job's (or array task's) state, also after its end."""
        line = self.run("scontrol", "--oneliner", "show", "job", job)
        return line.split("JobState=")[1].split()[0]

    def _start(self, name: str, *command: object) -> None:
        with open(self.folder / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(str, command)],  # none outlives the tests
                env={**self.environment, "TESTBED_NODE": name},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _start_all(self) -> None:
        folder = self.folder
        for name in ("munge", "state"):
            (folder / name).mkdir(mode=0o755)
        key = folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        files = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
        self._start(
            "munged", "munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *files
        )
        _wait_until((folder / "munge" / "socket").exists, "munged does not start")
        ctld_port, *ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port}"
            for node, port in zip(NODES, ports)
        )
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname(),
                folder=folder,
                ctld_port=ctld_port,
                first_job=int(time.time()) % 10**7 + 1,  # else shared memory of killed runs is met
                nodes=nodes,
            )
        )
        self._start("slurmctld", "slurmctld", "-D", "-f", folder / "slurm.conf")
        for node in NODES:
            (folder / f"spool-{node}").mkdir()
            self.start_node(node)
        _wait_until(lambda: self.idle_nodes() == len(NODES), f"no four idle nodes: see {folder}")

    def idle_nodes(self) -> int:
        """Return how many nodes wait for work."""
        command = ["sinfo", "--noheader", "--Node", "--partition=work", "--format=%t"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout.split().count("idle")

    def _stop_all(self) -> None:
        jobs = ["scancel", "--signal=KILL", "--full", "--user=root"]
        subprocess.run(jobs, env=self.environment, capture_output=True, timeout=60)
        self._kill()
        for process in self._daemons.values():
            process.wait()


def _wait_until(done, complaint: str, timeout_s: float = 40) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def start(folder: Path) -> Iterator[Testbed]:
    """Run a cluster in ``folder``, which must be empty, as long as the context lasts."""
    testbed = Testbed(folder)
    try:
        testbed._start_all()
        yield testbed
    finally:
        testbed._stop_all()


if __name__ == "__main__":
    home = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).resolve()
    home.mkdir(parents=True, exist_ok=True)
    with start(home):
        print(f"export SLURM_CONF={home}/slurm.conf    # Ctrl-C stops it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
