"""The HDF5 files: a run's, its record and its checkpoint, a collected sweep's, and a bench's.

Rank 0 rewrites the file whole (write beside, fsync, replace), so whatever is killed, the file on
disk opens and agrees with itself; readers need no lock.

    /episodes /intervals /events /workers /snapshots /timing/{worker,server}    tables: see TABLES
    /staleness    (num_workers, K): how often worker w's gradient was s versions old when applied
    /snapshots/params    (N, P)
    /evaluations/<mode>/{returns,lengths}    (N, M): M episodes of each snapshot; nan, 0: not played
    /state    what resuming needs (unfinished runs only)

A collected file has such a file's content in /runs/<index> for each run of a job, and /settings, a
table with a row per run: its index and every setting.
"""

import contextlib
import datetime
import json
import math
import os
import posixpath
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SCHEMA = "mpi_rl run"
COLLECTION_SCHEMA = "mpi_rl collection"
BENCH_SCHEMA = "mpi_rl bench"
SCHEMA_VERSION = 5  # of all; since 4 workers have groups and pushes, since 5 num_dropped
OLDEST_VERSION = 4  # that can be read
YOUNGER = ("num_dropped",)  # columns that it lacks: all zeros
REQUIRED_ATTRIBUTES = (
    "status job index config seed env_spec env_spec_hash step version wall_time_s restart_count"
    " started ended git_commit git_dirty versions mpi_library world_size num_workers node_names"
).split()
ROUNDED = "wall_time_s", "episode_return", "returns"  # columns, in small collections
RESOLUTION = 2.0**-10  # of those
KILLED = "killed: what came after this step was not saved"  # kinds of events
RESUMED = "resumed with fresh episodes: emulator states are not saved"
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
            "group_id": ("q", "1"),  # a3c: every worker is its own group
            "node": ("s", "text"),
            "transport": ("s", "text"),
            "num_steps": ("q", "steps"),
            "num_episodes": ("q", "1"),
            "num_updates": ("q", "updates"),  # made of its gradients
            "num_pushes": ("q", "updates"),  # to the server's parameters; genkidama: exchanges
            "num_dropped": ("q", "updates"),  # pushes that were too stale
            # Updates of the group's parameters while another member made one; pulls likewise.
            "num_conflicts": ("q", "updates"),
            "num_torn_pulls": ("q", "1"),
            "first_push_s": ("d", "s since 1970"),  # of its last start; 0: none yet
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
            "push": ("d", "s"),
            "wait": ("d", "s"),
            "cpu": ("d", "s"),
        },
        "timing/server": {
            "update": ("d", "s"),
            "reply": ("d", "s"),
            "write": ("d", "s"),
            "idle": ("d", "s"),
        },
    }
)


EVALUATION_UNITS = {"returns": "reward", "lengths": "steps", "seed": "1"}
BENCH_UNITS = {
    "seconds": "s",
    "pss_mb": "MB",
    "imports_pss_mb": "MB",
    "parked_mb": "MB",
    "join_s": "s",
    "bytes_per_s": "B/s",
    "pause_s": "s",
    **dict.fromkeys(("steps_per_s", "pushes_per_s", "updates_per_s", "conflicts_per_s"), "1/s"),
    **dict.fromkeys(("p50", "p95", "p99"), "s"),
}


class CannotWrite(OSError):
    """A file could not be replaced; its old content stands."""


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
    # By mode, sampled or greedy: returns, lengths and the seed.
    evaluations: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings by name."""
        return json.loads(self.attributes["config"])

    @property
    def episodes(self) -> dict[str, np.ndarray]:
        """The table of finished episodes."""
        return self.tables["episodes"]


def write_run(path: Path, run: Run) -> None:
    """Replace ``path`` by ``run``. Raises CannotWrite, with ``path`` as it was, if need be."""

    def fill(file: h5py.File) -> None:
        file.attrs.update(run.attributes)
        for name, columns in run.tables.items():
            for key, column in columns.items():
                code, units = TABLES[name][key]
                _write(file, f"{name}/{key}", _encoded(column) if code == "s" else column, units)
        _write(file, "staleness", run.staleness, "updates")
        _write(file, "snapshots/params", run.snapshot_params, "1")
        for key, values in run.state.items():
            _write(file, f"state/{key}", values, "1")
        for mode, arrays in run.evaluations.items():
            for key, values in arrays.items():
                _write(file, f"evaluations/{mode}/{key}", values, EVALUATION_UNITS[key])

    _replace(path, fill)


def write_collection(
    path: Path,
    attributes: dict[str, Any],
    runs: dict[int, Path],
    settings: dict[str, list[Any]],
    keep: Collection[str] | None = None,
) -> None:
    """Replace ``path`` by a collection of ``runs``, by index; each comes from its run file.

    ``path`` itself stands for the run that it has already. ``settings`` are the columns of
    /settings, a row per run. With ``keep`` it has ROUNDED in steps of RESOLUTION, and nan for the
    parameters of snapshots of other kinds than those; what they got in evaluations stays.
    Raises CannotWrite, with ``path`` as it was, if need be.
    """

    def fill(file: h5py.File) -> None:
        file.attrs.update({"schema": COLLECTION_SCHEMA, "schema_version": SCHEMA_VERSION})
        file.attrs.update(attributes)
        for index, source in runs.items():
            with h5py.File(source, "r", locking="best-effort") as other:
                run = other[f"runs/{index}"] if source == path else other
                copy = file.create_group(f"runs/{index}")
                copy.attrs.update(run.attrs)
                if keep is not None:
                    _copy_small(run, copy, keep)
                    continue
                for name in run:
                    run.copy(name, copy)
        for name, values in settings.items():
            text = any(isinstance(value, str) for value in values)
            _write(file, f"settings/{name}", _encoded(values) if text else np.array(values), "1")

    _replace(path, fill)


def _copy_small(run: h5py.Group, copy: h5py.Group, keep: Collection[str]) -> None:
    """Copy a run without what is large and seldom needed again."""
    kinds = run["snapshots/kind"].asstr()[:]
    for name, dataset in _leaves(run, "."):
        if name == "snapshots/params":
            params = dataset[()]
            params[~np.isin(kinds, [*keep])] = np.nan
            _write(copy, name, params, dataset.attrs["units"])
        elif posixpath.basename(name) in ROUNDED:
            rounded = np.round(dataset[()] / RESOLUTION) * RESOLUTION
            _write(copy, name, rounded, dataset.attrs["units"])
        else:
            parent, key = posixpath.split(name)
            run.copy(dataset, copy.require_group(parent or "."), key)


def write_bench(
    path: Path, attributes: dict[str, Any], tables: dict[str, dict[str, list[Any]]]
) -> None:
    """Replace ``path`` by what ``mpi_rl bench`` measured: columns of texts or numbers by table."""

    def fill(file: h5py.File) -> None:
        file.attrs.update({"schema": BENCH_SCHEMA, "schema_version": SCHEMA_VERSION, **attributes})
        for table, columns in tables.items():
            for name, values in columns.items():
                text = any(isinstance(value, str) for value in values)
                column = _encoded(values) if text else np.array(values, float)
                _write(file, f"{table}/{name}", column, BENCH_UNITS.get(name, "1"))

    _replace(path, fill)


def _replace(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Write a file anew in one step: a crash leaves the old one or the new one, whole."""
    beside = path.with_name(path.name + ".tmp")
    # Made in memory: on a full disk HDF5 fails in many places, some of them with tracebacks.
    with h5py.File(beside, "w", driver="core", backing_store=False) as file:
        fill(file)
        file.flush()
        image = file.id.get_file_image()
    try:
        with open(beside, "wb") as written:
            written.write(image)
            written.flush()
            os.fsync(written.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise CannotWrite(
            f"{path}: cannot be written ({error.strerror}); what it held is kept"
        ) from None
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _encoded(texts: Iterable[str]) -> np.ndarray:
    """Texts as UTF-8 of one length: HDF5 keeps no checksums of texts of varying length."""
    data = [text.encode() for text in texts]
    return np.array(data, h5py.string_dtype("utf-8", max(map(len, data), default=1)))


def _write(file: h5py.File, name: str, values: np.ndarray, units: str) -> None:
    options: dict[str, Any] = {}
    if values.size:  # vectors of parameters are noise to gzip: they get a checksum only
        options = dict(chunks=True, fletcher32=True)
        if values.dtype != np.float32 or np.isnan(values).any():
            options.update(compression="gzip", compression_opts=4, shuffle=True)
    dataset = file.create_dataset(name, data=values, **options)
    dataset.attrs["units"] = units


def read_run(path: str | Path, with_state: bool = False) -> Run:
    """Return a run file's content. Raises ValueError if it is not a readable one of ours."""
    with _opened(path) as file:
        if file.attrs["schema"] == COLLECTION_SCHEMA:
            raise ValueError(
                f"{path}: a collection of {len(file['runs'])} runs, where one run's file is needed"
            )
        return _read(str(path), file, with_state)


def read_runs(path: str | Path, with_state: bool = False) -> list[Run]:
    """Return the run of a run file, or all runs of a collected one, in the order of their indices.

    Raises ValueError as ``read_run`` does.
    """
    with _opened(path) as file:
        if file.attrs["schema"] != COLLECTION_SCHEMA:
            return [_read(str(path), file, with_state)]
        names = sorted(file["runs"], key=int)
        return [_read(f"{path}: run {name}", file[f"runs/{name}"], with_state) for name in names]


def is_collection(path: str | Path) -> bool:
    """Say whether a file holds collected runs. Raises ValueError as ``read_run`` does."""
    with _opened(path) as file:
        return file.attrs["schema"] == COLLECTION_SCHEMA


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[h5py.File]:
    """Open one of our files; ValueError for what is not one, or breaks while it is read."""
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            schema = file.attrs.get("schema")
            if schema not in (SCHEMA, COLLECTION_SCHEMA):
                raise ValueError(
                    f"{path}: an HDF5 file, but not a run file: its schema is {schema!r}, not"
                    f" {SCHEMA!r}"
                )
            version = file.attrs["schema_version"]
            if not OLDEST_VERSION <= version <= SCHEMA_VERSION:
                newer = version > SCHEMA_VERSION
                raise ValueError(
                    f"{path}: schema version {version} is {'newer' if newer else 'older'} than this"
                    f" program's {SCHEMA_VERSION}: use {'a newer' if newer else 'an older'} mpi_rl"
                )
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path}: no such run file") from None
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable run file, perhaps truncated ({error})") from None


def _read(name: str, group: h5py.Group, with_state: bool = False) -> Run:
    """Return the run that ``group``, called ``name`` in errors, holds."""
    attributes = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in group.attrs.items()
    }
    absent = [key for key in REQUIRED_ATTRIBUTES if key not in attributes]
    if absent:
        raise ValueError(f"{name}: a damaged run file: without {', '.join(absent)}")
    tables = {
        table: {key: _column(group[table], key, code) for key, (code, _) in columns.items()}
        for table, columns in TABLES.items()
    }
    state = {key: value[()] for key, value in _leaves(group, "state")} if with_state else {}
    evaluations = {
        mode: {key: value[()] for key, value in arrays.items()}
        for mode, arrays in group.get("evaluations", {}).items()
    }
    params = group["snapshots/params"][:]
    return Run(attributes, tables, group["staleness"][:], params, state, evaluations)


def _column(table: h5py.Group, key: str, code: str) -> np.ndarray:
    """Return a column; zeros where it is younger than the file."""
    if key in YOUNGER and key not in table:
        return np.zeros(len(next(iter(table.values()))), code)
    return table[key].asstr()[:] if code == "s" else table[key][:]


def _leaves(file: h5py.Group, name: str) -> list[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []
    if name in file:
        file[name].visititems(
            lambda key, item: found.append((key, item)) if isinstance(item, h5py.Dataset) else None
        )
    return found


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
