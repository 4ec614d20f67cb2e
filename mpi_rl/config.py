"""A run's settings: the defaults, job files (TOML) with their sweeps, and useful checks.

A job file holds differences from the defaults and an optional ``[sweep]`` table. Its runs are the
product of the sweep's axes in file order (the last axis varies fastest); the index that picks one
is the Slurm array task id. An axis is a setting with its values, or, under a name of its own, a
list of tables of several settings that vary together.
"""

import dataclasses
import difflib
import functools
import itertools
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_JOB = "lunar_lander"
OPERATIONAL_FIELDS = {
    "checkpoint_period_s"
}  # may change between a run and its resumption: they do not touch learning

NUM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of a number


def _setting(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    algorithm: str = "",
    growth: str = "",
) -> Any:
    only = algorithm or growth  # where that is set it matters, elsewhere it must be the default
    help = f"{only}: {help}" if only else help
    limits = dict(minimum=minimum, maximum=maximum, above=above, choices=choices)
    metadata = dict(help=help, algorithm=algorithm, growth=growth, **limits)
    return field(default=default, metadata=types.MappingProxyType(metadata))


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes; one step is one agent decision.

    The defaults solve LunarLander-v3; ``jobs/lunar_lander.toml`` says why each was chosen.
    """

    # Environment
    env: str = _setting(
        "LunarLander-v3",
        "CartPole-v1, LunarLander-v3, FlappyBird-v0 or an ALE game by its ROM name, like"
        " space_invaders",
    )
    envs_per_worker: int = _setting(
        1, "environments that each worker steps together (1 is the A3C paper)", 1, 64
    )
    sticky_action_prob: float = _setting(
        0.0, "ALE: probability that a frame repeats the previous action", 0, 1
    )
    noop_max: int = _setting(
        30, "ALE: an episode starts with 0 to this many no-op frames", 0, 10**6
    )
    fire_reset: bool = _setting(False, "ALE: press FIRE after a reset in games that have it")
    life_loss_terminates: bool = _setting(False, "ALE: losing a life ends the learner's episode")
    max_episode_frames: int = _setting(
        108_000, "ALE, FlappyBird-v0: an episode is cut after this many frames", 1, 10**9
    )
    fixed_pipes: bool = _setting(False, "FlappyBird-v0: every episode has the same pipes")
    reward_scale: float = _setting(
        0.05, "rewards are multiplied by this in learning (records stay raw)", above=0
    )
    clip_rewards: bool = _setting(
        False, "scaled rewards are clipped to [-1, 1] in learning (records stay raw)"
    )

    # Network
    network: str = _setting(
        "mlp", "body of the network", choices=("mlp", "atari_2013", "atari_2015")
    )
    hidden_sizes: tuple[int, ...] = _setting((128, 128), "widths of the mlp's hidden layers", 1)
    activation: str = _setting("tanh", "the mlp's nonlinearity", choices=("tanh", "relu"))
    separate_trunks: bool = _setting(True, "mlp: policy and value share no hidden layer")
    initialization: str = _setting(
        "orthogonal",
        "first parameters: orthogonal (PPO), uniform with bound 1/sqrt(fan_in) "
        "(Torch7, A3C), glorot (Keras) or normal with deviation 0.1 (Genkidama)",
        choices=("orthogonal", "uniform", "glorot", "normal"),
    )

    # Algorithm
    algorithm: str = _setting(
        "a3c",
        "a3c: workers push gradients; genkidama: groups of workers average their parameters with"
        " the server's",
        choices=("a3c", "genkidama"),
    )
    group_size: int = _setting(
        1,
        "workers of one node that share their group's parameters",
        1,
        algorithm="genkidama",
    )
    alpha: float = _setting(
        0.9,
        "share of a group's parameters in the server's new ones",
        0,
        1,
        algorithm="genkidama",
    )
    beta: float = _setting(
        0.0,
        "share of the server's parameters in a group's new ones",
        0,
        1,
        algorithm="genkidama",
    )
    elastic: bool = _setting(
        False,
        "a group mixes with the server's parameters from before the exchange (with alpha"
        " = beta that is elastic averaging)",
        algorithm="genkidama",
    )
    exchange_period: int = _setting(
        1,
        "episodes that each member plays from one exchange to the next",
        1,
        1000,
        algorithm="genkidama",
    )
    exchange_dtype: str = _setting(
        "float32",
        "precision of parameters between groups and server",
        choices=tuple(NUM_BYTES),
        algorithm="genkidama",
    )
    group_slowdown: float = _setting(
        1.0,
        "the last group takes so many times as long, as if on a slower machine",
        1,
        algorithm="genkidama",
    )
    pull_period: int = _setting(
        1, "updates from one pull of parameters to a worker's next; episodes' ends are pulls too", 1
    )
    delayed_pull: bool = _setting(
        False,
        "workers use each pull's parameters one pull later, as if they had waited in a queue",
        algorithm="a3c",
    )

    # Learning
    n_steps: int = _setting(
        120, "longest rollout, in steps of one environment (t_max of the A3C paper)", 1
    )
    gamma: float = _setting(0.995, "discount per step", 0, 1)
    bootstrap: str = _setting(
        "next",
        "a rollout's return goes on with V of the state after its last step (next), or of the one"
        " before (last, as the Genkidama code has it)",
        choices=("next", "last"),
    )
    time_limit_terminates: bool = _setting(
        False, "a time limit is learned as a terminal state (the Genkidama code's way)"
    )
    learn_last_step: bool = _setting(
        True, "whether the step that ends an episode is learned (the Genkidama code's A3C drops it)"
    )
    uniform_action_prob: float = _setting(
        0.0, "probability of an action drawn uniformly instead of from the policy", 0, 1
    )
    mean_loss: bool = _setting(
        False, "the loss is its mean over a rollout's steps, not their sum (Genkidama's)"
    )
    standardize_returns: bool = _setting(
        False, "a rollout's returns are shifted and scaled to mean 0 and deviation 1 in learning"
    )
    entropy_coef: float = _setting(
        0.001, "weight of the policy's entropy (beta of the A3C paper)", 0
    )
    value_coef: float = _setting(0.5, "weight of the squared value error", 0)
    huber_delta: float = _setting(
        0.0, "value errors beyond this count linearly, as in Huber's loss (0: never)", 0
    )
    max_grad_norm: float = _setting(100.0, "gradients are scaled down to this norm (0: never)", 0)
    update_rule: str = _setting(
        "adam", "how a gradient is applied", choices=("rmsprop", "adam", "sgd")
    )
    learning_rate: float = _setting(5e-4, "step size of the update rule at the start", above=0)
    learning_rate_schedule: str = _setting(
        "linear", "linear: annealed to 0 over total_steps", choices=("linear", "constant")
    )
    staleness_scaled_rate: bool = _setting(
        False,
        "the step size of a gradient s > 1 updates old is divided by s (Zhang et al. 2016)",
    )
    max_staleness: int = _setting(
        0, "gradients older than this many updates are dropped, and counted (0: none)", 0
    )
    rmsprop_decay: float = _setting(
        0.99, "rmsprop: decay of the mean square (alpha of the A3C paper)", 0, 1
    )
    epsilon: float = _setting(1e-8, "rmsprop: added inside the root; adam: added outside", above=0)
    momentum: float = _setting(0.0, "sgd: momentum, one velocity per worker", 0, 1)
    weight_decay: float = _setting(0.0, "sgd: L2 penalty added to the gradient", 0)

    # Run
    seed: int = _setting(1, "of every random stream of the run", 0, 2**63 - 1)
    num_workers: int = _setting(0, "workers that the job asks for (0: all ranks but the server)", 0)
    growth: str = _setting(
        "none",
        "when parked workers are admitted: schedule (at given steps), episode_duration (the longer"
        " episodes get, the more) or throughput (while that makes the run faster)",
        choices=("none", "schedule", "episode_duration", "throughput"),
    )
    initial_workers: int = _setting(
        0, "workers that are not parked at the start (0: all, without growth)", 0
    )
    growth_steps: tuple[int, ...] = _setting(
        (), "steps of the run at which to change the number of workers", 1, growth="schedule"
    )
    growth_workers: tuple[int, ...] = _setting(
        (),
        "workers from each of growth_steps on; fewer than before: the others are parked again",
        1,
        growth="schedule",
    )
    growth_durations: tuple[int, ...] = _setting(
        (20, 40, 60),
        "a mean above the first of these adds 1 worker, above the second 2, and so on",
        1,
        growth="episode_duration",
    )
    growth_unit: str = _setting(
        "seconds",
        "unit of growth_durations",
        choices=("seconds", "steps"),
        growth="episode_duration",
    )
    growth_window: int = _setting(
        100,
        "episodes that a mean is taken over, all of them since the last one",
        1,
        growth="episode_duration",
    )
    growth_min_gain: float = _setting(
        0.5,
        "share of the ideal gain in speed (twice the workers: twice the steps/s) that more workers"
        " must bring",
        0,
        1,
        growth="throughput",
    )
    growth_intervals: int = _setting(
        5, "intervals that a number of workers is judged by at first", 2, growth="throughput"
    )
    growth_max_staleness: int = _setting(
        0,
        "no more workers once an interval's mean staleness exceeds this (0: whatever it is)",
        0,
        growth="throughput",
    )
    total_steps: int = _setting(
        2_000_000, "the run's budget, in steps summed over workers (0: total_episodes alone)", 0
    )
    total_episodes: int = _setting(
        0, "the run's budget in episodes, where that is spent earlier (0: total_steps alone)", 0
    )
    interval_period_steps: int = _setting(10_000, "one row of /intervals per so many steps", 1)
    snapshot_period_steps: int = _setting(
        0, "one snapshot per so many steps (0: the best and the last only)", 0
    )
    snapshot_period_updates: int = _setting(
        0, "one snapshot per so many updates of the server's parameters (0: none for that)", 0
    )
    checkpoint_period_s: float = _setting(30.0, "seconds between rewrites of the run file", above=0)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        rollout = self.n_steps * self.envs_per_worker
        if not self.total_steps and not self.total_episodes:
            raise ValueError("total_steps = 0 and total_episodes = 0: one of them must be a budget")
        if self.total_steps < rollout and not (self.total_episodes and not self.total_steps):
            raise ValueError(
                f"total_steps = {self.total_steps} is less than one rollout: must be at least"
                f" n_steps x envs_per_worker = {rollout}"
            )
        if not self.total_steps and self.learning_rate_schedule == "linear":
            raise ValueError(
                "learning_rate_schedule = 'linear' without total_steps: must be constant, or have"
                " steps to be annealed over"
            )
        if not self.learn_last_step and self.envs_per_worker > 1:
            raise ValueError(
                f"learn_last_step = False with envs_per_worker = {self.envs_per_worker}: must be"
                " True, or one environment, whose rollouts end with its episodes"
            )
        for choice in "algorithm", "growth":
            self._check_only_with(choice)
        if self.algorithm == "genkidama":
            self._check_genkidama()
        self._check_growth()

    def _check_only_with(self, choice: str) -> None:
        chosen = getattr(self, choice)
        for item in dataclasses.fields(self):
            only, value = item.metadata[choice], getattr(self, item.name)
            if only not in ("", chosen) and value != item.default:
                raise ValueError(
                    f"{item.name} = {value!r} with {choice} = {chosen!r}: must be {item.default!r},"
                    f" or {choice} = {only!r}"
                )

    def _check_growth(self) -> None:
        count, most = self.initial_workers, self.num_workers or math.inf
        if (self.growth == "none") != (count == 0):
            right = "at least 1" if self.growth != "none" else "0, or have a policy of growth"
            raise ValueError(
                f"initial_workers = {count} with growth = {self.growth!r}: must be {right}"
            )
        if max(count, *self.growth_workers, 0) > most:
            raise ValueError(
                f"initial_workers = {count}, growth_workers = {list(self.growth_workers)} with"
                f" num_workers = {most}: must be at most that many"
            )
        steps = self.growth_steps
        if self.growth == "schedule" and not steps or len(steps) != len(self.growth_workers):
            raise ValueError(
                f"growth_steps = {list(steps)} with growth_workers = {list(self.growth_workers)}:"
                " must be equally many, and at least one for growth = 'schedule'"
            )
        for name in "growth_steps", "growth_durations":
            numbers = getattr(self, name)
            if list(numbers) != sorted(set(numbers)):
                raise ValueError(f"{name} = {list(numbers)}: must rise from number to number")
        if 0 < self.max_staleness <= self.growth_max_staleness:
            raise ValueError(
                f"growth_max_staleness = {self.growth_max_staleness} with max_staleness ="
                f" {self.max_staleness}, beyond which gradients are dropped: must be less"
            )

    def _check_genkidama(self) -> None:
        for name, right, why in (
            ("growth", "none", "groups are made at the start"),
            ("max_staleness", 0, "groups send parameters, which mixing takes however old"),
            ("staleness_scaled_rate", False, "groups send parameters, which mixing does not scale"),
            ("envs_per_worker", 1, "a group meets at the end of its members' episodes"),
            ("learning_rate_schedule", "constant", "workers do not know the run's step"),
        ):
            if (value := getattr(self, name)) != right:
                raise ValueError(
                    f"{name} = {value!r} with algorithm = 'genkidama': must be {right!r}, {why}"
                )
        if self.group_slowdown > 1 and self.num_workers == self.group_size:
            raise ValueError(
                f"group_slowdown = {self.group_slowdown:g} with one group: must be 1, or have more"
                " groups, of which the last is slower"
            )
        if self.num_workers % self.group_size:
            raise ValueError(
                f"num_workers = {self.num_workers} with group_size = {self.group_size}: must be a"
                f" multiple of it, like {-(-self.num_workers // self.group_size) * self.group_size}"
            )


def spent(settings: Mapping[str, Any], step: int, num_episodes: int) -> float:
    """Return the share of a run's budget that is spent; 1 or more: all of it."""
    counts = (step, settings["total_steps"]), (num_episodes, settings["total_episodes"])
    return max(count / total for count, total in counts if total)


def budget(settings: Mapping[str, Any]) -> str:
    """Return a run's budget in words."""
    totals = {"steps": settings["total_steps"], "episodes": settings["total_episodes"]}
    return " or ".join(f"{total:,} {unit}" for unit, total in totals.items() if total)


@functools.cache  # analyses ask for the same few again and again
def config_from_json(text: str) -> Config:
    """Return the settings in a run file's ``config``; ValueError for those not known here."""
    return make_config(json.loads(text), "the run file")


def _checked(item: dataclasses.Field, value: Any) -> Any:
    """Return ``value`` in its field's type; ValueError names field, value and what is right."""
    if item.type == tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not (value or not item.default):
            raise ValueError(
                f"{item.name} = {value!r}: must be a list of whole numbers, like [128, 128]"
            )
        return tuple(_checked_scalar(item, number, int) for number in value)
    return _checked_scalar(item, value, typing.cast(type, item.type))


def _checked_scalar(item: dataclasses.Field, value: Any, kind: type) -> Any:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(typing.cast(float, value))):
        raise ValueError(f"{item.name} = {value!r}: must be {words}")
    limits = item.metadata
    if limits["choices"] and value not in limits["choices"]:
        raise ValueError(f"{item.name} = {value!r}: must be one of {', '.join(limits['choices'])}")
    if limits["minimum"] is not None and value < limits["minimum"]:
        raise ValueError(f"{item.name} = {value!r}: must be at least {limits['minimum']}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ValueError(f"{item.name} = {value!r}: must be above {limits['above']}")
    if limits["maximum"] is not None and value > limits["maximum"]:
        raise ValueError(f"{item.name} = {value!r}: must be at most {limits['maximum']}")
    return value


def make_config(settings: dict[str, Any], source: str) -> Config:
    """Return the defaults changed by ``settings``, which errors say came from ``source``."""
    _check_names(settings, source)
    return Config(**settings)


def _check_names(settings: dict[str, Any], source: str) -> None:
    names = [item.name for item in dataclasses.fields(Config)]
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(name, [*names, "sweep"], n=3, cutoff=0.5)
            raise ValueError(
                f"{source}: unknown key {name!r}; "
                + (f"nearest valid: {', '.join(near)}" if near else f"valid: {', '.join(names)}")
            )


@dataclass(frozen=True)
class Job:
    """A job file: its name, what all its runs share, and what varies, one dict per index."""

    name: str
    settings: dict[str, Any]
    sweep: list[dict[str, Any]]

    def config(self, index: int, overrides: dict[str, Any]) -> Config:
        """Return the settings of run ``index``; ``overrides`` win. ValueError if out of range."""
        if not 0 <= index < len(self.sweep):
            raise ValueError(
                f"index = {index}: job {self.name} has {len(self.sweep)} run(s), indices 0 to "
                f"{len(self.sweep) - 1}"
            )
        return make_config({**self.settings, **self.sweep[index], **overrides}, self.name)


def load_job(path: str | None) -> Job:
    """Read a job file; None is the default job. Raises ValueError for anything unusable."""
    if path is None:
        return Job(DEFAULT_JOB, {}, [{}])
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"job {path!r}: no such file; job files are in jobs/, like jobs/cartpole.toml"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"job {path!r}: {error}") from None
    axes = settings.pop("sweep", {})
    if not isinstance(axes, dict):
        raise ValueError(f"{path}: sweep = {axes!r}: must be a table, [sweep], of lists")
    _check_names(settings, path)
    taken = set(settings)
    columns = []
    for name, values in axes.items():
        columns.append(_axis(name, values, f"{path} [sweep]"))
        names = {each for value in columns[-1] for each in value}
        if names & taken:
            raise ValueError(
                f"{path}: {', '.join(sorted(names & taken))} is both a setting and a [sweep] axis,"
                " or part of two axes: keep one of them"
            )
        taken |= names
    sweep = [
        {name: value for part in parts for name, value in part.items()}
        for parts in itertools.product(*columns)
    ]
    return Job(Path(path).stem, settings, sweep)


def _axis(name: str, values: Any, source: str) -> list[dict[str, Any]]:
    """Return what an axis sets at each of its places; ValueError if it is none."""
    if not isinstance(values, list) or not values:
        raise ValueError(
            f"{source}: {name} = {values!r}: must be a list of one or more values to try"
        )
    tables = [isinstance(value, dict) for value in values]
    if any(tables) and not all(tables):
        raise ValueError(
            f"{source}: {name} mixes tables and {values[tables.index(False)]!r}: must be all tables"
            " of settings, or all values of one"
        )
    if not all(tables):
        _check_names({name: values}, source)
        return [{name: value} for value in values]
    for value in values:
        _check_names(value, f"{source} {name}")
        if value.keys() != values[0].keys():
            raise ValueError(
                f"{source}: {name} has tables of different settings"
                f" ({', '.join(value.keys() ^ values[0].keys())}): must all set the same"
            )
    return values


def differences(old: Config, new: Config) -> list[str]:
    """Return 'field: old -> new' for each setting that differs and matters for learning."""
    return [
        f"{name}: {before!r} -> {getattr(new, name)!r}"
        for name, before in dataclasses.asdict(old).items()
        if name not in OPERATIONAL_FIELDS and before != getattr(new, name)
    ]
