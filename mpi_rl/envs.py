"""Environments behind one small vectorised interface: Gymnasium's classic tasks and every ALE game.

Ended episodes are reset within the same step: the observation returned is the first of the next
episode, and ``final_observations`` holds the last one of the old.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpi_rl import fused

if TYPE_CHECKING:
    import ale_py

VECTOR_TASKS = ("CartPole-v1", "LunarLander-v3", "FlappyBird-v0")
FRAME_SKIP = 4  # emulator frames per step: Mnih et al. 2013 and every study here
FRAME_STACK, FRAME_SIZE = 4, 84
COLUMN_TAPS = 4  # of fused.c


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
    episode_over: np.ndarray  # (E,) bool: an episode to be recorded ended here
    final_observations: np.ndarray | None  # (E, *shape), valid where an end is; None: no ends


class VectorTask:
    """E copies of one Gymnasium task with vector observations, stepped one after the other."""

    def __init__(self, spec: EnvSpec, num_envs: int, render_mode: str | None = None) -> None:
        self.envs = [_task(asdict(spec), render_mode) for _ in range(num_envs)]
        shape = self.envs[0].observation_space.shape
        if shape != spec.observation_shape:
            raise ValueError(
                f"env = {spec.env!r}: its observations are {shape} here, but were"
                f" {spec.observation_shape} in this run: must be played by the version that made it"
            )
        self.steps_per_s = self.envs[0].metadata["render_fps"]  # of a person watching in real time
        self._observations = np.zeros((num_envs, *spec.observation_shape), np.float32)
        self._final_observations = np.zeros_like(self._observations)
        self._rewards = np.zeros(num_envs)
        self._terminated, self._truncated, self._over = np.zeros((3, num_envs), bool)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        for i, env in enumerate(self.envs):
            self._observations[i] = env.reset(seed=int(seeds[i]))[0]
        return self._observations

    def step(self, actions: np.ndarray) -> StepResult:
        any_over = False
        for i, env in enumerate(self.envs):
            observation, self._rewards[i], terminated, truncated, _ = env.step(int(actions[i]))
            self._terminated[i], self._truncated[i], self._over[i] = (
                terminated,
                truncated,
                terminated or truncated,
            )
            if terminated or truncated:
                any_over = True
                self._final_observations[i] = observation
                observation = env.reset()[0]
            self._observations[i] = observation
        return StepResult(
            self._observations,
            self._rewards,
            self._terminated,
            self._truncated,
            self._over,
            self._final_observations if any_over else None,
        )

    def render(self) -> np.ndarray:
        """Return the first environment's picture, (height, width, 3) uint8."""
        return np.asarray(self.envs[0].render())

    def close(self) -> None:
        for env in self.envs:
            env.close()


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
        self._terminated, self._truncated, self._over = np.zeros((3, num_envs), bool)
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
        for e, (action, stack) in enumerate(zip(actions.tolist(), self._observations)):
            ended = self._play(e, action)
            for i in range(FRAME_STACK - 1):
                stack[i] = stack[i + 1]
            self._shrinks[e]()
            if ended:
                any_ended = True
                self._final_observations[e] = stack
                if self._over[e]:
                    self._restart(e)
        return StepResult(
            self._observations,
            self._rewards,
            self._terminated,
            self._truncated,
            self._over,
            self._final_observations if any_ended else None,
        )

    def _play(self, e: int, action: int) -> bool:
        """Play one step of game ``e``; say whether it ended, or a life that counts."""
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
        self._rewards[e], self._over[e] = reward, over
        self._terminated[e], self._truncated[e] = terminated, truncated
        return terminated or truncated

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
        if fused.AVAILABLE:
            first, second = zip(self._screens, frames)
            self._runs = [
                fused.bound("grey", *frames[0].shape, self._greys, *pair)
                for pair in ((*first, *second), (*second, *first))
            ]

    def __call__(self, game: "ale_py.ALEInterface", k: int) -> None:
        if not fused.AVAILABLE:
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
        if fused.AVAILABLE:
            row_taps = int((self._rows > 0).sum(axis=0).max())
            rows, columns = _taps(self._rows, row_taps), _taps(self._columns, COLUMN_TAPS)
            self._run = fused.bound(
                "shrink", *frames.shape[1:], *frames, picture, *rows, row_taps, *columns
            )

    def __call__(self) -> None:
        if fused.AVAILABLE:
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
    assert np.allclose(taken.sum(axis=1), 1), "more places than fused.c can take"
    return first.astype(np.int32), taken


def emulator(spec: EnvSpec, seed: int) -> "ale_py.ALEInterface":
    """Return an emulator with the spec's game; its seed matters for sticky actions only."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    game = ale_py.ALEInterface()
    game.setInt("random_seed", seed)
    game.setFloat("repeat_action_probability", spec.sticky_action_prob)
    game.setInt("max_num_frames_per_episode", spec.max_episode_frames)
    game.loadROM(_rom(spec.env))
    return game


def _rom(env: str) -> Path:
    import ale_py

    rom = ale_py.roms.get_rom_path(env)
    assert rom is not None
    return rom


def _task(settings: Mapping[str, Any], render_mode: str | None = None) -> Any:
    """Return one Gymnasium task, or what has its methods."""
    if settings["env"] == "FlappyBird-v0":
        from mpi_rl.flappy_bird import FlappyBird

        return FlappyBird(settings["fixed_pipes"], settings["max_episode_frames"], render_mode)
    import gymnasium

    return gymnasium.make(settings["env"], render_mode=render_mode, disable_env_checker=True)


def make_envs(spec: EnvSpec, num_envs: int, render_mode: str | None = None) -> VectorTask | AleGame:
    """Return ``num_envs`` environments of ``spec``; render_mode 'rgb_array' lets them render."""
    return (VectorTask if spec.env in VECTOR_TASKS else AleGame)(spec, num_envs, render_mode)


def env_spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Return the spec of the task that a run's ``settings`` name, after a look at the task.

    Raises ValueError naming the nearest known tasks if there is none of that name.
    """
    shape: tuple[int, ...]
    env = settings["env"]
    if env in VECTOR_TASKS:
        task = _task(settings)
        shape, num_actions = task.observation_space.shape, int(task.action_space.n)
        task.close()
    else:
        import ale_py

        games = ale_py.roms.get_all_rom_ids()
        if env not in games:
            near = difflib.get_close_matches(env, [*VECTOR_TASKS, *games], n=3, cutoff=0.4)
            raise ValueError(
                f"env = {env!r}: unknown; "
                + (
                    f"nearest: {', '.join(near)}"
                    if near
                    else f"valid: {', '.join(VECTOR_TASKS)} or an ALE game like space_invaders"
                )
            )
        if ale_py.ALEInterface.isSupportedROM(_rom(env)) is None:
            raise ValueError(f"env = {env!r}: a ROM that ale_py cannot play; valid: other games")
        shape, num_actions = (FRAME_STACK, FRAME_SIZE, FRAME_SIZE), 0
    names = (
        "sticky_action_prob",
        "noop_max",
        "fire_reset",
        "life_loss_terminates",
        "max_episode_frames",
        "fixed_pipes",
    )
    spec = EnvSpec(
        env,
        FRAME_SKIP,
        **{name: settings[name] for name in names},
        observation_shape=shape,
        num_actions=num_actions,
    )
    if env not in VECTOR_TASKS:
        num_actions = len(emulator(spec, seed=0).getMinimalActionSet())
    return replace(spec, num_actions=num_actions)


def env_spec_from_json(text: str) -> EnvSpec:
    """Undo ``EnvSpec.to_json``."""
    values = json.loads(text)
    return EnvSpec(**{**values, "observation_shape": tuple(values["observation_shape"])})
