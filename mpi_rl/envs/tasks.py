"""Gymnasium's tasks with vector observations."""

from typing import Any

import numpy as np

from mpi_rl.envs.episodes import Episode, EpisodeCounter
from mpi_rl.envs.spec import EnvSpec, StepResult
from mpi_rl.errors import UserError


class VectorTask:
    """E copies of one Gymnasium task with vector observations, stepped one after the other."""

    def __init__(self, spec: EnvSpec, num_envs: int, render_mode: str | None = None) -> None:
        task = spec.env, spec.fixed_pipes, spec.max_episode_frames, render_mode
        self.envs = [gymnasium_task(*task) for _ in range(num_envs)]
        shape = self.envs[0].observation_space.shape
        if shape != spec.observation_shape:
            raise UserError(
                f"env = {spec.env!r}: its observations are {shape} here, but were"
                f" {spec.observation_shape} in this run: must be played by the version that made it"
            )
        self.steps_per_s = self.envs[0].metadata["render_fps"]  # of a person watching in real time
        self._observations = np.zeros((num_envs, *spec.observation_shape), np.float32)
        self._final_observations = np.zeros_like(self._observations)
        self._rewards = np.zeros(num_envs)
        self._terminated, self._truncated = np.zeros((2, num_envs), bool)
        self._counter = EpisodeCounter(num_envs)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        for i, env in enumerate(self.envs):
            self._observations[i] = env.reset(seed=int(seeds[i]))[0]
            self._counter.start(i)
        return self._observations

    def step(self, actions: np.ndarray) -> StepResult:
        episodes: tuple[Episode, ...] = ()
        for i, env in enumerate(self.envs):
            observation, reward, terminated, truncated, _ = env.step(int(actions[i]))
            self._rewards[i] = reward
            self._terminated[i], self._truncated[i] = terminated, truncated
            self._counter.add(i, reward)
            if terminated or truncated:
                episodes += (self._counter.so_far(i),)
                self._counter.start(i)
                self._final_observations[i] = observation
                observation = env.reset()[0]
            self._observations[i] = observation
        return StepResult(
            self._observations,
            self._rewards,
            self._terminated,
            self._truncated,
            self._final_observations if episodes else None,
            episodes,
        )

    def episode_so_far(self, env: int) -> Episode:
        """Return the episode that environment ``env`` is in."""
        return self._counter.so_far(env)

    def render(self) -> np.ndarray:
        """Return the first environment's picture, (height, width, 3) uint8."""
        return np.asarray(self.envs[0].render())

    def close(self) -> None:
        for env in self.envs:
            env.close()


def gymnasium_task(
    env: str, fixed_pipes: bool, max_episode_frames: int, render_mode: str | None = None
) -> Any:
    """Return one Gymnasium task, or what has its methods."""
    if env == "FlappyBird-v0":
        from mpi_rl.envs.flappy_bird import FlappyBird

        return FlappyBird(fixed_pipes, max_episode_frames, render_mode)
    import gymnasium

    return gymnasium.make(env, render_mode=render_mode, disable_env_checker=True)
