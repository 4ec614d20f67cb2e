"""``mpi_rl record``: a GIF of a run's policy playing its game."""

from pathlib import Path

import click
import numpy as np
from PIL import Image

from mpi_rl.commands.cli import greedy_option
from mpi_rl.compiled import kernels
from mpi_rl.envs.ale import AleGame
from mpi_rl.envs.episodes import Episode
from mpi_rl.envs.make import make_envs
from mpi_rl.envs.spec import env_spec_from_json
from mpi_rl.envs.tasks import VectorTask
from mpi_rl.errors import UserError, writing
from mpi_rl.learning.agent import draw
from mpi_rl.networks.make import make_network
from mpi_rl.networks.network import Network, network_spec
from mpi_rl.records.runfile import Run, read_run

MOST_FRAMES_PER_S = 25  # of the GIF; faster tasks show every n-th step
WIDTH = 300  # of a picture in pixels, for tasks whose own pictures are wider


@click.command("record")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: FILE with .gif]"
)
@click.option(
    "--snapshot",
    default="best",
    show_default=True,
    help="best, last, group 0 (with groups), or the step of a snapshot",
)
@click.option(
    "--episodes", default=1, show_default=True, type=click.IntRange(1), help="episodes to show"
)
@click.option(
    "--max-steps",
    default=3000,
    show_default=True,
    type=click.IntRange(1),
    help="longest episode shown",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="of the episodes and the actions",
)
@greedy_option
def record_run(
    file: Path,
    output: Path | None,
    snapshot: str,
    episodes: int,
    max_steps: int,
    seed: int,
    greedy: bool,
) -> None:
    """Write a GIF of FILE's trained policy playing."""
    print(
        record(
            file, output or file.with_suffix(".gif"), snapshot, episodes, max_steps, seed, greedy
        )
    )


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

    ``snapshot`` is 'best', 'last', 'group 0' or a step. Raises UserError if the run has no such
    snapshot or the compiled kernels are stale, CannotWrite if ``output`` cannot be written.
    """
    kernels.check()
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE_ALL:
        raise UserError(f"output = {str(output)!r}: must be a picture that moves, like play.gif")
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
    episodes = [
        _play(envs, network, rng, frames, skip, max_steps, greedy) for _ in range(num_episodes)
    ]
    envs.close()
    with writing(output):
        frames[0].save(
            output,
            save_all=True,
            append_images=frames[1:],
            duration=1000 * skip // envs.steps_per_s,
            loop=0,
            optimize=False,
        )
    step = run.tables["snapshots"]["step"][row]
    num_steps = sum(episode.episode_length for episode in episodes)
    returns = ", ".join(f"{episode.episode_return:.1f}" for episode in episodes)
    return (
        f"{output}: {num_episodes} episode(s) of the policy at step {step:,}, {num_steps:,} steps,"
        f" return {returns}"
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
        raise UserError(f"snapshot = {snapshot!r}: {path} has {', '.join(names)}")
    return names.index(snapshot)


def _play(
    envs: VectorTask | AleGame,
    network: Network,
    rng: np.random.Generator,
    frames: list[Image.Image],
    skip: int,
    max_steps: int,
    greedy: bool,
) -> Episode:
    """Play an episode, or its first ``max_steps``; add every ``skip``-th step's picture."""
    observations = envs.reset(rng.integers(2**31 - 1, size=1))
    for step in range(max_steps):
        if step % skip == 0:
            frames.append(_frame(envs.render()))
        logits = network.logits(0, observations)
        result = envs.step(draw(logits, rng, greedy))
        observations = result.observations
        if result.episodes:
            return result.episodes[0]
    return envs.episode_so_far(0)


def _frame(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    if image.width > WIDTH:
        image = image.resize((WIDTH, WIDTH * image.height // image.width))
    return image.quantize(64)
