"""Which algorithm a run's settings name."""

from mpi_rl.algorithms import a3c, genkidama
from mpi_rl.algorithms.algorithm import Algorithm
from mpi_rl.config import Config
from mpi_rl.errors import UserError

ALGORITHMS: dict[str, Algorithm] = {"a3c": a3c.A3C, "genkidama": genkidama.GENKIDAMA}


def algorithm_of(config: Config) -> Algorithm:
    """Return the algorithm that a run's ``config`` names."""
    return ALGORITHMS[config.algorithm]


def check(config: Config) -> Config:
    """Return ``config``. Raises UserError for settings that do not fit its algorithm."""
    for name, right, why in algorithm_of(config).unfit:
        if (value := getattr(config, name)) != right:
            raise UserError(
                f"{name} = {value!r} with algorithm = {config.algorithm!r}: must be {right!r},"
                f" {why}"
            )
    return config
