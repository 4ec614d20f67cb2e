"""Where a requested run stands: what ``train``, ``submit`` and the batch scripts ask first."""

import dataclasses
from pathlib import Path

from mpi_rl.config import Config, differences
from mpi_rl.envs.make import env_spec
from mpi_rl.envs.spec import EnvSpec
from mpi_rl.errors import UserError, reading
from mpi_rl.records.runfile import read_run

STATES = ("new", "unfinished", "failed", "complete")


def task_of(config: Config) -> EnvSpec:
    """Return the spec of the task. Raises UserError if there is none, or the network is unfit."""
    spec = env_spec(config)
    if (config.network == "mlp") != (len(spec.observation_shape) == 1):
        right = "atari_2013 or atari_2015" if config.network == "mlp" else "mlp"
        raise UserError(
            f"network = {config.network!r} does not take the observations of env = {config.env!r},"
            f" of shape {spec.observation_shape}: must be {right}"
        )
    return spec


def standing(path: Path, config: Config, spec: EnvSpec) -> tuple[str, int]:
    """Return one of STATES and the step saved, for the run of ``config`` that writes ``path``.

    Raises UserError if the file holds something else, or a run of another configuration;
    num_workers = 0 is any number.
    """
    with reading(path):
        if not path.exists():
            return "new", 0
    run = read_run(path, with_state=True)
    old = run.config
    config = dataclasses.replace(config, num_workers=config.num_workers or old.num_workers)
    changed = differences(old, config)
    if run.attributes["env_spec_hash"] != spec.hash() and not changed:
        changed = [f"environment: {run.attributes['env_spec']} -> {spec.to_json()}"]
    status = run.attributes["status"]
    state = status if status in STATES else "unfinished"
    if changed:
        old_settings = "" if state == "complete" else "give the old settings to resume it, "
        raise UserError(
            f"{path}: {'complete' if state == 'complete' else 'unfinished'}, and of another"
            f" configuration ({'; '.join(changed)}); {old_settings}--overwrite to start afresh, or"
            " another --output"
        )
    return state, run.attributes["step"]
