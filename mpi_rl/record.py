"""``mpi_rl record``: a GIF of a run's policy playing its game."""

from pathlib import Path

import numpy as np
from PIL import Image

from mpi_rl.envs import AleGame, VectorTask, env_spec_from_json, make_envs
from mpi_rl.agent import draw, make_network
from mpi_rl.networks import Network, network_spec
from mpi_rl.runfile import Run, read_run

MOST_FRAMES_PER_S = 25  # of the GIF; faster tasks show every n-th step
WIDTH = 300  # of a picture in pixels, for tasks whose own pictures are wider


def record(
    path: Path,
    output: Path,
    snapshot: str,
    num_episodes: int,
    max_steps: int,
    seed: int,
    greedy: bool,
) -> str:
    """Play episodes with one snapshot of run file ``path``; return what happened.

    ``snapshot`` is 'best', 'last', 'group 0' or a step. Raises ValueError if the run has no such
    snapshot.
    """
    run = read_run(path)
    row = _snapshot_row(run, path, snapshot)
    spec = env_spec_from_json(run.attributes["env_spec"])
    params = run.snapshot_params[row].astype(np.float32)
    shape = network_spec(run.config, spec.observation_shape, spec.num_actions)
    network = make_network(shape, params, np.zeros_like(params), 1, 1)
    envs = make_envs(spec, 1, render_mode="rgb_array")
    rng = np.random.default_rng(seed)
    skip = -(-envs.steps_per_s // MOST_FRAMES_PER_S)
    frames: list[Image.Image] = []
    returns, lengths = zip(
        *(_play(envs, network, rng, frames, skip, max_steps, greedy) for _ in range(num_episodes))
    )
    envs.close()
    frames[0].save(
        output,
        save_all=True,
        append_images=frames[1:],
        duration=1000 * skip // envs.steps_per_s,
        loop=0,
        optimize=False,
    )
    step = run.tables["snapshots"]["step"][row]
    return (
        f"{output}: {num_episodes} episode(s) of the policy at step {step:,}, {sum(lengths):,}"
        f" steps, return {', '.join(f'{value:.1f}' for value in returns)}"
    )


def _snapshot_row(run: Run, path: Path, snapshot: str) -> int:
    table = run.tables["snapshots"]
    names = [
        kind if kind != "periodic" else str(step)
        for kind, step in zip(table["kind"], table["step"])
    ]
    if snapshot == "best" and "best" not in names:
        snapshot = "last"  # too short a run to have a best one
    if snapshot not in names:
        raise ValueError(f"snapshot = {snapshot!r}: {path} has {', '.join(names)}")
    return names.index(snapshot)


def _play(
    envs: VectorTask | AleGame,
    network: Network,
    rng: np.random.Generator,
    frames: list[Image.Image],
    skip: int,
    max_steps: int,
    greedy: bool,
) -> tuple[float, int]:
    """Play an episode, add every ``skip``-th step's picture; return its raw return and length."""
    observations, episode_return = envs.reset(rng.integers(2**31 - 1, size=1)), 0.0
    for step in range(max_steps):
        if step % skip == 0:
            frames.append(_frame(envs.render()))
        logits = network.logits(0, observations)
        result = envs.step(draw(logits, rng, greedy))
        observations, episode_return = result.observations, episode_return + float(
            result.rewards[0]
        )
        if result.episode_over[0]:
            break
    return episode_return, step + 1


def _frame(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    if image.width > WIDTH:
        image = image.resize((WIDTH, WIDTH * image.height // image.width))
    return image.quantize(64)
