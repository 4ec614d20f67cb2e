"""Environments behind one small vectorised interface: Gymnasium's classic tasks and every ALE game.

Ended episodes are reset within the same step: the observation returned is the first of the next
episode, and ``final_observations`` holds the last one of the old.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import ale_py

VECTOR_TASKS = ("CartPole-v1", "LunarLander-v3")
FRAME_SKIP = 4  # emulator frames per step: Mnih et al. 2013 and every study here
FRAME_STACK, FRAME_SIZE = 4, 84


@dataclass(frozen=True)
class EnvSpec:
    """What is played: the same spec, seed and actions give the same episodes.

    The settings of ALE games are kept, and hashed, for the other tasks too.
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

    def to_json(self) -> str:
        """The spec as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True)

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

    steps_per_s = 50  # of a person watching in real time

    def __init__(self, spec: EnvSpec, num_envs: int, render_mode: str | None = None) -> None:
        import gymnasium

        self.envs = [
            gymnasium.make(spec.env, render_mode=render_mode, disable_env_checker=True)
            for _ in range(num_envs)
        ]
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
    """E copies of one ALE game, emulated and preprocessed in C++ by one thread."""

    steps_per_s = 60 // FRAME_SKIP  # of a person watching in real time

    def __init__(self, spec: EnvSpec, num_envs: int, render_mode: str | None = None) -> None:
        self._emulator = _emulator(
            spec, num_envs, FRAME_SIZE, FRAME_SIZE, FRAME_STACK, grayscale=True
        )
        self._colour: ale_py.AtariVectorEnv | None = None
        if render_mode:  # same seeds, same actions, and the colours that the policy's frames lack
            self._colour = _emulator(spec, num_envs, 210, 160, 1, grayscale=False)
        self._picture = np.zeros((210, 160, 3), np.uint8)
        self._lives_end = spec.life_loss_terminates
        self._episode_frames = np.zeros(num_envs, np.int64)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        observations, info = self._emulator.reset(seed=seeds)
        self._episode_frames = info["episode_frame_number"]
        if self._colour:
            self._picture = self._colour.reset(seed=seeds)[0][0, 0]
        return observations

    def step(self, actions: np.ndarray) -> StepResult:
        observations, rewards, terminated, truncated, info = self._emulator.step(actions)
        if self._colour:
            self._picture = self._colour.step(actions)[0][0, 0]
        frames, self._episode_frames = self._episode_frames, info["episode_frame_number"]
        episode_over = terminated | truncated
        if self._lives_end:  # after a lost life the same game goes on: its frames keep counting
            episode_over = episode_over & (self._episode_frames < frames)
        return StepResult(
            observations, rewards, terminated, truncated, episode_over, info.get("final_obs")
        )

    def render(self) -> np.ndarray:
        """Return the first game's picture, (210, 160, 3) uint8."""
        return self._picture

    def close(self) -> None:
        del self._emulator, self._colour


def _emulator(
    spec: EnvSpec, num_envs: int, height: int, width: int, stack: int, grayscale: bool
) -> "ale_py.AtariVectorEnv":
    import ale_py
    import gymnasium

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    # The emulator draws 0 to its noop_max - 1 no-ops; ours counts up to and with noop_max.
    return ale_py.AtariVectorEnv(
        spec.env,
        num_envs,
        num_threads=1,
        frameskip=FRAME_SKIP,
        stack_num=stack,
        img_height=height,
        img_width=width,
        grayscale=grayscale,
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
        reward_clipping=False,
        repeat_action_probability=spec.sticky_action_prob,
        noop_max=spec.noop_max + 1,
        use_fire_reset=spec.fire_reset,
        life_loss_info=spec.life_loss_terminates,
        max_num_frames_per_episode=spec.max_episode_frames,
    )


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
        import gymnasium

        task = gymnasium.make(env, disable_env_checker=True)
        assert task.observation_space.shape is not None
        shape, actions = task.observation_space.shape, task.action_space
        assert isinstance(actions, gymnasium.spaces.Discrete)
        num_actions = int(actions.n)
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
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        ale = ale_py.ALEInterface()
        rom = ale_py.roms.get_rom_path(env)
        assert rom is not None
        ale.loadROM(rom)
        shape, num_actions = (FRAME_STACK, FRAME_SIZE, FRAME_SIZE), len(ale.getMinimalActionSet())
    names = (
        "sticky_action_prob",
        "noop_max",
        "fire_reset",
        "life_loss_terminates",
        "max_episode_frames",
    )
    return EnvSpec(
        env,
        FRAME_SKIP,
        **{name: settings[name] for name in names},
        observation_shape=shape,
        num_actions=num_actions,
    )


def env_spec_from_json(text: str) -> EnvSpec:
    """Undo ``EnvSpec.to_json``."""
    values = json.loads(text)
    return EnvSpec(**{**values, "observation_shape": tuple(values["observation_shape"])})
