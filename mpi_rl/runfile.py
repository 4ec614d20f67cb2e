"""The run file: one HDF5 file per run, its record and its checkpoint; writer and reader.

Rank 0 rewrites the file whole (write beside, fsync, replace), so whatever is killed, the file on
disk opens and agrees with itself; readers need no lock. A lock file beside it keeps a second writer
out while the first lives.

    /episodes /intervals /events /workers /snapshots /timing/{worker,server}    tables: see TABLES
    /staleness    (num_workers, K): how often worker w's gradient was s versions old when applied
    /snapshots/params    (N, P)
    /state    what resuming needs (unfinished runs only)
"""

import contextlib
import datetime
import fcntl
import json
import logging
import math
import os
import socket
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SCHEMA = "mpi_rl run"
SCHEMA_VERSION = 1
REQUIRED_ATTRIBUTES = (
    "status job index config seed env_spec env_spec_hash step version wall_time_s restart_count"
    " started ended git_commit git_dirty versions mpi_library world_size num_workers node_names"
).split()
STATUSES = ("running", "checkpointed", "complete", "failed")
_WHEN = {"step": ("q", "steps"), "version": ("q", "updates"), "wall_time_s": ("d", "s")}
TABLES: dict[str, dict[str, tuple[str, str]]] = (
    {  # table -> column -> (array type code or "s" for text, units)
        "episodes": {
            "worker_id": ("q", "1"),
            **_WHEN,
            "episode_return": ("d", "reward"),
            "episode_length": ("q", "steps"),
        },
        "intervals": {
            **_WHEN,
            "policy_loss": ("d", "1"),
            "value_loss": ("d", "1"),
            "entropy": ("d", "nat"),
            "grad_norm": ("d", "1"),
            "learning_rate": ("d", "1"),
            "staleness_mean": ("d", "updates"),
            "staleness_max": ("q", "updates"),
            "num_active_workers": ("q", "1"),
            "updates_per_s": ("d", "1/s"),
            "steps_per_s": ("d", "1/s"),
        },
        "events": {
            "wall_time_s": ("d", "s"),
            "step": ("q", "steps"),
            "worker_id": ("q", "1"),
            "kind": ("s", "text"),
        },
        "workers": {
            "worker_id": ("q", "1"),
            "node": ("s", "text"),
            "transport": ("s", "text"),
            "num_steps": ("q", "steps"),
            "num_updates": ("q", "updates"),
            "num_episodes": ("q", "1"),
        },
        "snapshots": {
            "step": ("q", "steps"),
            "version": ("q", "updates"),
            "mean_return": ("d", "reward"),
            "kind": ("s", "text"),
        },
        "timing/worker": {
            "env": ("d", "s"),
            "act": ("d", "s"),
            "learn": ("d", "s"),
            "wait": ("d", "s"),
        },
        "timing/server": {
            "update": ("d", "s"),
            "reply": ("d", "s"),
            "write": ("d", "s"),
            "idle": ("d", "s"),
        },
    }
)


class Table:
    """Columns of equal length that grow row by row."""

    def __init__(self, name: str) -> None:
        self._columns: dict[str, Any] = {
            key: [] if code == "s" else array(code) for key, (code, _) in TABLES[name].items()
        }

    def append(self, **row: Any) -> None:
        """Add one row; every column must be given."""
        assert row.keys() == self._columns.keys(), f"{sorted(row)} are not {sorted(self._columns)}"
        for key, value in row.items():
            self._columns[key].append(value)

    def extend(self, columns: dict[str, np.ndarray]) -> None:
        """Add the rows of ``columns``."""
        for key, column in self._columns.items():
            column.extend(columns[key].tolist())

    def columns(self) -> dict[str, np.ndarray]:
        """Return copies of the columns as arrays."""
        return {
            key: np.array(column, object if isinstance(column, list) else column.typecode)
            for key, column in self._columns.items()
        }

    def mean_of_last(self, key: str, count: int) -> float:
        """Return the mean of a column's last ``count`` values; nan if there are none."""
        values = self._columns[key][-count:]
        return sum(values) / len(values) if values else math.nan

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))


@dataclass
class Run:
    """A run file's content; tables are dicts of equally long columns, (N,), as in TABLES."""

    attributes: dict[str, Any]
    tables: dict[str, dict[str, np.ndarray]]
    staleness: np.ndarray
    snapshot_params: np.ndarray
    state: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings by name."""
        return json.loads(self.attributes["config"])

    @property
    def episodes(self) -> dict[str, np.ndarray]:
        """The table of finished episodes."""
        return self.tables["episodes"]


def write_run(path: Path, run: Run) -> None:
    """Replace ``path`` by ``run`` in one step: a crash leaves the old file or the new, whole."""
    beside = path.with_name(path.name + ".tmp")
    with h5py.File(beside, "w", locking="best-effort") as file:
        file.attrs.update(run.attributes)
        for name, columns in run.tables.items():
            for key, column in columns.items():
                code, units = TABLES[name][key]
                _write(file, f"{name}/{key}", _encoded(column) if code == "s" else column, units)
        _write(file, "staleness", run.staleness, "updates")
        _write(file, "snapshots/params", run.snapshot_params, "1")
        for key, values in run.state.items():
            _write(file, f"state/{key}", values, "1")
    with open(beside, "rb") as written:
        os.fsync(written.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _encoded(texts: np.ndarray) -> np.ndarray:
    """Texts as UTF-8 of one length: HDF5 keeps no checksums of texts of varying length."""
    data = [text.encode() for text in texts]
    return np.array(data, h5py.string_dtype("utf-8", max(map(len, data), default=1)))


def _write(file: h5py.File, name: str, values: np.ndarray, units: str) -> None:
    options: dict[str, Any] = {}
    if values.size:  # vectors of parameters are noise to gzip: they get a checksum only
        options = dict(chunks=True, fletcher32=True)
        if values.dtype != np.float32:
            options.update(compression="gzip", compression_opts=4, shuffle=True)
    dataset = file.create_dataset(name, data=values, **options)
    dataset.attrs["units"] = units


def read_run(path: str | Path, with_state: bool = False) -> Run:
    """Return a run file's content. Raises ValueError if it is not a readable one of ours."""
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            attributes = {
                key: value.item() if isinstance(value, np.generic) else value
                for key, value in file.attrs.items()
            }
            if attributes.get("schema") != SCHEMA:
                raise ValueError(
                    f"{path}: an HDF5 file, but not a run file: its schema is "
                    f"{attributes.get('schema')!r}, not {SCHEMA!r}"
                )
            if attributes["schema_version"] > SCHEMA_VERSION:
                raise ValueError(
                    f"{path}: schema version {attributes['schema_version']} is newer than this"
                    f" program's {SCHEMA_VERSION}: use a newer mpi_rl"
                )
            absent = [name for name in REQUIRED_ATTRIBUTES if name not in attributes]
            if absent:
                raise ValueError(f"{path}: a damaged run file: without {', '.join(absent)}")
            tables = {
                name: {
                    key: file[name][key].asstr()[:] if code == "s" else file[name][key][:]
                    for key, (code, _) in columns.items()
                }
                for name, columns in TABLES.items()
            }
            state = {key: value[()] for key, value in _leaves(file, "state")} if with_state else {}
            return Run(attributes, tables, file["staleness"][:], file["snapshots/params"][:], state)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such run file") from None
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable run file, perhaps truncated ({error})") from None


def _leaves(file: h5py.File, name: str) -> list[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []
    if name in file:
        file[name].visititems(
            lambda key, item: found.append((key, item)) if isinstance(item, h5py.Dataset) else None
        )
    return found


@contextlib.contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Hold the lock of run file ``path``. Raises ValueError naming a writer that has it.

    The kernel frees the lock when its holder dies, so a killed run leaves nothing to clean up. A
    file system without locks (some Lustre mounts) cannot refuse a second writer; a warning says so.
    """
    lock = path.with_name(path.name + ".lock")
    handle = _lock(lock, path)
    job = os.environ.get("SLURM_JOB_ID")
    os.truncate(handle, 0)
    writer = f"process {os.getpid()} on {socket.gethostname()}{f', Slurm job {job}' if job else ''}"
    os.write(handle, writer.encode())
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _lock(lock: Path, path: Path) -> int:
    """Open and lock ``lock``; once more if its holder was just removing it."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        writer = os.read(handle, 200).decode().strip()
        os.close(handle)
        raise ValueError(
            f"{path}: being written by {writer or 'another run'}; wait for it, or choose another"
            " --output"
        ) from None
    except OSError as error:
        logging.getLogger(__name__).warning(
            "%s: no locks on this file system (%s): two writers would not be noticed", lock, error
        )
        return handle
    if not lock.exists() or os.stat(lock).st_ino != os.fstat(handle).st_ino:
        os.close(handle)
        return _lock(lock, path)
    return handle


def is_locked(path: Path) -> bool:
    """Say whether a living writer holds the run file, or may: not every file system can tell."""
    try:
        with open(path.with_name(path.name + ".lock"), "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:  # held, or not for us to know
        return True


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
