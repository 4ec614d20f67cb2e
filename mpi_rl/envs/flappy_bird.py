"""FlappyBird-v0 as the "A3C parallelism vs learning efficiency" deck plays it.

The game is flappy_bird_gymnasium's, at one step per frame. What differs from that is as in the game
of the PyGame Learning Environment, with the changes of the deck's author (FrankCCCCC/rl_collection,
envs/flappyBird.py): the observation, see ``_Game``; the rewards, +1 for a pipe passed, -5 for the
end and 0 for staying alive; and it is the end, too, to leave the screen at the top. Without that a
bird that flaps at random always gets exactly as far as the first pipe, and there is nothing to tell
one episode from another.
"""

import os
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from mpi_rl.errors import UserError

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
try:
    from flappy_bird_gymnasium.envs.constants import PIPE_WIDTH
    from flappy_bird_gymnasium.envs.flappy_bird_env import FlappyBirdEnv
except ModuleNotFoundError as error:
    if error.name != "flappy_bird_gymnasium":
        raise
    raise UserError(
        "env = 'FlappyBird-v0': flappy_bird_gymnasium is not installed; must be, with pip install"
        " --no-deps flappy-bird-gymnasium (it asks for pygame, and pygame-ce is there)"
    ) from None

LOSS = -5.0
PIPES_SEED = 0  # where every episode has the same pipes


class _Game(FlappyBirdEnv):
    """The game, observed as 8 numbers, in pixels.

    How far the bird's upper edge is below the top of the screen, and its velocity, downwards; then
    of each of the two next pipes, whose middle is still ahead of the bird's left edge: the distance
    to that, and how far its opening's top and bottom lie below the bird's upper edge.
    """

    def __init__(self, render_mode: str | None) -> None:
        super().__init__(use_lidar=False, render_mode=render_mode)
        self.observation_space = Box(-np.inf, np.inf, (8,), np.float64)

    @property
    def is_above_screen(self) -> bool:
        """Whether the bird has left the screen at the top."""
        return self._player_y <= 0

    def _get_observation_features(self) -> tuple[np.ndarray, None]:
        height = self._player_y
        pipes = sorted(
            (distance, lower["y"] - self._pipe_gap - height, lower["y"] - height)
            for lower in self._lower_pipes
            if (distance := lower["x"] + PIPE_WIDTH / 2 - self._player_x) > 0
        )
        return np.array([height, self._player_vel_y, *pipes[0], *pipes[1]], np.float64), None


class FlappyBird:
    """One game, with Gymnasium's methods."""

    metadata = FlappyBirdEnv.metadata

    def __init__(self, fixed_pipes: bool, max_frames: int, render_mode: str | None = None) -> None:
        self._game = _Game(render_mode)
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
        terminated = terminated or self._game.is_above_screen
        reward = info["score"] - self._score + LOSS * terminated
        self._score = info["score"]
        self._frames += 1
        return observation, reward, terminated, self._frames >= self._max_frames, info

    def render(self) -> Any:
        """Return the picture."""
        return self._game.render()

    def close(self) -> None:
        """End."""
        self._game.close()
