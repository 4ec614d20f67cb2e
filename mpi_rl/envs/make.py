"""Environments behind one small vectorised interface: Gymnasium's classic tasks and every ALE game.

Ended episodes are reset within the same step: the observation returned is the first of the next
episode, and ``final_observations`` holds the last one of the old.
"""

import difflib
from dataclasses import replace

from mpi_rl.config import Config
from mpi_rl.envs.ale import AleGame, emulator, rom
from mpi_rl.envs.spec import FRAME_SIZE, FRAME_SKIP, FRAME_STACK, EnvSpec
from mpi_rl.envs.tasks import VectorTask, gymnasium_task
from mpi_rl.errors import UserError

VECTOR_TASKS = ("CartPole-v1", "LunarLander-v3", "FlappyBird-v0")


def make_envs(spec: EnvSpec, num_envs: int, render_mode: str | None = None) -> VectorTask | AleGame:
    """Return ``num_envs`` environments of ``spec``; render_mode 'rgb_array' lets them render."""
    return (VectorTask if spec.env in VECTOR_TASKS else AleGame)(spec, num_envs, render_mode)


def env_spec(config: Config) -> EnvSpec:
    """Return the spec of the task that a run's ``config`` names, after a look at the task.

    Raises UserError naming the nearest known tasks if there is none of that name.
    """
    shape: tuple[int, ...]
    env = config.env
    if env in VECTOR_TASKS:
        task = gymnasium_task(env, config.fixed_pipes, config.max_episode_frames)
        shape, num_actions = task.observation_space.shape, int(task.action_space.n)
        task.close()
    else:
        import ale_py

        games = ale_py.roms.get_all_rom_ids()
        if env not in games:
            near = difflib.get_close_matches(env, [*VECTOR_TASKS, *games], n=3, cutoff=0.4)
            raise UserError(
                f"env = {env!r}: unknown; "
                + (
                    f"nearest: {', '.join(near)}"
                    if near
                    else f"valid: {', '.join(VECTOR_TASKS)} or an ALE game like space_invaders"
                )
            )
        if ale_py.ALEInterface.isSupportedROM(rom(env)) is None:
            raise UserError(f"env = {env!r}: a ROM that ale_py cannot play; valid: other games")
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
        **{name: getattr(config, name) for name in names},
        observation_shape=shape,
        num_actions=num_actions,
    )
    if env not in VECTOR_TASKS:
        num_actions = len(emulator(spec, seed=0).getMinimalActionSet())
    return replace(spec, num_actions=num_actions)
