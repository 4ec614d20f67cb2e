"""A run's settings: the defaults, job files (TOML) with their sweeps, and useful checks.

A job file holds differences from the defaults and an optional ``[sweep]`` table. Its runs are the
product of the sweep's axes in file order (the last axis varies fastest); the index that picks one
is the Slurm array task id.
"""

import dataclasses
import difflib
import itertools
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_JOB = "lunar_lander"
OPERATIONAL_FIELDS = {
    "checkpoint_period_s"
}  # may change between a run and its resumption: they do not touch learning


def _setting(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    metadata = dict(help=help, minimum=minimum, maximum=maximum, above=above, choices=choices)
    return field(default=default, metadata=types.MappingProxyType(metadata))


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes; one step is one agent decision.

    The defaults solve LunarLander-v3; ``jobs/lunar_lander.toml`` says why each was chosen.
    """

    # Environment
    env: str = _setting(
        "LunarLander-v3",
        "CartPole-v1, LunarLander-v3 or an ALE game by its ROM name (space_invaders)",
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
        108_000, "ALE: an episode is cut after this many emulator frames", 1, 10**9
    )
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
        "(Torch7, A3C) or normal with deviation 0.1 (Genkidama)",
        choices=("orthogonal", "uniform", "normal"),
    )

    # Learning
    n_steps: int = _setting(
        120, "longest rollout, in steps of one environment (t_max of the A3C paper)", 1
    )
    gamma: float = _setting(0.995, "discount per step", 0, 1)
    entropy_coef: float = _setting(
        0.001, "weight of the policy's entropy (beta of the A3C paper)", 0
    )
    value_coef: float = _setting(0.5, "weight of the squared value error", 0)
    max_grad_norm: float = _setting(100.0, "gradients are scaled down to this norm (0: never)", 0)
    update_rule: str = _setting(
        "adam", "how the server applies a gradient", choices=("rmsprop", "adam", "sgd")
    )
    learning_rate: float = _setting(5e-4, "step size of the update rule at the start", above=0)
    learning_rate_schedule: str = _setting(
        "linear", "linear: annealed to 0 over total_steps", choices=("linear", "constant")
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
    total_steps: int = _setting(2_000_000, "the run's budget, in steps summed over workers", 1)
    interval_period_steps: int = _setting(10_000, "one row of /intervals per so many steps", 1)
    snapshot_period_steps: int = _setting(
        0, "one snapshot per so many steps (0: the best and the last only)", 0
    )
    checkpoint_period_s: float = _setting(30.0, "seconds between rewrites of the run file", above=0)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        rollout = self.n_steps * self.envs_per_worker
        if self.total_steps < rollout:
            raise ValueError(
                f"total_steps = {self.total_steps} is less than one rollout: must be at least"
                f" n_steps x envs_per_worker = {rollout}"
            )


def config_from_json(text: str) -> Config:
    """Return the settings in a run file's ``config``; ValueError for those not known here."""
    return make_config(json.loads(text), "the run file")


def _checked(item: dataclasses.Field, value: Any) -> Any:
    """Return ``value`` in its field's type; ValueError names field, value and what is right."""
    if item.type == tuple[int, ...]:
        if not isinstance(value, (list, tuple)) or not value:
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
    _check_names(axes, f"{path} [sweep]")
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ValueError(
                f"{path} [sweep]: {name} = {values!r}: must be a list of one or more values to try"
            )
        if name in settings:
            raise ValueError(
                f"{path}: {name} is both a setting and a [sweep] axis: keep one of them"
            )
    sweep = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    return Job(Path(path).stem, settings, sweep)


def differences(old: Config, new: Config) -> list[str]:
    """Return 'field: old -> new' for each setting that differs and matters for learning."""
    return [
        f"{name}: {before!r} -> {getattr(new, name)!r}"
        for name, before in dataclasses.asdict(old).items()
        if name not in OPERATIONAL_FIELDS and before != getattr(new, name)
    ]
