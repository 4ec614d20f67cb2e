"""What is played, and what a step gives."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import NamedTuple

import numpy as np

from mpi_rl.envs.episodes import Episode

FRAME_SKIP = 4  # emulator frames per step: Mnih et al. 2013 and every study here
FRAME_STACK, FRAME_SIZE = 4, 84


@dataclass(frozen=True)
class EnvSpec:
    """What is played: the same spec, seed and actions give the same episodes.

    The settings of ALE games are kept, and hashed, for the other tasks too; those with a default,
    which are younger than the first run files, only where they have another value.
    """

    env: str
    frame_skip: int
    sticky_action_prob: float
    noop_max: int
    fire_reset: bool
    life_loss_terminates: bool
    max_episode_frames: int
    observation_shape: tuple[int, ...]
    num_actions: int
    fixed_pipes: bool = False

    def to_json(self) -> str:
        """The spec as canonical JSON."""
        young = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        values = {k: v for k, v in asdict(self).items() if k not in young or v != young[k]}
        return json.dumps(values, sort_keys=True)

    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class StepResult(NamedTuple):
    """What one step of E environments gave."""

    observations: np.ndarray  # (E, *shape): what to act on next
    rewards: np.ndarray  # (E,), raw
    terminated: np.ndarray  # (E,) bool: no value beyond this step (also a lost life, if so set)
    truncated: np.ndarray  # (E,) bool: cut by a time limit
    final_observations: np.ndarray | None  # (E, *shape), valid where an end is; None: no ends
    episodes: Sequence[Episode]  # that ended in this step, by env; a lost life ends none


def env_spec_from_json(text: str) -> EnvSpec:
    """Undo ``EnvSpec.to_json``."""
    values = json.loads(text)
    return EnvSpec(**{**values, "observation_shape": tuple(values["observation_shape"])})
