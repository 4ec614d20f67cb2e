"""Where a run's time goes: shares of the phases in words, and what to do about them."""

from collections.abc import Mapping

import numpy as np

from mpi_rl.config import Config
from mpi_rl.transport.metrics import columns_of

# A worker's, in wall time
PHASES = tuple(column.name for column in columns_of("timing/worker") if column.name != "cpu")
# Above these shares of the time, or below, there is something to be said.
CORE_SHARED, SERVER_BUSY, WORKERS_WAIT, NETWORK_CALLS = 0.7, 0.7, 0.3, 0.4
UPDATES = 0.5  # likewise, of the server's busy time

# Seconds by name of the phase: a number, or one per worker.
Seconds = Mapping[str, np.ndarray]


def shares(worker: Seconds) -> dict[str, float]:
    """Return the share of each of PHASES in the workers' time; all 0 before there is any."""
    totals = {name: float(np.sum(worker[name])) for name in PHASES}
    whole = sum(totals.values())
    return {name: total / whole if whole else 0.0 for name, total in totals.items()}


def busy_s(worker: Seconds) -> float:
    """Return the time of all phases but the wait, of all workers together."""
    return float(sum(np.sum(worker[name]) for name in PHASES if name != "wait"))


def server_load(server: Seconds) -> float:
    """Return the share of its time that the server was at work."""
    busy = busy_server_s(server)
    whole = busy + float(np.sum(server["idle"]))
    return busy / whole if whole else 0.0


def busy_server_s(server: Seconds) -> float:
    """Return the time that the server was at work."""
    return float(sum(np.sum(seconds) for name, seconds in server.items() if name != "idle"))


def in_words(phases: Mapping[str, float], load: float) -> str:
    """Return the shares of a worker's phases and the server's load as text."""
    worker = ", ".join(f"{name} {100 * share:.0f} %" for name, share in phases.items())
    return f"{worker}; server {100 * load:.0f} % busy"


def advice(worker: Seconds, server: Seconds, config: Config, has_groups: bool) -> str:
    """Return what would make a run of such a ``config`` faster, '' if nothing stands out.

    ``worker`` has, beside PHASES, the seconds of processor time, ``cpu``. In a run that
    ``has_groups`` a worker's wait is not for the server alone.
    """
    phases, load = shares(worker), server_load(server)
    if not (busy := busy_s(worker)):
        return ""
    core = float(np.sum(worker["cpu"])) / busy
    calls = phases["act"] + phases["learn"]
    if core < CORE_SHARED:
        return (
            f"More ranks than cores: a busy worker had one {100 * core:.0f} % of the time. Fewer"
            " workers would be about as fast, and their gradients less stale"
        )
    if has_groups:  # whose members wait for one another
        return ""
    if load > SERVER_BUSY:
        updates = float(np.sum(server["update"])) / busy_server_s(server)
        if config.network != "mlp" and config.server_threads == 1 and updates > UPDATES:
            return (
                f"The server is busy {100 * load:.0f} % of the time, {100 * updates:.0f} % of that"
                " with updates: --server-threads 2 or 4 will share them out, given as many cores"
            )
        return (
            f"The server is busy {100 * load:.0f} % of the time: more workers will not help, more"
            " steps per push will (n_steps, envs_per_worker)"
        )
    if phases["wait"] > WORKERS_WAIT:
        return (
            f"Workers wait {100 * phases['wait']:.0f} % of the time for a server that is busy"
            f" {100 * load:.0f} %: more steps per push (n_steps, envs_per_worker) mean fewer waits,"
            " and --spin shortens them where every rank has a core"
        )
    one = config.envs_per_worker == 1
    if config.network != "mlp" and one and calls > NETWORK_CALLS:
        return (
            f"The network takes {100 * calls:.0f} % of the workers' time, one environment at a"
            " time: with --envs-per-worker 16 one call serves 16"
        )
    return ""
