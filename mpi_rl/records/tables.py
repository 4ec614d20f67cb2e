"""The tables of a run file: their columns, and how they grow."""

import math
from array import array
from typing import Any

import numpy as np

from mpi_rl.transport.metrics import METRICS, Column, columns_of, summaries

_WHEN = Column("step", "i8", "steps"), Column("version", "i8", "updates")
_WALL_TIME = Column("wall_time_s", "f8", "s")
_WORKER = Column("worker_id", "i8", "1")
_SUMMARIES = [column for metric in METRICS for _, column in summaries(metric)]

_COLUMNS: dict[str, list[Column]] = {
    "episodes": [
        _WORKER,
        *_WHEN,
        _WALL_TIME,
        Column("episode_return", "f8", "reward"),
        Column("episode_length", "i8", "steps"),
    ],
    "intervals": [
        *_WHEN,
        _WALL_TIME,
        *_SUMMARIES,
        Column("num_active_workers", "i8", "1"),
        Column("updates_per_s", "f8", "1/s"),
        Column("steps_per_s", "f8", "1/s"),
    ],
    "events": [_WALL_TIME, _WHEN[0], _WORKER, Column("kind", "text", "text")],
    "workers": [
        _WORKER,
        Column("group_id", "i8", "1"),  # without groups every worker is its own
        Column("node", "text", "text"),
        Column("transport", "text", "text"),
        *columns_of("workers"),
        Column("first_push_s", "f8", "s since 1970"),  # of its last start; 0: none yet
    ],
    "snapshots": [*_WHEN, Column("mean_return", "f8", "reward"), Column("kind", "text", "text")],
    "timing/worker": [*columns_of("timing/worker")],
    "timing/server": [Column(name, "f8", "s") for name in ("update", "reply", "write", "idle")],
}
TABLES = {
    table: {column.name: column for column in columns} for table, columns in _COLUMNS.items()
}
# An interval under way: where it began, its pushes, and by column a number (the sum for a mean, the
# largest, or the last) and how many it is of.
INTERVAL = np.dtype(
    [
        ("step", "i8"),
        ("version", "i8"),
        ("wall_time_s", "f8"),
        ("num_pushes", "i8"),
        *((column.name, "f8", 2) for column in _SUMMARIES),
    ]
)


class Table:
    """Columns of equal length that grow row by row."""

    def __init__(self, name: str) -> None:
        codes = {"i8": "q", "f8": "d"}
        self._columns: dict[str, Any] = {
            key: [] if column.kind == "text" else array(codes[column.kind])
            for key, column in TABLES[name].items()
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
