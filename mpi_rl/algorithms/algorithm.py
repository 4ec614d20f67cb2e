"""What an algorithm is: one value, which is chosen once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpi_rl.algorithms.worker import Worker
from mpi_rl.config import Config
from mpi_rl.server.base_rule import Rule


def _of_a_rollout(config: Config) -> int:
    """Return the most episodes of a rollout: a single environment's end ends it."""
    return config.n_steps * config.envs_per_worker if config.envs_per_worker > 1 else 1


@dataclass(frozen=True)
class Algorithm:
    """Both halves of an algorithm, and what everybody else needs to know of it."""

    work: Callable[[Worker], None]  # a worker's half
    rule: type[Rule]  # the server's half
    pushes_gradients: bool = True  # not parameters
    has_groups: bool = False  # of workers, who wait for one another and push where episodes end
    max_episodes: Callable[[Config], int] = _of_a_rollout  # that a push can report
    unfit: tuple[tuple[str, Any, str], ...] = ()  # settings, what they must be, and why
