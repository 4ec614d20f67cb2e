"""Returns and lengths of episodes, counted where the episodes are played."""

from typing import NamedTuple


class Episode(NamedTuple):
    """One environment's episode, as it is recorded."""

    env: int
    episode_return: float  # raw and undiscounted
    episode_length: int  # steps


class EpisodeCounter:
    """The returns and lengths of the episodes under way in E environments."""

    def __init__(self, num_envs: int) -> None:
        self._returns, self._lengths = [0.0] * num_envs, [0] * num_envs

    def add(self, env: int, reward: float) -> None:
        """Count one step."""
        self._returns[env] += reward
        self._lengths[env] += 1

    def so_far(self, env: int) -> Episode:
        """Return the episode under way."""
        return Episode(env, float(self._returns[env]), self._lengths[env])

    def start(self, env: int) -> None:
        """Begin an episode."""
        self._returns[env], self._lengths[env] = 0.0, 0
