"""Job files (TOML) and their sweeps.

A job file holds differences from the defaults and an optional ``[sweep]`` table. Its runs are the
product of the sweep's axes in file order (the last axis varies fastest); the index that picks one
is the Slurm array task id. An axis is a setting with its values, or, under a name of its own, a
list of tables of several settings that vary together.

``base = "other.toml"`` takes over the settings of another job file, but not its sweep. The path is
relative to the file that names it; that file's own settings and axes win, and the base may have a
base itself.
"""

import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi_rl.config import Config, make_config
from mpi_rl.errors import UserError
from mpi_rl.settings import check_names

DEFAULT_JOB = "lunar_lander"


@dataclass(frozen=True)
class Job:
    """A job file: its name, what all its runs share, and what varies, one dict per index."""

    name: str
    settings: dict[str, Any]
    sweep: list[dict[str, Any]]

    def config(self, index: int, overrides: dict[str, Any]) -> Config:
        """Return the settings of run ``index``; ``overrides`` win. UserError if out of range."""
        if not 0 <= index < len(self.sweep):
            raise UserError(
                f"index = {index}: job {self.name} has {len(self.sweep)} run(s), indices 0 to "
                f"{len(self.sweep) - 1}"
            )
        return make_config({**self.settings, **self.sweep[index], **overrides}, self.name)

    def output(self, index: int) -> Path:
        """Return where run ``index`` is written if nothing else is said."""
        return Path("results", self.name, f"{index}.h5")


def load_job(path: str | None) -> Job:
    """Read a job file; None is the default job. Raises UserError for anything unusable."""
    if path is None:
        return Job(DEFAULT_JOB, {}, [{}])
    settings, axes, inherited = _read(Path(path), ())
    if not isinstance(axes, dict):
        raise UserError(f"{path}: sweep = {axes!r}: must be a table, [sweep], of lists")
    taken = set(settings)
    columns = []
    for name, values in axes.items():
        columns.append(_axis(name, values, f"{path} [sweep]"))
        names = {each for value in columns[-1] for each in value}
        if names & taken:
            raise UserError(
                f"{path}: {', '.join(sorted(names & taken))} is both a setting and a [sweep] axis,"
                " or part of two axes: keep one of them"
            )
        taken |= names
    sweep = [
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*columns)
    ]
    return Job(Path(path).stem, {**inherited, **settings}, sweep)


def _read(path: Path, namers: tuple[Path, ...]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Return a job file's settings, its sweep, and the settings that it takes over.

    ``namers`` are the files that led here, each the base of the one before it.
    """
    settings = _parsed(path, namers[-1] if namers else None)
    base, axes = settings.pop("base", None), settings.pop("sweep", {})
    check_names(Config, settings, str(path), ("base", "sweep"))
    if base is None:
        return settings, axes, {}
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: base = {base!r}: must be the path of a job file, like other.toml")
    other, chain = path.parent / base, (*namers, path)
    if any(other.resolve() == namer.resolve() for namer in chain):
        raise UserError(
            f"{path}: base = {base!r}: a circle, {' -> '.join(map(str, (*chain, other)))}: one of"
            " them must be without base"
        )
    theirs, _, above = _read(other, chain)
    return settings, axes, {**above, **theirs}


def _parsed(path: Path, namer: Path | None) -> dict[str, Any]:
    """Return the tables of a TOML file; ``namer`` is the job file whose base it is, if any."""
    name = f"{namer}: base {str(path)!r}" if namer else f"job {str(path)!r}"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        right = "job files are in jobs/, like jobs/cartpole.toml"
        right = f"must be a path from the folder of {namer}" if namer else right
        raise UserError(f"{name}: no such file; {right}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{name}: {error}") from None


def _axis(name: str, values: Any, source: str) -> list[dict[str, Any]]:
    """Return what an axis sets at each of its places; UserError if it is none."""
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{source}: {name} = {values!r}: must be a list of one or more values to try"
        )
    tables = [isinstance(value, dict) for value in values]
    if any(tables) and not all(tables):
        raise UserError(
            f"{source}: {name} mixes tables and {values[tables.index(False)]!r}: must be all tables"
            " of settings, or all values of one"
        )
    if not all(tables):
        check_names(Config, {name: values}, source)
        return [{name: value} for value in values]
    for value in values:
        check_names(Config, value, f"{source} {name}")
        if value.keys() != values[0].keys():
            raise UserError(
                f"{source}: {name} has tables of different settings"
                f" ({', '.join(value.keys() ^ values[0].keys())}): must all set the same"
            )
    return values
