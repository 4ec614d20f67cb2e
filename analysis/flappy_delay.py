"""What staleness alone does to Flappy Bird's first policies: one worker with old parameters.

    python -m analysis.flappy_delay [FILE...] [--output results/worker_scaling]

With W workers, each of which keeps its parameters for an episode, a gradient is about 2 W - 1
updates old. Here one agent plays every episode of jobs/flappy_scaling.toml, and its parameters are
exactly so old. Its results cannot be due to many workers' different episodes, or to their speed.
FILEs are runs of that job; their measurements stand beside. A simulation takes a minute or two.
flappy_delay.csv keeps those that are done, and the same command goes on.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from analysis import tables
from analysis.runs import CERTAIN, command, in_order_of_seeds
from analysis.tables import markdown
from mpi_rl.config import Config
from mpi_rl.envs.make import env_spec
from mpi_rl.errors import UserError, writing
from mpi_rl.jobs import load_job
from mpi_rl.learning.agent import Agent, make_rng
from mpi_rl.learning.losses import Losses
from mpi_rl.learning.update_rules import clipping, make_update_rule
from mpi_rl.networks.layers import initial_params
from mpi_rl.networks.network import network_spec
from mpi_rl.records.curves import by_setting
from mpi_rl.records.runfile import Run

JOBS = ("flappy_scaling",)
MAX_UPDATES = 100_000
BLOCK = 1000  # updates in a mean
EARLY = 5000  # updates after which the value loss is shown
TAKE_OFF = -4.0  # mean return: a pipe per episode
COLUMNS = "num_workers", "seed", "value_loss", "certain", "taken_off"


def updates(config: Config, delay: int) -> Iterator[tuple[Losses, float]]:
    """Yield losses and return of each episode, whose gradient is ``delay`` updates old."""
    env = env_spec(config)
    network = network_spec(config, env.observation_shape, env.num_actions)
    params = initial_params(network, config.seed)
    held, grads, reply = params.copy(), np.zeros_like(params), np.zeros_like(params)
    agent = Agent(config, env, network, [(held, grads)], make_rng(config.seed, 0))
    update = make_update_rule(config, params, 1).bind(grads, reply, 0)
    past = np.stack([params] * (delay + 1))
    agent.reset()
    for number in range(MAX_UPDATES):
        np.copyto(held, past[number % len(past)])
        rollout = agent.collect()
        losses, grad_norm = agent.learn(rollout)
        update(config.learning_rate, clipping(grad_norm, config.max_grad_norm))
        np.copyto(past[number % len(past)], params)
        yield losses, rollout.episode_returns[0]


def simulate(config: Config) -> dict[str, float]:
    """Return COLUMNS of one worker whose parameters are as old as with ``num_workers``."""
    value_losses, entropies, returns = [], [], []
    for losses, episode_return in updates(config, 2 * config.num_workers - 1):
        value_losses.append(losses.value_loss)
        entropies.append(losses.entropy)
        returns.append(episode_return)
        if len(returns) % BLOCK == 0 and len(returns) >= EARLY:
            if np.mean(returns[-BLOCK:]) >= TAKE_OFF:
                break
    certain = float(np.mean(_means_of_blocks(entropies) < CERTAIN))
    found = float(np.mean(value_losses[EARLY - BLOCK : EARLY])), certain
    return dict(
        zip(COLUMNS, map(float, (config.num_workers, config.seed, *found, take_off(returns))))
    )


def take_off(returns: Sequence[float]) -> float:
    """Return the number of episodes when a BLOCK's mean first was TAKE_OFF; inf if never."""
    there = np.flatnonzero(_means_of_blocks(returns) >= TAKE_OFF)
    return float(BLOCK * (there[0] + 1)) if len(there) else np.inf


def _means_of_blocks(values: Sequence[float]) -> np.ndarray:
    """Return the mean of each whole BLOCK."""
    blocks: np.ndarray = np.array(values[: len(values) // BLOCK * BLOCK]).reshape(-1, BLOCK)
    return np.asarray(blocks.mean(axis=1))


def measured(run: Run) -> tuple[float, float, float]:
    """Return the last three COLUMNS of a run, from its intervals."""
    table, taken_off = run.tables["intervals"], take_off(run.episodes["episode_return"].tolist())
    early = int(np.searchsorted(table["version"][:-1], EARLY))
    last = -1 if np.isinf(taken_off) else int(taken_off) - 1
    before = table["step"] <= run.episodes["step"][last]
    certain = float(np.mean(table["entropy"][before] < CERTAIN))
    return float(table["value_loss"][early]), certain, taken_off


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the simulations in ``path``, if there is such a file; UserError for half a row."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        if None in row.values():
            raise UserError(f"{path}: line {number} ends early: must be whole, or deleted")
    return [{name: float(text) for name, text in row.items()} for row in rows]


def simulate_all(configs: list[Config], path: Path) -> list[dict[str, float]]:
    """Return a row for each of ``configs``; those that ``path`` lacks are simulated and added."""
    rows = read_rows(path)
    done = {(row["num_workers"], row["seed"]) for row in rows}
    todo = [config for config in configs if (config.num_workers, config.seed) not in done]
    if not rows:
        tables.save(path, ",".join(COLUMNS) + "\n")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for found in as_completed([pool.submit(simulate, config) for config in todo]):
            rows.append(found.result())
            with writing(path), open(path, "a", encoding="utf-8") as file:
                file.write(",".join(f"{rows[-1][name]:.6g}" for name in COLUMNS) + "\n")
            print(", ".join(f"{name} {value:,.6g}" for name, value in rows[-1].items()), flush=True)
    return rows


def report(rows: list[dict[str, float]], runs: list[Run]) -> str:
    """Return simulations and runs side by side, in Markdown."""
    real = {
        config.num_workers: np.array([measured(run) for run in pool])
        for config, pool in by_setting(in_order_of_seeds(runs)).items()
    }
    lines = []
    for number in sorted({int(row["num_workers"]) for row in rows}):
        chosen = sorted(
            (row for row in rows if row["num_workers"] == number), key=lambda row: row["seed"]
        )
        simulated = np.array([[row[name] for name in COLUMNS[2:]] for row in chosen])
        cells = [str(number), str(2 * number - 1)]
        for column, (unit, form) in enumerate(((1, ".1f"), (0.01, ".0f"), (1000, ".0f"))):
            for found in (simulated, real.get(number, np.zeros((0, 3)))):
                values = found[:, column] / unit
                texts = ["never" if np.isinf(value) else f"{value:{form}}" for value in values]
                cells.append(", ".join(texts))
        lines.append(cells)
    header = ["workers", "delay", f"value loss after {EARLY:,} updates: one worker", "runs"]
    header += ["% of it certain: one worker", "runs"]
    header += ["take-off, thousand episodes: one worker", "runs"]
    note = (
        "One worker whose parameters are as old as with so many (delay, in updates), and the runs"
        f" themselves, seeds in order. Take-off: {BLOCK:,} episodes have a mean return of"
        f" {TAKE_OFF:g}, a pipe each. Certain: mean entropy is below {CERTAIN:g} nats, of"
        f" {BLOCK:,} episodes (runs: of intervals) until take-off. One worker was watched for"
        f" {MAX_UPDATES:,} episodes."
    )
    return "\n\n".join(["# Staleness by itself", note, markdown(header, lines)]) + "\n"


def write(runs: list[Run], folder: Path) -> list[Path]:
    """Write flappy_delay.csv and flappy_delay.md into ``folder``; return their paths."""
    job = load_job("jobs/flappy_scaling.toml")
    configs = [job.config(index, {}) for index in range(len(job.sweep))]
    paths = [folder / "flappy_delay.csv", folder / "flappy_delay.md"]
    tables.save(paths[1], report(simulate_all(configs, paths[0]), runs))
    return paths


main = command(
    "flappy_delay",
    "Show what staleness alone does to Flappy Bird's first policies.",
    JOBS,
    write,
    "worker_scaling",
)

if __name__ == "__main__":
    main()
