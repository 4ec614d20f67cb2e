"""A run's settings: the defaults, and what fits together."""

import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from typing import Any

from mpi_rl.errors import UserError
from mpi_rl.settings import check_names, check_only_with, check_values, setting

# These may change between a run and its resumption: they do not touch learning.
OPERATIONAL_FIELDS = {"checkpoint_period_s", "server_threads"}

NUM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of a number


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes; one step is one agent decision.

    The defaults solve LunarLander-v3; ``jobs/lunar_lander.toml`` says why each was chosen.
    """

    # Environment
    env: str = setting(
        "LunarLander-v3",
        "CartPole-v1, LunarLander-v3, FlappyBird-v0 or an ALE game by its ROM name, like"
        " space_invaders",
    )
    envs_per_worker: int = setting(
        1, "environments that each worker steps together (1 is the A3C paper)", 1, 64
    )
    sticky_action_prob: float = setting(
        0.0, "ALE: probability that a frame repeats the previous action", 0, 1
    )
    noop_max: int = setting(30, "ALE: an episode starts with 0 to this many no-op frames", 0, 10**6)
    fire_reset: bool = setting(False, "ALE: press FIRE after a reset in games that have it")
    life_loss_terminates: bool = setting(False, "ALE: losing a life ends the learner's episode")
    max_episode_frames: int = setting(
        108_000, "ALE, FlappyBird-v0: an episode is cut after this many frames", 1, 10**9
    )
    fixed_pipes: bool = setting(False, "FlappyBird-v0: every episode has the same pipes")
    reward_scale: float = setting(
        0.05, "rewards are multiplied by this in learning (records stay raw)", above=0
    )
    clip_rewards: bool = setting(
        False, "scaled rewards are clipped to [-1, 1] in learning (records stay raw)"
    )

    # Network
    network: str = setting(
        "mlp", "body of the network", choices=("mlp", "atari_2013", "atari_2015")
    )
    hidden_sizes: tuple[int, ...] = setting((128, 128), "widths of the mlp's hidden layers", 1)
    activation: str = setting("tanh", "the mlp's nonlinearity", choices=("tanh", "relu"))
    separate_trunks: bool = setting(True, "mlp: policy and value share no hidden layer")
    initialization: str = setting(
        "orthogonal",
        "first parameters: orthogonal (PPO), uniform with bound 1/sqrt(fan_in) "
        "(Torch7, A3C), glorot (Keras) or normal with deviation 0.1 (Genkidama)",
        choices=("orthogonal", "uniform", "glorot", "normal"),
    )

    # Algorithm
    algorithm: str = setting(
        "a3c",
        "a3c: workers push gradients; genkidama: groups of workers average their parameters with"
        " the server's",
        choices=("a3c", "genkidama"),
    )
    group_size: int = setting(
        1, "workers of one node that share their group's parameters", 1, algorithm="genkidama"
    )
    alpha: float = setting(
        0.9, "share of a group's parameters in the server's new ones", 0, 1, algorithm="genkidama"
    )
    beta: float = setting(
        0.0, "share of the server's parameters in a group's new ones", 0, 1, algorithm="genkidama"
    )
    elastic: bool = setting(
        False,
        "a group mixes with the server's parameters from before the exchange (with alpha"
        " = beta that is elastic averaging)",
        algorithm="genkidama",
    )
    exchange_period: int = setting(
        1,
        "episodes that each member plays from one exchange to the next",
        1,
        1000,
        algorithm="genkidama",
    )
    exchange_dtype: str = setting(
        "float32",
        "precision of parameters between groups and server",
        choices=tuple(NUM_BYTES),
        algorithm="genkidama",
    )
    group_slowdown: float = setting(
        1.0,
        "the last group takes so many times as long, as if on a slower machine",
        1,
        algorithm="genkidama",
    )
    pull_period: int = setting(
        1, "updates from one pull of parameters to a worker's next; episodes' ends are pulls too", 1
    )
    delayed_pull: bool = setting(
        False,
        "workers use each pull's parameters one pull later, as if they had waited in a queue",
        algorithm="a3c",
    )

    # Learning
    n_steps: int = setting(
        120, "longest rollout, in steps of one environment (t_max of the A3C paper)", 1
    )
    gamma: float = setting(0.995, "discount per step", 0, 1)
    bootstrap: str = setting(
        "next",
        "a rollout's return goes on with V of the state after its last step (next), or of the one"
        " before (last, as the Genkidama code has it)",
        choices=("next", "last"),
    )
    time_limit_terminates: bool = setting(
        False, "a time limit is learned as a terminal state (the Genkidama code's way)"
    )
    learn_last_step: bool = setting(
        True, "whether the step that ends an episode is learned (the Genkidama code's A3C drops it)"
    )
    uniform_action_prob: float = setting(
        0.0, "probability of an action drawn uniformly instead of from the policy", 0, 1
    )
    mean_loss: bool = setting(
        False, "the loss is its mean over a rollout's steps, not their sum (Genkidama's)"
    )
    standardize_returns: bool = setting(
        False, "a rollout's returns are shifted and scaled to mean 0 and deviation 1 in learning"
    )
    entropy_coef: float = setting(
        0.001, "weight of the policy's entropy (beta of the A3C paper)", 0
    )
    value_coef: float = setting(0.5, "weight of the squared value error", 0)
    huber_delta: float = setting(
        0.0, "value errors beyond this count linearly, as in Huber's loss (0: never)", 0
    )
    max_grad_norm: float = setting(100.0, "gradients are scaled down to this norm (0: never)", 0)
    update_rule: str = setting(
        "adam", "how a gradient is applied", choices=("rmsprop", "adam", "sgd")
    )
    learning_rate: float = setting(5e-4, "step size of the update rule at the start", above=0)
    learning_rate_schedule: str = setting(
        "linear", "linear: annealed to 0 over total_steps", choices=("linear", "constant")
    )
    staleness_scaled_rate: bool = setting(
        False,
        "the step size of a gradient s > 1 updates old is divided by s (Zhang et al. 2016)",
        algorithm="a3c",
    )
    max_staleness: int = setting(
        0,
        "gradients older than this many updates are dropped, and counted (0: none)",
        0,
        algorithm="a3c",
    )
    push: str = setting(
        "auto",
        "what is pushed: gradients, factors of dense layers' gradients, or (auto) what is faster",
        choices=("auto", "gradient", "factors"),
        algorithm="a3c",
    )
    rmsprop_decay: float = setting(
        0.99, "rmsprop: decay of the mean square (alpha of the A3C paper)", 0, 1
    )
    epsilon: float = setting(1e-8, "rmsprop: added inside the root; adam: added outside", above=0)
    momentum: float = setting(0.0, "sgd: momentum, one velocity per worker", 0, 1)
    weight_decay: float = setting(0.0, "sgd: L2 penalty added to the gradient", 0)

    # Run
    seed: int = setting(1, "of every random stream of the run", 0, 2**63 - 1)
    num_workers: int = setting(0, "workers that the job asks for (0: all ranks but the server)", 0)
    server_threads: int = setting(1, "threads of the server, a core of rank 0's node each", 1, 256)
    growth: str = setting(
        "none",
        "when parked workers are admitted: schedule (at given steps), episode_duration (the longer"
        " episodes get, the more) or throughput (while that makes the run faster)",
        choices=("none", "schedule", "episode_duration", "throughput"),
    )
    initial_workers: int = setting(
        0, "workers that are not parked at the start (0: all, without growth)", 0
    )
    growth_steps: tuple[int, ...] = setting(
        (), "steps of the run at which to change the number of workers", 1, growth="schedule"
    )
    growth_workers: tuple[int, ...] = setting(
        (),
        "workers from each of growth_steps on; fewer than before: the others are parked again",
        1,
        growth="schedule",
    )
    growth_durations: tuple[int, ...] = setting(
        (20, 40, 60),
        "a mean above the first of these adds 1 worker, above the second 2, and so on",
        1,
        growth="episode_duration",
    )
    growth_unit: str = setting(
        "seconds",
        "unit of growth_durations",
        choices=("seconds", "steps"),
        growth="episode_duration",
    )
    growth_window: int = setting(
        100,
        "episodes that a mean is taken over, all of them since the last one",
        1,
        growth="episode_duration",
    )
    growth_min_gain: float = setting(
        0.5,
        "share of the ideal gain in speed (twice the workers: twice the steps/s) that more workers"
        " must bring",
        0,
        1,
        growth="throughput",
    )
    growth_intervals: int = setting(
        5, "intervals that a number of workers is judged by at first", 2, growth="throughput"
    )
    growth_max_staleness: int = setting(
        0,
        "no more workers once an interval's mean staleness exceeds this (0: whatever it is)",
        0,
        growth="throughput",
    )
    total_steps: int = setting(2_000_000, "the budget in all workers' steps (0: none in steps)", 0)
    total_episodes: int = setting(0, "the budget in episodes, if spent earlier (0: none)", 0)
    interval_period_steps: int = setting(10_000, "one row of /intervals per so many steps", 1)
    snapshot_period_steps: int = setting(
        0, "one snapshot per so many steps (0: the best and the last only)", 0
    )
    snapshot_period_updates: int = setting(
        0, "one snapshot per so many updates of the server's parameters (0: none for that)", 0
    )
    checkpoint_period_s: float = setting(30.0, "seconds between rewrites of the run file", above=0)

    def __post_init__(self) -> None:
        check_values(self)
        rollout = self.n_steps * self.envs_per_worker
        if not self.total_steps and not self.total_episodes:
            raise UserError("total_steps = 0 and total_episodes = 0: one of them must be a budget")
        if self.total_steps < rollout and not (self.total_episodes and not self.total_steps):
            raise UserError(
                f"total_steps = {self.total_steps} is less than one rollout: must be at least"
                f" n_steps x envs_per_worker = {rollout}"
            )
        if not self.total_steps and self.learning_rate_schedule == "linear":
            raise UserError(
                "learning_rate_schedule = 'linear' without total_steps: must be constant, or have"
                " steps to be annealed over"
            )
        if not self.learn_last_step and self.envs_per_worker > 1:
            raise UserError(
                f"learn_last_step = False with envs_per_worker = {self.envs_per_worker}: must be"
                " True, or one environment, whose rollouts end with its episodes"
            )
        check_only_with(self, "algorithm")
        check_only_with(self, "growth")
        self._check_groups()
        self._check_growth()

    def _check_growth(self) -> None:
        count, most = self.initial_workers, self.num_workers or math.inf
        if (self.growth == "none") != (count == 0):
            right = "at least 1" if self.growth != "none" else "0, or have a policy of growth"
            raise UserError(
                f"initial_workers = {count} with growth = {self.growth!r}: must be {right}"
            )
        if max(count, *self.growth_workers, 0) > most:
            raise UserError(
                f"initial_workers = {count}, growth_workers = {list(self.growth_workers)} with"
                f" num_workers = {most}: must be at most that many"
            )
        steps = self.growth_steps
        if self.growth == "schedule" and not steps or len(steps) != len(self.growth_workers):
            raise UserError(
                f"growth_steps = {list(steps)} with growth_workers = {list(self.growth_workers)}:"
                " must be equally many, and at least one for growth = 'schedule'"
            )
        for name in "growth_steps", "growth_durations":
            numbers = getattr(self, name)
            if list(numbers) != sorted(set(numbers)):
                raise UserError(f"{name} = {list(numbers)}: must rise from number to number")
        if 0 < self.max_staleness <= self.growth_max_staleness:
            raise UserError(
                f"growth_max_staleness = {self.growth_max_staleness} with max_staleness ="
                f" {self.max_staleness}, beyond which gradients are dropped: must be less"
            )

    def _check_groups(self) -> None:
        if self.group_slowdown > 1 and self.num_workers == self.group_size:
            raise UserError(
                f"group_slowdown = {self.group_slowdown:g} with one group: must be 1, or have more"
                " groups, of which the last is slower"
            )
        if self.num_workers % self.group_size:
            raise UserError(
                f"num_workers = {self.num_workers} with group_size = {self.group_size}: must be a"
                f" multiple of it, like {-(-self.num_workers // self.group_size) * self.group_size}"
            )


def spent(config: Config, step: int, num_episodes: int) -> float:
    """Return the share of a run's budget that is spent; 1 or more: all of it."""
    counts = (step, config.total_steps), (num_episodes, config.total_episodes)
    return max(count / total for count, total in counts if total)


def budget(config: Config) -> str:
    """Return a run's budget in words."""
    totals = {"steps": config.total_steps, "episodes": config.total_episodes}
    return " or ".join(f"{total:,} {unit}" for unit, total in totals.items() if total)


@functools.cache  # analyses ask for the same few again and again
def config_from_json(text: str) -> Config:
    """Return the settings in a run file's ``config``; UserError for those not known here."""
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"a run file's config is no JSON: {error}") from None
    return make_config(settings, "the run file")


def make_config(settings: dict[str, Any], source: str) -> Config:
    """Return the defaults changed by ``settings``, which errors say came from ``source``."""
    check_names(Config, settings, source)
    return Config(**settings)


def differences(old: Config, new: Config) -> list[str]:
    """Return 'field: old -> new' for each setting that differs and matters for learning."""
    return [
        f"{name}: {before!r} -> {getattr(new, name)!r}"
        for name, before in dataclasses.asdict(old).items()
        if name not in OPERATIONAL_FIELDS and before != getattr(new, name)
    ]
