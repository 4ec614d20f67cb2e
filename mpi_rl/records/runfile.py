"""The HDF5 files: a run's, its record and its checkpoint, a collected sweep's, and a bench's.

Rank 0 rewrites the file whole (write beside, fsync, replace), so whatever is killed, the file on
disk opens and agrees with itself; readers need no lock.

    /episodes /intervals /events /workers /snapshots /timing/{worker,server}    see ``tables``
    /staleness    (num_workers, K): how often worker w's gradient was s versions old when applied
    /snapshots/params    (N, P)
    /evaluations/<mode>/{returns,lengths}    (N, M): M episodes of each snapshot; nan, 0: not played
    /state    what resuming needs (unfinished runs only)

A collected file has such a file's content in /runs/<index> for each run of a job, and /settings, a
table with a row per run: its index and every setting.
"""

import contextlib
import datetime
import os
import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpi_rl.config import Config, config_from_json
from mpi_rl.errors import CannotWrite, UserError, writing
from mpi_rl.records.tables import INTERVAL, TABLES
from mpi_rl.transport.metrics import METRICS, Column

SCHEMA = "mpi_rl run"
COLLECTION_SCHEMA = "mpi_rl collection"
BENCH_SCHEMA = "mpi_rl bench"
# Since 4 workers have groups and pushes; since 6 what is known of an unfinished interval has names.
SCHEMA_VERSION = max(6, *(metric.since for metric in METRICS))
OLDEST_VERSION = 4  # that can be read
REQUIRED_ATTRIBUTES = (
    "status job index config seed env_spec env_spec_hash step version wall_time_s restart_count"
    " started ended git_commit git_dirty versions mpi_library world_size num_workers node_names"
).split()
ROUNDED = "wall_time_s", "episode_return", "returns"  # columns, in small collections
RESOLUTION = 2.0**-10  # of those
KILLED = "killed: what came after this step was not saved"  # kinds of events
RESUMED = "resumed with fresh episodes: emulator states are not saved"
STATUSES = ("running", "checkpointed", "complete", "failed")
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


@dataclass
class Run:
    """A run file's content; tables are dicts of equally long columns, (N,), as in ``tables``."""

    attributes: dict[str, Any]
    tables: dict[str, dict[str, np.ndarray]]
    staleness: np.ndarray
    snapshot_params: np.ndarray
    state: dict[str, np.ndarray] = field(default_factory=dict)
    # By mode, sampled or greedy: returns, lengths and the seed.
    evaluations: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The run's settings; an old file's lack some, which have their defaults."""
        return config_from_json(self.attributes["config"])

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
                declared = TABLES[name][key]
                values = _encoded(column) if declared.kind == "text" else column
                _write(file, f"{name}/{key}", values, declared.units)
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
            with _opened(source) as other:
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
        kept = "; what it held is kept" if os.path.exists(path) else ""
        raise CannotWrite(f"{path}: cannot be written ({error.strerror}){kept}") from None
    with writing(path):
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
    """Return a run file's content. Raises UserError if it is not a readable one of ours."""
    with _opened(path) as file:
        if file.attrs["schema"] == COLLECTION_SCHEMA:
            raise UserError(
                f"{path}: a collection of {len(file['runs'])} runs, where one run's file is needed"
            )
        return _read(str(path), file, with_state)


def read_runs(path: str | Path, with_state: bool = False) -> list[Run]:
    """Return the run of a run file, or all runs of a collected one, in the order of their indices.

    Raises UserError as ``read_run`` does.
    """
    with _opened(path) as file:
        if file.attrs["schema"] != COLLECTION_SCHEMA:
            return [_read(str(path), file, with_state)]
        names = sorted(file["runs"], key=int)
        return [_read(f"{path}: run {name}", file[f"runs/{name}"], with_state) for name in names]


def is_collection(path: str | Path) -> bool:
    """Say whether a file holds collected runs. Raises UserError as ``read_run`` does."""
    with _opened(path) as file:
        return file.attrs["schema"] == COLLECTION_SCHEMA


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[h5py.File]:
    """Open one of our files; UserError for what is not one, or breaks while it is read."""
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            schema = file.attrs.get("schema")
            if schema not in (SCHEMA, COLLECTION_SCHEMA):
                raise UserError(
                    f"{path}: an HDF5 file, but not a run file: its schema is {schema!r}, not"
                    f" {SCHEMA!r}"
                )
            version = file.attrs["schema_version"]
            if not OLDEST_VERSION <= version <= SCHEMA_VERSION:
                newer = version > SCHEMA_VERSION
                raise UserError(
                    f"{path}: schema version {version} is {'newer' if newer else 'older'} than this"
                    f" program's {SCHEMA_VERSION}: use {'a newer' if newer else 'an older'} mpi_rl"
                )
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such run file") from None
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable run file, perhaps truncated ({error})") from None


def _read(name: str, group: h5py.Group, with_state: bool = False) -> Run:
    """Return the run that ``group``, called ``name`` in errors, holds."""
    attributes = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in group.attrs.items()
    }
    absent = [key for key in REQUIRED_ATTRIBUTES if key not in attributes]
    if absent:
        raise UserError(f"{name}: a damaged run file: without {', '.join(absent)}")
    version = attributes["schema_version"]
    tables = {
        table: {
            name: _column(group[table], column, version) for name, column in columns.items()
        }
        for table, columns in TABLES.items()
    }
    state = {key: value[()] for key, value in _leaves(group, "state")} if with_state else {}
    if "interval" in state and not state["interval"].dtype.names:
        state["interval"] = _named_interval(state["interval"], attributes["version"])
    evaluations = {
        mode: {key: value[()] for key, value in arrays.items()}
        for mode, arrays in group.get("evaluations", {}).items()
    }
    params = group["snapshots/params"][:]
    return Run(attributes, tables, group["staleness"][:], params, state, evaluations)


def _column(table: h5py.Group, column: Column, version: int) -> np.ndarray:
    """Return a column of a file of this schema version. Raises KeyError if it should be there."""
    name, kind, _, since, absent = column
    if name not in table and version < since:
        return np.full(len(next(iter(table.values()))), absent, kind)
    return table[name].asstr()[:] if kind == "text" else table[name][:]


def _named_interval(numbers: np.ndarray, version: int) -> np.ndarray:
    """Return the interval under way of a run at ``version``, as a file before version 6 has it."""
    if numbers.shape != (11,):
        raise UserError(f"a damaged run file: its interval has shape {numbers.shape}, not (11,)")
    *sums, staleness, pushes, step, began, wall_time_s, largest, rate = numbers.tolist()
    interval, count = np.zeros(1, INTERVAL), version - began
    interval["step"], interval["version"] = step, began
    interval["wall_time_s"], interval["num_pushes"] = wall_time_s, pushes
    for name, total in zip(("policy_loss", "value_loss", "entropy", "grad_norm"), sums):
        interval[name] = total, pushes
    interval["staleness_mean"], interval["staleness_max"] = (staleness, count), (largest, count)
    interval["learning_rate"] = rate, pushes
    return interval


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
