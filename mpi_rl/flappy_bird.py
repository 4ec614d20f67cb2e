"""FlappyBird-v0 as the "A3C parallelism vs learning efficiency" deck plays it.

The game is flappy_bird_gymnasium's, with its 12 numbers as observation (the three next pipes, the
bird's height, velocity and rotation, all scaled to about 1) where the deck's has 8 raw ones. A step
is a frame. Rewards are the deck's: +1 for a pipe passed, -5 for the end; 0 for staying alive. As in
its game (FlappyBird of the PyGame Learning Environment) it is the end, too, to leave the screen at
the top. Without that a bird that flaps at random always gets exactly as far as the first pipe, and
there is nothing to tell one episode from another.
"""

import os
from typing import Any

import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
try:
    from flappy_bird_gymnasium.envs.flappy_bird_env import FlappyBirdEnv
except ModuleNotFoundError as error:
    if error.name != "flappy_bird_gymnasium":
        raise
    raise ValueError(
        "env = 'FlappyBird-v0': flappy_bird_gymnasium is not installed; must be, with pip install"
        " --no-deps flappy-bird-gymnasium (it asks for pygame, and pygame-ce is there)"
    ) from None

LOSS = -5.0
HEIGHT = 9  # place of the bird's in an observation: 0 at the top
PIPES_SEED = 0  # where every episode has the same pipes


class FlappyBird:
    """One game, with Gymnasium's methods."""

    metadata = FlappyBirdEnv.metadata

    def __init__(self, fixed_pipes: bool, max_frames: int, render_mode: str | None = None) -> None:
        self._game = FlappyBirdEnv(use_lidar=False, render_mode=render_mode)
        self.observation_space = self._game.observation_space
        self.action_space = self._game.action_space
        self._fixed_pipes, self._max_frames = fixed_pipes, max_frames
        self._score = self._frames = 0

    def reset(self, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        self._score = self._frames = 0
        return self._game.reset(seed=PIPES_SEED if self._fixed_pipes else seed)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play a frame: 1 flaps."""
        observation, _, terminated, _, info = self._game.step(action)
        terminated |= observation[HEIGHT] <= 0
        reward = info["score"] - self._score + LOSS * terminated
        self._score = info["score"]
        self._frames += 1
        return observation, reward, bool(terminated), self._frames >= self._max_frames, info

    def render(self) -> Any:
        """Return the picture."""
        return self._game.render()

    def close(self) -> None:
        """End."""
        self._game.close()
