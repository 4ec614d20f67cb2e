"""Every ALE game, with the preprocessing of Mnih et al. 2015."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpi_rl.compiled import kernels
from mpi_rl.envs.episodes import Episode, EpisodeCounter
from mpi_rl.envs.spec import FRAME_SIZE, FRAME_SKIP, FRAME_STACK, EnvSpec, StepResult

if TYPE_CHECKING:
    import ale_py

COLUMN_TAPS = 4  # of screens.c


class AleGame:
    """E copies of one ALE game, in this thread, with the preprocessing of Mnih et al. 2015.

    A step holds its action for FRAME_SKIP frames. The last two of them, in grey, become one picture
    by their maximum, which is averaged down to 84 x 84; an observation is the last FRAME_STACK
    pictures, the newest last, and black where an episode has had fewer. ale_py.AtariVectorEnv
    computes the same in threads of its own, which costs more, and most with more ranks than cores.
    """

    steps_per_s = 60 // FRAME_SKIP  # of a person watching in real time

    def __init__(self, spec: EnvSpec, num_envs: int, render_mode: str | None = None) -> None:
        self._spec = spec
        self._games = [emulator(spec, seed=0) for _ in range(num_envs)]
        self._actions = self._games[0].getMinimalActionSet()
        self._rngs = [np.random.default_rng(0)] * num_envs
        height, width = self._games[0].getScreenDims()
        self._observations = np.zeros((num_envs, FRAME_STACK, FRAME_SIZE, FRAME_SIZE), np.uint8)
        frames = np.zeros((2, height, width), np.uint8)  # of the game at play
        self._grey = _Grey(frames)
        self._shrinks = [_Shrink(frames, stack[-1]) for stack in self._observations]
        self._final_observations = np.zeros_like(self._observations)
        self._rewards = np.zeros(num_envs)
        self._terminated, self._truncated = np.zeros((2, num_envs), bool)
        self._counter = EpisodeCounter(num_envs)
        self._colours = np.zeros((2, height, width, 3), np.uint8) if render_mode else None

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        if self._spec.sticky_action_prob:  # all that is random in an emulator, seeded when it loads
            self._games = [emulator(self._spec, int(seed)) for seed in seeds]
        self._rngs = [np.random.default_rng(int(seed)) for seed in seeds]
        for e in range(len(self._games)):
            self._restart(e)
        return self._observations

    def _restart(self, e: int) -> None:
        """Start an episode: 0 to noop_max frames of no action, and one of FIRE if it is wanted."""
        import ale_py

        game, spec = self._games[e], self._spec
        self._counter.start(e)
        game.reset_game()
        begin = [ale_py.Action.NOOP] * int(self._rngs[e].integers(spec.noop_max + 1))
        if spec.fire_reset and ale_py.Action.FIRE in self._actions:
            begin.append(ale_py.Action.FIRE)
        for action in begin:
            game.act(action)
            if game.game_over():
                game.reset_game()
        self._see(e, 0)
        self._see(e, 1)
        self._observations[e] = 0
        self._shrinks[e]()

    def _see(self, e: int, k: int) -> None:
        """Take the screen as frame k, 0 or 1, of the last two."""
        self._grey(self._games[e], k)
        if self._colours is not None and e == 0:
            self._games[e].getScreenRGB(self._colours[k])

    def step(self, actions: np.ndarray) -> StepResult:
        any_ended = False
        episodes: tuple[Episode, ...] = ()
        for e, (action, stack) in enumerate(zip(actions.tolist(), self._observations)):
            ended, over = self._play(e, action)
            for i in range(FRAME_STACK - 1):
                stack[i] = stack[i + 1]
            self._shrinks[e]()
            if ended:
                any_ended = True
                self._final_observations[e] = stack
                if over:
                    episodes += (self._counter.so_far(e),)
                    self._restart(e)
        return StepResult(
            self._observations,
            self._rewards,
            self._terminated,
            self._truncated,
            self._final_observations if any_ended else None,
            episodes,
        )

    def episode_so_far(self, env: int) -> Episode:
        """Return the episode that game ``env`` is in."""
        return self._counter.so_far(env)

    def _play(self, e: int, action: int) -> tuple[bool, bool]:
        """Play one step of game ``e``; say whether the learner's episode ended, and the game."""
        game, move, reward, over = self._games[e], self._actions[action], 0, False
        lives = game.lives()
        for frame in range(FRAME_SKIP):
            reward += game.act(move)
            over = game.game_over()
            if over or frame >= FRAME_SKIP - 2:
                self._see(e, frame % 2)
            if over:
                break
        if frame < FRAME_SKIP - 1:
            self._see(e, 1 - frame % 2)
        truncated = over and game.game_truncated()
        lost = self._spec.life_loss_terminates and game.lives() < lives
        terminated = lost or (over and not truncated)
        self._rewards[e], self._terminated[e], self._truncated[e] = reward, terminated, truncated
        self._counter.add(e, reward)
        return terminated or truncated, over

    def render(self) -> np.ndarray:
        """Return the first game's picture, (height, width, 3) uint8, of the last two frames."""
        assert self._colours is not None
        return self._colours.max(axis=0)

    def close(self) -> None:
        del self._games


class _Grey:
    """Writes an emulator's screen into one of two frames as getScreenGrayscale does, but faster."""

    def __init__(self, frames: np.ndarray) -> None:
        """Take the frames, (2, height, width) uint8."""
        self._frames, self._screens = frames, np.zeros_like(frames)
        self._greys = np.full(256, 256, np.uint16)  # by colour; 256: not known yet
        self._greys[0] = 0  # black, as screens and frames begin
        if kernels.AVAILABLE:
            first, second = zip(self._screens, frames)
            self._runs = [
                kernels.bound("grey", *frames[0].shape, self._greys, *pair)
                for pair in ((*first, *second), (*second, *first))
            ]

    def __call__(self, game: "ale_py.ALEInterface", k: int) -> None:
        if not kernels.AVAILABLE:
            game.getScreenGrayscale(self._frames[k])
            return
        game.getScreen(self._screens[k])
        if not self._runs[k]():
            game.getScreenGrayscale(self._frames[k])
            self._greys[self._screens[k]] = self._frames[k]


class _Shrink:
    """Averages the larger of two frames over areas: one picture of FRAME_SIZE x FRAME_SIZE."""

    def __init__(self, frames: np.ndarray, picture: np.ndarray) -> None:
        """Take the frames from (2, height, width) uint8, and write ``picture``, at each call."""
        self._frames, self._picture = frames, picture
        self._rows, self._columns = map(_area_weights, frames.shape[1:])
        if kernels.AVAILABLE:
            row_taps = int((self._rows > 0).sum(axis=0).max())
            rows, columns = _taps(self._rows, row_taps), _taps(self._columns, COLUMN_TAPS)
            self._run = kernels.bound(
                "shrink", *frames.shape[1:], *frames, picture, *rows, row_taps, *columns
            )

    def __call__(self) -> None:
        if kernels.AVAILABLE:
            return self._run()
        most = np.maximum(*self._frames).astype(np.float32)
        averages = self._rows.T @ most @ self._columns
        np.copyto(self._picture, np.rint(averages), casting="unsafe")


def _area_weights(size: int) -> np.ndarray:
    """Return how much each of ``size`` places counts in each average, (size, FRAME_SIZE)."""
    edges = np.arange(FRAME_SIZE + 1) * size / FRAME_SIZE
    place = np.arange(size)[:, None]
    overlap = np.minimum(place + 1, edges[1:]) - np.maximum(place, edges[:-1])
    return np.maximum(overlap * FRAME_SIZE / size, 0).astype(np.float32)


def _taps(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each average's first place, and the weights of ``count`` places from there on."""
    first = np.minimum((weights > 0).argmax(axis=0), len(weights) - count)
    taken = weights[first[:, None] + np.arange(count), np.arange(FRAME_SIZE)[:, None]]
    assert np.allclose(taken.sum(axis=1), 1), "more places than screens.c can take"
    return first.astype(np.int32), taken


def emulator(spec: EnvSpec, seed: int) -> "ale_py.ALEInterface":
    """Return an emulator with the spec's game; its seed matters for sticky actions only."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    game = ale_py.ALEInterface()
    game.setInt("random_seed", seed)
    game.setFloat("repeat_action_probability", spec.sticky_action_prob)
    game.setInt("max_num_frames_per_episode", spec.max_episode_frames)
    game.loadROM(rom(spec.env))
    return game


def rom(env: str) -> Path:
    """Return the file of an ALE game's ROM, which is there."""
    import ale_py

    rom = ale_py.roms.get_rom_path(env)
    assert rom is not None
    return rom
